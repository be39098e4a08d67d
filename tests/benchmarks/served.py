"""A server that has been started: where it listens, and which process it is. And the upstream of the others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.bench import Bench
from tests.benchmarks.processes import free_port, running, wait_until_ready


class Server(NamedTuple):
    """`feed` is the process that feeds it, where that is another."""

    name: str
    port: int
    pid: int
    feed: int | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def source(bench: Bench, core: int | None) -> Iterator[Server]:
    """The load tool's own upstream: what a stream is like is in the query of each request."""
    port = free_port()
    with served("floor", bench.tool.command("source", port=port), core, port) as server:
        yield server


@contextmanager
def served(
    name: str, command: Sequence[str], core: int | None, port: int, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with running(command, core, log, env) as process:
            wait_until_ready(process, port, log)
            yield Server(name, port, process.pid)
