"""The benchmarks find what is broken, fail of it, and say what they measured. How fast anything is, is not tested."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from tests.benchmarks import __main__ as command
from tests.benchmarks import fanout, machine, measure, peers, picture, private, processes, report, served, servers, tool
from tests.benchmarks.bench import Bench
from tests.benchmarks.machine import Cores
from tests.benchmarks.record import Bound, Row, Work, WrongError, mean
from tests.benchmarks.served import Server


@pytest.fixture(scope="module")
def bench() -> Bench:
    if tool.compiler() is None and os.environ.get("CI") != "true":
        pytest.skip("no C compiler")
    return Bench(tool.Tool(tool.build()), Cores(None, None), 1024, quick=True, say=lambda _: None)


@contextmanager
def answering(status: int, body: str) -> Iterator[Server]:
    """A server that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Server("sidecar", server.server_port, os.getpid())
        server.shutdown()
        thread.join()


def stream(*stamps: str, size: int = 20) -> str:
    return "".join(f"data: {f'@{stamp}:1;':x<{size}}\n\n" for stamp in stamps)


READ: dict[str, Any] = {"conns": 1, "want": 3, "duration": 5, "check_tag": True, "check_size": 20}


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (200, stream("0:1", "0:2", "0:4"), "1 gaps"),
        (200, stream("0:1", "0:2", "0:2"), "1 dups"),
        (200, stream("0:1", "0:3", "0:2"), "1 reordered"),
        (200, stream("0:1", "0:2", "7:3"), "1 crosstalk"),
        (200, stream("0:1", "0:2", "0:3", size=21), "3 bad_size"),
        (200, stream("0:1", "0:2"), "1 ends, 1 unfinished"),
        (200, "data: no stamp\n\n", "1 silent, 1 ends, 1 unfinished"),
        (500, "", "1 silent, 1 http_errors, 1 unfinished"),
    ],
)
def test_what_is_wrong_with_a_stream_is_counted_and_fails_the_work(
    bench: Bench, status: int, body: str, fault: str
) -> None:
    with answering(status, body) as server, pytest.raises(WrongError, match=f"^work: sidecar: {fault}$"):
        measure.load(bench, server, Work("work", "", ""), "/", READ)


def test_a_stream_that_is_whole_is_not_wrong(bench: Bench) -> None:
    with answering(200, stream("0:1", "0:2", "0:3")) as server:
        assert measure.load(bench, server, Work("work", "", ""), "/", READ).counts["stamped"] == 3


def test_a_connection_that_is_cut_fails_the_work(bench: Bench) -> None:
    with served.source(bench, None) as source:
        server = source._replace(name="sidecar")
        with pytest.raises(WrongError, match="1 closes"):
            measure.load(bench, server, Work("work", "", ""), "/s?n=0&rate=100&abort=2&size=20", READ)


def test_a_server_that_is_not_there_fails_the_work(bench: Bench) -> None:
    server = Server("sidecar", processes.free_port(), os.getpid())
    with pytest.raises(WrongError, match="1 connect_errors"):
        measure.load(bench, server, Work("work", "", ""), "/", READ)


def test_what_a_peer_loses_is_a_note_of_its_row(bench: Bench) -> None:
    with answering(200, stream("0:1", "0:2", "0:4")) as server:
        peer = server._replace(name="nginx")
        result = measure.load(bench, peer, Work("work", "", ""), "/", READ)

    assert "1 gaps" in measure.row(peer, "", result, "cpu_us").notes


def test_private_streams_through_the_sidecar_come_whole(bench: Bench) -> None:
    work = private.run(bench, streams=4, names=("sidecar",))

    assert ["sidecar"] == [row.server for row in work.rows]
    assert {"cpu_us", "p99_ms", "cpu_pct"} == set(work.rows[0].figures)
    assert [None, None, None] == [goal.met for goal in work.goals]


def test_a_shared_stream_comes_whole_to_all_its_readers(bench: Bench) -> None:
    work = Work("fan-out", "", "cpu_us")
    options: dict[str, Any] = {"conns": 4, "want": 20, "duration": 5, "check_size": 100}
    with servers.sidecar(bench) as server:
        result = measure.load(bench, server, work, fanout.path("sidecar", 4), options)

    assert result.counts["done"] == 4


def test_a_peer_that_is_not_installed_is_said_and_leaves_its_goals_unmeasured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "program", lambda name: None)
    work = Work("work", "", "cpu_us")
    work.rows += measure.each(["nginx", "nchan", "sidecar"], work, lambda name: Row(name, "", {"cpu_us": 1}))
    work.hold("CPU, of nginx's", work.ratio("cpu_us", "nginx"), Bound("at most", 2, "x"))

    assert ["sidecar"] == [row.server for row in work.rows]
    assert ["nginx is not installed", "nginx with its module nchan is not installed"] == work.notes
    assert work.goals[0].met is None
    assert "not measured: nginx is not installed" in report.goals([work])


def no_start(_: str) -> Row:
    raise processes.NotStartedError("no such directive")


def test_a_peer_that_does_not_start_is_said() -> None:
    work = Work("work", "", "cpu_us")

    assert [] == list(measure.each(["floor"], work, no_start))
    assert ["floor does not start: no such directive"] == work.notes


def test_a_sidecar_that_does_not_start_is_an_error() -> None:
    with pytest.raises(processes.NotStartedError):
        list(measure.each(["sidecar"], Work("work", "", ""), no_start))


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    failing = processes.running(["sh", "-c", "echo bad config; exit 1"], None, log)
    with failing as process, pytest.raises(processes.NotStartedError, match="bad config"):
        processes.wait_until_ready(process, processes.free_port(), log)


def until_gone(pid: int) -> bool:
    """Waits until a process has ended, whether or not its new parent has noticed."""
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.001)
    return True


def test_what_a_server_has_started_ends_with_it(tmp_path: Path) -> None:
    with processes.running(["sh", "-c", "sleep 60 & echo $!; wait"], None, tmp_path / "log"):
        while not (child := (tmp_path / "log").read_text()):
            pass

    assert until_gone(int(child))


def test_fewer_files_make_fewer_streams_and_it_is_said(bench: Bench) -> None:
    work = Work("work", "", "")

    assert bench.fit(400, 2, work) == 400
    assert [] == work.notes
    assert bench.fit(1000, 2, work) == 462
    assert ["462 instead of 1,000: a process may open 1,024 files here"] == work.notes


def test_server_and_load_get_different_cores_or_none() -> None:
    cores = machine.cores()

    assert (cores.server is None) == (cores.load is None)
    assert cores.server is None or cores.server != cores.load


def test_rounds_are_averaged_and_their_notes_kept_once() -> None:
    rounds = [
        Row("nginx", "", {"cpu_us": 1}, ("slow",)),
        Row("floor", "", {"cpu_us": 5}),
        Row("nginx", "", {"cpu_us": 3}, ("slow",)),
    ]

    assert [Row("nginx", "", {"cpu_us": 2}, ("slow",)), Row("floor", "", {"cpu_us": 5}, ())] == mean(rounds)


@pytest.fixture
def recorded() -> Work:
    work = Work("private", "3 streams", "cpu_us")
    work.rows = [
        Row("nginx", "", {"cpu_us": 10.0, "p99_ms": 0.5}, ("1 gaps",)),
        Row("sidecar", "", {"cpu_us": 12.5, "p99_ms": 1.5}),
    ]
    work.notes = ["caddy is not installed"]
    work.hold("CPU per event, of nginx's", work.ratio("cpu_us", "nginx"), Bound("at most", 1.3, "x"))
    work.hold("CPU per event, of caddy's", work.ratio("cpu_us", "caddy"), Bound("below", 1, "x"))
    work.hold("p99 of the delay, of nginx's", work.ratio("p99_ms", "nginx"), Bound("at most", 2, "x"))
    return work


def test_a_work_is_a_table(recorded: Work) -> None:
    expected = """\
private: 3 streams
             CPU us/event  p99 ms  sidecar/this
  nginx            10.000    0.50          1.25  1 gaps
  sidecar          12.500    1.50
  note: caddy is not installed"""

    assert expected == report.table(recorded)


def test_goals_are_met_or_not_or_not_measured(recorded: Work) -> None:
    expected = """\
goals
                                         figure           goal
  private  CPU per event, of nginx's     1.25 x  at most 1.3 x  met
  private  CPU per event, of caddy's                  below 1 x  not measured: caddy is not installed
  private  p99 of the delay, of nginx's  3.00 x    at most 2 x  not met"""

    assert expected.replace("              below", "             below") == report.goals([recorded])


def test_rows_and_goals_are_written_as_json(recorded: Work) -> None:
    written = json.loads(report.as_json({"cpu": "some"}, [recorded]))

    assert {"cpu": "some"} == written["machine"]
    assert {
        "server": "nginx",
        "case": "",
        "figures": {"cpu_us": 10.0, "p99_ms": 0.5},
        "notes": ["1 gaps"],
        "sidecar_over_this": 1.25,
    } == written["works"][0]["rows"][0]
    assert [True, None, False] == [goal["met"] for goal in written["works"][0]["goals"]]
    assert ["caddy is not installed"] == written["works"][0]["notes"]


def test_the_picture_has_a_bar_for_each_server_and_its_figure(recorded: Work) -> None:
    drawn = ET.fromstring(picture.draw([recorded], {"cpu": "A & B", "python": "CPython", "nginx": "1.22"}))
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in drawn.iter(f"{space}text")]
    widths = [float(bar.attrib["width"]) for bar in drawn.iter(f"{space}rect")]

    assert {"Private streams", "nginx", "10.0 µs", "sidecar", "12.5 µs", "A & B, CPython, nginx 1.22"} <= set(words)
    assert "Idle streams" not in words
    assert widths[0] == pytest.approx(widths[1] * 10 / 12.5, rel=0.01)


def test_without_a_compiler_the_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    result = CliRunner().invoke(command.main, ["--quick"])

    assert result.exit_code == 1
    assert "no C compiler" in result.output


@pytest.mark.usefixtures("bench")
def test_the_command_goes_on_after_a_wrong_work_and_fails_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorded: Work
) -> None:
    def wrong(_: Bench) -> Work:
        raise WrongError("private: sidecar: 1 gaps")

    monkeypatch.setitem(command.WORKS, "private", wrong)
    monkeypatch.setitem(command.WORKS, "idle", lambda _: recorded)
    files = {"--json": tmp_path / "a.json", "--svg": tmp_path / "a.svg"}
    words = [str(word) for pair in files.items() for word in pair]
    result = CliRunner().invoke(command.main, ["--only", "private", "--only", "idle", *words])

    assert result.exit_code == 1
    assert "WRONG: private: sidecar: 1 gaps" in result.output
    assert "private: 3 streams" in result.output
    assert all(file.exists() for file in files.values())


@pytest.mark.usefixtures("bench")
def test_a_missed_goal_is_not_a_failure(monkeypatch: pytest.MonkeyPatch, recorded: Work) -> None:
    monkeypatch.setitem(command.WORKS, "private", lambda _: recorded)
    result = CliRunner().invoke(command.main, ["--only", "private"])

    assert result.exit_code == 0
    assert "not met" in result.output
