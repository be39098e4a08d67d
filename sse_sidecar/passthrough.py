"""Everything that is not an event stream: relayed as it is, both ways as it comes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sse_sidecar import headers
from sse_sidecar.errors import BadRequest, ClientLeft, OriginError
from sse_sidecar.wire import chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_sidecar.downstream import Client
    from sse_sidecar.exchange import Exchange, Head


async def upload(client: Client, exchange: Exchange, *, on_part: Callable[[bytes], object] = lambda _: None) -> bool:
    """Sends the request's body on as the client sends it; says whether it came whole.

    When the upstream has ended the exchange, what still comes is read and dropped: with a body unread, the connection
    is not listened to, and the client's leaving would not be noticed.
    """
    chunked = client.chunked_body
    try:
        async for part in client.body():
            exchange.send(chunk(part) if chunked else part)
            on_part(part)
            await exchange.drain()
    except BadRequest as error:
        exchange.abandon(error)
        return False
    except OSError:  # of the connection, or of TLS
        exchange.abandon(ClientLeft("the client left before its request was whole"))
        return False
    if chunked:
        exchange.send(b"0\r\n\r\n")
    exchange.request_ended()
    return True


async def drop_body(client: Client) -> None:
    """Reads a request's body to its end, for nothing."""
    with suppress(BadRequest, OSError):
        async for _ in client.body():
            pass


async def relay(client: Client, exchange: Exchange, head: Head) -> None:
    """Answers with the upstream's answer. An answer that breaks off breaks off here too."""
    fields = headers.end_to_end(head.headers)
    if client.method == "OPTIONS":
        fields = headers.allow_last_event_id(client.headers, fields)
    client.begin(head.status, fields, head.reason)
    client.flush()
    try:
        while part := await exchange.read():
            client.write(part)
            await client.drain()
    except OriginError:
        client.cut()
    else:
        client.end()


def refuse(client: Client, head: Head, body: bytes, *, cookies: bool) -> None:
    """Answers with an answer that has been read whole, as others are given it too."""
    fields = headers.end_to_end(head.headers)
    if not cookies:
        fields = headers.without_cookies(fields)
    client.respond(head.status, headers.without(fields, {b"content-length"}), body)
