"""One server under one load: a row of the table, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from tests.benchmarks import peers
from tests.benchmarks.bench import Bench
from tests.benchmarks.processes import NotStartedError
from tests.benchmarks.record import Row, Work
from tests.benchmarks.served import Server
from tests.benchmarks.tool import Result

Options = Mapping[str, str | float | bool]
"""Of `ssebench load`."""


def each(names: Iterable[str], work: Work, one: Callable[[str], Row]) -> Iterator[Row]:
    """A row of each of the servers. The work's notes say which peers could not be started, and why."""
    for name in names:
        why = peers.missing(name)
        try:
            if not why:
                yield one(name)
        except NotStartedError as error:
            if name == "sidecar":
                raise
            why = f"{name} does not start: {error}"
        if why and why not in work.notes:
            work.notes.append(why)


def watching(server: Server) -> Options:
    """The options by which the load tool samples the server and what feeds it."""
    return {"pid": server.pid} if server.feed is None else {"pid": server.pid, "feed": server.feed}


def load(bench: Bench, server: Server, work: Work, path: str, options: Options) -> Result:
    """Raises WrongError where it is the sidecar that lost or doubled something; a peer's faults are for its row."""
    result = bench.tool.load(server.url(path), **watching(server), **options)
    return checked(result, server, work)


def checked(result: Result, server: Server, work: Work) -> Result:
    if server.name == "sidecar":
        result.check(f"{work.name}: {server.name}")
    return result


def row(server: Server, case: str, result: Result, *keys: str) -> Row:
    return Row(server.name, case, {key: result.figures[key] for key in keys}, result.notes)
