"""How a stream ends: complete, dormant, broken or stopped; what its readers get of that, and what a resume gets."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import pytest

from sse_sidecar.answer import TO_BE_READ
from sse_sidecar.app import Sidecar
from sse_sidecar.streams import Stream
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, chunk, read_to_the_cut, until
from tests.lifecycle import (
    CURL,
    LOST,
    NO_OTHER_TIMERS,
    PAGE,
    POST,
    Lose,
    asked_again,
    asleep,
    bulk,
    carrying,
    close_unfinished,
    datas,
    go_on,
    kinds,
    opened,
    reset,
    resuming,
    signals,
    state_of,
)

GET: dict[str, Any] = {}
PUT: dict[str, Any] = {"method": "PUT", "body": b"{}"}
MARK = b"data: [DONE]\n\n"
ONE = b"data: 1\n\n"


@pytest.fixture
async def sidecar(start: StartSidecar, settings: dict[str, Any]) -> Sidecar:
    """Nothing is due soon but what a test sets."""
    return await start(**NO_OTHER_TIMERS | settings)


async def clean(asked: Asked) -> None:
    await asked.end()


async def stopped(ask: Ask, response: Response) -> None:
    """DELETE on the stream."""
    answer = await ask(f"/.well-known/sse-sidecar/streams/{response.stream_id}", method="DELETE")

    assert 204 == answer.status


# Told apart


class Row(NamedTuple):
    """What the upstream sent and how it went away; the state it leaves, and whether its client got a whole body."""

    opened_by: dict[str, Any]
    data: bytes
    how: Lose
    state: str
    whole: bool
    said: Sequence[dict[str, Any]] = ()


ROWS = {
    "GET, clean": Row(GET, ONE, clean, "dormant", True),
    "GET, mark, clean": Row(GET, ONE + MARK, clean, "complete", True),
    "GET, mark, more, clean": Row(GET, MARK + ONE, clean, "dormant", True),
    "GET, mark, unfinished, clean": Row(GET, ONE + MARK + b"data: 2", clean, "dormant", True),
    "GET, mark, comment, clean": Row(GET, ONE + MARK + b": bye\n\n", clean, "complete", True),
    "GET, lost": Row(GET, ONE, reset, "dormant", False, LOST),
    "GET, mark, lost": Row(GET, ONE + MARK, reset, "dormant", False, LOST),
    "POST, clean": Row(POST, ONE, clean, "complete", True),
    "POST, unfinished, clean": Row(POST, ONE + b"data: 2", clean, "complete", True),
    "POST, mark, clean": Row(POST, ONE + MARK, clean, "complete", True),
    "POST, lost": Row(POST, ONE, reset, "broken", False, LOST),
    "POST, cut short": Row(POST, ONE, close_unfinished, "broken", False, LOST),
    "POST, mark, lost": Row(POST, ONE + MARK, reset, "complete", True),
    "POST, mark, cut short": Row(POST, ONE + MARK, close_unfinished, "complete", True),
    "POST, mark, more, lost": Row(POST, MARK + ONE, reset, "broken", False, LOST),
    "POST, two marks, lost": Row(POST, MARK + ONE + MARK, reset, "complete", True),
    "POST, mark, unfinished, lost": Row(POST, ONE + MARK + b"data: 2", reset, "broken", False, LOST),
    "POST, mark, comment, lost": Row(POST, ONE + MARK + b": bye\n\n", reset, "complete", True),
    "PUT, clean": Row(PUT, ONE, clean, "complete", True),
    "PUT, lost": Row(PUT, ONE, reset, "broken", False, LOST),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_each_end_leaves_its_state_to_the_client_who_saw_it_and_to_the_next_resume(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, row: Row
) -> None:
    asked, response = await open_stream("/a", **row.opened_by)
    await asked.stream(row.data)
    await response.read_until(b"\nid: ")
    await row.how(asked)
    await response.read_to_end()
    state = await state_of(sidecar, response)
    resume = asyncio.ensure_future(ask("/a", headers=resuming(response.last_id)))
    if state == "dormant":
        await (await upstream.asked()).respond("404 Not Found")

    assert (row.state, row.whole, [*row.said]) == (state, response.whole, signals(response))
    assert {"complete": (204, 1), "dormant": (200, 2), "broken": (410, 1)}[row.state] == (
        (await resume).status,
        len(upstream.requests),
    )


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"\n\n\n", b": bye\n"])
@pytest.mark.parametrize(("opened_by", "how"), [(GET, clean), (POST, reset)])
async def test_what_is_no_event_after_a_mark_does_not_take_it_back(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, *, opened_by: dict[str, Any], how: Lose, blank: bytes
) -> None:
    """A blank line too many, or half a comment: nothing that a client would have been given is missing."""
    asked, response = await opened(open_stream, ONE + MARK, **opened_by)
    received = sidecar.metrics.route("default").bytes_received

    await asked.stream(blank)
    await until(lambda: sidecar.metrics.route("default").bytes_received > received)
    await how(asked)
    await response.read_to_end()

    assert ("complete", True) == (await state_of(sidecar, response), response.whole)


@pytest.mark.parametrize(
    ("event", "marks"),
    [
        (b"data: [DONE]", True),
        (b"data:[DONE]", True),
        (b"event: message_stop\ndata: {}", True),
        (b"event:message_stop\r\ndata: {}", True),
        (b"id: 7\nevent: response.completed\ndata: {}", True),
        (b"event: response.failed\ndata: {}", True),
        (b"data: {}\nevent: response.incomplete", True),
        (b"data:  [DONE]", False),
        (b"data: [DONE] ", False),
        (b"data: [done]", False),
        (b": data: [DONE]\ndata: 1", False),
        (b"event: message_stopped\ndata: {}", False),
        (b"event: response.created\ndata: {}", False),
        (b"data: event: message_stop", False),
    ],
)
async def test_marks_are_lines_of_an_event(
    open_stream: OpenStream, sidecar: Sidecar, event: bytes, marks: bool
) -> None:
    asked, response = await open_stream("/a", **POST)
    await asked.stream(event + b"\n\n")
    await response.read_until(b"\nid: 1-")

    asked.reset()
    await response.read_to_end()

    assert ("complete" if marks else "broken", marks) == (await state_of(sidecar, response), response.whole)


@with_settings(completion_marks=["event: finished", "data: END"])
@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"event: finished\ndata: 1\n\n", "complete"),
        (b"data: END\n\n", "complete"),
        (MARK, "broken"),
        (b"event: message_stop\ndata: 1\n\n", "broken"),
    ],
)
async def test_the_operator_says_what_the_marks_are(
    open_stream: OpenStream, sidecar: Sidecar, data: bytes, state: str
) -> None:
    asked, response = await open_stream("/a", **POST)
    await asked.stream(data)
    await response.read_until(b"\nid: 1-")

    asked.reset()
    await response.read_to_end()

    assert state == await state_of(sidecar, response)


async def test_a_mark_ends_nothing_by_itself(open_stream: OpenStream, sidecar: Sidecar) -> None:
    """Agent loops send several in one stream."""
    asked, response = await opened(open_stream, ONE + MARK, **POST)
    state = await state_of(sidecar, response)

    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"id: 3-")

    assert ("live", ["1", "[DONE]", "2"]) == (state, kinds(response))


@with_settings(reconnect="always")
async def test_a_get_lost_after_a_mark_is_asked_again_where_it_may_be(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE + MARK)

    asked.reset()
    await go_on(upstream, clock, b"data: 2\n\n")
    await response.read_until(b"id: 3-")

    assert ["1", "[DONE]", "gap", "2"] == kinds(response)


# Stopped


Stage = Callable[[OpenStream, Upstream, ManualClock], Awaitable[tuple[Asked, Response]]]


async def live_get(open_stream: OpenStream, upstream: Upstream, clock: ManualClock) -> tuple[Asked, Response]:
    return await opened(open_stream, b"id: a\ndata: 1\n\n")


async def live_post(open_stream: OpenStream, upstream: Upstream, clock: ManualClock) -> tuple[Asked, Response]:
    return await opened(open_stream, ONE, **POST)


async def reconnecting(open_stream: OpenStream, upstream: Upstream, clock: ManualClock) -> tuple[Asked, Response]:
    asked, response = await opened(open_stream, b"id: a\ndata: 1\n\n")
    asked.reset()
    return await asked_again(upstream, clock), response


@pytest.mark.parametrize("stage", [live_get, live_post, reconnecting])
async def test_a_stopped_stream_is_complete_its_readers_get_its_end_and_its_upstream_is_closed(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock, *, stage: Stage
) -> None:
    asked, response = await stage(open_stream, upstream, clock)
    other = await ask("/a", headers=resuming(f"0-{response.stream_id}", EVENT_SOURCE))
    await other.read_until(b"\nid: 1-")
    requests = len(upstream.requests)

    await stopped(ask, response)
    for reader in (response, other):
        await reader.read_to_end()
    await asked.closed()
    after = await ask("/a", headers=resuming(response.last_id))

    assert [(["1"], True)] * 2 == [(kinds(reader), reader.whole) for reader in (response, other)]
    assert ("complete", 204) == (await state_of(sidecar, response), after.status)
    assert requests == len(upstream.requests)


async def test_a_dormant_stream_that_is_stopped_is_not_asked_for_again(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    asked, response = await opened(open_stream, ONE)
    await asked.end()
    await response.read_to_end()

    await stopped(ask, response)
    after = await ask("/a", headers=resuming(response.last_id))

    assert (204, 1) == (after.status, len(upstream.requests))


async def test_who_waits_for_more_of_a_dormant_stream_gets_its_end_when_it_is_stopped(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)
    await asked.end()
    await response.read_to_end()
    waiting = await ask("/a", headers=resuming(response.last_id))
    await (await asked_again(upstream, clock)).respond("503 Service Unavailable")
    await waiting.read_until(b": waiting for upstream")

    await stopped(ask, response)
    await waiting.read_to_end()

    assert ([], True, 2) == (kinds(waiting), waiting.whole, len(upstream.requests))


# Everything, then the end


def stream_of(sidecar: Sidecar, response: Response) -> Stream:
    stream = sidecar.streams.find(response.stream_id)
    assert stream is not None
    return stream


@pytest.mark.parametrize(
    ("opened_by", "how", "state", "said"),
    [
        (GET, clean, "dormant", []),
        (GET, reset, "dormant", LOST),
        (POST, clean, "complete", []),
        (POST, reset, "broken", LOST),
    ],
)
async def test_each_reader_gets_everything_before_its_connection_is_closed(
    open_stream: OpenStream,
    sidecar: Sidecar,
    *,
    opened_by: dict[str, Any],
    how: Lose,
    state: str,
    said: list[dict[str, Any]],
) -> None:
    """One has it all when the upstream goes away, and one has nearly nothing."""
    asked, response = await open_stream("/a", **opened_by)
    async with asleep(sidecar, resuming(f"0-{response.stream_id}")) as sleeper:
        await asked.stream(bulk(100))
        await response.read_until(b"\nid: 100-")
        await how(asked)
        await response.read_to_end()
        behind = 100 - (stream_of(sidecar, response).slowest() or 0)
        ended_as = await state_of(sidecar, response)
        await sleeper.read_to_end()

    assert behind > 50
    assert (state, 100) == (ended_as, len(datas(response)))
    for reader in (response, sleeper):
        assert (datas(response), said, not said) == (datas(reader), signals(reader), reader.whole)


@with_settings(max_stream_bytes=600_000, max_event_bytes=100_000)
@pytest.mark.parametrize("opened_by", [GET, POST])
async def test_a_reader_that_lags_in_a_full_log_gets_everything_though_its_upstream_has_ended_and_others_left(
    open_stream: OpenStream, sidecar: Sidecar, opened_by: dict[str, Any]
) -> None:
    """It has `slow_reader_timeout`, whether more is to come or not. A compressed chunk fills a log at once."""
    asked, response = await open_stream("/a", answer=("Content-Encoding: gzip",), **opened_by)
    stream = stream_of(sidecar, response)
    async with asleep(sidecar, resuming(f"0-{response.stream_id}")) as sleeper:
        await asked.send(chunk(gzip.compress(bulk(130))) + b"0\r\n\r\n")
        await response.read_to_end()
        await until(lambda: len(stream.readers) == 1)
        await sleeper.read_to_end()

    assert [(130, True), (130, True)] == [(len(datas(reader)), reader.whole) for reader in (response, sleeper)]


async def test_a_broken_post_ends_as_it_would_have_without_the_sidecar_after_the_signal(
    open_stream: OpenStream,
) -> None:
    asked, response = await opened(open_stream, ONE, **POST)

    asked.reset()
    await response.read_to_end()

    told, event, signal, rest = response.shown.partition(b"id: 1-ID\n\n")[0], *response.shown.rsplit(b"\n\n", 2)
    assert b"retry: OWN\ndata: 1\n" == told
    assert (b"retry: OWN\ndata: 1\nid: 1-ID", b"") == (event, rest)
    assert signal.startswith(b'event: sse-sidecar\ndata: {"error": {"code": "upstream-lost", "message": "')
    assert (False, b"") == (response.whole, await response.reader.read())


# The terminating chunk

Ending = Callable[[Asked, Ask, Response], Awaitable[None]]


async def ends_cleanly(asked: Asked, ask: Ask, response: Response) -> None:
    await asked.end()


async def ends_after_a_mark(asked: Asked, ask: Ask, response: Response) -> None:
    await asked.send(chunk(MARK) + b"0\r\n\r\n")


async def is_lost(asked: Asked, ask: Ask, response: Response) -> None:
    asked.reset()


async def is_too_large(asked: Asked, ask: Ask, response: Response) -> None:
    await asked.stream(3000 * b"x")


async def is_stopped(asked: Asked, ask: Ask, response: Response) -> None:
    await stopped(ask, response)


@with_settings(max_event_bytes=2000)
@pytest.mark.parametrize(
    ("opened_by", "is_event_source"),
    [
        ({"headers": CURL}, False),
        ({"headers": PAGE}, False),
        ({"headers": EVENT_SOURCE}, True),
        ({**POST, "headers": CURL}, False),
        ({**POST, "headers": PAGE}, False),
        ({**POST, "headers": EVENT_SOURCE}, False),
    ],
    ids=["GET", "page", "EventSource", "POST", "page's POST", "POST like an EventSource"],
)
@pytest.mark.parametrize(
    ("end", "complete"),
    [(ends_cleanly, True), (ends_after_a_mark, True), (is_stopped, True), (is_lost, False), (is_too_large, False)],
)
async def test_the_terminating_chunk_is_written_where_it_is_true_and_to_an_event_source(
    *,
    open_stream: OpenStream,
    ask: Ask,
    clock: ManualClock,
    opened_by: dict[str, Any],
    is_event_source: bool,
    end: Ending,
    complete: bool,
) -> None:
    asked, response = await opened(open_stream, ONE, **opened_by)

    await end(asked, ask, response)
    await read_to_the_cut(response, clock)

    assert (complete or is_event_source) == response.whole


async def test_a_page_is_given_time_to_read_what_comes_before_a_cut(
    open_stream: OpenStream, ask: Ask, clock: ManualClock
) -> None:
    """Chromium drops what a page has not read when a body is cut short, the reason for the cut included."""
    asked, response = await opened(open_stream, ONE, headers=PAGE)
    await is_lost(asked, ask, response)
    await response.read_until(b"upstream-lost")
    reading = asyncio.ensure_future(response.read_to_end())
    await until(lambda: clock.next_in <= TO_BE_READ)
    clock.advance(TO_BE_READ - 0.001)
    await asyncio.sleep(0)
    early = reading.done()
    clock.advance(0.001)
    await reading

    assert not early
    assert not response.whole


# The upstream is restarting


@with_settings(heartbeat=10)
async def test_an_event_source_rides_out_a_restart_of_an_upstream_that_gives_no_ids(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """It never gets a status other than 200, and is told what the upstream cannot make good."""
    _, response = await opened(open_stream, b"data: 1\n\ndata: 2\n\n", headers=EVENT_SOURCE)
    await upstream.stop()
    await response.read_to_end()

    back = await ask("/a", headers=resuming(f"1-{response.stream_id}", EVENT_SOURCE))
    await back.read_until(b"id: 2-")
    await back.read_until(b": waiting for upstream")
    clock.advance(10)
    await back.read_until(b": heartbeat")
    await upstream.start(upstream.port)
    again = await go_on(upstream, clock, b"data: 3\n\n")
    await back.read_until(b"id: 3-")

    old, new = response.stream_id, back.last_id.removeprefix("3-")
    body = back.shown.replace(b": waiting for upstream\n\n", b"").replace(b": heartbeat\n\n", b"")
    opening, (switch, signal, event) = body.split(b"data: 2\nid: 2-ID\n\n")[0], body.split(b"\n\n")[3:-1]
    assert (200, "resumed", old) == (back.status, back.sse_status, back.stream_id)
    assert b"id: 1-ID\n\nretry: OWN\n\n" == opening
    assert (f"id: 2-{new}".encode(), f"data: 3\nid: 3-{new}".encode()) == (switch, event)
    assert (b"gap" in signal, ["1", "2", "upstream-lost"], ["2", "gap", "3"]) == (True, kinds(response), kinds(back))
    assert (new != old, None, "dormant") == (True, again.header("last-event-id"), await state_of(sidecar, response))


# What a dormant stream goes on with


async def dormant(open_stream: OpenStream, **kwargs: Any) -> Response:
    asked, response = await opened(open_stream, b"id: a\ndata: 1\n\n", **kwargs)
    await asked.end()
    await response.read_to_end()
    return response


async def test_two_clients_who_resume_a_dormant_stream_have_an_upstream_request_each(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    """Both wait at the same moment, and are answered the other way round."""
    response = await dormant(open_stream)
    one, two = [
        await ask("/a", headers=resuming(response.last_id, EVENT_SOURCE | {"Cookie": name})) for name in ("one", "two")
    ]
    asked = {again.header("cookie"): again for again in [await upstream.asked(), await upstream.asked()]}
    for name in ("two", "one"):
        await asked[name].begin()
        await asked[name].stream(b"id: b\ndata: for %b\n\n" % name.encode())
    for reader in (one, two):
        await reader.read_until(b"\nid: 2-")

    assert (["for one"], ["for two"], 3) == (datas(one), datas(two), len(upstream.requests))
    assert 3 == len({response.stream_id, *(reader.last_id[2:].partition(".")[0] for reader in (one, two))})
    assert {"a"} == {again.header("last-event-id") for again in asked.values()}


async def test_a_token_that_was_handed_to_a_victim_does_not_open_what_the_victim_gets(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    """No log holds events that were fetched with another client's credentials; cookies do not bind by default."""
    mine, yours = {"Cookie": "session=attacker"}, {"Cookie": "session=victim"}
    response = await dormant(open_stream, headers=mine)
    victim = await ask("/a", headers=resuming(response.last_id, yours))
    asked = await upstream.asked()
    await asked.begin()
    await asked.stream(b"data: secret\n\n")
    await victim.read_until(b"secret\nid: 2-")

    spying = [await ask("/a", headers=resuming(f"{seq}-{response.stream_id}", mine)) for seq in (0, 1)]
    for spy in spying:
        again = await upstream.asked()
        await again.begin()
        await again.stream(b"data: mine\n\n")
        await spy.read_until(b"mine\nid: 2-")

    assert ["session=attacker", "session=victim", "session=attacker", "session=attacker"] == [
        request.header("cookie") for request in upstream.requests
    ]
    assert [["1", "mine"], ["mine"]] == [kinds(spy) for spy in spying]


async def test_a_stream_is_asked_for_again_with_the_credentials_it_was_opened_with(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """Though the client who opened it has left, and another reads it."""
    asked, first = await opened(open_stream, b"id: a\ndata: 1\n\n", headers={"Cookie": "one"})
    second = await ask("/a", headers=resuming(f"0-{first.stream_id}", {"Cookie": "two"}))
    await second.read_until(b"\nid: 1-")
    first.close()
    await until(lambda: sidecar.streams.reader_count == 1)

    asked.reset()
    again = await go_on(upstream, clock, b"id: b\ndata: 2\n\n")
    await second.read_until(b"\nid: 2-")

    assert ("one", ["1", "2"]) == (again.header("cookie"), kinds(second))


async def test_who_has_not_read_a_refused_stream_to_its_end_gets_the_rest_before_the_refusal(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n")
    asked.reset()
    await (await asked_again(upstream, clock)).respond("403 Forbidden")
    await response.read_to_end()

    behind = await ask("/a", headers=resuming(f"1-{carrying(response.stream_id, 'a')}"))
    await (await asked_again(upstream, clock)).respond("403 Forbidden")
    await behind.read_to_end()
    resume = asyncio.ensure_future(ask("/a", headers=resuming(behind.last_id)))
    await (await upstream.asked()).respond("403 Forbidden", body=b"no")
    at_end = await resume

    assert (200, ["2", "upstream-lost"], False) == (behind.status, kinds(behind), behind.whole)
    assert (403, b"no") == (at_end.status, await at_end.read_until(b"no"))


async def test_events_that_come_again_when_a_dormant_stream_goes_on_are_new_ones(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    """They were fetched with other credentials perhaps, and may say something else under the same id."""
    response = await dormant(open_stream)

    back = await ask("/a", headers=resuming(response.last_id))
    again = await upstream.asked()
    await again.begin()
    await again.stream(b"id: a\ndata: one\n\nid: b\ndata: 2\n\n")
    await back.read_until(b"\nid: 3-")

    assert ["one", "2"] == kinds(back)
