"""MCP over Streamable HTTP, by protocol revision; and services that can resume by themselves, left to their own ids."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping

import pytest
from mcp import Client, MCPError

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, Connect, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, TIMEOUT, Asked, ManualClock, Response, Upstream, port_of, until
from tests.real_upstreams import Line, Mcp, Store
from tests.together import HOST, being_answered, data_of, reopened, request_of, signals_of

OLD = "2025-06-18"
PRIMED = "2025-11-25"
WITHOUT_RESUME = "2026-07-28"

CALL = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}'


def session(version: str = PRIMED, **headers: str) -> dict[str, str]:
    """What a client of the session `s` says of itself, as the SDKs do on every request."""
    own = {
        "Host": HOST,
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
        "Mcp-Session-Id": "s",
    }
    return own | {name.replace("_", "-"): value for name, value in headers.items()}


def message(event_id: str = "", **fields: object) -> bytes:
    """An event that carries a JSON-RPC message."""
    own = f"id: {event_id}\r\n" if event_id else ""
    return f"{own}event: message\r\ndata: {json.dumps({'jsonrpc': '2.0', **fields})}\r\n\r\n".encode()


def progress(step: int, event_id: str = "") -> bytes:
    return message(event_id, method="notifications/progress", params={"progress": step})


def result(event_id: str = "") -> bytes:
    return message(event_id, id=1, result={"content": []})


def heard(response: Response) -> list[int | str]:
    """What the messages so far were: the step of a progress notification, "result" or "error"."""
    messages = [json.loads(data) for data in data_of(response) if data]
    return [found["params"]["progress"] if "params" in found else "result" for found in messages]


async def call(open_stream: OpenStream, version: str = PRIMED) -> tuple[Asked, Response]:
    return await open_stream("/mcp", method="POST", headers=session(version), body=CALL)


async def lose(sidecar: Sidecar, client: Response) -> None:
    """Cuts a client's connection, and waits until the sidecar knows."""
    before = being_answered(sidecar)
    client.reset()
    await until(lambda: being_answered(sidecar) < before)


# Streams that are cut


@pytest.mark.parametrize("version", ["2025-03-26", OLD, PRIMED, "2025-12-01"])
async def test_a_call_that_is_cut_half_way_is_resumed_by_get(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream, version: str
) -> None:
    """To the byte: primed, with the empty `data` that is asked for, in exactly one revision; others fail on that."""
    asked, client = await call(open_stream, version)
    await asked.stream(progress(1))
    await client.read_until(b"\nid: 1-")
    await lose(sidecar, client)
    await asked.stream(progress(2) + result())
    await asked.end()
    again = await ask("/mcp", headers=session(version, last_event_id=client.last_id))
    await again.read_to_end()

    def shown(cursor: int, *events: bytes) -> bytes:
        primed = b"id: %d-ID\ndata:\n\n" % cursor if version == PRIMED else b""
        framed = [
            event.replace(b"\r\n\r\n", b"\r\nid: %d-ID\n\n" % seq).replace(b"\r\n", b"\n")
            for seq, event in enumerate(events, cursor + 1)
        ]
        return primed + b"retry: OWN\n" + b"".join(framed)

    assert shown(0, progress(1)) == client.shown
    assert shown(1, progress(2), result()) == again.shown
    assert ("resumed", True) == (again.sse_status, again.whole)
    assert 1 == len(upstream.requests)


async def test_a_call_that_is_cut_before_its_first_event_is_resumed_where_it_was_primed(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    asked, client = await call(open_stream)
    await client.read_until(b"retry")
    await client.read_until(b"\n\n")
    await lose(sidecar, client)
    await asked.stream(result())
    again = await ask("/mcp", headers=session(last_event_id=client.last_id))
    await again.read_until(b"\nid: 1-")

    assert ["result"] == heard(again)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize("times", [5])
async def test_a_call_may_be_cut_as_often_as_it_likes(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream, times: int
) -> None:
    asked, client = await call(open_stream)
    got: list[int | str] = []
    for step in range(times):
        await asked.stream(progress(step))
        await client.read_until(b"\nid: %d-" % (step + 1))
        got += heard(client)
        await lose(sidecar, client)
        client = await ask("/mcp", headers=session(last_event_id=client.last_id))
    await asked.stream(result())
    await asked.end()
    await client.read_to_end()

    assert [*range(times), "result"] == got + heard(client)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(("method", "status"), [("GET", 204), ("POST", 200)])
async def test_a_call_that_was_heard_to_its_end_is_over(
    *, ask: Ask, open_stream: OpenStream, method: str, status: int
) -> None:
    asked, client = await call(open_stream)
    await asked.stream(result())
    await asked.end()
    await client.read_to_end()
    over = await ask("/mcp", method=method, headers=session(last_event_id=client.last_id))

    assert (status, "text/event-stream") == (over.status, over.header("content-type"))
    assert status == 204 or await over.read_to_end() == b""


@pytest.mark.parametrize("mcp_session_id", ["t", None])
async def test_the_call_of_another_session_is_gone(
    *, upstream: Upstream, ask: Ask, open_stream: OpenStream, mcp_session_id: str | None
) -> None:
    asked, client = await call(open_stream)
    await asked.stream(progress(1))
    await client.read_until(b"\nid: 1-")
    headers = session(last_event_id=f"0-{client.stream_id}")
    del headers["Mcp-Session-Id"]
    foreign = await ask("/mcp", headers=headers | ({"Mcp-Session-Id": mcp_session_id} if mcp_session_id else {}))

    assert 410 == foreign.status
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(
    ("mcp_session_id", "status"), [("s", 200), ("t", 410), (None, 410)], ids=["its own", "another", "none"]
)
async def test_the_session_that_initialize_gave_binds_its_stream(
    *, upstream: Upstream, ask: Ask, open_stream: OpenStream, mcp_session_id: str | None, status: int
) -> None:
    """The client bears it from then on, in a resume of this very stream too."""
    start = {"Host": HOST, "Accept": "application/json, text/event-stream"}
    asked, client = await open_stream(
        "/mcp", method="POST", headers=start, body=b'{"method": "initialize"}', answer=("Mcp-Session-Id: s",)
    )
    await asked.stream(result())
    await client.read_until(b"\nid: 1-")
    own = {"Mcp-Session-Id": mcp_session_id} if mcp_session_id else {}
    again = await ask("/mcp", headers={**start, **own, "Last-Event-ID": f"0-{client.stream_id}"})

    assert status == again.status
    assert ("s" if status == 200 else None) == again.header("mcp-session-id")
    assert 1 == len(upstream.requests)


# Polling


async def polled(ask: Ask, upstream: Upstream, last_id: str, method: str = "GET") -> tuple[Asked, Response]:
    """A resume of a stream that its server closed on purpose, and the request that it leads to."""
    back = await ask(
        "/mcp", method=method, headers=session(last_event_id=last_id), body=CALL if method == "POST" else b""
    )
    return await reopened(upstream), back


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_call_whose_server_closed_its_stream_is_polled_for_the_rest(
    *, upstream: Upstream, ask: Ask, open_stream: OpenStream, method: str
) -> None:
    """By GET, with the server's own last id, whichever way the client comes back."""
    asked, client = await call(open_stream)
    await asked.stream(b"id: e0\r\nretry: 10\r\ndata:\r\n\r\n" + progress(1, "e1"))
    await asked.end()
    await client.read_to_end()
    again, back = await polled(ask, upstream, client.last_id, method)
    await again.stream(result("e2"))
    await back.read_until(b'"result"')
    await back.read_until(b"\nid: 3-")

    assert client.whole
    assert ("GET", "/mcp", "e1") == (again.method, again.target, again.header("last-event-id"))
    assert ("s", PRIMED, "text/event-stream") == tuple(
        again.header(name) for name in ("mcp-session-id", "mcp-protocol-version", "accept")
    )
    assert [None] * 3 == [again.header(name) for name in ("content-length", "content-type", "transfer-encoding")]
    assert ["result"] == heard(back)
    assert "resumed" == back.sse_status
    assert [] == signals_of(back)


async def test_what_a_polled_stream_goes_on_with_is_polled_too(
    upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    """It is a stream of its own, whose numbers go on, and at the switch to which the client is primed."""
    asked, client = await call(open_stream)
    await asked.stream(progress(1, "e1"))
    await asked.end()
    await client.read_to_end()
    clients, asked_for = [client], []
    for step in (2, 3):
        again, back = await polled(ask, upstream, clients[-1].last_id)
        await again.stream(progress(step, f"e{step}"))
        await again.end()
        await back.read_to_end()
        asked_for.append(again.header("last-event-id"))
        clients.append(back)
    again, last = await polled(ask, upstream, clients[-1].last_id)
    await again.stream(result())
    await last.read_until(b"\nid: 4-")

    assert ["e1", "e2"] == asked_for
    assert "e3" == again.header("last-event-id")
    assert [[1], [2], [3], ["result"]] == [heard(each) for each in (*clients, last)]
    ids = [event_id for event_id, _ in clients[1].events()]
    new = ids[-1].split("-", 1)[1].partition(".")[0]
    assert [f"1-{client.stream_id}", f"1-{new}.ZTE", f"2-{new}.ZTI"] == ids


async def test_what_a_call_was_sent_before_it_was_polled_is_replayed_first(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    asked, client = await call(open_stream)
    await asked.stream(progress(1, "e1"))
    await client.read_until(b"\nid: 1-")
    await lose(sidecar, client)
    await asked.stream(progress(2, "e2"))
    await asked.end()
    await until(lambda: not sidecar.streams.active)
    again, back = await polled(ask, upstream, client.last_id)
    await again.stream(result("e3"))
    await back.read_until(b"\nid: 3-")

    assert "e2" == again.header("last-event-id")
    assert [2, "result"] == heard(back)


ERROR = message("e2", id=1, error={"code": 1, "message": "no"})
REQUEST_OF_THE_SERVER = message("e2", id="x", method="sampling/createMessage", params={"progress": 2})


@pytest.mark.parametrize(
    ("version", "stream", "is_polled"),
    [
        pytest.param(PRIMED, progress(1, "e1"), True, id="a notification"),
        pytest.param(OLD, progress(1, "e1"), True, id="an older revision"),
        pytest.param(PRIMED, b"id: e1\ndata:\n\n", True, id="its priming"),
        pytest.param(PRIMED, progress(1, "e1") + REQUEST_OF_THE_SERVER, True, id="a request of the server's"),
        pytest.param(PRIMED, progress(1, "e1") + b": bye\n\n", True, id="a comment"),
        pytest.param(PRIMED, progress(1), False, id="no ids"),
        pytest.param(PRIMED, progress(1, "e1") + result("e2"), False, id="a result"),
        pytest.param(PRIMED, progress(1, "e1") + ERROR, False, id="an error"),
        pytest.param(
            PRIMED, b'id: 1\ndata: [{"id": 2, "method": "x"},\ndata: {"id": 1, "result": {}}]\n\n', False, id="a batch"
        ),
        pytest.param(PRIMED, result("e1") + progress(2, "e2"), False, id="a result, and a notification after it"),
        pytest.param("", progress(1, "e1"), False, id="no MCP"),
    ],
)
async def test_a_call_is_polled_where_its_response_is_yet_to_come(
    *, upstream: Upstream, ask: Ask, open_stream: OpenStream, version: str, stream: bytes, is_polled: bool
) -> None:
    """Anything else that ended cleanly is complete, as ever for a POST."""
    headers = session(version) if version else {"Host": HOST}
    asked, client = await open_stream("/mcp", method="POST", headers=headers, body=CALL)
    await asked.stream(stream)
    await asked.end()
    await client.read_to_end()
    back = await ask("/mcp", headers={**headers, "Last-Event-ID": client.last_id})
    if is_polled:
        assert "GET" == (await upstream.asked()).method

    assert client.whole
    assert (200 if is_polled else 204) == back.status
    assert 1 + is_polled == len(upstream.requests)


async def test_a_call_that_was_lost_is_not_polled(upstream: Upstream, ask: Ask, open_stream: OpenStream) -> None:
    """A server that means to be polled ends its answer; this one has died."""
    asked, client = await call(open_stream)
    await asked.stream(progress(1, "e1"))
    await client.read_until(b"\nid: 1-")
    asked.reset()
    await client.read_to_end()
    gone = await ask("/mcp", headers=session(last_event_id=client.last_id))

    assert (["upstream-lost"], False) == (signals_of(client), client.whole)
    assert 410 == gone.status
    assert 1 == len(upstream.requests)


# The session's own stream, by GET


async def listen(open_stream: OpenStream, version: str = PRIMED, **headers: str) -> tuple[Asked, Response]:
    return await open_stream("/mcp", headers=session(version, **headers))


@pytest.mark.parametrize("version", [OLD, PRIMED])
async def test_a_standalone_get_takes_over_the_lingering_stream_of_its_session(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream, version: str
) -> None:
    """From the first event not yet written. A server refuses a second stream, and the sidecar keeps the first."""
    asked, client = await listen(open_stream, version)
    await asked.stream(progress(1))
    await client.read_until(b"\nid: 1-")
    await lose(sidecar, client)
    await asked.stream(progress(2))
    back = await ask("/mcp", headers=session(version))
    await back.read_until(b"\nid: 2-")
    await asked.stream(progress(3))
    await back.read_until(b"\nid: 3-")

    assert (200, "resumed", client.stream_id) == (back.status, back.sse_status, back.stream_id)
    assert [2, 3] == heard(back)
    assert (b"id: 1-ID\ndata:\n\n" if version == PRIMED else b"") == back.shown.partition(b"retry")[0]
    assert 1 == len(upstream.requests)


async def test_a_stream_may_be_taken_over_again_and_again(
    *, sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    asked, client = await listen(open_stream)
    await client.read_until(b"retry")
    got: list[int | str] = []
    for step in range(1, 5):
        await lose(sidecar, client)
        await asked.stream(progress(step))
        client = await ask("/mcp", headers=session())
        await client.read_until(b"\nid: %d-" % step)
        got += heard(client)

    assert [1, 2, 3, 4] == got
    assert 1 == len(upstream.requests)


async def test_a_token_says_more_than_what_was_written(
    sidecar: Sidecar, upstream: Upstream, ask: Ask, open_stream: OpenStream
) -> None:
    """What was written and never arrived is sent once more."""
    asked, client = await listen(open_stream)
    await asked.stream(progress(1) + progress(2))
    await client.read_until(b"\nid: 2-")
    await lose(sidecar, client)
    back = await ask("/mcp", headers=session(last_event_id=f"1-{client.stream_id}"))
    await back.read_until(b"\nid: 2-")

    assert [2] == heard(back)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/mcp", {"Mcp-Session-Id": "t"}),
        ("/other", {}),
        ("/mcp?x=1", {}),
        ("/mcp", {"Host": "other.test"}),
        ("/mcp", {"Authorization": "Bearer b"}),
    ],
    ids=["session", "path", "query", "host", "principal"],
)
async def test_the_stream_of_another_session_is_not_taken_over(
    *, sidecar: Sidecar, open_stream: OpenStream, target: str, headers: Mapping[str, str]
) -> None:
    _, client = await listen(open_stream)
    await client.read_until(b"retry")
    await lose(sidecar, client)
    _, other = await open_stream(target, headers={**session(), **headers})

    assert "new" == other.sse_status
    assert client.stream_id != other.stream_id


async def test_a_stream_that_is_being_read_is_not_taken_over(upstream: Upstream, open_stream: OpenStream) -> None:
    """What its server says to a second one is the server's to say."""
    _, first = await listen(open_stream)
    _, second = await listen(open_stream)

    assert first.stream_id != second.stream_id
    assert 2 == len(upstream.requests)


async def test_a_stream_whose_linger_ran_out_is_not_taken_over(
    *, sidecar: Sidecar, clock: ManualClock, open_stream: OpenStream
) -> None:
    asked, client = await listen(open_stream)
    await client.read_until(b"retry")
    await lose(sidecar, client)
    clock.advance(30)
    await asked.closed()
    _, back = await listen(open_stream)

    assert "new" == back.sse_status


async def test_a_call_is_never_taken_over(*, sidecar: Sidecar, upstream: Upstream, open_stream: OpenStream) -> None:
    """What a POST without a token asks for is a call of its own; and a GET takes over no call."""
    _, client = await call(open_stream)
    await client.read_until(b"retry")
    await lose(sidecar, client)
    _, second = await call(open_stream)
    _, third = await listen(open_stream)

    assert ["new", "new"] == [second.sse_status, third.sse_status]
    assert 3 == len(upstream.requests)


# The revision that took resumption out


@pytest.mark.parametrize("version", [WITHOUT_RESUME, "2027-01-01"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_from_2026_07_28_on_nothing_changes_on_the_wire(
    *, sidecar: Sidecar, upstream: Upstream, clock: ManualClock, connect: Connect, version: str, method: str
) -> None:
    """Request and answer are those of any other: no id, priming, `retry` or heartbeat, no field of the sidecar's."""
    token = "3-gAAAAAAAAAAAAAAAAAAAAAA"
    target = f"/mcp?last_event_id={token}"
    client = await connect()
    body = CALL if method == "POST" else b""
    await client.send(request_of(target, method=method, headers=session(version, last_event_id=token), body=body))
    asked = await upstream.asked()
    got_body = await asked.read_body()
    head = [
        "Content-Type: text/event-stream",
        "Cache-Control: max-age=1",
        "ETag: x",
        "Set-Cookie: a=1",
        "Mcp-Session-Id: s",
    ]
    await asked.send("\r\n".join(["HTTP/1.1 200 Fine", *head, "Transfer-Encoding: chunked", "", ""]).encode())
    await client.read_head()
    clock.advance(100)
    said = b": hi\r\n\r\nid: e1\r\nretry: 7\r\ndata: 1\r\n\r\nid: e2\rdata: not whole"
    await asked.stream(said)
    await asked.end()
    await client.read_to_end()

    assert (target, token, body) == (asked.target, asked.header("last-event-id"), got_body)
    assert b"HTTP/1.1 200 Fine" == client.start_line
    assert head == [line for line in lines_of(client) if not line.startswith(("Transfer-Encoding", "Connection"))]
    assert (said, True) == (client.body, client.whole)
    assert 0 == len(sidecar.streams)


def lines_of(client: Response) -> list[str]:
    return [f"{name.decode()}: {value.decode()}" for name, value in client.headers]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("begun", [False, True], ids=["before its head", "within its answer"])
async def test_from_2026_07_28_on_leaving_is_cancelling(
    *, upstream: Upstream, connect: Connect, method: str, begun: bool
) -> None:
    """At once: no clock moves."""
    client = await connect()
    await client.send(request_of("/mcp", method=method, headers=session(WITHOUT_RESUME)))
    asked = await upstream.asked()
    if begun:
        await asked.begin()
        await asked.stream(progress(1))
        await client.read_head()
        await client.read_until(b"progress")
    client.close()
    await asked.closed()


async def test_a_stream_that_was_cut_is_cut_from_2026_07_28_on(open_stream: OpenStream) -> None:
    asked, client = await open_stream("/mcp", method="POST", headers=session(WITHOUT_RESUME), body=CALL)
    await asked.stream(progress(1))
    await client.read_until(b"progress")
    asked.reset()
    await client.read_to_end()

    assert (progress(1), False) == (client.body, client.whole)


# Services that resume by themselves

keeping = with_settings(ids="keep")
OF_THE_SERVICE = b"id: urn:uuid:1\nevent: update\ndata: 1\n\n: comment\n\nretry: 7\n\nid: urn:uuid:2\n\ndata: 2\nid\n\n"


@keeping
@pytest.mark.parametrize("headers", [EVENT_SOURCE, session(), {}], ids=["EventSource", "MCP", "other"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_service_may_keep_its_own_ids(
    *, clock: ManualClock, ask: Ask, open_stream: OpenStream, headers: Mapping[str, str], method: str
) -> None:
    """Headers and heartbeats only."""
    asked, client = await open_stream(
        "/hub", method=method, headers=headers, answer=("Cache-Control: max-age=9", "Set-Cookie: a=1", "ETag: x")
    )
    await asked.stream(OF_THE_SERVICE)
    await client.read_until(b"data: 2\nid\n\n")
    own = client.body
    clock.advance(10)
    await client.read_until(b": heartbeat")
    await asked.stream(b"id: 3\ndata: 3\n\n")
    await client.read_until(b"data: 3\n\n")

    notice_end = b"\n\n" if headers == EVENT_SOURCE and method == "GET" else b"\n"
    for notice in (b": comment", b"retry: 7"):
        own = own.replace(notice + notice_end, notice + b"\n\n")
    assert OF_THE_SERVICE == own
    assert client.body.endswith(b"data: 2\nid\n\n: heartbeat" + notice_end + b"id: 3\ndata: 3\n\n")
    assert [None, None] == [client.header(name) for name in ("sse-stream", "sse-stream-status")]
    assert ("no-cache, no-store, no-transform", "no") == (
        client.header("cache-control"),
        client.header("x-accel-buffering"),
    )
    assert ("a=1", None) == (client.header("set-cookie"), client.header("etag"))


@keeping
@pytest.mark.parametrize("last_id", ["urn:uuid:1", "3-gAAAAAAAAAAAAAAAAAAAAAA"], ids=["its own", "like one of ours"])
async def test_a_service_that_keeps_its_own_ids_is_asked_by_them(
    upstream: Upstream, open_stream: OpenStream, last_id: str
) -> None:
    target = f"/hub?lastEventID={last_id}&topic=x"
    asked, _ = await open_stream(target, headers={**EVENT_SOURCE, "Last-Event-ID": last_id})

    assert (target, last_id) == (asked.target, asked.header("last-event-id"))


@keeping
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_service_that_keeps_its_own_ids_is_left_at_once(
    *, sidecar: Sidecar, open_stream: OpenStream, method: str
) -> None:
    asked, client = await open_stream("/hub", method=method, headers=EVENT_SOURCE)
    client.close()
    await asked.closed()

    assert 0 == sidecar.streams.active


@keeping
@pytest.mark.parametrize("whole", [True, False])
async def test_a_service_that_keeps_its_own_ids_is_asked_again_by_its_clients_alone(
    *, upstream: Upstream, open_stream: OpenStream, whole: bool
) -> None:
    """No signal, and no reconnect behind their backs."""
    asked, client = await open_stream("/hub", headers={"Accept": "text/event-stream"})
    await asked.stream(b"id: 1\ndata: 1\n\n")
    await client.read_until(b"data: 1\n\n")
    await asked.end() if whole else asked.reset()
    await client.read_to_end()

    assert (b"id: 1\ndata: 1\n\n", whole) == (client.body, client.whole)
    assert 1 == len(upstream.requests)


@keeping
async def test_an_mcp_server_with_its_own_event_store_is_resumed_by_its_own_ids(
    upstream: Upstream, open_stream: OpenStream
) -> None:
    asked, client = await call(open_stream)
    await asked.stream(b"id: e0\ndata:\n\n" + progress(1, "e1"))
    await client.read_until(b"id: e1\n")
    client.reset()
    await asked.closed()
    again, back = await listen(open_stream, last_event_id="e1")
    await again.stream(result("e2"))
    await again.end()
    await back.read_to_end()

    assert ("GET", "e1") == (again.method, again.header("last-event-id"))
    assert result("e2").replace(b"\r\n", b"\n") == back.body
    assert 2 == len(upstream.requests)


# The SDK


@pytest.fixture
async def mcp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mcp]:
    """The SDK's server, without an event store unless it is asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = Mcp(getattr(request, "param", None))
    await service.start()
    yield service
    await service.stop()


async def count(mcp: Mcp, port: int, *, cut_after: int) -> list[str]:
    """What the SDK's client hears of a call whose line is cut after a step. The server goes on without it.

    Once only: after a second cut, this client comes back with the id that it came back with before.
    """
    heard: list[str] = []
    mcp.requests.clear()
    mcp.calls.clear()
    async with Line(port) as line:

        async def pause(step: int) -> None:
            if step == cut_after:
                await until(lambda: f"step {step}" in heard)
                line.cut()

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            heard.append(message or "")

        mcp.pause = pause
        async with Client(f"{line.url}/mcp", mode="legacy", read_timeout_seconds=TIMEOUT) as client:
            await until(lambda: ("GET", 200) in mcp.requests)
            try:
                called = await client.call_tool("count", {}, progress_callback=on_progress)
                heard.append(str(called.content))
            except MCPError as error:
                heard.append(str(error))
    return heard


STEPS = [f"step {step}" for step in range(1, Mcp.STEPS + 1)]


@pytest.mark.parametrize("cut_after", [1, Mcp.STEPS], ids=["half way", "before its response"])
async def test_the_sdks_call_is_cut_and_completes(start: StartSidecar, mcp: Mcp, cut_after: int) -> None:
    """The server cannot resume; directly, the cut is the end."""
    direct = await count(mcp, mcp.port, cut_after=cut_after)
    through = await count(mcp, port_of(await start(upstream=mcp.url)), cut_after=cut_after)

    assert [*STEPS[:cut_after], "SSE stream ended without a response"] == direct
    assert STEPS == through[:-1]
    assert "counted" in through[-1]
    assert ["count"] == mcp.calls
    assert 1 == mcp.requests.count(("GET", 200))


@pytest.mark.parametrize("mcp", [Store()], ids=["store"], indirect=True)
@pytest.mark.parametrize("cut_after", [1, Mcp.STEPS], ids=["half way", "before its response"])
@pytest.mark.parametrize(("ids", "asks_the_server"), [("own", False), ("keep", True)])
async def test_the_sdks_call_to_a_server_that_can_resume_is_cut_and_completes(
    *, start: StartSidecar, mcp: Mcp, cut_after: int, ids: str, asks_the_server: bool
) -> None:
    """By the sidecar, and the server never knows; or by the server itself, the sidecar out of the way."""
    through = await count(mcp, port_of(await start(upstream=mcp.url, ids=ids)), cut_after=cut_after)

    assert STEPS == through[:-1]
    assert "counted" in through[-1]
    assert ["count"] == mcp.calls
    assert asks_the_server == (mcp.requests.count(("GET", 200)) > 1)
