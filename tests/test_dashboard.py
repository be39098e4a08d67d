"""The dashboard: its expressions by Prometheus' own tools, what they name, and its layout. No Grafana is needed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from sse_sidecar.app import Sidecar
from tests.conftest import Ask
from tests.harness import Upstream
from tests.test_alerts import (
    ALERTS,
    CONFIG,
    PROMETHEUS_TIMEOUT,
    Use,
    answer,
    exported,
    health_of_targets,
    prometheus,
    promtool,
    uses,
)

DASHBOARD: dict[str, Any] = json.loads((CONFIG / "grafana-dashboard.json").read_text(encoding="utf-8"))
VARIABLES: dict[str, dict[str, Any]] = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GRAFANA_S = {"$__rate_interval": "5m", "$__range": "1h", "$instance": ".+", "$route": ".+"}

each_panel = pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])


# Expressions


def plain(expression: str) -> str:
    """An expression with values for what Grafana fills in."""
    for name, value in GRAFANA_S.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def label_values(variable: dict[str, Any]) -> tuple[str, str]:
    """The expression and the label whose values a variable has."""
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert asked
    return plain(asked[1]), asked[2]


QUERIES = [label_values(variable) for variable in VARIABLES.values() if variable["type"] == "query"]
TARGETS = [(plain(target["expr"]), target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [
    *(expression for expression, _ in QUERIES + TARGETS),
    *(plain(annotation["expr"]) for annotation in DASHBOARD["annotations"]["list"]),
]


def test_every_expression_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"expression:{number}", "expr": it} for number, it in enumerate(EXPRESSIONS)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    ran = promtool("check", "rules", "--lint=none", file)

    assert 0 == ran.returncode, ran.stdout + ran.stderr


async def test_every_expression_has_an_answer(sidecar: Sidecar, tmp_path: Path) -> None:
    async with prometheus(tmp_path, str(sidecar.admin_address)) as port, asyncio.timeout(PROMETHEUS_TIMEOUT):
        while await health_of_targets(port) != ["up"]:
            await asyncio.sleep(0.1)
        answers = [await answer(port, f"/api/v1/query?query={quote(expression)}") for expression in EXPRESSIONS]

    assert [] == [expression for expression, data in zip(EXPRESSIONS, answers, strict=True) if data is None]


def labels_shown() -> Iterator[Use]:
    """The labels in legends and variables, each asked of all metrics of its expression."""
    legends = [(expression, label) for expression, text in TARGETS for label in re.findall(r"\{\{(\w+)\}\}", text)]
    for expression, label in QUERIES + legends:
        yield from (Use(use.metric, label) for use in uses(expression))


async def test_expressions_legends_and_variables_name_what_is_exported(
    sidecar: Sidecar, ask: Ask, upstream: Upstream
) -> None:
    named = {use for expression in EXPRESSIONS for use in uses(expression)} | set(labels_shown())

    assert set() == named - await exported(sidecar, ask, upstream)


# Thresholds


def thresholds(title: str) -> list[float]:
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    return [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]]


def limit(alert: str) -> float:
    """The number that an alert's expression is compared with; the times of the budget where it burns."""
    numbers: list[str] = re.findall(r"[<>] ([\d.]+)", ALERTS[alert]["expr"])
    return float(numbers[0])


@pytest.mark.parametrize(
    ("titles", "alert"),
    [
        (("Without a replay", "Completion rate"), "SseCompletionRateLow"),
        (("Mean time to a resume", "Time to a resume"), "SseReconnectsSlow"),
        (("Errors for clients served", "Errors for the clients served"), "SseErrorsHigh"),
        (("Duplicates",), "SseDuplicatesHigh"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_threshold_is_that_of_the_alert(titles: tuple[str, ...], alert: str) -> None:
    assert [[limit(alert)]] * len(titles) == [thresholds(title) for title in titles]


def test_the_thresholds_of_availability_are_the_objective_and_the_burn_rates() -> None:
    burns = ["SseAvailabilityBurnsSlowly", "SseAvailabilityBurns", "SseAvailabilityBurnsFast"]

    assert [limit(alert) for alert in burns] == thresholds("Burn rate of the error budget")
    assert {"0.001"} == {budget for alert in burns for budget in re.findall(r"\* ([\d.]+)", ALERTS[alert]["expr"])}
    assert [0.999] == thresholds("Availability") == thresholds("Availability by route")


# Layout


@each_panel
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]

    assert panel["title"]
    assert re.fullmatch(r"[A-Z].*\.", panel["description"])
    assert ". " not in panel["description"]
    assert unit


def test_all_ask_the_prometheus_that_was_chosen() -> None:
    asked = [item.get("datasource") for panel in PANELS for item in [panel, *panel["targets"]]]
    asked += [
        item.get("datasource")
        for item in [*DASHBOARD["annotations"]["list"], VARIABLES["instance"], VARIABLES["route"]]
    ]

    assert [{"type": "prometheus", "uid": "${datasource}"}] * len(asked) == asked


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}


def test_panels_do_not_overlap_and_leave_no_hole() -> None:
    placed = [(panel["title"], cells(panel)) for panel in DASHBOARD["panels"]]
    taken = set[tuple[int, int]]().union(*(of_panel for _, of_panel in placed))
    height = max(y for _, y in taken) + 1

    assert [] == [(one, other) for (one, a), (other, b) in combinations(placed, 2) if a & b]
    assert {(x, y) for x in range(24) for y in range(height)} == taken


def test_panels_stand_in_the_order_in_which_they_are_read() -> None:
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in DASHBOARD["panels"]]

    assert sorted(places) == places
    assert ["What users get", "Traffic", "Upstream", "Latency", "Resources"] == [row["title"] for row in ROWS]


def test_ids_and_titles_are_each_there_once() -> None:
    for key in ("id", "title"):
        values = [panel[key] for panel in DASHBOARD["panels"]]

        assert sorted(set(values)) == sorted(values)


def test_grafana_is_told_the_version_and_the_variables() -> None:
    assert ("sse-sidecar", 39, None) == (DASHBOARD["uid"], DASHBOARD["schemaVersion"], DASHBOARD["id"])
    assert {"datasource": "datasource", "instance": "query", "route": "query"} == {
        name: variable["type"] for name, variable in VARIABLES.items()
    }
    assert "prometheus" == VARIABLES["datasource"]["query"]
