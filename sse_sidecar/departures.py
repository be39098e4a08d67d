"""Readers that have gone, until one comes back: how long was it away?

Frames are the same for all readers of a stream, so that a token tells where its client stood, and not which it was.
Of one reader that makes no difference; where there are many, the one whose place fits best is taken for it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from math import inf

MAX_DEPARTURES = 4096
"""Of one stream. Tabs that were closed never come back, and a shared stream may see many."""


class Departures:
    """The places that readers of one stream had reached when they left, and when that was, in seconds."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: list[tuple[int, float]] = []

    def add(self, cursor: int, now: float) -> None:
        insort(self._left, (cursor, now))
        del self._left[:-MAX_DEPARTURES]

    def take(self, after: int) -> float | None:
        """When the reader left who comes back having everything up to event `after`; None where none is known.

        What was written to it may not have arrived: it had reached `after`, or some place beyond.
        """
        index = bisect_left(self._left, (after, -inf))
        return self._left.pop(index)[1] if index < len(self._left) else None
