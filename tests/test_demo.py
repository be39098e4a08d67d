"""`sse-sidecar demo`: the commands that it prints, run as they are printed."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sse_sidecar.demo import ANSWER
from tests.harness import TIMEOUT
from tests.test_cli import COMMAND, environment, run

CUT_OFF = "/tmp/cut-off"

Demo = tuple[Process, list[str]]


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    """The demo on a port of its own, and the commands it printed, with a file for this test alone."""
    args = (*COMMAND, "demo", "--listen", "127.0.0.1:0")
    process = await asyncio.create_subprocess_exec(*args, env=environment(), stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        printed = (await process.stdout.readuntil(b"Ctrl-C ends the demo.\n")).decode()
    yield (
        process,
        [
            line.replace(CUT_OFF, str(tmp_path / "cut-off"))
            for line in re.findall(r"^ +(curl .*)$", printed, re.MULTILINE)
        ],
    )
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def shell(command: str) -> str:
    process = await asyncio.create_subprocess_exec("sh", "-c", command, stdout=PIPE)
    async with asyncio.timeout(3 * TIMEOUT):
        out, _ = await process.communicate()
    return out.decode()


def words(stream: str) -> list[str]:
    """The data of whole events. What curl had of one when it was cut off is none."""
    return re.findall(r"^data: (.*)\nid: \S+\n\n", stream, re.MULTILINE)


async def test_the_second_command_resumes_what_the_first_cut_off(demo: Demo) -> None:
    """Together they make the whole answer, each word once."""
    _, (first, second, _) = demo
    cut_off = await shell(first)
    rest = await shell(second)
    *answer, done = words(cut_off) + words(rest)
    content = [json.loads(data)["choices"][0]["delta"]["content"] for data in answer]

    assert words(cut_off)
    assert "[DONE]" not in cut_off
    assert "[DONE]" == done
    assert ANSWER == "".join(content).strip()


async def test_the_third_command_shows_a_ticker_that_goes_on(demo: Demo) -> None:
    _, (_, _, third) = demo
    process = await asyncio.create_subprocess_exec("sh", "-c", f"exec {third}", stdout=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        seen = await process.stdout.readuntil(b"data: tick 2\n")
    process.kill()
    await process.communicate()

    assert b"data: tick 1\nid: 1-" in seen


async def test_the_commands_are_three_and_name_where_the_demo_is(demo: Demo) -> None:
    _, commands = demo
    ports = {port for command in commands for port in re.findall(r"http://127\.0\.0\.1:(\d+)/", command)}

    assert 3 == len(commands)
    assert 1 == len(ports)
    assert {"0"} != ports


async def test_ctrl_c_ends_the_demo(demo: Demo) -> None:
    process, _ = demo
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(TIMEOUT):
        _, err = await process.communicate()

    assert (0, b"") == (process.returncode, err)


async def test_a_taken_port_says_which() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = await run("demo", "--listen", address)

    assert (2, "") == (code, out)
    assert f"listen = '{address}'" in err
    assert "Traceback" not in err
