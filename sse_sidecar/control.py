"""The sidecar's own paths on the main port: the browser client, the state of a stream, and its stop."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING

from sse_sidecar import headers
from sse_sidecar.assets import asset
from sse_sidecar.errors import AnswerError, NotAllowed, NotFound, NotYours
from sse_sidecar.streams import State

if TYPE_CHECKING:
    from sse_sidecar.asked import Reading
    from sse_sidecar.assets import Asset
    from sse_sidecar.config import Settings
    from sse_sidecar.downstream import Client
    from sse_sidecar.headers import Field
    from sse_sidecar.streams import Stream, Streams

_JSON = (b"Content-Type", b"application/json")


class Control:
    """Answers requests under `control_path`."""

    def __init__(self, settings: Settings, streams: Streams, reading: Reading) -> None:
        self._streams = streams
        self._reading = reading
        self._prefix = settings.control_path.encode() + b"/"
        self._on = bool(settings.control_path)
        self._origins = {origin.encode() for origin in settings.control_origins}

    def owns(self, client: Client) -> bool:
        return self._on and client.target.startswith(self._prefix)

    def handle(self, client: Client) -> None:
        """Answers; a problem document too, as that bears the CORS fields here."""
        cors = self.cors(client)
        if client.method == "OPTIONS":
            client.respond(204, [headers.NO_STORE, *cors])
            return
        is_script = self._path(client) == b"client.js"
        try:
            if is_script:
                _serve(client, asset("client.js"), cors)
            else:
                self._answer(client, self._find(client), cors)
        except NotAllowed as error:
            client.problem(error, (b"Allow", b"GET, HEAD" if is_script else b"GET, HEAD, DELETE"))
        except AnswerError as error:
            client.problem(error)

    def _answer(self, client: Client, stream: Stream, cors: list[Field]) -> None:
        if client.method in ("GET", "HEAD"):
            client.respond(200, [_JSON, headers.NO_STORE, *cors], json.dumps(_state(stream)).encode())
        elif client.method == "DELETE":
            _stop(stream)
            client.respond(204, [headers.NO_STORE, *cors])
        else:
            raise NotAllowed

    def _path(self, client: Client) -> bytes:
        return client.target.partition(b"?")[0].removeprefix(self._prefix)

    def _find(self, client: Client) -> Stream:
        """The stream, for the principal that opened it."""
        collection, _, stream_id = self._path(client).decode("latin-1").partition("/")
        stream = self._streams.find(stream_id) if collection == "streams" else None
        if stream is None:
            raise NotFound
        principal = self._reading.principal(client.headers, stream.settings, shared=stream.shared)
        if not hmac.compare_digest(principal, stream.principal):
            raise NotFound
        return stream

    def cors(self, client: Client) -> list[Field]:
        """By an exact list: these paths are the sidecar's, and no upstream says who may use them."""
        origin = headers.get(client.headers, b"origin")
        if origin is None or origin not in self._origins:
            return []
        asked = headers.get(client.headers, b"access-control-request-headers")
        allowed = [(b"Access-Control-Allow-Headers", asked)] if asked else []
        return [
            (b"Access-Control-Allow-Origin", origin),
            (b"Access-Control-Allow-Credentials", b"true"),
            (b"Access-Control-Allow-Methods", b"GET, DELETE"),
            (b"Vary", b"Origin"),
            *allowed,
        ]


def _serve(client: Client, file: Asset, cors: list[Field]) -> None:
    """A file; to be asked for again each time, so that a page never runs another release's client."""
    if client.method not in ("GET", "HEAD"):
        raise NotAllowed
    fields = [(b"ETag", file.etag), (b"Cache-Control", b"no-cache"), (b"X-Content-Type-Options", b"nosniff"), *cors]
    known = headers.listed(client.headers, b"if-none-match")
    if b"*" in known or file.etag in [tag.removeprefix(b"w/") for tag in known]:
        client.respond(304, fields)
    else:
        client.respond(200, [(b"Content-Type", file.content_type), *fields], file.body)


def _stop(stream: Stream) -> None:
    if stream.shared:
        raise NotYours
    if stream.producer:
        stream.producer.stop()
    else:
        stream.complete()


def _state(stream: Stream) -> dict[str, object]:
    return {
        "id": stream.id,
        "state": stream.state.value,
        "first": stream.log.first,
        "last": stream.log.last,
        "readers": len(stream.readers),
        "complete": stream.state is State.COMPLETE,
    }
