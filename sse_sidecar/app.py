"""Puts the parts together: start, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sse_sidecar.access import logged
from sse_sidecar.admin import make_admin
from sse_sidecar.clock import deadline, sleep
from sse_sidecar.config import Address
from sse_sidecar.errors import ConfigError
from sse_sidecar.front import Front
from sse_sidecar.listening import Server
from sse_sidecar.metrics import Metrics
from sse_sidecar.origin import probe
from sse_sidecar.overview import Overview
from sse_sidecar.streams import Streams
from sse_sidecar.tls import Certificates

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.clock import Clock
    from sse_sidecar.config import Settings

log = logging.getLogger(__name__)

_BACKLOG = 4096
_PEER_TIMEOUT = 30.0
"""Seconds after which a peer that acknowledges nothing is given up (TCP_USER_TIMEOUT, RFC 5482)."""
_LAST_SECOND = 1.0

_FIXED = ("listen", "admin_listen", "store", "log_format", "header_timeout", "body_timeout")
"""Settings that hold for the life of the process."""


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
        self._server = Server(
            logged(self.front.handle, self.clock, wanted=lambda: self.settings.access_log),
            self.clock,
            header_timeout=settings.header_timeout,
            body_timeout=settings.body_timeout,
        )
        self._certificates = _certificates(settings)
        self._listener: asyncio.Server | None = None
        self._admin = self._make_admin()
        self._show_routes()
        self.metrics.gauge("sse_history_bytes", "Bytes held of all streams.", lambda: self.streams.memory)
        self.metrics.gauge("sse_history_limit_bytes", "Bytes that may be held.", lambda: self.streams.max_memory)

    def _show_routes(self) -> None:
        for route in self.settings.routes:
            self.metrics.route(route.name)

    def _make_admin(self) -> web.AppRunner:
        def ready() -> bool:
            return self._ready

        self._overview = Overview(self.settings, self.streams, self.metrics, self.clock, wall=time.time, ready=ready)
        app = make_admin(self.metrics, self._overview, self.clock, ready=ready)
        return web.AppRunner(app, access_log=None, handler_cancellation=True)

    def reload(self, settings: Settings) -> None:
        """From now on requests are answered by these settings; nothing that is open is touched.

        Raises ConfigError where they cannot be used, or ask for what only a restart can give; then nothing changes.
        """
        for name in _FIXED:
            if getattr(settings, name) != getattr(self.settings, name):
                value = str(getattr(settings, name))
                raise ConfigError(name, value, f"{getattr(self.settings, name)} as it was; a restart changes it")
        fresh = self._fresh_certificates(settings)
        self.front.reload(settings)
        if self._certificates and fresh:
            self._certificates.follow(fresh)
        self.settings = self._overview.settings = settings
        self.streams.max_memory = settings.max_memory
        self._show_routes()

    def _fresh_certificates(self, settings: Settings) -> Certificates | None:
        if bool(settings.tls_certificate) != bool(self._certificates):
            value = ", ".join(settings.tls_certificate)
            raise ConfigError("tls_certificate", value, "some or none, as it was; a restart changes it")
        return _certificates(settings)

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
        self._listener = await loop.create_server(self._server, sock=main, backlog=_BACKLOG, **self._with_tls())
        self.address = _address(main)
        if admin is not None:
            await self._admin.setup()
            await web.SockSite(self._admin, admin).start()
            self.admin_address = _address(admin)

    def _with_tls(self) -> dict[str, Any]:
        if self._certificates is None:
            return {}
        # The loop drops what a closed connection still has to send after the latter; without TLS the kernel sends it.
        return {
            "ssl": self._certificates.context,
            "ssl_handshake_timeout": self.settings.header_timeout,
            "ssl_shutdown_timeout": self._user_timeout(),
        }

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
            log.warning("drain_timeout is over: %d requests are cut off", self.front.unanswered)
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
        self.front.close()
        await self._admin.cleanup()


def _certificates(settings: Settings) -> Certificates | None:
    wanted = settings.tls_certificate or settings.tls_key
    return Certificates(settings.tls_certificate, settings.tls_key) if wanted else None


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
        probe(sock)
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise ConfigError(key, str(address), f"{expected} ({error.strerror})") from None
    return sock


def _address(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)
