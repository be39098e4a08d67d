"""The same, where the machine allows it, over a network of the kernel's own: its rate, its losses, its addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.scenarios.browser import browser, viewer
from tests.scenarios.conftest import both, one_loop
from tests.scenarios.figures import Figures
from tests.scenarios.kernel import CLIENT, MOVED, SERVER, Namespace, browser_inside, delayed, namespaces
from tests.scenarios.options import STALLS
from tests.scenarios.scene import Scene, now_ms
from tests.scenarios.service import EVENTS, Service
from tests.scenarios.sidecar import SidecarProcess

pytestmark = one_loop

PORT, LATE_PORT = 8080, 8081
"""Free: nothing else lives in the namespace."""

Ends = tuple[Namespace, Namespace]


@pytest_asyncio.fixture(loop_scope="package")
async def ends() -> AsyncIterator[Ends]:
    async with namespaces() as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="package")
async def far_browser(ends: Ends, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with browser(browser_inside(ends[1], tmp_path_factory.mktemp("browser"))) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="package")
async def far_service(ends: Ends, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service on a Unix socket, and in the namespace the sidecar in front of it."""
    folder = tmp_path_factory.mktemp("far")
    service = Service()
    await service.upstream.start_unix(str(folder / "service"))
    sidecar = SidecarProcess(folder, f'upstream = "unix://{folder}/service"\nadmin_listen = ""\n', ends[0].inside)
    await sidecar.start(f"{SERVER}:{PORT}")
    yield service
    await sidecar.kill()
    await service.upstream.stop()


@both
class TestKernel:
    async def test_slow_3g(
        self, ends: Ends, far_browser: Browser, far_service: Service, measure: Callable[[str], Figures], kind: str
    ) -> None:
        async with (
            delayed(ends[0], LATE_PORT, f"{SERVER}:{PORT}", 0.2),
            viewer(far_browser, f"http://{SERVER}:{LATE_PORT}", kind) as page,
        ):
            scene = Scene(far_service, "/feed", page, measure(kind))
            await scene.open(1)
            for end in ends:
                await end.throttle(100)
            said = now_ms()
            await scene.finish()

            size = 49 * len(scene.feed._event(50))
            assert (await page.seen())["arrivals"][-1] - said >= 1000 * (0.2 + 0.9 * size / 12_500)

    async def test_packet_loss(
        self, ends: Ends, far_browser: Browser, far_service: Service, measure: Callable[[str], Figures], kind: str
    ) -> None:
        async with viewer(far_browser, f"http://{SERVER}:{PORT}", kind) as page:
            scene = Scene(far_service, "/feed", page, measure(kind))
            await scene.open(1)
            for end in ends:
                await end.drop(10)
            await scene.feed.say_paced(EVENTS, 0.02)
            await scene.finish()

            assert sum([await end.dropped() for end in ends])


class TestKernelHandOff:
    """Nothing is heard of the old connection any more, which a browser's own client does not notice."""

    async def test_hand_off(
        self, ends: Ends, far_browser: Browser, far_service: Service, measure: Callable[[str], Figures]
    ) -> None:
        async with viewer(far_browser, f"http://{SERVER}:{PORT}", "client") as page:
            scene = Scene(far_service, "/feed", page, measure("client"))
            await scene.open(20, **STALLS)
            moving = now_ms()
            await ends[1].move(MOVED)
            scene.feed.say(35)
            await scene.sees("Reconnecting", since=moving)
            assert await scene.reconnected(moving) < 5000
            await page.page.evaluate("fetch('/page')")
            await scene.finish()

            assert {CLIENT, MOVED} == set(far_service.addresses)
