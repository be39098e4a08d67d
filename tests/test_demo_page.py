"""The demo's page in headless Chromium: each state by its button and in words, and nothing lost or doubled after it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from sse_sidecar import demo
from sse_sidecar.app import Sidecar
from sse_sidecar.config import Settings, load
from tests.harness import TIMEOUT
from tests.scenarios.browser import ARGS, COMMAND


def missing(what: str) -> None:
    """Skips all of this file where something is not there; where a build runs, everything is to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what, allow_module_level=True)


if COMMAND is None:
    missing("no Chromium on this machine")

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAST = "0.12"
EVENTS = len(demo.ANSWER.split()) + 1
"""The words, and the mark at the end."""
SIZES = [(360, 740), (1180, 900)]
"""A phone and a desktop."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=COMMAND, args=ARGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def url(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[str]:
    """The demo, in a hurry, on a port of its own: the page's address as it is printed."""
    monkeypatch.setenv(demo.PACE, FAST)
    ready = asyncio.Event()

    async def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
        sidecar = Sidecar(settings)
        await sidecar.start()
        on_ready(str(sidecar.address))
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            await sidecar.stop()

    running = asyncio.ensure_future(demo.run(settings_for, serve))
    async with asyncio.timeout(TIMEOUT):
        await ready.wait()
    printed = re.search(r"http://\S+/", capsys.readouterr().out)
    assert printed
    yield printed[0]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def settings_for(upstream: str) -> Settings:
    return load({"upstream": upstream, "listen": "127.0.0.1:0", "admin_listen": ""})


class Shown:
    """What is on the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._on_console)

    def _on_console(self, message: Any) -> None:
        # That a request failed is the browser's own line, for requests that are meant to fail.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.wrong.append(message.text)

    async def until(self, condition: str, *args: Any) -> None:
        await self.page.wait_for_function(f"args => {condition}", arg=args, polling=20, timeout=1000 * TIMEOUT)

    async def until_state(self, card: str, words: str) -> None:
        await self.until("document.querySelector(`#${args[0]} .pill`).textContent.startsWith(args[1])", card, words)

    async def until_words(self, number: int) -> None:
        """Until the answer has begun."""
        await self.until("document.querySelector('#answer .text').textContent.split(' ').length > args[0]", number)

    async def until_tick(self, number: int) -> None:
        """Until that tick, or a later one, has come."""
        await self.until("Number(document.querySelector('#ticker .latest').textContent) >= args[0]", number)

    async def press(self, button: str) -> None:
        await self.page.get_by_role("button", name=button, exact=True).first.click()

    async def press_of(self, card: str, button: str) -> None:
        await self.page.locator(f"#{card}").get_by_role("button", name=button, exact=True).click()

    async def text(self, selector: str) -> str:
        return await self.page.text_content(selector) or ""

    async def answer(self) -> str:
        return (await self.text("#answer .text")).strip()

    async def ticks(self) -> list[str]:
        return await self.page.locator("#ticker .text span").all_text_contents()

    async def counts(self, card: str) -> dict[str, str]:
        names = ("events", "duplicates", "reconnects", "lost")
        return {name: await self.text(f"#{card} [data-count={name}]") for name in names}

    async def places(self) -> list[int]:
        """How far down the counts are, in each size and colour scheme; nothing is wider than the window."""
        places = []
        for width, height in SIZES:
            await self.page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                await self.page.emulate_media(color_scheme=scheme)
                assert await self.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
                places.append(await self.page.evaluate("document.querySelector('#ticker dl').offsetTop"))
        return places

    async def is_whole(self) -> None:
        """The answer comes to its end, and neither stream has lost or doubled anything."""
        await self.until_state("answer", "Complete")
        await self.until_state("ticker", "Live")
        counts, ticks = await self.counts("answer"), [int(tick) for tick in await self.ticks()]

        assert await self.answer() == demo.ANSWER
        assert (counts["events"], counts["duplicates"], counts["lost"]) == (str(EVENTS), "0", "0")
        assert (await self.counts("ticker"))["lost"] == "0"
        assert all(after == before + 1 for before, after in pairwise(ticks))


@pytest_asyncio.fixture(loop_scope="module")
async def shown(chromium: Browser, url: str) -> AsyncIterator[Shown]:
    """The page, both its streams begun. Its console has nothing to complain of, whatever a test does."""
    context = await chromium.new_context()
    shown = Shown(await context.new_page())
    await shown.page.goto(url)
    await shown.until_words(5)
    await shown.until_tick(2)
    yield shown
    await context.close()
    assert shown.wrong == []


async def test_an_answer_that_nothing_breaks(shown: Shown) -> None:
    assert (await shown.text("#answer .pill"), await shown.text("#ticker .pill")) == ("Live", "Live")
    assert await shown.text("#answer [role=status]") == "Answer: Live"
    await shown.is_whole()
    assert (await shown.counts("answer"))["reconnects"] == "0"


async def test_the_network_is_cut_by_the_keyboard_and_more_than_once(shown: Shown) -> None:
    """The buttons' own requests do not need the network that they cut."""
    await shown.page.keyboard.press("Tab")
    await shown.page.keyboard.press("Enter")
    await shown.until_state("answer", "Reconnecting in 1 s (attempt 1)")
    assert await shown.text("#notice") == "The network is cut for 0.36 s."
    cut_off = await shown.answer()
    while "attempt 1" in await shown.text("#answer .pill"):
        await shown.press("Cut the network")
    await shown.until_state("answer", "Reconnecting in 2 s (attempt 2)")
    assert await shown.text("#answer [role=status]") == "Answer: Reconnecting in 2 s (attempt 2)"
    assert await shown.answer() == cut_off

    await shown.is_whole()
    assert (await shown.counts("answer"))["reconnects"] == "1"
    assert (await shown.counts("ticker"))["reconnects"] == "1"


async def test_the_service_falls_silent(shown: Shown) -> None:
    await shown.press("Stall the service")
    await shown.until_state("answer", "Waiting…")
    await shown.until_state("ticker", "Waiting…")

    await shown.is_whole()
    assert (await shown.counts("answer"))["reconnects"] == "0"


async def test_the_service_restarts_and_what_it_cannot_resume_is_said(shown: Shown) -> None:
    """An answer fails, as its question is not asked twice; a ticker without ids begins anew, and that is said too."""
    await shown.press("Restart the service")
    await shown.until_state("answer", "Failed: the service broke off")
    await shown.until("document.querySelector('#ticker .hole')")
    await shown.until_state("ticker", "Live")
    before, after = "|".join(await shown.ticks()).split("|…|")

    assert demo.ANSWER.startswith(await shown.answer())
    assert await shown.answer() != demo.ANSWER
    assert (before.split("|")[0], after.split("|")[0]) == ("1", "1")
    assert (await shown.counts("ticker"))["lost"] == "?"

    await shown.press_of("answer", "Ask again")
    await shown.press_of("ticker", "Start again")

    await shown.is_whole()


async def test_a_stop_ends_the_work(shown: Shown) -> None:
    await shown.press_of("answer", "Stop")
    await shown.press_of("ticker", "Stop")
    await shown.until_state("answer", "Stopped")
    await shown.until_state("ticker", "Stopped")
    stopped = await shown.answer()
    assert stopped != demo.ANSWER
    assert demo.ANSWER.startswith(stopped)

    await shown.page.reload()
    await shown.until_state("answer", "Stopped")
    assert await shown.answer() == stopped


async def test_the_page_is_loaded_again_and_its_streams_go_on(shown: Shown) -> None:
    async with shown.page.expect_navigation():
        await shown.press("Reload the page")

    await shown.is_whole()


async def test_the_page_is_loaded_again_when_there_is_a_network(shown: Shown) -> None:
    await shown.press("Cut the network")
    await shown.until_state("answer", "Reconnecting")
    async with shown.page.expect_navigation():
        await shown.press("Reload the page")

    await shown.is_whole()


async def test_a_device_without_a_network_is_offline(shown: Shown) -> None:
    await shown.press("Cut the network")
    await shown.until_state("answer", "Reconnecting")
    await shown.page.context.set_offline(True)
    await shown.until_state("answer", "Offline")
    await shown.until("document.querySelector('#notice').textContent === ''")
    await shown.page.context.set_offline(False)

    await shown.is_whole()


async def test_the_page_fits_and_does_not_jump(shown: Shown) -> None:
    """On a phone and a desktop, in light and dark, through a cut: what stands below keeps its place."""
    before = await shown.places()
    await shown.press("Cut the network")
    await shown.until_state("ticker", "Reconnecting")
    during = await shown.places()
    await shown.until_state("ticker", "Live")

    assert before == during == await shown.places()
