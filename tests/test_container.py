"""The Dockerfile, without a container engine: its steps are run, and what they make is started as an engine would.

The user is the Dockerfile's; where the tests run as root, no file can be written and no capability is left either.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sse_sidecar import __version__, config
from tests.harness import EVENT_SOURCE, TIMEOUT, Upstream, request
from tests.scenarios.browser import missing
from tests.test_cli import Running, environment, free_port

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "Dockerfile"
BUILD_TIMEOUT = 300.0


class Step(NamedTuple):
    """An instruction of the Dockerfile."""

    word: str
    text: str

    @property
    def pairs(self) -> dict[str, str]:
        """Of ENV, LABEL and ARG."""
        return dict(word.split("=", 1) for word in shlex.split(self.text))


def steps() -> list[Step]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and line[0] != "#"]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


def last_stage() -> list[Step]:
    all_steps = steps()
    return all_steps[max(index for index, step in enumerate(all_steps) if step.word == "FROM") :]


def last(word: str) -> str:
    """What the last stage says to an instruction that it has once."""
    (text,) = [step.text for step in last_stage() if step.word == word]
    return text


def pairs(word: str) -> dict[str, str]:
    return {key: value for step in last_stage() if step.word == word for key, value in step.pairs.items()}


def health_command() -> list[str]:
    command: list[str] = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    return command


# Its steps, run


class Image:
    """Folders in the place of file systems: `base` is the base image's Python, `root` what the stages make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base, self.root, self._stages = folder / "base", folder / "root", folder / "stages"
        self._stage = ""
        self._workdir = self.root

    def path(self, text: str) -> str:
        """What is in the image's root there, is in a folder here."""
        return re.sub(r"(?<![\w/.])/(?=opt/|src\b)", f"{self.root}/", text)

    def build(self) -> None:
        venv.create(self.base, with_pip=True, symlinks=True)
        self._stages.mkdir()
        does = {"FROM": self._begin, "WORKDIR": self._enter, "COPY": self._copy, "RUN": self._run}
        for step in steps():
            if step.word in does:
                does[step.word](step.text)

    def _begin(self, text: str) -> None:
        """What a stage has made is put aside: the next has of it only what it copies."""
        if self._stage:
            self.root.rename(self._stages / self._stage)
        self.root.mkdir()
        self._stage = text.rpartition(" AS ")[2]
        self._workdir = self.root

    def _enter(self, text: str) -> None:
        self._workdir = Path(self.path(text))
        self._workdir.mkdir()

    def _copy(self, text: str) -> None:
        *options, target = text.split()
        if options[0].startswith("--from="):
            stage, source = options[0].removeprefix("--from="), options[1].strip("/")
            shutil.copytree(self._stages / stage / source, self.path(target), symlinks=True)
            return
        for file in map(context, options):
            copy = shutil.copytree if file.is_dir() else shutil.copy
            copy(file, self._workdir / target)

    def _run(self, text: str) -> None:
        env = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
        ran = subprocess.run(
            ["sh", "-c", self.path(text)],
            cwd=self._workdir,
            env=env | {"PATH": f"{self.base}/bin:/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
        assert 0 == ran.returncode, ran.stdout.decode()

    @property
    def environment(self) -> Path:
        return self.root / "opt/sse-sidecar"

    @property
    def packages(self) -> Path:
        (folder,) = self.environment.glob("lib/python*/site-packages")
        return folder


def context(name: str) -> Path:
    """A file that the build is shown."""
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert name in shown, f".dockerignore keeps {name} from the build"
    return ROOT / name


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Made once. Not in pytest's own folders: the Dockerfile's user may not enter them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        built = Image(Path(folder))
        built.build()
        yield built


# What is written


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    ran = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)

    assert (0, "") == (ran.returncode, ran.stdout)


def test_the_base_is_named_once_and_exactly() -> None:
    bases = [step.text for step in steps() if step.word == "FROM"]

    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+ AS base", bases[0])
    assert ["base AS build", "base"] == bases[1:]


def test_the_labels_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in pairs("LABEL").items()}

    assert {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
    } == labels
    assert __version__ == pairs("ARG")["VERSION"]


def test_the_ports_are_those_of_its_settings() -> None:
    settings = config.load({"upstream": "http://service"}, pairs("ENV"))
    assert settings.admin_listen is not None

    assert f"{settings.listen.port} {settings.admin_listen.port}" == last("EXPOSE")
    assert ("0.0.0.0", "0.0.0.0") == (settings.listen.host, settings.admin_listen.host)


def test_signals_reach_the_process_itself() -> None:
    """No shell stands between."""
    assert ["/opt/sse-sidecar/bin/sse-sidecar"] == json.loads(last("ENTRYPOINT"))
    assert "SIGTERM" == last("STOPSIGNAL")


def test_the_user_is_a_number_and_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER"))


# What is made


def test_nothing_is_left_that_installs_or_builds(image: Image) -> None:
    tools = ("pip", "setuptools", "wheel", "hatchling", "gcc", "cc")
    in_packages = [path.name for tool in tools for path in image.packages.glob(f"{tool}*")]
    in_path = [path.name for tool in tools for path in (image.environment / "bin").glob(f"{tool}*")]
    in_base = [path.name for path in image.base.rglob("pip*") if path.parent.name in ("bin", "site-packages")]

    assert ([], [], []) == (in_packages, in_path, in_base)
    assert ["opt"] == [path.name for path in image.root.iterdir()]


def test_every_module_has_its_byte_code(image: Image) -> None:
    """No one may write it later."""
    modules = {path.stem for path in (image.packages / "sse_sidecar").glob("*.py")}
    compiled = {path.name.split(".")[0] for path in (image.packages / "sse_sidecar/__pycache__").glob("*.pyc")}

    assert {"__init__", "cli", "health"} <= modules
    assert modules == compiled


# What it does

SEALED = """
set -eu
folder=$1 python=$2 closed=$3 user=$4 group=$5
shift 5
if [ "$closed" ]; then
  mkdir -p "$folder/python"
  mount --bind "$python" "$folder/python"
  mount -t tmpfs -o mode=755 tmpfs "$closed"
  mkdir -p "$python"
  mount --bind "$folder/python" "$python"
fi
for point in $(cut -d " " -f 2 /proc/self/mounts); do
  case $point in /proc* | /sys* | /dev*) ;; *) mount -o remount,bind,ro "$point" || true ;; esac
done
for place in / "$folder" /tmp; do
  ! touch "$place/written" 2>/dev/null || { echo "$place can be written" >&2; exit 1; }
done
exec setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""
"""Runs a command where no file can be written, as a user without capabilities. What is above the Python that runs the
tests may be closed to others, as root's home is: an empty folder is put over it then, with that Python at its place."""


def closed_above(path: Path) -> str:
    """The topmost folder on the way to a file that others may not enter, or nothing."""
    closed = [folder for folder in path.parents if not folder.stat().st_mode & stat.S_IXOTH]
    return str(closed[-1]) if closed else ""


def sealed(image: Image, command: list[str]) -> list[str]:
    """The command, as a container engine would run it; as it is where the kernel leaves no other way."""
    if os.getuid() != 0:
        return command
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        missing("mount namespaces are not allowed here")
    python = Path(sys.base_prefix).resolve()
    arguments = [str(image.folder), str(python), closed_above(python), *last("USER").split(":"), *command]
    return ["unshare", "--mount", "sh", "-c", SEALED, "sealed", *arguments]


class Container(Running):
    """The entry point, started with the settings of the last stage, on ports of its own."""

    def __init__(self, image: Image, upstream: Upstream) -> None:
        self.image = image
        self.env = pairs("ENV") | {"SSE_SIDECAR_UPSTREAM": upstream.url, "SSE_SIDECAR_DRAIN_TIMEOUT": "2"}
        for name in ("SSE_SIDECAR_LISTEN", "SSE_SIDECAR_ADMIN_LISTEN"):
            self.env[name] = re.sub(r"\d+$", str(free_port()), self.env[name])

    async def run(self, command: list[str]) -> asyncio.subprocess.Process:
        inside = sealed(self.image, [self.image.path(word) for word in command])
        return await asyncio.create_subprocess_exec(*inside, env={"PATH": os.environ["PATH"]} | self.env, stderr=PIPE)

    async def start(self) -> None:
        super().__init__(await self.run(json.loads(last("ENTRYPOINT"))))
        await self.logged(" admin on ")
        self.port = int(self.env["SSE_SIDECAR_LISTEN"].rpartition(":")[2])

    async def health(self) -> tuple[int | None, str]:
        process = await self.run(health_command())
        async with asyncio.timeout(TIMEOUT):
            _, err = await process.communicate()
        return process.returncode, err.decode()

    def status(self, name: str) -> list[str]:
        """What the kernel says of the process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))


@pytest.fixture
async def container(image: Image, upstream: Upstream) -> AsyncIterator[Container]:
    started = Container(image, upstream)
    await started.start()
    yield started
    if started.process.returncode is None:
        started.process.kill()
    await started.process.communicate()


async def test_it_streams_and_is_healthy_and_ends_when_told(container: Container, upstream: Upstream) -> None:
    asking = asyncio.ensure_future(request(container.port, headers=EVENT_SOURCE))
    asked = await upstream.asked()
    await asked.begin()
    await asked.stream(b"data: 1\n\n")
    response = await asking
    await response.read_until(b"data: 1")
    health = await container.health()
    container.send(signal.SIGTERM)
    await response.read_to_end()
    response.close()

    assert [(f"1-{response.stream_id}", "data: 1")] == response.events()
    assert (0, True) == (health[0], health[1].startswith("healthy: 127.0.0.1:"))
    assert 0 == await container.ended()
    assert container.log.endswith("stopped\n")


async def test_it_runs_as_the_user_it_is_told_with_no_capability(container: Container) -> None:
    if os.getuid() != 0:
        missing("no other user can be had without root")
    user, group = last("USER").split(":")

    assert ([user] * 4, [group] * 4, []) == (
        container.status("Uid"),
        container.status("Gid"),
        container.status("Groups"),
    )
    assert ["0" * 16] == container.status("CapEff")


async def test_the_health_check_of_one_that_has_ended_fails(container: Container) -> None:
    container.send(signal.SIGTERM)
    await container.ended()
    code, line = await container.health()

    assert (1, True) == (code, line.startswith("unhealthy: 127.0.0.1:"))
