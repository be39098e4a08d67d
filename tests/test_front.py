"""What a request gets: every row of the tables of resuming, over the wire."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import (
    EVENT_SOURCE,
    Asked,
    ManualClock,
    Response,
    Upstream,
    port_of,
    read_to_the_cut,
    request,
    scrape,
    unread,
    until,
)
from tests.reference import interpret

UNKNOWN_G = "g" + 22 * "A"
UNKNOWN_P = "p" + 22 * "A"

PAGE = {"User-Agent": "Mozilla/5.0", "Accept": "*/*"}
FETCH_EVENT_SOURCE = {"User-Agent": "Mozilla/5.0", "Accept": "text/event-stream"}
NODE_FETCH = {"User-Agent": "node", "Accept": "*/*", "Sec-Fetch-Mode": "cors"}
CURL = {"User-Agent": "curl/8.5.0", "Accept": "*/*"}
SDK = {"User-Agent": "OpenAI/Python 1.60.0", "Accept": "application/json"}
MCP = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "MCP-Protocol-Version": "2025-11-25"}

FAR = 10_000.0
"""Seconds for what is not to happen in a test."""


def resuming(token: str, headers: dict[str, str] | None = None) -> dict[str, str]:
    return {**(headers or {}), "Last-Event-ID": token}


def carrying(stream_id: str, upstream_id: str) -> str:
    return f"{stream_id}.{base64.urlsafe_b64encode(upstream_id.encode()).rstrip(b'=').decode()}"


def signals(response: Response) -> list[dict[str, Any]]:
    """The sidecar's own events, without what they say to people."""
    said = [json.loads(event.data)["error"] for event in interpret(response.body).events if event.type == "sse-sidecar"]
    return [{key: value for key, value in error.items() if key != "message"} for error in said]


def datas(response: Response) -> list[str]:
    return [event.data for event in interpret(response.body).events if event.type != "sse-sidecar"]


@pytest.fixture
def ended(open_stream: OpenStream) -> Callable[..., Any]:
    """A stream that came to its clean end, read whole by its client; arguments are those of `open_stream`."""

    async def ending(data: bytes, *args: Any, **kwargs: Any) -> Response:
        asked, response = await open_stream(*(args or ("/a",)), **kwargs)
        await asked.stream(data)
        await asked.end()
        await response.read_to_end()
        return response

    return ending


Ended = Callable[..., Any]
POST = {"method": "POST", "body": b"{}"}


# Where a token is, and what else is none


@pytest.mark.parametrize("parameter", ["last_event_id", "lastEventId", "lastEventID"])
async def test_a_token_in_the_query_resumes(open_stream: OpenStream, ask: Ask, parameter: str) -> None:
    asked, response = await open_stream("/a?x=1")
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"id: 2-")

    again = await ask(f"/a?{parameter}=1-{response.stream_id}&x=1")
    await again.read_until(b"id: 2-")

    assert "resumed" == again.sse_status
    assert ["data: 2"] == [data for _, data in again.events()]


async def test_the_header_wins_over_the_query(open_stream: OpenStream, ask: Ask) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
    await response.read_until(b"id: 3-")

    sid = response.stream_id
    again = await ask(f"/a?last_event_id=2-{sid}", headers=resuming(f"1-{sid}"))
    await again.read_until(b"id: 3-")

    assert ["data: 2", "data: 3"] == [data for _, data in again.events()]


@pytest.mark.parametrize("foreign", ["of the upstream", ""])
async def test_a_foreign_header_wins_over_a_token_in_the_query_and_passes_on(
    open_stream: OpenStream, upstream: Upstream, foreign: str
) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")

    again_asked, again = await open_stream(
        f"/a?last_event_id=1-{response.stream_id}", headers={"Last-Event-ID": foreign}
    )

    assert ("new", "/a") == (again.sse_status, again_asked.target)
    assert [foreign] == again_asked.header_all("last-event-id")


@pytest.mark.parametrize(
    ("target", "upstream_target"),
    [
        (f"/a?last_event_id=1-{UNKNOWN_G}", "/a"),
        (f"/a?lastEventId=1-{UNKNOWN_G}&lastEventID=0-{UNKNOWN_P}", "/a"),
        (f"/a?b=%20%zz&last_event_id=1-{UNKNOWN_G}&c=d+e&&=f;g", "/a?b=%20%zz&c=d+e&&=f;g"),
        (f"/%61/../a//?&last_event_id=1%2D{UNKNOWN_G}&", "/%61/../a//?&"),
        (f"/a?last_event_id=1-{UNKNOWN_G}&lastEventId=their-own", "/a?lastEventId=their-own"),
        (f"/a?last_event_id_=1-{UNKNOWN_G}", f"/a?last_event_id_=1-{UNKNOWN_G}"),
    ],
)
async def test_a_parameter_that_holds_a_token_is_taken_off_and_no_other_byte_changed(
    open_stream: OpenStream, target: str, upstream_target: str
) -> None:
    asked, _ = await open_stream(target)

    assert upstream_target == asked.target


@pytest.mark.parametrize("header", [f"1-{UNKNOWN_G}", "their-own"])
async def test_a_parameter_that_holds_a_token_is_taken_off_whoever_won(open_stream: OpenStream, header: str) -> None:
    asked, _ = await open_stream(f"/a?b=1&last_event_id=7-{UNKNOWN_P}", headers=resuming(header))

    assert "/a?b=1" == asked.target


async def test_a_header_that_holds_a_token_is_taken_off(open_stream: OpenStream) -> None:
    asked, _ = await open_stream("/a", headers=resuming(f"1-{UNKNOWN_G}"))

    assert asked.header("last-event-id") is None


NO_TOKENS = [
    pytest.param("1", id="a number"),
    pytest.param("1717-0", id="a Redis id"),
    pytest.param(f"-1-{UNKNOWN_P}", id="negative"),
    pytest.param(f"+1-{UNKNOWN_P}", id="a sign"),
    pytest.param(f"01-{UNKNOWN_P}", id="a leading zero"),
    pytest.param(f"1-{UNKNOWN_P}A", id="a stream id too long"),
    pytest.param(f"1-{UNKNOWN_P[:-1]}", id="a stream id too short"),
    pytest.param(f"1-x{UNKNOWN_P[1:]}", id="another letter"),
    pytest.param(f"1-{UNKNOWN_P[:-1]}!", id="no base64url"),
    pytest.param(f"1-{UNKNOWN_P[:-1]}\xe9", id="not ASCII"),
    pytest.param("\u0661".encode().decode("latin-1") + f"-{UNKNOWN_P}", id="a digit that is not ASCII"),
    pytest.param(f"{10**40}-{UNKNOWN_P}", id="a number too long"),
    pytest.param(f"1-{carrying(UNKNOWN_G, 77 * 'x')}", id="overlong"),
    pytest.param(f"1-{UNKNOWN_G}.", id="an upstream id that is empty"),
    pytest.param(f"1-{UNKNOWN_G}.A", id="an upstream id that is no base64url"),
    pytest.param(f"1-{carrying(UNKNOWN_G, chr(10))}", id="an upstream id with a line end"),
]


@pytest.mark.parametrize("value", NO_TOKENS)
async def test_what_is_no_token_passes_on_in_the_header_as_it_came(open_stream: OpenStream, value: str) -> None:
    asked, response = await open_stream("/a", headers=resuming(value))

    assert ("new", [value]) == (response.sse_status, asked.header_all("last-event-id"))


@pytest.mark.parametrize("value", NO_TOKENS)
async def test_what_is_no_token_passes_on_in_the_query_as_it_came(open_stream: OpenStream, value: str) -> None:
    if not value.isascii():
        value = "".join(char if char.isascii() else f"%{ord(char):02X}" for char in value)
    asked, response = await open_stream(f"/a?last_event_id={value}&b=1")

    assert ("new", f"/a?last_event_id={value}&b=1") == (response.sse_status, asked.target)


@pytest.mark.parametrize("mode", ["navigate", "no-cors"])
@pytest.mark.parametrize("letter", [UNKNOWN_G, UNKNOWN_P])
async def test_a_navigation_or_an_image_never_resumes(open_stream: OpenStream, mode: str, letter: str) -> None:
    asked, response = await open_stream(
        f"/a?b=1&last_event_id=1-{letter}", headers=resuming(f"1-{letter}", {"Sec-Fetch-Mode": mode})
    )

    assert ("new", "/a?b=1", None) == (response.sse_status, asked.target, asked.header("last-event-id"))


@pytest.mark.parametrize("mode", ["cors", "same-origin"])
async def test_what_else_a_page_asks_for_resumes(open_stream: OpenStream, ask: Ask, mode: str) -> None:
    _, response = await open_stream("/a")

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", {"Sec-Fetch-Mode": mode}))

    assert "resumed" == again.sse_status


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("stream_id", [None, UNKNOWN_G, UNKNOWN_P])
async def test_a_method_that_asks_for_no_stream_goes_upstream_with_a_token(
    ended: Ended, ask: Ask, upstream: Upstream, method: str, stream_id: str | None
) -> None:
    """Whether the stream is here or not: DELETE ends an MCP session, and is not for the sidecar to answer."""
    response = await ended(b"data: 1\n\n", **POST)
    asking = asyncio.ensure_future(ask("/a", method=method, headers=resuming(f"1-{stream_id or response.stream_id}")))
    asked = await upstream.asked()
    await asked.respond("202 Accepted")

    assert (method, 202) == (asked.method, (await asking).status)


# The stream is here, and holds what comes after


async def test_a_resume_is_a_replay_then_live(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"id: 2-")

    again = await ask("/a", headers=resuming(f"1-{response.stream_id}"))
    await again.read_until(b"id: 2-")
    await asked.stream(b"event: e\ndata: 3\n\n")
    await again.read_until(b"id: 3-")

    assert b"retry: OWN\ndata: 2\nid: 2-ID\n\nevent: e\ndata: 3\nid: 3-ID\n\n" == again.shown
    assert ("resumed", response.stream_id) == (again.sse_status, again.stream_id)
    assert 1 == len(upstream.requests)


async def test_a_replay_repeats_the_headers_of_the_first_answer_without_its_cookies(
    open_stream: OpenStream, ask: Ask
) -> None:
    """Those of CORS above all."""
    fields = ("Access-Control-Allow-Origin: https://page.test", "X-Mine: a", "X-Mine: b", "Set-Cookie: secret=1")
    _, response = await open_stream("/a", answer=fields)

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}"))

    def without_cookies_and_status(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        return [field for field in fields if field[0] not in {b"Set-Cookie", b"SSE-Stream-Status"}]

    assert (["secret=1"], []) == (response.header_all("set-cookie"), again.header_all("set-cookie"))
    assert without_cookies_and_status(response.headers) == without_cookies_and_status(again.headers)
    assert (["a", "b"], "https://page.test") == (
        again.header_all("x-mine"),
        again.header("access-control-allow-origin"),
    )


async def test_zero_asks_for_everything(open_stream: OpenStream, ask: Ask) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"id: 2-")

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}"))
    await again.read_until(b"id: 2-")

    assert "resumed" == again.sse_status
    assert ["data: 1", "data: 2"] == [data for _, data in again.events()]


async def test_zero_asks_for_everything_whatever_number_the_first_event_has(
    ended: Ended, ask: Ask, upstream: Upstream
) -> None:
    """A stream that follows a dormant one goes on counting."""
    first = await ended(b"data: 1\n\ndata: 2\n\n")
    second = await ask("/a", headers=resuming(first.last_id))
    asked = await upstream.asked()
    await asked.begin()
    await asked.stream(b"data: 3\n\n")
    await second.read_until(b"id: 3-")
    second_id = second.last_id.partition("-")[2]

    again = await ask("/a", headers=resuming(f"0-{second_id}"))
    await again.read_until(b"id: 3-")

    assert ("resumed", [("3-" + second_id, "data: 3")]) == (again.sse_status, again.events())


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_stream_opened_with_post_is_resumed_by_get_and_by_repeating_it(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, method: str
) -> None:
    asked, response = await open_stream("/a", **POST)
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"id: 2-")
    response.reset()

    body = b"{}" if method == "POST" else b""
    again = await ask("/a", method=method, body=body, headers=resuming(f"1-{response.stream_id}"))
    await asked.stream(b"data: 3\n\n")
    await asked.end()
    await again.read_to_end()

    assert ("resumed", ["2", "3"], True) == (again.sse_status, datas(again), again.whole)
    assert 1 == len(upstream.requests)


async def test_the_body_of_a_repeated_post_is_taken_and_dropped(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar
) -> None:
    """Clients that send before they read would wait for ever, and a client's leaving would not be noticed."""
    asked, response = await open_stream("/a", **POST)
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"id: 2-")
    response.reset()
    await unread(sidecar)

    again = await ask("/a", method="POST", body=(8 << 20) * b"x", headers=resuming(f"1-{response.stream_id}"))
    await until(lambda: again.writer.transport.get_write_buffer_size() == 0)
    await again.read_until(b"id: 2-")
    again.reset()

    await unread(sidecar)
    assert (["2"], 1) == (datas(again), len(upstream.requests))


async def test_two_readers_of_one_stream_each_get_everything(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    asked, one = await open_stream("/a", headers=CURL)
    await asked.stream(b"data: 1\n\n")
    await one.read_until(b"id: 1-")
    two = await ask("/a", headers=resuming(f"0-{one.stream_id}", PAGE))
    await two.read_until(b"id: 1-")

    await asked.stream(b": hi\n\ndata: 2\n\n")
    await one.read_until(b"id: 2-")
    one.reset()
    await asked.stream(b"data: 3\n\n")
    await two.read_until(b"id: 3-")

    assert b"retry: OWN\ndata: 1\nid: 1-ID\n\n: hi\ndata: 2\nid: 2-ID\n\n" == one.shown
    assert b"retry: OWN\n\ndata: 1\nid: 1-ID\n\n: hi\n\ndata: 2\nid: 2-ID\n\ndata: 3\nid: 3-ID\n\n" == two.shown
    assert 1 == len(upstream.requests)


# The stream is here and complete


@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
async def test_a_get_of_what_is_over_gets_204(ended: Ended, ask: Ask, headers: dict[str, str]) -> None:
    response = await ended(b"data: 1\n\n", **POST)

    again = await ask("/a", headers=resuming(response.last_id, headers))

    assert (204, "text/event-stream") == (again.status, again.header("content-type"))
    assert (response.stream_id, None) == (again.stream_id, again.header("transfer-encoding"))
    assert "no-store" in (again.header("cache-control") or "")


@pytest.mark.parametrize(
    ("method", "headers"), [("GET", PAGE), ("GET", FETCH_EVENT_SOURCE), ("POST", CURL), ("POST", PAGE)]
)
async def test_fetch_clients_get_an_empty_stream_of_what_is_over(
    ended: Ended, ask: Ask, method: str, headers: dict[str, str]
) -> None:
    """They read a clean end, and fail on a missing body."""
    response = await ended(b"data: 1\n\n", **POST)

    body = b"{}" if method == "POST" else b""
    again = await ask("/a", method=method, body=body, headers=resuming(response.last_id, headers))
    await again.read_to_end()

    assert (200, "text/event-stream") == (again.status, again.header("content-type"))
    assert (b"", True) == (again.body, again.whole)


async def test_what_is_left_of_a_complete_stream_is_replayed_to_its_end(
    ended: Ended, ask: Ask, upstream: Upstream
) -> None:
    response = await ended(b"data: 1\n\ndata: 2\n\n", **POST)

    again = await ask("/a", headers=resuming(f"1-{response.stream_id}"))
    await again.read_to_end()

    assert ("resumed", ["2"], True) == (again.sse_status, datas(again), again.whole)
    assert 1 == len(upstream.requests)


# The stream is here, but what comes next is no longer held


@with_settings(max_stream_events=2)
async def test_a_gap_is_told_with_the_exact_number_of_events_lost(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar
) -> None:
    asked, response = await open_stream("/a", headers=EVENT_SOURCE)
    for number in range(1, 7):
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"id: %d-" % number)

    again = await ask("/a", headers=resuming(f"1-{response.stream_id}", EVENT_SOURCE))
    await again.read_until(b"id: 6-")

    assert ("gap", [{"code": "gap", "lost": 3}]) == (again.sse_status, signals(again))
    assert ["5", "6"] == datas(again)
    assert again.shown.startswith(b"id: 4-ID\n\nretry: OWN\n\nevent: sse-sidecar\ndata: ")
    metrics = await scrape(sidecar)
    assert 3 == metrics['sse_message_loss_total{route="default"}']
    assert 1 == metrics['sse_user_visible_errors_total{code="gap",route="default"}']


@with_settings(max_stream_events=2)
@pytest.mark.parametrize(("seq", "lost"), [(0, 2), (1, 1), (2, 0), (3, 0)])
async def test_there_is_a_gap_only_where_the_next_event_is_gone(
    open_stream: OpenStream, ask: Ask, seq: int, lost: int
) -> None:
    asked, response = await open_stream("/a")
    for number in range(1, 5):
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"id: %d-" % number)

    again = await ask("/a", headers=resuming(f"{seq}-{response.stream_id}"))
    await again.read_until(b"id: 4-")

    assert [{"code": "gap", "lost": lost}] * bool(lost) == signals(again)
    assert ("gap" if lost else "resumed") == again.sse_status
    assert ["3", "4"][max(seq - 2, 0) :] == datas(again)


# The stream is not here


async def test_a_get_stream_that_is_gone_begins_anew_with_a_signal(open_stream: OpenStream) -> None:
    asked, response = await open_stream("/a", headers=resuming(f"5-{UNKNOWN_G}", EVENT_SOURCE))
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")

    assert ("reset", [{"code": "reset"}], ["1"]) == (response.sse_status, signals(response), datas(response))
    assert asked.header("last-event-id") is None
    assert UNKNOWN_G != response.stream_id
    assert response.shown.startswith(b"id: 0-ID\n\nretry: OWN\n\nevent: sse-sidecar\ndata: ")


async def test_a_signal_has_no_id(open_stream: OpenStream) -> None:
    """It is no part of the stream: a client that was cut right after it resumes where it was."""
    asked, response = await open_stream("/a", headers=resuming(f"5-{UNKNOWN_G}", EVENT_SOURCE))
    await response.read_until(b"sse-sidecar")
    await asked.stream(b": now\n\n")
    await response.read_until(b": now\n\n")

    (signal,) = interpret(response.body).events
    assert ("sse-sidecar", f"0-{response.stream_id}") == (signal.type, signal.last_event_id)


@pytest.mark.parametrize("own_id", ["ü/7", 76 * "x"], ids=["short", "as long as a token may be"])
async def test_the_upstreams_own_id_makes_up_for_a_stream_that_is_gone(open_stream: OpenStream, own_id: str) -> None:
    asked, response = await open_stream("/a", headers=resuming(f"5-{carrying(UNKNOWN_G, own_id)}"))
    await asked.stream(b"id: 8\ndata: 1\n\n")
    await response.read_until(b"id: 1-")

    assert [own_id.encode().decode("latin-1")] == asked.header_all("last-event-id")
    assert ("new", [], ["1"]) == (response.sse_status, signals(response), datas(response))


async def test_a_stream_that_begins_at_an_upstream_id_primes_with_it(open_stream: OpenStream) -> None:
    """A client that is cut before the first event has lost nothing either."""
    _, response = await open_stream("/a", headers=resuming(f"5-{carrying(UNKNOWN_G, 'seven')}", EVENT_SOURCE))
    await response.read_until(b"\n\n")

    assert f"0-{carrying(response.stream_id, 'seven')}" == response.last_id


async def test_another_sidecar_goes_on_where_the_upstreams_own_id_says(
    open_stream: OpenStream, start: StartSidecar, upstream: Upstream
) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"id: seven\ndata: 1\n\ndata: 2\n\n")
    await response.read_until(b"data: 2\nid: 2-")
    other = await start()

    asking = asyncio.ensure_future(request(port_of(other), "/a", headers=resuming(response.last_id)))
    asked = await upstream.asked()
    await asked.begin()
    again = await asking
    again.close()

    assert ("seven", "new") == (asked.header("last-event-id"), again.sse_status)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
async def test_a_post_stream_that_is_gone_is_410(
    ask: Ask, upstream: Upstream, sidecar: Sidecar, method: str, headers: dict[str, str]
) -> None:
    response = await ask("/a", method=method, headers=resuming(f"1-{UNKNOWN_P}", headers))
    await response.read_to_end()

    assert (410, "application/problem+json") == (response.status, response.header("content-type"))
    assert 410 == json.loads(response.body)["status"]
    assert "no-store" == response.header("cache-control")
    assert [] == upstream.requests
    assert 1 == (await scrape(sidecar))['sse_user_visible_errors_total{code="gone",route="default"}']


async def test_a_get_beyond_the_end_is_a_stream_that_is_not_here(open_stream: OpenStream) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")

    _, again = await open_stream("/a", headers=resuming(f"2-{response.stream_id}"))
    await again.read_until(b"reset")

    assert ("reset", [{"code": "reset"}]) == (again.sse_status, signals(again))
    assert response.stream_id != again.stream_id


async def test_a_post_beyond_the_end_is_410(ended: Ended, ask: Ask) -> None:
    response = await ended(b"data: 1\n\n", **POST)

    again = await ask("/a", headers=resuming(f"2-{response.stream_id}"))

    assert 410 == again.status


# The stream is here and broken


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_broken_stream_replays_what_came_and_then_is_410(
    open_stream: OpenStream, ask: Ask, method: str
) -> None:
    asked, response = await open_stream("/a", **POST)
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    asked.reset()
    await response.read_to_end()

    repeat = {"method": method, "body": b"{}" if method == "POST" else b""}
    before_end = await ask("/a", **repeat, headers=resuming(f"1-{response.stream_id}"))
    await before_end.read_to_end()
    at_end = await ask("/a", **repeat, headers=resuming(f"2-{response.stream_id}"))
    await at_end.read_to_end()

    assert ("resumed", ["2"]) == (before_end.sse_status, datas(before_end))
    assert ([{"code": "upstream-lost"}], False) == (signals(before_end), before_end.whole)
    assert (410, "application/problem+json") == (at_end.status, at_end.header("content-type"))


# Who may resume


DEFAULT_BIND = ["Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Mcp-Session-Id"]


@pytest.mark.parametrize("name", DEFAULT_BIND)
async def test_a_resume_must_bear_the_same_credentials(ended: Ended, ask: Ask, name: str) -> None:
    response = await ended(b"data: 1\n\ndata: 2\n\n", headers={name: "alice"}, **POST)
    token = f"1-{response.stream_id}"

    same = await ask("/a", headers=resuming(token, {name.lower(): "alice"}))
    other = await ask("/a", headers=resuming(token, {name: "mallory"}))
    none = await ask("/a", headers=resuming(token))

    assert [200, 410, 410] == [same.status, other.status, none.status]


@pytest.mark.parametrize("name", DEFAULT_BIND)
async def test_a_stream_without_credentials_is_not_for_who_bears_some(ended: Ended, ask: Ask, name: str) -> None:
    response = await ended(b"data: 1\n\n", **POST)

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", {name: "mallory"}))

    assert 410 == again.status


async def test_one_credential_is_not_taken_for_another(ended: Ended, ask: Ask) -> None:
    response = await ended(b"data: 1\n\n", headers={"X-Api-Key": "secret"}, **POST)

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", {"Api-Key": "secret"}))

    assert 410 == again.status


@with_settings(bind=["X-User"])
async def test_the_operator_says_which_headers_bind(ended: Ended, ask: Ask) -> None:
    response = await ended(b"data: 1\n\n", headers={"X-User": "alice", "Authorization": "one"}, **POST)
    token = f"0-{response.stream_id}"

    same = await ask("/a", headers=resuming(token, {"X-User": "alice", "Authorization": "another"}))
    other = await ask("/a", headers=resuming(token, {"X-User": "mallory", "Authorization": "one"}))

    assert [200, 410] == [same.status, other.status]


POST_HAS_A_ROUTE = {"path": "/a", "methods": ["POST"], "bind": ["X-User"]}


@with_settings(route=[POST_HAS_A_ROUTE])
async def test_what_bound_the_post_binds_the_get_that_resumes_it(ended: Ended, ask: Ask) -> None:
    """Though it is on another route, which binds other headers."""
    response = await ended(b"data: 1\n\n", headers={"X-User": "alice"}, **POST)
    token = f"0-{response.stream_id}"

    same = await ask("/a", headers=resuming(token, {"X-User": "alice"}))
    other = await ask("/a", headers=resuming(token, {"X-User": "mallory"}))

    assert [200, 410] == [same.status, other.status]


@with_settings(route=[POST_HAS_A_ROUTE, {"path": "/a", "methods": ["GET"], "bind": ["X-Other"]}])
async def test_a_header_does_not_stand_for_one_that_binds_on_another_route(ended: Ended, ask: Ask) -> None:
    response = await ended(b"data: 1\n\n", headers={"X-User": "alice"}, **POST)

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", {"X-Other": "alice"}))

    assert 410 == again.status


@with_settings(bind_cookies=["session"])
async def test_the_operator_says_which_cookies_bind(ended: Ended, ask: Ask) -> None:
    response = await ended(b"data: 1\n\n", headers={"Cookie": "a=1; session=alice; b=2"}, **POST)
    token = f"0-{response.stream_id}"

    same = await ask("/a", headers=resuming(token, {"Cookie": "session=alice; a=9"}))
    other = await ask("/a", headers=resuming(token, {"Cookie": "a=1; session=mallory; b=2"}))
    none = await ask("/a", headers=resuming(token, {"Cookie": "a=1; b=2"}))

    assert [200, 410, 410] == [same.status, other.status, none.status]


async def test_cookies_do_not_bind_by_default(ended: Ended, ask: Ask) -> None:
    """A rolling session cookie would break every resume."""
    response = await ended(b"data: 1\n\n", headers={"Cookie": "session=1"}, **POST)

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", {"Cookie": "session=2"}))

    assert 200 == again.status


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        pytest.param("/b?x=1", {}, id="path"),
        pytest.param("/A?x=1", {}, id="case of the path"),
        pytest.param("/%61?x=1", {}, id="bytes of the path"),
        pytest.param("/a", {}, id="no query"),
        pytest.param("/a?x=2", {}, id="query"),
        pytest.param("/a?x=1&y=2", {}, id="one parameter more"),
        pytest.param("/a?x=1", {"Host": "other.test"}, id="host"),
    ],
)
async def test_a_resume_is_for_the_same_host_path_and_query(
    ended: Ended, ask: Ask, target: str, headers: dict[str, str]
) -> None:
    host = {"Host": "service.test"}
    response = await ended(b"data: 1\n\n", "/a?x=1", headers=host, **POST)
    token = f"0-{response.stream_id}"

    same = await ask("/a?x=1", headers=resuming(token, {"Host": "Service.TEST"}))
    other = await ask(target, headers=resuming(token, {**host, **headers}))

    assert [200, 410] == [same.status, other.status]


@with_settings(volatile_query=["t", "a b"])
async def test_volatile_parameters_may_differ(ended: Ended, ask: Ask) -> None:
    response = await ended(b"data: 1\n\n", "/a?t=1&x=1&a%20b=2", **POST)
    token = f"0-{response.stream_id}"

    differing = await ask("/a?x=1&t=2&t=3", headers=resuming(token))
    other = await ask("/a?t=1&x=2&a%20b=2", headers=resuming(token))

    assert [200, 410] == [differing.status, other.status]


MISMATCHES = [
    pytest.param("/b", {"Authorization": "alice"}, id="path"),
    pytest.param("/a?x", {"Authorization": "alice"}, id="query"),
    pytest.param("/a", {"Authorization": "alice", "Host": "other.test"}, id="host"),
    pytest.param("/a", {"Authorization": "mallory"}, id="principal"),
]


@pytest.mark.parametrize(("target", "headers"), MISMATCHES)
async def test_a_post_mismatch_is_answered_like_an_unknown_stream(
    ended: Ended, ask: Ask, target: str, headers: dict[str, str]
) -> None:
    response = await ended(b"data: 1\n\ndata: 2\n\n", headers={"Authorization": "alice"}, **POST)

    async def answer(stream_id: str) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
        got = await ask(target, headers=resuming(f"1-{stream_id}", headers))
        return got.start_line, got.headers, await got.read_to_end()

    assert await answer(UNKNOWN_P) == await answer(response.stream_id)


@pytest.mark.parametrize("upstream_id", ["", "seven"])
@pytest.mark.parametrize(("target", "headers"), MISMATCHES)
async def test_a_get_mismatch_is_answered_like_an_unknown_stream(
    ended: Ended, open_stream: OpenStream, target: str, headers: dict[str, str], upstream_id: str
) -> None:
    own_id = b"id: %b\n" % upstream_id.encode() if upstream_id else b""
    response = await ended(own_id + b"data: 1\n\ndata: 2\n\n", headers={"Authorization": "alice"})

    async def answer(stream_id: str) -> tuple[bytes, list[tuple[bytes, bytes]], bytes, list[tuple[bytes, bytes]]]:
        token = f"1-{carrying(stream_id, upstream_id) if upstream_id else stream_id}"
        asked, got = await open_stream(target, headers=resuming(token, headers))
        await asked.stream(b"data: 1\n\n")
        await asked.end()
        await got.read_to_end()
        fields = [(name, value.replace(got.stream_id.encode(), b"ID")) for name, value in got.headers]
        return got.start_line, fields, got.shown, asked.headers

    assert await answer(UNKNOWN_G) == await answer(response.stream_id)


# A GET stream whose upstream came to a clean end


async def go_on(upstream: Upstream, data: bytes) -> Asked:
    """The upstream's part when it is asked again."""
    asked = await upstream.asked()
    await asked.begin()
    await asked.stream(data)
    return asked


async def test_a_dormant_stream_is_replayed_and_then_the_upstream_asked_again(
    ended: Ended, ask: Ask, upstream: Upstream
) -> None:
    response = await ended(b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n", headers={"X-Mine": "first"})

    again = await ask("/a", headers=resuming(f"1-{response.stream_id}", {"X-Mine": "second"}))
    asked = await go_on(upstream, b"data: 3\n\n")
    await again.read_until(b"id: 3-")

    new_id = again.last_id.removeprefix("3-")
    replayed = f"data: 2\nid: 2-{carrying('ID', 'b')}\n\n".encode()
    assert b"retry: OWN\n" + replayed + f"data: 3\nid: 3-{new_id}\n\n".encode() == again.shown
    assert response.stream_id == again.stream_id != new_id.partition(".")[0]
    assert ("second", ["b"]) == (asked.header("x-mine"), asked.header_all("last-event-id"))
    assert ("resumed", carrying(new_id.partition(".")[0], "b")) == (again.sse_status, new_id)


async def test_what_follows_a_dormant_stream_is_a_stream_of_its_own(ended: Ended, ask: Ask, upstream: Upstream) -> None:
    response = await ended(b"data: 1\n\n")
    second = await ask("/a", headers=resuming(response.last_id))
    asked = await go_on(upstream, b"data: 2\n\n")
    await second.read_until(b"id: 2-")
    second.reset()

    third = await ask("/a", headers=resuming(second.last_id))
    await asked.stream(b"data: 3\n\n")
    await third.read_until(b"id: 3-")

    assert ("resumed", second.last_id[2:], ["3"]) == (third.sse_status, third.stream_id, datas(third))
    assert 2 == len(upstream.requests)


async def test_no_client_gets_what_was_fetched_with_anothers_credentials(
    ended: Ended, ask: Ask, upstream: Upstream
) -> None:
    response = await ended(b"data: 1\n\n")
    one = await ask("/a", headers=resuming(response.last_id, {"Cookie": "one"}))
    await go_on(upstream, b"data: for one\n\n")
    await one.read_until(b"for one\nid: 2-")

    two = await ask("/a", headers=resuming(response.last_id, {"Cookie": "two"}))
    asked = await go_on(upstream, b"data: for two\n\n")
    await two.read_until(b"for two\nid: 2-")

    assert (["for one"], ["for two"], "two") == (datas(one), datas(two), asked.header("cookie"))
    assert one.last_id != two.last_id


@pytest.mark.parametrize(("headers", "data_line"), [(EVENT_SOURCE, ""), (MCP, "data:\n")])
@pytest.mark.parametrize("own_id", ["", "id: a\n"])
async def test_the_client_is_primed_at_the_switch(
    ended: Ended, ask: Ask, upstream: Upstream, *, headers: dict[str, str], data_line: str, own_id: str
) -> None:
    response = await ended(f"{own_id}data: 1\n\n".encode(), headers=headers)

    again = await ask("/a", headers=resuming(response.last_id, headers))
    await go_on(upstream, b"data: 2\n\n")
    await again.read_until(b"id: 2-")

    end = "\n\n" if headers is EVENT_SOURCE else "\n"
    old_id = response.last_id.removeprefix("1-").replace(response.stream_id, "ID")
    new_id = again.last_id.removeprefix("2-")
    opening = f"id: 1-{old_id}\n{data_line}\nretry: OWN{end}"
    assert f"{opening}id: 1-{new_id}\n{data_line}\ndata: 2\nid: 2-{new_id}\n\n".encode() == again.shown
    assert bool(own_id) == ("." in old_id) == ("." in new_id)


async def test_a_client_that_was_cut_right_after_the_switch_resumes_the_new_stream(
    ended: Ended, ask: Ask, upstream: Upstream
) -> None:
    response = await ended(b"data: 1\n\n", headers=EVENT_SOURCE)
    again = await ask("/a", headers=resuming(response.last_id, EVENT_SOURCE))
    asked = await upstream.asked()
    await asked.begin()
    while again.body.count(b"id: 1-") < 2:
        await again.read_some()
    again.reset()

    third = await ask("/a", headers=resuming(again.last_id, EVENT_SOURCE))
    await asked.stream(b"data: 2\n\n")
    await third.read_until(b"id: 2-")

    assert ("resumed", again.last_id[2:], ["2"]) == (third.sse_status, third.stream_id, datas(third))
    assert 2 == len(upstream.requests)


@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
async def test_204_to_the_next_ask_completes_a_dormant_stream(
    ended: Ended, ask: Ask, upstream: Upstream, headers: dict[str, str]
) -> None:
    response = await ended(b"data: 1\n\ndata: 2\n\n", headers=headers)

    again = await ask("/a", headers=resuming(f"1-{response.stream_id}", headers))
    await (await upstream.asked()).respond("204 No Content")
    await again.read_to_end()
    last = await ask("/a", headers=resuming(response.last_id, headers))

    assert (["2"], [], True) == (datas(again), signals(again), again.whole)
    assert (204, 2) == (last.status, len(upstream.requests))


@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("404 Not Found", ()),
        ("401 Unauthorized", ("WWW-Authenticate: Basic",)),
        ("302 Found", ("Location: /login",)),
        ("200 OK", ("Content-Type: text/html",)),
    ],
)
async def test_another_answer_to_the_next_ask_is_final_and_seen_by_the_client_itself(
    ended: Ended, ask: Ask, upstream: Upstream, *, headers: dict[str, str], status: str, fields: tuple[str, ...]
) -> None:
    response = await ended(b"data: 1\n\n", headers=headers)

    again = await ask("/a", headers=resuming(response.last_id, headers))
    await (await upstream.asked()).respond(status, *fields)
    await again.read_to_end()
    last = asyncio.ensure_future(ask("/a", headers=resuming(response.last_id, headers)))
    await (await upstream.asked()).respond(status, *fields)

    assert (200, [{"code": "upstream-lost"}]) == (again.status, signals(again))
    assert (headers is EVENT_SOURCE) == again.whole
    assert (int(status[:3]), 3) == ((await last).status, len(upstream.requests))


async def backing_off(clock: ManualClock) -> float:
    """Waits until the sidecar waits to ask again: the seconds that it waits."""
    await until(lambda: clock.next_in < 10)
    return clock.next_in


only_back_off = with_settings(heartbeat=FAR, connect_timeout=FAR, reconnect_timeout=60)
"""Leaves no other timer within ten seconds."""


@only_back_off
@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        ("", [1, 2, 4, 5, 5]),
        ("retry: 3000\n", [3, 5, 5]),
        ("retry: 7000\n", [7, 7]),
        ("retry: 0100\n", [0.1, 0.2, 0.4]),
    ],
)
async def test_a_failing_upstream_is_asked_again_with_back_off(
    ended: Ended, ask: Ask, upstream: Upstream, clock: ManualClock, *, retry: str, delays: list[float]
) -> None:
    response = await ended(retry.encode() + b"data: 1\n\n")

    again = await ask("/a", headers=resuming(response.last_id))
    jitters = []
    for delay in delays:
        await (await upstream.asked()).respond("503 Service Unavailable")
        waited = await backing_off(clock)
        jitters.append(waited - delay)
        clock.advance(waited + 0.001)
    await go_on(upstream, b"data: 2\n\n")
    await again.read_until(b"id: 2-")

    assert all(-0.001 <= jitter <= 0.101 for jitter in jitters)
    assert len(set(jitters)) == len(jitters)
    assert (["2"], []) == (datas(again), signals(again))


async def test_a_retry_beyond_all_measure_keeps_no_one_from_asking_again(
    ended: Ended, ask: Ask, upstream: Upstream
) -> None:
    response = await ended(b"retry: " + 400 * b"9" + b"\ndata: 1\n\n")

    again = await ask("/a", headers=resuming(response.last_id))
    await go_on(upstream, b"data: 2\n\n")
    await again.read_until(b"id: 2-")

    assert ["2"] == datas(again)


@only_back_off
@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
@pytest.mark.parametrize("listening", [True, False])
async def test_the_upstream_is_asked_again_until_reconnect_timeout(
    ended: Ended, ask: Ask, upstream: Upstream, clock: ManualClock, *, headers: dict[str, str], listening: bool
) -> None:
    """Whether it fails or refuses connections."""
    response = await ended(b"data: 1\n\n", headers=headers)
    upstream.handler = lambda asked: asked.respond("500 Internal Server Error")
    if not listening:
        await upstream.stop()
    since = clock.time()

    again = await ask("/a", headers=resuming(response.last_id, headers))
    reading = asyncio.ensure_future(again.read_to_end())
    await until(lambda: clock.next_in < 10 or reading.done())
    while not reading.done():
        clock.advance(clock.next_in + 0.001)
        await until(lambda: clock.next_in < 10 or reading.done())
    waited = clock.time() - since

    assert 54 <= waited <= 60.1
    assert (200, [{"code": "upstream-lost"}]) == (again.status, signals(again))
    assert (headers is EVENT_SOURCE) == again.whole


@with_settings(heartbeat=FAR, reconnect_timeout=5)
async def test_an_upstream_that_says_nothing_is_waited_for_until_reconnect_timeout(
    ended: Ended, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    response = await ended(b"data: 1\n\n")

    again = await ask("/a", headers=resuming(response.last_id))
    await upstream.asked()
    clock.advance(5)
    await again.read_to_end()

    assert [{"code": "upstream-lost"}] == signals(again)


@with_settings(heartbeat=0.25)
async def test_a_deploy_of_the_upstream_is_bridged_with_heartbeats(
    ended: Ended, ask: Ask, upstream: Upstream, clock: ManualClock
) -> None:
    response = await ended(b"data: 1\n\n", headers=EVENT_SOURCE)
    await upstream.stop()

    again = await ask("/a", headers=resuming(response.last_id, EVENT_SOURCE))
    await again.read_until(b": waiting for upstream\n\n")
    for beats in range(1, 4):
        clock.advance(0.25)
        await again.read_until(beats * b": heartbeat\n\n")
    await upstream.start(upstream.port)
    while len(upstream.requests) < 2:
        clock.advance(0.25)
        await again.read_some()
    await go_on(upstream, b"data: 2\n\n")
    await again.read_until(b"id: 2-")

    beaten = 3 * b": heartbeat\n\n"
    assert again.shown.startswith(b"id: 1-ID\n\nretry: OWN\n\n: waiting for upstream\n\n" + beaten)
    assert (200, ["2"], []) == (again.status, datas(again), signals(again))


async def test_a_client_that_left_while_the_upstream_was_asked_again_leaves_nothing(
    ended: Ended, ask: Ask, upstream: Upstream, sidecar: Sidecar
) -> None:
    response = await ended(b"data: 1\n\n")
    again = await ask("/a", headers=resuming(response.last_id))
    asked = await upstream.asked()
    again.reset()

    await asked.closed()

    await unread(sidecar)
    assert 0 == sidecar.streams.active


# Events that may be missing


@pytest.fixture
def let_go(open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock) -> Ended:
    """A stream whose client left for longer than its upstream was kept."""

    async def letting_go(data: bytes, **kwargs: Any) -> Response:
        asked, response = await open_stream("/a", **kwargs)
        await asked.stream(data)
        await response.read_until(b"id: 2-")
        response.reset()
        await unread(sidecar)
        clock.advance(30)
        await asked.closed()
        return response

    return letting_go


@pytest.fixture
def lost(open_stream: OpenStream) -> Ended:
    """A stream whose upstream was lost before its client's eyes."""

    async def losing(data: bytes, **kwargs: Any) -> Response:
        asked, response = await open_stream("/a", **kwargs)
        await asked.stream(data)
        await response.read_until(b"id: 2-")
        asked.reset()
        await response.read_to_end()
        return response

    return losing


@pytest.fixture(params=["let_go", "lost"])
def holed(request: pytest.FixtureRequest) -> Ended:
    """A stream with two events whose upstream connection is not what it was."""
    opened: Ended = request.getfixturevalue(request.param)
    return opened


@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
async def test_what_follows_a_hole_begins_with_a_gap(
    holed: Ended, ask: Ask, upstream: Upstream, sidecar: Sidecar, headers: dict[str, str]
) -> None:
    """Just before its first event, whatever came before that."""
    response = await holed(b"data: 1\n\ndata: 2\n\n", headers=headers)

    again = await ask("/a", headers=resuming(f"2-{response.stream_id}", headers))
    asked = await upstream.asked()
    await asked.begin()
    await until(lambda: len(sidecar.streams) == 2)
    await asked.stream(b": hi\n\n")
    await again.read_until(b": hi\n")
    said_too_early = signals(again)
    await asked.stream(b"data: 3\n\n")
    await again.read_until(b"id: 3-")

    assert ([], [{"code": "gap", "lost": None}]) == (said_too_early, signals(again))
    assert ("gap", ["3"]) == (again.sse_status, datas(again))
    assert ["sse-sidecar", "message"] == [event.type for event in interpret(again.body).events]


async def test_a_replay_comes_before_the_hole(holed: Ended, ask: Ask, upstream: Upstream) -> None:
    response = await holed(b"data: 1\n\ndata: 2\n\n")

    again = await ask("/a", headers=resuming(f"1-{response.stream_id}"))
    await go_on(upstream, b"data: 3\n\n")
    await again.read_until(b"id: 3-")

    assert "resumed" == again.sse_status
    assert ["message", "sse-sidecar", "message"] == [event.type for event in interpret(again.body).events]


@with_settings(reconnect="never")
async def test_there_is_no_hole_where_the_upstream_gives_ids(holed: Ended, ask: Ask, upstream: Upstream) -> None:
    response = await holed(b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n")

    again = await ask("/a", headers=resuming(f"2-{response.stream_id}"))
    asked = await go_on(upstream, b"data: 3\n\n")
    await again.read_until(b"id: 3-")

    assert ("resumed", [], "b") == (again.sse_status, signals(again), asked.header("last-event-id"))


async def test_an_id_that_the_client_brought_is_none_that_the_upstream_gives(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    asked, response = await open_stream("/a", headers=resuming("of another service"))
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    asked.reset()
    await response.read_to_end()

    again = await ask("/a", headers=resuming(response.last_id))
    await go_on(upstream, b"data: 2\n\n")
    await again.read_until(b"id: 2-")

    assert ("gap", [{"code": "gap", "lost": None}]) == (again.sse_status, signals(again))


async def test_a_hole_is_told_to_who_resumes_after_it_as_well(holed: Ended, ask: Ask, upstream: Upstream) -> None:
    response = await holed(b"data: 1\n\ndata: 2\n\n")
    again = await ask("/a", headers=resuming(f"2-{response.stream_id}"))
    await go_on(upstream, b"data: 3\n\n")
    await again.read_until(b"id: 3-")

    last = await ask("/a", headers=resuming(again.last_id.replace("3-", "2-")))
    await last.read_until(b"id: 3-")

    assert ("gap", [{"code": "gap", "lost": None}]) == (last.sse_status, signals(last))


async def test_a_hole_is_not_forgotten_over_a_connection_that_brought_no_event(
    holed: Ended, ask: Ask, upstream: Upstream
) -> None:
    response = await holed(b"data: 1\n\ndata: 2\n\n", headers=EVENT_SOURCE)
    empty = await ask("/a", headers=resuming(f"2-{response.stream_id}", EVENT_SOURCE))
    await (await go_on(upstream, b": nothing\n\n")).end()
    await empty.read_to_end()

    again = await ask("/a", headers=resuming(empty.last_id, EVENT_SOURCE))
    await go_on(upstream, b"data: 3\n\n")
    await again.read_until(b"id: 3-")

    assert ("gap", [{"code": "gap", "lost": None}]) == (again.sse_status, signals(again))


# How an answer ends


@pytest.mark.parametrize(
    ("opened_by", "whole"),
    [({}, False), ({"headers": PAGE}, False), (POST, False), ({"headers": EVENT_SOURCE}, True)],
    ids=["GET", "page", "POST", "EventSource"],
)
@pytest.mark.parametrize("garbage", [b"", b"no chunk\r\n"], ids=["reset", "broken framing"])
async def test_a_stream_that_was_lost_ends_with_a_signal_and_unfinished(
    *,
    open_stream: OpenStream,
    sidecar: Sidecar,
    clock: ManualClock,
    opened_by: dict[str, Any],
    whole: bool,
    garbage: bytes,
) -> None:
    """The terminating chunk would say "complete" to fetch clients; an EventSource comes back whatever it says."""
    asked, response = await open_stream("/a", **opened_by)
    await asked.stream(b"data: 1\n\ndata: half")
    await response.read_until(b"id: 1-")
    if garbage:
        await asked.send(garbage)
    else:
        asked.reset()
    await read_to_the_cut(response, clock)

    assert (["1"], [{"code": "upstream-lost"}], whole) == (datas(response), signals(response), response.whole)
    assert 1 == (await scrape(sidecar))['sse_user_visible_errors_total{code="upstream-lost",route="default"}']


@pytest.mark.parametrize("opened_by", [{}, {"headers": PAGE}, POST, {"headers": EVENT_SOURCE}])
async def test_a_clean_end_is_handed_on_as_one(open_stream: OpenStream, opened_by: dict[str, Any]) -> None:
    asked, response = await open_stream("/a", **opened_by)
    await asked.stream(b"data: 1\n\ndata: never ended")
    await asked.end()
    await response.read_to_end()

    assert (["1"], [], True) == (datas(response), signals(response), response.whole)
    assert b"never" not in response.body


@pytest.mark.parametrize(
    ("framing", "cut", "whole"),
    [
        ("", False, True),
        ("", True, False),
        ("Content-Length: 9\r\n", False, True),
        ("Content-Length: 10\r\n", False, False),
    ],
    ids=["until close", "until reset", "whole length", "short of its length"],
)
async def test_the_upstreams_framing_says_whether_its_end_is_clean(
    ask: Ask, upstream: Upstream, framing: str, cut: bool, whole: bool
) -> None:
    asking = asyncio.ensure_future(ask("/a"))
    asked = await upstream.asked()
    await asked.send(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\ndata: 1\n\n".encode())
    response = await asking
    await response.read_until(b"id: 1-")
    asked.reset() if cut else asked.close()
    await response.read_to_end()

    assert (["1"], whole, not whole) == (datas(response), response.whole, bool(signals(response)))


# Not now


def is_later(response: Response) -> bool:
    """An empty stream, or a problem document, that says when to try again."""
    retry = re.fullmatch(rb"retry: (\d+)\n\n", response.body)
    if response.status == 200 and retry:
        return 2000 <= int(retry[1]) <= 5000 and response.whole
    problem = response.header("content-type") == "application/problem+json"
    return response.status == 503 and problem and 1 <= int(response.header("retry-after") or 0) <= 5


LATER = [(EVENT_SOURCE, 200), (CURL, 503), (PAGE, 503), (FETCH_EVENT_SOURCE, 503), (MCP, 503)]


@with_settings(max_streams=1)
@pytest.mark.parametrize(("headers", "status"), LATER)
async def test_over_max_streams_it_is_later(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, *, headers: dict[str, str], status: int
) -> None:
    await open_stream("/a")

    headers = {**headers, "Accept": "text/event-stream"}
    response = await ask("/b", headers=headers)
    await response.read_to_end()

    assert (status, True) == (response.status, is_later(response))
    assert 1 == len(upstream.requests)
    assert 1 == (await scrape(sidecar))['sse_user_visible_errors_total{code="max_streams",route="default"}']


@with_settings(max_streams=1)
async def test_a_opened_bythat_does_not_say_that_it_wants_a_stream_is_told_later_when_it_would_get_one(
    open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    await open_stream("/a")

    asking = asyncio.ensure_future(ask("/b", headers=SDK, **POST))
    asked = await upstream.asked()
    await asked.begin()
    response = await asking
    await response.read_to_end()
    await asked.closed()

    assert is_later(response)


@with_settings(max_streams=1)
async def test_what_is_no_stream_is_not_limited(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await open_stream("/a")

    asking = asyncio.ensure_future(ask("/b", headers=SDK))
    await (await upstream.asked()).respond("200 OK", "Content-Type: application/json", body=b"{}")

    assert 200 == (await asking).status


@with_settings(max_streams=1)
async def test_histories_alone_are_within_max_streams(ended: Ended, open_stream: OpenStream) -> None:
    await ended(b"data: 1\n\n", **POST)
    await ended(b"data: 1\n\n")

    _, response = await open_stream("/a")

    assert "new" == response.sse_status


@with_settings(max_streams=1)
@pytest.mark.parametrize("opened_by", [{}, POST], ids=["dormant", "complete"])
async def test_a_history_that_is_read_counts_as_a_stream(
    ended: Ended, open_stream: OpenStream, ask: Ask, opened_by: dict[str, Any]
) -> None:
    held = await ended(b"data: 1\n\ndata: 2\n\n", **opened_by)
    await open_stream("/b")

    response = await ask("/a", headers=resuming(f"1-{held.stream_id}", EVENT_SOURCE))
    await response.read_until(b"\n\n")
    await response.read_some()

    assert is_later(response)


@with_settings(max_readers=1)
@pytest.mark.parametrize(("headers", "status"), [(EVENT_SOURCE, 200), (CURL, 503)])
async def test_over_max_readers_it_is_later_for_new_streams_and_resumes(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar, *, headers: dict[str, str], status: int
) -> None:
    _, response = await open_stream("/a")

    new = await ask("/b", headers={**headers, "Accept": "text/event-stream"})
    resumed = await ask("/a", headers=resuming(f"0-{response.stream_id}", headers))

    for later in (new, resumed):
        await later.read_to_end()
        assert (status, True) == (later.status, is_later(later))
    assert 1 == len(upstream.requests)
    assert 2 == (await scrape(sidecar))['sse_user_visible_errors_total{code="max_readers",route="default"}']


@with_settings(max_readers=1)
async def test_a_client_that_waits_for_the_upstream_counts_as_a_reader(
    ended: Ended, ask: Ask, upstream: Upstream
) -> None:
    """In an outage, all of them wait."""
    response = await ended(b"data: 1\n\n")
    await ask("/a", headers=resuming(response.last_id))
    await upstream.asked()

    one_more = await ask("/a", headers=resuming(response.last_id, EVENT_SOURCE))
    await one_more.read_until(b"\n\n")
    await one_more.read_some()

    assert is_later(one_more)


@with_settings(max_readers=1)
async def test_who_was_told_later_is_let_in_when_there_is_room(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar
) -> None:
    _, response = await open_stream("/a")
    response.reset()
    await unread(sidecar)

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", EVENT_SOURCE))

    assert "resumed" == again.sse_status


# An upstream that does not answer


Failing = Callable[[Asked], Any]
FAILURES = [
    pytest.param(lambda asked: asked.send(b"SSH-2.0-OpenSSH_9.6\r\n"), 502, id="no HTTP"),
    pytest.param(lambda asked: asked.send(b"HTTP/1.1 200 OK\r\nContent-Le"), 502, id="half a head"),
    pytest.param(lambda asked: asked.send(b""), 502, id="nothing"),
]


@pytest.mark.parametrize(("answer", "status"), FAILURES)
@pytest.mark.parametrize("headers", [CURL, PAGE, EVENT_SOURCE])
async def test_an_upstream_that_does_not_answer_properly_is_a_problem_document_or_later(
    ask: Ask, upstream: Upstream, headers: dict[str, str], answer: Failing, status: int
) -> None:
    upstream.handler = answer

    response = await ask("/a", headers=headers)
    await response.read_to_end()

    assert_unreachable(response, headers, status, upstream)


@pytest.mark.parametrize("headers", [CURL, PAGE, EVENT_SOURCE])
async def test_an_upstream_that_refuses_is_a_problem_document_or_later(
    ask: Ask, upstream: Upstream, headers: dict[str, str]
) -> None:
    await upstream.stop()

    response = await ask("/a", headers=headers)
    await response.read_to_end()

    assert_unreachable(response, headers, 502, upstream)


@pytest.mark.parametrize("headers", [CURL, PAGE, EVENT_SOURCE])
async def test_an_upstream_that_answers_too_late_is_a_problem_document_or_later(
    ask: Ask, upstream: Upstream, clock: ManualClock, headers: dict[str, str]
) -> None:
    asking = asyncio.ensure_future(ask("/a", headers=headers))
    asked = await upstream.asked()
    clock.advance(300)
    response = await asking
    await response.read_to_end()
    await asked.closed()

    assert_unreachable(response, headers, 504, upstream)


@pytest.mark.parametrize("headers", [CURL, PAGE, EVENT_SOURCE])
async def test_an_upstream_that_takes_no_connection_is_a_problem_document_or_later(
    start: StartSidecar, upstream: Upstream, clock: ManualClock, full: str, headers: dict[str, str]
) -> None:
    sidecar = await start(upstream=full, connect_timeout=7)
    asking = asyncio.ensure_future(request(port_of(sidecar), "/a", headers=headers))
    await until(lambda: clock.next_in <= 7)
    clock.advance(7)
    response = await asking
    await response.read_to_end()
    response.close()

    assert_unreachable(response, headers, 504, upstream)


@pytest.fixture
def full() -> Iterator[str]:
    """A port whose queue of connections is full, so that the next one waits."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def assert_unreachable(response: Response, headers: dict[str, str], status: int, upstream: Upstream) -> None:
    if headers is EVENT_SOURCE:
        assert (200, True) == (response.status, is_later(response))
    else:
        assert (status, "application/problem+json") == (response.status, response.header("content-type"))
        assert "no-store" == response.header("cache-control")
    said = repr(response.headers) + repr(response.body)
    assert str(upstream.port) not in said
    assert "127.0.0.1" not in said


@pytest.mark.parametrize("headers", [CURL, EVENT_SOURCE])
async def test_nothing_is_written_before_the_upstream_has_answered(
    ask: Ask, upstream: Upstream, clock: ManualClock, headers: dict[str, str]
) -> None:
    """A heartbeat would turn its 401 into a 200."""
    asking = asyncio.ensure_future(ask("/a", headers=headers))
    asked = await upstream.asked()
    clock.advance(290)
    await asked.respond("401 Unauthorized", body=b"who?")
    response = await asking

    assert b"HTTP/1.1 401 Unauthorized" == response.start_line
    assert b"who?" == await response.read_to_end()


# Reconnection time


def own_retry(response: Response) -> int:
    found = re.search(rb"^retry: (\d+)$", response.body, re.MULTILINE)
    assert found
    return int(found[1])


async def test_the_reconnection_time_doubles_with_each_resume_within_a_minute(
    open_stream: OpenStream, ask: Ask, clock: ManualClock
) -> None:
    _, response = await open_stream("/a", headers=EVENT_SOURCE)
    await response.read_until(b"retry: ")

    async def resumed_after(seconds: float) -> int:
        clock.advance(seconds)
        again = await ask("/a", headers=resuming(f"0-{response.stream_id}", EVENT_SOURCE))
        await again.read_until(b"retry: ")
        return own_retry(again)

    times = [own_retry(response), *[await resumed_after(seconds) for seconds in (0, 1, 1, 1, 59.9, 61, 0)]]

    jitters = [time - base for time, base in zip(times, (1000, 2000, 4000, 5000, 5000, 4000, 2000, 4000), strict=True)]
    assert all(0 <= jitter <= 100 for jitter in jitters), times


async def test_the_jitter_differs(open_stream: OpenStream) -> None:
    jitters = set()
    for _ in range(20):
        _, response = await open_stream("/a")
        await response.read_until(b"retry: ")
        jitters.add(own_retry(response))

    assert len(jitters) > 1


async def test_the_upstreams_reconnection_time_is_sent_at_once_and_to_every_later_connection(
    open_stream: OpenStream, ask: Ask
) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"retry: 3\n\nretry: 0042\n\nretry: +7\n\ndata: 1\n\n")
    await response.read_until(b"id: 1-")

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", PAGE))
    await again.read_until(b"id: 1-")

    assert b"retry: OWN\nretry: 3\nretry: 0042\nretry: +7\ndata: 1\nid: 1-ID\n\n" == response.shown
    assert b"retry: 0042\n\ndata: 1\nid: 1-ID\n\n" == again.shown


async def test_a_reconnection_time_within_an_event_stays_there_and_counts(open_stream: OpenStream, ask: Ask) -> None:
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\nretry: 70000\ndata: 2\n\n")
    await response.read_until(b"id: 1-")

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}"))
    await again.read_until(b"id: 1-")

    assert b"retry: 70000\ndata: 1\nretry: 70000\ndata: 2\nid: 1-ID\n\n" == again.shown


# Dialects and priming


LINE = b"retry: OWN\n: hi\n: heartbeat\nretry: 70000\n: heartbeat\ndata: 1\nid: 1-ID\n\n"
BLOCK = b"retry: OWN\n\n: hi\n\n: heartbeat\n\nretry: 70000\n\n: heartbeat\n\ndata: 1\nid: 1-ID\n\n"

PRIMED = b"id: 0-ID\n\n"
PRIMED_WITH_DATA = b"id: 0-ID\ndata:\n\n"

AS_SPOKEN_TO = [
    pytest.param({}, EVENT_SOURCE, PRIMED + BLOCK, id="EventSource"),
    pytest.param(
        {}, {"Accept": "Text/Event-Stream", "Cache-Control": "No-Cache"}, PRIMED + BLOCK, id="like EventSource"
    ),
    pytest.param({}, PAGE, BLOCK, id="page code"),
    pytest.param({}, {"Sec-Fetch-Dest": "empty"}, BLOCK, id="page code by Sec-Fetch-Dest"),
    pytest.param({}, {**PAGE, "Accept": "text/event-stream, */*"}, BLOCK, id="page code that accepts more"),
    pytest.param({}, FETCH_EVENT_SOURCE, LINE, id="fetch-event-source"),
    pytest.param({}, NODE_FETCH, LINE, id="fetch of Node"),
    pytest.param({}, CURL, LINE, id="curl"),
    pytest.param({}, {"Accept": "text/event-stream", "Cache-Control": "no-store"}, LINE, id="httpx-sse"),
    pytest.param(
        {}, {**EVENT_SOURCE, "Cache-Control": "max-age=0", "User-Agent": "x"}, LINE, id="another Cache-Control"
    ),
    pytest.param({}, SDK, LINE, id="SDK"),
    pytest.param(POST, SDK, LINE, id="SDK by POST"),
    pytest.param(POST, PAGE, BLOCK, id="page code by POST"),
    pytest.param(POST, {**EVENT_SOURCE, "User-Agent": "x"}, LINE, id="POST that asks like EventSource"),
    pytest.param({}, MCP, PRIMED_WITH_DATA + LINE, id="MCP"),
    pytest.param(POST, MCP, PRIMED_WITH_DATA + LINE, id="MCP by POST"),
    pytest.param({}, {**MCP, "MCP-Protocol-Version": "2025-06-18"}, LINE, id="older MCP"),
    pytest.param({}, {**MCP, "MCP-Protocol-Version": "2026-01-01"}, LINE, id="MCP between the two"),
]


@pytest.mark.parametrize(("opened_by", "headers", "expected"), AS_SPOKEN_TO)
async def test_each_client_is_spoken_to_in_its_dialect(
    open_stream: OpenStream, clock: ManualClock, opened_by: dict[str, Any], headers: dict[str, str], expected: bytes
) -> None:
    assert expected == await speak(open_stream, clock, headers=headers, **opened_by)


async def speak(open_stream: OpenStream, clock: ManualClock, **kwargs: Any) -> bytes:
    """What a client gets for a comment, a heartbeat, a reconnection time, another heartbeat and an event."""
    asked, response = await open_stream("/a", **kwargs)
    for data, last in ((b": hi\n\n", b": hi\n"), (b"retry: 70000\n\n", b"70000\n")):
        await asked.stream(data)
        await response.read_until(last)
        clock.advance(10)
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"id: 1-")
    return response.shown


@with_settings(dialect="block")
@pytest.mark.parametrize("headers", [CURL, FETCH_EVENT_SOURCE])
async def test_the_operator_may_choose_the_block_dialect(
    open_stream: OpenStream, clock: ManualClock, headers: dict[str, str]
) -> None:
    assert BLOCK == await speak(open_stream, clock, headers=headers)


@with_settings(dialect="line")
@pytest.mark.parametrize(("headers", "priming"), [(PAGE, b""), (EVENT_SOURCE, PRIMED)])
async def test_the_operator_may_choose_the_line_dialect(
    open_stream: OpenStream, clock: ManualClock, headers: dict[str, str], priming: bytes
) -> None:
    assert priming + LINE == await speak(open_stream, clock, headers=headers)


@pytest.mark.parametrize(("headers", "opening"), [(CURL, b"retry: OWN\n"), (PAGE, b"retry: OWN\n\n")])
async def test_a_block_of_fields_without_data_is_sent_on_as_it_is_and_not_kept(
    open_stream: OpenStream, ask: Ask, headers: dict[str, str], opening: bytes
) -> None:
    asked, response = await open_stream("/a", headers=headers)
    await asked.stream(b"event: ping\nx: y\n\ndata: 1\n\n")
    await response.read_until(b"id: 1-")

    again = await ask("/a", headers=resuming(f"0-{response.stream_id}", headers))
    await again.read_until(b"id: 1-")

    assert opening + b"event: ping\nx: y\n\ndata: 1\nid: 1-ID\n\n" == response.shown
    assert opening + b"data: 1\nid: 1-ID\n\n" == again.shown


@pytest.mark.parametrize(("headers", "data_line"), [(EVENT_SOURCE, b""), (MCP, b"data:\n")])
async def test_a_resume_is_primed_with_the_id_it_came_with(
    open_stream: OpenStream, ask: Ask, headers: dict[str, str], data_line: bytes
) -> None:
    asked, response = await open_stream("/a", headers=headers)
    await asked.stream(b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n")
    await response.read_until(b"data: 2\nid: 2-")
    first_id = f"1-{carrying(response.stream_id, 'a')}"

    again = await ask("/a", headers=resuming(first_id, headers))
    await again.read_until(b"data: 2\nid: 2-")

    assert again.body.startswith(f"id: {first_id}\n".encode() + data_line + b"\nretry: ")


# MCP without resumption


@pytest.mark.parametrize("version", ["2026-07-28", "2027-01-01"])
async def test_mcp_without_resumption_is_relayed_as_it_is(
    ask: Ask, upstream: Upstream, clock: ManualClock, version: str
) -> None:
    token = f"1-{UNKNOWN_P}"
    headers = resuming(token, {"MCP-Protocol-Version": version, "Accept": "application/json, text/event-stream"})
    asking = asyncio.ensure_future(ask(f"/mcp?last_event_id={token}", headers=headers, **POST))
    asked = await upstream.asked()
    await asked.begin("Cache-Control: no-cache")
    response = await asking
    body = b": hi\r\n\r\nid: their own\r\ndata: 1\r\n\r\ndata: half"
    await asked.stream(body)
    await response.read_until(b"half")
    clock.advance(100)
    await asked.end()
    await response.read_to_end()

    assert (f"/mcp?last_event_id={token}", token) == (asked.target, asked.header("last-event-id"))
    assert (body, True, ["no-cache"]) == (response.body, response.whole, response.header_all("cache-control"))
    assert [] == [name for name, _ in response.headers if name.lower().startswith(b"sse-")]


async def test_leaving_mcp_without_resumption_cancels(ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/mcp", headers={"MCP-Protocol-Version": "2026-07-28"}, **POST))
    asked = await upstream.asked()
    await asked.begin()
    (await asking).reset()

    await asked.closed()
