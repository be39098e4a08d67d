"""The reader: a cursor in a stream, and a client that is sent what lies after it.

Live is a replay that has caught up. A reader at the end of the log is written to from within `Stream.publish`; one that
falls behind is served from the log by its own coroutine, with back-pressure, until it is at the end again.
"""

from __future__ import annotations

import asyncio
import heapq
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sse_sidecar import wire
from sse_sidecar.clock import deadline, wake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sse_sidecar.clock import Clock, Timer
    from sse_sidecar.downstream import Client
    from sse_sidecar.metrics import RouteMetrics
    from sse_sidecar.streams import Stream
    from sse_sidecar.turns import Turns


_PIECES = 4
"""Segments of the log that are sent in one turn: as much as one read of an upstream brings. With less, no reader of one
that sends without a pause would ever catch up."""


class Reader:
    """Writes a stream to a client."""

    __slots__ = (
        "_client",
        "_clock",
        "_counts",
        "_cursor",
        "_form",
        "_interrupt",
        "_live",
        "_replay_to",
        "_replayed",
        "_turns",
        "_waiter",
        "_wrote_at",
        "come_back",
        "dialect",
        "done",
        "stream",
    )

    def __init__(
        self,
        client: Client,
        stream: Stream,
        cursor: int,
        *,
        dialect: wire.Dialect,
        clock: Clock,
        turns: Turns,
        counts: RouteMetrics,
    ) -> None:
        self._client = client
        self._turns = turns
        self._clock = clock
        self._counts = counts
        self._waiter: asyncio.Future[None] | None = None
        self._live = False
        self._replay_to = self._cursor = cursor
        self._replayed = 0
        self._form = wire.form(dialect, chunked=client.chunked)
        self._wrote_at = clock.time()
        self._interrupt: Callable[[], None] | None = None
        self.stream = stream
        self.dialect = dialect
        self.done = False
        """Whether it is over: cut off, or sent away with `dismiss`."""
        self.come_back = b""
        """What one that is sent away is told about coming back."""

    @property
    def cursor(self) -> int:
        """The last event that it was sent; while it is live, of those that were published."""
        return self.stream.log.last if self._live else self._cursor

    @property
    def wrote_at(self) -> float:
        return max(self._wrote_at, self.stream.published_at) if self._live else self._wrote_at

    def switch(self, stream: Stream) -> None:
        """Goes on with the stream that follows this one, from its start."""
        self.stream = stream
        self._replay_to = self._cursor = stream.log.first - 1

    async def follow(self, *, resumed: bool = False) -> None:
        """Delivers until the stream has ended and the client has been sent everything, or until `done`."""
        if resumed:
            self._replay_to = self.stream.log.last
        self.stream.attach(self)
        for block in self.stream.take_early():
            self._client.hold(wire.quiet(block, self.dialect))
        try:
            while not self.done:
                if self._client.backed_up:
                    await self._drain()
                    continue
                if self._cursor < self.stream.log.last:
                    await self._turns.take()
                    self._catch_up()
                    continue
                if self.stream.ended:
                    return
                self._client.flush()
                if not self._client.backed_up:
                    await self._read_live()
        finally:
            self._end_replay()
            self.stream.detach(self)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """While the client waits for something else than its stream's next event; it gets heartbeats all the same.

        Raises TimeoutError where it is sent away meanwhile, or the stream is over.
        """
        async with asyncio.timeout(None) as scope:
            self._interrupt = lambda: scope.reschedule(0)
            self.stream.waiting.add(self)
            self._counts.readers += 1
            try:
                yield
            finally:
                self._counts.readers -= 1
                self._interrupt = None
                self.stream.waiting.discard(self)

    def _catch_up(self) -> None:
        """Sends some of the log, while the client takes it."""
        for _ in range(_PIECES):
            self._replay()
            if self.done or self._client.backed_up or self._cursor == self.stream.log.last:
                break

    def _replay(self) -> None:
        """Sends one piece of the log."""
        if self._cursor + 1 < self.stream.log.first:
            self.cut_off()
            return
        data, last = self.stream.log.read_after(self._cursor)
        self._client.write(data)
        self._wrote_at = self._clock.time()
        self._count(last, len(data))
        self._cursor = last
        self.stream.on_advance()

    def _count(self, last: int, size: int) -> None:
        if self._wrote_at >= self._counts.sample_due:
            self._counts.sample(self._wrote_at)
        self._counts.events_delivered += last - self._cursor
        self._counts.bytes_delivered += size
        if self.stream.holes is not None:
            self.stream.told_of_holes(self._cursor, last)
        replayed = min(last, self._replay_to) - self._cursor
        if replayed > 0:
            self._counts.events_replayed += replayed
            self._replayed += replayed
        if last >= self._replay_to:
            self._end_replay()

    def _end_replay(self) -> None:
        """It has everything that there was when it came back, or leaves before."""
        if self._replayed:
            self._counts.replays.observe(self._replayed)
            self._replayed = 0

    async def _drain(self) -> None:
        """On a shared route no one waits for a client that takes nothing."""
        if not self.stream.shared:
            await self._client.drain()
            return
        try:
            async with deadline(self._clock, self.stream.settings.slow_reader_timeout):
                await self._client.drain()
        except TimeoutError:
            self.cut_off()

    async def _read_live(self) -> None:
        transport = self._client.transport
        if transport is None:  # it left before it was answered
            self.dismiss()
            return

        def fall_behind() -> None:
            self.stream.live_readers.fall_behind(transport)
            self._leave_live()

        self._waiter = asyncio.get_running_loop().create_future()
        self._client.on_backed_up = fall_behind
        self.stream.go_live(self, transport, self._form)
        self._live = True
        try:
            await self._waiter
        finally:
            self._live = False
            self._cursor = self.stream.leave_live(self, transport)
            self._client.on_backed_up = None

    def _leave_live(self) -> None:
        wake(self._waiter)

    # Called by the stream

    def on_end(self) -> None:
        self._leave_live()
        if self._interrupt:
            self._interrupt()

    def cut_off(self) -> None:
        """The log has no room to wait for this client. It resumes with its token."""
        self._counts.evictions["reader"] += 1
        self._client.abort()
        self.dismiss()

    def dismiss(self, come_back: bytes = b"") -> None:
        """Ends the reading at an event boundary; the client is to come back."""
        self.done = True
        self.come_back = come_back
        self._leave_live()
        if self._interrupt:
            self._interrupt()

    # Called by the heart

    def beat(self, now: float) -> None:
        """A comment, if the client is waiting; one that lags has bytes on their way already."""
        if (self._live or self._interrupt) and not self._client.backed_up:
            self._client.write(wire.notice(wire.HEARTBEAT, self.dialect))
            self._counts.heartbeats += 1
        self._wrote_at = now


class Heart:
    """Heartbeats of all readers from one timer: each stands in a heap by when it was last written to."""

    SLICE = 256
    """Readers served before the loop gets its turn: a write takes some 5 µs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[Beat] = []
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def add(self, reader: Reader) -> Beat:
        """Beats for a reader until it is told to `stop`."""
        beat = Beat(reader.wrote_at + reader.stream.settings.heartbeat, reader)
        heapq.heappush(self._due, beat)
        self._arm()
        return beat

    def _arm(self) -> None:
        if not self._due or (self._timer and self._timer_at <= self._due[0].due):
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = self._due[0].due
        self._timer = self._clock.call_later(max(self._timer_at - self._clock.time(), 0.0), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.time()
        for _ in range(self.SLICE):
            if not self._due or self._due[0].due > now:
                break
            beat = self._due[0]
            if beat.reader is None:
                heapq.heappop(self._due)
                continue
            interval = beat.reader.stream.settings.heartbeat
            if beat.reader.wrote_at + interval <= now:
                beat.reader.beat(now)
            beat.due = beat.reader.wrote_at + interval
            heapq.heapreplace(self._due, beat)
        self._arm()


class Beat:
    """When a reader is to be looked at next. It lets go of the reader as soon as that has left."""

    __slots__ = ("due", "reader")

    def __init__(self, due: float, reader: Reader) -> None:
        self.due = due
        self.reader: Reader | None = reader

    def stop(self) -> None:
        self.reader = None

    def __lt__(self, other: Beat) -> bool:
        return self.due < other.due
