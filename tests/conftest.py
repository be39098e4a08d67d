"""Fixtures: the scripted upstream, the sidecar in front of it, and time."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from sse_sidecar.app import Sidecar
from tests import harness
from tests.harness import Asked, ManualClock, Response, Upstream, port_of, request, start_sidecar

StartSidecar = Callable[..., Awaitable[Sidecar]]
Ask = Callable[..., Awaitable[Response]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The tests run on the loop that the command runs on."""
    return {"uvloop": uvloop.new_event_loop}


LONGEST = 60.0
"""Seconds that a test may take. A source that keeps one waiting makes it fail, not stand still."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _bounded(item.obj)


def _bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(LONGEST):
            await test(*args, **kwargs)

    return bounded


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    server = Upstream()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def start(upstream: Upstream, clock: ManualClock) -> AsyncIterator[StartSidecar]:
    """Starts a sidecar in front of the upstream, on the manual clock; settings as in the TOML file."""
    started: list[Sidecar] = []

    async def starting(**settings: Any) -> Sidecar:
        sidecar = await start_sidecar(settings.pop("upstream", upstream.url), settings.pop("clock", clock), **settings)
        started.append(sidecar)
        return sidecar

    yield starting
    for sidecar in started:
        await sidecar.stop()


@pytest.fixture
def settings() -> dict[str, Any]:
    """What the sidecar is started with; see `with_settings`."""
    return {}


def with_settings(**values: Any) -> pytest.MarkDecorator:
    """Marks a test: its sidecar is started with these settings, as in the TOML file."""
    return pytest.mark.parametrize("settings", [values], ids=["-".join(values)])


@pytest.fixture
async def sidecar(start: StartSidecar, settings: dict[str, Any]) -> Sidecar:
    return await start(**settings)


@pytest.fixture
async def ask(sidecar: Sidecar) -> AsyncIterator[Ask]:
    """Sends a request to the sidecar; every connection is closed at the end."""
    responses: list[Response] = []

    async def asking(*args: Any, **kwargs: Any) -> Response:
        response = await request(port_of(sidecar), *args, **kwargs)
        responses.append(response)
        return response

    yield asking
    for response in responses:
        response.close()


Connect = Callable[[], Awaitable[Response]]


@pytest.fixture
async def connect(sidecar: Sidecar) -> AsyncIterator[Connect]:
    """Opens a connection to the sidecar, for requests that are written byte by byte; all are closed at the end."""
    responses: list[Response] = []

    async def connecting() -> Response:
        responses.append(await harness.connect(port_of(sidecar)))
        return responses[-1]

    yield connecting
    for response in responses:
        response.close()


Opened = tuple[Asked, Response]
OpenStream = Callable[..., Awaitable[Opened]]


@pytest.fixture
def open_stream(upstream: Upstream, ask: Ask) -> OpenStream:
    """Opens a stream through the sidecar: the request as the upstream got it, and the client's answer.

    Arguments are those of `ask`; `answer` are header lines of the upstream's head.
    """

    async def opening(*args: Any, answer: tuple[str, ...] = (), **kwargs: Any) -> Opened:
        asking = asyncio.ensure_future(ask(*args, **kwargs))
        asked = await upstream.asked()
        await asked.begin(*answer)
        return asked, await asking

    return opening
