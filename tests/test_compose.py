"""The Compose file: its settings can be used, and its service streams through a sidecar that has them."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import yaml

from sse_sidecar import config
from tests.conftest import StartSidecar
from tests.harness import EVENT_SOURCE, port_of, request
from tests.test_cli import Running, free_port
from tests.test_container import last, pairs, steps

FILE = Path(__file__).parent.parent / "config/compose.yaml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
APP, SIDECAR = SERVICES["app"], SERVICES["sse-sidecar"]


def settings() -> config.Settings:
    """What the container runs with: the image's environment, and the file's over it. A wrong name is an error."""
    return config.load(environ=pairs("ENV") | SIDECAR["environment"])


def test_the_image_is_built_from_here_and_its_health_check_is_kept() -> None:
    assert (FILE.parent / SIDECAR["build"] / "Dockerfile").is_file()
    assert "healthcheck" not in SIDECAR
    assert steps()[0].text == f"{APP['image']} AS base"


def test_its_variables_are_settings_that_can_be_used() -> None:
    assert [] == [name for name in SIDECAR["environment"] if not name.startswith("SSE_SIDECAR_")]
    assert (config.Upstream("app", 8000),) == settings().upstream


def test_only_the_sidecar_is_published_and_only_to_the_host() -> None:
    published = [port.split(":") for port in SIDECAR["ports"]]

    assert "ports" not in APP
    assert [["127.0.0.1", port, port] for port in last("EXPOSE").split()] == published


def test_it_is_given_time_to_drain() -> None:
    grace = int(SIDECAR["stop_grace_period"].removesuffix("s"))

    assert settings().drain_delay + settings().drain_timeout < grace
    assert ["app"] == SIDECAR["depends_on"]


def test_its_memory_holds_all_that_it_may_hold() -> None:
    at_most = (60 << 20) + settings().max_memory * 1.11 + settings().max_streams * 21 * 1024

    assert at_most < config.size(SIDECAR["mem_limit"].replace("m", "MiB"))


def test_it_may_do_nothing_that_it_need_not() -> None:
    assert (True, ["ALL"], ["no-new-privileges"]) == (
        SIDECAR["read_only"],
        SIDECAR["cap_drop"],
        SIDECAR["security_opt"],
    )


async def test_its_service_streams_through_the_sidecar(start: StartSidecar) -> None:
    python, *arguments = APP["command"]
    port = free_port()
    source, replaced = re.subn(r"\b8000\b", str(port), arguments[-1])
    ticker = await asyncio.create_subprocess_exec(sys.executable, *arguments[:-1], source)
    try:
        await Running(ticker).accepts(port)
        sidecar = await start(upstream=f"http://127.0.0.1:{port}")
        response = await request(port_of(sidecar), headers=EVENT_SOURCE)
        await response.read_until(b"data: 2")
        response.close()
    finally:
        ticker.kill()
        await ticker.wait()

    assert ("python", 1) == (python, replaced)
    assert ["data: 1", "data: 2"] == [block for _, block in response.events()][:2]
