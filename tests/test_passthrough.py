"""Everything that is not an event stream: relayed as it is, both ways as it comes."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.conftest import Ask, Connect, OpenStream, StartSidecar, with_settings
from tests.harness import (
    EVENT_SOURCE,
    Asked,
    Message,
    Response,
    Upstream,
    chunk,
    port_of,
    request,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

Exchange = Callable[..., Awaitable[tuple[Asked, Response]]]


@pytest.fixture
def exchange(upstream: Upstream, ask: Ask) -> Exchange:
    """Sends a request, answers it with the bytes `answer`; the request and the answer as they arrived, bodies whole."""

    async def exchanging(*args: object, answer: bytes = OK, **kwargs: object) -> tuple[Asked, Response]:
        asking = asyncio.ensure_future(ask(*args, **kwargs))
        asked = await upstream.asked()
        await asked.read_body()
        await asked.send(answer)
        response = await asking
        if kwargs.get("method") != "HEAD" and response.status not in (204, 304):
            await response.read_to_end()
        return asked, response

    return exchanging


def answer(*lines: str, body: bytes = b"") -> bytes:
    """An upstream's answer, its lines in Latin-1, with the length of `body`."""
    return "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode("latin-1") + b"\r\n\r\n" + body


async def settled(number: Callable[[], int]) -> int:
    """A number that has stopped growing: unchanged while the loop, which all sides run on, came round 100 times."""
    last, unchanged = number(), 0
    while unchanged < 100:
        await asyncio.sleep(0.001)
        unchanged = unchanged + 1 if number() == last else 0
        last = number()
    return last


# Requests

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
ODD_METHODS = ["PROPFIND", "REPORT", "MKCALENDAR", "LOCK", "M-SEARCH", "PURGE", "SEARCH", "QUERY", "UNBIND", "SOURCE"]


@pytest.mark.parametrize("method", [*METHODS, *ODD_METHODS])
async def test_a_method_crosses_as_it_is(exchange: Exchange, method: str) -> None:
    asked, response = await exchange("/a", method=method, answer=answer("HTTP/1.1 200 OK", body=b""))

    assert method == asked.method
    assert 200 == response.status


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY"])
async def test_a_body_crosses_under_any_method(exchange: Exchange, method: str) -> None:
    asked, response = await exchange("/a", method=method, body=b"a=1")

    assert b"a=1" == asked.body
    assert b"hi" == response.body


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/a/../b",
        "/a/./b",
        "/%2e%2e/a",
        "/%2E",
        "/%zz",
        "/%",
        "//",
        "//a//b",
        "/a?",
        "/?",
        "/a?b=c&b=d&&e",
        "/a?b?c=/d",
        "/a;p=1/b;q",
        "/a%2Fb%00",
        "/a+b%20c",
        "/~a/(b)*!'$@,:",
        '/{a}|b\\c^`"<>',
        "/a?http://b/c",
        "/a?last_event_id=7&lastEventId=x",
        pytest.param("/" + "a" * 60_000, id="60,000 bytes"),
    ],
)
async def test_a_target_is_untouched(exchange: Exchange, target: str) -> None:
    asked, _ = await exchange(target)

    assert target == asked.target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://example.org/a/../b?c", "/a/../b?c"),
        ("https://example.org:8443/a", "/a"),
        ("http://example.org", "/"),
        ("http://example.org?a=b", "/?a=b"),
        ("http://user:secret@example.org/a", "/a"),
        ("HTTP://example.org//a", "//a"),
        ("http://[::1]:80/a?b=http://c/d", "/a?b=http://c/d"),
    ],
)
async def test_an_absolute_target_is_asked_for_by_its_path(exchange: Exchange, target: str, expected: str) -> None:
    """RFC 9112, section 3.2.2."""
    asked, _ = await exchange(target)

    assert expected == asked.target


async def test_the_authority_of_an_absolute_target_is_the_host(exchange: Exchange) -> None:
    """RFC 9112, section 3.2.2: "MUST ignore the received Host header field"."""
    asked, _ = await exchange("http://example.org:81/a", headers={"Host": "other.example"})

    assert ["example.org:81"] == asked.header_all("host")


@pytest.mark.parametrize("target", ["*", "http://example.org"])
async def test_options_asks_the_server_as_a_whole(exchange: Exchange, target: str) -> None:
    """RFC 9112, section 3.2.4: the last proxy makes a `*` of a URI without path and query."""
    asked, _ = await exchange(target, method="OPTIONS")

    assert "*" == asked.target


async def test_a_request_head_reaches_the_upstream_with_what_a_proxy_adds(ask: Ask, exchange: Exchange) -> None:
    """Order, case, repeats and bytes kept; hop-by-hop fields and those that Connection names off."""
    asked, _ = await exchange(
        "/a",
        headers=[
            ("Host", "service.example"),
            ("x-lower", "1"),
            ("Accept", "*/*"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "gone"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "Basic gone"),
            ("Proxy-Connection", "keep-alive"),
            ("Trailer", "X-T"),
            ("Upgrade", "h2c"),
            ("Accept-Encoding", "gzip, br"),
            ("X-Repeat", "a"),
            ("Cookie", "s=1"),
            ("x-repeat", "b, c"),
            ("X-Bytes", "caf\xe9\xff"),
            ("X-Empty", ""),
            ("Last-Event-ID", "7"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "forged.example"),
            ("Forwarded", "for=10.0.0.1"),
            ("Via", "1.0 before"),
        ],
    )

    assert b"GET /a HTTP/1.1" == asked.start_line
    assert [
        (b"Host", b"service.example"),
        (b"x-lower", b"1"),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"gzip, br"),
        (b"X-Repeat", b"a"),
        (b"Cookie", b"s=1"),
        (b"x-repeat", b"b, c"),
        (b"X-Bytes", b"caf\xe9\xff"),
        (b"X-Empty", b""),
        (b"Last-Event-ID", b"7"),
        (b"X-Forwarded-For", b"127.0.0.1"),
        (b"Via", b"1.0 before, 1.1 sse-sidecar"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"service.example"),
    ] == asked.headers


@with_settings(trust_forwarded=True)
async def test_forwarded_fields_of_a_trusted_client_are_kept_and_added_to(exchange: Exchange) -> None:
    asked, _ = await exchange(
        "/",
        headers={
            "X-Forwarded-For": "10.0.0.1, 10.0.0.2",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "public.example",
            "Forwarded": "for=10.0.0.1",
        },
    )

    assert ["10.0.0.1, 10.0.0.2, 127.0.0.1"] == asked.header_all("x-forwarded-for")
    assert ["https"] == asked.header_all("x-forwarded-proto")
    assert ["public.example"] == asked.header_all("x-forwarded-host")
    assert ["for=10.0.0.1"] == asked.header_all("forwarded")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "public.example"),
        ({"host_header": "client"}, "public.example"),
        ({"host_header": "service.internal:81"}, "service.internal:81"),
    ],
    ids=str,
)
async def test_the_host_is_as_it_is_set(exchange: Exchange, expected: str) -> None:
    asked, _ = await exchange("/", headers={"Host": "public.example"})

    assert [expected] == asked.header_all("host")


@with_settings(host_header="upstream")
async def test_the_host_may_be_the_upstreams_own(exchange: Exchange, upstream: Upstream) -> None:
    asked, _ = await exchange("/", headers={"Host": "public.example"})

    assert [f"127.0.0.1:{upstream.port}"] == asked.header_all("host")


async def test_a_request_with_no_host_goes_to_the_upstreams_own(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    asked = await upstream.asked()

    assert [f"127.0.0.1:{upstream.port}"] == asked.header_all("host")


async def test_http_10_knows_no_upgrade(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    asked = await upstream.asked()
    await asked.send(OK)
    await client.read_head()

    assert (None, 200) == (asked.header("upgrade"), client.status)


@pytest.mark.parametrize("token", ["h2c", "websocket, h2c", "TLS/1.0"])
async def test_no_other_upgrade_than_to_a_websocket_is_asked_for(exchange: Exchange, token: str) -> None:
    """Over h2c a client could speak past the proxy, and past what it checks."""
    asked, response = await exchange(
        "/",
        headers={"Connection": "Upgrade, HTTP2-Settings", "Upgrade": token, "HTTP2-Settings": "AAMAAABk"},
        answer=answer("HTTP/1.1 200 OK", body=b"no"),
    )

    assert (None, None, None) == (asked.header("upgrade"), asked.header("connection"), asked.header("http2-settings"))
    assert (200, b"no") == (response.status, response.body)


# Request bodies


async def test_a_body_with_a_length_is_sent_on_with_it(exchange: Exchange) -> None:
    asked, _ = await exchange("/", method="POST", body=bytes(range(256)))

    assert ["256"] == asked.header_all("content-length")
    assert [] == asked.header_all("transfer-encoding")
    assert bytes(range(256)) == asked.body


async def test_a_chunked_body_is_sent_on_in_chunks(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.send(chunk(b"one") + chunk(b"two") + b"0\r\nX-Trailer: gone\r\n\r\n")
    asked = await upstream.asked()

    assert b"onetwo" == await asked.read_body()
    assert asked.whole
    assert ["chunked"] == asked.header_all("transfer-encoding")
    assert [] == asked.header_all("content-length")


async def test_an_empty_body_keeps_its_length(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    asked = await upstream.asked()
    await asked.send(OK)
    await client.read_head()

    assert ["0"] == asked.header_all("content-length")
    assert 200 == client.status


async def test_an_empty_chunked_body_ends(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    asked = await upstream.asked()

    assert b"" == await asked.read_body()
    assert asked.whole


async def test_a_compressed_body_is_sent_on_byte_for_byte(exchange: Exchange) -> None:
    body = gzip.compress(b"plain " * 100)
    asked, _ = await exchange("/", method="POST", headers={"Content-Encoding": "gzip"}, body=body)

    assert body == asked.body
    assert ["gzip"] == asked.header_all("content-encoding")


FRAMINGS = {
    "length": (b"Content-Length: 6", b"one", b"two"),
    "chunked": (b"Transfer-Encoding: chunked", chunk(b"one"), chunk(b"two") + b"0\r\n\r\n"),
}
each_framing = pytest.mark.parametrize(("field", "first", "second"), FRAMINGS.values(), ids=FRAMINGS)


@each_framing
async def test_the_upstream_has_the_first_part_of_a_body_before_the_client_has_sent_the_second(
    connect: Connect, upstream: Upstream, field: bytes, first: bytes, second: bytes
) -> None:
    client = await connect()
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n" + first)
    asked = await upstream.asked()
    early = await asked.read_until(b"one")
    await client.send(second)

    assert b"one" == early
    assert b"onetwo" == await asked.read_body()


@each_framing
async def test_the_client_has_the_first_part_of_an_answer_before_the_upstream_has_sent_the_second(
    ask: Ask, upstream: Upstream, field: bytes, first: bytes, second: bytes
) -> None:
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n" + first)
    response = await asking
    early = await response.read_until(b"one")
    await asked.send(second)

    assert b"one" == early
    assert b"onetwo" == await response.read_to_end()
    assert response.whole


async def test_the_head_of_an_answer_does_not_wait_for_its_body(ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")
    response = await asking

    assert (200, b"") == (response.status, response.body)


async def test_an_answer_may_come_while_the_body_is_still_sent(connect: Connect, upstream: Upstream) -> None:
    """Both ways at once: an echo."""
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"1"))
    asked = await upstream.asked()
    await asked.read_until(b"1")
    await asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one"))
    await client.read_head()
    await client.read_until(b"one")
    await client.send(chunk(b"2"))
    await asked.read_until(b"12")
    await asked.send(chunk(b"two"))
    await client.read_until(b"onetwo")
    await client.send(b"0\r\n\r\n")
    await asked.read_body()
    await asked.send(b"0\r\n\r\n")

    assert b"onetwo" == await client.read_to_end()
    assert asked.whole
    assert client.whole


# Back-pressure

FLOOD = 96 << 20
BOUND = 48 << 20
"""What may be under way: the kernel's buffers on the two connections, some 10 MiB each, and little here."""


async def flood(to: Message, sent: list[int]) -> None:
    piece = bytes(1 << 16)
    for _ in range(FLOOD // len(piece)):
        to.writer.write(piece)
        await to.writer.drain()
        sent[0] += len(piece)


async def count_body(of: Message) -> int:
    """Reads a body that is too long to be kept."""
    received = 0
    while received < FLOOD and (piece := await of.reader.read(1 << 20)):
        received += len(piece)
    return received


async def test_a_client_that_does_not_read_stops_the_upstream(ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD)
    response = await asking
    sent = [0]
    sending = asyncio.ensure_future(flood(asked, sent))
    stopped_at = await settled(lambda: sent[0])
    received = await count_body(response)
    await sending

    assert stopped_at < BOUND
    assert FLOOD == received


async def test_an_upstream_that_does_not_read_stops_the_client(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % FLOOD)
    asked = await upstream.asked()
    sent = [0]
    sending = asyncio.ensure_future(flood(client, sent))
    stopped_at = await settled(lambda: sent[0])
    received = await count_body(asked)
    await sending

    assert stopped_at < BOUND
    assert FLOOD == received


# Expect and early answers


async def test_a_client_that_expects_100_is_told_to_continue_and_the_upstream_is_not_asked_to(
    connect: Connect, upstream: Upstream
) -> None:
    """Many upstreams would never send the 100, and the client would wait for it."""
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n")
    await client.read_head()
    interim = client.start_line
    await client.send(b"one")
    asked = await upstream.asked()
    body = await asked.read_body()
    await asked.send(OK)
    final = Response(client.reader, client.writer)
    await final.read_head()

    assert b"HTTP/1.1 100 Continue" == interim
    assert [] == client.headers
    assert (b"one", None) == (body, asked.header("expect"))
    assert 200 == final.status


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: y\r\n\r\n"


async def test_early_hints_cross_and_a_100_that_no_client_waits_for_does_not(
    connect: Connect, upstream: Upstream
) -> None:
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    asked = await upstream.asked()
    await asked.send(INTERIM)
    hints = await client.reader.readuntil(b"\r\n\r\n")
    await asked.send(OK)
    await client.read_head()

    assert b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" == hints
    assert (200, None) == (client.status, client.header("link"))


async def test_an_http_10_client_gets_no_interim_answer(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
    await (await upstream.asked()).send(INTERIM + OK)
    await client.read_head()

    assert 200 == client.status


@pytest.mark.parametrize("closes", [False, True], ids=["the upstream waits", "the upstream closes"])
async def test_an_answer_before_the_body_is_read_reaches_a_client_that_is_still_sending(
    connect: Connect, upstream: Upstream, closes: bool
) -> None:
    client = await connect()
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nbegun")
    asked = await upstream.asked()
    await asked.read_until(b"begun")
    await asked.send(answer("HTTP/1.1 413 Content Too Large", body=b"too much"))
    if closes:
        asked.close()
    await client.read_head()

    assert 413 == client.status
    assert b"too much" == await client.read_to_end()
    assert client.whole


async def test_an_answer_before_the_body_is_read_reaches_a_client_that_reads_only_after_sending(
    connect: Connect, upstream: Upstream
) -> None:
    """As most clients do. The upstream closes at once, with bytes unread, which resets the connection to it."""
    size = 4 << 20
    client = await connect()
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    sending = asyncio.ensure_future(client.send(bytes(size)))
    asked = await upstream.asked()
    await asked.send(answer("HTTP/1.1 413 Content Too Large", body=b"too much"))
    asked.close()
    await sending
    await client.read_head()

    assert 413 == client.status
    assert b"too much" == await client.read_to_end()


# Answers


@pytest.mark.parametrize(
    "line",
    [
        "200 OK",
        "200 Fine by me",
        "201 Created",
        "202 ",
        "299 Caf\xe9",
        "400 Bad Request",
        "401 Unauthorized",
        "404 Nicht gefunden",
        "410 Gone",
        "418 I'm a teapot",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Service Unavailable",
        "599 Odd",
        "799 Odder",
    ],
)
async def test_a_status_line_crosses_with_its_reason(exchange: Exchange, line: str) -> None:
    _, response = await exchange("/", answer=answer(f"HTTP/1.1 {line}", body=b"body"))

    assert f"HTTP/1.1 {line}".encode("latin-1") == response.start_line
    assert b"body" == response.body


async def test_an_answers_fields_cross_with_repeats_order_case_and_bytes(exchange: Exchange) -> None:
    """Nothing is added, no Date and no Server; hop-by-hop fields and those that Connection names are off."""
    lines = [
        "HTTP/1.1 200 OK",
        "server: other/1",
        "Set-Cookie: a=1",
        "x-lower: 1",
        "SET-COOKIE: b=2; Path=/",
        "X-Bytes: caf\xe9\xff",
        "X-Empty:",
        "Connection: close, X-Hop",
        "X-Hop: gone",
        "Keep-Alive: timeout=5",
        "Trailer: X-T",
        "Upgrade: h2c",
        "Proxy-Authenticate: Basic",
        'ETag: "1"',
        "Vary: Cookie",
        "Cache-Control: max-age=5",
    ]
    _, response = await exchange("/", answer=answer(*lines, body=b"hi"))

    assert [
        (b"server", b"other/1"),
        (b"Set-Cookie", b"a=1"),
        (b"x-lower", b"1"),
        (b"SET-COOKIE", b"b=2; Path=/"),
        (b"X-Bytes", b"caf\xe9\xff"),
        (b"X-Empty", b""),
        (b"ETag", b'"1"'),
        (b"Vary", b"Cookie"),
        (b"Cache-Control", b"max-age=5"),
        (b"Content-Length", b"2"),
    ] == response.headers


async def test_a_compressed_answer_crosses_byte_for_byte(exchange: Exchange) -> None:
    body = gzip.compress(b"plain " * 1000)
    _, response = await exchange("/", answer=answer("HTTP/1.1 200 OK", "Content-Encoding: gzip", body=body))

    assert body == response.body
    assert ["gzip"] == response.header_all("content-encoding")


@pytest.mark.parametrize(
    "lines",
    [
        ["304 Not Modified", 'ETag: "1"', "Content-Length: 5000"],
        ["304 Not Modified", 'ETag: "1"'],
        ["204 No Content", "X-A: 1"],
    ],
    ids=["304 with a length", "304", "204"],
)
async def test_an_answer_without_a_body_crosses_and_the_connection_is_kept(
    connect: Connect, upstream: Upstream, lines: list[str]
) -> None:
    client = await connect()
    await client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    first = await upstream.asked()
    await first.send("\r\n".join(["HTTP/1.1 " + lines[0], *lines[1:]]).encode() + b"\r\n\r\n")
    second = await upstream.asked()
    await second.send(OK)
    raw = await client.reader.readuntil(OK)

    assert "\r\n".join(["HTTP/1.1 " + lines[0], *lines[1:]]).encode() + b"\r\n\r\n" + OK == raw


async def test_a_part_of_a_file_crosses(exchange: Exchange) -> None:
    asked, response = await exchange(
        "/",
        headers={"Range": "bytes=2-4"},
        answer=answer("HTTP/1.1 206 Partial Content", "Content-Range: bytes 2-4/10", body=b"cde"),
    )

    assert ["bytes=2-4"] == asked.header_all("range")
    assert (206, ["bytes 2-4/10"], b"cde") == (response.status, response.header_all("content-range"), response.body)


async def test_head_gets_the_length_and_no_body_and_the_connection_is_kept(
    connect: Connect, upstream: Upstream
) -> None:
    client = await connect()
    await client.send(b"HEAD /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    first = await upstream.asked()
    await first.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")
    second = await upstream.asked()
    await second.send(OK)
    raw = await client.reader.readuntil(OK)

    assert b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n" + OK == raw


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent"])
async def test_a_redirect_is_the_clients_to_follow(exchange: Exchange, upstream: Upstream, status: str) -> None:
    _, response = await exchange("/", answer=answer(f"HTTP/1.1 {status}", f"Location: {upstream.url}/b"))

    assert [f"{upstream.url}/b"] == response.header_all("location")
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\none\r\n0\r\nX-T: 1\r\n\r\n", b"one"),
    ],
    ids=["empty with a length", "empty in chunks", "extension and trailer"],
)
async def test_a_whole_answer_is_whole_for_the_client(exchange: Exchange, raw: bytes, body: bytes) -> None:
    _, response = await exchange("/", answer=raw)

    assert (body, True) == (response.body, response.whole)


async def test_an_answer_that_ends_with_its_connection_is_whole_for_the_client(ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\n\r\nto the end")
    asked.close()
    response = await asking

    assert b"to the end" == await response.read_to_end()
    assert response.whole


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n9\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nno chunk\r\n",
    ],
    ids=["length", "between chunks", "within a chunk", "no chunk"],
)
async def test_an_answer_that_breaks_off_breaks_off_for_the_client(ask: Ask, upstream: Upstream, raw: bytes) -> None:
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.send(raw)
    response = await asking
    await response.read_until(b"half")
    asked.close()
    body = await response.read_to_end()

    assert body in (b"half", b"halfx")
    assert not response.whole


async def test_an_answer_whose_connection_is_reset_breaks_off_for_the_client(ask: Ask, upstream: Upstream) -> None:
    """Without a length or chunks, only the reset tells that it is not whole."""
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    response = await asking
    await response.read_until(b"half")
    asked.reset()

    assert b"half" == await response.read_to_end()
    assert not response.whole


async def test_an_answer_in_a_transfer_coding_that_is_not_undone_is_refused(exchange: Exchange) -> None:
    """Passed on without its Transfer-Encoding, it would be bytes that no one can read."""
    _, response = await exchange(
        "/", answer=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + chunk(b"zip") + b"0\r\n\r\n"
    )

    assert 502 == response.status


# HTTP/1.0, and connections


async def test_an_http_10_client_gets_no_chunks_and_the_end_of_the_connection(
    connect: Connect, upstream: Upstream
) -> None:
    client = await connect()
    await client.send(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one") + b"0\r\n\r\n")
    raw = await client.reader.read(-1)

    assert b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none" == raw


async def test_an_http_10_client_may_keep_its_connection_where_the_length_is_known(
    connect: Connect, upstream: Upstream
) -> None:
    client = await connect()
    for _ in range(2):
        await client.send(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        asked = await upstream.asked()
        await asked.send(OK)
        raw = await client.reader.readuntil(b"hi")

        assert b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi" == raw


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"],
    ids=["HTTP/1.0", "Connection: close"],
)
async def test_a_connection_that_the_client_will_not_use_again_is_closed(
    connect: Connect, upstream: Upstream, head: bytes
) -> None:
    client = await connect()
    await client.send(head)
    asked = await upstream.asked()
    await asked.send(OK)
    raw = await client.reader.read(-1)

    assert b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi" == raw


async def test_a_connection_serves_one_request_after_the_other(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    for number in range(5):
        await client.send(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" % number)
        asked = await upstream.asked()
        await asked.read_body()
        await asked.send(OK)

        assert OK == await client.reader.readuntil(b"hi")
        assert f"/{number}" == asked.target


async def test_the_upstream_has_a_connection_for_each_request(exchange: Exchange) -> None:
    """Where none is kept; see test_origin for those that are."""
    one, _ = await exchange("/1")
    two, _ = await exchange("/2")

    assert one.writer is not two.writer
    await one.closed()


# A client that leaves


async def open_request(connect: Connect, upstream: Upstream, head: bytes) -> tuple[Response, Asked]:
    client = await connect()
    await client.send(head)
    return client, await upstream.asked()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UPLOAD = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegun"


@pytest.mark.parametrize("leave", ["close", "half-close", "reset"])
@pytest.mark.parametrize("head", [GET, UPLOAD], ids=["a GET", "an upload"])
@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"], ids=["before", "within"])
async def test_a_client_that_leaves_closes_the_upstream(
    connect: Connect, upstream: Upstream, head: bytes, begun: bytes, leave: str
) -> None:
    """Before the answer and within it; with a request body that it never finishes, too."""
    client, asked = await open_request(connect, upstream, head)
    if begun:
        await asked.send(begun)
        await client.read_head()
        await client.read_until(b"half")
    leaving = {"close": client.close, "half-close": client.writer.write_eof, "reset": client.reset}
    leaving[leave]()

    await asked.closed()


async def test_a_client_that_leaves_while_the_upstream_takes_nothing_closes_it(
    connect: Connect, upstream: Upstream
) -> None:
    """The upload stands still, so the client's leaving stands behind what is unread of it."""
    client, asked = await open_request(connect, upstream, UPLOAD.replace(b"1000000", b"%d" % FLOOD))
    sent = [0]
    sending = asyncio.ensure_future(flood(client, sent))
    await settled(lambda: sent[0])
    client.reset()
    await asyncio.gather(sending, return_exceptions=True)

    await asked.closed()


async def test_the_upstream_is_closed_when_its_answer_is_over(exchange: Exchange) -> None:
    asked, _ = await exchange("/")

    await asked.closed()


async def test_the_upstream_sees_an_upload_that_breaks_off_as_broken_off(connect: Connect, upstream: Upstream) -> None:
    client = await connect()
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one"))
    asked = await upstream.asked()
    await asked.read_until(b"one")
    client.close()

    assert b"one" == await asked.read_body()
    assert not asked.whole


# Event streams that pass


@pytest.mark.parametrize("status", ["201 Created", "206 Partial Content", "404 Not Found", "500 Oops"])
async def test_an_event_stream_with_another_status_passes_through(exchange: Exchange, status: str) -> None:
    raw = answer(f"HTTP/1.1 {status}", "Content-Type: text/event-stream", body=b"data: 1\n\n")
    _, response = await exchange("/", headers=EVENT_SOURCE, answer=raw)

    assert f"HTTP/1.1 {status}".encode() == response.start_line
    assert b"data: 1\n\n" == response.body
    assert [(b"Content-Type", b"text/event-stream"), (b"Content-Length", b"9")] == response.headers


async def test_an_event_stream_to_head_passes_through(exchange: Exchange) -> None:
    _, response = await exchange(
        "/", method="HEAD", answer=b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-A: 1\r\n\r\n"
    )

    assert 200 == response.status
    assert (b"X-A", b"1") in response.headers
    assert None is response.header("sse-stream")


async def test_an_event_stream_in_an_unknown_coding_passes_through(exchange: Exchange) -> None:
    raw = answer("HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Content-Encoding: x-own", body=b"\x00\x01\xff")
    _, response = await exchange("/", headers=EVENT_SOURCE, answer=raw)

    assert b"\x00\x01\xff" == response.body
    assert ["x-own"] == response.header_all("content-encoding")
    assert None is response.header("sse-stream")


# CORS


PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization, last-event-id",
}
ALLOWS = ["HTTP/1.1 204 No Content", "Access-Control-Allow-Origin: https://page.example"]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ([], ["Last-Event-ID"]),
        (["Access-Control-Allow-Headers: authorization"], ["authorization, Last-Event-ID"]),
        (["Access-Control-Allow-Headers: Last-Event-Id"], ["Last-Event-Id"]),
        (["Access-Control-Allow-Headers: *"], ["*, Last-Event-ID"]),
    ],
)
async def test_a_preflight_for_last_event_id_has_it_allowed(
    exchange: Exchange, allowed: list[str], expected: list[str]
) -> None:
    raw = "\r\n".join([*ALLOWS, *allowed]).encode() + b"\r\n\r\n"
    _, response = await exchange("/", method="OPTIONS", headers=PREFLIGHT, answer=raw)

    assert expected == response.header_all("access-control-allow-headers")
    assert ["https://page.example"] == response.header_all("access-control-allow-origin")


@pytest.mark.parametrize(
    ("asked_for", "lines"),
    [
        ("authorization", ALLOWS),
        ("last-event-id", ["HTTP/1.1 403 Forbidden", "Content-Length: 0"]),
    ],
    ids=["not asked for", "not allowed at all"],
)
async def test_a_preflight_is_the_upstreams_own_otherwise(exchange: Exchange, asked_for: str, lines: list[str]) -> None:
    raw = "\r\n".join(lines).encode() + b"\r\n\r\n"
    _, response = await exchange(
        "/", method="OPTIONS", headers={**PREFLIGHT, "Access-Control-Request-Headers": asked_for}, answer=raw
    )

    assert [] == response.header_all("access-control-allow-headers")


async def test_a_page_that_may_read_a_stream_may_read_the_sidecars_fields(open_stream: OpenStream) -> None:
    _, response = await open_stream(
        "/",
        headers={"Origin": "https://page.example"},
        answer=("Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: X-Own"),
    )

    assert ["X-Own, SSE-Stream, SSE-Stream-Status"] == response.header_all("access-control-expose-headers")


async def test_a_stream_that_no_other_page_may_read_exposes_nothing(open_stream: OpenStream) -> None:
    _, response = await open_stream("/", headers={"Origin": "https://page.example"})

    assert [] == response.header_all("access-control-expose-headers")


# What a client library would do by itself


async def test_no_cookie_of_one_client_reaches_the_next_request(exchange: Exchange) -> None:
    await exchange("/", answer=answer("HTTP/1.1 200 OK", "Set-Cookie: session=first; Path=/", body=b"hi"))
    asked, response = await exchange("/")

    assert None is asked.header("cookie")
    assert None is response.header("set-cookie")


@pytest.mark.parametrize("method", [*METHODS, *ODD_METHODS])
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_request_whose_upstream_closes_before_answering_reaches_it_once(
    ask: Ask, upstream: Upstream, method: str, end: str
) -> None:
    asking = asyncio.ensure_future(ask("/", method=method))
    asked = await upstream.asked()
    (asked.close if end == "close" else asked.reset)()
    response = await asking

    assert 502 == response.status
    assert 1 == len(upstream.requests)


# Unix sockets


async def test_an_upstream_on_a_unix_socket(start: StartSidecar, tmp_path: Path) -> None:
    upstream = Upstream()
    await upstream.start_unix(str(tmp_path / "service.sock"))
    sidecar = await start(upstream=f"unix://{tmp_path}/service.sock")
    asking = asyncio.ensure_future(request(port_of(sidecar), "/a?b", method="POST", body=b"x" * 100_000))
    asked = await upstream.asked()
    body = await asked.read_body()
    await asked.respond("200 OK", body=b"y" * 100_000)
    response = await asking
    answered = await response.read_to_end()
    response.close()
    await upstream.stop()

    assert ("/a?b", b"x" * 100_000) == (asked.target, body)
    assert [f"127.0.0.1:{port_of(sidecar)}"] == asked.header_all("host")
    assert b"y" * 100_000 == answered


async def test_a_unix_socket_that_is_not_there(start: StartSidecar, tmp_path: Path) -> None:
    sidecar = await start(upstream=f"unix://{tmp_path}/none.sock")
    response = await request(port_of(sidecar), "/")
    body = await response.read_to_end()
    response.close()

    assert 502 == response.status
    assert b"none.sock" not in body
