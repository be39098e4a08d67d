"""Streams of their own, each with its upstream connection: what every proxy does, and what the sidecar does beside."""

from __future__ import annotations

from tests.benchmarks import measure, servers
from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Options
from tests.benchmarks.record import Bound, Row, Work, mean

RATE = 20
"""Events per second of each stream."""

OPENED_PER_S = 2000
"""Spreads the streams' events in time. Were all opened at once, all would be due at once, twenty times a second."""

PATH = f"/s/{{i}}?tag={{i}}&n=0&rate={RATE}"
SERVERS = ("floor", "nginx", "haproxy", "caddy", "sidecar")


def run(bench: Bench, streams: int = 1000, names: tuple[str, ...] = SERVERS) -> Work:
    work = Work("private", "", "cpu_us")
    streams = bench.fit(streams, 2, work)
    work.load = f"{streams:,} streams with {RATE} events/s, each with an upstream connection"

    def one(name: str) -> Row:
        bench.say(f"private: {name}")
        with servers.SERVERS[name](bench) as server:
            result = measure.load(bench, server, work, PATH, options(bench, streams))
            return measure.row(server, "", result, "cpu_us", "p99_ms", "cpu_pct")

    # Round by round, so that what else the machine does in a while falls on all of them.
    work.rows = mean(row for _ in range(bench.pick(2, 1)) for row in measure.each(names, work, one))
    _hold(work)
    return work


def options(bench: Bench, streams: int) -> Options:
    warmup, duration = bench.pick((2.0, 8.0), (0.3, 1.0))
    checks = {"check_tag": True, "check_size": 100}
    return {"conns": streams, "conn_rate": OPENED_PER_S, "warmup": warmup, "duration": duration, **checks}


def _hold(work: Work) -> None:
    work.hold("CPU per event, of nginx's", work.ratio("cpu_us", "nginx"), Bound("at most", 1.3, "x"))
    work.hold("CPU per event, of caddy's", work.ratio("cpu_us", "caddy"), Bound("below", 1, "x"))
    work.hold("p99 of the delay, of nginx's", work.ratio("p99_ms", "nginx"), Bound("at most", 2, "x"))
