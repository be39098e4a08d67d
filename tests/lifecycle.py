"""What the tests of a stream's life share: clients' headers, reading answers, and time moved on to the next attempt."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from sse_sidecar.app import Sidecar
from sse_sidecar.streams import State
from tests.conftest import OpenStream
from tests.harness import Asked, ManualClock, Response, Upstream, port_of, request, scrape, until
from tests.reference import interpret

CURL = {"User-Agent": "curl/8.5.0", "Accept": "*/*"}
PAGE = {"User-Agent": "Mozilla/5.0", "Accept": "*/*"}
MCP = {"Accept": "text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
POST: dict[str, Any] = {"method": "POST", "body": b"{}"}

FAR = 100_000.0
"""Seconds for what is not to happen in a test."""

NO_OTHER_TIMERS: dict[str, Any] = dict.fromkeys(
    ("heartbeat", "connect_timeout", "response_timeout", "stall_timeout", "linger", "history_ttl"), FAR
)
"""Settings under which nothing is due soon but what the test sets."""

LONGEST_BACK_OFF = 7.5
"""Seconds; a test's `retry:` is at most 7000 ms."""


SMALL = 16 * 1024
"""Bytes of a socket buffer."""


def resuming(token: str, headers: dict[str, str] | None = None) -> dict[str, str]:
    return {**(headers or {}), "Last-Event-ID": token}


def carrying(stream_id: str, upstream_id: str) -> str:
    """What follows the number in a token that carries the upstream's own id."""
    return f"{stream_id}.{base64.urlsafe_b64encode(upstream_id.encode()).rstrip(b'=').decode()}"


def signals(response: Response) -> list[dict[str, Any]]:
    """The sidecar's own events, without what they say to people."""
    said = [json.loads(event.data)["error"] for event in interpret(response.body).events if event.type == "sse-sidecar"]
    return [{key: value for key, value in error.items() if key != "message"} for error in said]


def datas(response: Response) -> list[str]:
    """The data of the upstream's events."""
    return [event.data for event in interpret(response.body).events if event.type != "sse-sidecar"]


def kinds(response: Response) -> list[str]:
    """What a client dispatched: the data of an event, or the code of a signal."""
    return [
        json.loads(event.data)["error"]["code"] if event.type == "sse-sidecar" else event.data
        for event in interpret(response.body).events
    ]


LOST: list[dict[str, Any]] = [{"code": "upstream-lost"}]
GAP: list[dict[str, Any]] = [{"code": "gap", "lost": None}]


def has_left(sidecar: Sidecar) -> bool:
    return sidecar.streams.reader_count == 0


async def leave(sidecar: Sidecar, response: Response) -> None:
    """The only reader goes, and the sidecar has noticed."""
    response.close()
    await until(lambda: has_left(sidecar))


def live(sidecar: Sidecar, response: Response) -> bool:
    """Whether the stream of an answer has an upstream that has answered."""
    stream = sidecar.streams.find(response.stream_id)
    return stream is not None and stream.state is State.LIVE


async def state_of(sidecar: Sidecar, response: Response) -> str:
    """The state of the stream that a client was answered with, as the sidecar tells it."""
    path = f"/.well-known/sse-sidecar/streams/{response.stream_id}"
    answer = await request(port_of(sidecar), path, headers={"Connection": "close"})
    told = json.loads(await answer.read_to_end())
    answer.close()
    return str(told["state"])


async def counted(sidecar: Sidecar, name: str, **labels: str) -> float:
    """A counter of the default route."""
    inner = ",".join(f'{key}="{value}"' for key, value in sorted({**labels, "route": "default"}.items()))
    return (await scrape(sidecar)).get(f"{name}_total{{{inner}}}", 0)


async def asked_again(upstream: Upstream, clock: ManualClock) -> Asked:
    """The next request to the upstream. Time is moved on for as long as the sidecar waits with it."""
    asking = asyncio.ensure_future(upstream.asked())
    try:
        await advance_until(clock, asking.done)
        return asking.result()
    finally:
        asking.cancel()


async def go_on(upstream: Upstream, clock: ManualClock, data: bytes) -> Asked:
    """The upstream is asked again, and answers with more of the stream."""
    asked = await asked_again(upstream, clock)
    await asked.begin()
    await asked.stream(data)
    return asked


async def advance_until(clock: ManualClock, condition: Callable[[], Any], *, by: float = LONGEST_BACK_OFF) -> None:
    """Moves time to whatever is due within `by` seconds, again and again, until the condition holds."""

    def holds() -> bool:
        if not condition() and clock.next_in < by:
            clock.advance(clock.next_in)
        return bool(condition())

    await until(holds)


Lose = Callable[[Asked], Awaitable[None]]


async def reset(asked: Asked) -> None:
    asked.reset()


async def close_unfinished(asked: Asked) -> None:
    asked.close()


async def break_framing(asked: Asked) -> None:
    await asked.send(b"no chunk\r\n")


async def opened(open_stream: OpenStream, data: bytes, *args: Any, **kwargs: Any) -> tuple[Asked, Response]:
    """A stream of which the client has read `data`, whose last line is of an event's data."""
    asked, response = await open_stream(*(args or ("/a",)), **kwargs)
    await asked.stream(data)
    await response.read_until(data.strip().rsplit(b"\n", 1)[-1] + b"\nid: ")
    return asked, response


def bulk(count: int) -> bytes:
    """Events of 8 KB."""
    return b"".join(b"data: %d %b\n\n" % (number, 8000 * b"x") for number in range(1, count + 1))


@asynccontextmanager
async def asleep(sidecar: Sidecar, headers: dict[str, str]) -> AsyncIterator[Response]:
    """A client who reads nothing but the head until its test does; kernels hold next to nothing for it."""
    port = port_of(sidecar)
    known = set(sidecar.front.answers.readers)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=SMALL)
    try:
        lines = ["GET /a HTTP/1.1", f"Host: 127.0.0.1:{port}", *(f"{key}: {value}" for key, value in headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        response = Response(reader, writer)
        await response.read_head()
        (client,) = (of for reader, of in sidecar.front.answers.readers.items() if reader not in known)
        transport = client._request.transport
        assert transport is not None
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        yield response
    finally:
        writer.close()
