"""Child processes on a given core, ready when their port takes connections, and gone at the end whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

READY_TIMEOUT = 15.0
"""Seconds that a server may take to listen."""

_SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where servers are installed, and which are not in every user's PATH."""


class NotStartedError(Exception):
    """A server ended, or did not listen in time; the text has the end of its log."""


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATHS}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started within is pinned from its first instruction: threads of its own are pinned too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(
    command: Sequence[str], core: int | None, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a process with its output in `log`. It is killed at the end, not asked: there is nothing to be saved."""
    with log.open("wb") as output, on_core(core):
        # A group of its own: Ctrl-C reaches only us, and what the process itself has started is killed with it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if env is None else {**os.environ, **env},
            process_group=0,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Returns when the port takes connections. Raises NotStartedError."""
    deadline = time.monotonic() + READY_TIMEOUT
    while not _accepts(port):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:]
            raise NotStartedError(f"{process.args!r} is not listening on port {port}: {tail}")
        time.sleep(0.01)


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
        # Where no one listens, TCP may connect a socket to itself if it is given this very port.
        return bool(probe.getsockname() != probe.getpeername())
    return False
