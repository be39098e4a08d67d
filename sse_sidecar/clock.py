"""Time, as it is passed in, and tasks, as they are started.

Everything that waits takes a `Clock`. An asyncio loop is one; a test brings its own and moves it by hand.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

T = TypeVar("T")

log = logging.getLogger(__name__)


class Timer(Protocol):
    """What has been asked for, and may be called off."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Seconds that only grow, and call-backs by them."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer: ...


async def sleep(clock: Clock, delay: float) -> None:
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_later(delay, wake, woken)
    try:
        await woken
    finally:
        timer.cancel()


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Lets whoever waits go on; it may have been cancelled meanwhile."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


@asynccontextmanager
async def deadline(clock: Clock, delay: float) -> AsyncIterator[None]:
    """`asyncio.timeout` by a clock that is passed in. Raises TimeoutError."""
    async with asyncio.timeout(None) as scope:
        timer = clock.call_later(delay, scope.reschedule, 0)
        try:
            yield
        finally:
            timer.cancel()


_running: set[asyncio.Task[Any]] = set()


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """A task of its own. The loop keeps only a weak reference, and no one asks a lost task what it died of."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task %s failed", task.get_name(), exc_info=error)
