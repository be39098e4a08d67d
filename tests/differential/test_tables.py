"""What is said of the cases is said of cases that are there."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.differential.cases import CASES
from tests.differential.known import KNOWN, Known


def test_each_case_has_a_name_of_its_own() -> None:
    assert [] == [name for name, number in Counter(case.name for case in CASES).items() if number > 1]


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: f"{entry.what}, {entry.cases[0]}")
def test_each_pattern_of_what_is_known_has_a_case(entry: Known) -> None:
    assert all(any(entry._replace(cases=(pattern,)).covers(case) for case in CASES) for pattern in entry.cases)
