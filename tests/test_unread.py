"""Upstreams that no one reads: how long each is kept, and which goes when there are too many."""

from __future__ import annotations

import pytest

from sse_sidecar.unread import Unread
from tests.harness import ManualClock


class Kept:
    """Owns an upstream by name. Takes itself off when it is given up, as one whose stream has ended does."""

    def __init__(self, route: Route, name: str) -> None:
        self._route, self._name = route, name

    def give_up(self) -> None:
        self._route.unread.remove(self)
        self._route.given_up.append((self._name, self._route.clock.time() - self._route.since))


class Route:
    """Upstreams without a reader, and which of them were given up after how many seconds."""

    def __init__(self, clock: ManualClock, limit: int = 100) -> None:
        self.clock, self.since = clock, clock.time()
        self.unread = Unread(clock, limit)
        self.given_up: list[tuple[str, float]] = []
        self._owners: dict[str, Kept] = {}

    def leave(self, name: str, seconds: float = 30, *, repeatable: bool = True) -> None:
        self.unread.add(self._owners.setdefault(name, Kept(self, name)), seconds, repeatable=repeatable)

    def come_back(self, name: str) -> None:
        self.unread.remove(self._owners.setdefault(name, Kept(self, name)))

    @property
    def names(self) -> str:
        return "".join(name for name, _ in self.given_up)


@pytest.mark.parametrize("repeatable", [True, False])
def test_each_is_given_up_when_its_own_time_is_over(clock: ManualClock, repeatable: bool) -> None:
    route = Route(clock)
    for name, seconds in (("a", 30), ("b", 10), ("c", 20)):
        route.leave(name, seconds, repeatable=repeatable)

    clock.advance(25)
    clock.advance(25)

    assert [("b", 10), ("c", 20), ("a", 30)] == route.given_up
    assert (0, 0) == (len(route.unread), clock.pending)


@pytest.mark.parametrize("repeatable", [True, False])
def test_one_that_is_read_again_is_not_given_up(clock: ManualClock, repeatable: bool) -> None:
    route = Route(clock)
    route.leave("a", repeatable=repeatable)
    route.come_back("a")

    timers = clock.pending
    clock.advance(100)

    assert ([], 0, 0) == (route.given_up, len(route.unread), timers)


def test_its_time_begins_anew_when_its_readers_leave_again(clock: ManualClock) -> None:
    route = Route(clock)
    route.leave("a")
    clock.advance(20)
    route.come_back("a")
    clock.advance(20)
    route.leave("a")

    clock.advance(100)

    assert [("a", 70)] == route.given_up


def test_one_that_is_not_here_may_be_taken_off(clock: ManualClock) -> None:
    route = Route(clock)
    route.leave("a")

    route.come_back("b")

    assert 1 == len(route.unread)


@pytest.mark.parametrize(
    ("left", "given_up"),
    [
        ("ab", ""),
        ("abc", "a"),
        ("abcde", "abc"),
        ("ABC", "A"),
        ("aBC", "a"),
        ("BaC", "a"),
        ("BCa", "a"),
        ("BCaD", "aB"),
        ("aBcD", "ac"),
        ("abCDE", "abC"),
    ],
)
def test_over_the_limit_the_oldest_goes_and_what_can_be_asked_for_again_before_what_cannot(
    clock: ManualClock, left: str, given_up: str
) -> None:
    """Small letters can. The longer time that one has does not count."""
    route = Route(clock, limit=2)
    for name in left:
        route.leave(name, 600 if name.isupper() else 30, repeatable=name.islower())

    assert (given_up, 2) == (route.names, len(route.unread))


def test_one_that_was_back_in_between_is_the_youngest(clock: ManualClock) -> None:
    route = Route(clock, limit=2)
    for name in "ab":
        route.leave(name)
    route.come_back("a")
    route.leave("a")

    route.leave("c")

    assert "b" == route.names


def test_one_that_is_read_makes_room(clock: ManualClock) -> None:
    route = Route(clock, limit=2)
    for name in "ab":
        route.leave(name)
    route.come_back("b")

    route.leave("c")

    assert ("", 2) == (route.names, len(route.unread))


def test_what_was_given_up_for_room_is_not_given_up_again_in_time(clock: ManualClock) -> None:
    route = Route(clock, limit=1)
    for name in "ab":
        route.leave(name)

    clock.advance(100)

    assert [("a", 0), ("b", 30)] == route.given_up
