"""The event-stream format: hand-made cases in every line end and chunking, and any bytes against the standard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, product, takewhile
from typing import Any, NamedTuple

import httpx_sse._decoders
import openai._streaming
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_sidecar import wire
from sse_sidecar.wire import Block, Dialect, EventParser, Kind, read_block
from tests.reference import interpret

BOM = b"\xef\xbb\xbf"
SUFFIX = b"g" + 22 * b"A"
NO_LIMIT = 1 << 30
LINE_END = re.compile(rb"\r\n|\n|\r")

any_stream = settings(max_examples=250, deadline=None)


# Hand-made cases


def blocks(chunks: Iterable[bytes], limit: int = NO_LIMIT) -> list[bytes]:
    parser = EventParser(limit)
    return [block for chunk in chunks for block in parser.feed(chunk)]


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def tr(stream: bytes, expected: list[Block]) -> None:
    """Parses `stream` in each of the three line ends: whole, byte by byte, and in two-byte chunks."""
    for line_end in (b"\n", b"\r", b"\r\n"):
        whole = stream.replace(b"\n", line_end)
        for chunks in ([whole], pieces(whole, 1), pieces(whole, 2)):
            assert expected == [read_block(block) for block in blocks(chunks)]


def event(body: bytes, upstream_id: bytes | None = None, retry: bytes | None = None) -> Block:
    return Block(Kind.EVENT, body, upstream_id, retry)


def fields(body: bytes, upstream_id: bytes | None = None, retry: bytes | None = None) -> Block:
    return Block(Kind.FIELDS, body, upstream_id, retry)


def quiet(body: bytes, upstream_id: bytes | None = None, retry: bytes | None = None) -> Block:
    return Block(Kind.QUIET, body, upstream_id, retry)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: x\n\n", [event(b"data: x")]),
        (b"data:x\n\n", [event(b"data:x")]),
        (b"data:  x \n\n", [event(b"data:  x ")]),
        (b"data: a\ndata: b\n\n", [event(b"data: a\ndata: b")]),
        (b"data: a\n\ndata: b\n\n", [event(b"data: a"), event(b"data: b")]),
        (b"event: t\ndata: x\n\n", [event(b"event: t\ndata: x")]),
        (b"data: x\nevent: t\n\n", [event(b"data: x\nevent: t")]),
        (b"other: 1\ndata: x\n\n", [event(b"other: 1\ndata: x")]),
        (b": c\ndata: x\n: d\n\n", [event(b": c\ndata: x\n: d")]),
        (b"data: a: b\n\n", [event(b"data: a: b")]),
    ],
)
def test_a_block_with_data_is_an_event(stream: bytes, expected: list[Block]) -> None:
    tr(stream, expected)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data\n\n", [event(b"data")]),
        (b"data:\n\n", [event(b"data:")]),
        (b"data: \n\n", [event(b"data: ")]),
        (b"event: t\ndata\n\n", [event(b"event: t\ndata")]),
        (b"data\ndata\n\n", [event(b"data\ndata")]),
    ],
)
def test_empty_data_is_data(stream: bytes, expected: list[Block]) -> None:
    tr(stream, expected)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b": ping\n\n", [quiet(b": ping")]),
        (b":\n\n", [quiet(b":")]),
        (b":data: x\n\n", [quiet(b":data: x")]),
        (b"other: 1\n\n", [quiet(b"other: 1")]),
        (b"database: 1\n\n", [quiet(b"database: 1")]),
        (b"data : x\n\n", [quiet(b"data : x")]),
        (b" data: x\n\n", [quiet(b" data: x")]),
        (b"DATA: x\n\n", [quiet(b"DATA: x")]),
        (b"events: t\n\n", [quiet(b"events: t")]),
        (b"event: t\n\n", [fields(b"event: t")]),
        (b"event\n\n", [fields(b"event")]),
        (b"event: t\ndatabase: 1\n\n", [fields(b"event: t\ndatabase: 1")]),
        (b": c\nevent: t\n\n", [fields(b": c\nevent: t")]),
    ],
)
def test_a_block_without_data_is_no_event(stream: bytes, expected: list[Block]) -> None:
    tr(stream, expected)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"id: 5\ndata: x\n\n", [event(b"data: x", b"5")]),
        (b"data: x\nid: 5\n\n", [event(b"data: x", b"5")]),
        (b"data: x\nid: 5\ndata: y\n\n", [event(b"data: x\ndata: y", b"5")]),
        (b"event: t\nid: 5\ndata: x\n\n", [event(b"event: t\ndata: x", b"5")]),
        (b"id: 5\ndata: x\nid: 6\n\n", [event(b"data: x", b"6")]),
        (b"id:5\ndata: x\n\n", [event(b"data: x", b"5")]),
        (b"id:  5 \ndata: x\n\n", [event(b"data: x", b" 5 ")]),
        (b"id: a:b\ndata: x\n\n", [event(b"data: x", b"a:b")]),
        (b"id: \xff\ndata: x\n\n", [event(b"data: x", b"\xff")]),
        (b"id: 5\n\n", [quiet(b"", b"5")]),
        (b"id: 5\nevent: t\n\n", [fields(b"event: t", b"5")]),
        (b"id: 5\n: c\n\n", [quiet(b": c", b"5")]),
    ],
)
def test_the_upstreams_id_is_taken_off_and_kept_beside_the_block(stream: bytes, expected: list[Block]) -> None:
    tr(stream, expected)


@pytest.mark.parametrize("line", [b"id", b"id:", b"id: "])
def test_an_empty_id_is_an_id(line: bytes) -> None:
    tr(b"data: x\n" + line + b"\n\n", [event(b"data: x", b"")])
    tr(b"id: 5\n" + line + b"\ndata: x\n\n", [event(b"data: x", b"")])


def test_an_id_that_holds_a_nul_is_ignored_and_taken_off() -> None:
    tr(b"data: x\nid: a\0b\n\n", [event(b"data: x")])
    tr(b"id: 5\nid: a\0b\ndata: x\n\n", [event(b"data: x", b"5")])
    tr(b"id: a\0b\nid: 5\ndata: x\n\n", [event(b"data: x", b"5")])


@pytest.mark.parametrize("line", [b"identity: 5", b"ID: 5", b" id: 5", b"id : 5", b"i: 5", b":id: 5", b"id\0: 5"])
def test_a_field_that_only_looks_like_an_id_is_kept(line: bytes) -> None:
    tr(b"data: x\n" + line + b"\n\n", [event(b"data: x\n" + line)])


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"retry: 500\n\n", [quiet(b"retry: 500", retry=b"500")]),
        (b"retry:0500\n\n", [quiet(b"retry:0500", retry=b"0500")]),
        (b"retry: 1\nretry: 2\n\n", [quiet(b"retry: 1\nretry: 2", retry=b"2")]),
        (b"retry: 1\nretry: x\n\n", [quiet(b"retry: 1\nretry: x", retry=b"1")]),
        (b"data: x\nretry: 500\ndata: y\n\n", [event(b"data: x\nretry: 500\ndata: y", retry=b"500")]),
        (b"retry: 500\nid: 5\ndata: x\n\n", [event(b"retry: 500\ndata: x", b"5", b"500")]),
        (b"event: t\nretry: 500\n\n", [fields(b"event: t\nretry: 500", retry=b"500")]),
    ],
)
def test_retry_is_read_and_stays_in_its_place(stream: bytes, expected: list[Block]) -> None:
    tr(stream, expected)


@pytest.mark.parametrize("value", [b"", b" ", b" +5", b" -5", b" 5s", b" 5 ", b"  5", b" 5.0", b" 1_0", b" \xd9\xa5"])
def test_a_retry_of_anything_but_ascii_digits_is_none(value: bytes) -> None:
    tr(b"retry:" + value + b"\n\n", [quiet(b"retry:" + value)])


def test_a_retry_of_more_than_ten_days_passes_and_is_not_kept() -> None:
    tr(b"retry: 999999999\n\n", [quiet(b"retry: 999999999", retry=b"999999999")])
    tr(b"retry: 1000000000\n\n", [quiet(b"retry: 1000000000")])


@pytest.mark.parametrize(
    "stream",
    [b"\n\n\ndata: x\n\n", b"\ndata: x\n\n", b"data: x\n\n\n", b"data: x\n\n\n\n\n\n"],
)
def test_blank_lines_beyond_the_one_that_ends_a_block_are_nothing(stream: bytes) -> None:
    tr(stream, [event(b"data: x")])
    tr(stream + b"data: y\n\n", [event(b"data: x"), event(b"data: y")])


def test_a_stream_of_blank_lines_has_no_blocks() -> None:
    tr(7 * b"\n", [])


def test_one_byte_order_mark_at_the_start_is_passed_over() -> None:
    tr(BOM + b"data: x\n\n", [event(b"data: x")])
    tr(BOM + b"\n\ndata: x\n\n", [event(b"data: x")])
    tr(BOM, [])


def test_a_byte_order_mark_anywhere_else_is_part_of_a_field() -> None:
    tr(BOM + BOM + b"data: x\n\n", [quiet(BOM + b"data: x")])
    tr(b"\n" + BOM + b"data: x\n\n", [quiet(BOM + b"data: x")])
    tr(b"data: x\n\n" + BOM + b"data: y\n\n", [event(b"data: x"), quiet(BOM + b"data: y")])
    tr(b"data: " + BOM + b"\n\n", [event(b"data: " + BOM)])


@pytest.mark.parametrize("start", [BOM[:1], BOM[:2], BOM[1:], b"\xef\xbb\xbe"])
def test_a_part_of_a_byte_order_mark_is_part_of_a_field(start: bytes) -> None:
    tr(start + b"data: x\n\n", [quiet(start + b"data: x")])


@pytest.mark.parametrize(
    "value",
    [b"\0", b"\xff\xfe", b"\xe2\x82", "é€𝄞".encode(), "\x85\u2028\u2029".encode(), b"\x0b\x0c\x1c\x1d\x1e", b"\t"],
)
def test_bytes_that_are_no_line_end_pass_as_they_are(value: bytes) -> None:
    tr(b"data: " + value + b"\n\n", [event(b"data: " + value)])


@pytest.mark.parametrize("tail", [b"data: y", b"data: y\n", b"id: 7\n", b"event: t\ndata: y\n: c", b"\xef", BOM[:2]])
def test_an_unfinished_block_at_the_end_is_dropped(tail: bytes) -> None:
    tr(b"data: x\n\n" + tail, [event(b"data: x")])
    tr(tail, [])


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"data: x\n", b"\n"], [[], [b"data: x"]]),
        ([b"data: x\n\n", b""], [[b"data: x"], []]),
        ([b"data: x\r", b"\r"], [[], [b"data: x"]]),
        ([b"data: x\r\n\r", b"\n"], [[b"data: x"], []]),
        ([b"data: x\r\r", b"\ndata: y\n\n"], [[b"data: x"], [b"data: y"]]),
        ([b"data: x\r", b"", b"\n", b"\n"], [[], [], [], [b"data: x"]]),
        ([b"data: x\n\r", b"\ndata: y\r\r"], [[b"data: x"], [b"data: y"]]),
        ([b"\r", b"data: x\n\n"], [[], [b"data: x"]]),
    ],
)
def test_a_block_is_complete_with_the_first_byte_that_ends_it(chunks: list[bytes], expected: list[list[bytes]]) -> None:
    parser = EventParser(NO_LIMIT)
    assert expected == [parser.feed(chunk) for chunk in chunks]


def test_pending_counts_the_bytes_of_the_unfinished_block() -> None:
    parser = EventParser(NO_LIMIT)
    seen = [parser.pending]
    for chunk in (b"data: x\r\n", b"\r\nda", b"ta", b"\n\n"):
        parser.feed(chunk)
        seen.append(parser.pending)
    assert [0, 8, 2, 4, 0] == seen


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"", False),
        (b"\n", False),
        (b"data: x\n\n", False),
        (b"data: x\n\n\n", False),
        (b": c", False),
        (b": c\n: d\n", False),
        (b"data: x\n\n: c\n", False),
        (b"data: x", True),
        (b": c\ndata", True),
        (b"data: x\n\ni", True),
        (b"id: 5\n", True),
    ],
)
def test_a_block_is_unfinished_when_more_than_comments_of_it_have_come(stream: bytes, expected: bool) -> None:
    for line_end in (b"\n", b"\r", b"\r\n"):
        parser = EventParser(NO_LIMIT)
        for chunk in pieces(stream.replace(b"\n", line_end), 1):
            parser.feed(chunk)
        assert expected == parser.unfinished


# The limit


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_block_of_exactly_the_limit_passes(size: int) -> None:
    for line_end in (b"\n", b"\r", b"\r\n"):
        parser = EventParser(9)
        stream = b"data: xyz\n\n".replace(b"\n", line_end)
        assert [b"data: xyz"] == [block for chunk in pieces(stream, size) for block in parser.feed(chunk)]
        assert not parser.too_large


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_blank_lines_are_no_part_of_the_block_that_is_measured(size: int) -> None:
    for line_end in (b"\n", b"\r", b"\r\n"):
        parser = EventParser(7)
        stream = b"\n\ndata: a\n\n\ndata: b\n\n\n\n".replace(b"\n", line_end)
        assert [b"data: a", b"data: b"] == [block for chunk in pieces(stream, size) for block in parser.feed(chunk)]
        assert not parser.too_large


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("stream", [b"a\n\ndata: wxyz\n\nb\n\n", b"a\n\ndata: wxyz", b"a\n\ndata:\n:::::\n\n"])
def test_blocks_before_one_over_the_limit_pass_and_none_after(stream: bytes, size: int) -> None:
    parser = EventParser(9)
    assert [b"a"] == [block for chunk in pieces(stream, size) for block in parser.feed(chunk)]
    assert parser.too_large
    assert [] == parser.feed(b"\n\ndata: y\n\n")
    assert 0 == parser.pending


# What is sent


def test_the_id_line_stands_last_in_a_frame() -> None:
    assert b"event: t\ndata: x\nid: 42-" + SUFFIX + b"\n\n" == wire.frame(b"event: t\ndata: x", 42, SUFFIX)


def test_a_frame_keeps_everything_else_byte_for_byte() -> None:
    [block] = blocks([b":c\r\nid: 7\r\ndata:\xff \0\r\nretry: 5\r\nOther\r\ndata:  x\r\n\r\n"])
    expected = b":c\ndata:\xff \0\nretry: 5\nOther\ndata:  x\nid: 1-" + SUFFIX + b"\n\n"
    assert expected == wire.frame(read_block(block).body, 1, SUFFIX)


@pytest.mark.parametrize(
    ("body", "dialect", "expected"),
    [
        (wire.HEARTBEAT, Dialect.BLOCK, b": heartbeat\n\n"),
        (wire.HEARTBEAT, Dialect.LINE, b": heartbeat\n"),
        (wire.WAITING, Dialect.BLOCK, b": waiting for upstream\n\n"),
        (wire.WAITING, Dialect.LINE, b": waiting for upstream\n"),
        (wire.retry(1000), Dialect.BLOCK, b"retry: 1000\n\n"),
        (wire.retry(1000), Dialect.LINE, b"retry: 1000\n"),
        (wire.retry(b"007"), Dialect.LINE, b"retry: 007\n"),
    ],
)
def test_a_notice_is_a_block_or_a_line(body: bytes, dialect: Dialect, expected: bytes) -> None:
    assert expected == wire.notice(body, dialect)


@pytest.mark.parametrize(
    ("stream", "as_block", "as_line"),
    [
        (b": ping\n\n", b": ping\n\n", b": ping\n"),
        (b": a\n: b\n\n", b": a\n: b\n\n", b": a\n: b\n"),
        (b"retry: 5\n\n", b"retry: 5\n\n", b"retry: 5\n"),
        (b"other: 1\n\n", b"other: 1\n\n", b"other: 1\n"),
        (b": ping\nid: 5\n\n", b": ping\n\n", b": ping\n"),
        (b"event: t\n\n", b"event: t\n\n", b"event: t\n\n"),
    ],
)
def test_only_a_block_with_an_event_field_is_ended_in_both_dialects(
    stream: bytes, as_block: bytes, as_line: bytes
) -> None:
    block = read_block(blocks([stream])[0])
    assert (as_block, as_line) == (wire.quiet(block, Dialect.BLOCK), wire.quiet(block, Dialect.LINE))


def test_priming_sets_the_last_event_id_and_dispatches_nothing() -> None:
    primed = interpret(wire.priming(7, SUFFIX, data=False))
    assert ([], "7-" + SUFFIX.decode()) == (primed.events, primed.last_event_id)


def test_priming_for_mcp_is_an_event_of_empty_data() -> None:
    token = "7-" + SUFFIX.decode()
    assert [("message", "", token)] == interpret(wire.priming(7, SUFFIX, data=True)).events


def test_a_signal_is_an_event_of_its_own_type_with_a_json_error_and_no_id() -> None:
    message = 'lost\n"3" events, é'
    seen = interpret(wire.frame(b"data: x", 1, SUFFIX) + wire.signal("gap", message, lost=3).data)
    token = "1-" + SUFFIX.decode()
    assert ("sse-sidecar", token) == (seen.events[1].type, seen.events[1].last_event_id)
    assert {"error": {"code": "gap", "message": message, "lost": 3}} == json.loads(seen.events[1].data)


def test_a_chunk_is_its_size_in_hex_and_its_bytes() -> None:
    assert b"1a\r\nabcdefghijklmnopqrstuvwxyz\r\n" == wire.chunk(b"abcdefghijklmnopqrstuvwxyz")


# Any bytes in any chunking. The strategy keeps to the alphabet of the format, or nothing would ever be an event.

_NAMES = [b"data", b"id", b"event", b"retry", b"", b"other", b"idx", b"event\0", BOM + b"data"]
_COLONS = [b": ", b":", b"", b":  "]
_VALUES = [b"", b"x", b"7", b"042", b"-1", b"a:b", b"a\0b", BOM, "é€𝄞".encode(), b"\xff", b"\xe2\x82", b"\xf0\x9f "]
_USUAL = [b"data: x", b"data: y", b"data", b"event: t", b"id: 5", b"id", b"retry: 7", b": c"]
_ODD = [b"".join(parts) for parts in product(_NAMES, _COLONS, _VALUES)]
_ENDS = [b"\n", b"\r\n", b"\r"]
_SCRAPS = [b"data", b"id", b"event", b"retry", b":", b" ", b"\0", BOM, BOM[:1], BOM[1:], b"\xff", b"\x85", b"\x0b"]

LINES = [line + end for line, end in product(40 * _USUAL + _ODD, _ENDS)]
PARTS = LINES + 500 * _ENDS + 20 * _SCRAPS  # two lines, a blank line; now and then what is no line

lines = st.sampled_from(LINES)
parts = st.sampled_from(PARTS)
streams = st.builds(
    lambda start, rest: start + b"".join(rest),
    st.one_of(st.sampled_from([b"", BOM, BOM + BOM, BOM[:2]]), st.binary(max_size=6)),
    st.one_of(st.lists(parts, max_size=10), st.lists(parts, min_size=10, max_size=40)),
)


class Chunked(NamedTuple):
    """A stream, and the chunks in which it is fed; some of them may be empty."""

    stream: bytes
    chunks: list[bytes]


def cut(stream: bytes, at: Sequence[int]) -> Chunked:
    points = [0, *sorted(point % (len(stream) + 1) for point in at), len(stream)]
    return Chunked(stream, [stream[start:end] for start, end in pairwise(points)])


def chunked(stream: st.SearchStrategy[bytes] = streams) -> st.SearchStrategy[Chunked]:
    cuts = st.lists(st.integers(0, 1000), max_size=20)
    byte_by_byte = stream.map(lambda whole: Chunked(whole, pieces(whole, 1)))
    return st.one_of(st.builds(cut, stream, cuts), byte_by_byte)


def ended(stream: bytes) -> bytes:
    """`stream` and a blank line, with which no block of it is left unfinished."""
    return stream + b"\n\n"


def forwarded(chunks: Iterable[bytes], dialect: Dialect) -> list[tuple[Kind, bytes]]:
    """What a client is sent of a stream, block by block, as the producer has it.

    Every answer begins with a `retry:`, and a block of which nothing is left without its id is not sent on.
    """
    sent = [(Kind.QUIET, wire.notice(wire.retry(1000), dialect))]
    seq = 0
    for block in map(read_block, blocks(chunks)):
        if block.kind is Kind.EVENT:
            seq += 1
            sent.append((block.kind, wire.frame(block.body, seq, SUFFIX)))
        elif block.body:
            sent.append((block.kind, wire.quiet(block, dialect)))
    return sent


def joined(sent: list[tuple[Kind, bytes]]) -> bytes:
    return b"".join(data for _, data in sent)


@any_stream
@given(chunked())
def test_the_blocks_do_not_depend_on_the_chunking(source: Chunked) -> None:
    assert blocks([source.stream]) == blocks(source.chunks)


@any_stream
@given(chunked(), st.sampled_from(Dialect))
@example(cut(b"data: x\n\n" + BOM + b"data: y\n\n", ()), Dialect.LINE)
@example(cut(b"event: t\n\ndata: x\n\n", ()), Dialect.LINE)
def test_what_is_sent_on_dispatches_as_the_original_does_under_our_ids(source: Chunked, dialect: Dialect) -> None:
    original = interpret(source.stream).events
    expected = [(it.type, it.data, f"{seq}-{SUFFIX.decode()}") for seq, it in enumerate(original, 1)]
    assert expected == interpret(joined(forwarded(source.chunks, dialect))).events


@any_stream
@given(chunked(streams.map(ended)))
def test_nothing_but_ids_line_ends_and_blank_lines_is_changed(source: Chunked) -> None:
    original = LINE_END.split(source.stream.removeprefix(BOM))
    kept = [line for line in original if line and line.partition(b":")[0] != b"id"]
    sent = joined(forwarded(source.chunks, Dialect.BLOCK)).split(b"\n")[1:]
    assert kept == [line for line in sent if line and not line.endswith(SUFFIX)]


def decoded(stream: bytes, decoder: Any) -> list[tuple[str, str]]:
    seen = [decoder.decode(line) for line in stream.decode(errors="replace").split("\n")[:-1]]
    return [(it.event or "message", it.data) for it in seen if it is not None]


@any_stream
@given(chunked())
@example(cut(b"data: x\n\nid: 5\n\n: c\n\nretry: 7\n\ndata: y\n\n", ()))
def test_decoders_that_dispatch_at_any_blank_line_see_no_event_more_in_the_line_dialect(source: Chunked) -> None:
    # A block with an event field is sent as the upstream sent it, and is an event to them with or without us.
    sent = joined([part for part in forwarded(source.chunks, Dialect.LINE) if part[0] is not Kind.FIELDS])
    expected = [(it.type, it.data) for it in interpret(source.stream).events]
    assert expected == decoded(sent, openai._streaming.SSEDecoder())
    assert expected == decoded(sent, httpx_sse._decoders.SSEDecoder())


def test_a_notice_between_events_dispatches_nothing_in_its_dialect() -> None:
    first, second = wire.frame(b"data: x", 1, SUFFIX), wire.frame(b"data: y", 2, SUFFIX)
    for body in (wire.HEARTBEAT, wire.WAITING, wire.retry(1000)):
        for dialect in Dialect:
            sent = first + wire.notice(body, dialect) + second
            assert ["x", "y"] == [it.data for it in interpret(sent).events]
        sent = first + wire.notice(body, Dialect.LINE) + second
        assert [("message", "x"), ("message", "y")] == decoded(sent, openai._streaming.SSEDecoder())
        assert [("message", "x"), ("message", "y")] == decoded(sent, httpx_sse._decoders.SSEDecoder())


@any_stream
@given(chunked())
def test_the_upstreams_last_id_is_the_last_event_id_of_its_last_complete_block(source: Chunked) -> None:
    last = b""
    for block in map(read_block, blocks(source.chunks)):
        last = last if block.upstream_id is None else block.upstream_id
    assert interpret(source.stream).last_event_id == last.decode(errors="replace")


@any_stream
@given(chunked(streams.map(ended)))
def test_the_upstreams_last_retry_is_its_reconnection_time(source: Chunked) -> None:
    last = None
    for block in map(read_block, blocks(source.chunks)):
        last = last if block.retry is None else int(block.retry)
    assert interpret(source.stream).retry == last


@any_stream
@given(streams.map(ended), st.lists(lines, max_size=4), st.sampled_from([b"", b"data: y", b":", b"\xef"]), st.data())
def test_an_unfinished_event_at_the_end_is_never_emitted(
    complete: bytes, tail: list[bytes], rest: bytes, data: st.DataObject
) -> None:
    unfinished = b"data: y\n" + b"".join(line for line in tail if line.strip()) + rest
    source = data.draw(chunked(st.just(complete + unfinished)))
    assert blocks([complete]) == blocks(source.chunks)


@any_stream
@given(chunked(), st.integers(3, 40))
def test_the_limit_holds_for_every_block_however_it_is_chunked(source: Chunked, limit: int) -> None:
    every = blocks([source.stream])
    unfinished = blocks([ended(source.stream)])[len(every) :]
    parser = EventParser(limit)
    emitted = []
    for chunk in source.chunks:
        emitted += parser.feed(chunk)
        assert parser.pending <= limit + 2  # the line ends at the edges of a block that is not yet known to go on
    assert list(takewhile(lambda block: len(block) <= limit, every)) == emitted
    assert any(len(block) > limit for block in every + unfinished) == parser.too_large


class _Counted(bytearray):
    """Counts the bytes that are searched or copied."""

    touched = 0

    def rfind(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        self.touched += len(self) - start
        return super().rfind(sub, start)

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        self.touched += len(self) - start
        return super().find(sub, start)

    def strip(self, chars: Any = None) -> bytearray:
        self.touched += len(self)
        return super().strip(chars)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.touched += len(found) if isinstance(key, slice) else 1
        return found

    def __bytes__(self) -> bytes:
        self.touched += len(self)
        return bytes(memoryview(self))


@pytest.mark.parametrize("line", [b"data: " + 200 * b"x" + b"\n", b"data: x\n", b"xxxx"])
def test_a_huge_event_in_tiny_chunks_takes_work_linear_in_its_size(line: bytes) -> None:
    stream = b"data: " + line * (20_000 // len(line)) + b"\n\n"
    parser = EventParser(NO_LIMIT)
    assert [] == parser.feed(stream[:4])
    counted = parser._pending = _Counted(stream[:4])
    found = [block for chunk in pieces(stream[4:], 4) for block in parser.feed(chunk)]
    assert [stream.strip(b"\n")] == found
    assert len(stream) <= counted.touched <= 6 * len(stream)


def test_many_small_events_in_one_chunk_are_cut_at_every_blank_line() -> None:
    bodies = [b"data: %d" % number for number in range(5000)]
    stream = b"".join(body + b"\n\n" for body in bodies)
    assert bodies == blocks([stream])
    assert bodies == blocks(cut(stream, list(accumulate([997] * 50))).chunks)
