"""Bounds: how many streams, readers, events and bytes, and what goes first when there are too many."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from sse_sidecar.app import Sidecar
from tests import harness
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, port_of, scrape, until
from tests.together import (
    HOST,
    PLAIN,
    Sleeper,
    all_gone,
    crowd,
    data_of,
    event,
    losses_of,
    numbers_of,
    request_of,
    signals_of,
)

KIB = 1024
MIB = 1024 * KIB

KEYED = {"Authorization": "a", "Idempotency-Key": "k"}


# How many


def _grown_or_gone(sidecar: Sidecar, client: Response, memory: int) -> bool:
    return sidecar.streams.memory >= memory or not active(sidecar, client)


def _third_is_at(sidecar: Sidecar, seq: int) -> bool:
    return [stream.log.last for stream in sidecar.streams][2] == seq


async def check_later(response: Response) -> None:
    """The answer to an EventSource that is to come again."""
    body = await response.read_to_end()

    assert (200, "text/event-stream", True) == (response.status, response.header("content-type"), response.whole)
    assert re.fullmatch(rb"retry: [2-5]\d{3}\n\n", body)
    assert 2000 <= int(body.split()[1]) <= 5000


def check_overloaded(response: Response) -> None:
    """The same to everyone else."""
    assert (503, "application/problem+json") == (response.status, response.header("content-type"))
    assert "no-store" == response.header("cache-control")
    assert response.header("retry-after") in ("2", "3", "4", "5")


def errors(metrics: dict[str, float], code: str) -> float:
    return metrics.get(f'sse_user_visible_errors_total{{code="{code}",route="default"}}', 0)


each_limit = pytest.mark.parametrize(
    ("settings", "limit"),
    [({limit: 1, "mode": mode}, limit) for limit in ("max_streams", "max_readers") for mode in ("private", "shared")],
    ids=[f"{limit} {mode}" for limit in ("max_streams", "max_readers") for mode in ("private", "shared")],
)


@each_limit
async def test_one_more_than_may_be_is_for_later(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream, limit: str
) -> None:
    """It does not reach the upstream, is counted, and does no harm to what there is."""
    asked, first = await open_stream("/a")
    check_overloaded(await ask("/b", headers=PLAIN))
    check_overloaded(await ask("/b", headers={**PLAIN, "User-Agent": "Mozilla/5.0"}))
    check_overloaded(await ask("/b", method="POST", headers=PLAIN, body=b"{}"))
    await check_later(await ask("/b", headers=EVENT_SOURCE))
    await asked.stream(b"data: 1\n\n")
    await first.read_until(b"\nid: 1-")

    assert 1 == len(upstream.requests)
    assert 4 == errors(await scrape(sidecar), limit)


@each_limit
@pytest.mark.parametrize(
    ("method", "headers"), [("GET", {}), ("POST", {}), ("POST", KEYED)], ids=["GET", "POST", "keyed"]
)
async def test_what_is_no_stream_knows_no_limit(
    *, upstream: Upstream, ask: Ask, open_stream: OpenStream, limit: str, method: str, headers: dict[str, str]
) -> None:
    await open_stream("/a")
    passing = asyncio.ensure_future(ask("/b", method=method, headers={**headers, "Accept": "application/json"}))
    await (await upstream.asked()).respond("200 OK", body=b"[]")

    assert b"[]" == await (await passing).read_to_end()


@pytest.mark.parametrize("settings", [{"max_streams": 1}, {"max_readers": 1}], ids=["max_streams", "max_readers"])
async def test_a_stream_that_no_one_announced_is_for_later_as_well(
    upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    """Its upstream has been asked by then, and is let go of."""
    await open_stream("/a")
    asking = asyncio.ensure_future(ask("/b", method="POST", headers={"Accept": "application/json"}))
    asked = await upstream.asked()
    await asked.begin()
    check_overloaded(await asking)
    await asked.closed()


@pytest.mark.parametrize("limit", ["max_streams", "max_readers"])
@pytest.mark.parametrize(
    ("settings", "method", "headers"),
    [
        pytest.param({}, "GET", PLAIN, id="private"),
        pytest.param({"mode": "shared"}, "GET", PLAIN, id="shared"),
        pytest.param({}, "POST", KEYED, id="keyed"),
    ],
)
async def test_of_two_that_wait_at_once_one_is_for_later(
    *,
    start: StartSidecar,
    upstream: Upstream,
    settings: dict[str, str],
    method: str,
    headers: dict[str, str],
    limit: str,
) -> None:
    """Neither was one too many when it came."""
    sidecar = await start(**settings, **{limit: 1})
    async with AsyncExitStack() as stack:

        async def connect() -> Response:
            client = await harness.connect(port_of(sidecar))
            stack.callback(client.close)
            return client

        clients = [
            client
            for target in ("/a", "/b")
            for client in await crowd(sidecar, connect, 1, request_of(target, method=method, headers=headers))
        ]
        for _ in clients:
            await (await upstream.asked()).begin()
        for client in clients:
            await client.read_head()

        assert [200, 503] == sorted(client.status for client in clients)
        assert 1 == sidecar.streams.active == sidecar.streams.reader_count


@with_settings(max_streams=1)
async def test_histories_alone_are_no_streams_too_many(
    sidecar: Sidecar, clock: ManualClock, open_stream: OpenStream
) -> None:
    """Neither complete ones nor dormant ones. One whose upstream is kept for who may come back is."""
    for number in range(3):
        asked, client = await open_stream("/a", method="POST" if number else "GET")
        await asked.end()
        await client.read_to_end()
        await until(lambda: not sidecar.streams.active)
    asked, client = await open_stream("/a")
    client.close()
    await all_gone(sidecar)
    lingering = sidecar.streams.active
    clock.advance(30)
    await asked.closed()

    assert (1, 0, 4) == (lingering, sidecar.streams.active, len(sidecar.streams))


@with_settings(max_streams=1)
async def test_the_history_that_is_read_again_is_a_stream(
    upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    """It has a reader."""
    asked, old = await open_stream("/a", method="POST")
    await asked.stream(b"data: 1\n\n")
    await asked.end()
    await old.read_to_end()
    await open_stream("/b")
    token = {"Last-Event-ID": f"0-{old.stream_id}"}
    check_overloaded(await ask("/a", headers={**PLAIN, **token}))
    await check_later(await ask("/a", headers={**EVENT_SOURCE, **token}))


@with_settings(max_streams=1)
async def test_a_stream_that_is_there_may_be_resumed_at_the_limit(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    asked, first = await open_stream("/a")
    await asked.stream(b"data: 1\n\n")
    await first.read_until(b"\nid: 1-")
    beside = await ask("/a", headers={"Last-Event-ID": f"0-{first.stream_id}"})
    await beside.read_until(b"\nid: 1-")
    for client in (first, beside):
        client.close()
    await all_gone(sidecar)
    back = await ask("/a", headers={"Last-Event-ID": first.last_id})

    assert ("resumed", "resumed") == (beside.sse_status, back.sse_status)


@pytest.mark.parametrize(
    ("settings", "method", "again"),
    [
        pytest.param({"max_readers": 1}, "GET", "resume", id="resume"),
        pytest.param({"max_readers": 1, "mode": "shared"}, "GET", "join", id="shared join"),
        pytest.param({"max_readers": 1}, "POST", "join", id="idempotent join"),
    ],
)
async def test_one_reader_more_than_may_be_is_for_later(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream, method: str, again: str
) -> None:
    """Of a stream that is there. It comes back when another has left."""
    headers = {"Host": HOST, **(KEYED if method == "POST" else PLAIN)}
    _, first = await open_stream("/a", method=method, headers=headers)
    if again == "resume":
        headers["Last-Event-ID"] = f"0-{first.stream_id}"
    check_overloaded(await ask("/a", method=method, headers=headers))
    if method == "GET":
        await check_later(await ask("/a", headers=EVENT_SOURCE | headers | {"Cache-Control": "no-cache"}))
    first.close()
    await until(lambda: not sidecar.streams.reader_count)
    back = await ask("/a", method=method, headers=headers)

    assert (200, first.stream_id) == (back.status, back.stream_id)
    assert 1 + (method == "GET") == errors(await scrape(sidecar), "max_readers")
    assert 1 == len(upstream.requests)


# How much of one stream


@with_settings(max_stream_events=3)
async def test_a_stream_holds_so_many_events(sidecar: Sidecar, ask: Ask, open_stream: OpenStream) -> None:
    """Who was there has them all. Who asks for more is told how many are lost, and where they are missing."""
    asked, first = await open_stream("/a")
    for number in range(1, 6):
        await asked.stream(event(number))
        await first.read_until(b"\nid: %d-" % number)
    answers = [
        await ask("/a", headers={**EVENT_SOURCE, "Last-Event-ID": f"{seq}-{first.stream_id}"}) for seq in range(6)
    ]
    for seq, answer in enumerate(answers):
        await answer.read_until(b"\nid: 5-" if seq < 5 else b"retry")

    assert [1, 2, 3, 4, 5] == numbers_of(first)
    assert ["gap", "gap", *["resumed"] * 4] == [answer.sse_status for answer in answers]
    assert [[2], [1], [], [], [], []] == [losses_of(answer) for answer in answers]
    assert [[3, 4, 5]] * 3 + [[4, 5], [5], []] == [numbers_of(answer) for answer in answers]
    assert answers[0].shown.startswith(b"id: 2-ID\n\nretry: OWN\n\nevent: sse-sidecar\ndata: ")
    assert 3 == (await scrape(sidecar))['sse_message_loss_total{route="default"}']
    assert 2 == errors(await scrape(sidecar), "gap")


@with_settings(max_stream_bytes="64KiB", max_event_bytes="16KiB")
async def test_a_stream_holds_so_many_bytes(sidecar: Sidecar, ask: Ask, open_stream: OpenStream) -> None:
    asked, first = await open_stream("/a")
    held = []
    for number in range(1, 101):
        await asked.stream(event(number, 2000))
        await first.read_until(b"\nid: %d-" % number)
        held += [stream.log.size for stream in sidecar.streams]
    again = await ask("/a", headers={"Last-Event-ID": f"0-{first.stream_id}"})
    await again.read_until(b"\nid: 100-")
    rest = numbers_of(again)

    assert max(held) <= 64 * KIB
    assert list(range(rest[0], 101)) == rest
    assert 20 <= len(rest) <= 32
    assert [rest[0] - 1] == losses_of(again)


async def pour(asked: Asked, numbers: Iterable[int], size: int = 3000) -> None:
    """Streams events as fast as they are taken."""
    for number in numbers:
        await asked.stream(event(number, size))


PATIENCE = 3
lagging = with_settings(max_stream_bytes="256KiB", max_event_bytes="64KiB", slow_reader_timeout=PATIENCE)
MUCH = range(1, 1001)
"""Events that make a dozen times what such a stream holds."""


async def held_up(clock: ManualClock) -> None:
    """Waits until a full log waits for its reader: the next timer is that of its patience."""
    await until(lambda: clock.next_in <= PATIENCE)


@lagging
async def test_a_full_log_waits_for_a_reader_that_lags(
    sidecar: Sidecar, upstream: Upstream, clock: ManualClock
) -> None:
    """It is sent everything, if it goes on in time."""
    async with Sleeper(sidecar, request_of(headers=PLAIN), upstream) as sleeper:
        pouring = asyncio.ensure_future(pour(sleeper.asked, MUCH))
        await held_up(clock)
        clock.advance(PATIENCE - 0.01)
        held = sidecar.streams.memory
        woken = await sleeper.wake()
        await woken.read_until(b"\nid: %d-" % MUCH[-1])
        await pouring

    assert held < 512 * KIB
    assert list(MUCH) == numbers_of(woken)


@lagging
async def test_a_full_log_does_not_wait_for_ever(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, ask: Ask
) -> None:
    """The reader is cut off, and may come back: what it was not sent, and is not held any more, is counted."""
    async with Sleeper(sidecar, request_of(headers=PLAIN), upstream) as sleeper:
        pouring = asyncio.ensure_future(pour(sleeper.asked, MUCH))
        await held_up(clock)
        clock.advance(PATIENCE)
        await all_gone(sidecar)
        await pouring
        await until(lambda: [stream.log.last for stream in sidecar.streams] == [MUCH[-1]])
        held = sidecar.streams.memory
        woken = await sleeper.wake()
        await woken.read_to_end()
    back = await ask("/a", headers={"Host": HOST, "Last-Event-ID": woken.last_id})
    await back.read_until(b"\nid: %d-" % MUCH[-1])
    got, rest = numbers_of(woken), numbers_of(back)

    assert held < 300 * KIB
    assert not woken.whole
    assert list(MUCH) == got + list(range(got[-1] + 1, rest[0])) + rest
    assert [rest[0] - got[-1] - 1] == losses_of(back)


# How much of one event


LIMIT = 10_000
with_limit = with_settings(max_event_bytes=LIMIT)


def block(size: int) -> bytes:
    """An event of so many bytes, its blank line not counted."""
    return b"data: ".ljust(size, b"x")


TOO_LARGE = [
    pytest.param([block(LIMIT + 1) + b"\n\n"], id="an event"),
    pytest.param([block(LIMIT + 1)], id="a line that does not end"),
    pytest.param([b"data: x\n" * (LIMIT // 8 + 1)], id="a block that does not end"),
    pytest.param([b":".ljust(LIMIT + 1)], id="a comment"),
    pytest.param([b"event: x\nid: ".ljust(LIMIT + 1, b"1")], id="an id"),
    pytest.param([b"data: ", *[b"x" * 999] * 11], id="in pieces"),
]


@with_limit
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("pieces", TOO_LARGE)
async def test_an_event_that_is_too_large_breaks_its_stream(
    *, sidecar: Sidecar, ask: Ask, open_stream: OpenStream, method: str, pieces: list[bytes]
) -> None:
    """Readers get what came before it, and are told; the upstream is let go of."""
    asked, client = await open_stream("/a", method=method)
    await asked.stream(b"data: 1\n\n" + pieces[0])
    for piece in pieces[1:]:
        await asked.stream(piece)
    await client.read_to_end()
    await asked.closed()
    gone = await ask("/a", headers={"Last-Event-ID": client.last_id})
    held = await ask("/a", headers={"Last-Event-ID": f"0-{client.stream_id}"})
    await held.read_to_end()

    assert (["1"], ["too-large"], False) == (data_of(client), signals_of(client), client.whole)
    assert client.shown.startswith(
        b'retry: OWN\ndata: 1\nid: 1-ID\n\nevent: sse-sidecar\ndata: {"error": {"code": "too-large"'
    )
    assert 410 == gone.status
    assert (["1"], ["too-large"], False) == (data_of(held), signals_of(held), held.whole)
    assert 2 == errors(await scrape(sidecar), "too-large")


@with_limit
async def test_an_event_source_is_told_what_was_too_large_and_does_not_come_back_for_more(
    ask: Ask, open_stream: OpenStream
) -> None:
    asked, client = await open_stream("/a", headers=EVENT_SOURCE)
    await asked.stream(b"data: 1\n\n" + block(LIMIT + 1))
    await client.read_to_end()
    back = await ask("/a", headers={**EVENT_SOURCE, "Last-Event-ID": client.last_id})

    assert (["1"], ["too-large"], True) == (data_of(client), signals_of(client), client.whole)
    assert 410 == back.status


@with_limit
@pytest.mark.parametrize(
    "raw",
    [
        block(LIMIT) + b"\n\n",
        b"\n\n\n" + block(LIMIT) + b"\n\n",
        block(LIMIT).replace(b"x", b"\ndata:x", 1)[:LIMIT] + b"\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [LIMIT + 99, 997])
async def test_an_event_as_large_as_may_be_passes(open_stream: OpenStream, raw: bytes, step: int) -> None:
    asked, client = await open_stream("/a")
    for at in range(0, len(raw), step):
        await asked.stream(raw[at : at + step])
    await asked.stream(b"data: 2\n\n")
    await client.read_until(b"\nid: 2-")

    assert [2, []] == [len(data_of(client)), signals_of(client)]


# How much of all together

BUDGET = {
    "max_memory": "4MiB",
    "max_stream_bytes": "2MiB",
    "max_event_bytes": "1MiB",
    "slow_reader_timeout": PATIENCE,
}


@contextmanager
def most_of(sidecar: Sidecar) -> Iterator[list[int]]:
    """The most memory that was ever in use meanwhile: by the sidecar's own count, and by Python's, of this process."""
    made = sidecar.streams.make_room
    most = [0, 0]

    def counting(growing: Any) -> None:
        made(growing)
        most[0] = max(most[0], sidecar.streams.memory)

    sidecar.streams.make_room = counting  # type: ignore[method-assign]
    tracemalloc.start()
    try:
        yield most
    finally:
        most[1] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@pytest.mark.parametrize("settings", [BUDGET, BUDGET | {"mode": "shared"}], ids=["private", "shared"])
async def test_an_upstream_that_floods_a_reader_that_sleeps_stays_within_the_budget(
    sidecar: Sidecar, upstream: Upstream, clock: ManualClock
) -> None:
    async with Sleeper(sidecar, request_of(headers=PLAIN), upstream) as sleeper:
        with most_of(sidecar) as most:
            pouring = asyncio.ensure_future(pour(sleeper.asked, range(500), 60_000))
            if sidecar.settings.mode != "shared":
                await held_up(clock)
                clock.advance(PATIENCE)
            await pouring

    counted, traced = most
    assert 1 * MIB < counted <= 4 * MIB
    assert traced < 5 * MIB


@with_settings(**BUDGET)
async def test_many_upstreams_that_flood_stay_within_the_budget(sidecar: Sidecar, open_stream: OpenStream) -> None:
    """Their readers are there all the while, and miss nothing."""
    opened = [await open_stream("/a") for _ in range(10)]
    missed = 0
    with most_of(sidecar) as most:
        for number in range(1, 21):
            for asked, client in opened:
                await asked.stream(event(number, 60_000))
                await client.read_until(b"\nid: %d-" % number)
                missed += numbers_of(client) != [number]
                client.body = b""

    counted, traced = most
    assert 3 * MIB < counted <= 4 * MIB
    assert traced < 5 * MIB
    assert 0 == missed


@with_settings(**BUDGET, clock=None)
async def test_many_upstreams_with_huge_unfinished_events_stay_within_the_budget(
    sidecar: Sidecar, open_stream: OpenStream
) -> None:
    """What is one too many for all together breaks the stream that it is of; the others go on."""
    opened = [await open_stream("/a") for _ in range(10)]
    size = 900_000
    broken = []
    with most_of(sidecar) as most:
        for asked, client in opened:
            before = sidecar.streams.memory
            for piece in (b"data: ", *[b"x" * 60_000] * (size // 60_000)):
                await asked.stream(piece)
            await until(partial(_grown_or_gone, sidecar, client, before + size))
            broken.append(not active(sidecar, client))
    for asked, client in opened[:4]:
        await asked.stream(b"\n\n")
        await client.read_until(b"\nid: 1-")
    for asked, client in opened[4:]:
        await client.read_to_end()
        await asked.closed()

    counted, traced = most
    assert [False] * 4 + [True] * 6 == broken
    assert counted <= 4 * MIB
    assert traced < 6 * MIB
    assert [[]] * 4 + [["too-large"]] * 6 == [signals_of(client) for _, client in opened]
    assert [size] * 4 == [len(data_of(client)[0]) for _, client in opened[:4]]


def active(sidecar: Sidecar, client: Response) -> bool:
    stream = sidecar.streams.find(client.stream_id)
    return stream is not None and not stream.ended


@with_settings(**BUDGET)
async def test_a_compressed_event_that_would_fill_the_memory_is_too_large(
    sidecar: Sidecar, open_stream: OpenStream
) -> None:
    asked, client = await open_stream("/a", answer=("Content-Encoding: gzip",))
    bomb = gzip.compress(b"data: 1\n\ndata: " + bytes(64 * MIB))
    with most_of(sidecar) as most:
        await asked.stream(bomb)
        await client.read_to_end()

    counted, traced = most
    assert len(bomb) < 70_000
    assert (["1"], ["too-large"]) == (data_of(client), signals_of(client))
    assert counted <= 4 * MIB
    assert traced < 5 * MIB


# What goes first


SCARCE = {"max_memory": "1MiB", "max_stream_bytes": "1MiB", "max_event_bytes": "64KiB"}
scarce = with_settings(**SCARCE)


async def finished(sidecar: Sidecar, open_stream: OpenStream, method: str = "GET") -> Response:
    """A stream of 150 kB that has ended: complete if it was a POST's, dormant else."""
    asked, client = await open_stream("/a", method=method)
    for number in range(1, 6):
        await asked.stream(event(number, 30_000))
    await asked.end()
    await client.read_to_end()
    await until(lambda: not sidecar.streams.active)
    return client


async def grow(asked: Asked, client: Response, by: int, start: int = 1) -> int:
    """Makes a live stream larger, read by its client at once; the number of its last event."""
    last = start + by // 10_000
    for number in range(start, last):
        await asked.stream(event(number, 10_000))
        await client.read_until(b"\nid: %d-" % number)
    return last


async def held(ask: Ask, client: Response) -> str:
    """What is held of a client's stream."""
    response = await ask(f"/.well-known/sse-sidecar/streams/{client.stream_id}")
    if response.status == 404:
        return "nothing"
    state = json.loads(await response.read_to_end())
    if state["first"] > state["last"]:
        return "nothing"
    return "all" if state["first"] == 1 else "some"


@scarce
async def test_complete_streams_go_first_then_dormant_ones_then_what_all_have_passed(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    """The oldest first of each. The reader of the live stream that grows is none the wiser."""
    old = [await finished(sidecar, open_stream, method) for method in ("GET", "POST", "GET", "POST")]
    asked, client = await open_stream("/a")
    seen: list[list[str]] = []
    last = 1
    while not seen or seen[-1][-1] == "all":
        last = await grow(asked, client, 10_000, last)
        now = [await held(ask, each) for each in (*old, client)]
        if now not in seen:
            seen.append(now)

    assert [
        ["all", "all", "all", "all", "all"],
        ["all", "nothing", "all", "all", "all"],
        ["all", "nothing", "all", "nothing", "all"],
        ["nothing", "nothing", "all", "nothing", "all"],
        ["nothing", "nothing", "nothing", "nothing", "all"],
        ["nothing", "nothing", "nothing", "nothing", "some"],
    ] == seen
    assert list(range(1, last)) == numbers_of(client)


@scarce
async def test_a_complete_stream_that_went_early_is_told_to_be_over(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, ask: Ask, open_stream: OpenStream
) -> None:
    """Until its time is up. An EventSource would run the job again otherwise."""
    asked, old = await open_stream("/a")
    for number in range(1, 21):
        await asked.stream(event(number, 30_000))
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()
    await old.read_to_end()
    asked, client = await open_stream("/b", method="POST")
    await grow(asked, client, 500_000)
    tokens = [{**EVENT_SOURCE, "Last-Event-ID": f"{seq}-{old.stream_id}"} for seq in (0, 20, 21)]
    from_start, before_last, over = [await ask("/a", headers=token) for token in tokens]
    await from_start.read_to_end()
    await before_last.read_to_end()
    foreign = await open_stream("/a", headers={**tokens[2], "Authorization": "b"})
    requests = len(upstream.requests)
    await asked.end()
    await client.read_to_end()
    clock.advance(3600)
    _, again = await open_stream("/a", headers=tokens[2])

    assert ("gap", [21], True) == (from_start.sse_status, losses_of(from_start), from_start.whole)
    assert ("gap", [1], True) == (before_last.sse_status, losses_of(before_last), before_last.whole)
    assert 204 == over.status
    assert "reset" == foreign[1].sse_status
    assert 3 == requests
    assert "reset" == again.sse_status


@scarce
async def test_a_stream_that_went_early_is_told_to_be_over_while_there_is_anything_else_to_go(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    """What live streams hold for no one who is here goes before the word that a job is done."""
    old = await finished(sidecar, open_stream, "POST")
    asked, client = await open_stream("/b", method="POST")
    await grow(asked, client, 1_500_000)
    over = await ask("/a", headers={"Last-Event-ID": old.last_id})

    assert "some" == await held(ask, client)
    assert 204 == over.status


@scarce
async def test_a_dormant_stream_that_went_early_is_asked_for_anew(sidecar: Sidecar, open_stream: OpenStream) -> None:
    old = await finished(sidecar, open_stream)
    asked, client = await open_stream("/b", method="POST")
    await grow(asked, client, 1_000_000)
    _, back = await open_stream("/a", headers={"Last-Event-ID": old.last_id})

    assert "reset" == back.sse_status


@scarce
async def test_the_reader_furthest_behind_is_cut_off_and_no_other(
    *, sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    """Of two that sleep in one log. It comes back, and is told what it has lost; no one else has lost anything."""
    asked, client = await open_stream("/a", method="POST", headers={"Host": HOST})
    last = await grow(asked, client, 10_000)
    async with AsyncExitStack() as stack:
        sleepers = []
        for _ in range(2):
            raw = request_of(headers={**PLAIN, "Last-Event-ID": client.last_id})
            sleepers.append(await stack.enter_async_context(Sleeper(sidecar, raw)))
            last = await grow(asked, client, 500_000, last)
        while sidecar.streams.reader_count == 3:
            last = await grow(asked, client, 10_000, last)
        cut, other = [await sleeper.wake() for sleeper in sleepers]
        await cut.read_to_end()
        await other.read_until(b"\nid: %d-" % (last - 1))
    back = await ask("/a", headers={"Host": HOST, "Last-Event-ID": cut.last_id})
    await back.read_until(b"\nid: %d-" % (last - 1))

    assert list(range(1, last)) == numbers_of(client)
    assert list(range(numbers_of(other)[0], last)) == numbers_of(other)
    assert [] == signals_of(other)
    assert [numbers_of(back)[0] - numbers_of(cut)[-1] - 1] == losses_of(back)


@with_settings(max_memory="2MiB", max_stream_bytes="2MiB", max_event_bytes="64KiB")
async def test_the_reader_furthest_behind_of_all_streams_is_cut_off(sidecar: Sidecar, upstream: Upstream) -> None:
    """Whoever's stream it is that grows."""
    raw = request_of(headers=PLAIN)
    async with AsyncExitStack() as stack:
        sleepers = [await stack.enter_async_context(Sleeper(sidecar, raw, upstream)) for _ in range(3)]
        for sleeper, last in zip(sleepers, (50, 160, 50), strict=True):
            await pour(sleeper.asked, range(1, last + 1), 10_000)
        for last in range(51, 200):
            await pour(sleepers[2].asked, [last], 10_000)
            await until(partial(_third_is_at, sidecar, last))
            if sidecar.streams.reader_count < 3:
                break
        woken = [await sleeper.wake() for sleeper in sleepers]
        await woken[0].read_until(b"\nid: 50-")
        await woken[1].read_to_end()
        await woken[2].read_until(b"\nid: %d-" % last)

    assert [list(range(1, 51)), list(range(1, last + 1))] == [numbers_of(woken[0]), numbers_of(woken[2])]
    assert numbers_of(woken[1])[-1] < 160 > last
