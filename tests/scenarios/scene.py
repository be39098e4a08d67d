"""A scenario's parts put together: a feed, a page that reads it, and the figures. The link is its test's."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from tests.scenarios.browser import Viewer
from tests.scenarios.figures import Figures
from tests.scenarios.service import EVENTS, Feed, Service


def now_ms() -> float:
    """As the page tells time: both run on this machine."""
    return time.time() * 1000


class Scene:
    """One stream on one page. Whoever runs it says up to where the feed goes."""

    def __init__(self, service: Service, path: str, viewer: Viewer, figures: Figures) -> None:
        self.path = path
        self.feed = service.feed(path, Feed())
        self.viewer = viewer
        self.figures = figures

    async def open(self, up_to: int = 10, **options: Any) -> None:
        """The page reads the stream, and has its first events."""
        await self.viewer.watch(self.path, **options)
        self.feed.say(up_to)
        await self.viewer.until_count(up_to)

    async def reconnected(self, since: float) -> float:
        """Waits until something is heard again after the link was there, at `since`; how long that took, in ms."""
        # In the very millisecond there may be an event that came before the loss was noticed.
        heard = "[...seen.opens, ...seen.arrivals].filter((at) => at > args[0])"
        await self.viewer.until(f"{heard}.length", since)
        took = float(await self.viewer.page.evaluate(f"((...args) => Math.min(...{heard}))({since})")) - since
        self.figures.reconnects_ms.append(took)
        return took

    async def sees(self, *words: str, since: float = 0) -> float:
        """A failure has happened: the page has to say so, with words that begin with these, or in a note.

        Gives the time of it, in ms.
        """
        self.figures.failures += 1
        self.figures.silent += 1
        shown = (
            "seen.words.some((shown) => shown.at >= args[1] && args[0].some((words) => shown.words.startsWith(words)))"
        )
        noted = "seen.notes.some((note) => args[0].some((words) => note.startsWith(words)))"
        await self.viewer.until(f"{shown} || {noted}", list(words), since)
        self.figures.silent -= 1
        said = [word["at"] for word in (await self.viewer.seen())["words"] if word["words"].startswith(words)]
        return float(min((at for at in said if at >= since), default=since))

    async def finish(self, *, told_lost: int = 0) -> None:
        """The rest is said; the page has all of it, once, in its order."""
        self.feed.say(EVENTS)
        self.feed.end()
        try:
            await self.viewer.until("seen.done")
        finally:
            await self.count(told_lost=told_lost)

        numbers = (await self.viewer.seen())["numbers"]
        missing = set(range(1, EVENTS + 1)) - set(numbers)
        assert sorted(set(numbers)) == numbers, "in order, and none twice"
        assert told_lost == len(missing)

    async def count(self, *, told_lost: int = 0) -> None:
        """What the page has goes into the figures."""
        times_got = Counter((await self.viewer.seen())["numbers"])
        self.figures.expected = EVENTS
        self.figures.got = len(times_got)
        self.figures.duplicates = sum(times_got.values()) - len(times_got)
        self.figures.told_lost = told_lost
        self.figures.dropped = (await self.viewer.stats()).get("duplicates", 0)
