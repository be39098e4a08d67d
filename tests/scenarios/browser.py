"""A headless browser with the page on it, and what its user sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import pytest
from playwright.async_api import Browser, Page, async_playwright

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 20_000
"""After which a page that does not come to what is expected of it fails its test."""

COMMAND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing(what: str) -> NoReturn:
    """Skips the test where something is not there; on the build's machine everything is to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and it has to be here")
    pytest.skip(what)


@asynccontextmanager
async def browser(command: str | None = COMMAND) -> AsyncIterator[Browser]:
    if command is None:
        missing("no chromium on this machine")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=command, args=ARGS)
        try:
            yield chromium
        finally:
            await chromium.close()


class Viewer:
    """A page on which one stream is watched, with the browser's own client (native) or with ours (client)."""

    def __init__(self, page: Page, kind: str) -> None:
        self.page = page
        self.kind = kind

    async def watch(self, path: str, **options: Any) -> None:
        await self.page.evaluate(
            "([kind, url, options]) => window.watch(kind, url, options)", [self.kind, path, options]
        )

    async def until(self, condition: str, *args: Any) -> None:
        """Waits for something of `seen`, `state` (the words now) or `args`, in JavaScript."""
        await self.page.wait_for_function(
            f"([args]) => {{ const state = document.querySelector('#state').textContent; return {condition}; }}",
            arg=[list(args)],
            polling=20,
        )

    async def until_count(self, number: int) -> None:
        await self.until("seen.numbers.length >= args[0]", number)

    async def until_shown(self, words: str, since: float = 0) -> None:
        """Until the state's words begin with these, or have done so since a time (ms): some are shown very shortly."""
        await self.until(
            "seen.words.some((shown) => shown.at >= args[1] && shown.words.startsWith(args[0]))", words, since
        )

    async def until_noted(self, words: str) -> None:
        await self.until("seen.notes.some((note) => note.includes(args[0]))", words)

    async def seen(self) -> dict[str, Any]:
        return dict(await self.page.evaluate("seen"))

    async def stats(self) -> dict[str, int]:
        """What the client counts; nothing of the browser's own."""
        return dict(await self.page.evaluate("stats()"))


@asynccontextmanager
async def viewer(chromium: Browser, origin: str, kind: str) -> AsyncIterator[Viewer]:
    """A page that has loaded, in a browser profile of its own."""
    context = await chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = await context.new_page()
        await page.goto(f"{origin}/page")
        await page.wait_for_function("!!window.watch")
        yield Viewer(page, kind)
    finally:
        await context.close()
