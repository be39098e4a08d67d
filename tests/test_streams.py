"""All streams together: how long they are held, how much of them, and that they are really let go of."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import time
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.config import StreamSettings
from sse_sidecar.delivery import Reader
from sse_sidecar.downstream import Client
from sse_sidecar.exchange import Exchange
from sse_sidecar.metrics import Metrics
from sse_sidecar.streams import Opening, State, Stream, Streams
from sse_sidecar.upstream import Producer
from tests.conftest import Ask, OpenStream, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, port_of, request, scrape, unread, until

if TYPE_CHECKING:
    from _typeshed import TraceFunction

TTL = 3600
NO_BOUND = 1 << 40
DEFAULTS = StreamSettings()
KB = 1024

POST: dict[str, Any] = {"method": "POST", "body": b"{}"}


def resuming(seq: int, response: Response, headers: dict[str, str] | None = None) -> dict[str, str]:
    return {**(headers or {}), "Last-Event-ID": f"{seq}-{response.stream_id}"}


async def ended(open_stream: OpenStream, data: bytes, target: str = "/a", **kwargs: Any) -> Response:
    """A stream that came to its clean end, read whole by its client."""
    asked, response = await open_stream(target, **kwargs)
    await asked.stream(data)
    await asked.end()
    await response.read_to_end()
    return response


# Expiry


async def test_a_complete_stream_is_held_for_history_ttl_after_its_last_activity(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    response = await ended(open_stream, b"data: 1\n\ndata: 2\n\n", **POST)
    statuses = []
    for pause in (TTL - 0.1, TTL - 0.1, TTL):
        await unread(sidecar)
        clock.advance(pause)
        again = await ask("/a", headers=resuming(1, response))
        await again.read_to_end()
        statuses.append(again.status)

    assert [200, 200, 410] == statuses
    assert 0 == len(sidecar.streams)


async def test_a_dormant_stream_is_held_for_history_ttl(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    response = await ended(open_stream, b"data: 1\n\n")
    await unread(sidecar)
    clock.advance(TTL - 0.1)
    held = len(sidecar.streams)
    clock.advance(0.1)
    _, again = await open_stream("/a", headers=resuming(1, response))

    assert (1, "reset") == (held, again.sse_status)


async def test_a_stream_that_is_read_does_not_expire(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    """Nor does one that is live without a reader: a lost client's work goes on."""
    asked, response = await open_stream("/a", **POST)
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    for _ in range(3):
        clock.advance(TTL)
    again = await ask("/a", headers=resuming(0, response))
    await asked.stream(b"data: 2\n\n")
    await again.read_until(b"id: 2-")

    assert "resumed" == again.sse_status


@with_settings(history_ttl=TTL, route=[{"path": "/short", "history_ttl": 60}])
async def test_a_route_has_its_own_history_ttl(open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock) -> None:
    await ended(open_stream, b"data: 1\n\n", "/long")
    await ended(open_stream, b"data: 1\n\n", "/short")
    await unread(sidecar)
    held = []
    for pause in (59.9, 0.1, TTL - 60.1, 0.1):
        clock.advance(pause)
        held.append(len(sidecar.streams))

    assert [2, 1, 1, 0] == held


@with_settings(history_ttl=100)
async def test_the_old_events_of_a_long_stream_go_by_age(open_stream: OpenStream, ask: Ask, clock: ManualClock) -> None:
    asked, response = await open_stream("/a")
    for number in range(1, 5):
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"id: %d-" % number)
        clock.advance(40)
    await asked.stream(b"data: 5\n\n")
    await response.read_until(b"id: 5-")

    again = await ask("/a", headers=resuming(0, response))
    await again.read_until(b"id: 5-")

    assert "gap" == again.sse_status
    assert b'"lost": 2' in again.body
    assert ["3", "4", "5"] == re.findall(r"data: (\d)\n", again.body.decode())


# What holds for ten streams holds for a hundred thousand


class Table:
    """The table alone, with streams that are made and ended by hand."""

    def __init__(self, clock: ManualClock, *, max_memory: int = NO_BOUND) -> None:
        self.clock = clock
        metrics = Metrics(clock.time, stopwatch=time.perf_counter, wall=time.time)
        self.streams = Streams(clock, metrics, max_memory=max_memory)

    def open(self, *, kilobytes: int = 0, settings: StreamSettings = DEFAULTS) -> Stream:
        stream = self.streams.open(Opening(b"key", b"principal", "POST", "route", settings, headers=()))
        if kilobytes:
            self.grow(stream, kilobytes)
        return stream

    def grow(self, stream: Stream, kilobytes: int) -> None:
        """One event more."""
        stream.append([kilobytes * KB * b"x"], self.streams.clock.time())
        stream.account(0)

    def ended(self, state: State = State.COMPLETE, **kwargs: Any) -> Stream:
        stream = self.open(**kwargs)
        stream.end(state, cause="its test ended it")
        return stream

    def holds(self, stream: Stream) -> bool:
        return self.streams.find(stream.id) is stream

    def holds_events(self, stream: Stream) -> bool:
        return self.holds(stream) and stream.log.first <= stream.log.last


@pytest.fixture
def table(clock: ManualClock) -> Table:
    return Table(clock)


def steps(work: Callable[[], Any]) -> int:
    """Lines run within `work`, each turn of a loop anew."""
    number = 0

    def count(_frame: FrameType, _event: str, _arg: object) -> TraceFunction:
        nonlocal number
        number += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return number


def test_nothing_is_scanned(clock: ManualClock) -> None:
    """Expiry, eviction, look-up and accounting take as many steps with ten streams as with a hundred thousand."""

    def taken(number: int) -> list[int]:
        table = Table(ManualClock())
        oldest = table.ended(State.DORMANT)
        table.clock.advance(1)
        for _ in range(number):
            table.ended(State.DORMANT)
        live = table.open()
        table.grow(live, 1)
        table.clock.advance(1)
        look_up = steps(lambda: table.holds(oldest) and table.holds(live))
        account = steps(lambda: table.grow(live, 1))
        gone = [len(table.streams)]
        expire = steps(lambda: table.clock.advance(TTL - 2))
        gone.append(len(table.streams))
        table.streams.max_memory = table.streams.memory
        evict = steps(lambda: table.grow(live, 1))
        gone.append(len(table.streams))
        assert [number + 2, number + 1, number] == gone
        return [look_up, account, expire, evict, table.clock.pending]

    assert taken(10) == taken(100_000)


# How much is held


EVENT = b"data: " + (8 * KB - 38) * b"x" + b"\n\n"
"""With its id, 8 KiB."""


SEGMENT = 64 * KB
"""What goes is gone from memory a segment at a time."""


@pytest.mark.parametrize(
    ("settings", "held", "most"),
    [
        ({"max_stream_events": 5}, 5, 5 * 8 * KB + SEGMENT),
        ({"max_stream_bytes": 64 * KB, "max_event_bytes": 64 * KB}, 7, 64 * KB),
    ],
    ids=["events", "bytes"],
)
async def test_of_one_stream_no_more_is_held_than_its_bounds(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, held: int, most: int
) -> None:
    asked, response = await open_stream("/a")
    sizes = []
    for number in range(1, 21):
        await asked.stream(EVENT)
        await response.read_until(b"id: %d-" % number)
        sizes.append(sidecar.streams.memory)

    again = await ask("/a", headers=resuming(0, response))
    await again.read_until(b"id: 20-")

    assert max(sizes) <= most + 8 * KB  # and what the stream itself is counted as
    assert f'"lost": {20 - held}'.encode() in again.body
    assert list(range(21 - held, 21)) == [int(number) for number in re.findall(rb"id: (\d+)-", again.body)]


tight = with_settings(max_memory=300 * KB, max_stream_bytes=100 * KB, max_event_bytes=100 * KB)


@tight
async def test_a_complete_stream_that_goes_early_is_still_known_to_be_over(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, upstream: Upstream
) -> None:
    """Its client is told so, instead of running the job again."""
    responses = [await ended(open_stream, 10 * EVENT, **POST) for _ in range(5)]
    memory = sidecar.streams.memory

    at_end = await ask("/a", headers=resuming(10, responses[0], EVENT_SOURCE))
    before_end = await ask("/a", headers=resuming(4, responses[0]))
    await before_end.read_to_end()
    newest = await ask("/a", headers=resuming(9, responses[-1]))
    await newest.read_to_end()

    assert memory <= 300 * KB
    assert (204, "gap", True) == (at_end.status, before_end.sse_status, before_end.whole)
    assert b'"lost": 6' in before_end.body
    assert ("resumed", 5) == (newest.sse_status, len(upstream.requests))
    assert 2 <= (await scrape(sidecar))['sse_evictions_total{cause="finished",route="default"}'] <= 3


@tight
async def test_unfinished_blocks_count(open_stream: OpenStream, sidecar: Sidecar) -> None:
    """The one that would be too much for all together is broken off."""
    opened = [await open_stream("/a") for _ in range(4)]
    for asked, _ in opened[:3]:
        await asked.stream(b"data: " + 90 * KB * b"x")
    await until(lambda: sidecar.streams.memory > 270 * KB)
    await opened[3][0].stream(b"data: " + 90 * KB * b"x")
    await opened[3][1].read_to_end()
    await opened[0][0].stream(b"\n\n")
    await opened[0][1].read_until(b"id: 1-")

    assert b'"code": "too-large"' in opened[3][1].body
    assert sidecar.streams.memory <= 300 * KB


class StubReader:
    """A reader that stays where it is."""

    def __init__(self, stream: Stream, cursor: int) -> None:
        self.cursor = cursor
        self.wrote_at = 0.0
        self.is_cut_off = False
        stream.attach(self)

    def on_end(self) -> None: ...

    def cut_off(self) -> None:
        self.is_cut_off = True


def test_what_goes_first_when_all_together_is_too_much(clock: ManualClock) -> None:
    """What is complete, then what is dormant, the oldest first; what all readers have; the reader furthest behind."""
    table = Table(clock, max_memory=1000 * KB)
    streams: dict[str, Stream] = {}
    for name, state in (("1", State.DORMANT), ("2", State.COMPLETE), ("3", State.DORMANT), ("4", State.COMPLETE)):
        streams[f"{state.value} {name}"] = table.ended(state, kilobytes=100)
        clock.advance(1)
    streams["passed"] = table.open(kilobytes=100)
    StubReader(streams["passed"], cursor=1)
    streams["little behind"] = table.open(kilobytes=100)
    little_behind = StubReader(streams["little behind"], cursor=0)
    growing = table.open()
    far_behind = StubReader(growing, cursor=0)

    gone: list[str] = []
    while not far_behind.is_cut_off:
        table.grow(growing, 50)
        gone += [name for name, stream in streams.items() if name not in gone and not table.holds_events(stream)]
        assert table.streams.memory <= 1000 * KB

    assert ["complete 2", "complete 4", "dormant 1", "dormant 3", "passed"] == gone
    assert not little_behind.is_cut_off


@pytest.mark.parametrize("state", [State.COMPLETE, State.DORMANT])
def test_the_oldest_is_the_one_without_activity_for_longest(clock: ManualClock, state: State) -> None:
    table = Table(clock, max_memory=350 * KB)
    opened_first, opened_second = table.ended(state, kilobytes=100), table.ended(state, kilobytes=100)
    clock.advance(1)
    reader = StubReader(opened_first, cursor=1)
    opened_first.detach(reader)
    table.ended(State.COMPLETE if state is State.DORMANT else State.DORMANT)
    table.open(kilobytes=150)

    assert (True, False) == (table.holds_events(opened_first), table.holds_events(opened_second))


def test_the_oldest_goes_first_across_routes(clock: ManualClock) -> None:
    table = Table(clock, max_memory=350 * KB)
    older = table.ended(kilobytes=100, settings=StreamSettings(history_ttl=7200))
    clock.advance(1)
    newer = table.ended(kilobytes=100)
    table.open(kilobytes=150)

    assert (False, True) == (table.holds_events(older), table.holds_events(newer))


def test_a_tombstone_is_kept_until_the_time_of_its_stream(clock: ManualClock) -> None:
    table = Table(clock, max_memory=250 * KB)
    stream = table.ended(kilobytes=100)
    clock.advance(200)
    table.open(kilobytes=200)
    clock.advance(TTL - 200.1)
    before = table.holds(stream), table.holds_events(stream)
    clock.advance(0.1)

    assert (True, False) == before
    assert not table.holds(stream)


def test_a_tombstone_that_was_asked_for_keeps_no_other(clock: ManualClock) -> None:
    table = Table(clock, max_memory=350 * KB)
    asked_for, other = table.ended(kilobytes=100), table.ended(kilobytes=100)
    growing = table.open(kilobytes=200)
    clock.advance(1000)
    asked_for.detach(StubReader(asked_for, cursor=1))
    table.grow(growing, 50)
    both_are_tombstones = not (table.holds_events(asked_for) or table.holds_events(other))
    clock.advance(TTL - 1000)

    assert both_are_tombstones
    assert (True, False) == (table.holds(asked_for), table.holds(other))


# Nothing is left


def test_memory_returns_after_a_thousand_streams(clock: ManualClock) -> None:
    def come_and_go(number: int) -> None:
        table = tables[0]
        for index in range(number):
            table.ended(State.COMPLETE if index % 2 else State.DORMANT, kilobytes=10)
        clock.advance(TTL)

    tables = [Table(clock)]
    come_and_go(10)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        come_and_go(1000)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak - before > 1000 * 10 * KB
    assert after - before < 100 * KB
    assert (0, 0) == (len(tables[0].streams), tables[0].streams.memory)


def counted() -> dict[str, int]:
    """How many there are of what a stream is made of."""
    gc.collect()
    kinds = (Stream, Reader, Producer, Exchange, Client)
    return {kind.__name__: sum(type(item) is kind for item in gc.get_objects()) for kind in kinds}


async def test_no_stream_timer_or_task_is_left_of_a_thousand(
    sidecar: Sidecar, upstream: Upstream, clock: ManualClock
) -> None:
    """Whether they ended whole, were lost, or their clients left them."""
    upstream.handler = play
    timers, tasks, objects = clock.pending, len(asyncio.all_tasks()), counted()

    for _ in range(20):
        await asyncio.gather(*(come_and_go(sidecar, target) for target in TARGETS for _ in range(10)))
    held = len(sidecar.streams)
    await unread(sidecar)
    clock.advance(600)
    clock.advance(TTL)
    await until(lambda: len(asyncio.all_tasks()) == tasks)

    assert held >= 1000
    assert (0, 0, timers) == (len(sidecar.streams), sidecar.streams.memory, clock.pending)
    assert objects == counted()


TARGETS = ("GET /ends", "POST /ends", "GET /is_lost", "POST /is_lost", "GET /goes_on")


async def play(asked: Asked) -> None:
    await asked.read_body()
    await asked.begin()
    await asked.stream(b"data: 1\n\n: hi\n\ndata: 2\n\n")
    if asked.target == "/ends":
        await asked.end()
    elif asked.target == "/is_lost":
        asked.reset()
    else:
        await asked.closed()


async def come_and_go(sidecar: Sidecar, target: str) -> None:
    """A client that leaves after one event, comes back, and leaves for good."""
    method, path = target.split()
    body = b"{}" if method == "POST" else b""
    response = await request(port_of(sidecar), path, method=method, body=body)
    await response.read_until(b"id: 1-")
    response.reset()
    again = await request(port_of(sidecar), path, headers=resuming(1, response))
    await again.read_until(b"id: 2-")
    again.reset()
