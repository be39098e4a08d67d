"""How an exchange is read: in turns with others, however much comes, and not beyond its response."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import termios
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from sse_sidecar import config
from sse_sidecar.errors import AnswerError, OriginLost
from sse_sidecar.exchange import _MUCH, Exchange, request_head
from sse_sidecar.origin import Origin
from tests.conftest import Ask
from tests.harness import TIMEOUT, Asked, ManualClock, Upstream, until

MIB = 1 << 20
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
"""Of a body that ends with its connection."""

Open = Callable[..., Awaitable[Exchange]]


@pytest.fixture
async def opened(clock: ManualClock) -> AsyncIterator[Open]:
    """Sends the head of a request to a port; all exchanges are closed at the end."""
    exchanges: list[Exchange] = []

    async def opening(port: int, method: str = "GET") -> Exchange:
        to = config.Upstream("127.0.0.1", port, tls=False)
        exchange = await Origin([to], clock, connect_timeout=10, response_timeout=30).connect(kept=False)
        exchanges.append(exchange)
        exchange.send(request_head(method, b"/", [(b"Host", b"a")]), expects_body=method != "HEAD")
        return exchange

    yield opening
    for exchange in exchanges:
        exchange.close()


class Sink:
    """Takes a body that is pushed; only how much of it there was."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ends: list[AnswerError | None] = []

    def on_data(self, data: bytes) -> None:
        self.sizes.append(len(data))

    def on_end(self, error: AnswerError | None) -> None:
        self.ends.append(error)

    @property
    def size(self) -> int:
        return sum(self.sizes)


@contextmanager
def flooding(size: int) -> Iterator[int]:
    """The port of a service that sends a body without a pause, from a thread of its own, and then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_flood, args=(listener, size))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def _flood(listener: socket.socket, size: int) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(HEAD)
        connection.recv(1)  # so that nothing of the body is read together with the head
        with suppress(ConnectionError):
            connection.sendall(bytes(size))


async def begun(exchange: Exchange) -> Exchange:
    """The exchange with such a service, its head read, when there is much to be read of its body."""
    await exchange.answer()
    exchange.send(b".")
    await filled(exchange)
    return exchange


async def filled(exchange: Exchange) -> None:
    """Waits until there is much to be read."""
    _socket_of(exchange).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)  # the kernel grants 400 KiB at most
    await until(lambda: to_read(exchange) >= _MUCH)


def to_read(exchange: Exchange) -> int:
    """Bytes that have come and were not read yet."""
    size = array("i", [0])
    fcntl.ioctl(_socket_of(exchange).fileno(), termios.FIONREAD, size)
    return size[0]


def refill(exchange: Exchange) -> None:
    """Holds up the loop until there is much to be read again: a service that is faster than we are."""
    give_up_at = time.monotonic() + TIMEOUT
    while to_read(exchange) < _MUCH:
        assert time.monotonic() < give_up_at
        time.sleep(0)


def _socket_of(exchange: Exchange) -> socket.socket:
    assert exchange._transport is not None
    sock: socket.socket = exchange._transport.get_extra_info("socket")
    return sock


# In turns


async def test_what_comes_without_a_pause_lets_others_go_first(upstream: Upstream, opened: Open) -> None:
    """Others' bytes, come while there is no end to the first's, are delivered before 2 MiB more of those."""
    first, second = Sink(), Sink()
    sent_at: list[int] = []
    passed: list[int] = []

    def on_first(data: bytes) -> None:
        first.on_data(data)
        if first.size < 16 * MIB:
            refill(flooded)
            if len(sent_at) == len(passed):
                sent_at.append(first.size)
                os.write(line.fileno(), b"hi")

    def on_second(data: bytes) -> None:
        passed.append(first.size - sent_at[-1])

    with flooding(32 * MIB) as port:
        flooded = await begun(await opened(port))
        quiet = await opened(upstream.port)
        asked = await upstream.asked()
        await asked.send(HEAD)
        await quiet.answer()
        line = asked.writer.get_extra_info("socket")
        quiet.start(on_second, second.on_end)
        flooded.start(on_first, first.on_end)
        await until(lambda: first.ends)
        await until(lambda: len(sent_at) == len(passed))

    assert ([None], 32 * MIB) == (first.ends, first.size)
    assert len(passed) > 1
    assert max(passed) < 2 * MIB


async def test_one_read_is_taken_in_a_turn_of_the_loop(opened: Open) -> None:
    """Though there is more to be read by then."""
    sink = Sink()
    turns = 0
    reads: list[int] = []

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not sink.ends:
            asyncio.get_running_loop().call_soon(turn)

    def on_data(data: bytes) -> None:
        sink.on_data(data)
        if sink.size < 16 * MIB:
            refill(flooded)
            reads.append(turns)

    with flooding(32 * MIB) as port:
        flooded = await begun(await opened(port))
        turn()
        flooded.start(on_data, sink.on_end)
        await until(lambda: sink.ends)

    assert 32 * MIB == sink.size
    assert len(reads) > 16
    assert len(set(reads)) == len(reads)


async def test_who_is_paused_while_it_lets_others_go_first_stays_paused(opened: Open) -> None:
    sink = Sink()
    paused_at: list[int] = []

    def on_data(data: bytes) -> None:
        sink.on_data(data)
        if len(data) >= _MUCH and not paused_at:
            asyncio.get_running_loop().call_soon(pause)

    def pause() -> None:
        flooded.pause()
        paused_at.append(sink.size)

    with flooding(8 * MIB) as port:
        flooded = await begun(await opened(port))
        flooded.start(on_data, sink.on_end)
        await until(lambda: paused_at)
        await something_else(opened)
        size = sink.size
        flooded.resume()
        await until(lambda: sink.ends)

    assert [size] == paused_at
    assert ([None], 8 * MIB) == (sink.ends, sink.size)


async def something_else(opened: Open) -> None:
    """A whole exchange takes place meanwhile: whatever was there to be read has been."""
    with flooding(8 * MIB) as port:
        other = await begun(await opened(port))
        sink = Sink()
        other.start(sink.on_data, sink.on_end)
        await until(lambda: sink.ends)


async def test_who_is_resumed_while_it_lets_others_go_first_goes_on(opened: Open) -> None:
    sink = Sink()
    times = 0

    def on_data(data: bytes) -> None:
        nonlocal times
        sink.on_data(data)
        if len(data) >= _MUCH:
            times += 1
            asyncio.get_running_loop().call_soon(again)

    def again() -> None:
        flooded.pause()
        flooded.resume()

    with flooding(8 * MIB) as port:
        flooded = await begun(await opened(port))
        flooded.start(on_data, sink.on_end)
        await until(lambda: sink.ends)

    assert ([None], 8 * MIB) == (sink.ends, sink.size)
    assert times


async def test_who_is_closed_while_it_lets_others_go_first_is_told_no_more(opened: Open) -> None:
    sink = Sink()

    def on_data(data: bytes) -> None:
        sink.on_data(data)
        if len(data) >= _MUCH:
            asyncio.get_running_loop().call_soon(flooded.close)

    with flooding(8 * MIB) as port:
        flooded = await begun(await opened(port))
        flooded.start(on_data, sink.on_end)
        await until(lambda: flooded._ended)
        size = sink.size
        await something_else(opened)

    assert ([], size) == (sink.ends, sink.size)


@pytest.mark.parametrize("how", ["reset", "closed within its body"])
async def test_the_end_is_seen_after_a_flood(upstream: Upstream, opened: Open, how: str) -> None:
    """Its connection is not listened to while others go first."""
    sink = Sink()

    def on_data(data: bytes) -> None:
        sink.on_data(data)
        if how == "reset" and len(data) >= _MUCH:
            asyncio.get_running_loop().call_soon(asked.reset)

    exchange = await opened(upstream.port)
    asked = await upstream.asked()
    asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(8 * MIB))
    await exchange.answer()
    await filled(exchange)
    exchange.start(on_data, sink.on_end)
    if how != "reset":
        asked.close()
    await until(lambda: sink.ends)

    assert [OriginLost] == [type(error) for error in sink.ends]
    assert how == "reset" or sink.size == 8 * MIB


# Behind the response

SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: yes\r\n\r\nevil"

BEHIND: dict[str, tuple[str, bytes, bytes]] = {
    "a length": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "no bytes": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunks": ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
    "it closes": ("GET", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", b""),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b""),
    "HEAD, chunked": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
}
each_behind = pytest.mark.parametrize(("method", "raw", "body"), BEHIND.values(), ids=BEHIND)
each_rest = pytest.mark.parametrize(
    "rest", [SECOND, b"evil", b"4\r\nevil\r\n0\r\n\r\n", b"\r\n"], ids=["a response", "no HTTP", "a chunk", "a line"]
)


@each_rest
@each_behind
async def test_what_stands_behind_a_response_in_the_same_read_is_no_part_of_it(
    upstream: Upstream, opened: Open, *, method: str, raw: bytes, body: bytes, rest: bytes
) -> None:
    pulled = await opened(upstream.port, method)
    await (await upstream.asked()).send(raw + rest)
    head = await pulled.answer()
    parts = []
    while part := await pulled.read():
        parts.append(part)
    pushed = await opened(upstream.port, method)
    await (await upstream.asked()).send(raw + rest)
    await pushed.answer()
    told: list[bytes | AnswerError | None] = []
    pushed.start(told.append, told.append)
    await until(lambda: None in told)

    assert body == b"".join(parts)
    assert [*([body] if body else []), None] == told
    assert b"X-Evil" not in dict(head.headers)


@each_rest
@each_behind
async def test_what_stands_behind_a_response_does_not_reach_the_client(
    ask: Ask, upstream: Upstream, *, method: str, raw: bytes, body: bytes, rest: bytes
) -> None:
    """On a connection that is used again, what is too much would be taken for the next answer."""
    asking = asyncio.ensure_future(ask("/a", method=method, headers={"Connection": "close"}))
    asked: Asked = await upstream.asked()
    await asked.send(raw + rest)
    client = await asking
    received = b""
    while part := await client.reader.read(65536):
        received += part
    chunked = b"Transfer-Encoding: chunked" in raw and method == "GET"

    assert (b"2\r\nhi\r\n0\r\n\r\n" if chunked else body) == received
