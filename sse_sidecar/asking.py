"""A request as the upstream gets it, and asking until there is an answer."""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from sse_sidecar import decoding, headers
from sse_sidecar.clock import deadline, sleep
from sse_sidecar.errors import OriginError
from sse_sidecar.exchange import Exchange, Head, request_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sse_sidecar.clock import Clock
    from sse_sidecar.decoding import Decoder
    from sse_sidecar.headers import Field
    from sse_sidecar.metrics import RouteMetrics
    from sse_sidecar.origin import Origin

log = logging.getLogger(__name__)

MAX_BACKOFF = 5.0
_LEAST_BACKOFF = 0.1  # an upstream may say `retry: 0`


class Ask(NamedTuple):
    """A request but for its body."""

    origin: Origin
    method: str
    target: bytes
    fields: list[Field]
    counts: RouteMetrics
    own_host: bool = False
    """Whether the upstream is asked by its own name; then `fields` have no `Host`."""

    def resuming(self, upstream_id: bytes) -> Ask:
        """The same, asking for what comes after `upstream_id`, where there is one."""
        if headers.get(self.fields, b"last-event-id") == upstream_id:
            return self
        added = [(b"Last-Event-ID", upstream_id)] if upstream_id else []
        return self._replace(fields=[*headers.without(self.fields, {b"last-event-id"}), *added])

    def as_get(self) -> Ask:
        """The way to resume what was asked otherwise (MCP Streamable HTTP, "Resumability and Redelivery")."""
        body = {b"content-length", b"content-type", b"transfer-encoding", b"accept"}
        return self._replace(
            method="GET", fields=[*headers.without(self.fields, body), (b"Accept", headers.EVENT_STREAM)]
        )

    async def send(self, *, kept: bool = False) -> Exchange:
        """Connects and sends the head; with `kept` over a connection that was used before. Raises an OriginError."""
        exchange = await self.origin.connect(kept=kept, on_result=self.counts.connected)
        fields = [(b"Host", exchange.authority), *self.fields] if self.own_host else self.fields
        exchange.send(
            request_head(self.method, self.target, fields), expects_body=self.method != "HEAD", upgrades=self.upgrades
        )
        if not self.has_body:
            exchange.request_ended()
        return exchange

    @property
    def upgrades(self) -> bool:
        return headers.get(self.fields, b"upgrade") is not None

    @property
    def has_body(self) -> bool:
        return any(headers.get(self.fields, name) is not None for name in (b"content-length", b"transfer-encoding"))


class Arrived(NamedTuple):
    """An answer of the upstream. `decoder` is None where it is no event stream that can be kept."""

    exchange: Exchange
    head: Head
    decoder: Decoder | None


def arrived(ask: Ask, exchange: Exchange, head: Head) -> Arrived:
    is_stream = head.status == 200 and headers.is_event_stream(head.headers) and ask.method != "HEAD"
    if not is_stream:
        return Arrived(exchange, head, None)
    coding = b", ".join(headers.get_all(head.headers, b"content-encoding")) or None
    decoder = decoding.decoder(coding)
    if decoder is None:
        ask.counts.undecoded += 1
        log.warning("an event stream in the content coding %r cannot be resumed", coding)
    return Arrived(exchange, head, decoder)


def backoff(retry: bytes | None) -> Iterator[float]:
    """Seconds between attempts: the upstream's `retry` or 1 s, doubled to 5 s, with jitter."""
    delay = int(retry) / 1000 if retry else 1.0
    while True:
        yield delay + random.random() / 10  # noqa: S311 - spreads clients
        delay = max(delay, min(max(delay, _LEAST_BACKOFF) * 2, MAX_BACKOFF))


async def ask_again(
    ask: Ask, *, retry: bytes | None, clock: Clock, within: float, at_once: bool, on_failure: Callable[[], None]
) -> Arrived | None:
    """Asks until there is an answer that is no failure of the upstream's own; None after `within` seconds.

    `at_once`, where there has been a pause already; an upstream that drops each connection is not asked without one.
    """
    delays = backoff(retry)
    with suppress(TimeoutError):
        async with deadline(clock, within):
            if not at_once:
                await sleep(clock, next(delays))
            for delay in delays:
                answer = await _ask_once(ask)
                if answer is not None:
                    return answer
                on_failure()
                await sleep(clock, delay)
    return None


async def _ask_once(ask: Ask) -> Arrived | None:
    exchange = None
    try:
        exchange = await ask.send()
        head = await exchange.answer()
        if head.status < 500:
            answer, exchange = arrived(ask, exchange, head), None
            return answer
        log.info("asked again, the upstream answered %d", head.status)
    except OriginError as error:
        log.info("asked again: %s", error)
    finally:
        if exchange is not None:
            exchange.close()
    return None
