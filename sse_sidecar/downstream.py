"""One exchange with a client: what it asks, what class it is of, and what is written to it.

aiohttp parses the request and owns the connection; from the head on, everything is written here, straight to the
transport, so that heads keep their bytes and order, and head, priming and replay leave in one system call. A client's
leaving cancels its handler.
"""

from __future__ import annotations

import logging
import re
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import _ErrInfo

from sse_sidecar import headers
from sse_sidecar.errors import AnswerError, BadRequest, HeadersTooLarge
from sse_sidecar.wire import chunk

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.web_protocol import RequestHandler

log = logging.getLogger(__name__)

MAX_LINE = 64 * 1024
"""Bytes of a request line or a header field: what the service behind takes is for it to say, up to here."""
MAX_FIELDS = 256
_BODY_BUFFER = 64 * 1024

PROBLEM = (b"Content-Type", b"application/problem+json")


_ABSOLUTE = re.compile(rb"([A-Za-z]+)://(?:[^/?@]*@)?([^/?]*)(.*)", re.DOTALL)
_HOST = re.compile(rb"[^\s/?#@,]*")


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
        "_continue_sent",
        "_held",
        "_keep_alive",
        "_kind",
        "_protocol",
        "_request",
        "_transport",
        "begun",
        "chunked",
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

    def __init__(self, request: web.BaseRequest, *, closing: bool = False) -> None:
        self._request = request
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
        """The request's body as it comes, never as a whole. Raises BadRequest where its framing is broken."""
        self._send_continue()
        try:
            while part := await self._request.content.readany():
                yield part
        except web.RequestPayloadError as error:
            self._keep_alive = False
            raise BadRequest from error

    def break_body(self) -> None:
        """What follows of it can not be read."""
        if not self._request.content.is_eof():
            self._request.content.set_exception(web.RequestPayloadError("the body's framing is broken"))

    def check(self) -> None:
        """Raises BadRequest where the head is no HTTP/1 that can be passed on; aiohttp lets these through."""
        codings = headers.listed(self.headers, b"transfer-encoding")
        known = self._request.version in ((1, 0), (1, 1)) and codings in ([], [b"chunked"])
        if not known or not _HOST.fullmatch(self.host):
            self._keep_alive = False
            raise BadRequest

    def _send_continue(self) -> None:
        if self.begun or self._continue_sent or b"100-continue" not in headers.listed(self.headers, b"expect"):
            return
        self._continue_sent = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

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
        bodiless = self.method == "HEAD" or status in (204, 304)
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
        self.respond(error.status, [PROBLEM, headers.NO_STORE, *fields], error.problem())

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


class _Connection(web.RequestHandler):
    """aiohttp's server protocol, quiet about what a client sent that is no HTTP."""

    client: Client | None = None
    """The one being answered."""

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.client and self.client.on_backed_up:
            self.client.on_backed_up()

    def data_received(self, data: bytes) -> None:
        """Tells the request being answered that its body is broken: aiohttp would only answer what follows it."""
        super().data_received(data)
        broken = self._messages and isinstance(self._messages[-1][0], _ErrInfo)
        if broken and self.client is not None:
            self.client.break_body()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """aiohttp's own writes the offending bytes, credentials and all, into the answer and the log."""
        error: type[AnswerError] = AnswerError
        if status != HTTPStatus.INTERNAL_SERVER_ERROR:
            error = HeadersTooLarge if isinstance(exc, LineTooLong) else BadRequest
            log.info("refused a request that is no valid HTTP: %s", type(exc).__name__)
        client = Client(request, closing=True)
        client.problem(error)
        return client.answer()


class Server(web.Server):
    """Gives each request to `handle` as a Client."""

    def __init__(self, handle: Callable[[Client], Awaitable[None]]) -> None:
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # it would gunzip request bodies and leave their header
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_LINE,
            "max_headers": MAX_FIELDS,
            "read_bufsize": _BODY_BUFFER,
            "lingering_time": 2.0,
        }
        super().__init__(self._respond, handler_cancellation=True)
        self._handle = handle
        self.closing = False
        """No connection is used for a further request: set when draining."""

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self.loop, **self._options)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        client = Client(request, closing=self.closing)
        connection = cast("_Connection", request.protocol)
        connection.client = client
        try:
            client.check()
            await self._handle(client)
        except AnswerError as error:
            if client.begun:
                client.cut()
            else:
                client.problem(error)
            error.with_traceback(None)  # its frames hold what holds it: a cycle
        except ConnectionError:
            client.abort()
        except Exception:
            log.exception("a request failed")
            if client.begun:
                client.cut()
            else:
                client.problem(AnswerError)
        finally:
            connection.client = None
            if request.content.exception():
                request.content.feed_eof()  # or aiohttp would read on, to see whether the connection can be kept
        return client.answer()
