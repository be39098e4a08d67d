"""What can go wrong, whose fault it is, and what it is answered with.

    SidecarError
    ├── ConfigError            the operator: a setting that cannot be used; exit code 2
    └── AnswerError            has a status and a title: answered as a problem document (RFC 9457)
        ├── RequestError       the client
        │   ├── BadRequest     400: no valid HTTP
        │   │   └── RequestTimeout 408: the rest of a head or a body did not come
        │   ├── HeadersTooLarge 431
        │   ├── Overloaded     503: shutting down; its OverLimit names a setting
        │   ├── KeyReused      422: an Idempotency-Key with another body
        │   ├── NoRoute        404: no service behind this host, path and method
        │   ├── NotFound, NotYours, NotAllowed: on the sidecar's own paths
        │   ├── StreamGone     410: what was asked to be resumed cannot be, and must not be repeated
        │   └── NotSupported   501: CONNECT
        └── OriginError        the upstream
            ├── Unreachable    502: refused, no route, TLS failed, name unknown
            ├── BadResponse    502: speaks no HTTP, or broke it
            ├── OriginLost     502: closed or reset before its answer, or within it
            │   ├── ClientLeft      because its client left before the request was whole
            │   └── Stale           a kept connection, before a byte of the answer
            ├── ConnectTimeout 504
            └── ResponseTimeout 504: connected, but no status line came

Exceptions carry facts; `str()` makes the sentence for the log. A client is shown `status`, `title` and
`detail` of the class only, so that no address of the upstream can leak into an answer.
"""

from __future__ import annotations

import json
from typing import ClassVar


class SidecarError(Exception):
    """The base of everything raised on purpose here."""


class ConfigError(SidecarError):
    """A setting cannot be used."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(key, value, expected)
        self.key, self.value, self.expected = key, value, expected

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: expected {self.expected}"


class AnswerError(SidecarError):
    """An exchange that ends in a problem document."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal Server Error"
    detail: ClassVar[str] = "The sidecar failed on this request; its log says why."

    @classmethod
    def problem(cls) -> bytes:
        """The problem document, JSON (RFC 9457, section 3)."""
        facts = {"title": cls.title, "status": cls.status, "detail": cls.detail}
        return json.dumps(facts).encode()


class RequestError(AnswerError):
    """The client asked for what cannot be had."""


class BadRequest(RequestError):
    status = 400
    title = "Bad Request"
    detail = "The request is not valid HTTP/1.1."


class RequestTimeout(BadRequest):
    status = 408
    title = "Request Timeout"
    detail = "The request did not come in time."


class HeadersTooLarge(RequestError):
    status = 431
    title = "Request Header Fields Too Large"
    detail = "The request line or a header field is longer than this server takes."


class StreamGone(RequestError):
    status = 410
    title = "Stream gone"
    detail = (
        "The stream that this Last-Event-ID names is over or no longer held, and the request that opened "
        "it may not be repeated. Start a new request without Last-Event-ID."
    )


class KeyReused(RequestError):
    status = 422
    title = "Idempotency-Key reused"
    detail = "A request with this Idempotency-Key and another body has been made. Use a new key for a new request."


class NoRoute(RequestError):
    status = 404
    title = "Not Found"
    detail = "This proxy has no service for this host, path and method."


class NotFound(RequestError):
    status = 404
    title = "Not Found"
    detail = "There is no such stream, or it is not yours."


class NotAllowed(RequestError):
    status = 405
    title = "Method Not Allowed"
    detail = "This path of the proxy's own takes other methods; Allow names them."


class NotYours(RequestError):
    status = 403
    title = "Forbidden"
    detail = "A stream that others may read too cannot be stopped by one of them."


class NotSupported(RequestError):
    status = 501
    title = "Not Implemented"
    detail = "CONNECT is not supported by this reverse proxy."


class Overloaded(RequestError):
    status = 503
    title = "Service Unavailable"
    detail = "At a limit or shutting down; try again after the time in Retry-After."


class OverLimit(Overloaded):
    """`limit` is the setting that one more would be over."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class OriginError(AnswerError):
    """The upstream did not do its part; `fact` is for the log only."""

    status = 502
    title = "Bad Gateway"
    detail = "The upstream could not be reached or did not answer properly."

    def __init__(self, fact: object = "") -> None:
        super().__init__(fact)
        self.fact = fact

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.fact}"


class Unreachable(OriginError):
    detail = "The upstream could not be reached."


class BadResponse(OriginError):
    detail = "The upstream's answer was not valid HTTP."


class OriginLost(OriginError):
    detail = "The upstream closed the connection before its answer was complete."


class Stale(OriginLost):
    """A kept connection had been given up before the request was sent on it."""


class ClientLeft(OriginLost):
    """Its own client was the cause: there is no one to be told."""


class ConnectTimeout(OriginError):
    status = 504
    title = "Gateway Timeout"
    detail = "The upstream did not accept a connection in time."


class ResponseTimeout(OriginError):
    status = 504
    title = "Gateway Timeout"
    detail = "The upstream did not begin its answer in time."
