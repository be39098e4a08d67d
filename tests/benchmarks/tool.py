"""ssebench, the load tool: built from its source beside this file, run, and what it counted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks import processes
from tests.benchmarks.record import Figures, WrongError

SOURCE = Path(__file__).with_name("ssebench.c")

FAULTS = (
    "gaps",
    "dups",
    "reordered",
    "crosstalk",
    "bad_size",
    "silent",
    "closes",
    "ends",
    "connect_errors",
    "http_errors",
)
"""Counts that are 0 where every event came once, in order, to whom it was for, and it is the reader who leaves."""

BUSY = 90
"""Per cent of its core from which on the load tool, not the server, may be what is measured."""

RAMP_TIMEOUT = 30.0
"""Seconds after which measuring begins even if some connections have no answer yet; those count as `silent`."""


class NoCompilerError(Exception):
    """Without a C compiler there is no load."""


def build() -> Path:
    """The tool's path. A build is kept for as long as its source stays the same."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    path = _cache() / f"ssebench-{digest}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(path)
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sse-sidecar-benchmarks"


def compiler() -> str | None:
    return processes.program(os.environ.get("CC", "cc"))


def _compile(path: Path) -> None:
    found = compiler()
    if found is None:
        raise NoCompilerError("no C compiler: install one (gcc or clang), or name it in CC")
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory, "ssebench")
        subprocess.run([found, "-O2", "-std=gnu11", "-o", built, SOURCE], check=True)
        built.rename(path)  # whole or not at all, should two build at once


class Result:
    """What `ssebench load` counted."""

    def __init__(self, counts: dict[str, Any]) -> None:
        self.counts = counts

    @property
    def faults(self) -> dict[str, int]:
        faults = {name: self.counts[name] for name in FAULTS}
        if "complete_us" in self.counts:
            faults["unfinished"] = self.counts["conns"] - self.counts["complete_us"]["n"]
        return {name: count for name, count in faults.items() if count}

    @property
    def figures(self) -> Figures:
        server = self.counts["server"]
        return {
            "cpu_us": server["cpu_us_per_event"],
            "p99_ms": self.counts["lat_us"]["p99"] / 1000,
            "cpu_pct": server["cpu_pct"],
        }

    @property
    def notes(self) -> tuple[str, ...]:
        # What feeds the server shares the load's core.
        busy = self.counts["bench_cpu_pct"] + self.counts["feed_cpu_pct"] > BUSY
        return (*self._told_faults(), *["the load tool was the bottleneck"] * busy)

    def check(self, who: str) -> None:
        """Raises WrongError where an event was lost or doubled, or a connection did not hold."""
        if self.faults:
            raise WrongError(f"{who}: {', '.join(self._told_faults())}")

    def _told_faults(self) -> list[str]:
        return [f"{count} {name}" for name, count in self.faults.items()]


class Loading:
    """A run of `ssebench load` that goes on while its caller does something else."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> Result:
        """Waits for the end of the run. Raises WrongError where the tool itself gave up."""
        output, errors = self._process.communicate()
        if self._process.returncode:
            raise WrongError(errors.decode(errors="replace").strip() or f"ssebench: exit {self._process.returncode}")
        return Result(json.loads(output))


class Tool:
    """ssebench's roles as commands; the options are those of its README, `_` for `-`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def command(self, role: str, **options: str | float | bool) -> list[str]:
        words = [str(self._path), role]
        for name, value in options.items():
            if value is not False:
                words.append("--" + name.replace("_", "-"))
                words += [] if value is True else [str(value)]
        return words

    @contextmanager
    def loading(self, url: str, **options: str | float | bool) -> Iterator[Loading]:
        command = self.command("load", url=url, ramp_timeout=RAMP_TIMEOUT, **options)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
        try:
            yield Loading(process)
        finally:
            processes.kill(process)

    def load(self, url: str, **options: str | float | bool) -> Result:
        with self.loading(url, **options) as loading:
            return loading.result()
