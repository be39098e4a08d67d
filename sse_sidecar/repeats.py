"""Events that an upstream sends once more after a reconnect, recognised by its ids.

Only the unbroken run at the start of the new connection can repeat: what follows it is new.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from sse_sidecar import event_id

if TYPE_CHECKING:
    from sse_sidecar.history import Log
    from sse_sidecar.wire import Block


class Verdict(Enum):
    """What an event after a reconnect is."""

    REPEAT = "held already, with the same id and the same bytes"
    NEW = "not held"
    RENUMBERED = "its id is held with other bytes: the upstream counts anew on each connection"


class Repeats:
    """Compares the events of a new connection with those held. Once one is not a REPEAT, no further one is."""

    def __init__(self, log: Log, stream_id: str) -> None:
        self._log = log
        self._stream_id = stream_id
        self._next: int | None = None

    def check(self, block: Block) -> Verdict:
        if self._next is None:
            return self._first(block)
        return self._compare(block, Verdict.NEW)

    def _first(self, block: Block) -> Verdict:
        if not block.upstream_id:
            return Verdict.NEW
        suffix = event_id.suffix(self._stream_id, block.upstream_id)
        if suffix == self._stream_id.encode():
            return Verdict.NEW  # too long to be carried by the tokens, and so to be found
        self._next = self._log.ending_with(b"-%b\n\n" % suffix)
        return self._compare(block, Verdict.RENUMBERED)

    def _compare(self, block: Block, otherwise: Verdict) -> Verdict:
        if self._next is None or self._next > self._log.last:
            return Verdict.NEW
        held = self._log.frame(self._next)
        if not self._same(block, held, self._next):
            return otherwise
        self._next += 1
        return Verdict.REPEAT

    def _same(self, block: Block, held: bytes, seq: int) -> bool:
        """A held frame may begin with a signal of the sidecar's own."""
        body, _, token = held.removesuffix(b"\n\n").rpartition(b"\nid: ")
        if block.upstream_id is not None and token != b"%d-%b" % (
            seq,
            event_id.suffix(self._stream_id, block.upstream_id),
        ):
            return False
        return body == block.body or body.endswith(b"\n\n" + block.body)
