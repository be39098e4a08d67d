"""A request, read: which route it is on, the resume token it bears, who asks, and how it would go upstream."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from sse_sidecar import event_id, headers
from sse_sidecar.asking import Ask
from sse_sidecar.config import EVERYONE
from sse_sidecar.errors import NoRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sse_sidecar.config import Network, Route, Settings, StreamSettings
    from sse_sidecar.downstream import Client
    from sse_sidecar.event_id import ResumeToken
    from sse_sidecar.headers import Headers
    from sse_sidecar.metrics import Metrics, RouteMetrics
    from sse_sidecar.origin import Origin
    from sse_sidecar.streams import Stream

TOKEN_PARAMETERS = frozenset({b"last_event_id", b"lastEventId", b"lastEventID"})

# A token in these is another's business: they open no stream, and DELETE ends an MCP session.
_NEVER_RESUMES = frozenset({"HEAD", "OPTIONS", "DELETE", "TRACE"})

# The revision that took resumption out of MCP: closing the response cancels, and Last-Event-ID is ignored.
_MCP_WITHOUT_RESUME = b"2026-07-28"


@dataclass(slots=True)
class Asked:
    """What a client asks. `key` is the fingerprint of who asks and for what: a resume must bear the same."""

    client: Client
    route: Route
    counts: RouteMetrics
    token: ResumeToken | None
    key: bytes
    principal: bytes
    ask: Ask
    relayed: bool
    """Whether even an event stream is passed through as it is."""
    shared: bool
    idempotency_key: bytes | None
    """The fingerprint of a POST's `Idempotency-Key`, where there is a principal that it can belong to."""
    standalone_key: bytes | None
    """That of an MCP session's own stream: a GET without a token."""
    path: bytes
    parameters: list[bytes]
    """Of the query, without those that hold a token."""
    for_stream: bool = False
    """Whether a stream is what is asked for, as far as the request tells, or has been got."""

    def expect_stream(self) -> None:
        """Counts the request among those for a stream, once."""
        self.counts.requests += not self.for_stream
        self.for_stream = True

    @property
    def settings(self) -> StreamSettings:
        return self.route.settings

    @property
    def may_be_repeated(self) -> bool:
        """Whether the request, should a kept connection turn out to be dead, may be sent again (RFC 9112, 9.3.1).

        One for a stream is not: the service is asked once for each.
        """
        safe = self.client.method in ("GET", "HEAD", "OPTIONS")
        return safe and not (self.for_stream or self.ask.has_body or self.ask.upgrades)

    @property
    def upstream_id(self) -> bytes:
        """The last id of the upstream's own that the client has: in its token, or as it was before the sidecar."""
        if self.token is not None:
            return self.token.upstream_id or b""
        return headers.get(self.ask.fields, b"last-event-id") or b""

    @property
    def cancels(self) -> bool:
        """Whether the client wants its upstream ended when it leaves."""
        return headers.get(self.client.headers, b"sse-on-disconnect") == b"cancel"

    @property
    def is_mcp(self) -> bool:
        return headers.get(self.client.headers, b"mcp-protocol-version") is not None


class Reading:
    """Reads the heads of requests. What is no token of ours passes as it came."""

    def __init__(
        self, settings: Settings, metrics: Metrics, *, secret: bytes, origin_of: Callable[[Route], Origin]
    ) -> None:
        self.settings = settings
        self._metrics = metrics
        self._secret = secret
        self._origin_of = origin_of

    def read(self, client: Client) -> Asked:
        """Raises NoRoute."""
        path, _, query = client.target.partition(b"?")
        host = _bare_host(client.host)
        route = self.settings.route(host, path.decode("utf-8", "surrogateescape"), client.method)
        own = route.settings
        if own.upstream is None:
            raise NoRoute
        relayed = _is_mcp_without_resume(client.headers)
        target, token, fields, parameters = client.target, None, client.headers, query.split(b"&")
        if own.ids == "own" and client.method not in _NEVER_RESUMES and not relayed:
            token = _token(fields, parameters)
            fields = _without_token(fields)
            kept = [item for item in parameters if _parameter_token(item) is None]
            if len(kept) < len(parameters):
                parameters = kept
                target = b"?".join([path, *([b"&".join(kept)] if kept else [])])
        alone = relayed or client.has_body or headers.is_upgrade(client.headers)
        shared = own.mode == "shared" and client.method == "GET" and not alone
        principal = self.principal(client.headers, own, shared=shared)
        identity = [*_what(client, path, parameters, own, shared_on=route.name if shared else ""), principal]
        counts = self._metrics.route(route.name)
        named = _host(client, own)
        ask = Ask(
            self._origin_of(route),
            client.method,
            _stripped(target, own.strip_prefix),
            self._fields(client, fields, named),
            counts,
            own_host=named is None,
        )
        asked = Asked(
            client=client,
            route=route,
            counts=counts,
            token=token,
            key=self._fingerprint(*identity),
            principal=principal,
            ask=ask,
            relayed=relayed,
            shared=shared,
            idempotency_key=self._idempotency_key(client, own, identity),
            standalone_key=self._standalone_key(client, identity) if token is None and not relayed else None,
            path=path,
            parameters=parameters,
        )
        if token is not None or (headers.accepts_event_stream(client.headers) and client.method not in _NEVER_RESUMES):
            asked.expect_stream()
        return asked

    def principal(self, fields: Headers, settings: StreamSettings, *, shared: bool) -> bytes:
        """The fingerprint of who asks."""
        return self._fingerprint(*_bound(fields, settings, shared=shared))

    def may_read(self, asked: Asked, stream: Stream) -> bool:
        """Whether a request asks for what `stream` is, and bears the credentials that its own route binds.

        A POST and the GET that resumes it may be on routes with settings of their own.
        """
        principal = self.principal(asked.client.headers, stream.settings, shared=stream.shared)
        shared_on = stream.route if stream.shared else ""
        what = _what(asked.client, asked.path, asked.parameters, stream.settings, shared_on=shared_on)
        return hmac.compare_digest(self._fingerprint(*what, principal), stream.key)

    def with_session(self, asked: Asked, answer: Headers) -> tuple[bytes, bytes]:
        """Key and principal of the stream that `answer` opens.

        The answer to MCP's `initialize` gives the session its id, which its client bears from then on, in a resume of
        this very stream too.
        """
        session = [field for field in answer if field[0].lower() == b"mcp-session-id"]
        if asked.shared or not session or headers.get(asked.client.headers, b"mcp-session-id") is not None:
            return asked.key, asked.principal
        principal = self.principal([*asked.client.headers, *session], asked.settings, shared=False)
        what = _what(asked.client, asked.path, asked.parameters, asked.settings, shared_on="")
        return self._fingerprint(*what, principal), principal

    def _fingerprint(self, *parts: bytes) -> bytes:
        return event_id.fingerprint(self._secret, parts)

    def _idempotency_key(self, client: Client, settings: StreamSettings, what: list[bytes]) -> bytes | None:
        value = headers.get(client.headers, b"idempotency-key")
        if client.method != "POST" or value is None or settings.ids == "keep":
            return None
        # Without credentials anyone could be anyone, and a guessed key would hand out a stranger's answer.
        has_principal = any(_bound(client.headers, settings, shared=False))
        return self._fingerprint(b"idempotency", *what, value) if has_principal else None

    def _standalone_key(self, client: Client, what: list[bytes]) -> bytes | None:
        is_standalone = client.method == "GET" and headers.get(client.headers, b"mcp-session-id") is not None
        return self._fingerprint(b"standalone", *what) if is_standalone else None

    def _fields(self, client: Client, fields: Headers, host: bytes | None) -> list[headers.Field]:
        trusted = _is_in(client.address, self.settings.trust_forwarded)
        hop = headers.Hop(client.address.encode(), client.scheme.encode(), client.host, trusted)
        if not client.http11:  # it knows no upgrade (RFC 9110, section 7.8)
            fields = headers.without(fields, {b"upgrade"})
        return [*headers.to_upstream(fields, hop, host), *_framing(client)]


def _is_mcp_without_resume(fields: Headers) -> bool:
    return (headers.get(fields, b"mcp-protocol-version") or b"") >= _MCP_WITHOUT_RESUME


# The token


def _token(fields: Headers, parameters: list[bytes]) -> ResumeToken | None:
    """The header wins, a foreign one too: the URL of a browser's reconnect still bears its first query."""
    if headers.get(fields, b"sec-fetch-mode") in (b"navigate", b"no-cors"):
        return None
    value = headers.get(fields, b"last-event-id")
    if value is not None:
        return _parsed(value)
    tokens = (_parameter_token(item) for item in parameters)
    return next((token for token in tokens if token is not None), None)


def _without_token(fields: Headers) -> Headers:
    value = headers.get(fields, b"last-event-id")
    return fields if value is None or _parsed(value) is None else headers.without(fields, {b"last-event-id"})


def _parameter_token(item: bytes) -> ResumeToken | None:
    name, _, value = item.partition(b"=")
    return _parsed(unquote_to_bytes(value)) if unquote_to_bytes(name) in TOKEN_PARAMETERS else None


def _parsed(value: bytes) -> ResumeToken | None:
    return event_id.parse(value.decode("latin-1"))


# Who asks, and for what


def _what(
    client: Client, path: bytes, parameters: list[bytes], settings: StreamSettings, *, shared_on: str
) -> list[bytes]:
    """What is asked for, as it goes into the fingerprints; `shared_on` is the route that shares it, if one does."""
    what = [client.host.lower(), path, b"&".join(_fixed(parameters, settings))]
    if shared_on:
        # The answer's CORS headers may bear the origin, and scheme and route may tell the upstream apart.
        origin = headers.get(client.headers, b"origin") or b""
        what += [b"shared", shared_on.encode(), client.scheme.encode(), origin]
    return what


def _fixed(parameters: list[bytes], settings: StreamSettings) -> list[bytes]:
    volatile = {name.encode() for name in settings.volatile_query}
    return [item for item in parameters if unquote_to_bytes(item.partition(b"=")[0]) not in volatile]


def _bound(fields: Headers, settings: StreamSettings, *, shared: bool) -> list[bytes]:
    """The values that make the principal, one for each header or cookie; nothing for one that is not there."""
    names: tuple[str, ...] = settings.bind
    if shared:
        names = (*settings.bind, "cookie") if settings.key_headers is None else settings.key_headers
    cookies = [] if shared else _cookies(fields, settings.bind_cookies)
    return [*(b"\0".join(headers.get_all(fields, name.encode())) for name in names), *cookies]


def _cookies(fields: Headers, names: Iterable[str]) -> list[bytes]:
    pairs = [item.strip() for item in b";".join(headers.get_all(fields, b"cookie")).split(b";")]
    return [b"\0".join(item for item in pairs if item.startswith(name.encode() + b"=")) for name in names]


def _bare_host(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


# How it goes upstream


def _host(client: Client, settings: StreamSettings) -> bytes | None:
    """An app behind http sees the host it saw before; one behind https has a name of its own, and a certificate.

    None where it is the upstream's own, of which there may be several.
    """
    choice = settings.host_header
    if choice == "auto":
        has_own = settings.upstream is not None and settings.upstream[0].tls
        says_none = not client.host and headers.get(client.headers, b"host") is None
        choice = "upstream" if has_own or says_none else "client"
    return {"client": client.host, "upstream": None}.get(choice, choice.encode())


def _stripped(target: bytes, prefix: str) -> bytes:
    """The target without a prefix of whole segments, where it has it."""
    rest = target.removeprefix(prefix.encode())
    if rest == target or rest[:1] not in (b"", b"/", b"?"):
        return target
    return rest if rest.startswith(b"/") else b"/" + rest


def _is_in(address: str, networks: Iterable[Network]) -> bool:
    """Whether the peer is in one of them; who has no address comes over a Unix socket, from this machine."""
    networks = tuple(networks)
    if networks == EVERYONE or not (networks and address):
        return networks == EVERYONE
    peer = ip_address(address.partition("%")[0])
    peer = getattr(peer, "ipv4_mapped", None) or peer
    return any(peer in network for network in networks)


def _framing(client: Client) -> list[headers.Field]:
    """The length as the client gave it, or chunks: a body is never read to find its length."""
    if client.chunked_body:
        return [(b"Transfer-Encoding", b"chunked")]
    # Written anew: with zeros before it some read it as octal.
    lengths = headers.get_all(client.headers, b"content-length")[:1]
    return [(b"Content-Length", b"%d" % int(value)) for value in lengths]
