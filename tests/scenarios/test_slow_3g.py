"""Slow 3G: 100 kbit/s and 400 ms from end to end and back."""

from __future__ import annotations

from tests.scenarios.conftest import SetUp, both, one_loop
from tests.scenarios.relay import Relay
from tests.scenarios.scene import now_ms

pytestmark = one_loop

RATE = 100_000 / 8
LATENCY = 0.2


def slow_down(relay: Relay) -> None:
    relay.throttle(RATE)
    relay.latency = LATENCY


@both
class TestSlow3G:
    async def test_a_burst_arrives_whole_and_no_faster_than_the_link(
        self, set_up: SetUp, relay: Relay, kind: str
    ) -> None:
        scene = await set_up(kind)
        slow_down(relay)
        await scene.open(1)
        said = now_ms()
        await scene.finish()

        seen = await scene.viewer.seen()
        size = 49 * len(scene.feed._event(50))
        assert seen["arrivals"][-1] - said >= 1000 * (LATENCY + 0.9 * size / RATE)

    async def test_a_stream_that_is_cut_goes_on(self, set_up: SetUp, relay: Relay, kind: str) -> None:
        scene = await set_up(kind)
        slow_down(relay)
        await scene.open(10)
        cut = now_ms()
        relay.cut()
        scene.feed.say(40)
        await scene.sees("Reconnecting", since=cut)
        await scene.reconnected(cut)
        await scene.finish()
