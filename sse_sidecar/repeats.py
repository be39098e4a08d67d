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

    def __init__(self, log: Log, stream_id: str, long_ids: dict[bytes, int]) -> None:
        """`long_ids` has the events, by number, whose ids are too long to be carried by their tokens."""
        self._log = log
        self._stream_id = stream_id
        self._long_ids = long_ids
        self._next: int | None = None
        self._tail = b""
        """What the token of the last repeat ends with: an event without an id of its own has the same."""

    def check(self, block: Block) -> Verdict:
        at = self._find(block) if self._next is None else self._next
        if at is not None and self._same(block, at):
            self._next = at + 1
            return Verdict.REPEAT
        at = self._find(block)
        return Verdict.NEW if at is None or self._same(block, at) else Verdict.RENUMBERED

    def _find(self, block: Block) -> int | None:
        """The event held that came with the block's id."""
        if not block.upstream_id:
            return None
        if block.upstream_id in self._long_ids:
            at = self._long_ids[block.upstream_id]
            return at if at >= self._log.first else None
        suffix = event_id.suffix(self._stream_id, block.upstream_id)
        is_carried = suffix != self._stream_id.encode()
        return self._log.ending_with(b"-%b\n\n" % suffix) if is_carried else None

    def _same(self, block: Block, seq: int) -> bool:
        """Whether event `seq` is held, and is this one; a held frame may begin with a signal of the sidecar's own."""
        if not self._log.first <= seq <= self._log.last:
            return False
        body, _, token = self._log.frame(seq).removesuffix(b"\n\n").rpartition(b"\nid: ")
        tail = token.partition(b"-")[2]
        own = self._tail if block.upstream_id is None else event_id.suffix(self._stream_id, block.upstream_id)
        if tail != own or not (body == block.body or body.endswith(b"\n\n" + block.body)):
            return False
        self._tail = tail
        return True
