"""The same request, directly and through: what comes back and what arrives are the same, but for what is known."""

from __future__ import annotations

import shutil

import pytest

from tests.differential.cases import CASES, Case
from tests.differential.known import KNOWN, Known
from tests.differential.lab import Lab
from tests.test_demo_page import missing

if shutil.which("nginx") is None:
    missing("no nginx on this machine")

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_it_is_as_if_nothing_stood_between(lab: Lab, case: Case) -> None:
    known = {entry.what for entry in KNOWN if entry.covers(case)}
    found = (await lab.compared(case)).sidecar

    assert known == {difference.what for difference in found}, "\n".join(map(str, found))


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: f"{entry.what}, {entry.cases[0]}")
async def test_what_nginx_does_is_as_it_is_said(lab: Lab, entry: Known) -> None:
    compared = {case.name: (await lab.compared(case)).nginx for case in CASES if entry.covers(case)}
    alike = [name for name, found in compared.items() if entry.what in {difference.what for difference in found}]
    how = "none" if not alike else "every" if len(alike) == len(compared) else "some"

    assert entry.nginx == how, f"{alike} of {list(compared)}"
