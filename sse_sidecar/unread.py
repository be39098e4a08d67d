"""Upstreams that no one reads: how long each is kept, and how many at most.

Each holds one of a service's connections, or work that someone pays for, for a client that may not come back.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sse_sidecar.clock import Clock, Timer


class Owner(Protocol):
    """Whose upstream it is."""

    def give_up(self) -> None: ...


class Unread:
    """Those of one route, in the order in which their readers left."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self.limit = limit
        # Two lines: what may be asked for again is given up before work that would be lost.
        self._lingering: OrderedDict[Owner, Timer] = OrderedDict()
        self._finishing: OrderedDict[Owner, Timer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lingering) + len(self._finishing)

    def add(self, owner: Owner, seconds: float, *, repeatable: bool) -> None:
        """Keeps an upstream for `seconds`, then gives it up; over the limit, the oldest is given up now."""
        line = self._lingering if repeatable else self._finishing
        line[owner] = self._clock.call_later(seconds, owner.give_up)
        if len(self) > self.limit:
            oldest = next(iter(self._lingering or self._finishing))
            oldest.give_up()

    def remove(self, owner: Owner) -> None:
        """It is read again, or has ended. No matter if it is not here."""
        timer = self._lingering.pop(owner, None) or self._finishing.pop(owner, None)
        if timer:
            timer.cancel()
