"""All servers by name."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.peers import caddy, haproxy, nchan, nginx
from tests.benchmarks.processes import free_port
from tests.benchmarks.served import Server, served, source


def floor(bench: Bench) -> AbstractContextManager[Server]:
    """No proxy at all: the source itself, where a proxy would be. None of the others can cost less."""
    return source(bench, bench.cores.server)


SIDECAR = """
max_streams = 30000
max_readers = 30000
max_memory = "2GiB"
linger = 0  # or the streams of one measurement would still be read during the next
"""
SHARED = """
[[route]]
path = "/shared/*"
mode = "shared"
key_headers = []
"""


@contextmanager
def sidecar(bench: Bench, *settings: str) -> Iterator[Server]:
    """`settings` are further lines of its file."""
    port = free_port()
    with source(bench, bench.cores.load) as upstream, tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "sidecar.toml")
        file.write_text("\n".join([SIDECAR, *settings, SHARED]))
        command = [sys.executable, "-m", "sse_sidecar", "--config", str(file), "--upstream", upstream.url("")]
        command += ["--listen", f"127.0.0.1:{port}", "--admin-listen", "", "--log-level", "error"]
        with served("sidecar", command, bench.cores.server, port) as server:
            yield server._replace(feed=upstream.pid)


SERVERS: dict[str, Callable[[Bench], AbstractContextManager[Server]]] = {
    "floor": floor,
    "nginx": nginx,
    "haproxy": haproxy,
    "caddy": caddy,
    "nchan": nchan,
    "sidecar": sidecar,
}
