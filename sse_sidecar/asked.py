"""A request, read: which route it is on, the resume token it bears, who asks, and how it would go upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from sse_sidecar import event_id, headers
from sse_sidecar.upstream import Ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sse_sidecar.config import Route, Settings, StreamSettings
    from sse_sidecar.downstream import Client
    from sse_sidecar.event_id import ResumeToken
    from sse_sidecar.headers import Headers
    from sse_sidecar.metrics import Metrics, RouteMetrics
    from sse_sidecar.origin import Origin

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
    ask: Ask
    relayed: bool
    """Whether even an event stream is passed through as it is."""

    @property
    def settings(self) -> StreamSettings:
        return self.route.settings


def read(
    client: Client, settings: Settings, metrics: Metrics, *, secret: bytes, origin_of: Callable[[Route], Origin]
) -> Asked:
    """Reads a request's head. Never fails: what is no token of ours passes as it came."""
    path, _, query = client.target.partition(b"?")
    route = settings.route(_bare_host(client.host), path.decode("utf-8", "surrogateescape"), client.method)
    relayed = _is_mcp_without_resume(client.headers)
    resumable = client.method not in _NEVER_RESUMES and not relayed
    target, token, fields = client.target, None, client.headers
    parameters = query.split(b"&")
    if resumable:
        token = _token(fields, parameters)
        fields = _without_token(fields)
        kept = [item for item in parameters if _parameter_token(item) is None]
        if len(kept) < len(parameters):
            parameters = kept
            target = b"?".join([path, *([b"&".join(kept)] if kept else [])])
    return Asked(
        client=client,
        route=route,
        counts=metrics.route(route.name),
        token=token,
        key=_key(client, route.settings, path, parameters, secret),
        ask=Ask(origin_of(route), client.method, target, _fields(client, fields, route.settings, settings)),
        relayed=relayed,
    )


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


def _key(client: Client, settings: StreamSettings, path: bytes, parameters: list[bytes], secret: bytes) -> bytes:
    volatile = {name.encode() for name in settings.volatile_query}
    fixed = [item for item in parameters if unquote_to_bytes(item.partition(b"=")[0]) not in volatile]
    bound = [b"\0".join(headers.get_all(client.headers, name.encode())) for name in settings.bind]
    cookies = _cookies(client.headers, settings.bind_cookies)
    return event_id.fingerprint(secret, [client.host.lower(), path, b"&".join(fixed), *bound, *cookies])


def _cookies(fields: Headers, names: Iterable[str]) -> list[bytes]:
    pairs = [item.strip() for item in b";".join(headers.get_all(fields, b"cookie")).split(b";")]
    return [b"\0".join(item for item in pairs if item.startswith(name.encode() + b"=")) for name in names]


def _bare_host(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


# How it goes upstream


def _fields(client: Client, fields: Headers, own: StreamSettings, settings: Settings) -> list[headers.Field]:
    hop = headers.Hop(client.address.encode(), client.scheme.encode(), client.host, settings.trust_forwarded)
    return [*headers.to_upstream(fields, hop, _host(client, own)), *_framing(client)]


def _host(client: Client, settings: StreamSettings) -> bytes:
    """An app behind http sees the host it saw before; one behind https has a name of its own, and a certificate."""
    upstream = settings.upstream
    assert upstream is not None  # noqa: S101 - every route has one; checked when the settings were loaded
    choice = settings.host_header
    if choice == "auto":
        choice = "upstream" if upstream.tls or not client.host else "client"
    return {"client": client.host, "upstream": upstream.authority.encode()}.get(choice, choice.encode())


def _framing(client: Client) -> list[headers.Field]:
    """The length as the client gave it, or chunks: a body is never read to find its length."""
    if client.chunked_body:
        return [(b"Transfer-Encoding", b"chunked")]
    return [(b"Content-Length", value) for value in headers.get_all(client.headers, b"content-length")[:1]]
