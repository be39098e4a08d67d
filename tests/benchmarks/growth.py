"""What an event costs when there is more of everything: streams, readers of one stream, history."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks import fanout, measure, private, servers
from tests.benchmarks.bench import Bench
from tests.benchmarks.record import Bound, Row, Work, over

STREAMS, READERS = (10, 100, 1000, 10_000), (1, 10, 100, 1000, 5000)
TOTAL = 20_000
"""Events per second of all streams, where they are so many that each has fewer than `private.RATE`."""

EMPTY, FULL = "history empty", "history full"
HISTORIES: dict[str, tuple[str, ...]] = {
    EMPTY: ("max_stream_events = 5000000", 'max_stream_bytes = "1GiB"'),
    FULL: ("max_stream_events = 10000",),
}
"""One that does not fill while it is measured, and one that is full from its first hundredth on."""


def run(bench: Bench) -> Work:
    work = Work("growth", "one event of the sidecar, as there is more of everything", "")
    streams = _fitting(bench, work, bench.pick(STREAMS, (100, 1000)), 2)
    readers = _fitting(bench, work, bench.pick(READERS, (1, 1000)), 1)
    if bench.quick:
        work.notes.append(f"more than {_streams(streams[-1])} take a while to open: not with --quick")
    work.rows = [_private(bench, work, count) for count in streams]
    work.rows += [_shared(bench, work, count) for count in readers]
    work.rows += _histories(bench, work)
    _hold(work, streams, readers)
    return work


def _fitting(bench: Bench, work: Work, counts: tuple[int, ...], files_each: int) -> list[int]:
    return list(dict.fromkeys(bench.fit(count, files_each, work) for count in counts))


def _streams(count: int) -> str:
    return f"{count:,} streams"


def _private(bench: Bench, work: Work, count: int) -> Row:
    bench.say(f"growth: {_streams(count)}")
    rate = min(private.RATE, TOTAL / count)
    with servers.sidecar(bench) as server:
        result = measure.load(bench, server, work, f"/s/{{i}}?tag={{i}}&n=0&rate={rate}", private.options(bench, count))
        return measure.row(server, _streams(count), result, "cpu_us", "cpu_pct")


def _shared(bench: Bench, work: Work, count: int) -> Row:
    bench.say(f"growth: {fanout.case(count)}")
    with servers.sidecar(bench) as server:
        path = fanout.path("sidecar", count)
        result = measure.load(bench, server, work, path, fanout.options(bench, count))
        return measure.row(server, fanout.case(count), result, "cpu_us", "cpu_pct")


def _histories(bench: Bench, work: Work) -> Iterator[Row]:
    """Every event is waited for: a reader that lags would leave events to the upstream's account that it never had."""
    events = bench.pick(1_000_000, 300_000)
    for case, settings in HISTORIES.items():
        bench.say(f"growth: {case}")
        with servers.sidecar(bench, *settings) as server:
            options = {"conns": 1, "want": events, "duration": 60, "check_size": 100}
            result = measure.load(bench, server, work, f"/s?n={events}&hold=1", options)
            yield measure.row(server, case, result, "cpu_us", "cpu_pct")


def _hold(work: Work, streams: list[int], readers: list[int]) -> None:
    most, usual = _streams(streams[-1]), _streams(min(1000, streams[-1]))
    flat = None if most == usual else _of(work, most, usual)
    work.hold(f"CPU per event at {most}, of that at {usual}", flat, Bound("at most", 1.25, "x"))
    many, few = fanout.case(readers[-1]), fanout.case(readers[0])
    work.hold(f"CPU per delivery to {many}, of that to {few}", _of(work, many, few), Bound("at most", 1, "x"))
    full = _of(work, FULL, EMPTY)
    work.hold("CPU per event with the history full, of that empty", full, Bound("at most", 1.25, "x"))


def _of(work: Work, case: str, other: str) -> float | None:
    return over(work.figure("sidecar", "cpu_us", case), work.figure("sidecar", "cpu_us", other))
