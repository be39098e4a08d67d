"""A bad network of the kernel's own: two network namespaces and a pair of virtual cables between them.

The sidecar lives in one namespace and the browser in the other; the service is reached through a Unix socket, for which
namespaces are nothing. Rates are the kernel's token bucket (tc), losses its random drop (nft). Delay would be netem's,
which many kernels are built without: a relay in the sidecar's namespace is late in its stead.

No address here exists outside of the two namespaces.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from tests.harness import TIMEOUT
from tests.scenarios.browser import COMMAND, missing

SERVER, CLIENT, MOVED = "198.18.0.1", "198.18.0.2", "198.18.0.3"
"""Of the block that is set aside for measurements (RFC 2544)."""

TOOLS = ("ip", "tc", "nft")


class CommandFailed(Exception):
    """A command of the network's, and what it said."""


async def run(*command: str, text: str = "") -> str:
    given = PIPE if text else DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=given, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate(text.encode() or None)
    if process.returncode:
        raise CommandFailed(f"{' '.join(command)}: {err.decode().strip()}")
    return out.decode()


class Namespace:
    """One end of the cable."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.cable = name

    @property
    def inside(self) -> tuple[str, ...]:
        """What a command begins with that is to be run inside."""
        return ("ip", "netns", "exec", self.name)

    async def run(self, *command: str, text: str = "") -> str:
        return await run(*self.inside, *command, text=text)

    async def delete(self) -> None:
        """With a namespace goes its end of the cable, and with one end of a cable the other. There may be none."""
        with suppress(CommandFailed):
            await run("ip", "netns", "delete", self.name)

    async def plug_in(self) -> None:
        await run("ip", "link", "set", self.cable, "netns", self.name)
        await self.run("ip", "address", "add", f"{self.address}/24", "dev", self.cable)
        for device in ("lo", self.cable):
            await self.run("ip", "link", "set", device, "up")

    async def throttle(self, kbit: int) -> None:
        """What leaves here does so no faster. The bucket holds one packet; the queue before it, two seconds' worth."""
        bucket = ["rate", f"{kbit}kbit", "burst", "1600", "latency", "2s"]
        await self.run("tc", "qdisc", "replace", "dev", self.cable, "root", "tbf", *bucket)

    async def drop(self, percent: int) -> None:
        """Of the packets that arrive here, so many are never seen."""
        await self.run("nft", "-f", "-", text=DROP.format(cable=self.cable, percent=percent))

    async def dropped(self) -> int:
        """Packets so far."""
        counted = (await self.run("nft", "list", "counter", "inet", "bad", "dropped")).split()
        return int(counted[counted.index("packets") + 1])

    async def move(self, address: str) -> None:
        """To another address. What was connected from the one before is dead: nothing is sent, nothing arrives.

        In this order: with the first address of a network the kernel takes the others away.
        """
        await self.run("ip", "address", "del", f"{self.address}/24", "dev", self.cable)
        await self.run("ip", "address", "add", f"{address}/24", "dev", self.cable)
        self.address = address


DROP = """
table inet bad {{
  counter dropped {{}}
  chain arriving {{
    type filter hook input priority 0;
    iifname "{cable}" numgen random mod 100 < {percent} counter name "dropped" drop
  }}
}}
"""


@asynccontextmanager
async def namespaces() -> AsyncIterator[tuple[Namespace, Namespace]]:
    """The sidecar's and the browser's. The test is skipped where the machine does not allow them."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            missing(f"no {tool} on this machine")
    server = Namespace(f"sse{os.getpid()}s", SERVER)
    client = Namespace(f"sse{os.getpid()}c", CLIENT)
    async with AsyncExitStack() as stack:
        for each in (server, client):
            stack.push_async_callback(each.delete)
            try:
                await run("ip", "netns", "add", each.name)
            except CommandFailed as error:
                missing(f"network namespaces are not allowed here ({error})")
        await run("ip", "link", "add", server.cable, "type", "veth", "peer", "name", client.cable)
        for each in (server, client):
            await each.plug_in()
        yield server, client


def browser_inside(namespace: Namespace, folder: Path) -> str:
    """A command that runs the browser in there."""
    command = folder / "chromium-inside"
    command.write_text(f'#!/bin/sh\nexec {" ".join(namespace.inside)} {COMMAND} "$@"\n')
    command.chmod(0o755)
    return str(command)


@asynccontextmanager
async def delayed(namespace: Namespace, port: int, target: str, latency: float) -> AsyncIterator[None]:
    """A relay in the namespace that does nothing but be late, both ways."""
    relay = [sys.executable, "-m", "tests.scenarios.relay", f"{namespace.address}:{port}", target]
    process = await asyncio.create_subprocess_exec(
        *namespace.inside, *relay, "--latency", str(latency), stdin=DEVNULL, stdout=PIPE
    )
    try:
        await _ready(process)
        yield
    finally:
        process.kill()
        await process.communicate()


async def _ready(process: Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        assert await process.stdout.readline() == b"ready\n"
