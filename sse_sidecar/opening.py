"""Opening streams: an upstream is asked, and what it answers becomes a stream.

Where several clients wait for one upstream request, on a shared route or with one `Idempotency-Key`, that request is a
task of its own, which outlives the client who came first.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, NamedTuple

from sse_sidecar import asking, passthrough
from sse_sidecar.clock import spawn
from sse_sidecar.errors import AnswerError, BadResponse, OriginLost
from sse_sidecar.logs import facts
from sse_sidecar.streams import Opening, Stream
from sse_sidecar.unread import Unread
from sse_sidecar.upstream import Producer

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.asked import Asked, Reading
    from sse_sidecar.asking import Arrived
    from sse_sidecar.clock import Clock
    from sse_sidecar.downstream import Client
    from sse_sidecar.exchange import Exchange, Head
    from sse_sidecar.streams import Streams

log = logging.getLogger(__name__)

_GRACE = 1.0
"""Seconds in which a client that waited takes up its stream, where its leaving would end it at once."""

MAX_REFUSAL = 1 << 20
"""Bytes of an answer that is no stream, which several clients are given."""


class Refusal(NamedTuple):
    """An upstream's answer that is no stream, for all who waited for one."""

    head: Head
    body: bytes


class Joint:
    """One upstream request that several clients wait for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Stream | Refusal | Arrived] = loop.create_future()
        self.digest: asyncio.Future[bytes] = loop.create_future()
        """Of the body of the one who came first, once it is whole; nothing where it never was."""
        self._left = False

    async def outcome(self) -> Stream | Refusal | Arrived:
        """A stream or a refusal is for all; another answer is only for the one who came first. Raises AnswerError."""
        return await asyncio.shield(self._outcome)

    def leave(self) -> None:
        """The one who came first has left, or has been answered."""
        self._left = True
        if self._outcome.done() and not self._outcome.exception():
            self._close(self._outcome.result())

    def settle(self, outcome: Stream | Refusal | Arrived) -> None:
        self._outcome.set_result(outcome)
        if self._left:
            self._close(outcome)

    def fail(self, error: AnswerError) -> None:
        self._outcome.set_exception(error)
        self._outcome.exception()  # perhaps no one waits any more

    def _close(self, outcome: Stream | Refusal | Arrived) -> None:
        if not isinstance(outcome, Stream | Refusal):
            outcome.exchange.abandon(OriginLost("the client left, or has been answered"))


class Opener:
    """Asks upstreams on behalf of requests, and opens streams of what they answer."""

    def __init__(self, streams: Streams, reading: Reading, clock: Clock) -> None:
        self._streams = streams
        self._reading = reading
        self._clock = clock
        self._joints: dict[bytes, Joint] = {}
        self._unread: dict[str, Unread] = {}

    def open(self, asked: Asked, arrived: Arrived, *, after: Stream | None = None) -> Stream:
        """A stream of what has arrived, its producer at work. `after` is the dormant one that it follows."""
        key, principal = self._reading.with_session(asked, arrived.head.headers)
        opening = Opening(
            key=key,
            principal=principal,
            method="GET" if after else asked.client.method,
            route=asked.route.name,
            settings=asked.settings,
            headers=arrived.head.headers,
            shared=asked.shared,
            base=after.log.last if after else 0,
            upstream_id=after.upstream_id if after else asked.upstream_id,
            gives_ids=after.gives_ids if after else asked.token is not None and bool(asked.token.upstream_id),
            follows=after.id if after else "",
        )
        stream = self._streams.open(opening)
        stream.cancels = asked.cancels and not asked.shared
        for name in (asked.key if asked.shared else None, asked.standalone_key):
            if name is not None:
                self._streams.name(stream, name)
        log.info(
            "stream opened",
            extra=facts(
                route=asked.route.name,
                stream=stream.short,
                method=asked.client.method,
                seq=stream.log.base,
                follows=after.short if after else None,
            ),
        )
        ask = asked.ask.as_get() if after and not after.repeatable else asked.ask
        Producer(stream, ask, clock=self._clock, unread=self._unread_of(asked)).start(
            arrived, hole=after is not None and after.may_miss
        )
        return stream

    def _unread_of(self, asked: Asked) -> Unread:
        limit = asked.settings.max_unread
        unread = self._unread.setdefault(asked.route.name, Unread(self._clock, limit))
        unread.limit = limit  # which may have been read again
        return unread

    # Together

    def join(self, asked: Asked, key: bytes, *, admit: Callable[[], None]) -> tuple[Joint, bool]:
        """The request that is under way for `key`; begun now where there is none, which is said beside it.

        `admit` raises an AnswerError where there is no room for a stream when one comes.
        """
        joint = self._joints.get(key)
        if joint is not None:
            return joint, False
        joint = self._joints[key] = Joint()
        spawn(self._run(asked, key, joint, admit), name="joint request")
        return joint, True

    def go_on(self, asked: Asked, dormant: Stream) -> Joint:
        """The request that goes on for a dormant stream of a shared route, for all who came back to it."""
        joint = self._joints.get(asked.key)
        if joint is None:
            joint = self._joints[asked.key] = Joint()
            spawn(self._run_again(asked, dormant, joint), name="joint request")
        return joint

    async def _run_again(self, asked: Asked, dormant: Stream, joint: Joint) -> None:
        try:
            answer = await self.ask_for_more(asked, dormant, on_failure=lambda: None)
            if answer is None:
                joint.fail(OriginLost("it did not come back"))
            elif answer.decoder is None:
                joint.settle(answer)
                joint.leave()
            else:
                stream = self.open(asked, answer, after=dormant)
                self._expect_readers(stream)
                joint.settle(stream)
        finally:
            del self._joints[asked.key]

    async def ask_for_more(self, asked: Asked, dormant: Stream, *, on_failure: Callable[[], None]) -> Arrived | None:
        """What the upstream answers when it is asked to go on after a dormant stream; None where it does not."""
        ask = asked.ask if dormant.repeatable else asked.ask.as_get()
        return await asking.ask_again(
            ask.resuming(dormant.upstream_id),
            retry=dormant.upstream_retry,
            clock=self._clock,
            within=asked.settings.reconnect_timeout,
            at_once=True,
            on_failure=on_failure,
        )

    async def _run(self, asked: Asked, key: bytes, joint: Joint, admit: Callable[[], None]) -> None:
        exchange = None
        try:
            exchange = await asked.ask.resuming(asked.upstream_id).send()
            self._upload(asked.client, exchange, joint)
            arrived = asking.arrived(asked.ask, exchange, await exchange.answer())
            outcome: Stream | Refusal | Arrived = arrived
            if arrived.decoder is not None:
                admit()
                outcome = self._open_named(asked, arrived, key, joint)
            elif asked.shared and arrived.head.status >= 400:
                outcome = Refusal(arrived.head, await _whole(exchange))
        except AnswerError as error:
            if exchange:
                exchange.abandon(OriginLost(error))
            joint.fail(error.with_traceback(None))  # the frame here holds the joint, and the joint the error: a cycle
        else:
            joint.settle(outcome)
        finally:
            del self._joints[key]

    def _upload(self, client: Client, exchange: Exchange, joint: Joint) -> None:
        if client.has_body:
            spawn(_upload_hashed(client, exchange, joint), name="upload")
        else:
            joint.digest.set_result(hashlib.blake2b().digest())

    def _open_named(self, asked: Asked, arrived: Arrived, key: bytes, joint: Joint) -> Stream:
        stream = self.open(asked, arrived)
        if not asked.shared:
            stream.request_digest = joint.digest
            self._streams.name(stream, key)
        self._expect_readers(stream)
        return stream

    def _expect_readers(self, stream: Stream) -> None:
        """Those who waited for it may all have left."""
        if stream.producer:
            stream.producer.on_unread(at_least=_GRACE)


async def _upload_hashed(client: Client, exchange: Exchange, joint: Joint) -> None:
    hasher = hashlib.blake2b()
    whole = await passthrough.upload(client, exchange, on_part=hasher.update)
    joint.digest.set_result(hasher.digest() if whole else b"")


async def is_same_body(client: Client, stream: Stream) -> bool:
    """Whether a repeated request bears the body of the one that opened the stream; it is read to its end."""
    hasher = hashlib.blake2b()
    async for part in client.body():
        hasher.update(part)
    return stream.request_digest is not None and hasher.digest() == await asyncio.shield(stream.request_digest)


async def _whole(exchange: Exchange) -> bytes:
    parts = []
    length = 0
    while part := await exchange.read():
        length += len(part)
        parts.append(part)
        if length > MAX_REFUSAL:
            raise BadResponse(f"an error of more than {MAX_REFUSAL} bytes")
    return b"".join(parts)
