"""The command `python -m tests.benchmarks`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click

from sse_sidecar import __version__
from tests.benchmarks import (
    fanout,
    flatout,
    growth,
    history,
    idle,
    machine,
    peers,
    picture,
    private,
    processes,
    replay,
    report,
    tool,
)
from tests.benchmarks.bench import Bench
from tests.benchmarks.processes import NotStartedError
from tests.benchmarks.record import Work, WrongError

WORKS: dict[str, Callable[[Bench], Work]] = {
    "private": private.run,
    "fan-out": fanout.run,
    "replay": replay.run,
    "flat-out": flatout.run,
    "idle": idle.run,
    "history": history.run,
    "growth": growth.run,
}


_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Shorter and smaller: under a minute, and less exact.")
@click.option("--only", "names", multiple=True, type=click.Choice(list(WORKS)), help="May be given more than once.")
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Writes the figures.")
@click.option("--svg", "svg_file", type=_FILE, metavar="FILE", help="Draws the picture.")
def main(*, quick: bool, names: tuple[str, ...], json_file: Path | None, svg_file: Path | None) -> None:
    """Measures the sidecar beside other servers. Fails when an event is lost or doubled, never for being slow."""
    bench = _bench(quick=quick)
    with processes.on_core(bench.cores.load):
        works, wrong = _run(bench, names or tuple(WORKS))
    click.echo(report.goals(works))
    facts = _facts(bench)
    if json_file:
        json_file.write_text(report.as_json(facts, works))
    if svg_file:
        svg_file.write_text(picture.draw(works, facts))
    for line in wrong:
        click.echo(f"WRONG: {line}", err=True)
    sys.exit(1 if wrong else 0)


def _bench(*, quick: bool) -> Bench:
    try:
        path = tool.build()
    except tool.NoCompilerError as error:
        raise click.ClickException(str(error)) from None
    cores = machine.cores()
    if not cores.pinned:
        click.echo("one core only: nothing is pinned, and the load takes its time from the servers")
    return Bench(tool.Tool(path), cores, machine.raise_file_limit(), quick, _say)


def _say(text: str) -> None:
    click.echo(f"... {text}", err=True)


def _run(bench: Bench, names: tuple[str, ...]) -> tuple[list[Work], list[str]]:
    """The works that could be measured, and what went wrong in others."""
    works, wrong = [], []
    for name in names:
        try:
            works.append(WORKS[name](bench))
        except (WrongError, NotStartedError) as error:
            wrong.append(str(error))
        else:
            click.echo(report.table(works[-1]) + "\n")
    return works, wrong


def _facts(bench: Bench) -> dict[str, str | int]:
    how = {"file_limit": bench.file_limit, "pinned": bench.cores.pinned, "quick": bench.quick}
    return machine.facts() | how | {"sidecar": __version__} | peers.versions()


if __name__ == "__main__":
    # So that servers are stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
