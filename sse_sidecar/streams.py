"""Streams: each one log with its state and its readers, and the table of them all with its budget and its expiry.

A stream does not know what appends to it, nor how a reader is written to; both are told by the protocols below.
Nothing here waits. All that changes a stream's state is in this file.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from enum import Enum
from functools import lru_cache
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sse_sidecar import event_id, wire
from sse_sidecar.departures import Departures
from sse_sidecar.history import Bounds, Log, Usage
from sse_sidecar.live import Live
from sse_sidecar.logs import facts

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence

    from sse_sidecar.clock import Clock, Timer
    from sse_sidecar.config import StreamSettings
    from sse_sidecar.headers import Headers
    from sse_sidecar.live import Transport
    from sse_sidecar.metrics import Metrics

log = logging.getLogger(__name__)

_STREAM_OVERHEAD = 4096
"""Bytes counted for a stream beside its log: its objects and its answer's headers, measured with tracemalloc."""

_MAX_EARLY = 100
"""Blocks. Many services begin with a comment, so that something gets through at once; no more is expected."""

RETRY_MS = 1000
MAX_RETRY_MS = 5000
_RETRY_WINDOW = 60.0
_RETRIES_THAT_COUNT = 3  # 1000 ms doubled three times is past the maximum


class State(Enum):
    """LIVE or RECONNECTING until the upstream has ended; then one of the others, for good."""

    LIVE = "live"
    RECONNECTING = "reconnecting"
    COMPLETE = "complete"
    DORMANT = "dormant"
    BROKEN = "broken"


_bounds = lru_cache(Bounds)  # one for each route rather than each stream: they are looked at for every event

_GOING_ON = (State.LIVE, State.RECONNECTING)


class Reader(Protocol):
    """One client connection: a cursor in a stream."""

    @property
    def cursor(self) -> int: ...

    @property
    def wrote_at(self) -> float: ...

    def on_end(self) -> None: ...

    def cut_off(self) -> None: ...


class Producer(Protocol):
    """What appends to a stream."""

    def on_read(self) -> None: ...

    def on_unread(self, *, at_least: float = 0.0) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def overflow(self) -> None: ...

    def give_up(self) -> None: ...

    def stop(self) -> None: ...

    def abandon(self) -> None: ...


class Opening(NamedTuple):
    """What a stream is opened with.

    `key` is the fingerprint of whoever may read it and of what was asked, `principal` of the first alone; `headers` are
    those of the upstream's answer; the numbers begin after `base`, and `upstream_id` is that of the event before.
    """

    key: bytes
    principal: bytes
    method: str
    route: str
    settings: StreamSettings
    headers: Headers
    shared: bool = False
    base: int = 0
    upstream_id: bytes = b""
    gives_ids: bool = False
    follows: str = ""
    """The id of the dormant stream that it goes on for, if it does."""


class _Hot:
    """What of a stream is looked at for every event.

    A base class, so that it lies side by side: with thousands of streams the cost of an event is that of the memory it
    touches, and slots are otherwise laid out by name.
    """

    __slots__ = (
        "_early",
        "_slow_timer",
        "_table",
        "counts",
        "held",
        "holes",
        "live_readers",
        "log",
        "pending",
        "published_at",
        "suffix",
    )


class Stream(_Hot):
    """One log of events, with one producer and any number of readers."""

    __slots__ = (
        "_clock",
        "_departures",
        "_resumed_at",
        "_timed_from",
        "asked_after",
        "base_suffix",
        "behind",
        "cancels",
        "clean",
        "evicted",
        "final",
        "follows",
        "gives_ids",
        "headers",
        "id",
        "key",
        "may_miss",
        "method",
        "names",
        "opened_at",
        "principal",
        "producer",
        "readers",
        "refused",
        "request_digest",
        "route",
        "settings",
        "shared",
        "state",
        "touched_at",
        "upstream_id",
        "upstream_retry",
        "waiting",
        "written",
    )

    def __init__(self, table: Streams, stream_id: str, opening: Opening) -> None:  # noqa: PLR0915 - one line a fact
        self._table = table
        self._clock = table.clock
        self.id = stream_id
        self.key = opening.key
        self.principal = opening.principal
        self.method = opening.method
        self.route = opening.route
        self.counts = table.metrics.route(opening.route)
        self.settings = settings = opening.settings
        self.headers = opening.headers
        self.shared = opening.shared
        self.request_digest: asyncio.Future[bytes] | None = None
        """Of the body of the request that opened it, where that bore an `Idempotency-Key`."""
        self.names: list[bytes] = []
        """Other keys under which the table finds it."""
        # What the upstream has said, and how far it has been heard.
        bounds = _bounds(settings.max_stream_events, settings.max_stream_bytes, settings.history_ttl)
        self.log = Log(bounds, opening.base, table.usage)
        self.upstream_id = opening.upstream_id
        self.gives_ids = opening.gives_ids
        """Whether `upstream_id` is the upstream's, and not only what its client brought."""
        self.upstream_retry: bytes | None = None
        self.base_suffix = self.suffix = event_id.suffix(stream_id, opening.upstream_id)
        # Its life.
        self.state = State.LIVE
        self.clean = True
        """Whether the end, if there is one yet, may be shown to a client as an end."""
        self.final = wire.NO_SIGNAL
        """What readers are told after the last event."""
        self.may_miss = False
        """Whether events may be missing after the last one: the upstream was let go of or lost, and has no ids."""
        self.evicted = False
        """Whether it is but a tombstone: its history has gone for the sake of others."""
        self.refused = False
        """Whether the upstream, asked to go on, gave an answer that is no stream: the next client gets it itself."""
        self.cancels = False
        """Whether its client has said that the upstream is to end when it leaves."""
        self.producer: Producer | None = None
        self.readers: dict[Reader, None] = {}
        self.behind: dict[Reader, None] = {}
        self.waiting: set[Reader] = set()
        """Those who have everything of this dormant stream, and wait for its upstream to go on."""
        self.written = opening.base
        """The last event that was written to a reader who has left."""
        self.touched_at = table.clock.time()
        self.asked_after = opening.upstream_id
        """The upstream's id that its request asked to go on from, if it did."""
        self.follows = opening.follows
        self.holes: set[int] | None = None
        """The events before which others may be missing, if there are such; the signal stands in their frames."""
        self._early: list[wire.Block] | None = []
        self._resumed_at: tuple[float, ...] = ()
        self._slow_timer: Timer | None = None
        self.live_readers = Live()
        """Those of its readers who are written to from within `publish`; the others are `behind`."""
        self.published_at = self.touched_at
        self._departures = Departures()
        self._timed_from: float | None = None
        # Accounting.
        self.held = True
        """Whether the table still has it."""
        self.pending = 0
        """Bytes of a block that has not ended."""
        self.opened_at = self.touched_at

    def __repr__(self) -> str:
        return f"<Stream {self.short} {self.state.value} {self.log!r} {len(self.readers)} readers>"

    @property
    def short(self) -> str:
        """Enough of its id to tell it from others; not enough to ask for it."""
        return self.id[:6]

    @property
    def ended(self) -> bool:
        return self.state not in _GOING_ON

    @property
    def repeatable(self) -> bool:
        return self.id[0] == event_id.REPEATABLE

    # The producer's side

    def take_upstream_id(self, upstream_id: bytes) -> None:
        self.upstream_id = upstream_id
        self.gives_ids = self.gives_ids or bool(upstream_id)
        self.suffix = event_id.suffix(self.id, upstream_id)

    def append(self, frames: Sequence[bytes], now: float) -> int:
        """Keeps frames, which must be numbered from the log's last on. No reader sees them before `publish`.

        Gives their size in bytes, which `publish` counts.
        """
        return self.log.append(frames, now)

    def publish(self, parts: Sequence[bytes | wire.Block], before: int, now: float, size: int = 0) -> None:
        """Gives live readers what was appended after `before`, with what came between it and is not kept."""
        self.published_at = now
        self.live_readers.publish(parts, before, self, events=self.log.last - before, size=size)
        if self._early is not None and len(self._early) < _MAX_EARLY:
            self._early += [part for part in parts if isinstance(part, wire.Block)]
        if self._slow_timer or not self.log.within(now):
            self.trim()

    def on_written(self, before: int, events: int, size: int, readers: int) -> None:
        """So many readers have been sent the `events` after `before`, of together `size` bytes."""
        counts = self.counts
        counts.events_delivered += events * readers
        counts.bytes_delivered += size * readers
        if self.holes is not None and readers:
            self.told_of_holes(before, before + events, readers)

    def told_of_holes(self, before: int, last: int, readers: int = 1) -> None:
        """The frames after `before` up to `last`, with the signals in them, have been sent."""
        holes = self.holes or ()
        told = sum(seq in holes for seq in range(before + 1, last + 1))
        if told:
            self.counts.failed("gap", self.short, times=told * readers)

    def time_from(self, started: float) -> None:
        """What was read at `started`, by the stopwatch, has been published: how long it took to be written to all."""
        if self.live_readers.busy:
            self._timed_from = self._timed_from or started
        elif self.live_readers:
            self.counts.delivery.observe(self.counts.stopwatch() - started)

    def take_early(self) -> list[wire.Block]:
        """What came before there was a reader, and is not kept: for the first one."""
        early, self._early = self._early or [], None
        return early

    def note(self, body: bytes) -> None:
        """A comment of the sidecar's own for those who read live."""
        self.publish([wire.Block(wire.Kind.QUIET, body)], self.log.last, self._clock.time())

    def reconnecting(self) -> None:
        """The upstream is being asked again; whoever reads stays connected."""
        self._become(State.RECONNECTING)
        self.note(wire.WAITING)

    def live(self) -> None:
        """The upstream is there again."""
        self._become(State.LIVE)

    def _become(self, state: State) -> None:
        self.counts.streams[self.state.value] -= 1
        self.counts.streams[state.value] += 1
        self.state = state

    def expect_hole(self) -> None:
        """Events may be missing before the next one."""
        held = {seq for seq in self.holes or () if seq >= self.log.first}
        self.holes = held | {self.log.last + 1}

    def account(self, pending: int) -> None:
        """Tells the table what the stream holds in memory."""
        if self.held:
            self._table.usage.size += pending - self.pending
            self.pending = pending
            self._table.make_room(self)

    def end(
        self,
        state: State,
        *,
        cause: str,
        clean: bool = True,
        final: wire.Signal = wire.NO_SIGNAL,
        may_miss: bool = False,
    ) -> None:
        """No more will be appended. Readers are told, and leave once they have everything."""
        if self.ended:
            return
        if not self.readers:
            self.counts.unread -= 1
        self._become(state)
        self.clean, self.final = clean, final
        self.may_miss = may_miss and not (self.gives_ids and self.upstream_id)
        self.producer = None
        self.touched_at = self._clock.time()
        self._tell_end(cause)
        self._cancel_slow_timer()
        self.account(0)
        for reader in self.readers:
            reader.on_end()
        self._table.on_quiet(self)

    def _tell_end(self, cause: str) -> None:
        log.log(
            logging.INFO if self.clean else logging.WARNING,
            "stream ended",
            extra=facts(
                route=self.route,
                stream=self.short,
                state=self.state.value,
                cause=cause,
                seq=self.log.last,
                events=self.log.last - self.log.base,
                held_bytes=self.log.size,
                readers=len(self.readers),
                duration_s=round(self.touched_at - self.opened_at, 3),
            ),
        )

    def complete(self) -> None:
        """A dormant stream is over after all: its upstream said so when asked again, or its client does."""
        if self.state is State.DORMANT:
            self._table.unshelve(self)
            self._become(State.COMPLETE)
            self.clean, self.final = True, wire.NO_SIGNAL
            self._table.on_quiet(self)
            for waiting in list(self.waiting):
                waiting.on_end()

    # The readers' side

    def attach(self, reader: Reader) -> None:
        self._table.unshelve(self)
        self.readers[reader] = self.behind[reader] = None
        self.counts.readers += 1
        if len(self.readers) == 1:
            self._on_read()

    def _on_read(self) -> None:
        self.counts.concurrent += 1
        if not self.ended:
            self.counts.unread -= 1
        if self.producer:
            self.producer.on_read()

    def detach(self, reader: Reader) -> None:
        del self.readers[reader], self.behind[reader]
        self.written = max(self.written, reader.cursor)
        self.touched_at = self._clock.time()
        self.counts.readers -= 1
        if not self.readers:
            self.counts.concurrent -= 1
            self.counts.unread += not self.ended
        if not self.readers and self.producer:
            self.producer.on_unread()
        self.trim()
        self.account(self.pending)
        self._table.on_quiet(self)

    def on_departure(self, cursor: int) -> None:
        """A client has gone that was last sent event `cursor`."""
        self._departures.add(cursor, self._clock.time())

    def on_return(self, after: int) -> float | None:
        """A reader that has everything up to `after` has come back: the seconds that it was away, if that is known."""
        left = self._departures.take(after)
        if left is None:
            return None
        away = self._clock.time() - left
        self.counts.reconnects.observe(away * 1000)
        return away

    def go_live(self, reader: Reader, transport: Transport, form: wire.Form) -> None:
        """From now on a reader that has everything is written to as soon as there is more."""
        del self.behind[reader]
        self.live_readers.add(transport, form)

    def leave_live(self, reader: Reader, transport: Transport) -> int:
        """Gives the last event that the reader was sent."""
        self.behind[reader] = None
        sent = self.live_readers.remove(transport)
        return self.log.last if sent is None else sent

    def on_advance(self) -> None:
        """A reader that lagged has been sent more."""
        if self._slow_timer:
            self.trim()

    def next_retry(self, *, resumed: bool, jitter: float) -> bytes:
        """The reconnection time for a new connection, in milliseconds: the upstream's, or a back-off for browsers.

        They have none of their own, so it doubles for each resume within the last minute. `jitter` is of 0..1.
        """
        now = self._clock.time()
        if resumed:
            self._resumed_at = (*self._resumed_at, now)[-_RETRIES_THAT_COUNT:]
        if self.upstream_retry is not None:
            return self.upstream_retry
        recent = sum(now - at < _RETRY_WINDOW for at in self._resumed_at)
        return b"%d" % (min(RETRY_MS << recent, MAX_RETRY_MS) + int(jitter * 100))

    # Bounds

    def trim(self) -> None:
        """Lets go of what is out of bounds. A log that its slowest reader keeps full holds up the upstream for a while.

        Twice over the bound, which a compressed chunk can reach at once, no one is waited for.
        """
        hard = self.log.size > 2 * self.settings.max_stream_bytes and not self.ended
        waits = not (hard or self.shared)
        within = self.log.trim(self._clock.time(), keep_after=self.slowest() if waits else None)
        if not waits:
            self._cut_left_behind()
        if within:
            self._cancel_slow_timer()
        elif self._slow_timer is None and not self.ended:
            self._slow_timer = self._clock.call_later(self.settings.slow_reader_timeout, self._cut_laggards)
            self.pace()

    def slowest(self) -> int | None:
        """The cursor of the reader furthest behind."""
        cursors = [reader.cursor for reader in self.behind]
        if len(cursors) < len(self.readers):
            cursors.append(self.log.last if self.live_readers.before is None else self.live_readers.before)
        return min(cursors, default=None)

    def release(self, size: float) -> None:
        """Lets go of the oldest that every reader has passed, until `size` bytes are free."""
        slowest = self.slowest()
        passed = self.log.last if slowest is None else slowest
        while size > 0 and (freed := self.log.drop_oldest(passed)):
            size -= freed

    def cut_slowest(self) -> None:
        """Lets go of what only the reader furthest behind has yet to be sent, and of that reader."""
        cursors = sorted({reader.cursor for reader in self.behind})
        self.log.drop_before((cursors[1] if len(cursors) > 1 else self.log.last) + 1)
        self._cut_left_behind()

    @property
    def lag(self) -> int:
        """Events of the log that the reader furthest behind has yet to be sent."""
        return max((self.log.last - reader.cursor for reader in self.behind), default=0)

    def _cut_laggards(self) -> None:
        self._slow_timer = None
        self.log.trim(self._clock.time())
        self._cut_left_behind()
        self.pace()

    def _cut_left_behind(self) -> None:
        for reader in list(self.behind):
            if reader.cursor + 1 < self.log.first:
                reader.cut_off()

    def _cancel_slow_timer(self) -> None:
        if self._slow_timer:
            self._slow_timer.cancel()
            self._slow_timer = None
            self.pace()

    def pace(self) -> None:
        """Holds up the upstream while a full log waits for a reader, or readers for their turn."""
        if self.producer and (self._slow_timer or self.live_readers.busy):
            self.producer.pause()
        elif self.producer:
            self.producer.resume()
        if self._timed_from is not None and not self.live_readers.busy:
            started, self._timed_from = self._timed_from, None
            self.time_from(started)


class Streams:
    """All streams of the process: found by id, counted, bounded, expired.

    A stream that has ended and has no reader lies on a shelf, in the order of its last activity, so that what is due to
    expire or to be evicted is always the first of a shelf and nothing is ever searched for.
    """

    def __init__(self, clock: Clock, metrics: Metrics, *, max_memory: int) -> None:
        self.clock = clock
        self.metrics = metrics
        self.max_memory = max_memory
        self._by_id: dict[str, Stream] = {}
        self._active: dict[str, Stream] = {}
        """Those with an upstream or a reader, in the order in which they became so."""
        self._by_name: dict[bytes, Stream] = {}
        self._shelves: dict[tuple[_Kind, float], OrderedDict[str, Stream]] = {}
        self._timers: dict[tuple[_Kind, float], Timer] = {}
        self.usage = Usage()
        """Bytes held by all streams, unfinished blocks included."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._by_id.values())

    @property
    def active(self) -> int:
        """Streams with an upstream or a reader."""
        return len(self._active)

    def latest(self) -> Iterator[Stream]:
        """Those, the one that became so last first."""
        return reversed(self._active.values())

    @property
    def reader_count(self) -> int:
        return sum(counts.readers for counts in self.metrics.routes.values())

    def find(self, stream_id: str) -> Stream | None:
        """The stream, whosever it is: the caller compares `key` or `principal`, and answers both misses alike."""
        return self._by_id.get(stream_id)

    def open(self, opening: Opening) -> Stream:
        """A new stream. Its id says whether its request may be sent again (RFC 9110, section 9.2.2)."""
        stream = Stream(self, event_id.mint(repeatable=opening.method == "GET"), opening)
        self._by_id[stream.id] = self._active[stream.id] = stream
        stream.counts.streams[stream.state.value] += 1
        stream.counts.unread += 1
        self.usage.size += _STREAM_OVERHEAD
        self.make_room(stream)
        return stream

    def name(self, stream: Stream, key: bytes) -> None:
        """Makes a stream known under another key, in place of the one that was."""
        stream.names.append(key)
        self._by_name[key] = stream

    def named(self, key: bytes) -> Stream | None:
        return self._by_name.get(key)

    @property
    def memory(self) -> int:
        return self.usage.size

    def make_room(self, growing: Stream) -> None:
        """Lets go of something where all together hold too much."""
        if self.usage.size > self.max_memory:
            self._evict(growing)

    def close(self) -> None:
        """Lets go of all streams and their upstreams."""
        for timer in self._timers.values():
            timer.cancel()
        for stream in list(self):
            if stream.producer:
                stream.producer.abandon()

    # Shelves

    def on_quiet(self, stream: Stream) -> None:
        """Puts a stream on its shelf if it has ended and no one reads it."""
        if not stream.ended or stream.readers or not stream.held:
            return
        self._active.pop(stream.id, None)
        place = (_kind(stream), stream.settings.history_ttl)
        shelf = self._shelves.setdefault(place, OrderedDict())
        shelf[stream.id] = stream
        shelf.move_to_end(stream.id)
        # Tombstones that were asked for since are younger than one that comes now; there are few of them.
        younger = takewhile(
            lambda other: other.touched_at > stream.touched_at, islice(reversed(shelf.values()), 1, None)
        )
        for other in reversed(list(younger)):
            shelf.move_to_end(other.id)
        if next(iter(shelf)) == stream.id:
            self._expire_at(place, stream.touched_at + place[1])

    def unshelve(self, stream: Stream) -> None:
        shelf = self._shelves.get((_kind(stream), stream.settings.history_ttl))
        if shelf is not None and stream.id in shelf:
            del shelf[stream.id]
            self._active[stream.id] = stream

    def _expire(self, place: tuple[_Kind, float]) -> None:
        shelf, ttl = self._shelves[place], place[1]
        now = self.clock.time()
        del self._timers[place]
        while shelf:
            stream = next(iter(shelf.values()))
            if stream.touched_at + ttl > now:
                self._expire_at(place, stream.touched_at + ttl)
                return
            shelf.popitem(last=False)
            self._forget(stream)

    def _expire_at(self, place: tuple[_Kind, float], when: float) -> None:
        if place in self._timers:
            self._timers[place].cancel()
        self._timers[place] = self.clock.call_later(when - self.clock.time(), self._expire, place)

    def _forget(self, stream: Stream) -> None:
        del self._by_id[stream.id]
        self._active.pop(stream.id, None)
        stream.counts.streams[stream.state.value] -= 1
        stream.held = False
        stream.log.drop_before(stream.log.last + 1)
        self.usage.size -= _STREAM_OVERHEAD + stream.pending
        for name in stream.names:
            if self._by_name.get(name) is stream:
                del self._by_name[name]

    # The budget

    def _evict(self, growing: Stream) -> None:
        """Gets back under `max_memory`: finished histories go first, then dormant streams, then what live ones spare.

        A finished stream leaves a tombstone, so that its clients are told that it is over instead of starting it anew.
        """
        self._evict_kind(_Kind.FINISHED)
        self._evict_kind(_Kind.DORMANT)
        if self.memory > self.max_memory:
            self._release()
        self._cut_slowest()
        self._evict_kind(_Kind.TOMBSTONE)
        if self.memory > self.max_memory and growing.producer:
            growing.producer.overflow()

    def _evict_kind(self, kind: _Kind) -> None:
        while self.memory > self.max_memory and (stream := self._oldest(kind)):
            stream.counts.evictions[kind.value] += 1
            self._evict_shelved(stream, kind)

    def _oldest(self, kind: _Kind) -> Stream | None:
        shelves = [shelf for (of, _), shelf in self._shelves.items() if of is kind and shelf]
        oldest = (next(iter(shelf.values())) for shelf in shelves)
        return min(oldest, key=lambda stream: stream.touched_at, default=None)

    def _evict_shelved(self, stream: Stream, kind: _Kind) -> None:
        self.unshelve(stream)
        if kind is _Kind.FINISHED:
            stream.log.drop_before(stream.log.last + 1)
            stream.evicted = True
            self.on_quiet(stream)
        else:
            self._forget(stream)

    def _release(self) -> None:
        """Takes from the largest first, and a tenth more than needed, so that the next event does not ask again."""
        for stream in sorted(self, key=lambda stream: stream.log.size, reverse=True):
            excess = self.memory - self.max_memory * 0.9
            if excess <= 0:
                return
            stream.release(excess)
            stream.counts.evictions["passed"] += 1

    def _cut_slowest(self) -> None:
        while self.memory > self.max_memory:
            stream = max(self, key=lambda stream: stream.lag, default=None)
            if stream is None or not stream.lag:
                return
            stream.cut_slowest()


class _Kind(Enum):
    """What a shelf holds; also the cause in the eviction counter."""

    FINISHED = "finished"
    DORMANT = "dormant"
    TOMBSTONE = "tombstone"


def _kind(stream: Stream) -> _Kind:
    if stream.state is State.DORMANT:
        return _Kind.DORMANT
    return _Kind.TOMBSTONE if stream.evicted else _Kind.FINISHED
