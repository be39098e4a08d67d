"""Bounds and bad input, over real sockets: what each side may do wrong, and what the other is told."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from sse_sidecar.app import Sidecar
from sse_sidecar.listening import MAX_LINE
from sse_sidecar.streams import Stream
from tests.conftest import Ask, Connect, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, chunk, port_of, request, until
from tests.test_exchange import full_backlog

# An upstream that cannot be had. Each of these makes a request fail, and gives the status that says how.

CLIENTS: dict[str, dict[str, str]] = {
    "curl": {"Accept": "*/*"},
    "a reader of streams": {"Accept": "text/event-stream"},
    "page code": {"Accept": "text/event-stream", "User-Agent": "Mozilla/5.0", "Sec-Fetch-Dest": "empty"},
}

Failing = Callable[[dict[str, str]], Awaitable[Response]]


@pytest.fixture
async def refusing(start: StartSidecar, upstream: Upstream) -> Failing:
    await upstream.stop()
    sidecar = await start()
    return lambda headers: request(port_of(sidecar), "/", headers=headers)


@pytest.fixture
async def not_accepting(start: StartSidecar, clock: ManualClock) -> AsyncIterator[Failing]:
    async with full_backlog() as port:
        sidecar = await start(upstream=f"http://127.0.0.1:{port}", connect_timeout=7)

        async def failing(headers: dict[str, str]) -> Response:
            asking = asyncio.ensure_future(request(port_of(sidecar), "/", headers=headers))
            await until(lambda: clock.next_in <= 7)
            clock.advance(7)
            return await asking

        yield failing


def asked_upstream(sidecar: Sidecar, upstream: Upstream, misbehave: Callable[[Asked], Awaitable[None]]) -> Failing:
    async def failing(headers: dict[str, str]) -> Response:
        asking = asyncio.ensure_future(request(port_of(sidecar), "/", headers=headers))
        await misbehave(await upstream.asked())
        return await asking

    return failing


@pytest.fixture
def silent(sidecar: Sidecar, upstream: Upstream, clock: ManualClock) -> Failing:
    async def misbehave(_: Asked) -> None:
        clock.advance(300)

    return asked_upstream(sidecar, upstream, misbehave)


@pytest.fixture
def speaking_no_http(sidecar: Sidecar, upstream: Upstream) -> Failing:
    return asked_upstream(sidecar, upstream, lambda asked: asked.send(b"SSH-2.0-OpenSSH_9.6\r\n"))


@pytest.fixture
def closing(sidecar: Sidecar, upstream: Upstream) -> Failing:
    async def misbehave(asked: Asked) -> None:
        asked.close()

    return asked_upstream(sidecar, upstream, misbehave)


FAILURES = {"refusing": 502, "not_accepting": 504, "silent": 504, "speaking_no_http": 502, "closing": 502}


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Failing:
    found: Failing = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("headers", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize(("failing", "status"), FAILURES.items(), ids=FAILURES, indirect=["failing"])
async def test_an_upstream_that_cannot_be_had_is_told_in_a_problem_document(
    failing: Failing, status: int, headers: dict[str, str]
) -> None:
    """Without its address."""
    response = await failing(headers)
    body = json.loads(await response.read_to_end())
    response.close()
    shown = repr((response.headers, body))

    assert (status, status) == (response.status, body["status"])
    assert {"title", "status", "detail"} == body.keys()
    assert ("application/problem+json", "no-store") == (
        response.header("content-type"),
        response.header("cache-control"),
    )
    assert None is re.search(r"\d{4}|\d\.\d|Errno|SSH|refused", shown), shown


@pytest.mark.parametrize("failing", FAILURES, indirect=True)
async def test_an_event_source_is_told_to_come_back_to_an_upstream_that_cannot_be_had(failing: Failing) -> None:
    """Any other status would end it for good; and a page of another origin must be able to read this one."""
    response = await failing({**EVENT_SOURCE, "Origin": "https://page.example"})
    body = await response.read_to_end()
    response.close()

    assert (200, True) == (response.status, response.whole)
    assert re.fullmatch(rb"retry: [2-5]\d{3}\n\n", body)
    assert [
        (b"Content-Type", b"text/event-stream"),
        (b"Cache-Control", b"no-cache, no-store, no-transform"),
        (b"X-Accel-Buffering", b"no"),
        (b"Access-Control-Allow-Origin", b"https://page.example"),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Vary", b"Origin"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Connection", b"keep-alive"),
    ] == response.headers


async def test_an_mcp_client_is_no_event_source_whatever_else_it_sends(refusing: Failing) -> None:
    response = await refusing({**EVENT_SOURCE, "MCP-Protocol-Version": "2025-06-18"})
    response.close()

    assert 502 == response.status


# What the parser of requests rejects; the forms are in test_downstream.py


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cr3t\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"s3cr3t" * (MAX_LINE // 6 + 1) + b"\r\n\r\n", 431),
    ],
    ids=["smuggling", "a NUL", "a long field"],
)
async def test_a_request_that_the_parser_rejects(
    connect: Connect, upstream: Upstream, caplog: pytest.LogCaptureFixture, head: bytes, status: int
) -> None:
    client = await connect()
    await client.send(head)
    raw = await client.reader.read(-1)

    assert raw.startswith(b"HTTP/1.1 %d " % status)
    assert b"s3cr3t" not in raw
    assert "s3cr3t" not in caplog.text
    assert [] == upstream.requests


async def test_a_long_field_within_the_bound_reaches_the_upstream(ask: Ask, upstream: Upstream) -> None:
    """What the service takes is for it to say."""
    value = "a" * (MAX_LINE - 100)
    asking = asyncio.ensure_future(ask("/", headers={"Cookie": value}))
    asked = await upstream.asked()
    await asked.respond("200 OK")
    await asking

    assert [value] == asked.header_all("cookie")


# Blocks without an end


@pytest.mark.parametrize("piece", [b"d" * 8192, b"data: 1\n" * 1024, b":\n" * 4096], ids=["line", "event", "comments"])
@with_settings(max_event_bytes=100_000)
async def test_a_block_that_does_not_end_breaks_its_stream_at_the_bound(
    open_stream: OpenStream, sidecar: Sidecar, piece: bytes
) -> None:
    asked, response = await open_stream("/", method="POST")
    held = []
    for _ in range(100_000 // len(piece)):
        await asked.stream(piece)
        held.append(sidecar.streams.memory)
    await asked.stream(piece + piece)
    body = await response.read_to_end()

    assert b'{"error": {"code": "too-large"' in body
    assert not response.whole
    assert max(held) < 200_000
    await asked.closed()


# More than there may be


@pytest.fixture
def later(ask: Ask) -> Callable[[], Awaitable[None]]:
    """Holds the next request for a stream to what "later" means for each class of client."""

    async def check() -> None:
        source, other = await ask("/more", headers=EVENT_SOURCE), await ask("/more", headers=CLIENTS["page code"])
        body = await source.read_to_end()

        assert re.fullmatch(rb"retry: [2-5]\d{3}\n\n", body)
        assert (200, True) == (source.status, source.whole)
        assert 503 == other.status
        assert other.header("retry-after") in ("2", "3", "4", "5")

    return check


@with_settings(max_streams=2)
async def test_more_streams_than_there_may_be(
    open_stream: OpenStream, upstream: Upstream, later: Callable[[], Awaitable[None]]
) -> None:
    _, first = await open_stream("/1")
    await open_stream("/2")
    await later()
    first.close()
    await later()

    assert 2 == len(upstream.requests), "a stream that lingers has an upstream, too"


@with_settings(max_readers=1)
async def test_more_readers_than_there_may_be(
    open_stream: OpenStream, sidecar: Sidecar, later: Callable[[], Awaitable[None]]
) -> None:
    _, response = await open_stream("/1")
    await later()
    response.close()
    await until(lambda: not sidecar.streams.reader_count)
    _, again = await open_stream("/2")

    assert 200 == again.status


@with_settings(max_streams=1, max_readers=1)
async def test_histories_alone_are_never_too_many(open_stream: OpenStream, sidecar: Sidecar) -> None:
    for number in range(5):
        asked, response = await open_stream(f"/{number}", method="POST")
        await asked.end()
        await response.read_to_end()

    assert 5 == len(sidecar.streams)


@with_settings(max_streams=1)
async def test_what_is_no_stream_passes_at_the_limit(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await open_stream("/1")
    asking = asyncio.ensure_future(ask("/2"))
    asked = await upstream.asked()
    await asked.respond("200 OK", body=b"hi")
    response = await asking

    assert b"hi" == await response.read_to_end()


@with_settings(max_streams=1)
async def test_a_stream_that_was_not_asked_for_as_one_is_let_go_of_at_the_limit(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    """As the OpenAI SDK asks: only the answer tells that it is a stream."""
    await open_stream("/1")
    asking = asyncio.ensure_future(ask("/2", headers={"Accept": "application/json"}))
    asked = await upstream.asked()
    await asked.begin()
    response = await asking

    assert 503 == response.status
    await asked.closed()


# A client that reads nothing

EVENT = b"data: " + b"1" * (1 << 16) + b"\n\n"
FLOOD = 1500


async def unread_client(port: int, head: bytes) -> Response:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    client = Response(*await asyncio.open_connection(sock=sock, limit=1024))
    await client.send(head)
    return client


async def only_stream(sidecar: Sidecar) -> Stream:
    await until(lambda: len(sidecar.streams) == 1)
    return next(iter(sidecar.streams))


def unwritten(connection: web.RequestHandler) -> int:
    return connection.transport.get_write_buffer_size() if connection.transport else 0


@with_settings(max_stream_bytes="1MB", max_event_bytes="100kB")
async def test_a_client_that_reads_nothing_stops_its_upstream_and_is_cut_off_as_a_slow_reader(
    sidecar: Sidecar, upstream: Upstream, clock: ManualClock, ask: Ask
) -> None:
    """It has no memory of its own: what it has not taken lies in the log, which is bounded. It may resume."""
    client = await unread_client(port_of(sidecar), b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    asked = await upstream.asked()
    await asked.begin()
    sending = asyncio.ensure_future(asked.send(chunk(EVENT) * FLOOD))
    stream = await only_stream(sidecar)
    await until(lambda: stream.log.size > 1_000_000)
    stood_at, memory = stream.log.last, sidecar.streams.memory
    buffered = max(unwritten(connection) for connection in sidecar._server.connections)
    clock.advance(9.9)
    await asyncio.sleep(0)
    patient = sidecar.streams.reader_count == 1
    clock.advance(0.1)
    await until(lambda: not sidecar._server.connections)
    await until(lambda: stream.log.last == FLOOD)
    await sending
    client.reset()
    again = await ask("/a", headers={"Host": "a", "Last-Event-ID": f"1-{stream.id}"})
    await again.read_until(b"id: %d-" % FLOOD)
    (lost,) = re.findall(rb'"lost": (\d+)', again.body)
    numbers = [int(number) for number in re.findall(rb"\nid: (\d+)-", again.body)]

    assert stood_at < FLOOD
    assert memory < 2_200_000
    assert buffered < 1_000_000
    assert patient
    assert list(range(int(lost) + 2, FLOOD + 1)) == numbers


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="it is Linux's")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 30_000),
        ({"slow_reader_timeout": 45}, 45_000),
        ({"route": [{"path": "/a", "slow_reader_timeout": 60}]}, 60_000),
    ],
    ids=["default", "slower readers", "slower readers on a route"],
)
async def test_dead_peers_are_given_up_but_none_before_a_slow_reader_is(
    sidecar: Sidecar, connect: Connect, expected: int
) -> None:
    """TCP_USER_TIMEOUT ends live peers whose window is full as well: slow readers must have their time first."""
    await connect()
    await until(lambda: sidecar._server.connections)
    (connection,) = sidecar._server.connections
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")

    assert expected == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
