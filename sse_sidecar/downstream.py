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
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from sse_sidecar import headers
from sse_sidecar.clock import sleep
from sse_sidecar.errors import AnswerError, BadRequest, HeadersTooLarge, RequestTimeout
from sse_sidecar.patience import Patience
from sse_sidecar.wire import chunk

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.streams import StreamReader
    from aiohttp.web_protocol import RequestHandler

    from sse_sidecar.clock import Clock, Timer

log = logging.getLogger(__name__)

MAX_LINE = 64 * 1024
"""Bytes of a request line or a header field: what the service behind takes is for it to say, up to here."""
MAX_FIELDS = 256
MAX_HEAD = 256 * 1024
"""Bytes of a whole head; and of what is not data in a body, between one piece of data and the next."""
HEADER_TIMEOUT = 10.0
BODY_TIMEOUT = 60.0
IDLE_TIMEOUT = 75.0
"""Seconds that a connection is kept without a request. More than the 60 that clients and balancers commonly allow
themselves: who closes second is never asked over a connection that is about to end."""
_WRITE_BUFFER = 64 * 1024
"""Bytes that wait to be sent before a client counts as backed up; what the loop has without TLS."""
_LINGERING = 2.0
"""Seconds in which what a client still sends is taken and dropped, so that it reads its answer."""
_BODY_BUFFER = 64 * 1024
_LONGEST_BODY = 2**63 - 1
"""Bytes. Beyond it, what counts in 64 bits with a sign sees another length, and aiohttp at the last of 64 none."""

PROBLEM = (b"Content-Type", b"application/problem+json")


_ABSOLUTE = re.compile(rb"([A-Za-z]+)://(?:[^/?@]*@)?([^/?]*)(.*)", re.DOTALL)
_HOST = re.compile(rb"[^\s/?#@,]*")
# aiohttp's parser takes more than this: several spaces, bare CRs before it, RTSP, a fragment.
_REQUEST_LINE = re.compile(rb"(?:\r\n)*[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^\x00-\x20#\x7f]+ HTTP/[0-9]\.[0-9]\r\n")
_BLANK_LINE = b"\r\n\r\n"
_LF = 0x0A
_PARTS = 64
"""Blank lines in one read that may each be the end of a chunked body: a read of nothing else would hold up all others.
Past so many, a request that is behind the body in the same read is refused."""


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


class _Connection(web.RequestHandler):
    """aiohttp's server protocol, quiet about what a client sent that is no HTTP.

    Its parser is given each head, and each body, by itself, so that it is known here which of them comes.
    """

    client: Client | None = None
    """The one being answered."""
    handed_over = False
    """Whether another protocol has the connection."""

    def __init__(self, server: Server, options: dict[str, Any]) -> None:
        super().__init__(server, loop=server.loop, **options)
        self._server = server
        self._unparsed = b""
        """What has come and cannot be parsed before what came before it is read."""
        self._head = bytearray()
        """What has come of a head that is not whole."""
        self._body: StreamReader | None = None
        """The body of the last request, until it is whole."""
        self._left: int | None = None
        """Bytes of it that are to come; None where it is chunked."""
        self._tail = b""
        """The last bytes of it, and how many came that were no data."""
        self._no_data = 0
        self._deaf = False
        """What has come is no HTTP, so that nothing after it can be a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.ssl_context:  # over TLS uvloop would hold 512 KiB of a client that reads nothing
            cast("asyncio.WriteTransport", transport).set_write_buffer_limits(_WRITE_BUFFER)
            # While reading is paused, it takes up to 256 KiB more, and drops it where the peer then leaves.
            transport.set_read_buffer_limits(high=1)  # type: ignore[attr-defined]
        self._server.reading_heads.begin(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.reading_heads.end(self)
        self._server.idle.end(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.client and self.client.on_backed_up:
            self.client.on_backed_up()

    # What comes

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._force_close or self._close:
            return
        self._server.idle.end(self)
        if not data:
            self._parse(data)  # aiohttp's way to go on with what the parser had been paused on
        unparsed, at, parts = self._unparsed + data, 0, 0
        while at < len(unparsed) and self._may_parse():
            in_chunks = self._body is not None and self._left is None
            end = len(unparsed) if in_chunks and parts > _PARTS else self._end_of_part(unparsed, at)
            self._parse(unparsed[at:end])
            at, parts = end, parts + 1
        self._unparsed = b"" if self._deaf else unparsed[at:]
        if self._head and not self._deaf:
            self._server.reading_heads.begin(self)

    def _may_parse(self) -> bool:
        return not (self._reading_paused or self._deaf or len(self._messages) >= self._max_msg_queue_size)

    def _end_of_part(self, data: bytes, at: int) -> int:
        """Where what is being parsed ends at the latest: a body by its length, all else with the next blank line."""
        if self._upgraded:
            return len(data)
        if self._body is not None and self._left:
            return min(len(data), at + self._left)
        if not at:
            seam = self._tail[-3:] if self._body is not None else bytes(self._head[-3:])
            found = (seam + data[:3]).find(_BLANK_LINE)
            if found >= 0:
                return found + len(_BLANK_LINE) - len(seam)
        found = data.find(_BLANK_LINE, at)
        while found > 0 and data[found - 1] == _LF:  # lines that are empty end neither a head nor a body
            found = data.find(_BLANK_LINE, found + 1)
        return len(data) if found < 0 else found + len(_BLANK_LINE)

    def _parse(self, part: bytes) -> None:
        if self._upgraded:
            super().data_received(part)
        elif self._body is not None and self._left != 0:
            self._parse_body(self._body, part)
        else:
            self._parse_head(part)
        if self._body is not None and self._body.is_eof():
            self._end_body()

    def _parse_head(self, part: bytes) -> None:
        if len(self._head) + len(part) > MAX_HEAD:
            self._refuse(LineTooLong(b"", MAX_HEAD))
            return
        self._head += part
        count = self._request_count
        super().data_received(part)
        if self._request_count > count:
            self._server.reading_heads.end(self)
            self._after_head()

    def _after_head(self) -> None:
        head, self._head = self._head, bytearray()
        message, body = self._messages[-1]
        if isinstance(message, _ErrInfo):
            self.break_off()
            return
        length = headers.get(message.raw_headers, b"content-length") or b"0"
        codings = [value.lower() for value in headers.get_all(message.raw_headers, b"transfer-encoding")]
        bounded = len(length) <= len(str(_LONGEST_BODY)) and int(length) <= _LONGEST_BODY
        if not _REQUEST_LINE.match(head) or not bounded or codings not in ([], [b"chunked"]):
            self._messages.pop()
            self._refuse(BadRequest())
        elif body is not EMPTY_PAYLOAD:
            self._body, self._left = body, None if codings else int(length)

    def _parse_body(self, body: StreamReader, part: bytes) -> None:
        came, count = body.total_bytes, self._request_count
        if self._left is not None:
            self._left -= len(part)
        else:
            self._tail = (self._tail + part)[-len(_BLANK_LINE) :]
            self._no_data += len(part)
        super().data_received(part)
        if body.total_bytes > came:
            self._no_data = 0
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self.break_off()
        elif self._no_data > MAX_HEAD:
            self._refuse(LineTooLong(b"", MAX_HEAD))
        elif self._left is None and body.is_eof() and not (self._tail == _BLANK_LINE and count == self._request_count):
            # Something came behind it in the same part, and may bear the last field of its trailer section.
            while self._request_count > count:
                self._request_count -= 1
                self._messages.pop()
            self._refuse(BadRequest())

    def _end_body(self) -> None:
        if self._left is None:
            # The last field of a trailer section would be the first one of the next head: aiohttp's parser keeps it.
            self._parser = _parser(self, self._loop)
        self._body, self._left, self._tail, self._no_data = None, None, b"", 0

    def _refuse(self, error: BaseException) -> None:
        """Answers with an error what has come, after the requests before it."""
        self._messages.append((_ErrInfo(400, error, ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self.break_off()

    def break_off(self) -> None:
        """A request whose body is broken is not answered where that has not begun; else it is told."""
        self._deaf = True
        self._head.clear()
        self._server.reading_heads.end(self)
        body, self._body = self._body, None
        if body is None or body.is_eof():
            return
        if len(self._messages) > 1 and self._messages[-2][1] is body:
            del self._messages[-2]
        else:
            body.set_exception(web.RequestPayloadError("the body's framing is broken"))

    def head_is_late(self) -> None:
        if self._head:
            self._refuse(RequestTimeout())
        else:
            # Browsers open connections ahead: an answer to nothing would be taken for that to their next request.
            self.force_close()

    # What was answered

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """aiohttp's own would give its parser what came behind a declined upgrade, past what is done here."""
        behind = b""
        if self._upgraded and not self._messages and self._payload_parser is None:
            behind, self._message_tail = self._message_tail, b""
        finished = await super().finish_response(request, resp, start_time)
        if behind:
            self.data_received(behind)
            if self._buffer_paused:
                self._resume_reading_if_drained()
        if resp.keep_alive and not (self._messages or self._head or self._force_close):
            self._server.idle.begin(self)
        if self._deaf and not resp.keep_alive:
            await self._linger()
        return finished

    async def _linger(self) -> None:
        """Closed at once, it would answer with a RST what still comes, and the answer be lost (RFC 9112, 9.6)."""
        transport = self.transport
        if transport is not None and not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()
            await sleep(self._server.clock, _LINGERING)

    def hand_over(self, protocol: asyncio.BaseProtocol) -> bytes:
        """What came behind the request has not been parsed: it asked for another protocol."""
        behind = self._message_tail + self._unparsed
        self._message_tail = self._unparsed = b""
        if self.transport is not None:
            self.transport.set_protocol(protocol)
            self.handed_over = True
        return behind

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Another protocol may go on for ever, so that there is no use in waiting for it."""
        if self.handed_over and self.transport is not None:
            self.transport.close()
        await super().shutdown(timeout)

    def _process_keepalive(self) -> None:
        """Nothing: the server's clock measures how long a connection is idle."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """aiohttp's own writes the offending bytes, credentials and all, into the answer and the log."""
        error: type[AnswerError] = AnswerError
        if isinstance(exc, RequestTimeout):
            error = RequestTimeout
            log.info("refused a request whose head did not come in time")
        elif status != HTTPStatus.INTERNAL_SERVER_ERROR:
            error = HeadersTooLarge if isinstance(exc, LineTooLong) else BadRequest
            log.info("refused a request that is no valid HTTP: %s", type(exc).__name__)
        client = Client(request, closing=True)
        client.problem(error)
        return client.answer()


def _parser(connection: _Connection, loop: asyncio.AbstractEventLoop) -> HttpRequestParser:
    """As aiohttp makes it."""
    return HttpRequestParser(
        connection,
        loop,
        _BODY_BUFFER,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
        max_headers=MAX_FIELDS,
        payload_exception=web.RequestPayloadError,
        auto_decompress=False,
    )


class Server(web.Server):
    """Gives each request to `handle` as a Client."""

    def __init__(
        self,
        handle: Callable[[Client], Awaitable[None]],
        clock: Clock | None = None,
        *,
        header_timeout: float = HEADER_TIMEOUT,
        body_timeout: float = BODY_TIMEOUT,
    ) -> None:
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # it would gunzip request bodies and leave their header
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_LINE,
            "max_headers": MAX_FIELDS,
            "read_bufsize": _BODY_BUFFER,
            "lingering_time": _LINGERING,
            "keepalive_timeout": 0.0,  # it would go by the loop's own clock; `idle` has that duty
        }
        super().__init__(self._respond, handler_cancellation=True)
        self._handle = handle
        self.clock = clock or self._loop
        self.body_timeout = body_timeout
        self.reading_heads = Patience(self.clock, header_timeout, _Connection.head_is_late)
        """Connections of which the whole of a head is still to come."""
        self.idle = Patience(self.clock, IDLE_TIMEOUT, _Connection.force_close)
        """Connections that were answered, and are kept for another request."""
        self.closing = False
        """No connection is used for a further request: set when draining."""

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._options)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        client = Client(request, closing=self.closing, clock=self.clock, body_timeout=self.body_timeout)
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
            if isinstance(error, BadRequest):
                connection.break_off()
            error.with_traceback(None)  # its frames hold what holds it: a cycle
        except OSError:  # of the connection, or of TLS
            client.abort()
        except Exception:
            log.exception("a request failed")
            if client.begun:
                client.cut()
            else:
                client.problem(AnswerError)
        finally:
            connection.client = None
            client.unwatch()
            if connection.handed_over:
                self.loop.call_soon(connection.connection_lost, None)  # no one else tells it
            if request.content.exception():
                request.content.feed_eof()  # or aiohttp would read on, to see whether the connection can be kept
        return client.answer()
