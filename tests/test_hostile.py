"""Clients that mean harm, or know no better: each sends bytes that two parsers may read differently, or sends too much,
too slowly, or reads nothing.

What comes of it is one request that the upstream reads as it was meant, or none and an answer that says so and ends the
connection; never two, and never a body that is taken for a request. What a stream beside it sends is read meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple, cast

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.listening import IDLE_TIMEOUT, MAX_HEAD, _Connection
from sse_sidecar.patience import Patience
from tests.conftest import Connect, OpenStream, with_settings
from tests.harness import TIMEOUT, Asked, ManualClock, Response, Upstream, chunk, port_of, until
from tests.harness import connect as connect_to
from tests.test_downstream import NO_HTTP, SMUGGLING

SECRET = b"s3cr3t"


def head(*lines: bytes, line: bytes = b"POST /s3cr3t HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *lines]) + b"\r\n\r\n"


def get(*lines: bytes, line: bytes = b"GET /s3cr3t HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return head(*lines, line=line, host=host)


SMUGGLED = get(line=b"GET /smuggled HTTP/1.1")
LENGTH, CHUNKED = b"Content-Length: 4", b"Transfer-Encoding: chunked"
LAST = b"0\r\n\r\n"


def with_coding(value: bytes, name: bytes = b"Transfer-Encoding") -> bytes:
    """Whoever does not see the coding goes by the length, and takes the rest for a request."""
    return head(b"Content-Length: 5", name + b":" + value, line=b"POST /s3cr3t HTTP/1.1") + LAST + SMUGGLED


CONTROLS = {f"0x{byte:02x}": bytes([byte]) for byte in (*range(0x20), 0x7F) if byte not in b"\t"}

HEADS: dict[str, bytes] = {
    **{f"a coding, {name}": head(b"Transfer-Encoding:" + value) + LAST + SMUGGLED for name, value in {
        "quoted": b' "chunked"',
        "with a parameter": b" chunked;q=1",
        "with a comma before": b" ,chunked",
        "with a comma after": b" chunked,",
        "folded": b"\r\n chunked",
        "folded with a tab": b"\r\n\tchunked",
        "folded after it": b" chunked\r\n ",
        "with a NUL after": b" chunked\x00",
        "with a form feed": b" \x0cchunked",
        "with a bare CR before": b"\rchunked",
        "with a bare LF before": b"\nchunked",
        "with a no-break space": b" \xa0chunked",
        "with a space within": b" chun ked",
        "with a long s": b" chunke\xc5\xbf",
        "beside another": b" gzip, chunked",
        "before another": b" chunked, gzip",
        "twice": b" chunked, chunked",
        "with identity before": b" identity, chunked",
    }.items()},
    **{f"a length beside a coding, {name}": with_coding(value) for name, value in {
        "plain": b" chunked", "mixed case": b" cHuNkEd", "not chunked": b" xchunked", "empty": b"", "tab": b"\tchunked",
    }.items()},
    **{f"two codings, {name}": head(b"Transfer-Encoding: " + one, b"transfer-encoding: " + two) + LAST + SMUGGLED
       for name, one, two in (
        ("equal", b"chunked", b"chunked"), ("one other", b"chunked", b"x"), ("other first", b"x", b"chunked"),
        ("identity first", b"identity", b"chunked"),
    )},
    "a name of a coding with a tab before the colon": head(b"Transfer-Encoding\t: chunked") + LAST + SMUGGLED,
    "a name of a coding with a NUL before the colon": head(b"Transfer-Encoding\x00: chunked") + LAST + SMUGGLED,
    "a name of a coding with a CR before the colon": head(b"Transfer-Encoding\r: chunked") + LAST + SMUGGLED,
    "a name of a length with a space before the colon": head(b"Content-Length : 4") + b"abcd" + SMUGGLED,
    "a name of a length with a CR within": head(b"Content\r-Length: 4") + b"abcd" + SMUGGLED,
    **{f"a length, {name}": head(b"Content-Length:" + value) + b"abcd" + SMUGGLED for name, value in {
        "with a plus": b" +4", "with a minus": b" -4", "negative zero": b" -0", "hexadecimal": b" 0x4",
        "with a point": b" 4.0", "with an exponent": b" 4e0", "with an underscore": b" 1_0", "with a letter": b" 4a",
        "with a space within": b" 0 4", "with a tab within": b" 0\t4", "with a NUL": b" 4\x00", "quoted": b' "4"',
        "a list": b" 4, 4", "a list of one": b" 4,", "a list that differs": b" 4, 0", "empty": b"", "blank": b" \t ",
        "folded": b"\r\n 4", "Arabic": " ٤".encode(), "beyond 63 bits": b" 9223372036854775808",
        "of 64 bits": b" 18446744073709551615", "of 65 bits": b" 18446744073709551620",
        "of 5000 nines": b" " + b"9" * 5000,
        "of 5000 zeros": b" " + b"0" * 5000 + b"4",
    }.items()},
    **{f"two lengths, {name}": head(b"Content-Length: " + one, b"CONTENT-length: " + two) + b"abcd" + SMUGGLED
       for name, one, two in (("equal", b"4", b"4"), ("zero last", b"4", b"0"), ("zero first", b"0", b"4"))},
    **{f"{name} in a name": get(b"X" + byte + b"A: 1") for name, byte in CONTROLS.items()},
    **{f"{name} in a value": get(b"X-A: 1" + byte + b"2") for name, byte in CONTROLS.items()},
    **{f"{name} in the target": get(line=b"GET /a" + byte + b"b HTTP/1.1") for name, byte in CONTROLS.items()},
    "a space in a name": get(b"X A: 1"),
    "a name beyond ASCII": get(b"X\xe9: 1"),
    "a name in quotes": get(b'"X": 1'),
    "no name": get(b": 1"),
    "a blank before the first field": get(b" X-A: 1", host=b""),
    "a fold as the last line": get(b"X-A: 1", b" "),
    "a bare LF after the request line": b"GET /s3cr3t HTTP/1.1\nHost: a\r\n\r\n",
    "a bare LF that ends the head": b"GET /s3cr3t HTTP/1.1\r\nHost: a\r\n\n" + SMUGGLED,
    "a bare LF between fields": get(b"X-A: 1\nContent-Length: 4"),
    "a CR that ends the head": b"GET /s3cr3t HTTP/1.1\r\nHost: a\r\n\r" + SMUGGLED,
    "CR CR LF": b"GET /s3cr3t HTTP/1.1\r\nHost: a\r\r\n\r\n",
    "a bare CR before the request line": b"\r" + get(),
    "a bare LF before the request line": b"\n" + get(),
    "a space before the request line": b" " + get(),
    "two spaces in the request line": get(line=b"GET  /s3cr3t HTTP/1.1"),
    "two spaces before the version": get(line=b"GET /s3cr3t  HTTP/1.1"),
    "a space after the version": get(line=b"GET /s3cr3t HTTP/1.1 "),
    "two versions": get(line=b"GET /s3cr3t HTTP/1.1 HTTP/1.1"),
    "a version in lower case": get(line=b"GET /s3cr3t http/1.1"),
    "a version with a zero": get(line=b"GET /s3cr3t HTTP/01.1"),
    "a version with two digits": get(line=b"GET /s3cr3t HTTP/1.10"),
    "RTSP": get(line=b"DESCRIBE /s3cr3t RTSP/1.0"),
    "GET over RTSP": get(line=b"GET /s3cr3t RTSP/1.0"),
    "ICE": get(line=b"SOURCE /s3cr3t ICE/1.0"),
    "a fragment": get(line=b"GET /a#s3cr3t HTTP/1.1"),
    "HTTP/0.9 with a body": b"GET /s3cr3t\r\n" + SMUGGLED,
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "no Host": get(host=b""),
    "a Host of two lines": get(b"Host: b"),
    "a Host of two lines that are equal": get(b"host: a"),
    "a Host that is a list": get(host=b"Host: a, b"),
    "a Host with a path": get(host=b"Host: a/b"),
    "a Host with a user": get(host=b"Host: b@a"),
    "a Host with a space": get(host=b"Host: a b"),
    "an absolute target with a space in its host": get(line=b"GET http://a b/ HTTP/1.1"),
    "more fields than there may be": get(*[b"X-A: s3cr3t"] * 300),
}  # fmt: skip

CHUNKS: dict[str, bytes] = {
    name: head(CHUNKED) + body + SMUGGLED
    for name, body in {
        "a size with a plus": b"+4\r\nabcd\r\n0\r\n\r\n",
        "a size with a minus": b"-4\r\nabcd\r\n0\r\n\r\n",
        "a size of minus nothing": b"-0\r\n\r\n",
        "a size with a space before": b" 4\r\nabcd\r\n0\r\n\r\n",
        "a size with a space after": b"4 \r\nabcd\r\n0\r\n\r\n",
        "a size with a tab after": b"4\t\r\nabcd\r\n0\r\n\r\n",
        "a size with a space within": b"0 4\r\nabcd\r\n0\r\n\r\n",
        "a size with 0x": b"0x4\r\nabcd\r\n0\r\n\r\n",
        "a size with an underscore": b"0_4\r\nabcd\r\n0\r\n\r\n",
        "a size with a point": b"4.0\r\nabcd\r\n0\r\n\r\n",
        "a size with a NUL": b"4\x00\r\nabcd\r\n0\r\n\r\n",
        "a size that is empty": b"\r\nabcd\r\n0\r\n\r\n",
        "a size that is no number": b"g\r\nabcd\r\n0\r\n\r\n",
        "a size of 65 bits": b"10000000000000004\r\nabcd\r\n0\r\n\r\n",
        "a size that a bare LF ends": b"4\nabcd\r\n0\r\n\r\n",
        "a size that a bare CR ends": b"4\rabcd\r\n0\r\n\r\n",
        "a size with a bare CR and more": b"4\r5\r\nabcd\r\n0\r\n\r\n",
        "data that a bare LF ends": b"4\r\nabcd\n0\r\n\r\n",
        "data that a bare CR ends": b"4\r\nabcd\r0\r\n\r\n",
        "data that nothing ends": b"4\r\nabcd0\r\n\r\n",
        "data that is longer": b"4\r\nabcde\r\n0\r\n\r\n",
        "data that is shorter": b"5\r\nabcd\r\n0\r\n\r\n",
        "an extension with a bare LF": b"4;a\nb\r\nabcd\r\n0\r\n\r\n",
        "an extension with a bare CR": b"4;a\rb\r\nabcd\r\n0\r\n\r\n",
        "an extension with a NUL": b"4;a\x00b\r\nabcd\r\n0\r\n\r\n",
        "an extension with a line in quotes": b'4;a="\r\n"\r\nabcd\r\n0\r\n\r\n',
        "a last size that a bare LF ends": b"4\r\nabcd\r\n0\n\r\n",
        "an end that is a bare LF": b"4\r\nabcd\r\n0\r\n\n",
        "an end that is a bare CR": b"4\r\nabcd\r\n0\r\n\r",
        "a trailer that is no field": b"4\r\nabcd\r\n0\r\ns3cr3t\r\n\r\n",
        "a trailer with a space before the colon": b"4\r\nabcd\r\n0\r\nX : s3cr3t\r\n\r\n",
        "a trailer that is folded": b"4\r\nabcd\r\n0\r\nX: 1\r\n s3cr3t\r\n\r\n",
        "a trailer with a length": b"4\r\nabcd\r\n0\r\nContent-Length: 5\r\n\r\n",
        "a trailer with a coding": b"4\r\nabcd\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "a trailer with a bare LF": b"4\r\nabcd\r\n0\r\nX: 1\nY: 2\r\n\r\n",
    }.items()
}


class Meant(NamedTuple):
    """What is good HTTP, however odd, and how the upstream is to read it: request lines and bodies."""

    raw: bytes
    lines: tuple[bytes, ...] = (b"POST /s3cr3t HTTP/1.1",)
    bodies: tuple[bytes, ...] = (b"abcd",)


AB = (b"POST /s3cr3t HTTP/1.1", b"GET /b HTTP/1.1")
B = get(line=b"GET /b HTTP/1.1", host=b"Host: b")
ABCD = b"4\r\nabcd\r\n"

GOOD: dict[str, Meant] = {
    "a coding in mixed case": Meant(head(b"tRANSFER-eNCODING: cHUNKED") + ABCD + LAST),
    "a coding after a tab": Meant(head(b"Transfer-Encoding:\tchunked") + ABCD + LAST),
    "a coding and nothing before it": Meant(head(b"Transfer-Encoding:chunked") + ABCD + LAST),
    "a length with zeros": Meant(head(b"Content-Length: " + b"0" * 17 + b"4") + b"abcd"),
    "a length with blanks": Meant(head(b"Content-Length: \t 4 \t") + b"abcd"),
    "a size with zeros": Meant(head(CHUNKED) + b"0" * 5000 + ABCD + b"000\r\n\r\n"),
    "a size in capitals": Meant(head(CHUNKED) + b"A\r\n0123456789\r\n" + LAST, bodies=(b"0123456789",)),
    "an extension": Meant(head(CHUNKED) + b'4;a=b;c="d e"\r\nabcd\r\n0;x\r\n\r\n'),
    "a length on GET": Meant(get(LENGTH) + b"abcd", (b"GET /s3cr3t HTTP/1.1",)),
    "chunks on GET": Meant(get(CHUNKED) + ABCD + LAST, (b"GET /s3cr3t HTTP/1.1",)),
    "a length on HEAD": Meant(head(LENGTH, line=b"HEAD /a HTTP/1.1") + b"abcd", (b"HEAD /a HTTP/1.1",)),
    "chunks on HEAD": Meant(head(CHUNKED, line=b"HEAD /a HTTP/1.1") + ABCD + LAST, (b"HEAD /a HTTP/1.1",)),
    "a length on DELETE": Meant(head(LENGTH, line=b"DELETE /a HTTP/1.1") + b"abcd", (b"DELETE /a HTTP/1.1",)),
    "a length on OPTIONS": Meant(head(LENGTH, line=b"OPTIONS * HTTP/1.1") + b"abcd", (b"OPTIONS * HTTP/1.1",)),
    "blank lines before": Meant(b"\r\n\r\n\r\n" + head(LENGTH) + b"abcd"),
    "an absolute target with another Host": Meant(
        head(LENGTH, line=b"POST http://a/s3cr3t HTTP/1.1", host=b"Host: evil") + b"abcd"
    ),
    "a body that is a request": Meant(head(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED, bodies=(SMUGGLED,)),
    "chunks of ends, one by one": Meant(head(CHUNKED) + chunk(LAST) * 50 + LAST, bodies=(LAST * 50,)),
    "chunks of blank lines": Meant(
        head(CHUNKED) + chunk(b"\r\n" * 500) + b"0\r\nX-T: 1\r\n\r\n", bodies=(b"\r\n" * 500,)
    ),
    "chunks that are requests": Meant(
        head(CHUNKED) + chunk(SMUGGLED) + chunk(LAST + SMUGGLED) + LAST, bodies=(SMUGGLED + LAST + SMUGGLED,)
    ),
    "a request behind a body": Meant(head(LENGTH) + b"abcd" + B, AB, (b"abcd", b"")),
    "a request behind chunks": Meant(head(CHUNKED) + ABCD + LAST + B, AB, (b"abcd", b"")),
    "a request behind blank lines": Meant(head(LENGTH) + b"abcd\r\n\r\n" + B, AB, (b"abcd", b"")),
    "a request behind an upgrade that is declined": Meant(
        get(b"Connection: upgrade", b"Upgrade: websocket") + B, (b"GET /s3cr3t HTTP/1.1", AB[1]), (b"", b"")
    ),
    "a request behind an upgrade to HTTP/2": Meant(
        head(b"Connection: upgrade", b"Upgrade: h2c", LENGTH) + b"abcd" + B, AB, (b"abcd", b"")
    ),
    "chunks and a request behind an upgrade that is declined": Meant(
        get(b"Connection: upgrade", b"Upgrade: websocket") + head(CHUNKED) + ABCD + b"0\r\nX-T: 1\r\n\r\n" + B,
        (b"GET /s3cr3t HTTP/1.1", *AB),
        (b"", b"abcd", b""),
    ),
    "forty requests": Meant(
        b"".join(get(line=b"GET /%d HTTP/1.1" % number) for number in range(40)),
        tuple(b"GET /%d HTTP/1.1" % number for number in range(40)),
        (b"",) * 40,
    ),
    "forty bodies": Meant((head(LENGTH) + b"abcd") * 40, AB[:1] * 40, (b"abcd",) * 40),
    "forty bodies in chunks with trailers": Meant(
        (head(CHUNKED) + ABCD + b"0\r\nX-T: 1\r\n\r\n") * 40, AB[:1] * 40, (b"abcd",) * 40
    ),
}

TRAILERS: dict[str, bytes] = {
    "one": b"X-T: s3cr3t\r\n",
    "two": b"X-A: 1\r\nX-T: s3cr3t\r\n",
    "credentials": b"Authorization: s3cr3t\r\n",
    "a Host": b"Host: s3cr3t\r\n",
    "an address": b"X-Forwarded-For: s3cr3t\r\n",
    "an empty one": b"X-T:\r\n",
}


Way = Callable[[Response, bytes], Awaitable[None]]


async def whole(client: Response, raw: bytes) -> None:
    client.writer.write(raw)


async def by_the_byte(client: Response, raw: bytes) -> None:
    """Each byte is read by itself, as far as the kernel and the loop let it."""
    await _in_parts(client, raw, 1)


async def in_threes(client: Response, raw: bytes) -> None:
    await _in_parts(client, raw, 3)


async def _in_parts(client: Response, raw: bytes, size: int) -> None:
    for at in range(0, len(raw), size):
        if not client.writer.transport.is_closing():
            client.writer.write(raw[at : at + size])
        await asyncio.sleep(0)


WAYS = {way.__name__: way for way in (whole, by_the_byte, in_threes)}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class Beside:
    """A stream on another connection, that is to be read whatever else is going on."""

    def __init__(self, asked: Asked, response: Response) -> None:
        self._asked, self._response = asked, response
        self._numbers = count()

    async def goes_on(self) -> None:
        event = b"data: %d;" % next(self._numbers)
        await self._asked.stream(event + b"\n\n")
        await self._response.read_until(event)


@pytest.fixture
async def beside(open_stream: OpenStream, upstream: Upstream) -> Beside:
    found = Beside(*await open_stream("/beside"))
    await found.goes_on()
    upstream.requests.clear()
    upstream._taken = 0
    return found


class Told:
    """What an upstream read that takes one request from each connection and would notice anything behind it."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.bodies: list[bytes] = []
        self.heads: list[list[tuple[bytes, bytes]]] = []
        self.behind: list[bytes] = []

    async def answer(self, asked: Asked) -> None:
        number = len(self.lines)
        self.lines.append(asked.start_line)
        self.heads.append(asked.headers)
        self.bodies.append(b"")
        await asked.read_body()
        self.bodies[number] = asked.body
        framed = asked.header("content-length") or asked.header("transfer-encoding")
        if not framed or asked.whole or asked.header("content-length") == "0":
            await asked.respond("200 OK", body=b"" if asked.method == "HEAD" else b"answer %d;" % number)
        self.behind.append(await asked.reader.read(-1))


@pytest.fixture
def told(beside: Beside, upstream: Upstream) -> Told:
    found = Told()
    upstream.handler = found.answer
    return found


class Attack:
    """One hostile connection, the stream beside it, and what is logged."""

    def __init__(self, sidecar: Sidecar, beside: Beside, caplog: pytest.LogCaptureFixture) -> None:
        self._sidecar, self._beside, self._caplog = sidecar, beside, caplog
        self.client: Response

    async def connect(self) -> Response:
        self.client = await connect_to(port_of(self._sidecar))
        return self.client

    async def said(self) -> bytes:
        """All that the connection says until it is closed."""
        reading = asyncio.ensure_future(self._read())
        await self._beside.goes_on()
        return await reading

    async def _read(self) -> bytes:
        said = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(TIMEOUT):
                while part := await self.client.reader.read(65536):
                    said += part
        return said

    def assert_nothing_is_told(self, said: bytes) -> None:
        """Neither in the answer nor in the log."""
        assert SECRET not in said
        assert SECRET.decode() not in self._caplog.text
        assert [] == [record for record in self._caplog.records if record.exc_info]


@pytest.fixture
async def attack(sidecar: Sidecar, beside: Beside, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Attack]:
    caplog.set_level(logging.DEBUG)
    found = Attack(sidecar, beside, caplog)
    await found.connect()
    yield found
    found.client.close()


def statuses(said: bytes) -> list[int]:
    """Of all answers that a connection gave; each is well formed."""
    found = []
    while said:
        match = re.match(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n(?:[^\r\n:]+: ?[^\r\n]*\r\n)*\r\n", said)
        assert match, said
        found.append(int(match[1]))
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", match[0])
        said = said[match.end() + (int(length[1]) if length else 0) :]
    return found


async def send(way: Way, client: Response, raw: bytes) -> None:
    with suppress(ConnectionError):  # it may be refused before it is whole
        await way(client, raw)


# Read by no one in two ways


@each_way
@pytest.mark.parametrize("raw", [*HEADS.values(), *NO_HTTP.values()], ids=[*HEADS, *NO_HTTP])
async def test_a_head_that_may_be_read_in_two_ways_is_read_in_none(
    attack: Attack, told: Told, raw: bytes, way: Way
) -> None:
    await send(way, attack.client, raw)
    said = await attack.said()

    assert ([], [400]) == (told.lines, statuses(said))
    attack.assert_nothing_is_told(said)


@pytest.mark.parametrize("raw", [*CHUNKS.values(), *SMUGGLING.values()], ids=[*CHUNKS, *SMUGGLING])
async def test_a_body_that_is_broken_is_refused_with_its_request(attack: Attack, told: Told, raw: bytes) -> None:
    await whole(attack.client, raw)
    said = await attack.said()

    assert ([], [400]) == (told.lines, statuses(said))
    attack.assert_nothing_is_told(said)


@pytest.mark.parametrize("way", [by_the_byte, in_threes])
@pytest.mark.parametrize("raw", CHUNKS.values(), ids=CHUNKS)
async def test_a_body_that_breaks_on_its_way_is_broken_off_there_too(
    attack: Attack, told: Told, raw: bytes, way: Way
) -> None:
    """The upstream may have its request by then, but never whole, nor another one."""
    await send(way, attack.client, raw)
    said = await attack.said()
    await until(lambda: len(told.behind) == len(told.lines))

    assert told.lines in ([], [b"POST /s3cr3t HTTP/1.1"])
    assert told.bodies in ([], [b""], [b"abcd"], [b"abcd\r"])
    assert [400] == statuses(said)
    assert b"smuggled" not in b"".join(told.behind)
    attack.assert_nothing_is_told(said)


# Read by everyone in one way


@each_way
@pytest.mark.parametrize("meant", GOOD.values(), ids=GOOD)
async def test_what_can_be_read_in_one_way_only_crosses_as_it_was_meant(
    attack: Attack, told: Told, meant: Meant, way: Way
) -> None:
    """One answer for each request, in their order, and the connection is kept."""
    await send(way, attack.client, meant.raw + get(b"Connection: close", line=b"GET /last HTTP/1.1"))
    said = await attack.said()
    numbers = [int(number) for number in re.findall(rb"answer (\d+);", said)]

    assert [*meant.lines, b"GET /last HTTP/1.1"] == told.lines
    assert [*meant.bodies, b""] == told.bodies
    assert [200] * len(told.lines) == statuses(said)
    assert sorted(numbers) == numbers
    assert b"" == b"".join(told.behind)


@each_way
@pytest.mark.parametrize("end", [LAST, b"0\r\nX-T: s3cr3t\r\n\r\n"], ids=["plain", "trailers"])
async def test_a_request_behind_very_many_ends_is_refused_where_it_cannot_be_told_apart(
    attack: Attack, told: Told, end: bytes, way: Way
) -> None:
    """It may be sent again: nothing of it has been answered. Read in small parts, it can be told apart."""
    await send(way, attack.client, head(CHUNKED) + chunk(LAST * 100) + end + B)
    await until(lambda: told.lines)
    await send(whole, attack.client, get(b"Connection: close", line=b"GET /last HTTP/1.1"))
    said = await attack.said()

    assert statuses(said) in ([200, 400], [200, 200, 200])
    assert told.lines in (list(AB[:1]), [*AB, b"GET /last HTTP/1.1"])
    assert LAST * 100 == told.bodies[0]
    assert [] == [field for fields in told.heads for field in fields if field[0] == b"X-T"]


async def test_the_authority_of_the_target_goes_before_the_host(attack: Attack, told: Told) -> None:
    await whole(attack.client, get(b"Connection: close", line=b"GET http://a/ HTTP/1.1", host=b"Host: evil"))
    await attack.said()

    assert [b"a"] == [value for name, value in told.heads[0] if name.lower() == b"host"]
    assert b"evil" not in b"".join(value for _, value in told.heads[0])


@each_way
@pytest.mark.parametrize("trailers", TRAILERS.values(), ids=TRAILERS)
async def test_trailers_are_no_fields_of_the_next_request(
    attack: Attack, told: Told, trailers: bytes, way: Way
) -> None:
    """aiohttp's parser keeps the last one, and gives it out with the next head."""
    await send(way, attack.client, head(CHUNKED) + ABCD + b"0\r\n" + trailers + b"\r\n" + B)
    await send(way, attack.client, get(b"Connection: close", line=b"GET /last HTTP/1.0", host=b""))
    await attack.said()

    assert [*AB, b"GET /last HTTP/1.1"] == told.lines
    assert [] == [field for fields in told.heads for field in fields if SECRET in field[1] or field[0] == b"X-T"]


@each_way
@pytest.mark.parametrize(
    "raw",
    [
        head(CHUNKED, line=b"POST /s3cr3t HTTP/1.0") + ABCD + LAST + SMUGGLED,
        head(LENGTH, line=b"CONNECT s3cr3t:1 HTTP/1.1") + b"abcd" + SMUGGLED,
        head(b"Content-Length: %d" % len(SMUGGLED), line=b"CONNECT s3cr3t:1 HTTP/1.1") + SMUGGLED,
        head(b"Connection: close", LENGTH) + b"abcd" + SMUGGLED,
    ],
    ids=["chunks over HTTP/1.0", "CONNECT with a body", "CONNECT with a request", "the last one by its own word"],
)
async def test_nothing_is_read_behind_what_may_have_been_read_otherwise_or_is_the_last(
    attack: Attack, told: Told, raw: bytes, way: Way
) -> None:
    await send(way, attack.client, raw)
    said = await attack.said()

    assert told.lines in ([], [b"POST /s3cr3t HTTP/1.1"])
    assert len(statuses(said)) <= 1  # what comes behind may reset the connection before it is read
    attack.assert_nothing_is_told(said)


@each_way
async def test_a_broken_request_does_not_take_back_those_before_it(attack: Attack, told: Told, way: Way) -> None:
    await send(way, attack.client, head(LENGTH) + b"abcd" + B + CHUNKS["a size with a plus"])
    said = await attack.said()

    assert [200, 200, 400] == statuses(said)
    assert list(AB) == told.lines[:2]
    assert b"smuggled" not in b"".join([*told.lines, *told.behind])


# Too much

LARGE: dict[str, bytes] = {
    "a target": get(line=b"GET /" + b"s3cr3t" * 15_000 + b" HTTP/1.1"),
    "a method": get(line=b"s3cr3t" * 15_000 + b" / HTTP/1.1"),
    "a name": get(b"s3cr3t" * 15_000 + b": 1"),
    "a value": get(b"X-A: " + b"s3cr3t" * 15_000),
    "a value of blanks": get(b"X-A: " + b" " * (MAX_HEAD + 1)),
    "a head": get(*[b"X-A: " + b"s3cr3t" * 1_000] * (MAX_HEAD // 6_000 + 1)),
    "blank lines before": b"\r\n" * (MAX_HEAD // 2 + 1) + get(),
}
ENDLESS: dict[str, bytes] = {
    "blank lines": b"\r\n" * (MAX_HEAD // 2 + 1),
    "a value": get().removesuffix(b"\r\n\r\n") + b"\r\nX-A: " + b"s3cr3t" * 15_000,
    "blanks before a value": get().removesuffix(b"\r\n\r\n") + b"\r\nX-A:" + b" " * (MAX_HEAD + 1),
    "fields": get(*[b"X-A: " + b"s3cr3t" * 1_000] * (MAX_HEAD // 6_000 + 1)).removesuffix(b"\r\n"),
}


@pytest.mark.parametrize("raw", [*LARGE.values(), *ENDLESS.values()], ids=[*LARGE, *(f"endless {n}" for n in ENDLESS)])
async def test_a_head_that_is_too_large_is_refused(attack: Attack, told: Told, raw: bytes) -> None:
    await whole(attack.client, raw)
    said = await attack.said()

    assert ([], [400 if raw is LARGE["a method"] else 431]) == (told.lines, statuses(said))
    attack.assert_nothing_is_told(said)


async def test_a_head_may_be_as_large_as_it_may_be(attack: Attack, told: Told) -> None:
    """All its fields, and each of them, within what they may be."""
    value = b"X-A: " + b"a" * 60_000
    await whole(attack.client, get(*[value] * 4, b"Connection: close"))
    said = await attack.said()

    assert [200] == statuses(said)
    assert 4 == sum(name == b"X-A" for name, _ in told.heads[0])


ENDLESS_FRAMING: dict[str, bytes] = {
    "an extension": b"4;" + b"s3cr3t" * 50_000,
    "a size": b"0" * 300_000,
    "trailers": b"0\r\n" + (b"X-A: " + b"s3cr3t" * 1_000 + b"\r\n") * 50,
}


@pytest.mark.parametrize("framing", ENDLESS_FRAMING.values(), ids=ENDLESS_FRAMING)
async def test_a_body_of_framing_only_is_refused(attack: Attack, told: Told, framing: bytes) -> None:
    await attack.client.send(head(CHUNKED) + ABCD)
    await until(lambda: told.lines)
    await whole(attack.client, framing)
    said = await attack.said()
    await until(lambda: told.behind)

    assert ([b"POST /s3cr3t HTTP/1.1"], [b"abcd"]) == (told.lines, told.bodies)
    assert [400] == statuses(said)
    attack.assert_nothing_is_told(said)


# Too slow

TIMEOUTS = {"header_timeout": 10, "body_timeout": 60}
slow = with_settings(**TIMEOUTS)
SLOW_HEADS = {
    "a byte": b"G",
    "a request line": b"GET /s3cr3t HTTP/1.1\r\n",
    "all but the last byte": get()[:-1],
    "a blank line": b"\r\n",
    "all of the body's head but its end": head(CHUNKED)[:-2],
}


async def received(sidecar: Sidecar, size: int = 1) -> None:
    """Waits until so many bytes of a head have come."""
    connections = cast("list[_Connection]", sidecar._server.connections)
    await until(lambda: any(len(connection._head) >= size for connection in connections))


async def waiting(patience: Patience[Any], number: int) -> None:
    """Waits until so many connections are waited for."""
    await until(lambda: len(patience._due) == number)


@slow
@pytest.mark.parametrize("raw", SLOW_HEADS.values(), ids=SLOW_HEADS)
async def test_a_head_that_does_not_end_is_given_up(
    attack: Attack, told: Told, sidecar: Sidecar, clock: ManualClock, raw: bytes
) -> None:
    await attack.client.send(raw)
    await received(sidecar)
    clock.advance(10)
    said = await attack.said()

    assert ([], [408]) == (told.lines, statuses(said))
    assert b"Connection: close" in said
    attack.assert_nothing_is_told(said)


@slow
async def test_a_head_has_its_time_as_a_whole(attack: Attack, told: Told, sidecar: Sidecar, clock: ManualClock) -> None:
    """A byte now and then does not prolong it."""
    raw = get()
    for at in range(10):
        await attack.client.send(raw[at : at + 1])
        await received(sidecar, at + 1)
        clock.advance(0.99)
        await asyncio.sleep(0)
    open_until_then = not attack.client.reader.at_eof()
    clock.advance(0.1)
    said = await attack.said()

    assert open_until_then
    assert ([], [408]) == (told.lines, statuses(said))


@slow
async def test_a_connection_on_which_nothing_is_ever_said_is_closed_without_a_word(
    attack: Attack, sidecar: Sidecar, clock: ManualClock
) -> None:
    """A browser that opened it ahead would take an answer for that to the request that it sends then."""
    await waiting(sidecar._server.reading_heads, 1)
    clock.advance(9.9)
    kept = len(sidecar._server.reading_heads._due)
    clock.advance(0.1)

    assert 1 == kept
    assert b"" == await attack.said()


@slow
async def test_the_time_of_the_next_head_begins_with_its_first_byte(
    attack: Attack, told: Told, sidecar: Sidecar, clock: ManualClock
) -> None:
    for _ in range(3):
        await attack.client.send(get())
        await attack.client.reader.readuntil(b";")
        clock.advance(50)
    await attack.client.send(get()[:-1])
    await received(sidecar)
    clock.advance(9.9)
    await attack.client.send(get()[-1:])
    await attack.client.reader.readuntil(b";")
    await attack.client.send(b"G")
    await received(sidecar)
    clock.advance(10)
    said = await attack.said()

    assert 4 == len(told.lines)
    assert [408] == statuses(said)


@slow
async def test_a_slow_head_does_not_end_the_answer_before_it(
    attack: Attack, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    await attack.client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\nGET /s3cr3t HT")
    asked = await upstream.asked()
    await asked.begin()
    await attack.client.read_head()
    await asked.stream(b"data: 1\n\n")
    await attack.client.read_until(b"data: 1")
    await received(sidecar)
    clock.advance(10)
    await asked.stream(b"data: [DONE]\n\n")
    await attack.client.read_until(b"[DONE]")
    await asked.end()
    await attack.client.read_to_end()
    said = await attack.said()

    assert attack.client.whole
    assert [408] == statuses(said)
    assert 1 == len(upstream.requests)


async def test_a_connection_without_a_request_is_closed_in_time(
    attack: Attack, told: Told, sidecar: Sidecar, clock: ManualClock
) -> None:
    await attack.client.send(get())
    await attack.client.reader.readuntil(b";")
    await waiting(sidecar._server.idle, 1)
    clock.advance(IDLE_TIMEOUT - 0.1)
    await attack.client.send(get())
    await attack.client.reader.readuntil(b";")
    await waiting(sidecar._server.idle, 1)
    clock.advance(IDLE_TIMEOUT - 0.1)
    kept = len(sidecar._server.idle._due)
    clock.advance(0.1)

    assert 1 == kept
    assert b"" == await attack.said()
    assert 2 == len(told.lines)


async def test_an_answer_that_is_long_in_coming_is_not_idle(
    attack: Attack, upstream: Upstream, clock: ManualClock
) -> None:
    await attack.client.send(get())
    asked = await upstream.asked()
    clock.advance(IDLE_TIMEOUT * 2)
    await asked.respond("200 OK", body=b"late")
    await attack.client.read_head()

    assert b"late" == await attack.client.read_to_end()


async def test_many_that_are_idle_or_slow_share_a_timer(
    told: Told, sidecar: Sidecar, connect: Connect, clock: ManualClock
) -> None:
    before = clock.pending
    idle, silent = [[await connect() for _ in range(20)] for _ in range(2)]
    for client in idle:
        await client.send(get())
        await client.reader.readuntil(b";")
    await waiting(sidecar._server.idle, 20)
    await waiting(sidecar._server.reading_heads, 20)
    timers = clock.pending - before
    clock.advance(IDLE_TIMEOUT)
    ended = [await client.reader.read(-1) for client in (*idle, *silent)]

    assert 2 == timers
    assert [b""] * 40 == ended


@slow
async def test_those_that_came_later_have_their_own_time(
    sidecar: Sidecar, connect: Connect, clock: ManualClock
) -> None:
    for number in range(3):
        await connect()
        await waiting(sidecar._server.reading_heads, number + 1)
        clock.advance(3)
    left = []
    for _ in range(3):
        clock.advance(clock.next_in)
        left.append((clock.time(), len(sidecar._server.reading_heads._due)))

    assert [(1010.0, 2), (1013.0, 1), (1016.0, 0)] == left


SLOW_BODIES = {
    "none of it": head(LENGTH),
    "a part of it": head(LENGTH) + b"ab",
    "no chunk": head(CHUNKED),
    "half a size": head(CHUNKED) + ABCD + b"4",
    "half a chunk": head(CHUNKED) + b"4\r\nab",
    "no last chunk": head(CHUNKED) + ABCD,
    "half an end": head(CHUNKED) + ABCD + b"0\r\n",
}


async def reading_body(clock: ManualClock) -> None:
    await until(lambda: clock.next_in <= 60)


@slow
@pytest.mark.parametrize("raw", SLOW_BODIES.values(), ids=SLOW_BODIES)
async def test_a_body_that_does_not_end_is_given_up(
    attack: Attack, upstream: Upstream, clock: ManualClock, raw: bytes
) -> None:
    """The upstream sees it broken off."""
    await attack.client.send(raw)
    asked = await upstream.asked()
    if b"ab" in raw:
        await asked.read_until(b"ab")
    clock.advance(59.9)
    await asyncio.sleep(0.01)
    answered_early = attack.client.reader._buffer  # type: ignore[attr-defined]
    clock.advance(0.2)
    said = await attack.said()
    await asked.read_to_end()

    assert b"" == answered_early
    assert [408] == statuses(said)
    assert not asked.whole
    assert 1 == len(upstream.requests)
    attack.assert_nothing_is_told(said)


@slow
async def test_a_body_has_its_time_for_each_part(attack: Attack, upstream: Upstream, clock: ManualClock) -> None:
    await attack.client.send(head(b"Content-Length: 10"))
    asked = await upstream.asked()
    for number in range(10):
        clock.advance(59)
        await attack.client.send(b"%d" % number)
        await asked.read_until(b"%d" % number)
    await asked.respond("200 OK")
    await attack.client.read_head()

    assert 200 == attack.client.status


@slow
async def test_a_body_that_is_not_read_is_not_waited_for(
    attack: Attack, upstream: Upstream, clock: ManualClock
) -> None:
    """The upstream takes nothing, so nothing is asked of the client."""
    size = 30_000_000
    await attack.client.send(head(b"Content-Length: %d" % size))
    asked = await upstream.asked()
    sending = asyncio.ensure_future(attack.client.send(bytes(size)))
    written = -1
    while written != (written := attack.client.writer.transport.get_write_buffer_size()):
        await asyncio.sleep(0.05)
    for _ in range(4):
        clock.advance(60)
        await asyncio.sleep(0)
    took = len(await asked.reader.readexactly(size))
    await sending
    await asked.respond("200 OK")
    await attack.client.read_head()

    assert size == took
    assert 200 == attack.client.status


@slow
async def test_a_body_that_does_not_end_does_not_end_the_answer(
    attack: Attack, upstream: Upstream, clock: ManualClock
) -> None:
    await attack.client.send(head(LENGTH) + b"ab")
    asked = await upstream.asked()
    await asked.begin()
    await attack.client.read_head()
    for number in range(5):
        clock.advance(60)
        await asked.stream(b"data: %d;\n\n" % number)
        await attack.client.read_until(b"data: %d;" % number)
    await attack.client.send(b"cd")

    assert b"abcd" == await asked.read_until(b"abcd")


async def test_time_outs_leave_no_timer_behind(
    attack: Attack, told: Told, sidecar: Sidecar, clock: ManualClock
) -> None:
    before = clock.pending - 1  # its own head is awaited
    await attack.client.send(head(LENGTH) + b"ab")
    await until(lambda: told.lines)
    await attack.client.send(b"cd")
    await attack.client.reader.readuntil(b";")
    attack.client.close()
    await until(lambda: len(sidecar._server.connections) == 1)

    assert before == clock.pending


# Not reading


@with_settings(slow_reader_timeout=30)
async def test_a_client_that_never_reads_stops_no_one_else(
    attack: Attack, upstream: Upstream, sidecar: Sidecar, beside: Beside, clock: ManualClock
) -> None:
    """Of a large answer, no more is taken from the upstream than fits between; of a stream, it is cut off."""
    attack.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await attack.client.send(get())
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    asked.writer.write(bytes(100_000_000))
    left = -1
    while left != (left := asked.writer.transport.get_write_buffer_size()):
        await asyncio.sleep(0.05)
        await beside.goes_on()

    assert left > 80_000_000


@each_way
async def test_pipelining_without_reading_is_bounded(
    attack: Attack, told: Told, beside: Beside, sidecar: Sidecar, way: Way
) -> None:
    """Requests wait for their turn, and beyond some they wait with the client."""
    flood = 2_000
    sending = asyncio.ensure_future(send(way, attack.client, get() * flood))
    waiting = []
    for _ in range(20):
        await beside.goes_on()
        waiting.append(max(len(connection._messages) for connection in sidecar._server.connections))
    sending.cancel()

    assert max(waiting) <= 32
