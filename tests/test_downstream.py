"""One exchange with a client: its class, its leaving, what is refused, a head byte for byte, what aiohttp must be."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import HttpVersion11, http_exceptions, web, web_protocol
from aiohttp.base_protocol import BaseProtocol

from sse_sidecar import downstream
from sse_sidecar.app import Sidecar
from sse_sidecar.downstream import ClientClass, classify
from sse_sidecar.errors import BadRequest
from sse_sidecar.listening import Server
from tests.conftest import Ask, Connect, with_settings
from tests.harness import Response, Upstream, chunk, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

# Classes

CHROME_UA = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
FIREFOX_UA = "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0"
SAFARI_UA = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.5 Safari/605.1.15"
)
STREAM = {"Accept": "text/event-stream"}
IN_PAGE = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
MCP = {"MCP-Protocol-Version": "2025-06-18", "Mcp-Session-Id": "1"}

EVENT_SOURCES: dict[str, dict[str, str]] = {
    "Chrome": {**STREAM, **IN_PAGE, "Cache-Control": "no-cache", "User-Agent": CHROME_UA, "sec-ch-ua-mobile": "?0"},
    "Firefox": {**STREAM, **IN_PAGE, "Cache-Control": "no-cache", "Pragma": "no-cache", "User-Agent": FIREFOX_UA},
    "Safari": {**STREAM, **IN_PAGE, "Cache-Control": "no-cache", "Pragma": "no-cache", "User-Agent": SAFARI_UA},
    "a browser without Sec-Fetch": {**STREAM, "Cache-Control": "no-cache", "User-Agent": SAFARI_UA},
    "Chrome, resuming": {**STREAM, "Cache-Control": "no-cache", "User-Agent": CHROME_UA, "Last-Event-ID": "7"},
    "Node eventsource 2": {"Cache-Control": "no-cache", "Accept": "text/event-stream"},
    "Node eventsource 4": {
        "accept": "text/event-stream",
        "accept-language": "*",
        "sec-fetch-mode": "cors",
        "user-agent": "node",
        "pragma": "no-cache",
        "cache-control": "no-cache",
        "accept-encoding": "gzip, deflate",
    },
}
PAGES: dict[str, tuple[str, dict[str, str]]] = {
    "fetch-event-source": ("GET", {"accept": "text/event-stream", **IN_PAGE, "User-Agent": CHROME_UA}),
    "fetch-event-source, posting": ("POST", {"accept": "text/event-stream", **IN_PAGE, "User-Agent": FIREFOX_UA}),
    "fetch": ("POST", {"Accept": "*/*", **IN_PAGE, "User-Agent": SAFARI_UA}),
    "fetch with Accept of two": (
        "GET",
        {"Accept": "application/json, text/event-stream", "Cache-Control": "no-cache", "User-Agent": CHROME_UA},
    ),
    "a POST with an EventSource's fields": ("POST", EVENT_SOURCES["Chrome"]),
    "the MCP SDK in a page": ("GET", {**EVENT_SOURCES["Chrome"], **MCP}),
    "a browser that hides its name": ("GET", {"Accept": "text/event-stream", "Sec-Fetch-Dest": "empty"}),
}
OTHERS: dict[str, tuple[str, dict[str, str]]] = {
    "curl": ("GET", {"User-Agent": "curl/8.5.0", "Accept": "*/*"}),
    "curl with Accept": ("GET", {"User-Agent": "curl/8.5.0", "Accept": "text/event-stream"}),
    "httpx-sse": (
        "GET",
        {"Accept": "text/event-stream", "Cache-Control": "no-store", "User-Agent": "python-httpx/0.28.1"},
    ),
    "the OpenAI SDK": ("POST", {"Accept": "application/json", "User-Agent": "OpenAI/Python 2.0.0"}),
    "Node fetch": ("GET", {"accept": "text/event-stream", "sec-fetch-mode": "cors", "user-agent": "node"}),
    "okhttp-sse": ("GET", {"Accept": "text/event-stream", "User-Agent": "okhttp/5.0.0"}),
    "the MCP client": ("POST", {"accept": "application/json, text/event-stream", **MCP}),
    "the MCP client, listening": ("GET", {**STREAM, "Cache-Control": "no-cache", **MCP}),
    "nothing": ("GET", {}),
}


def fields_of(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize("headers", EVENT_SOURCES.values(), ids=EVENT_SOURCES)
def test_an_event_source_is_known_by_its_request(headers: dict[str, str]) -> None:
    assert ClientClass.EVENT_SOURCE is classify("GET", fields_of(headers))


@pytest.mark.parametrize(("method", "headers"), PAGES.values(), ids=PAGES)
def test_page_code_is_known_by_its_request(method: str, headers: dict[str, str]) -> None:
    assert ClientClass.PAGE is classify(method, fields_of(headers))


@pytest.mark.parametrize(("method", "headers"), OTHERS.values(), ids=OTHERS)
def test_other_clients_are_neither(method: str, headers: dict[str, str]) -> None:
    assert ClientClass.OTHER is classify(method, fields_of(headers))


# What is refused

SECRET = b"s3cr3t"


def post(*lines: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    return b"\r\n".join([b"POST /s3cr3t HTTP/1.1", b"Host: a", b"X-Key: s3cr3t", *lines]) + b"\r\n\r\n" + body


def get(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET /s3cr3t HTTP/1.1", b"Host: a", b"X-Key: s3cr3t", *lines]) + b"\r\n\r\n"


SMUGGLED = get().replace(b"GET /", b"GET /smuggled-")
CHUNKED, LENGTH = b"Transfer-Encoding: chunked", b"Content-Length: 4"

SMUGGLING: dict[str, bytes] = {
    "CL.TE": post(LENGTH, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "TE.CL": post(CHUNKED, LENGTH, body=b"0\r\n\r\n" + SMUGGLED),
    "two lengths": post(LENGTH, b"Content-Length: 0", body=SMUGGLED),
    "two equal lengths": post(LENGTH, LENGTH, body=b"abcd"),
    "a list of lengths": post(b"Content-Length: 4, 4", body=b"abcd"),
    "a length with a sign": post(b"Content-Length: +4", body=b"abcd"),
    "a negative length": post(b"Content-Length: -4", body=b"abcd"),
    "a hexadecimal length": post(b"Content-Length: 0x4", body=b"abcd"),
    "an empty length": post(b"Content-Length:", body=b"abcd"),
    "a length with a space": post(b"Content-Length: 4 4", body=b"abcd"),
    "a length past 64 bits": post(b"Content-Length: 99999999999999999999", body=b"abcd"),
    "a coding that only looks chunked": post(b"Transfer-Encoding: xchunked"),
    "a coding after chunked": post(b"Transfer-Encoding: chunked, identity"),
    "a coding after chunked, in a line of its own": post(CHUNKED, b"Transfer-Encoding: identity"),
    "chunked twice": post(CHUNKED, CHUNKED),
    "identity": post(b"Transfer-Encoding: identity"),
    "a vertical tab before chunked": post(b"Transfer-Encoding: \x0bchunked"),
    "an empty coding": post(b"Transfer-Encoding:"),
    "a space before the colon": post(b"Transfer-Encoding : chunked"),
    "a space before the name": post(b" Transfer-Encoding: chunked"),
    "a fold": get(b"X-A: 1", b" s3cr3t"),
    "a fold with a tab": get(b"X-A: 1", b"\ts3cr3t"),
    "a bare LF in the head": get(b"X-A: s3cr3t\nX-B: 1"),
    "bare LFs": get().replace(b"\r\n", b"\n"),
    "a bare CR in the head": get(b"X-A: 1\rX-B: s3cr3t"),
    "a NUL in a value": get(b"X-A: s3cr3t\x00"),
    "a NUL in a name": get(b"X\x00s3cr3t: 1"),
    "a name that is no token": get(b"s3cr3t(): 1"),
    "no name": get(b": s3cr3t"),
    "no colon": get(b"s3cr3t"),
    "a chunk size that is no number": post(CHUNKED, body=b"zz\r\ns3cr3t\r\n0\r\n\r\n"),
    "a negative chunk size": post(CHUNKED, body=b"-1\r\ns3cr3t\r\n0\r\n\r\n"),
    "a chunk size with 0x": post(CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk size past 64 bits": post(CHUNKED, body=b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk lines that end with LF": post(CHUNKED, body=b"3\nabc\n0\n\n"),
    "a chunk extension that holds an LF": post(CHUNKED, body=b"3;s3cr3t\nx\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than its size": post(CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"),
    "a trailer that is no field": post(CHUNKED, body=b"3\r\nabc\r\n0\r\ns3cr3t\r\n\r\n"),
}
NO_HTTP: dict[str, bytes] = {
    "no Host": b"GET /s3cr3t HTTP/1.1\r\nX-A: 1\r\n\r\n",
    "two Hosts": get(b"Host: b"),
    "a Host with a space": b"GET /s3cr3t HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a Host that is a URL": b"GET /s3cr3t HTTP/1.1\r\nHost: a/b?c@d\r\n\r\n",
    "HTTP/0.9": b"GET /s3cr3t\r\n\r\n",
    "HTTP/1.2": b"GET /s3cr3t HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET /s3cr3t HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a space in the target": b"GET /s3cr3t b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab in the request line": b"GET\t/s3cr3t HTTP/1.1\r\nHost: a\r\n\r\n",
    "a NUL in the target": b"GET /s3cr3t\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes beyond ASCII in the target": b"GET /s3cr3t\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "no path": b"GET s3cr3t HTTP/1.1\r\nHost: a\r\n\r\n",
    "an authority that is none": b"GET http://[s3cr3t HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get /s3cr3t HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03s3cr3t\r\n\r\n",
    "SSH": b"SSH-2.0-s3cr3t\r\n",
    "more fields than there may be": get(*[b"X-A: s3cr3t"] * 300),
    "draft WebSocket": get(b"Sec-WebSocket-Key1: s3cr3t"),
}
TOO_LONG: dict[str, bytes] = {
    "a target": b"GET /" + b"s3cr3t" * 15_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a value": get(b"X-A: " + b"s3cr3t" * 15_000),
    "a name": get(b"s3cr3t" * 15_000 + b": 1"),
    "a value that does not end": get().removesuffix(b"\r\n\r\n") + b"s3cr3t" * 15_000,
}


def problem(status: int, phrase: str, detail: str) -> bytes:
    body = json.dumps({"title": phrase, "status": status, "detail": detail}).encode()
    return (
        b"HTTP/1.1 %d %b\r\n"
        b"Content-Type: application/problem+json\r\n"
        b"Cache-Control: no-store\r\n"
        b"Content-Length: %d\r\n"
        b"Connection: close\r\n"
        b"\r\n%b" % (status, phrase.encode(), len(body), body)
    )


BAD_REQUEST = problem(400, "Bad Request", "The request is not valid HTTP/1.1.")
TOO_LARGE = problem(
    431,
    "Request Header Fields Too Large",
    "The request line or a header field is longer than this server takes.",
)


async def refusal(connect: Connect, upstream: Upstream, raw: bytes) -> bytes:
    """All that a connection says to these bytes until it is closed, if nothing of them reaches the upstream."""
    client = await connect()
    client.writer.write(raw)
    reading = asyncio.ensure_future(client.reader.read(-1))
    await until(lambda: reading.done() or upstream.requests)

    assert [] == upstream.requests
    return await reading


def assert_nothing_of_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert SECRET.decode() not in caplog.text
    assert [] == [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("raw", [*SMUGGLING.values(), *NO_HTTP.values()], ids=[*SMUGGLING, *NO_HTTP])
async def test_a_request_that_is_no_valid_http_is_refused_and_the_connection_closed(
    connect: Connect, upstream: Upstream, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    """With nothing of the request's bytes in answer or log, and nothing for the upstream."""
    caplog.set_level(logging.DEBUG)

    assert BAD_REQUEST == await refusal(connect, upstream, raw)
    assert_nothing_of_it_is_logged(caplog)


@pytest.mark.parametrize("raw", TOO_LONG.values(), ids=TOO_LONG)
async def test_a_line_that_is_too_long_is_refused_as_too_large(
    connect: Connect, upstream: Upstream, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    caplog.set_level(logging.DEBUG)

    assert TOO_LARGE == await refusal(connect, upstream, raw)
    assert_nothing_of_it_is_logged(caplog)


async def test_a_transfer_coding_beside_chunked_is_refused(connect: Connect, upstream: Upstream) -> None:
    """RFC 9112, section 6.1: 501. Sent on as chunked alone, it would be a body that no one can read."""
    client = await connect()
    await client.send(post(b"Transfer-Encoding: gzip, chunked", body=chunk(b"zip") + b"0\r\n\r\n"))
    await until(lambda: upstream.requests or client.reader.at_eof() or client.reader._buffer)  # type: ignore[attr-defined]

    assert [] == upstream.requests
    await client.read_head()
    assert client.status in (400, 501)


@pytest.mark.parametrize(
    "broken", [b"zz\r\n" + SMUGGLED, b"4\r\nabcdef\r\n" + SMUGGLED], ids=["no size", "longer than its size"]
)
async def test_a_body_whose_chunks_break_after_its_request_was_sent_on(
    connect: Connect, upstream: Upstream, caplog: pytest.LogCaptureFixture, broken: bytes
) -> None:
    """The upstream sees it broken off, the client is refused, and what follows is no request."""
    caplog.set_level(logging.DEBUG)
    client = await connect()
    await client.send(post(CHUNKED, body=chunk(b"one")))
    asked = await upstream.asked()
    await asked.read_until(b"one")
    await client.send(broken)
    async with asyncio.timeout(5):
        raw = await client.reader.read(-1)
    await asked.read_to_end()

    assert BAD_REQUEST == raw
    assert not asked.whole
    assert 1 == len(upstream.requests)
    assert_nothing_of_it_is_logged(caplog)


async def test_a_refused_request_does_not_take_back_the_one_before_it(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
    asked = await upstream.asked()
    await client.send(SMUGGLING["CL.TE"])
    await asked.send(OK)

    assert OK + BAD_REQUEST == await client.reader.read(-1)
    assert 1 == len(upstream.requests)


async def test_blank_lines_before_a_request_are_passed_over(connect: Connect, upstream: Upstream) -> None:
    """RFC 9112, section 2.2: some old clients end a body with one too many."""
    client = await connect()
    await client.send(b"\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    asked = await upstream.asked()

    assert "/a" == asked.target


async def test_an_http_10_client_that_sends_chunks_is_not_heard_again(connect: Connect, upstream: Upstream) -> None:
    """RFC 9112, section 6.1: "close the connection after processing the message"."""
    client = await connect()
    await client.send(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n")
    await client.send(b"0\r\n\r\n" + SMUGGLED)
    asked = await upstream.asked()
    await asked.read_body()
    await asked.send(OK)
    reading = asyncio.ensure_future(client.reader.read(-1))
    await until(lambda: reading.done() or len(upstream.requests) > 1)

    assert 1 == len(upstream.requests)
    assert b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi" == await reading


async def test_connect_is_not_supported(ask: Ask, upstream: Upstream) -> None:
    response = await ask("example.org:443", method="CONNECT")

    assert 501 == response.status
    assert [] == upstream.requests


# Heads


@pytest.fixture
def raw_head(connect: Connect, upstream: Upstream) -> Callable[[bytes], Any]:
    """Sends a request, begins a stream, and gives the bytes of the answer's head."""

    async def heads(request: bytes) -> bytes:
        client = await connect()
        await client.send(request)
        asked = await upstream.asked()
        await asked.begin("X-Own: 1", "ETag: x", "Set-Cookie: a=1", "Set-Cookie: b=2", "Cache-Control: max-age=3")
        return await client.reader.readuntil(b"\r\n\r\n")

    return heads


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"X-Own: 1\r\n"
    b"Set-Cookie: a=1\r\n"
    b"Set-Cookie: b=2\r\n"
    b"Cache-Control: no-cache, no-store, no-transform\r\n"
    b"Vary: Last-Event-ID\r\n"
    b"X-Accel-Buffering: no\r\n"
    b"SSE-Stream: %b\r\n"
    b"SSE-Stream-Status: new\r\n"
    b"%b\r\n"
    b"\r\n"
)


async def test_the_head_of_a_stream_byte_for_byte(raw_head: Callable[[bytes], Any], sidecar: Sidecar) -> None:
    raw = await raw_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    (stream,) = sidecar.streams

    assert STREAM_HEAD % (stream.id.encode(), b"Transfer-Encoding: chunked\r\nConnection: keep-alive") == raw


async def test_the_head_of_a_stream_to_an_http_10_client(raw_head: Callable[[bytes], Any], sidecar: Sidecar) -> None:
    raw = await raw_head(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    (stream,) = sidecar.streams

    assert STREAM_HEAD % (stream.id.encode(), b"Connection: close") == raw


async def test_the_head_of_a_stream_on_a_connection_that_is_to_be_closed(
    raw_head: Callable[[bytes], Any], sidecar: Sidecar
) -> None:
    raw = await raw_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    (stream,) = sidecar.streams

    assert STREAM_HEAD % (stream.id.encode(), b"Transfer-Encoding: chunked\r\nConnection: close") == raw


async def test_a_problem_document_byte_for_byte(connect: Connect, upstream: Upstream) -> None:
    await upstream.stop()
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    raw = await client.reader.readuntil(b"}")
    expected = problem(502, "Bad Gateway", "The upstream could not be reached.")

    assert expected.replace(b"Connection: close\r\n", b"") == raw


async def test_a_problem_document_to_head_has_no_body_and_the_connection_is_kept(
    connect: Connect, upstream: Upstream
) -> None:
    await upstream.stop()
    client = await connect()
    await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    first, second = await client.reader.readuntil(b"\r\n\r\n"), await client.reader.readuntil(b"\r\n\r\n")

    assert first.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert first == second


class Written(asyncio.Transport):
    """A transport that keeps what each call writes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))


def client_on(transport: Written) -> downstream.Client:
    request = SimpleNamespace(
        protocol=None,
        transport=transport,
        method="GET",
        version=HttpVersion11,
        keep_alive=True,
        headers={},
        raw_headers=((b"Host", b"a"),),
        raw_path="/",
    )
    return downstream.Client(cast("web.BaseRequest", request))


def test_head_priming_and_replay_leave_in_one_write() -> None:
    """One system call, and a browser's `open`, its first id and what it missed come together."""
    transport = Written()
    client = client_on(transport)
    client.begin(200, [(b"X-A", b"1")])
    client.hold(b"id: 1-x\n\n")
    client.write(b"data: 1\n\n")
    client.write(b"data: 2\n\n")
    client.end()
    head = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"

    assert [
        head + chunk(b"id: 1-x\n\n") + chunk(b"data: 1\n\n"),
        chunk(b"data: 2\n\n"),
        b"0\r\n\r\n",
    ] == transport.calls


def test_an_answer_of_the_sidecars_own_leaves_in_one_write() -> None:
    transport = Written()
    client_on(transport).problem(BadRequest)

    assert [BAD_REQUEST.replace(b"Connection: close\r\n", b"")] == transport.calls


# Pipelining


async def test_pipelined_requests_are_answered_in_turn(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(50)))
    for number in range(50):
        asked = await upstream.asked()
        alone = len(upstream.requests) == number + 1
        await asked.respond("200 OK", body=b"%d;" % number)
        await client.reader.readuntil(b"\r\n\r\n%d;" % number)

        assert (f"/{number}", True) == (asked.target, alone)


async def test_a_request_behind_a_stream_waits_for_its_end(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    stream = await upstream.asked()
    await stream.begin()
    await stream.stream(b"data: [DONE]\n\n")
    await client.read_head()
    await client.read_until(b"[DONE]")
    before = len(upstream.requests)
    await stream.end()
    await client.read_to_end()
    asked = await upstream.asked()
    await asked.send(OK)
    second = Response(client.reader, client.writer)
    await second.read_head()

    assert 1 == before
    assert client.whole
    assert (200, b"hi") == (second.status, await second.read_to_end() and second.body)


# Leaving

GET_STREAM = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST_STREAM = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwhole"
UNFINISHED = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegun"
UNFINISHED_CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n"
WAYS = ["close", "half-close", "reset"]


def leave(client: Response, way: str) -> None:
    {"close": client.close, "half-close": client.writer.write_eof, "reset": client.reset}[way]()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "request_bytes",
    [GET_STREAM, POST_STREAM, UNFINISHED, UNFINISHED_CHUNKS],
    ids=["GET", "POST", "POST with its body unfinished", "POST with its chunks unfinished"],
)
async def test_a_reader_that_leaves_is_noticed_without_a_write(
    connect: Connect, upstream: Upstream, sidecar: Sidecar, request_bytes: bytes, way: str
) -> None:
    client = await connect()
    await client.send(request_bytes)
    asked = await upstream.asked()
    await asked.begin()
    await asked.stream(b"data: 1\n\n")
    await client.read_head()
    await client.read_until(b"data: 1")
    readers = sidecar.streams.reader_count
    leave(client, way)
    await until(lambda: not sidecar.streams.reader_count)

    assert 1 == readers


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_before_the_upstream_answers_takes_its_request_along(
    connect: Connect, upstream: Upstream, way: str
) -> None:
    client = await connect()
    await client.send(POST_STREAM)
    asked = await upstream.asked()
    await asked.read_body()
    leave(client, way)

    await asked.closed()


@with_settings(on_disconnect="cancel")
async def test_a_large_body_behind_a_stream_is_read_to_its_end(
    connect: Connect, upstream: Upstream, sidecar: Sidecar
) -> None:
    """The stream begins before the upload is over, and both go on."""
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
    asked = await upstream.asked()
    await asked.begin()
    await client.read_head()
    sending = asyncio.ensure_future(client.send(bytes(2_000_000)))
    received = await asked.reader.readexactly(2_000_000)
    await sending
    await asked.stream(b"data: 1\n\n")
    await client.read_until(b"data: 1")

    assert bytes(2_000_000) == received
    assert 1 == sidecar.streams.reader_count


# What aiohttp must be. It promises little of this, which is why pyproject.toml ties its minor version: whoever moves
# that bound finds here what is gone, and below it what behaves otherwise.


def parameters(of: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(of).parameters)


RELIED_ON: dict[str, Callable[[], bool]] = {
    "web.Server makes a connection's protocol when it is called": lambda: parameters(web.Server.__call__) == ["self"],
    "web.Server takes handler_cancellation": lambda: "handler_cancellation" in parameters(web.Server.__init__),
    "web.Server.shutdown takes a time-out": lambda: parameters(web.Server.shutdown) == ["self", "timeout"],
    "RequestHandler.handle_error answers what is no HTTP": lambda: (
        parameters(web.RequestHandler.handle_error) == ["self", "request", "status", "exc", "message"]
    ),
    "StreamResponse.prepare takes a request": lambda: parameters(web.StreamResponse.prepare) == ["self", "request"],
    "StreamResponse.write_eof takes data": lambda: parameters(web.StreamResponse.write_eof) == ["self", "data"],
    "StreamResponse.keep_alive is a property": lambda: isinstance(web.StreamResponse.keep_alive, property),
    "a protocol tells whether writing is paused": lambda: hasattr(BaseProtocol, "writing_paused"),
    "a protocol tells its TLS context": lambda: hasattr(web.RequestHandler, "ssl_context"),
    "a request gives its raw head and its connection": lambda: all(
        hasattr(web.BaseRequest, name)
        for name in ("raw_headers", "raw_path", "method", "version", "keep_alive", "protocol", "transport", "writer")
    ),
    "a request gives its body as it comes": lambda: (
        hasattr(web.BaseRequest, "content")
        and hasattr(web.BaseRequest, "body_exists")
        and inspect.iscoroutinefunction(aiohttp.StreamReader.readany)
    ),
    "a body that is being read can be told that it is broken": lambda: all(
        hasattr(aiohttp.StreamReader, name) for name in ("set_exception", "exception", "is_eof", "feed_eof")
    ),
    "RequestHandler queues what it has parsed in _messages": lambda: "_messages" in web.RequestHandler.__slots__,
    "what could not be parsed is queued as an _ErrInfo": lambda: hasattr(web_protocol, "_ErrInfo"),
    "RequestHandler.data_received takes data": lambda: parameters(web.RequestHandler.data_received) == ["self", "data"],
    "web.Server lists its connections": lambda: isinstance(web.Server.connections, property),
    "a line that is too long has an exception of its own": lambda: issubclass(
        http_exceptions.LineTooLong, http_exceptions.HttpProcessingError
    ),
    "a body that breaks off has an exception of its own": lambda: issubclass(web.RequestPayloadError, Exception),
}


@pytest.mark.parametrize("what", RELIED_ON)
def test_aiohttp_still_has_what_downstream_relies_on(what: str) -> None:
    assert RELIED_ON[what](), f"aiohttp {aiohttp.__version__}: no longer so: {what}; see downstream.py and listening.py"


async def test_aiohttp_still_knows_each_option_that_downstream_gives_it() -> None:
    async def handle(_: downstream.Client) -> None: ...

    unknown = set(Server(handle)._options) - set(parameters(web.RequestHandler.__init__))

    assert set() == unknown, f"aiohttp {aiohttp.__version__} does not take these, or calls them otherwise"


class Told(web.RequestHandler):
    """The least that downstream makes of aiohttp's protocol."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"%d %b;" % (status, type(exc).__name__.encode()))
        return Silent(status=status)


class Silent(web.StreamResponse):
    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        pass

    @property
    def keep_alive(self) -> bool:
        return self.status == 200


class Factory(web.Server):
    def __call__(self) -> web.RequestHandler:
        return Told(self, loop=asyncio.get_running_loop(), max_line_size=100, max_field_size=100)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"GET /a HTTP/1.1\r\nHost: a\r\nx-B: \xff\r\n\r\n", b"/a Host=a x-B=\xff paused=0;"),
        (b"\x16\x03\x01\r\n\r\n", b"400 BadHttpMethod;"),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 200 + b"\r\n\r\n", b"400 LineTooLong;"),
    ],
    ids=["a request", "no HTTP", "a line too long"],
)
async def test_aiohttp_leaves_every_byte_of_an_answer_to_a_response_that_overrides_it(
    raw: bytes, expected: bytes
) -> None:
    """aiohttp alone. Where this fails, downstream fails with it, and here is why."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        fields = b" ".join(b"%b=%b" % field for field in request.raw_headers)
        assert request.transport is not None
        request.transport.write(
            b"%b %b paused=%d;" % (request.raw_path.encode(), fields, request.protocol.writing_paused)
        )
        return Silent(status=400)

    factory = Factory(handle, handler_cancellation=True)
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(raw)
    async with asyncio.timeout(5):
        said = await reader.read(-1)
    writer.close()
    server.close()
    await factory.shutdown(1)

    assert expected == said
