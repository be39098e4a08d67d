"""Fixtures of the scenarios: one browser and one sidecar for all of them, a link and a page for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.scenarios import figures
from tests.scenarios.browser import browser, viewer
from tests.scenarios.figures import Figures
from tests.scenarios.options import HEARTBEAT, SCALE
from tests.scenarios.relay import Relay
from tests.scenarios.scene import Scene
from tests.scenarios.service import Service
from tests.scenarios.sidecar import SidecarProcess

CONFIG = f"""
upstream = "{{upstream}}"
admin_listen = ""
heartbeat = {HEARTBEAT}

[[route]]
path = "/stalls/*"
stall_timeout = {30 / SCALE}
on_stall = "reconnect"

[[route]]
path = "/short/*"
max_stream_events = 10

[[route]]
path = "/crowd/*"
mode = "shared"
join = "start"
key_headers = []
"""

MEASURED = pytest.StashKey[list[Figures]]()
_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURED] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    measured = [each for each in config.stash[MEASURED] if not each.is_empty]
    if measured:
        terminalreporter.section("scenarios")
        terminalreporter.write_line(figures.table(measured))
        figures.FILE.write_text(figures.as_json(measured))


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def service() -> AsyncIterator[Service]:
    running = Service()
    await running.upstream.start()
    yield running
    await running.upstream.stop()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def sidecar(service: Service, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SidecarProcess]:
    process = SidecarProcess(tmp_path_factory.mktemp("sidecar"), CONFIG.format(upstream=service.upstream.url))
    await process.start()
    yield process
    await process.kill()


@pytest_asyncio.fixture(loop_scope="package")
async def relay(sidecar: SidecarProcess) -> AsyncIterator[Relay]:
    link = Relay((sidecar.host, sidecar.port))
    await link.start()
    yield link
    await link.stop()


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[[str], Figures]:
    """Figures, under the test's name, that go into the table."""

    def measuring(kind: str) -> Figures:
        family = request.cls.__name__.removeprefix("Test") if request.cls else request.path.stem
        name = request.function.__name__.removeprefix("test_").replace("_", " ")
        own = Figures(f"{family}: {name}", kind)
        request.config.stash[MEASURED].append(own)
        return own

    return measuring


def path_for(under: str = "") -> str:
    """A path that no other test has."""
    return f"{under}/feed/{next(_numbers)}"


SetUp = Callable[..., Awaitable[Scene]]


@pytest_asyncio.fixture(loop_scope="package")
async def set_up(
    chromium: Browser, service: Service, relay: Relay, measure: Callable[[str], Figures]
) -> AsyncIterator[SetUp]:
    """Opens the page, on a link that is still good. The stream's path begins with `under`, which chooses the route."""
    async with AsyncExitStack() as stack:

        async def setting_up(kind: str, under: str = "") -> Scene:
            page = await stack.enter_async_context(viewer(chromium, relay.url, kind))
            return Scene(service, path_for(under), page, measure(kind))

        yield setting_up


one_loop = pytest.mark.asyncio(loop_scope="package")
"""The scenarios run in one loop: the browser is bound to the one it was started in. It ends with the last of them."""

both = pytest.mark.parametrize("kind", ["native", "client"])
