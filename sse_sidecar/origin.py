"""One exchange with the upstream, over a connection of its own.

The head comes raw, then the body: pulled with `read`, or pushed by call-backs within `data_received`, without a task or
a buffer between. A connection serves one exchange: nothing is ever sent twice, and no request meets a connection that
the upstream has just given up. The sidecar says nothing of `Connection`, as some servers answer `close` with a body
that ends with the connection, whose truncation cannot be seen.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, NamedTuple, cast

import httptools

from sse_sidecar import headers
from sse_sidecar.clock import Clock, Timer, deadline, wake
from sse_sidecar.errors import AnswerError, BadResponse, ConnectTimeout, OriginLost, ResponseTimeout, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.config import Upstream
    from sse_sidecar.headers import Field, Headers

_MUCH = 128 * 1024
"""Bytes of one read, of which uvloop takes 256 KiB at most: there is more to come."""

MAX_HEAD = 256 * 1024
"""Bytes of a response head. nginx takes 4 to 8 KiB, Node 16, browsers about 256."""


class Head(NamedTuple):
    """A response up to its body; names and values as they came."""

    status: int
    reason: bytes
    headers: Headers


class Origin:
    """Where exchanges are opened."""

    def __init__(self, upstream: Upstream, clock: Clock, *, connect_timeout: float, response_timeout: float) -> None:
        self._upstream = upstream
        self._clock = clock
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._tls = ssl.create_default_context() if upstream.tls else None

    async def connect(self) -> Exchange:
        """A connection. Raises Unreachable, ConnectTimeout."""
        try:
            async with deadline(self._clock, self._connect_timeout):
                return await self._connect()
        except TimeoutError:
            raise ConnectTimeout(f"no connection within {self._connect_timeout:g} s") from None
        except (OSError, UnicodeError) as error:  # the latter from a name that can be none
            raise Unreachable(error) from error

    async def _connect(self) -> Exchange:
        loop = asyncio.get_running_loop()
        to = self._upstream

        def protocol() -> Exchange:
            return Exchange(self._clock, self._response_timeout)

        if to.socket:
            _, exchange = await loop.create_unix_connection(protocol, to.socket)
        else:
            _, exchange = await loop.create_connection(protocol, to.host, to.port, ssl=self._tls)
        return exchange


class Exchange(asyncio.Protocol):
    """A request sent and its response read, once.

    Order of use: `send` the head and the body, `answer`, then either `read` until it gives nothing or `start`, and in
    any case `close`. Reading is paused from the head on until someone wants the body.
    """

    __slots__ = (
        "_clock",
        "_ended",
        "_error",
        "_expects_body",
        "_fields",
        "_head",
        "_head_bytes",
        "_on_data",
        "_on_end",
        "_parser",
        "_parts",
        "_readable",
        "_reading",
        "_reason",
        "_response_timeout",
        "_timer",
        "_transport",
        "_until_close",
        "_wanted",
        "_writable",
        "_writing_paused",
    )

    def __init__(self, clock: Clock, response_timeout: float) -> None:
        self._clock = clock
        self._response_timeout = response_timeout
        self._parser: httptools.HttpResponseParser | None = None
        self._transport: asyncio.Transport | None = None
        self._expects_body = True
        # The head, as far as it has come.
        self._reason = b""
        self._fields: list[Field] = []
        self._head_bytes = 0
        self._head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self._timer: Timer | None = None
        # The body: what has come and was not taken yet, who takes it, and how it ended.
        self._until_close = False
        self._parts: list[bytes] | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._on_end: Callable[[AnswerError | None], None] | None = None
        self._ended = False
        self._error: AnswerError | None = None
        self._reading = True
        self._wanted = True
        # Those who wait: `drain` for the socket to take more, `read` for the body.
        self._writable: asyncio.Future[None] | None = None
        self._writing_paused = False
        self._readable: asyncio.Future[None] | None = None

    # The request

    def send(self, data: bytes, *, expects_body: bool = True) -> None:
        """Writes a part of the request. The time-out for the answer starts anew."""
        self._expects_body = self._expects_body and expects_body
        if self._transport is None or self._transport.is_closing():
            return
        if not self._head.done():
            self._rearm()
        self._transport.write(data)

    async def drain(self) -> None:
        """Waits until the upstream takes more; at once where it is gone."""
        while self._writing_paused and not self._ended:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    async def answer(self) -> Head:
        """The response's head; interim responses (1xx) are passed over. Raises an OriginError."""
        return await asyncio.shield(self._head)

    # The response's body

    async def read(self) -> bytes:
        """The next bytes of the body, decoded from its framing only; nothing at its end. Raises OriginLost."""
        while not self._parts and not self._ended:
            self._readable = asyncio.get_running_loop().create_future()
            self.resume()
            await self._readable
        if not self._parts and self._error:
            raise self._error
        return self._take()

    def start(self, on_data: Callable[[bytes], None], on_end: Callable[[AnswerError | None], None]) -> None:
        """From now on the body is pushed. `on_end` is called once, with None where the body came whole."""
        self._on_data, self._on_end = on_data, on_end
        if self._parts:
            on_data(self._take())
        if self._ended:
            self._tell_end()
        else:
            self.resume()

    def pause(self) -> None:
        """Stops reading; an end of the connection is not seen either until `resume`."""
        self._wanted = False
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        self._wanted = True
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _let_others_go_first(self) -> None:
        """libuv reads up to 32 times in a row from a socket that has more, 8 MiB, before it looks at another."""
        if self._reading:
            self._stop_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._wanted:
            self.resume()

    def close(self) -> None:
        """Ends the connection; no call-back comes after it."""
        self._on_data = self._on_end = None
        self._end(OriginLost("closed by the sidecar"))

    def abandon(self, error: AnswerError) -> None:
        """Ends the connection for `error`, which whoever waits for the answer or takes the body is told."""
        self._end(error)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._parser = httptools.HttpResponseParser(self)
        # Servers whose lines end with a bare LF exist, and this is no request that someone could smuggle.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_data_after_close=True)
        _keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end(BadResponse("it switched protocols unasked"))
        except httptools.HttpParserError as error:
            self._deliver()
            self._end(BadResponse(error))
        else:
            if self._on_data is None:
                self._count_head(len(data))
                self._deliver()
            elif self._parts:
                self._on_data(self._take())
            if len(data) >= _MUCH:
                self._let_others_go_first()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        whole = self._until_close and exc is None
        self._end(None if whole else OriginLost(exc or "the connection was closed"))

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        wake(self._writable)

    # The parser's call-backs

    def on_status(self, part: bytes) -> None:
        self._reason += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head.done():
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._parser is None:  # it has ended, and this is what the upstream says behind the end
            return
        status = self._parser.get_status_code()
        head = Head(status, self._reason, self._fields)
        self._reason, self._fields = b"", []
        if 100 <= status < 200:
            return
        if self._timer:
            self._timer.cancel()
        codings = headers.listed(head.headers, b"transfer-encoding")
        if codings not in ([], [b"chunked"]):
            self._end(BadResponse(f"a transfer coding that is not undone here: {codings}"))
            return
        self._until_close = not codings and headers.get(head.headers, b"content-length") is None
        if not self._head.done():
            self._head.set_result(head)
        if not self._expects_body or status in (204, 304):
            self._end(None)
        else:
            self.pause()

    def on_body(self, part: bytes) -> None:
        if self._ended:  # this is of what the upstream says behind the end
            return
        # None while there is nothing: an empty list for each of thousands of streams would be looked up in vain.
        if self._parts is None:
            self._parts = [part]
        else:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._head.done() and not self._ended:
            self._deliver()
            self._end(None)

    def _count_head(self, size: int) -> None:
        if self._head.done():
            return
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._end(BadResponse(f"its head is longer than {MAX_HEAD} bytes"))

    def _take(self) -> bytes:
        parts, self._parts = self._parts or [], None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _deliver(self) -> None:
        if self._parts and self._on_data:
            self._on_data(self._take())
        elif self._parts:
            self.pause()
            wake(self._readable)

    def _rearm(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._clock.call_later(self._response_timeout, self._timed_out)

    def _timed_out(self) -> None:
        self._end(ResponseTimeout(f"no status line within {self._response_timeout:g} s"))

    def _end(self, error: AnswerError | None) -> None:
        if self._ended:
            return
        self._ended, self._error = True, error
        self._parser = None  # it holds call-backs to here: a cycle that only the garbage collector would find
        if self._timer:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort() if error else self._transport.close()
        if not self._head.done():
            self._head.set_exception(error or OriginLost("no answer"))
            self._head.exception()  # whoever asked may have left
        wake(self._readable)
        wake(self._writable)
        self._tell_end()

    def _tell_end(self) -> None:
        if self._on_end:
            self._on_end(self._error)


def request_head(method: str, target: bytes, fields: Headers) -> bytes:
    """A request up to its body (RFC 9112, section 3)."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode("ascii"), target, b"".join(lines))


def _keep_alive(sock: socket.socket | None) -> None:
    """A host that vanished says nothing, and a quiet stream never writes: the kernel asks it now and then."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
