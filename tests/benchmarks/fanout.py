"""One stream to many readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks import measure, servers
from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Options
from tests.benchmarks.processes import running
from tests.benchmarks.record import Bound, Row, Work, mean
from tests.benchmarks.served import Server

DELIVERIES = 100_000
"""In a second, at most."""

FASTEST = 1000
"""Events per second of one stream: far enough apart that each is a write of its own."""

SERVERS = ("floor", "nchan", "sidecar")


def run(bench: Bench) -> Work:
    work = Work("fan-out", f"one stream to many readers, up to {DELIVERIES:,} deliveries/s", "cpu_us")
    for wanted in bench.pick((100, 1000, 5000), (1000,)):
        readers = bench.fit(wanted, 1, work)
        one = partial(_row, bench, work, readers)
        work.rows += mean(row for _ in range(bench.pick(2, 1)) for row in measure.each(SERVERS, work, one))
        _hold(work, case(readers))
    return work


def case(readers: int) -> str:
    return f"{readers:,} readers" if readers > 1 else "1 reader"


def rate(readers: int) -> float:
    return min(FASTEST, DELIVERIES / readers)


def _row(bench: Bench, work: Work, readers: int, name: str) -> Row:
    bench.say(f"fan-out: {name}, {case(readers)}")
    with servers.SERVERS[name](bench) as server, _fed(bench, server, rate(readers)):
        result = measure.load(bench, server, work, path(name, readers), options(bench, readers))
        return measure.row(server, case(readers), result, "cpu_us", "p99_ms", "cpu_pct")


def path(name: str, readers: int) -> str:
    return {
        "floor": f"/s?n=0&bcast=1&wait={readers}&rate={rate(readers)}",
        "nchan": "/live?c=s",
        "sidecar": f"/shared/s?n=0&rate={rate(readers)}",
    }[name]


def options(bench: Bench, readers: int) -> Options:
    warmup, duration = bench.pick((1.0, 6.0), (0.3, 1.0))
    return {"conns": readers, "warmup": warmup, "duration": duration, "check_size": 100}


@contextmanager
def _fed(bench: Bench, server: Server, events_per_s: float) -> Iterator[None]:
    """A pub/sub server has no upstream: it is sent the events."""
    if server.name != "nchan":
        yield
        return
    command = bench.tool.command("publish", url=server.url("/publish?c=s"), rate=events_per_s)
    with TemporaryDirectory() as directory, running(command, bench.cores.load, Path(directory, "log")):
        yield


def _hold(work: Work, which: str) -> None:
    work.hold(f"CPU per delivery to {which}, of nchan's", work.ratio("cpu_us", "nchan", which), Bound("below", 1, "x"))
    work.hold(
        f"CPU per delivery to {which}, of the floor", work.ratio("cpu_us", "floor", which), Bound("at most", 1.3, "x")
    )
