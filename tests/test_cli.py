"""The command, as a process of its own: its settings, its errors, its signals and its log."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sse_sidecar import __version__, config
from tests.harness import EVENT_SOURCE, TIMEOUT, Upstream, request

COMMAND = (sys.executable, "-m", "sse_sidecar")


def environment(**own: str) -> dict[str, str]:
    """This process's, without settings that whoever runs the tests may have."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SSE_SIDECAR_")} | own


async def run(*args: str, **env: str) -> tuple[int | None, str, str]:
    """Runs the command to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(*COMMAND, *args, env=environment(**env), stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


class Running:
    """A command that serves, on a port of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = 0
        self.log = ""

    async def ready(self) -> None:
        """Waits for the line that says where it listens."""
        while not (found := re.search(r" on 127\.0\.0\.1:(\d+), admin on", self.log)):
            await self.read_line()
        self.port = int(found[1])

    async def accepts(self, port: int) -> None:
        """The same for one whose log says nothing."""
        self.port = port
        async with asyncio.timeout(TIMEOUT):
            while not self._can_connect():
                await asyncio.sleep(0.01)

    def _can_connect(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    async def read_line(self) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT):
            line = await self.process.stderr.readline()
        assert line, f"the command ended: {self.log}"
        self.log += line.decode()

    async def logged(self, text: str) -> None:
        while text not in self.log:
            await self.read_line()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT):
            self.log += (await self.process.stderr.read()).decode()
            return await self.process.wait()


def free_port() -> int:
    """Below those that systems give to clients: one that connects to itself would take the port it waits for."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(upstream: Upstream) -> AsyncIterator[Serve]:
    """Starts the command in front of the upstream, unless it is told otherwise; killed at the end if it still runs."""
    started: list[Running] = []

    async def serving(*args: str, port: int = 0, **env: str) -> Running:
        own = {
            "SSE_SIDECAR_UPSTREAM": upstream.url,
            "SSE_SIDECAR_LISTEN": f"127.0.0.1:{port}",
            "SSE_SIDECAR_ADMIN_LISTEN": "",
        }
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *args, env=environment(**own | env), stdout=PIPE, stderr=PIPE
        )
        started.append(Running(process))
        await (started[-1].accepts(port) if port else started[-1].ready())
        return started[-1]

    yield serving
    for running in started:
        if running.process.returncode is None:
            running.process.kill()
        await running.process.communicate()


# What it says of itself


async def test_version() -> None:
    assert (0, f"sse-sidecar {__version__}\n", "") == await run("--version")


async def test_help_names_every_flag_and_command() -> None:
    code, out, _ = await run("--help")
    flags = ["--" + item.name.replace("_", "-") for item in config.declared() if item.metadata["flag"]]
    missing = [name for name in [*flags, "--config", "--version", "check", "demo"] if name not in out]

    assert 0 == code
    assert [] == missing


# Settings


async def test_check_says_that_a_file_can_be_used_and_opens_no_port(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file.write_text(f'upstream = "http://127.0.0.1:8000"\nlisten = "{address}"\n[[route]]\npath = "/a/*"\n')
        result = await run("check", "--config", str(file))

    assert (0, f"ok: 2 route(s), listening on {address}\n", "") == result


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('upstream = "ftp://a"', ["upstream", "ftp://a", "http://HOST"]),
        ('upstream = "http://a"\n[[route]]\npath = "/a"\nlinger = -1', ["route[0].linger", "-1", "seconds"]),
        ("upstream = ", ["config", "sidecar.toml", "TOML"]),
    ],
    ids=["value", "route", "no TOML"],
)
async def test_check_names_key_value_and_expectation(tmp_path: Path, text: str, named: list[str]) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(text)
    code, out, err = await run("check", "--config", str(file))

    assert (2, "") == (code, out)
    assert [] == [part for part in named if part not in err], err
    assert 1 == err.count("\n")


UPSTREAM = ("--upstream", "http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("args", "env", "named"),
    [
        ((), {}, ["upstream", "expected"]),
        ((*UPSTREAM, "--heartbeat", "soon"), {}, ["--heartbeat", "soon", "seconds above 0"]),
        (UPSTREAM, {"SSE_SIDECAR_MAX_MEMORY": "much"}, ["SSE_SIDECAR_MAX_MEMORY", "much", "512MiB"]),
        ((*UPSTREAM, "--config", "/no/such/file"), {}, ["config", "/no/such/file", "No such file"]),
        ((*UPSTREAM, "--no-such-flag"), {}, ["--no-such-flag"]),
    ],
    ids=["no upstream", "flag", "environment", "file", "unknown flag"],
)
async def test_a_setting_that_cannot_be_used_is_named_before_a_port_is_opened(
    args: tuple[str, ...], env: dict[str, str], named: list[str]
) -> None:
    """The port is taken, which is not what is told."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = await run(*args, **{"SSE_SIDECAR_LISTEN": listen, **env})

    assert (2, "") == (code, out)
    assert [] == [part for part in named if part not in err], err
    assert listen not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("flag", ["--listen", "--admin-listen"])
async def test_a_taken_port_says_which(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        env = {"SSE_SIDECAR_LISTEN": "127.0.0.1:0", "SSE_SIDECAR_ADMIN_LISTEN": "127.0.0.1:0"}
        code, out, err = await run(*UPSTREAM, flag, address, **env)

    assert (2, "") == (code, out)
    assert f"sse-sidecar: {flag[2:].replace('-', '_')} = '{address}': expected" in err
    assert "in use" in err
    assert "Traceback" not in err


async def test_flags_win_over_the_environment_which_wins_over_the_file(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    nowhere = "http://127.0.0.1:1"
    file = tmp_path / "sidecar.toml"
    file.write_text(f'upstream = "{nowhere}"\nlog_format = "text"\nhost_header = "from.file"\n')
    env = {"SSE_SIDECAR_UPSTREAM": nowhere, "SSE_SIDECAR_LOG_FORMAT": "json", "SSE_SIDECAR_CONFIG": str(file)}
    running = await serve("--upstream", upstream.url, **env)
    asking = asyncio.ensure_future(request(running.port, "/"))
    asked = await upstream.asked()
    await asked.respond("200 OK")
    (await asking).close()

    assert ["from.file"] == asked.header_all("host")
    assert "sse-sidecar" in json.loads(running.log)["message"]


async def test_an_upstream_on_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    upstream = Upstream()
    await upstream.start_unix(str(tmp_path / "service.sock"))
    running = await serve("--upstream", f"unix://{tmp_path}/service.sock")
    asking = asyncio.ensure_future(request(running.port, "/a"))
    asked = await upstream.asked()
    await asked.respond("200 OK", body=b"hi")
    response = await asking
    body = await response.read_to_end()
    response.close()
    await upstream.stop()

    assert ("/a", b"hi") == (asked.target, body)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_a_stream_in_flight_run_to_its_end(
    serve: Serve, upstream: Upstream, number: signal.Signals
) -> None:
    running = await serve()
    asking = asyncio.ensure_future(request(running.port, "/", method="POST", body=b"{}"))
    asked = await upstream.asked()
    await asked.begin()
    await asked.stream(b"data: 1\n\n")
    response = await asking
    await response.read_until(b"data: 1")
    running.send(number)
    await running.logged("draining")
    await asked.stream(b"data: 2\n\ndata: [DONE]\n\n")
    await asked.end()
    await response.read_to_end()
    code = await running.ended()
    response.close()

    assert 0 == code
    assert ["data: 1", "data: 2", "data: [DONE]"] == [data for _, data in response.events()]
    assert response.whole
    assert "Traceback" not in running.log


async def test_sigterm_sends_event_sources_away_and_cuts_what_is_left(serve: Serve, upstream: Upstream) -> None:
    """Within `drain_timeout`, with exit code 0: an orchestrator would take anything else for a crash."""
    running = await serve(SSE_SIDECAR_DRAIN_TIMEOUT="0.5")
    responses = []
    for headers in (EVENT_SOURCE, {}):
        asking = asyncio.ensure_future(request(running.port, "/", headers=headers))
        asked = await upstream.asked()
        await asked.begin()
        await asked.stream(b"data: 1\n\n")
        responses.append(await asking)
        await responses[-1].read_until(b"data: 1")
    running.send(signal.SIGTERM)
    bodies = [await response.read_to_end() for response in responses]
    code = await running.ended()
    for response in responses:
        response.close()

    assert 0 == code
    assert [True, False] == [response.whole for response in responses]
    assert re.search(rb"retry: [2-5]\d{3}\n\n\Z", bodies[0])
    assert "Traceback" not in running.log


async def test_a_second_signal_ends_at_once(serve: Serve, upstream: Upstream) -> None:
    running = await serve(SSE_SIDECAR_DRAIN_TIMEOUT="1000")
    asking = asyncio.ensure_future(request(running.port, "/", method="POST"))
    asked = await upstream.asked()
    await asked.begin()
    response = await asking
    running.send(signal.SIGTERM)
    await running.logged("draining")
    running.send(signal.SIGTERM)
    await response.read_to_end()
    code = await running.ended()
    response.close()

    assert (0, False) == (code, response.whole)
    assert "Traceback" not in running.log


async def test_a_client_that_reads_nothing_does_not_keep_the_process(serve: Serve, upstream: Upstream) -> None:
    running = await serve(SSE_SIDECAR_DRAIN_TIMEOUT="0.2")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", running.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
    asked = await upstream.asked()
    await asked.begin()
    for _ in range(30):
        asked.writer.write(b"100006\r\ndata: " + b"1" * (1 << 20) + b"\r\n")
    await reader.readuntil(b"\r\n\r\n")
    running.send(signal.SIGTERM)
    code = await running.ended()
    writer.transport.abort()

    assert 0 == code
    assert "Traceback" not in running.log


# Settings that are read again


async def test_sighup_reads_the_file_again_and_drops_no_stream(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text("heartbeat = 1000")
    running = await serve("--config", str(file))
    asking = asyncio.ensure_future(request(running.port, "/", method="POST"))
    asked = await upstream.asked()
    await asked.begin()
    response = await asking
    file.write_text('heartbeat = 1000\n[[route]]\npath = "/b"\nstrip_prefix = "/b"')
    running.send(signal.SIGHUP)
    await running.logged("settings reloaded")
    await asked.stream(b"data: 1\n\n")
    await response.read_until(b"data: 1")
    asking = asyncio.ensure_future(request(running.port, "/b"))
    stripped = await upstream.asked()
    await stripped.respond("200 OK")
    (await asking).close()
    response.close()

    assert "/" == stripped.target


async def test_settings_that_cannot_be_used_are_refused_out_loud_and_all_stays_as_it_was(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text("")
    running = await serve("--config", str(file))
    for content, told in (
        ("heartbeat = 0", "heartbeat = 0"),
        ("what is this", "config = "),
        ("linger = -1", "linger = -1"),
    ):
        file.write_text(content)
        running.send(signal.SIGHUP)
        await running.logged(f"settings not reloaded, all stays as it was: {told}")
    asking = asyncio.ensure_future(request(running.port, "/"))
    await (await upstream.asked()).respond("200 OK")
    (await asking).close()
    running.send(signal.SIGTERM)

    assert 0 == await running.ended()
    assert "Traceback" not in running.log


# The log


async def test_the_log_for_machines_is_json_lines(serve: Serve, upstream: Upstream) -> None:
    running = await serve("--log-format", "json", "--log-level", "debug")
    await upstream.stop()
    (await request(running.port, "/secret-path?key=secret")).close()
    running.send(signal.SIGTERM)
    await running.ended()
    lines = [json.loads(line) for line in running.log.splitlines()]

    assert {("time", "level", "logger", "message")} == {tuple(line)[:4] for line in lines}
    assert {"info", "warning"} <= {line["level"] for line in lines}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    assert "secret" not in running.log


async def test_the_log_goes_to_stderr_and_only_from_its_level_on(serve: Serve, upstream: Upstream) -> None:
    running = await serve()
    quiet = await serve("--log-level", "error", port=free_port())
    await upstream.stop()
    for each in (running, quiet):
        (await request(each.port, "/")).close()
        each.send(signal.SIGTERM)
    codes = [await each.ended() for each in (running, quiet)]
    outs = [await each.process.stdout.read() for each in (running, quiet) if each.process.stdout is not None]

    assert [0, 0] == codes
    assert [b"", b""] == outs
    assert "INFO" in running.log
    assert "WARNING" in running.log
    assert "" == quiet.log
