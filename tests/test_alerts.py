"""Alert rules and scrape configuration, by Prometheus' own tools; and what they name exists."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from sse_sidecar.app import Sidecar
from tests.conftest import Ask
from tests.harness import Upstream, request, scrape

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"
PROMETHEUS_TIMEOUT = 30.0
"""Seconds for a database to start and to be asked the first time; nothing waits for it when all is well."""

# What the tools find


def found(tool: str) -> str:
    """The path of one of Prometheus' tools. Where a build runs, they are to be there."""
    path = shutil.which(tool)
    if path:
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"no {tool} on this machine", pytrace=False)
    pytest.skip(f"no {tool} on this machine")


def promtool(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [found("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("check", "config", "--lint-fatal", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    ran = promtool(*arguments[:-1], CONFIG / arguments[-1])

    assert 0 == ran.returncode, ran.stdout + ran.stderr


def as_discovered(container: str, phase: str = "Running", **annotations: str) -> dict[str, Any]:
    """A port of a container in a pod, as Prometheus finds it in Kubernetes."""
    labels = {f"pod_annotation_{re.sub(r'[^a-z]', '_', name)}": value for name, value in annotations.items()}
    labels |= {"namespace": "shop", "pod_name": "app-1", "pod_ip": "10.0.0.7"}
    labels |= {"pod_container_name": container, "pod_phase": phase, "pod_label_app": "app"}
    return {
        "targets": ["10.0.0.7:8080"],
        "labels": {f"__meta_kubernetes_{name}": value for name, value in labels.items()},
    }


def relabelled(directory: Path, targets: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the variant for Kubernetes, which is a comment, makes of the targets; without those it drops."""
    _, _, variant = (CONFIG / "prometheus.yml").read_text(encoding="utf-8").partition("# In Kubernetes")
    (job,) = yaml.safe_load("\n".join(line[1:] for line in variant.splitlines()[1:]))
    assert [{"role": "pod"}] == job.pop("kubernetes_sd_configs")
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [{**job, "static_configs": targets}]}), encoding="utf-8")
    ran = promtool("check", "service-discovery", "--timeout=2s", config, "sse-sidecar")
    return [target["labels"] for target in json.loads(ran.stdout) if target["labels"]]


def test_in_kubernetes_the_sidecar_of_each_pod_that_runs_is_scraped(tmp_path: Path) -> None:
    deployment = next(yaml.safe_load_all((CONFIG / "kubernetes.yaml").read_text(encoding="utf-8")))
    pod = deployment["spec"]["template"]
    (container,) = [container["name"] for container in pod["spec"]["initContainers"]]
    annotations = pod["metadata"]["annotations"]
    targets = [
        as_discovered(container, **annotations),
        as_discovered("app", **annotations),
        as_discovered(container),
        as_discovered(container, "Succeeded", **annotations),
    ]
    (scraped,) = relabelled(tmp_path, targets)

    assert {
        "__address__": "10.0.0.7:9464",
        "__metrics_path__": "/metrics",
        "instance": "10.0.0.7:9464",
        "job": "sse-sidecar",
        "namespace": "shop",
        "app": "app",
        "pod": "app-1",
    } == {name: value for name, value in scraped.items() if name.endswith(("address__", "path__")) or name[0] != "_"}


# The rules among themselves


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((CONFIG / "alerts.yml").read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = [rule["record"] for rule in rules() if "record" in rule]

each_alert = pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    tests = yaml.safe_load((CONFIG / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]

    assert {(name, fires) for name in ALERTS for fires in (True, False)} == {
        (case["alertname"], bool(case.get("exp_alerts"))) for case in cases
    }


def test_there_are_three_severities() -> None:
    assert {"critical", "warning", "info"} == {alert["labels"]["severity"] for alert in ALERTS.values()}


@each_alert
def test_an_alert_says_where_and_what_it_means_for_users(alert: dict[str, Any]) -> None:
    where = "{{ $labels.instance }}" if alert["expr"].startswith("up") else "{{ $labels.route }}"
    annotations = alert["annotations"]

    assert {"summary", "description", "runbook_url"} == set(annotations)
    assert where in annotations["summary"]
    assert re.search(r"\buser", annotations["description"], re.IGNORECASE)
    assert annotations["description"].endswith(".")


@each_alert
def test_a_runbook_has_its_place_in_the_readme(alert: dict[str, Any]) -> None:
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")

    assert "README.md" == file
    assert f'<a id="{anchor}"></a>' in (ROOT / file).read_text(encoding="utf-8")


# What expressions name

_TARGET = {"job", "instance", "pod"}
"""Labels that Prometheus gives to what it scrapes, the last in Kubernetes."""
_OWN = {"up": _TARGET, "ALERTS": {"alertname", "alertstate"}}
"""Metrics that Prometheus makes itself."""
_WORDS = {"offset", "and", "or", "unless", "bool"}
_GROUPING = r"\b(?:by|without|on|ignoring)\s*\(([^()]*)\)"


class Use(NamedTuple):
    """A metric as an expression names it, and a label that is asked of it, if any."""

    metric: str
    label: str | None = None


def _metrics(expression: str) -> list[str]:
    bare = re.sub(rf"\{{[^}}]*\}}|\[[^]]*\]|{_GROUPING}", " ", expression)
    return [name for name in re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*+(?!\s*\()", bare) if name not in _WORDS]


def _operand(expression: str) -> str:
    """What the parentheses hold that the expression begins with."""
    depth = 0
    for at, character in enumerate(expression):
        depth += (character == "(") - (character == ")")
        if not depth:
            return expression[: at + 1]
    raise AssertionError(f"no end: {expression}")


def uses(expression: str) -> set[Use]:
    """The metrics of an expression in PromQL, with the labels in their matchers and in the groupings over them."""
    plain = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    named = {Use(metric) for metric in _metrics(plain)}
    for metric, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", plain):
        named |= {Use(metric, label) for label in re.findall(r"(\w+)\s*[=!]", matchers)}
    for grouping in re.finditer(_GROUPING + r"\s*(?=\()", plain):
        over = _metrics(_operand(plain[grouping.end() :]))
        named |= {Use(metric, label) for label in re.findall(r"\w+", grouping[1]) for metric in over}
    return named


def test_uses_are_found_in_all_places() -> None:
    expression = """
      sum without (code) (increase(errors{code!~"4..", route=~"}{(,"}[5m] offset 1m)) > 0.05 * 1e3
        / on (job) (up or 0 * job:sum:rate5m{a="b\\""}) and histogram_quantile(0.5, sum by (le, x) (rate(b_bucket[1h])))
    """

    assert {
        *{("errors", None), ("errors", "code"), ("errors", "route")},
        *{("up", None), ("up", "job"), ("job:sum:rate5m", None), ("job:sum:rate5m", "job"), ("job:sum:rate5m", "a")},
        *{("b_bucket", None), ("b_bucket", "le"), ("b_bucket", "x")},
    } == uses(expression)


async def exported(sidecar: Sidecar, ask: Ask, upstream: Upstream) -> set[Use]:
    """All that /metrics has, with its labels. Only requests passed through are not counted before there is one."""
    asking = asyncio.ensure_future(ask("/"))
    await (await upstream.asked()).respond("404 Not Found")
    await asking
    known = {Use(metric, label) for metric, labels in _OWN.items() for label in [None, *labels]}
    for sample in await scrape(sidecar):
        metric, _, labels = sample.partition("{")
        known |= {Use(metric, label) for label in [None, *_TARGET, *re.findall(r'(\w+)="', labels)]}
    return known


async def test_the_rules_name_what_is_exported(sidecar: Sidecar, ask: Ask, upstream: Upstream) -> None:
    named = {use for rule in rules() for use in uses(rule["expr"]) if use.metric not in RECORDED}

    assert set() == named - await exported(sidecar, ask, upstream)


def test_every_recorded_ratio_is_used() -> None:
    named = {use.metric for alert in ALERTS.values() for use in uses(alert["expr"])}

    assert set(RECORDED) == {metric for metric in named if ":" in metric}


async def test_promtool_finds_no_fault_in_the_metrics(sidecar: Sidecar) -> None:
    assert sidecar.admin_address is not None
    response = await request(sidecar.admin_address.port, "/metrics", headers={"Connection": "close"})
    exposition = (await response.read_to_end()).decode()
    response.close()
    ran = await asyncio.to_thread(promtool, "check", "metrics", stdin=exposition)

    assert ["sse_reconnect_time_ms metric names should not contain abbreviated units"] == ran.stderr.splitlines()


# Prometheus itself


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _configured(directory: Path, target: str) -> Path:
    """The configuration as it is, but for the target's port and the pace."""
    shutil.copy(CONFIG / "alerts.yml", directory)
    text = (CONFIG / "prometheus.yml").read_text(encoding="utf-8")
    for old, new, times in (("127.0.0.1:9464", target, 1), ("_interval: 15s", "_interval: 1s", 2)):
        assert times == text.count(old)
        text = text.replace(old, new)
    config = directory / "prometheus.yml"
    config.write_text(text, encoding="utf-8")
    return config


@asynccontextmanager
async def prometheus(directory: Path, target: str) -> AsyncIterator[int]:
    """A Prometheus that scrapes `target`: its port."""
    port = _free_port()
    arguments = (
        f"--config.file={_configured(directory, target)}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(found("prometheus"), *arguments, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def answer(port: int, path: str) -> Any:
    """The data of an answer of Prometheus' API, or None where there is none yet."""
    try:
        response = await request(port, path, headers={"Connection": "close"})
        body = await response.read_to_end()
        response.close()
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    return json.loads(body)["data"] if response.status == 200 else None


async def health_of_targets(port: int) -> list[str]:
    return [target["health"] for target in (await answer(port, "/api/v1/targets") or {}).get("activeTargets", [])]


async def _health_of_rules(port: int) -> set[str]:
    groups = (await answer(port, "/api/v1/rules") or {}).get("groups", [])
    return {rule["health"] for group in groups for rule in group["rules"]}


async def test_prometheus_scrapes_a_sidecar_and_evaluates_the_rules(sidecar: Sidecar, tmp_path: Path) -> None:
    async with (
        prometheus(tmp_path, str(sidecar.admin_address)) as port,
        asyncio.timeout(PROMETHEUS_TIMEOUT),
    ):
        while await health_of_targets(port) != ["up"] or await _health_of_rules(port) != {"ok"}:
            await asyncio.sleep(0.1)
