"""`Idempotency-Key`: a POST that is repeated joins the stream of the first, and the upstream is asked once."""

from __future__ import annotations

import asyncio
import json

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, Connect, OpenStream, with_settings
from tests.harness import ManualClock, Upstream, chunk, until
from tests.together import (
    HOST,
    all_gone,
    being_answered,
    crowd,
    data_of,
    read_heads,
    request_of,
    signals_of,
)

KEYED = {"Host": HOST, "Authorization": "Bearer a", "Idempotency-Key": "k"}
BODY = b'{"prompt": "Hi?"}'


def post(body: bytes = BODY, **headers: str) -> bytes:
    return request_of(method="POST", headers=KEYED | headers, body=body)


def chunked(*parts: bytes) -> bytes:
    """The same POST, its body in chunks."""
    return request_of(method="POST", headers={**KEYED, "Transfer-Encoding": "chunked"}) + b"".join(
        chunk(part) for part in (*parts, b"")
    )


# Joining


@pytest.mark.parametrize("whole", [False, True], ids=["live", "complete"])
async def test_a_repeated_post_joins_the_stream_of_the_first_from_its_start(
    upstream: Upstream, ask: Ask, open_stream: OpenStream, whole: bool
) -> None:
    asked, first = await open_stream("/a", method="POST", headers=KEYED, body=BODY, answer=("Set-Cookie: a=1",))
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await first.read_until(b"\nid: 2-")
    if whole:
        await asked.end()
        await first.read_to_end()
    again = await ask("/a", method="POST", headers=KEYED, body=BODY)
    await again.read_until(b"\nid: 2-")
    if not whole:
        await asked.stream(b"data: 3\n\n")
        await asked.end()
    await again.read_to_end()

    assert (
        b"retry: OWN\ndata: 1\nid: 1-ID\n\ndata: 2\nid: 2-ID\n\n" + (b"" if whole else b"data: 3\nid: 3-ID\n\n")
        == again.shown
    )
    assert again.whole
    assert ("new", "resumed") == (first.sse_status, again.sse_status)
    assert first.stream_id == again.stream_id
    assert (["a=1"], []) == (first.header_all("set-cookie"), again.header_all("set-cookie"))
    assert 1 == len(upstream.requests)
    assert BODY == await asked.read_body()
    assert "k" == asked.header("idempotency-key")


async def test_posts_that_arrive_at_the_same_moment_make_one_request(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    clients = await crowd(sidecar, connect, 5, post())
    asked = await upstream.asked()
    body = await asked.read_body()
    await asked.begin("Set-Cookie: a=1")
    await asked.stream(b"data: 1\n\n")
    await read_heads(clients)
    await asked.end()
    for client in clients:
        await client.read_to_end()

    assert BODY == body
    assert [["1"]] * 5 == [data_of(client) for client in clients]
    assert ["new", *["resumed"] * 4] == [client.sse_status for client in clients]
    assert [["a=1"], *[[]] * 4] == [client.header_all("set-cookie") for client in clients]
    assert 1 == len(upstream.requests)


async def test_a_repeated_post_waits_for_an_answer_that_is_slow_in_coming(
    sidecar: Sidecar, upstream: Upstream, clock: ManualClock, connect: Connect
) -> None:
    [first] = await crowd(sidecar, connect, 1, post())
    asked = await upstream.asked()
    clock.advance(200)
    [again] = await crowd(sidecar, connect, 1, post())
    clock.advance(99)
    await asked.begin()
    await read_heads([first, again])

    assert ("new", "resumed") == (first.sse_status, again.sse_status)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize("waits", [True, False], ids=["the other is waiting", "the other comes later"])
async def test_a_post_that_lost_its_connection_before_the_first_byte_does_not_run_twice(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, waits: bool
) -> None:
    [first] = await crowd(sidecar, connect, 1, post())
    asked = await upstream.asked()
    await asked.read_body()
    clients = await crowd(sidecar, connect, 2 if waits else 0, post())
    first.reset()
    await until(lambda: being_answered(sidecar) == len(clients))
    await asked.begin("Set-Cookie: of=first")
    await asked.stream(b"data: 1\n\n")
    await until(lambda: [stream.log.last for stream in sidecar.streams] == [1])
    clients += await crowd(sidecar, connect, 1, post())
    await asked.end()
    await read_heads(clients)
    for client in clients:
        await client.read_to_end()

    assert {("resumed", None, True)} == {(each.sse_status, each.header("set-cookie"), each.whole) for each in clients}
    assert all(["1"] == data_of(client) for client in clients)
    assert 1 == len(upstream.requests)


@with_settings(on_disconnect="cancel")
@pytest.mark.parametrize("seconds", [0.9, 1.0], ids=["back in time", "too late"])
async def test_where_leaving_cancels_a_repeated_post_gets_what_there_is(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, connect: Connect, ask: Ask, seconds: float
) -> None:
    """Half done, the work is not begun again under the same key: that is for its user to say, with another one."""
    [first] = await crowd(sidecar, connect, 1, post())
    asked = await upstream.asked()
    first.close()
    await all_gone(sidecar)
    await asked.begin()
    await asked.stream(b"data: 1\n\n")
    await until(lambda: [stream.log.last for stream in sidecar.streams] == [1])
    clock.advance(seconds)
    in_time = bool(sidecar.streams.active)
    again = await ask("/a", method="POST", headers=KEYED, body=BODY)
    if in_time:
        await asked.end()
    await again.read_to_end()

    assert (seconds < 1) == in_time
    assert ("resumed", ["1"]) == (again.sse_status, data_of(again))
    assert (in_time, [] if in_time else ["upstream-lost"]) == (again.whole, signals_of(again))
    assert 1 == len(upstream.requests)


async def test_a_repeated_post_gets_the_end_of_a_stream_that_broke(
    upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    asked, first = await open_stream("/a", method="POST", headers=KEYED, body=BODY)
    await asked.stream(b"data: 1\n\n")
    await first.read_until(b"\nid: 1-")
    asked.reset()
    await first.read_to_end()
    again = await ask("/a", method="POST", headers=KEYED, body=BODY)
    await again.read_to_end()

    assert (["1"], ["upstream-lost"], False) == (data_of(again), signals_of(again), again.whole)
    assert 1 == len(upstream.requests)


async def test_a_resume_token_is_worth_more_than_the_key(upstream: Upstream, ask: Ask, open_stream: OpenStream) -> None:
    """A client that repeats its POST with what it has is not sent that again."""
    asked, first = await open_stream("/a", method="POST", headers=KEYED, body=BODY)
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await asked.end()
    await first.read_to_end()
    after_one = first.last_id.replace("2-", "1-", 1)
    again = await ask("/a", method="POST", headers={**KEYED, "Last-Event-ID": after_one}, body=BODY)
    await again.read_to_end()

    assert ["2"] == data_of(again)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(
    "first", [post(), chunked(BODY), chunked(BODY[:3], BODY[3:])], ids=["sized", "chunk", "chunks"]
)
@pytest.mark.parametrize("second", [post(), chunked(BODY[:9], BODY[9:])], ids=["sized", "chunks"])
async def test_a_body_is_the_same_however_it_is_framed(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, first: bytes, second: bytes
) -> None:
    clients = await crowd(sidecar, connect, 1, first)
    asked = await upstream.asked()
    body = await asked.read_body()
    clients += await crowd(sidecar, connect, 1, second)
    await asked.begin()
    await read_heads(clients)

    assert (BODY, True) == (body, asked.whole)
    assert ["new", "resumed"] == [client.sse_status for client in clients]
    assert 1 == len(upstream.requests)


async def test_a_body_larger_than_every_buffer_is_compared_to_its_end(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    body = bytes(range(256)) * 8192
    clients = [await connect() for _ in range(3)]
    raws = (post(body), post(body), post(body[:-1] + b"!"))
    sending = [asyncio.ensure_future(client.send(raw)) for client, raw in zip(clients, raws, strict=True)]
    asked = await upstream.asked()
    await asked.begin()
    whole = await asked.read_body()
    await read_heads(clients)
    await asyncio.gather(*sending)

    assert [200, 200, 422] == [client.status for client in clients]
    assert body == whole


# Another body


@pytest.mark.parametrize("when", ["waiting", "live", "complete"])
@pytest.mark.parametrize(
    "raw",
    [post(BODY.replace(b"H", b"h")), post(BODY[:-1]), post(BODY + b" "), post(b""), chunked(BODY, b"!"), chunked()],
    ids=["same length", "prefix", "longer", "none", "chunked", "chunked, none"],
)
async def test_another_body_under_the_same_key_is_refused(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, raw: bytes, when: str
) -> None:
    """And does the first no harm."""
    [first] = await crowd(sidecar, connect, 1, post())
    asked = await upstream.asked()
    [other] = await crowd(sidecar, connect, 1, raw) if when == "waiting" else [await connect()]
    await asked.begin()
    await first.read_head()
    if when == "complete":
        await asked.stream(b"data: 1\n\n")
        await asked.end()
        await first.read_to_end()
    if when != "waiting":
        await other.send(raw)
    await other.read_head()
    if when != "complete":
        await asked.stream(b"data: 1\n\n")
        await asked.end()
        await first.read_to_end()

    assert (422, "application/problem+json", "no-store") == (
        other.status,
        other.header("content-type"),
        other.header("cache-control"),
    )
    assert "Idempotency-Key reused" == json.loads(await other.read_to_end())["title"]
    assert (["1"], True) == (data_of(first), first.whole)
    assert 1 == len(upstream.requests)


async def test_a_post_that_is_repeated_before_it_is_whole_waits_for_the_rest_of_it(
    sidecar: Sidecar, upstream: Upstream, connect: Connect
) -> None:
    """The service has answered already: only then is there something to compare with."""
    first = await connect()
    await first.send(post()[:-5])
    asked = await upstream.asked()
    await asked.begin()
    await asked.stream(b"data: 1\n\n")
    await first.read_head()
    [again] = await crowd(sidecar, connect, 1, post())
    await first.send(post()[-5:])
    await again.read_head()

    assert ("resumed", 1) == (again.sse_status, len(upstream.requests))


# What is a request of its own


@pytest.mark.parametrize(
    ("settings", "target", "method", "headers"),
    [
        pytest.param({}, "/a", "POST", {"Authorization": "Bearer b"}, id="principal"),
        pytest.param({}, "/a", "POST", {"X-Api-Key": "b"}, id="another bind header"),
        pytest.param({"bind_cookies": ["s"]}, "/a", "POST", {"Cookie": "s=b"}, id="a bound cookie"),
        pytest.param({}, "/b", "POST", {}, id="path"),
        pytest.param({}, "/a?x=1", "POST", {}, id="query"),
        pytest.param({}, "/a", "POST", {"Host": "other.test"}, id="host"),
        pytest.param({}, "/a", "PUT", {}, id="PUT"),
        pytest.param({}, "/a", "GET", {}, id="GET"),
        pytest.param({}, "/a", "POST", {"Idempotency-Key": "K"}, id="key"),
        pytest.param({"bind": ["x-user"]}, "/a", "POST", {}, id="no principal"),
        pytest.param({"ids": "keep"}, "/a", "POST", {}, id="ids of the service's own"),
    ],
)
async def test_another_request_reaches_the_upstream(
    *, upstream: Upstream, open_stream: OpenStream, target: str, method: str, headers: dict[str, str]
) -> None:
    one, first = await open_stream("/a", method="POST", headers=KEYED, body=BODY)
    two, second = await open_stream(target, method=method, headers=KEYED | headers, body=BODY)
    await one.stream(b"data: 1\n\n")
    await two.stream(b"data: 2\n\n")
    await first.read_until(b"data: 1\n")
    await second.read_until(b"data: 2\n")

    assert (["1"], ["2"]) == (data_of(first), data_of(second))
    assert 2 == len(upstream.requests)


async def test_without_a_principal_anyone_could_be_anyone(upstream: Upstream, open_stream: OpenStream) -> None:
    """A key that is guessed must not hand out a stranger's answer."""
    anonymous = {"Host": HOST, "Idempotency-Key": "k"}
    for _ in range(2):
        await open_stream("/a", method="POST", headers=anonymous, body=BODY)

    assert 2 == len(upstream.requests)


# When a key is forgotten


NO_STREAMS = [
    ("200 OK", "Content-Type: application/json"),
    ("201 Created", "Location: /b"),
    ("400 Bad Request", "Content-Type: text/event-stream"),
    ("500 Internal Server Error", "Content-Type: text/plain"),
]


@pytest.mark.parametrize(("status", "header"), NO_STREAMS)
async def test_an_answer_that_is_no_stream_forgets_the_key(
    *, sidecar: Sidecar, upstream: Upstream, connect: Connect, status: str, header: str
) -> None:
    """For those who waited for it as well: one of them asks, with his own body, and the rest wait for that."""
    first, *others = await crowd(sidecar, connect, 3, post())
    asked = await upstream.asked()
    await asked.read_body()
    await asked.respond(status, header, body=b"no stream")
    await first.read_head()
    again = await upstream.asked()
    body = await again.read_body()
    await again.begin()
    await again.stream(b"data: 1\n\n")
    await read_heads(others)
    later = await crowd(sidecar, connect, 1, post())
    await read_heads(later)
    for client in [*others, *later]:
        await client.read_until(b"\nid: 1-")

    assert (int(status[:3]), b"no stream") == (first.status, await first.read_to_end())
    assert BODY == body
    assert ["new", "resumed", "resumed"] == sorted(str(client.sse_status) for client in [*others, *later])
    assert 2 == len(upstream.requests)


async def test_an_upstream_that_is_lost_before_it_answers_forgets_the_key(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, open_stream: OpenStream
) -> None:
    clients = await crowd(sidecar, connect, 2, post())
    asked = await upstream.asked()
    asked.reset()
    await read_heads(clients)
    _, again = await open_stream("/a", method="POST", headers=KEYED, body=BODY)

    assert [502, 502] == [client.status for client in clients]
    assert "new" == again.sse_status
    assert 2 == len(upstream.requests)


async def test_a_key_is_forgotten_with_its_stream(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, ask: Ask, open_stream: OpenStream
) -> None:
    asked, first = await open_stream("/a", method="POST", headers=KEYED, body=BODY)
    await asked.end()
    await first.read_to_end()
    await until(lambda: not sidecar.streams.active)
    clock.advance(3599)
    still = await ask("/a", method="POST", headers=KEYED, body=BODY)
    await still.read_to_end()
    await until(lambda: not sidecar.streams.active)
    clock.advance(3600)
    _, again = await open_stream("/a", method="POST", headers=KEYED, body=BODY)

    assert ("resumed", "new") == (still.sse_status, again.sse_status)
    assert 2 == len(upstream.requests)


# An upload that is cut half way


CUT_SHORT = [
    pytest.param(post()[:-5], id="sized"),
    pytest.param(chunked(BODY)[: -len(b"0\r\n\r\n")], id="between chunks"),
    pytest.param(chunked(BODY)[: -len(b'?"}\r\n0\r\n\r\n')], id="within a chunk"),
]


@pytest.mark.parametrize("cut", CUT_SHORT)
async def test_a_post_that_was_cut_within_its_body_is_no_request(
    *, sidecar: Sidecar, upstream: Upstream, connect: Connect, open_stream: OpenStream, cut: bytes
) -> None:
    """The upstream never sees it whole, and it is made anew."""
    first = await connect()
    await first.send(cut)
    asked = await upstream.asked()
    first.close()
    await asked.read_body()
    await all_gone(sidecar)
    again, second = await open_stream("/a", method="POST", headers=KEYED, body=BODY)

    assert not asked.whole
    assert "new" == second.sse_status
    assert BODY == await again.read_body()
    assert 2 == len(upstream.requests)


@pytest.mark.parametrize("cut", CUT_SHORT)
async def test_who_waited_for_a_post_that_was_cut_within_its_body_asks_himself(
    sidecar: Sidecar, upstream: Upstream, connect: Connect, cut: bytes
) -> None:
    """There is nothing wrong with his."""
    first = await connect()
    await first.send(cut)
    asked = await upstream.asked()
    [waiting] = await crowd(sidecar, connect, 1, post())
    first.close()
    await asked.closed()
    again = await upstream.asked()
    body = await again.read_body()
    await again.begin()
    await waiting.read_head()

    assert BODY == body
    assert (200, "new") == (waiting.status, waiting.sse_status)
    assert 2 == len(upstream.requests)
