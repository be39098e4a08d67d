"""Shared routes: one upstream connection for all clients of the same key, none of whom holds up another."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, Connect, OpenStream, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, until
from tests.together import (
    HOST,
    PLAIN,
    Sleeper,
    all_gone,
    backed_up,
    being_answered,
    crowd,
    data_of,
    event,
    losses_of,
    numbers_of,
    read_heads,
    reopened,
    request_of,
    signals_of,
)

shared = with_settings(mode="shared")
from_start = with_settings(mode="shared", join="start")

EVENT_SOURCE_ASKS = request_of(headers=EVENT_SOURCE)
PLAIN_ASKS = request_of(headers=PLAIN)
ASKS_THE_SAME = {"Host": HOST, **EVENT_SOURCE}


# Joining


@shared
async def test_clients_who_come_at_once_share_one_upstream_connection(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    clients = await crowd(sidecar, connect, 20, EVENT_SOURCE_ASKS)
    asked = await reopened(upstream)
    await read_heads(clients)
    await asked.stream(b"data: 1\n\n")
    for client in clients:
        await client.read_until(b"data: 1\nid")

    assert 1 == len(upstream.requests)
    assert {("new", clients[0].stream_id)} == {(client.sse_status, client.stream_id) for client in clients}
    assert {b"id: 0-ID\n\nretry: OWN\n\ndata: 1\nid: 1-ID\n\n"} == {client.shown for client in clients}


@shared
async def test_those_who_waited_for_the_head_get_the_events_that_came_with_it(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    """They had asked before there was a live edge to be joined at."""
    clients = await crowd(sidecar, connect, 3, PLAIN_ASKS)
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
    await read_heads(clients)
    await asked.send(b"data: 2\n\n")
    for client in clients:
        await client.read_until(b"data: 2\nid")

    assert [["1", "2"]] * 3 == [data_of(client) for client in clients]


@pytest.mark.parametrize(
    ("settings", "body"),
    [
        ({"mode": "shared"}, b"id: 1-ID\n\nretry: OWN\n\ndata: 2\nid: 2-ID\n\n"),
        ({"mode": "shared", "join": "start"}, b"id: 0-ID\n\nretry: OWN\n\ndata: 1\nid: 1-ID\n\ndata: 2\nid: 2-ID\n\n"),
    ],
    ids=["live", "start"],
)
async def test_a_later_client_joins_at_the_live_edge_or_at_the_start(
    upstream: Upstream, ask: Ask, open_stream: OpenStream, body: bytes
) -> None:
    asked, first = await open_stream("/a", headers=EVENT_SOURCE)
    await asked.stream(b"data: 1\n\n")
    await first.read_until(b"data: 1\nid")
    later = await ask("/a", headers=EVENT_SOURCE)
    await asked.stream(b"data: 2\n\n")
    await later.read_until(b"data: 2\nid")

    assert 1 == len(upstream.requests)
    assert ("new", first.stream_id) == (later.sse_status, later.stream_id)
    assert body == later.shown


@shared
async def test_the_upstreams_cookie_goes_only_to_whom_it_answered(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, ask: Ask
) -> None:
    """Its other fields go to all: those who waited with the first, who join later, and who resume."""
    first, second = await crowd(sidecar, connect, 2, EVENT_SOURCE_ASKS)
    asked = await reopened(upstream, "Set-Cookie: a=1", "Set-Cookie: b=2", "X-Of-The-Service: yes")
    await read_heads([first, second])
    await asked.stream(b"data: 1\n\n")
    await first.read_until(b"id: 1-")
    later = await ask("/a", headers=ASKS_THE_SAME)
    resuming = await ask("/a", headers={**ASKS_THE_SAME, "Last-Event-ID": first.last_id})

    assert ["a=1", "b=2"] == first.header_all("set-cookie")
    assert [[], [], []] == [client.header_all("set-cookie") for client in (second, later, resuming)]
    assert {"yes"} == {client.header("x-of-the-service") for client in (first, second, later, resuming)}


@shared
async def test_a_post_on_a_shared_route_is_private(upstream: Upstream, open_stream: OpenStream) -> None:
    one, first = await open_stream("/a", method="POST", body=b"{}")
    two, second = await open_stream("/a", method="POST", body=b"{}")
    three, third = await open_stream("/a")
    for number, asked in enumerate([one, two, three], 1):
        await asked.stream(b"data: %d\n\n" % number)
    for client in (first, second, third):
        await client.read_until(b"\nid: 1-")

    assert 3 == len(upstream.requests)
    assert [["1"], ["2"], ["3"]] == [data_of(client) for client in (first, second, third)]


@from_start
async def test_a_hundred_readers_get_identical_bytes(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, ask: Ask
) -> None:
    """Those who were there from the start, who came in the middle, and who replay it all when it is over."""
    clients = await crowd(sidecar, connect, 40, EVENT_SOURCE_ASKS)
    asked = await reopened(upstream)
    await read_heads(clients)
    for number in range(25):
        piece = b"event: tick\r\ndata: %d\r\ndata: \xff%b\r\nx: y\r\n\r\n" % (number, b"z" * (number * 97 % 4000))
        for half in (piece[: number * 7], piece[number * 7 :]):
            if half:
                await asked.stream(half)
            clients.append(await ask("/a", headers=ASKS_THE_SAME))
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()
    await until(lambda: not sidecar.streams.active)
    from_its_start = {**ASKS_THE_SAME, "Last-Event-ID": f"0-{clients[0].stream_id}"}
    clients += [await ask("/a", headers=from_its_start) for _ in range(10)]
    for client in clients:
        await client.read_to_end()

    assert 100 == len(clients)
    assert 1 == len({client.shown for client in clients})
    assert 26 == len(data_of(clients[0]))
    assert all(client.whole for client in clients)


# The key

KEPT_APART_BY = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "mcp-session-id", "cookie")
"""What keeps users apart where the route says nothing."""

Asks = tuple[str, dict[str, str]]


def asks(target: str = "/a", **headers: str) -> Asks:
    """A target, and headers whose names are written with underscores; of the same host where nothing is said."""
    return target, {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}


def each_pair(**rows: tuple[dict[str, Any], Asks, Asks]) -> pytest.MarkDecorator:
    """Rows of a shared route's other settings, and two requests."""
    cases = [({"mode": "shared", **settings}, one, other) for settings, one, other in rows.values()]
    return pytest.mark.parametrize(("settings", "one", "other"), cases, ids=list(rows))


@each_pair(
    path=({}, asks("/a"), asks("/b")),
    path_case=({}, asks("/a"), asks("/A")),
    path_encoding=({}, asks("/a"), asks("/%61")),
    query=({}, asks("/a?x=1"), asks("/a?x=2")),
    query_none=({}, asks("/a"), asks("/a?x=1")),
    query_order=({}, asks("/a?x=1&y=2"), asks("/a?y=2&x=1")),
    host=({}, asks(host="a.test"), asks(host="b.test")),
    port=({}, asks(host="a.test:80"), asks(host="a.test:81")),
    origin=({}, asks(origin="https://a.test"), asks(origin="https://b.test")),
    origin_none=({}, asks(), asks(origin="https://b.test")),
    origin_without_key_headers=({"key_headers": []}, asks(), asks(origin="https://b.test")),
    **{name: ({}, asks(**{name: "a"}), asks(**{name: "b"})) for name in KEPT_APART_BY},
    **{f"{name}_none": ({}, asks(), asks(**{name: "b"})) for name in KEPT_APART_BY},
    which_header=({}, asks(authorization="a"), asks(x_api_key="a")),
    key_headers=({"key_headers": ["x-tenant"]}, asks(x_tenant="a"), asks(x_tenant="b")),
    bind=({"bind": ["x-user"]}, asks(x_user="a"), asks(x_user="b")),
    cookie_beside_bind=({"bind": ["x-user"]}, asks(cookie="a"), asks(cookie="b")),
)
async def test_clients_of_another_key_have_a_connection_of_their_own(
    open_stream: OpenStream, one: Asks, other: Asks
) -> None:
    (first_asked, first), (second_asked, second) = [
        await open_stream(target, headers=headers) for target, headers in (one, other)
    ]
    await first_asked.stream(b"data: 1\n\n")
    await second_asked.stream(b"data: 2\n\n")
    for client in (first, second):
        await client.read_until(b"\nid: 1-")

    assert [["1"], ["2"]] == [data_of(client) for client in (first, second)]
    assert first.stream_id != second.stream_id


@each_pair(
    host_case=({}, asks(host="A.Test"), asks(host="a.test")),
    other_headers=({}, asks(user_agent="a", accept_language="de"), asks(user_agent="b", referer="https://a.test/")),
    class_of_client=({}, asks(), asks(**EVENT_SOURCE)),
    query_but_its_token=({}, asks("/a?x=1"), asks("/a?x=1&lastEventId=TOKEN")),
    query_but_its_token_alone=({}, asks("/a"), asks("/a?lastEventId=TOKEN")),
    query_but_an_image_s_token=({}, asks("/a"), asks("/a?last_event_id=TOKEN", sec_fetch_mode="no-cors")),
    volatile_query=({"volatile_query": ["t"]}, asks("/a?t=1&x=1"), asks("/a?x=1&t=2")),
    key_headers=({"key_headers": ["X-Tenant"]}, asks(x_tenant="a", cookie="a"), asks(x_tenant="a", cookie="b")),
    no_key_headers=(
        {"key_headers": []},
        asks(**dict.fromkeys(KEPT_APART_BY, "a")),
        asks(**dict.fromkeys(KEPT_APART_BY, "b")),
    ),
    no_key_headers_beside_bound_cookies=(
        {"key_headers": [], "bind_cookies": ["user"]},
        asks(cookie="user=a"),
        asks(cookie="user=b"),
    ),
)
async def test_what_is_not_in_the_key_keeps_no_one_apart(
    upstream: Upstream, ask: Ask, open_stream: OpenStream, one: Asks, other: Asks
) -> None:
    asked, first = await open_stream(one[0], headers=one[1])
    target, headers = other
    second = await ask(target.replace("TOKEN", f"0-{first.stream_id}"), headers=headers)
    await asked.stream(b"data: 1\n\n")
    for client in (first, second):
        await client.read_until(b"\nid: 1-")

    assert 1 == len(upstream.requests)
    assert [["1"], ["1"]] == [data_of(client) for client in (first, second)]


@shared
@pytest.mark.parametrize(
    "headers",
    [{"Cookie": "b"}, {"Origin": "https://b.test"}, {"Authorization": "b"}],
    ids=["cookie", "origin", "token"],
)
async def test_the_stream_of_another_key_cannot_be_resumed(
    upstream: Upstream, ask: Ask, open_stream: OpenStream, headers: dict[str, str]
) -> None:
    """It is answered as one that is not here: by a request of the client's own."""
    own = {"Host": HOST, "Cookie": "a", "Origin": "https://a.test", "Authorization": "a"}
    asked, first = await open_stream("/a", headers=own)
    await asked.stream(b"data: secret\n\n")
    await first.read_until(b"\nid: 1-")
    foreign = {**own, **headers, "Last-Event-ID": f"0-{first.stream_id}"}
    other, second = await open_stream("/a", headers=foreign)
    await other.stream(b"data: 1\n\n")
    await second.read_until(b"\nid: 1-")

    assert (["1"], ["reset"], "reset") == (data_of(second), signals_of(second), second.sse_status)
    assert headers.items() <= {name.decode(): value.decode() for name, value in other.headers}.items()


# The first request, for everyone who waits for it


class Outcome(NamedTuple):
    status: int
    content_type: str | None
    body: bytes


async def outcome(client: Response) -> Outcome:
    await client.read_head()
    return Outcome(client.status, client.header("content-type"), await client.read_to_end())


async def next_request_asks_again(upstream: Upstream, connect: Connect, sidecar: Sidecar) -> None:
    """The end of each test of a failure: what the next client gets is a stream, from a new request."""
    before = len(upstream.requests)
    [client] = await crowd(sidecar, connect, 1, PLAIN_ASKS)
    await reopened(upstream)
    await client.read_head()

    assert (200, "new") == (client.status, client.sse_status)
    assert before + 1 == len(upstream.requests)


@shared
@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "500 Internal Server Error", "503 Not Now"])
async def test_an_error_of_the_upstream_goes_to_everyone_who_waited(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, status: str
) -> None:
    clients = await crowd(sidecar, connect, 2, EVENT_SOURCE_ASKS) + await crowd(sidecar, connect, 2, PLAIN_ASKS)
    asked = await upstream.asked()
    await asked.respond(status, "Content-Type: text/plain", "X-Why: because", "Set-Cookie: a=1", body=b"no\n")
    outcomes = [await outcome(client) for client in clients]

    assert [Outcome(int(status[:3]), "text/plain", b"no\n")] * 4 == outcomes
    assert ["because"] * 4 == [client.header("x-why") for client in clients]
    assert [["a=1"], [], [], []] == [client.header_all("set-cookie") for client in clients]
    assert 1 == len(upstream.requests)
    await next_request_asks_again(upstream, connect, sidecar)


@shared
@pytest.mark.parametrize(("how", "status"), [("lost", 502), ("no HTTP", 502), ("time-out", 504)])
async def test_a_failure_of_the_upstream_goes_to_everyone_who_waited(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, connect: Connect, how: str, status: int
) -> None:
    """ "Try again" to an EventSource, a problem document to others."""
    [event_source] = await crowd(sidecar, connect, 1, EVENT_SOURCE_ASKS)
    others = await crowd(sidecar, connect, 2, PLAIN_ASKS)
    asked = await upstream.asked()
    if how == "lost":
        asked.reset()
    elif how == "no HTTP":
        await asked.send(b"SSH-2.0-OpenSSH\r\n\r\n")
    else:
        clock.advance(300)
    gone = [await outcome(client) for client in others]
    again = await outcome(event_source)

    assert [(status, "application/problem+json")] * 2 == [(each.status, each.content_type) for each in gone]
    assert (200, "text/event-stream") == (again.status, again.content_type)
    assert re.fullmatch(rb"retry: [2-5]\d{3}\n\n", again.body)
    assert 1 == len(upstream.requests)
    await next_request_asks_again(upstream, connect, sidecar)


@shared
async def test_an_upstream_that_refuses_is_asked_again_by_the_next_request(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, ask: Ask
) -> None:
    await upstream.stop()
    refused = await ask("/a", headers=PLAIN)
    await upstream.start(upstream.port)

    assert 502 == refused.status
    await next_request_asks_again(upstream, connect, sidecar)


@shared
async def test_an_answer_that_is_neither_stream_nor_error_is_for_the_first_alone(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    """Everyone else asks on his own, and gets his own."""
    clients = await crowd(sidecar, connect, 3, PLAIN_ASKS)
    await (await upstream.asked()).respond("200 OK", "Content-Type: text/plain", "Set-Cookie: u=0", body=b"0")
    for number in (1, 2):
        await (await upstream.asked()).respond(
            "200 OK", "Content-Type: text/plain", f"Set-Cookie: u={number}", body=b"%d" % number
        )
    outcomes = [await outcome(client) for client in clients]

    assert Outcome(200, "text/plain", b"0") == outcomes[0]
    assert {b"0", b"1", b"2"} == {each.body for each in outcomes}
    assert all(
        [f"u={each.body.decode()}"] == client.header_all("set-cookie")
        for each, client in zip(outcomes, clients, strict=True)
    )
    await next_request_asks_again(upstream, connect, sidecar)


# Leaving before the head


@shared
async def test_a_first_client_that_leaves_before_the_head_spoils_nothing(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    first, *others = await crowd(sidecar, connect, 3, PLAIN_ASKS)
    asked = await upstream.asked()
    first.close()
    await until(lambda: being_answered(sidecar) == len(others))
    others += await crowd(sidecar, connect, 1, PLAIN_ASKS)
    await asked.begin("Set-Cookie: of=first")
    await read_heads(others)
    await asked.stream(b"data: 1\n\n")
    for client in others:
        await client.read_until(b"\nid: 1-")

    assert 1 == len(upstream.requests)
    assert [["1"]] * 3 == [data_of(client) for client in others]
    assert [None] * 3 == [client.header("set-cookie") for client in others]


@shared
async def test_a_first_client_that_leaves_before_an_error_spoils_nothing(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    first, *others = await crowd(sidecar, connect, 3, PLAIN_ASKS)
    asked = await upstream.asked()
    first.close()
    await until(lambda: being_answered(sidecar) == len(others))
    await asked.respond("403 Forbidden", body=b"no")

    assert [Outcome(403, None, b"no")] * 2 == [await outcome(client) for client in others]
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [({"mode": "shared", "linger": 7}, 7), ({"mode": "shared", "on_disconnect": "cancel"}, 1)],
    ids=["linger", "cancel"],
)
async def test_when_all_have_left_before_the_head_the_upstream_is_let_go_of(
    sidecar: Sidecar, upstream: Upstream, clock: ManualClock, connect: Connect, seconds: float
) -> None:
    """After as long as it is kept for clients that may come back."""
    clients = await crowd(sidecar, connect, 3, PLAIN_ASKS)
    asked = await upstream.asked()
    for client in clients:
        client.close()
    await all_gone(sidecar)
    await asked.begin()
    await asked.stream(b"data: 1\n\n")
    await until(lambda: [stream.log.last for stream in sidecar.streams] == [1])
    clock.advance(seconds)
    await asked.closed()

    assert 0 == sidecar.streams.active
    await next_request_asks_again(upstream, connect, sidecar)


@shared
async def test_when_all_have_left_an_upstream_that_never_answers_is_let_go_of(
    sidecar: Sidecar, upstream: Upstream, clock: ManualClock, connect: Connect
) -> None:
    clients = await crowd(sidecar, connect, 3, PLAIN_ASKS)
    asked = await upstream.asked()
    for client in clients:
        client.close()
    await all_gone(sidecar)
    clock.advance(300)
    await asked.closed()

    assert 0 == len(sidecar.streams)
    await next_request_asks_again(upstream, connect, sidecar)


@shared
async def test_when_all_have_left_an_answer_that_is_no_stream_is_let_go_of(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    clients = await crowd(sidecar, connect, 2, PLAIN_ASKS)
    asked = await upstream.asked()
    for client in clients:
        client.close()
    await all_gone(sidecar)
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nnot all of it")
    await asked.closed()

    assert 1 == len(upstream.requests)
    await next_request_asks_again(upstream, connect, sidecar)


# Slow readers


async def flood(asked: Asked, readers: list[Response], numbers: Iterable[int], enough: Callable[[], Any]) -> int:
    """Streams events, each read by all of `readers`, until there are enough; the number of the last."""
    for number in numbers:
        await asked.stream(event(number, 3000))
        for reader in readers:
            await reader.read_until(b"\nid: %d-" % number)
        if enough():
            return number
    raise AssertionError("it never was enough")


@shared
async def test_a_reader_that_sleeps_delays_nobody_and_catches_up(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    asked, first = await open_stream("/a", headers=ASKS_THE_SAME)
    async with Sleeper(sidecar, PLAIN_ASKS) as sleeper:
        others = [first, await ask("/a", headers=ASKS_THE_SAME)]
        last = await flood(asked, others, range(1, 999), lambda: backed_up(sidecar))
        last = await flood(asked, others, range(last + 1, 999), lambda: len(first.body) > 1e6)
        woken = await sleeper.wake()
        await woken.read_until(b"\nid: %d-" % last)
        await flood(asked, [*others, woken], [last + 1], lambda: True)

    assert [list(range(1, last + 2))] * 3 == [numbers_of(client) for client in (*others, woken)]


@shared
async def test_readers_that_sleep_cost_no_memory_but_their_transport_buffers(
    sidecar: Sidecar, open_stream: OpenStream
) -> None:
    asked, first = await open_stream("/a", headers=ASKS_THE_SAME)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(Sleeper(sidecar, PLAIN_ASKS))
        last = await flood(asked, [first], range(1, 999), lambda: backed_up(sidecar) == 20)
        first.body = b""
        tracemalloc.start()
        await flood(asked, [first], range(last + 1, 999), lambda: len(first.body) > 1e6)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    # The log, what the one reader has read, and nothing for each of the others.
    assert 1e6 < grown < 4e6


@shared
async def test_a_reader_that_sleeps_is_cut_off_in_time_and_resumes_without_loss(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, ask: Ask, open_stream: OpenStream
) -> None:
    asked, first = await open_stream("/a", headers=ASKS_THE_SAME)
    async with Sleeper(sidecar, PLAIN_ASKS) as sleeper:
        last = await flood(asked, [first], range(1, 999), lambda: backed_up(sidecar))
        clock.advance(9.99)
        last = await flood(asked, [first], [last + 1], lambda: sidecar.streams.reader_count == 2)
        clock.advance(0.01)
        await until(lambda: sidecar.streams.reader_count == 1)
        last = await flood(asked, [first], [last + 1], lambda: True)
        woken = await sleeper.wake()
        await woken.read_to_end()
    again = await ask("/a", headers={**ASKS_THE_SAME, "Last-Event-ID": woken.last_id})
    await again.read_until(b"\nid: %d-" % last)

    assert not woken.whole
    assert "resumed" == again.sse_status
    assert list(range(1, last + 1)) == numbers_of(woken) + numbers_of(again) == numbers_of(first)
    assert 1 == len(upstream.requests)


@with_settings(mode="shared", max_stream_bytes="256KiB", max_event_bytes="64KiB")
async def test_a_reader_that_the_log_has_left_behind_is_cut_off_at_once(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    """No time passes, and the upstream is never held up. The reader that comes back is told what it has lost."""
    asked, first = await open_stream("/a", headers=ASKS_THE_SAME)
    async with Sleeper(sidecar, PLAIN_ASKS) as sleeper:
        last = await flood(asked, [first], range(1, 400), lambda: sidecar.streams.reader_count == 1)
        woken = await sleeper.wake()
        await woken.read_to_end()
    again = await ask("/a", headers={**ASKS_THE_SAME, "Last-Event-ID": woken.last_id})
    await again.read_until(b"\nid: %d-" % last)
    got, rest = numbers_of(woken), numbers_of(again)

    assert ("gap", ["gap"]) == (again.sse_status, signals_of(again))
    assert [rest[0] - got[-1] - 1] == losses_of(again)
    assert list(range(1, last + 1)) == got + list(range(got[-1] + 1, rest[0])) + rest


# After a dormant stream


async def put_to_sleep(
    sidecar: Sidecar, clock: ManualClock, open_stream: OpenStream, *, how: str, event_id: bytes = b""
) -> Response:
    """A client whose stream has one event and is dormant now."""
    asked, client = await open_stream("/a", headers=ASKS_THE_SAME)
    await asked.stream(b"data: 1\n" + event_id + b"\n")
    await client.read_until(b"\nid: 1-")
    if how == "linger":
        client.close()
        await until(lambda: not sidecar.streams.reader_count)
        clock.advance(30)
        await asked.closed()
    elif how == "end":
        await asked.end()
    else:
        asked.reset()
    await until(lambda: not sidecar.streams.active)
    return client


each_way_to_sleep = pytest.mark.parametrize(
    ("settings", "how", "status", "signals"),
    [
        ({"mode": "shared"}, "linger", "gap", ["gap"]),
        ({"mode": "shared"}, "end", "resumed", []),
        ({"mode": "shared", "reconnect": "never"}, "reset", "gap", ["gap"]),
    ],
    ids=["its linger ran out", "it ended", "it was lost"],
)


@each_way_to_sleep
async def test_those_who_resume_a_dormant_stream_at_once_share_one_connection(
    *,
    sidecar: Sidecar,
    upstream: Upstream,
    clock: ManualClock,
    connect: Connect,
    open_stream: OpenStream,
    how: str,
    status: str,
    signals: list[str],
) -> None:
    """With who comes anew meanwhile, too."""
    left = await put_to_sleep(sidecar, clock, open_stream, how=how)
    raw = request_of(headers={**EVENT_SOURCE, "Last-Event-ID": left.last_id})
    clients = await crowd(sidecar, connect, 3, raw)
    fresh = await crowd(sidecar, connect, 1, EVENT_SOURCE_ASKS)
    asked = await reopened(upstream)
    await asked.stream(b"data: 2\n\n")
    for client in clients + fresh:
        await client.read_head()
        await client.read_until(b"data: 2\nid")

    assert 2 == len(upstream.requests)
    assert [["2"]] * 4 == [data_of(client) for client in clients + fresh]
    assert [(status, signals)] * 3 == [(client.sse_status, signals_of(client)) for client in clients]


@each_way_to_sleep
async def test_who_resumes_a_dormant_stream_joins_the_live_one_of_the_same_key(
    *,
    sidecar: Sidecar,
    upstream: Upstream,
    clock: ManualClock,
    ask: Ask,
    open_stream: OpenStream,
    how: str,
    status: str,
    signals: list[str],
) -> None:
    """From its start, as it has read none of it; what came between the two may be missing where no one ended it."""
    left = await put_to_sleep(sidecar, clock, open_stream, how=how)
    asked, other = await open_stream("/a", headers=ASKS_THE_SAME)
    await asked.stream(b"data: 2\n\n")
    await other.read_until(b"\nid: 1-")
    back = await ask("/a", headers={**ASKS_THE_SAME, "Last-Event-ID": left.last_id})
    await back.read_until(b"data: 2\nid")
    await asked.stream(b"data: 3\n\n")
    for client in (back, other):
        await client.read_until(b"data: 3\nid")

    assert 2 == len(upstream.requests)
    assert ["2", "3"] == data_of(back) == data_of(other)
    assert back.last_id == other.last_id
    assert (status, signals) == (back.sse_status, signals_of(back))


@shared
async def test_a_live_stream_that_did_not_go_on_from_where_the_dormant_one_ended_is_joined_with_a_gap(
    sidecar: Sidecar, clock: ManualClock, ask: Ask, open_stream: OpenStream
) -> None:
    """The service gives ids, but was not asked by the last one that this client has."""
    left = await put_to_sleep(sidecar, clock, open_stream, how="linger", event_id=b"id: 1\n")
    asked, other = await open_stream("/a", headers=ASKS_THE_SAME)
    await asked.stream(b"id: 3\ndata: 3\n\n")
    await other.read_until(b"\nid: 1-")
    back = await ask("/a", headers={**ASKS_THE_SAME, "Last-Event-ID": left.last_id})
    await back.read_until(b"data: 3\nid")

    assert ["gap"] == signals_of(back)


@shared
async def test_a_dormant_stream_of_a_service_with_ids_goes_on_without_a_gap(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, connect: Connect, ask: Ask, open_stream: OpenStream
) -> None:
    """Whoever comes next joins what it goes on with."""
    left = await put_to_sleep(sidecar, clock, open_stream, how="linger", event_id=b"id: 1\n")
    [back] = await crowd(sidecar, connect, 1, request_of(headers={**EVENT_SOURCE, "Last-Event-ID": left.last_id}))
    asked = await reopened(upstream)
    await asked.stream(b"id: 2\ndata: 2\n\n")
    await back.read_head()
    await back.read_until(b"\nid: 2-")
    fresh = await ask("/a", headers=ASKS_THE_SAME)
    await asked.stream(b"id: 3\ndata: 3\n\n")
    for client in (back, fresh):
        await client.read_until(b"data: 3\nid")

    assert "1" == asked.header("last-event-id")
    assert 2 == len(upstream.requests)
    assert ("resumed", [], ["2", "3"]) == (back.sse_status, signals_of(back), data_of(back))
    assert ["3"] == data_of(fresh)
    assert back.last_id == fresh.last_id


@shared
async def test_those_whose_stream_is_gone_share_a_connection_as_well(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    """A restart of the sidecar must not open a connection to the service for each of its clients."""
    lost = "7-gAAAAAAAAAAAAAAAAAAAAAA"
    clients = await crowd(sidecar, connect, 3, request_of(headers={**EVENT_SOURCE, "Last-Event-ID": lost}))
    asked = await reopened(upstream)
    await read_heads(clients)
    await asked.stream(b"data: 1\n\n")
    for client in clients:
        await client.read_until(b"\nid: 1-")

    assert 1 == len(upstream.requests)
    assert [("reset", ["reset"])] * 3 == [(client.sse_status, signals_of(client)) for client in clients]
