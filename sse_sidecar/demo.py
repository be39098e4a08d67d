"""`sse-sidecar demo`: a small service that knows nothing of resuming, the sidecar in front of it, and what breaks them.

    browser ── network ── sidecar ── line ── service
       └────────────────── control

The network and the line are relays, so that what the page's buttons break is really broken. The buttons' own requests
go to a port beside them.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from aiohttp import web

from sse_sidecar.assets import asset
from sse_sidecar.config import Address
from sse_sidecar.demo_relay import Relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiohttp.typedefs import Handler

    from sse_sidecar.config import Settings

ANSWER = (
    "A stream that breaks is no reason to start over. These words come from a service that knows nothing of resuming: "
    "when a connection to it breaks, the rest of its answer is gone. Between it and you stands a proxy that gives each "
    "event a number and keeps an hour of them. Cut the network, close the laptop, reload the page: your browser comes "
    "back, says which number it saw last, and is sent what it missed, in order, once, and the service is not asked "
    "again. Try it while these words arrive: none of them will be missing, and none will come twice."
)
PACE = "SSE_DEMO_PACE"
"""The environment's name for what all seconds here are multiplied with: tests are in a hurry."""

_TOKEN_SECONDS = 0.15
_TICK_SECONDS = 1.0
_CUT_SECONDS = 3.0
_STALL_SECONDS = 6.0
_STALL_TIMEOUT = 2.0
_RESTART_SECONDS = 2.0
_DRAIN_TIMEOUT = 1.0

_PAGE = {"/": "demo.html", "/demo.css": "demo.css", "/demo.js": "demo.js"}


async def run(
    settings_for: Callable[[str], Settings], serve: Callable[[Settings, Callable[[str], None]], Awaitable[None]]
) -> None:
    """Serves the demo until a signal ends it. `serve` calls back with its address once it listens."""
    demo = Demo(Service(pace=float(os.environ.get(PACE, "1"))))
    try:
        settings = settings_for(f"http://{await demo.start()}")
        address = await demo.open(settings.listen)

        def on_ready(sidecar: str) -> None:
            demo.connect(sidecar)
            print(_instructions(address), flush=True)

        await serve(demo.behind(settings), on_ready)
    finally:
        await demo.stop()


class Service:
    """What streams, and shows the page. `pace` multiplies its seconds."""

    def __init__(self, *, pace: float = 1.0) -> None:
        self.pace = pace
        self._silent_until = 0.0

    def make_upstream(self, control_port: Callable[[], int] = lambda: 0) -> web.Application:
        """POST /chat answers as a language model does; GET /ticker counts the seconds; the rest is the page."""
        app = web.Application()
        app.add_routes([web.post("/chat", self._chat), web.get("/ticker", self._ticker)])
        app.add_routes([web.get(path, _page(name, control_port)) for path, name in _PAGE.items()])
        return app

    def stall(self, seconds: float) -> None:
        """Says nothing for that long; the connections stay."""
        self._silent_until = asyncio.get_running_loop().time() + seconds

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, _tokens(), _TOKEN_SECONDS * self.pace)

    async def _ticker(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, _ticks(), _TICK_SECONDS * self.pace)

    async def _stream(self, request: web.Request, events: Iterator[str], seconds: float) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for data in events:
            await self._end_of_silence()
            await response.write(f"data: {data}\n\n".encode())
            await asyncio.sleep(seconds)
        return response

    async def _end_of_silence(self) -> None:
        while (left := self._silent_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)


class Demo:
    """The service, the two relays between it and the browser, and the port that breaks them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._network, self._line = Relay(), Relay()
        self._control_port = 0
        self._runners: list[web.AppRunner] = []

    async def start(self) -> Address:
        """Starts the service, and returns where the sidecar finds it."""
        upstream = self._service.make_upstream(lambda: self._control_port)
        self._line.target = await self._serve(upstream, "127.0.0.1")
        return await self._line.listen(Address("127.0.0.1", 0))

    async def open(self, listen: Address) -> Address:
        """Opens the ports for the browser. Raises ConfigError."""
        address = await self._network.listen(listen)
        self._control_port = (await self._serve(self._make_control(), listen.host)).port
        return address

    def behind(self, settings: Settings) -> Settings:
        """The sidecar's own settings: it is behind the network, and says early that the service is silent."""
        stall_timeout = _STALL_TIMEOUT * self._service.pace
        routes = [
            replace(route, settings=replace(route.settings, stall_timeout=stall_timeout)) for route in settings.routes
        ]
        return replace(settings, listen=Address("127.0.0.1", 0), drain_timeout=_DRAIN_TIMEOUT, routes=tuple(routes))

    def connect(self, sidecar: str) -> None:
        host, _, port = sidecar.rpartition(":")
        self._network.target = Address(host, int(port))

    async def stop(self) -> None:
        await self._network.close()
        await self._line.close()
        for runner in self._runners:
            await runner.cleanup()

    async def _serve(self, app: web.Application, host: str) -> Address:
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        self._runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, host, 0)
        await site.start()
        return Address(host, site.port)

    def _make_control(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/cut", self._breaking(self._network.cut, _CUT_SECONDS)),
                web.post("/stall", self._breaking(self._service.stall, _STALL_SECONDS)),
                web.post("/restart", self._breaking(self._line.cut, _RESTART_SECONDS)),
            ]
        )
        return app

    def _breaking(self, break_for: Callable[[float], None], seconds: float) -> Handler:
        """Breaks something for a while, and answers for how many seconds."""
        seconds = round(seconds * self._service.pace, 2)

        async def handle(_: web.Request) -> web.Response:
            break_for(seconds)
            return web.json_response({"seconds": seconds}, headers={"Access-Control-Allow-Origin": "*"})

        return handle


def _page(name: str, control_port: Callable[[], int]) -> Handler:
    """A file of the page; it is told where its buttons' requests go."""

    async def handle(_: web.Request) -> web.Response:
        file = asset(name)
        body = file.body.replace(b"{control_port}", b"%d" % control_port())
        fields = {"Content-Type": file.content_type.decode(), "Cache-Control": "no-cache"}
        return web.Response(body=body, headers=fields)

    return handle


def _tokens() -> Iterator[str]:
    for word in ANSWER.split():
        yield json.dumps(
            {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word + " "}}]}
        )
    yield "[DONE]"


def _ticks() -> Iterator[str]:
    return (f"tick {number}" for number in count(1))


def _instructions(address: Address) -> str:
    # A browser takes no wildcard for a host.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    url = f"http://{Address(host, address.port)}"
    return f"""
Open {url}/ in a browser, and break what you see there.

Or, in another terminal: an answer that is cut off after two seconds, the rest of it, and a ticker.

  curl -sN -m 2 -d '{{}}' {url}/chat | tee /tmp/cut-off
  curl -sN -H "Last-Event-ID: $(sed -n 's/^id: //p' /tmp/cut-off | tail -n 1)" {url}/chat
  curl -sN {url}/ticker

Ctrl-C ends the demo.
"""
