"""Log lines: what people and machines are shown of the same facts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.logs import JsonLines, TextLines, facts
from tests.conftest import Ask, Connect, OpenStream, with_settings
from tests.harness import ManualClock, Upstream, unread, until

PassThrough = Callable[[str, str], Awaitable[None]]


def record(message: str, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("sse_sidecar.x", logging.INFO, "x.py", 1, message, (), None)
    made.created = 1764352800.1234
    made.__dict__.update(facts(**values))
    return made


def told(records: Iterable[logging.LogRecord], message: str) -> list[dict[str, Any]]:
    """The facts of each line with that message, as machines get them."""
    lines = [json.loads(JsonLines().format(each)) for each in records]
    return [line for line in lines if line["message"] == message]


def only(line: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run."""
    return {name: value for name, value in line.items() if name not in ("time", "logger")}


# One line


def test_people_are_shown_the_facts_behind_the_words() -> None:
    line = TextLines().format(record("stream opened", route="/v1/*", stream="gAbC-_", seq=0, ratio=0.5, follows=None))

    assert "2025-11-28T18:00:00.123Z INFO    stream opened route=/v1/* stream=gAbC-_ seq=0 ratio=0.5" == line


def test_machines_are_shown_them_beside_the_message() -> None:
    line = json.loads(JsonLines().format(record("stream opened", route="default", seq=0, follows=None)))

    assert {
        "time": "2025-11-28T18:00:00.123Z",
        "level": "info",
        "logger": "sse_sidecar.x",
        "message": "stream opened",
        "route": "default",
        "seq": 0,
    } == line


@pytest.mark.parametrize("value", ["two words", 'a"b', "a=b", "a\nINFO b", "", "ü", "\udcff"])
def test_a_value_is_one_value_whatever_it_holds(value: str) -> None:
    """Paths come from clients: none may look like another fact, or another line."""
    line = TextLines().format(record("request", path=value))

    assert line.endswith(f"request path={json.dumps(value)}")
    assert line.isascii()
    assert "\n" not in line


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_an_exception_is_told_with_its_traceback(form: logging.Formatter) -> None:
    failed = record("a request failed")
    try:
        int("no number")
    except ValueError as error:
        failed.exc_info = (ValueError, error, error.__traceback__)

    assert "Traceback" in form.format(failed)
    assert "no number" in form.format(failed)


# The life of a stream


async def test_a_stream_is_opened_resumed_and_ended_in_a_line_each(
    open_stream: OpenStream, ask: Ask, sidecar: Sidecar, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked, response = await open_stream("/", method="POST")
    await asked.stream(b"data: 1\n\ndata: 2\n\n")
    await response.read_until(b"data: 2")
    response.close()
    await unread(sidecar)
    clock.advance(1.5)
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 2")
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()
    await again.read_to_end()
    short = response.stream_id[:6]
    [opened], [resumed], [ended] = [told(caplog.records, f"stream {what}") for what in ("opened", "resumed", "ended")]
    size = ended.pop("held_bytes")

    both = {"level": "info", "route": "default", "stream": short}
    assert {**both, "message": "stream opened", "method": "POST", "seq": 0} == only(opened)
    assert {
        **both,
        "message": "stream resumed",
        "status": "resumed",
        "seq": 1,
        "replay": 1,
        "away_ms": 1500,
        "readers": 1,
    } == only(resumed)
    assert {
        **both,
        "message": "stream ended",
        "state": "complete",
        "cause": "its upstream ended it, after a completion mark",
        "seq": 3,
        "events": 3,
        "readers": 1,
        "duration_s": 1.5,
    } == only(ended)
    assert size > 0


@with_settings(max_stream_events=2)
async def test_a_resume_that_lost_something_says_how_much(
    open_stream: OpenStream, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked, response = await open_stream("/")
    for number in range(1, 6):
        await asked.stream(b"data: %d\n\n" % number)
        await response.read_until(b"data: %d" % number)
    again = await ask("/", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await again.read_until(b"data: 5")
    [line] = told(caplog.records, "stream resumed")

    assert ("gap", 3, 2, 2) == (line["status"], line["seq"], line["replay"], line["lost"])


async def test_a_stream_that_begins_anew_says_so(open_stream: OpenStream, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await open_stream("/", headers={"Last-Event-ID": "5-g" + "A" * 22})
    [line] = told(caplog.records, "stream resumed")

    assert ("reset", 0) == (line["status"], line["seq"])
    assert "away_ms" not in line


async def test_a_stream_that_broke_says_why(
    open_stream: OpenStream, sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked, _ = await open_stream("/", method="POST")
    asked.reset()
    await until(lambda: all(stream.ended for stream in sidecar.streams))
    [line] = told(caplog.records, "stream ended")

    assert ("warning", "broken") == (line["level"], line["state"])
    assert line["cause"].startswith("its upstream was lost: OriginLost")


# The access log


@pytest.fixture
def pass_through(ask: Ask, upstream: Upstream) -> PassThrough:
    async def passing(target: str, status: str) -> None:
        asking = asyncio.ensure_future(ask(target))
        await (await upstream.asked()).respond(status)
        await asking

    return passing


async def test_there_is_no_access_log_unless_it_is_asked_for(
    pass_through: PassThrough, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await pass_through("/", "200 OK")

    assert [] == told(caplog.records, "request")


@with_settings(access_log=True)
async def test_each_request_has_a_line_without_its_query(
    pass_through: PassThrough, open_stream: OpenStream, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await pass_through("/a%20b?key=secret", "404 Not Found")
    _, response = await open_stream("/events")
    clock.advance(2)
    response.close()
    await until(lambda: len(told(caplog.records, "request")) == 2)
    plain, stream = [only(line) for line in told(caplog.records, "request")]

    both = {"level": "info", "message": "request", "client": "127.0.0.1", "method": "GET", "route": "default"}
    assert {**both, "path": "/a%20b", "status": 404, "duration_ms": 0} == plain
    assert {
        **both,
        "path": "/events",
        "status": 200,
        "stream": response.stream_id[:6],
        "duration_ms": 2000,
    } == stream


@with_settings(access_log=True)
async def test_a_request_that_failed_is_told_with_its_status(
    ask: Ask, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await upstream.stop()
    await ask("/away")

    assert [502] == [line["status"] for line in told(caplog.records, "request")]


@with_settings(access_log=True)
async def test_a_client_that_left_before_its_answer_is_told_apart(
    connect: Connect, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await upstream.asked()
    client.close()
    await until(lambda: told(caplog.records, "request"))

    assert 499 == told(caplog.records, "request")[0]["status"]
