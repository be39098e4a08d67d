"""The log of a stream against a naive list of its events, and what it costs in memory."""

from __future__ import annotations

import copy
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sse_sidecar import history
from sse_sidecar.history import SEGMENT_BYTES, Bounds, Found, Log, Position, find

AMPLE = Bounds(events=1_000_000, size=1 << 30, age=3600.0)
KIB = 1024


def frame(seq: int, size: int = 0) -> bytes:
    """An event's bytes, from which it can be told, of `size` or as few as it takes."""
    return (b"<%d>" % seq).ljust(size, b".")


def frames(first: int, last: int, size: int = 0) -> list[bytes]:
    return [frame(seq, size) for seq in range(first, last + 1)]


def filled(last: int, bounds: Bounds = AMPLE, *, base: int = 0, size: int = 0, every: float = 0.0) -> Log:
    """A log of events after `base`, appended one at a time, the first at time 0."""
    log = Log(bounds, base)
    for seq in range(base + 1, last + 1):
        log.append([frame(seq, size)], (seq - base - 1) * every)
    return log


def read_to_end(log: Log, seq: int) -> list[bytes]:
    """The pieces in which a reader after `seq` is given the rest."""
    pieces: list[bytes] = []
    while True:
        piece, last = log.read_after(seq)
        if not piece:
            assert log.last == last
            return pieces
        assert last > seq
        pieces.append(piece)
        seq = last


# What a resume finds


@pytest.mark.parametrize(
    ("base", "first", "last", "seq", "expected"),
    [
        # A log that holds everything, from 1 to 5.
        (0, 1, 5, 0, Position(Found.HELD, 0)),
        (0, 1, 5, 1, Position(Found.HELD, 1)),
        (0, 1, 5, 4, Position(Found.HELD, 4)),
        (0, 1, 5, 5, Position(Found.AT_END, 5)),
        (0, 1, 5, 6, Position(Found.BEYOND, 5)),
        (0, 1, 5, 10**14, Position(Found.BEYOND, 5)),
        # Of which 4 and 5 are held.
        (0, 4, 5, 0, Position(Found.GAP, 3, lost=3)),
        (0, 4, 5, 1, Position(Found.GAP, 3, lost=2)),
        (0, 4, 5, 2, Position(Found.GAP, 3, lost=1)),
        (0, 4, 5, 3, Position(Found.HELD, 3)),
        (0, 4, 5, 4, Position(Found.HELD, 4)),
        (0, 4, 5, 5, Position(Found.AT_END, 5)),
        (0, 4, 5, 6, Position(Found.BEYOND, 5)),
        # Of which nothing is held any more.
        (0, 6, 5, 0, Position(Found.GAP, 5, lost=5)),
        (0, 6, 5, 4, Position(Found.GAP, 5, lost=1)),
        (0, 6, 5, 5, Position(Found.AT_END, 5)),
        (0, 6, 5, 6, Position(Found.BEYOND, 5)),
        # A log without an event yet.
        (0, 1, 0, 0, Position(Found.AT_END, 0)),
        (0, 1, 0, 1, Position(Found.BEYOND, 0)),
        # A log that goes on after 10: 0 asks for its own start, and so does what was before it.
        (10, 11, 15, 0, Position(Found.HELD, 10)),
        (10, 11, 15, 9, Position(Found.HELD, 10)),
        (10, 11, 15, 10, Position(Found.HELD, 10)),
        (10, 11, 15, 15, Position(Found.AT_END, 15)),
        (10, 14, 15, 0, Position(Found.GAP, 13, lost=3)),
        (10, 14, 15, 11, Position(Found.GAP, 13, lost=2)),
        (10, 14, 15, 13, Position(Found.HELD, 13)),
        (10, 16, 15, 0, Position(Found.GAP, 15, lost=5)),
        (10, 11, 10, 0, Position(Found.AT_END, 10)),
        (10, 11, 10, 11, Position(Found.BEYOND, 10)),
    ],
)
def test_a_resume_finds_what_comes_after_its_seq(
    base: int, first: int, last: int, seq: int, expected: Position
) -> None:
    assert expected == find(base, first, last, seq)


def test_a_log_finds_by_what_it_holds() -> None:
    log = filled(15, base=10)
    log.drop_before(13)
    assert Position(Found.GAP, 12, lost=2) == log.find(0)
    assert Position(Found.GAP, 12, lost=1) == log.find(11)
    assert Position(Found.HELD, 12) == log.find(12)
    assert Position(Found.AT_END, 15) == log.find(15)
    assert Position(Found.BEYOND, 15) == log.find(16)


# Append and read


def test_an_empty_log_has_nothing_to_read_and_costs_nothing() -> None:
    log = Log(AMPLE, 7)
    assert (8, 7, 0) == (log.first, log.last, log.size)
    assert (b"", 7) == log.read_after(7)


def test_events_are_read_from_any_seq_on() -> None:
    log = Log(AMPLE)
    log.append(frames(1, 3), 0.0)
    log.append(frames(4, 4), 0.0)
    assert (b"<1><2><3><4>", 4) == log.read_after(0)
    assert (b"<2><3><4>", 4) == log.read_after(1)
    assert (b"<4>", 4) == log.read_after(3)
    assert (b"", 4) == log.read_after(4)


def test_numbers_go_on_from_the_base() -> None:
    log = filled(12, base=10)
    assert (11, 12) == (log.first, log.last)
    assert (b"<11><12>", 12) == log.read_after(10)
    assert (b"<12>", 12) == log.read_after(11)


def test_appending_nothing_changes_nothing() -> None:
    log = Log(AMPLE)
    log.append([], 0.0)
    assert (0, 0) == (log.last, log.size)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_a_read_is_about_one_segment_and_reads_join_without_a_hole(at_once: int) -> None:
    log = Log(Bounds(events=10_000, size=16 * KIB, age=3600.0))  # segments of 1 KiB
    for first in range(1, 1001, at_once):
        log.append(frames(first, min(first + at_once - 1, 1000), 20), 1000.0)
    pieces = read_to_end(log, 0)
    assert b"".join(frames(1, 1000, 20)) == b"".join(pieces)
    assert 9 < len(pieces) < 21
    assert max(map(len, pieces)) <= 2 * KIB
    for seq in (1, 49, 50, 51, 52, 500, 998):
        assert b"".join(frames(seq + 1, 1000, 20)) == b"".join(read_to_end(log, seq))


def test_a_frame_larger_than_a_segment_is_read_whole() -> None:
    log = Log(Bounds(events=100, size=16 * KIB, age=3600.0))
    log.append([frame(1, 10), frame(2, 5 * KIB), frame(3, 10)], 0.0)
    pieces = read_to_end(log, 0)
    assert frame(1, 10) + frame(2, 5 * KIB) + frame(3, 10) == b"".join(pieces)
    assert [True] == [frame(2, 5 * KIB) in piece for piece in pieces if b"<2>" in piece]


def test_no_read_is_much_larger_than_a_write_to_a_socket() -> None:
    log = filled(5000, size=140)
    assert max(map(len, read_to_end(log, 0))) < SEGMENT_BYTES + 140


def test_what_was_read_does_not_change_when_more_is_appended() -> None:
    log = filled(2)
    before, _ = log.read_after(0)
    log.append([frame(3)], 0.0)
    assert b"<1><2>" == before


def test_one_event_is_found_by_its_number() -> None:
    log = filled(20, Bounds(events=100, size=2000, age=3600.0), base=7, size=50)  # segments of a few events
    assert frames(8, 20, 50) == [log.frame(seq) for seq in range(8, 21)]


def test_events_are_found_by_how_they_end() -> None:
    log = Log(Bounds(events=100, size=160, age=3600.0))  # segments of 10 bytes
    for data in ([b"1-x;", b"2-y;"], [b"3-z;-x;4", b"4-y;"], [b"5-x;"]):
        log.append(data, 0.0)
    found = [log.ending_with(tail) for tail in (b"1-x;", b"-x;", b"-y;", b"5-x;", b";", b"-x;4", b"z;", b"-w;", b"-x")]
    assert [[1], [1, 5], [2, 4], [5], [1, 2, 4, 5], [3], [], [], []] == found
    log.drop_before(3)
    assert [[5], [4], []] == [log.ending_with(tail) for tail in (b"-x;", b"-y;", b"1-x;")]


def test_an_event_is_found_by_how_it_ends_though_one_before_it_is_no_longer_held() -> None:
    log = Log(AMPLE)  # one segment
    log.append([b"1-x;", b"2-y;", b"3-x;"], 0.0)
    log.drop_before(2)
    assert [3] == log.ending_with(b"-x;")


# Trim


def test_a_log_within_its_bounds_keeps_everything() -> None:
    log = filled(5, Bounds(events=5, size=KIB, age=10.0))
    assert log.trim(10.0)
    assert (1, 5) == (log.first, log.last)


def test_the_oldest_events_go_when_there_are_too_many() -> None:
    log = filled(8, Bounds(events=5, size=1 << 20, age=10.0))
    assert log.trim(0.0)
    assert (4, 8) == (log.first, log.last)
    assert Position(Found.GAP, 3, lost=3) == log.find(0)
    assert (b"<4><5><6><7><8>", 8) == log.read_after(3)


def test_a_trim_by_size_keeps_nearly_as_much_as_the_bounds_allow() -> None:
    bounds = Bounds(events=100_000, size=64 * KIB, age=3600.0)
    log = Log(bounds)
    for seq in range(1, 3001):
        log.append([frame(seq, 100)], 0.0)
        assert log.trim(0.0)
        assert log.size <= bounds.size
    segment = 4 * KIB + 100 + history._SEGMENT_OVERHEAD + 4 * 42
    assert bounds.size - segment <= log.size
    assert b"".join(frames(log.first, 3000, 100)) == b"".join(read_to_end(log, log.first - 1))


@pytest.mark.parametrize("events", [1, 2])
def test_a_log_of_exactly_its_size_keeps_everything(events: int) -> None:
    log = filled(events, Bounds(events=10, size=1000, age=10.0), size=1000 // events - 4 - history._SEGMENT_OVERHEAD)
    assert 1000 == log.size
    assert log.trim(0.0)
    assert 1 == log.first


def test_a_frame_that_alone_is_over_the_bounds_is_not_held() -> None:
    log = Log(Bounds(events=10, size=KIB, age=10.0))
    log.append([frame(1, 2 * KIB)], 0.0)
    assert log.trim(0.0)
    assert (2, 1, 0) == (log.first, log.last, log.size)


def test_events_go_when_they_are_too_old() -> None:
    log = filled(10, Bounds(events=100, size=1 << 20, age=16.0), every=1.0)  # the first at 0, the last at 9
    for now, first in [(16.0, 1), (17.5, 3), (20.5, 6), (25.0, 10), (25.5, 11)]:
        assert log.trim(now)
        assert first == log.first
    assert 0 == log.size


def test_events_of_one_segment_age_together_and_soon() -> None:
    log = filled(11, Bounds(events=100, size=1 << 20, age=160.0), every=1.0)  # the first at 0, the last at 10
    for now, first in [(164.5, 1), (168.5, 1), (169.5, 11), (171.0, 12)]:
        assert log.trim(now)
        assert first == log.first


def test_a_log_that_was_emptied_by_age_goes_on() -> None:
    log = filled(3, Bounds(events=100, size=KIB, age=10.0))
    log.trim(11.0)
    log.append(frames(4, 5), 11.0)
    assert (4, 5) == (log.first, log.last)
    assert (b"<4><5>", 5) == log.read_after(3)
    assert Position(Found.GAP, 3, lost=3) == log.find(0)


@pytest.mark.parametrize(
    ("bounds", "now"),
    [
        (Bounds(events=2, size=1 << 20, age=10.0), 0.0),
        (Bounds(events=100, size=1, age=10.0), 0.0),
        (Bounds(events=100, size=1 << 20, age=10.0), 11.0),
    ],
    ids=["events", "size", "age"],
)
def test_what_a_reader_has_yet_to_be_sent_stays(bounds: Bounds, now: float) -> None:
    log = filled(8, bounds)
    assert not log.trim(now, keep_after=3)
    assert (4, 8) == (log.first, log.last)
    assert b"<4><5><6><7><8>" == b"".join(read_to_end(log, 3))


def test_what_the_slowest_reader_has_passed_goes_only_if_it_must() -> None:
    log = filled(8, Bounds(events=5, size=1 << 20, age=10.0))
    assert log.trim(0.0, keep_after=8)
    assert (4, 8) == (log.first, log.last)


@pytest.mark.parametrize("keep_after", [0, 1, 2, 3, 4, 5])
def test_a_log_within_its_bounds_is_so_whatever_a_reader_lacks(keep_after: int) -> None:
    log = filled(5)
    log.drop_before(4)
    assert log.trim(0.0, keep_after=keep_after)
    assert (4, 5) == (log.first, log.last)


# Drop, and what is counted


def test_what_is_dropped_is_no_longer_found() -> None:
    log = filled(5)
    log.drop_before(3)
    assert 3 == log.first
    assert (b"<3><4><5>", 5) == log.read_after(2)
    log.drop_before(2)
    assert 3 == log.first


def test_the_oldest_events_go_by_what_frees_memory_and_only_if_all_of_it_may() -> None:
    log = Log(Bounds(events=100, size=160, age=3600.0))  # segments of 10 bytes: of 1 and 2, of 3 and 4, and of 5
    for first in (1, 3, 5):
        log.append(frames(first, min(first + 1, 5), 6), 0.0)
    assert 0 == log.drop_oldest(1)
    assert 1 == log.first
    before = log.size
    freed = log.drop_oldest(2)
    assert (3, before - freed) == (log.first, log.size)
    assert freed >= 12
    assert 0 == log.drop_oldest(3)
    log.drop_before(4)
    assert freed == log.drop_oldest(100)
    assert 5 == log.first
    assert log.drop_oldest(5) > 0
    assert (6, 0, 0) == (log.first, log.size, log.drop_oldest(100))


def test_no_more_can_be_dropped_than_there_is() -> None:
    log = filled(5)
    log.drop_before(100)
    assert (6, 5, 0) == (log.first, log.last, log.size)
    assert (b"", 5) == log.read_after(5)
    log.append([frame(6)], 0.0)
    assert (b"<6>", 6) == log.read_after(5)


@pytest.mark.parametrize("size", [100, KIB, 5 * KIB])
def test_the_size_is_of_all_bytes_held_and_returns_to_nothing(size: int) -> None:
    log = filled(50, Bounds(events=1000, size=16 * KIB, age=3600.0), size=size)
    before = log.size
    assert 50 * size <= before
    log.drop_before(26)
    assert 25 * size <= log.size < before
    log.drop_before(51)
    assert 0 == log.size


def test_a_log_says_what_it_holds() -> None:
    log = filled(3)
    assert f"<Log 1..3 {log.size} bytes>" == repr(log)


# Any order of things, against a list


class Held(NamedTuple):
    seq: int
    data: bytes
    at: float


class LogAndList(RuleBasedStateMachine):
    """The list holds every event there ever was; only the log forgets."""

    @initialize(
        base=st.sampled_from([0, 0, 7]),
        bounds=st.builds(
            Bounds,
            events=st.sampled_from([1, 5, 20, 1000]),
            size=st.sampled_from([1, 600, 2000, 8000, 100_000]),
            age=st.sampled_from([0.5, 8.0, 100.0]),
        ),
    )
    def begin(self, base: int, bounds: Bounds) -> None:
        self.now = 100.0
        self.base = base
        self.bounds = bounds
        self.log = Log(bounds, base)
        self.every: list[Held] = []

    @rule(sizes=st.lists(st.sampled_from([0, 0, 10, 50, 300, 1000]), min_size=1, max_size=12))
    def append(self, sizes: list[int]) -> None:
        first = self.log.last + 1
        new = [Held(seq, frame(seq, size), self.now) for seq, size in enumerate(sizes, first)]
        self.log.append([it.data for it in new], self.now)
        self.every += new
        assert self.base + len(self.every) == self.log.last

    @rule(share=st.sampled_from([0.01, 0.03, 0.1, 0.9, 0.98, 1.0, 1.5]))
    def wait(self, share: float) -> None:
        """A part of the time that events are kept for; a segment takes what comes within a 16th of it."""
        self.now += share * self.bounds.age

    @rule(back=st.integers(0, 30))
    def drop_before(self, back: int) -> None:
        seq = max(self.log.last + 2 - back, 0)
        expected = min(max(self.log.first, seq), self.log.last + 1)
        self.log.drop_before(seq)
        assert expected == self.log.first

    @rule()
    def trim(self) -> None:
        before = self.log.first
        size = self.log.size
        assert self.log.trim(self.now)
        assert self.log.size <= self.bounds.size
        assert self.log.last - self.log.first + 1 <= self.bounds.events
        self._check_age(before, may_go_for_size=size > self.bounds.size)

    def _check_age(self, before: int, *, may_go_for_size: bool) -> None:
        """Nothing is held that is too old by more than the age of a segment, and nothing has gone too soon."""
        oldest = self.now - self.bounds.age
        assert all(it.at >= oldest - self.bounds.age / 16 for it in self._held())
        gone = self.every[before - self.base - 1 : self.log.first - self.base - 1]
        by_count = self.log.last - self.bounds.events
        assert may_go_for_size or all(it.at < oldest or it.seq <= by_count for it in gone)

    @rule(back=st.integers(0, 30))
    def trim_for_a_reader(self, back: int) -> None:
        cursor = max(self.log.last - back, self.base)
        before = self.log.first
        free = copy.deepcopy(self.log)
        free.trim(self.now)
        within = self.log.trim(self.now, keep_after=cursor)
        assert min(free.first, max(before, cursor + 1)) == self.log.first
        assert (self.log.first == free.first) == within

    @rule(back=st.integers(0, 40))
    def read(self, back: int) -> None:
        cursor = max(self.log.last - back, self.log.first - 1)
        assert b"".join(it.data for it in self.every if it.seq > cursor) == b"".join(read_to_end(self.log, cursor))

    @rule(back=st.integers(0, 40))
    def frame(self, back: int) -> None:
        held = self._held()
        if held:
            event = held[-1 - back % len(held)]
            assert event.data == self.log.frame(event.seq)

    @rule(seq=st.integers(0, 100), from_end=st.booleans())
    def find(self, seq: int, from_end: bool) -> None:
        seq = max(self.log.last + 1 - seq, 0) if from_end else seq
        asked_for = [it.seq for it in self.every if it.seq > seq]
        lost = sum(it < self.log.first for it in asked_for)
        found = self.log.find(seq)
        if seq > self.log.last:
            assert Found.BEYOND == found.found
            return
        expected = Found.GAP if lost else Found.HELD if asked_for else Found.AT_END
        assert (expected, lost) == (found.found, found.lost)
        still_held = [it.data for it in self.every if it.seq in asked_for and it.seq >= self.log.first]
        assert b"".join(still_held) == b"".join(read_to_end(self.log, found.cursor))

    @precondition(lambda self: self.log.last > self.base)
    @rule()
    def drop_everything(self) -> None:
        self.log.drop_before(self.log.last + 1)
        assert 0 == self.log.size

    @invariant()
    def what_is_held_is_counted(self) -> None:
        held = self._held()
        assert sum(len(it.data) for it in held) <= self.log.size
        assert bool(held) == bool(self.log.size)

    def _held(self) -> list[Held]:
        return self.every[self.log.first - self.base - 1 :]


TestLogAndList = LogAndList.TestCase
TestLogAndList.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# Memory


class Measured:
    """Bytes allocated since the measurement began."""

    def __init__(self) -> None:
        gc.collect()
        self._before = tracemalloc.get_traced_memory()[0]

    def now(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before


@contextmanager
def measured() -> Iterator[Measured]:
    tracemalloc.start()
    try:
        yield Measured()
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_events_cost_little_more_than_their_bytes() -> None:
    with measured() as memory:
        log = Log(AMPLE)
        for first in range(1, 100_001, 8):
            log.append(frames(first, first + 7, 140), 0.0)
        held = memory.now()
        assert 14_000_000 <= held < 1.3 * 14_000_000
        assert log.size == pytest.approx(held, rel=0.05)
        log.drop_before(50_001)
        assert log.size == pytest.approx(memory.now(), rel=0.05)
        log.drop_before(100_001)
        assert 100_000 == log.last
        assert memory.now() < 0.01 * 14_000_000


def test_the_size_of_a_stream_of_rare_events_is_no_less_than_its_memory() -> None:
    with measured() as memory:
        log = filled(5000, size=140, every=300.0)  # each in a segment of its own
        held = memory.now()
    assert held <= log.size < 1.5 * held


def test_a_batch_of_many_segments_is_taken_whole() -> None:
    """A read of 256 KiB may bring thousands of small events to a stream that holds little."""
    log = Log(Bounds(events=10_000, size=1000, age=60))
    frames = [b"data: %d\nid: %d-x\n\n" % (seq, seq) for seq in range(1, 5001)]
    log.append(frames, 0.0)

    assert (1, 5000) == (log.first, log.last)
    assert frames[4999] == log.frame(5000)
    assert frames[2500] == log.frame(2501)
