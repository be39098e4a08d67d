"""Telling the events that an upstream sends once more from those that are new."""

from __future__ import annotations

import pytest

from sse_sidecar import event_id, wire
from sse_sidecar.history import Bounds, Log
from sse_sidecar.repeats import Repeats, Verdict
from tests.reference import interpret

STREAM = "g" + 22 * "A"
DROPPED, NEW, RENUMBERED = Verdict.REPEAT, Verdict.NEW, Verdict.RENUMBERED


def blocks(*texts: str) -> list[wire.Block]:
    return [wire.read_block(text.encode()) for text in texts]


def held(*texts: str, lead: dict[int, bytes] | None = None, size: int = 1 << 20) -> Log:
    """A log of what an upstream has sent; a signal may lead an event, by its number."""
    log = Log(Bounds(1000, size, 1000.0))
    upstream_id = b""
    for seq, block in enumerate(blocks(*texts), 1):
        upstream_id = upstream_id if block.upstream_id is None else block.upstream_id
        frame = wire.frame(block.body, seq, event_id.suffix(STREAM, upstream_id))
        log.append([(lead or {}).get(seq, b"") + frame], 0.0)
    return log


def comparing(log: Log, long_ids: dict[bytes, int] | None = None) -> Repeats:
    return Repeats(log, STREAM, long_ids or {})


def verdicts(log: Log, *texts: str, long_ids: dict[bytes, int] | None = None) -> list[Verdict]:
    """What a new connection's events are, up to the first that is not held."""
    repeats = comparing(log, long_ids)
    found = []
    for block in blocks(*texts):
        found.append(repeats.check(block))
        if found[-1] is not DROPPED:
            break
    return found


A, B, C, D = "id: a\ndata: 1", "id: b\ndata: 2", "id: c\ndata: 3", "id: d\ndata: 4"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([D], [NEW]),
        ([C, D], [DROPPED, NEW]),
        ([A, B, C, D], [DROPPED, DROPPED, DROPPED, NEW]),
        ([A, B, D], [DROPPED, DROPPED, NEW]),
        ([B, A], [DROPPED, NEW]),
        ([C, C], [DROPPED, NEW]),
        ([D, C], [NEW]),
        (["id: d\ndata: 3"], [NEW]),
        (["data: 3"], [NEW]),
        (["id:c\ndata: 3"], [DROPPED]),
        (["data: 3\nid: c"], [DROPPED]),
        (["id: x\nid: c\ndata: 3"], [DROPPED]),
        (["id: c\ndata:3"], [RENUMBERED]),
        (["id: c\ndata: 3\n: hi"], [RENUMBERED]),
        (["id: c\nevent: x\ndata: 3"], [RENUMBERED]),
        (["id: a\ndata: other"], [RENUMBERED]),
    ],
)
def test_only_the_unbroken_run_at_the_start_repeats(sent: list[str], expected: list[Verdict]) -> None:
    assert expected == verdicts(held(A, B, C), *sent)


def test_an_equal_id_with_other_bytes_within_the_run_is_renumbered() -> None:
    """A greeting may be the same on each connection."""
    assert [DROPPED, RENUMBERED] == verdicts(held(A, B, C), A, "id: b\ndata: other")


@pytest.mark.parametrize(
    ("before", "sent", "expected"),
    [
        ([A, "data: x", C], [A, "data: x", C], [DROPPED, DROPPED, DROPPED]),
        ([A, "data: x", C], [A, "data: y"], [DROPPED, NEW]),
        ([A, "data: x", C], [A, C], [DROPPED, NEW]),
        ([A, B], [A, "data: 2"], [DROPPED, NEW]),
        ([A, "data: x"], [A, "id: x\ndata: x"], [DROPPED, NEW]),
    ],
    ids=["equal", "other bytes", "left out", "for one with an id", "by one with an id"],
)
def test_an_event_without_an_id_repeats_only_one_without_an_id(
    before: list[str], sent: list[str], expected: list[Verdict]
) -> None:
    assert expected == verdicts(held(*before), *sent)


def test_the_first_event_that_bears_an_id_is_the_one_that_came_with_it() -> None:
    """The tokens of those after it carry the id as well."""
    assert [DROPPED] * 3 == verdicts(held(A, "data: x", "data: y", B), A, "data: x", "data: y")


def test_a_signal_before_a_held_event_is_none_of_its_bytes() -> None:
    log = held(A, B, C, lead={2: wire.signal("gap", "…", lost=None).data})

    assert [DROPPED] * 3 == verdicts(log, A, B, C)


def test_what_ends_like_a_held_event_does_not_equal_it() -> None:
    log = held("id: a\ndata: x\ndata: 1", B, lead={2: wire.signal("gap", "…", lost=None).data})

    assert [RENUMBERED] == verdicts(log, "id: a\ndata: 1")


def test_an_event_whose_data_looks_like_a_frames_end_is_not_taken_for_one() -> None:
    """An event may hold a resume token: of another stream, or of this one."""
    token = f"1-{event_id.suffix(STREAM, b'c').decode()}"

    assert [DROPPED, NEW] == verdicts(held(f"id: a\ndata: {token}", f"id: b\ndata: x\nx: {token}", C), C, D)


@pytest.mark.parametrize("upstream_id", ["x" * 60, "ü →", "a\tb", '[{"topic":"a","offset":1}]'])
def test_ids_of_any_kind_are_recognised(upstream_id: str) -> None:
    event, other = f"id: {upstream_id}\ndata: 1", f"id: {upstream_id}y\ndata: 2"

    assert [DROPPED, NEW] == verdicts(held(A, event), event, other)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (["{long}\ndata: 2", C], [DROPPED, DROPPED]),
        (["{long}\ndata: other"], [RENUMBERED]),
        (["{long}y\ndata: 2"], [NEW]),
    ],
)
def test_ids_too_long_for_a_token_are_recognised_by_what_is_kept_beside_it(
    sent: list[str], expected: list[Verdict]
) -> None:
    upstream_id = 200 * "x"
    log = held(A, f"id: {upstream_id}\ndata: 2", C)
    filled = [text.replace("{long}", f"id: {upstream_id}") for text in sent]

    assert expected == verdicts(log, *filled, long_ids={upstream_id.encode(): 2})


def test_a_long_id_whose_event_is_no_longer_held_is_new() -> None:
    upstream_id = 200 * "x"
    log = held(f"id: {upstream_id}\ndata: 1", B)
    log.drop_before(2)

    assert [NEW] == verdicts(log, f"id: {upstream_id}\ndata: 1", long_ids={upstream_id.encode(): 1})


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (["id: b\ndata: two", D], [DROPPED, NEW]),
        (["id: a\ndata: one", "data: x", "id: b\ndata: two", D], [DROPPED, DROPPED, DROPPED, NEW]),
        ([A, B, "id: a\ndata: one"], [DROPPED, DROPPED, DROPPED]),
        (["id: a\ndata: 3"], [RENUMBERED]),
    ],
    ids=["the last", "the last numbering", "everything", "another"],
)
def test_ids_that_were_given_out_twice_are_recognised_with_either_bytes(
    sent: list[str], expected: list[Verdict]
) -> None:
    """An upstream that was restarted began to count anew, and counts on."""
    assert expected == verdicts(held(A, B, "id: a\ndata: one", "data: x", "id: b\ndata: two"), *sent)


def test_bytes_that_are_no_text_are_compared_as_bytes() -> None:
    log = Log(Bounds(1000, 1 << 20, 1000.0))
    log.append([wire.frame(b"data: \xff\xfe", 1, event_id.suffix(STREAM, b"\xe9"))], 0.0)
    same, other = (
        wire.Block(wire.Kind.EVENT, b"data: \xff\xfe", b"\xe9"),
        wire.Block(wire.Kind.EVENT, b"data: \xff", b"\xe9"),
    )

    assert (DROPPED, RENUMBERED) == (comparing(log).check(same), comparing(log).check(other))


def test_a_log_that_is_empty_holds_nothing() -> None:
    assert [NEW] == verdicts(held(), A)


# What is no longer held


def test_events_that_are_no_longer_held_are_new() -> None:
    log = held(A, B, C)
    log.drop_before(2)

    assert ([NEW], [DROPPED, DROPPED]) == (verdicts(log, A, B), verdicts(log, B, C))


def test_an_id_is_found_behind_one_that_is_no_longer_held() -> None:
    """An upstream that numbered two connections alike; of the first nothing is held."""
    log = held(A, B, "id: a\ndata: one", C)
    log.drop_before(3)

    assert [DROPPED, DROPPED] == verdicts(log, "id: a\ndata: one", C)


@pytest.mark.parametrize("first_held", [2, 3, 4])
def test_a_log_may_let_go_of_events_within_the_run(first_held: int) -> None:
    """Other streams need the memory meanwhile."""
    log = held(A, B, C, size=16)
    repeats = comparing(log)
    first, second = blocks(A, B)
    before = repeats.check(first)

    log.drop_before(first_held)

    assert (DROPPED, DROPPED if first_held == 2 else NEW) == (before, repeats.check(second))


def test_the_log_of_these_tests_is_what_a_client_reads() -> None:
    log = held(A, B)
    data, _ = log.read_after(0)

    assert ["1", "2"] == [event.data for event in interpret(data).events]
