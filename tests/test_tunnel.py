"""WebSocket through the sidecar: a real server and a real client, and beneath them the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request
from websockets.http11 import Response as Refusal
from websockets.typing import Subprotocol

from sse_sidecar import app, tunnel
from sse_sidecar.app import Sidecar
from tests.conftest import Connect, OpenStream, StartSidecar, with_settings
from tests.harness import TIMEOUT, Asked, ManualClock, Message, Response, Upstream, port_of, until

MIB = 1 << 20
MONTH = 30 * 86_400.0

UPGRADE = (
    b"GET /socket?a=%20b HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Name: Caf\xe9\r\n\r\n"
)
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
EVERY_BYTE = bytes(range(256)) * 40


# The bytes


@dataclass
class Pair:
    """The two who speak through a tunnel. To the client, the head of the 101 has been given."""

    client: Response
    service: Asked

    def of(self, side: str) -> tuple[Message, Message]:
        """One of them, and the other."""
        return (self.client, self.service) if side == "client" else (self.service, self.client)


OpenTunnel = Callable[..., Awaitable[Pair]]
both_sides = pytest.mark.parametrize("side", ["client", "service"])


@pytest.fixture
def open_tunnel(connect: Connect, upstream: Upstream) -> OpenTunnel:
    async def opening(*, early: bytes = b"", behind: bytes = b"", upgrade: bytes = UPGRADE) -> Pair:
        client = await connect()
        await client.send(upgrade + early)
        service = await upstream.asked()
        await service.send(SWITCHED + behind)
        await client.read_head()
        return Pair(client, service)

    return opening


async def send(peer: Message, data: bytes) -> None:
    peer.writer.write(data)
    await peer.writer.drain()


async def receive(peer: Message, size: int) -> bytes:
    async with asyncio.timeout(TIMEOUT):
        return await peer.reader.readexactly(size)


async def last_words(peer: Message) -> tuple[bytes, str]:
    """What it is still sent, and how its connection ends."""
    heard = b""
    async with asyncio.timeout(TIMEOUT):
        try:
            while part := await peer.reader.read(65_536):
                heard += part
        except ConnectionResetError:
            return heard, "RST"
    return heard, "FIN"


async def gone(sidecar: Sidecar) -> None:
    """Waits until no connection of a client is left, and no request."""
    await until(lambda: not (sidecar._server.connections or sidecar.front.unanswered))


def ends() -> list[tunnel._End]:
    """Both ends of all tunnels."""
    return [found for found in gc.get_objects() if type(found) is tunnel._End]  # isinstance asks proxies of the dead


def held() -> int:
    """Bytes that wait in the sidecar for the ends of tunnels to take them."""
    return sum(end._transport.get_write_buffer_size() for end in ends())


def fall_asleep(peer: Message) -> None:
    """From now on it takes nothing, and the kernels on the way to it take little, until `wake`."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    sockets = [end._transport.get_extra_info("socket") for end in ends()]
    for sock in (*sockets, peer.writer.get_extra_info("socket")):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


def wake(peer: Message) -> None:
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]


async def test_the_request_and_the_answer_cross_with_their_fields(open_tunnel: OpenTunnel) -> None:
    pair = await open_tunnel()

    assert b"GET /socket?a=%20b HTTP/1.1" == pair.service.start_line
    assert ["Upgrade"] == pair.service.header_all("connection")
    assert ["websocket"] == pair.service.header_all("upgrade")
    assert ["dGhlIHNhbXBsZSBub25jZQ=="] == pair.service.header_all("sec-websocket-key")
    assert b"HTTP/1.1 101 Switching Protocols" == pair.client.start_line
    assert [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        (b"X-Name", b"Caf\xe9"),
    ] == pair.client.headers


async def test_fields_that_are_of_one_hop_or_of_a_body_do_not_cross(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(UPGRADE)
    service = await upstream.asked()
    await service.send(
        b"HTTP/1.1 101 Go On\r\nX-Hop: 1\r\nconnection: upgrade, X-Hop\r\nKeep-Alive: timeout=5\r\n"
        b"Content-Length: 0\r\nUpgrade: websocket\r\n\r\n"
    )
    await client.read_head()

    assert b"HTTP/1.1 101 Go On" == client.start_line
    assert [(b"connection", b"Upgrade"), (b"Upgrade", b"websocket")] == client.headers


@both_sides
async def test_bytes_cross_as_they_are(open_tunnel: OpenTunnel, side: str) -> None:
    one, other = (await open_tunnel()).of(side)
    for data in (EVERY_BYTE, b"\0", b"GET / HTTP/1.1\r\n\r\n"):
        await send(one, data)

        assert data == await receive(other, len(data))


@pytest.mark.parametrize("size", [10, 300_000], ids=["few", "many"])
async def test_what_a_client_sends_behind_its_request_is_not_lost(open_tunnel: OpenTunnel, size: int) -> None:
    early = os.urandom(size)
    pair = await open_tunnel(early=early)
    await send(pair.client, b"later")

    assert early + b"later" == await receive(pair.service, size + 5)


@pytest.mark.parametrize("size", [10, 300_000], ids=["few", "many"])
async def test_what_the_service_sends_behind_its_answer_is_not_lost(open_tunnel: OpenTunnel, size: int) -> None:
    behind = os.urandom(size)
    pair = await open_tunnel(behind=behind)
    await send(pair.service, b"later")

    assert behind + b"later" == await receive(pair.client, size + 5)


async def test_a_connection_may_have_served_requests_before(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE + b"early")
    await (await upstream.asked()).send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    await client.reader.readuntil(b"hi")
    service = await upstream.asked()
    await service.send(SWITCHED)
    await client.read_head()

    assert b"HTTP/1.1 101 Switching Protocols" == client.start_line
    assert b"early" == await receive(service, 5)


async def test_as_many_requests_may_come_before_it_as_the_parser_takes_at_once(
    connect: Connect, upstream: Upstream
) -> None:
    number = 40
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * number + UPGRADE + b"early")
    for _ in range(number):
        await (await upstream.asked()).send(NOTHING)
        await client.reader.readuntil(b"\r\n\r\n")
    service = await upstream.asked()
    await service.send(SWITCHED)
    await send(client, b" and late")

    assert b"early and late" == await receive(service, 14)


async def test_many_tunnels_keep_to_themselves(open_tunnel: OpenTunnel) -> None:
    pairs = [await open_tunnel() for _ in range(20)]
    for number, pair in enumerate(pairs):
        await send(pair.client, b"to %02d" % number)
        await send(pair.service, b"of %02d" % number)

    assert [b"to %02d" % number for number in range(20)] == [await receive(pair.service, 5) for pair in pairs]
    assert [b"of %02d" % number for number in range(20)] == [await receive(pair.client, 5) for pair in pairs]


# Ends


@both_sides
async def test_who_has_said_all_still_hears_the_other(open_tunnel: OpenTunnel, sidecar: Sidecar, side: str) -> None:
    one, other = (await open_tunnel()).of(side)
    one.writer.write(b"last")
    one.writer.write_eof()
    said = await last_words(other)
    await send(other, EVERY_BYTE)
    other.writer.write_eof()

    assert (b"last", "FIN") == said
    assert (EVERY_BYTE, "FIN") == await last_words(one)
    await gone(sidecar)


@both_sides
async def test_what_is_on_its_way_arrives_although_its_sender_has_closed(
    open_tunnel: OpenTunnel, sidecar: Sidecar, side: str
) -> None:
    one, other = (await open_tunnel()).of(side)
    data = os.urandom(60_000)
    fall_asleep(other)
    one.writer.write(data)
    one.writer.write_eof()
    await until(lambda: any(end._ended for end in ends()))
    assert held()
    other.writer.write_eof()
    ended = await last_words(one)
    one.close()
    await until(lambda: any(end.lost.done() for end in ends()))
    wake(other)

    assert (b"", "FIN") == ended
    assert (data, "FIN") == await last_words(other)
    await gone(sidecar)


@both_sides
async def test_a_reset_is_passed_on_as_one(open_tunnel: OpenTunnel, sidecar: Sidecar, side: str) -> None:
    one, other = (await open_tunnel()).of(side)
    await send(one, b"last")
    heard = await receive(other, 4)
    one.reset()

    assert b"last" == heard
    assert (b"", "RST") == await last_words(other)
    await gone(sidecar)


@both_sides
async def test_a_reset_that_comes_behind_an_end_is_seen_with_the_next_bytes(
    open_tunnel: OpenTunnel, sidecar: Sidecar, side: str
) -> None:
    one, other = (await open_tunnel()).of(side)
    one.writer.write_eof()
    ended = await last_words(other)
    one.reset()
    with pytest.raises(ConnectionError):
        await send_on(other)

    assert (b"", "FIN") == ended
    await gone(sidecar)


async def send_on(peer: Message) -> None:
    async with asyncio.timeout(TIMEOUT):
        while True:
            await send(peer, b"more")
            await asyncio.sleep(0.001)


async def test_a_client_that_leaves_before_the_answer_ends_the_request(
    connect: Connect, upstream: Upstream, sidecar: Sidecar
) -> None:
    client = await connect()
    await client.send(UPGRADE + b"early")
    service = await upstream.asked()
    client.close()
    await service.closed()

    await gone(sidecar)


async def test_a_service_that_ends_with_its_answer_ends_the_tunnel(
    connect: Connect, upstream: Upstream, sidecar: Sidecar
) -> None:
    client = await connect()
    await client.send(UPGRADE)
    service = await upstream.asked()
    service.writer.write(SWITCHED + b"bye")
    service.writer.close()
    await client.read_head()

    assert (b"bye", "FIN") == await last_words(client)
    client.close()
    await gone(sidecar)


async def test_a_tunnel_that_is_over_leaves_no_garbage(
    connect: Connect, open_tunnel: OpenTunnel, upstream: Upstream, sidecar: Sidecar
) -> None:
    gc.collect()
    gc.disable()
    try:
        for end in (Message.close, Message.reset):
            pair = await open_tunnel()
            end(pair.client)
            await last_words(pair.service)
            pair.service.close()
            await gone(sidecar)
        left = ends()
    finally:
        gc.enable()

    assert [] == left


# Back-pressure, and others


@both_sides
async def test_who_reads_nothing_holds_up_the_other_and_is_held_little_for(open_tunnel: OpenTunnel, side: str) -> None:
    one, other = (await open_tunnel()).of(side)
    data = os.urandom(32 * MIB)
    await until_held_up(one, data)
    most = held()
    heard = asyncio.ensure_future(receive(other, len(data)))

    assert 64 * 1024 + 256 * 1024 >= most
    assert data == await heard
    await send(other, b"and back")
    assert b"and back" == await receive(one, 8)


async def until_held_up(peer: Message, data: bytes) -> None:
    """Writes until no more is taken: for a tenth of a second, nothing has been."""
    transport = peer.writer.transport
    peer.writer.write(data)
    left = -1
    async with asyncio.timeout(TIMEOUT):
        while left != transport.get_write_buffer_size():
            left = transport.get_write_buffer_size()
            await asyncio.sleep(0.1)
    assert left > 8 * MIB


async def test_an_end_is_told_to_one_who_is_held_up(open_tunnel: OpenTunnel, sidecar: Sidecar) -> None:
    pair = await open_tunnel()
    await until_held_up(pair.service, os.urandom(32 * MIB))
    pair.client.reset()

    assert "RST" == (await last_words(pair.service))[1]
    await gone(sidecar)


async def test_event_streams_are_not_disturbed(open_tunnel: OpenTunnel, open_stream: OpenStream) -> None:
    asked, response = await open_stream("/", method="POST")
    pair = await open_tunnel()
    flood = asyncio.ensure_future(_flood(pair.service))
    draining = asyncio.ensure_future(last_words(pair.client))
    try:
        for number in range(20):
            await asked.stream(b"data: %d;\n\n" % number)
            await response.read_until(b"data: %d;" % number)
        flooding = not flood.done()
    finally:
        flood.cancel()
        pair.service.reset()
        await draining

    assert flooding
    assert [f"data: {number};" for number in range(20)] == [block for _, block in response.events()]


async def _flood(peer: Message, size: int = MIB) -> None:
    data = os.urandom(size)
    while True:
        await send(peer, data)
        await asyncio.sleep(0)  # where TLS drops what is written, nothing else would let others go on


async def test_both_may_send_at_once_and_much(open_tunnel: OpenTunnel) -> None:
    pair = await open_tunnel()
    up, down = os.urandom(16 * MIB), os.urandom(16 * MIB)
    heard = await asyncio.gather(
        receive(pair.service, len(up)),
        receive(pair.client, len(down)),
        send(pair.client, up),
        send(pair.service, down),
    )

    assert (up, down) == (heard[0], heard[1])


# Time, and the sidecar's own end


async def test_a_tunnel_in_which_nothing_is_said_is_kept(
    open_tunnel: OpenTunnel, sidecar: Sidecar, clock: ManualClock
) -> None:
    pair = await open_tunnel()
    clock.advance(MONTH)
    await send(pair.client, b"still")
    await send(pair.service, b"there")

    assert (b"still", b"there") == (await receive(pair.service, 5), await receive(pair.client, 5))
    assert 1 == sidecar.front.unanswered


async def begin_drain(sidecar: Sidecar, clock: ManualClock) -> asyncio.Future[None]:
    """A drain past its delay."""
    draining = asyncio.ensure_future(sidecar.drain())
    async with asyncio.timeout(TIMEOUT):
        while not sidecar.front.draining:
            clock.advance(0)
            await asyncio.sleep(0)
    return draining


@with_settings(drain_delay=0, drain_timeout=20)
async def test_a_drain_leaves_a_tunnel_its_time_and_then_ends_it(
    open_tunnel: OpenTunnel, sidecar: Sidecar, clock: ManualClock
) -> None:
    pair = await open_tunnel()
    draining = await begin_drain(sidecar, clock)
    clock.advance(19.9)
    await send(pair.client, b"still")
    heard = await receive(pair.service, 5)
    over = draining.done()
    clock.advance(0.1)
    await draining

    assert (b"still", False) == (heard, over)
    assert [(b"", "FIN")] * 2 == [await last_words(pair.client), await last_words(pair.service)]


@with_settings(drain_delay=0)
async def test_a_drain_is_over_with_the_last_tunnel(
    open_tunnel: OpenTunnel, sidecar: Sidecar, clock: ManualClock
) -> None:
    pair = await open_tunnel()
    draining = await begin_drain(sidecar, clock)
    pair.client.close()
    pair.service.close()
    await draining

    assert 0 == sidecar.front.unanswered


@with_settings(drain_delay=0)
async def test_no_tunnel_is_opened_while_draining(
    connect: Connect, open_tunnel: OpenTunnel, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    pair = await open_tunnel()
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await (await upstream.asked()).send(NOTHING)
    await client.reader.readuntil(b"\r\n\r\n")
    draining = await begin_drain(sidecar, clock)
    await client.send(UPGRADE)
    await client.read_head()
    pair.client.reset()
    await draining

    assert (503, "close") == (client.status, client.header("connection"))
    assert 2 == len(upstream.requests)


async def test_a_stop_does_not_wait_for_tunnels(
    open_tunnel: OpenTunnel, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_LAST_SECOND", MONTH)
    pair = await open_tunnel()
    await sidecar.stop()

    assert [(b"", "FIN")] * 2 == [await last_words(pair.client), await last_words(pair.service)]
    assert not sidecar._server.connections


@both_sides
async def test_a_stop_drops_what_is_held_for_one_who_takes_nothing(
    open_tunnel: OpenTunnel, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    monkeypatch.setattr(app, "_LAST_SECOND", 0.01)
    one, other = (await open_tunnel()).of(side)
    fall_asleep(other)
    await send(one, bytes(60_000))
    await until(held)
    await sidecar.stop()

    await last_words(one)
    await until(lambda: not held())


@with_settings(access_log=True)
async def test_a_tunnel_is_logged_when_it_is_over(
    open_tunnel: OpenTunnel, sidecar: Sidecar, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair = await open_tunnel()
    clock.advance(5)
    pair.client.reset()
    await gone(sidecar)
    facts = [vars(record)["facts"] for record in caplog.records if record.message == "request"]

    assert [("/socket", 101, 5000)] == [(fact["path"], fact["status"], fact["duration_ms"]) for fact in facts]
    assert [] == [record for record in caplog.records if record.levelno > logging.INFO]


# Refusals


async def test_a_refusal_passes_as_it_is_and_the_connection_goes_on(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(UPGRADE)
    await (await upstream.asked()).respond("403 Keep Out", "X-Why: you", body=b"not you\n")
    await client.read_head()
    refused = (client.start_line, client.headers, await client.reader.readexactly(8))
    await client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    asked = await upstream.asked()
    await asked.send(NOTHING)

    assert (
        b"HTTP/1.1 403 Keep Out",
        [(b"X-Why", b"you"), (b"Content-Length", b"8")],
        b"not you\n",
    ) == refused
    assert "/next" == asked.target
    assert NOTHING == await client.reader.readuntil(b"\r\n\r\n")


async def test_a_service_that_cannot_be_reached_is_a_502(connect: Connect, upstream: Upstream) -> None:
    await upstream.stop()
    client = await connect()
    await client.send(UPGRADE)
    await client.read_head()

    assert 502 == client.status


@pytest.mark.parametrize(
    "fields",
    [b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n", b"Upgrade: websocket\r\n"],
    ids=["h2c", "not named in Connection"],
)
async def test_what_asks_for_no_websocket_is_a_request_like_any_other(
    connect: Connect, upstream: Upstream, fields: bytes
) -> None:
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    asked = await upstream.asked()
    await asked.send(SWITCHED)
    await client.read_head()

    assert (None, None) == (asked.header("upgrade"), asked.header("connection"))
    assert 502 == client.status


async def test_a_switch_before_the_request_is_whole_is_refused(connect: Connect, upstream: Upstream) -> None:
    """What of the client's bytes is body, and what is not, the two could see differently."""
    client = await connect()
    await client.send(UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 10\r\n\r\n12345"))
    await (await upstream.asked()).send(SWITCHED)
    await client.read_head()

    assert 502 == client.status


@pytest.mark.parametrize("size", [0, 40])
async def test_the_body_of_a_refused_request_is_no_request(connect: Connect, upstream: Upstream, size: int) -> None:
    client = await connect()
    body = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".ljust(40)[:size]
    await client.send(UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % size) + body)
    asked = await upstream.asked()
    got = await asked.read_body()
    await asked.send(NOTHING)
    await client.read_head()
    await client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    following = await upstream.asked()

    assert body == got
    assert "/next" == following.target


@with_settings(mode="shared")
async def test_a_websocket_does_not_join_a_shared_stream(
    open_stream: OpenStream, open_tunnel: OpenTunnel, upstream: Upstream
) -> None:
    """The same path may be served both ways."""
    await open_stream("/socket?a=%20b", headers={"Host": "a"})
    pair = await open_tunnel()
    await send(pair.service, b"mine")

    assert b"mine" == await receive(pair.client, 4)


# A real server and a real client


class Service:
    """A WebSocket server that answers each message with itself; those that are commands it obeys."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Request] = []
        self.endings: list[tuple[int | None, str | None]] = []
        """Close code and reason of each connection that is over."""
        self.fragments: list[list[str]] = []
        self._server: Server | None = None

    async def start(self, **options: Any) -> None:
        logger = logging.getLogger("tests.websockets")
        logger.disabled = True
        self._server = await serve(
            self._talk, "127.0.0.1", 0, max_size=None, ping_interval=None, logger=logger, **options
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server:
            self._server.close()
            await self._server.wait_closed()

    async def _talk(self, connection: ServerConnection) -> None:
        assert connection.request
        self.requests.append(connection.request)
        try:
            if connection.request.path == "/fragments":
                await self._repeat_fragments(connection)
            else:
                await self._repeat(connection)
        finally:
            await connection.wait_closed()
            self.endings.append((connection.close_code, connection.close_reason))

    async def _repeat(self, connection: ServerConnection) -> None:
        async for message in connection:
            match message.split() if isinstance(message, str) else []:
                case ["ping", data]:
                    await (await connection.ping(data))
                    await connection.send("pong")
                case ["close", code, reason]:
                    await connection.close(int(code), reason)
                case ["end"]:
                    connection.transport.close()
                case ["reset"]:
                    sock = connection.transport.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, tunnel._RESET)
                    connection.transport.abort()
                case _:
                    await connection.send(message)

    async def _repeat_fragments(self, connection: ServerConnection) -> None:
        fragments = [part async for part in connection.recv_streaming()]
        self.fragments.append([str(part) for part in fragments])
        await connection.send(fragments)
        await connection.wait_closed()


StartService = Callable[..., Awaitable[Service]]


@pytest.fixture
async def start_service() -> AsyncIterator[StartService]:
    started: list[Service] = []

    async def starting(**options: Any) -> Service:
        started.append(Service())
        await started[-1].start(**options)
        return started[-1]

    yield starting
    for service in started:
        await service.stop()


@pytest.fixture
async def service(start_service: StartService) -> Service:
    return await start_service()


Dial = Callable[..., Awaitable[ClientConnection]]


@pytest.fixture
async def dial(start: StartSidecar) -> AsyncIterator[Dial]:
    """Opens a WebSocket to a service through a sidecar of its own; all are closed at the end."""
    opened: list[ClientConnection] = []

    async def dialling(service: Service, path: str = "/", *, scheme: str = "ws", **options: Any) -> ClientConnection:
        settings = options.pop("settings", {})
        sidecar = await start(**{"upstream": f"http://127.0.0.1:{service.port}", **settings})
        opened.append(
            await connect_websocket(
                f"{scheme}://localhost:{port_of(sidecar)}{path}",
                host="127.0.0.1",
                proxy=None,
                max_size=None,
                ping_interval=None,
                **options,
            )
        )
        return opened[-1]

    yield dialling
    for connection in opened:
        connection.transport.abort()


async def answer_to(connection: ClientConnection, message: str | bytes) -> str | bytes:
    async with asyncio.timeout(TIMEOUT):
        await connection.send(message)
        return await connection.recv()


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize(
    "message",
    ["", "grüße \U0001f600", b"", bytes(range(256)), "x" * 70_000],
    ids=["no text", "text", "no bytes", "every byte", "long"],
)
async def test_a_message_comes_back_as_it_was_sent(
    dial: Dial, service: Service, message: str | bytes, compression: str | None
) -> None:
    connection = await dial(service, compression=compression)

    assert message == await answer_to(connection, message)


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_a_message_of_10_mib_comes_back(dial: Dial, service: Service, compression: str | None) -> None:
    connection = await dial(service, compression=compression)
    message = os.urandom(10 * MIB)

    assert message == await answer_to(connection, message)


async def test_many_messages_come_back_in_their_order(dial: Dial, service: Service) -> None:
    connection = await dial(service)

    async def speak() -> None:
        for number in range(2000):
            await connection.send(str(number))

    speaking = asyncio.ensure_future(speak())
    async with asyncio.timeout(TIMEOUT):
        heard = [await connection.recv() for _ in range(2000)]
    await speaking

    assert [str(number) for number in range(2000)] == heard


async def test_a_message_in_fragments_stays_in_them(dial: Dial, service: Service) -> None:
    connection = await dial(service, "/fragments")
    fragments = ["one", "", "two and more", "x" * 70_000]
    await connection.send(fragments)
    async with asyncio.timeout(TIMEOUT):
        heard = [part async for part in connection.recv_streaming()]

    # How the library ends a message is its own matter: with an empty fragment.
    assert [*fragments, ""] == service.fragments[0]
    assert [*fragments, "", ""] == heard


async def test_pings_are_answered_by_the_other_side(dial: Dial, service: Service) -> None:
    connection = await dial(service)
    async with asyncio.timeout(TIMEOUT):
        await (await connection.ping(b"are you there"))

    assert "pong" == await answer_to(connection, "ping you")


@pytest.mark.parametrize(
    ("offered", "known", "chosen"),
    [(["a.v2", "a.v1"], ["a.v1"], "a.v1"), (["a.v1"], None, None), (None, None, None)],
)
async def test_the_service_chooses_the_subprotocol(
    dial: Dial, start_service: StartService, offered: list[str] | None, known: list[str] | None, chosen: str | None
) -> None:
    def choose(_: ServerConnection, names: Any) -> Subprotocol | None:
        return next((name for name in names if name in (known or ())), None)

    service = await start_service(select_subprotocol=choose)
    connection = await dial(service, subprotocols=offered)

    assert chosen == connection.subprotocol
    assert ([", ".join(offered)] if offered else []) == service.requests[0].headers.get_all("Sec-WebSocket-Protocol")


@pytest.mark.parametrize(
    ("client", "server", "asked", "agreed"),
    [
        ("deflate", "deflate", True, True),
        ("deflate", None, True, False),
        (None, "deflate", False, False),
    ],
    ids=["both", "not the service", "not the client"],
)
async def test_compression_is_what_the_two_agree_on(
    dial: Dial, start_service: StartService, client: str | None, server: str | None, *, asked: bool, agreed: bool
) -> None:
    service = await start_service(compression=server)
    connection = await dial(service, compression=client)
    extensions = [extension.name for extension in connection.protocol.extensions]
    answered = await answer_to(connection, "z" * 10_000)

    assert asked == ("Sec-WebSocket-Extensions" in service.requests[0].headers)
    assert (["permessage-deflate"] if agreed else []) == extensions
    assert "z" * 10_000 == answered


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "gone"), (3999, "r" * 123), (4000, "grüße")])
async def test_the_clients_close_code_reaches_the_service(dial: Dial, service: Service, code: int, reason: str) -> None:
    connection = await dial(service)
    await connection.close(code, reason)
    await until(lambda: service.endings)

    assert [(code, reason)] == service.endings
    assert (code, reason) == (connection.close_code, connection.close_reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1011, "failed"), (4999, "r" * 100)])
async def test_the_services_close_code_reaches_the_client(dial: Dial, service: Service, code: int, reason: str) -> None:
    connection = await dial(service)
    with pytest.raises(ConnectionClosed):
        await answer_to(connection, f"close {code} {reason}")
    await until(lambda: service.endings)

    assert (code, reason) == (connection.close_code, connection.close_reason)
    assert [(code, reason)] == service.endings


@pytest.mark.parametrize("command", ["end", "reset"])
async def test_a_service_that_goes_without_a_word_is_gone_for_the_client(
    dial: Dial, service: Service, command: str
) -> None:
    connection = await dial(service)
    with pytest.raises(ConnectionClosed):
        await answer_to(connection, command)

    assert 1006 == connection.close_code


async def test_a_client_that_goes_without_a_word_is_gone_for_the_service(dial: Dial, service: Service) -> None:
    connection = await dial(service)
    await answer_to(connection, "here")
    connection.transport.abort()
    await until(lambda: service.endings)

    assert [(1006, "")] == service.endings


async def test_a_refusal_with_a_body_is_the_clients_to_read(dial: Dial, start_service: StartService) -> None:
    def refuse(connection: ServerConnection, _: Request) -> Refusal:
        return connection.respond(403, "not you\n")

    service = await start_service(process_request=refuse)
    with pytest.raises(InvalidStatus) as refused:
        await dial(service)

    assert (403, b"not you\n") == (refused.value.response.status_code, refused.value.response.body)


# TLS


@dataclass
class Keys:
    """A certificate for localhost, and who vouches for it."""

    certificate: str
    authority: str
    trust: ssl.SSLContext
    serving: ssl.SSLContext


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "localhost.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(serving)
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    return Keys(str(tmp_path / "localhost.pem"), str(tmp_path / "ca.pem"), trust, serving)


OpenSecureTunnel = Callable[..., Awaitable[Pair]]


@pytest.fixture
async def open_secure_tunnel(keys: Keys, start: StartSidecar) -> AsyncIterator[OpenSecureTunnel]:
    """As `open_tunnel`, with TLS on the side of the client, of the service, or on both."""
    services: list[Upstream] = []
    clients: list[Response] = []

    async def opening(*secure: str) -> Pair:
        upstream = Upstream()
        services.append(upstream)
        await upstream.start(tls=keys.serving if "service" in secure else None)
        scheme = "https" if "service" in secure else "http"
        settings: dict[str, Any] = {"tls_certificate": keys.certificate} if "client" in secure else {}
        sidecar = await start(upstream=f"{scheme}://localhost:{upstream.port}", upstream_ca=keys.authority, **settings)
        tls: dict[str, Any] = {"ssl": keys.trust, "server_hostname": "localhost"} if "client" in secure else {}
        clients.append(Response(*await asyncio.open_connection("127.0.0.1", port_of(sidecar), limit=MIB, **tls)))
        await clients[-1].send(UPGRADE)
        service = await upstream.asked()
        await service.send(SWITCHED)
        await clients[-1].read_head()
        return Pair(clients[-1], service)

    yield opening
    for client in clients:
        client.writer.transport.abort()
    for upstream in services:
        await upstream.stop()


with_tls = pytest.mark.parametrize(
    "secure", [("client",), ("service",), ("client", "service")], ids=["client", "service", "both"]
)


@both_sides
@with_tls
async def test_an_end_is_told_over_tls_while_the_other_speaks(
    open_secure_tunnel: OpenSecureTunnel, caplog: pytest.LogCaptureFixture, secure: tuple[str, ...], side: str
) -> None:
    caplog.set_level(logging.WARNING)
    one, other = (await open_secure_tunnel(*secure)).of(side)
    flood = asyncio.ensure_future(_flood(other, 1000))
    await receive(one, 100_000)
    one.close()
    heard, _ = await last_words(other)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(TIMEOUT):
            await flood
    await until(lambda: not ends())

    assert b"" == heard
    assert [] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("secure", "side"), [("client", "service"), ("service", "client")])
async def test_who_has_said_all_without_tls_ends_a_connection_with_it(
    open_secure_tunnel: OpenSecureTunnel, caplog: pytest.LogCaptureFixture, secure: str, side: str
) -> None:
    """TLS knows no half of a connection: of two evils, that an end is not told is the greater."""
    caplog.set_level(logging.WARNING)
    one, other = (await open_secure_tunnel(secure)).of(side)
    one.writer.write(b"last")
    one.writer.write_eof()

    assert (b"last", "FIN") == await last_words(other)
    await until(lambda: not ends())
    assert [] == [record.getMessage() for record in caplog.records]


@both_sides
@with_tls
async def test_a_reset_is_told_over_tls(
    open_secure_tunnel: OpenSecureTunnel, secure: tuple[str, ...], side: str
) -> None:
    one, other = (await open_secure_tunnel(*secure)).of(side)
    one.reset()

    assert (b"", "RST") == await last_words(other)


DialSecurely = Callable[[], Awaitable[tuple[Service, ClientConnection]]]


@pytest.fixture(params=["client", "service", "both"])
def dial_securely(request: pytest.FixtureRequest, keys: Keys, dial: Dial, start_service: StartService) -> DialSecurely:
    """As `dial`, with TLS on one side of the sidecar, or on both."""

    async def dialling() -> tuple[Service, ClientConnection]:
        settings: dict[str, Any] = {}
        service = await start_service(ssl=None if request.param == "client" else keys.serving)
        if request.param != "client":
            settings = {"upstream": f"https://localhost:{service.port}", "upstream_ca": keys.authority}
        if request.param == "service":
            return service, await dial(service, settings=settings)
        settings["tls_certificate"] = keys.certificate
        return service, await dial(service, settings=settings, scheme="wss", ssl=keys.trust)

    return dialling


async def test_messages_cross_over_tls(dial_securely: DialSecurely) -> None:
    _, connection = await dial_securely()
    messages: list[str | bytes] = ["text", b"\0\xff", os.urandom(4 * MIB)]

    assert messages == [await answer_to(connection, message) for message in messages]


async def test_close_codes_cross_over_tls(dial_securely: DialSecurely) -> None:
    service, connection = await dial_securely()
    await connection.close(4000, "done")
    await until(lambda: service.endings)

    assert [(4000, "done")] == service.endings


@pytest.mark.parametrize("command", ["end", "reset"])
async def test_an_end_without_a_word_is_told_over_tls(dial_securely: DialSecurely, command: str) -> None:
    _, connection = await dial_securely()
    with pytest.raises(ConnectionClosed):
        await answer_to(connection, command)

    assert 1006 == connection.close_code


async def test_a_client_that_vanishes_is_gone_for_the_service_over_tls(dial_securely: DialSecurely) -> None:
    service, connection = await dial_securely()
    await answer_to(connection, "here")
    connection.transport.abort()
    await until(lambda: service.endings)

    assert [(1006, "")] == service.endings
