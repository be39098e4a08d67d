"""What was measured, as text for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.record import COLUMNS, Figures, Goal, Row, Work

_RATIO = "sidecar/this"

DECIMALS = 4
"""Of a figure in the JSON: more than any is exact to."""


def table(work: Work) -> str:
    keys = list(dict.fromkeys(key for row in work.rows for key in row.figures))
    head = ["", "", *[COLUMNS[key][0] for key in keys], _RATIO if _is_compared(work) else "", ""]
    lines = aligned([head, *[_cells(work, row, keys) for row in work.rows]])
    notes = [f"  note: {note}" for note in work.notes]
    return "\n".join([f"{work.name}: {work.load}", *lines, *notes])


def _is_compared(work: Work) -> bool:
    return any(_ratio(work, row) is not None for row in work.rows)


def _cells(work: Work, row: Row, keys: Sequence[str]) -> list[str]:
    ratio = _ratio(work, row)
    figures = [number(row.figures, key) for key in keys]
    return [row.server, row.case, *figures, "" if ratio is None else f"{ratio:.2f}", "; ".join(row.notes)]


def _ratio(work: Work, row: Row) -> float | None:
    return None if row.server == "sidecar" else work.ratio(work.compared, row.server, row.case)


def number(figures: Figures, key: str) -> str:
    return f"{figures[key]:,.{COLUMNS[key][1]}f}" if key in figures else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names and notes to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    left = {0, 1, len(row) - 1}
    cells = zip(row, widths, strict=True)
    return [cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in enumerate(cells)]


def goals(works: Sequence[Work]) -> str:
    rows = [[work.name, goal.what, *_verdict(goal)] for work in works for goal in work.goals]
    return "\n".join(["goals", *(aligned([["", "", "figure", "goal", ""], *rows]) if rows else [])])


def _verdict(goal: Goal) -> list[str]:
    bound = f"{goal.bound.relation} {goal.bound.limit:,g} {goal.bound.unit}"
    if goal.value is None:
        return ["", bound, f"not measured: {goal.why}"]
    digits = 0 if abs(goal.value) >= 1000 else 2
    return [f"{goal.value:,.{digits}f} {goal.bound.unit}", bound, "met" if goal.met else "not met"]


def as_json(facts: Mapping[str, Any], works: Sequence[Work]) -> str:
    return json.dumps({"machine": dict(facts), "works": [_work(work) for work in works]}, indent=1) + "\n"


def _work(work: Work) -> dict[str, Any]:
    return {
        "name": work.name,
        "load": work.load,
        "rows": [_row(work, row) for row in work.rows],
        "goals": [_goal(goal) for goal in work.goals],
        "notes": work.notes,
    }


def _row(work: Work, row: Row) -> dict[str, Any]:
    figures = {key: round(figure, DECIMALS) for key, figure in row.figures.items()}
    return row._asdict() | {"figures": figures, "sidecar_over_this": _rounded(_ratio(work, row))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _goal(goal: Goal) -> dict[str, Any]:
    return {"what": goal.what, "value": _rounded(goal.value), **goal.bound._asdict(), "met": goal.met, "why": goal.why}
