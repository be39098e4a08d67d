"""Sends a case three ways, directly, through the sidecar and through a plain nginx, and keeps what was seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.differential import upstreams
from tests.differential.cases import Case
from tests.differential.compare import Difference, Seen, compare
from tests.differential.messages import Message, connect, read_answer
from tests.harness import TIMEOUT, until

PIECE = 7000
BROKEN = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError, TimeoutError)


class Compared(NamedTuple):
    sidecar: list[Difference]
    nginx: list[Difference]


class Way:
    """To each service by a port; the echo at its end is its own, so that ways do not meet there."""

    def __init__(self, echo: upstreams.Echo, ports: dict[str, int]) -> None:
        self._echo, self._ports = echo, ports

    async def send(self, case: Case) -> Seen:
        self._echo.expect(case.answer, case.ending, early=case.early)
        reader, writer = await connect(self._ports[case.to])
        answers: list[Message] = []
        try:
            async with asyncio.timeout(TIMEOUT):
                after = await self._exchange(case, reader, writer, answers)
        except BROKEN as error:
            after = f"broken: {type(error).__name__}"
        finally:
            writer.close()
        return Seen(tuple(answers), tuple(self._echo.reached), len(self._echo.connections), after)

    async def _exchange(
        self, case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: list[Message]
    ) -> str:
        if case.sent == "cut off":
            writer.write(case.head + case.body)
            await until(lambda: self._echo.begun)
            writer.close()
            await until(lambda: self._echo.reached)
            return "clean"
        if case.sent == "half-closed":
            writer.write(case.head)
            await until(lambda: self._echo.begun)
            writer.write_eof()
            answers.append(await read_answer(reader, case.method, lambda: None))
            return "clean"
        method, may_send = case.method.strip(), asyncio.Event()
        for turn in range(case.times):
            sending = None if case.pipelined and turn else asyncio.ensure_future(_write(case, writer, may_send))
            try:
                answers.append(await read_answer(reader, method, may_send.set))
            finally:
                if sending and not case.pipelined:
                    sending.cancel()
        if case.sent == "after the answer":
            writer.write(case.body)
            await until(lambda: self._echo.reached)
        if case.sent == "after 100" and not may_send.is_set():
            return "clean"  # the service still waits for the body
        return await _after(answers[-1], reader, writer)


async def _write(case: Case, writer: asyncio.StreamWriter, may_send: asyncio.Event) -> None:
    with suppress(ConnectionError):
        if case.sent == "after 100":
            writer.write(case.head)
            await may_send.wait()
            writer.write(case.body)
            return
        body = b"" if case.sent == "after the answer" else case.body
        raw = (case.head + body) * (case.times if case.pipelined else 1)
        size = {"byte by byte": 1, "in pieces": PIECE}.get(case.sent, len(raw))
        for at in range(0, len(raw), size):
            writer.write(raw[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)


async def _after(last: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Whether the connection is as the last answer said: closed, or good for one request more, and nothing beside."""
    if not _stays(last):
        return "clean" if not await reader.read() else "not closed, or more was sent"
    writer.write(b"GET %b HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n" % upstreams.PROBE)
    probed = await read_answer(reader, b"GET", lambda: None)
    return "clean" if probed.body.whole and not await reader.read() else "not usable"


def _stays(answer: Message) -> bool:
    connection = answer.listed(b"connection")
    at_all = answer.start[0] == b"HTTP/1.1" or b"keep-alive" in connection
    return at_all and b"close" not in connection and answer.body.whole and not answer.body.to_the_end


class Lab:
    def __init__(self, direct: Way, sidecar: Way, nginx: Way) -> None:
        self._ways = direct, sidecar, nginx
        self._compared: dict[str, Compared] = {}

    async def compared(self, case: Case) -> Compared:
        if case.name not in self._compared:
            direct, *through = await asyncio.gather(*(way.send(case) for way in self._ways))
            self._compared[case.name] = Compared(*(compare(direct, seen) for seen in through))
        return self._compared[case.name]


@asynccontextmanager
async def laboratory(folder: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        echoes = [upstreams.Echo() for _ in range(3)]
        for echo in echoes:
            await echo.start()
            stack.callback(echo.stop)
        files, *rest = upstreams.several_ports(5)
        aiohttp = await stack.enter_async_context(upstreams.aiohttp_app())
        node = await stack.enter_async_context(upstreams.node())
        direct, by_sidecar, by_nginx = (
            {"echo": echo.port, "aiohttp": aiohttp, "node": node, "nginx": files} for echo in echoes
        )
        proxies = dict(zip(by_nginx, rest, strict=True))
        await stack.enter_async_context(
            upstreams.nginx(folder, files, {proxies[name]: port for name, port in by_nginx.items()})
        )
        sidecar = await stack.enter_async_context(upstreams.sidecar(folder, by_sidecar))
        yield Lab(
            Way(echoes[0], direct),
            Way(echoes[1], dict.fromkeys(by_sidecar, sidecar.port)),
            Way(echoes[2], proxies),
        )
