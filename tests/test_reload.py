"""Settings that are read again: requests from then on are answered by them, and what is open is not touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.config import Settings, load
from sse_sidecar.errors import ConfigError
from tests.conftest import Ask, OpenStream, StartSidecar
from tests.harness import ManualClock, Response, Upstream, port_of, request, scrape, unread


@pytest.fixture
async def other() -> AsyncIterator[Upstream]:
    server = Upstream()
    await server.start()
    yield server
    await server.stop()


def changed(sidecar: Sidecar, upstream: Upstream, **values: Any) -> Settings:
    """What the sidecar was started with, but for some values."""
    tables = values.pop("route", None)
    fixed = {"listen": str(sidecar.settings.listen), "admin_listen": str(sidecar.settings.admin_listen)}
    return load({**fixed, "upstream": upstream.url, "upstream_keepalive": 0, **values}, tables=tables)


async def answered(sidecar: Sidecar, server: Upstream, target: str = "/") -> Response:
    asking = asyncio.ensure_future(request(port_of(sidecar), target))
    await (await server.asked()).respond("200 OK")
    response = await asking
    response.close()
    return response


async def test_requests_from_then_on_go_where_the_settings_say(
    sidecar: Sidecar, upstream: Upstream, other: Upstream
) -> None:
    await answered(sidecar, upstream)
    sidecar.reload(changed(sidecar, upstream, route=[{"path": "/b", "name": "fresh", "upstream": other.url}]))
    await answered(sidecar, upstream, "/a")
    await answered(sidecar, other, "/b")

    assert 0 == (await scrape(sidecar))['sse_message_loss_total{route="fresh"}']


async def test_a_stream_goes_on_and_is_resumed(
    sidecar: Sidecar, upstream: Upstream, other: Upstream, open_stream: OpenStream, ask: Ask
) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    sidecar.reload(changed(sidecar, other, linger=1))
    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"data: 2")
    response.close()
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 2")

    assert ("resumed", []) == (again.sse_status, other.requests)


async def test_an_open_stream_keeps_its_own_settings_and_the_next_one_has_the_new(
    sidecar: Sidecar, upstream: Upstream, open_stream: OpenStream, clock: ManualClock
) -> None:
    _, before = await open_stream("/1")
    sidecar.reload(changed(sidecar, upstream, heartbeat=3))
    _, after = await open_stream("/2")
    clock.advance(3)
    await after.read_until(b": heartbeat")
    early = before.body
    clock.advance(7)
    await before.read_until(b": heartbeat")

    assert b": heartbeat" not in early


async def test_limits_hold_from_then_on(
    sidecar: Sidecar, upstream: Upstream, open_stream: OpenStream, ask: Ask
) -> None:
    await open_stream("/1")
    sidecar.reload(changed(sidecar, upstream, max_streams=1, max_memory="100MiB"))
    second = await ask("/2", headers={"Accept": "text/event-stream"})

    assert 503 == second.status
    assert 100 << 20 == (await scrape(sidecar))["sse_history_limit_bytes"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("listen", "127.0.0.1:1"), ("admin_listen", ""), ("admin_listen", "127.0.0.1:1"), ("header_timeout", 3)],
)
async def test_what_only_a_restart_can_change_is_refused_and_nothing_changes(
    sidecar: Sidecar, upstream: Upstream, name: str, value: str
) -> None:
    before = sidecar.settings
    settings = changed(sidecar, upstream, **{name: value, "heartbeat": 3})

    with pytest.raises(ConfigError, match=f"^{name} = .* a restart changes it$"):
        sidecar.reload(settings)
    assert before is sidecar.settings
    await answered(sidecar, upstream)


async def test_upstreams_without_a_reader_are_bounded_as_it_then_says(
    sidecar: Sidecar, upstream: Upstream, open_stream: OpenStream
) -> None:
    _, first = await open_stream("/1")
    sidecar.reload(changed(sidecar, upstream, max_unread=1))
    _, second = await open_stream("/2")
    for response in (first, second):
        response.close()
    await unread(sidecar)

    assert ["dormant", "live"] == sorted(stream.state.value for stream in sidecar.streams)


async def test_idle_connections_to_the_service_are_let_go_of(start: StartSidecar, other: Upstream) -> None:
    sidecar = await start(upstream_keepalive=2, upstream=other.url)
    await answered(sidecar, other)
    sidecar.reload(changed(sidecar, other, upstream_keepalive=2))

    await other.requests[0].closed()
