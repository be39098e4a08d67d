"""Time that is passed in, and tasks that are not lost."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from sse_sidecar import clock as clocks
from sse_sidecar.clock import Clock
from tests.harness import ManualClock


async def turn() -> None:
    """Lets the loop run what is ready, and what that makes ready."""
    for _ in range(5):
        await asyncio.sleep(0)


def running(name: str) -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


# Sleep


async def test_a_sleep_ends_when_its_clock_says_so() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(clocks.sleep(clock, 5.0))
    await turn()
    clock.advance(4.9)
    await turn()
    assert not sleeping.done()
    clock.advance(0.2)
    await sleeping
    assert 0 == clock.pending


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(clocks.sleep(clock, 5.0))
    await turn()
    assert 1 == clock.pending
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert 0 == clock.pending


async def test_a_sleep_may_be_cancelled_in_the_moment_it_ends() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(clocks.sleep(clock, 5.0))
    await turn()
    sleeping.cancel()
    clock.advance(5.0)
    with pytest.raises(asyncio.CancelledError):
        await sleeping


async def test_a_loop_is_a_clock() -> None:
    clock: Clock = asyncio.get_running_loop()
    before = clock.time()
    await clocks.sleep(clock, 0.0)
    assert before <= clock.time()


# Wake


async def test_a_waiter_is_woken_once_and_nobody_never() -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    clocks.wake(None)
    clocks.wake(waiter)
    clocks.wake(waiter)
    await waiter
    assert waiter.done()


async def test_a_waiter_that_was_cancelled_is_left_alone() -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiter.cancel()
    clocks.wake(waiter)
    assert waiter.cancelled()


# Deadline


async def outlast(clock: Clock, delay: float, reached: list[str]) -> None:
    async with clocks.deadline(clock, delay):
        reached.append("within")
        await asyncio.get_running_loop().create_future()
        reached.append("never")


async def test_a_deadline_ends_what_takes_longer() -> None:
    clock, reached = ManualClock(), list[str]()
    work = asyncio.ensure_future(outlast(clock, 5.0, reached))
    await turn()
    clock.advance(4.9)
    await turn()
    assert not work.done()
    clock.advance(0.2)
    with pytest.raises(TimeoutError):
        await work
    assert ["within"] == reached
    assert 0 == clock.pending


async def test_work_done_within_its_deadline_is_not_disturbed_later() -> None:
    clock = ManualClock()
    async with clocks.deadline(clock, 5.0):
        await asyncio.sleep(0)
    assert 0 == clock.pending
    clock.advance(10.0)
    await turn()


async def test_an_error_within_a_deadline_comes_out_as_it_is() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="of its own"):
        async with clocks.deadline(clock, 5.0):
            raise ValueError("of its own")
    assert 0 == clock.pending


async def test_a_cancellation_from_outside_is_no_timeout() -> None:
    clock = ManualClock()
    work = asyncio.ensure_future(outlast(clock, 5.0, []))
    await turn()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert 0 == clock.pending


# Tasks


async def test_a_spawned_task_is_named_and_runs() -> None:
    done = []

    async def work() -> None:
        done.append("work")

    task = clocks.spawn(work(), name="pump")
    assert "pump" == task.get_name()
    await task
    assert ["work"] == done


async def test_a_spawned_task_lives_though_nobody_refers_to_it() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    clocks.spawn(work(), name="forgotten")
    await turn()
    gc.collect()
    [task] = running("forgotten")
    task.cancel()
    await turn()
    assert task.cancelled()


async def test_a_task_that_has_ended_is_let_go() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    before = len(clocks._running)
    task = clocks.spawn(work(), name="short")
    assert before + 1 == len(clocks._running)
    await task
    await turn()
    assert before == len(clocks._running)


async def test_what_a_task_dies_of_is_logged_under_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise ValueError("out of luck")

    clocks.spawn(work(), name="pump")
    await turn()
    [record] = caplog.records
    assert (logging.ERROR, "task pump failed") == (record.levelno, record.getMessage())
    assert record.exc_info
    assert "out of luck" == str(record.exc_info[1])


async def test_a_cancelled_task_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    task = clocks.spawn(work(), name="pump")
    await turn()
    task.cancel()
    await turn()
    assert [] == caplog.records
