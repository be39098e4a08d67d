"""Streams in which nothing happens: what they take of memory, and what their heartbeats take of time."""

from __future__ import annotations

from functools import partial

from tests.benchmarks import measure, servers
from tests.benchmarks.bench import Bench
from tests.benchmarks.record import Bound, Row, Work

SERVERS = ("floor", "nginx", "haproxy", "caddy", "sidecar")
PATH = "/s/{i}?tag={i}&n=1&hold=1"
HEARTBEAT = 10
MEMORY, HEARTBEATS = "", f"heartbeats every {HEARTBEAT} s"


def run(bench: Bench) -> Work:
    work = Work("idle", "", "kib")
    streams = bench.fit(bench.pick(4000, 1000), 2, work)
    work.load = f"{streams:,} streams that are open and silent, each with an upstream connection"
    work.rows += measure.each(SERVERS, work, partial(_memory, bench, work, streams))
    work.hold("memory of an idle stream", work.figure("sidecar", "kib"), Bound("at most", 14, "KiB"))
    if bench.quick:
        work.notes.append("heartbeats take a minute: not with --quick")
    else:
        work.rows.append(_heartbeats(bench, work))
    cost = work.figure("sidecar", "pct_per_10k", HEARTBEATS)
    work.hold("CPU of the heartbeats of 10,000", cost, Bound("below", 5, "%"))
    return work


def _memory(bench: Bench, work: Work, streams: int, name: str) -> Row:
    bench.say(f"idle: {name}")
    with servers.SERVERS[name](bench) as server:
        options = {"conns": streams, "warmup": 0.5, "duration": 0.5, "check_tag": True}
        result = measure.load(bench, server, work, PATH, options)
        return Row(name, MEMORY, {"kib": result.counts["server"]["rss_kib_per_conn"]}, result.notes)


def _heartbeats(bench: Bench, work: Work) -> Row:
    bench.say("idle: heartbeats")
    streams = bench.fit(10_000, 2, work)
    with servers.sidecar(bench, f"heartbeat = {HEARTBEAT}") as server:
        # Two whole intervals, begun when the work of opening is over.
        options = {"conns": streams, "warmup": 2, "duration": 2 * HEARTBEAT, "check_tag": True}
        result = measure.load(bench, server, work, PATH, options)
        percent = result.counts["server"]["cpu_pct"] * 10_000 / streams
        return Row("sidecar", HEARTBEATS, {"pct_per_10k": percent}, result.notes)
