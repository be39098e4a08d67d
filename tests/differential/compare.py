"""What differs between two exchanges, less what HTTP has every proxy do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.differential.messages import Field, Message

# RFC 9110, section 7.6.1: a proxy takes these off, and what Connection names; section 7 of the design has the rest.
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
ADDED_FOR_THE_UPSTREAM = {b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"}
WITHOUT_A_PLACE = {b"host", b"content-length"}
"""Whose place in a request the sidecar chooses."""
NEVER_HOP_BY_HOP = {b"host", b"content-length"}
"""Whatever `Connection` says: without them it is another request."""


class Seen(NamedTuple):
    """One exchange, from both of its ends."""

    answers: tuple[Message, ...]
    reached: tuple[Message, ...]
    connections: int
    """Over which they reached the service."""
    after: str
    """What became of the connection: clean, where it is as the answer said."""


class Difference(NamedTuple):
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}" if self.detail else self.what


def compare(direct: Seen, through: Seen) -> list[Difference]:
    if direct.reached and not through.reached and through.answers:
        refusal = through.answers[0]
        return [Difference(f"refused with {refusal.status}", repr(refusal.body.data[:200])), *_after(direct, through)]
    return [
        *_number("requests", direct.reached, through.reached),
        *_number("answers", direct.answers, through.answers),
        *(found for pair in zip(direct.reached, through.reached, strict=False) for found in _requests(*pair)),
        *(found for pair in zip(direct.answers, through.answers, strict=False) for found in _answers(*pair)),
        *_connections(direct, through),
        *_after(direct, through),
    ]


def _number(what: str, one: tuple[Message, ...], other: tuple[Message, ...]) -> Iterator[Difference]:
    if len(one) != len(other):
        yield Difference(f"{what} {len(one)} -> {len(other)}")


def _connections(direct: Seen, through: Seen) -> Iterator[Difference]:
    if direct.connections < through.connections:
        yield Difference(f"connections {direct.connections} -> {through.connections}")


def _after(direct: Seen, through: Seen) -> Iterator[Difference]:
    if len(direct.answers) == len(through.answers) and through.after not in ("clean", direct.after):
        yield Difference("connection", f"afterwards {through.after}")


def _requests(one: Message, other: Message) -> Iterator[Difference]:
    for part, before, behind in zip(("method", "target", "version"), one.start, other.start, strict=True):
        if before != behind:
            yield Difference(f"request {part}", f"{before[:200]!r} -> {behind[:200]!r}")
    ours = {*ADDED_FOR_THE_UPSTREAM, b"expect"}
    yield from _fields("request", _end_to_end(one, ours), _end_to_end(other, ours), WITHOUT_A_PLACE)
    yield from _bodies("request", one, other)


def _answers(one: Message, other: Message) -> Iterator[Difference]:
    yield from _interim(one, other)
    if one.status != other.status:
        yield Difference(f"status {one.status} -> {other.status}", repr(other.body.data[:200]))
        return
    for part, before, behind in (("version", one.start[0], other.start[0]), ("reason", one.start[2], other.start[2])):
        if before != behind:
            yield Difference(f"answer {part}", f"{before!r} -> {behind!r}")
    yield from _fields("answer", _end_to_end(one, set()), _end_to_end(other, set()), set())
    yield from _bodies("answer", one, other)


def _interim(one: Message, other: Message) -> Iterator[Difference]:
    before, behind = ([interim.status for interim in message.interim] for message in (one, other))
    if before != behind:
        yield Difference(f"interim {' '.join(before) or 'none'} -> {' '.join(behind) or 'none'}")
        return
    for pair in zip(one.interim, other.interim, strict=True):
        yield from _fields("interim", _end_to_end(pair[0], set()), _end_to_end(pair[1], set()), set())


def _bodies(whose: str, one: Message, other: Message) -> Iterator[Difference]:
    before, behind = (_unnumbered(message.body.data) for message in (one, other))
    if before != behind:
        yield Difference(f"{whose} body", f"{len(before)} bytes {before[:200]!r} -> {len(behind)} {behind[:200]!r}")
    if one.body.whole != other.body.whole:
        yield Difference(f"{whose} whole {one.body.whole} -> {other.body.whole}")
    if one.body.trailers != other.body.trailers:
        yield Difference(f"{whose} trailers", f"{one.body.trailers} -> {other.body.trailers}")


def _unnumbered(data: bytes) -> bytes:
    """nginx numbers the boundaries of its multipart answers."""
    return re.sub(rb"\b\d{20}\b", b"BOUNDARY", data)


def _end_to_end(message: Message, off: set[bytes]) -> list[Field]:
    off = HOP_BY_HOP.union(set(message.listed(b"connection")) - NEVER_HOP_BY_HOP, off)
    fields = [(name, value) for name, value in message.fields if name.lower() not in off]
    return [(name, b"*" if name.lower() == b"date" else _unnumbered(value)) for name, value in fields]


def _fields(whose: str, one: list[Field], other: list[Field], placeless: set[bytes]) -> Iterator[Difference]:
    for name in dict.fromkeys(name.lower() for name, _ in (*one, *other)):
        before, behind = ([field for field in fields if field[0].lower() == name] for fields in (one, other))
        if before != behind:
            how = "lost" if not behind else "changed" if before else "added"
            yield Difference(f"{whose} {name.decode('latin-1')} {how}", f"{_short(before)} -> {_short(behind)}")
    common = {name.lower() for name, _ in one} & {name.lower() for name, _ in other} - placeless
    orders = [[name.lower() for name, _ in fields if name.lower() in common] for fields in (one, other)]
    if sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]:
        yield Difference(f"{whose} order", f"{orders[0]} -> {orders[1]}")


def _short(fields: list[Field]) -> str:
    return repr(fields)[:200]
