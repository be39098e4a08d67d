"""What the tests are made of: a scripted upstream, a client that sees every byte, and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import heapq
import re
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from sse_sidecar.answer import TO_BE_READ
from sse_sidecar.app import Sidecar
from sse_sidecar.config import load

TIMEOUT = 10.0
"""Seconds after which a test gives up on a condition. Nothing waits for it when all is well."""

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class ManualClock:
    """Time that stands still until `advance`. What is due is called within it, in order."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._due: list[tuple[float, int, _ManualTimer]] = []
        self._numbers = count()

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> _ManualTimer:
        timer = _ManualTimer(callback, args)
        heapq.heappush(self._due, (self._now + delay, next(self._numbers), timer))
        return timer

    @property
    def pending(self) -> int:
        """Timers that have been asked for and not called off."""
        return sum(not timer.cancelled for _, _, timer in self._due)

    @property
    def next_in(self) -> float:
        """Seconds until the next timer is due; infinite where there is none."""
        return min((at - self._now for at, _, timer in self._due if not timer.cancelled), default=float("inf"))

    def advance(self, seconds: float) -> None:
        until = self._now + seconds
        while self._due and self._due[0][0] <= until:
            at, _, timer = heapq.heappop(self._due)
            self._now = max(self._now, at)
            if not timer.cancelled:
                timer.callback(*timer.args)
        self._now = until


class _ManualTimer:
    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback, self.args = callback, args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


async def until(condition: Callable[[], Any]) -> None:
    """Waits for a condition of this process."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.001)


class Message:
    """A request or a response, as far as it has been read: start line, headers, and a body read piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.start_line = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        """The body as far as it has come, without its chunk framing."""
        self.whole = False
        """Whether the body's own framing said that it is complete."""

    async def read_head(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        self.start_line, *lines = raw[:-4].split(b"\r\n")
        for line in lines:
            name, _, value = line.partition(b":")
            self.headers.append((name, value.strip()))

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        return next((value for value in self.header_all(name)), None)

    def header_all(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name.lower().encode()]

    async def read_some(self) -> bool:
        """Reads a piece of the body; False at its end, whole or not."""
        async with asyncio.timeout(TIMEOUT):
            if self.header("transfer-encoding") == "chunked":
                return await self._read_chunk()
            length = self.header("content-length")
            if length is None:
                piece = await self.reader.read(65536)
            else:
                piece = await self.reader.read(int(length) - len(self.body))
                self.whole = len(self.body) + len(piece) == int(length)
            self.body += piece
            return bool(piece)

    async def _read_chunk(self) -> bool:
        try:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            piece = await self.reader.readexactly(size + 2)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        self.whole = size == 0
        self.body += piece[:-2]
        return size > 0

    async def read_until(self, wanted: bytes) -> bytes:
        """Reads until the body holds `wanted`; the body so far."""
        while wanted not in self.body:
            if not await self.read_some():
                raise AssertionError(f"the body ended without {wanted!r}: {self.body!r}")
        return self.body

    async def read_to_end(self) -> bytes:
        try:
            while await self.read_some():
                pass
        except ConnectionError:
            pass
        return self.body

    async def closed(self) -> None:
        """Waits until the peer has closed or reset the connection, reading what it still sends."""
        async with asyncio.timeout(TIMEOUT):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Ends the connection with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Response(Message):
    """What a client got. `stream_id` and `sse_status` are the sidecar's own headers."""

    @property
    def status(self) -> int:
        return int(self.start_line.split()[1])

    @property
    def stream_id(self) -> str:
        value = self.header("sse-stream")
        assert value is not None
        return value

    @property
    def sse_status(self) -> str | None:
        return self.header("sse-stream-status")

    def events(self) -> list[tuple[str, str]]:
        """(id, block without its id line) of every block with data so far, as a client on the standard reads them."""
        found = []
        for block in self.body.split(b"\n\n")[:-1]:
            lines = [line for line in block.split(b"\n") if not line.startswith(b":")]
            ids = [line[3:].strip().decode() for line in lines if line.startswith(b"id:")]
            rest = b"\n".join(line for line in lines if not line.startswith((b"id:", b"retry:")))
            if b"data" in rest:
                found.append((ids[-1] if ids else "", rest.decode("utf-8", "replace")))
        return found

    @property
    def shown(self) -> bytes:
        """The body with what differs from run to run written out: the stream's id, and the sidecar's own retry."""
        known = self.body.replace(self.stream_id.encode(), b"ID")
        return re.sub(rb"\bretry: [1-5]\d{3}\b", b"retry: OWN", known)

    @property
    def last_id(self) -> str:
        """The last id the client has been given."""
        ids = [
            line[3:].strip()
            for line in self.body.split(b"\n\n")[:-1]
            for line in line.split(b"\n")
            if line[:3] == b"id:"
        ]
        return ids[-1].decode()

    async def send(self, raw: bytes) -> None:
        """Writes a part of the request; see `connect`."""
        self.writer.write(raw)
        await self.writer.drain()


async def connect(port: int) -> Response:
    """A connection on which nothing has been said yet: its test writes the request itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    return Response(reader, writer)


async def request(
    port: int,
    target: str = "/",
    *,
    method: str = "GET",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    body: bytes = b"",
    version: str = "HTTP/1.1",
) -> Response:
    """Sends a request and reads the answer's head. The connection stays open until `close`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    fields = list(headers.items() if isinstance(headers, dict) else headers or [])
    if not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", f"127.0.0.1:{port}"))
    if body:
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in fields)]
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
    response = Response(reader, writer)
    await response.read_head()
    return response


EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "User-Agent": "Mozilla/5.0"}
"""How a browser's EventSource asks."""


class Asked(Message):
    """A request that reached the scripted upstream, and the way to answer it byte by byte."""

    @property
    def method(self) -> str:
        return self.start_line.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.start_line.split(b" ")[1].decode("latin-1")

    async def read_body(self) -> bytes:
        if self.header("transfer-encoding") or self.header("content-length"):
            await self.read_to_end()
        return self.body

    async def send(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def begin(self, *headers: str) -> None:
        """The head of a chunked event stream."""
        extra = "".join(f"{line}\r\n" for line in headers).encode("latin-1")
        await self.send(STREAM_HEAD[:-2] + extra + b"\r\n")

    async def stream(self, data: bytes) -> None:
        """A piece of the stream, as one chunk."""
        await self.send(chunk(data))

    async def end(self) -> None:
        """The clean end of a chunked body."""
        await self.send(b"0\r\n\r\n")

    async def respond(self, status: str, *headers: str, body: bytes = b"") -> None:
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
        await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


class Upstream:
    """A service that is scripted by its test: each connection's request is handed out by `asked`, or to a handler."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        """All requests that ever came, answered or not."""
        self.handler: Callable[[Asked], Awaitable[None]] | None = None
        self.port = 0
        self._taken = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, host, port, limit=1 << 20, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def start_unix(self, path: str) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path, limit=1 << 20)

    async def stop(self) -> None:
        """Stops listening and resets every connection: what a crash looks like. May be started again on its port."""
        if self._server:
            self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def asked(self) -> Asked:
        """The next request, in the order of their coming."""
        await until(lambda: len(self.requests) > self._taken)
        self._taken += 1
        return self.requests[self._taken - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        asked = Asked(reader, writer)
        try:
            await asked.read_head()
            self.requests.append(asked)
            if self.handler:
                await self.handler(asked)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            if self.handler:
                writer.close()


async def start_sidecar(upstream: str, clock: ManualClock | None = None, **settings: Any) -> Sidecar:
    """A sidecar on ports of its own. Settings are given as in the TOML file."""
    # The scripted upstream takes one request on each connection, so that a test sees the end of each.
    values = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "upstream": upstream, "upstream_keepalive": 0}
    routes = settings.pop("route", None)
    stopwatch = settings.pop("stopwatch", time.perf_counter)
    loaded = load({**values, **settings}, tables=routes)
    sidecar = Sidecar(loaded, clock, stopwatch=stopwatch)
    await sidecar.start()
    return sidecar


async def scrape(sidecar: Sidecar) -> dict[str, float]:
    """The metrics, as the admin port gives them: `name{label="value"}` and the number."""
    assert sidecar.admin_address is not None
    response = await request(sidecar.admin_address.port, "/metrics", headers={"Connection": "close"})
    lines = (await response.read_to_end()).decode().splitlines()
    response.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


async def read_to_the_cut(response: Response, clock: ManualClock) -> None:
    """Reads to an end before which a page is given time to read what came before it."""
    reading = asyncio.ensure_future(response.read_to_end())
    await until(lambda: reading.done() or clock.next_in <= TO_BE_READ)
    clock.advance(TO_BE_READ)
    await reading


async def unread(sidecar: Sidecar) -> None:
    """Waits until the sidecar has noticed that all clients of streams have left."""
    await until(lambda: not sidecar.front.answers.readers)


def port_of(sidecar: Sidecar) -> int:
    assert sidecar.address is not None
    return sidecar.address.port
