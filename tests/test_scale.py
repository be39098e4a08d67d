"""A thousand private streams at once on one process, each with an upstream connection of its own."""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import StartSidecar
from tests.harness import STREAM_HEAD, ManualClock, chunk, port_of, until

CLIENTS = 1000
ROUNDS = 10


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Four for each stream, both ends of both connections, as both sides are this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * CLIENTS + 200:
        pytest.fail(f"this process may have no more than {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Peer(asyncio.Protocol):
    """One end of a connection: what has been received, and whether it is still open."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.transport = asyncio.Transport()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class Service:
    """An upstream without anything that the test does not need."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.port = 0

    def accept(self) -> Peer:
        self.peers.append(Peer())
        return self.peers[-1]

    def say(self, event: bytes) -> None:
        """To each client its own: its path stands in it."""
        for peer in self.peers:
            peer.transport.write(chunk(event % bytes(peer.received).split(b" ", 2)[1]))


@asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    service = Service()
    server = await asyncio.get_running_loop().create_server(service.accept, "127.0.0.1", 0, backlog=2 * CLIENTS)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        for peer in service.peers:
            peer.transport.abort()


def open_files() -> int:
    at = Path("/proc/self/fd")
    return sum(1 for _ in at.iterdir()) if at.exists() else 0


def events(received: bytearray) -> list[tuple[int, bytes]]:
    """(number, data) of each event. A chunk's framing is never within one here, as each came in a chunk of its own."""
    return [(int(number), data) for data, number in re.findall(rb"data: (.*)\nid: (\d+)-", received)]


async def connect_all(sidecar: Sidecar) -> list[Peer]:
    """A GET each; a hundred at a time, as a real crowd is."""
    clients: list[Peer] = []
    loop = asyncio.get_running_loop()
    for first in range(0, CLIENTS, 100):
        made = [loop.create_connection(Peer, "127.0.0.1", port_of(sidecar)) for _ in range(100)]
        for number, (transport, client) in enumerate(await asyncio.gather(*made), first):
            transport.write(b"GET /%d HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n" % number)
            clients.append(client)
    return clients


async def all_have(clients: list[Peer], part: bytes) -> None:
    await until(lambda: all(part in client.received for client in clients))


async def test_a_thousand_private_streams(descriptors: None, start: StartSidecar, clock: ManualClock) -> None:
    """Each client gets every event of its own stream once; then all leave, and nothing is left over."""
    files, tasks = open_files(), asyncio.all_tasks()
    async with serving() as service:
        sidecar = await start(upstream=f"http://127.0.0.1:{service.port}")
        clients = await connect_all(sidecar)
        await until(lambda: sum(peer.received.endswith(b"\r\n\r\n") for peer in service.peers) == CLIENTS)
        for peer in service.peers:
            peer.transport.write(STREAM_HEAD)
        for number in range(1, ROUNDS + 1):
            service.say(b"data: %%b:%d\n\n" % number)
            await all_have(clients, b"\nid: %d-" % number)
        readers, upstreams = sidecar.streams.reader_count, len(service.peers)
        for client in clients:
            client.transport.close()
        await until(lambda: not sidecar.streams.reader_count)
        clock.advance(30)
        await until(lambda: all(peer.lost for peer in service.peers))
        clock.advance(2 * 3600)
        held = (len(sidecar.streams), sidecar.streams.memory)
        await sidecar.stop()

    wrong = [
        number
        for number, client in enumerate(clients)
        if events(client.received) != [(at, b"/%d:%d" % (number, at)) for at in range(1, ROUNDS + 1)]
    ]

    assert [] == wrong
    assert (CLIENTS, CLIENTS) == (readers, upstreams)
    assert (0, 0) == held
    await until(lambda: asyncio.all_tasks() <= {*tasks, asyncio.current_task()})
    await until(lambda: open_files() <= files)
