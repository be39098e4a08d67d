"""The event-stream format, both ways (WHATWG HTML, section 9.2, "Server-sent events").

Inward, `EventParser` cuts a byte stream into blocks, whatever the chunking, and `read_block` says what one is.
Outward, frames and notices are made. Blocks are worked on as bytes, never decoded: what is not UTF-8 passes.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOM = b"\xef\xbb\xbf"
_RETRY_DIGITS = 9  # more is over ten days; it passes, but is not kept


class Kind(Enum):
    """What a block is to a browser."""

    EVENT = "dispatched: it has a data field"
    FIELDS = "not dispatched, but an event field of it reaches decoders that do not follow the standard"
    QUIET = "not dispatched: comments, retry, unknown fields"


class Block(NamedTuple):
    """One block, without its `id:` lines and without the blank line that ends it."""

    kind: Kind
    body: bytes
    upstream_id: bytes | None = None
    retry: bytes | None = None


class EventParser:
    """Cuts a stream into blocks, line ends made LF, in time linear in the bytes fed.

    `limit` bounds a block, finished or not, in bytes. Past it `too_large` is set and nothing more is taken.
    """

    __slots__ = ("_at_start", "_limit", "_pending", "_skip_lf", "too_large")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: bytearray | None = None
        self._at_start = True
        self._skip_lf = False
        self.too_large = False

    @property
    def pending(self) -> int:
        """Bytes of the block that has not ended yet."""
        return len(self._pending) if self._pending else 0

    @property
    def unfinished(self) -> bool:
        """Whether there is more in it than blank lines and comments: an event that would be lost."""
        return any(line and not line.startswith(b":") for line in (self._pending or b"").split(b"\n"))

    def feed(self, chunk: bytes) -> list[bytes]:
        """The blocks that `chunk` completes, in order, each without its blank line."""
        if (
            not (self._pending or self._at_start or self._skip_lf or self.too_large)
            and len(chunk) <= self._limit
            and chunk.endswith(b"\n\n")
            and not chunk.startswith(b"\n")
            and b"\n\n\n" not in chunk
            and b"\r" not in chunk
        ):
            return chunk[:-2].split(b"\n\n")  # whole blocks, as most chunks are: a service writes an event at a time
        if self.too_large or not (chunk := self._lf_only(chunk)):
            return []
        if self._at_start:
            chunk = bytes(self._pending or b"") + chunk
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._pending = bytearray(chunk)
                return []
            self._at_start, self._pending = False, None
            chunk = chunk.removeprefix(_BOM)
        return self._bounded(self._cut(chunk))

    def _lf_only(self, chunk: bytes) -> bytes:
        """A CR ends its line at once, as no one knows when the next byte comes; an LF right after it is passed over."""
        if self._skip_lf and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        if b"\r" not in chunk:
            return chunk
        self._skip_lf = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _cut(self, chunk: bytes) -> list[bytes]:
        if self._pending is None:
            done, end, rest = chunk.rpartition(b"\n\n")
            self._pending = bytearray(rest) if rest else None
            return done.split(b"\n\n") if end else []
        search_from = max(len(self._pending) - 1, 0)
        self._pending += chunk
        at = self._pending.rfind(b"\n\n", search_from)
        if at < 0:
            return []
        done = bytes(self._pending[:at])
        del self._pending[: at + 2]
        self._pending = self._pending or None
        return done.split(b"\n\n")

    def _bounded(self, blocks: list[bytes]) -> list[bytes]:
        """Extra blank lines leave newlines at a block's edges, or nothing of it."""
        self.too_large = self.pending - self._edges() > self._limit
        whole = []
        for block in blocks:
            stripped = block.strip(b"\n")
            if len(stripped) > self._limit:
                self.too_large = True
                break
            if stripped:
                whole.append(stripped)
        if self.too_large:
            self._pending = None
        return whole

    def _edges(self) -> int:
        """The newlines around an unfinished block that are no part of it."""
        pending = self._pending or b""
        return pending.startswith(b"\n") + pending.endswith(b"\n")


def is_plain(block: bytes) -> bool:
    """Whether a block from `EventParser.feed` is an event that is kept as it came, as most are.

    False says nothing: only `read_block` does.
    """
    has_data = block.startswith(b"data:") or (block.startswith(b"event:") and b"\ndata:" in block)
    return has_data and b"\nid" not in block and b"\nretry" not in block


def read_block(block: bytes) -> Block:
    """What a block from `EventParser.feed` is."""
    return Block(Kind.EVENT, block) if is_plain(block) else _read_lines(block)


def _read_lines(block: bytes) -> Block:
    kept: list[bytes] = []
    names: set[bytes] = set()
    upstream_id = retry = None
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        names.add(name)
        value = value.removeprefix(b" ")
        if name == b"id":
            # An id that holds a NUL is ignored by the standard, but is no id of ours either: it goes.
            upstream_id = upstream_id if b"\0" in value else value
            continue
        if name == b"retry" and value.isdigit() and len(value) <= _RETRY_DIGITS:
            retry = value
        kept.append(line)
    return Block(_kind(names), b"\n".join(kept), upstream_id, retry)


def _kind(names: set[bytes]) -> Kind:
    if b"data" in names:
        return Kind.EVENT
    return Kind.FIELDS if b"event" in names else Kind.QUIET


def frame(body: bytes, seq: int, suffix: bytes) -> bytes:
    """An event as it is kept and sent. The id stands last: some clients look only at how a block begins."""
    return b"%b\nid: %d-%b\n\n" % (body, seq, suffix)


def plain_frames(blocks: list[bytes], first: int, suffix: bytes) -> list[bytes] | None:
    """The frames of blocks from `EventParser.feed`, numbered from `first`; None where one of them is not plain."""
    made = []
    seq = first
    for block in blocks:
        if not is_plain(block):
            return None
        made.append(b"%b\nid: %d-%b\n\n" % (block, seq, suffix))
        seq += 1
    return made


class Dialect(Enum):
    """How what is not an event is ended; see `notice`."""

    BLOCK = b"\n\n"
    LINE = b"\n"


def notice(body: bytes, dialect: Dialect) -> bytes:
    """A comment, a `retry:`, or anything else that no browser would dispatch.

    Page code often splits on blank lines: it needs BLOCK. The decoders of httpx-sse and of the OpenAI and Anthropic
    Python SDKs dispatch an empty event at any blank line once an id was seen, on which `json.loads("")` fails: they
    need LINE, which the next event's block takes in.
    """
    return body + dialect.value


def quiet(block: Block, dialect: Dialect) -> bytes:
    """A block without data, as it is sent on. One with an event field is ended, or it would name the next event."""
    return notice(block.body, Dialect.BLOCK if block.kind is Kind.FIELDS else dialect)


class Form:
    """How a reader takes what is published: the dialect of what is no event, and whether its body is chunked."""

    __slots__ = ("chunked", "dialect")

    def __init__(self, dialect: Dialect, *, chunked: bool) -> None:
        self.dialect = dialect
        self.chunked = chunked

    def make(self, parts: Sequence[bytes | Block]) -> bytes:
        """Frames, and blocks without data, as one piece of a body."""
        if len(parts) == 1 and isinstance(parts[0], bytes):
            made = parts[0]
        else:
            made = b"".join([part if isinstance(part, bytes) else quiet(part, self.dialect) for part in parts])
        return b"%x\r\n%b\r\n" % (len(made), made) if self.chunked else made


_FORMS = {(dialect, chunked): Form(dialect, chunked=chunked) for dialect in Dialect for chunked in (False, True)}


def form(dialect: Dialect, *, chunked: bool) -> Form:
    """The one object for a way to read, so that it can be looked up by identity for every reader and event."""
    return _FORMS[dialect, chunked]


HEARTBEAT = b": heartbeat"
WAITING = b": waiting for upstream"


def retry(milliseconds: int | bytes) -> bytes:
    value = milliseconds if isinstance(milliseconds, bytes) else b"%d" % milliseconds
    return b"retry: " + value


def priming(seq: int, suffix: bytes, *, data: bool) -> bytes:
    """Sets the client's last event id before its first event, so that a cut before that one can be resumed too.

    With an empty `data` line for MCP 2025-11-25, which asks for it; without, a browser dispatches nothing.
    """
    return b"id: %d-%b\n%b\n" % (seq, suffix, b"data:\n" if data else b"")


class Signal(NamedTuple):
    """An event that says what the user must not miss. It has no id: it is no part of the stream."""

    code: str
    data: bytes


NO_SIGNAL = Signal("", b"")


def signal(code: str, message: str, **facts: object) -> Signal:
    error = json.dumps({"error": {"code": code, "message": message, **facts}})
    return Signal(code, b"event: sse-sidecar\ndata: %b\n\n" % error.encode())


def chunk(data: bytes) -> bytes:
    """One chunk of a body of unknown length (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
