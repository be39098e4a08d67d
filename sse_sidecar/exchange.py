"""One exchange with the upstream.

The head comes raw, then the body: pulled with `read`, or pushed by call-backs within `data_received`, without a task or
a buffer between. When it is over, its connection is given back to be used again, if it can be. The sidecar says nothing
of `Connection`, as some servers answer `close` with a body that ends with the connection, whose truncation cannot be
seen.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, cast

import httptools

from sse_sidecar import headers
from sse_sidecar.clock import wake
from sse_sidecar.errors import AnswerError, BadResponse, OriginLost, ResponseTimeout, Stale

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.clock import Clock, Timer
    from sse_sidecar.headers import Field, Headers

_MUCH = 128 * 1024
"""Bytes of one read, of which uvloop takes 256 KiB at most: there is more to come."""

_WRITE_BUFFER = 64 * 1024
"""Bytes that wait to be sent before a sender is to wait; what the loop has without TLS."""

MAX_HEAD = 256 * 1024
"""Bytes of a response head. nginx takes 4 to 8 KiB, Node 16, browsers about 256."""


class Head(NamedTuple):
    """A response up to its body; names and values as they came."""

    status: int
    reason: bytes
    headers: Headers


class Exchange(asyncio.Protocol):
    """A request sent and its response read, once.

    Order of use: `send` the head and the body, `answer`, then either `read` until it gives nothing or `start`, and in
    any case `close`. Reading is paused from the head on until someone wants the body.
    """

    __slots__ = (
        "_behind",
        "_clock",
        "_ended",
        "_error",
        "_expects_body",
        "_fields",
        "_head",
        "_head_bytes",
        "_keepable",
        "_on_data",
        "_on_end",
        "_parser",
        "_parts",
        "_readable",
        "_reading",
        "_reason",
        "_release",
        "_request_whole",
        "_response_timeout",
        "_timer",
        "_transport",
        "_until_close",
        "_upgrades",
        "_wanted",
        "_writable",
        "_writing_paused",
        "authority",
        "kept",
        "on_interim",
        "on_unanswered",
    )

    def __init__(
        self, clock: Clock, response_timeout: float, release: Callable[[asyncio.Transport], None] | None = None
    ) -> None:
        self._clock = clock
        self._response_timeout = response_timeout
        self._release = release
        """Takes the connection when it can be used again."""
        self.authority = b""
        """What the upstream calls itself, for a `Host` of its own."""
        self.kept = False
        """Whether the connection was used before."""
        self.on_interim: Callable[[Head], None] | None = None
        """Told of each interim response (1xx) but 100 and 101."""
        self.on_unanswered: Callable[[], None] | None = None
        """Told where the upstream gives up, or says nothing in time, before it has answered."""
        self._parser: httptools.HttpResponseParser | None = None
        self._transport: asyncio.Transport | None = None
        self._expects_body = True
        self._upgrades = False
        self._request_whole = False
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
        self._keepable = False
        self._behind = b""
        """What stands behind the response in the same read."""
        self._reading = True
        self._wanted = True
        # Those who wait: `drain` for the socket to take more, `read` for the body.
        self._writable: asyncio.Future[None] | None = None
        self._writing_paused = False
        self._readable: asyncio.Future[None] | None = None

    # The request

    def send(self, data: bytes, *, expects_body: bool = True, upgrades: bool = False) -> None:
        """Writes a part of the request. The time-out for the answer starts anew.

        With `upgrades` an answer of 101 is one: then comes `hand_over`.
        """
        self._expects_body = self._expects_body and expects_body
        self._upgrades = self._upgrades or upgrades
        if self._transport is None or self._transport.is_closing():
            return
        if not self._head.done():
            self._rearm()
        self._transport.write(data)

    def request_ended(self) -> None:
        """All of the request has been sent: the connection may be used again after its response."""
        self._request_whole = True

    async def drain(self) -> None:
        """Waits until the upstream takes more; at once where it is gone."""
        while self._writing_paused and not self._ended:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    async def answer(self) -> Head:
        """The response's head; interim responses (1xx) are told to `on_interim`. Raises an OriginError."""
        return await asyncio.shield(self._head)

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection, while it is this exchange's."""
        return self._transport

    def hand_over(self, protocol: asyncio.BaseProtocol) -> bytes:
        """After a 101, lets another protocol have the connection, paused; gives what came behind the head.

        `protocol.connection_made` is for its caller to call.
        """
        transport, behind, self._transport, self._behind = self._transport, self._behind, None, b""
        if transport is not None:
            transport.set_protocol(protocol)
        self._end(None)
        return behind

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
        if transport.get_extra_info("sslcontext"):  # over TLS uvloop would take 512 KiB of an upload at once
            self._transport.set_write_buffer_limits(_WRITE_BUFFER)
            # While reading is paused, uvloop takes up to 256 KiB more, and drops it where the peer then leaves.
            self._transport.set_read_buffer_limits(high=1)  # type: ignore[attr-defined]
        self._parser = httptools.HttpResponseParser(self)
        # Servers whose lines end with a bare LF exist, and this is no request that someone could smuggle.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_data_after_close=True)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as switch:
            self._switch(data[switch.args[0] :])
        except httptools.HttpParserError as error:
            self._keepable = False
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
        if self._ended and self._transport is not None:
            self._leave()

    def _switch(self, behind: bytes) -> None:
        if not self._upgrades:
            self._end(BadResponse("it switched protocols unasked"))
            return
        self._behind = behind
        self.pause()

    def eof_received(self) -> None:
        self._lost(None, whole=self._until_close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc, whole=False)

    def _lost(self, exc: Exception | None, *, whole: bool) -> None:
        kind = Stale if self.kept and not (self._head_bytes or self._head.done()) else OriginLost
        if kind is OriginLost:
            self._not_answered()
        self._end(None if whole else kind(exc or "the connection was closed"))

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        wake(self._writable)

    # The parser's call-backs

    def on_message_begin(self) -> None:
        self._keepable = self._keepable and not self._ended

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
        if status == 101 and self._upgrades:
            self._answered(head)
            return
        if 100 <= status < 200:
            if self.on_interim and status > 101:
                self.on_interim(head)
            return
        codings = headers.listed(head.headers, b"transfer-encoding")
        if codings not in ([], [b"chunked"]):
            self._end(BadResponse(f"a transfer coding that is not undone here: {codings}"))
            return
        self._until_close = not codings and headers.get(head.headers, b"content-length") is None
        self._answered(head)
        if not self._expects_body or status in (204, 304):
            self._end_whole()
        else:
            self.pause()

    def _answered(self, head: Head) -> None:
        self.on_interim = self.on_unanswered = None  # who asked may be gone long before the body is
        if self._timer:
            self._timer.cancel()
        if not self._head.done():
            self._head.set_result(head)

    def on_body(self, part: bytes) -> None:
        if self._ended:  # this is of what the upstream says behind the end
            self._keepable = False
            return
        # None while there is nothing: an empty list for each of thousands of streams would be looked up in vain.
        if self._parts is None:
            self._parts = [part]
        else:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._head.done() and not self._ended and not self._has_switched():
            self._deliver()
            self._end_whole()

    def _has_switched(self) -> bool:
        return self._upgrades and self._parser is not None and self._parser.get_status_code() == 101

    def _end_whole(self) -> None:
        """The response is whole, and its connection may go on; whether it does is seen when all has been parsed."""
        assert self._parser is not None  # noqa: S101 - it called this
        self._keepable = self._request_whole and self._parser.should_keep_alive()
        self._end(None)

    def _leave(self) -> None:
        """Gives the connection back, or closes it."""
        transport, self._transport = self._transport, None
        assert transport is not None  # noqa: S101 - looked at by the caller
        if self._keepable and self._release and not transport.is_closing():
            self._release(transport)
            if not self._reading:
                transport.resume_reading()
        else:
            transport.close()

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
        self._not_answered()
        self._end(ResponseTimeout(f"no status line within {self._response_timeout:g} s"))

    def _end(self, error: AnswerError | None) -> None:
        if self._ended:
            return
        self._ended, self._error = True, error
        self._parser = None  # it holds call-backs to here: a cycle that only the garbage collector would find
        if self._timer:
            self._timer.cancel()
        if self._transport is not None and not self._keepable:
            self._transport.abort() if error else self._transport.close()
            self._transport = None
        if not self._head.done():
            self._head.set_exception(error or OriginLost("no answer"))
            self._head.exception()  # whoever asked may have left
        wake(self._readable)
        wake(self._writable)
        self._tell_end()

    def _not_answered(self) -> None:
        if self.on_unanswered and not self._ended and not self._head.done():
            self.on_unanswered()

    def _tell_end(self) -> None:
        if self._on_end:
            self._on_end(self._error)


def request_head(method: str, target: bytes, fields: Headers) -> bytes:
    """A request up to its body (RFC 9112, section 3)."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode("ascii"), target, b"".join(lines))
