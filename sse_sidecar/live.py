"""Those who have everything there is of a stream, and are written to as soon as there is more.

What was published is made bytes once, and nothing but its transport is touched for a reader: where it stands in the log
follows from its being here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sse_sidecar import wire

SLICE = 64
"""Readers served before the loop gets its turn: a write takes some 5 µs, and other streams' events wait meanwhile."""


_NONE_WAITING: deque[tuple[Publication, dict[Transport, wire.Form]]] = deque(maxlen=0)
"""Of nearly all streams, which have few readers: a deque is 600 bytes."""


class Transport(Protocol):
    """What a reader is written to."""

    def is_closing(self) -> bool: ...

    def write(self, data: bytes) -> None: ...


class Publication:
    """What was published after event `before`, up to `last`, for those who have everything before it."""

    __slots__ = ("_made", "_parts", "before", "last")

    def __init__(self, parts: Sequence[bytes | wire.Block], before: int, last: int) -> None:
        self._parts = parts
        self._made: dict[wire.Form, bytes] = {}
        self.before = before
        self.last = last

    def wire(self, form: wire.Form) -> bytes:
        """Its bytes in one form, made at most once, however many readers there are."""
        made = self._made.get(form)
        if made is None:
            made = self._made[form] = form.make(self._parts)
        return made


class Live:
    """The live readers of a stream. Publications reach each in order, a slice of readers at a time.

    `on_change` is called when it becomes `busy`, and when it no longer is. Whoever can take no more is left out at
    once, and leaves in its own time: `remove` tells what it was sent.
    """

    __slots__ = ("_fallen", "_forms", "_on_change", "_sent", "_waiting")

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._forms: dict[wire.Form, dict[Transport, None]] = {}
        self._waiting: deque[tuple[Publication, dict[Transport, wire.Form]]] = _NONE_WAITING
        self._fallen: list[tuple[Transport, wire.Form]] = []
        self._sent: dict[Transport, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._forms.values()))

    @property
    def busy(self) -> bool:
        """Whether some have yet to be served. What is published meanwhile waits in memory, so little should be."""
        return bool(self._waiting)

    @property
    def before(self) -> int | None:
        """The event up to which every one of them has been sent everything; None where that is the log's last."""
        waiting = [self._waiting[0][0].before] if self._waiting else []
        return min([*waiting, *self._sent.values()], default=None)

    def add(self, transport: Transport, form: wire.Form) -> None:
        """A reader that has everything, and takes more."""
        self._forms.setdefault(form, {})[transport] = None

    def fall_behind(self, transport: Transport, form: wire.Form) -> None:
        """The reader takes no more; it may be told so while it is being written to."""
        self._fallen.append((transport, form))

    def remove(self, transport: Transport, form: wire.Form) -> int | None:
        """Takes a reader out. Gives the last event that it was sent; None where that is the log's last."""
        self._fallen = [fallen for fallen in self._fallen if fallen[0] is not transport]
        sent = self._sent.pop(transport, None)
        owed = self._take_out(transport, form)
        return owed if sent is None else sent

    def publish(self, publication: Publication) -> int:
        """Writes to all, or to some now and to the others in their turn; how many there are."""
        if self._fallen:
            self._leave_out(publication.before)
        if self._waiting or len(self) > SLICE:
            return self._publish_in_slices(publication)
        number = 0
        for form, transports in self._forms.items():
            number += len(transports)
            self._write(publication, form, transports)
        return number

    def _leave_out(self, last: int) -> None:
        fallen, self._fallen = self._fallen, []
        for transport, form in fallen:
            if transport in self._forms[form]:
                owed = self._take_out(transport, form)
                self._sent.setdefault(transport, last if owed is None else owed)

    def _take_out(self, transport: Transport, form: wire.Form) -> int | None:
        self._forms[form].pop(transport, None)
        owed = [publication.before for publication, rest in self._waiting if rest.pop(transport, None) is not None]
        return owed[0] if owed else None

    def _write(self, publication: Publication, form: wire.Form, transports: Iterable[Transport]) -> None:
        data = publication.wire(form)
        for transport in transports:
            if transport.is_closing():
                self._sent.setdefault(transport, publication.before)
            else:
                transport.write(data)

    def _publish_in_slices(self, publication: Publication) -> int:
        if self._waiting is _NONE_WAITING:
            self._waiting = deque()
        rest = {transport: form for form, transports in self._forms.items() for transport in transports}
        self._waiting.append((publication, rest))
        number = len(rest)
        if len(self._waiting) == 1:
            self._serve()
            self._on_change()
        return number

    def _serve(self) -> None:
        publication, rest = self._waiting[0]
        for _ in range(min(SLICE, len(rest))):
            transport, form = rest.popitem()
            self._write(publication, form, (transport,))
        if not rest:
            self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._serve)
        else:
            self._on_change()
