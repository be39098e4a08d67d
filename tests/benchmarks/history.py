"""What it takes of memory to hold a byte of events."""

from __future__ import annotations

import re
from http.client import HTTPConnection

from tests.benchmarks import machine, servers
from tests.benchmarks.bench import Bench
from tests.benchmarks.record import Bound, Row, Work, WrongError
from tests.benchmarks.served import Server

SETTINGS = ("max_stream_events = 1000000", 'max_stream_bytes = "512MiB"')
_SEQ = re.compile(rb"^data: @0:(\d+):", re.MULTILINE)


def run(bench: Bench) -> Work:
    events = bench.pick(400_000, 100_000)
    work = Work("history", f"{events:,} events of 100 bytes held of one stream", "memory_per_byte")
    bench.say("history")
    with servers.sidecar(bench, *SETTINGS) as server:
        _read(server, events // 100)  # what a first stream takes once is not what an event takes
        before = machine.rss_bytes(server.pid)
        frames = _read(server, events)
        grown = machine.rss_bytes(server.pid) - before
    work.rows = [Row("sidecar", "", {"memory_per_byte": grown / frames})]
    work.hold("memory per byte of frames", work.figure("sidecar", "memory_per_byte"), Bound("below", 1.3, "x"))
    return work


def _read(server: Server, events: int) -> int:
    """Reads a stream to its end; the sidecar goes on holding it. Returns the bytes of its events, unchunked.

    Raises WrongError.
    """
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", f"/s?n={events}&burst=50")
    body = connection.getresponse().read()
    connection.close()
    if [int(seq) for seq in _SEQ.findall(body)] != list(range(1, events + 1)):
        raise WrongError(f"history: sidecar: the {events:,} events are not all there, or not in order")
    return len(body)
