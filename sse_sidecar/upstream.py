"""The producer: what reads an upstream into a stream, and decides how long.

It belongs to the stream, not to a request: a client that leaves does not end it.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, NamedTuple

from sse_sidecar import wire
from sse_sidecar.clock import sleep
from sse_sidecar.decoding import DecodingError
from sse_sidecar.errors import OriginError
from sse_sidecar.origin import Exchange, Origin, request_head
from sse_sidecar.streams import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_sidecar.clock import Clock, Timer
    from sse_sidecar.decoding import Decoder
    from sse_sidecar.errors import AnswerError
    from sse_sidecar.headers import Field
    from sse_sidecar.metrics import RouteMetrics
    from sse_sidecar.origin import Head
    from sse_sidecar.streams import Stream

log = logging.getLogger(__name__)

MAX_BACKOFF = 5.0

TOO_LARGE = "An event of the upstream is larger than this proxy takes; the stream ends here."
LOST = "The connection to the upstream was lost; the stream ends here."
GAP = "Events may be missing before the next one: the upstream was not being read, and gives no ids to ask by."


class Ask(NamedTuple):
    """A request as the upstream gets it, but for its body."""

    origin: Origin
    method: str
    target: bytes
    fields: list[Field]

    def resuming(self, upstream_id: bytes) -> Ask:
        """The same, asking for what comes after `upstream_id`, where there is one."""
        added = [(b"Last-Event-ID", upstream_id)] if upstream_id else []
        return self._replace(fields=[*self.fields, *added])

    async def send(self) -> Exchange:
        """Connects and sends the head. Raises an OriginError."""
        exchange = await self.origin.connect()
        exchange.send(request_head(self.method, self.target, self.fields), expects_body=self.method != "HEAD")
        return exchange


def backoff(retry: bytes | None) -> Iterator[float]:
    """Seconds between attempts: the upstream's `retry` or 1 s, doubled to 5 s, with jitter."""
    delay = int(retry) / 1000 if retry else 1.0
    while True:
        yield delay + random.random() / 10  # noqa: S311 - spreads clients
        delay = max(delay, min(delay * 2, MAX_BACKOFF))


async def ask_again(ask: Ask, *, retry: bytes | None, clock: Clock, within: float) -> tuple[Exchange, Head] | None:
    """Asks until there is an answer that is no failure of the upstream's own; None after `within` seconds."""
    give_up_at = clock.time() + within
    for delay in backoff(retry):
        answered = await _ask_once(ask)
        if answered is not None:
            return answered
        if clock.time() + delay > give_up_at:
            break
        await sleep(clock, delay)
    return None


async def _ask_once(ask: Ask) -> tuple[Exchange, Head] | None:
    exchange = None
    try:
        exchange = await ask.send()
        head = await exchange.answer()
        if head.status < 500:
            answered, exchange = (exchange, head), None
            return answered
    except OriginError as error:
        log.info("asked again: %s", error)
    finally:
        if exchange is not None:
            exchange.close()
    return None


class Producer:
    """Reads one upstream connection into a stream."""

    def __init__(
        self, stream: Stream, exchange: Exchange, decoder: Decoder, *, clock: Clock, counts: RouteMetrics
    ) -> None:
        self._stream = stream
        self._settings = stream.settings
        self._exchange = exchange
        self._decoder = decoder
        self._parser = wire.EventParser(stream.settings.max_event_bytes)
        self._clock = clock
        self._counts = counts
        self._lead = b""
        self._unread_timer: Timer | None = None
        self._stall_timer: Timer | None = None
        self._heard_at = clock.time()
        self._stalled = False

    def start(self, *, lead: bytes = b"") -> None:
        """Begins to append. `lead` is a signal that is to stand just before the first event, whoever reads it when."""
        self._lead = lead
        self._stream.producer = self
        self._watch_stall()
        self._exchange.start(self._on_data, self._on_end)

    # From the upstream

    def _on_data(self, data: bytes) -> None:
        self._heard_at = self._clock.time()
        self._stalled = False
        try:
            for piece in self._decoder.pieces(data):
                self._counts.bytes_in += len(piece)
                self._append(self._parser.feed(piece))
                if self._parser.too_large:
                    self.overflow()
                    return
        except DecodingError as error:
            log.warning("stream %.6s: its content coding is broken: %s", self._stream.id, error)
            self._lose()

    def _append(self, blocks: list[bytes]) -> None:
        stream = self._stream
        before = seq = stream.log.last
        frames: list[bytes] = []
        parts: list[bytes | wire.Block] = []
        for raw in blocks:
            block = wire.read_block(raw)
            if block.upstream_id is not None:
                stream.take_upstream_id(block.upstream_id)
            if block.retry is not None:
                stream.upstream_retry = block.retry
            if block.kind is wire.Kind.EVENT:
                seq += 1
                frame = self._lead + wire.frame(block.body, seq, stream.suffix)
                self._lead = b""
                frames.append(frame)
                parts.append(frame)
            elif block.body:
                parts.append(block)
        if frames:
            self._counts.events_in += len(frames)
            stream.append(frames)
        if parts:
            stream.publish(parts, before)
        stream.account(self._parser.pending)

    def _on_end(self, error: AnswerError | None) -> None:
        if error is None:
            self._finish(State.DORMANT if self._stream.repeatable else State.COMPLETE)
        else:
            log.info("stream %.6s: its upstream was lost: %s", self._stream.id, error)
            self._lose()

    # Ends

    def _lose(self) -> None:
        """As without the sidecar, but said out loud. A GET may be asked again by its next resume."""
        self._counts.errors["upstream-lost"] += len(self._stream.readers)
        state = State.DORMANT if self._stream.repeatable else State.BROKEN
        self._finish(state, clean=False, final=wire.signal("upstream-lost", LOST), may_miss=True)

    def overflow(self) -> None:
        """The event, or all that is unfinished together, is more than may be held."""
        log.warning("stream %.6s: an event is too large", self._stream.id)
        self._counts.errors["too-large"] += len(self._stream.readers)
        self._finish(State.BROKEN, clean=False, final=wire.signal("too-large", TOO_LARGE))

    def stop(self) -> None:
        """Ends at once, whoever reads."""
        self._finish(State.BROKEN, clean=False)

    def _finish(self, state: State, *, clean: bool = True, final: bytes = b"", may_miss: bool = False) -> None:
        for timer in (self._unread_timer, self._stall_timer):
            if timer:
                timer.cancel()
        self._exchange.close()
        self._stream.end(state, clean=clean, final=final, may_miss=may_miss)

    # From the stream

    def pause(self) -> None:
        self._exchange.pause()

    def resume(self) -> None:
        self._exchange.resume()

    def on_read(self) -> None:
        if self._unread_timer:
            self._unread_timer.cancel()
            self._unread_timer = None

    def on_unread(self) -> None:
        """The last reader has left: its client may be on its way back."""
        policy = self._settings.on_disconnect
        if policy == "auto":
            policy = "linger" if self._stream.repeatable else "finish"
        waits = {"linger": self._settings.linger, "finish": self._settings.finish_timeout, "cancel": 0.0}
        self._unread_timer = self._clock.call_later(waits[policy], self._give_up)

    def _give_up(self) -> None:
        """No one has come back for it. A GET may be asked again; a POST's work has been stopped half done."""
        log.info("stream %.6s: its upstream is let go of, without a reader", self._stream.id)
        if self._stream.repeatable:
            self._finish(State.DORMANT, may_miss=True)
        else:
            self._finish(State.BROKEN, clean=False, final=wire.signal("upstream-lost", LOST))

    # Stall

    def _watch_stall(self) -> None:
        quiet = self._clock.time() - self._heard_at
        if quiet >= self._settings.stall_timeout and not self._stalled:
            self._stalled = True
            self._counts.stalls += 1
            log.warning("stream %.6s: nothing from its upstream for %g s", self._stream.id, quiet)
            self._stream.note(wire.WAITING)
        left = self._settings.stall_timeout - quiet
        self._stall_timer = self._clock.call_later(
            left if left > 0 else self._settings.stall_timeout, self._watch_stall
        )
