"""`authorize`: the service is asked before a client is sent what is held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Response, Upstream, scrape, unread

USER = {"Authorization": "Bearer u", "Cookie": "session=1"}

Resume = Callable[..., Awaitable[tuple[Response, Asked]]]

authorized = with_settings(authorize="/me?for=sse")


@pytest.fixture
def resume(ask: Ask, upstream: Upstream) -> Resume:
    """Sends a request that the service is asked about, and lets it answer with a status."""

    async def resuming(status: str, *args: object, **kwargs: object) -> tuple[Response, Asked]:
        asking = asyncio.ensure_future(ask(*args, **kwargs))
        question = await upstream.asked()
        await question.respond(status)
        return await asking, question

    return resuming


async def left(open_stream: OpenStream, sidecar: Sidecar, method: str = "POST") -> tuple[Asked, Response]:
    """A stream with two events, whose reader has left."""
    asked, response = await open_stream("/chat", method=method, headers=USER)
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"data: 2")
    response.close()
    await unread(sidecar)
    return asked, response


def back(response: Response, seq: int = 1) -> dict[str, str]:
    return {**USER, "Last-Event-ID": f"{seq}-{response.stream_id}"}


@authorized
async def test_the_service_is_asked_with_the_clients_own_headers(
    open_stream: OpenStream, resume: Resume, sidecar: Sidecar
) -> None:
    _, response = await left(open_stream, sidecar)
    forged = {"X-Original-URI": "/public", "X-Original-Method": "HEAD"}
    again, question = await resume("204 No Content", "/chat", headers={**back(response), "Range": "bytes=1-", **forged})
    await again.read_until(b"data: 2")

    assert ("GET", "/me?for=sse") == (question.method, question.target)
    assert ("Bearer u", "session=1") == (question.header("authorization"), question.header("cookie"))
    assert (["GET"], ["/chat"]) == (question.header_all("x-original-method"), question.header_all("x-original-uri"))
    assert (None, None) == (question.header("last-event-id"), question.header("range"))
    assert ("resumed", False) == (again.sse_status, b"data: 1" in again.body)


@authorized
async def test_the_first_request_is_not_asked_about(open_stream: OpenStream, upstream: Upstream) -> None:
    """The service sees it itself."""
    await open_stream("/chat", headers=USER)

    assert ["/chat"] == [asked.target for asked in upstream.requests]


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "302 Found"])
@authorized
async def test_a_session_that_was_revoked_replays_nothing_of_a_post(
    open_stream: OpenStream, ask: Ask, resume: Resume, sidecar: Sidecar, status: str
) -> None:
    """As a stream that is not here: nothing tells the two apart."""
    _, response = await left(open_stream, sidecar)
    revoked, _ = await resume(status, "/chat", headers=back(response))
    not_here = await ask("/chat", headers={**USER, "Last-Event-ID": "1-p" + "A" * 22})

    assert (410, await revoked.read_to_end()) == (not_here.status, await not_here.read_to_end())
    assert [name for name, _ in revoked.headers] == [name for name, _ in not_here.headers]


@authorized
async def test_a_session_that_was_revoked_gets_the_services_own_answer_to_a_get(
    open_stream: OpenStream, ask: Ask, upstream: Upstream, sidecar: Sidecar
) -> None:
    _, response = await left(open_stream, sidecar, "GET")
    asking = asyncio.ensure_future(ask("/chat", headers=back(response)))
    await (await upstream.asked()).respond("403 Forbidden")
    own = await upstream.asked()
    await own.respond("401 Unauthorized", body=b"who are you")
    again = await asking

    assert "/chat" == own.target
    assert (401, b"who are you") == (again.status, await again.read_to_end())


@authorized
async def test_the_answer_is_asked_for_each_time(
    open_stream: OpenStream, resume: Resume, sidecar: Sidecar, upstream: Upstream
) -> None:
    _, response = await left(open_stream, sidecar)
    statuses = [(await resume("200 OK", "/chat", headers=back(response)))[0].status]
    statuses.append((await resume("401 Unauthorized", "/chat", headers=back(response)))[0].status)

    assert [200, 410] == statuses


@with_settings(authorize="/me", authorize_ttl=60)
async def test_a_yes_is_taken_for_as_long_as_the_route_says(
    open_stream: OpenStream, ask: Ask, resume: Resume, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, response = await left(open_stream, sidecar)
    await resume("200 OK", "/chat", headers=back(response))
    clock.advance(59)
    within = await ask("/chat", headers=back(response))
    other_cookie, _ = await resume("401 Unauthorized", "/chat", headers={**back(response), "Cookie": "session=2"})
    other_header, _ = await resume("401 Unauthorized", "/chat", headers={**back(response), "X-Session": "2"})
    clock.advance(2)
    after, _ = await resume("401 Unauthorized", "/chat", headers=back(response))

    assert [200, 410, 410, 410] == [within.status, other_cookie.status, other_header.status, after.status]


@with_settings(authorize="/me", authorize_ttl=60)
async def test_a_no_is_not_remembered(open_stream: OpenStream, resume: Resume, sidecar: Sidecar) -> None:
    _, response = await left(open_stream, sidecar)
    refused, _ = await resume("401 Unauthorized", "/chat", headers=back(response))
    again, _ = await resume("200 OK", "/chat", headers=back(response))

    assert [410, 200] == [refused.status, again.status]


@authorized
async def test_a_service_that_fails_says_neither_yes_nor_no(
    open_stream: OpenStream, resume: Resume, sidecar: Sidecar
) -> None:
    """A page is to come back; what is held stays held."""
    _, response = await left(open_stream, sidecar)
    plain, _ = await resume("503 Service Unavailable", "/chat", headers=back(response))
    page, _ = await resume("500 Oops", "/chat", headers={**EVENT_SOURCE, **back(response)})
    await page.read_to_end()
    again, _ = await resume("200 OK", "/chat", headers=back(response))

    assert (502, 200, b"retry: ", 200) == (plain.status, page.status, page.body[:7], again.status)
    assert b"data" not in page.body


@authorized
async def test_a_service_that_does_not_answer_is_not_waited_for_longer_than_for_a_connection(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, upstream: Upstream, clock: ManualClock
) -> None:
    _, response = await left(open_stream, sidecar)
    asking = asyncio.ensure_future(ask("/chat", headers=back(response)))
    question = await upstream.asked()
    clock.advance(10)
    again = await asking
    await question.closed()

    assert 504 == again.status
    assert 1 == (await scrape(sidecar))['sse_user_visible_errors_total{code="504",route="default"}']


@authorized
async def test_what_is_over_is_not_told_to_one_who_was_revoked(
    open_stream: OpenStream, resume: Resume, sidecar: Sidecar
) -> None:
    asked, response = await left(open_stream, sidecar)
    await asked.end()
    allowed, _ = await resume("200 OK", "/chat", headers=back(response, 2))
    revoked, _ = await resume("401 Unauthorized", "/chat", headers=back(response, 2))

    assert [204, 410] == [allowed.status, revoked.status]


@with_settings(mode="shared", authorize="/me")
async def test_a_shared_stream_is_joined_by_those_who_may(
    open_stream: OpenStream, ask: Ask, resume: Resume, upstream: Upstream
) -> None:
    asked, response = await open_stream("/ticker", headers=USER)
    joined, question = await resume("200 OK", "/ticker", headers=USER)
    await asked.stream(b"data: 1\n\n")
    await joined.read_until(b"data: 1")
    asking = asyncio.ensure_future(ask("/ticker", headers=USER))
    await (await upstream.asked()).respond("403 Forbidden")
    await (await upstream.asked()).respond("403 Forbidden", body=b"no")
    refused = await asking

    assert ("/me", response.stream_id) == (question.target, joined.stream_id)
    assert (403, b"no") == (refused.status, await refused.read_to_end())


@authorized
async def test_a_repeated_post_is_joined_by_those_who_may(
    open_stream: OpenStream, ask: Ask, resume: Resume, upstream: Upstream
) -> None:
    keyed = {**USER, "Idempotency-Key": "k"}
    _, response = await open_stream("/chat", method="POST", headers=keyed, body=b"1")
    joined, question = await resume("200 OK", "/chat", method="POST", headers=keyed, body=b"1")

    assert ("/me?for=sse", response.stream_id) == (question.target, joined.stream_id)
    assert (None, "POST") == (question.header("content-length"), question.header("x-original-method"))


@authorized
async def test_other_requests_are_not_asked_about(ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/page", headers=USER))
    asked = await upstream.asked()
    await asked.respond("200 OK")
    await asking

    assert "/page" == asked.target
