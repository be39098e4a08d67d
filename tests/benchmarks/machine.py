"""The machine: its cores, how many files a process may have open, and what it calls itself."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import NamedTuple

SPARE_FILES = 100
"""Kept of the file limit for all that is not a stream: listening sockets, logs, libraries, the loop."""


class Cores(NamedTuple):
    """Which core the server gets, and which the load and what feeds the server. None is no pinning."""

    server: int | None
    load: int | None

    @property
    def pinned(self) -> bool:
        return self.server is not None


def cores() -> Cores:
    """Two cores of those this process may use, on different physical cores where there are such."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return Cores(None, None)
    server = usable[-1]
    apart = [core for core in usable[:-1] if core not in _siblings(server)]
    return Cores(server, (apart or usable)[0])


def _siblings(core: int) -> set[int]:
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return set()
    ends = [part.split("-") for part in text.strip().split(",")]
    return {core for end in ends for core in range(int(end[0]), int(end[-1]) + 1)}


def raise_file_limit() -> int:
    """Takes all the files that this process is allowed; its children inherit them. Returns their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def facts() -> dict[str, str | int]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()
