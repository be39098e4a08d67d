"""`sse-sidecar demo`: a small service that knows nothing of resuming, and the sidecar in front of it."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sse_sidecar.config import Settings

ANSWER = (
    "A stream that breaks is no reason to start over. Each event that passes here gets a number, and an hour of them "
    "is kept. When you come back and say which number you saw last, you are sent what you missed, in order, once."
)
_TOKEN_SECONDS = 0.1
_TICK_SECONDS = 1.0


async def run(
    settings_for: Callable[[str], Settings], serve: Callable[[Settings, Callable[[str], None]], Awaitable[None]]
) -> None:
    """Serves the demo until a signal ends it. `serve` calls back with its address once it listens."""
    runner = web.AppRunner(make_upstream(), access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        settings = settings_for(f"http://127.0.0.1:{site.port}")
        await serve(settings, lambda address: print(_instructions(address), flush=True))
    finally:
        await runner.cleanup()


def make_upstream() -> web.Application:
    """POST /chat answers as a language model does; GET /ticker counts the seconds."""
    app = web.Application()
    app.add_routes([web.post("/chat", _chat), web.get("/ticker", _ticker)])
    return app


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _stream(request, _tokens())


async def _ticker(request: web.Request) -> web.StreamResponse:
    return await _stream(request, _ticks())


async def _stream(request: web.Request, events: AsyncIterator[str]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for data in events:
        await response.write(f"data: {data}\n\n".encode())
    return response


async def _tokens() -> AsyncIterator[str]:
    for word in ANSWER.split():
        yield json.dumps(
            {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word + " "}}]}
        )
        await asyncio.sleep(_TOKEN_SECONDS)
    yield "[DONE]"


async def _ticks() -> AsyncIterator[str]:
    for tick in count(1):
        yield f"tick {tick}"
        await asyncio.sleep(_TICK_SECONDS)


def _instructions(address: str) -> str:
    return f"""
A service that streams answers runs behind http://{address}; it cannot resume. Try, in another terminal:

  1. an answer, cut off after two seconds (the service goes on, and so does its bill)
     curl -sN --max-time 2 -d '{{"prompt": "hello"}}' http://{address}/chat | tee /tmp/cut-off

  2. the rest of it, from where it was cut; the service is not asked again
     curl -sN -H "Last-Event-ID: $(sed -n 's/^id: //p' /tmp/cut-off | tail -n 1)" http://{address}/chat

  3. a ticker that never ends
     curl -sN http://{address}/ticker

Ctrl-C ends the demo.
"""
