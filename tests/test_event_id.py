"""Resume tokens: what is ours, what is not, and what a token carries."""

from __future__ import annotations

import base64
import re
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_sidecar import event_id
from sse_sidecar.event_id import MAX_TOKEN, ResumeToken

ID = "gAZaz09-_AAAAAAAAAAAAAA"
UNREPEATABLE = "p" + ID[1:]

any_value = settings(max_examples=300, deadline=None)


def token(seq: int, suffix: bytes) -> str:
    return f"{seq}-{suffix.decode()}"


# Minting


@pytest.mark.parametrize(("repeatable", "letter"), [(True, "g"), (False, "p")])
def test_a_stream_id_is_a_letter_and_128_random_bits(repeatable: bool, letter: str) -> None:
    minted = event_id.mint(repeatable=repeatable)
    assert letter == minted[0]
    assert 16 == len(base64.urlsafe_b64decode(minted[1:] + "=="))
    assert minted != event_id.mint(repeatable=repeatable)


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_minted_id_is_parsed_and_says_whether_its_request_may_be_repeated(repeatable: bool) -> None:
    for _ in range(100):
        minted = event_id.mint(repeatable=repeatable)
        parsed = event_id.parse(f"42-{minted}")
        assert ResumeToken(42, minted) == parsed
        assert repeatable == parsed.repeatable


# Parsing


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"0-{ID}", ResumeToken(0, ID)),
        (f"1-{ID}", ResumeToken(1, ID)),
        (f"42-{UNREPEATABLE}", ResumeToken(42, UNREPEATABLE)),
        (f"999999999999999-{ID}", ResumeToken(999_999_999_999_999, ID)),
        (f"7-{ID}.MTcxNw", ResumeToken(7, ID, b"1717")),
        (f"7-{ID}.MQ", ResumeToken(7, ID, b"1")),
        (f"7-{ID}._-8", ResumeToken(7, ID, b"\xff\xef")),
    ],
)
def test_a_token_of_ours_is_parsed(value: str, expected: ResumeToken) -> None:
    assert expected == event_id.parse(value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "42",
        "-",
        f"-{ID}",
        f"42{ID}",
        f"-1-{ID}",
        f"+1-{ID}",
        f"01-{ID}",
        f"00-{ID}",
        f"1_0-{ID}",
        f"1.5-{ID}",
        f"0x1-{ID}",
        f"1000000000000000-{ID}",  # 16 digits
        f"٣-{ID}",
        f"1-x{ID[1:]}",
        f"1-G{ID[1:]}",
        f"1-{ID[:-1]}",
        f"1-{ID}A",
        f"1-{ID[:-1]}+",
        f"1-{ID[:-1]}é",
        f"1-{ID[:-1]} ",
        f" 1-{ID}",
        f"1-{ID} ",
        f"1-{ID}\n",
        f"1-{ID}\0",
        f"1 -{ID}",
        f"1-{ID}.",
        f"1-{ID}.A",  # one letter of base64 is no byte
        f"1-{ID}.MQ==",
        f"1-{ID}.M+/w",
        f"1-{ID}.MQ.MQ",
        f"1-{ID}.é",
        f"1-{ID},2-{ID}",
        "4f6c2d3e-9c1a-4f3e-8d7a-1b2c3d4e5f60",
        "urn:uuid:4f6c2d3e-9c1a-4f3e-8d7a-1b2c3d4e5f60",
        "1717000000000-0",
    ],
)
def test_what_is_no_token_is_not_ours(value: str) -> None:
    assert event_id.parse(value) is None


@pytest.mark.parametrize("forbidden", [b"\0", b"\r", b"\n"])
def test_a_token_that_would_put_a_line_end_or_a_nul_into_a_header_is_not_ours(forbidden: bytes) -> None:
    for inside in (forbidden, b"a" + forbidden, forbidden + b"a", b"a" + forbidden + b"b"):
        forged = base64.urlsafe_b64encode(inside).rstrip(b"=").decode()
        assert event_id.parse(f"1-{ID}.{forged}") is None


def test_a_token_longer_than_the_limit_is_not_ours() -> None:
    longest = f"1-{ID}." + 25 * "MTcx" + "MQ"
    assert MAX_TOKEN == len(longest)
    assert ResumeToken(1, ID, 25 * b"171" + b"1") == event_id.parse(longest)
    assert event_id.parse(longest.replace("1-", "10-")) is None


@any_value
@given(st.one_of(st.text(), st.from_regex(r"[0-9]{1,16}-[gp][A-Z_-]{22}(\.[A-Z_-]*)?", fullmatch=True)))
def test_any_text_is_a_token_or_not_and_a_token_begins_with_what_it_says(value: str) -> None:
    parsed = event_id.parse(value)
    if parsed is not None:
        assert value.startswith(f"{parsed.seq}-{parsed.stream_id}")
        assert value.isascii()
        assert len(value) <= MAX_TOKEN


# What a token carries

upstream_ids = st.binary(max_size=80).filter(lambda value: not re.search(rb"[\0\r\n]", value))
seqs = st.integers(0, 10**15 - 1)


@any_value
@given(seqs, upstream_ids)
@example(10**15 - 1, b"")
@example(10**15 - 1, 66 * b"x")
@example(10**15 - 1, 67 * b"x")
def test_the_token_of_a_repeatable_stream_brings_the_upstreams_id_back(seq: int, upstream_id: bytes) -> None:
    value = token(seq, event_id.suffix(ID, upstream_id))
    assert len(value) <= MAX_TOKEN
    carried = upstream_id if 0 < len(upstream_id) <= 66 else None
    assert ResumeToken(seq, ID, carried) == event_id.parse(value)


@any_value
@given(seqs, upstream_ids)
def test_the_token_of_an_unrepeatable_stream_carries_no_upstream_id(seq: int, upstream_id: bytes) -> None:
    value = token(seq, event_id.suffix(UNREPEATABLE, upstream_id))
    assert f"{seq}-{UNREPEATABLE}" == value
    assert ResumeToken(seq, UNREPEATABLE) == event_id.parse(value)


def test_whether_an_upstream_id_is_carried_does_not_hang_on_the_seq() -> None:
    assert f"{ID}.MTcxNw".encode() == event_id.suffix(ID, b"1717")
    assert ID.encode() == event_id.suffix(ID, 67 * b"x")
    assert len(token(1, event_id.suffix(ID, 67 * b"x"))) < MAX_TOKEN


# Fingerprints


def test_a_fingerprint_tells_apart_how_its_parts_are_cut() -> None:
    ways = [[], [b""], [b"", b""], [b"ab"], [b"a", b"b"], [b"b", b"a"], [b"ab", b""], [b"", b"ab"], [b"1:ab"], [b"1:a"]]
    prints = [event_id.fingerprint(b"secret", parts) for parts in ways]
    assert len(ways) == len(set(prints))


@any_value
@given(st.lists(st.lists(st.sampled_from([b"", b"0:", b"1:", b"a", b"1:a", b":"]), max_size=4), max_size=6))
def test_a_fingerprint_is_equal_only_for_equal_parts(ways: list[list[bytes]]) -> None:
    for one, other in combinations(ways, 2):
        same = event_id.fingerprint(b"secret", one) == event_id.fingerprint(b"secret", other)
        assert (one == other) == same


def test_a_fingerprint_is_keyed_and_shows_nothing_of_its_parts() -> None:
    one = event_id.fingerprint(b"secret", iter([b"Bearer abc"]))
    assert 16 == len(one)
    assert one == event_id.fingerprint(b"secret", [b"Bearer abc"])
    assert one != event_id.fingerprint(b"another", [b"Bearer abc"])
    assert b"abc" not in one
