"""The soak: two hundred clients, an upstream that restarts; nothing is lost unsaid, nothing doubled, nothing left."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import socket
import struct
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.config import load
from sse_sidecar.event_id import parse
from tests.harness import EVENT_SOURCE, Asked, port_of, until
from tests.reference import EventSource
from tests.together import request_of

SEED = 20_261_125
PLAIN = {"Accept": "text/event-stream", "Authorization": "Bearer a"}

ROUND = 60.0
"""Seconds after which a round is given up. It takes a tenth of them."""

SETTINGS: dict[str, Any] = {
    "history_ttl": 3,
    "linger": 0.4,
    "finish_timeout": 1,
    "heartbeat": 0.1,
    "stall_timeout": 0.5,
    "slow_reader_timeout": 1,
    "reconnect_timeout": 20,
    "listen": "127.0.0.1:0",
    "admin_listen": "",
}
ROUTES: list[dict[str, Any]] = [
    {"path": "/shared/numbered", "mode": "shared", "join": "start", "key_headers": []},
    {"path": "/shared/plain", "mode": "shared", "join": "start", "key_headers": [], "max_stream_events": 40},
]


# Time, with every timer counted


class CountingClock:
    """The loop's own time. Knows how many timers are yet to be called."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.pending: set[_CountedTimer] = set()

    def time(self) -> float:
        return self._loop.time()

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> _CountedTimer:
        timer = _CountedTimer(self, callback, args)
        timer.handle = self._loop.call_later(delay, timer.call)
        self.pending.add(timer)
        return timer


class _CountedTimer:
    def __init__(self, clock: CountingClock, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._clock = clock
        self._call: tuple[Callable[..., Any], tuple[Any, ...]] | None = (callback, args)
        self.handle: asyncio.TimerHandle | None = None

    def call(self) -> None:
        call = self._call
        self.cancel()
        if call:
            call[0](*call[1])

    def cancel(self) -> None:
        self._clock.pending.discard(self)
        self._call = None
        if self.handle:
            self.handle.cancel()


# The service


class Connection(Asked):
    """A connection of the service's. What is said on one that is gone is an error at once."""

    @property
    def is_gone(self) -> bool:
        return self.writer.is_closing() or self.reader.at_eof()

    async def send(self, raw: bytes) -> None:
        if self.is_gone:
            raise ConnectionResetError
        await super().send(raw)


class Service:
    """Says something every now and then, to each connection, until it is `over`; and crashes.

    On a `numbered` path it can resume: `id: n`, `data: n`, from the one after the client's last, or from 1. Elsewhere
    each connection says which it is, and counts from 1. A POST is a job of some events.
    """

    MARK = b"data: [DONE]\n\n"

    def __init__(self, port: int, rng: random.Random) -> None:
        self.over = False
        self.most: Counter[str] = Counter()
        """Connections that were ever open at once, by path."""
        self._port = port
        self._rng = rng
        self._names = count(1)
        self._ends: set[tuple[str, int]] = set()
        self._open: dict[Connection, str] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def stop(self) -> None:
        """Resets every connection."""
        assert self._server is not None
        self._server.close()
        while self._open:
            for connection in self._open:
                connection.writer.transport.abort()
            await asyncio.sleep(0.01)

    async def restart(self) -> None:
        await self.stop()
        await asyncio.sleep(self._rng.uniform(0.05, 0.4))
        await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = Connection(reader, writer)
        self._open[asked] = ""
        try:
            await asked.read_head()
            self._open[asked] = asked.target
            self.most[asked.target] = max(self.most[asked.target], self._count(asked.target))
            await self._answer(asked)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._open[asked]
            writer.close()

    def _count(self, path: str) -> int:
        return sum(of == path and not connection.is_gone for connection, of in self._open.items())

    async def _answer(self, asked: Asked) -> None:
        body = await asked.read_body()
        if asked.method == "POST" and asked.whole:
            await self._job(asked, int(body))
        elif "numbered" in asked.target:
            await self._numbered(asked, int(asked.header("last-event-id") or 0))
        elif asked.method == "GET":
            await self._plain(asked)

    async def _numbered(self, asked: Asked, last: int) -> None:
        path = asked.target
        if (path, last) in self._ends:
            await asked.respond("204 No Content")
            return
        number = last
        ends_after = number + self._rng.randrange(10, 200)
        await asked.begin()
        await asked.stream(b"retry: 100\n\n")
        while not self.over:
            said = range(number + 1, number + 1 + self._rng.randrange(1, 4))
            number = said[-1]
            await self._say(asked, b"".join(b"id: %d\ndata: %d\n\n" % (each, each) for each in said))
            if number > ends_after and not path.startswith("/shared"):
                await asked.end()
                return
        self._ends.add((path, number + 1))
        await asked.stream(b"id: %d\n" % (number + 1) + self.MARK)
        await asked.end()

    async def _plain(self, asked: Asked) -> None:
        name = next(self._names)
        number = 0
        await asked.begin()
        await asked.stream(b"retry: 100\n\n")
        while not (self.over and number):
            said = range(number + 1, number + 1 + self._rng.randrange(1, 4))
            number = said[-1]
            await self._say(asked, b"".join(b"data: %d %d\n\n" % (name, each) for each in said))
        await asked.stream(self.MARK)
        await asked.end()

    async def _job(self, asked: Asked, length: int) -> None:
        name = next(self._names)
        await asyncio.sleep(self._rng.uniform(0, 0.2))
        await asked.begin()
        for number in range(1, length + 1):
            await self._say(asked, b"data: %d %d\n\n" % (name, number))
        await asked.stream(self.MARK)
        await asked.end()

    async def _say(self, asked: Asked, data: bytes) -> None:
        """In two pieces, wherever they part."""
        at = self._rng.randrange(len(data) + 1)
        for piece in (data[:at], data[at:]):
            if piece:
                await asked.stream(piece)
        await asyncio.sleep(self._rng.uniform(0.05, 0.15))


# The clients


class Answer(NamedTuple):
    """The head of an answer."""

    status: int
    sse_status: str = ""


class Event(NamedTuple):
    """An event of the service's, and its number in its stream."""

    seq: int
    data: str


class Signal(NamedTuple):
    """A signal of the sidecar's."""

    code: str
    lost: int | None = None


class End(NamedTuple):
    """The end of an answer."""

    whole: bool


class Job(NamedTuple):
    """The beginning of a job of so many events."""

    length: int


Item = Answer | Event | Signal | End | Job


class Broken(Exception):
    """What the sidecar sent is no HTTP, or no event stream, as it has to be."""


@dataclass
class Client:
    """Reads a stream, is cut at random, and comes back with the last id it was given, until the stream is over."""

    port: int
    rng: random.Random
    target: str
    headers: dict[str, str]
    items: list[Item] = field(default_factory=list)
    """All that was read, of one answer after the other."""
    token: str = ""
    is_calm: bool = False
    """Whether it is cut no more."""
    is_over: bool = False

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Before the first request."""

    async def live(self) -> None:
        while not self.is_over:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._connect()
            # Longer than an upstream is kept for it, now and then.
            await asyncio.sleep(self.rng.uniform(0, 0.8 if self.rng.random() < 0.2 else 0.2))

    def raw(self) -> bytes:
        """The next request."""
        return request_of(self.target, headers=self.headers | ({"Last-Event-ID": self.token} if self.token else {}))

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(self.raw())
        before_the_head = self.rng.random() < 0.1 and not self.is_calm
        try:
            async with asyncio.timeout(self.rng.uniform(0, 0.1) if before_the_head else None) as cut:
                await self._read(reader, cut)
        except TimeoutError:
            if self.rng.random() < 0.5:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, cut: asyncio.Timeout) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        # Timed from the head on: where the machine is slow, those who never wait for it would keep it from all others.
        cut.reschedule(None if self.is_calm else asyncio.get_running_loop().time() + self.rng.uniform(0, 3))
        status = int(head[0].split()[1])
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        self.items.append(Answer(status, fields.get("sse-stream-status", "")))
        if "sse-stream" in fields and status == 200:
            self.token = self.token or f"0-{fields['sse-stream']}"
            await self._read_stream(reader)
        self.ended(status)

    async def _read_stream(self, reader: asyncio.StreamReader) -> None:
        """Every byte as it comes: what is whole of an event counts, wherever the connection is cut."""
        source, line = EventSource(), b""
        try:
            async for piece in chunks(reader):
                *lines, line = (line + piece).split(b"\n")
                for each in lines:
                    source.process_line(each.decode())
                    self.token = source.last_event_id or self.token
                    self.items += [item_of(*event) for event in source.events]
                    source.events.clear()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.items.append(End(whole=False))
        else:
            self.items.append(End(whole=True))

    def ended(self, status: int) -> None:
        """An answer has been read to its end."""
        self.is_over = status == 204


def item_of(kind: str, data: str, last_event_id: str) -> Item:
    if kind == "sse-sidecar":
        error = json.loads(data)["error"]
        return Signal(error["code"], error.get("lost"))
    token = parse(last_event_id)
    if token is None:
        raise Broken(f"no token: {last_event_id!r}")
    return Event(token.seq, data)


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The pieces of a chunked body, to its terminating chunk (RFC 9112, section 7.1)."""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        left = size
        while left:
            piece = await reader.read(left)
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
            yield piece
        if await reader.readexactly(2) != b"\r\n":
            raise Broken("a chunk that does not end")
        if not size:
            return


class Worker(Client):
    """Has one job after the other done, by POST. One that was cut is resumed by GET or by the same POST."""

    def begin(self) -> None:
        self._job = Job(self.rng.randrange(1, 15))
        self._key = f"{self.rng.random()}"
        self.token = ""
        self.items.append(self._job)

    def raw(self) -> bytes:
        if self.token and self.rng.random() < 0.5:
            return super().raw()
        headers = self.headers | {"Idempotency-Key": self._key} | ({"Last-Event-ID": self.token} if self.token else {})
        return request_of(self.target, method="POST", headers=headers, body=b"%d" % self._job.length)

    def ended(self, status: int) -> None:
        was_told = status == 410 or self.items[-2] == Signal("upstream-lost")
        if was_told or status == 204 or self.items[-1] == End(whole=True):
            self.is_over = self.is_calm
            self.begin()


# The verdict


class Ledger:
    """What a client was to get next, and what it was told since its last event. `problems` is what was wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._told: list[Signal] = []
        self._seq = 1
        self._is_over = False

    def check(self, items: list[Item]) -> list[str]:
        for item, following in zip(items, [*items[1:], None], strict=True):
            if isinstance(item, Answer) and item.sse_status in ("new", "reset"):
                self._seq = 1
            elif isinstance(item, Signal) and item.code == "upstream-lost":
                self._expect(not isinstance(following, Event | Signal), f"{following} after {item}")
            elif isinstance(item, Signal):
                self._told.append(item)
            elif isinstance(item, Event):
                self._take(item)
                self._told.clear()
        return self.problems

    @property
    def _lost(self) -> int:
        """How many events are known not to come any more. Who is cut before the next one is told again, or of more."""
        lost = [signal.lost for signal in self._told if signal.lost is not None]
        return lost[-1] if lost else 0

    @property
    def _next(self) -> int:
        return self._seq + self._lost

    def _take(self, event: Event) -> None:
        self._expect(event.seq == self._next, f"{event} instead of {self._next}, told {self._told}")
        self._expect(not self._is_over, f"{event} after the end")
        self._seq = event.seq + 1
        self._is_over = event.data == "[DONE]"
        if not self._is_over:
            self._compare(event, self._lost)

    def _compare(self, event: Event, lost: int) -> None:
        raise NotImplementedError

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.problems.append(otherwise)


class NumberedLedger(Ledger):
    """Of a service that can resume: all that is ever missing is what was not held any more, one by one."""

    _number = 1

    def _compare(self, event: Event, lost: int) -> None:
        expected = self._number + lost
        self._expect(event.data == str(expected), f"{event} instead of {expected}")
        self._expect(bool(lost) or not self._told or expected == 1, f"{event} after {self._told}")
        self._number = expected + 1


class PlainLedger(Ledger):
    """Of a service that cannot: more may be missing between two of its connections, and nowhere else."""

    _last = ("", 0)

    def _compare(self, event: Event, lost: int) -> None:
        name, number = event.data.split()[0], int(event.data.split()[1])
        goes_on = self._last == (name, number - 1)
        begins = name != self._last[0] and number == 1
        is_trimmed = lost > 0 and (name != self._last[0] or number - 1 == self._last[1] + lost)
        self._expect(goes_on or begins or is_trimmed, f"{event} after {self._last}, lost {lost}")
        self._expect(not (goes_on and self._told), f"{event} after {self._last}, although {self._told}")
        self._expect(bool(goes_on or self._told or not self._last[1]), f"{event} after {self._last}, and nothing told")
        self._last = (name, number)


class JobLedger(Ledger):
    """Of a POST: all of it, or up to where it was told to be lost."""

    _name = ""

    def check_job(self, items: list[Item]) -> list[str]:
        job = items[0]
        assert isinstance(job, Job)
        self.check(items)
        is_told = Answer(410) in items or Signal("upstream-lost") in items
        is_whole = End(whole=True) in items or Answer(204, "resumed") in items
        self._expect(is_told or (is_whole and self._next == job.length + 2), f"{job} ended before {self._next}")
        return self.problems

    def _compare(self, event: Event, lost: int) -> None:
        name, number = event.data.split()
        self._expect(int(number) == event.seq, f"{event} under another number")
        self._expect(name == (self._name or name), f"{event} of another run than {self._name}")
        self._expect(bool(lost) or not self._told, f"{event} after {self._told}")
        self._name = name


def check_jobs(items: list[Item]) -> list[str]:
    """All but the last, which may not have been asked for."""
    begins = [index for index, item in enumerate(items) if isinstance(item, Job)]
    return [problem for begin, end in pairwise(begins) for problem in JobLedger().check_job(items[begin:end])]


# The soak

SLACK = 256 * 1024
"""Bytes by which caches of the interpreter and of the loop may have grown: a KiB a client, where a stream is four."""

CHAOS: set[Item] = {Answer(200, "new"), Answer(200, "resumed"), Answer(200, "gap"), End(whole=False)}
"""What every round has of everything, whatever the machine."""


class Round(NamedTuple):
    """What came of a round of it."""

    problems: list[str]
    items: Counter[Item]
    most_connections: int
    """Of a shared path, at once."""


async def soak(port: int, upstream_port: int, rng: random.Random, *, restarts: int) -> Round:
    """A round: chaos, then calm in which everything comes to its end."""
    service = Service(upstream_port, random.Random(rng.random()))
    await service.start()
    clients = [client_of(index, port, random.Random(rng.random())) for index in range(200)]
    try:
        async with asyncio.timeout(ROUND), asyncio.TaskGroup() as living:
            for client in clients:
                living.create_task(client.live())
            for _ in range(restarts):
                await asyncio.sleep(rng.uniform(0.7, 1.0))
                await service.restart()
            await asyncio.sleep(0.5)
            await until(lambda: all(client.token for client in clients if not isinstance(client, Worker)))
            for client in clients:
                client.is_calm = True
            service.over = True
    finally:
        await service.stop()
    problems = [f"{client.target}: {problem}" for client in clients for problem in verdict(client)]
    shared = [most for path, most in service.most.items() if path.startswith("/shared")]
    return Round(
        problems,
        all_items(clients),
        max(shared),
    )


def all_items(clients: list[Client]) -> Counter[Item]:
    """What befell them, events aside."""
    return Counter(item for client in clients for item in client.items if not isinstance(item, Event | Job))


def client_of(index: int, port: int, rng: random.Random) -> Client:
    """Of each kind as many, and of those that may be one every other an EventSource."""
    own = EVENT_SOURCE if index // 5 % 2 else PLAIN
    targets = [f"/numbered/{index}", f"/plain/{index}", "/shared/numbered", "/shared/plain"]
    if index % 5 == 4:
        return Worker(port, rng, f"/jobs/{index}", PLAIN)
    return Client(port, rng, targets[index % 5], own)


def verdict(client: Client) -> list[str]:
    if isinstance(client, Worker):
        return check_jobs(client.items)
    return (NumberedLedger() if "numbered" in client.target else PlainLedger()).check(client.items)


async def nothing_left(sidecar: Sidecar, clock: CountingClock, tasks: int, files: int) -> None:
    """Waits until histories have expired, and nothing is held open that was not at the beginning."""
    await until(lambda: not len(sidecar.streams))
    await until(lambda: not clock.pending)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: open_files() <= files)

    assert (0, 0, 0) == (sidecar.streams.memory, sidecar.streams.active, sidecar.streams.reader_count)
    assert {} == sidecar.front.answers.readers


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def memory() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def free_port() -> int:
    """One that no connection is given for its own end while nothing listens there."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(first - 10_000, first), 100):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


async def test_two_hundred_clients_a_restarting_upstream_and_nothing_lost_doubled_or_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = random.Random(SEED)
    random.seed(SEED)
    # The records would be kept, and counted as memory.
    caplog.set_level(logging.CRITICAL, "sse_sidecar")
    clock = CountingClock()
    port = free_port()
    tracemalloc.start()
    sidecar = Sidecar(load({**SETTINGS, "upstream": f"http://127.0.0.1:{port}"}, tables=ROUTES), clock)
    await sidecar.start()
    try:
        tasks, files = len(asyncio.all_tasks()), open_files()
        rounds, used = [], []
        for restarts in (1, 3):
            rounds.append(await soak(port_of(sidecar), port, rng, restarts=restarts))
            await nothing_left(sidecar, clock, tasks, files)
            used.append(memory())
    finally:
        tracemalloc.stop()
        await sidecar.stop()

    assert [] == rounds[0].problems + rounds[1].problems
    assert [1, 1] == [each.most_connections for each in rounds]
    assert CHAOS <= rounds[1].items.keys()
    assert used[1] <= used[0] * 1.1 + SLACK
