"""HTTP/1 as bytes: messages read without judgement, so that what a proxy mends or refuses is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

Field = tuple[bytes, bytes]

LIMIT = 1 << 21
"""Bytes of a line."""


class Body(NamedTuple):
    data: bytes = b""
    whole: bool = True
    """Whether its framing said that it is complete."""
    trailers: tuple[Field, ...] = ()
    to_the_end: bool = False
    """Whether it ends with the connection."""


class Message(NamedTuple):
    """A request or an answer; names as they came, values without the spaces around them."""

    start: tuple[bytes, bytes, bytes]
    fields: tuple[Field, ...]
    body: Body = Body()
    interim: tuple[Message, ...] = ()
    """The 1xx before an answer."""

    @property
    def status(self) -> str:
        return self.start[1].decode("latin-1")

    def get_all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.strip().lower() == name]

    def listed(self, name: bytes) -> list[bytes]:
        members = b",".join(self.get_all(name)).lower().split(b",")
        return [member.strip() for member in members if member.strip()]


class Reader(asyncio.StreamReader):
    """One that gives what came before a reset."""

    was_reset = False

    def set_exception(self, exc: Exception) -> None:
        self.was_reset = True
        self.feed_eof()


async def connect(port: int) -> tuple[Reader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = Reader(limit=LIMIT)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", port)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def read_fields(reader: asyncio.StreamReader) -> tuple[Field, ...]:
    fields: list[Field] = []
    while line := (await reader.readuntil(b"\n")).rstrip(b"\r\n"):
        name, _, value = line.partition(b":")
        if line[:1] in (b" ", b"\t") and fields:
            before = fields.pop()
            name, value = before[0], before[1] + b" " + line
        fields.append((name, value.strip(b" \t")))
    return tuple(fields)


async def read_head(reader: asyncio.StreamReader) -> Message:
    """Raises IncompleteReadError where nothing more comes."""
    line = b""
    while not line:
        line = (await reader.readuntil(b"\n")).rstrip(b"\r\n")
    first, _, rest = line.partition(b" ")
    # A request's target has no space but what an unwise client put there; a status line's reason may.
    second, _, third = rest.partition(b" ") if first.startswith(b"HTTP/") else rest.rpartition(b" ")
    return Message((first, second, third), await read_fields(reader))


async def read_body(reader: asyncio.StreamReader, head: Message, *, answer: bool) -> Body:
    if head.listed(b"transfer-encoding")[-1:] == [b"chunked"]:
        return await _read_chunks(reader)
    lengths = head.get_all(b"content-length")
    if lengths:
        return await _read_length(reader, int(lengths[0].partition(b",")[0]))
    return await _read_to_the_end(reader) if answer else Body()


async def _read_length(reader: asyncio.StreamReader, length: int) -> Body:
    try:
        return Body(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        return Body(error.partial, whole=False)


async def _read_chunks(reader: asyncio.StreamReader) -> Body:
    data = bytearray()
    try:
        while size := int((await reader.readuntil(b"\n")).partition(b";")[0], 16):
            await _read_chunk(reader, size, data)
        return Body(bytes(data), trailers=await read_fields(reader))
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        return Body(bytes(data), whole=False)


async def _read_chunk(reader: asyncio.StreamReader, size: int, data: bytearray) -> None:
    try:
        data += await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        data += error.partial
        raise
    await reader.readuntil(b"\n")


async def _read_to_the_end(reader: asyncio.StreamReader) -> Body:
    data = await reader.read()
    return Body(data, whole=not (isinstance(reader, Reader) and reader.was_reset), to_the_end=True)


async def read_answer(reader: asyncio.StreamReader, method: bytes, on_interim: Callable[[], None]) -> Message:
    """An answer with the interim ones before it. Raises IncompleteReadError, ConnectionError where none comes."""
    interim: list[Message] = []
    while True:
        head = await read_head(reader)
        if len(head.status) == 3 and head.status.startswith("1") and head.status != "101":
            interim.append(head)
            on_interim()
            continue
        bodiless = method == b"HEAD" or head.status in ("101", "204", "304")
        body = Body() if bodiless else await read_body(reader, head, answer=True)
        return head._replace(body=body, interim=tuple(interim))
