"""Helpers for tests in which clients, or streams, meet: requests written whole, crowds, and readers that sleep."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from sse_sidecar.app import Sidecar
from tests.conftest import Connect
from tests.harness import Asked, Response, Upstream, port_of, until
from tests.reference import Dispatched, interpret

HOST = "service.test"
PLAIN = {"Accept": "text/event-stream"}
"""How a client asks that is neither an EventSource nor a page."""


def request_of(
    target: str = "/a", *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """A request as it is written."""
    fields = {"Host": HOST, **(headers or {})}
    if body:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


async def crowd(sidecar: Sidecar, connect: Connect, number: int, raw: bytes) -> list[Response]:
    """Clients who have all asked, one after the other. Their answers' heads are yet to be read."""
    clients = []
    for number_before in range(being_answered(sidecar), being_answered(sidecar) + number):
        client = await connect()
        await client.send(raw)
        await until(lambda before=number_before: being_answered(sidecar) > before)  # type: ignore[misc]
        clients.append(client)
    return clients


def being_answered(sidecar: Sidecar) -> int:
    """Requests that have reached the sidecar and are not over."""
    return sidecar.front.unanswered


async def all_gone(sidecar: Sidecar) -> None:
    """Waits until the sidecar has noticed that every client has left."""
    await until(lambda: not being_answered(sidecar))


async def read_heads(clients: list[Response]) -> None:
    for client in clients:
        await client.read_head()


def dispatched(response: Response) -> list[Dispatched]:
    """What a browser dispatches of the body so far."""
    return interpret(response.body).events


def data_of(response: Response) -> list[str]:
    """The data of the service's own events so far, the sidecar's signals left out."""
    return [event.data for event in dispatched(response) if event.type != "sse-sidecar"]


def signals_of(response: Response) -> list[str]:
    """The codes of the sidecar's signals so far."""
    return [error["code"] for error in _errors_of(response)]


def losses_of(response: Response) -> list[int | None]:
    """How many events each gap so far is said to be of."""
    return [error["lost"] for error in _errors_of(response) if error["code"] == "gap"]


def _errors_of(response: Response) -> list[dict[str, Any]]:
    return [json.loads(event.data)["error"] for event in dispatched(response) if event.type == "sse-sidecar"]


class Sleeper:
    """A client of a stream that reads nothing until it is woken, and for which the kernel takes little.

    Where its request opens the stream, `upstream` is asked for it, and begins to answer.
    """

    asked: Asked

    def __init__(self, sidecar: Sidecar, raw: bytes, upstream: Upstream | None = None) -> None:
        self._sidecar, self._raw, self._upstream = sidecar, raw, upstream
        self._sock = socket.socket()
        self._woken: Response | None = None

    async def __aenter__(self) -> Sleeper:
        loop = asyncio.get_running_loop()
        before = self._sidecar.streams.reader_count
        narrow(self._sidecar)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await loop.sock_connect(self._sock, ("127.0.0.1", port_of(self._sidecar)))
        await loop.sock_sendall(self._sock, self._raw)
        if self._upstream:
            self.asked = await reopened(self._upstream)
        await until(lambda: self._sidecar.streams.reader_count > before)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._woken:
            self._woken.close()
        else:
            self._sock.close()

    async def wake(self) -> Response:
        """The answer, to be read as any other: what the kernel held of it, and what is still sent."""
        self._woken = Response(*await asyncio.open_connection(sock=self._sock, limit=1 << 20))
        await self._woken.read_head()
        return self._woken


def narrow(sidecar: Sidecar) -> None:
    """From now on, the kernel takes little of what the sidecar's clients do not take; it would some megabytes."""
    assert sidecar._listener is not None
    # Accepted connections have the options of the socket they were accepted from.
    with socket.socket(fileno=os.dup(sidecar._listener.sockets[0].fileno())) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def backed_up(sidecar: Sidecar) -> int:
    """Readers whose client takes less than it is sent."""
    return sum(client.backed_up for client in sidecar.front.answers.readers.values())


def event(number: int, size: int = 0) -> bytes:
    """An event of the service's, of about `size` bytes. Its data begins with its number."""
    return b"data: %d %b\n\n" % (number, b"x" * size)


def numbers_of(response: Response) -> list[int]:
    """The numbers of the events made by `event`."""
    return [int(data.split()[0]) for data in data_of(response)]


async def reopened(upstream: Upstream, *answer: str) -> Asked:
    """The next request, answered with an event stream."""
    asked = await upstream.asked()
    await asked.begin(*answer)
    return asked
