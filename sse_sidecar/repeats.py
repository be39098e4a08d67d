"""Events that an upstream sends once more after a reconnect, recognised by its ids.

Only the unbroken run at the start of the new connection can repeat: what follows it is new.
"""

from __future__ import annotations

from enum import Enum
from itertools import pairwise
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
        if self._next is not None and self._same(block, self._next):
            self._next += 1
            return Verdict.REPEAT
        # What lies before the run may be of a numbering that the upstream has given up.
        held = [seq for seq in self._find(block) if self._next is None or seq >= self._next]
        same = next((seq for seq in held if self._same(block, seq)), None)
        if same is not None and self._next is None:
            self._next = same + 1
            return Verdict.REPEAT
        return Verdict.RENUMBERED if held and same is None else Verdict.NEW

    def _find(self, block: Block) -> list[int]:
        """The events held that came with the block's id, the newest first: an upstream may have begun to count anew."""
        if not block.upstream_id:
            return []
        if block.upstream_id in self._long_ids:
            seq = self._long_ids[block.upstream_id]
            return [seq] if seq >= self._log.first else []
        suffix = event_id.suffix(self._stream_id, block.upstream_id)
        if suffix == self._stream_id.encode():
            return []
        # The tokens of those after it that have no id carry it as well.
        bearing = self._log.ending_with(b"-%b\n\n" % suffix)
        return [seq for before, seq in pairwise([-1, *bearing]) if before != seq - 1][::-1]

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
