"""Real services for real clients: a small OpenAI API on aiohttp, MCP on uvicorn, and a line that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from aiohttp import web
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.session import ServerSession
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import JSONRPCMessage
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from tests.harness import until

Pause = Callable[[str], Awaitable[None]]
"""Called between two events with what the sidecar put into the request's `Via`; nothing where it came past it."""


async def no_pause(via: str) -> None:
    """A service that never waits."""


class Line:
    """A TCP relay to a port of this machine. `cut` is what a network does to connections that it loses."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0
        self.answers: list[bytearray] = []
        """What each connection has carried to the client."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answer = bytearray()
        self.answers.append(answer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        pair = {writer, far_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer, answer))
        finally:
            self._writers -= pair
            self._tasks.discard(task)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray | None = None
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if seen is not None:
                    seen += data
                writer.write(data)
                await writer.drain()
        writer.close()


class OpenAI:
    """The streaming half of the OpenAI API, as far as its SDK looks. What it does is chosen by the model's name."""

    KEY = "sk-test"
    WORDS = ("A ", "stream ", "that ", "göes ", "on.")

    def __init__(self) -> None:
        self.pause: Pause = no_pause
        self.bodies: list[Any] = []
        """The requests' bodies, in the order of their coming."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._responses)
        self._runner = web.AppRunner(app, access_log=None)
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("stream"):
            chunks = [_event(_chunk(index, word)) for index, word in enumerate(self.WORDS)]
            return await self._stream(request, body, [*chunks, b"data: [DONE]\n\n"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(self.WORDS)}}
        return web.json_response(
            {"id": "c-1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        )

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        events = [_event(event, event["type"]) for event in _response_events("".join(self.WORDS))]
        return await self._stream(request, await request.json(), events)

    async def _stream(self, request: web.Request, body: Any, events: list[bytes]) -> web.StreamResponse:
        self.bodies.append(body)
        if request.headers.get("Authorization") != f"Bearer {self.KEY}":
            return web.json_response({"error": {"message": "no such key", "code": "invalid_api_key"}}, status=401)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        zipper = zlib.compressobj(wbits=31) if body["model"] == "compressed" else None
        if zipper:
            response.headers["Content-Encoding"] = "gzip"
        await response.prepare(request)
        for event in events[: -2 if body["model"] == "breaks" else None]:
            piece = b": OPENROUTER PROCESSING\n\n" + event
            await response.write(zipper.compress(piece) + zipper.flush(zlib.Z_SYNC_FLUSH) if zipper else piece)
            await self.pause(request.headers.get("Via", ""))
        if body["model"] == "breaks" and request.transport:
            request.transport.close()
        return response


def _event(data: object, event: str = "") -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _chunk(index: int, text: str) -> dict[str, Any]:
    delta = {"content": text} if index else {"role": "assistant", "content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def _response_events(text: str) -> Iterator[dict[str, Any]]:
    response = {"id": "r-1", "object": "response", "created_at": 1, "model": "m", "output": []}
    yield {"type": "response.created", "sequence_number": 0, "response": {**response, "status": "in_progress"}}
    for number, word in enumerate(text.split(), 1):
        place = {"item_id": "i-1", "output_index": 0, "content_index": 0, "logprobs": []}
        yield {"type": "response.output_text.delta", "sequence_number": number, "delta": word, **place}
    last = {"type": "response.completed", "sequence_number": 99}
    yield {**last, "response": {**response, "status": "completed"}}


class Name(BaseModel):
    """What the server asks its user for."""

    name: str


class Store(EventStore):
    """What makes the SDK's server resumable by itself: ids are 1, 2, 3, … over all its streams."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._kept.append((stream_id, message))
        return str(len(self._kept))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        last = int(last_event_id)
        wanted, _ = self._kept[last - 1]
        for number, (stream_id, message) in enumerate(self._kept[last:], last + 1):
            if stream_id == wanted and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return wanted


class Mcp:
    """The SDK's own MCP server over streamable HTTP, with an event store or without. Its path is `/mcp`."""

    STEPS = 4

    def __init__(self, store: Store | None = None) -> None:
        self.pause: Callable[[int], Awaitable[None]] | None = None
        """Called by `count` after each step."""
        self.calls: list[str] = []
        """The tools that were called."""
        self.requests: list[tuple[str, int]] = []
        """Method and status of every request, in the order of the answers."""
        self.cancelled = 0
        self.session: ServerSession | None = None
        """That of the last call to `remember`."""
        self._server = _Uvicorn(uvicorn.Config(self._serve, interface="asgi3", log_level="warning"))
        self._app = self._make().streamable_http_app(event_store=store, retry_interval=100)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._task = asyncio.ensure_future(self._server.serve(sockets=[listening]))
        await until(lambda: self._server.started)

    async def stop(self) -> None:
        self._server.should_exit = True
        assert self._task is not None
        await self._task

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.requests.append((scope["method"], message["status"]))
            await send(message)

        await self._app(scope, receive, noting)

    def _make(self) -> MCPServer:
        server = MCPServer("tests")
        for tool in (self.count, self.fail, self.hang, self.greet, self.remember, self.poll):
            server.add_tool(tool)
        server.resource("text://poem", name="poem")(lambda: "Rosen\r\nNelken\n")
        return server

    # The tools

    async def count(self, ctx: Context) -> str:
        """Counts, and tells how far it has come."""
        self.calls.append("count")
        for step in range(1, self.STEPS + 1):
            await ctx.report_progress(step, self.STEPS, f"step {step}")
            if self.pause:
                await self.pause(step)
        return "counted — all of them"

    async def fail(self) -> str:
        """Fails."""
        raise ToolError("not today")

    async def hang(self, ctx: Context) -> str:
        """Goes on until it is cancelled."""
        await ctx.report_progress(1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return ""

    async def greet(self, ctx: Context) -> str:
        """Asks the client's user back, half way through."""
        answer = await ctx.elicit("Who is there?", Name)
        return f"Hello, {answer.data.name if answer.action == 'accept' else 'whoever you are'}!"

    async def remember(self, ctx: Context) -> str:
        """Keeps the session, through which the server may speak unasked, on the client's GET stream."""
        self.session = ctx.session
        return "noted"

    async def poll(self, ctx: Context) -> str:
        """Ends the connection before the answer, which then lies in the store until the client asks for it."""
        await ctx.report_progress(1, 2, "before")
        await ctx.close_sse_stream()
        await ctx.report_progress(2, 2, "after")
        return "polled"


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C is the test runner's."""
        yield
