"""A hand-off: in mid-stream the client is at another address, and what it was connected by is dead."""

from __future__ import annotations

from tests.scenarios.conftest import SetUp, both, one_loop
from tests.scenarios.options import STALLS
from tests.scenarios.relay import Relay
from tests.scenarios.scene import now_ms

pytestmark = one_loop


@both
class TestHandOff:
    async def test_the_stream_goes_on_at_another_address(self, set_up: SetUp, relay: Relay, kind: str) -> None:
        scene = await set_up(kind)
        await scene.open(20)
        moved = now_ms()
        relay.hand_off("127.0.0.2")
        scene.feed.say(35)
        await scene.sees("Reconnecting", since=moved)
        assert await scene.reconnected(moved) < 5000
        await scene.finish()

        assert ["127.0.0.1", "127.0.0.2"] == sorted(set(relay.sources))
        assert 1 == len(scene.feed.requests), "the service was asked once"

    async def test_it_goes_on_when_it_moves_while_events_are_on_their_way(
        self, set_up: SetUp, relay: Relay, kind: str
    ) -> None:
        scene = await set_up(kind)
        relay.latency = 0.05
        await scene.open(5)
        # The link holds half of these when it dies: what was sent and what arrived are not the same.
        relay.throttle(20_000)
        scene.feed.say(45)
        await scene.viewer.until_count(15)
        moved = now_ms()
        relay.hand_off("127.0.0.3")
        assert await scene.reconnected(moved) < 5000
        await scene.finish()

        assert "127.0.0.3" == relay.sources[-1]


class TestSilentHandOff:
    """Nothing is ever heard of the old connection, not even its end. A browser's own client cannot notice that."""

    async def test_a_change_of_network_is_acted_on_at_once(self, set_up: SetUp, relay: Relay) -> None:
        scene = await set_up("client")
        await scene.open(20)
        moved = now_ms()
        relay.hand_off("127.0.0.2", silent=True)
        scene.feed.say(35)
        await scene.viewer.page.evaluate("dispatchEvent(new Event('offline')), dispatchEvent(new Event('online'))")
        assert await scene.reconnected(moved) < 5000
        await scene.finish()

    async def test_silence_gives_it_away(self, set_up: SetUp, relay: Relay) -> None:
        scene = await set_up("client")
        await scene.open(20, **STALLS)
        moved = now_ms()
        relay.hand_off("127.0.0.2", silent=True)
        scene.feed.say(35)
        await scene.sees("Waiting", since=moved)
        await scene.sees("Reconnecting", since=moved)
        await scene.reconnected(moved)
        await scene.finish()
