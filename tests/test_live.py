"""The live readers of a stream: written to in order, a slice at a time, and what each has got when it is taken out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_sidecar import live, wire
from sse_sidecar.app import Sidecar
from sse_sidecar.live import SLICE, Live
from sse_sidecar.streams import Stream
from sse_sidecar.wire import Block, Dialect, Form, Kind
from tests.conftest import Ask, Connect, OpenStream, with_settings
from tests.harness import Asked, Response, chunk, until
from tests.together import HOST, PLAIN, Sleeper, backed_up, crowd, read_heads, request_of

shared = with_settings(mode="shared")

SIZE = 10
"""Bytes that each event is said to have."""

PLAINLY = wire.form(Dialect.LINE, chunked=False)
ALL_FORMS = [wire.form(dialect, chunked=chunked) for dialect in Dialect for chunked in (False, True)]


class Peer:
    """A transport that keeps each write. A real one may call `pause_writing` within `write`: so does `on_write`."""

    def __init__(self, on_write: Callable[[], None] = lambda: None) -> None:
        self.writes: list[bytes] = []
        self.closing = False
        self.on_write = on_write

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.writes.append(data)
        self.on_write()


class Readers:
    """Live readers under test, and the events they are told of: event `n` is the byte string of its number."""

    def __init__(self) -> None:
        self.changes: list[bool] = []
        """What `busy` was at each call of `pace`."""
        self.live = Live()
        self.last = 0
        self.more = 0
        """Events that are published as soon as there is no one who waits."""
        self.written: list[tuple[int, int, int]] = []
        """What was told of writes: the event before, how many events, to how many readers."""

    def pace(self) -> None:
        self.changes.append(self.live.busy)
        if self.more and not self.live.busy:
            self.more -= 1
            self.publish()

    def on_written(self, before: int, events: int, size: int, readers: int) -> None:
        assert size == SIZE * events
        self.written.append((before, events, readers))

    def join(self, number: int = 1, form: Form = PLAINLY) -> list[Peer]:
        peers = [Peer() for _ in range(number)]
        for peer in peers:
            self.live.add(peer, form)
        return peers

    def publish(self, *parts: bytes | Block) -> None:
        """Publishes one event, or the parts given."""
        before = self.last
        self.last += sum(isinstance(part, bytes) for part in parts or (b"",))
        events = self.last - before
        self.live.publish(parts or (b"%d" % self.last,), before, self, events=events, size=SIZE * events)

    def sent(self, peer: Peer) -> int:
        """Takes a reader out: the last event that it was sent."""
        sent = self.live.remove(peer)
        return self.last if sent is None else sent


@pytest.fixture
def readers() -> Readers:
    return Readers()


async def settled(readers: Readers) -> int:
    """Lets the loop turn until no one waits; how often it had to."""
    turns = 0
    while readers.live.busy:
        await asyncio.sleep(0)
        turns += 1
    return turns


# Few


def test_each_reader_gets_each_publication_once_and_in_order(readers: Readers) -> None:
    first = readers.join(2)
    readers.publish()
    readers.publish()
    second = readers.join(1)
    readers.publish()

    assert [[b"1", b"2", b"3"]] * 2 + [[b"3"]] == [peer.writes for peer in first + second]
    assert [(0, 1, 2), (1, 1, 2), (2, 1, 3)] == readers.written
    assert [3, 3, 3] == [readers.sent(peer) for peer in first + second]
    assert (0, []) == (len(readers.live), readers.changes)


def test_each_form_gets_its_own_bytes(readers: Readers) -> None:
    """The forms take turns, so that no reader gets what was made for the one before it."""
    peers = [(form, readers.join(1, form)[0]) for form in ALL_FORMS * 2]
    readers.publish(b"data: 1\nid: 1-x\n\n", Block(Kind.QUIET, b": hi"), Block(Kind.FIELDS, b"event: e"))
    readers.publish(b"data: 2\nid: 2-x\n\n")

    block = b"data: 1\nid: 1-x\n\n: hi\n\nevent: e\n\n"
    line = b"data: 1\nid: 1-x\n\n: hi\nevent: e\n\n"
    second = b"data: 2\nid: 2-x\n\n"
    expected = {
        (Dialect.BLOCK, False): [block, second],
        (Dialect.BLOCK, True): [b"21\r\n" + block + b"\r\n", b"11\r\n" + second + b"\r\n"],
        (Dialect.LINE, False): [line, second],
        (Dialect.LINE, True): [b"20\r\n" + line + b"\r\n", b"11\r\n" + second + b"\r\n"],
    }
    assert [expected[form.dialect, form.chunked] for form, _ in peers] == [peer.writes for _, peer in peers]


def test_a_transport_that_is_closing_is_skipped_and_has_what_it_was_sent(readers: Readers) -> None:
    closing, other = readers.join(2)
    readers.publish()
    closing.closing = True
    readers.publish()
    before = readers.live.before
    readers.publish()

    assert ([b"1"], [b"1", b"2", b"3"]) == (closing.writes, other.writes)
    assert (1, 1, None) == (before, readers.sent(closing), readers.live.before)
    assert 3 == readers.sent(other)


@pytest.mark.parametrize("within", [True, False], ids=["within a write", "outside of one"])
def test_whoever_falls_behind_is_written_no_more(readers: Readers, within: bool) -> None:
    slow, other = readers.join(2)
    if within:
        slow.on_write = lambda: readers.live.fall_behind(slow)
        readers.publish()
        slow.on_write = lambda: None
    else:
        readers.publish()
        readers.live.fall_behind(slow)
    before = [readers.live.before]
    readers.publish()
    before.append(readers.live.before)
    readers.publish()

    assert ([b"1"], [b"1", b"2", b"3"]) == (slow.writes, other.writes)
    assert [None, 1] == before
    assert 1 == readers.sent(slow)
    assert readers.live.before is None


@pytest.mark.parametrize("within", [True, False], ids=["within a write", "outside of one"])
def test_whoever_leaves_before_the_next_publication_has_everything(readers: Readers, within: bool) -> None:
    """That it had fallen behind is forgotten, and concerns no one who comes back."""
    [slow] = readers.join()
    if within:
        slow.on_write = lambda: readers.live.fall_behind(slow)
    readers.publish()
    slow.on_write = lambda: None
    if not within:
        readers.live.fall_behind(slow)
    sent = readers.live.remove(slow)
    readers.live.add(slow, PLAINLY)
    readers.publish()

    assert sent is None
    assert ([b"1", b"2"], 2) == (slow.writes, readers.sent(slow))


def test_whoever_comes_back_gets_what_comes_from_then_on(readers: Readers) -> None:
    [slow] = readers.join()
    readers.publish()
    readers.live.fall_behind(slow)
    readers.live.fall_behind(slow)  # its transport took more for a moment
    readers.publish()
    readers.publish()
    sent = readers.sent(slow)
    readers.live.add(slow, PLAINLY)
    readers.publish()

    assert (1, [b"1", b"4"], 4) == (sent, slow.writes, readers.sent(slow))


def test_before_is_of_the_one_furthest_behind(readers: Readers) -> None:
    peers = readers.join(3)
    seen = []
    for peer in peers:
        readers.publish()
        readers.live.fall_behind(peer)
    readers.publish()
    for peer in peers:
        seen.append(readers.live.before)
        readers.live.remove(peer)

    assert [1, 2, 3, None] == [*seen, readers.live.before]


# More than a slice


async def test_many_are_served_a_slice_in_a_turn_of_the_loop(readers: Readers) -> None:
    peers = readers.join(2 * SLICE + 1)
    readers.publish()
    served = [sum(len(peer.writes) for peer in peers)]
    while readers.live.busy:
        assert 0 == readers.live.before
        await asyncio.sleep(0)
        served.append(sum(len(peer.writes) for peer in peers))

    assert [SLICE, 2 * SLICE, 2 * SLICE + 1] == served
    assert [[b"1"]] * len(peers) == [peer.writes for peer in peers]
    assert [(0, 1, SLICE), (0, 1, SLICE), (0, 1, 1)] == readers.written
    assert ([True, False], None) == (readers.changes, readers.live.before)


async def test_a_slice_is_served_at_once(readers: Readers) -> None:
    peers = readers.join(SLICE)
    readers.publish()

    assert ([[b"1"]] * SLICE, []) == ([peer.writes for peer in peers], readers.changes)


async def test_what_comes_meanwhile_waits_for_its_turn(readers: Readers) -> None:
    """It is not written to those who have the first already: that would be more than a slice in a turn."""
    peers = readers.join(SLICE + 1)
    for _ in range(3):
        readers.publish()
    at_first = sum(len(peer.writes) for peer in peers)
    turns = await settled(readers)

    assert (SLICE, 5) == (at_first, turns)
    assert [[b"1", b"2", b"3"]] * len(peers) == [peer.writes for peer in peers]
    assert [True, False] == readers.changes


async def test_whoever_joins_meanwhile_gets_only_what_comes_after(readers: Readers) -> None:
    readers.join(SLICE + 1)
    readers.publish()
    [late] = readers.join()
    readers.publish()
    await settled(readers)
    readers.publish()
    await settled(readers)

    assert [b"2", b"3"] == late.writes


async def test_each_form_gets_its_own_bytes_in_slices_too(readers: Readers) -> None:
    peers = [(form, readers.join(1, form)[0]) for form in ALL_FORMS * SLICE]
    parts = (b"data: 1\n\n", Block(Kind.QUIET, b": hi"))
    readers.publish(*parts)
    await settled(readers)

    assert [[form.make(parts)] for form, _ in peers] == [peer.writes for _, peer in peers]


async def test_whoever_is_taken_out_while_it_waits_is_owed_its_first_unsent_publication(readers: Readers) -> None:
    peers = readers.join(SLICE + 2)
    for _ in range(3):
        readers.publish()
    first, second = [peer for peer in peers if not peer.writes]
    sent = [readers.sent(first)]
    await asyncio.sleep(0)
    sent += [readers.sent(second), *(readers.sent(peer) for peer in peers if peer not in (first, second))]
    written = [list(peer.writes) for peer in peers]
    await settled(readers)

    assert ([0, 1], [], [b"1"]) == (sent[:2], first.writes, second.writes)
    assert written == [peer.writes for peer in peers]
    assert sent[2:] == [len(peer.writes) for peer in peers if peer not in (first, second)]
    assert [True, False] == readers.changes


async def test_whoever_falls_behind_while_it_waits_is_owed_its_first_unsent_publication(readers: Readers) -> None:
    peers = readers.join(SLICE + 1)
    readers.publish()
    [waiting] = [peer for peer in peers if not peer.writes]
    readers.live.fall_behind(waiting)
    readers.publish()
    await settled(readers)

    assert ([], 0, 0) == (waiting.writes, readers.live.before, readers.sent(waiting))
    assert {(b"1", b"2")} == {tuple(peer.writes) for peer in peers if peer is not waiting}


async def test_whoever_closes_while_it_waits_is_owed_its_first_unsent_publication(readers: Readers) -> None:
    peers = readers.join(SLICE + 1)
    readers.publish()
    readers.publish()
    [waiting] = [peer for peer in peers if not peer.writes]
    waiting.closing = True
    await settled(readers)

    assert ([], 0, 0) == (waiting.writes, readers.live.before, readers.sent(waiting))


async def test_whoever_comes_back_meanwhile_is_not_given_what_it_has_had_from_the_log(readers: Readers) -> None:
    peers = readers.join(SLICE + 1)
    readers.publish()
    [waiting] = [peer for peer in peers if not peer.writes]
    readers.live.remove(waiting)
    readers.live.add(waiting, PLAINLY)
    await settled(readers)
    readers.publish()
    await settled(readers)

    assert [b"2"] == waiting.writes


async def test_when_all_have_left_it_is_busy_no_more(readers: Readers) -> None:
    peers = readers.join(SLICE + 1)
    readers.publish()
    readers.publish()
    for peer in peers:
        readers.live.remove(peer)
    await settled(readers)

    assert ([True, False], None, 0) == (readers.changes, readers.live.before, len(readers.live))


async def test_what_is_published_as_soon_as_it_is_busy_no_more_is_in_order(readers: Readers) -> None:
    """An upstream that was held up may go on from within the call-back."""
    readers.more = 2
    peers = readers.join(SLICE + 1)
    readers.publish()
    await settled(readers)

    assert [[b"1", b"2", b"3"]] * len(peers) == [peer.writes for peer in peers]
    assert [True, False] * 3 == readers.changes


# Any sequence


class Published(NamedTuple):
    before: int
    parts: Sequence[bytes | Block]


class ModelReader(Peer):
    """Checks each write against what is due to it, and replays from the log what it was not sent."""

    def __init__(self, model: Model, form: Form) -> None:
        super().__init__()
        self.model, self.form = model, form
        self.is_live = False
        self.is_left_out = False
        self.room = -1
        """Writes after which it takes no more; always some if negative."""
        self.joined_at = self.had = model.last
        """The last event it did not ask for, and the last it has."""
        self.next = 0

    def write(self, data: bytes) -> None:
        assert self.is_live
        assert not self.closing
        assert not self.is_left_out
        published = self.model.published[self.next]
        assert (self.had, self.form.make(published.parts)) == (published.before, data)
        self.next += 1
        self.had += sum(isinstance(part, bytes) for part in published.parts)
        self.model.writes += 1
        self.room -= 1
        if self.room == 0:
            self.fall_behind()

    def fall_behind(self) -> None:
        self.model.live.fall_behind(self)
        self.model.fallen.append(self)

    def go_live(self) -> None:
        """After a replay of what it lacks; see `leave`."""
        self.is_live, self.is_left_out, self.room = True, False, -1
        self.had, self.next = self.model.last, len(self.model.published)
        self.model.live.add(self, self.form)

    def leave(self) -> None:
        """What the log holds after the answer is what it lacks, so that nothing is lost and nothing doubled."""
        answer = self.model.live.remove(self)
        assert self.had == (self.model.last if answer is None else answer)
        self.is_live = False
        self.model.fallen = [reader for reader in self.model.fallen if reader is not self]


class Model:
    def __init__(self) -> None:
        self.live = Live()
        self.was_busy = False
        self.last = 0
        self.published: list[Published] = []
        self.readers: list[ModelReader] = []
        self.fallen: list[ModelReader] = []
        self.writes = 0
        """Writes that were told of, and those that there were."""
        self.told = 0

    def on_written(self, before: int, events: int, size: int, readers: int) -> None:
        assert events == size
        self.told += readers

    def pace(self) -> None:
        assert self.was_busy != self.live.busy
        self.was_busy = self.live.busy

    @property
    def live_ones(self) -> list[ModelReader]:
        return [reader for reader in self.readers if reader.is_live]

    def chosen(self, number: int) -> list[ModelReader]:
        """Some one of those who are live."""
        return [among[number % len(among)]] if (among := self.live_ones) else []

    # What may happen

    async def join(self, number: int) -> None:
        for form in (ALL_FORMS * number)[: number % 40 + 1]:
            if len(self.readers) < 200:
                self.readers.append(ModelReader(self, form))
                self.readers[-1].go_live()

    async def leave(self, number: int) -> None:
        for reader in self.chosen(number):
            reader.leave()

    async def leave_together(self, number: int) -> None:
        for reader in self.live_ones[:: number % 5 + 1]:
            reader.leave()

    async def come_back(self, number: int) -> None:
        away = [reader for reader in self.readers if not reader.is_live and not reader.closing]
        for reader in away[: number % 10 + 1]:
            reader.go_live()

    async def fall_behind(self, number: int) -> None:
        for reader in self.chosen(number):
            reader.fall_behind()

    async def fill_up(self, number: int) -> None:
        for reader in self.live_ones[:: number % 7 + 1]:
            reader.room = number % 3 + 1

    async def close(self, number: int) -> None:
        for reader in self.chosen(number):
            reader.closing = True

    async def publish(self, number: int) -> None:
        parts: list[bytes | Block] = [b"<%d>" % (self.last + index) for index in range(1, number % 3 + 1)]
        if number % 3 == 0 or number % 7 == 0:
            parts.insert(number % 2, Block(Kind.QUIET, b": %d" % len(self.published)))
        before, self.last = self.last, self.last + number % 3
        self.published.append(Published(before, parts))
        for reader in self.readers:
            reader.is_left_out = reader.is_left_out or (reader.is_live and reader in self.fallen)
        self.fallen.clear()
        self.live.publish(parts, before, self, events=number % 3, size=number % 3)

    async def turn(self, number: int) -> None:
        for _ in range(number % 4 + 1):
            await asyncio.sleep(0)

    def check(self) -> None:
        assert self.writes == self.told
        before = self.last if self.live.before is None else self.live.before
        furthest = min((reader.had for reader in self.live_ones), default=self.last)
        assert before <= furthest
        assert self.live.busy or before == furthest
        assert self.live.busy == self.was_busy


STEPS = [
    *(Model.join, Model.leave, Model.leave_together, Model.come_back, Model.fall_behind, Model.fill_up, Model.close),
    *(Model.publish, Model.publish, Model.publish, Model.turn, Model.turn),
]
Step = tuple[Callable[[Model, int], Awaitable[None]], int]
steps: st.SearchStrategy[list[Step]] = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), max_size=40)


async def run(given_steps: list[Step]) -> None:
    model = Model()
    await model.join(39)
    for step, number in given_steps:
        await step(model, number)
        model.check()
    while model.live.busy:
        await asyncio.sleep(0)
        model.check()
    for reader in model.live_ones:
        reader.leave()

    assert (0, None, False) == (len(model.live), model.live.before, model.live.busy)


@pytest.mark.parametrize("size", [1, 3, 25])
def test_nothing_is_lost_and_nothing_doubled_whatever_happens(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Whoever leaves and reads on in the log has all there is, in any sequence of what may happen to readers."""
    monkeypatch.setattr(live, "SLICE", size)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        @settings(max_examples=250, deadline=None)
        @given(steps)
        def holds(given_steps: list[Step]) -> None:
            runner.run(run(given_steps))

        holds()


# On the wire

CLIENTS = 150
"""More than two slices."""
ASKS = request_of(headers=PLAIN)
SIZE = 300


def event(number: int, size: int = SIZE) -> bytes:
    return b"data: %d %b\n\n" % (number, size * b"x")


def body(first: int, last: int, size: int = SIZE) -> bytes:
    """What a client is shown of events first..last."""
    numbers = range(first, last + 1)
    return b"".join(b"data: %d %b\nid: %d-ID\n\n" % (number, size * b"x", number) for number in numbers)


async def crowded(sidecar: Sidecar, connect: Connect, open_stream: OpenStream) -> tuple[Asked, list[Response], Stream]:
    """A stream that many read live."""
    asked, first = await open_stream("/a", headers={"Host": HOST, **PLAIN})
    clients = [first, *await crowd(sidecar, connect, CLIENTS - 1, ASKS)]
    await read_heads(clients[1:])
    [stream] = sidecar.streams
    await until(lambda: len(stream.live_readers) == CLIENTS)
    return asked, clients, stream


async def until_busy(stream: Stream) -> None:
    """Sees every turn of the loop, and so the one in which the first slice has been served and others wait."""
    while not stream.live_readers.busy:
        await asyncio.sleep(0)


async def shown_to_end(clients: list[Response]) -> set[bytes]:
    """What clients have been shown when all is over, but for how their answers begin; each kind once."""
    for client in clients:
        await client.read_to_end()
    return {client.shown.removeprefix(b"retry: OWN\n") for client in clients}


async def end(asked: Asked) -> None:
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()


def done(number: int) -> bytes:
    return b"data: [DONE]\nid: %d-ID\n\n" % number


@shared
async def test_all_of_a_crowd_get_all_events_once(sidecar: Sidecar, connect: Connect, open_stream: OpenStream) -> None:
    asked, clients, stream = await crowded(sidecar, connect, open_stream)
    flooding = asyncio.ensure_future(asked.send(b"".join(chunk(event(number)) for number in range(1, 31))))
    await until_busy(stream)
    for number in range(31, 61):
        await asked.stream(event(number))
    await flooding

    await end(asked)

    assert {body(1, 60) + done(61)} == await shown_to_end(clients)


@shared
async def test_no_one_notices_that_a_third_leaves_in_mid_flood(
    sidecar: Sidecar, connect: Connect, open_stream: OpenStream, ask: Ask
) -> None:
    """In three ways, each while some wait for their turn. Whoever left gets the rest when it comes back."""
    asked, clients, stream = await crowded(sidecar, connect, open_stream)
    staying, leaving = clients[: CLIENTS * 2 // 3], clients[CLIENTS * 2 // 3 :]
    asked.writer.write(chunk(event(1)))
    for client in leaving:
        await client.read_until(b"\nid: 1-")
    for number, client in enumerate(leaving, 2):
        asked.writer.write(chunk(event(number)))
        await until_busy(stream)
        client.reset() if number % 2 else client.close()
    last = len(leaving) + 1
    await until(lambda: len(stream.live_readers) == len(staying))
    for number in range(last + 1, last + 11):
        await asked.stream(event(number))
    back = [await ask("/a", headers={"Host": HOST, "Last-Event-ID": client.last_id}) for client in leaving[:10]]

    await end(asked)

    assert {body(1, last + 10) + done(last + 11)} == await shown_to_end(staying)
    assert {body(2, last + 10) + done(last + 11)} == await shown_to_end(back)


@shared
async def test_those_who_read_slowly_among_a_crowd_get_all_events_once(
    sidecar: Sidecar, connect: Connect, open_stream: OpenStream
) -> None:
    """They fall behind, and are live again when they have been given what they missed."""
    size = 3000
    asked, clients, stream = await crowded(sidecar, connect, open_stream)
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(Sleeper(sidecar, ASKS)) for _ in range(10)]
        last = 0
        while backed_up(sidecar) < len(slow):
            last += 1
            await asked.stream(event(last, size))
            await clients[0].read_until(b"\nid: %d-" % last)
        woken = [await sleeper.wake() for sleeper in slow]
        for client in woken:
            await client.read_until(b"\nid: %d-" % last)
        await until(lambda: len(stream.live_readers) == CLIENTS + len(slow))
        await asked.stream(event(last + 1, size))
        await end(asked)

        assert {body(1, last + 1, size) + done(last + 2)} == await shown_to_end(clients + woken)
