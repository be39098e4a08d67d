"""Toward the upstream, an EventSource: it is asked again behind its clients, who stay connected."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, STREAM_HEAD, Asked, ManualClock, Upstream, chunk, until
from tests.lifecycle import (
    CURL,
    FAR,
    GAP,
    LONGEST_BACK_OFF,
    LOST,
    NO_OTHER_TIMERS,
    POST,
    Lose,
    advance_until,
    asked_again,
    break_framing,
    carrying,
    close_unfinished,
    counted,
    datas,
    go_on,
    has_left,
    kinds,
    leave,
    live,
    opened,
    reset,
    resuming,
    signals,
    state_of,
)
from tests.reference import interpret

WITH_IDS = b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n"
WITHOUT_IDS = b"data: 1\n\ndata: 2\n\n"
LAST_WITHOUT_ID = b"id: a\ndata: 1\n\ndata: 2\n\n"

ALWAYS = {"reconnect": "always"}
NEVER = {"reconnect": "never"}
EXACT = {"reconnect": "exact"}
SHARED = {"mode": "shared"}


@pytest.fixture
async def sidecar(start: StartSidecar, settings: dict[str, Any]) -> Sidecar:
    """Nothing is due soon but what a test sets."""
    return await start(**NO_OTHER_TIMERS | settings)


# Whether


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({}, WITH_IDS),
        (EXACT, WITH_IDS),
        ({**SHARED, **EXACT}, WITH_IDS),
        (SHARED, WITH_IDS),
        (SHARED, WITHOUT_IDS),
        (SHARED, LAST_WITHOUT_ID),
        (ALWAYS, WITHOUT_IDS),
        (ALWAYS, LAST_WITHOUT_ID),
    ],
)
async def test_a_get_that_was_lost_is_asked_again_behind_its_client(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, data: bytes
) -> None:
    asked, response = await opened(open_stream, data)

    asked.reset()
    await go_on(upstream, clock, b"id: c\ndata: 3\n\n")
    await response.read_until(b"id: 3-")

    assert ["1", "2", *(["gap"] if data == WITHOUT_IDS else []), "3"] == kinds(response)


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({}, WITHOUT_IDS),
        ({}, LAST_WITHOUT_ID),
        (EXACT, WITHOUT_IDS),
        ({**SHARED, **EXACT}, WITHOUT_IDS),
        ({**SHARED, **EXACT}, LAST_WITHOUT_ID),
        (NEVER, WITH_IDS),
        ({**SHARED, **NEVER}, WITH_IDS),
    ],
)
async def test_a_get_that_may_not_be_asked_again_ends_its_readers_and_is_dormant(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, data: bytes
) -> None:
    asked, response = await opened(open_stream, data)

    asked.reset()
    await response.read_to_end()

    assert (["1", "2"], LOST, False) == (datas(response), signals(response), response.whole)
    assert ("dormant", 1) == (await state_of(sidecar, response), len(upstream.requests))


@with_settings(**ALWAYS)
async def test_what_may_not_be_repeated_is_never_asked_again(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar
) -> None:
    asked, response = await opened(open_stream, WITH_IDS, **POST)

    asked.reset()
    await response.read_to_end()

    assert (LOST, False) == (signals(response), response.whole)
    assert ("broken", 1) == (await state_of(sidecar, response), len(upstream.requests))


@pytest.mark.parametrize("settings", [EXACT, ALWAYS])
async def test_a_get_lost_before_its_first_event_is_asked_again_only_where_that_is_always_so(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, settings: dict[str, Any]
) -> None:
    asked, response = await open_stream("/a")

    asked.reset()
    if settings is EXACT:
        await response.read_to_end()
    else:
        await go_on(upstream, clock, b"data: 1\n\n")
        await response.read_until(b"id: 1-")

    assert (["upstream-lost"] if settings is EXACT else ["gap", "1"]) == kinds(response)


@pytest.mark.parametrize("lose", [reset, close_unfinished, break_framing])
async def test_an_upstream_is_lost_in_whatever_way_its_body_ends_short(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, lose: Lose
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)

    await lose(asked)
    await go_on(upstream, clock, b"id: c\ndata: 3\n\n")
    await response.read_until(b"id: 3-")

    assert ["1", "2", "3"] == kinds(response)


async def test_a_body_short_of_its_length_is_lost(
    ask: Ask, open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asking = asyncio.ensure_future(ask("/a"))
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n" + WITH_IDS)
    response = await asking
    asked.close()
    await go_on(upstream, clock, b"id: c\ndata: 3\n\n")
    await response.read_until(b"id: 3-")

    assert ["1", "2", "3"] == kinds(response)


# How it is asked


async def test_the_upstream_is_asked_as_the_first_time_and_for_what_follows_its_own_last_id(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    headers = {"Authorization": "Bearer s", "Cookie": "a=b", "X-Mine": "yes", "Last-Event-ID": "x7", **EVENT_SOURCE}
    asked, _ = await opened(open_stream, WITH_IDS, "/a/../b?c=%20&d", headers=headers)

    asked.reset()
    again = await asked_again(upstream, clock)

    first = [(name.lower(), value) for name, value in asked.headers if name.lower() != b"last-event-id"]
    second = [(name.lower(), value) for name, value in again.headers if name.lower() != b"last-event-id"]
    assert (asked.start_line, sorted(first)) == (again.start_line, sorted(second))
    assert (["x7"], ["b"]) == (asked.header_all("last-event-id"), again.header_all("last-event-id"))


@with_settings(**ALWAYS)
@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (b"data: 1\n\n", []),
        (b"id: a\ndata: 0\n\nid: b\n\ndata: 1\n\n", ["b"]),
        (b"id: a\ndata: 0\n\nid\ndata: 1\n\n", []),
        (b"id: a\ndata: 0\n\nid: b\0\ndata: 1\n\n", ["a"]),
        ("id: ü →\ndata: 1\n\n".encode(), ["ü →".encode().decode("latin-1")]),
    ],
    ids=["none", "in a block of its own", "reset", "with NUL", "not ASCII"],
)
async def test_the_id_sent_is_the_last_that_the_upstream_gave(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, *, data: bytes, sent: list[str]
) -> None:
    asked, _ = await opened(open_stream, data)

    asked.reset()

    assert sent == (await asked_again(upstream, clock)).header_all("last-event-id")


@with_settings(**ALWAYS)
async def test_an_id_that_the_upstream_took_back_is_not_replaced_by_the_clients_first_one(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    """WHATWG HTML, 9.2.3: the header is sent unless "the last event ID string" is empty, as `id` alone makes it."""
    asked, _ = await opened(open_stream, b"id\ndata: 1\n\n", headers={"Last-Event-ID": "x7"})

    asked.reset()

    assert [] == (await asked_again(upstream, clock)).header_all("last-event-id")


# When


async def seconds_until_asked(upstream: Upstream, clock: ManualClock) -> tuple[float, Asked]:
    since = clock.time()
    asked = await asked_again(upstream, clock)
    return clock.time() - since, asked


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        ("", [1, 2, 4, 5, 5]),
        ("retry: 3000\n", [3, 5, 5]),
        ("retry: 7000\n", [7, 7, 7]),
        ("retry: 0300\n", [0.3, 0.6, 1.2, 2.4, 4.8, 5]),
        ("retry: soon\n", [1, 2]),
    ],
)
async def test_the_upstream_is_given_its_reconnection_time_before_each_attempt_and_twice_that_after_a_failure(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, *, retry: str, delays: list[float]
) -> None:
    """WHATWG HTML, 9.2.3, "reestablish the connection": the wait comes first; a thousand streams were lost at once."""
    asked, _ = await opened(open_stream, retry.encode() + WITH_IDS)

    asked.reset()
    waits = []
    for _ in delays:
        waited, again = await seconds_until_asked(upstream, clock)
        await again.respond("503 Service Unavailable")
        waits.append(waited)

    jitters = [waited - delay for waited, delay in zip(waits, delays, strict=True)]
    assert all(0 <= jitter <= 0.101 for jitter in jitters), waits
    assert len(jitters) == len(set(jitters))


async def test_the_back_off_begins_anew_once_the_upstream_has_been_there(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)
    asked.reset()
    for _ in range(4):
        await (await asked_again(upstream, clock)).respond("503 Service Unavailable")
    asked = await go_on(upstream, clock, b"id: c\ndata: 3\n\n")
    await response.read_until(b"id: 3-")

    asked.reset()
    waited, _ = await seconds_until_asked(upstream, clock)

    assert waited <= 1.101


@pytest.mark.parametrize("retry", ["", "retry: 0\n"])
async def test_an_upstream_that_drops_each_connection_is_not_asked_without_a_pause(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, retry: str
) -> None:
    """Each attempt is a success as far as its head goes."""
    asked, _ = await opened(open_stream, retry.encode() + WITH_IDS)
    asked.reset()
    waits = []
    for _ in range(13):
        waited, again = await seconds_until_asked(upstream, clock)
        await again.begin()
        again.reset()
        waits.append(waited)

    assert 0 < min(waits[1:])
    assert sum(waits[1:]) >= (0.1 if retry else 12)


async def test_a_failing_upstream_that_said_retry_0_is_not_asked_in_a_busy_loop(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, _ = await opened(open_stream, b"retry: 0\n" + WITH_IDS)
    asked.reset()
    waits = []
    for _ in range(6):
        waited, again = await seconds_until_asked(upstream, clock)
        await again.respond("503 Service Unavailable")
        waits.append(waited)

    assert waits[-1] >= 1, waits


# Until


gives_up_after_60 = with_settings(reconnect_timeout=60)


@gives_up_after_60
@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
@pytest.mark.parametrize("listening", [True, False], ids=["5xx", "refused"])
async def test_a_failing_upstream_is_asked_until_reconnect_timeout_and_then_lost(
    open_stream: OpenStream,
    upstream: Upstream,
    sidecar: Sidecar,
    clock: ManualClock,
    *,
    headers: dict[str, str],
    listening: bool,
) -> None:
    asked, response = await opened(open_stream, WITH_IDS, headers=headers)
    upstream.handler = lambda again: again.respond("500 Internal Server Error")

    if listening:
        asked.reset()
    else:
        await upstream.stop()
    since = clock.time()
    reading = asyncio.ensure_future(response.read_to_end())
    await advance_until(clock, lambda: reading.done() or clock.time() >= since + 54)
    ended_early = reading.done()
    await advance_until(clock, lambda: reading.done() or clock.time() >= since + 60)
    await reading

    assert not ended_early
    assert clock.time() - since <= 60
    assert (["1", "2", "upstream-lost"], headers is EVENT_SOURCE) == (kinds(response), response.whole)
    assert ("dormant", 1) == (
        await state_of(sidecar, response),
        await counted(sidecar, "sse_user_visible_errors", code="upstream-lost"),
    )


@gives_up_after_60
async def test_an_upstream_that_takes_the_request_and_says_nothing_is_lost_at_reconnect_timeout(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)

    asked.reset()
    again = await asked_again(upstream, clock)
    clock.advance(60)
    await response.read_to_end()
    await again.closed()

    assert ["1", "2", "upstream-lost"] == kinds(response)


@gives_up_after_60
async def test_a_stream_that_was_lost_for_good_goes_on_when_its_client_comes_back(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    _, response = await opened(open_stream, WITH_IDS)
    await upstream.stop()
    reading = asyncio.ensure_future(response.read_to_end())
    await advance_until(clock, reading.done)

    await upstream.start(upstream.port)
    back = await ask("/a", headers=resuming(response.last_id))
    again = await go_on(upstream, clock, b"id: c\ndata: 3\n\n")
    await back.read_until(b"id: 3-")

    assert ("b", ["3"]) == (again.header("last-event-id"), kinds(back))


# Meanwhile


@with_settings(heartbeat=10)
@pytest.mark.parametrize(("headers", "end"), [(CURL, b"\n"), (EVENT_SOURCE, b"\n\n")])
async def test_clients_stay_connected_and_are_told_and_kept_alive(
    open_stream: OpenStream,
    upstream: Upstream,
    sidecar: Sidecar,
    clock: ManualClock,
    *,
    headers: dict[str, str],
    end: bytes,
) -> None:
    asked, response = await opened(open_stream, WITH_IDS, headers=headers)
    seen = len(response.body)

    asked.reset()
    again = await asked_again(upstream, clock)
    await response.read_until(b": waiting")
    state = await state_of(sidecar, response)
    for beats in (1, 2):
        clock.advance(10)
        while response.body.count(b": heartbeat") < beats:
            await response.read_some()
    await again.begin()
    await again.stream(b"id: c\ndata: 3\n\n")
    await response.read_until(b"id: 3-")

    told = b": waiting for upstream" + end + 2 * (b": heartbeat" + end)
    event = f"data: 3\nid: 3-{carrying(response.stream_id, 'c')}\n\n".encode()
    assert told + event == response.body[seen:]
    assert ("reconnecting", "live") == (state, await state_of(sidecar, response))


async def test_each_attempt_that_fails_is_told(open_stream: OpenStream, upstream: Upstream, clock: ManualClock) -> None:
    """Of all bytes they are the only sign of life, where heartbeats are far between."""
    asked, response = await opened(open_stream, WITH_IDS)

    asked.reset()
    for told in range(1, 4):
        while response.body.count(b": waiting for upstream\n") < told:
            await response.read_some()
        await (await asked_again(upstream, clock)).respond("503 Service Unavailable")

    assert ["1", "2"] == kinds(response)


@with_settings(heartbeat=10)
async def test_who_resumes_meanwhile_gets_the_replay_and_waits_with_the_others(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    asked, first = await opened(open_stream, WITH_IDS)
    asked.reset()
    again = await asked_again(upstream, clock)

    second = await ask("/a", headers=resuming(f"1-{first.stream_id}"))
    await second.read_until(b"id: 2-")
    clock.advance(10)
    await second.read_until(b": heartbeat")
    await again.begin()
    await again.stream(b"id: c\ndata: 3\n\n")
    for response in (first, second):
        await response.read_until(b"id: 3-")

    assert (200, first.stream_id, "resumed") == (second.status, second.stream_id, second.sse_status)
    assert (["1", "2", "3"], ["2", "3"], 2) == (kinds(first), kinds(second), len(upstream.requests))


async def test_a_restart_of_the_upstream_on_its_port_goes_unnoticed(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    _, response = await opened(open_stream, WITH_IDS, headers=EVENT_SOURCE)

    await upstream.stop()
    told = asyncio.ensure_future(response.read_until(3 * b": waiting for upstream\n\n"))
    await advance_until(clock, told.done)
    await upstream.start(upstream.port)
    again = await go_on(upstream, clock, b"id: c\ndata: 3\n\n")
    await response.read_until(b"id: 3-")

    assert ("b", ["1", "2", "3"]) == (again.header("last-event-id"), kinds(response))


# Without a reader


async def test_an_upstream_lost_without_a_reader_is_left_alone_until_one_is_back(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)
    await leave(sidecar, response)
    await asked.stream(b"id: c\ndata: 3\n\ndata: half")
    asked.reset()
    await until(lambda: not sidecar.streams.active)
    clock.advance(20)
    before = (await state_of(sidecar, response), len(upstream.requests))

    back = await ask("/a", headers=resuming(response.last_id))
    again = await go_on(upstream, clock, b"id: d\ndata: 4\n\n")
    await back.read_until(b"id: 4-")

    assert ("dormant", 1) == before
    assert (["3", "4"], "resumed", "c") == (kinds(back), back.sse_status, again.header("last-event-id"))
    assert 0 == await counted(sidecar, "sse_user_visible_errors", code="upstream-lost")


@with_settings(linger=30)
async def test_who_comes_back_to_an_upstream_that_is_being_asked_again_finds_it_asked_once(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)
    asked.reset()
    again = await asked_again(upstream, clock)
    await leave(sidecar, response)

    back = await ask("/a", headers=resuming(response.last_id))
    await again.begin()
    await again.stream(b"id: c\ndata: 3\n\n")
    await back.read_until(b"id: 3-")
    clock.advance(31)
    await again.stream(b"id: d\ndata: 4\n\n")
    await back.read_until(b"id: 4-")

    assert (["3", "4"], response.stream_id, 2) == (kinds(back), back.stream_id, len(upstream.requests))


@with_settings(linger=30)
async def test_an_upstream_that_is_being_asked_again_for_no_one_is_let_go_of_when_linger_is_over(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)
    asked.reset()
    again = await asked_again(upstream, clock)

    await leave(sidecar, response)
    active = sidecar.streams.active
    clock.advance(30)
    await again.closed()

    assert (1, 0) == (active, sidecar.streams.active)
    assert ("dormant", 2) == (await state_of(sidecar, response), len(upstream.requests))


@with_settings(on_disconnect="cancel")
async def test_an_upstream_that_is_being_asked_again_is_cancelled_with_its_last_reader(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)
    asked.reset()
    again = await asked_again(upstream, clock)

    response.close()
    await again.closed()
    await until(lambda: not sidecar.streams.active)

    assert "dormant" == await state_of(sidecar, response)


@with_settings(on_disconnect="cancel")
async def test_no_attempt_is_made_after_the_last_reader_has_left(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)
    asked.reset()
    await (await asked_again(upstream, clock)).respond("503 Service Unavailable")
    await until(lambda: clock.next_in < LONGEST_BACK_OFF)

    await leave(sidecar, response)
    await until(lambda: clock.next_in > LONGEST_BACK_OFF)
    clock.advance(60)

    assert (2, 0) == (len(upstream.requests), sidecar.streams.active)


# Another answer


async def test_204_completes_the_stream(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, first = await opened(open_stream, WITH_IDS)
    second = await ask("/a", headers=resuming(f"1-{first.stream_id}", EVENT_SOURCE))
    await second.read_until(b"id: 2-")

    asked.reset()
    await (await asked_again(upstream, clock)).respond("204 No Content")
    for response in (first, second):
        await response.read_to_end()
    last = await ask("/a", headers=resuming(first.last_id))

    assert (["1", "2"], ["2"]) == (kinds(first), kinds(second))
    assert (True, True) == (first.whole, second.whole)
    assert ("complete", 204, 2) == (await state_of(sidecar, first), last.status, len(upstream.requests))


FINAL = [
    ("404 Not Found", ()),
    ("401 Unauthorized", ("WWW-Authenticate: Basic",)),
    ("429 Too Many Requests", ("Retry-After: 1",)),
    ("302 Found", ("Location: /elsewhere",)),
    ("307 Temporary Redirect", ("Location: /elsewhere",)),
    ("206 Partial Content", ("Content-Type: text/event-stream",)),
    ("200 OK", ("Content-Type: text/html",)),
    ("200 OK", ("Content-Type: application/json",)),
    ("200 OK", ()),
]


@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
@pytest.mark.parametrize(("status", "fields"), FINAL)
async def test_any_other_answer_is_final_told_and_logged_and_seen_by_the_next_resume_itself(
    open_stream: OpenStream,
    ask: Ask,
    upstream: Upstream,
    sidecar: Sidecar,
    *,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    status: str,
    fields: tuple[str, ...],
) -> None:
    asked, response = await opened(open_stream, WITH_IDS, headers=headers)
    answer = b"id: c\ndata: 3\n\n"

    asked.reset()
    await (await asked_again(upstream, clock)).respond(status, *fields, body=answer)
    await response.read_to_end()
    resume = asyncio.ensure_future(ask("/a", headers=resuming(response.last_id, headers)))
    again = await upstream.asked()
    await again.respond(status, *fields, body=answer)
    seen = await resume
    await seen.read_to_end()

    assert (["1", "2", "upstream-lost"], headers is EVENT_SOURCE) == (kinds(response), response.whole)
    assert 1 == await counted(sidecar, "sse_user_visible_errors", code="upstream-lost")
    assert [f"its upstream answered {status[:3]} when asked again"] == [
        vars(record)["facts"]["cause"]
        for record in caplog.records
        if record.levelno == logging.WARNING and record.getMessage() == "stream ended"
    ]
    assert (int(status[:3]), answer, "b", 3) == (
        seen.status,
        seen.body,
        again.header("last-event-id"),
        len(upstream.requests),
    )


@with_settings(**ALWAYS)
async def test_a_resume_after_a_refusal_that_gets_a_stream_after_all_gets_a_new_one(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITHOUT_IDS)
    asked.reset()
    await (await asked_again(upstream, clock)).respond("404 Not Found")
    await response.read_to_end()

    resume = asyncio.ensure_future(ask("/a", headers=resuming(response.last_id)))
    again = await upstream.asked()
    await again.begin()
    await again.stream(b"data: new\n\n")
    back = await resume
    await back.read_until(b"id: 1-")

    assert ("reset", ["reset", "new"]) == (back.sse_status, kinds(back))
    assert response.stream_id != back.stream_id


async def test_an_answer_that_cannot_be_decoded_is_final(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)

    asked.reset()
    again = await asked_again(upstream, clock)
    await again.begin("Content-Encoding: x-unheard-of")
    await again.stream(b"id: c\ndata: 3\n\n")
    await response.read_to_end()

    assert ["1", "2", "upstream-lost"] == kinds(response)


async def test_an_answer_that_says_it_is_compressed_and_is_not_brings_no_event_and_no_busy_loop(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)

    asked.reset()
    again = await asked_again(upstream, clock)
    await again.begin("Content-Encoding: gzip")
    await again.stream(b"id: c\ndata: 3\n\n")
    await again.closed()

    assert len(upstream.requests) == 2
    assert ["1", "2"] == datas(response)


async def test_an_answer_that_only_says_it_is_an_event_stream_brings_no_event(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)

    asked.reset()
    again = await go_on(upstream, clock, b"<!doctype html>\n\n<title>Gateway</title>\n\n<p>restarting\n")
    await again.end()
    await response.read_to_end()

    assert (["1", "2"], "dormant") == (kinds(response), await state_of(sidecar, response))


@with_settings(max_event_bytes=2000)
@pytest.mark.parametrize("together", [True, False], ids=["with the head", "after the head"])
async def test_an_event_that_is_too_large_breaks_the_stream_on_a_later_connection_too(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock, together: bool
) -> None:
    asked, response = await opened(open_stream, WITH_IDS)
    too_large = chunk(b"id: c\ndata: " + 3000 * b"x" + b"\n\n")

    asked.reset()
    again = await asked_again(upstream, clock)
    if together:
        await again.send(STREAM_HEAD + too_large)
    else:
        await again.send(STREAM_HEAD)
        await until(lambda: live(sidecar, response))
        await again.send(too_large)
    await response.read_to_end()

    assert (["1", "2", "too-large"], False) == (kinds(response), response.whole)
    assert ("broken", 2) == (await state_of(sidecar, response), len(upstream.requests))


# What comes again


FIVE = b"".join(b"id: %d\ndata: %d\n\n" % (number, number) for number in range(1, 6))
SIX = b"id: 6\ndata: 6\n\n"


def numbered(*numbers: int) -> bytes:
    return b"".join(b"id: %d\ndata: %d\n\n" % (number, number) for number in numbers)


REPEATS = {
    "nothing": (FIVE, numbered(6, 7), ["6", "7"], 0),
    "the last one": (FIVE, numbered(5, 6), ["6"], 1),
    "the last ones": (FIVE, numbered(3, 4, 5, 6), ["6"], 3),
    "everything": (FIVE, FIVE + SIX, ["6"], 5),
    "some, then others": (FIVE, numbered(3, 4, 6, 7), ["6", "7"], 2),
    "some after something new": (FIVE, numbered(3, 4, 8, 5, 6), ["8", "5", "6"], 2),
    "one after something new": (FIVE, numbered(5, 6, 5), ["6", "5"], 1),
    "in another order": (FIVE, numbered(4, 3), ["3"], 1),
    "the same bytes by other ids": (FIVE, b"id: 8\ndata: 4\n\nid: 9\ndata: 5\n\n", ["4", "5"], 0),
    "among events without ids": (
        b"id: a\ndata: 1\n\ndata: 2\n\ndata: 3\n\nid: d\ndata: 4\n\n",
        b"id: a\ndata: 1\n\ndata: 2\n\ndata: 3\n\nid: d\ndata: 4\n\ndata: 5\n\n",
        ["5"],
        4,
    ),
    "other events without ids": (
        b"id: a\ndata: 1\n\ndata: 2\n\nid: d\ndata: 4\n\n",
        b"id: a\ndata: 1\n\ndata: two\n\nid: d\ndata: 4\n\n",
        ["two", "4"],
        1,
    ),
    "with comments and fields": (
        b"id: a\nevent: x\ndata: 1\n: hi\nretry: 100\n\nid: b\nx-y: z\ndata: 2\ndata: 2\n\n",
        b": again\n\nevent: x\nid:a\ndata: 1\n: hi\nretry: 100\n\nx-y: z\ndata: 2\ndata: 2\nid:b\n\nid: c\ndata: 3\n\n",
        ["3"],
        2,
    ),
}


@pytest.mark.parametrize(("before", "after", "new", "dropped"), REPEATS.values(), ids=REPEATS)
@pytest.mark.parametrize("settings", [EXACT, ALWAYS])
async def test_the_unbroken_run_at_the_start_that_is_held_already_is_dropped_and_counted(
    open_stream: OpenStream,
    upstream: Upstream,
    sidecar: Sidecar,
    clock: ManualClock,
    *,
    before: bytes,
    after: bytes,
    new: list[str],
    dropped: int,
) -> None:
    asked, response = await opened(open_stream, before)
    known = len(datas(response))

    asked.reset()
    await go_on(upstream, clock, after + b"id: z\ndata: end\n\n")
    await response.read_until(b"data: end\nid: ")

    assert ([*new, "end"], []) == (datas(response)[known:], signals(response))
    assert dropped == await counted(sidecar, "sse_duplicate_events")


async def test_numbers_have_no_holes_where_events_were_dropped(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, FIVE)

    asked.reset()
    await go_on(upstream, clock, FIVE + SIX)
    await response.read_until(b"data: 6\nid: ")

    assert f"6-{carrying(response.stream_id, '6')}" == response.last_id


async def test_what_comes_again_is_told_from_what_does_not_however_it_is_cut(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, FIVE)

    asked.reset()
    again = await asked_again(upstream, clock)
    for byte in STREAM_HEAD + b"".join(chunk(bytes([byte])) for byte in FIVE + SIX):
        await again.send(bytes([byte]))
    await response.read_until(b"data: 6\nid: ")

    assert ["1", "2", "3", "4", "5", "6"] == kinds(response)
    assert 5 == await counted(sidecar, "sse_duplicate_events")


async def test_each_connection_has_a_start_of_its_own(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """The second is lost amid what it repeats."""
    asked, response = await opened(open_stream, FIVE)
    asked.reset()
    asked = await go_on(upstream, clock, numbered(1, 2) + b"id: 3\ndata:")
    await until(lambda: sidecar.metrics.route("default").duplicates == 2)

    asked.reset()
    again = await go_on(upstream, clock, numbered(4, 5, 6))
    await response.read_until(b"data: 6\nid: ")

    assert ("5", ["1", "2", "3", "4", "5", "6"]) == (again.header("last-event-id"), kinds(response))
    assert 4 == await counted(sidecar, "sse_duplicate_events")


WIKIMEDIA = (
    '[{"topic":"eqiad.mediawiki.recentchange","partition":0,"timestamp":170000000000%d},'
    '{"topic":"codfw.mediawiki.recentchange","partition":0,"offset":-1}]'
)


async def test_ids_too_long_for_a_token_tell_what_comes_again_as_well(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """Wikimedia's EventStreams, the largest public service that can resume, gives such ids."""
    event = [f"id: {WIKIMEDIA % number}\ndata: {number}\n\n".encode() for number in range(4)]
    asked, response = await opened(open_stream, event[1] + event[2])

    asked.reset()
    again = await go_on(upstream, clock, event[2] + event[3])
    await response.read_until(b"data: 3\nid: 3-")

    assert (WIKIMEDIA % 2, ["1", "2", "3"]) == (again.header("last-event-id"), kinds(response))
    assert 1 == await counted(sidecar, "sse_duplicate_events")


@pytest.mark.parametrize(
    ("after", "expected", "dropped"),
    [
        (b"id: 1\ndata: other\n\n" + numbered(2), ["gap", "other", "2"], 0),
        (b"id: 5\ndata: other\n\n", ["gap", "other"], 0),
        (b"id: 1\nevent: x\ndata: 1\n\n", ["gap", "1"], 0),
        (numbered(1) + b"id: 2\ndata: other\n\n" + numbered(3), ["gap", "other", "3"], 1),
    ],
    ids=["from the first", "by the last id", "with another field", "after a greeting"],
)
async def test_an_equal_id_with_other_bytes_drops_nothing_and_is_a_gap(
    open_stream: OpenStream,
    upstream: Upstream,
    sidecar: Sidecar,
    clock: ManualClock,
    *,
    after: bytes,
    expected: list[str],
    dropped: int,
) -> None:
    """The upstream numbers each connection anew. A greeting that is the same on each is no less for being dropped."""
    asked, response = await opened(open_stream, FIVE)

    asked.reset()
    await go_on(upstream, clock, after + b"id: z\ndata: end\n\n")
    await response.read_until(b"data: end\nid: ")

    assert [*expected, "end"] == kinds(response)[5:]
    assert ([{"code": "gap", "lost": None}], dropped, 1) == (
        signals(response),
        await counted(sidecar, "sse_duplicate_events"),
        await counted(sidecar, "sse_user_visible_errors", code="gap"),
    )


async def test_an_upstream_that_counts_anew_since_its_restart_repeats_by_its_newest_numbers(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, FIVE)
    asked.reset()
    asked = await go_on(upstream, clock, b"id: 1\ndata: one\n\nid: 2\ndata: two\n\n")
    await response.read_until(b"data: two\nid: ")

    asked.reset()
    again = await go_on(upstream, clock, b"id: 2\ndata: two\n\nid: 3\ndata: three\n\n")
    await response.read_until(b"data: three\nid: ")

    assert ("2", ["gap", "one", "two", "three"]) == (again.header("last-event-id"), kinds(response)[5:])
    assert 1 == await counted(sidecar, "sse_duplicate_events")


# What may be missing


@with_settings(**ALWAYS)
@pytest.mark.parametrize(("headers", "end"), [(CURL, b"\n"), (EVENT_SOURCE, b"\n\n")])
async def test_where_there_are_no_ids_a_gap_stands_just_before_the_next_event(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, headers: dict[str, str], end: bytes
) -> None:
    asked, response = await opened(open_stream, WITHOUT_IDS, headers=headers)

    asked.reset()
    again = await asked_again(upstream, clock)
    await again.begin()
    await again.stream(b": hi\n\n")
    await response.read_until(b": hi")
    seen = len(response.body.removesuffix(b": hi" + end))
    await again.stream(b"data: 3\n\ndata: 4\n\n")
    await response.read_until(b"id: 4-")

    signal, rest = response.body[seen:].removeprefix(b": hi" + end).split(b"\n\n", 1)
    assert signal.startswith(b'event: sse-sidecar\ndata: {"error": {"code": "gap", "message": "')
    assert signal.endswith(b'"lost": null}}')
    assert f"data: 3\nid: 3-{response.stream_id}\n\ndata: 4\nid: 4-{response.stream_id}\n\n".encode() == rest


@with_settings(**ALWAYS)
async def test_a_gap_is_told_to_who_reads_it_later_as_well(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITHOUT_IDS)
    asked.reset()
    await go_on(upstream, clock, b"data: 3\n\n")
    await response.read_until(b"id: 3-")

    before, after, all_of_it = [
        await ask("/a", headers=resuming(f"{seq}-{response.stream_id}")) for seq in ("2", "1", "0")
    ]
    for again in (before, after, all_of_it):
        await again.read_until(b"id: 3-")

    assert ("gap", ["gap", "3"]) == (before.sse_status, kinds(before))
    assert ("resumed", ["2", "gap", "3"]) == (after.sse_status, kinds(after))
    assert ("resumed", ["1", "2", "gap", "3"]) == (all_of_it.sse_status, kinds(all_of_it))


@with_settings(**ALWAYS)
async def test_connections_that_bring_no_event_make_no_more_than_one_gap(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, WITHOUT_IDS)
    asked.reset()
    for _ in range(2):
        asked = await go_on(upstream, clock, b": nothing\n\n")
        await until(lambda: live(sidecar, response))
        asked.reset()
    await go_on(upstream, clock, b"data: 3\n\n")
    await response.read_until(b"id: 3-")

    assert (["1", "2", "gap", "3"], GAP) == (kinds(response), signals(response))
    assert 1 == await counted(sidecar, "sse_user_visible_errors", code="gap")


@with_settings(**SHARED)
async def test_a_gap_is_told_to_each_reader(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, first = await opened(open_stream, WITHOUT_IDS)
    second = await ask("/a")

    asked.reset()
    await go_on(upstream, clock, b"data: 3\n\n")
    for response in (first, second):
        await response.read_until(b"id: 3-")

    assert (["1", "2", "gap", "3"], ["gap", "3"]) == (kinds(first), kinds(second))
    assert 2 == await counted(sidecar, "sse_user_visible_errors", code="gap")


@pytest.mark.parametrize(
    "half", [b"data: half", b"data: half\n", b"id: c\r", b": comment", b"data: half\r\n"], ids=repr
)
async def test_an_event_that_was_not_finished_is_dropped(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, half: bytes
) -> None:
    """Nor does it leave anything for the next connection to be read with: a BOM may stand at its start."""
    asked, response = await opened(open_stream, WITH_IDS)

    await asked.stream(half)
    asked.close()
    again = await go_on(upstream, clock, b"\xef\xbb\xbfid: d\ndata: 3\n\n")
    await response.read_until(b"data: 3\nid: 3-")

    assert ("b", b"half" in response.body) == (again.header("last-event-id"), False)
    assert ["1", "2", "3"] == kinds(response)


async def test_a_stream_that_drips_is_what_it_is_in_one_piece(ask: Ask, upstream: Upstream, clock: ManualClock) -> None:
    """Byte by byte, on the first connection and the next."""

    async def drip(asked: Asked, data: bytes) -> None:
        for byte in STREAM_HEAD + b"".join(chunk(bytes([byte])) for byte in data):
            await asked.send(bytes([byte]))

    asking = asyncio.ensure_future(ask("/a"))
    asked = await upstream.asked()
    await drip(asked, b"id: a\r\ndata: 1\r\n\r\nid: b\rdata: 2\r\rdata: ha")
    response = await asking
    await response.read_until(b"id: 2-")
    asked.reset()
    await drip(await asked_again(upstream, clock), b"id: b\ndata: 2\n\nid: c\r\ndata: 3\r\n\r\n")
    await response.read_until(b"id: 3-")

    assert ["1", "2", "3"] == [event.data for event in interpret(response.body).events]


async def test_nothing_is_left_over_when_all_have_left_while_the_upstream_is_away(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, response = await opened(open_stream, WITH_IDS)
    await upstream.stop()
    await response.read_until(b": waiting")
    await leave(sidecar, response)

    clock.advance(FAR)
    await until(lambda: not sidecar.streams.active)
    clock.advance(FAR)

    assert (0, True) == (len(sidecar.streams), has_left(sidecar))
