"""Resume tokens, the values of the sidecar's own `id:` fields, and fingerprints of who may use them.

    <seq>-<stream id>[.<upstream id, base64url>]      42-gR3tJ0mJ8kqkZ3hZ0b1c2dA.MTcxNw

seq stands first, so that `parseInt(event.lastEventId)` is the event's number. The stream id is a letter and
128 random bits: it cannot be guessed, and it needs no table to be told from a foreign id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

REPEATABLE = "g"
"""The letter of a stream whose request may be sent to the upstream again (RFC 9110, section 9.2.2)."""
UNREPEATABLE = "p"

MAX_TOKEN = 128
"""Bytes. A longer `Last-Event-ID` is no CORS-safelisted value and costs a preflight (Fetch, 2.2.2)."""

# 15 digits stay exact in a JavaScript number, which is what pages do with them.
_TOKEN = re.compile(r"(0|[1-9][0-9]{0,14})-([gp][A-Za-z0-9_-]{22})(?:\.([A-Za-z0-9_-]+))?", re.ASCII)


class ResumeToken(NamedTuple):
    """What a client says it has: everything of `stream_id` up to and with `seq`."""

    seq: int
    stream_id: str
    upstream_id: bytes | None = None

    @property
    def repeatable(self) -> bool:
        return self.stream_id[0] == REPEATABLE


def mint(*, repeatable: bool) -> str:
    """A new stream id."""
    return (REPEATABLE if repeatable else UNREPEATABLE) + secrets.token_urlsafe(16)


def parse(value: str) -> ResumeToken | None:
    """The token in a `Last-Event-ID` or a query parameter, or None where the value is not ours."""
    match = _TOKEN.fullmatch(value) if len(value) <= MAX_TOKEN else None
    if match is None:
        return None
    seq, stream_id, tail = match.groups()
    upstream_id = _decode(tail) if tail else None
    if tail and upstream_id is None:
        return None
    return ResumeToken(int(seq), stream_id, upstream_id)


def suffix(stream_id: str, upstream_id: bytes) -> bytes:
    """What follows `<seq>-` in the tokens of events up to the upstream's next id.

    An upstream id is carried by tokens of repeatable streams only, as nothing may be asked again for the others, and
    left out where a token with the longest seq would pass MAX_TOKEN.
    """
    plain = stream_id.encode()
    if not upstream_id or stream_id[0] != REPEATABLE:
        return plain
    carried = plain + b"." + base64.urlsafe_b64encode(upstream_id).rstrip(b"=")
    return carried if len(carried) + len("-") + 15 <= MAX_TOKEN else plain


def fingerprint(secret: bytes, parts: Iterable[bytes]) -> bytes:
    """A keyed hash of `parts`, each kept apart from the next, so that credentials need not be stored."""
    digest = hashlib.blake2b(key=secret, digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _decode(tail: str) -> bytes | None:
    try:
        value = base64.b64decode(tail + "=" * (-len(tail) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    # A header value cannot hold these (RFC 9110, 5.5), and the standard takes no NUL in an id.
    return None if any(byte in value for byte in b"\0\r\n") else value
