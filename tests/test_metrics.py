"""The instruments: each is driven to a known value by what it counts, and none tells a secret."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.metrics import Metrics
from tests.conftest import Ask, OpenStream, StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, TIMEOUT, ManualClock, Upstream, port_of, request, scrape, until

Read = Callable[..., Awaitable[float | None]]

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def read(sidecar: Sidecar) -> Read:
    """The value of a counter of the default route, or of a gauge; None where there is none yet."""

    async def reading(name: str, **labels: str) -> float | None:
        values = await scrape(sidecar)
        if name in values:
            return values[name]
        listed = ",".join(f'{key}="{value}"' for key, value in sorted({"route": "default", **labels}.items()))
        return values.get(f"{name}_total{{{listed}}}")

    return reading


async def lines_of(sidecar: Sidecar, name: str) -> dict[str, float]:
    return {key: value for key, value in (await scrape(sidecar)).items() if key.startswith(name)}


# Events


async def test_events_and_bytes_are_counted_as_they_come_and_go(open_stream: OpenStream, read: Read) -> None:
    raw = b"data: 1\r\n\r\n: comment\n\nid: x\ndata: 2\n\nretry: 5\n\n"
    asked, response = await open_stream("/")
    await asked.stream(raw)
    await response.read_until(b"retry: 5")

    assert 2 == await read("sse_events_received")
    assert len(raw) == await read("sse_upstream_bytes")
    assert 2 == await read("sse_events_delivered")
    assert 0 == await read("sse_events_replayed")


async def test_a_replay_is_delivered_and_replayed(open_stream: OpenStream, ask: Ask, read: Read) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
    await response.read_until(b"data: 3")
    response.close()
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 3")
    await asked.stream(b"data: 4\n\n")
    await again.read_until(b"data: 4")

    assert 4 == await read("sse_events_received")
    assert 3 + 3 == await read("sse_events_delivered")
    assert 2 == await read("sse_events_replayed")
    assert 1 == await read("sse_resumes", status="resumed")


async def test_the_bytes_of_a_compressed_stream_are_counted_decoded(open_stream: OpenStream, read: Read) -> None:
    raw = b"data: " + b"1" * 1000 + b"\n\n"
    asked, response = await open_stream("/", answer=("Content-Encoding: gzip",))
    await asked.stream(gzip.compress(raw))
    await response.read_until(b"id: 1-")

    assert len(raw) == await read("sse_upstream_bytes")


async def test_each_heartbeat_to_each_reader_is_counted(
    open_stream: OpenStream, clock: ManualClock, read: Read
) -> None:
    opened = [await open_stream(f"/{number}") for number in range(3)]
    for beats in (1, 2):
        clock.advance(10)
        for _, response in opened:
            await response.read_until(b": heartbeat\n" * beats)

        assert 3 * beats == await read("sse_heartbeats")


@with_settings(max_stream_events=2)
async def test_events_that_were_asked_for_and_are_not_held_are_lost(
    open_stream: OpenStream, ask: Ask, read: Read
) -> None:
    asked, response = await open_stream("/")
    for number in range(1, 6):
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"data: %d" % number)
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 5")

    assert 2 == await read("sse_message_loss")
    assert 1 == await read("sse_user_visible_errors", code="gap")
    assert 1 == await read("sse_resumes", status="gap")


async def test_events_that_come_again_after_a_reconnect_are_duplicates(
    open_stream: OpenStream, upstream: Upstream, clock: ManualClock, read: Read
) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n")
    await response.read_until(b"data: 2")
    asked.close()
    async with asyncio.timeout(TIMEOUT):
        while len(upstream.requests) < 2:
            clock.advance(0.1)
            await asyncio.sleep(0.001)
    again = await upstream.asked()
    await again.begin()
    await again.stream(b"id: b\ndata: 2\n\nid: c\ndata: 3\n\n")
    await response.read_until(b"data: 3")

    assert 1 == await read("sse_duplicate_events")
    assert 3 == await read("sse_events_delivered")
    assert 2 == await read("sse_upstream_connects", result="ok")


async def test_a_stall_is_counted_once_until_the_upstream_speaks_again(
    open_stream: OpenStream, clock: ManualClock, read: Read
) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    clock.advance(29.9)
    counts = [await read("sse_stall_detections")]
    for seconds in (0.1, 60):
        clock.advance(seconds)
        counts.append(await read("sse_stall_detections"))
    await asked.stream(b"data: 2\n\n")
    await response.read_until(b"data: 2")
    clock.advance(60)
    counts.append(await read("sse_stall_detections"))

    assert [0, 1, 1, 2] == counts


# Requests


async def test_a_stream_that_cannot_be_decoded_is_counted(ask: Ask, upstream: Upstream, read: Read) -> None:
    asking = asyncio.ensure_future(ask("/"))
    asked = await upstream.asked()
    await asked.respond("200 OK", "Content-Type: text/event-stream", "Content-Encoding: x-own", body=b"\x01")
    await asking

    assert 1 == await read("sse_undecodable_streams")
    assert 1 == await read("sse_passthrough_requests", code="200")


async def test_passthrough_is_counted_by_status(ask: Ask, upstream: Upstream, read: Read, sidecar: Sidecar) -> None:
    for status in ("200 OK", "404 Not Found", "404 Not Found"):
        asking = asyncio.ensure_future(ask("/"))
        asked = await upstream.asked()
        await asked.respond(status)
        await asking
    await upstream.stop()
    await ask("/")
    counted = await lines_of(sidecar, "sse_passthrough_requests_total")

    assert {"200": 1.0, "404": 2.0, "502": 1.0} == {key.split('"')[1]: value for key, value in counted.items()}
    assert 3 == await read("sse_upstream_connects", result="ok")
    assert 1 == await read("sse_upstream_connects", result="Unreachable")
    assert None is await read("sse_user_visible_errors", code="502")


async def _gone(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await ask("/", headers={"Last-Event-ID": "1-p" + "A" * 22})


async def _reset(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await open_stream("/", headers={"Last-Event-ID": "1-g" + "A" * 22})


async def _upstream_lost(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asked, response = await open_stream("/", method="POST")
    asked.close()
    await response.read_to_end()


async def _too_large(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asked, response = await open_stream("/")
    await asked.stream(b"data: " + b"1" * 2000 + b"\n\n")
    await response.read_to_end()


async def _over_max_streams(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await open_stream("/1")
    await ask("/2", headers=STREAM)


async def _over_max_readers(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    _, response = await open_stream("/1")
    await ask("/1", headers={"Last-Event-ID": f"0-{response.stream_id}"})


async def _unreachable(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    await upstream.stop()
    await ask("/", headers=STREAM)


async def _closed(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(ask("/", headers=EVENT_SOURCE))
    (await upstream.asked()).close()
    await asking


class Situation(NamedTuple):
    """What a client meets, with which settings, and the code it is counted under."""

    happens: Callable[[OpenStream, Ask, Upstream], Awaitable[None]]
    code: str
    settings: dict[str, object]


SITUATIONS = [
    Situation(_gone, "gone", {}),
    Situation(_reset, "reset", {}),
    Situation(_upstream_lost, "upstream-lost", {}),
    Situation(_too_large, "too-large", {"max_event_bytes": 1000}),
    Situation(_over_max_streams, "max_streams", {"max_streams": 1}),
    Situation(_over_max_readers, "max_readers", {"max_readers": 1}),
    Situation(_unreachable, "502", {}),
    Situation(_closed, "502", {}),
]


@pytest.mark.parametrize(
    ("situation", "settings"), [(it, it.settings) for it in SITUATIONS], ids=[it.happens.__name__ for it in SITUATIONS]
)
async def test_an_error_that_a_user_sees_is_counted_once_by_its_code(
    situation: Situation, sidecar: Sidecar, open_stream: OpenStream, ask: Ask, upstream: Upstream
) -> None:
    await situation.happens(open_stream, ask, upstream)

    assert {f'sse_user_visible_errors_total{{code="{situation.code}",route="default"}}': 1.0} == await lines_of(
        sidecar, "sse_user_visible_errors_total"
    )


async def test_an_answer_that_does_not_come_in_time_is_counted(
    ask: Ask, upstream: Upstream, clock: ManualClock, read: Read
) -> None:
    asking = asyncio.ensure_future(ask("/", headers=STREAM))
    await upstream.asked()
    clock.advance(300)
    response = await asking

    assert 504 == response.status
    assert 1 == await read("sse_user_visible_errors", code="504")


async def test_a_resume_of_what_is_over_is_counted(open_stream: OpenStream, ask: Ask, read: Read) -> None:
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()
    await response.read_to_end()
    over = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})

    assert 204 == over.status
    assert 1 == await read("sse_resumes", status="over")
    assert None is await read("sse_user_visible_errors", code="gone")


# Gauges


async def test_streams_and_readers_are_shown_as_they_are(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, read: Read
) -> None:
    async def gauges() -> list[float | None]:
        names = ("concurrent_streams", "readers", "unread_streams", "held_streams")
        return [await read(f"sse_{name}") for name in names]

    before = await gauges()
    asked, response = await open_stream("/", method="POST")
    second = await ask("/", headers={"Last-Event-ID": f"0-{response.stream_id}"})
    two_readers = await gauges()
    response.close()
    second.close()
    await until(lambda: not sidecar.streams.reader_count)
    unread = await gauges()
    await asked.end()
    await until(lambda: all(stream.ended for stream in sidecar.streams))
    held = await gauges()

    assert [0, 0, 0, 0] == before
    assert [1, 2, 0, 1] == two_readers
    assert [0, 0, 1, 1] == unread
    assert [0, 0, 0, 1] == held


@with_settings(history_ttl=100)
async def test_the_bytes_of_histories_are_shown_until_they_are_gone(
    open_stream: OpenStream, clock: ManualClock, read: Read
) -> None:
    before = await read("sse_history_bytes")
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: " + b"1" * 10_000 + b"\n\n")
    await response.read_until(b"id: 1-")
    held = await read("sse_history_bytes")
    await asked.end()
    await response.read_to_end()
    clock.advance(201)
    after = await read("sse_history_bytes")

    assert (0, 0) == (before, after)
    assert held is not None
    assert 10_000 < held < 30_000


@pytest.mark.parametrize(("method", "cause"), [("POST", "finished"), ("GET", "dormant")])
@with_settings(max_memory="60kB", max_stream_bytes="40kB", max_event_bytes="40kB")
async def test_an_eviction_is_counted_by_what_went(
    sidecar: Sidecar, open_stream: OpenStream, method: str, cause: str
) -> None:
    for number in range(2):
        asked, response = await open_stream(f"/{number}", method=method)
        await asked.stream(b"data: " + b"1" * 30_000 + b"\n\n")
        await asked.end()
        await response.read_to_end()

    assert {f'sse_evictions_total{{cause="{cause}"}}': 1.0} == await lines_of(sidecar, "sse_evictions_total")


# Labels and secrets


async def test_each_route_is_counted_by_its_name(start: StartSidecar, upstream: Upstream) -> None:
    sidecar = await start(route=[{"path": "/a/*", "name": "first"}, {"path": "/b/*"}])
    for path in ("/a/1", "/b/1", "/c"):
        asking = asyncio.ensure_future(request(port_of(sidecar), path))
        asked = await upstream.asked()
        await asked.respond("200 OK")
        (await asking).close()
    counted = await lines_of(sidecar, "sse_passthrough_requests_total")

    assert {
        f'sse_passthrough_requests_total{{code="200",route="{name}"}}': 1.0 for name in ("first", "/b/*", "default")
    } == (counted)


def test_the_names_that_are_fixed_are_there_before_anything_happens() -> None:
    metrics = Metrics()
    metrics.route("default")
    text = metrics.exposition().decode()

    for name in ("sse_message_loss_total", "sse_duplicate_events_total", "sse_stall_detections_total"):
        assert f'{name}{{route="default"}} 0.0' in text
    assert "# TYPE sse_user_visible_errors_total counter" in text


SECRETS = ["s3cr3t-key", "s3cr3t-cookie", "s3cr3t-query", "s3cr3t-body", "s3cr3t-upstream-id", "s3cr3t-data"]


async def eventful_day(open_stream: OpenStream, ask: Ask, upstream: Upstream) -> list[str]:
    """A stream is resumed, lost, gone, refused and rejected; the tokens that were seen."""
    credentials = {"Authorization": "Bearer s3cr3t-key", "Cookie": "session=s3cr3t-cookie", "X-Api-Key": "s3cr3t-key"}
    path = "/s3cr3t-query?api_key=s3cr3t-query"
    asked, response = await open_stream(path, headers=credentials)
    await asked.stream(b"id: s3cr3t-upstream-id\ndata: s3cr3t-data\n\n")
    await response.read_until(b"s3cr3t-data")
    response.close()
    again = await ask(path, headers={**credentials, "Last-Event-ID": response.last_id})
    asked.reset()
    await upstream.stop()
    again.close()
    await ask(path, headers={"Last-Event-ID": f"1-p{response.stream_id[1:]}"})
    await ask(path, method="POST", headers=credentials, body=b"s3cr3t-body")
    await ask(path, headers={**credentials, "Last-Event-ID": "s3cr3t-upstream-id"})
    await ask(path, headers={**credentials, "Bad Name": "s3cr3t-key"})
    return [response.stream_id, response.last_id]


async def test_tokens_and_credentials_are_in_no_metric_and_no_log_line(
    sidecar: Sidecar, open_stream: OpenStream, ask: Ask, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = await eventful_day(open_stream, ask, upstream)
    shown = sidecar.metrics.exposition().decode() + caplog.text
    told = [secret for secret in [*SECRETS, *tokens] if secret in shown]

    assert [] == told
    assert "resumed after" in caplog.text
    assert [] == [record for record in caplog.records if record.exc_info]
