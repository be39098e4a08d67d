"""The sidecar's own paths on the main port: a stream's state, its stop, who may ask for either; the browser client."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from typing import Any

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, Connect, OpenStream, with_settings
from tests.harness import TIMEOUT, ManualClock, Response, Upstream, until
from tests.together import HOST, all_gone, data_of, request_of, signals_of

PREFIX = "/.well-known/sse-sidecar"
UNKNOWN = "gAAAAAAAAAAAAAAAAAAAAAA"
OWN = {"Host": HOST, "Authorization": "Bearer a"}
FOREIGN = {"Host": HOST, "Authorization": "Bearer b"}

shared = with_settings(mode="shared")


def path_of(stream_id: str) -> str:
    return f"{PREFIX}/streams/{stream_id}"


async def state(ask: Ask, stream_id: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    response = await ask(path_of(stream_id), headers=headers)
    found: dict[str, Any] = json.loads(await response.read_to_end())
    return found


async def stop(ask: Ask, stream_id: str, headers: dict[str, str] | None = None) -> int:
    return (await ask(path_of(stream_id), method="DELETE", headers=headers)).status


# The state


async def test_a_streams_state_is_told(sidecar: Sidecar, clock: ManualClock, ask: Ask, open_stream: OpenStream) -> None:
    asked, client = await open_stream("/a")
    fresh = await state(ask, client.stream_id)
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await client.read_until(b"\nid: 2-")
    read = await state(ask, client.stream_id)
    client.close()
    await all_gone(sidecar)
    left = await state(ask, client.stream_id)
    clock.advance(30)
    asleep = await state(ask, client.stream_id)

    live = {"id": client.stream_id, "state": "live", "first": 1, "last": 0, "readers": 1, "complete": False}
    assert live == fresh
    assert {**live, "last": 2} == read
    assert {**live, "last": 2, "readers": 0} == left
    assert {**live, "last": 2, "readers": 0, "state": "dormant"} == asleep


@pytest.mark.parametrize(("mark", "complete"), [(b"data: [DONE]\n\n", True), (b"data: 1\n\n", False)])
async def test_the_state_says_whether_a_stream_is_over(
    ask: Ask, open_stream: OpenStream, mark: bytes, complete: bool
) -> None:
    asked, client = await open_stream("/a")
    await asked.stream(mark)
    await asked.end()
    await client.read_to_end()
    told = await state(ask, client.stream_id)

    assert ("complete" if complete else "dormant", complete) == (told["state"], told["complete"])


async def test_the_state_of_a_stream_that_broke(ask: Ask, open_stream: OpenStream) -> None:
    asked, client = await open_stream("/a", method="POST")
    asked.reset()
    await client.read_to_end()

    assert "broken" == (await state(ask, client.stream_id))["state"]


async def test_the_state_of_a_stream_whose_upstream_is_being_asked_again(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    asked, client = await open_stream("/a")
    await asked.stream(b"id: 1\ndata: 1\n\n")
    await client.read_until(b"\nid: 1-")
    asked.reset()
    await client.read_until(b": waiting")

    assert "reconnecting" == (await state(ask, client.stream_id))["state"]


async def test_the_state_is_json_that_no_one_keeps(ask: Ask, open_stream: OpenStream) -> None:
    _, client = await open_stream("/a")
    got = await ask(path_of(client.stream_id))
    head = await ask(path_of(client.stream_id), method="HEAD", headers={"Connection": "close"})

    assert (200, "application/json", "no-store") == (
        got.status,
        got.header("content-type"),
        got.header("cache-control"),
    )
    assert got.header("content-length") == str(len(await got.read_to_end()))
    assert [(name, value) for name, value in got.headers if name != b"Connection"] == [
        (name, value) for name, value in head.headers if name != b"Connection"
    ]
    assert b"" == await head.reader.read()


@pytest.mark.parametrize("query", ["", "?", "?t=1"])
async def test_a_query_means_nothing_here(ask: Ask, open_stream: OpenStream, query: str) -> None:
    _, client = await open_stream("/a")

    assert 200 == (await ask(path_of(client.stream_id) + query)).status


# Who may ask


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
async def test_a_foreign_stream_cannot_be_told_from_none(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream, method: str
) -> None:
    asked, client = await open_stream("/a", headers=OWN)
    answers = []
    for headers in ({**FOREIGN, "Connection": "close"}, {"Host": HOST, "Connection": "close"}):
        for stream_id in (client.stream_id, UNKNOWN):
            answer = await ask(path_of(stream_id), method=method, headers=headers)
            answers.append((answer.start_line, answer.headers, await answer.reader.read()))
    await asked.stream(b"data: 1\n\n")
    await client.read_until(b"\nid: 1-")

    assert b"HTTP/1.1 404 Not Found" == answers[0][0]
    assert (b"Cache-Control", b"no-store") in answers[0][1]
    assert [answers[0]] * 4 == answers
    assert ["1"] == data_of(client)


@pytest.mark.parametrize(
    "path",
    [
        PREFIX + "/",
        PREFIX + "/streams",
        PREFIX + "/streams/",
        PREFIX + "/streams/ID/",
        PREFIX + "/stream/ID",
        PREFIX + "/ID",
        PREFIX + "/streams/ID/x",
    ],
)
async def test_other_paths_here_are_no_ones(upstream: Upstream, ask: Ask, open_stream: OpenStream, path: str) -> None:
    _, client = await open_stream("/a")
    found = await ask(path.replace("ID", client.stream_id))

    assert (404, "no-store") == (found.status, found.header("cache-control"))
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Mcp-Session-Id"])
async def test_the_principal_is_that_of_the_request_that_opened_the_stream(
    ask: Ask, open_stream: OpenStream, name: str
) -> None:
    """Whatever its path and host were: a page asks from wherever it is."""
    _, client = await open_stream("/a?x=1", headers={"Host": "a.test", name: "a"})
    statuses = [
        (await ask(path_of(client.stream_id), headers={"Host": "b.test", **headers})).status
        for headers in ({name: "a"}, {name: "b"}, {}, {name: "a", "Cookie": "c"})
    ]

    assert [200, 404, 404, 200] == statuses


@with_settings(bind=["x-user"], bind_cookies=["s"])
async def test_the_principal_is_what_the_route_binds(ask: Ask, open_stream: OpenStream) -> None:
    _, client = await open_stream("/a", headers={"X-User": "a", "Cookie": "s=1; t=1"})
    statuses = [
        (await ask(path_of(client.stream_id), headers=headers)).status
        for headers in (
            {"X-User": "a", "Cookie": "t=2; s=1", "Authorization": "b"},
            {"X-User": "a", "Cookie": "s=2; t=1"},
            {"Cookie": "s=1; t=1"},
        )
    ]

    assert [200, 404, 404] == statuses


async def test_the_session_that_mcps_initialize_gave_is_a_part_of_the_principal(
    ask: Ask, open_stream: OpenStream
) -> None:
    _, client = await open_stream("/mcp", method="POST", body=b"{}", answer=("Mcp-Session-Id: s",))
    statuses = [
        (await ask(path_of(client.stream_id), headers=headers)).status
        for headers in ({"Mcp-Session-Id": "s"}, {}, {"Mcp-Session-Id": "t"})
    ]

    assert [200, 404, 404] == statuses


# Stop


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_stop_ends_the_upstream_at_once_and_completes_the_stream(
    upstream: Upstream, ask: Ask, open_stream: OpenStream, method: str
) -> None:
    asked, client = await open_stream("/a", method=method, headers=OWN)
    await asked.stream(b"data: 1\n\ndata: not whole")
    await client.read_until(b"\nid: 1-")
    stopped = await ask(path_of(client.stream_id), method="DELETE", headers=OWN)
    await asked.closed()
    await client.read_to_end()
    told = await state(ask, client.stream_id, OWN)

    assert (204, "no-store", None) == (
        stopped.status,
        stopped.header("cache-control"),
        stopped.header("content-length"),
    )
    assert b"retry: OWN\ndata: 1\nid: 1-ID\n\n" == client.shown
    assert client.whole
    assert ("complete", True) == (told["state"], told["complete"])


async def test_a_stop_may_be_repeated(ask: Ask, open_stream: OpenStream) -> None:
    _, client = await open_stream("/a")

    assert [204, 204] == [await stop(ask, client.stream_id) for _ in range(2)]


async def test_every_reader_of_a_stopped_stream_gets_its_end(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    """One that has resumed it beside the first, and one that has yet to be sent all of it."""
    asked, first = await open_stream("/a", method="POST")
    await asked.stream(b"data: 1\n\n")
    readers = [first] + [await ask("/a", headers={"Last-Event-ID": f"{seq}-{first.stream_id}"}) for seq in (0, 1)]
    await asked.stream(b"data: 2\n\n")
    for reader in readers:
        await reader.read_until(b"\nid: 2-")
    await stop(ask, first.stream_id)
    for reader in readers:
        await reader.read_to_end()

    assert [["1", "2"], ["1", "2"], ["2"]] == [data_of(reader) for reader in readers]
    assert [True] * 3 == [reader.whole for reader in readers]
    assert [[]] * 3 == [signals_of(reader) for reader in readers]


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("GET", "live"),
        ("POST", "live"),
        ("GET", "without a reader"),
        ("POST", "without a reader"),
        ("GET", "being asked again"),
        ("GET", "dormant, let go of"),
        ("GET", "dormant, ended"),
    ],
)
async def test_a_stopped_stream_is_never_resumed_into_a_new_request(
    *,
    sidecar: Sidecar,
    upstream: Upstream,
    clock: ManualClock,
    ask: Ask,
    open_stream: OpenStream,
    method: str,
    how: str,
) -> None:
    """What it has is replayed; after that it is over."""
    asked, client = await open_stream("/a", method=method)
    await asked.stream(b"data: 1\n\n" + (b"id: x\n" if how == "being asked again" else b"") + b"data: 2\n\n")
    await client.read_until(b"\nid: 2-")
    if how in ("without a reader", "dormant, let go of"):
        client.close()
        await all_gone(sidecar)
    if how == "dormant, let go of":
        clock.advance(30)
    elif how == "dormant, ended":
        await asked.end()
        await client.read_to_end()
    elif how == "being asked again":
        asked.reset()
        await until(lambda: "reconnecting" in repr(sidecar.streams.find(client.stream_id)))
        clock.advance(1.2)
        asked = await upstream.asked()
    requests = len(upstream.requests)
    status = await stop(ask, client.stream_id)
    if how != "dormant, ended":
        await asked.closed()
    rest = await ask("/a", headers={"Last-Event-ID": f"1-{client.stream_id}"})
    await rest.read_to_end()
    over = await ask("/a", headers={"Last-Event-ID": f"2-{client.stream_id}"})

    assert 204 == status
    assert ("resumed", ["2"], [], True) == (rest.sse_status, data_of(rest), signals_of(rest), rest.whole)
    assert 204 == over.status
    assert requests == len(upstream.requests)


@pytest.mark.parametrize("is_up", [True, False], ids=["the upstream is asked", "the upstream is away"])
async def test_a_stop_ends_the_wait_of_who_came_back_to_a_dormant_stream(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, ask: Ask, open_stream: OpenStream, is_up: bool
) -> None:
    """It would begin the work anew under another id, which no one who stopped it knows."""
    asked, client = await open_stream("/a")
    await asked.stream(b"data: 1\n\n")
    await asked.end()
    await client.read_to_end()
    if not is_up:
        await upstream.stop()
    back = await ask("/a", headers={"Last-Event-ID": client.last_id})
    if is_up:
        again = await upstream.asked()
    else:
        await back.read_until(b": waiting")
    status = await stop(ask, client.stream_id)
    if is_up:
        await again.closed()
    else:
        await upstream.start(upstream.port)
        clock.advance(60)
    await back.read_to_end()

    assert 204 == status
    assert ([], True) == (signals_of(back), back.whole)
    assert 1 + is_up == len(upstream.requests)
    assert 0 == sidecar.streams.active


# A stream that others read too


@pytest.mark.parametrize(
    ("settings", "opener", "other", "status"),
    [
        ({"mode": "shared"}, OWN, OWN, 403),
        ({"mode": "shared"}, OWN, FOREIGN, 404),
        ({"mode": "shared"}, OWN, OWN | {"Cookie": "c"}, 404),
        ({"mode": "shared", "key_headers": []}, OWN, FOREIGN, 403),
        ({"mode": "shared", "key_headers": ["host"]}, OWN, {"Host": "other.test"}, 404),
    ],
    ids=["its own", "foreign", "another cookie", "anyone's", "foreign by its key"],
)
async def test_a_shared_stream_cannot_be_stopped_by_one_of_its_readers(
    *, ask: Ask, open_stream: OpenStream, opener: dict[str, str], other: dict[str, str], status: int
) -> None:
    asked, client = await open_stream("/a", headers=opener)
    stopped = await ask(path_of(client.stream_id), method="DELETE", headers=other)
    told = await ask(path_of(client.stream_id), headers=other)
    await asked.stream(b"data: 1\n\n")
    await client.read_until(b"\nid: 1-")

    assert (status, "application/problem+json", "no-store") == (
        stopped.status,
        stopped.header("content-type"),
        stopped.header("cache-control"),
    )
    assert (200 if status == 403 else 404) == told.status


@shared
async def test_a_shared_stream_that_is_asleep_cannot_be_stopped_either(
    sidecar: Sidecar, ask: Ask, open_stream: OpenStream
) -> None:
    asked, client = await open_stream("/a", headers=OWN)
    await asked.end()
    await client.read_to_end()

    assert 403 == await stop(ask, client.stream_id, OWN)
    assert "dormant" == (await state(ask, client.stream_id, OWN))["state"]


@shared
async def test_a_post_on_a_shared_route_can_be_stopped(ask: Ask, open_stream: OpenStream) -> None:
    asked, client = await open_stream("/a", method="POST", headers=OWN)

    assert 204 == await stop(ask, client.stream_id, OWN)
    await asked.closed()


# Where these paths are


@with_settings(control_path="/own/paths")
async def test_the_paths_may_be_moved(upstream: Upstream, ask: Ask, open_stream: OpenStream) -> None:
    _, client = await open_stream("/a")
    moved = await ask(f"/own/paths/streams/{client.stream_id}")
    passing = asyncio.ensure_future(ask(path_of(client.stream_id)))
    asked = await upstream.asked()
    await asked.respond("200 OK", body=b"the service's own")

    assert 200 == moved.status
    assert path_of(client.stream_id) == asked.target
    assert b"the service's own" == await (await passing).read_to_end()


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"control_path": ""}, PREFIX + "/streams/ID"),
        ({"control_path": ""}, "/streams/ID"),
        ({}, PREFIX + "s/streams/ID"),
        ({}, "/x" + PREFIX + "/streams/ID"),
        ({}, "/?" + PREFIX + "/streams/ID"),
    ],
    ids=["removed", "removed, not to the root", "another path", "beneath", "query"],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
async def test_what_is_not_under_the_prefix_is_the_services(
    *, upstream: Upstream, ask: Ask, open_stream: OpenStream, path: str, method: str
) -> None:
    _, client = await open_stream("/a")
    passing = asyncio.ensure_future(ask(path.replace("ID", client.stream_id), method=method))
    asked = await upstream.asked()
    await asked.respond("418 I'm a Teapot")

    assert (method, path.replace("ID", client.stream_id)) == (asked.method, asked.target)
    assert 418 == (await passing).status


async def test_a_target_in_absolute_form_is_the_same(ask: Ask, open_stream: OpenStream) -> None:
    _, client = await open_stream("/a")

    assert 200 == (await ask(f"http://{HOST}{path_of(client.stream_id)}")).status


# Pages of other origins

PAGE = "https://page.test"
with_origins = with_settings(control_origins=["https://other.test", PAGE])
ALLOWED = {
    "access-control-allow-origin": PAGE,
    "access-control-allow-credentials": "true",
    "access-control-allow-methods": "GET, DELETE",
    "vary": "Origin",
}


def cors_of(response: Response) -> dict[str, str]:
    fields = {name.decode().lower(): value.decode() for name, value in response.headers}
    return {name: value for name, value in fields.items() if name.startswith("access-control-") or name == "vary"}


@with_origins
@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
@pytest.mark.parametrize("known", [True, False])
async def test_a_page_of_a_listed_origin_may_read_every_answer(
    ask: Ask, open_stream: OpenStream, method: str, known: bool
) -> None:
    _, client = await open_stream("/a")
    answer = await ask(path_of(client.stream_id if known else UNKNOWN), method=method, headers={"Origin": PAGE})

    assert ({"GET": 200, "DELETE": 204, "PUT": 405}[method] if known else 404) == answer.status
    assert ALLOWED == cors_of(answer)
    assert "no-store" == answer.header("cache-control")


@with_origins
@pytest.mark.parametrize("stream", ["known", "foreign", "unknown"])
async def test_a_preflight_is_answered_here(upstream: Upstream, ask: Ask, open_stream: OpenStream, stream: str) -> None:
    """It bears no credentials, so it cannot depend on the stream."""
    _, client = await open_stream("/a", headers=OWN if stream == "foreign" else {})
    headers = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "authorization, x-api-key",
    }
    path = path_of(UNKNOWN if stream == "unknown" else client.stream_id)
    preflight = await ask(path, method="OPTIONS", headers=headers)

    assert (204, "no-store") == (preflight.status, preflight.header("cache-control"))
    assert {**ALLOWED, "access-control-allow-headers": "authorization, x-api-key"} == cors_of(preflight)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(
    ("settings", "origin"),
    [
        ({}, PAGE),
        ({"control_origins": [PAGE]}, "https://other.test"),
        ({"control_origins": [PAGE]}, "https://page.test.evil.test"),
        ({"control_origins": [PAGE]}, "http://page.test"),
        ({"control_origins": [PAGE]}, "https://page.test:8443"),
        ({"control_origins": [PAGE]}, "null"),
        ({"control_origins": [PAGE]}, "*"),
    ],
    ids=["none listed", "another", "longer", "scheme", "port", "null", "star"],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
async def test_a_page_of_another_origin_may_read_nothing(
    upstream: Upstream, ask: Ask, open_stream: OpenStream, origin: str, method: str
) -> None:
    """Neither may it by the service's word, who is not asked."""
    _, client = await open_stream("/a", answer=("Access-Control-Allow-Origin: *",))
    headers = {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
    answer = await ask(path_of(client.stream_id), method=method, headers=headers)

    assert {} == {name: value for name, value in cors_of(answer).items() if name != "vary"}
    assert 1 == len(upstream.requests)


# Other requests


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "TRACE"])
async def test_another_method_is_refused(upstream: Upstream, ask: Ask, open_stream: OpenStream, method: str) -> None:
    """With the methods that are not (RFC 9110, section 15.5.6)."""
    _, client = await open_stream("/a")
    refused = await ask(path_of(client.stream_id), method=method)

    assert (405, "application/problem+json", "no-store") == (
        refused.status,
        refused.header("content-type"),
        refused.header("cache-control"),
    )
    assert {"GET", "DELETE"} <= set((refused.header("allow") or "").split(", "))
    assert 1 == len(upstream.requests)


async def test_a_stream_can_be_asked_for_and_stopped_while_draining(
    sidecar: Sidecar, clock: ManualClock, connect: Connect, open_stream: OpenStream
) -> None:
    """By those who are connected already. What is stopped need not be waited for."""
    asked, client = await open_stream("/a", method="POST", headers={"Host": HOST})
    path = path_of(client.stream_id)
    connections = [await connect() for _ in range(2)]
    for connection in connections:
        await connection.send(request_of(path))
        await connection.read_head()
        await connection.read_to_end()
    draining = asyncio.ensure_future(sidecar.drain())
    while not sidecar.front.draining:
        clock.advance(0)
        await asyncio.sleep(0)
    answers = []
    for connection, method in zip(connections, ("GET", "DELETE"), strict=True):
        answers.append(Response(connection.reader, connection.writer))
        await connection.send(request_of(path, method=method))
        await answers[-1].read_head()
    await client.read_to_end()
    client.close()
    await asked.closed()
    async with asyncio.timeout(TIMEOUT):
        await draining

    assert [200, 204] == [answer.status for answer in answers]
    assert ["close", "close"] == [answer.header("connection") for answer in answers]
    assert client.whole


# The browser client

SCRIPT = PREFIX + "/client.js"


async def test_the_client_is_served_whole_and_as_a_module(upstream: Upstream, ask: Ask) -> None:
    answer = await ask(SCRIPT)
    body = await answer.read_to_end()

    assert 200 == answer.status
    assert "text/javascript; charset=utf-8" == answer.header("content-type")
    assert "nosniff" == answer.header("x-content-type-options")
    assert body == files("sse_sidecar").joinpath("static/client.js").read_bytes()
    assert b"export class ResumableEventSource" in body
    assert [] == upstream.requests


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_the_client_is_sent_once_while_it_is_the_same(ask: Ask, form: str) -> None:
    """Asked for again each time, so that no page runs another release's."""
    first = await ask(SCRIPT)
    etag = first.header("etag")
    again = await ask(SCRIPT, headers={"If-None-Match": form.format(etag)})
    other = await ask(SCRIPT, headers={"If-None-Match": '"other"'})

    assert (304, etag, None) == (again.status, again.header("etag"), again.header("content-length"))
    assert 200 == other.status
    assert ["no-cache"] * 2 == [first.header("cache-control"), again.header("cache-control")]


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_the_client_is_only_read(ask: Ask, method: str) -> None:
    refused = await ask(SCRIPT, method=method)

    assert (405, "GET, HEAD") == (refused.status, refused.header("allow"))


@with_origins
async def test_a_page_of_a_listed_origin_may_import_the_client(ask: Ask) -> None:
    assert ALLOWED == cors_of(await ask(SCRIPT, headers={"Origin": PAGE}))
