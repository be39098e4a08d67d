"""A bad network: a TCP relay whose link is slow, late, silent, cut or refused, as its test says and when it says so.

It knows nothing of HTTP. What cannot be done to TCP from outside the kernel, losing a packet, is done as TCP shows it
to those above: a silence until the segment is sent again, and now and then a connection that is given up.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import socket
import struct
import sys
from contextlib import suppress

SEGMENT = 1460
"""Bytes carried at once: what fits a packet of Ethernet's size."""

QUEUE = 64
"""Segments on their way in one direction; more are left to the sender, as a router's full queue leaves them."""

RETRANSMIT = 0.2
"""Seconds until a lost segment is sent again: Linux's shortest. Each further loss of the same one doubles it."""

GIVEN_UP = 1 / 3
"""The share of losses that come in a burst which the connection does not live through."""


class Throttle:
    """A token bucket of one segment: bytes pass one way, of all connections together, no faster than the rate."""

    def __init__(self) -> None:
        self.rate = math.inf
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + size / self.rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class Loss:
    """Random loss of segments. It is drawn from a seed, so that a run loses what the run before lost."""

    def __init__(self, share: float, seed: int) -> None:
        self.stalls = 0
        self.cuts = 0
        self._share = share
        self._rng = random.Random(seed)

    def draw(self) -> float | None:
        """How long the next segment is late, in seconds; None where the connection is given up."""
        lost = 0
        while self._rng.random() < self._share:
            lost += 1
        if lost and self._rng.random() < GIVEN_UP:
            self.cuts += 1
            return None
        self.stalls += lost > 0
        return float(RETRANSMIT * (2**lost - 1))


class Relay:
    """Listens at `port` and connects to `target`. Its link may be changed while bytes are under way."""

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.target = target
        self.host = host
        self.port = 0
        self.latency = 0.0
        """Seconds each way: half of what a ping shows."""
        self.loss: Loss | None = None
        self.source: str | None = None
        """The address that clients seem to come from."""
        self.sources: list[str] = []
        """The address of each connection that ever reached the target, in their order."""
        self.to_target, self.to_client = Throttle(), Throttle()
        self._is_stalled = False
        self._connections: set[_Connection] = set()
        self._held: socket.socket | None = None
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self, port: int = 0) -> None:
        self._held = _bound(self.host, port)
        self.port = self._held.getsockname()[1]
        await self.accept()

    async def stop(self) -> None:
        self.refuse()
        self.cut()
        while self._connections:
            await asyncio.sleep(0)
        if self._held:
            self._held.close()

    def throttle(self, rate: float) -> None:
        """Bytes per second, each way."""
        self.to_target.rate = self.to_client.rate = rate

    def stall(self) -> None:
        """Nothing is carried any more, and no one is told. New connections are taken, and get no answer either."""
        self._is_stalled = True
        for connection in self._connections:
            connection.flowing.clear()

    def flow(self, *, cut: bool = False) -> None:
        """The end of a stall; with `cut`, whoever was connected is told now that nothing is known of it any more."""
        if cut:
            self.cut()
        self._is_stalled = False
        for connection in self._connections:
            connection.revive()

    def cut(self) -> None:
        """Resets every connection, at both ends."""
        for connection in list(self._connections):
            connection.abort()

    def refuse(self) -> None:
        """No one listens any more. Connections that stand are left alone."""
        if self._server:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Listens, again where it did: the port stayed ours."""
        assert self._server is None
        self._server = await asyncio.start_server(self._carry, sock=_bound(self.host, self.port), limit=SEGMENT)

    def off(self) -> None:
        """The link is down: what stood is reset, what comes is refused."""
        self.refuse()
        self.cut()

    def hand_off(self, address: str, *, silent: bool = False) -> None:
        """The client moves to another address. What stood dies by a reset, or silently: nothing is heard of it."""
        self.source = address
        if not silent:
            self.cut()
        for connection in self._connections:
            connection.lose()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        if self._is_stalled:
            connection.flowing.clear()
        try:
            await connection.carry()
        finally:
            self._connections.discard(connection)


class _Connection:
    """A client's connection, and the one to the target in its stead."""

    def __init__(self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.relay = relay
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._reader = reader
        self._writers = [writer]
        self._is_lost = False
        self._task = asyncio.current_task()

    def lose(self) -> None:
        self._is_lost = True
        self.flowing.clear()

    def revive(self) -> None:
        if not self._is_lost:
            self.flowing.set()

    def abort(self) -> None:
        """A RST at both ends; what is on its way is gone."""
        self._reset()
        if self._task:
            self._task.cancel()

    def _reset(self) -> None:
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def carry(self) -> None:
        try:
            await self.flowing.wait()
            there = await self._connect()
            relay, (client, target) = self.relay, self._writers
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_Way(self, self._reader, target, relay.to_target).carry())
                ways.create_task(_Way(self, there, client, relay.to_client).carry())
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            # Whatever ended it here, a reset is what both ends see: the relay has no one to report to.
            self._reset()
        finally:
            for writer in self._writers:
                writer.close()

    async def _connect(self) -> asyncio.StreamReader:
        relay = self.relay
        source = (relay.source, 0) if relay.source else None
        reader, writer = await asyncio.open_connection(*relay.target, local_addr=source, limit=SEGMENT)
        self._writers.append(writer)
        relay.sources.append(writer.get_extra_info("sockname")[0])
        return reader


class _Way:
    """One direction of one connection: bytes leave it in their order, late, and no faster than the link."""

    def __init__(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, throttle: Throttle
    ) -> None:
        self._connection, self._relay = connection, connection.relay
        self._reader, self._writer = reader, writer
        self._throttle = throttle
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE)
        self._loop = asyncio.get_running_loop()

    async def carry(self) -> None:
        async with asyncio.TaskGroup() as both_ends:
            both_ends.create_task(self._take_in())
            both_ends.create_task(self._let_out())

    async def _take_in(self) -> None:
        segment = b"-"
        while segment:
            await self._connection.flowing.wait()
            segment = await self._reader.read(SEGMENT)
            await self._throttle.take(len(segment))
            await self._under_way.put((self._loop.time() + self._relay.latency, segment))

    async def _let_out(self) -> None:
        while True:
            due, segment = await self._under_way.get()
            late = self._late()
            await asyncio.sleep(max(0.0, due - self._loop.time()) + late)
            await self._connection.flowing.wait()
            if not segment:
                break
            self._writer.write(segment)
            await self._writer.drain()
        with suppress(OSError):
            self._writer.write_eof()

    def _late(self) -> float:
        late = self._relay.loss.draw() if self._relay.loss else 0.0
        if late is None:
            raise ConnectionResetError
        return late


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the port: while it does not listen, who connects is refused, and no one else is given it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.setblocking(False)
    return sock


async def _serve(listen: str, target: str, latency: float) -> None:
    (host, port), (there, their_port) = listen.rsplit(":", 1), target.rsplit(":", 1)
    relay = Relay((there, int(their_port)), host)
    relay.latency = latency
    await relay.start(int(port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Delays what passes: for a kernel that cannot (no sch_netem).")
    parser.add_argument("listen")
    parser.add_argument("target")
    parser.add_argument("--latency", type=float, default=0.0)
    asyncio.run(_serve(**vars(parser.parse_args())))
