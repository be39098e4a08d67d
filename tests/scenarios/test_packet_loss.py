"""One segment of ten is lost, as TCP shows it: by stalls until it is sent again, and by connections given up."""

from __future__ import annotations

from tests.scenarios.conftest import SetUp, both, one_loop
from tests.scenarios.relay import Loss, Relay
from tests.scenarios.scene import now_ms
from tests.scenarios.service import EVENTS

pytestmark = one_loop

SHARE = 0.1
DEADLY, LATE = 3030, 668
"""Seeds: of draws that give a connection up early, twice among the first fifty; and of some that only delay."""


@both
class TestPacketLoss:
    async def test_a_steady_stream_arrives_whole_over_connections_that_die(
        self, set_up: SetUp, relay: Relay, kind: str
    ) -> None:
        scene = await set_up(kind)
        await scene.open(1)
        relay.loss = Loss(SHARE, DEADLY)
        began = now_ms()
        await scene.feed.say_paced(EVENTS, 0.02)
        await scene.reconnected(await scene.sees("Reconnecting", since=began))
        await scene.finish()

        assert relay.loss.stalls
        assert relay.loss.cuts

    async def test_a_stream_that_is_opened_in_it_arrives_whole(self, set_up: SetUp, relay: Relay, kind: str) -> None:
        scene = await set_up(kind)
        relay.loss = Loss(SHARE, LATE)
        await scene.open(1)
        for number in range(2, EVENTS + 1):
            scene.feed.say(number)
            await scene.viewer.until_count(number)
        await scene.finish()

        assert relay.loss.stalls
