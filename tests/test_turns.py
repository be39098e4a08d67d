"""Turns: in order, a few in each round of the loop, and what that means for those who have little to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

from sse_sidecar.app import Sidecar
from sse_sidecar.delivery import _PIECES
from sse_sidecar.history import SEGMENT_BYTES
from sse_sidecar.turns import AT_ONCE, Turns
from tests.conftest import Ask, Connect, OpenStream
from tests.together import HOST, request_of


class Rounds:
    """Counts the rounds of the loop, and calls `each` in every one, until it is stopped."""

    def __init__(self, each: Callable[[], None] = lambda: None) -> None:
        self.number = 0
        self._each = each
        self._going_on = True
        self._next()

    def _next(self) -> None:
        if self._going_on:
            self.number += 1
            self._each()
            asyncio.get_running_loop().call_soon(self._next)

    def stop(self) -> None:
        self._going_on = False


async def taken(turns: Turns, number: int, *, cancelled: range = range(0)) -> list[list[int]]:
    """Has so many take a turn at once; who got one, round by round."""
    served: list[list[int]] = [[]]

    async def take(name: int) -> None:
        await turns.take()
        served[-1].append(name)

    tasks = [asyncio.ensure_future(take(name)) for name in range(number)]
    await asyncio.sleep(0)
    for name in cancelled:
        tasks[name].cancel()
    while not all(task.done() for task in tasks):
        served.append([])
        await asyncio.sleep(0)
    return [names for names in served if names]


async def test_turns_are_given_in_order_a_few_in_a_round() -> None:
    number = 3 * AT_ONCE + 1
    rounds = await taken(Turns(), number)

    assert list(range(number)) == [name for names in rounds for name in names]
    assert [AT_ONCE, AT_ONCE, AT_ONCE, 1] == [len(names) for names in rounds]


async def test_those_who_have_left_do_not_block_others() -> None:
    """The first ones, a whole round of them, and the last one."""
    number = 4 * AT_ONCE
    leaving = range(AT_ONCE - 1, 3 * AT_ONCE - 1)
    turns = Turns()
    rounds = await taken(turns, number, cancelled=leaving)
    everyone_left = await taken(turns, AT_ONCE + 1, cancelled=range(AT_ONCE + 1))
    after = await taken(turns, 2)

    assert [name for name in range(number) if name not in leaving] == [name for names in rounds for name in names]
    assert ([], [[0, 1]]) == (everyone_left, after)


async def test_one_who_comes_while_others_wait_is_the_last() -> None:
    turns = Turns()
    order: list[str] = []

    async def take(name: str, times: int) -> None:
        for _ in range(times):
            await turns.take()
            order.append(name)

    async with asyncio.TaskGroup() as group:
        for name in "abcdef":
            group.create_task(take(name, 2), name=name)

    assert [*"abcdef", *"abcdef"] == order


async def test_where_no_one_waits_a_turn_costs_one_round() -> None:
    turns = Turns()
    gone_by = []
    for _ in range(3):
        rounds = Rounds()
        before = rounds.number
        await turns.take()
        gone_by.append(rounds.number - before - 1)  # who has been given its turn in one round goes on in the next
        rounds.stop()

    assert [1, 1, 1] == gone_by


# On the wire

RESUMING = 100
EVENTS = 1500
EVENT = b"data: " + 480 * b"x" + b"\n\n"
"""Of which a whole history is more than one takes in a turn."""
FEW_ROUNDS = 6
"""Within which a live event goes from the service to its client, over two sockets, with all three in this process."""


async def test_a_live_event_passes_many_who_resume_a_long_history(
    sidecar: Sidecar, connect: Connect, ask: Ask, open_stream: OpenStream
) -> None:
    """In no round is more of the histories sent than in the turns of one, however many ask at once."""
    asked, first = await open_stream("/long", headers={"Host": HOST})
    await asked.stream(EVENT * EVENTS)
    await first.read_until(b"\nid: %d-" % EVENTS)
    asked_live, live = await open_stream("/live", headers={"Host": HOST})
    await asked_live.stream(b"data: 0\n\n")
    await live.read_until(b"\nid: 1-")
    clients = [await connect() for _ in range(RESUMING)]
    counts = sidecar.metrics.route("default")
    replayed: list[int] = []
    rounds = Rounds(lambda: replayed.append(counts.events_replayed))

    raw = request_of("/long", headers={"Last-Event-ID": f"0-{first.stream_id}"})
    for client in clients:
        client.writer.write(raw)
    while not counts.events_replayed:
        await asyncio.sleep(0)
    taken_by_then = []
    for number in range(2, 12):
        before = rounds.number
        asked_live.writer.write(b"9\r\ndata: 1\n\n\r\n")
        await live.read_until(b"\nid: %d-" % number)
        taken_by_then.append(rounds.number - before)
    still_to_come = RESUMING * EVENTS - counts.events_replayed
    for client in clients:
        await client.read_head()
        await client.read_until(b"\nid: %d-" % EVENTS)
    rounds.stop()

    in_a_round = max(later - earlier for earlier, later in pairwise(replayed))
    in_a_turn = _PIECES * 2 * SEGMENT_BYTES // len(EVENT)  # a segment is closed once it is full, with one read more
    assert in_a_turn < EVENTS
    assert max(taken_by_then) <= FEW_ROUNDS
    assert still_to_come > 0
    assert in_a_round <= AT_ONCE * in_a_turn
    assert RESUMING * EVENTS == counts.events_replayed
