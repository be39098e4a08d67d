"""Where exchanges with the service begin: its addresses, which of them is asked, and connections that are kept.

Addresses are asked in turn. One that refuses a connection, or gives one up before it has answered, is passed over for a
while; nothing has been sent where a connection was refused, so that any request may go to the next.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from sse_sidecar.clock import deadline
from sse_sidecar.errors import ConnectTimeout, OriginError, Unreachable
from sse_sidecar.exchange import Exchange

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from sse_sidecar.clock import Clock
    from sse_sidecar.config import Upstream

FAILED_FOR = 10.0
"""Seconds for which an address that failed is asked only where all others have failed too; as nginx has it."""

KEPT_FOR = 4.0
"""Seconds after which a kept connection is not used any more: services close idle ones, Node and uvicorn after 5 s, and
a request must not meet that."""


class Origin:
    """A service, at one address or at several."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        clock: Clock,
        *,
        connect_timeout: float,
        response_timeout: float,
        keepalive: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Time-outs are seconds; `keepalive` is how many idle connections are kept to each address."""
        self._addresses = [
            _Address(
                upstream,
                clock,
                connect_timeout=connect_timeout,
                response_timeout=response_timeout,
                keepalive=keepalive,
                tls=tls,
            )
            for upstream in upstreams
        ]
        self._turn = 0

    async def connect(self, *, kept: bool, on_result: Callable[[str], None] = lambda _: None) -> Exchange:
        """A connection; one that was kept, where that will do. Raises Unreachable, ConnectTimeout.

        `on_result` is told of each attempt: "ok", "kept", or the error's name.
        """
        failures: list[OriginError] = []
        for address in self._in_turn():
            exchange = address.take() if kept else None
            if exchange is not None:
                on_result("kept")
                return exchange
            try:
                exchange = await address.connect()
            except OriginError as error:
                on_result(type(error).__name__)
                failures.append(error)
            else:
                on_result("ok")
                return exchange
        raise failures[-1]

    def _in_turn(self) -> list[_Address]:
        self._turn += 1
        first = self._turn % len(self._addresses)
        turn = [*self._addresses[first:], *self._addresses[:first]]
        return sorted(turn, key=lambda address: address.has_failed)

    def close(self) -> None:
        """Lets go of the kept connections."""
        for address in self._addresses:
            address.close()


class _Address:
    """One address of a service."""

    def __init__(
        self,
        upstream: Upstream,
        clock: Clock,
        *,
        connect_timeout: float,
        response_timeout: float,
        keepalive: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._keepalive = keepalive
        self._upstream = upstream
        self._clock = clock
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._tls = tls
        self._failed_until = 0.0
        self._kept: dict[asyncio.Transport, float] = {}
        """Those that wait to be used again, the oldest first, with the time since when."""

    @property
    def has_failed(self) -> bool:
        return self._clock.time() < self._failed_until

    def _fail(self) -> None:
        self._failed_until = self._clock.time() + FAILED_FOR

    def _exchange(self) -> Exchange:
        exchange = Exchange(self._clock, self._response_timeout, self._keep if self._keepalive else None)
        exchange.authority = self._upstream.authority.encode()
        exchange.on_unanswered = self._fail
        return exchange

    async def connect(self) -> Exchange:
        """Raises Unreachable, ConnectTimeout."""
        try:
            async with deadline(self._clock, self._connect_timeout):
                exchange = await self._connect()
        except TimeoutError:
            self._fail()
            raise ConnectTimeout(f"no connection within {self._connect_timeout:g} s") from None
        except (OSError, UnicodeError) as error:  # the latter from a name that can be none
            self._fail()
            raise Unreachable(error) from error
        if exchange.transport is not None:
            probe(exchange.transport.get_extra_info("socket"))
        self._failed_until = 0.0
        return exchange

    async def _connect(self) -> Exchange:
        loop = asyncio.get_running_loop()
        to = self._upstream
        if to.socket:
            _, exchange = await loop.create_unix_connection(self._exchange, to.socket)
        else:
            tls = self._tls if to.tls else None
            _, exchange = await loop.create_connection(self._exchange, to.host, to.port, ssl=tls)
        return exchange

    # Kept connections

    def take(self) -> Exchange | None:
        """The one that was used last; a service closes those that are idle for long, just when they are used again."""
        while self._kept:
            transport, since = self._kept.popitem()
            if transport.is_closing() or self._clock.time() - since > KEPT_FOR:
                transport.close()
                continue
            exchange = self._exchange()
            exchange.kept = True
            transport.set_protocol(exchange)
            exchange.connection_made(transport)
            return exchange
        return None

    def _keep(self, transport: asyncio.Transport) -> None:
        transport.set_protocol(_Idle(transport, self._forget))
        self._kept[transport] = self._clock.time()
        if len(self._kept) > self._keepalive:
            self._forget(next(iter(self._kept)))

    def _forget(self, transport: asyncio.Transport) -> None:
        self._kept.pop(transport, None)
        transport.close()

    def close(self) -> None:
        for transport in list(self._kept):
            self._forget(transport)


class _Idle(asyncio.Protocol):
    """A kept connection. Whatever comes of it, an end or something unasked, it is not used again."""

    def __init__(self, transport: asyncio.Transport, forget: Callable[[asyncio.Transport], None]) -> None:
        self._transport = transport
        self._forget = forget

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._forget(self._transport)

    def eof_received(self) -> None:
        self._forget(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._forget(self._transport)


def probe(sock: socket.socket | None) -> None:
    """A host that vanished says nothing, and a quiet stream never writes: the kernel asks it now and then.

    Connections that a listening socket takes are asked as it says.
    """
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
