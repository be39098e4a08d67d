"""Whatever goes wrong, the page says so; what it does not say is a silent failure."""

from __future__ import annotations

from tests.harness import Asked, until
from tests.scenarios.conftest import SetUp, both, one_loop
from tests.scenarios.relay import Relay
from tests.scenarios.scene import now_ms
from tests.scenarios.sidecar import SidecarProcess

pytestmark = one_loop

GONE = "5-pAAAAAAAAAAAAAAAAAAAAAA"
"""A token of a POST's stream that no one knows (any more)."""


QUICKLY = 100
"""Milliseconds, as the service's `retry`: what is measured here is not how long it takes."""


async def refuse(asked: Asked) -> None:
    await asked.respond(
        "401 Unauthorized", "Content-Type: application/problem+json", body=b'{"title": "Sign in again", "status": 401}'
    )


async def not_found(asked: Asked) -> None:
    await asked.respond("404 Not Found", "Content-Type: text/plain", body=b"gone")


class TestLostWork:
    """What was begun with POST is not begun again by itself, so its loss is final, and is said."""

    async def test_work_that_is_lost_is_shown(self, set_up: SetUp) -> None:
        scene = await set_up("client")
        await scene.open(10, method="POST", body="{}")
        scene.feed.lose()
        await scene.sees("error: upstream-lost")
        await scene.sees("Failed")

        assert 1 == len(scene.feed.requests)


@both
class TestUserExperience:
    async def test_a_refusal_is_shown(self, set_up: SetUp, kind: str) -> None:
        scene = await set_up(kind)
        scene.feed.refusals.append(refuse)
        await scene.viewer.watch(scene.path)
        await scene.sees("Failed")

        assert 1 == len(scene.feed.requests)

    async def test_a_stream_that_is_gone_is_shown(self, set_up: SetUp, kind: str) -> None:
        scene = await set_up(kind)
        await scene.viewer.watch(f"{scene.path}?last_event_id={GONE}")
        await scene.sees("Failed")

        assert not scene.feed.requests

    async def test_a_gap_is_shown_with_what_is_lost(self, set_up: SetUp, relay: Relay, kind: str) -> None:
        scene = await set_up(kind, "/short")
        scene.feed.retry = QUICKLY
        await scene.open(10)
        off = now_ms()
        relay.off()
        scene.feed.say(40)
        await scene.sees("Reconnecting", since=off)
        await until(lambda: scene.feed.sent == 40)
        await relay.accept()
        await scene.reconnected(now_ms())
        await scene.sees("gap: 20 lost")
        await scene.finish(told_lost=20)

    async def test_a_new_beginning_is_shown(self, set_up: SetUp, sidecar: SidecarProcess, kind: str) -> None:
        """The sidecar is restarted, and the service cannot resume: it says everything anew, and the page is told."""
        scene = await set_up(kind)
        scene.feed.has_ids = False
        scene.feed.retry = QUICKLY
        await scene.open(10)
        off = now_ms()
        await sidecar.restart()
        await scene.sees("Reconnecting", since=off)
        await scene.sees("reset")
        await scene.finish()

    async def test_nothing_is_lost_with_the_sidecar_where_the_service_has_ids(
        self, set_up: SetUp, sidecar: SidecarProcess, kind: str
    ) -> None:
        scene = await set_up(kind)
        scene.feed.retry = QUICKLY
        await scene.open(10)
        off = now_ms()
        await sidecar.restart()
        scene.feed.say(30)
        await scene.sees("Reconnecting", since=off)
        await scene.reconnected(off)
        await scene.finish()

        notes = (await scene.viewer.seen())["notes"]
        assert not [note for note in notes if note.startswith(("gap", "reset"))]

    async def test_a_service_that_is_lost_is_shown(self, set_up: SetUp, kind: str) -> None:
        scene = await set_up(kind)
        scene.feed.retry = QUICKLY
        await scene.open(10)
        scene.feed.refusals += [not_found, not_found]
        scene.feed.lose()
        await scene.sees("upstream-lost", "error: upstream-lost")
        await scene.sees("Failed")

    async def test_the_end_is_shown(self, set_up: SetUp, kind: str) -> None:
        scene = await set_up(kind)
        scene.feed.retry = QUICKLY
        await scene.open(10)
        await scene.finish()
        await scene.viewer.until_shown("Complete")

        words = [shown["words"] for shown in (await scene.viewer.seen())["words"]]
        assert "Failed" not in words

    async def test_being_offline_is_shown(self, set_up: SetUp, relay: Relay, kind: str) -> None:
        scene = await set_up(kind)
        scene.feed.retry = QUICKLY
        await scene.open(10)
        off = now_ms()
        await scene.viewer.page.context.set_offline(True)
        relay.cut()
        scene.feed.say(40)
        await scene.sees("Offline", since=off)
        on = now_ms()
        await scene.viewer.page.context.set_offline(False)
        await scene.reconnected(on)
        await scene.finish()
