"""`sse-sidecar demo`: the commands that it prints, run as they are printed; and what its page's buttons break."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from sse_sidecar.config import Address
from sse_sidecar.demo import ANSWER, PACE
from sse_sidecar.demo_relay import Relay
from sse_sidecar.errors import ConfigError
from tests.harness import TIMEOUT
from tests.test_cli import COMMAND, environment, run

CUT_OFF = "/tmp/cut-off"

Demo = tuple[Process, list[str]]


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    """The demo, in a hurry, on a port of its own, and the commands it printed, with a file for this test alone."""
    args = (*COMMAND, "demo", "--listen", "127.0.0.1:0")
    process = await asyncio.create_subprocess_exec(*args, env=environment(**{PACE: "0.3"}), stdout=PIPE, stderr=PIPE)
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


# The page, and what its buttons break. How it looks in a browser is tested in test_demo_page.py.


@pytest.fixture
async def origin(demo: Demo) -> str:
    """Where the page is."""
    found = re.search(r"http://[\d.:]+", demo[1][2])
    assert found
    return found[0]


@pytest.fixture
async def control(origin: str) -> str:
    """Where the buttons' requests go."""
    async with httpx.AsyncClient(base_url=origin) as client:
        port = re.search(r'name="control-port" content="(\d+)"', (await client.get("/")).text)
    assert port
    return f"http://127.0.0.1:{port[1]}"


async def test_the_page_comes_through_the_sidecar_with_all_it_needs(origin: str) -> None:
    async with httpx.AsyncClient(base_url=origin) as client:
        for path, kind in {"/": "text/html", "/demo.css": "text/css", "/demo.js": "text/javascript"}.items():
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
            assert not re.search(r"(src|href|url|from|import)\W+(https?:)?//", answer.text)
        assert (await client.get("/.well-known/sse-sidecar/client.js")).status_code == 200


async def test_the_buttons_have_a_way_of_their_own(origin: str, control: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{control}/cut", headers={"Origin": origin})
        assert (answer.json(), answer.headers["access-control-allow-origin"]) == ({"seconds": 0.9}, "*")
        with pytest.raises(httpx.TransportError):
            await client.get(f"{origin}/")
        assert (await client.post(f"{control}/cut")).status_code == 200


async def test_a_cut_breaks_a_stream_and_the_rest_is_there_afterwards(origin: str, control: str) -> None:
    async with httpx.AsyncClient(base_url=origin) as client:
        cut_off = await broken_by(client, f"{control}/cut")
        rest = await until_answered(client, "/chat", {"Last-Event-ID": last_id(cut_off)})

    assert "[DONE]" not in cut_off
    assert len(ANSWER.split()) + 1 == len(words(cut_off) + words(rest))


async def test_a_restart_breaks_an_answer_for_good(origin: str, control: str) -> None:
    async with httpx.AsyncClient(base_url=origin) as client:
        said = await broken_by(client, f"{control}/restart")
        gone = await client.get("/chat", headers={"Last-Event-ID": last_id(said)})

    assert '"code": "upstream-lost"' in said
    assert 410 == gone.status_code


async def broken_by(client: httpx.AsyncClient, button: str) -> str:
    """What came of an answer that was broken after its first word."""
    said = ""
    with suppress(httpx.TransportError):
        async with client.stream("POST", "/chat") as answer:
            async for text in answer.aiter_text():
                said += text
                if said == text:
                    await client.post(button)
    return said


def last_id(stream: str) -> str:
    return str(re.findall(r"^id: (\S+)\n\n", stream, re.MULTILINE)[-1])


async def until_answered(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> str:
    async with asyncio.timeout(TIMEOUT):
        while True:
            with suppress(httpx.TransportError):
                return (await client.get(path, headers=headers)).text
            await asyncio.sleep(0.05)


async def test_a_stall_is_told_as_a_wait(origin: str, control: str) -> None:
    said = ""
    async with httpx.AsyncClient(base_url=origin) as client, client.stream("GET", "/ticker") as answer:
        async for text in answer.aiter_text():
            if not said:
                await client.post(f"{control}/stall")
            said += text
            if ": waiting for upstream" in said and "tick 2" in said:
                break

    assert said.index("tick 1") < said.index(": waiting for upstream") < said.index("tick 2")


# The relay


async def test_a_relay_passes_on_more_than_fits_both_ways() -> None:
    """What the other side is slow to take is waited for."""
    data = bytes(8 << 20)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay = Relay()
    relay.target = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    reader, writer = await asyncio.open_connection(*await relay.listen(Address("127.0.0.1", 0)))
    writer.write(data)
    async with asyncio.timeout(TIMEOUT):
        assert data == await reader.readexactly(len(data))
    writer.close()
    await relay.close()
    server.close()


async def test_a_relay_without_a_target_resets() -> None:
    relay = Relay()
    reader, writer = await asyncio.open_connection(*await relay.listen(Address("127.0.0.1", 0)))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    await relay.close()


async def test_a_relay_whose_target_is_away_resets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as away:
        target = Address("127.0.0.1", away.getsockname()[1])
    relay = Relay()
    relay.target = target
    reader, writer = await asyncio.open_connection(*await relay.listen(Address("127.0.0.1", 0)))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    await relay.close()


async def test_a_relay_says_which_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="listen = "):
        await Relay().listen(Address("127.0.0.1", taken.getsockname()[1]))
