"""The parts together: start, stop, and a drain that loses nothing."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.config import load
from sse_sidecar.errors import ConfigError
from tests.conftest import Ask, Connect, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, chunk, port_of, request, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
DRAIN_TIMEOUT = 10.0


def admin_port(sidecar: Sidecar) -> int:
    assert sidecar.admin_address is not None
    return sidecar.admin_address.port


async def status_of(port: int, path: str) -> int:
    response = await request(port, path, headers={"Connection": "close"})
    await response.read_to_end()
    response.close()
    return response.status


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


# Start


async def test_both_ports_are_open_once_started(sidecar: Sidecar) -> None:
    assert port_of(sidecar) != admin_port(sidecar)
    assert await accepts(port_of(sidecar))
    assert 200 == await status_of(admin_port(sidecar), "/readyz")


async def test_there_need_be_no_admin_port(start: StartSidecar) -> None:
    sidecar = await start(admin_listen="")

    assert None is sidecar.admin_address
    assert await accepts(port_of(sidecar))


async def test_an_ipv6_address_may_be_listened_on(start: StartSidecar) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    sidecar = await start(listen="[::1]:0")
    assert sidecar.address is not None
    _, writer = await asyncio.open_connection("::1", sidecar.address.port)
    writer.close()

    assert f"[::1]:{sidecar.address.port}" == str(sidecar.address)


@pytest.mark.parametrize("key", ["listen", "admin_listen"])
async def test_a_taken_port_says_which_and_leaves_nothing_open(key: str, upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        ports = {"listen": free.getsockname()[1], "admin_listen": free.getsockname()[1]}
        ports[key] = taken.getsockname()[1]
        free.close()
        sidecar = Sidecar(
            load({"upstream": upstream.url} | {name: f"127.0.0.1:{port}" for name, port in ports.items()})
        )
        with pytest.raises(ConfigError) as raised:
            await sidecar.start()
        other_is_open = [await accepts(port) for name, port in ports.items() if name != key]

    assert (key, f"127.0.0.1:{ports[key]}") == (raised.value.key, raised.value.value)
    assert "in use" in raised.value.expected
    assert [False] == other_is_open


@pytest.mark.parametrize("key", ["listen", "admin_listen"])
@pytest.mark.parametrize("address", ["192.0.2.1:0", "a..b:0"], ids=["another machine's", "no name"])
async def test_an_address_that_cannot_be_listened_on_says_which(key: str, address: str, upstream: Upstream) -> None:
    both = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", key: address}
    with pytest.raises(ConfigError) as raised:
        await Sidecar(load({"upstream": upstream.url, **both})).start()

    assert (key, address) == (raised.value.key, raised.value.value)


# Stop


class Leftovers:
    """Tasks and descriptors of this process: those that were there before are none."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._descriptors = self._count()

    @staticmethod
    def _count() -> int:
        at = Path("/proc/self/fd")
        return sum(1 for _ in at.iterdir()) if at.exists() else 0

    @property
    def descriptors(self) -> int:
        return self._count() - self._descriptors

    async def none(self) -> None:
        """Waits until all that came since is gone. The loop closes a socket a turn later."""
        await until(lambda: asyncio.all_tasks() <= {*self._tasks, asyncio.current_task()})
        await until(lambda: self.descriptors <= 0)


@pytest.fixture
async def leftovers(upstream: Upstream) -> Leftovers:
    """Counts from before the sidecar is started, where a test asks for it first."""
    return Leftovers()


async def test_stop_ends_all_that_is_under_way_and_leaves_nothing(
    leftovers: Leftovers, upstream: Upstream, sidecar: Sidecar
) -> None:
    """A stream, one that no one reads, an answer, an upload, a request without an answer, and an idle connection."""
    port = port_of(sidecar)
    clients = [Response(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(6)]
    asked: list[Asked] = []
    upload = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nbegun"
    for client, raw in zip(clients, [GET, GET.replace(b"GET", b"POST"), GET, upload, GET], strict=False):
        await client.send(raw)
        asked.append(await upstream.asked())
    for stream, client in zip(asked[:2], clients[:2], strict=True):
        await stream.begin()
        await client.read_head()
    clients[1].close()
    await asked[2].send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await clients[2].read_head()
    await until(lambda: sidecar.streams.reader_count == 1)

    await sidecar.stop()
    for message in [*clients, *asked]:
        await message.closed()
        message.close()

    assert not await accepts(port)
    assert [] == [stream for stream in sidecar.streams if not stream.ended]
    await leftovers.none()


async def test_stop_may_come_twice_and_before_a_start(upstream: Upstream) -> None:
    sidecar = Sidecar(load({"upstream": upstream.url, "listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}))
    await sidecar.stop()
    await sidecar.start()
    await sidecar.stop()
    await sidecar.stop()


# Drain: what is still served


async def settle() -> None:
    """Lets everything happen that happens without the clock being moved."""
    for _ in range(50):
        await asyncio.sleep(0.001)


class Draining:
    """A drain past its delay: no connection is taken any more, and the first EventSource is sent away."""

    def __init__(self, sidecar: Sidecar, clock: ManualClock) -> None:
        self._clock = clock
        self._task = asyncio.ensure_future(sidecar.drain())

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    async def over(self) -> None:
        await self._task

    def cancel(self) -> None:
        self._task.cancel()


Drain = Callable[[], Awaitable[Draining]]


@pytest.fixture
async def drain(sidecar: Sidecar, clock: ManualClock) -> AsyncIterator[Drain]:
    begun: list[Draining] = []

    async def beginning() -> Draining:
        begun.append(Draining(sidecar, clock))
        await until(lambda: clock.pending)
        while not sidecar.front.draining:
            clock.advance(0)
            await asyncio.sleep(0)
        clock.advance(0)
        return begun[0]

    yield beginning
    for draining in begun:
        draining.cancel()
    await asyncio.gather(*(draining.over() for draining in begun), return_exceptions=True)


@with_settings(drain_delay=5)
async def test_readyz_fails_at_once_and_requests_are_served_until_the_delay_is_over(
    sidecar: Sidecar, clock: ManualClock, upstream: Upstream, ask: Ask
) -> None:
    """The orchestrator needs this time to send new clients elsewhere."""
    draining = asyncio.ensure_future(sidecar.drain())
    await asyncio.sleep(0)
    ready = await status_of(admin_port(sidecar), "/readyz")
    healthy = await status_of(admin_port(sidecar), "/healthz")
    clock.advance(4.9)
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.send(OK)
    response = await asking
    clock.advance(0.1)
    await draining

    assert (503, 200) == (ready, healthy)
    assert 200 == response.status
    assert None is response.header("connection")


@with_settings(drain_delay=0)
async def test_with_nothing_under_way_a_drain_is_over_at_once(
    sidecar: Sidecar, clock: ManualClock, drain: Drain
) -> None:
    draining = await drain()
    await draining.over()

    assert not await accepts(port_of(sidecar))
    assert 0 == clock.pending


async def test_no_connection_is_taken_once_the_delay_is_over(
    sidecar: Sidecar, open_stream: OpenStream, drain: Drain
) -> None:
    await open_stream("/", method="POST")
    await drain()

    assert not await accepts(port_of(sidecar))
    assert 503 == await status_of(admin_port(sidecar), "/readyz")


async def test_a_request_on_a_kept_connection_gets_later(
    upstream: Upstream, connect: Connect, open_stream: OpenStream, drain: Drain
) -> None:
    await open_stream("/", method="POST")
    client = await connect()
    await client.send(GET)
    asked = await upstream.asked()
    await asked.send(OK)
    await client.reader.readuntil(b"hi")
    await drain()
    await client.send(GET)
    await client.read_head()

    assert (503, "close") == (client.status, client.header("connection"))
    assert client.header("retry-after") in ("2", "3", "4", "5")
    assert b"Service Unavailable" in await client.read_to_end()
    await client.closed()
    assert 2 == len(upstream.requests)


async def test_an_event_source_on_a_kept_connection_is_told_to_come_back(
    upstream: Upstream, connect: Connect, open_stream: OpenStream, drain: Drain
) -> None:
    """A 503 would end it for good."""
    await open_stream("/", method="POST")
    client = await connect()
    await client.send(GET)
    asked = await upstream.asked()
    await asked.send(OK)
    await client.reader.readuntil(b"hi")
    await drain()
    fields = "".join(f"{name}: {value}\r\n" for name, value in EVENT_SOURCE.items()).encode()
    await client.send(GET.replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n"))
    await client.read_head()
    body = await client.read_to_end()

    assert (200, "text/event-stream", "close") == (
        client.status,
        client.header("content-type"),
        client.header("connection"),
    )
    assert re.fullmatch(rb"retry: [2-5]\d{3}\n\n", body)
    assert client.whole
    await client.closed()


# Drain: what is under way


async def test_event_sources_are_sent_away_one_after_the_other_in_the_first_half(
    sidecar: Sidecar, open_stream: OpenStream, drain: Drain
) -> None:
    """Cleanly, at an event boundary, with a retry: all at once would be a storm for whoever takes over."""
    opened = [await open_stream(f"/{number}", headers=EVENT_SOURCE) for number in range(5)]
    for asked, _ in opened:
        await asked.stream(b"data: 1\n\ndata: not yet who")
    for _, response in opened:
        await response.read_until(b"data: 1")
    draining = await drain()
    left = []
    for _ in range(5):
        await settle()
        left.append(sidecar.streams.reader_count)
        draining.advance(DRAIN_TIMEOUT / 10)
    await draining.over()
    bodies = [await response.read_to_end() for _, response in opened]

    assert [4, 3, 2, 1, 0] == left
    for (_, response), body in zip(opened, bodies, strict=True):
        assert response.whole
        assert re.search(rb"\n\ndata: 1\nid: 1-\S+\n\nretry: [2-5]\d{3}\n\n\Z", body)


async def test_an_event_source_that_leaves_before_its_turn_is_no_longer_there(
    sidecar: Sidecar, open_stream: OpenStream, drain: Drain
) -> None:
    _, first = await open_stream("/1", headers=EVENT_SOURCE)
    _, second = await open_stream("/2", headers=EVENT_SOURCE)
    draining = await drain()
    second.close()
    await until(lambda: sidecar.streams.reader_count <= 1)
    draining.advance(DRAIN_TIMEOUT / 2)
    await draining.over()

    await first.read_to_end()
    assert first.whole


async def test_an_event_source_whose_upstream_answers_during_the_drain_is_sent_away_too(
    upstream: Upstream, ask: Ask, drain: Drain
) -> None:
    asking = asyncio.ensure_future(ask("/", headers=EVENT_SOURCE))
    asked = await upstream.asked()
    draining = await drain()
    await asked.begin()
    await asked.stream(b"data: 1\n\n")
    response = await asking
    draining.advance(DRAIN_TIMEOUT / 2)
    await settle()
    draining.advance(DRAIN_TIMEOUT / 2)
    await draining.over()

    assert re.search(rb"retry: [2-5]\d{3}\n\n\Z", await response.read_to_end())
    assert response.whole


async def test_an_event_source_that_waits_for_its_upstream_is_sent_away_too(
    upstream: Upstream, ask: Ask, open_stream: OpenStream, drain: Drain
) -> None:
    """One that resumed a dormant stream, whose upstream is down."""
    asked, response = await open_stream("/", headers=EVENT_SOURCE)
    await asked.stream(b"data: 1\n\n")
    await asked.end()
    await response.read_to_end()
    await upstream.stop()
    waiting = await ask("/", headers={**EVENT_SOURCE, "Last-Event-ID": response.last_id})
    draining = await drain()
    draining.advance(DRAIN_TIMEOUT / 2)
    await settle()
    draining.advance(DRAIN_TIMEOUT / 2)
    await draining.over()

    assert re.search(rb"retry: [2-5]\d{3}\n\n\Z", await waiting.read_to_end())
    assert waiting.whole


async def test_a_stream_that_is_no_event_sources_runs_to_its_end(open_stream: OpenStream, drain: Drain) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: 1\n\n")
    draining = await drain()
    draining.advance(DRAIN_TIMEOUT - 0.1)
    await asked.stream(b"data: 2\n\ndata: [DONE]\n\n")
    await asked.end()
    body = await response.read_to_end()
    await draining.over()

    assert ["data: 1", "data: 2", "data: [DONE]"] == [data for _, data in response.events()], body
    assert response.whole


async def test_an_upload_that_is_under_way_is_not_lost(upstream: Upstream, connect: Connect, drain: Drain) -> None:
    """The connections are read on, which aiohttp's own shutdown would not do."""
    client = await connect()
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one"))
    asked = await upstream.asked()
    await asked.read_until(b"one")
    draining = await drain()
    await client.send(chunk(b"two") + b"0\r\n\r\n")
    body = await asked.read_body()
    await asked.send(OK)
    await client.read_head()
    answer = await client.read_to_end()
    await draining.over()

    assert (b"onetwo", b"hi") == (body, answer)


async def test_an_answer_that_is_under_way_is_not_lost(upstream: Upstream, connect: Connect, drain: Drain) -> None:
    client = await connect()
    await client.send(GET)
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
    await client.read_head()
    await client.read_until(b"half")
    draining = await drain()
    await asked.send(b"half")
    body = await client.read_to_end()
    await draining.over()

    assert b"halfhalf" == body


async def test_a_request_that_waits_for_its_answer_gets_it(upstream: Upstream, connect: Connect, drain: Drain) -> None:
    client = await connect()
    await client.send(GET)
    asked = await upstream.asked()
    draining = await drain()
    draining.advance(DRAIN_TIMEOUT - 0.1)
    await asked.send(OK)
    await client.read_head()
    body = await client.read_to_end()
    await draining.over()

    assert b"hi" == body


async def test_what_is_left_when_the_time_is_over_is_cut(
    leftovers: Leftovers, sidecar: Sidecar, upstream: Upstream, drain: Drain
) -> None:
    """No terminating chunk: it would say that the answer is complete. Nothing is left over."""
    clients, requests = [], []
    for raw in (GET, GET.replace(b"GET", b"POST")):
        client = Response(*await asyncio.open_connection("127.0.0.1", port_of(sidecar)))
        await client.send(raw)
        asked = await upstream.asked()
        await asked.begin()
        await asked.stream(b"data: 1\n\n")
        await client.read_head()
        await client.read_until(b"data: 1")
        clients.append(client)
        requests.append(asked)
    draining = await drain()
    draining.advance(DRAIN_TIMEOUT - 0.1)
    await asyncio.sleep(0)
    before = sidecar.streams.reader_count
    draining.advance(0.1)
    await draining.over()
    for message in [*clients, *requests]:
        await message.read_to_end()
        await message.closed()
        message.close()

    assert 2 == before
    assert [False, False] == [client.whole for client in clients]
    await leftovers.none()


@pytest.mark.parametrize("content_type", ["text/event-stream", "text/plain"])
async def test_a_client_that_reads_nothing_does_not_outlast_the_drain(
    leftovers: Leftovers, sidecar: Sidecar, upstream: Upstream, drain: Drain, content_type: str
) -> None:
    """What it has not taken is dropped: a socket that is closed politely stays open until the client reads."""
    client = Response(*await asyncio.open_connection("127.0.0.1", port_of(sidecar), limit=1024))
    try:
        await client.send(GET.replace(b"GET", b"POST"))
        asked = await upstream.asked()
        await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n" % content_type.encode())
        asked.writer.write((b"data: " + bytes(1 << 20) + b"\n\n") * 60)
        await until(lambda: any(connection.writing_paused for connection in sidecar._server.connections))
        draining = await drain()
        draining.advance(DRAIN_TIMEOUT)
        await draining.over()
        asked.writer.transport.abort()
        await settle()
        left = leftovers.descriptors
    finally:
        client.reset()
        await leftovers.none()

    assert left <= 1, "more than the client's own socket"
