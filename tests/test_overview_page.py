"""The admin port's live page in headless Chromium: what it makes of a feed that its test writes, and of a real one."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright

from sse_sidecar.app import Sidecar
from sse_sidecar.assets import asset
from tests.harness import EVENT_SOURCE, TIMEOUT, Asked, Response, Upstream, port_of, request, start_sidecar, until
from tests.scenarios.browser import ARGS, COMMAND


def missing(what: str) -> None:
    """Skips all of this file where something is not there; where a build runs, everything is to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what, allow_module_level=True)


if COMMAND is None:
    missing("no Chromium on this machine")

pytestmark = pytest.mark.asyncio(loop_scope="module")

CSP = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
PREFIX = "/behind/a/prefix"
PICTURE = (Path(__file__).parent / "screenshots" / "overview.png").read_bytes()
FILES = {"/": "overview.html", "/overview.css": "overview.css", "/overview.js": "overview.js"}
DASH = "\N{EN DASH}"
TROUBLE_COLOUR = "rgb(168, 74, 0)"
START = 1_764_350_000.0
BOUNDS = [100, 250, 500, 1000, 1500, 2000, 3000, 5000, 7500, 10_000, 30_000, 60_000, 300_000, 1_800_000]

Snapshot = dict[str, Any]


def idle() -> Snapshot:
    """A sidecar that nobody has asked for anything."""
    return {
        "time": START,
        "version": "0.1.0",
        "started": START,
        "ready": True,
        "streams": dict.fromkeys(("live", "reconnecting", "complete", "dormant", "broken"), 0),
        "concurrent": 0,
        "unread": 0,
        "readers": 0,
        "limits": {"streams": 10_000, "readers": 20_000},
        "memory": {"held": 0, "limit": 512 << 20},
        "events": dict.fromkeys(("received", "delivered", "replayed", "lost", "duplicates"), 0),
        "bytes": {"received": 0, "delivered": 0},
        "stalls": 0,
        "heartbeats": 0,
        "completion_rate": 100,
        "resumes": dict.fromkeys(("resumed", "gap", "reset", "new", "over", "gone"), 0),
        "reconnect_ms": {"bounds": BOUNDS, "counts": [0] * (len(BOUNDS) + 1), "sum": 0.0, "count": 0},
        "evictions": dict.fromkeys(("finished", "dormant", "tombstone", "passed", "reader"), 0),
        "routes": [route("default")],
        "lagging": [],
        "errors": [],
        "active": [],
    }


def route(name: str, **values: float) -> Snapshot:
    counts = ("streams", "readers", "received", "delivered", "replayed", "lost", "duplicates", "stalls", "errors")
    return {"name": name, **dict.fromkeys(counts, 0), "completion_rate": 100, **values}


def error(code: str, ago: float, *, now: float = START, name: str = "default", stream: str = "gR3tJ0") -> Snapshot:
    return {"time": now - ago, "route": name, "code": code, "stream": stream, "count": 1}


def small() -> Snapshot:
    """A sidecar of which all figures are different, and none is a trouble."""
    counts = [0, 2, 4, 8, 3, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    return {
        **idle(),
        "time": START + 2800.123,
        "streams": {"live": 3, "reconnecting": 0, "complete": 10, "dormant": 2, "broken": 1},
        "concurrent": 4,
        "unread": 6,
        "readers": 5,
        "memory": {"held": 1_234_567, "limit": 512 << 20},
        "events": {"received": 1100, "delivered": 1_180_000, "replayed": 20, "lost": 7, "duplicates": 9},
        "bytes": {"received": 999, "delivered": 25_000_000_000},
        "stalls": 11,
        "heartbeats": 1,
        "completion_rate": 99.999,
        "resumes": {"resumed": 12, "gap": 13, "reset": 14, "new": 15, "over": 16, "gone": 17},
        "reconnect_ms": {"bounds": BOUNDS, "counts": counts, "sum": 2_020_000.0, "count": sum(counts)},
        "evictions": {"finished": 1, "dormant": 2, "tombstone": 0, "passed": 0, "reader": 3},
        "routes": [
            route("chat", streams=1, readers=2, received=1000, delivered=1_179_000, replayed=18),
            route("ticker", lost=7, duplicates=9, stalls=11, errors=19, completion_rate=99.5),
        ],
        "lagging": [{"stream": "gR3tJ0", "route": "chat", "events": 1120, "seconds": 3.44}],
        "errors": [
            error("401", 5, now=START + 2800.123, name="chat", stream=""),
            error("gap", 305, now=START + 2800.123, name="ticker") | {"count": 7},
        ],
        "active": [
            {
                "stream": "pA7wq2Zr0b1c2dA3e4f5g6h",
                "route": "chat",
                "method": "POST",
                "state": "complete",
                "readers": 1,
                "first": 3,
                "last": 1200,
                "bytes": 10_240,
                "age": 3725.0,
                "quiet": 0.04,
            }
        ],
    }


SMALL = {
    "ready": "Ready",
    "version": "0.1.0",
    "since": "28 Nov, 17:13:20 (46 min)",
    "zone": "UTC",
    "completion": "99.99 %",
    "readers": "5",
    "concurrent": "4",
    "unread": "6",
    "events.lost": "7",
    "events.duplicates": "9",
    "events.replayed": "20",
    "stalls": "11",
    "in": DASH,
    "out": DASH,
    "totals": "Since the start: 1,100 events in (999 B), 1.18M out (23.3 GiB), 1 heartbeat.",
    "streams.live": "3",
    "streams.reconnecting": "0",
    "streams.complete": "10",
    "streams.dormant": "2",
    "streams.broken": "1",
    "memory.held": "1.2 MiB",
    "memory.limit": "of 512.0 MiB",
    "open": "10",
    "limits.streams": "of 10,000",
    "limits.readers": "of 20,000",
    "evicted": "Let go of for want of memory since the start: 1 finished stream, 2 dormant streams, 3 readers cut off.",
    "reconnects": "Half were back within 1 s, 95 % within 3 s; 1.68 min on average.",
    "lately": "In the last five minutes, as far as this page has been open: no resume.",
    "resumes.resumed": "12",
    "resumes.gap": "13",
    "resumes.reset": "14",
    "resumes.new": "15",
    "resumes.over": "16",
    "resumes.gone": "17",
}


def busy(seconds: int = 300) -> Iterator[Snapshot]:
    """A second after the other of a sidecar with much to do, and some trouble."""
    dice = random.Random(4)
    now = idle() | {"started": START - 183_000}
    now["routes"] = [route("chat"), route("ticker"), route("mcp"), route("everything else")]
    for second in range(seconds):
        _add(now, second, dice)
        _show(now, second, dice)
        yield deepcopy(now)


def _add(now: Snapshot, second: int, dice: random.Random) -> None:
    """A second of traffic, with a cut of the network in it after which all come back."""
    cut, back = 168 <= second < 175, 175 <= second < 179
    now["time"] = START + second
    for index, (received, readers) in enumerate([(610, 1), (4, 160), (12, 1), (2, 1)]):
        of = now["routes"][index]
        more = round(received * (1 + 0.16 * math.sin(second / 23 + index) + 0.05 * dice.random()))
        replayed = round(1.9 * more * readers) if back else 0
        delivered = 0 if cut else round(more * readers * 0.97) + replayed
        for name, number in (("received", more), ("delivered", delivered), ("replayed", replayed)):
            of[name] += number + (of[name] == 0) * number * 9_000
            now["events"][name] = sum(one[name] for one in now["routes"])


def _show(now: Snapshot, second: int, dice: random.Random) -> None:
    counts = [12, 61, 240, 806, 1544 + second // 2, 1210, 702, 233, 61, 42, 88, 40, 21, 7, 2]
    now["reconnect_ms"] = {
        "bounds": BOUNDS,
        "counts": counts,
        "sum": 14_400_000.0 + 1240 * (second // 2),
        "count": sum(counts),
    }
    now["streams"] = {"live": 1193, "reconnecting": 0, "complete": 5210, "dormant": 64, "broken": 3}
    now |= {"concurrent": 1187, "unread": 38, "readers": 1334, "stalls": 4, "heartbeats": 402_113 + 9 * second}
    now["bytes"] = {name: 214 * now["events"][name] for name in ("received", "delivered")}
    now["memory"] = {"held": (318 << 20) + 4096 * second, "limit": 512 << 20}
    now["resumes"] = {"resumed": 4903, "gap": 2, "reset": 11, "new": 0, "over": 151, "gone": 2}
    now["completion_rate"] = 99.82
    now["events"] |= {"lost": 41, "duplicates": 318}
    for of, (streams, readers, completion) in zip(
        now["routes"], [(1161, 1163, 99.91), (1, 146, 99.64), (22, 22, 100), (3, 3, 100)], strict=True
    ):
        of |= {"streams": streams, "readers": readers, "completion_rate": completion}
    now["routes"][0] |= {"lost": 41, "stalls": 4, "errors": 17}
    now["routes"][1] |= {"duplicates": 318, "errors": 11}
    codes = ["stall", "401", "upstream-lost", "gap", "502", "429", "reset", "gone", "max_readers"]
    agos = [83, 1204, 3700, 5433, 9310, 14_230, 30_400, 90_300, 120_000]
    ids = ["pX0c9L", "", "p2uVbA", "pm-QeK", "", "", "gR3tJ0", "p7TzsW", ""]
    errors = [
        error(code, ago - 299, name="ticker" if code == "reset" else "chat", stream=stream)
        for code, ago, stream in zip(codes, agos, ids, strict=True)
    ]
    now["errors"] = [one for one in errors if one["time"] <= now["time"]]
    now["active"] = [
        {
            "stream": f"p{index * 7919 % 99991:05x}",
            "route": "ticker" if index == 17 else "chat",
            "method": "GET" if index == 17 else "POST",
            "state": "complete" if index % 9 == 4 else "live",
            "readers": 146 if index == 17 else int(index % 13 != 5),
            "first": 1,
            "last": 12 + 9 * index,
            "bytes": 214 * (12 + 9 * index),
            "age": 0.7 + 1.3 * index,
            "quiet": dice.random() * 0.4,
        }
        for index in range(100)
    ]
    now["lagging"] = [
        {"stream": f"p{index * 5_003:05x}", "route": "chat", "events": 412 // index, "seconds": 2.9 / index}
        for index in range(1, 5)
    ]


class Feed:
    """The page and its feed, as the admin port gives them, behind a proxy that puts a prefix before their paths."""

    def __init__(self) -> None:
        self.refuses = False
        """Whether who asks for the feed gets 503."""
        self.asked = 0
        """How often the feed was asked for."""
        self.url = ""
        self._open: dict[web.StreamResponse, asyncio.Transport] = {}
        self._latest = idle()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get(PREFIX + path, _page(name)) for path, name in FILES.items()])
        app.add_routes([web.get(PREFIX + "/events", self._events)])
        # A timeout of 0 would be none, and a page that watches never goes.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site.port}{PREFIX}/"

    async def stop(self) -> None:
        assert self._runner
        await self._runner.cleanup()

    def begin_with(self, snapshot: Snapshot) -> None:
        """Whoever connects is told this first."""
        self._latest = deepcopy(snapshot)

    async def say(self, snapshot: Snapshot) -> None:
        self.begin_with(snapshot)
        for response in self._open:
            await response.write(self._event())

    async def cut(self) -> None:
        for transport in self._open.values():
            transport.abort()
        await until(lambda: not self._open)

    def _event(self) -> bytes:
        return b"retry: 50\ndata: " + json.dumps(self._latest).encode() + b"\n\n"

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.refuses:
            return web.Response(status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(self._event())
        assert request.transport
        self._open[response] = request.transport
        try:
            await asyncio.Event().wait()
        finally:
            del self._open[response]
        return response


def _page(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        file = asset(name)
        fields = {"Content-Type": file.content_type.decode(), "Content-Security-Policy": CSP}
        return web.Response(body=file.body, headers=fields)

    return handle


class Shown:
    """What is on the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.url = ""
        self.wrong: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._on_console)
        page.on("request", lambda request: self.requests.append(request.url))

    def _on_console(self, message: Any) -> None:
        # That a request failed is the browser's own line, for a feed that is meant to fail.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.wrong.append(message.text)

    async def open(self, url: str) -> None:
        self.url = url
        await self.page.goto(url)

    async def until(self, condition: str) -> None:
        """Asked from here: what Playwright asks within the page needs an `eval`, which the page's policy forbids."""
        async with asyncio.timeout(TIMEOUT):
            while not await self.page.evaluate(condition):
                await asyncio.sleep(0.01)

    async def until_text(self, selector: str, text: str) -> None:
        await self.until(f"{said(selector)} === {json.dumps(text)}")

    async def until_feed(self, state: str) -> None:
        await self.until(f"document.body.dataset.feed === {json.dumps(state)}")

    async def until_figure(self, name: str, text: str) -> None:
        await self.until_text(figure(name), text)

    async def say(self, feed: Feed, snapshot: Snapshot) -> None:
        """Tells the page, and waits until it shows it. The heartbeats are what it is known by."""
        self._said = getattr(self, "_said", 900_000) + 1
        await feed.say(snapshot | {"heartbeats": self._said})
        await self.until(f"{said(figure('totals'))}.includes(' {self._said:,} heartbeats')")

    async def text(self, selector: str) -> str:
        return await self.page.text_content(selector) or ""

    async def figures(self) -> dict[str, str]:
        return dict(
            await self.page.evaluate(
                "Object.fromEntries([...document.querySelectorAll('[data-figure]')]"
                ".map((element) => [element.dataset.figure, element.textContent]))"
            )
        )

    async def rows(self, table: str) -> list[list[str]]:
        return list(
            await self.page.evaluate(
                f"[...document.querySelector('#{table} tbody').rows]"
                ".map((row) => [...row.cells].map((cell) => cell.textContent))"
            )
        )

    async def troubles(self) -> list[str]:
        return await self.page.locator("#troubles a").all_text_contents()

    async def warm(self) -> list[str]:
        """What is shown in the colour of trouble, but for the sentences: the names of figures, or their words."""
        return list(
            await self.page.evaluate(
                f"""[...document.querySelectorAll('header .pill, main *, .banner *')]
                    .filter((element) => !element.children.length && element.textContent)
                    .filter((element) => element.checkVisibility({{ visibilityProperty: true }}))
                    .filter((element) => getComputedStyle(element).color === '{TROUBLE_COLOUR}')
                    .map((element) => element.dataset.figure ?? element.textContent)"""
            )
        )

    async def path(self, way: str) -> list[list[tuple[float, float]]]:
        """The parts of a line, as points."""
        drawn = await self.page.get_attribute(f"#lines .{way}", "d") or ""
        parts = [part.split("L") for part in drawn.split("M") if part]
        return [[(float(x), float(y)) for x, y in (point.split(",") for point in part)] for part in parts]


def figure(name: str) -> str:
    return f"[data-figure='{name}']"


def said(selector: str) -> str:
    """The words of an element, in JavaScript."""
    return f"document.querySelector({json.dumps(selector)}).textContent"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=COMMAND, args=ARGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def feed() -> AsyncIterator[Feed]:
    feed = Feed()
    await feed.start()
    yield feed
    await feed.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def shown(chromium: Browser) -> AsyncIterator[Shown]:
    """A browser to open the page in. Whatever a test does, the page breaks no policy and asks no other host."""
    context = await chromium.new_context(timezone_id="UTC", locale="de-DE", viewport={"width": 1280, "height": 900})
    shown = Shown(await context.new_page())
    yield shown
    await context.close()
    assert [] == shown.wrong
    assert [] == [url for url in shown.requests if not url.startswith((shown.url, "data:"))]


@pytest_asyncio.fixture(loop_scope="module")
async def live(shown: Shown, feed: Feed) -> Shown:
    """The page, open and idle."""
    await shown.open(feed.url)
    await shown.until_feed("live")
    return shown


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[Upstream]:
    """What a real sidecar stands before."""
    service = Upstream()
    await service.start()
    yield service
    await service.stop()


Ask = Callable[..., Awaitable[Response]]


@pytest_asyncio.fixture(loop_scope="module")
async def ask() -> AsyncIterator[Ask]:
    """Asks a sidecar for the ticker, as a page does; every connection is closed at the end."""
    responses: list[Response] = []

    async def asking(sidecar: Sidecar, **headers: str) -> Response:
        fields = EVENT_SOURCE | {name.replace("_", "-"): value for name, value in headers.items()}
        responses.append(await request(port_of(sidecar), "/ticker", headers=fields))
        return responses[-1]

    yield asking
    for response in responses:
        response.close()


@asynccontextmanager
async def running(service: Upstream, **settings: Any) -> AsyncIterator[Sidecar]:
    sidecar = await start_sidecar(service.url, **settings)
    try:
        yield sidecar
    finally:
        await sidecar.stop()


async def test_all_figures_are_the_feeds(shown: Shown, feed: Feed) -> None:
    feed.begin_with(small())
    await shown.open(feed.url)
    await shown.until_feed("live")

    assert SMALL == await shown.figures()
    assert [
        ["5.0 s", "401", "Answered with this status", "chat", DASH, "1", "28 Nov, 17:59:55"],
        ["5 min 05 s", "gap", "Events were missing from the history", "ticker", "gR3tJ0", "7", "28 Nov, 17:54:55"],
    ] == await shown.rows("error-rows")
    assert [
        ["chat", "1", "2", DASH, DASH, "1,000", "1.18M", "18", "0", "0", "0", "0", "100.00 %"],
        ["ticker", "0", "0", DASH, DASH, "0", "0", "0", "7", "9", "11", "19", "99.50 %"],
    ] == await shown.rows("route-rows")
    assert [
        ["pA7wq2Zr…", "chat", "POST", "complete", "1", f"3{DASH}1200", "10.0 KiB", "1 h 02 min", "0.0 s"]
    ] == await shown.rows("active-rows")
    assert [["gR3tJ0", "chat", "1,120", "3.4 s"]] == await shown.rows("lagging-rows")


async def test_what_is_long_past_or_of_others_is_no_trouble(live: Shown, feed: Feed) -> None:
    """Losses of five minutes ago, and an answer that a service meant."""
    await live.say(feed, small())

    assert "Nothing is wrong" == await live.text("#verdict")
    assert "Nothing is wrong · sse-sidecar" == await live.page.title()
    assert ([], []) == (await live.troubles(), await live.warm())


Change = Callable[[Snapshot], None]


def _is_draining(now: Snapshot) -> None:
    now["ready"] = False


def _has_lost(now: Snapshot) -> None:
    now["events"]["lost"] += 3


def _has_stalled(now: Snapshot) -> None:
    now["stalls"] += 1


def _reconnects(now: Snapshot) -> None:
    now["streams"]["reconnecting"] = 1


def _is_incomplete(now: Snapshot) -> None:
    now["completion_rate"] = 99.49


def _repeats(now: Snapshot) -> None:
    now["events"]["received"] += 196
    now["events"]["duplicates"] += 2


def _is_slow(now: Snapshot) -> None:
    now["reconnect_ms"]["count"] += 2
    now["reconnect_ms"]["sum"] += 10_002


def _is_full(now: Snapshot) -> None:
    now["memory"]["held"] = 0.9 * now["memory"]["limit"]


def _has_many_streams(now: Snapshot) -> None:
    now |= {"concurrent": 8000, "unread": 1000}


def _has_many_readers(now: Snapshot) -> None:
    now["readers"] = 18_000


def _had(*codes: str) -> Change:
    """Errors of just under five minutes ago, on a stream that is not among the routes' own figures."""
    return lambda now: now.update(errors=[error(code, 299.9, now=now["time"], name="other") for code in codes])


TROUBLES: dict[str, tuple[Change, list[str]]] = {
    "The sidecar is draining: it takes no new requests.": (_is_draining, ["ready"]),
    "Events were lost: a resume asked for what the history no longer held.": (
        _has_lost,
        ["events.lost", "resumes.gap"],
    ),
    "A service fell silent.": (_has_stalled, ["stalls"]),
    "A service's connection is lost and is being asked for again.": (_reconnects, ["streams.reconnecting"]),
    "Under 99.5 % of the events were delivered without a replay.": (_is_incomplete, ["completion"]),
    "Over 1 % of what the services sent was sent twice.": (_repeats, ["events.duplicates"]),
    "Clients took over 5 s to come back, on average.": (_is_slow, ["lately"]),
    "Nine tenths of the memory are in use.": (_is_full, ["memory.held"]),
    "Nine tenths of the streams allowed are open.": (_has_many_streams, ["open"]),
    "Nine tenths of the readers allowed are connected.": (_has_many_readers, ["readers", "readers"]),
    "A service began anew and may have left events out.": (_had("reset"), ["reset", "resumes.reset"]),
    "A client came back for what is not held any more, and was refused.": (_had("gone"), ["gone", "resumes.gone"]),
    "A stream broke off: its service's connection did not last.": (
        _had("upstream-lost"),
        ["streams.broken", "upstream-lost"],
    ),
    "Requests were refused or failed.": (_had("502", "max_streams"), ["502", "max_streams"]),
}


@pytest.mark.parametrize("sentence", TROUBLES)
async def test_a_trouble_is_said_and_shown_and_passes(live: Shown, feed: Feed, sentence: str) -> None:
    change, names = TROUBLES[sentence]
    now = {**small(), "errors": []}
    await live.say(feed, now)
    troubled = deepcopy(now) | {"time": now["time"] + 1}
    change(troubled)
    await live.say(feed, troubled)

    assert "1 thing to look at" == await live.text("#verdict")
    assert "1 thing to look at · sse-sidecar" == await live.page.title()
    assert [sentence] == await live.troubles()
    assert names == sorted(await live.warm())
    target = await live.page.get_attribute("#troubles a", "href")
    assert 1 == await live.page.locator(str(target)).count()

    await live.say(feed, now | {"time": now["time"] + 302, "events": troubled["events"], "stalls": troubled["stalls"]})

    assert "Nothing is wrong" == await live.text("#verdict")
    assert ([], []) == (await live.troubles(), await live.warm())


async def test_a_trouble_is_shown_at_the_route_that_has_it(live: Shown, feed: Feed) -> None:
    now = small() | {"errors": [error(code, 1, name="ticker", now=small()["time"]) for code in ("gap", "stall")]}
    now["routes"][0]["completion_rate"] = 99.4
    await live.say(feed, now)
    wrong = await live.page.locator("#route-rows .wrong").all_text_contents()

    assert "2 things to look at" == await live.text("#verdict")
    assert ["99.40 %", "7", "11"] == wrong


def traffic(received: int, delivered: int, **values: Any) -> Snapshot:
    events = {"received": received, "delivered": delivered}
    return {**idle(), "events": idle()["events"] | events, "routes": [route("default", **events)], **values}


async def test_rates_are_the_mean_of_five_seconds(live: Shown, feed: Feed) -> None:
    for second in range(1, 9):
        await live.say(feed, traffic(second * second, 40 * second, time=START + second))
    figures, rows = await live.figures(), await live.rows("route-rows")
    (line,) = await live.path("out")

    assert ("11.0", "40.0") == (figures["in"], figures["out"])
    assert ["11.0", "40.0"] == rows[0][3:5]
    assert "50" == await live.text("#scale")
    assert [(293.0 + second, 21.4) for second in range(8)] == line
    assert (300.0, 77.7) == (await live.path("in"))[0][-1]


async def test_totals_that_begin_anew_are_no_negative_rate(live: Shown, feed: Feed) -> None:
    """The line is broken where the process was restarted."""
    await live.say(feed, traffic(5000, 9000, time=START + 1))
    await live.say(feed, traffic(5010, 9020, time=START + 2))
    await live.say(feed, traffic(3, 4, time=START + 3, started=START + 2.5))
    restarted = await live.figures()
    await live.say(feed, traffic(7, 10, time=START + 4, started=START + 2.5))
    figures = await live.figures()

    assert (DASH, DASH) == (restarted["in"], restarted["out"])
    assert ("4.0", "6.0") == (figures["in"], figures["out"])
    assert [2, 1] == [len(run) for run in await live.path("in")]
    assert "28 Nov, 17:13:22 (1.5 s)" == figures["since"]
    assert "Nothing is wrong" == await live.text("#verdict")


async def test_a_time_without_a_feed_is_a_hole_in_the_line(live: Shown, feed: Feed) -> None:
    for second in (1, 2, 60, 61):
        await live.say(feed, traffic(10 * second, 20 * second, time=START + second))

    assert [[240, 241], [300]] == [[x for x, _ in run] for run in await live.path("out")]


async def test_the_line_goes_back_five_minutes(live: Shown, feed: Feed) -> None:
    for second in range(0, 400, 5):
        await live.say(feed, traffic(second, second, time=START + 1 + second))
    (line,) = await live.path("out")

    assert (0, 300) == (line[0][0], line[-1][0])


async def test_a_snapshot_that_is_sent_twice_changes_nothing(live: Shown, feed: Feed) -> None:
    """A page that comes back is told at once what it may know already."""
    await live.say(feed, traffic(10, 10, time=START + 1))
    await live.say(feed, traffic(30, 50, time=START + 2))
    before = await live.path("out")
    await live.say(feed, traffic(30, 50, time=START + 2))

    assert before == await live.path("out")
    assert "25.0" == await live.text(figure("out"))


async def test_a_clock_that_is_set_back_begins_the_line_anew(live: Shown, feed: Feed) -> None:
    await live.say(feed, traffic(10, 10, time=START + 3600))
    await live.say(feed, traffic(20, 20, time=START + 1))
    await live.say(feed, traffic(24, 28, time=START + 2))

    assert "8.0" == await live.text(figure("out"))
    assert [[(300, 21.4)]] == await live.path("out")


async def test_the_distribution_is_drawn_and_said(live: Shown, feed: Feed) -> None:
    """Bars as high as their share of the highest; one for what is above the last bound."""
    await live.say(feed, small())
    heights = await live.page.evaluate(
        "[...document.querySelectorAll('#times rect')].map((bar) => Number(bar.getAttribute('height')))"
    )
    said = await live.page.locator("#times .hidden").all_text_contents()
    shown = await live.page.locator("#times li > :first-child").all_text_contents()
    below = await live.page.locator("#times li > :nth-child(3)").all_text_contents()

    assert [0, 25, 50, 100, 37.5, 12.5, 12.5, 0, 0, 0, 0, 0, 0, 0, 12.5] == heights
    assert ["", "2", "4", "8", "3", "1", "1", *[""] * 7, "1"] == shown
    assert [".1", ".25", ".5", "1", "1.5", "2", "3", "5", "7.5", "10", "30", "1m", "5m", "30m", "∞"] == below
    assert ["up to 100 ms: 0", "up to 250 ms: 2", "up to 1 min: 0", "over 30 min: 1"] == [
        said[index] for index in (0, 1, 11, 14)
    ]


async def test_what_clients_took_lately_is_told_from_what_they_ever_took(live: Shown, feed: Feed) -> None:
    now = small()
    await live.say(feed, now)
    now["reconnect_ms"] |= {"sum": now["reconnect_ms"]["sum"] + 2500, "count": now["reconnect_ms"]["count"] + 2}
    await live.say(feed, now | {"time": now["time"] + 1})

    assert "In the last five minutes, as far as this page has been open: 2 resumes, after 1.25 s on average." == (
        await live.text(figure("lately"))
    )


async def test_bars_are_as_long_as_what_they_stand_for(live: Shown, feed: Feed) -> None:
    await live.say(feed, small() | {"memory": {"held": 3 << 20, "limit": 4 << 20}})
    widths = await live.page.evaluate(
        "Object.fromEntries(['held', 'used', 'got'].map((id) => [id, [...document.querySelectorAll(`#${id} rect`)]"
        ".map((bar) => Number(Number(bar.getAttribute('width')).toFixed(1)))]))"
    )

    assert {
        "held": [18.8, 0, 62.5, 12.5, 6.3],
        "used": [75, 1, 1],
        "got": [13.8, 14.9, 16.1, 17.2, 18.4, 19.5],
    } == widths


async def test_where_there_is_nothing_it_is_said_in_words(live: Shown, feed: Feed) -> None:
    empty = live.page.locator(".empty:visible")
    no_routes = await empty.all_text_contents()
    await live.say(feed, small())
    full = await empty.all_text_contents()
    tables = await live.page.locator("table:visible").count()
    await live.say(feed, idle() | {"time": START + 3000})

    assert ["No error since the start.", "No stream has a service or a reader.", "Every reader has all there is."] == (
        no_routes
    )
    assert ([], 4) == (full, tables)
    assert no_routes == await empty.all_text_contents()
    assert "No client has resumed since the start." == await live.text(figure("reconnects"))
    assert "Let go of for want of memory since the start: nothing." == await live.text(figure("evicted"))


LOST_AT = "28 Nov, 17:13:20"


async def test_a_feed_that_is_cut_comes_back_by_itself(live: Shown, feed: Feed) -> None:
    await live.say(feed, small())
    feed.begin_with(small() | {"time": START + 2900})
    ground = "getComputedStyle(document.querySelector('.figures dd')).color"
    before = await live.page.evaluate(ground)
    feed.refuses = True
    await feed.cut()
    await live.until_feed("lost")
    lost = await live.page.evaluate(ground)

    assert "Not live: nothing has come from the sidecar since 28 Nov, 18:00:00. It is being asked again." == (
        await live.text("#lost")
    )
    assert await live.page.locator(".banner").is_visible()
    assert ("Not live", "Not live", "Not live · sse-sidecar") == (
        await live.text("#verdict"),
        await live.text("#feed"),
        await live.page.title(),
    )
    assert "5" == await live.text(figure("readers"))
    assert "rgb(20, 24, 28)" == before
    assert "rgb(89, 99, 110)" == lost

    feed.refuses = False
    await live.until_feed("live")

    assert not await live.page.locator(".banner").is_visible()
    assert ("Nothing is wrong", "Live", before) == (
        await live.text("#verdict"),
        await live.text("#feed"),
        await live.page.evaluate(ground),
    )
    assert "28 Nov, 17:13:20 (48 min)" == await live.text(figure("since"))


async def stop_the_clock(page: Page) -> None:
    """It goes on by `run_for` only."""
    await page.clock.install(time=START)
    await page.clock.pause_at(START + 1)


async def test_a_feed_that_falls_silent_is_not_live_and_is_asked_for_again(shown: Shown, feed: Feed) -> None:
    """As after a network that dropped everything, or a laptop that slept."""
    await stop_the_clock(shown.page)
    await shown.open(feed.url)
    await shown.until_feed("live")
    await shown.page.clock.run_for(4900)
    at_first = await shown.text("#feed")
    await shown.page.clock.run_for(1200)

    assert "Live" == at_first
    assert f"Not live: nothing has come from the sidecar since {LOST_AT}. It is being asked again." == (
        await shown.text("#lost")
    )
    assert "These figures are 6 seconds old." == await shown.text("#age")
    assert 1 == feed.asked

    await shown.page.clock.run_for(5000)
    await shown.until_feed("live")

    assert 2 == feed.asked


async def test_a_sidecar_that_does_not_answer_is_asked_until_it_does(shown: Shown, feed: Feed) -> None:
    """EventSource gives up where it gets 503, as from a proxy between."""
    feed.refuses = True
    await stop_the_clock(shown.page)
    await shown.open(feed.url)
    await shown.until_feed("lost")

    assert "Not live: nothing has come from the sidecar yet. It is being asked again." == await shown.text("#lost")
    assert "" == await shown.text("#age")

    await shown.page.clock.run_for(3000)
    await until(lambda: feed.asked == 2)
    await shown.until("document.body.dataset.feed === 'lost'")
    feed.refuses = False
    await shown.page.clock.run_for(3000)
    await shown.until_feed("live")

    assert "Nothing is wrong" == await shown.text("#verdict")


def long() -> Snapshot:
    """Names as long as a configuration may have them, and the largest figures."""
    now = list(busy(2))[-1]
    name = "https://a-very-long-name.example.com/v1/chat/completions/" + "and-so-on-" * 12
    for rows in ("routes", "errors", "active", "lagging"):
        for row in now[rows]:
            row["name" if rows == "routes" else "route"] = name
    now["errors"] = [one | {"code": "upstream-lost", "count": 999_999, "stream": "m" * 22} for one in now["errors"] * 6]
    now["active"] = [one | {"state": "reconnecting", "first": 999_999, "last": 9_999_999} for one in now["active"]]
    now["events"] = dict.fromkeys(now["events"], 999_999_999_999)
    now["evictions"] = dict.fromkeys(now["evictions"], 999_999)
    now |= {"readers": 999_999, "concurrent": 999_999, "unread": 999_999, "version": "10.11.12.dev0+gabcdef012345"}
    now["memory"] = {"held": 1023 << 40, "limit": 1023 << 40}
    return now


SIZES = [(360, 740), (820, 1180), (1280, 900), (1920, 1080)]
"""A phone, a tablet, a laptop, a desktop."""


@pytest.mark.parametrize("make", [idle, lambda: list(busy(2))[-1], long], ids=["idle", "busy", "long"])
async def test_the_page_fits(live: Shown, feed: Feed, make: Callable[[], Snapshot]) -> None:
    """Only tables scroll sideways, each within itself, and by the keyboard too. No figure is cut short."""
    await live.say(feed, make() | {"time": START + 60})
    for width, height in SIZES:
        await live.page.set_viewport_size({"width": width, "height": height})

        assert await live.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        assert [] == await live.page.evaluate(
            """[...document.querySelectorAll('dd, dt, h1, h2, p, small, .pill, figcaption span, #times span')]
                .filter((element) => element.checkVisibility() && !element.matches('.wrong, .hidden'))
                .filter((element) => getComputedStyle(element).display !== 'inline')
                .filter((element) => element.scrollWidth > element.clientWidth + 1)
                .map((element) => element.textContent)"""
        )
        assert [] == await live.page.evaluate(
            """[...document.querySelectorAll('td')].filter((cell) => cell.scrollWidth > cell.clientWidth
                && /^[\\d.,]+[MK]?( %| .?i?B| s)?$/.test(cell.textContent)).map((cell) => cell.textContent)"""
        )
        assert [] == await live.page.evaluate(
            """[...document.querySelectorAll('.card')].filter((card) => card.scrollWidth > card.clientWidth)
                .map((card) => card.querySelector('h2').textContent)"""
        )
    assert 4 == await live.page.locator(".scroll[tabindex='0'][role=region][aria-labelledby]").count()


PLACES = """[...document.querySelectorAll('.card, h2, dt, .figures dd, .legend dd, .bars div, thead th, .note')]
    .map((element) => element.getBoundingClientRect())
    .map(({ x, y }) => [Math.round(x), Math.round(y + scrollY)])"""


@pytest.mark.parametrize("size", SIZES)
async def test_nothing_jumps(live: Shown, feed: Feed, size: tuple[int, int]) -> None:
    """Figures change, and what is beside and below them stays where it is."""
    await live.page.set_viewport_size({"width": size[0], "height": size[1]})
    snapshots = list(busy(3))
    few = {"received": 999, "delivered": 999}
    for snapshot in snapshots[:2]:
        await live.say(feed, snapshot | {"events": snapshot["events"] | few, "bytes": few})
    before = await live.page.evaluate(PLACES)
    other = snapshots[2]
    other["events"] |= {"received": other["events"]["received"] + 99_999, "delivered": other["events"]["delivered"] * 2}
    other["active"] = [one | {"age": one["age"] * 70, "bytes": one["bytes"] * 900} for one in other["active"]]
    other |= {"readers": 11_112, "concurrent": 8_111, "unread": 1, "completion_rate": 100}
    await live.say(feed, other)
    await feed.cut()
    during = await live.page.evaluate(PLACES)
    await live.until_feed("live")

    assert before == during == await live.page.evaluate(PLACES)


CONTRASTS = """() => {
    const channel = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [red, green, blue] = numbers(colour).map((value) => channel(value / 255));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = (element) => {
        const colour = element ? getComputedStyle(element).backgroundColor : 'rgb(255, 255, 255)';
        return element && numbers(colour)[3] === 0 ? ground(element.parentElement) : colour;
    };
    const contrast = (element) => {
        const [dark, bright] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
    return [...document.querySelectorAll('body *')]
        .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
        .filter((element) => element.checkVisibility({ visibilityProperty: true }) && contrast(element) < 4.5)
        .map((element) => [element.textContent, contrast(element)]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_words_are_readable(live: Shown, feed: Feed, scheme: Literal["light", "dark"]) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5, also where the figures are grey for being old."""
    await live.page.emulate_media(color_scheme=scheme)
    await live.say(feed, list(busy(2))[-1] | {"ready": False})
    ground = await live.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    assert {"light": "rgb(246, 247, 248)", "dark": "rgb(15, 18, 21)"}[scheme] == ground
    assert [] == await live.page.evaluate(CONTRASTS)

    feed.refuses = True
    await feed.cut()
    await live.until_feed("lost")

    assert [] == await live.page.evaluate(CONTRASTS)


async def test_trouble_has_a_shape_beside_its_colour(live: Shown, feed: Feed) -> None:
    """WCAG 2.2, 1.4.1."""
    now = small() | {"ready": False, "errors": [error("stall", 1, now=small()["time"])], "completion_rate": 90}
    await live.say(feed, now)

    assert [] == await live.page.evaluate(
        """[...document.querySelectorAll('.wrong:not(.note)')].filter((element) => ['::before', '::after']
            .every((part) => !getComputedStyle(element, part).transform.startsWith('matrix(0.7')))
            .map((element) => element.textContent)"""
    )


async def test_the_page_has_landmarks_and_its_tables_headers(live: Shown, feed: Feed) -> None:
    await live.say(feed, small())
    evaluate = live.page.evaluate

    assert ["HEADER", "MAIN", "FOOTER"] == await evaluate(
        "[...document.body.children].filter((element) => /HEADER|MAIN|FOOTER/.test(element.tagName))"
        ".map((element) => element.tagName)"
    )
    assert 1 == await live.page.locator("h1").count()
    assert 2 == await live.page.locator("[role=status]").count()
    assert [] == await evaluate(
        "[...document.querySelectorAll('th')].filter((cell) => !cell.scope).map((cell) => cell.textContent)"
    )
    assert 0 == await live.page.locator("tbody tr:not(:has(> th[scope=row]:first-child))").count()
    assert 0 == await live.page.locator("svg:not([aria-hidden=true]):not([role=img][aria-label])").count()
    assert [] == await evaluate(
        "[...document.querySelectorAll('[aria-labelledby]')].map((element) => element.getAttribute('aria-labelledby'))"
        ".filter((id) => !document.getElementById(id))"
    )


async def test_no_one_is_read_figures_every_second(live: Shown, feed: Feed) -> None:
    """What is announced changes only with what there is to look at."""
    await live.page.evaluate(
        """window.changes = 0; for (const status of document.querySelectorAll('[role=status]'))
            new MutationObserver(() => { window.changes += 1 })
                .observe(status, { childList: true, characterData: true, subtree: true })"""
    )
    for snapshot in busy(4):
        await live.say(feed, snapshot | {"time": snapshot["time"] + 10, "ready": False})
    changed = await live.page.evaluate("window.changes")
    for snapshot in busy(4):
        later = {"time": snapshot["time"] + 20, "readers": int(snapshot["time"] - START)}
        await live.say(feed, snapshot | later | {"ready": False})

    assert 1 == changed == await live.page.evaluate("window.changes")


async def test_still_for_those_who_want_no_motion(live: Shown) -> None:
    pulse = "getComputedStyle(document.querySelector('#feed'), '::before').animationName"
    moving = await live.page.evaluate(pulse)
    await live.page.emulate_media(reduced_motion="reduce")

    assert ("pulse", "none") == (moving, await live.page.evaluate(pulse))


async def test_names_are_words_whatever_stands_in_them(live: Shown, feed: Feed) -> None:
    name = "<img src=x onerror=alert(1)>"
    now = small()
    for row in (now["active"][0], now["errors"][0], now["lagging"][0]):
        row["route"] = name
    now["routes"][0]["name"] = name
    await live.say(feed, now)

    assert [name] * 4 == [
        (await live.rows("active-rows"))[0][1],
        (await live.rows("error-rows"))[0][3],
        (await live.rows("lagging-rows"))[0][1],
        (await live.rows("route-rows"))[0][0],
    ]
    assert 0 == await live.page.locator("img").count()


async def test_all_links_work_behind_a_prefix(live: Shown, feed: Feed) -> None:
    links = await live.page.evaluate("[...document.querySelectorAll('footer a')].map((link) => link.href)")

    assert [feed.url + "streams", feed.url + "metrics"] == links
    assert {feed.url + path for path in ("", "overview.css", "overview.js", "events")} <= set(live.requests)


async def _first(asked: Asked) -> None:
    """Three events, and silence."""
    await asked.begin()
    await asked.stream(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
    await asyncio.Event().wait()


async def test_the_page_of_a_sidecar_moves_with_its_streams(shown: Shown, service: Upstream, ask: Ask) -> None:
    """A real one, on the real clock: a reader comes, leaves and resumes."""
    service.handler = _first
    async with running(service) as sidecar:
        await shown.open(f"http://{sidecar.admin_address}/")
        await shown.until_figure("readers", "0")
        reader = await ask(sidecar)
        await reader.read_until(b"data: 3")
        await shown.until(f"/: 3 events in .*, 3 out /.test({said(figure('totals'))})")
        active, routes = await shown.rows("active-rows"), await shown.rows("route-rows")

        assert [reader.stream_id[:6], "default", "GET", "live", "1", f"1{DASH}3"] == active[0][:6]
        assert ["default", "1", "1"] == routes[0][:3]
        assert ["3", "3", "0", "0", "0", "0", "0", "100.00 %"] == routes[0][5:]

        await service.requests[0].stream(b"data: 4\n\n")
        await reader.read_until(b"data: 4")
        await shown.until(f"/: 4 events in .*, 4 out /.test({said(figure('totals'))})")
        reader.close()
        await shown.until_figure("unread", "1")
        back = await ask(sidecar, Last_Event_ID=reader.last_id)
        await shown.until_figure("resumes.resumed", "1")
        counted = await shown.page.locator("#times .hidden").all_text_contents()

        assert "resumed" == back.sse_status
        assert 1 == sum(int(words.rpartition(" ")[2]) for words in counted)
        assert (await shown.text(figure("reconnects"))).startswith("Half were back within ")


async def test_the_page_outlives_its_sidecar(shown: Shown, service: Upstream) -> None:
    async with running(service) as sidecar:
        admin = str(sidecar.admin_address)
        await shown.open(f"http://{admin}/")
        await shown.until_feed("live")
        since = await shown.text(figure("since"))
    await shown.until_feed("lost")
    async with running(service, admin_listen=admin):
        await shown.until_feed("live")

        assert since != await shown.text(figure("since"))


async def test_the_picture_of_the_page_is_one() -> None:
    """As wide as a laptop's window, and small enough for a README."""
    assert (b"\x89PNG\r\n\x1a\n", 1280) == (PICTURE[:8], int.from_bytes(PICTURE[16:20], "big"))
    assert len(PICTURE) < 200 * 1024
