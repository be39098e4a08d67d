"""The short ways that most events take come to what the long ways come to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_sidecar import wire
from sse_sidecar.wire import Block, Dialect, EventParser, Kind, is_plain, read_block
from tests.reference import interpret

BOM = b"\xef\xbb\xbf"
SUFFIX = b"g" + 22 * b"A"
NO_LIMIT = 1 << 30

any_stream = settings(max_examples=250, deadline=None)

LINES = [
    *(b"data: x", b"data:y", b"data", b"data:", b"event: t", b"event:", b"event", b"eventx: 1", b"datax: 1"),
    *(b"id: 5", b"id", b"id:", b"idx: 1", b" id: 5", b"retry: 7", b"retry", b"retryx", b": c", b":", b"other: id"),
    *(b"data: \nid: 6", b"data: x\nretry: 8", b"data: id\ndata: retry", b"\xff", BOM + b"data: x"),
]
usual = st.sampled_from([b"data: x", b"event: t\ndata: y", b"data: a\ndata: b", b"data: " + 30 * b"z"])
odd = st.lists(st.sampled_from(LINES), min_size=1, max_size=4).map(b"\n".join)
blocks = st.one_of(usual, usual, odd)
ends = st.sampled_from([b"\n\n"] * 20 + [b"\n\n\n", b"\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r", b""])


def _joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(block + end for block, end in parts)


whole_blocks = st.lists(st.tuples(blocks, ends), max_size=5).map(_joined)
scraps = st.sampled_from([b"", b"\n", b"\n\n", b"\r", b"\r\n", b"da", b"data: x\n", BOM, BOM[:2], b"\n\ndata: x\n\n"])
chunks = st.lists(st.one_of(whole_blocks, whole_blocks, scraps), max_size=8)


class LongWay(EventParser):
    """Never takes the short way: `feed` without its first lines."""

    __slots__ = ()

    def feed(self, chunk: bytes) -> list[bytes]:
        if self.too_large or not (chunk := self._lf_only(chunk)):
            return []
        if self._at_start:
            chunk = bytes(self._pending or b"") + chunk
            if len(chunk) < len(BOM) and BOM.startswith(chunk):
                self._pending = bytearray(chunk)
                return []
            self._at_start, self._pending = False, None
            chunk = chunk.removeprefix(BOM)
        return self._bounded(self._cut(chunk))


def said(parser: EventParser, chunk: bytes) -> tuple[list[bytes], int, bool, bool]:
    """What a parser gives for a chunk, and what it says of itself afterwards."""
    return parser.feed(chunk), parser.pending, parser.unfinished, parser.too_large


@any_stream
@given(chunks, st.sampled_from([NO_LIMIT, 40, 20, 8, 3]))
@example([b"data: x\n\n", b"\ndata: y\n\n"], NO_LIMIT)
@example([b"data: x\n\n", b"\n\n", b"\n\n\n\n"], NO_LIMIT)
@example([b"data: x\n\n", b"data: y\n\n\ndata: z\n\n"], NO_LIMIT)
@example([b"data: x\r\n\r", b"\ndata: y\n\n"], NO_LIMIT)
@example([b"x\n\n", b"data: x\n\na\n\n"], 8)
@example([b"a\n\n", b"data: 9\n\n", b"data: 10\n\n"], 7)
def test_a_chunk_of_whole_blocks_is_cut_as_any_other(fed: list[bytes], limit: int) -> None:
    short, long = EventParser(limit), LongWay(limit)
    for chunk in fed:
        assert said(long, chunk) == said(short, chunk)


@any_stream
@given(chunks)
def test_chunks_of_whole_blocks_dispatch_what_the_standard_says(fed: list[bytes]) -> None:
    parser = EventParser(NO_LIMIT)
    read = b":\n\n" + b"".join(block + b"\n\n" for chunk in fed for block in parser.feed(chunk))
    original = interpret(b"".join(fed))

    assert original.events == interpret(read).events


def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or these tests would say nothing."""
    parser = EventParser(NO_LIMIT)
    parser.feed(b": first\n\n")
    monkeypatch.delattr(EventParser, "_cut")

    assert [b"data: x", b"event: t\ndata: y"] == parser.feed(b"data: x\n\nevent: t\ndata: y\n\n")
    assert (0, False, False) == (parser.pending, parser.unfinished, parser.too_large)


# Frames


def framed(read: Sequence[Block], first: int) -> list[bytes]:
    return [wire.frame(block.body, seq, SUFFIX) for seq, block in enumerate(read, first)]


@any_stream
@given(chunks, st.integers(1, 1 << 40))
@example([b"data: x\n\nevent: t\ndata: y\n\n"], 9)
@example([b"data: x\n\n: c\n\ndata: y\n\n"], 1)
def test_plain_frames_are_what_each_block_is_read_and_framed_to(fed: list[bytes], first: int) -> None:
    parser = EventParser(NO_LIMIT)
    for chunk in fed:
        given_blocks = parser.feed(chunk)
        made = wire.plain_frames(given_blocks, first, SUFFIX)
        if made is not None:
            read = [_read_by_lines(block) for block in given_blocks]

            assert {Kind.EVENT} >= {block.kind for block in read}
            assert {(None, None)} >= {(block.upstream_id, block.retry) for block in read}
            assert framed(read, first) == made


@any_stream
@given(odd)
def test_a_plain_block_is_read_as_any_other(lines: bytes) -> None:
    [block] = LongWay(NO_LIMIT).feed(lines + b"\n\n") or [b": none"]

    assert _read_by_lines(block) == read_block(block)
    assert (not is_plain(block)) or Block(Kind.EVENT, block) == _read_by_lines(block)


def _read_by_lines(block: bytes) -> Block:
    """The long way."""
    return wire._read_lines(block)


@pytest.mark.parametrize("block", [b"data: x", b"data:", b"event: t\ndata: x", b"data: x\n: c\nother: 1"])
def test_what_most_services_send_is_plain(block: bytes) -> None:
    assert [wire.frame(block, 3, SUFFIX)] == wire.plain_frames([block], 3, SUFFIX)


@pytest.mark.parametrize(
    "block", [b": c", b"event: t", b"data: x\nid: 5", b"id: 5\ndata: x", b"data: x\nretry: 7", b"data: x\nid", b"x: 1"]
)
def test_one_block_that_is_not_plain_sends_all_the_long_way(block: bytes) -> None:
    assert None is wire.plain_frames([b"data: x", block, b"data: y"], 1, SUFFIX)


# Forms

parts_of_a_body = st.lists(
    st.one_of(
        st.binary(max_size=40).map(lambda body: wire.frame(b"data: " + body, 1, SUFFIX)),
        st.builds(Block, st.sampled_from([Kind.QUIET, Kind.FIELDS]), st.binary(min_size=1, max_size=40)),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(parts_of_a_body)
@example([b"x"])
@example([b"x" * 65536])
@example([Block(Kind.QUIET, b": c")])
@example([Block(Kind.FIELDS, b"event: t")])
def test_a_form_joins_what_is_made_for_its_dialect_and_frames_it_once(parts: list[bytes | Block]) -> None:
    for dialect in Dialect:
        body = b""
        for part in parts:
            if isinstance(part, bytes):
                body += part
            else:
                body += part.body + (b"\n" if part.kind is Kind.QUIET and dialect is Dialect.LINE else b"\n\n")

        assert body == wire.form(dialect, chunked=False).make(parts)
        assert wire.chunk(body) == wire.form(dialect, chunked=True).make(parts)


def test_there_is_one_form_for_each_way_to_read() -> None:
    ways = [(dialect, chunked) for dialect in Dialect for chunked in (False, True)]
    forms = [wire.form(dialect, chunked=chunked) for dialect, chunked in ways]

    assert 4 == len(set(forms))
    assert ways == [(form.dialect, form.chunked) for form in forms]
    assert all(
        form is wire.form(dialect, chunked=chunked) for form, (dialect, chunked) in zip(forms, ways, strict=True)
    )
