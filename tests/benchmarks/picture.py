"""The picture of the README: bars by server, each panel on a scale of its own. One SVG, with no library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from tests.benchmarks.record import Row, Work

WIDTH, MARGIN = 840, 20
PANEL_WIDTH, GUTTER = 380, 40
NAME_WIDTH, VALUE_WIDTH = 66, 74
BAR, PITCH = 16, 24
TITLE_HEIGHT, PANEL_GAP, FOOT = 52, 26, 46

# The picture is shown on pages of either colour: its ground is left out, and its colours follow the reader's.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #3d444d }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 12px; fill: #6e7781 }
.ours { font-weight: 600; fill: #0969da }
.bar { fill: #afb8c1 } .bar.floor { fill: none; stroke: #afb8c1; stroke-dasharray: 3 2 } .bar.sidecar { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #d1d7e0 } .small { fill: #9198a1 } .ours { fill: #58a6ff }
  .bar { fill: #656c76 } .bar.floor { stroke: #656c76 } .bar.sidecar { fill: #4493f8 }
}
"""


class Panel(NamedTuple):
    """Which rows of which work, and in which unit."""

    work: str
    case: str
    key: str
    unit: str
    title: str
    below: str


COLUMNS = (
    (
        Panel("private", "", "cpu_us", "µs", "Private streams", "CPU per event, an upstream connection each"),
        Panel("idle", "", "kib", "KiB", "Idle streams", "Memory of each, with its upstream connection"),
    ),
    (
        Panel("fan-out", "1,000 readers", "cpu_us", "µs", "One stream, 1,000 readers", "CPU per event and reader"),
        Panel("replay", "a storm", "cpu_us", "µs", "1,000 clients come back", "CPU per event replayed, 1,000 to each"),
    ),
)


def draw(works: Sequence[Work], facts: Mapping[str, Any]) -> str:
    """An SVG of those panels that there are rows for."""
    named = {work.name: work for work in works}
    columns = [[filled for panel in column if (filled := (panel, _rows(panel, named)))[1]] for column in COLUMNS]
    height = max(map(_height, columns)) + FOOT
    parts = [
        part for at, column in enumerate(columns) for part in _column(column, MARGIN + at * (PANEL_WIDTH + GUTTER))
    ]
    return "\n".join([_opening(height), *parts, *_foot(height, facts), "</svg>", ""])


Filled = tuple[Panel, list[Row]]


def _rows(panel: Panel, works: Mapping[str, Work]) -> list[Row]:
    rows = works[panel.work].rows if panel.work in works else []
    return [row for row in rows if row.case == panel.case]


def _height(column: Sequence[Filled]) -> int:
    return sum(TITLE_HEIGHT + PITCH * len(rows) + PANEL_GAP for _, rows in column)


def _opening(height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        f' role="img" aria-label="The sidecar beside other servers; less is better">\n<style>{STYLE}</style>'
    )


def _column(column: Sequence[Filled], left: int) -> Iterator[str]:
    top = 0
    for panel, rows in column:
        yield _text(left, top + 22, panel.title, "title")
        yield _text(left, top + 40, panel.below, "small")
        most = max(row.figures[panel.key] for row in rows)
        for at, row in enumerate(rows):
            yield from _bar(left, top + TITLE_HEIGHT + at * PITCH, row, panel, row.figures[panel.key] / most)
        top += _height([(panel, rows)])


def _bar(left: int, top: int, row: Row, panel: Panel, share: float) -> Iterator[str]:
    width = max(2.0, share * (PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH))
    kind = "ours" if row.server == "sidecar" else ""
    yield _text(left, top + 13, row.server, kind)
    # Half a pixel in, where the outline of the floor's bar is sharp.
    place = f'x="{left + NAME_WIDTH + 0.5}" y="{top + 0.5}" width="{width:.1f}" height="{BAR}"'
    yield f'<rect class="bar {row.server}" {place} rx="2"/>'
    yield _text(left + NAME_WIDTH + width + 8, top + 13, _value(row.figures[panel.key], panel.unit), kind)


def _value(value: float, unit: str) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def _foot(height: int, facts: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {facts[name]}" for name in ("nginx", "haproxy", "caddy") if name in facts)
    yield _text(MARGIN, height - 28, "Less is better. Floor: no proxy, the source itself. One core for each.", "small")
    yield _text(MARGIN, height - 10, f"{facts['cpu']}, {facts['python']}, {versions}".rstrip(", "), "small")


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{kind}">{escape(words)}</text>'
