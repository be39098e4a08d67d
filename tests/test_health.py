"""The health check of a container, as its engine runs it: an exit code, and a line that says why."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from sse_sidecar import health
from sse_sidecar.app import Sidecar
from tests.conftest import StartSidecar, with_settings
from tests.harness import TIMEOUT, Upstream
from tests.test_cli import environment, free_port

COMMAND = (sys.executable, "-m", "sse_sidecar.health")


async def checked(**env: str) -> tuple[int | None, str]:
    """The exit code, and what was said on stderr; nothing is ever said on stdout."""
    process = await asyncio.create_subprocess_exec(*COMMAND, env=environment(**env), stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate()
    assert b"" == out
    return process.returncode, err.decode()


def admin_of(sidecar: Sidecar) -> str:
    return str(sidecar.admin_address)


async def test_a_sidecar_that_lives_is_healthy(sidecar: Sidecar) -> None:
    admin = admin_of(sidecar)

    assert (0, f"healthy: {admin}: HTTP/1.1 200 OK\n") == await checked(SSE_SIDECAR_ADMIN_LISTEN=admin)


@with_settings(drain_delay=5)
async def test_a_sidecar_that_drains_lives(sidecar: Sidecar) -> None:
    """Whoever restarts what is unhealthy would cut the streams that are given time to end."""
    draining = asyncio.ensure_future(sidecar.drain())
    await asyncio.sleep(0)
    code, _ = await checked(SSE_SIDECAR_ADMIN_LISTEN=admin_of(sidecar))
    draining.cancel()

    assert 0 == code


async def test_the_address_is_that_of_the_settings_file_too(sidecar: Sidecar, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(f'admin_listen = "{admin_of(sidecar)}"')
    code, _ = await checked(SSE_SIDECAR_CONFIG=str(file))

    assert 0 == code


@pytest.mark.parametrize("wildcard", ["0.0.0.0", ""])
async def test_one_that_listens_everywhere_is_asked_on_the_loopback(start: StartSidecar, wildcard: str) -> None:
    admin = (await start(admin_listen=f"{wildcard}:0")).admin_address
    assert admin is not None
    code, line = await checked(SSE_SIDECAR_ADMIN_LISTEN=f"{wildcard}:{admin.port}")

    assert (0, f"healthy: 127.0.0.1:{admin.port}: HTTP/1.1 200 OK\n") == (code, line)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "127.0.0.1:9464"),
        ({"SSE_SIDECAR_ADMIN_LISTEN": "10.0.0.1:1"}, "10.0.0.1:1"),
        ({"SSE_SIDECAR_ADMIN_LISTEN": "0.0.0.0:1"}, "127.0.0.1:1"),
        ({"SSE_SIDECAR_ADMIN_LISTEN": "[::]:1"}, "[::1]:1"),
        ({"SSE_SIDECAR_ADMIN_LISTEN": "[::2]:1"}, "[::2]:1"),
    ],
)
def test_where_health_is_asked(env: dict[str, str], expected: str) -> None:
    assert expected == str(health.admin_address(env))


async def test_where_nothing_listens_it_is_unhealthy() -> None:
    address = f"127.0.0.1:{free_port()}"

    assert (1, f"unhealthy: {address}: Connection refused\n") == await checked(SSE_SIDECAR_ADMIN_LISTEN=address)


async def test_without_an_admin_port_health_cannot_be_asked() -> None:
    expected = "unhealthy: admin_listen = '': expected HOST:PORT, where health is asked\n"

    assert (1, expected) == await checked(SSE_SIDECAR_ADMIN_LISTEN="")


async def test_settings_that_the_sidecar_would_refuse_are_named() -> None:
    expected = "unhealthy: SSE_SIDECAR_LINGER = 'long': expected a number of seconds, 0 or more\n"

    assert (1, expected) == await checked(SSE_SIDECAR_LINGER="long")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP/1.1 503 Service Unavailable"),
        (b"200\r\n", "200"),
        (b"", "no answer"),
        (b"x" * 2000, "x" * 1024),
    ],
    ids=["unwell", "not HTTP", "nothing", "no end"],
)
async def test_any_other_answer_is_unhealthy(answer: bytes, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        assert (1, f"unhealthy: {address}: {said}\n") == await checked(SSE_SIDECAR_ADMIN_LISTEN=address)


async def test_a_process_that_hangs_is_unhealthy(upstream: Upstream) -> None:
    """It takes the connection, as the kernel does that, and says nothing."""
    address = f"127.0.0.1:{upstream.port}"

    assert (1, f"unhealthy: {address}: timed out\n") == await checked(SSE_SIDECAR_ADMIN_LISTEN=address)


async def test_it_costs_no_more_than_the_settings() -> None:
    source = "import sys, sse_sidecar.health; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", source, stdout=PIPE)
    out, _ = await process.communicate()

    assert {"sse_sidecar"} == set(out.decode().split()) & {
        "sse_sidecar",
        "aiohttp",
        "asyncio",
        "click",
        "uvloop",
        "ssl",
    }
