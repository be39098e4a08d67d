"""What a client's leaving means for its upstream, and sending clients away before a load balancer does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, scrape, until
from tests.lifecycle import (
    CURL,
    FAR,
    MCP,
    NO_OTHER_TIMERS,
    PAGE,
    POST,
    asked_again,
    asleep,
    bulk,
    datas,
    go_on,
    has_left,
    kinds,
    leave,
    opened,
    resuming,
    state_of,
)

GET: dict[str, Any] = {}
ONE = b"id: a\ndata: 1\n\n"
CANCEL = {"SSE-On-Disconnect": "cancel"}


def with_cancel(opened_by: dict[str, Any]) -> dict[str, Any]:
    return {**opened_by, "headers": CANCEL}


# How long an upstream is kept


class Row(NamedTuple):
    settings: dict[str, Any]
    opened_by: dict[str, Any]
    seconds: float
    state: str


KEPT = {
    "GET": Row({}, GET, 30, "dormant"),
    "POST": Row({}, POST, 600, "broken"),
    "GET, linger": Row({"on_disconnect": "linger", "linger": 7}, GET, 7, "dormant"),
    "POST, linger": Row({"on_disconnect": "linger", "linger": 7}, POST, 7, "broken"),
    "GET, finish": Row({"on_disconnect": "finish", "finish_timeout": 90}, GET, 90, "dormant"),
    "POST, finish": Row({"on_disconnect": "finish", "finish_timeout": 90}, POST, 90, "broken"),
}
CANCELLED = {
    "GET, cancel": Row({"on_disconnect": "cancel"}, GET, 0, "dormant"),
    "POST, cancel": Row({"on_disconnect": "cancel"}, POST, 0, "broken"),
    "GET, no linger": Row({"linger": 0}, GET, 0, "dormant"),
    "GET that cancels": Row({}, with_cancel(GET), 0, "dormant"),
    "POST that cancels": Row({}, with_cancel(POST), 0, "broken"),
    "POST that cancels, finish": Row({"on_disconnect": "finish"}, with_cancel(POST), 0, "broken"),
}


@pytest.mark.parametrize(
    ("settings", "opened_by", "seconds", "state"), [pytest.param(*row, id=name) for name, row in KEPT.items()]
)
async def test_an_upstream_without_a_reader_is_kept_for_its_time(
    open_stream: OpenStream,
    sidecar: Sidecar,
    clock: ManualClock,
    *,
    opened_by: dict[str, Any],
    seconds: float,
    state: str,
) -> None:
    asked, response = await opened(open_stream, ONE, **opened_by)
    await leave(sidecar, response)

    clock.advance(seconds - 0.1)
    before = (await state_of(sidecar, response), sidecar.streams.active)
    clock.advance(0.1)
    await asked.closed()

    assert (("live", 1), (state, 0)) == (before, (await state_of(sidecar, response), sidecar.streams.active))


def end_of_socket(response: Response) -> None:
    response.close()


def half_close(response: Response) -> None:
    response.writer.write_eof()


def reset_connection(response: Response) -> None:
    response.reset()


@pytest.mark.parametrize(
    ("settings", "opened_by", "seconds", "state"), [pytest.param(*row, id=name) for name, row in CANCELLED.items()]
)
@pytest.mark.parametrize("go", [end_of_socket, half_close, reset_connection])
async def test_a_cancelled_upstream_sees_its_connection_closed_at_once(
    open_stream: OpenStream,
    sidecar: Sidecar,
    *,
    opened_by: dict[str, Any],
    seconds: float,
    state: str,
    go: Callable[[Response], None],
) -> None:
    """Not at the next write: nothing more is said, and the clock stands still."""
    asked, response = await opened(open_stream, ONE, **opened_by)

    go(response)
    await asked.closed()
    await until(lambda: has_left(sidecar))

    assert (state, 0) == (await state_of(sidecar, response), sidecar.streams.active)


@with_settings(route=[{"path": "/paid/*", "on_disconnect": "cancel"}, {"path": "/job/*", "on_disconnect": "finish"}])
async def test_what_leaving_means_is_the_routes_choice(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    paid, job, other = [await opened(open_stream, ONE, path) for path in ("/paid/a", "/job/a", "/a")]
    for _, response in (paid, job, other):
        response.close()
    await until(lambda: has_left(sidecar))
    states = [[await state_of(sidecar, response) for _, response in (paid, job, other)]]

    for seconds in (30, 570):
        clock.advance(seconds)
        states.append([await state_of(sidecar, response) for _, response in (paid, job, other)])

    assert [["dormant", "live", "live"], ["dormant", "live", "dormant"], ["dormant", "dormant", "dormant"]] == states


@pytest.mark.parametrize("value", ["linger", "finish", "", "cancelled"])
async def test_a_client_may_say_nothing_but_cancel(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock, value: str
) -> None:
    _, response = await opened(open_stream, ONE, headers={"SSE-On-Disconnect": value})

    await leave(sidecar, response)
    clock.advance(29.9)

    assert "live" == await state_of(sidecar, response)


async def test_who_resumes_may_cancel_as_well(open_stream: OpenStream, ask: Ask, sidecar: Sidecar) -> None:
    asked, response = await opened(open_stream, ONE)
    await leave(sidecar, response)
    back = await ask("/a", headers=resuming(response.last_id, CANCEL))

    back.close()
    await asked.closed()

    assert "dormant" == await state_of(sidecar, response)


async def test_who_resumes_a_dormant_stream_may_cancel_what_it_goes_on_with(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)
    await asked.end()
    await response.read_to_end()
    back = await ask("/a", headers=resuming(response.last_id, CANCEL))
    again = await go_on(upstream, clock, b"id: b\ndata: 2\n\n")
    await back.read_until(b"id: 2-")

    back.close()

    await again.closed()


@pytest.mark.parametrize("first_cancels", [True, False])
async def test_an_upstream_is_not_cancelled_while_another_reads_it(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, first_cancels: bool
) -> None:
    asked, first = await opened(open_stream, ONE, headers=CANCEL if first_cancels else {})
    second = await ask("/a", headers=resuming(f"0-{first.stream_id}", {} if first_cancels else CANCEL))
    stays, goes = (second, first) if first_cancels else (first, second)
    await second.read_until(b"id: 1-")

    goes.close()
    await until(lambda: sidecar.streams.reader_count == 1)
    await asked.stream(b"id: b\ndata: 2\n\n")
    await stays.read_until(b"id: 2-")

    assert ["1", "2"] == kinds(stays)


@with_settings(mode="shared")
@pytest.mark.parametrize("resumes", [False, True])
async def test_a_shared_upstream_is_no_ones_own_to_cancel(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock, resumes: bool
) -> None:
    asked, response = await opened(open_stream, ONE, headers={} if resumes else CANCEL)
    if resumes:
        response.close()
        response = await ask("/a", headers=resuming(f"0-{response.stream_id}", CANCEL))
        await response.read_until(b"id: 1-")

    await leave(sidecar, response)
    clock.advance(29.9)
    before = await state_of(sidecar, response)
    clock.advance(0.1)
    await asked.closed()

    assert "live" == before


@with_settings(on_disconnect="cancel")
@pytest.mark.parametrize(("opened_by", "status"), [(GET, 200), (POST, 410)])
async def test_what_was_cancelled_may_be_asked_for_again_or_not(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock, *, opened_by: dict[str, Any], status: int
) -> None:
    asked, response = await opened(open_stream, ONE, **opened_by)
    response.close()
    await asked.closed()

    back = await ask("/a", headers=resuming(response.last_id))
    if status == 200:
        again = await go_on(upstream, clock, b"id: b\ndata: 2\n\n")
        await back.read_until(b"id: 2-")

        assert ("a", ["2"]) == (again.header("last-event-id"), kinds(back))
    assert (status, 2 if status == 200 else 1) == (back.status, len(upstream.requests))


# Meanwhile


async def test_work_is_read_to_its_end_without_a_reader(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE, **POST)
    await leave(sidecar, response)
    clock.advance(599)

    await asked.stream(b"data: 2\n\ndata: 3\n\n")
    await asked.end()
    await until(lambda: not sidecar.streams.active)
    back = await ask("/a", headers=resuming(response.last_id))
    await back.read_to_end()

    assert (["2", "3"], True, 1) == (kinds(back), back.whole, len(upstream.requests))


async def test_who_comes_back_in_time_has_missed_nothing(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)
    await leave(sidecar, response)
    await asked.stream(b"id: b\ndata: 2\n\n")
    clock.advance(29.9)

    back = await ask("/a", headers=resuming(response.last_id))
    await back.read_until(b"id: 2-")
    await asked.stream(b"id: c\ndata: 3\n\n")
    await back.read_until(b"id: 3-")

    assert (["2", "3"], 1) == (kinds(back), len(upstream.requests))


async def test_the_time_is_counted_anew_each_time_the_last_reader_leaves(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)
    await leave(sidecar, response)
    clock.advance(20)
    back = await ask("/a", headers=resuming(response.last_id))
    clock.advance(20)
    while_read = await state_of(sidecar, response)
    await leave(sidecar, back)

    clock.advance(29.9)
    before = await state_of(sidecar, response)
    clock.advance(0.1)
    await asked.closed()

    assert ("live", "live", "dormant") == (while_read, before, await state_of(sidecar, response))


async def test_it_is_counted_from_when_the_last_of_several_readers_leaves(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, first = await opened(open_stream, ONE)
    second = await ask("/a", headers=resuming(f"0-{first.stream_id}"))
    await second.read_until(b"id: 1-")
    first.close()
    await until(lambda: sidecar.streams.reader_count == 1)
    clock.advance(100)
    await leave(sidecar, second)

    clock.advance(29.9)

    assert "live" == await state_of(sidecar, first)


# How many are kept


Leave = Callable[[str, dict[str, Any]], Awaitable[tuple[Asked, Response]]]


@pytest.fixture
def left(open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock) -> Leave:
    """Opens a stream on a path, and leaves it a second later."""

    async def leaving(path: str, opened_by: dict[str, Any]) -> tuple[Asked, Response]:
        readers = sidecar.streams.reader_count
        asked, response = await opened(open_stream, ONE, path, **opened_by)
        clock.advance(1)
        response.close()
        await until(lambda: sidecar.streams.reader_count == readers)
        return asked, response

    return leaving


async def states_of(sidecar: Sidecar, streams: list[tuple[Asked, Response]]) -> list[str]:
    return [await state_of(sidecar, response) for _, response in streams]


@pytest.mark.parametrize(
    ("order", "given_up"),
    [
        ("GGG", "100"),
        ("GGGG", "1100"),
        ("PPP", "100"),
        ("GPP", "100"),
        ("PGP", "010"),
        ("PPG", "001"),
        ("PPGP", "1010"),
        ("GPGP", "1010"),
    ],
)
@with_settings(max_unread=2)
async def test_over_max_unread_the_oldest_lingering_get_goes_first_and_then_the_oldest_that_finishes(
    left: Leave, sidecar: Sidecar, order: str, given_up: str
) -> None:
    """G is a GET and P a POST."""
    streams = [await left("/a", GET if kind == "G" else POST) for kind in order]

    gone = {"G": "dormant", "P": "broken"}
    expected = [gone[kind] if flag == "1" else "live" for kind, flag in zip(order, given_up, strict=True)]
    assert expected == await states_of(sidecar, streams)
    for (asked, _), flag in zip(streams, given_up, strict=True):
        if flag == "1":
            await asked.closed()
    assert 2 == (await scrape(sidecar))['sse_unread_streams{route="default"}']


@with_settings(max_unread=2)
async def test_a_reader_that_is_back_takes_its_stream_off_those_unread(left: Leave, ask: Ask, sidecar: Sidecar) -> None:
    first, second = [await left("/a", GET) for _ in range(2)]
    back = await ask("/a", headers=resuming(first[1].last_id))
    await until(lambda: sidecar.streams.reader_count == 1)
    third = await left("/a", GET)
    with_two = await states_of(sidecar, [first, second, third])
    await leave(sidecar, back)

    assert ["live", "live", "live"] == with_two
    assert ["live", "dormant", "live"] == await states_of(sidecar, [first, second, third])


@with_settings(max_unread=1)
async def test_what_has_ended_is_no_longer_unread(left: Leave, sidecar: Sidecar) -> None:
    first = await left("/a", GET)
    await first[0].end()
    await until(lambda: not sidecar.streams.active)

    second = await left("/a", GET)

    assert ["dormant", "live"] == await states_of(sidecar, [first, second])


@with_settings(max_unread=1, route=[{"path": "/b", "max_unread": 2}])
async def test_each_route_has_a_bound_of_its_own(left: Leave, sidecar: Sidecar) -> None:
    streams = [await left(path, GET) for path in ("/a", "/b", "/b", "/a", "/b")]

    assert ["dormant", "dormant", "live", "live", "live"] == await states_of(sidecar, streams)


# Rotation

rotating = with_settings(**NO_OTHER_TIMERS, max_connection_age=100)


@rotating
async def test_event_sources_are_sent_away_between_80_and_100_percent_of_the_age_and_not_all_at_once(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    since = clock.time()
    responses = [(await open_stream(f"/{index}", headers=EVENT_SOURCE))[1] for index in range(12)]

    ages = []
    while clock.next_in <= 100:
        clock.advance(clock.next_in)
        ages.append(clock.time() - since)
    for response in responses:
        await response.read_to_end()

    assert all(response.whole for response in responses)
    assert all(80 <= age <= 100 for age in ages)
    assert 12 == len(set(ages))


@rotating
async def test_who_was_sent_away_comes_back_and_has_missed_nothing(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """Sent away within an event of the upstream, between two of its own."""
    asked, response = await open_stream("/a", headers=EVENT_SOURCE)
    await asked.stream(b"data: 1\n\ndata: ha")
    await response.read_until(b"id: 1-")

    clock.advance(100)
    await response.read_to_end()
    await until(lambda: has_left(sidecar))
    await asked.stream(b"lf\n\ndata: 3\n\n")
    back = await ask("/a", headers=resuming(response.last_id, EVENT_SOURCE))
    await back.read_until(b"id: 3-")

    assert (b"id: 0-ID\n\nretry: OWN\n\ndata: 1\nid: 1-ID\n\n", True) == (response.shown, response.whole)
    assert (["half", "3"], "resumed", 1) == (kinds(back), back.sse_status, len(upstream.requests))


@rotating
async def test_each_connection_has_an_age_of_its_own(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, first = await opened(open_stream, ONE, headers=EVENT_SOURCE)
    clock.advance(79)
    second = await ask("/a", headers=resuming(first.last_id, EVENT_SOURCE))
    await until(lambda: sidecar.streams.reader_count == 2)

    clock.advance(21)
    await first.read_to_end()
    left = sidecar.streams.reader_count
    clock.advance(79)
    await second.read_to_end()

    assert (True, True, 1) == (first.whole, second.whole, left)


@rotating
@pytest.mark.parametrize("headers", [MCP, {**MCP, "MCP-Protocol-Version": "2025-06-18"}])
async def test_an_mcp_client_that_resumes_is_sent_away_as_well(
    open_stream: OpenStream, ask: Ask, clock: ManualClock, headers: dict[str, str]
) -> None:
    _, response = await opened(open_stream, ONE, **POST | {"headers": headers})
    back = await ask("/a", headers=resuming(f"0-{response.stream_id}", headers))
    await back.read_until(b"id: 1-")

    clock.advance(100)
    await back.read_to_end()

    assert (["1"], True) == ([data for data in datas(back) if data], back.whole)


@rotating
@pytest.mark.parametrize(
    "opened_by",
    [
        {"headers": CURL},
        {"headers": PAGE},
        {"headers": MCP},
        {**POST, "headers": EVENT_SOURCE},
        {**POST, "headers": MCP},
    ],
    ids=["curl", "page", "MCP", "POST", "MCP's POST"],
)
async def test_whoever_might_not_come_back_is_never_sent_away(
    open_stream: OpenStream, clock: ManualClock, opened_by: dict[str, Any]
) -> None:
    asked, response = await opened(open_stream, ONE, **opened_by)

    clock.advance(1000)
    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"id: 2-")

    assert ["1", "2"] == [data for data in datas(response) if data]


@with_settings(**NO_OTHER_TIMERS)
async def test_by_default_no_one_is_sent_away(open_stream: OpenStream, clock: ManualClock) -> None:
    asked, response = await opened(open_stream, ONE, headers=EVENT_SOURCE)

    clock.advance(FAR - 1)
    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"id: 2-")

    assert ["1", "2"] == kinds(response)


@rotating
async def test_who_lags_is_sent_away_at_the_end_of_an_event_and_gets_the_rest_when_it_is_back(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await open_stream("/a")
    async with asleep(sidecar, resuming(f"0-{response.stream_id}", EVENT_SOURCE)) as sleeper:
        await asked.stream(bulk(100))
        await response.read_until(b"\nid: 100-")
        clock.advance(100)
        await sleeper.read_to_end()
    back = await ask("/a", headers=resuming(sleeper.last_id, EVENT_SOURCE))
    await back.read_until(b"\nid: 100-")

    got, rest = datas(sleeper), datas(back)
    assert sleeper.body.endswith(f"\nid: {len(got)}-{sleeper.stream_id}\n\n".encode())
    assert (True, datas(response)) == (sleeper.whole, [*got, *rest])
    assert 0 < len(got) < 100


@rotating
async def test_who_has_left_before_is_not_waited_for(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, response = await open_stream("/a", headers=EVENT_SOURCE)
    until_rotation = clock.next_in

    await leave(sidecar, response)

    assert until_rotation <= 100 < clock.next_in


@with_settings(**NO_OTHER_TIMERS | {"reconnect_timeout": 1000}, max_connection_age=100)
async def test_who_waits_for_an_upstream_to_be_back_is_sent_away_as_well(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    """A load balancer's cap does not ask what a connection waits for."""
    asked, response = await opened(open_stream, ONE, headers=EVENT_SOURCE)
    await asked.end()
    await response.read_to_end()
    waiting = await ask("/a", headers=resuming(response.last_id, EVENT_SOURCE))
    again = await asked_again(upstream, clock)

    clock.advance(100)
    await waiting.read_to_end()
    await again.closed()

    assert (True, [], response.last_id) == (waiting.whole, kinds(waiting), waiting.last_id)
