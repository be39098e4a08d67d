"""How a reader is written to: heartbeats, comments, and back-pressure, to the byte."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, with_settings
from tests.harness import STREAM_HEAD, TIMEOUT, Asked, ManualClock, Upstream, chunk, port_of, scrape, until

PAGE = {"User-Agent": "Mozilla/5.0", "Accept": "*/*"}

DIALECTS = [
    pytest.param({}, b"\n", id="line"),
    pytest.param(PAGE, b"\n\n", id="block"),
]


# Heartbeats


@pytest.mark.parametrize(("headers", "end"), DIALECTS)
async def test_a_reader_gets_a_heartbeat_for_each_interval_of_silence(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock, headers: dict[str, str], end: bytes
) -> None:
    asked, response = await open_stream("/a", headers=headers)
    await response.read_until(b"retry")
    for _ in range(2):
        clock.advance(9.99)
        clock.advance(0.01)
    clock.advance(9.99)
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")

    beat = b": heartbeat" + end
    assert b"retry: OWN" + end + beat + beat + b"data: 1\nid: 1-ID\n\n" == response.shown
    assert 2 == (await scrape(sidecar))['sse_heartbeats_total{route="default"}']


@pytest.mark.parametrize("written", [b"data: 1\n\n", b": hi\n\n", b"event: x\n\n"])
async def test_what_is_written_puts_off_the_next_heartbeat(
    open_stream: OpenStream, clock: ManualClock, written: bytes
) -> None:
    asked, response = await open_stream("/a")
    await response.read_until(b"retry")
    for number in range(1, 4):
        clock.advance(9.99)
        await asked.stream(written)
        while response.body.count(written.strip()) < number:
            await response.read_some()
    beats_before = response.body.count(b": heartbeat")
    clock.advance(10)
    await response.read_until(b": heartbeat")

    assert 0 == beats_before


async def test_each_reader_has_its_own_silence(open_stream: OpenStream, ask: Ask, clock: ManualClock) -> None:
    _, early = await open_stream("/a")
    await early.read_until(b"retry")
    clock.advance(6)
    late = await ask("/a", headers={"Last-Event-ID": f"0-{early.stream_id}"})
    await late.read_until(b"retry")
    clock.advance(4)
    await early.read_until(b": heartbeat\n")
    clock.advance(6)
    await late.read_until(b": heartbeat\n")
    clock.advance(4)
    await early.read_until(b": heartbeat\n: heartbeat\n")

    assert b"retry: OWN\n: heartbeat\n" == late.shown


@with_settings(heartbeat=7, route=[{"path": "/fast", "heartbeat": 1}])
async def test_a_route_has_its_own_interval(open_stream: OpenStream, clock: ManualClock) -> None:
    _, slow = await open_stream("/slow")
    _, fast = await open_stream("/fast")
    await slow.read_until(b"retry")
    await fast.read_until(b"retry")
    for beats in range(1, 8):
        clock.advance(1)
        await fast.read_until(beats * b": heartbeat\n")
    await slow.read_until(b": heartbeat\n")

    assert b"retry: OWN\n: heartbeat\n" == slow.shown


@pytest.mark.parametrize(("headers", "end"), DIALECTS)
async def test_a_heartbeat_is_never_within_an_event(
    open_stream: OpenStream, clock: ManualClock, sidecar: Sidecar, headers: dict[str, str], end: bytes
) -> None:
    """Wherever in it the upstream has come to a halt."""
    event = b"event: a\r\n: b\r\ndata: c\r\n\r\n"
    splits = range(1, len(event) - 1)  # the block ends with its last CR
    asked, response = await open_stream("/a", headers=headers)
    await response.read_until(b"retry")

    for number, split in enumerate(splits, 1):
        await asked.stream(event[:split])
        await received(sidecar, (number - 1) * len(event) + split)
        clock.advance(10)
        await asked.stream(event[split:])
        await response.read_until(b"id: %d-" % number)

    beat = b": heartbeat" + end
    beats = [beat + b"event: a\n: b\ndata: c\nid: %d-ID\n\n" % number for number in splits]
    assert b"retry: OWN" + end + b"".join(beats) == response.shown


async def received(sidecar: Sidecar, size: int) -> None:
    await until(lambda: sidecar.metrics.route("default").bytes_received == size)


# Comments


@pytest.mark.parametrize(("headers", "end"), DIALECTS)
async def test_comments_are_sent_on_in_their_place_and_not_replayed(
    open_stream: OpenStream, ask: Ask, headers: dict[str, str], end: bytes
) -> None:
    asked, response = await open_stream("/a", headers=headers)
    await response.read_until(b"retry")
    await asked.stream(b": one\r\n:\r\n\r\ndata: 1\n\n:two\n\n: three\n\ndata: 2\n: within\n\n: last\n\n")
    await response.read_until(b": last" + end)
    again = await ask("/a", headers={**headers, "Last-Event-ID": f"0-{response.stream_id}"})
    await again.read_until(b"id: 2-")

    first, second = b"data: 1\nid: 1-ID\n\n", b"data: 2\n: within\nid: 2-ID\n\n"
    comments = [b": one\n:" + end, b":two" + end + b": three" + end, b": last" + end]
    opening = b"retry: OWN" + end
    assert b"".join([opening, comments[0], first, comments[1], second, comments[2]]) == response.shown
    assert b"".join([opening, first, second]) == again.shown


async def test_a_comment_reaches_every_reader_that_is_live(open_stream: OpenStream, ask: Ask) -> None:
    asked, one = await open_stream("/a")
    two = await ask("/a", headers={**PAGE, "Last-Event-ID": f"0-{one.stream_id}"})
    await one.read_until(b"retry")
    await two.read_until(b"retry")
    await asked.stream(b": hi\n\n")
    await one.read_until(b": hi\n")
    await two.read_until(b": hi\n\n")

    assert [b"retry: OWN\n: hi\n", b"retry: OWN\n\n: hi\n\n"] == [one.shown, two.shown]


@pytest.mark.parametrize(
    ("first", "sent_on"), [(b": hello\n\n", b": hello\n"), (b"event: ping\n\n", b"event: ping\n\n")]
)
async def test_what_comes_together_with_the_head_is_sent_on_as_well(
    ask: Ask, upstream: Upstream, first: bytes, sent_on: bytes
) -> None:
    """Many services begin with a comment, so that something gets through at once."""
    asking = asyncio.ensure_future(ask("/a"))
    asked = await upstream.asked()
    await asked.send(STREAM_HEAD + chunk(first))
    response = await asking
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")

    assert b"retry: OWN\n" + sent_on + b"data: 1\nid: 1-ID\n\n" == response.shown


# Back-pressure


EVENT = b"data: " + 8_000 * b"x" + b"\n\n"
BOUND = 1 << 20
FLOOD = 3_000
"""Events, 24 MB of them: several times what the kernel takes for a connection that no one reads (4 to 6 MB)."""

flooded = with_settings(max_stream_bytes=BOUND, max_event_bytes=BOUND, slow_reader_timeout=5, heartbeat=10)
"""A history that a flood fills. Nothing else is due within five seconds."""


class RawClient:
    """Reads nothing until it is told to; a slow one has its kernel take very little, too."""

    def __init__(self) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.raw = b""

    async def ask(self, port: int, headers: str = "", *, slow: bool = True) -> None:
        if slow:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.sock, ("127.0.0.1", port))
        await loop.sock_sendall(self.sock, f"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n".encode())

    async def read_to_end(self) -> None:
        """Until the other side ends or resets the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        pieces = []
        async with asyncio.timeout(TIMEOUT):
            with suppress(ConnectionError):
                while piece := await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20):
                    pieces.append(piece)
        self.raw = b"".join(pieces)

    @property
    def whole(self) -> bool:
        return self.raw.endswith(b"\r\n0\r\n\r\n")

    @property
    def last_id(self) -> str:
        """Of the last event that came whole."""
        ids: list[bytes] = re.findall(rb"\nid: (\S+)\n\n", self.raw)
        return ids[-1].decode()


def numbers(raw: bytes) -> list[int]:
    """Those of the events that came whole."""
    return [int(number) for number in re.findall(rb"\nid: (\d+)-\S+\n\n", raw)]


@pytest.fixture
def slow() -> Iterator[RawClient]:
    client = RawClient()
    yield client
    client.sock.close()


@pytest.fixture
def fast() -> Iterator[RawClient]:
    client = RawClient()
    yield client
    client.sock.close()


def unsent(asked: Asked) -> int:
    """Bytes of the upstream that its kernel has no room for: the sidecar does not read."""
    size: int = asked.writer.transport.get_write_buffer_size()
    return size


async def flood(asked: Asked, sidecar: Sidecar) -> None:
    """Says more than a history holds, until all between here and the slow client is full."""
    asked.writer.write(FLOOD * chunk(EVENT))
    seen: deque[tuple[int, ...]] = deque(maxlen=20)

    def stuck() -> bool:
        seen.append((unsent(asked), *(reader.cursor for reader in sidecar.front.answers.readers)))
        return len(seen) == seen.maxlen and len(set(seen)) == 1

    await until(stuck)


@pytest.fixture
async def flooding(upstream: Upstream, sidecar: Sidecar, slow: RawClient) -> Asked:
    """The upstream of a stream whose one client is slow."""
    return await flood_slow_client(upstream, sidecar, slow)


async def flood_slow_client(upstream: Upstream, sidecar: Sidecar, slow: RawClient) -> Asked:
    """The client has read all that there was when the flood begins."""
    readers = sidecar.front.answers.readers
    before = set(readers)
    await slow.ask(port_of(sidecar))
    asked = await upstream.asked()
    await asked.begin()
    await until(lambda: any(reader._live for reader in readers if reader not in before))
    await flood(asked, sidecar)
    return asked


@flooded
async def test_a_slow_reader_holds_up_its_upstream_in_bounded_memory(flooding: Asked, sidecar: Sidecar) -> None:
    ((reader, client),) = sidecar.front.answers.readers.items()
    transport = client._request.transport

    assert not reader._live
    assert BOUND <= sidecar.streams.memory <= 2 * BOUND
    assert transport is not None
    assert transport.get_write_buffer_size() <= 512 * 1024
    assert unsent(flooding) > 0


@flooded
async def test_a_slow_reader_that_catches_up_in_time_has_lost_nothing(
    flooding: Asked, slow: RawClient, clock: ManualClock
) -> None:
    clock.advance(4.99)
    reading = asyncio.ensure_future(slow.read_to_end())
    await flooding.end()
    await reading

    assert list(range(1, FLOOD + 1)) == numbers(slow.raw)
    assert slow.whole
    assert clock.next_in > 5


@flooded
async def test_a_slow_reader_is_cut_off_after_slow_reader_timeout(
    flooding: Asked, slow: RawClient, sidecar: Sidecar, clock: ManualClock
) -> None:
    clock.advance(4.99)
    readers_before = sidecar.streams.reader_count
    clock.advance(0.01)
    await until(lambda: sidecar.streams.reader_count == 0)
    await until(lambda: unsent(flooding) == 0)
    await slow.read_to_end()

    assert 1 == readers_before
    assert list(range(1, len(numbers(slow.raw)) + 1)) == numbers(slow.raw)
    assert 0 < len(numbers(slow.raw)) < FLOOD
    assert not slow.whole


@flooded
async def test_a_reader_that_was_cut_off_resumes_and_is_told_what_it_missed(
    flooding: Asked, upstream: Upstream, slow: RawClient, fast: RawClient, *, sidecar: Sidecar, clock: ManualClock
) -> None:
    clock.advance(5)
    await flooding.end()
    await slow.read_to_end()
    await until(lambda: sidecar.streams.active == 0)
    await fast.ask(port_of(sidecar), f"Last-Event-ID: {slow.last_id}\r\n", slow=False)
    reading = asyncio.ensure_future(fast.read_to_end())
    await (await upstream.asked()).respond("204 No Content")
    await reading

    (lost,) = re.findall(rb'"lost": (\d+)', fast.raw)
    got, rest = numbers(slow.raw), numbers(fast.raw)
    assert list(range(1, FLOOD + 1)) == [*got, *range(got[-1] + 1, got[-1] + 1 + int(lost)), *rest]
    assert int(lost) > 0
    assert BOUND / 2 <= len(rest) * len(EVENT) <= BOUND


@flooded
async def test_live_readers_of_the_stream_lose_nothing_by_a_slow_one(
    open_stream: OpenStream, slow: RawClient, fast: RawClient, *, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await open_stream("/a", headers={"Host": "a"})
    token = f"Last-Event-ID: 0-{response.stream_id}\r\n"
    await slow.ask(port_of(sidecar), token)
    await fast.ask(port_of(sidecar), token, slow=False)
    reading = asyncio.ensure_future(fast.read_to_end())
    await until(lambda: sidecar.streams.reader_count == 3)
    response.reset()
    await flood(asked, sidecar)
    clock.advance(5)
    await asked.end()
    await reading

    assert list(range(1, FLOOD + 1)) == numbers(fast.raw)
    assert fast.whole


@flooded
async def test_other_streams_do_not_notice_a_slow_reader(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, slow: RawClient
) -> None:
    asked, response = await open_stream("/b")
    flooding = await flood_slow_client(upstream, sidecar, slow)
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")

    assert unsent(flooding) > 0


@with_settings(max_stream_events=2)
async def test_a_live_reader_is_not_held_up_by_a_burst_larger_than_the_history(open_stream: OpenStream) -> None:
    """It has been sent all of it; there is no one to wait for."""
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\ndata: 5\n\n")
    await response.read_until(b"id: 5-")
    await asked.stream(b"data: 6\n\n")
    await response.read_until(b"id: 6-")

    assert [1, 2, 3, 4, 5, 6] == numbers(response.body)
