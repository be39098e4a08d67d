"""Time-outs that are the same for many: one timer serves them all."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.clock import Clock, Timer

T = TypeVar("T")


class Patience(Generic[T]):
    """Those that have so many seconds for what they are to do; then `on_late` is told.

    All have the same time, so that the first to come in is the first to be late.
    """

    def __init__(self, clock: Clock, seconds: float, on_late: Callable[[T], None]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._on_late = on_late
        self._due: OrderedDict[T, float] = OrderedDict()
        self._timer: Timer | None = None

    def __contains__(self, waiting: object) -> bool:
        return waiting in self._due

    def begin(self, waiting: T) -> None:
        """Its time begins, where it has not."""
        if waiting not in self._due:
            self._due[waiting] = self._clock.time() + self.seconds
            self._timer = self._timer or self._clock.call_later(self.seconds, self._look)

    def end(self, waiting: T) -> None:
        if self._due.pop(waiting, None) and not self._due and self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._clock.time()
        while self._due and (next_at := next(iter(self._due.values()))) <= now:
            self._on_late(self._due.popitem(last=False)[0])
        if self._due and not self._timer:
            self._timer = self._clock.call_later(next_at - now, self._look)
