"""The admin port: health for the orchestrator, metrics for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.metrics import Metrics

_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def make_admin(metrics: Metrics, *, ready: Callable[[], bool]) -> web.Application:
    """The admin application. `ready` says whether traffic is taken: not while draining."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if ready() else web.Response(status=503, text="draining\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": _EXPOSITION})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)],
    )
    return app
