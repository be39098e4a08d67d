"""Nothing that lives as long as a stream is part of a cycle: what is over is freed at once, and no collection finds it.

The command makes full collections rare for that reason; see `cli._collect_little_garbage`.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
import pytest

from sse_sidecar.app import Sidecar
from tests.conftest import StartSidecar
from tests.harness import (
    EVENT_SOURCE,
    STREAM_HEAD,
    Asked,
    ManualClock,
    Response,
    Upstream,
    connect,
    port_of,
    request,
    until,
)
from tests.lifecycle import asked_again
from tests.together import Sleeper, backed_up, event, reopened, request_of

PARSERS = (httptools.HttpRequestParser, httptools.HttpResponseParser)
TIMES = 3
"""How often each kind comes and goes."""
SHORT: dict[str, Any] = {"history_ttl": 60, "linger": 30, "reconnect_timeout": 30}
DAY = 86_400


class ForgetfulClock(ManualClock):
    """Its timers let go of what they were to call when it is called or called off, as a loop's do."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> _ForgetfulTimer:  # type: ignore[override]
        timer = _ForgetfulTimer(callback, args)
        timer.inner = super().call_later(delay, timer.run)
        return timer


class _ForgetfulTimer:
    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.what: tuple[Callable[..., Any], tuple[Any, ...]] | None = (callback, args)
        self.inner: Any = None

    def run(self) -> None:
        what, self.what, self.inner = self.what, None, None
        if what:
            what[0](*what[1])

    def cancel(self) -> None:
        self.what = None
        if self.inner:
            self.inner.cancel()
            self.inner = None


class World:
    """A service, the sidecar before it, and clients; none of whom keeps what is over."""

    def __init__(self, upstream: Upstream, sidecar: Sidecar, clock: ManualClock) -> None:
        self.upstream, self.sidecar, self.clock = upstream, sidecar, clock

    async def answered(self, raw: bytes, target: str = "/a", **asking: Any) -> tuple[Asked, Response]:
        """A request, answered with these bytes, of which the head has been read."""
        waiting = asyncio.ensure_future(request(port_of(self.sidecar), target, **asking))
        asked = await self.upstream.asked()
        await asked.send(raw)
        return asked, await waiting

    async def opened(self, data: bytes = b"data: 1\n\n", **asking: Any) -> tuple[Asked, Response]:
        """A stream with one event, which its client has read."""
        asked, client = await self.answered(STREAM_HEAD, **asking)
        await asked.stream(data)
        await client.read_until(b"\nid: 1-")
        return asked, client

    async def again(self, client: Response, target: str = "/a", **headers: str) -> Response:
        """The client comes back with its token."""
        return await request(port_of(self.sidecar), target, headers={**headers, "Last-Event-ID": client.last_id})

    async def gone(self) -> None:
        """Waits until no client is connected."""
        await until(lambda: not self.sidecar.front.unanswered)
        await until(lambda: not self.sidecar._server.connections)

    async def forget(self) -> None:
        """A day later all that was held has expired, and no timer keeps what it was set for."""
        await self.gone()
        self.clock.advance(DAY)
        await until(lambda: not (self.sidecar.streams or self.upstream._tasks))
        writers, self.upstream._connections = self.upstream._connections, set()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        self.upstream.requests.clear()
        self.upstream._taken = 0


async def complete(world: World) -> None:
    """The upstream says that it is over, and so is one who comes back."""
    asked, client = await world.opened(method="POST", body=b"{}")
    await asked.end()
    await client.read_to_end()
    (await world.again(client)).close()
    client.close()


async def dormant(world: World) -> None:
    """The upstream has ended; one comes back, and gets more of it."""
    asked, client = await world.opened()
    await asked.end()
    await client.read_to_end()
    back = asyncio.ensure_future(world.again(client))
    asked = await reopened(world.upstream)
    await asked.stream(b"data: 2\n\n")
    await asked.end()
    (await back).close()
    client.close()


async def refused_when_asked_again(world: World) -> None:
    asked, client = await world.opened()
    await asked.end()
    await client.read_to_end()
    back = asyncio.ensure_future(world.again(client))
    await (await world.upstream.asked()).respond("404 Not Found")
    await (await back).read_to_end()
    (await back).close()
    client.close()


async def lingering(world: World) -> None:
    """Its client leaves and does not come back."""
    asked, client = await world.opened()
    client.close()
    await world.gone()
    world.clock.advance(30)
    await asked.closed()


async def left_by_reset(world: World) -> None:
    asked, client = await world.opened()
    client.reset()
    await world.gone()
    world.clock.advance(30)
    await asked.closed()


async def rotated(world: World) -> None:
    """An EventSource is sent away before a load balancer does it, and comes back."""
    asked, client = await world.opened(headers=EVENT_SOURCE)
    world.clock.advance(3600)
    await client.read_to_end()
    back = await world.again(client, **EVENT_SOURCE)
    back.close()
    client.close()
    await world.gone()
    world.clock.advance(30)
    await asked.closed()


async def cut_off(world: World) -> None:
    """A reader that sleeps while the history runs full."""
    async with Sleeper(world.sidecar, request_of(), world.upstream) as sleeper:
        number = 0
        while not backed_up(world.sidecar):
            number += 1
            await sleeper.asked.stream(event(number, 8000))
        asked = sleeper.asked
        asked.writer.write(b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in [event(1, 8000)] * 50))
        await until(lambda: world.sidecar.streams.memory > 256 * 1024)
        world.clock.advance(10)
        await world.gone()
    world.clock.advance(30)
    await asked.closed()


async def lost(world: World) -> None:
    """The upstream is gone, and may not be asked again: the answer is cut."""
    asked, client = await world.opened(method="POST", body=b"{}")
    asked.reset()
    await client.read_to_end()
    client.close()


async def reconnecting(world: World) -> None:
    """The upstream is lost, asked again, and goes on; lost again, it does not come back."""
    asked, client = await world.opened(b"id: a\ndata: 1\n\n")
    asked.reset()
    asked = await asked_again(world.upstream, world.clock)
    await asked.begin()
    await asked.stream(b"id: b\ndata: 2\n\n")
    await client.read_until(b"\nid: 2-")
    asked.reset()
    asked = await asked_again(world.upstream, world.clock)
    asked.reset()
    world.clock.advance(60)
    await client.read_to_end()
    client.close()


async def passthrough(world: World) -> None:
    _asked, client = await world.answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    await client.read_to_end()
    client.close()


async def passthrough_with_an_upload(world: World) -> None:
    _asked, client = await world.answered(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", method="POST", body=b"{}"
    )
    await client.read_to_end()
    client.close()


async def passthrough_that_its_client_left(world: World) -> None:
    asked, client = await world.answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh")
    client.close()
    await asked.closed()


async def passthrough_that_breaks_off(world: World) -> None:
    asked, client = await world.answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh")
    asked.reset()
    await client.read_to_end()
    client.close()


async def left_before_the_answer(world: World) -> None:
    client = await connect(port_of(world.sidecar))
    await client.send(request_of())
    asked = await world.upstream.asked()
    client.close()
    await asked.closed()


async def no_http(world: World) -> None:
    _asked, client = await world.answered(b"SSH-2.0-OpenSSH\r\n\r\n")
    await client.read_to_end()
    client.close()


async def refused_upstream(world: World) -> None:
    """It does not listen."""
    world.upstream._server.close()  # type: ignore[union-attr] # it has been started
    client = await request(port_of(world.sidecar), "/a")
    await client.read_to_end()
    client.close()
    await world.upstream.start(world.upstream.port)


async def no_request(world: World) -> None:
    """What a client says is no HTTP, or no HTTP that is passed on."""
    for headers in ({"Host": "a b"}, {"X\x01": "a"}):
        client = await request(port_of(world.sidecar), "/a", headers=headers)
        await client.read_to_end()
        client.close()


async def shared(world: World) -> None:
    """Three read it, one of whom came when it was there already; the first leaves."""
    first = asyncio.ensure_future(request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    asked = await world.upstream.asked()
    second = asyncio.ensure_future(request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    await until(lambda: world.sidecar.front.unanswered == 2)
    await asked.begin()
    clients = [await first, await second]
    clients.append(await request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    await asked.stream(b"data: 1\n\n")
    for client in clients:
        await client.read_until(b"\nid: 1-")
    clients[0].close()
    await asked.stream(b"data: [DONE]\n\n")
    await asked.end()
    for client in clients[1:]:
        await client.read_to_end()
        client.close()


async def shared_and_refused(world: World) -> None:
    first = asyncio.ensure_future(request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    asked = await world.upstream.asked()
    second = asyncio.ensure_future(request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    await until(lambda: world.sidecar.front.unanswered == 2)
    await asked.respond("401 Unauthorized", body=b"no")
    for client in (await first, await second):
        await client.read_to_end()
        client.close()


async def shared_and_refused_by_half(world: World) -> None:
    """The refusal breaks off."""
    waiting = asyncio.ensure_future(request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    asked = await world.upstream.asked()
    await asked.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nno")
    await until(lambda: not asked.writer.transport.get_write_buffer_size())
    asked.close()
    client = await waiting
    await client.read_to_end()
    client.close()


async def shared_and_asked_again_in_vain(world: World) -> None:
    """Two come back to what was lost, and wait for the same attempt."""
    asked, client = await world.answered(STREAM_HEAD, "/shared", headers={"Host": "a"})
    await asked.stream(b"data: 1\n\n")
    await client.read_until(b"\nid: 1-")
    await asked.end()
    await client.read_to_end()
    back = [await world.again(client, "/shared", Host="a") for _ in range(2)]
    asked = await world.upstream.asked()
    await asked.respond("404 Not Found")
    for each in back:
        await each.read_to_end()
        each.close()
    client.close()


async def lost_for_all_who_wait(world: World) -> None:
    """The upstream goes before it answers a request that two wait for."""
    first = asyncio.ensure_future(request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    asked = await world.upstream.asked()
    second = asyncio.ensure_future(request(port_of(world.sidecar), "/shared", headers={"Host": "a"}))
    await until(lambda: world.sidecar.front.unanswered == 2)
    asked.reset()
    for client in (await first, await second):
        await client.read_to_end()
        client.close()


async def keyed(world: World) -> None:
    """A POST that is sent twice under one key."""
    posting: dict[str, Any] = {
        "method": "POST",
        "body": b"{}",
        "headers": {"Authorization": "a", "Idempotency-Key": "k"},
    }
    asked, client = await world.opened(**posting)
    again = await request(port_of(world.sidecar), "/a", **posting)
    await again.read_until(b"\nid: 1-")
    await asked.end()
    for each in (client, again):
        await each.read_to_end()
        each.close()


async def too_large(world: World) -> None:
    asked, client = await world.opened()
    asked.writer.write(b"20000\r\n" + 0x20000 * b"x")
    await client.read_to_end()
    client.close()


async def compressed_and_broken(world: World) -> None:
    head = STREAM_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    asked, client = await world.answered(head)
    await asked.stream(gzip.compress(b"data: 1\n\n")[:-8])
    await asked.stream(b"no gzip of any kind")
    await client.read_to_end()
    client.close()


async def told_to_end(world: World) -> None:
    """By its client, with a DELETE."""
    asked, client = await world.opened(headers={"Host": "a"})
    path = f"/.well-known/sse-sidecar/streams/{client.stream_id}"
    deleting = await request(port_of(world.sidecar), path, method="DELETE", headers={"Host": "a"})
    await client.read_to_end()
    await asked.closed()
    deleting.close()
    client.close()


async def evicted(world: World) -> None:
    """Held until there is no room for it."""
    for number in range(6):
        asked, client = await world.opened(method="POST", body=b"%d" % number)
        await asked.stream(event(2, 60_000) + event(3, 60_000))
        await asked.end()
        await client.read_to_end()
        client.close()


KINDS: list[Callable[[World], Awaitable[None]]] = [
    *(complete, dormant, refused_when_asked_again, lingering, left_by_reset, rotated, cut_off, lost, reconnecting),
    *(passthrough, passthrough_with_an_upload, passthrough_that_its_client_left, passthrough_that_breaks_off),
    *(left_before_the_answer, no_http, refused_upstream, no_request, shared, shared_and_refused),
    *(shared_and_asked_again_in_vain, lost_for_all_who_wait, keyed, too_large, compressed_and_broken, told_to_end),
    *(shared_and_refused_by_half, evicted),
]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
async def test_what_has_come_and_gone_leaves_nothing_for_the_garbage_collector(
    start: StartSidecar, upstream: Upstream, kind: Callable[[World], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # what is logged is kept until the test is over, and the errors in it
    clock = ForgetfulClock()
    sidecar = await start(
        **SHORT,
        clock=clock,
        max_memory="600KiB",
        max_stream_bytes="256KiB",
        max_event_bytes="64KiB",
        max_connection_age=600,
        route=[{"path": "/shared", "mode": "shared"}],
    )
    world = World(upstream, sidecar, clock)
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            await kind(world)
            await world.forget()
        found = garbage()
    finally:
        gc.enable()

    assert [] == found, "\n".join(found)


def garbage() -> list[str]:
    """The cycles that hold something of ours, as the types they go through; but for those of exceptions."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        unreachable = list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    found = {_cycle(thing, unreachable) for thing in unreachable if _is_ours(thing)}
    # An exception holds the frames that it went through, and they hold it. That dies young, in a small collection.
    return sorted(way for way in found if "traceback" not in way)


def _is_ours(thing: object) -> bool:
    if isinstance(thing, types.FrameType):
        return "/sse_sidecar/" in thing.f_code.co_filename
    if isinstance(thing, types.CoroutineType):
        return "/sse_sidecar/" in thing.cr_code.co_filename
    of = thing if isinstance(thing, types.FunctionType) else type(thing)
    return isinstance(thing, PARSERS) or str(of.__module__).startswith("sse_sidecar")


def _cycle(thing: object, unreachable: list[object]) -> str:
    """The shortest way from something that can not be reached back to it, or from a cycle to it."""
    holders: dict[int, list[object]] = {}
    for holder in unreachable:
        for held in gc.get_referents(holder):
            holders.setdefault(id(held), []).append(holder)
    ways: deque[tuple[object, ...]] = deque([(thing,)])
    seen: set[int] = set()
    longest: tuple[object, ...] = (thing,)
    while ways:
        longest = way = ways.popleft()
        for holder in holders.get(id(way[0]), ()):
            if holder is thing:
                return _named((holder, *way))
            if id(holder) not in seen:
                seen.add(id(holder))
                ways.append((holder, *way))
    return "held by a cycle: " + _named(longest)


def _named(way: tuple[object, ...]) -> str:
    return " > ".join(_name(thing) for thing in way)


def _name(thing: object) -> str:
    if isinstance(thing, types.FrameType):
        return f"frame of {thing.f_code.co_qualname}:{thing.f_lineno}"
    if isinstance(thing, types.FunctionType | types.MethodType | types.CoroutineType):
        return f"{type(thing).__name__} {thing.__qualname__}"
    return type(thing).__qualname__
