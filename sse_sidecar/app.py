"""Puts the parts together: start, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from typing import TYPE_CHECKING

from aiohttp import web

from sse_sidecar.access import logged
from sse_sidecar.admin import make_admin
from sse_sidecar.clock import deadline, sleep
from sse_sidecar.config import Address
from sse_sidecar.downstream import Server
from sse_sidecar.errors import ConfigError
from sse_sidecar.front import Front
from sse_sidecar.metrics import Metrics
from sse_sidecar.overview import Overview
from sse_sidecar.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.clock import Clock
    from sse_sidecar.config import Settings

log = logging.getLogger(__name__)

_BACKLOG = 4096
_PEER_TIMEOUT = 30.0
"""Seconds after which a peer that acknowledges nothing is given up (TCP_USER_TIMEOUT, RFC 5482)."""
_LAST_SECOND = 1.0


class Sidecar:
    """One running sidecar. `start`, then `drain`; the addresses are known once started."""

    def __init__(
        self, settings: Settings, clock: Clock | None = None, *, stopwatch: Callable[[], float] = time.perf_counter
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or asyncio.get_running_loop()
        self.metrics = Metrics(self.clock.time, stopwatch=stopwatch, wall=time.time)
        self.streams = Streams(self.clock, self.metrics, max_memory=settings.max_memory)
        self.front = Front(settings, self.streams, self.clock, self.metrics, secret=secrets.token_bytes(32))
        self.address: Address | None = None
        self.admin_address: Address | None = None
        self._ready = False
        handle = self.front.handle
        self._server = Server(logged(handle, self.clock) if settings.access_log else handle)
        self._listener: asyncio.Server | None = None
        self._admin = self._make_admin()
        for route in settings.routes:
            self.metrics.route(route.name)
        self.metrics.gauge("sse_history_bytes", "Bytes held of all streams.", lambda: self.streams.memory)
        self.metrics.gauge("sse_history_limit_bytes", "Bytes that may be held.", lambda: settings.max_memory)

    def _make_admin(self) -> web.AppRunner:
        def ready() -> bool:
            return self._ready

        overview = Overview(self.settings, self.streams, self.metrics, self.clock, wall=time.time, ready=ready)
        app = make_admin(self.metrics, overview, self.clock, ready=ready)
        return web.AppRunner(app, access_log=None, handler_cancellation=True)

    async def start(self) -> None:
        """Opens the ports, or neither of them. Raises ConfigError where one cannot be had."""
        sockets = [_bind("listen", self.settings.listen, self._user_timeout())]
        try:
            if self.settings.admin_listen:
                sockets.append(_bind("admin_listen", self.settings.admin_listen))
        except ConfigError:
            sockets[0].close()
            raise
        await self._open(*sockets)
        self._ready = True

    async def _open(self, main: socket.socket, admin: socket.socket | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._server, sock=main, backlog=_BACKLOG)
        self.address = _address(main)
        if admin is not None:
            await self._admin.setup()
            await web.SockSite(self._admin, admin).start()
            self.admin_address = _address(admin)

    def _user_timeout(self) -> float:
        # It also ends live peers whose window is full, so a slow reader must have its time first.
        slowest = max(route.settings.slow_reader_timeout for route in self.settings.routes)
        return max(_PEER_TIMEOUT, slowest)

    async def drain(self) -> None:
        """Ends without losing anything that is in flight, within `drain_delay` and `drain_timeout`.

        Not by aiohttp's own shutdown: it stops reading from every connection first, and an upload would hang.
        """
        self._ready = False
        await sleep(self.clock, self.settings.drain_delay)
        if self._listener:
            self._listener.close()
        self.front.draining = self._server.closing = True
        self.front.answers.drain(self.settings.drain_timeout / 2)
        try:
            async with deadline(self.clock, self.settings.drain_timeout):
                await self.front.idle.wait()
        except TimeoutError:
            log.warning("drain_timeout is over: %d streams are cut", len(self.front.answers.readers))
        await self.stop()

    async def stop(self) -> None:
        """Ends at once what is left."""
        self._ready = False
        if self._listener:
            self._listener.close()
        for client in list(self.front.answers.readers.values()):
            client.cut()
        transports = [connection.transport for connection in self._server.connections]
        await self._server.shutdown(_LAST_SECOND)
        # A connection that is closed politely stays open until its client has read all, which it may never do.
        for transport in transports:
            if transport is not None:
                transport.abort()
        self.streams.close()
        await self._admin.cleanup()


def _bind(key: str, address: Address, user_timeout: float = 0.0) -> socket.socket:
    """A listening socket of our own. SO_REUSEPORT, which aiohttp may set, would make a taken port no error."""
    expected = "an address that can be listened on"
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(key, str(address), f"{expected} ({error})") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if user_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout * 1000))
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise ConfigError(key, str(address), f"{expected} ({error.strerror})") from None
    return sock


def _address(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)
