"""Files that come with the package and are served as they are: the browser client, pages."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_TYPES = {
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
}


class Asset(NamedTuple):
    """A file, with its validator (RFC 9110, section 8.8.3)."""

    content_type: bytes
    etag: bytes
    body: bytes


@cache
def asset(name: str) -> Asset:
    """The file of that name in `static/`, read once. Raises FileNotFoundError."""
    body = files("sse_sidecar").joinpath("static", name).read_bytes()
    etag = b'"%b"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()
    return Asset(_TYPES[name.rpartition(".")[2]], etag, body)
