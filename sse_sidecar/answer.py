"""What a client of a stream is sent, from the head to the end."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, NamedTuple

from sse_sidecar import headers, wire
from sse_sidecar.clock import sleep
from sse_sidecar.delivery import Heart, Reader
from sse_sidecar.downstream import ClientClass
from sse_sidecar.errors import AnswerError, Overloaded
from sse_sidecar.event_id import suffix
from sse_sidecar.logs import facts
from sse_sidecar.streams import State, Stream
from sse_sidecar.upstream import GAP, LOST, REFUSED

if TYPE_CHECKING:
    from sse_sidecar.asked import Asked
    from sse_sidecar.clock import Clock, Timer
    from sse_sidecar.downstream import Client
    from sse_sidecar.headers import Field
    from sse_sidecar.opening import Opener
    from sse_sidecar.streams import Streams
    from sse_sidecar.turns import Turns

log = logging.getLogger(__name__)

TO_BE_READ = 0.05
"""Seconds between the last bytes and a cut. Chromium drops what a page has not read yet when a body is cut short:
without this, every second page misses the last events, and the signal that says why there are no more."""

_MCP_WITH_PRIMING = b"2025-11-25"


class Ending(NamedTuple):
    """How an answer ends: with a signal or without, and whether as a whole."""

    final: wire.Signal
    clean: bool


class Answers:
    """Delivers streams, and what follows them."""

    def __init__(self, streams: Streams, opener: Opener, clock: Clock, turns: Turns) -> None:
        self._streams = streams
        self._opener = opener
        self._clock = clock
        self._turns = turns
        self._heart = Heart(clock)
        self._draining = False
        self.readers: dict[Reader, Client] = {}
        """Those who are being delivered to."""

    async def deliver(
        self,
        asked: Asked,
        stream: Stream,
        cursor: int,
        status: str,
        *,
        back_after: int | None = None,
        signal: wire.Signal = wire.NO_SIGNAL,
        cookies: bool = False,
    ) -> None:
        """Answers with what lies after `cursor`, and with what comes, until there is no more.

        `back_after` is the event up to which a client that has come back has everything; `signal` stands before what it
        is sent. `cookies` says whether this is the client whom the upstream answered.
        """
        client = asked.client
        asked.expect_stream()
        client.stream = stream.short
        client.begin(200, _fields(stream, status, cookies=cookies))
        reader = Reader(
            client,
            stream,
            cursor,
            dialect=_dialect(asked),
            clock=self._clock,
            turns=self._turns,
            counts=asked.counts,
        )
        resumes = asked.token is not None and asked.token.stream_id == stream.id
        client.hold(self._opening(asked, reader, resumes=resumes))
        _tell(asked, stream, signal)
        if status != "new" or back_after is not None:
            _log_resume(asked, stream, cursor, status, back_after)
        goes_on = stream.state is State.DORMANT and resumes
        self.readers[reader] = client
        if self._draining:
            self.dismiss(reader)
        rotation = self._rotate(asked, reader, resumes=resumes)
        beat = self._heart.add(reader)
        try:
            await reader.follow(resumed=back_after is not None)
            ending = Ending(stream.final, stream.clean)
            if goes_on and not reader.done:
                ending = await self._go_on(asked, reader)
        finally:
            beat.stop()
            del self.readers[reader]
            reader.stream.on_departure(reader.cursor)
            rotation.cancel() if rotation else None
        if not client.gone:
            await self._finish(asked, reader, ending)

    async def _finish(self, asked: Asked, reader: Reader, ending: Ending) -> None:
        """The terminating chunk says "complete" to every fetch client, so only what is complete gets it."""
        client = asked.client
        if reader.done:
            client.hold(reader.come_back)
            client.end()
            return
        _tell(asked, reader.stream, ending.final)
        if ending.clean or client.client_class is ClientClass.EVENT_SOURCE:
            client.end()
            return
        if client.client_class is ClientClass.PAGE:
            client.flush()
            await sleep(self._clock, TO_BE_READ)
        client.cut()

    def _opening(self, asked: Asked, reader: Reader, *, resumes: bool) -> bytes:
        stream, cursor = reader.stream, reader.cursor
        if asked.settings.ids == "keep":
            return b""
        if resumes and asked.token is not None and asked.token.seq == cursor:
            own = suffix(stream.id, asked.token.upstream_id or b"")
        else:
            own = stream.base_suffix if cursor == stream.log.base else stream.id.encode()
        retry = stream.next_retry(resumed=resumes, jitter=random.random())  # noqa: S311 - spreads clients
        return _priming(asked.client, cursor, own) + wire.notice(wire.retry(retry), reader.dialect)

    def _rotate(self, asked: Asked, reader: Reader, *, resumes: bool) -> Timer | None:
        """Total-duration caps of load balancers are not beaten by heartbeats, only by coming back before them."""
        age = asked.settings.max_connection_age
        comes_back = asked.client.client_class is ClientClass.EVENT_SOURCE or (asked.is_mcp and resumes)
        if not age or not comes_back:
            return None
        return self._clock.call_later(age * random.uniform(0.8, 1.0), reader.dismiss)  # noqa: S311

    def drain(self, within: float) -> None:
        """Sends every EventSource away, spread over so many seconds, and at once those who come from now on."""
        self._draining = True
        for index, reader in enumerate(self.readers):
            self._clock.call_later(within * index / len(self.readers), self.dismiss, reader)

    def dismiss(self, reader: Reader) -> None:
        """Sends an EventSource away: it comes back, to another instance."""
        if reader in self.readers and self.readers[reader].client_class is ClientClass.EVENT_SOURCE:
            reader.dismiss(wire.notice(wire.retry(later_ms()), reader.dialect))

    # After a dormant stream

    async def _go_on(self, asked: Asked, reader: Reader) -> Ending:
        """Goes on for a client that came back to a dormant stream: what an EventSource would do.

        What comes is a new stream in the same answer: no log ever holds events that were fetched with the credentials
        of another client.
        """
        dormant = reader.stream
        asked.client.flush()
        following: Stream | Ending | None = self._shared_now(asked)
        if following is None:
            try:
                async with reader.waiting():
                    following = await self._ask_for_more(asked, reader)
            except TimeoutError:
                return Ending(wire.NO_SIGNAL, clean=True)
        if isinstance(following, Ending):
            return following
        reader.switch(following)
        asked.client.hold(_priming(asked.client, reader.cursor, following.base_suffix))
        _tell(asked, following, _missed_between(dormant, following))
        await reader.follow()
        return Ending(following.final, following.clean)

    def _shared_now(self, asked: Asked) -> Stream | None:
        """The stream that others of a shared route read meanwhile."""
        stream = self._streams.named(asked.key) if asked.shared else None
        return None if stream is None or stream.ended else stream

    async def _ask_for_more(self, asked: Asked, reader: Reader) -> Stream | Ending:
        dormant = reader.stream
        if asked.shared:
            return await self._ask_together(asked, dormant)
        answer = await self._opener.ask_for_more(
            asked, dormant, on_failure=lambda: asked.client.write(wire.notice(wire.WAITING, reader.dialect))
        )
        if answer is None:
            return _lost(LOST)
        if answer.decoder is not None:
            return self._opener.open(asked, answer, after=dormant)
        answer.exchange.close()
        return _refused(dormant, answer.head.status)

    async def _ask_together(self, asked: Asked, dormant: Stream) -> Stream | Ending:
        try:
            outcome = await self._opener.go_on(asked, dormant).outcome()
        except AnswerError:
            return _lost(LOST)
        return outcome if isinstance(outcome, Stream) else _refused(dormant, outcome.head.status)


def _tell(asked: Asked, stream: Stream, signal: wire.Signal) -> None:
    """Puts a signal, if there is one, behind what has been sent."""
    if signal.code:
        asked.client.hold(signal.data)
        asked.counts.failed(signal.code, stream.short)


def _log_resume(asked: Asked, stream: Stream, cursor: int, status: str, back_after: int | None) -> None:
    away = None if back_after is None else stream.on_return(back_after)
    log.info(
        "stream resumed",
        extra=facts(
            route=asked.route.name,
            stream=stream.short,
            status=status,
            seq=cursor,
            replay=stream.log.last - cursor,
            lost=cursor - back_after if back_after is not None and cursor > back_after >= stream.log.base else None,
            away_ms=None if away is None else round(away * 1000),
            readers=len(stream.readers) + 1,
        ),
    )


def _refused(dormant: Stream, status: int) -> Ending:
    if status == 204:
        dormant.complete()
        return Ending(wire.NO_SIGNAL, clean=True)
    log.warning("stream: its upstream answered %d when asked again", status, extra=facts(stream=dormant.short))
    dormant.refused = True
    return _lost(REFUSED)


def _missed_between(dormant: Stream, following: Stream) -> wire.Signal:
    """The signal to one who joins a stream that others opened, and that did not begin where the dormant one ended."""
    goes_on = following.follows == dormant.id or following.asked_after == dormant.upstream_id
    if following.follows == dormant.id or (goes_on and not dormant.may_miss):
        return wire.NO_SIGNAL
    return GAP


def over(client: Client, stream: Stream) -> None:
    """Nothing more will come. 204 stops a browser's EventSource; fetch clients in a page fail on a missing body."""
    fields = _fields(stream, "resumed", cookies=False)
    if client.method == "GET" and client.client_class is not ClientClass.PAGE:
        client.respond(204, fields)
    else:
        client.begin(200, fields)
        client.end()


def later(asked: Asked, why: str) -> None:
    """To be tried again: a status other than 200 would end a browser's EventSource for good."""
    asked.counts.failed(why)
    log.warning("request put off", extra=facts(route=asked.route.name, cause=why))
    if asked.client.client_class is ClientClass.EVENT_SOURCE:
        try_again(asked.client)
    else:
        asked.client.problem(Overloaded, (b"Retry-After", b"%d" % random.randint(2, 5)))  # noqa: S311


def try_again(client: Client) -> None:
    client.begin(200, headers.try_again_answer(client.headers))
    client.hold(wire.notice(wire.retry(later_ms()), wire.Dialect.BLOCK))
    client.end()


def later_ms() -> int:
    return random.randint(2000, 5000)  # noqa: S311 - spreads clients


def _fields(stream: Stream, status: str, *, cookies: bool) -> list[Field]:
    if stream.settings.ids == "keep":
        return headers.unbuffered(stream.headers)
    of = stream.headers if cookies else headers.without_cookies(stream.headers)
    return headers.event_stream_answer(of, stream.id, status)


def _lost(message: str) -> Ending:
    return Ending(wire.signal("upstream-lost", message), clean=False)


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
