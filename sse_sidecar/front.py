"""What a request gets: resumed, joined to a stream, a new one, or passed through."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sse_sidecar import answer, asking, headers, passthrough, tunnel, wire
from sse_sidecar.answer import Answers
from sse_sidecar.asked import Reading
from sse_sidecar.authorizing import Authorizer
from sse_sidecar.clock import spawn
from sse_sidecar.control import Control
from sse_sidecar.downstream import ClientClass
from sse_sidecar.errors import (
    AnswerError,
    BadRequest,
    ClientLeft,
    KeyReused,
    NotSupported,
    OriginError,
    OriginLost,
    OverLimit,
    Stale,
    StreamGone,
)
from sse_sidecar.history import Found
from sse_sidecar.logs import facts
from sse_sidecar.opening import Opener, Refusal, is_same_body
from sse_sidecar.origin import Origin
from sse_sidecar.streams import State, Stream
from sse_sidecar.tls import client_context
from sse_sidecar.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_sidecar.asked import Asked
    from sse_sidecar.asking import Arrived
    from sse_sidecar.clock import Clock
    from sse_sidecar.config import Route, Settings
    from sse_sidecar.downstream import Client
    from sse_sidecar.event_id import ResumeToken
    from sse_sidecar.history import Position
    from sse_sidecar.metrics import Metrics
    from sse_sidecar.streams import Streams

log = logging.getLogger(__name__)

_RESET = (
    "The stream that this Last-Event-ID names is no longer held; this is a new one, and events may be lost between."
)
RESET = wire.signal("reset", _RESET)
TRIMMED = "Events were asked for that are no longer held; the next one comes after them."


class Front:
    """Answers requests."""

    def __init__(self, settings: Settings, streams: Streams, clock: Clock, metrics: Metrics, *, secret: bytes) -> None:
        self._streams = streams
        self._clock = clock
        self._origins: dict[int, Origin] = {}
        self._reading = Reading(settings, metrics, secret=secret, origin_of=lambda route: self._origins[id(route)])
        self.reload(settings)
        self._authorizer = Authorizer(clock, secret=secret)
        self._opener = Opener(streams, self._reading, clock)
        self._turns = Turns()
        self.answers = Answers(streams, self._opener, clock, self._turns)
        self.draining = False
        self.unanswered = 0
        """Requests that are being answered, streams and tunnels included."""
        self.idle = asyncio.Event()
        """Set while no request is being answered."""
        self.idle.set()

    def reload(self, settings: Settings) -> None:
        """From now on requests are answered by these settings; streams keep those that they were opened with.

        Raises ConfigError, and changes nothing then.
        """
        origins = {id(route): self._make_origin(route) for route in settings.routes}
        self.close()
        self._settings, self._reading.settings, self._origins = settings, settings, origins
        self._control = Control(settings, self._streams, self._reading)

    def close(self) -> None:
        """Lets go of connections that no request uses."""
        for origin in self._origins.values():
            origin.close()

    def _make_origin(self, route: Route) -> Origin:
        own = route.settings
        upstreams = own.upstream or ()
        return Origin(
            upstreams,
            self._clock,
            connect_timeout=own.connect_timeout,
            response_timeout=own.response_timeout,
            keepalive=own.upstream_keepalive,
            tls=client_context(own) if any(upstream.tls for upstream in upstreams) else None,
        )

    async def handle(self, client: Client) -> None:
        """Answers one request. Raises an AnswerError where the answer is a problem document."""
        await self._turns.take()
        if client.method == "CONNECT":
            raise NotSupported
        client.cors = self._control.cors(client)
        if self._control.owns(client):
            self._control.handle(client)
            return
        asked = self._reading.read(client)
        client.route = asked.route.name
        if self.draining:
            answer.later(asked, "draining")
            return
        with self._being_answered(), _errors_counted(asked):
            await self._answer_or_put_off(asked)

    @contextmanager
    def _being_answered(self) -> Iterator[None]:
        self.unanswered += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.unanswered -= 1
            if not self.unanswered:
                self.idle.set()

    async def _answer_or_put_off(self, asked: Asked) -> None:
        try:
            await self._answer(asked)
        except OverLimit as error:
            answer.later(asked, error.limit)
        except ClientLeft:
            raise
        except OriginError as error:
            self._unreachable(asked, error)

    async def _answer(self, asked: Asked) -> None:
        if asked.token is None:
            await self._start(asked)
            return
        found = self._find(asked, asked.token)
        if found is not None and asked.settings.authorize:
            found = self._find(asked, asked.token) if await self._authorizer.allows(asked) else None
        if found is not None:
            await self._resume(asked, *found)
        elif not asked.token.repeatable:
            raise _gone(asked)
        elif asked.shared:
            await self._share(asked)
        else:
            # Asked by its own id, the upstream goes on where it was: nothing is lost, and nothing need be said.
            await self._ask_upstream(asked, status="new" if asked.token.upstream_id else "reset")

    async def _start(self, asked: Asked) -> None:
        taken_over = self._left_behind(asked)
        if taken_over is not None and asked.settings.authorize:
            taken_over = self._left_behind(asked) if await self._authorizer.allows(asked) else None
        if taken_over is not None:
            # The upstream would refuse a second GET of this session while the first is kept open for it.
            at = taken_over.log.find(taken_over.written)
            await self._deliver(asked, taken_over, at, "resumed", back_after=taken_over.written)
        elif asked.shared:
            await self._share(asked)
        elif asked.idempotency_key is not None:
            await self._keyed(asked, asked.idempotency_key)
        else:
            await self._ask_upstream(asked)

    def _left_behind(self, asked: Asked) -> Stream | None:
        """The stream of an MCP session that its next standalone GET goes on with."""
        stream = self._streams.named(asked.standalone_key) if asked.standalone_key else None
        return None if stream is None or stream.ended or stream.readers else stream

    # With a token

    def _find(self, asked: Asked, token: ResumeToken) -> tuple[Stream, Position] | None:
        """The stream that the token names, for those who may have it, and where in it the client stands."""
        stream = self._streams.find(token.stream_id)
        if stream is None or asked.client.method not in ("GET", stream.method):
            return None
        if not self._reading.may_read(asked, stream):
            return None
        position = stream.log.find(token.seq)
        past_refusal = stream.refused and position.found is Found.AT_END
        return None if position.found is Found.BEYOND or past_refusal else (stream, position)

    async def _resume(self, asked: Asked, stream: Stream, position: Position) -> None:
        if position.found is Found.AT_END and stream.state is State.COMPLETE:
            asked.counts.resumes["over"] += 1
            answer.over(asked.client, stream)
        elif position.found is Found.AT_END and stream.state is State.BROKEN:
            raise _gone(asked)
        else:
            # What a dormant stream goes on with may follow a hole as well, when that is all there is to come.
            hole_next = stream.state is State.DORMANT and stream.may_miss and position.found is Found.AT_END
            hole_next = hole_next or position.cursor + 1 in (stream.holes or ())
            after = asked.token.seq if asked.token else 0
            with _body_dropped(asked.client):
                await self._deliver(asked, stream, position, "gap" if hole_next else "resumed", back_after=after)

    async def _deliver(
        self, asked: Asked, stream: Stream, position: Position, status: str, *, back_after: int | None = None
    ) -> None:
        """Sends a stream that is here from `position` on, and says what of it is not held any more.

        `back_after` is the event up to which a client that read it before has everything.
        """
        self._admit(stream)
        signal = RESET if status == "reset" else wire.NO_SIGNAL
        if position.found is Found.GAP:
            asked.counts.lost += position.lost
            status, signal = "gap", wire.signal("gap", TRIMMED, lost=position.lost)
        if status != "new":
            asked.counts.resumes[status] += 1
        if asked.cancels and not stream.shared:
            stream.cancels = True
        await self.answers.deliver(asked, stream, position.cursor, status, back_after=back_after, signal=signal)

    # Without one, alone

    async def _ask_upstream(self, asked: Asked, *, status: str = "new") -> None:
        """Sends the request upstream, and opens a stream or passes through what comes."""
        self._admit_asking(asked)
        try:
            await self._ask_over(asked, status, kept=asked.may_be_repeated)
        except Stale:
            await self._ask_over(asked, status, kept=False)

    async def _ask_over(self, asked: Asked, status: str, *, kept: bool) -> None:
        """The same, over a connection that was `kept` or another. Raises Stale."""
        client = asked.client
        exchange = await asked.ask.resuming(asked.upstream_id).send(kept=kept)
        exchange.on_interim = lambda head: client.interim(head.status, headers.end_to_end(head.headers))
        uploading = spawn(passthrough.upload(client, exchange), name="upload") if client.has_body else None
        kept = False
        try:
            arrived = asking.arrived(asked.ask, exchange, await exchange.answer())
            if arrived.decoder is None or asked.relayed:
                await self._relay(asked, arrived)
            else:
                self._admit()
                kept = True
                stream = self._opener.open(asked, arrived)
                await self._deliver_first(asked, stream, status)
        finally:
            if not kept or (uploading and not uploading.done()):
                exchange.abandon(OriginLost("the client left, or all is done"))
            if uploading:
                uploading.cancel()

    async def _deliver_first(self, asked: Asked, stream: Stream, status: str) -> None:
        """Sends a stream to the client whose request opened it."""
        signal = RESET if status == "reset" else wire.NO_SIGNAL
        if asked.token is not None:
            asked.counts.resumes[status] += 1
        await self.answers.deliver(asked, stream, stream.log.base, status, signal=signal, cookies=True)

    async def _relay(self, asked: Asked, arrived: Arrived) -> None:
        _count_passthrough(asked, arrived.head.status)
        relay = tunnel.relay if arrived.head.status == 101 else passthrough.relay
        await relay(asked.client, arrived.exchange, arrived.head)

    # Without one, together

    async def _share(self, asked: Asked) -> None:
        """Joins the live stream of a shared route, or opens it for all who come meanwhile."""
        stream = self._streams.named(asked.key)
        if stream is not None and not stream.ended and asked.settings.authorize:
            if not await self._authorizer.allows(asked):
                await self._ask_upstream(asked)
                return
            stream = self._streams.named(asked.key)
        if stream is not None and not stream.ended:
            at = stream.log.last if asked.settings.join == "live" else 0
            await self._deliver(asked, stream, stream.log.find(at), _joined(asked, stream))
        else:
            await self._ask_together(asked, asked.key)

    async def _keyed(self, asked: Asked, key: bytes) -> None:
        """A POST that says which it is: the second one gets the stream of the first."""
        stream = self._streams.named(key)
        if stream is not None and await self._authorizer.allows(asked):
            await self._repeat(asked, stream)
        else:
            await self._ask_together(asked, key)

    async def _repeat(self, asked: Asked, stream: Stream) -> None:
        if not await is_same_body(asked.client, stream):
            raise KeyReused
        await self._deliver(asked, stream, stream.log.find(0), "resumed", back_after=0)

    async def _ask_together(self, asked: Asked, key: bytes) -> None:
        self._admit_asking(asked)
        joint, first = self._opener.join(asked, key, admit=self._admit)
        try:
            await self._answer_together(asked, await joint.outcome(), first=first)
        except (ClientLeft, BadRequest):
            if first or asked.client.begun:
                raise
            await self._start(asked)  # what was wrong was the other one's request
        finally:
            if first:
                joint.leave()

    async def _answer_together(self, asked: Asked, outcome: Stream | Refusal | Arrived, *, first: bool) -> None:
        if isinstance(outcome, Stream):
            await self._deliver_together(asked, outcome, first=first)
        elif isinstance(outcome, Refusal):
            _count_passthrough(asked, outcome.head.status)
            passthrough.refuse(asked.client, outcome.head, outcome.body, cookies=first)
        elif first:
            await self._relay(asked, outcome)
        elif asked.shared:
            await self._ask_upstream(asked)
        else:
            await self._start(asked)

    async def _deliver_together(self, asked: Asked, stream: Stream, *, first: bool) -> None:
        if first:
            self._admit_first(stream)
            await self._deliver_first(asked, stream, _joined(asked, stream))
        elif asked.shared:
            # Whoever waited for the head was there when the stream began.
            await self._deliver(asked, stream, stream.log.find(0), _joined(asked, stream))
        else:
            await self._repeat(asked, stream)

    # Not now

    def _admit(self, stream: Stream | None = None) -> None:
        """Raises OverLimit where one reader more is too much, of this stream or, without one, of a new one."""
        is_active = stream is not None and (stream.readers or not stream.ended)
        if not is_active and self._streams.active >= self._settings.max_streams:
            raise OverLimit("max_streams")
        if len(self.answers.readers) >= self._settings.max_readers:
            raise OverLimit("max_readers")

    def _admit_first(self, stream: Stream) -> None:
        """The same for the client whose request opened a stream that others may have joined meanwhile."""
        try:
            self._admit(stream)
        except OverLimit:
            if stream.producer and not stream.readers:
                stream.producer.give_up()
            raise

    def _admit_asking(self, asked: Asked) -> None:
        """The same before the upstream is asked, where a stream is what is asked for."""
        if headers.accepts_event_stream(asked.client.headers):
            self._admit()

    def _unreachable(self, asked: Asked, error: OriginError) -> None:
        log.warning("no answer", extra=facts(route=asked.route.name, method=asked.client.method, cause=str(error)))
        if asked.client.client_class is ClientClass.EVENT_SOURCE:
            _count(asked, str(error.status))
            answer.try_again(asked.client)
        else:
            asked.counts.passthrough[str(error.status)] += 1
            raise error


def _gone(asked: Asked) -> StreamGone:
    asked.counts.resumes["gone"] += 1
    return StreamGone()


@contextmanager
def _errors_counted(asked: Asked) -> Iterator[None]:
    """Counts what the client is answered with where it is not answered with what it asked for."""
    try:
        yield
    except (ClientLeft, OSError):
        raise
    except StreamGone:
        _count(asked, "gone")
        raise
    except AnswerError as error:
        _count(asked, str(error.status))
        raise
    except Exception:
        _count(asked, str(AnswerError.status))
        raise


def _count(asked: Asked, code: str) -> None:
    """An error that the client is answered with, where a stream is what it wanted."""
    if asked.for_stream:
        asked.counts.failed(code)


def _count_passthrough(asked: Asked, status: int) -> None:
    asked.counts.passthrough[str(status)] += 1
    if status >= 400:
        _count(asked, str(status))


def _joined(asked: Asked, stream: Stream) -> str:
    """The status of one who comes to a shared stream; one whose own is gone may miss what was between."""
    token = asked.token
    goes_on = token is None or (token.upstream_id is not None and token.upstream_id == stream.asked_after)
    return "new" if goes_on else "reset"


@contextmanager
def _body_dropped(client: Client) -> Iterator[None]:
    """Takes the body of a repeated request while it is answered: unread, it would hide the client's leaving."""
    dropping = spawn(passthrough.drop_body(client), name="drop body") if client.has_body else None
    try:
        yield
    finally:
        if dropping:
            dropping.cancel()
