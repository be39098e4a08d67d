"""One stream as fast as it goes."""

from __future__ import annotations

from functools import partial

from tests.benchmarks import measure, servers
from tests.benchmarks.bench import Bench
from tests.benchmarks.record import Bound, Row, Work, over

SERVERS = ("floor", "nginx", "haproxy", "caddy", "sidecar")
SINGLE, MANY = "1 event per write", "50 events per write"
BURSTS = {SINGLE: 1, MANY: 50}


def run(bench: Bench) -> Work:
    work = Work("flat-out", "one stream as fast as it goes, by how the upstream writes it", "cpu_us")
    for case in bench.pick((SINGLE, MANY), (SINGLE,)):
        work.rows += measure.each(SERVERS, work, partial(_row, bench, work, case))
    # By the time of its own core: the source and the load may be slower than the server between them.
    rate = work.figure("sidecar", "cpu_per_s", SINGLE)
    work.hold("events per second of the sidecar's core", rate, Bound("at least", 500_000, "events/s"))
    return work


def _row(bench: Bench, work: Work, case: str, name: str) -> Row:
    bench.say(f"flat-out: {name}, {case}")
    warmup, duration = bench.pick((0.5, 3.0), (0.2, 0.8))
    with servers.SERVERS[name](bench) as server:
        options = {"conns": 1, "warmup": warmup, "duration": duration, "check_size": 100}
        result = measure.load(bench, server, work, f"/s?n=0&burst={BURSTS[case]}", options)
        row = measure.row(server, case, result, "cpu_us", "cpu_pct")
        per_s = {"wall_per_s": result.counts["per_s"], "cpu_per_s": over(1e6, row.figures["cpu_us"]) or 0}
        return row._replace(figures=row.figures | per_s)
