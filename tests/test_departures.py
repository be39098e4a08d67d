"""Readers that have gone: which of them comes back, and how long it was away."""

from __future__ import annotations

import pytest

from sse_sidecar.departures import MAX_DEPARTURES, Departures


def left(*departures: tuple[int, float]) -> Departures:
    found = Departures()
    for cursor, now in departures:
        found.add(cursor, now)
    return found


@pytest.mark.parametrize("after", [0, 3, 5])
def test_one_that_left_comes_back_with_all_or_less_than_it_was_written(after: int) -> None:
    assert 10.0 == left((5, 10.0)).take(after)


def test_one_that_has_more_than_anyone_was_written_is_not_known() -> None:
    assert None is left((5, 10.0)).take(6)


def test_each_comes_back_once() -> None:
    departures = left((5, 10.0))

    assert [10.0, None] == [departures.take(5), departures.take(5)]


def test_of_many_the_one_whose_place_fits_best_is_taken() -> None:
    departures = left((9, 10.0), (3, 20.0), (6, 30.0))

    assert [30.0, 20.0, 10.0] == [departures.take(5), departures.take(3), departures.take(0)]


def test_of_many_at_one_place_the_first_to_leave_is_the_first_to_come_back() -> None:
    departures = left((5, 20.0), (5, 10.0), (5, 30.0))

    assert [10.0, 20.0, 30.0] == [departures.take(5) for _ in range(3)]


def test_those_who_never_come_back_are_not_kept_for_ever() -> None:
    departures = left(*((cursor, 0.0) for cursor in range(MAX_DEPARTURES + 10)))
    found = [departures.take(0) for _ in range(MAX_DEPARTURES + 10)]

    assert MAX_DEPARTURES == len([at for at in found if at is not None])
