"""What has been measured: rows of figures, and the goals they are held against. No I/O."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

Figures = dict[str, float]
"""By key; a key's unit is in COLUMNS."""

COLUMNS = {
    "cpu_us": ("CPU us/event", 3),
    "p99_ms": ("p99 ms", 2),
    "cpu_pct": ("CPU %", 1),
    "wall_per_s": ("events/s of wall time", 0),
    "cpu_per_s": ("events/s of CPU time", 0),
    "kib": ("KiB/stream", 2),
    "pct_per_10k": ("CPU % per 10,000", 2),
    "memory_per_byte": ("RSS bytes/frame byte", 2),
    "storms": ("storms", 0),
}
"""What heads a figure's column, and its decimals."""


class WrongError(Exception):
    """Something was measured that must not be: an event lost, doubled or out of order, a connection refused."""


class Row(NamedTuple):
    """One server under one load. `case` tells loads of one work apart."""

    server: str
    case: str
    figures: Figures
    notes: tuple[str, ...] = ()


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "at most": operator.le,
    "below": operator.lt,
    "at least": operator.ge,
}


class Bound(NamedTuple):
    """As in ("at most", 1.3, "x"); "x" is the unit of a ratio."""

    relation: str
    limit: float
    unit: str

    def holds(self, value: float) -> bool:
        return _COMPARISONS[self.relation](value, self.limit)


class Goal(NamedTuple):
    """`value` is None where it was not measured, and `why` says so."""

    what: str
    value: float | None
    bound: Bound
    why: str

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.bound.holds(self.value)


@dataclass
class Work:
    """A kind of load. `compared` is the figure that the servers' ratio is of."""

    name: str
    load: str
    compared: str
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, server: str, key: str, case: str = "") -> float | None:
        found = [row.figures for row in self.rows if (row.server, row.case) == (server, case)]
        return found[0].get(key) if found else None

    def ratio(self, key: str, server: str, case: str = "") -> float | None:
        """The sidecar's figure over a server's."""
        return over(self.figure("sidecar", key, case), self.figure(server, key, case))

    def hold(self, what: str, value: float | None, bound: Bound) -> None:
        """Adds a goal. A figure that is missing is blamed on what the notes say."""
        why = "; ".join(self.notes) if value is None else ""
        self.goals.append(Goal(what, value, bound, why))


def over(figure: float | None, other: float | None) -> float | None:
    return figure / other if figure is not None and other else None


def mean(rows: Iterable[Row]) -> list[Row]:
    """One row for each server and case, in the order of their first; figures are means."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.server, row.case), []).append(row)
    return [_mean(same) for same in groups.values()]


def _mean(rows: list[Row]) -> Row:
    figures = {key: fmean(row.figures[key] for row in rows) for key in rows[0].figures}
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    return rows[0]._replace(figures=figures, notes=tuple(notes))
