"""Asks the service whether a client may still have what is held for it.

What the sidecar answers by itself, the service does not see: a session that was revoked meanwhile would go on reading.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from sse_sidecar import event_id, headers
from sse_sidecar.clock import deadline
from sse_sidecar.errors import OriginError, ResponseTimeout

if TYPE_CHECKING:
    from sse_sidecar.asked import Asked
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
    }
)


class Authorizer:
    """Asks `authorize` of a route, with the client's own headers."""

    def __init__(self, clock: Clock, *, secret: bytes) -> None:
        self._clock = clock
        self._secret = secret
        self._known: OrderedDict[bytes, float] = OrderedDict()
        """Those who may, until when."""

    async def allows(self, asked: Asked) -> bool:
        """Whether the service says yes (2xx). Raises an OriginError where it does not say: unreachable, or 5xx."""
        if not asked.settings.authorize:
            return True
        credentials = self._credentials(asked)
        if self._known.get(credentials, 0.0) > self._clock.time():
            return True
        allowed = await self._ask(asked)
        if allowed and asked.settings.authorize_ttl:
            self._remember(credentials, asked.settings.authorize_ttl)
        return allowed

    def _credentials(self, asked: Asked) -> bytes:
        """All that the service could judge by: what is asked, by whom, with which cookies."""
        fields = asked.client.headers
        cookies = [value for name in (b"cookie", b"authorization") for value in headers.get_all(fields, name)]
        return event_id.fingerprint(self._secret, [b"authorize", asked.key, asked.principal, *cookies])

    def _remember(self, credentials: bytes, seconds: float) -> None:
        self._known[credentials] = self._clock.time() + seconds
        self._known.move_to_end(credentials)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    async def _ask(self, asked: Asked) -> bool:
        client, within = asked.client, asked.settings.connect_timeout
        fields = [
            *headers.without(asked.ask.fields, _NOT_ASKED),
            (b"X-Original-Method", client.method.encode()),
            (b"X-Original-URI", client.target),
        ]
        ask = asked.ask._replace(method="GET", target=asked.settings.authorize.encode(), fields=fields)
        try:
            async with deadline(self._clock, within):
                exchange = await ask.send()
                try:
                    status = (await exchange.answer()).status
                finally:
                    exchange.close()
        except TimeoutError:
            raise ResponseTimeout(f"authorize did not answer within {within:g} s") from None
        if status >= 500:
            raise OriginError(f"authorize answered {status}")
        return 200 <= status < 300
