"""The append-only log of one stream: frames in, by number out.

Frames lie one behind the other in segments of bytes, with an index of where each ends: 4 bytes an event instead of the
40 of a bytes object, and a replay is a slice. Time is passed in; nothing here waits, sends or knows a client.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from enum import Enum
from itertools import accumulate, takewhile
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEGMENT_BYTES = 64 * 1024
"""One write to a socket takes about this much, and a trim frees it whole."""

_SEGMENT_OVERHEAD = 400  # the objects of a segment, measured with sys.getsizeof
_INDEX_BYTES = 4


class Bounds(NamedTuple):
    """How much of a stream is held: a number of events, bytes, and seconds."""

    events: int
    size: int
    age: float


class Usage:
    """Bytes of memory that many logs hold together, each of which counts its own here."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class Found(Enum):
    """What a log says to "everything after seq, please"."""

    HELD = "what comes after is held"
    AT_END = "seq is the last there is"
    GAP = "what comes after begins with events no longer held"
    BEYOND = "seq was never given out"


class Position(NamedTuple):
    """Where a reader starts: after `cursor`; `lost` events before that were asked for and are not held."""

    found: Found
    cursor: int
    lost: int = 0


def find(base: int, first: int, last: int, seq: int) -> Position:
    """What a resume after `seq` gets from a log that began after `base` and holds `first`..`last` (empty: last + 1).

    0 asks for the log's own start, whatever number that has.
    """
    if seq > last:
        return Position(Found.BEYOND, last)
    cursor = max(seq, base)
    if cursor + 1 < first:
        return Position(Found.GAP, first - 1, first - 1 - cursor)
    return Position(Found.AT_END if cursor == last else Found.HELD, cursor)


class _Segment:
    __slots__ = ("data", "ends", "first", "since", "until")

    def __init__(self, first: int, now: float) -> None:
        self.first = first
        self.since = self.until = now
        self.data: bytearray | bytes = bytearray()
        self.ends = array("I")

    @property
    def last(self) -> int:
        return self.first + len(self.ends) - 1

    @property
    def cost(self) -> int:
        return len(self.data) + _INDEX_BYTES * len(self.ends) + _SEGMENT_OVERHEAD

    def after(self, seq: int) -> bytes:
        start = self.ends[seq - self.first] if seq >= self.first else 0
        return bytes(self.data[start:]) if start else bytes(self.data)

    def frame(self, seq: int) -> bytes:
        index = seq - self.first
        return bytes(self.data[self.ends[index - 1] if index else 0 : self.ends[index]])

    def ending_with(self, tail: bytes) -> Iterator[int]:
        at = self.data.find(tail)
        while at >= 0:
            end = at + len(tail)
            index = bisect_left(self.ends, end)
            if self.ends[index] == end:
                yield self.first + index
            at = self.data.find(tail, at + 1)


class Log:
    """The frames of one stream, numbered from `base` + 1 without holes."""

    __slots__ = (
        "_bounds",
        "_expires",
        "_last_frame",
        "_newest",
        "_segment_age",
        "_segment_bytes",
        "_segments",
        "_usage",
        "base",
        "first",
        "last",
        "size",
    )

    def __init__(self, bounds: Bounds, base: int = 0, usage: Usage | None = None) -> None:
        self._bounds = bounds
        self._usage = usage or Usage()
        # Whole segments are freed, so none may be more than a small part of what is held.
        self._segment_bytes = min(SEGMENT_BYTES, max(bounds.size // 16, 1))
        self._segment_age = bounds.age / 16
        self._segments: list[_Segment] = []
        self._newest: _Segment | None = None
        self._expires = inf
        """When the oldest segment is too old, if nothing is added to it any more."""
        self._last_frame = b""
        self.base = base
        self.first = base + 1
        self.last = base
        self.size = 0
        """Bytes of memory, the index included."""

    def __repr__(self) -> str:
        return f"<Log {self.first}..{self.last} {self.size} bytes>"

    def find(self, seq: int) -> Position:
        return find(self.base, self.first, self.last, seq)

    def append(self, frames: Sequence[bytes], now: float) -> int:
        """Adds frames, which must carry the numbers from `last` + 1 on. Gives their size in bytes."""
        size = 0
        while len(frames) > 1 and sum(map(len, frames)) > self._segment_bytes:
            fitting = max(bisect_right(list(accumulate(map(len, frames))), self._segment_bytes), 1)
            size += self._extend(frames[:fitting], now)
            frames = frames[fitting:]
        return size + self._extend(frames, now) if frames else size

    def _extend(self, frames: Sequence[bytes], now: float) -> int:
        segment = self._open_segment(now)
        data, ends = segment.data, segment.ends
        before = len(data)
        for frame in frames:
            data += frame
            ends.append(len(data))
        segment.data = data
        segment.until = now
        size = len(data) - before
        added = size + _INDEX_BYTES * len(frames)
        self.size += added
        self._usage.size += added
        self.last += len(frames)
        return size

    def read_after(self, seq: int) -> tuple[bytes, int]:
        """Some frames after `seq`, joined, with the number of the last of them; nothing and `seq` at the end.

        At most one segment: the caller asks again. `seq` must not be before `first` - 1.
        """
        if seq >= self.last:
            return b"", seq
        segment = self._segment_of(seq + 1)
        return segment.after(seq), segment.last

    def ending_with(self, tail: bytes) -> list[int]:
        """The events held whose frames end with `tail`, in order."""
        return [seq for segment in self._segments for seq in segment.ending_with(tail) if seq >= self.first]

    def frame(self, seq: int) -> bytes:
        """One event, which must be held."""
        return self._segment_of(seq).frame(seq)

    @property
    def last_frame(self) -> bytes:
        """The last event, even where it is held no longer; nothing where there was none."""
        return self.frame(self.last) if self._segments else self._last_frame

    def within(self, now: float) -> bool:
        """Whether there is nothing to `trim`."""
        bounds = self._bounds
        return self.size <= bounds.size and self.last - self.first < bounds.events and now <= self._expires

    def trim(self, now: float, *, keep_after: int | None = None) -> bool:
        """Lets go of what is out of bounds, oldest first; says whether the log is within them now.

        Nothing after `keep_after` goes: a reader has yet to be sent it.
        """
        by_count = self.last - self._bounds.events + 1
        oldest = max(self.first, by_count)
        size = self.size
        for segment in self._segments[:-1]:
            if size <= self._bounds.size and segment.until >= now - self._bounds.age:
                break
            size -= segment.cost
            oldest = max(oldest, segment.last + 1)
        if size > self._bounds.size or (self._segments and self._segments[-1].until < now - self._bounds.age):
            oldest = self.last + 1
        allowed = oldest if keep_after is None else max(min(oldest, keep_after + 1), self.first)
        self.drop_before(allowed)
        return allowed == oldest

    def drop_before(self, seq: int) -> None:
        """Lets go of everything before event `seq`; what goes is gone from memory a segment at a time."""
        self.first = min(max(self.first, seq), self.last + 1)
        gone = list(takewhile(lambda segment: segment.last < self.first, self._segments))
        if gone and gone[-1] is self._newest:
            self._last_frame, self._newest = self.last_frame, None
        del self._segments[: len(gone)]
        self._resize(-sum(segment.cost for segment in gone))
        self._set_expiry()

    def _resize(self, size: int) -> None:
        self.size += size
        self._usage.size += size

    def _set_expiry(self) -> None:
        closed = len(self._segments) > 1
        self._expires = self._segments[0].until + self._bounds.age if closed else inf

    def drop_oldest(self, up_to: int) -> int:
        """Lets go of the oldest segment if it holds nothing after event `up_to`; the bytes that this frees."""
        if not self._segments or self._segments[0].last > up_to:
            return 0
        before = self.size
        self.drop_before(self._segments[0].last + 1)
        return before - self.size

    def _segment_of(self, seq: int) -> _Segment:
        return self._segments[bisect_right(self._segments, seq, key=lambda segment: segment.first) - 1]

    def _open_segment(self, now: float) -> _Segment:
        segment = self._newest
        if segment is not None:
            if len(segment.data) < self._segment_bytes and now - segment.since < self._segment_age:
                return segment
            segment.data = bytes(segment.data)
        self._newest = fresh = _Segment(self.last + 1, now)
        self._segments.append(fresh)
        self._resize(fresh.cost)
        self._set_expiry()
        return fresh
