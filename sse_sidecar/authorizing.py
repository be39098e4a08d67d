"""Asks the service whether a client may still have what is held for it.

What the sidecar answers by itself, the service does not see: a session that was revoked meanwhile would go on reading.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING

from sse_sidecar import event_id, headers
from sse_sidecar.clock import deadline
from sse_sidecar.errors import OriginError, ResponseTimeout

if TYPE_CHECKING:
    from sse_sidecar.asked import Asked
    from sse_sidecar.asking import Ask
    from sse_sidecar.clock import Clock

MAX_KNOWN = 10_000
"""Answers that are remembered, of all routes together."""

# What would make the answer one about a body, a part of it or another version of it.
_NOT_ASKED = frozenset(
    {
        b"accept",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"last-event-id",
        b"range",
        b"transfer-encoding",
        # These say what is asked about: a client's own would be read before ours.
        b"x-original-method",
        b"x-original-uri",
    }
)


class Authorizer:
    """Asks `authorize` of a route, with the client's own headers."""

    def __init__(self, clock: Clock, *, secret: bytes) -> None:
        self._clock = clock
        self._secret = secret
        self._known: OrderedDict[bytes, float] = OrderedDict()
        """Questions, to the last header, that were answered with a yes; until when it holds for the same one."""

    async def allows(self, asked: Asked) -> bool:
        """Whether the service says yes (2xx). Raises an OriginError where it does not say: unreachable, or 5xx."""
        if not asked.settings.authorize:
            return True
        question = _question(asked)
        key = event_id.fingerprint(self._secret, [question.target, *chain.from_iterable(question.fields)])
        if self._known.get(key, 0.0) > self._clock.time():
            return True
        allowed = await self._ask(question, within=asked.settings.connect_timeout)
        if allowed and asked.settings.authorize_ttl:
            self._remember(key, asked.settings.authorize_ttl)
        return allowed

    def _remember(self, key: bytes, seconds: float) -> None:
        self._known[key] = self._clock.time() + seconds
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    async def _ask(self, question: Ask, *, within: float) -> bool:
        try:
            async with deadline(self._clock, within):
                exchange = await question.send()
                try:
                    status = (await exchange.answer()).status
                finally:
                    exchange.close()
        except TimeoutError:
            raise ResponseTimeout(f"authorize did not answer within {within:g} s") from None
        if status >= 500:
            raise OriginError(f"authorize answered {status}")
        return 200 <= status < 300


def _question(asked: Asked) -> Ask:
    client = asked.client
    fields = [
        *headers.without(asked.ask.fields, _NOT_ASKED),
        (b"X-Original-Method", client.method.encode()),
        (b"X-Original-URI", client.target),
    ]
    return asked.ask._replace(method="GET", target=asked.settings.authorize.encode(), fields=fields)
