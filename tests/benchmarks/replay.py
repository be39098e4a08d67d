"""A storm: many readers come at once and want all that is held. And what those who read live notice of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.client import HTTPConnection

from tests.benchmarks import measure, private, servers
from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Options
from tests.benchmarks.record import Bound, Row, Work, mean, over
from tests.benchmarks.served import Server
from tests.benchmarks.tool import Loading, Result

READERS = 1000
HELD = 1000
"""Events."""

LIVE = 1000
"""Private streams that are read while storms go on."""

STREAM = f"/s?n={HELD}&hold=1"
SERVERS = ("floor", "nchan", "sidecar")
LIVE_SERVERS = ("floor", "sidecar")
"""What the floor's readers notice is the load's own core, which storms and live readers share."""

STORM, QUIET, STORMY = "a storm", "live readers", "live readers in storms"

Held = tuple[str, Options]
"""The path of a stream that is held in full, and how to ask for all of it."""


def run(bench: Bench) -> Work:
    work = Work("replay", "", "cpu_us")
    readers = bench.fit(READERS, 1, work)
    work.load = f"{readers:,} readers at once want {HELD:,} held events each"
    one = partial(_row, bench, work, readers)
    work.rows = mean(row for _ in range(bench.pick(3, 1)) for row in measure.each(SERVERS, work, one))
    for name in bench.pick(LIVE_SERVERS, LIVE_SERVERS[-1:]):
        work.rows += _live(bench, work, name, readers)
    _hold(work)
    return work


def _row(bench: Bench, work: Work, readers: int, name: str) -> Row:
    bench.say(f"replay: {name}")
    with servers.SERVERS[name](bench) as server, _HOLDING[name](bench, server) as (path, options):
        return measure.row(server, STORM, storm(bench, server, work, path, {**options, "conns": readers}), "cpu_us")


def storm(bench: Bench, server: Server, work: Work, path: str, options: Options) -> Result:
    """Over when every reader has had every event; the time to connect is part of it."""
    return measure.load(bench, server, work, path, {**options, "want": HELD, "duration": 60, "check_size": 100})


@contextmanager
def held_by_sidecar(bench: Bench, server: Server) -> Iterator[Held]:
    """The stream stays open."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", STREAM)
    answer = connection.getresponse()
    received = b""
    while f"@0:{HELD}:".encode() not in received:
        received = received[-100:] + answer.read1(1 << 16)
    yield STREAM, {"resume_from": f"0-{answer.headers['SSE-Stream']}"}
    connection.close()


@contextmanager
def _held_by_nchan(bench: Bench, server: Server) -> Iterator[Held]:
    publish = bench.tool.command("publish", url=server.url("/publish?c=s"), n=HELD, window=16)
    subprocess.run(publish, check=True, capture_output=True)
    yield "/held?c=s", {}


@contextmanager
def _made_by_source(bench: Bench, server: Server) -> Iterator[Held]:
    """The floor has nothing to hold: it makes the events, many to a write."""
    yield f"{STREAM}&burst=50", {}


_HOLDING: dict[str, Callable[[Bench, Server], AbstractContextManager[Held]]] = {
    "floor": _made_by_source,
    "nchan": _held_by_nchan,
    "sidecar": held_by_sidecar,
}


def _live(bench: Bench, work: Work, name: str, readers: int) -> Iterator[Row]:
    """The delay of private streams of one server, without and then with storms beside them."""
    options = private.options(bench, bench.fit(LIVE, 2, work))
    with servers.SERVERS[name](bench) as server, _HOLDING[name](bench, server) as held:
        bench.say(f"replay: {name}, live readers")
        quiet = measure.load(bench, server, work, private.PATH, options)
        yield measure.row(server, QUIET, quiet, "p99_ms", "cpu_pct")
        bench.say(f"replay: {name}, live readers, and storms beside them")
        with bench.tool.loading(server.url(private.PATH), **measure.watching(server), **options) as live:
            storms = _storms(bench, server, work, readers, held, until=live)
            stormy = measure.checked(live.result(), server, work)
        row = measure.row(server, STORMY, stormy, "p99_ms", "cpu_pct")
        yield row._replace(figures=row.figures | {"storms": storms})


def _storms(bench: Bench, server: Server, work: Work, readers: int, held: Held, *, until: Loading) -> int:
    """One after the other for as long as the other load goes on. How many there were."""
    path, options = held
    storms = 0
    while not until.over:
        storm(bench, server, work, path, {**options, "conns": readers})
        storms += 1
    return storms


def _hold(work: Work) -> None:
    work.hold("CPU per event of a storm", work.figure("sidecar", "cpu_us", STORM), Bound("at most", 0.4, "us"))
    work.hold("CPU per event of a storm, of nchan's", work.ratio("cpu_us", "nchan", STORM), Bound("at most", 0.33, "x"))
    delays = [work.figure("sidecar", "p99_ms", case) for case in (STORMY, QUIET)]
    work.hold("p99 of live readers' delay in storms, of that without", over(*delays), Bound("at most", 2, "x"))
