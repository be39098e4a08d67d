"""Silence of an upstream past `stall_timeout`: counted once, logged, told, and acted on where the route says so."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, Asked, ManualClock, Upstream, until
from tests.lifecycle import (
    CURL,
    NO_OTHER_TIMERS,
    POST,
    asked_again,
    asleep,
    bulk,
    counted,
    datas,
    go_on,
    kinds,
    leave,
    live,
    opened,
    resuming,
    state_of,
)

ONE = b"id: a\ndata: 1\n\n"
WAITING = b": waiting for upstream"

reconnects = with_settings(on_stall="reconnect")


@pytest.fixture
async def sidecar(start: StartSidecar, settings: dict[str, Any]) -> Sidecar:
    """Nothing is due soon but what a test sets."""
    return await start(**NO_OTHER_TIMERS | {"stall_timeout": 30} | settings)


async def stalls(sidecar: Sidecar) -> float:
    return await counted(sidecar, "sse_stall_detections")


async def heard(sidecar: Sidecar, asked: Asked, data: bytes) -> None:
    """The upstream says something, and the sidecar has it."""
    counts = sidecar.metrics.route("default")
    before = counts.bytes_received
    await asked.stream(data)
    await until(lambda: counts.bytes_received == before + len(data))


@pytest.mark.parametrize(("headers", "end"), [(CURL, b"\n"), (EVENT_SOURCE, b"\n\n")])
async def test_silence_past_the_timeout_is_counted_logged_and_told(
    open_stream: OpenStream,
    sidecar: Sidecar,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    *,
    headers: dict[str, str],
    end: bytes,
) -> None:
    _, response = await opened(open_stream, ONE, headers=headers)
    seen = len(response.body)

    clock.advance(29.9)
    before = await stalls(sidecar)
    clock.advance(0.1)
    await response.read_until(WAITING)

    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert WAITING + end == response.body[seen:]
    assert (0, 1, 1) == (before, await stalls(sidecar), len(warnings))
    assert "30 s" in warnings[0]
    assert response.stream_id not in warnings[0]


async def test_one_silence_is_one_stall_however_long_it_lasts(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)

    for _ in range(10):
        clock.advance(30)
    counted_in_silence = await stalls(sidecar)
    await heard(sidecar, asked, b"data: 2\n\n")
    await response.read_until(b"id: 2-")

    assert (1, 1) == (counted_in_silence, await stalls(sidecar))
    assert (1, ["1", "2"], 1) == (response.body.count(WAITING), kinds(response), len(upstream.requests))


async def test_each_silence_counts(open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock) -> None:
    asked, response = await opened(open_stream, ONE)

    for silence in range(1, 4):
        clock.advance(47)
        while response.body.count(WAITING) < silence:
            await response.read_some()
        await heard(sidecar, asked, b": I am still here\n")

    assert 3 == await stalls(sidecar)


@pytest.mark.parametrize("said", [b"data: 2\n\n", b": ping\n\n", b"\n", b"d"])
async def test_any_byte_breaks_the_silence(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock, said: bytes
) -> None:
    asked, _ = await opened(open_stream, ONE)

    for _ in range(3):
        clock.advance(29)
        await heard(sidecar, asked, said)
    clock.advance(29.9)
    before = await stalls(sidecar)
    clock.advance(0.1)

    assert (0, 1) == (before, await stalls(sidecar))


async def test_an_upstream_that_says_nothing_from_its_head_on_has_stalled(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, response = await open_stream("/a")

    clock.advance(30)
    await response.read_until(WAITING)

    assert 1 == await stalls(sidecar)


async def test_a_stall_within_an_event_is_told_to_readers_between_events(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)

    await heard(sidecar, asked, b"data: 2\nda")
    clock.advance(30)
    await response.read_until(WAITING)
    await asked.stream(b"ta: 2\n\n")
    await response.read_until(b"id: 2-")

    assert ["1", "2\n2"] == datas(response)
    assert WAITING + b"\ndata: 2\ndata: 2\nid: 2-" in response.body


async def test_each_reader_is_told_of_one_stall(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, first = await opened(open_stream, ONE)
    second = await ask("/a", headers=resuming(f"0-{first.stream_id}", EVENT_SOURCE))
    await second.read_until(b"id: 1-")
    await until(lambda: len(sidecar.front.answers.readers) == 2)

    clock.advance(30)
    await first.read_until(WAITING)
    await second.read_until(WAITING)

    assert 1 == await stalls(sidecar)


async def test_a_stall_is_counted_without_a_reader_too(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    _, response = await opened(open_stream, ONE)
    await leave(sidecar, response)

    clock.advance(30)

    assert (1, 1) == (await stalls(sidecar), len(upstream.requests))


async def test_an_upstream_that_has_ended_does_not_stall(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)
    await asked.end()
    await response.read_to_end()

    clock.advance(100)

    assert 0 == await stalls(sidecar)


@with_settings(reconnect_timeout=1000)
async def test_an_upstream_that_is_being_asked_again_does_not_stall(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """That it is away is known, and was told."""
    asked, response = await opened(open_stream, ONE)
    asked.reset()
    again = await asked_again(upstream, clock)

    clock.advance(100)
    while_away = await stalls(sidecar)
    await again.begin()
    await again.stream(b"id: b\ndata: 2\n\n")
    await response.read_until(b"id: 2-")
    clock.advance(30)

    assert (0, 1) == (while_away, await stalls(sidecar))


# A slow reader is no stall


paused = with_settings(stall_timeout=30, slow_reader_timeout=1000, max_stream_bytes=300_000, max_event_bytes=100_000)


@paused
async def test_an_upstream_that_is_paused_for_a_slow_reader_has_not_stalled(
    open_stream: OpenStream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """Nor has it right after."""
    asked, response = await opened(open_stream, ONE)
    async with asleep(sidecar, resuming(f"0-{response.stream_id}")) as sleeper:
        response.close()
        await until(lambda: sidecar.streams.reader_count == 1)
        timers = clock.pending
        await asked.stream(bulk(100))
        await until(lambda: clock.pending > timers)  # the slow reader's
        clock.advance(100)
        while_paused = await stalls(sidecar)
        await sleeper.read_until(b"\nid: 101-")
        clock.advance(29.9)
        right_after = await stalls(sidecar)
        clock.advance(0.1)

        assert (0, 0, 1) == (while_paused, right_after, await stalls(sidecar))


# Acted on


@reconnects
async def test_where_the_route_says_so_a_get_that_stalls_is_asked_again(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)

    clock.advance(30)
    await asked.closed()
    again = await go_on(upstream, clock, b"id: b\ndata: 2\n\n")
    await response.read_until(b"id: 2-")

    assert ("a", ["1", "2"], 1) == (again.header("last-event-id"), kinds(response), await stalls(sidecar))
    assert "live" == await state_of(sidecar, response)


@with_settings(on_stall="reconnect", reconnect="always")
async def test_a_stalled_get_without_ids_is_asked_again_with_a_gap_where_that_is_always_so(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, b"data: 1\n\n")

    clock.advance(30)
    await asked.closed()
    await go_on(upstream, clock, b"data: 2\n\n")
    await response.read_until(b"id: 2-")

    assert ["1", "gap", "2"] == kinds(response)


@reconnects
async def test_each_connection_that_stalls_is_asked_again(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    """One that says nothing after its head as well: a process that hangs takes connections all the same."""
    asked, response = await opened(open_stream, ONE)
    for attempt in (1, 2, 3):
        clock.advance(30)
        await asked.closed()
        asked = await asked_again(upstream, clock)
        await asked.begin()
        await until(lambda: live(sidecar, response))

        assert attempt == await stalls(sidecar)

    await asked.stream(b"id: b\ndata: 2\n\n")
    await response.read_until(b"id: 2-")

    assert ["1", "2"] == kinds(response)


@pytest.mark.parametrize("settings", [{"on_stall": "reconnect"}, {"on_stall": "reconnect", "reconnect": "always"}])
async def test_what_may_not_be_repeated_is_waited_for(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE, **POST)

    clock.advance(30)
    await response.read_until(WAITING)
    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"id: 2-")

    assert (["1", "2"], 1, 1) == (kinds(response), await stalls(sidecar), len(upstream.requests))


async def test_by_default_a_stalled_get_is_waited_for(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)

    clock.advance(30)
    await response.read_until(WAITING)
    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"id: 2-")

    assert (["1", "2"], 1) == (kinds(response), len(upstream.requests))


@reconnects
async def test_what_a_stalled_connection_held_unfinished_is_dropped(
    open_stream: OpenStream, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    asked, response = await opened(open_stream, ONE)
    await heard(sidecar, asked, b"id: b\ndata: ha")

    clock.advance(30)
    again = await go_on(upstream, clock, b"id: b\ndata: half\n\n")
    await response.read_until(b"id: 2-")

    assert ("a", ["1", "half"]) == (again.header("last-event-id"), datas(response))
