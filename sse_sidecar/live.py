"""Those who have everything there is of a stream, and are written to as soon as there is more.

What was published is made bytes once, and nothing but its transport is touched for a reader: where it stands in the log
follows from its being here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_sidecar import wire

SLICE = 64
"""Readers served before the loop gets its turn: a write takes some 5 µs, and other streams' events wait meanwhile."""


class Transport(Protocol):
    """What a reader is written to."""

    def is_closing(self) -> bool: ...

    def write(self, data: bytes) -> None: ...


class Owner(Protocol):
    """Whose readers they are."""

    def pace(self) -> None:
        """Told when the live readers become `busy`, and when they no longer are."""

    def on_written(self, before: int, events: int, size: int, readers: int) -> None:
        """Told when so many readers have been written `events` of together `size` bytes, those after `before`."""


class Publication(NamedTuple):
    """What was published after event `before`, in each form in which it is read; for those who wait for their turn."""

    before: int
    events: int
    size: int
    made: dict[wire.Form, bytes]
    rest: dict[Transport, wire.Form]


class Live:
    """The live readers of a stream. Publications reach each in order, a slice of readers at a time.

    Whoever can take no more is left out at once, and leaves in its own time: `remove` tells what it was sent.
    """

    __slots__ = ("_fallen", "_readers", "_sent", "_waiting")

    def __init__(self) -> None:
        self._readers: dict[Transport, wire.Form] = {}
        self._fallen: list[Transport] | None = None
        self._sent: dict[Transport, int] | None = None
        self._waiting: deque[Publication] | None = None

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def busy(self) -> bool:
        """Whether some have yet to be served. What is published meanwhile waits in memory, so little should be."""
        return bool(self._waiting)

    @property
    def before(self) -> int | None:
        """The event up to which every one of them has been sent everything; None where that is the log's last."""
        waiting = [self._waiting[0].before] if self._waiting else []
        return min([*waiting, *(self._sent or {}).values()], default=None)

    def add(self, transport: Transport, form: wire.Form) -> None:
        """A reader that has everything, and takes more."""
        self._readers[transport] = form

    def fall_behind(self, transport: Transport) -> None:
        """The reader takes no more; it may be told so while it is being written to."""
        self._fallen = [*(self._fallen or ()), transport]

    def remove(self, transport: Transport) -> int | None:
        """Takes a reader out. Gives the last event that it was sent; None where that is the log's last."""
        self._fallen = [fallen for fallen in self._fallen or () if fallen is not transport] or None
        owed = self._take_out(transport)
        return self._sent.pop(transport, owed) if self._sent else owed

    def publish(
        self, parts: Sequence[bytes | wire.Block], before: int, owner: Owner, *, events: int = 0, size: int = 0
    ) -> None:
        """Writes what comes after event `before` to all, or to some now and to the others in their turn.

        It holds so many `events` of so many bytes, which is for `owner` to count.
        """
        if self._fallen:
            self._leave_out(self._fallen, before)
        if self._waiting or len(self._readers) > SLICE:
            self._publish_in_slices(parts, before, owner, events, size)
            return
        missed = 0
        made_for = None
        data = b""
        for transport, form in self._readers.items():
            if form is not made_for:
                data = form.make(parts)
                made_for = form
            if transport.is_closing():
                self._miss(transport, before)
                missed += 1
            else:
                transport.write(data)
        owner.on_written(before, events, size, len(self._readers) - missed)

    def _miss(self, transport: Transport, before: int) -> None:
        if self._sent is None:
            self._sent = {}
        self._sent.setdefault(transport, before)

    def _leave_out(self, fallen: list[Transport], last: int) -> None:
        self._fallen = None
        for transport in fallen:
            owed = self._take_out(transport)
            self._miss(transport, last if owed is None else owed)

    def _take_out(self, transport: Transport) -> int | None:
        self._readers.pop(transport, None)
        owed = [waiting.before for waiting in self._waiting or () if waiting.rest.pop(transport, None)]
        return owed[0] if owed else None

    def _publish_in_slices(
        self, parts: Sequence[bytes | wire.Block], before: int, owner: Owner, events: int, size: int
    ) -> None:
        made = {form: form.make(parts) for form in set(self._readers.values())}
        publication = Publication(before, events, size, made, dict(self._readers))
        if self._waiting:
            self._waiting.append(publication)
        else:
            self._waiting = deque([publication])
            self._serve(self._waiting, owner)
            owner.pace()

    def _serve(self, waiting: deque[Publication], owner: Owner) -> None:
        before, events, size, made, rest = waiting[0]
        served = 0
        for _ in range(min(SLICE, len(rest))):
            transport, form = rest.popitem()
            if transport.is_closing():
                self._miss(transport, before)
            else:
                transport.write(made[form])
                served += 1
        owner.on_written(before, events, size, served)
        if not rest:
            waiting.popleft()
        if waiting:
            asyncio.get_running_loop().call_soon(self._serve, waiting, owner)
        else:
            self._waiting = None
            owner.pace()
