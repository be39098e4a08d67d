"""Connections of clients: what comes is taken apart into requests, bounded and timed; each is given on as a Client.

aiohttp parses and keeps the order. Its parser is given each head, and each body, by itself: it takes several things
that two servers may read in two ways, and what it is given is looked at before it is believed.
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from sse_sidecar import headers
from sse_sidecar.clock import sleep
from sse_sidecar.downstream import BODY_TIMEOUT, Client
from sse_sidecar.errors import AnswerError, BadRequest, HeadersTooLarge, RequestTimeout
from sse_sidecar.patience import Patience

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from aiohttp.streams import StreamReader
    from aiohttp.web_protocol import RequestHandler

    from sse_sidecar.clock import Clock

log = logging.getLogger(__name__)

MAX_LINE = 64 * 1024
"""Bytes of a request line or a header field: what the service behind takes is for it to say, up to here."""
MAX_FIELDS = 256
MAX_HEAD = 256 * 1024
"""Bytes of a whole head; and of what is not data in a body, between one piece of data and the next."""
HEADER_TIMEOUT = 10.0
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

# aiohttp's parser takes more than this: several spaces, bare CRs before it, RTSP, a fragment.
_REQUEST_LINE = re.compile(rb"(?:\r\n)*[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^\x00-\x20#\x7f]+ HTTP/[0-9]\.[0-9]\r\n")
_BLANK_LINE = b"\r\n\r\n"
_LF = 0x0A
_PARTS = 64
"""Blank lines in one read that may each be the end of a chunked body: a read of nothing else would hold up all others.
Past so many, a request that is behind the body in the same read is refused."""


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
