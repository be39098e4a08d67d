"""One exchange with the upstream, against a raw socket: heads, bodies pulled and pushed, ends, bounds and time-outs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from sse_sidecar import config
from sse_sidecar.errors import AnswerError, BadResponse, ConnectTimeout, OriginLost, ResponseTimeout, Unreachable
from sse_sidecar.exchange import MAX_HEAD, Exchange, Head, request_head
from sse_sidecar.origin import Origin
from tests.conftest import StartSidecar
from tests.harness import Asked, ManualClock, Upstream, chunk, port_of, request, until

CONNECT_TIMEOUT, RESPONSE_TIMEOUT = 10.0, 30.0

FLOOD = 100_000_000
"""More bytes than the kernel takes for an upstream that does not read."""

Dial = Callable[..., Awaitable[tuple[Exchange, Asked]]]


def origin_of(clock: ManualClock, port: int, *, host: str = "127.0.0.1", tls: bool = False) -> Origin:
    return Origin(
        [config.Upstream(host, port, tls)],
        clock,
        connect_timeout=CONNECT_TIMEOUT,
        response_timeout=RESPONSE_TIMEOUT,
        tls=ssl.create_default_context() if tls else None,
    )


@pytest.fixture
async def dial(upstream: Upstream, clock: ManualClock) -> AsyncIterator[Dial]:
    """Sends the head of a request: the exchange, and the request as the upstream got it."""
    opened: list[Exchange] = []

    async def dialing(method: str = "GET", host: str = "127.0.0.1") -> tuple[Exchange, Asked]:
        exchange = await origin_of(clock, upstream.port, host=host).connect(kept=False)
        opened.append(exchange)
        exchange.send(request_head(method, b"/", [(b"Host", b"a")]), expects_body=method != "HEAD")
        return exchange, await upstream.asked()

    yield dialing
    for exchange in opened:
        exchange.close()


class Sink:
    """Takes a body that is pushed."""

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[AnswerError | None] = []

    def on_data(self, data: bytes) -> None:
        self.data += data

    def on_end(self, error: AnswerError | None) -> None:
        self.ends.append(error)


Taken = tuple[bytes, AnswerError | None]
"""A body, and what it ended with."""


async def push(exchange: Exchange) -> Taken:
    sink = Sink()
    exchange.start(sink.on_data, sink.on_end)
    await until(lambda: sink.ends)

    assert 1 == len(sink.ends)
    return sink.data, sink.ends[0]


async def pull(exchange: Exchange) -> Taken:
    body = b""
    try:
        while part := await exchange.read():
            body += part
    except AnswerError as error:
        return body, error
    return body, None


Take = Callable[[Exchange], Awaitable[Taken]]
both_ways = pytest.mark.parametrize("take", [pull, push])


# Heads


async def test_a_head_comes_raw(dial: Dial) -> None:
    exchange, asked = await dial()
    await asked.send(
        b"HTTP/1.1 299 Caf\xe9 au lait\r\nx-a: 1\r\nX-A:2\r\nX-B:\xff\r\nX-C:\r\nContent-Length: 0\r\n\r\n"
    )

    assert (
        Head(
            299,
            b"Caf\xe9 au lait",
            [(b"x-a", b"1"), (b"X-A", b"2"), (b"X-B", b"\xff"), (b"X-C", b""), (b"Content-Length", b"0")],
        )
        == await exchange.answer()
    )


@both_ways
async def test_interim_answers_are_passed_over(dial: Dial, take: Take) -> None:
    exchange, asked = await dial()
    for interim in (b"100 Continue\r\n", b"102 Processing\r\n", b"103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n"):
        await asked.send(b"HTTP/1.1 " + interim + b"\r\n")
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    head = await exchange.answer()

    assert (200, b"OK", [(b"Content-Length", b"2")]) == head
    assert (b"hi", None) == await take(exchange)


async def test_a_switch_of_protocols_that_no_one_asked_for_is_no_answer(dial: Dial) -> None:
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81")
    with pytest.raises(BadResponse):
        await exchange.answer()

    await asked.closed()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"<html>400 Bad Request</html>\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\x00A: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_bad_response(dial: Dial, raw: bytes) -> None:
    exchange, asked = await dial()
    await asked.send(raw)
    with pytest.raises(BadResponse):
        await exchange.answer()

    await asked.closed()


@pytest.mark.parametrize("endless", [b"X-A: a\r\n", b"a", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_head_that_does_not_end_is_given_up(dial: Dial, endless: bytes) -> None:
    """However it goes on: with fields, within one, or with interim answers."""
    exchange, asked = await dial()
    start = b"" if endless.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nX-A: "
    sent = 0
    with suppress(ConnectionError):
        await asked.send(start)
        while sent < 8 * MAX_HEAD:
            await asked.send(endless * (4096 // len(endless)))
            sent += 4096
            await asyncio.sleep(0)
    with pytest.raises(BadResponse):
        await exchange.answer()

    assert sent < 8 * MAX_HEAD


async def test_a_long_head_within_the_bound_passes(dial: Dial) -> None:
    exchange, asked = await dial()
    value = b"a" * (MAX_HEAD - 1000)
    await asked.send(b"HTTP/1.1 200 OK\r\nX-A: " + value + b"\r\nContent-Length: 0\r\n\r\n")

    assert [(b"X-A", value), (b"Content-Length", b"0")] == (await exchange.answer()).headers


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nX-A: 1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_connection_that_ends_before_the_head_is_whole_is_lost(dial: Dial, raw: bytes, end: str) -> None:
    exchange, asked = await dial()
    await asked.send(raw)
    (asked.close if end == "close" else asked.reset)()
    with pytest.raises(OriginLost):
        await exchange.answer()


async def test_whoever_stops_waiting_for_the_head_takes_it_from_no_one_else(dial: Dial) -> None:
    exchange, asked = await dial()
    leaving = asyncio.ensure_future(exchange.answer())
    await asyncio.sleep(0)
    leaving.cancel()
    await asked.respond("200 OK")

    assert 200 == (await exchange.answer()).status


# Bodies, over every split of a recorded response


class Wire(asyncio.Transport):
    """A transport that carries nothing, so that a test decides what arrives together."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        super().__init__({"socket": sock})
        self.paused = self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


async def feed(exchange: Exchange, wire: Wire, chunks: Iterable[bytes]) -> None:
    """What a transport does: nothing arrives while reading is paused, and after the last chunk comes the end."""
    for data in chunks:
        while wire.paused and not wire.closed:
            await asyncio.sleep(0)
        if not wire.closed:
            exchange.data_received(data)
    while wire.paused and not wire.closed:
        await asyncio.sleep(0)
    if not wire.closed:
        exchange.eof_received()


async def outcome(chunks: Iterable[bytes], take: Take) -> tuple[Head, bytes, type | None]:
    """The head, the body and the kind of end that these chunks make."""
    wire, exchange = Wire(), Exchange(ManualClock(), RESPONSE_TIMEOUT)
    exchange.connection_made(wire)
    feeding = asyncio.ensure_future(feed(exchange, wire, chunks))
    head = await exchange.answer()
    body, error = await take(exchange)
    await feeding

    assert wire.closed
    return head, body, type(error) if error else None


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RECORDED: dict[str, tuple[bytes, bytes, type | None]] = {
    "chunked": (CHUNKED + b'3;a="b"\r\none\r\n0a\r\n0123456789\r\n0\r\n\r\n', b"one0123456789", None),
    "trailers": (CHUNKED + b"3\r\none\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n", b"one", None),
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", None),
    "after an interim": (
        b"HTTP/1.1 103 E\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"hello",
        None,
    ),
    "data after the end": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n", b"hello", None),
    "data after the end of a connection": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello\r\nmore",
        b"hello",
        None,
    ),
    "until the end": (b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nto\r\n\r\nthe end", b"to\r\n\r\nthe end", None),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end", None),
    "bare LF": (b"HTTP/1.1 200 OK\nX-A: 1\nContent-Length: 5\n\nhello", b"hello", None),
    "nothing, with a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", None),
    "nothing, chunked": (CHUNKED + b"0\r\n\r\n", b"", None),
    "nothing, until the end": (b"HTTP/1.1 200 OK\r\n\r\n", b"", None),
    "204": (b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", b"", None),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n", b"", None),
    "short of its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", b"hello", OriginLost),
    "cut between chunks": (CHUNKED + b"3\r\none\r\n", b"one", OriginLost),
    "cut within a chunk": (CHUNKED + b"3\r\none\r\n9\r\ntw", b"onetw", OriginLost),
    "cut within the last chunk": (CHUNKED + b"3\r\none\r\n0\r\n", b"one", OriginLost),
    "no chunk": (CHUNKED + b"3\r\none\r\nxyz\r\n", b"one", BadResponse),
    "a chunk too long": (CHUNKED + b"3\r\nones\r\n0\r\n\r\n", b"one", BadResponse),
}
each_recorded = pytest.mark.parametrize(("raw", "body", "end"), RECORDED.values(), ids=RECORDED)


@both_ways
@each_recorded
async def test_a_body_and_its_end_are_the_same_over_every_split(
    raw: bytes, body: bytes, end: type | None, take: Take
) -> None:
    whole, _, _ = await outcome([raw], take)
    splits = [[raw], [raw[index : index + 1] for index in range(len(raw))]]
    splits += [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    wrong = [split for split in splits if await outcome(split, take) != (whole, body, end)]

    assert [] == wrong


@pytest.mark.parametrize("take", [pull, push])
async def test_head_has_no_body_whatever_its_length_says(dial: Dial, take: Take) -> None:
    exchange, asked = await dial("HEAD")
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")
    head = await exchange.answer()

    assert [(b"Content-Length", b"1234")] == head.headers
    assert (b"", None) == await take(exchange)
    await asked.closed()


@both_ways
async def test_a_body_without_a_length_is_cut_where_the_connection_is_reset(dial: Dial, take: Take) -> None:
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    await exchange.answer()
    await until(lambda: exchange._parts)
    asked.reset()
    body, error = await take(exchange)

    assert (b"half", OriginLost) == (body, type(error))


@both_ways
async def test_a_large_body_comes_whole(dial: Dial, take: Take) -> None:
    exchange, asked = await dial()
    body = bytes(range(256)) * 20_000
    sending = asyncio.ensure_future(asked.send(CHUNKED + chunk(body) + b"0\r\n\r\n"))
    await exchange.answer()

    assert (body, None) == await take(exchange)
    await sending


# Pausing


async def test_what_is_not_taken_is_not_read(dial: Dial) -> None:
    """From the head on, until someone wants the body, the upstream is held up."""
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD)
    await exchange.answer()
    asked.writer.write(bytes(FLOOD))
    transport = asked.writer.transport
    await until(lambda: transport.get_write_buffer_size() < FLOOD)
    for _ in range(50):
        await asyncio.sleep(0.001)

    assert transport.get_write_buffer_size() > FLOOD // 2
    assert sum(map(len, exchange._parts or ())) < 1 << 20


async def test_a_pushed_body_stands_still_while_it_is_paused(dial: Dial) -> None:
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await exchange.answer()
    sink = Sink()
    exchange.start(sink.on_data, sink.on_end)
    await asked.send(chunk(b"one"))
    await until(lambda: sink.data)
    exchange.pause()
    await asked.send(chunk(b"two") + b"0\r\n\r\n")
    for _ in range(20):
        await asyncio.sleep(0.001)
    while_paused = sink.data
    exchange.resume()
    await until(lambda: sink.ends)

    assert b"one" == while_paused
    assert (b"onetwo", [None]) == (sink.data, sink.ends)


async def test_a_body_may_be_pushed_that_has_come_before(dial: Dial) -> None:
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    await exchange.answer()
    await until(lambda: exchange._parts)

    assert (b"hi", None) == await push(exchange)


async def test_the_upstream_that_does_not_read_is_waited_for(dial: Dial) -> None:
    exchange, asked = await dial("PUT")
    exchange.send(bytes(FLOOD))
    draining = asyncio.ensure_future(exchange.drain())
    for _ in range(20):
        await asyncio.sleep(0.001)
    waited = not draining.done()
    while not draining.done():
        await asked.reader.read(1 << 20)

    assert waited


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_no_one_waits_for_an_upstream_that_is_gone(dial: Dial, end: str) -> None:
    exchange, asked = await dial("PUT")
    exchange.send(bytes(FLOOD))
    draining = asyncio.ensure_future(exchange.drain())
    await asyncio.sleep(0)
    (asked.close if end == "close" else asked.reset)()

    await asyncio.wait_for(draining, 10)
    exchange.send(b"more")
    await asyncio.wait_for(exchange.drain(), 10)


# Ends of our own


async def test_after_close_no_call_back_comes(dial: Dial) -> None:
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await exchange.answer()
    sink = Sink()
    exchange.start(sink.on_data, sink.on_end)
    await until(lambda: sink.data)
    exchange.close()
    await asked.closed()

    assert (b"half", []) == (sink.data, sink.ends)


async def test_what_the_upstream_has_not_taken_is_dropped_on_close(dial: Dial) -> None:
    """It may never read on, and would hold the bytes and the socket for as long."""
    exchange, asked = await dial("PUT")
    exchange.send(bytes(FLOOD))
    await until(lambda: exchange._writing_paused)
    exchange.close()
    received = 0
    with suppress(ConnectionError):
        while part := await asked.reader.read(1 << 20):
            received += len(part)

    assert received < FLOOD


async def test_close_ends_the_waiting_for_the_head(dial: Dial) -> None:
    exchange, asked = await dial()
    exchange.close()
    with pytest.raises(OriginLost):
        await exchange.answer()

    await asked.closed()


@both_ways
async def test_an_exchange_that_is_abandoned_tells_why(dial: Dial, take: Take) -> None:
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    await exchange.answer()
    taking = asyncio.ensure_future(take(exchange))
    await asyncio.sleep(0)
    why = OriginLost("the test")
    exchange.abandon(why)

    assert (b"", why) == await taking
    await asked.closed()


# Time-outs


async def ticks() -> None:
    """Lets what was woken run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_time_for_the_head_starts_anew_with_each_send(dial: Dial, clock: ManualClock) -> None:
    exchange, asked = await dial("PUT")
    answering = asyncio.ensure_future(exchange.answer())
    for _ in range(3):
        clock.advance(RESPONSE_TIMEOUT - 0.1)
        exchange.send(b"part")
    clock.advance(RESPONSE_TIMEOUT - 0.1)
    await ticks()
    waiting = not answering.done()
    clock.advance(0.1)
    with pytest.raises(ResponseTimeout):
        await answering

    assert waiting
    assert 0 == clock.pending
    await asked.closed()


async def test_an_interim_answer_does_not_stop_the_time_for_the_head(dial: Dial, clock: ManualClock) -> None:
    exchange, asked = await dial()
    await asked.send(b"HTTP/1.1 102 Processing\r\n\r\n")
    clock.advance(RESPONSE_TIMEOUT)
    with pytest.raises(ResponseTimeout):
        await exchange.answer()


async def test_after_the_head_no_time_is_kept(dial: Dial, clock: ManualClock) -> None:
    exchange, asked = await dial("PUT")
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    await exchange.answer()
    exchange.send(b"a part of the request that comes after the answer")
    clock.advance(1_000_000)
    await asked.send(b"hi")

    assert (b"hi", None) == await pull(exchange)
    assert 0 == clock.pending


@asynccontextmanager
async def full_backlog() -> AsyncIterator[int]:
    """A port that neither accepts nor refuses: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


async def test_a_connection_that_is_not_accepted_in_time(clock: ManualClock) -> None:
    async with full_backlog() as port:
        connecting = asyncio.ensure_future(origin_of(clock, port).connect(kept=False))
        await until(lambda: clock.pending)
        clock.advance(CONNECT_TIMEOUT - 0.1)
        await ticks()
        waiting = not connecting.done()
        clock.advance(0.1)
        with pytest.raises(ConnectTimeout):
            await connecting

    assert waiting
    assert 0 == clock.pending


async def test_a_connection_that_is_refused(clock: ManualClock) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable):
            await origin_of(clock, unused.getsockname()[1]).connect(kept=False)

    assert 0 == clock.pending


@pytest.mark.parametrize("name", ["a..b", "a" * 64 + ".example"], ids=["an empty label", "a label too long"])
async def test_a_name_that_can_be_none_is_unreachable(clock: ManualClock, name: str) -> None:
    with pytest.raises(Unreachable):
        await origin_of(clock, 80, host=name).connect(kept=False)


# Where the upstream is


async def test_an_upstream_by_the_name_localhost(dial: Dial) -> None:
    exchange, asked = await dial(host="localhost")
    await asked.respond("200 OK")

    assert 200 == (await exchange.answer()).status


async def test_an_upstream_on_ipv6(start: StartSidecar) -> None:
    upstream = Upstream()
    try:
        await upstream.start(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    sidecar = await start(upstream=f"http://[::1]:{upstream.port}", host_header="upstream")
    asking = asyncio.ensure_future(request(port_of(sidecar), "/"))
    asked = await upstream.asked()
    await asked.respond("200 OK")
    response = await asking
    response.close()
    await upstream.stop()

    assert [f"[::1]:{upstream.port}"] == asked.header_all("host")
    assert 200 == response.status


async def test_the_kernel_looks_after_a_quiet_connection(dial: Dial) -> None:
    """A host that has vanished says nothing; keep-alive probes find out."""
    exchange, _ = await dial()
    assert exchange.transport is not None
    sock = exchange.transport.get_extra_info("socket")
    options = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
    options += [
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        if hasattr(socket, name)
    ]

    assert options in ([1], [1, 30, 10, 3])


# TLS

LOCALHOST = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQghgGKO7e1U3L00N2k
QIuYuAIboTSXgx85Vqx6C2hExBOhRANCAATfbTm+V3JtgZpoCdkWqx050r457oHT
3TIHRzhdWzjhH/MrXqmblxXQ6QpyswcRur1bkM3ClphlhELYMbp4JEsN
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBQTCB6KADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCWxvY2FsaG9z
dDAgFw0wMDAxMDEwMDAwMDBaGA8yMTAwMDEwMTAwMDAwMFowFDESMBAGA1UEAwwJ
bG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3205vldybYGaaAnZ
FqsdOdK+Oe6B090yB0c4XVs44R/zK16pm5cV0OkKcrMHEbq9W5DNwpaYZYRC2DG6
eCRLDaMpMCcwFAYDVR0RBA0wC4IJbG9jYWxob3N0MA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDSAAwRQIhAPbhScSra9iuNiBY7631zfSQkpZCLYsrH35JzP9O
x95bAiBHyhEG/mV/5s7wyHuzSZ0/ZBBf93gWXFUhXouy8tjvFQ==
-----END CERTIFICATE-----
"""
"""A key and a certificate for `localhost`, made for these tests and good for nothing else."""


@pytest.fixture
async def tls_upstream(tmp_path: Path) -> AsyncIterator[Upstream]:
    pem = tmp_path / "localhost.pem"
    pem.write_text(LOCALHOST)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    upstream = Upstream()
    await upstream.start(tls=context)
    yield upstream
    await upstream.stop()


async def test_an_upstream_behind_tls_is_asked_by_its_own_name(
    tls_upstream: Upstream, start: StartSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "localhost.pem"))
    sidecar = await start(upstream=f"https://localhost:{tls_upstream.port}")
    asking = asyncio.ensure_future(request(port_of(sidecar), "/", headers={"Host": "public.example"}))
    asked = await tls_upstream.asked()
    await asked.respond("200 OK", body=b"x" * 100_000)
    response = await asking
    body = await response.read_to_end()
    response.close()

    assert [f"localhost:{tls_upstream.port}"] == asked.header_all("host")
    assert b"x" * 100_000 == body


async def test_a_certificate_that_no_one_vouches_for_is_not_talked_to(
    tls_upstream: Upstream, clock: ManualClock
) -> None:
    with pytest.raises(Unreachable):
        await origin_of(clock, tls_upstream.port, host="localhost", tls=True).connect(kept=False)

    assert [] == tls_upstream.requests


async def test_a_certificate_for_another_name_is_not_talked_to(
    tls_upstream: Upstream, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "localhost.pem"))
    with pytest.raises(Unreachable):
        await origin_of(clock, tls_upstream.port, host="127.0.0.1", tls=True).connect(kept=False)


@asynccontextmanager
async def plain_server(says: bytes | None) -> AsyncIterator[int]:
    """A port that says something to whoever connects, or closes where it is None."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if says is None:
            writer.close()
        else:
            writers.append(writer)
            writer.write(says)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()


@pytest.mark.parametrize("says", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
async def test_tls_to_a_port_that_speaks_none_is_unreachable(clock: ManualClock, says: bytes | None) -> None:
    async with plain_server(says) as port:
        with pytest.raises(Unreachable):
            await origin_of(clock, port, tls=True).connect(kept=False)


async def test_tls_to_a_port_that_says_nothing_is_a_connection_not_made_in_time(clock: ManualClock) -> None:
    async with plain_server(b"") as port:
        connecting = asyncio.ensure_future(origin_of(clock, port, tls=True).connect(kept=False))
        await until(lambda: clock.pending)
        await ticks()
        clock.advance(CONNECT_TIMEOUT)
        with pytest.raises(ConnectTimeout):
            await connecting
