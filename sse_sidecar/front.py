"""What a request gets: resumed, a new stream, or passed through."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sse_sidecar import asked as requests
from sse_sidecar import decoding, headers, passthrough, wire
from sse_sidecar.clock import spawn
from sse_sidecar.delivery import Heart, Reader
from sse_sidecar.downstream import ClientClass
from sse_sidecar.errors import NotSupported, OriginError, OriginLost, Overloaded, StreamGone
from sse_sidecar.event_id import suffix
from sse_sidecar.history import Found
from sse_sidecar.origin import Origin
from sse_sidecar.streams import State
from sse_sidecar.upstream import GAP, LOST, Producer, ask_again

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_sidecar.asked import Asked
    from sse_sidecar.clock import Clock
    from sse_sidecar.config import Route, Settings
    from sse_sidecar.decoding import Decoder
    from sse_sidecar.downstream import Client
    from sse_sidecar.event_id import ResumeToken
    from sse_sidecar.headers import Field
    from sse_sidecar.history import Position
    from sse_sidecar.metrics import Metrics
    from sse_sidecar.origin import Exchange, Head
    from sse_sidecar.streams import Stream, Streams

log = logging.getLogger(__name__)

_MCP_WITH_PRIMING = b"2025-11-25"

RESET = "The stream that this Last-Event-ID names is no longer held; this is a new one, and events may be lost between."
TRIMMED = "Events were asked for that are no longer held; the next one comes after them."
REFUSED = "The upstream was asked to go on with this stream and did not; ask again without waiting to see its answer."


class Ending(NamedTuple):
    """How an answer ends: with a signal or without, and whether as a whole."""

    final: bytes
    clean: bool


class Arrived(NamedTuple):
    """An upstream's answer that is an event stream."""

    exchange: Exchange
    head: Head
    decoder: Decoder


class Front:
    """Answers requests."""

    def __init__(self, settings: Settings, streams: Streams, clock: Clock, metrics: Metrics, *, secret: bytes) -> None:
        self._settings = settings
        self._streams = streams
        self._clock = clock
        self._metrics = metrics
        self._secret = secret
        self._heart = Heart(clock)
        self._origins: dict[str, Origin] = {}
        self.draining = False
        self.readers: dict[Reader, Client] = {}
        """Those who are being delivered to."""
        self._unanswered = 0
        self.idle = asyncio.Event()
        """Set while no request is being answered."""
        self.idle.set()

    async def handle(self, client: Client) -> None:
        """Answers one request. Raises an AnswerError where the answer is a problem document."""
        if client.method == "CONNECT":
            raise NotSupported
        asked = requests.read(client, self._settings, self._metrics, secret=self._secret, origin_of=self._origin)
        if self.draining:
            self._later(asked, "draining")
            return
        with self._counted():
            try:
                await self._answer(asked)
            except OriginError as error:
                self._unreachable(asked, error)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._unanswered += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._unanswered -= 1
            if not self._unanswered:
                self.idle.set()

    async def _answer(self, asked: Asked) -> None:
        if asked.token is None:
            await self._ask_upstream(asked)
            return
        found = self._find(asked, asked.token)
        if found is not None:
            await self._resume(asked, *found)
        elif not asked.token.repeatable:
            raise self._gone(asked)
        elif asked.token.upstream_id is not None:
            # Asked by its own id, the upstream goes on where it was: nothing is lost, and nothing need be said.
            await self._ask_upstream(asked, upstream_id=asked.token.upstream_id)
        else:
            await self._ask_upstream(asked, status="reset")

    def _origin(self, route: Route) -> Origin:
        if route.name not in self._origins:
            own = route.settings
            assert own.upstream is not None  # noqa: S101 - checked when the settings were loaded
            self._origins[route.name] = Origin(
                own.upstream, self._clock, connect_timeout=own.connect_timeout, response_timeout=own.response_timeout
            )
        return self._origins[route.name]

    # With a token

    def _find(self, asked: Asked, token: ResumeToken) -> tuple[Stream, Position] | None:
        """The stream that the token names, for those who may have it, and where in it the client stands."""
        stream = self._streams.find(token, asked.key)
        if stream is None or asked.client.method not in ("GET", stream.method):
            return None
        position = stream.log.find(token.seq)
        past_refusal = stream.refused and position.found is Found.AT_END
        return None if position.found is Found.BEYOND or past_refusal else (stream, position)

    async def _resume(self, asked: Asked, stream: Stream, position: Position) -> None:
        if position.found is Found.AT_END and stream.state is State.COMPLETE:
            asked.counts.resumes["over"] += 1
            self._over(asked.client, stream)
            return
        if position.found is Found.AT_END and stream.state is State.BROKEN:
            raise self._gone(asked)
        if self._streams.reader_count >= self._settings.max_readers:
            self._later(asked, "max_readers")
            return
        signal = b""
        if position.found is Found.GAP:
            asked.counts.errors["gap"] += 1
            asked.counts.lost += position.lost
            signal = wire.signal("gap", TRIMMED, lost=position.lost)
        # What a dormant stream goes on with may follow a hole as well, when that is all there is to come.
        hole_next = stream.state is State.DORMANT and stream.may_miss and position.found is Found.AT_END
        status = "gap" if signal or hole_next else "resumed"
        asked.counts.resumes[status] += 1
        log.info("stream %.6s: resumed after %d: %s", stream.id, position.cursor, status)
        fields = headers.event_stream_answer(headers.without_cookies(stream.headers), stream.id, status)
        await self._deliver(asked, stream, position.cursor, fields, signal=signal)

    def _gone(self, asked: Asked) -> StreamGone:
        asked.counts.resumes["gone"] += 1
        asked.counts.errors["gone"] += 1
        return StreamGone()

    def _over(self, client: Client, stream: Stream) -> None:
        """Nothing more will come. 204 stops a browser's EventSource; fetch clients in a page fail on a missing body."""
        fields = headers.event_stream_answer(headers.without_cookies(stream.headers), stream.id, "resumed")
        if client.method == "GET" and client.client_class is not ClientClass.PAGE:
            client.respond(204, fields)
        else:
            client.begin(200, fields)
            client.end()

    # Without one

    async def _ask_upstream(self, asked: Asked, *, status: str = "new", upstream_id: bytes = b"") -> None:
        """Sends the request upstream, and opens a stream or passes through what comes."""
        client = asked.client
        if headers.accepts_event_stream(client.headers) and (limit := self._limit()):
            self._later(asked, limit)
            return
        exchange = await self._send(asked, upstream_id)
        uploading = spawn(passthrough.upload(client, exchange), name="upload") if client.has_body else None
        kept = False
        try:
            head = await exchange.answer()
            decoder = self._decoder(asked, head)
            if decoder is None:
                asked.counts.passthrough[str(head.status)] += 1
                await passthrough.relay(client, exchange, head)
            elif limit := self._limit():
                self._later(asked, limit)
            else:
                kept = True
                arrived = Arrived(exchange, head, decoder)
                await self._open_and_deliver(asked, arrived, status=status, upstream_id=upstream_id)
        finally:
            if not kept or (uploading and not uploading.done()):
                exchange.abandon(OriginLost("the client left, or all is done"))
            if uploading:
                uploading.cancel()

    async def _send(self, asked: Asked, upstream_id: bytes) -> Exchange:
        ask = asked.ask.resuming(upstream_id)
        try:
            exchange = await ask.send()
        except OriginError as error:
            asked.counts.connects[type(error).__name__] += 1
            raise
        asked.counts.connects["ok"] += 1
        return exchange

    def _decoder(self, asked: Asked, head: Head) -> Decoder | None:
        """How the answer is read, if it is an event stream to be kept; None where it is to be passed through."""
        is_stream = head.status == 200 and headers.is_event_stream(head.headers) and asked.client.method != "HEAD"
        if not is_stream or asked.relayed:
            return None
        coding = headers.get(head.headers, b"content-encoding")
        decoder = decoding.decoder(coding)
        if decoder is None:
            asked.counts.undecoded += 1
            log.warning("%s: an event stream in the content coding %r cannot be resumed", asked.route.name, coding)
        return decoder

    async def _open_and_deliver(self, asked: Asked, arrived: Arrived, *, status: str, upstream_id: bytes) -> None:
        stream = self._open(asked, arrived, upstream_id=upstream_id)
        signal = b""
        if status == "reset":
            asked.counts.errors["reset"] += 1
            signal = wire.signal("reset", RESET)
        if asked.token is not None:
            asked.counts.resumes[status] += 1
        fields = headers.event_stream_answer(arrived.head.headers, stream.id, status)
        await self._deliver(asked, stream, stream.log.base, fields, signal=signal)

    def _open(self, asked: Asked, arrived: Arrived, *, upstream_id: bytes, base: int = 0, lead: bytes = b"") -> Stream:
        stream = self._streams.open(
            key=asked.key,
            method=asked.client.method,
            route=asked.route.name,
            settings=asked.settings,
            headers=arrived.head.headers,
            base=base,
            upstream_id=upstream_id,
        )
        log.info("stream %.6s: opened by %s on %s", stream.id, asked.client.method, asked.route.name)
        producer = Producer(stream, arrived.exchange, arrived.decoder, clock=self._clock, counts=asked.counts)
        producer.start(lead=lead)
        return stream

    # Delivering

    async def _deliver(self, asked: Asked, stream: Stream, cursor: int, fields: list[Field], *, signal: bytes) -> None:
        client = asked.client
        reader = Reader(client, stream, cursor, dialect=_dialect(asked), clock=self._clock, counts=asked.counts)
        resumes = asked.token is not None and asked.token.stream_id == stream.id
        client.begin(200, fields)
        client.hold(self._opening(asked, reader, resumes=resumes) + signal)
        goes_on = stream.state is State.DORMANT and resumes
        self.readers[reader] = client
        try:
            with self._heart.beating_for(reader):
                await reader.follow(resumed=resumes)
                ending = Ending(stream.final, stream.clean)
                if goes_on and not reader.done:
                    ending = await self._go_on(asked, reader)
        finally:
            del self.readers[reader]
        if not client.gone:
            self._finish(client, reader, ending)

    def _opening(self, asked: Asked, reader: Reader, *, resumes: bool) -> bytes:
        stream, cursor = reader.stream, reader.cursor
        if resumes and asked.token is not None and asked.token.seq == cursor:
            own = suffix(stream.id, asked.token.upstream_id or b"")
        else:
            own = stream.base_suffix if cursor == stream.log.base else stream.id.encode()
        retry = stream.next_retry(resumed=resumes, jitter=random.random())  # noqa: S311 - spreads clients
        return _priming(asked.client, cursor, own) + wire.notice(wire.retry(retry), reader.dialect)

    def _finish(self, client: Client, reader: Reader, ending: Ending) -> None:
        """The terminating chunk says "complete" to every fetch client, so only what is complete gets it."""
        if reader.done:
            client.hold(wire.notice(wire.retry(_later_ms()), reader.dialect))
            client.end()
            return
        client.hold(ending.final)
        if ending.clean or client.client_class is ClientClass.EVENT_SOURCE:
            client.end()
        else:
            client.cut()

    # After a dormant stream

    async def _go_on(self, asked: Asked, reader: Reader) -> Ending:
        """Asks the upstream again on behalf of a client that came back: what an EventSource would do.

        What comes is a new stream in the same answer: no log ever holds events that were fetched with the credentials
        of another client.
        """
        dormant, client = reader.stream, asked.client
        client.flush()
        reader.waiting = True
        answered = await ask_again(
            asked.ask.resuming(dormant.upstream_id),
            retry=dormant.upstream_retry,
            clock=self._clock,
            within=asked.settings.reconnect_timeout,
        )
        reader.waiting = False
        if answered is None:
            return self._lost(asked, LOST)
        exchange, head = answered
        decoder = self._decoder(asked, head)
        if decoder is None:
            exchange.abandon(OriginLost("its answer is no stream"))
            if head.status == 204:
                dormant.complete()
                return Ending(b"", clean=True)
            log.warning("stream %.6s: its upstream answered %d when asked again", dormant.id, head.status)
            dormant.refused = True
            return self._lost(asked, REFUSED)
        lead = b""
        if dormant.may_miss:
            asked.counts.errors["gap"] += 1
            lead = wire.signal("gap", GAP, lost=None)
        arrived = Arrived(exchange, head, decoder)
        stream = self._open(asked, arrived, upstream_id=dormant.upstream_id, base=dormant.log.last, lead=lead)
        reader.switch(stream)
        client.hold(_priming(client, reader.cursor, stream.base_suffix))
        await reader.follow()
        return Ending(stream.final, stream.clean)

    def _lost(self, asked: Asked, message: str) -> Ending:
        asked.counts.errors["upstream-lost"] += 1
        return Ending(wire.signal("upstream-lost", message), clean=False)

    # Not now

    def _limit(self) -> str:
        """The limit that one stream more, with its reader, would be over."""
        if self._streams.active >= self._settings.max_streams:
            return "max_streams"
        return "max_readers" if self._streams.reader_count >= self._settings.max_readers else ""

    def _later(self, asked: Asked, why: str) -> None:
        """ "Try again": a status other than 200 would end a browser's EventSource for good."""
        asked.counts.errors[why] += 1
        log.warning("%s: not now: %s", asked.route.name, why)
        if asked.client.client_class is ClientClass.EVENT_SOURCE:
            self._try_again(asked.client)
        else:
            asked.client.problem(Overloaded, (b"Retry-After", b"%d" % random.randint(2, 5)))  # noqa: S311

    def _unreachable(self, asked: Asked, error: OriginError) -> None:
        log.warning("%s %s: %s", asked.client.method, asked.route.name, error)
        if asked.client.client_class is ClientClass.EVENT_SOURCE or headers.accepts_event_stream(asked.client.headers):
            asked.counts.errors[str(error.status)] += 1
        if asked.client.client_class is ClientClass.EVENT_SOURCE:
            self._try_again(asked.client)
        else:
            asked.counts.passthrough[str(error.status)] += 1
            raise error

    def _try_again(self, client: Client) -> None:
        fields = headers.try_again_answer(client.headers)
        client.begin(200, fields)
        client.hold(wire.notice(wire.retry(_later_ms()), wire.Dialect.BLOCK))
        client.end()

    # Draining

    def dismiss(self, reader: Reader) -> None:
        """Sends an EventSource away at an event boundary: it comes back, to another instance."""
        if self.readers[reader].client_class is ClientClass.EVENT_SOURCE:
            reader.dismiss()


def _dialect(asked: Asked) -> wire.Dialect:
    """Page code often splits on blank lines, unless it is fetch-event-source, which asks as EventSource does."""
    if asked.settings.dialect != "auto":
        return wire.Dialect[asked.settings.dialect.upper()]
    of = asked.client.client_class
    splits = of is ClientClass.PAGE and not headers.accepts_only_event_stream(asked.client.headers)
    return wire.Dialect.BLOCK if splits or of is ClientClass.EVENT_SOURCE else wire.Dialect.LINE


def _priming(client: Client, cursor: int, own: bytes) -> bytes:
    if headers.get(client.headers, b"mcp-protocol-version") == _MCP_WITH_PRIMING:
        return wire.priming(cursor, own, data=True)
    if client.client_class is ClientClass.EVENT_SOURCE:
        return wire.priming(cursor, own, data=False)
    return b""


def _later_ms() -> int:
    return random.randint(2000, 5000)  # noqa: S311 - spreads clients
