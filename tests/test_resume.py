"""The product: a stream that is cut anywhere is resumed exactly."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import pytest

from tests.conftest import StartSidecar
from tests.harness import EVENT_SOURCE, TIMEOUT, Asked, Upstream, chunk, port_of
from tests.reference import Dispatched, interpret

RECORDED = (
    ": välkommen\r\n\r\n"
    "event: größe\r\ndata: Zoë → 日本 🎉\r\n\r\n"
    "data: one\rretry: 2500\rdata: two\rdata:\rdata:three\r\r"
    ": between\n\n"
    'data: {"a": 1}\n: within\nx-kept: yes\n\n'
    "data\n\n"
).encode()
WITH_IDS = RECORDED.replace(b"data: Zo", b"id: a/1\r\ndata: Zo").replace(b"1}\n", "1}\nid: ü 2\n".encode())
TAIL = b"data: the end\n\n"

HEAD_STEP = 32
"""A client that was cut within the head has nothing, wherever in it that was."""


@dataclass
class Service:
    """An upstream that plays a recording, once it may, and has nothing to add to it afterwards."""

    recorded: bytes
    ends_at_once: bool
    may_play: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    plays: int = 0
    over: bool = False
    asked_for_more: list[str | None] = field(default_factory=list)

    async def answer(self, asked: Asked) -> None:
        await asked.read_body()
        if self.over:
            self.asked_for_more.append(asked.header("last-event-id"))
            await asked.respond("204 No Content")
            return
        self.plays += 1
        await asked.begin()
        await self.may_play.wait()
        if not self.ends_at_once:
            await asked.stream(self.recorded)
            await self.may_end.wait()
            await asked.send(chunk(TAIL) + b"0\r\n\r\n")
            return
        self.over = True
        await asked.send(chunk(self.recorded + TAIL) + b"0\r\n\r\n")


class Got(NamedTuple):
    """What a client has of an answer whose first bytes it has read."""

    raw: bytes

    @property
    def head(self) -> bytes | None:
        head, whole, _ = self.raw.partition(b"\r\n\r\n")
        return head if whole else None

    @property
    def body(self) -> bytes:
        rest, body = self.raw.partition(b"\r\n\r\n")[2], b""
        while rest:
            size, whole, rest = rest.partition(b"\r\n")
            if not whole:
                break
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        return body

    @property
    def events(self) -> list[Dispatched]:
        """What a browser dispatches of it. The stream's id, another in each run, is taken out of the events' ids."""
        return [
            event._replace(last_event_id=re.sub(r"-[gp][\w-]{22}", "-", event.last_event_id))
            for event in interpret(self.body).events
        ]


@dataclass(frozen=True)
class Client:
    """How a client asks and how it comes back. Each of its connections serves one request."""

    method: str = "GET"
    resumes_by: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)

    async def ask(self, port: int, *, resume: str | None = None, again: bool = False) -> Connection:
        method = self.resumes_by if again else self.method
        fields = {"Host": "service.test", "Connection": "close", **self.headers}
        if method == "POST":
            fields["Content-Length"] = "2"
        if resume is not None:
            fields["Last-Event-ID"] = resume
        lines = [f"{method} /a HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
        connection.writer.write("\r\n".join(lines).encode() + (b"{}" if method == "POST" else b""))
        return connection

    def token(self, got: Got) -> str | None:
        """What the client comes back with: its last event id, or, as page code may, what it was told in a header."""
        last_event_id = interpret(got.body).last_event_id
        if last_event_id or self.headers == EVENT_SOURCE or got.head is None:
            return last_event_id or None
        stream_id = re.search(rb"SSE-Stream: (\S+)", got.head)
        assert stream_id is not None
        return f"0-{stream_id[1].decode()}"


class Connection(NamedTuple):
    """A client's connection, of which it reads as many bytes as it likes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def read_chunk(self) -> bytes:
        size = await self.reader.readuntil(b"\r\n")
        return size + await self.reader.readexactly(int(size, 16) + 2)

    async def read_to_end(self) -> bytes:
        rest = await self.reader.read(-1)
        self.writer.close()
        return rest

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Uncut(NamedTuple):
    """The whole answer, and where in it there is something to cut."""

    got: Got
    head: int
    opening: int
    """Where what comes with the head ends, before the upstream has said anything."""
    last_cut: int


async def read_uncut(port: int, client: Client, service: Service) -> Uncut:
    connection = await client.ask(port)
    raw = await connection.read_head()
    head = len(raw)
    raw += await connection.read_chunk()
    opening = len(raw)
    service.may_play.set()
    if not service.ends_at_once:
        raw += await connection.read_chunk()
    before_end = len(raw)
    service.may_end.set()
    raw += await connection.read_to_end()
    return Uncut(Got(raw), head, opening, len(raw) if service.ends_at_once else before_end)


class Resumed(NamedTuple):
    """The two parts of an answer that was cut."""

    cut: Got
    token: str | None
    rest: Got


async def cut_and_resume(port: int, client: Client, service: Service, uncut: Uncut, cut_at: int) -> Resumed:
    """The upstream plays before the cut, where the client is to read of it, and comes to its end after the resume."""
    connection = await client.ask(port)
    raw = await connection.reader.readexactly(min(cut_at, uncut.opening))
    if cut_at > uncut.opening:
        service.may_play.set()
        raw += await connection.reader.readexactly(cut_at - uncut.opening)
    connection.reset()
    token = client.token(Got(raw))
    again = await client.ask(port, resume=token, again=token is not None)
    rest = await again.read_head()
    service.may_play.set()
    service.may_end.set()
    return Resumed(Got(raw), token, Got(rest + await again.read_to_end()))


@pytest.mark.parametrize("ends_at_once", [False, True], ids=["upstream open", "upstream ended"])
@pytest.mark.parametrize("recorded", [RECORDED, WITH_IDS], ids=["without ids", "with ids"])
@pytest.mark.parametrize(
    "client",
    [
        pytest.param(Client(), id="GET"),
        pytest.param(Client(headers=EVENT_SOURCE), id="EventSource"),
        pytest.param(Client("POST", "GET"), id="POST resumed by GET"),
        pytest.param(Client("POST", "POST"), id="POST repeated"),
    ],
)
async def test_a_stream_that_is_cut_at_any_byte_is_resumed_exactly(
    start: StartSidecar, upstream: Upstream, client: Client, recorded: bytes, ends_at_once: bool
) -> None:
    """The same events in the same order, none twice, none lost; and the upstream is asked for them once."""

    def play() -> Service:
        service = Service(recorded, ends_at_once)
        upstream.handler = service.answer
        return service

    last_upstream_id = "ü 2".encode().decode("latin-1") if recorded is WITH_IDS else None
    port = port_of(await start())
    uncut = await read_uncut(port, client, play())

    whole = uncut.got.events
    assert numbered(recorded + TAIL, carry_ids=client.method == "GET") == whole

    for cut_at in chain(range(1, uncut.head, HEAD_STEP), range(uncut.head, uncut.last_cut + 1)):
        service = play()
        async with asyncio.timeout(TIMEOUT):
            cut, token, rest = await cut_and_resume(port, client, service, uncut, cut_at)
        asks_for_more = client.method == "GET" and ends_at_once and cut_at > uncut.opening

        assert whole == cut.events + rest.events, f"cut at {cut_at}: {cut.raw!r}, then {rest.raw!r}"
        assert (1 if token else 2) == service.plays
        assert ([last_upstream_id] if asks_for_more else []) == service.asked_for_more
        assert (token is not None) == (b"SSE-Stream-Status: resumed" in rest.raw)


def numbered(recorded: bytes, *, carry_ids: bool) -> list[Dispatched]:
    """The events of a recording as they are without the sidecar, but for their ids; a GET's carry the own ones."""
    numbered = []
    for number, event in enumerate(interpret(recorded).events, 1):
        carried = base64.urlsafe_b64encode(event.last_event_id.encode()).rstrip(b"=").decode() if carry_ids else ""
        numbered.append(event._replace(last_event_id=f"{number}-{carried and '.'}{carried}"))
    return numbered
