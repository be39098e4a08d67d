"""A network that breaks on request: TCP connections are passed on, until they are cut off for a while."""

from __future__ import annotations

import asyncio
import socket
import struct

from sse_sidecar.clock import spawn
from sse_sidecar.config import Address
from sse_sidecar.errors import ConfigError

_PIECE = 64 * 1024
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: what is closed is reset, and what was still to be sent is not."""


class Relay:
    """Listens, and passes connections on to `target` once there is one."""

    def __init__(self) -> None:
        self.target: Address | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes: set[asyncio.Task[None]] = set()
        self._back_at = 0.0

    async def listen(self, address: Address) -> Address:
        """Opens the port. Raises ConfigError where it cannot be had."""
        try:
            self._server = await asyncio.start_server(self._on_connection, *address)
        except OSError as error:
            expected = f"an address that can be listened on ({error.strerror})"
            raise ConfigError("listen", str(address), expected) from None
        return Address(address.host, self._server.sockets[0].getsockname()[1])

    def cut(self, seconds: float) -> None:
        """Resets all connections, and new ones for that long."""
        self._back_at = asyncio.get_running_loop().time() + seconds
        for writer in self._writers:
            _reset(writer)

    async def close(self) -> None:
        if self._server:
            self._server.close()
        self.cut(0)
        await asyncio.gather(*self._passes)

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target is None or asyncio.get_running_loop().time() < self._back_at:
            _reset(writer)
            return
        passing = spawn(self._pass_on(self.target, reader, writer), name="relay")
        self._passes.add(passing)
        passing.add_done_callback(self._passes.discard)

    async def _pass_on(self, target: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        onward = None
        try:
            answers, onward = await asyncio.open_connection(*target)
            self._writers.add(onward)
            await asyncio.gather(_pump(reader, onward), _pump(answers, writer))
        except OSError:
            _reset(writer)
        finally:
            self._writers -= {writer, onward}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on what comes one way. Its end is that of the other way too: no one here half-closes."""
    try:
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        _reset(writer)
    else:
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
