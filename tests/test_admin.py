"""The admin port: health for the orchestrator, metrics for Prometheus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sse_sidecar.app import Sidecar
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import ManualClock, Response, Upstream, request, until

AskAdmin = Callable[..., Awaitable[Response]]


@pytest.fixture
async def ask_admin(sidecar: Sidecar) -> AsyncIterator[AskAdmin]:
    """Sends a request to the admin port and reads the answer; a method other than HEAD."""
    assert sidecar.admin_address is not None
    port = sidecar.admin_address.port
    responses: list[Response] = []

    async def asking(path: str, method: str = "GET") -> Response:
        response = await request(port, path, method=method, headers={"Connection": "close"})
        responses.append(response)
        await response.read_to_end()
        return response

    yield asking
    for response in responses:
        response.close()


async def test_healthz_says_that_the_process_lives(ask_admin: AskAdmin) -> None:
    response = await ask_admin("/healthz")

    assert (200, b"ok\n") == (response.status, response.body)


async def test_readyz_says_that_traffic_is_taken(ask_admin: AskAdmin) -> None:
    response = await ask_admin("/readyz")

    assert (200, b"ready\n") == (response.status, response.body)


@with_settings(drain_delay=5)
async def test_a_process_that_drains_lives_and_is_not_ready(
    sidecar: Sidecar, ask_admin: AskAdmin, clock: ManualClock
) -> None:
    draining = asyncio.ensure_future(sidecar.drain())
    await asyncio.sleep(0)
    ready, healthy = await ask_admin("/readyz"), await ask_admin("/healthz")
    clock.advance(5)
    await draining

    assert (503, b"draining\n") == (ready.status, ready.body)
    assert 200 == healthy.status


async def test_the_admin_port_outlasts_what_is_drained(
    sidecar: Sidecar, ask_admin: AskAdmin, clock: ManualClock, open_stream: OpenStream
) -> None:
    """Whoever watches a drain wants its metrics to the last."""
    asked, response = await open_stream("/", method="POST")
    draining = asyncio.ensure_future(sidecar.drain())
    await asyncio.sleep(0)
    clock.advance(0)
    metrics = await ask_admin("/metrics")
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()
    await response.read_to_end()
    await draining

    assert b'sse_concurrent_streams{route="default"} 1.0' in metrics.body


async def test_the_upstreams_state_is_not_the_sidecars(upstream: Upstream, ask: Ask, ask_admin: AskAdmin) -> None:
    """An upstream that is down must not have its sidecar restarted, and the histories with it."""
    await upstream.stop()
    failed = await ask("/")
    ready, healthy = await ask_admin("/readyz"), await ask_admin("/healthz")

    assert [502, 200, 200] == [failed.status, ready.status, healthy.status]


async def test_metrics_are_prometheus_text(ask_admin: AskAdmin) -> None:
    response = await ask_admin("/metrics")
    families = {family.name: family.type for family in text_string_to_metric_families(response.body.decode())}

    assert "text/plain; version=0.0.4; charset=utf-8" == response.header("content-type")
    assert ("gauge", "counter") == (families["sse_concurrent_streams"], families["sse_message_loss"])


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_health_and_metrics_are_not_on_the_main_port(upstream: Upstream, ask: Ask, path: str) -> None:
    """They may be paths of the service, and are nobody's business outside."""
    asking = asyncio.ensure_future(ask(path))
    asked = await upstream.asked()
    await asked.respond("200 OK", body=b"the service's own")
    response = await asking

    assert b"the service's own" == await response.read_to_end()


# The live page


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/overview.css", "text/css"), ("/overview.js", "text/javascript")],
)
async def test_the_live_page_comes_from_the_package_and_loads_nothing_from_elsewhere(
    ask_admin: AskAdmin, path: str, kind: str
) -> None:
    response = await ask_admin(path)
    policy = response.header("content-security-policy")

    assert (200, f"{kind}; charset=utf-8") == (response.status, response.header("content-type"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert b"http://" not in response.body.replace(b"http://www.w3.org/", b"")
    assert b"https://" not in response.body


async def test_what_goes_on_is_there_as_json(ask_admin: AskAdmin) -> None:
    response = await ask_admin("/streams")

    assert (200, "application/json", "no-store") == (
        response.status,
        response.header("content-type"),
        response.header("cache-control"),
    )
    assert 0 == json.loads(response.body)["readers"]


async def test_the_page_is_fed_a_snapshot_at_once_and_one_a_second(
    sidecar: Sidecar, clock: ManualClock, open_stream: OpenStream
) -> None:
    assert sidecar.admin_address is not None
    feed = await request(sidecar.admin_address.port, "/events", headers={"Accept": "text/event-stream"})
    await feed.read_until(b"\n\n")
    await open_stream("/")
    clock.advance(0.9)
    before = bytes(feed.body)
    clock.advance(0.1)
    await until_events(feed, 2)
    feed.close()
    seen = [json.loads(event.removeprefix(b"data: ")) for event in feed.body.split(b"\n\n")[:-1]]

    assert "text/event-stream" == feed.header("content-type")
    assert 1 == before.count(b"\n\n")
    assert [0, 1] == [snapshot["readers"] for snapshot in seen]


async def until_events(feed: Response, number: int) -> None:
    while feed.body.count(b"\n\n") < number:
        assert await feed.read_some()


async def test_a_page_that_watches_does_not_hold_up_the_end(start: StartSidecar) -> None:
    sidecar = await start()
    assert sidecar.admin_address is not None
    feed = await request(sidecar.admin_address.port, "/events")
    await feed.read_until(b"\n\n")
    await sidecar.stop()
    await feed.closed()
    feed.close()


async def test_a_page_that_is_closed_is_fed_no_more(sidecar: Sidecar, clock: ManualClock) -> None:
    assert sidecar.admin_address is not None
    timers = clock.pending
    feed = await request(sidecar.admin_address.port, "/events")
    await feed.read_until(b"\n\n")
    await until(lambda: clock.pending > timers)
    feed.close()
    await until(lambda: clock.pending == timers)


@pytest.mark.parametrize(("path", "method", "status"), [("/healthz", "POST", 405), ("/nothing", "GET", 404)])
async def test_nothing_else_is_on_the_admin_port(
    upstream: Upstream, ask_admin: AskAdmin, path: str, method: str, status: int
) -> None:
    response = await ask_admin(path, method)

    assert status == response.status
    assert [] == upstream.requests
