"""One exchange with a client: what it asks, what class it is of, and what is written to it.

aiohttp parses the request and owns the connection; from the head on, everything is written here, straight to the
transport, so that heads keep their bytes and order, and head, priming and replay leave in one system call. A client's
leaving cancels its handler.
"""

from __future__ import annotations

import re
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast

from aiohttp import web

from sse_sidecar import headers
from sse_sidecar.errors import AnswerError, BadRequest, RequestTimeout
from sse_sidecar.wire import chunk

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable

    from aiohttp.abc import AbstractStreamWriter

    from sse_sidecar.clock import Clock, Timer

BODY_TIMEOUT = 60.0

PROBLEM = (b"Content-Type", b"application/problem+json")


_ABSOLUTE = re.compile(rb"([A-Za-z]+)://(?:[^/?@]*@)?([^/?]*)(.*)", re.DOTALL)
_HOST = re.compile(rb"[^\s/?#@,]*")


class _Connection(Protocol):
    """What the request came over."""

    def hand_over(self, protocol: asyncio.BaseProtocol) -> bytes: ...


class _BodyLate(web.RequestPayloadError):
    """Nothing more came of a body that was waited for."""


class ClientClass(Enum):
    """What reads the answer, as far as its request tells; DESIGN calls a browser's own reader EventSource."""

    EVENT_SOURCE = "a browser's EventSource, or one that asks exactly like it"
    PAGE = "other code in a browser page"
    OTHER = "everything else"


def classify(method: str, fields: headers.Headers) -> ClientClass:
    if _is_event_source(method, fields):
        return ClientClass.EVENT_SOURCE
    # Sec-Fetch-Mode tells nothing: Node's fetch sends it as well.
    is_page = (headers.get(fields, b"user-agent") or b"").startswith(b"Mozilla/") or (
        headers.get(fields, b"sec-fetch-dest") is not None
    )
    return ClientClass.PAGE if is_page else ClientClass.OTHER


def _is_event_source(method: str, fields: headers.Headers) -> bool:
    return (
        method == "GET"
        and headers.accepts_only_event_stream(fields)
        and headers.listed(fields, b"cache-control") == [b"no-cache"]
        and not any(name.lower().startswith(b"mcp-") for name, _ in fields)
    )


def _in_parts(method: str, target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """Path with query, and host, of a target that is no path (RFC 9112, section 3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return target, host
    path = match[3]
    if method == "OPTIONS" and not path:
        return b"*", match[2]
    return path if path.startswith(b"/") else b"/" + path, match[2]


class Client:
    """A request, and the one answer to it.

    `begin` with a head, `write` its body, then `end` or `cut`. What is written before `flush` or a full buffer is kept
    together with the head. After the client has left, writing does nothing.
    """

    __slots__ = (
        "_body_timeout",
        "_clock",
        "_continue_sent",
        "_held",
        "_keep_alive",
        "_kind",
        "_protocol",
        "_request",
        "_transport",
        "_waits_since",
        "_watching",
        "begun",
        "chunked",
        "cors",
        "headers",
        "host",
        "http11",
        "method",
        "on_backed_up",
        "route",
        "status",
        "stream",
        "target",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        *,
        closing: bool = False,
        clock: Clock | None = None,
        body_timeout: float = BODY_TIMEOUT,
    ) -> None:
        self._request = request
        self._clock = clock
        self._body_timeout = body_timeout
        self._watching: Timer | None = None
        self._waits_since: float | None = None
        self._protocol = request.protocol
        self._transport = request.transport
        self._held: list[bytes] | None = None
        self._continue_sent = False
        self._kind: ClientClass | None = None
        # A chunked body from HTTP/1.0 may have been framed otherwise by what stands between (RFC 9112, section 6.1).
        unsure = request.version < (1, 1) and "transfer-encoding" in request.headers
        self._keep_alive = request.keep_alive and not closing and not unsure
        self.method = request.method
        self.http11 = request.version >= (1, 1)
        self.headers: headers.Headers = request.raw_headers
        target = request.raw_path.encode("utf-8", "surrogateescape")
        host = headers.get(self.headers, b"host") or b""
        # The authority of an absolute-form target goes before the field (RFC 9112, section 3.2.2).
        self.target, self.host = (target, host) if target.startswith(b"/") else _in_parts(self.method, target, host)
        self.begun = False
        self.chunked = False
        self.status = 0
        self.route = self.stream = ""
        """What it turned out to be for; the stream's id is cut short."""
        self.cors: list[headers.Field] = []
        """Fields that let a page of another origin read an error of the sidecar's own."""
        self.on_backed_up: Callable[[], None] | None = None
        """Told when the peer begins to take less than it is sent."""

    # The request

    @property
    def client_class(self) -> ClientClass:
        if self._kind is None:
            self._kind = classify(self.method, self.headers)
        return self._kind

    @property
    def address(self) -> str:
        """The peer's address without its port; nothing on a Unix socket."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    @property
    def scheme(self) -> str:
        return "https" if self._protocol.ssl_context else "http"

    @property
    def has_body(self) -> bool:
        return self._request.body_exists

    @property
    def chunked_body(self) -> bool:
        """Whether the body comes without a length."""
        return headers.get(self.headers, b"transfer-encoding") is not None

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body as it comes, never as a whole.

        Raises BadRequest where its framing is broken, RequestTimeout where it is waited for in vain.
        """
        self._send_continue()
        self._watch_body()
        try:
            while part := await self._next_part():
                yield part
        except web.RequestPayloadError as error:
            self._keep_alive = False
            raise (RequestTimeout if isinstance(error, _BodyLate) else BadRequest) from error
        finally:
            self.unwatch()

    async def _next_part(self) -> bytes:
        self._waits_since = self._clock.time() if self._clock else None
        try:
            return await self._request.content.readany()
        finally:
            self._waits_since = None

    def _watch_body(self, after: float | None = None) -> None:
        """Looks again after that time. One timer serves the whole body, however many parts it comes in."""
        if self._clock is not None and not self._request.content.is_eof():
            self._watching = self._clock.call_later(after or self._body_timeout, self._look_at_body)

    def _look_at_body(self) -> None:
        now = self._clock.time() if self._clock else 0.0
        # Who does not read, out of back-pressure, waits for nothing; and nothing ends an answer that is under way.
        since = now if self._waits_since is None or self.begun else self._waits_since
        left = self._body_timeout - (now - since)
        if left > 0:
            self._watch_body(left)
        else:
            self._request.content.set_exception(_BodyLate())

    def unwatch(self) -> None:
        if self._watching:
            self._watching.cancel()
        self._watching = None

    def check(self) -> None:
        """Raises BadRequest where the head is no HTTP/1 that can be passed on; aiohttp lets these through."""
        known = self._request.version in ((1, 0), (1, 1))
        if self.method == "CONNECT":
            self._keep_alive = False  # what follows it is no request, whatever its length says
        if not known or not _HOST.fullmatch(self.host):
            self._keep_alive = False
            raise BadRequest

    def _send_continue(self) -> None:
        if self.begun or self._continue_sent or b"100-continue" not in headers.listed(self.headers, b"expect"):
            return
        self._continue_sent = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def interim(self, status: int, fields: headers.Headers) -> None:
        """An interim response (1xx), before the head (RFC 9110, section 15.2)."""
        if self.http11 and not (self.begun or self.gone) and self._transport is not None:
            lines = [b"HTTP/1.1 %d %b" % (status, _phrase(status)), *(b"%b: %b" % field for field in fields)]
            self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n")

    # The answer

    @property
    def gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def transport(self) -> asyncio.WriteTransport | None:
        """Where a part of the body that bears its chunk framing may be written, once nothing is held."""
        return self._transport

    @property
    def backed_up(self) -> bool:
        """The peer takes less than it is sent; `drain` waits for it."""
        return self._protocol.writing_paused and not self.gone

    def begin(self, status: int, fields: headers.Headers, reason: bytes | None = None) -> None:
        """Sets the head. A body without a length is chunked, or ends with the connection on HTTP/1.0."""
        self.begun, self.status = True, status
        bodiless = self.method == "HEAD" or status in (101, 204, 304)
        if not bodiless and headers.get(fields, b"content-length") is None:
            self.chunked = self.http11
            self._keep_alive = self._keep_alive and self.http11
        phrase = _phrase(status) if reason is None else reason
        lines = [b"HTTP/1.1 %d %b" % (status, phrase), *(b"%b: %b" % field for field in fields)]
        if self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        lines.append(self._connection())
        self._held = [b"\r\n".join(line for line in lines if line) + b"\r\n\r\n"]

    def _connection(self) -> bytes:
        if self.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return b""
        if not self._keep_alive:
            return b"Connection: close"
        return b"" if self.http11 and not self.chunked else b"Connection: keep-alive"

    def write(self, data: bytes) -> None:
        """Sends a part of the body, with the head where that is still held."""
        if data:
            # Not joined: a replay's bytes are the log's own, and stay one object however many readers wait for them.
            self._hold(b"%x\r\n" % len(data), data, b"\r\n") if self.chunked else self._hold(data)
            self.flush()

    def hold(self, data: bytes) -> None:
        """Keeps a part of the body back until the next `write` or `flush`."""
        if data:
            self._hold(chunk(data) if self.chunked else data)

    def _hold(self, *parts: bytes) -> None:
        self._held = [*(self._held or ()), *parts]

    def flush(self) -> None:
        held, self._held = self._held, None
        if held and self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(held)

    async def drain(self) -> None:
        """Waits until the peer takes more; at once where it is gone."""
        await self._request.writer.drain()

    def end(self) -> None:
        """The body is whole."""
        if self.chunked:
            self._hold(b"0\r\n\r\n")
        self.flush()

    def cut(self) -> None:
        """Ends the connection after what has been written, so that the body reads as cut short."""
        self.flush()
        self._keep_alive = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drops the connection, and what the peer has not taken."""
        self._keep_alive = False
        if self._transport is not None:
            self._transport.abort()

    def respond(self, status: int, fields: headers.Headers, body: bytes = b"") -> None:
        """A whole answer of the sidecar's own."""
        length = [] if status in (204, 304) else [(b"Content-Length", b"%d" % len(body))]
        self.begin(status, [*fields, *length])
        if body and self.method != "HEAD":
            self.hold(body)
        self.flush()

    def problem(self, error: type[AnswerError] | AnswerError, *fields: headers.Field) -> None:
        self.respond(error.status, [PROBLEM, headers.NO_STORE, *fields, *self.cors], error.problem())

    def hand_over(self, protocol: asyncio.BaseProtocol) -> bytes:
        """Lets another protocol have the connection, to its end; gives what came behind the request."""
        self._keep_alive = False
        return cast("_Connection", self._protocol).hand_over(protocol)

    def answer(self) -> web.StreamResponse:
        """What aiohttp is told: everything is written, and whether the connection may be used again."""
        return _Written(self.status, keep_alive=self._keep_alive)


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


class _Written(web.StreamResponse):
    """A response that has been sent already."""

    def __init__(self, status: int, *, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._reusable = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._reusable

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:  # noqa: ARG002
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        pass
