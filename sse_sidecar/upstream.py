"""The producer: an EventSource toward the upstream, which reads it into a stream and decides how long.

It belongs to the stream, not to a request: a client that leaves does not end it.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from sse_sidecar import headers, wire
from sse_sidecar.asking import ask_again
from sse_sidecar.clock import spawn
from sse_sidecar.decoding import IDENTITY, DecodingError
from sse_sidecar.logs import facts
from sse_sidecar.repeats import Repeats, Verdict
from sse_sidecar.streams import State

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from sse_sidecar.asking import Arrived, Ask
    from sse_sidecar.clock import Clock, Timer
    from sse_sidecar.decoding import Decoder
    from sse_sidecar.errors import AnswerError
    from sse_sidecar.exchange import Exchange
    from sse_sidecar.streams import Stream
    from sse_sidecar.unread import Unread

log = logging.getLogger(__name__)

MAX_LONG_IDS = 1000
"""How many of the last ids that no token can carry are kept, to know again what an upstream repeats."""

TOO_LARGE = "An event of the upstream is larger than this proxy takes; the stream ends here."
LOST = "The connection to the upstream was lost; the stream ends here."
REFUSED = "The upstream was asked to go on with this stream and did not."
_GAP = "Events may be missing before the next one: the upstream was not being read, and gives no ids to ask by."
GAP = wire.signal("gap", _GAP, lost=None)

TIMED_EVERY = 16
"""Reads from upstreams of one route, of which one is timed: that costs some 200 ns, 1 % of what an event does."""


class Producer:
    """Reads an upstream into a stream, over one connection after the other where it may be asked again."""

    __slots__ = (
        "_ask",
        "_awaits_response",
        "_clock",
        "_counts",
        "_decoder",
        "_exchange",
        "_heard_at",
        "_keeps_ids",
        "_last_body",
        "_last_id",
        "_lead",
        "_long_ids",
        "_parser",
        "_paused",
        "_reconnecting",
        "_repeats",
        "_settings",
        "_stall_timer",
        "_stalled",
        "_stream",
        "_unread",
    )

    def __init__(self, stream: Stream, ask: Ask, *, clock: Clock, unread: Unread) -> None:
        self._stream = stream
        self._settings = stream.settings
        self._ask = ask
        self._clock = clock
        self._counts = ask.counts
        self._unread = unread
        self._awaits_response = headers.get(ask.fields, b"mcp-protocol-version") is not None and not stream.repeatable
        self._keeps_ids = stream.settings.ids == "keep"
        # The connection, or the attempt to have one again.
        self._exchange: Exchange | None = None
        self._decoder: Decoder | None = None
        self._parser = wire.EventParser(stream.settings.max_event_bytes)
        self._reconnecting: asyncio.Task[None] | None = None
        self._paused = False
        # What has been heard.
        self._last_body: bytes | None = None
        """Of the last event, where it was not a plain one: those are the log's."""
        self._last_id: bytes | None = None
        self._lead = b""
        """A signal that is to stand in the next event's frame."""
        self._repeats: Repeats | None = None
        self._long_ids: dict[bytes, int] = {}
        self._heard_at = clock.time()
        self._stalled = False
        self._stall_timer: Timer | None = None

    def start(self, arrived: Arrived, *, hole: bool = False) -> None:
        """Begins to append. Where there may be a `hole` before the first event, whoever reads that is told."""
        self._stream.producer = self
        if hole:
            self._expect_hole()
        self._read(arrived)

    def _read(self, arrived: Arrived) -> None:
        self._exchange, self._decoder = arrived.exchange, arrived.decoder
        self._parser = wire.EventParser(self._settings.max_event_bytes)
        self._heard_at = self._clock.time()
        self._stalled = False
        self._watch_stall()
        arrived.exchange.start(self._on_data, self._on_end)
        if self._paused:
            arrived.exchange.pause()

    # From the upstream

    def _on_data(self, data: bytes) -> None:
        counts = self._counts
        counts.reads += 1
        if counts.reads % TIMED_EVERY:
            self._take(data)
        else:
            self._take_timed(data)

    def _take_timed(self, data: bytes) -> None:
        started, before = self._counts.stopwatch(), self._stream.log.last
        self._take(data)
        if self._stream.log.last > before:
            self._stream.time_from(started)

    def _take(self, data: bytes) -> None:
        now = self._heard_at = self._clock.time()
        self._stalled = False
        if self._decoder is IDENTITY:
            self._append(data, now)
        else:
            self._decode(data, now)

    def _decode(self, data: bytes, now: float) -> None:
        assert self._decoder is not None  # noqa: S101 - set before the exchange is started
        try:
            for piece in self._decoder.pieces(data):
                self._append(piece, now)
                if self._stream.ended:
                    return
        except DecodingError as error:
            self._lose(f"its content coding is broken: {error}")

    def _append(self, data: bytes, now: float) -> None:
        """Keeps and publishes the events that `data` completes: the hot path, flat for that reason."""
        stream, parser, counts = self._stream, self._parser, self._counts
        if now >= counts.sample_due:
            counts.sample(now)
        counts.bytes_received += len(data)
        before = stream.log.last
        blocks = parser.feed(data)
        frames: Sequence[bytes] | None = None
        if blocks and not (self._repeats or self._lead or self._awaits_response or self._keeps_ids):
            frames = wire.plain_frames(blocks, before + 1, stream.suffix)
        parts: Sequence[bytes | wire.Block]
        if frames is None:
            frames, parts = self._frames(blocks)
        else:
            parts = frames
            self._last_body = self._last_id = None
        size = 0
        if frames:
            counts.events_received += len(frames)
            size = stream.append(frames, now)
        if parts:
            stream.publish(parts, before, now, size)
        stream.account(parser.pending)
        if parser.too_large:
            self.overflow()

    def _frames(self, blocks: list[bytes]) -> tuple[list[bytes], Sequence[bytes | wire.Block]]:
        """What blocks are kept as, and what of them is sent on."""
        frames: list[bytes] = []
        parts: list[bytes | wire.Block] = []
        for raw in blocks:
            made = self._frame(raw, self._stream.log.last + len(frames) + 1)
            if isinstance(made, bytes):
                frames.append(made)
            if made is not None:
                parts.append(made)
        return frames, parts

    def _frame(self, raw: bytes, seq: int) -> bytes | wire.Block | None:
        """What a block is sent on as: a frame to be kept, a notice that is not, or nothing."""
        stream = self._stream
        block = wire.read_block(raw)
        is_event = block.kind is wire.Kind.EVENT
        if is_event and self._repeats and self._is_repeat(block):
            return None
        if block.retry is not None:
            stream.upstream_retry = block.retry
        if block.upstream_id is not None:
            stream.take_upstream_id(block.upstream_id)
            if is_event and len(stream.suffix) == len(stream.id):
                self._keep_long_id(block.upstream_id, seq)
        if is_event:
            self._last_body, self._last_id = block.body, block.upstream_id
            self._awaits_response = self._awaits_response and not _is_response(block)
        if self._keeps_ids and (is_event or block.upstream_id is not None):
            return raw + b"\n\n"
        if is_event:
            lead, self._lead = self._lead, b""
            return lead + wire.frame(block.body, seq, stream.suffix)
        return block if block.body else None

    def _keep_long_id(self, upstream_id: bytes, seq: int) -> None:
        if self._stream.repeatable and upstream_id:
            self._long_ids[upstream_id] = seq
            if len(self._long_ids) > MAX_LONG_IDS:
                del self._long_ids[next(iter(self._long_ids))]

    def _is_repeat(self, block: wire.Block) -> bool:
        assert self._repeats is not None  # noqa: S101 - asked for by the caller
        verdict = self._repeats.check(block)
        if verdict is Verdict.REPEAT:
            self._counts.duplicates += 1
            return True
        self._repeats = None
        if verdict is Verdict.RENUMBERED:
            self._tell("its upstream numbers each connection anew", level=logging.WARNING)
            self._expect_hole()
        return False

    def _on_end(self, error: AnswerError | None) -> None:
        # An event that was cut off after the mark means that the mark was not the end.
        marked = self._is_marked() and not self._parser.unfinished
        repeatable = self._stream.repeatable
        cause = "its upstream ended it" if error is None else f"its upstream was lost: {error}"
        if marked:
            cause += ", after a completion mark"
        if error is None and repeatable:
            self._finish(State.COMPLETE if marked else State.DORMANT, cause)
        elif error is None:
            self._finish(State.DORMANT if self._is_polled() else State.COMPLETE, cause)
        elif marked and not repeatable:
            self._finish(State.COMPLETE, cause)
        elif self._may_reconnect():
            self._tell(f"{cause}; asked again")
            self._reconnect()
        else:
            self._lose(cause)

    def _is_marked(self) -> bool:
        marks = {_mark(line) for line in self._settings.completion_marks}
        last = self._stream.log.last_frame if self._last_body is None else self._last_body
        return any(_mark(line) in marks for line in last.decode("utf-8", "replace").split("\n"))

    def _is_polled(self) -> bool:
        """Whether an MCP server closed the stream of a request before its response, to be asked for the rest by GET."""
        return self._awaits_response and bool(self._stream.upstream_id)

    # Reconnecting

    def _may_reconnect(self, *, stalled: bool = False) -> bool:
        """Whether a connection that is lost is to be followed by another; one that `stalled` is given up by choice."""
        policy = self._settings.reconnect
        if policy == "auto":
            policy = "always" if self._stream.shared else "exact"
        exact = bool(self._last_id)
        allowed = policy == "always" or (policy == "exact" and (exact or stalled))
        return allowed and self._stream.repeatable and bool(self._stream.readers) and not self._keeps_ids

    def _reconnect(self) -> None:
        self._let_go()
        self._stream.reconnecting()
        self._stream.account(0)
        self._reconnecting = spawn(self._ask_until_answered(), name="reconnect")

    async def _ask_until_answered(self) -> None:
        stream = self._stream
        answer = await ask_again(
            self._ask.resuming(stream.upstream_id),
            retry=stream.upstream_retry,
            clock=self._clock,
            within=self._settings.reconnect_timeout,
            at_once=False,
            on_failure=lambda: stream.note(wire.WAITING),
        )
        self._reconnecting = None
        if answer is None:
            self._lose("its upstream did not come back within reconnect_timeout")
        elif answer.decoder is not None:
            self._go_on(answer)
        else:
            answer.exchange.close()
            self._refused(answer.head.status)

    def _go_on(self, answer: Arrived) -> None:
        stream = self._stream
        self._tell("its upstream goes on")
        if stream.gives_ids and stream.upstream_id:
            self._repeats = Repeats(stream.log, stream.id, self._long_ids)
        elif not self._lead:
            self._expect_hole()
        stream.live()
        self._read(answer)

    def _refused(self, status: int) -> None:
        cause = f"its upstream answered {status} when asked again"
        if status == 204:
            self._finish(State.COMPLETE, cause)
            return
        self._stream.refused = True
        final = wire.signal("upstream-lost", REFUSED)
        self._finish(State.DORMANT, cause, clean=False, final=final, may_miss=True)

    def _expect_hole(self) -> None:
        self._lead = GAP.data
        self._stream.expect_hole()

    # Ends

    def _lose(self, cause: str) -> None:
        """As without the sidecar, but said out loud. A GET may be asked again by its next resume."""
        state = State.DORMANT if self._stream.repeatable else State.BROKEN
        self._finish(state, cause, clean=False, final=wire.signal("upstream-lost", LOST), may_miss=True)

    def overflow(self) -> None:
        """The event, or all that is unfinished together, is more than may be held."""
        final = wire.signal("too-large", TOO_LARGE)
        self._finish(State.BROKEN, "an event is too large", clean=False, final=final)

    def stop(self) -> None:
        """The work is not wanted any more: complete, as nothing more is to come."""
        self._finish(State.COMPLETE, "stopped by its client")

    def abandon(self) -> None:
        """The process ends."""
        self._finish(State.BROKEN, "shutting down", clean=False)

    def give_up(self) -> None:
        """No one has come back for it. A GET may be asked again; other work has been stopped half done."""
        cause = "no one came back to read it"
        if self._stream.repeatable:
            self._finish(State.DORMANT, cause, may_miss=True)
        else:
            self._finish(State.BROKEN, cause, clean=False, final=wire.signal("upstream-lost", LOST))

    def _finish(
        self,
        state: State,
        cause: str,
        *,
        clean: bool = True,
        final: wire.Signal = wire.NO_SIGNAL,
        may_miss: bool = False,
    ) -> None:
        self._unread.remove(self)
        self._let_go()
        if self._reconnecting:
            self._reconnecting.cancel()
        if self._keeps_ids:
            final = wire.NO_SIGNAL
        # A hole that no event has stood behind yet is still there.
        self._stream.end(state, cause=cause, clean=clean, final=final, may_miss=may_miss or bool(self._lead))

    def _tell(self, what: str, *, level: int = logging.INFO) -> None:
        log.log(level, "stream: %s", what, extra=facts(route=self._stream.route, stream=self._stream.short))

    def _let_go(self) -> None:
        if self._stall_timer:
            self._stall_timer.cancel()
        if self._exchange:
            self._exchange.close()

    # From the stream

    def pause(self) -> None:
        self._paused = True
        if self._exchange:
            self._exchange.pause()

    def resume(self) -> None:
        self._paused = False
        # What was silent at our own wish has not stalled.
        self._heard_at = self._clock.time()
        if self._exchange:
            self._exchange.resume()

    def on_read(self) -> None:
        self._unread.remove(self)

    def on_unread(self, *, at_least: float = 0.0) -> None:
        """The last reader has left: its client may be on its way back. `at_least` that many seconds are waited."""
        repeatable = self._stream.repeatable
        policy = "cancel" if self._keeps_ids or self._stream.cancels else self._settings.on_disconnect
        if policy == "auto":
            policy = "linger" if repeatable else "finish"
        waits = {"cancel": 0.0, "linger": self._settings.linger, "finish": self._settings.finish_timeout}
        seconds = max(waits[policy], at_least)
        if seconds:
            self._unread.add(self, seconds, repeatable=repeatable)
        else:
            self.give_up()

    # Stall

    def _watch_stall(self) -> None:
        timeout = self._settings.stall_timeout
        quiet = self._clock.time() - self._heard_at
        if quiet >= timeout and not self._stalled and not self._paused:
            self._on_stall(quiet)
            if self._stream.ended or self._reconnecting:
                return
        self._stall_timer = self._clock.call_later(timeout - quiet if quiet < timeout else timeout, self._watch_stall)

    def _on_stall(self, quiet: float) -> None:
        self._stalled = True
        self._counts.stalled(self._stream.short)
        self._tell(f"nothing from its upstream for {quiet:g} s", level=logging.WARNING)
        self._stream.note(wire.WAITING)
        if self._settings.on_stall == "reconnect" and self._may_reconnect(stalled=True):
            self._reconnect()


def _mark(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.removeprefix(" ")


def _is_response(block: wire.Block) -> bool:
    """Whether an event is a JSON-RPC response (JSON-RPC 2.0, section 5), or a batch with one."""
    lines = block.body.split(b"\n")
    data = b"\n".join(line.partition(b":")[2] for line in lines if line.startswith(b"data"))
    try:
        message = json.loads(data)
    except ValueError:
        return False
    messages = message if isinstance(message, list) else [message]
    return any(isinstance(item, dict) and ("result" in item or "error" in item) for item in messages)
