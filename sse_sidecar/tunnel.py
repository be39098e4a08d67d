"""WebSocket: once the upstream has switched protocols, bytes go both ways as they come.

Nothing is unframed or looked at, so that whatever the two have agreed on (subprotocol, compression, close codes) holds
between them. What one of them does to its connection is done to the other's: an end of what it says, and a reset.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

from sse_sidecar import headers
from sse_sidecar.clock import wake
from sse_sidecar.errors import BadResponse, ClientLeft, OriginLost

if TYPE_CHECKING:
    from sse_sidecar.downstream import Client
    from sse_sidecar.exchange import Exchange, Head

_MUCH = 128 * 1024
"""Bytes of one read after which others have their turn: there is more to come."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a close is a RST."""


async def relay(client: Client, exchange: Exchange, head: Head) -> None:
    """Answers 101 as the upstream did, and carries bytes both ways until both connections are closed."""
    # Who was told to pause has to be told to go on: none of that is handed over.
    await client.drain()
    await exchange.drain()
    if client.has_body:
        raise BadResponse("it switched protocols within a request")
    if client.gone:
        raise ClientLeft("the client left before it was answered")
    if exchange.transport is None:
        raise OriginLost("the connection was closed behind the head")
    down, up = _End(cast("asyncio.Transport", client.transport)), _End(exchange.transport)
    down.other, up.other = up, down
    early, behind = client.hand_over(down), exchange.hand_over(up)
    client.begin(101, _fields(head), head.reason)
    client.hold(behind)
    client.flush()
    up.write(early)
    down.resume()
    up.resume()
    try:
        await down.lost
        await up.lost
    finally:
        for end in (down, up):
            end.abort()


def _fields(head: Head) -> list[headers.Field]:
    # A length has no meaning here, and may not be sent on (RFC 9110, section 8.6).
    gone = headers.HOP_BY_HOP.union(headers.listed(head.headers, b"connection"), {b"content-length"})
    fields = headers.without(head.headers, gone - {b"connection", b"upgrade"})
    return [(name, b"Upgrade" if name.lower() == b"connection" else value) for name, value in fields]


class _End(asyncio.Protocol):
    """One end of a tunnel: what its peer says and does goes to the `other` end. It is paused until `resume`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._holds = 1
        """Reasons not to read."""
        self._ended = False
        """Whether the peer has said all."""
        self.other: _End | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # What the other end has it do

    def write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def end(self) -> None:
        """Nothing more is to be written."""
        if self._ended or not self._transport.can_write_eof():
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        if not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()

    def pause(self) -> None:
        self._holds += 1
        self._transport.pause_reading()

    def resume(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._transport.resume_reading()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self.other:
            self.other.write(data)
        if len(data) >= _MUCH:
            self.pause()
            asyncio.get_running_loop().call_soon(self.resume)

    def pause_writing(self) -> None:
        if self.other:
            self.other.pause()

    def resume_writing(self) -> None:
        if self.other:
            self.other.resume()

    def eof_received(self) -> bool:
        self._ended = True
        if self.other:
            self.other.end()
        if self._transport.can_write_eof():
            return True
        self._transport.close()  # TLS knows no half, and what is still written would be dropped with a warning
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        other, self.other = self.other, None  # each held the other: a cycle
        if other:
            other.reset() if exc else other.close()
        wake(self.lost)
