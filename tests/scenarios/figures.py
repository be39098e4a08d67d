"""What a run of the scenarios measured: one table for people, one file for a build to keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = Path("sse_test_results.json")


@dataclass
class Figures:
    """Of one stream in one scenario."""

    scenario: str
    client: str
    expected: int = 0
    """Events that the application was to get."""
    got: int = 0
    """Of those, how many it got, each counted once."""
    duplicates: int = 0
    """Events that the application got a second time."""
    dropped: int = 0
    """Events that the client got a second time and kept from the application."""
    told_lost: int = 0
    """Events that the scenario makes impossible to get, and that the application was told of."""
    reconnects_ms: list[float] = field(default_factory=list)
    """From the link's being there (again) to the first that is heard on it."""
    failures: int = 0
    silent: int = 0
    """Of the failures, those that the page showed nothing of."""

    @property
    def lost(self) -> int:
        return self.expected - self.told_lost - self.got

    @property
    def mean_reconnect_ms(self) -> float | None:
        times = self.reconnects_ms
        return sum(times) / len(times) if times else None

    @property
    def is_empty(self) -> bool:
        """Of a test that reads a stream, but measures nothing of it."""
        return not (self.expected or self.failures or self.reconnects_ms)


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure of all scenarios together, and what it is to be."""

    name: str
    unit: str
    value: float | None
    """None where nothing was measured: that meets no goal."""
    goal: float
    goal_words: str
    is_met: bool


def summary(measured: list[Figures]) -> list[Line]:
    expected = sum(each.expected - each.told_lost for each in measured)
    # Of each stream, or crowd, its own mean: a hundred clients in one scenario are not to drown all the others.
    reconnects = [each.mean_reconnect_ms for each in measured if each.mean_reconnect_ms is not None]
    completion = 100 * sum(each.got for each in measured) / expected if expected else None
    mean = sum(reconnects) / len(reconnects) / 1000 if reconnects else None

    def total(of: Callable[[Figures], int]) -> int:
        return sum(map(of, measured))

    return [
        Line("completion rate", "%", completion, 99.5, "≥ 99.5", completion is not None and completion >= 99.5),
        Line("mean reconnect", "s", mean, 5.0, "< 5", mean is not None and mean < 5),
        _none("loss", "events", total(lambda each: each.lost)),
        _none("duplicates", "events", total(lambda each: each.duplicates)),
        _none("silent failures", "", total(lambda each: each.silent)),
    ]


def _none(name: str, unit: str, value: int) -> Line:
    return Line(name, unit, value, 0.0, "0", value == 0)


def table(measured: list[Figures]) -> str:
    rows = [_row("", "goal", "this run", "")]
    rows += [
        _row(line.name, line.goal_words, _shown(line), "met" if line.is_met else "MISSED") for line in summary(measured)
    ]
    return "\n".join([*rows, "", *_by_scenario(measured)])


def _row(*cells: str) -> str:
    widths = (18, 8, 16, 7)
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _shown(line: Line) -> str:
    if line.value is None:
        return "not measured"
    number = f"{line.value:.2f}" if isinstance(line.value, float) else str(line.value)
    return f"{number} {line.unit}".rstrip()


def _by_scenario(measured: list[Figures]) -> Iterable[str]:
    heads = ("scenario", "client", "events", "lost", "told", "twice", "dropped", "reconnects", "mean ms", "silent")
    yield _detail(heads)
    for each in measured:
        yield _detail(
            (
                each.scenario,
                each.client,
                f"{each.got}/{each.expected}",
                str(each.lost),
                str(each.told_lost),
                str(each.duplicates),
                str(each.dropped),
                str(len(each.reconnects_ms)),
                "-" if each.mean_reconnect_ms is None else f"{each.mean_reconnect_ms:.0f}",
                f"{each.silent}/{each.failures}",
            )
        )


def _detail(cells: tuple[str, ...]) -> str:
    first, second, *rest = cells
    return f"{first:<80} {second:<13}" + "".join(f"{cell:>11}" for cell in rest)


def as_json(measured: list[Figures]) -> str:
    told = {
        "summary": [asdict(line) for line in summary(measured)],
        "scenarios": [{**asdict(each), "lost": each.lost} for each in measured],
    }
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"
