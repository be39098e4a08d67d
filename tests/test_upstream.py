"""The producer: how long an upstream is read, what is made of its silence, its size and its coding."""

from __future__ import annotations

import gzip
import re
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import brotli
import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, with_settings
from tests.harness import EVENT_SOURCE, ManualClock, Response, Upstream, scrape, unread, until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

POST: dict[str, Any] = {"method": "POST", "body": b"{}"}
PAGE = {"User-Agent": "Mozilla/5.0", "Accept": "*/*"}


def resuming(seq: int, response: Response, headers: dict[str, str] | None = None) -> dict[str, str]:
    return {**(headers or {}), "Last-Event-ID": f"{seq}-{response.stream_id}"}


async def heard(sidecar: Sidecar, events: int) -> None:
    """Waits until so many events have come from upstreams."""
    await until(lambda: sidecar.metrics.route("default").events_received == events)


async def left(response: Response, sidecar: Sidecar) -> None:
    response.reset()
    await unread(sidecar)


# What a client's leaving means


@pytest.mark.parametrize(
    ("settings", "opened_by", "seconds"),
    [
        pytest.param({}, {}, 30, id="GET lingers"),
        pytest.param({"linger": 5}, {}, 5, id="for as long as is said"),
        pytest.param({}, POST, 600, id="POST finishes"),
        pytest.param({"finish_timeout": 50}, POST, 50, id="unless it takes too long"),
        pytest.param({"on_disconnect": "finish"}, {}, 600, id="GET may finish"),
        pytest.param({"on_disconnect": "linger"}, POST, 30, id="POST may linger"),
    ],
)
async def test_an_upstream_is_read_on_for_a_while_when_its_last_reader_has_left(
    open_stream: OpenStream,
    ask: Ask,
    sidecar: Sidecar,
    clock: ManualClock,
    *,
    opened_by: dict[str, Any],
    seconds: float,
) -> None:
    asked, response = await open_stream("/a", **opened_by)
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    await left(response, sidecar)
    clock.advance(seconds - 0.01)
    await asked.stream(b"data: 2\n\n")
    await heard(sidecar, 2)
    clock.advance(0.01)
    await asked.closed()

    again = await ask("/a", headers=resuming(1, response))
    await again.read_until(b"data: 2\nid: 2-")

    assert "resumed" == again.sse_status


@pytest.mark.parametrize("settings", [{"on_disconnect": "cancel"}, {"linger": 0, "on_disconnect": "linger"}])
@pytest.mark.parametrize("opened_by", [{}, POST], ids=["GET", "POST"])
async def test_an_upstream_may_be_closed_at_once(open_stream: OpenStream, opened_by: dict[str, Any]) -> None:
    asked, response = await open_stream("/a", **opened_by)
    await response.read_until(b"retry")
    response.reset()

    await asked.closed()


@with_settings(on_disconnect="cancel")
async def test_work_that_was_cancelled_is_not_repeated(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asked, response = await open_stream("/a", **POST)
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    response.reset()
    await asked.closed()

    again = await ask("/a", headers=resuming(1, response))

    assert (410, 1) == (again.status, len(upstream.requests))


@with_settings(on_disconnect="cancel")
async def test_a_get_that_was_cancelled_may_be_asked_again(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    response.reset()
    await asked.closed()

    again = await ask("/a", headers=resuming(1, response))
    await upstream.asked()

    assert (200, "gap") == (again.status, again.sse_status)


async def test_who_comes_back_in_time_finds_the_upstream_as_it_was(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    await left(response, sidecar)
    clock.advance(29)
    again = await ask("/a", headers=resuming(1, response))
    clock.advance(100)
    await asked.stream(b"data: 2\n\n")
    await again.read_until(b"id: 2-")

    assert 1 == len(upstream.requests)


async def test_the_upstream_lingers_only_when_the_last_of_its_readers_has_left(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, one = await open_stream("/a")
    two = await ask("/a", headers=resuming(0, one))
    one.reset()
    await until(lambda: sidecar.streams.reader_count == 1)
    clock.advance(100)
    await asked.stream(b"data: 1\n\n")

    await two.read_until(b"id: 1-")


async def test_a_half_closed_connection_counts_as_left(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await open_stream("/a")
    await response.read_until(b"retry")
    response.writer.write_eof()
    await unread(sidecar)
    clock.advance(30)

    await asked.closed()


async def test_work_is_read_to_its_end_without_a_reader(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar
) -> None:
    asked, response = await open_stream("/a", **POST)
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    await left(response, sidecar)
    await asked.stream(b"data: 2\n\ndata: 3\n\n")
    await asked.end()
    await until(lambda: sidecar.streams.active == 0)

    again = await ask("/a", headers=resuming(1, response))
    await again.read_to_end()

    assert ["data: 2", "data: 3"] == [data for _, data in again.events()]
    assert (True, 1) == (again.whole, len(upstream.requests))


async def test_work_that_takes_longer_than_finish_timeout_is_lost_out_loud(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await open_stream("/a", **POST)
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"id: 2-")
    await left(response, sidecar)
    clock.advance(600)
    await asked.closed()

    before_end = await ask("/a", headers=resuming(1, response))
    await before_end.read_to_end()
    at_end = await ask("/a", headers=resuming(2, response))

    assert b'data: 2\nid: 2-ID\n\nevent: sse-sidecar\ndata: {"error": {"code": "upstream-lost"' in before_end.shown
    assert (False, 410) == (before_end.whole, at_end.status)


@pytest.mark.parametrize("opened_by", [{}, POST], ids=["GET", "POST"])
async def test_the_upstream_is_asked_once_whatever_its_clients_do(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, opened_by: dict[str, Any]
) -> None:
    """They leave, half-close, or stay, and come back at every event."""
    asked, response = await open_stream("/a", **opened_by)
    got = response
    for number in range(1, 20):
        await asked.stream(b"data: %d\n\n" % number)
        await got.read_until(b"id: %d-" % number)
        leave = (got.reset, got.writer.write_eof, lambda: None)[number % 3]
        leave()
        method = "POST" if opened_by and number % 2 else "GET"
        body = b"{}" if method == "POST" else b""
        got = await ask("/a", method=method, body=body, headers=resuming(number, response))
    everything = await ask("/a", headers=resuming(0, response))
    await asked.end()
    await everything.read_to_end()

    assert [str(number) for number in range(1, 20)] == re.findall(r"data: (\d+)\n", everything.body.decode())
    assert 1 == len(upstream.requests)


# Silence


only_stalls = with_settings(heartbeat=10_000, stall_timeout=30)


@only_stalls
@pytest.mark.parametrize(("headers", "end"), [({}, b"\n"), (PAGE, b"\n\n")], ids=["line", "block"])
async def test_a_stall_is_counted_and_told_once_for_each_silence(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock, headers: dict[str, str], end: bytes
) -> None:
    asked, response = await open_stream("/a", headers=headers)
    await response.read_until(b"retry")
    for number in (1, 2):
        clock.advance(29.99)
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"id: %d-" % number)
        clock.advance(30)
        clock.advance(30)
        clock.advance(30)
    await asked.stream(b"data: 3\n\n")
    await response.read_until(b"id: 3-")

    waiting = b": waiting for upstream" + end
    events = [b"data: %d\nid: %d-ID\n\n" % (number, number) for number in (1, 2, 3)]
    assert b"retry: OWN" + end + events[0] + waiting + events[1] + waiting + events[2] == response.shown
    assert 2 == (await scrape(sidecar))['sse_stall_detections_total{route="default"}']


@only_stalls
@pytest.mark.parametrize("heard_of", [b": hi\n\n", b"data: ha", b"\n"])
async def test_any_byte_of_the_upstream_ends_a_silence(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock, heard_of: bytes
) -> None:
    asked, response = await open_stream("/a")
    await response.read_until(b"retry")
    for _ in range(3):
        clock.advance(29.99)
        size = sidecar.metrics.route("default").bytes_received
        await asked.stream(heard_of)
        await until(partial(grown, sidecar, size))
    stalls_before = (await scrape(sidecar))['sse_stall_detections_total{route="default"}']
    clock.advance(30)
    await response.read_until(b": waiting for upstream")

    assert 0 == stalls_before


def grown(sidecar: Sidecar, size: int) -> bool:
    return sidecar.metrics.route("default").bytes_received > size


@only_stalls
async def test_a_stall_without_a_reader_is_counted(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, response = await open_stream("/a", **POST)
    await left(response, sidecar)
    clock.advance(30)

    assert 1 == (await scrape(sidecar))['sse_stall_detections_total{route="default"}']


# Size


BOUND = 100
small_events = with_settings(max_event_bytes=BOUND, max_stream_bytes=10_000)


@small_events
@pytest.mark.parametrize(
    "too_large",
    [
        pytest.param(b"data: " + (BOUND - 5) * b"x" + b"\n\n", id="an event"),
        pytest.param(b"data: " + BOUND * b"x", id="a line without an end"),
        pytest.param(BOUND // 5 * b"data:\n", id="a block without an end"),
        pytest.param(b": " + BOUND * b"x" + b"\n\n", id="a comment"),
    ],
)
@pytest.mark.parametrize("opened_by", [{}, POST, {"headers": EVENT_SOURCE}], ids=["GET", "POST", "EventSource"])
async def test_what_is_too_large_breaks_its_stream(
    open_stream: OpenStream,
    ask: Ask,
    upstream: Upstream,
    sidecar: Sidecar,
    *,
    opened_by: dict[str, Any],
    too_large: bytes,
) -> None:
    asked, response = await open_stream("/a", **opened_by)
    await asked.stream(b"data: 1\n\n" + too_large)
    await response.read_to_end()
    await asked.closed()
    again = await ask("/a", headers=resuming(1, response, opened_by.get("headers")))

    assert b'data: 1\nid: 1-ID\n\nevent: sse-sidecar\ndata: {"error": {"code": "too-large"' in response.shown
    assert (opened_by.get("headers") is EVENT_SOURCE) == response.whole
    assert (410, 1) == (again.status, len(upstream.requests))
    assert 1 == (await scrape(sidecar))['sse_user_visible_errors_total{code="too-large",route="default"}']


@small_events
async def test_an_event_of_exactly_the_largest_size_passes(open_stream: OpenStream) -> None:
    asked, response = await open_stream("/a")
    event = b"data: " + (BOUND - 6) * b"x"
    for _ in range(2):
        await asked.stream(event + b"\n\n")

    await response.read_until(event + b"\nid: 2-")


@with_settings(max_event_bytes=1 << 20, max_stream_bytes=1 << 20)
async def test_a_few_bytes_that_stand_for_many_take_no_memory(open_stream: OpenStream) -> None:
    """They are decoded a piece at a time, up to the largest event."""
    bomb = gzip.compress(b"data: " + (32 << 20) * b"x")
    asked, response = await open_stream("/a", answer=("Content-Encoding: gzip",))
    await response.read_until(b"retry")
    tracemalloc.start()
    try:
        await asked.stream(bomb)
        await response.read_to_end()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert b"too-large" in response.body
    assert peak < 8 << 20


# Content codings


def deflate(wbits: int) -> Callable[[bytes, bytes], tuple[bytes, bytes]]:
    def encode(first: bytes, rest: bytes) -> tuple[bytes, bytes]:
        made = zlib.compressobj(wbits=wbits)
        return made.compress(first) + made.flush(zlib.Z_SYNC_FLUSH), made.compress(rest) + made.flush()

    return encode


def br(first: bytes, rest: bytes) -> tuple[bytes, bytes]:
    made = brotli.Compressor()
    return made.process(first) + made.flush(), made.process(rest) + made.finish()


def zstandard(first: bytes, rest: bytes) -> tuple[bytes, bytes]:
    made = zstd.ZstdCompressor()
    return made.compress(first, made.FLUSH_BLOCK), made.compress(rest, made.FLUSH_FRAME)


CODINGS = [
    pytest.param("gzip", deflate(31), id="gzip"),
    pytest.param("X-GZip", deflate(31), id="x-gzip"),
    pytest.param("deflate", deflate(15), id="deflate"),
    pytest.param("deflate", deflate(-15), id="deflate without its header"),
    pytest.param("br", br, id="br"),
    pytest.param("zstd", zstandard, id="zstd"),
    pytest.param("identity", lambda first, rest: (first, rest), id="identity"),
]


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
@pytest.mark.parametrize("size", [1, 2, 7, 1 << 20])
async def test_a_compressed_stream_is_decoded(
    open_stream: OpenStream, ask: Ask, *, coding: str, encode: Callable[[bytes, bytes], tuple[bytes, bytes]], size: int
) -> None:
    """In any chunking; and what was flushed does not wait for more."""
    parts = encode("data: größe\r\n\r\n".encode(), b"id: own\ndata: 2\n\n")
    asked, response = await open_stream("/a", answer=(f"Content-Encoding: {coding}", "Vary: Accept-Encoding"))
    for part, last in zip(parts, (b"id: 1-", b"id: 2-"), strict=True):
        for start in range(0, len(part), size):
            await asked.stream(part[start : start + size])
        await response.read_until(last)
    await asked.end()
    await response.read_to_end()
    again = await ask("/a", headers=resuming(1, response))
    await again.read_until(b"id: 2-")

    assert "retry: OWN\ndata: größe\nid: 1-ID\n\ndata: 2\nid: 2-ID.b3du\n\n".encode() == response.shown
    assert b"retry: OWN\ndata: 2\nid: 2-ID.b3du\n\n" == again.shown
    assert (None, None) == (response.header("content-encoding"), again.header("content-encoding"))


@pytest.mark.parametrize(
    "codings", [("snappy",), ("gzip, br",), ("gzip", "br")], ids=["unknown", "two", "two in two lines"]
)
async def test_a_coding_that_cannot_be_undone_passes_as_it_is(
    open_stream: OpenStream, sidecar: Sidecar, codings: tuple[str, ...]
) -> None:
    asked, response = await open_stream("/a", answer=tuple(f"Content-Encoding: {coding}" for coding in codings))
    await asked.stream(b"\x00\xff: no event stream\n\n")
    await asked.end()
    await response.read_to_end()

    assert (b"\x00\xff: no event stream\n\n", True) == (response.body, response.whole)
    assert [*codings] == response.header_all("content-encoding")
    assert None is response.header("sse-stream")
    assert 1 == (await scrape(sidecar))['sse_undecodable_streams_total{route="default"}']


@pytest.mark.parametrize(("coding", "encode"), CODINGS[:-1])
@pytest.mark.parametrize("opened_by", [{}, POST], ids=["GET", "POST"])
async def test_a_stream_whose_coding_is_broken_is_lost(
    open_stream: OpenStream,
    ask: Ask,
    *,
    coding: str,
    encode: Callable[[bytes, bytes], tuple[bytes, bytes]],
    opened_by: Any,
) -> None:
    first, _ = encode(b"data: 1\n\n", b"")
    asked, response = await open_stream("/a", answer=(f"Content-Encoding: {coding}",), **opened_by)
    await asked.stream(first)
    await response.read_until(b"id: 1-")
    await asked.stream(64 * b"\xff")
    await response.read_to_end()
    await asked.closed()

    assert b'event: sse-sidecar\ndata: {"error": {"code": "upstream-lost"' in response.body
    assert not response.whole
    if opened_by:
        again = await ask("/a", headers=resuming(1, response))
        assert 410 == again.status
