"""The service behind the sidecar: feeds that say what their test lets them say, and the page that reads them.

All of it is reached through the sidecar, as a real service's pages are: the page is of the streams' own origin.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.harness import Asked, Upstream

HERE = Path(__file__).parent
FILES = {
    "/page": HERE / "page.html",
    "/page.js": HERE / "page.js",
}

EVENTS = 50
"""Events of a feed, in every scenario."""

Answer = Callable[[Asked], Awaitable[None]]


class Feed:
    """A stream of numbered events, said a few at a time. Each connection gets those after its client's last id."""

    def __init__(self, padding: int = 100) -> None:
        self.said = 0
        self.sent = 0
        """The last that was written to any connection."""
        self.is_over = False
        self.has_ids = True
        self.retry: int | None = None
        """Milliseconds; where the service says none, the sidecar does."""
        self.requests: list[Asked] = []
        self.refusals: list[Answer] = []
        """How the next requests are answered, in the place of the stream."""
        self._padding = padding * "x"
        self._changed = asyncio.Event()

    def say(self, up_to: int) -> None:
        self.said = up_to
        self._change()

    async def say_paced(self, up_to: int, pause: float) -> None:
        """As a service does that has something to say every now and then."""
        while self.said < up_to:
            self.say(self.said + 1)
            await asyncio.sleep(pause)

    def end(self) -> None:
        """The mark of completion, and the end."""
        self.is_over = True
        self._change()

    def lose(self) -> None:
        """Every connection to the service breaks."""
        for asked in self.requests:
            asked.reset()

    async def answer(self, asked: Asked) -> None:
        self.requests.append(asked)
        if self.refusals:
            await self.refusals.pop(0)(asked)
            return
        await self._stream(asked, int(asked.header("last-event-id") or 0) if self.has_ids else 0)

    async def _stream(self, asked: Asked, last: int) -> None:
        await asked.begin()
        if self.retry is not None:
            await asked.stream(b"retry: %d\n\n" % self.retry)
        while not (self.is_over and last >= self.said):
            changed = self._changed
            for number in range(last + 1, self.said + 1):
                await asked.stream(self._event(number))
                self.sent = max(self.sent, number)
            last = max(last, self.said)
            if not self.is_over:
                await changed.wait()
        mark = f"id: {last + 1}\n" if self.has_ids else ""
        await asked.stream(f"{mark}data: [DONE]\n\n".encode())
        await asked.end()

    def _event(self, number: int) -> bytes:
        told = f"id: {number}\n" if self.has_ids else ""
        return f"{told}data: {json.dumps({'number': number, 'text': self._padding})}\n\n".encode()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Service:
    """Feeds by path, and files. Anything else is not found."""

    def __init__(self) -> None:
        self.feeds: dict[str, Feed] = {}
        self.addresses: list[str] = []
        """Where each request came from, as the sidecar tells it."""
        self.upstream = Upstream()
        self.upstream.handler = self._answer

    def feed(self, path: str, feed: Feed | None = None) -> Feed:
        self.feeds[path] = feed or Feed()
        return self.feeds[path]

    async def _answer(self, asked: Asked) -> None:
        path = asked.target.partition("?")[0]
        self.addresses.append(asked.header("x-forwarded-for") or "")
        if path in self.feeds:
            await self.feeds[path].answer(asked)
        elif path in FILES:
            await asked.respond("200 OK", *_head_of(FILES[path]), body=FILES[path].read_bytes())
        else:
            await asked.respond("404 Not Found", "Content-Type: text/plain", body=b"no such thing\n")


def _head_of(file: Path) -> tuple[str, str]:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"Content-Type: {kind}; charset=utf-8", "Connection: close"
