"""Which header fields cross the proxy, and what is said on an event stream.

Fields are pairs of bytes in the order they came, names in the case they came: a proxy that parses them into a
dictionary loses repeats, order and bytes that are no UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Field = tuple[bytes, bytes]
Headers = Sequence[Field]

EVENT_STREAM = b"text/event-stream"

# RFC 9110, section 7.6.1, and what older peers send.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})

# An event stream has no length, no validator and no age, and none of the words with which a middle box is asked to
# keep, delay or rewrite it. Content-Encoding is gone because the stream has been decoded.
NOT_ON_A_STREAM = frozenset(
    {
        b"accept-ranges",
        b"age",
        b"cache-control",
        b"cdn-cache-control",
        b"cloudflare-cdn-cache-control",
        b"content-digest",
        b"content-encoding",
        b"content-length",
        b"content-md5",
        b"content-range",
        b"digest",
        b"edge-control",
        b"etag",
        b"expires",
        b"last-modified",
        b"pragma",
        b"repr-digest",
        b"surrogate-control",
        b"vary",
        b"vercel-cdn-cache-control",
        b"x-accel-buffering",
        b"x-accel-expires",
    }
)

NO_STORE: Field = (b"Cache-Control", b"no-store")


def get(headers: Headers, name: bytes) -> bytes | None:
    """The first value of `name` (given in lower case), or None."""
    return next((value for key, value in headers if key.lower() == name), None)


def get_all(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def listed(headers: Headers, name: bytes) -> list[bytes]:
    """The members of a comma-separated field, lower case, over all its lines (RFC 9110, section 5.6.1)."""
    members = b",".join(get_all(headers, name)).split(b",")
    return [member.strip().lower() for member in members if member.strip()]


def media_type(value: bytes | None) -> bytes:
    """`text/event-stream` of `Text/Event-Stream; charset=utf-8`."""
    return (value or b"").partition(b";")[0].strip().lower()


def is_event_stream(headers: Headers) -> bool:
    return media_type(get(headers, b"content-type")) == EVENT_STREAM


def accepts_event_stream(headers: Headers) -> bool:
    return any(media_type(member) == EVENT_STREAM for member in listed(headers, b"accept"))


def accepts_only_event_stream(headers: Headers) -> bool:
    return listed(headers, b"accept") == [EVENT_STREAM]


def without(headers: Headers, names: Iterable[bytes]) -> list[Field]:
    gone = frozenset(names)
    return [field for field in headers if field[0].lower() not in gone]


def end_to_end(headers: Headers) -> list[Field]:
    """All but the hop-by-hop fields, those that `Connection` names included."""
    return without(headers, HOP_BY_HOP.union(listed(headers, b"connection")))


def is_upgrade(headers: Headers) -> bool:
    """Whether a WebSocket is asked for (RFC 6455, section 4.1).

    No other upgrade crosses: over h2c a client could speak past what is checked here.
    """
    return b"upgrade" in listed(headers, b"connection") and listed(headers, b"upgrade") == [b"websocket"]


def upgrade(headers: Headers) -> list[Field]:
    """The fields that ask for an upgrade, or grant it."""
    return [(b"Connection", b"Upgrade"), *((name, value) for name, value in headers if name.lower() == b"upgrade")]


class Hop(NamedTuple):
    """Where a request came from, for the fields that tell the upstream."""

    client: bytes
    scheme: bytes
    host: bytes
    trusted: bool = False
    """Whether what it says of those before it is kept."""


def to_upstream(headers: Headers, hop: Hop, host: bytes | None) -> list[Field]:
    """A request's fields as the upstream gets them, `Host` first, without those that frame the body.

    Without a `host` the field is for the caller to set. `Expect` is taken off: the client is told to continue by the
    sidecar, when its body is first read.
    """
    asks_stream = accepts_event_stream(headers)
    drop = {b"host", b"expect", b"content-length", b"via"} | FORWARDED
    if asks_stream:
        # A compressed stream would have to be decoded here, and gzip without flushes delays events.
        drop.add(b"accept-encoding")
    kept = [field for field in without(end_to_end(headers), drop) if not _is_disguised(field[0])]
    fields = [*([] if host is None else [(b"Host", host)]), *kept]
    if is_upgrade(headers):
        fields += upgrade(headers)
    if asks_stream:
        fields.append((b"Accept-Encoding", b"identity"))
    return [*fields, *_forwarded(headers, hop)]


def _is_disguised(name: bytes) -> bool:
    """Whether it is what a CGI or WSGI application, which sees `_` for `-`, takes for a field that is set here."""
    return b"_" in name and name.lower().replace(b"_", b"-") in FORWARDED


def _forwarded(headers: Headers, hop: Hop) -> list[Field]:
    trusted = [field for field in headers if field[0].lower() in FORWARDED and hop.trusted]
    chain = [*get_all(trusted, b"x-forwarded-for"), hop.client]
    via = [*get_all(headers, b"via"), b"1.1 sse-sidecar"]
    fields = [
        *without(trusted, {b"x-forwarded-for"}),
        (b"X-Forwarded-For", b", ".join(part for part in chain if part)),
        (b"Via", b", ".join(via)),
    ]
    if get(trusted, b"x-forwarded-proto") is None:
        fields.append((b"X-Forwarded-Proto", hop.scheme))
    if get(trusted, b"x-forwarded-host") is None:
        fields.append((b"X-Forwarded-Host", hop.host))
    return fields


def event_stream_answer(headers: Headers, stream_id: str, status: str) -> list[Field]:
    """The fields of an answer that carries a stream, made from the upstream's own."""
    kept = without(unbuffered(headers), {b"sse-stream", b"sse-stream-status"})
    return [
        *expose(kept, (b"SSE-Stream", b"SSE-Stream-Status")),
        (b"SSE-Stream", stream_id.encode()),
        (b"SSE-Stream-Status", status.encode()),
    ]


def unbuffered(headers: Headers) -> list[Field]:
    """An event stream's fields without what makes middle boxes cache or delay it, and with what tells them not to."""
    return [
        *without(end_to_end(headers), NOT_ON_A_STREAM),
        (b"Cache-Control", b"no-cache, no-store, no-transform"),
        (b"Vary", _joined(get_all(headers, b"vary"), b"Last-Event-ID")),
        (b"X-Accel-Buffering", b"no"),
    ]


def try_again_answer(request: Headers) -> list[Field]:
    """The fields of an empty stream that tells an EventSource to come back.

    Chromium ends a cross-origin EventSource for good when an answer may not be read, and here there is no answer of the
    upstream to copy the permission from. There is nothing in this one to be kept from anyone.
    """
    fields = [
        (b"Content-Type", EVENT_STREAM),
        (b"Cache-Control", b"no-cache, no-store, no-transform"),
        (b"X-Accel-Buffering", b"no"),
    ]
    origin = get(request, b"origin")
    if origin is not None:
        fields += [
            (b"Access-Control-Allow-Origin", origin),
            (b"Access-Control-Allow-Credentials", b"true"),
            (b"Vary", b"Origin"),
        ]
    return fields


def without_cookies(headers: Headers) -> list[Field]:
    """For every answer but the one that the upstream made for this very client."""
    return without(headers, {b"set-cookie", b"set-cookie2"})


def expose(headers: Headers, names: Iterable[bytes]) -> list[Field]:
    """Lets cross-origin page code read the fields `names`, where the upstream lets it read the answer at all."""
    if get(headers, b"access-control-allow-origin") is None:
        return list(headers)
    return _extend(headers, b"Access-Control-Expose-Headers", names)


def allow_last_event_id(request: Headers, answer: Headers) -> list[Field]:
    """The upstream's answer to a preflight, with `Last-Event-ID` allowed where the preflight asks for it.

    Only where the upstream answers the preflight as one: who may read it stays the upstream's to say.
    """
    asked = b"last-event-id" in listed(request, b"access-control-request-headers")
    if not asked or get(answer, b"access-control-allow-origin") is None:
        return list(answer)
    return _extend(answer, b"Access-Control-Allow-Headers", (b"Last-Event-ID",))


def _extend(headers: Headers, name: bytes, members: Iterable[bytes]) -> list[Field]:
    values = get_all(headers, name.lower())
    value = _joined(values, *members)
    # `*` is no wildcard when credentials are allowed (Fetch, section 3.2.5), so the names are written out beside it.
    return [*without(headers, {name.lower()}), (name, value)]


def _joined(values: Sequence[bytes], *members: bytes) -> bytes:
    present = {member.strip().lower() for member in b",".join(values).split(b",")}
    missing = [member for member in members if member.lower() not in present]
    return b", ".join([*(value for value in values if value.strip()), *missing])
