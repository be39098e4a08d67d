"""The configuration of nginx, in a real nginx: a stream passes it event by event, and is resumed through it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import httpx
import pytest
import trustme

from sse_sidecar.app import Sidecar
from sse_sidecar.config import StreamSettings
from tests.conftest import with_settings
from tests.harness import TIMEOUT, Asked, ManualClock, Response, Upstream, port_of, request, unread, until
from tests.reference import interpret
from tests.test_cli import Running, free_port
from tests.test_demo_page import missing

FILE = Path(__file__).parent.parent / "config/nginx.conf"
HOST = "localhost"


def has(command: str, *asked: str, line: str) -> bool:
    """Whether a command is here and says a line that matches."""
    if shutil.which(command) is None:
        return False
    ran = subprocess.run([command, *asked], capture_output=True, text=True, check=False)
    return re.search(line, ran.stdout + ran.stderr) is not None


if not has("nginx", "-V", line="http_v2_module"):
    missing("no nginx with HTTP/2 on this machine")
if not has("curl", "--version", line=r"\bHTTP2\b"):
    missing("no curl with HTTP/2 on this machine")


class Certificates:
    """Of an authority that only these tests trust."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.chain, self.key = (folder / name for name in ("authority.pem", "chain.pem", "key.pem"))
        authority = trustme.CA()
        issued = authority.issue_cert(HOST, "127.0.0.1")
        authority.cert_pem.write_to_path(str(self.authority))
        issued.private_key_pem.write_to_path(str(self.key))
        self.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


class Nginx:
    """One with the file's own configuration but for where things are."""

    def __init__(self, folder: Path, certificates: Certificates, proxied: int) -> None:
        self.folder, self.certificates, self._proxied = folder, certificates, proxied
        self.plain, self.port = free_port(), free_port()
        self.process: Process

    def configuration(self) -> str:
        """Each substitution is made exactly once: what is not found is a change of the file that is not known here."""
        text = FILE.read_text()
        ipv6 = "listen [::1]:" if has_ipv6() else "# listen [::1]:"
        for found, other in (
            ("listen 80;", f"listen 127.0.0.1:{self.plain};"),
            ("listen [::]:80;", f"{ipv6}{self.plain};"),
            ("listen 443 ", f"listen 127.0.0.1:{self.port} "),
            ("listen [::]:443 ", f"{ipv6}{self.port} "),
            ("/etc/nginx/tls/fullchain.pem", str(self.certificates.chain)),
            ("/etc/nginx/tls/privkey.pem", str(self.certificates.key)),
            ("/run/nginx.pid", str(self.folder / "pid")),
            ("/var/log/nginx/error.log", str(self.folder / "error.log")),
            ("/var/log/nginx/access.log", str(self.folder / "access.log")),
            ("http://127.0.0.1:8080", f"http://127.0.0.1:{self._proxied}"),
        ):
            assert 1 == text.count(found), found
            text = text.replace(found, other)
        return text

    async def start(self) -> None:
        file = self.folder / "nginx.conf"
        file.write_text(self.configuration())
        arguments = ("-c", str(file), "-e", str(self.folder / "error.log"), "-g", "daemon off;")
        self.process = await asyncio.create_subprocess_exec("nginx", *arguments)
        await Running(self.process).accepts(self.port)

    def crash(self) -> None:
        """Kills the processes that hold the connections. Others take their place."""
        master = self.process.pid
        for child in Path(f"/proc/{master}/task/{master}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    @property
    def complaints(self) -> list[str]:
        """That a machine allows fewer open files than it asks for is no fault of the file's."""
        lines = (self.folder / "error.log").read_text().splitlines()
        return [line for line in lines if "setrlimit(RLIMIT_NOFILE" not in line]


StartNginx = Callable[[int], Awaitable[Nginx]]


@pytest.fixture
async def start_nginx(tmp_path: Path, certificates: Certificates) -> AsyncIterator[StartNginx]:
    """Starts one in front of a port."""
    started: list[Nginx] = []

    async def starting(proxied: int) -> Nginx:
        started.append(Nginx(tmp_path, certificates, proxied))
        await started[-1].start()
        return started[-1]

    yield starting
    for nginx in started:
        nginx.process.terminate()
        await nginx.process.wait()


@pytest.fixture
async def nginx(start_nginx: StartNginx, sidecar: Sidecar) -> Nginx:
    return await start_nginx(port_of(sidecar))


# Clients


class Client(Protocol):
    """One request, and its body as far as it has come."""

    body: bytes

    async def open(self, nginx: Nginx, headers: dict[str, str]) -> None: ...

    async def read(self) -> bytes: ...

    async def close(self) -> str:
        """The version of HTTP that was spoken."""
        ...


class Curl:
    """Over HTTP/2."""

    def __init__(self) -> None:
        self.body = b""

    async def open(self, nginx: Nginx, headers: dict[str, str]) -> None:
        self._head = nginx.folder / "head"
        options = ["-qsN", "--http2", "--cacert", str(nginx.certificates.authority), "--dump-header", str(self._head)]
        for name, value in headers.items():
            options += ["-H", f"{name}: {value}"]
        self._process = await asyncio.create_subprocess_exec(
            "curl", "--noproxy", "*", *options, f"https://{HOST}:{nginx.port}/", stdout=PIPE
        )

    async def read(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.read(65536)

    async def close(self) -> str:
        with suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.communicate()
        return self._head.read_text().split()[0].removeprefix("HTTP/")


class Httpx:
    """Over HTTP/1.1."""

    def __init__(self) -> None:
        self.body = b""

    async def open(self, nginx: Nginx, headers: dict[str, str]) -> None:
        self._client = httpx.AsyncClient(verify=nginx.certificates.trust, trust_env=False, timeout=TIMEOUT)
        opening = self._client.build_request("GET", f"https://{HOST}:{nginx.port}/", headers=headers)
        self._response = await self._client.send(opening, stream=True)
        self._pieces = self._response.aiter_raw()

    async def read(self) -> bytes:
        with suppress(httpx.TransportError):
            return await anext(self._pieces, b"")
        return b""

    async def close(self) -> str:
        await self._client.aclose()
        return self._response.http_version.removeprefix("HTTP/")


async def read_until(client: Client, wanted: bytes) -> None:
    async with asyncio.timeout(TIMEOUT):
        while wanted not in client.body:
            piece = await client.read()
            assert piece, f"it ended without {wanted!r}: {client.body!r}"
            client.body += piece


async def read_to_the_end(client: Client) -> None:
    async with asyncio.timeout(TIMEOUT):
        while piece := await client.read():
            client.body += piece


# Streams


@pytest.mark.parametrize(("make", "version"), [(Curl, "2"), (Httpx, "1.1")], ids=["HTTP/2", "HTTP/1.1"])
async def test_each_event_comes_when_it_is_sent_and_none_is_lost_by_a_cut(
    make: type[Curl | Httpx], version: str, nginx: Nginx, upstream: Upstream, sidecar: Sidecar
) -> None:
    first, second = make(), make()
    opening = asyncio.ensure_future(first.open(nginx, {}))
    asked = await upstream.asked()
    await asked.begin()
    await opening
    for number in (1, 2, 3):
        await asked.stream(b"data: %d\n\n" % number)
        await read_until(first, b"data: %d\n" % number)
    nginx.crash()
    await read_to_the_end(first)
    versions = [await first.close()]
    await unread(sidecar)
    await asked.stream(b"data: 4\n\ndata: 5\n\n")
    last_id = interpret(first.body).events[-1].last_event_id
    await second.open(nginx, {"Last-Event-ID": last_id})
    await read_until(second, b"data: 5\n")
    await asked.stream(b"data: 6\n\n")
    await read_until(second, b"data: 6\n")
    versions.append(await second.close())
    events = interpret(first.body).events + interpret(second.body).events
    stream_id = last_id.partition("-")[2]

    assert [(f"{number}-{stream_id}", str(number)) for number in range(1, 7)] == [
        (event.last_event_id, event.data) for event in events
    ]
    assert [version] * 2 == versions
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize("client", [Curl(), Httpx()], ids=["HTTP/2", "HTTP/1.1"])
async def test_heartbeats_pass(
    client: Curl | Httpx, nginx: Nginx, upstream: Upstream, sidecar: Sidecar, clock: ManualClock
) -> None:
    opening = asyncio.ensure_future(client.open(nginx, {}))
    asked = await upstream.asked()
    await asked.begin()
    await opening
    await until(lambda: sidecar.streams.reader_count)
    for beats in (1, 2):
        clock.advance(10)
        await read_until(client, b": heartbeat\n" * beats)
    await client.close()


@pytest.mark.parametrize("client", [Curl(), Httpx()], ids=["HTTP/2", "HTTP/1.1"])
async def test_what_is_no_event_stream_comes_bit_by_bit_too(
    client: Curl | Httpx, start_nginx: StartNginx, upstream: Upstream
) -> None:
    """A page that is sent as it is made, without the sidecar's header; a compressor would keep it back as well."""
    nginx = await start_nginx(upstream.port)
    opening = asyncio.ensure_future(client.open(nginx, {"Accept-Encoding": "gzip"}))
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b"<p>1</p>", b"<p>2</p>"):
        await asked.stream(piece)
        await opening
        await read_until(client, piece)
    await client.close()


def test_the_sidecar_gives_up_before_nginx_does() -> None:
    (read_timeout,) = re.findall(r"proxy_read_timeout (\d+)s;", FILE.read_text())
    settings = StreamSettings()

    assert settings.heartbeat < settings.response_timeout < int(read_timeout)


async def test_an_upload_passes_as_it_comes_however_large_it_is(nginx: Nginx, upstream: Upstream) -> None:
    piece = b"x" * (1 << 20)
    arrived = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield piece
        await arrived.wait()
        yield piece

    async with httpx.AsyncClient(verify=nginx.certificates.trust, trust_env=False, timeout=TIMEOUT) as client:
        posting = asyncio.ensure_future(client.post(f"https://{HOST}:{nginx.port}/", content=pieces()))
        asked = await upstream.asked()
        await asked.read_some()
        arrived.set()
        await asked.read_body()
        await asked.respond("200 OK", body=b"thanks")
        answer = await posting

    assert (200, b"thanks", 2 * len(piece)) == (answer.status_code, answer.content, len(asked.body))


# What the service is told


async def asked_by_curl(nginx: Nginx, upstream: Upstream, headers: dict[str, str]) -> Asked:
    """A request that is answered with nothing, as it came to the service."""
    client = Curl()
    await client.open(nginx, headers)
    asked = await upstream.asked()
    await asked.respond("200 OK")
    await read_to_the_end(client)
    await client.close()
    return asked


@with_settings(trust_forwarded=True)
async def test_the_service_is_told_who_asked_how_where_the_sidecar_trusts_it(nginx: Nginx, upstream: Upstream) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Host": "forged", "Forwarded": "for=6.6.6.6"}
    asked = await asked_by_curl(nginx, upstream, forged)
    names = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Host", "Forwarded")
    host = f"{HOST}:{nginx.port}"

    assert ["127.0.0.1, 127.0.0.1", "https", host, host, None] == [asked.header(name) for name in names]


async def test_without_trust_the_service_is_told_of_nginx_alone(nginx: Nginx, upstream: Upstream) -> None:
    asked = await asked_by_curl(nginx, upstream, {})

    assert ("127.0.0.1", "http") == (asked.header("X-Forwarded-For"), asked.header("X-Forwarded-Proto"))


async def test_a_websocket_is_passed_on_to_what_stands_behind(start_nginx: StartNginx, upstream: Upstream) -> None:
    nginx = await start_nginx(upstream.port)
    reader, writer = await asyncio.open_connection(HOST, nginx.port, ssl=nginx.certificates.trust)
    writer.write(b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    asked = await upstream.asked()
    await asked.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    answer = Response(reader, writer)
    await answer.read_head()
    writer.write(b"ping")
    ping = await asked.reader.readexactly(4)
    await asked.send(b"pong")

    assert ("upgrade", "websocket") == (asked.header("Connection"), asked.header("Upgrade"))
    assert (101, b"ping", b"pong") == (answer.status, ping, await reader.readexactly(4))
    writer.close()


async def test_other_requests_are_no_upgrades(start_nginx: StartNginx, upstream: Upstream) -> None:
    nginx = await start_nginx(upstream.port)
    asked = await asked_by_curl(nginx, upstream, {})

    assert (b"GET / HTTP/1.1", None, None) == (asked.start_line, asked.header("Connection"), asked.header("Upgrade"))


# Without a stream


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"Accept": "text/event-stream", "Cache-Control": "no-cache"}, 200, "retry: 3000\n\n"),
        ({"Accept": "text/event-stream"}, 502, None),
        ({"Accept": "text/event-stream, application/json", "Cache-Control": "no-cache"}, 502, None),
    ],
    ids=["an EventSource", "fetch", "another"],
)
async def test_while_the_sidecar_is_away_an_event_source_is_told_to_come_back(
    headers: dict[str, str], status: int, body: str | None, start_nginx: StartNginx
) -> None:
    nginx = await start_nginx(free_port())
    async with httpx.AsyncClient(verify=nginx.certificates.trust, trust_env=False) as client:
        answer = await client.get(f"https://{HOST}:{nginx.port}/", headers={"Origin": "https://a.example"} | headers)

    assert status == answer.status_code
    if body is not None:
        facts = [answer.headers[name] for name in ("Content-Type", "Cache-Control", "Access-Control-Allow-Origin")]
        assert (body, ["text/event-stream", "no-store", "https://a.example"]) == (answer.text, facts)


async def test_the_sidecars_own_errors_are_left_as_they_are(nginx: Nginx, upstream: Upstream) -> None:
    await upstream.stop()
    async with httpx.AsyncClient(verify=nginx.certificates.trust, trust_env=False, timeout=TIMEOUT) as client:
        answer = await client.get(f"https://{HOST}:{nginx.port}/")

    assert (502, "application/problem+json") == (answer.status_code, answer.headers["Content-Type"])


async def test_who_comes_without_tls_is_sent_to_it(nginx: Nginx) -> None:
    answer = await request(nginx.plain, "/chat?a=b", method="POST", headers={"Host": "service.example"}, body=b"1")
    answer.close()

    assert (308, "https://service.example/chat?a=b") == (answer.status, answer.header("Location"))


async def test_it_has_nothing_to_complain_of(nginx: Nginx) -> None:
    assert [] == nginx.complaints
