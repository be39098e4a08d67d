"""The admin port: health for the orchestrator, metrics for Prometheus, a live page for people."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from sse_sidecar.assets import asset
from sse_sidecar.clock import sleep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sse_sidecar.clock import Clock
    from sse_sidecar.metrics import Metrics
    from sse_sidecar.overview import Overview

FEED_EVERY = 1.0
"""Seconds between two snapshots to each page that watches."""

_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
_OWN_ONLY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def make_admin(metrics: Metrics, overview: Overview, clock: Clock, *, ready: Callable[[], bool]) -> web.Application:
    """The admin application. `ready` says whether traffic is taken: not while draining."""
    watching: set[asyncio.Task[object] | None] = set()

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if ready() else web.Response(status=503, text="draining\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": _EXPOSITION})

    async def streams(_: web.Request) -> web.Response:
        return web.Response(body=overview.as_json() + b"\n", headers={**_HEADERS, "Content-Type": "application/json"})

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        watching.add(asyncio.current_task())
        try:
            while True:
                await response.write(b"data: %b\n\n" % overview.as_json())
                await sleep(clock, FEED_EVERY)
        finally:
            watching.discard(asyncio.current_task())

    async def leave(_: web.Application) -> None:
        """A page that watches would keep the port open for as long as aiohttp waits."""
        for task in watching:
            if task is not None:
                task.cancel()

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", exposition),
            web.get("/streams", streams),
            web.get("/events", events, allow_head=False),
            web.get("/", _page("overview.html")),
            web.get("/overview.css", _page("overview.css")),
            web.get("/overview.js", _page("overview.js")),
        ],
    )
    app.on_shutdown.append(leave)
    return app


def _page(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(_: web.Request) -> web.Response:
        file = asset(name)
        headers = {**_HEADERS, "Content-Type": file.content_type.decode(), "Content-Security-Policy": _OWN_ONLY}
        return web.Response(body=file.body, headers=headers)

    return serve
