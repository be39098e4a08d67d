"""A stall past 30 s, on clocks that run ten times faster: found, shown, and over within 5 s of the link's return."""

from __future__ import annotations

from tests.harness import until
from tests.scenarios.conftest import SetUp, both, one_loop
from tests.scenarios.options import HEARTBEAT, RECONNECT, STALLS
from tests.scenarios.relay import Relay
from tests.scenarios.scene import now_ms

pytestmark = one_loop


def clocks(kind: str) -> dict[str, float]:
    """A browser's own client has none."""
    return STALLS if kind == "client" else {}


class TestStall:
    @both
    async def test_the_service_stalls_and_the_sidecar_asks_it_again(self, set_up: SetUp, kind: str) -> None:
        scene = await set_up(kind, "/stalls")
        scene.feed.retry = 100
        await scene.open(20, **clocks(kind))
        if kind == "client":
            await scene.sees("Waiting")
        await until(lambda: len(scene.feed.requests) == 2)
        await scene.finish()

        assert "20" == scene.feed.requests[1].header("last-event-id")

    @both
    async def test_the_link_stalls_and_is_cut_when_it_is_back(self, set_up: SetUp, relay: Relay, kind: str) -> None:
        scene = await set_up(kind)
        await scene.open(20, **clocks(kind))
        relay.stall()
        scene.feed.say(35)
        if kind == "client":
            await scene.sees("Waiting")
        back = now_ms()
        relay.flow(cut=True)
        assert await scene.reconnected(back) < 5000
        await scene.finish()

    async def test_the_link_stalls_until_the_client_gives_it_up(self, set_up: SetUp, relay: Relay) -> None:
        scene = await set_up("client")
        await scene.open(20, **STALLS)
        stalled = now_ms()
        relay.stall()
        scene.feed.say(35)
        await scene.sees("Waiting", since=stalled)
        await scene.sees("Reconnecting", since=stalled)
        # Silence is counted from the last heartbeat.
        assert now_ms() - stalled >= RECONNECT - 2000 * HEARTBEAT
        back = now_ms()
        relay.flow()
        assert await scene.reconnected(back) < 5000
        await scene.finish()

    async def test_silence_of_the_service_alone_is_no_stall_of_the_link(self, set_up: SetUp) -> None:
        scene = await set_up("client")
        await scene.open(20, **STALLS)
        quiet = now_ms()
        # Heartbeats keep coming all the while.
        await until(lambda: now_ms() - quiet > RECONNECT + 200)
        await scene.finish()

        assert 0 == (await scene.viewer.stats())["reconnects"]
        assert not any(each["status"] == "waiting" for each in (await scene.viewer.seen())["statuses"])
