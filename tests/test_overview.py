"""What goes on, as numbers: each is driven to a known value."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sse_sidecar import __version__
from sse_sidecar.app import Sidecar
from sse_sidecar.overview import MAX_ACTIVE, MAX_LAGGING
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import ManualClock, Upstream, request, unread, until

Look = Callable[[], Awaitable[dict[str, Any]]]


async def snapshot(sidecar: Sidecar) -> dict[str, Any]:
    assert sidecar.admin_address is not None
    response = await request(sidecar.admin_address.port, "/streams", headers={"Connection": "close"})
    body = await response.read_to_end()
    response.close()
    found: dict[str, Any] = json.loads(body)
    return found


@pytest.fixture
def look(sidecar: Sidecar, clock: ManualClock) -> Look:
    async def looking() -> dict[str, Any]:
        clock.advance(1)  # a snapshot is shown again for a while
        return await snapshot(sidecar)

    return looking


@with_settings(max_streams=7, max_readers=8, max_memory="100MiB")
async def test_a_process_that_nothing_has_happened_in(look: Look) -> None:
    seen = await look()
    when, started = seen.pop("time"), seen.pop("started")

    assert started <= when
    assert {
        "version": __version__,
        "ready": True,
        "limits": {"streams": 7, "readers": 8},
        "memory": {"held": 0, "limit": 100 << 20},
        "streams": {"live": 0, "reconnecting": 0, "complete": 0, "dormant": 0, "broken": 0},
        "concurrent": 0,
        "unread": 0,
        "readers": 0,
        "events": {"received": 0, "delivered": 0, "replayed": 0, "lost": 0, "duplicates": 0},
        "bytes": {"received": 0, "delivered": 0},
        "stalls": 0,
        "heartbeats": 0,
        "completion_rate": 100.0,
        "resumes": {"resumed": 0, "gap": 0, "reset": 0, "new": 0, "over": 0, "gone": 0},
        "evictions": {"finished": 0, "dormant": 0, "tombstone": 0, "passed": 0, "reader": 0},
        "lagging": [],
        "errors": [],
        "active": [],
    } == {key: value for key, value in seen.items() if key not in ("routes", "reconnect_ms")}
    assert (0, 0, 0) == (
        seen["reconnect_ms"]["count"],
        seen["reconnect_ms"]["sum"],
        sum(seen["reconnect_ms"]["counts"]),
    )
    assert ["default"] == [route["name"] for route in seen["routes"]]


async def test_a_stream_that_is_read_left_and_resumed(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock, look: Look
) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"data: 2")
    response.close()
    await unread(sidecar)
    clock.advance(2)
    left = await look()
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 2")
    seen = await look()

    assert (0, 1, 0, 1) == (left["concurrent"], left["unread"], left["readers"], left["streams"]["live"])
    assert (1, 0, 1, 1) == (seen["concurrent"], seen["unread"], seen["readers"], seen["streams"]["live"])
    assert {"received": 2, "delivered": 3, "replayed": 1, "lost": 0, "duplicates": 0} == seen["events"]
    assert pytest.approx(100 * 2 / 3) == seen["completion_rate"]
    assert (3000, 1) == (seen["reconnect_ms"]["sum"], seen["reconnect_ms"]["count"])
    bounds = seen["reconnect_ms"]["bounds"]
    assert [bound == 3000 for bound in [*bounds, None]] == [bool(count) for count in seen["reconnect_ms"]["counts"]]
    assert 1 == seen["resumes"]["resumed"]
    [stream] = seen["active"]
    held = stream.pop("bytes")
    assert {
        "stream": response.stream_id[:6],
        "route": "default",
        "method": "POST",
        "state": "live",
        "readers": 1,
        "first": 1,
        "last": 2,
        "age": 4.0,
        "quiet": 4.0,
    } == stream
    assert 0 < held < seen["memory"]["held"]
    [route] = seen["routes"]
    assert {
        "name": "default",
        "streams": 1,
        "readers": 1,
        "received": 2,
        "delivered": 3,
        "replayed": 1,
        "lost": 0,
        "duplicates": 0,
        "stalls": 0,
        "errors": 0,
        "completion_rate": seen["completion_rate"],
    } == route


async def test_no_id_is_shown_whole(open_stream: OpenStream, look: Look) -> None:
    _, response = await open_stream("/")
    seen = json.dumps(await look())

    assert response.stream_id[:6] in seen
    assert response.stream_id[:8] not in seen


async def test_routes_are_shown_each_and_added_up(start: StartSidecar, upstream: Upstream, clock: ManualClock) -> None:
    sidecar = await start(route=[{"path": "/a", "name": "first"}])
    sidecar.metrics.route("first").events_received += 2
    sidecar.metrics.route("default").events_received += 3
    sidecar.metrics.route("first").reconnects.observe(10)
    sidecar.metrics.route("default").reconnects.observe(10)
    clock.advance(1)
    seen = await snapshot(sidecar)

    assert {"first": 2, "default": 3} == {route["name"]: route["received"] for route in seen["routes"]}
    assert (5, 2) == (seen["events"]["received"], seen["reconnect_ms"]["counts"][0])


async def test_what_is_over_is_not_among_the_active(open_stream: OpenStream, look: Look) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.end()
    await response.read_to_end()
    seen = await look()

    assert ([], 1) == (seen["active"], seen["streams"]["complete"])
    assert (0, 0, 0) == (seen["unread"], seen["concurrent"], seen["readers"])


async def test_the_last_active_streams_are_listed_the_latest_first(
    sidecar: Sidecar, open_stream: OpenStream, look: Look
) -> None:
    opened = [(await open_stream(f"/{number}"))[1] for number in range(MAX_ACTIVE + 2)]
    seen = await look()

    assert [response.stream_id[:6] for response in reversed(opened)][:MAX_ACTIVE] == [
        stream["stream"] for stream in seen["active"]
    ]


async def test_readers_that_lag_are_listed_the_furthest_first(
    sidecar: Sidecar, open_stream: OpenStream, look: Look, clock: ManualClock
) -> None:
    """They stand in the log where their stream's other side has long been; see Reader.cursor."""
    short = {}
    for behind in range(1, MAX_LAGGING + 3):
        _, response = await open_stream(f"/{behind}", method="POST")
        short[behind] = response.stream_id[:6]
        stream = sidecar.streams.find(response.stream_id)
        assert stream is not None
        stream.append([b"data\n\n"] * behind, clock.time())
        [reader] = stream.readers
        stream.behind[_Lagging(reader.wrote_at)] = None
    clock.advance(3)
    seen = await look()

    furthest = sorted(short, reverse=True)[:MAX_LAGGING]
    assert [(short[behind], behind, 4.0) for behind in furthest] == [
        (lag["stream"], lag["events"], lag["seconds"]) for lag in seen["lagging"]
    ]


class _Lagging:
    """A reader that has been sent nothing."""

    cursor = 0

    def __init__(self, wrote_at: float) -> None:
        self.wrote_at = wrote_at

    def on_end(self) -> None: ...

    def cut_off(self) -> None: ...


async def test_errors_are_listed_the_last_first_and_one_that_goes_on_is_one(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock, look: Look
) -> None:
    for _ in range(3):
        await ask("/", headers={"Last-Event-ID": "1-p" + "A" * 22})
    asked, response = await open_stream("/", method="POST")
    clock.advance(31)
    asked.reset()
    await response.closed()
    await until(lambda: not sidecar.streams.reader_count)
    seen = await look()

    assert [("upstream-lost", 1), ("stall", 1), ("gone", 3)] == [
        (error["code"], error["count"]) for error in seen["errors"]
    ]
    assert [response.stream_id[:6]] * 2 + [""] == [error["stream"] for error in seen["errors"]]
    assert all(seen["started"] <= error["time"] <= seen["time"] for error in seen["errors"])
    assert (4, 1) == (seen["routes"][0]["errors"], seen["stalls"])


@with_settings(drain_delay=5)
async def test_a_process_that_drains_says_so(sidecar: Sidecar, clock: ManualClock, look: Look) -> None:
    draining = asyncio.ensure_future(sidecar.drain())
    await asyncio.sleep(0)
    seen = await look()
    clock.advance(5)
    await draining

    assert not seen["ready"]
