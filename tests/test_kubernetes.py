"""The manifest for Kubernetes: valid, in agreement with the Dockerfile and the settings, and its sums are right."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from sse_sidecar import __version__, config
from sse_sidecar.app import Sidecar
from tests.harness import request
from tests.test_container import last, pairs

FILE = Path(__file__).parent.parent / "config/kubernetes.yaml"
TEXT = FILE.read_text()
DEPLOYMENT, SERVICE = yaml.safe_load_all(TEXT)
POD = DEPLOYMENT["spec"]["template"]["spec"]
(APP,), (SIDECAR,) = POD["containers"], POD["initContainers"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
MIB = 1 << 20


def environment() -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in SIDECAR["env"]}


def settings() -> config.Settings:
    """What the container runs with: the image's environment, and the manifest's over it. A wrong name is an error."""
    return config.load(environ=pairs("ENV") | environment())


def ports() -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in SIDECAR["ports"]}


def sum_in_words(start: str) -> tuple[dict[str, int], int]:
    """The parts of a sum in a comment, as in `20 (preStop) + 10 (drain) = 30`, and what it says they make."""
    comment = re.sub(r"\n\s*# ", " ", TEXT[TEXT.index(start) :])
    parts, total = comment.split("=")[:2]
    found = re.search(r"\d+", total)
    assert found
    return {name: int(number) for number, name in re.findall(r"(\d+)(?: MiB)? \(([^)]+)\)", parts)}, int(found[0])


@pytest.mark.parametrize("version", ["1.30.0", "1.37.0"])
def test_it_is_valid_and_has_no_field_that_does_not_exist(version: str) -> None:
    command = Path(sysconfig.get_path("scripts"), "kubernetes-validate")
    ran = subprocess.run([command, "--strict", "-k", version, FILE], capture_output=True, text=True, check=False)

    assert (0, 2) == (ran.returncode, ran.stdout.count("passed for resource")), ran.stdout


def test_the_sidecar_is_a_native_one() -> None:
    """Without the policy it would be a step that never ends, and the app would never start."""
    assert "Always" == SIDECAR["restartPolicy"]
    assert f"registry.example.com/sse-sidecar:{__version__}" == SIDECAR["image"]


def test_its_variables_are_settings_that_can_be_used() -> None:
    upstream = settings().upstream
    (app_port,) = [port["containerPort"] for port in APP["ports"]]

    assert [] == [name for name in environment() if not name.startswith("SSE_SIDECAR_")]
    assert (config.Upstream("127.0.0.1", app_port),) == upstream


def test_its_ports_are_those_it_listens_on() -> None:
    listen, admin = settings().listen, settings().admin_listen
    assert admin is not None

    assert {"http": listen.port, "admin": admin.port} == ports()
    assert " ".join(map(str, ports().values())) == last("EXPOSE")


def test_the_service_leads_to_the_sidecar_by_number() -> None:
    """By a name it would lead nowhere before Kubernetes 1.32."""
    (port,) = SERVICE["spec"]["ports"]

    assert ports()["http"] == port["targetPort"]
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["template"]["metadata"]["labels"]


def test_clients_come_back_to_the_pod_that_holds_their_stream() -> None:
    assert "ClientIP" == SERVICE["spec"]["sessionAffinity"]
    assert settings().history_ttl == SERVICE["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]


async def test_what_is_asked_on_the_admin_port_is_there(sidecar: Sidecar) -> None:
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    asked = [SIDECAR[probe]["httpGet"] for probe in PROBES]
    paths = [*(probe["path"] for probe in asked), annotations["prometheus.io/path"]]
    assert sidecar.admin_address is not None
    for path in paths:
        response = await request(sidecar.admin_address.port, path)
        response.close()
        assert 200 == response.status

    assert ["/healthz", "/readyz", "/healthz", "/metrics"] == paths
    assert {ports()["admin"]} == {*(probe["port"] for probe in asked), int(annotations["prometheus.io/port"])}
    assert "true" == annotations["prometheus.io/scrape"]


def test_the_grace_period_is_the_sum_of_its_parts() -> None:
    parts, total = sum_in_words("20 (preStop)")
    sleep = APP["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = settings().drain_delay + settings().drain_timeout

    assert {"preStop": sleep, "the app's own end": 10, "drain_timeout": drain, "to spare": 5} == parts
    assert total == sum(parts.values()) == POD["terminationGracePeriodSeconds"]


def test_the_memory_is_the_sum_of_its_parts() -> None:
    parts, total = sum_in_words("60 MiB (the process)")
    now = settings()
    process, history, streams = parts.values()
    limit = config.size(SIDECAR["resources"]["limits"]["memory"] + "B")

    assert round(now.max_memory * 1.11 / MIB) == history
    assert round(now.max_streams * 21 * 1024 / MIB) == streams
    assert now.max_streams == now.max_readers
    assert total == process + history + streams < limit / MIB
    assert SIDECAR["resources"]["requests"]["memory"] == SIDECAR["resources"]["limits"]["memory"]


def test_it_may_do_nothing_that_it_need_not() -> None:
    expected = {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }

    assert expected == SIDECAR["securityContext"]
