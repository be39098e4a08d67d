"""The instruments: each is driven to a known value by what it counts, and none tells a secret."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import NamedTuple

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.live import SLICE
from sse_sidecar.logs import JsonLines, TextLines
from sse_sidecar.metrics import Metrics
from sse_sidecar.upstream import TIMED_EVERY
from tests.conftest import Ask, Connect, OpenStream, StartSidecar, with_settings
from tests.harness import (
    EVENT_SOURCE,
    TIMEOUT,
    Asked,
    ManualClock,
    Response,
    Upstream,
    port_of,
    request,
    scrape,
    start_sidecar,
    unread,
    until,
)

Read = Callable[..., Awaitable[float | None]]

STREAM = {"Accept": "text/event-stream"}


async def buckets(sidecar: Sidecar, name: str, limits: str) -> dict[str, float]:
    """Of a histogram of the default route, how many were at most each limit."""
    values = await scrape(sidecar)
    shown = {limit: limit if limit == "+Inf" else str(float(limit)) for limit in limits.split()}
    return {limit: values[f'{name}_bucket{{le="{le}",route="default"}}'] for limit, le in shown.items()}


@pytest.fixture
def read(sidecar: Sidecar) -> Read:
    """The value of a counter or a gauge of the default route, or of the process; None where there is none yet."""

    async def reading(name: str, **labels: str) -> float | None:
        values = await scrape(sidecar)
        listed = ",".join(f'{key}="{value}"' for key, value in sorted({"route": "default", **labels}.items()))
        found = [values.get(key) for key in (name, f"{name}{{{listed}}}", f"{name}_total{{{listed}}}")]
        return next((value for value in found if value is not None), None)

    return reading


async def lines_of(sidecar: Sidecar, name: str) -> dict[str, float]:
    """Those that are not 0."""
    return {key: value for key, value in (await scrape(sidecar)).items() if key.startswith(name) and value}


async def asked_again(upstream: Upstream, clock: ManualClock) -> Asked:
    """The second request to the upstream, as soon as the sidecar has waited for long enough."""
    async with asyncio.timeout(TIMEOUT):
        while len(upstream.requests) < 2:
            clock.advance(0.1)
            await asyncio.sleep(0.001)
    return await upstream.asked()


async def come_back(ask: Ask, sidecar: Sidecar, response: Response, after: int, *, path: str = "/") -> Response:
    """Leaves, is seen to have left, and asks for what comes after event `after`."""
    response.close()
    await unread(sidecar)
    return await ask(path, headers={"Last-Event-ID": f"{after}-{response.stream_id}"})


# Events


async def test_events_and_bytes_are_counted_as_they_come_and_go(open_stream: OpenStream, read: Read) -> None:
    raw = b"data: 1\r\n\r\n: comment\n\nid: x\ndata: 2\n\nretry: 5\n\n"
    asked, response = await open_stream("/")
    await asked.stream(raw)
    await response.read_until(b"retry: 5")

    assert 2 == await read("sse_events_received")
    assert len(raw) == await read("sse_received_bytes")
    assert 2 == await read("sse_events_delivered")
    assert 0 == await read("sse_events_replayed")


async def test_the_bytes_delivered_are_those_of_the_events_with_their_ids(
    open_stream: OpenStream, ask: Ask, read: Read
) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b": comment\n\ndata: 1\n\ndata: 22\n\n")
    await response.read_until(b"data: 22")
    second = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await second.read_until(b"data: 22")
    frames = [
        b"data: %b\nid: %d-%b\n\n" % (text, n, response.stream_id.encode()) for text, n in ((b"1", 1), (b"22", 2))
    ]

    assert len(frames[0]) + 2 * len(frames[1]) == await read("sse_delivered_bytes")


@with_settings(mode="shared")
async def test_what_waits_for_its_turn_is_counted_when_it_is_written(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, read: Read
) -> None:
    asked, first = await open_stream("/")
    readers = [first, *[await ask("/") for _ in range(2 * SLICE)]]
    await asked.stream(b"data: 1\n\n")
    for reader in readers:
        await reader.read_until(b"data: 1")
    size = len(b"data: 1\nid: 1-%b\n\n" % first.stream_id.encode())

    assert len(readers) == await read("sse_events_delivered")
    assert len(readers) * size == await read("sse_delivered_bytes")
    assert 0 == await read("sse_events_replayed")


async def test_a_replay_is_delivered_and_replayed(open_stream: OpenStream, ask: Ask, read: Read) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
    await response.read_until(b"data: 3")
    response.close()
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 3")
    await asked.stream(b"data: 4\n\n")
    await again.read_until(b"data: 4")

    assert 4 == await read("sse_events_received")
    assert 3 + 3 == await read("sse_events_delivered")
    assert 2 == await read("sse_events_replayed")
    assert 1 == await read("sse_resumes", status="resumed")


async def test_the_bytes_of_a_compressed_stream_are_counted_decoded(open_stream: OpenStream, read: Read) -> None:
    raw = b"data: " + b"1" * 1000 + b"\n\n"
    asked, response = await open_stream("/", answer=("Content-Encoding: gzip",))
    await asked.stream(gzip.compress(raw))
    await response.read_until(b"id: 1-")

    assert len(raw) == await read("sse_received_bytes")


async def test_each_heartbeat_to_each_reader_is_counted(
    open_stream: OpenStream, clock: ManualClock, read: Read
) -> None:
    opened = [await open_stream(f"/{number}") for number in range(3)]
    for beats in (1, 2):
        clock.advance(10)
        for _, response in opened:
            await response.read_until(b": heartbeat\n" * beats)

        assert 3 * beats == await read("sse_heartbeats")


async def test_the_length_of_each_replay_is_shown(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, read: Read
) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"".join(b"data: %d\n\n" % number for number in range(1, 13)))
    await response.read_until(b"data: 12")
    for after in (12, 10, 0):
        response = await come_back(ask, sidecar, response, after)
        await response.read_until(b"data: 12" if after < 12 else b"retry")

    assert {"3": 1.0, "10": 1.0, "30": 2.0, "+Inf": 2.0} == await buckets(sidecar, "sse_replay_events", "3 10 30 +Inf")
    assert (14, 2) == (await read("sse_replay_events_sum"), await read("sse_replay_events_count"))
    assert 14 == await read("sse_events_replayed")


# What users are held to


@with_settings(max_stream_events=2)
async def test_a_loss_of_seven_is_a_loss_of_seven(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, read: Read
) -> None:
    asked, response = await open_stream("/")
    for number in range(1, 11):
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"data: %d" % number)
    again = await come_back(ask, sidecar, response, 1)
    await again.read_until(b"data: 10")

    assert b'"lost": 7' in again.body
    assert 7 == await read("sse_message_loss")


async def test_three_reconnects_took_as_long_as_they_took(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock, read: Read
) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    for away in (0.25, 1.25, 6):
        response.close()
        await unread(sidecar)
        clock.advance(away)
        response = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    wanted = "100 250 1000 1500 5000 7500 +Inf"

    assert [0, 1, 1, 2, 2, 3, 3] == list((await buckets(sidecar, "sse_reconnect_time_ms", wanted)).values())
    assert (7500, 3) == (await read("sse_reconnect_time_ms_sum"), await read("sse_reconnect_time_ms_count"))


async def test_a_first_request_and_a_second_reader_are_no_reconnects(
    open_stream: OpenStream, ask: Ask, read: Read
) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    second = await ask("/", headers={"Last-Event-ID": f"0-{response.stream_id}"})
    await second.read_until(b"data: 1")

    assert 0 == await read("sse_reconnect_time_ms_count")


async def test_what_is_over_was_not_reconnected_to(
    open_stream: OpenStream, ask: Ask, clock: ManualClock, read: Read
) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: 1\n\n")
    await asked.end()
    await response.read_to_end()
    clock.advance(1)
    await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})

    assert 0 == await read("sse_reconnect_time_ms_count")


async def test_the_completion_rate_is_that_of_the_last_five_minutes(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock, read: Read
) -> None:
    rates = [await read("sse_stream_completion_rate")]
    asked, response = await open_stream("/")
    await asked.stream(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
    await response.read_until(b"data: 3")
    rates.append(await read("sse_stream_completion_rate"))
    again = await come_back(ask, sidecar, response, 2)
    await again.read_until(b"data: 3")
    rates.append(await read("sse_stream_completion_rate"))  # one of four was a replay
    for _ in range(4):
        clock.advance(60)
    await asked.stream(b"".join(b"data: %d\n\n" % number for number in range(4, 10)))
    await again.read_until(b"data: 9")
    rates.append(await read("sse_stream_completion_rate"))  # one of ten
    for _ in range(2):
        clock.advance(35)
    rates.append(await read("sse_stream_completion_rate"))  # none of six

    assert [100, 100, 75, 90, 100] == rates


@with_settings(max_stream_events=2)
async def test_events_that_were_asked_for_and_are_not_held_are_lost(
    open_stream: OpenStream, ask: Ask, read: Read
) -> None:
    asked, response = await open_stream("/")
    for number in range(1, 6):
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"data: %d" % number)
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 5")

    assert 2 == await read("sse_message_loss")
    assert 1 == await read("sse_user_visible_errors", code="gap")
    assert 1 == await read("sse_resumes", status="gap")


async def test_events_that_come_again_after_a_reconnect_are_duplicates(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, read: Read
) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n")
    await response.read_until(b"data: 2")
    asked.close()
    again = await asked_again(upstream, clock)
    await again.begin()
    await again.stream(b"id: b\ndata: 2\n\nid: c\ndata: 3\n\n")
    await response.read_until(b"data: 3")

    assert 1 == await read("sse_duplicate_events")
    assert 3 == await read("sse_events_delivered")
    assert 2 == await read("sse_upstream_connects", result="ok")


async def test_a_stall_is_counted_once_until_the_upstream_speaks_again(
    open_stream: OpenStream, clock: ManualClock, read: Read
) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    clock.advance(29.9)
    counts = [await read("sse_stall_detections")]
    for seconds in (0.1, 60):
        clock.advance(seconds)
        counts.append(await read("sse_stall_detections"))
    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"data: 2")
    clock.advance(60)
    counts.append(await read("sse_stall_detections"))

    assert [0, 1, 1, 2] == counts


# Requests


async def test_a_stream_that_cannot_be_decoded_is_counted(ask: Ask, upstream: Upstream, read: Read) -> None:
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.respond("200 OK", "Content-Type: text/event-stream", "Content-Encoding: x-own", body=b"\x01")
    await asking

    assert 1 == await read("sse_undecodable_streams")
    assert 1 == await read("sse_passthrough_requests", code="200")


async def test_passthrough_is_counted_by_status(ask: Ask, upstream: Upstream, read: Read, sidecar: Sidecar) -> None:
    for status in ("200 OK", "404 Not Found", "404 Not Found"):
        asking = asyncio.ensure_future(ask("/"))
        asked = await upstream.asked()
        await asked.respond(status)
        await asking
    await upstream.stop()
    await ask("/")
    counted = await lines_of(sidecar, "sse_passthrough_requests_total")

    assert {"200": 1.0, "404": 2.0, "502": 1.0} == {key.split('"')[1]: value for key, value in counted.items()}
    assert 3 == await read("sse_upstream_connects", result="ok")
    assert 1 == await read("sse_upstream_connects", result="Unreachable")
    assert 0 == await read("sse_user_visible_errors", code="502")


async def _gone(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await ask("/", headers={"Last-Event-ID": "1-p" + "A" * 22})


async def _reset(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await open_stream("/", headers={"Last-Event-ID": "1-g" + "A" * 22})


async def _upstream_lost(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asked, response = await open_stream("/", method="POST")
    asked.close()
    await response.read_to_end()


async def _too_large(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: " + b"1" * 2000 + b"\n\n")
    await response.read_to_end()


async def _over_max_streams(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await open_stream("/1")
    await ask("/2", headers=STREAM)


async def _over_max_readers(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    _, response = await open_stream("/1")
    await ask("/1", headers={"Last-Event-ID": f"0-{response.stream_id}"})


async def _unreachable(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await upstream.stop()
    await ask("/", headers=STREAM)


async def _closed(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/", headers=EVENT_SOURCE))
    (await upstream.asked()).close()
    await asking


async def _refused_by_the_upstream(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/", headers=STREAM))
    await (await upstream.asked()).respond("401 Unauthorized")
    await asking


async def _key_reused(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    headers = {"Idempotency-Key": "k", "Authorization": "a"}
    await open_stream("/", method="POST", headers=headers, body=b"1")
    await ask("/", method="POST", headers={**headers, **STREAM}, body=b"2")


class Situation(NamedTuple):
    """What a client meets, with which settings, and the code it is counted under."""

    happens: Callable[[OpenStream, Ask, Upstream], Awaitable[None]]
    code: str
    settings: dict[str, object]


SITUATIONS = [
    Situation(_gone, "gone", {}),
    Situation(_reset, "reset", {}),
    Situation(_upstream_lost, "upstream-lost", {}),
    Situation(_too_large, "too-large", {"max_event_bytes": 1000}),
    Situation(_over_max_streams, "max_streams", {"max_streams": 1}),
    Situation(_over_max_readers, "max_readers", {"max_readers": 1}),
    Situation(_unreachable, "502", {}),
    Situation(_closed, "502", {}),
    Situation(_refused_by_the_upstream, "401", {}),
    Situation(_key_reused, "422", {}),
]


@pytest.mark.parametrize(
    ("situation", "settings"), [(it, it.settings) for it in SITUATIONS], ids=[it.happens.__name__ for it in SITUATIONS]
)
async def test_an_error_that_a_user_sees_is_counted_once_by_its_code(
    situation: Situation, sidecar: Sidecar, open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    await situation.happens(open_stream, ask, upstream)

    assert {f'sse_user_visible_errors_total{{code="{situation.code}",route="default"}}': 1.0} == await lines_of(
        sidecar, "sse_user_visible_errors_total"
    )


@with_settings(mode="shared")
async def test_a_signal_within_the_log_is_counted_for_each_client_that_is_sent_it(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock, read: Read
) -> None:
    asked, first = await open_stream("/")
    second = await ask("/")
    await asked.stream(b"data: 1\n\n")
    for response in (first, second):
        await response.read_until(b"data: 1")
    asked.reset()
    again = await asked_again(upstream, clock)
    await again.begin()
    await again.stream(b"data: 2\n\n")
    for response in (first, second):
        await response.read_until(b"data: 2")
    live = await read("sse_user_visible_errors", code="gap")
    third = await ask("/", headers={"Last-Event-ID": f"1-{first.stream_id}"})
    await third.read_until(b"data: 2")

    assert [1, 1, 1] == [response.body.count(b'"code": "gap"') for response in (first, second, third)]
    assert (2, 3) == (live, await read("sse_user_visible_errors", code="gap"))
    assert 0 == await read("sse_message_loss")


@pytest.mark.parametrize("gone", [True, False], ids=["has left", "reads"])
async def test_a_signal_at_the_end_is_counted_when_it_is_sent(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, read: Read, *, gone: bool
) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    if gone:
        response.close()
        await unread(sidecar)
    asked.reset()
    await until(lambda: all(stream.ended for stream in sidecar.streams))
    await response.closed()
    at_the_end = await read("sse_user_visible_errors", code="upstream-lost")
    again = await ask("/", headers={"Last-Event-ID": f"0-{response.stream_id}"})
    await again.read_to_end()

    assert (0 if gone else 1) == at_the_end
    assert (1 if gone else 2) == await read("sse_user_visible_errors", code="upstream-lost")
    assert b"upstream-lost" in again.body


async def test_a_client_that_leaves_its_own_request_unfinished_saw_no_error(
    connect: Connect, upstream: Upstream, sidecar: Sidecar
) -> None:
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nContent-Length: 10\r\n\r\n123")
    await upstream.asked()
    client.close()
    await sidecar.front.idle.wait()

    assert {} == await lines_of(sidecar, "sse_user_visible_errors_total")


async def test_requests_for_a_stream_are_counted_once_each(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, read: Read
) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    await ask("/", headers={"Last-Event-ID": f"0-{response.stream_id}", **STREAM})
    await ask("/", headers={"Last-Event-ID": "1-p" + "A" * 22})
    asking = asyncio.ensure_future(ask("/", headers=STREAM))
    await (await upstream.asked()).respond("404 Not Found")
    await asking
    asking = asyncio.ensure_future(ask("/page"))
    await (await upstream.asked()).respond("200 OK")
    await asking

    assert 4 == await read("sse_stream_requests")


async def test_an_answer_that_does_not_come_in_time_is_counted(
    ask: Ask, upstream: Upstream, clock: ManualClock, read: Read
) -> None:
    asking = asyncio.ensure_future(ask("/", headers=STREAM))
    await upstream.asked()
    clock.advance(300)
    response = await asking

    assert 504 == response.status
    assert 1 == await read("sse_user_visible_errors", code="504")


async def test_a_resume_of_what_is_over_is_counted(open_stream: OpenStream, ask: Ask, read: Read) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()
    await response.read_to_end()
    over = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})

    assert 204 == over.status
    assert 1 == await read("sse_resumes", status="over")
    assert 0 == await read("sse_user_visible_errors", code="gone")


# Gauges


async def test_streams_and_readers_are_shown_as_they_are(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, read: Read
) -> None:
    async def gauges() -> list[float | None]:
        names = ("concurrent_streams", "readers", "unread_streams")
        by_state = [await read("sse_streams", state=state) for state in ("live", "complete")]
        return [*[await read(f"sse_{name}") for name in names], *by_state]

    before = await gauges()
    asked, response = await open_stream("/", method="POST")
    second = await ask("/", headers={"Last-Event-ID": f"0-{response.stream_id}"})
    two_readers = await gauges()
    response.close()
    second.close()
    await until(lambda: not sidecar.streams.reader_count)
    left = await gauges()
    await asked.end()
    await until(lambda: all(stream.ended for stream in sidecar.streams))
    held = await gauges()

    assert [0, 0, 0, 0, 0] == before
    assert [1, 2, 0, 1, 0] == two_readers
    assert [0, 0, 1, 1, 0] == left
    assert [0, 0, 0, 0, 1] == held


@with_settings(history_ttl=100)
async def test_the_bytes_of_histories_are_shown_until_they_are_gone(
    open_stream: OpenStream, clock: ManualClock, read: Read
) -> None:
    before = await read("sse_history_bytes")
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: " + b"1" * 10_000 + b"\n\n")
    await response.read_until(b"id: 1-")
    held = await read("sse_history_bytes")
    await asked.end()
    await response.read_to_end()
    clock.advance(201)
    after = await read("sse_history_bytes")

    assert (0, 0) == (before, after)
    assert held is not None
    assert 10_000 < held < 30_000


@pytest.mark.parametrize(("method", "cause"), [("POST", "finished"), ("GET", "dormant")])
@with_settings(max_memory="60kB", max_stream_bytes="40kB", max_event_bytes="40kB")
async def test_an_eviction_is_counted_by_what_went(
    sidecar: Sidecar, open_stream: OpenStream, method: str, cause: str
) -> None:
    for number in range(2):
        asked, response = await open_stream(f"/{number}", method=method)
        await asked.stream(b"data: " + b"1" * 30_000 + b"\n\n")
        await asked.end()
        await response.read_to_end()

    assert {f'sse_evictions_total{{cause="{cause}",route="default"}}': 1.0} == await lines_of(
        sidecar, "sse_evictions_total"
    )


# Time


async def test_the_time_to_the_last_write_is_taken_of_one_read_in_sixteen(
    upstream: Upstream, clock: ManualClock
) -> None:
    """Each look at the stopwatch finds it 3 ms later."""
    ticks = count(0, 0.003)
    sidecar = await start_sidecar(upstream.url, clock, stopwatch=lambda: next(ticks))
    asking = asyncio.ensure_future(request(port_of(sidecar), "/"))
    asked = await upstream.asked()
    await asked.begin()
    response = await asking
    for number in range(2 * TIMED_EVERY):
        await asked.stream(b"data: %d;\n\n" % number)
        await response.read_until(b"data: %d;" % number)
    values = await scrape(sidecar)
    response.close()
    await sidecar.stop()

    assert 2 == values['sse_delivery_seconds_count{route="default"}']
    assert 0.006 == pytest.approx(values['sse_delivery_seconds_sum{route="default"}'])
    assert 0 == values['sse_delivery_seconds_bucket{le="0.0025",route="default"}']
    assert 2 == values['sse_delivery_seconds_bucket{le="0.005",route="default"}']


# Labels and secrets


async def test_each_route_is_counted_by_its_name(start: StartSidecar, upstream: Upstream) -> None:
    sidecar = await start(route=[{"path": "/a/*", "name": "first"}, {"path": "/b/*"}])
    for path in ("/a/1", "/b/1", "/c"):
        asking = asyncio.ensure_future(request(port_of(sidecar), path))
        asked = await upstream.asked()
        await asked.respond("200 OK")
        (await asking).close()
    counted = await lines_of(sidecar, "sse_passthrough_requests_total")

    assert {
        f'sse_passthrough_requests_total{{code="200",route="{name}"}}': 1.0 for name in ("first", "/b/*", "default")
    } == (counted)


def test_the_names_that_are_fixed_are_there_before_anything_happens() -> None:
    """A counter that appears with 1 has not increased, to Prometheus: no alert would come of the first loss."""
    metrics = Metrics(lambda: 0.0, stopwatch=lambda: 0.0, wall=lambda: 0.0)
    metrics.route("default")
    text = metrics.exposition().decode()

    for name in ("sse_message_loss_total", "sse_duplicate_events_total", "sse_stall_detections_total"):
        assert f'{name}{{route="default"}} 0.0' in text
    for code in ("gap", "reset", "upstream-lost", "too-large", "gone", "max_streams", "502", "504"):
        assert f'sse_user_visible_errors_total{{code="{code}",route="default"}} 0.0' in text
    assert 'sse_stream_completion_rate{route="default"} 100.0' in text
    assert "# TYPE sse_user_visible_errors_total counter" in text
    assert "# TYPE sse_reconnect_time_ms histogram" in text


async def test_every_route_is_shown_before_it_is_used(start: StartSidecar) -> None:
    values = await scrape(await start(route=[{"path": "/a/*", "name": "first"}]))

    assert (0, 0) == (
        values['sse_message_loss_total{route="first"}'],
        values['sse_message_loss_total{route="default"}'],
    )


SECRETS = ["s3cr3t-key", "s3cr3t-cookie", "s3cr3t-query", "s3cr3t-body", "s3cr3t-upstream-id", "s3cr3t-data"]


async def eventful_day(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> list[str]:
    """A stream is resumed, lost, gone, refused and rejected; the tokens that were seen."""
    credentials = {"Authorization": "Bearer s3cr3t-key", "Cookie": "session=s3cr3t-cookie", "X-Api-Key": "s3cr3t-key"}
    path = "/path?api_key=s3cr3t-query"
    asked, response = await open_stream(path, headers=credentials)
    await asked.stream(b"id: s3cr3t-upstream-id\ndata: s3cr3t-data\n\n")
    await response.read_until(b"s3cr3t-data")
    response.close()
    again = await ask(path, headers={**credentials, "Last-Event-ID": response.last_id})
    asked.reset()
    await upstream.stop()
    again.close()
    await ask(path, headers={"Last-Event-ID": f"1-p{response.stream_id[1:]}"})
    await ask(path, method="POST", headers=credentials, body=b"s3cr3t-body")
    await ask(path, headers={**credentials, "Last-Event-ID": "s3cr3t-upstream-id"})
    await ask(path, headers={**credentials, "Bad Name": "s3cr3t-key"})
    return [response.stream_id, response.last_id]


@with_settings(access_log=True, log_level="debug")
async def test_tokens_and_credentials_are_in_no_metric_and_no_log_line(
    sidecar: Sidecar, open_stream: OpenStream, ask: Ask, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    tokens = await eventful_day(open_stream, ask, upstream)
    assert sidecar.admin_address is not None
    for path in ("/metrics", "/streams"):
        answer = await request(sidecar.admin_address.port, path, headers={"Connection": "close"})
        seen.append((await answer.read_to_end()).decode())
        answer.close()
    await sidecar.stop()
    lines = [form.format(record) for record in caplog.records for form in (TextLines(), JsonLines())]
    shown = "\n".join([*seen, caplog.text, *lines])
    told = [secret for secret in [*SECRETS, *tokens] if secret in shown]

    assert [] == told
    assert {"stream opened", "stream resumed", "stream ended", "request"} <= {
        record.message for record in caplog.records
    }
    assert [] == [record for record in caplog.records if record.exc_info]
