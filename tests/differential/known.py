"""What differs and is meant to: each with its cases and its reason. Nothing else may, and all of this must.

What nginx does is no argument; it is computed, and tells what is every proxy's from what is the sidecar's alone. It is
said of a plain reverse proxy of Debian's nginx, and the identical difference.
"""

from __future__ import annotations

import fnmatch
from typing import Literal, NamedTuple

from tests.differential.cases import Case

Nginx = Literal["every", "some", "none"]
"""In which of the cases nginx differs in the same way."""


class Known(NamedTuple):
    what: str
    cases: tuple[str, ...]
    """Names, in which a `*` stands for anything."""
    nginx: Nginx
    why: str

    def covers(self, case: Case) -> bool:
        return any(fnmatch.fnmatchcase(case.name, pattern) for pattern in self.cases)


REFUSED = "refused with 400"

# What HTTP asks of every proxy.
_OF_HTTP = [
    Known(
        "request version",
        ("HTTP/1.0", "HTTP/1.0[ ,]*", "answer, early hints for HTTP/1.0"),
        "every",
        "RFC 9110, section 2.5: an intermediary sends its own version",
    ),
    Known(
        "answer version",
        (
            "answer, chunks from HTTP/1.0",
            "answer, to the end, HTTP/1.0",
            "answer, HTTP/1.0 with a length",
            "aiohttp, s*, HTTP/1.0",
        ),
        "every",
        "the same; aiohttp answers HTTP/1.0 with 1.0, and the sidecar asks it by 1.1",
    ),
    Known(
        "answer content-length added",
        ("node, sink, HTTP/1.0",),
        "every",
        "Node gives HTTP/1.0 no length, and the sidecar asks it by 1.1",
    ),
    Known(
        "request target",
        ("target, absolute*",),
        "every",
        "RFC 9112, section 3.2.1: an origin server is asked by the path",
    ),
    Known(
        "request host changed",
        ("target, absolute, other host",),
        "none",
        "RFC 9112, section 3.2.2: the authority of the target goes before the field; nginx was told to keep the field",
    ),
    Known(
        "request trailers", ("chunks, with trailers",), "every", "RFC 9110, section 6.5.1: a proxy may discard trailers"
    ),
    Known("answer body", ("node, trailers in the request",), "every", "the same: it tells which trailers it got"),
    Known("answer content-length changed", ("node, trailers in the request",), "every", "the same"),
    Known(
        "answer trailers",
        ("answer, chunks with trailers", "node, trailers in the answer"),
        "every",
        "RFC 9110, section 6.5.1, and section 7 of the design",
    ),
    Known(
        "request host added",
        ("HTTP/1.0 without a host",),
        "none",
        "RFC 9112, section 3.2: a request of HTTP/1.1 has one; nginx sends none where it was told to keep the client's",
    ),
]

# Requests that no one is to mistake for another, or for two.
_REFUSED = [
    Known(REFUSED, ("host missing", "host twice"), "every", "RFC 9112, section 3.2: a server answers these with 400"),
    Known(
        REFUSED,
        (
            "framing, length and chunks",
            "framing, chunks and length",
            "framing, two*",
            "framing, signed length",
            "framing, lengths in a list",
            "framing, space before a colon",
            "framing, folded line",
            "framing, nul in a value",
            "framing, bare CR in a value",
            "framing, empty name",
            "framing, chunks, twice",
        ),
        "every",
        "request smuggling: RFC 9112, sections 2.2, 5 and 6.3, read strictly",
    ),
    Known(
        REFUSED,
        ("framing, chunks, not quite", "framing, chunks before gzip", "framing, chunks after*"),
        "none",
        "the same; nginx refuses these with 501",
    ),
    Known(
        REFUSED,
        ("framing, line without a colon", "framing, bare LF"),
        "none",
        "the same; nginx takes the one off and reads the other as the end of a line",
    ),
    Known(REFUSED, ("chunks, malformed", "chunks, longer than they say"), "every", "RFC 9112, section 7.1"),
    Known(
        REFUSED,
        ("target, space within", "target, control character", "target, no slash", "target, asterisk, not OPTIONS"),
        "every",
        "RFC 9112, section 3.2: these are no targets",
    ),
    Known(REFUSED, ("target, fragment",), "none", "the same: a fragment is the client's own"),
    Known(
        REFUSED,
        ("no version", "HTTP/2.0 in the request line"),
        "none",
        "not HTTP/1; nginx answers the first by HTTP/0.9, and the second with 505",
    ),
    Known("refused with 501", ("CONNECT",), "none", "a reverse proxy opens no tunnels; nginx refuses it with 400"),
    Known(
        "refused with 431",
        ("target, longer*", "field, value longer*"),
        "none",
        "section 10 of the design: 64 KiB; nginx takes less",
    ),
    Known("refused with 200", ("target, the sidecar's own",), "none", "section 8 of the design"),
]

# Answers that HTTP does not allow.
_BAD_ANSWERS = [
    Known(
        "status 200 -> 502",
        (
            "answer, folded field",
            "answer, space before a colon",
            "answer, nul in a field",
        ),
        "every",
        "RFC 9112, section 5: no such field is passed on",
    ),
    Known("status 200 -> 502", ("answer, line without a colon",), "none", "the same; nginx takes it off"),
    Known(
        "status 200 -> 502",
        ("answer, two lengths",),
        "none",
        "RFC 9112, section 6.3: where it ends cannot be known; nginx believes the last",
    ),
    Known(
        "status 200 -> 502",
        ("answer, two equal lengths", "answer, chunks and a length"),
        "none",
        "the same section lets the one be mended and calls the other an error; both are refused",
    ),
    Known(
        "status 200 -> 502", ("answer, chunks, compressed",), "none", "a transfer coding that would have to be undone"
    ),
    Known("status 200 -> 502", ("answer, head longer*",), "every", "section 10 of the design: 256 KiB"),
    Known("status  -> 502", ("answer, no HTTP at all",), "none", "nginx takes it for HTTP/0.9, and passes it on"),
    Known("answers 0 -> 1", ("answer, none",), "none", "a 502 tells more than a connection that ends"),
    Known("status 101 -> 502", ("answer, 101 unasked",), "none", "RFC 9110, section 15.2.2: no one asked for it"),
]

# What the sidecar does for a reason of its own.
_OF_THE_DESIGN = [
    Known(
        "interim none -> 100",
        ("continue, refused", "node, continue, refused"),
        "every",
        "section 7 of the design: Expect is the sidecar's to answer, and it cannot know what the service will say",
    ),
    Known(
        "interim 100 -> none",
        ("continue, and nothing to come",),
        "none",
        "RFC 9110, section 10.1.1: with nothing to come there is nothing to continue with",
    ),
    Known("status 417 -> 200", ("aiohttp, expectation that is none",), "every", "Expect does not reach the service"),
    Known(
        "interim 100 -> none",
        ("answer, 100 unasked",),
        "none",
        "Expect is the sidecar's to answer; nginx takes the 100 for the answer",
    ),
    Known(
        "interim 103 -> none",
        ("answer, early hints for HTTP/1.0",),
        "none",
        "RFC 9110, section 15.2: HTTP/1.0 has no interim answers",
    ),
    *(
        Known(
            what,
            ("answered before the body is sent",),
            "every",
            "with its answer the exchange is over, and what the service still gets of the request is no one's concern",
        )
        for what in ("request body", "request whole True -> False")
    ),
    Known(
        "connections 1 -> 5",
        ("one connection, uploads", "pipelined uploads"),
        "every",
        "what may not be repeated is sent over a connection that no one can be closing; nginx keeps none",
    ),
    Known(
        "request content-length changed",
        ("framing, length with zeros before",),
        "every",
        "with zeros before it some read a length as octal; it is written anew",
    ),
    Known("answers 1 -> 0", ("half-closed client",), "every", "section 5 of the design: half-closing is leaving"),
    Known(
        "request accept-encoding changed",
        ("field, accepts an event stream, gets none",),
        "none",
        "section 7 of the design: a compressed stream would have to be decoded",
    ),
    Known(
        "answer access-control-allow-headers changed",
        ("answer, preflight for Last-Event-ID",),
        "none",
        "section 7 of the design: a page that resumes sends it",
    ),
    Known(
        "request proxy-authorization lost",
        ("field, credentials for a proxy",),
        "none",
        "section 7 of the design: RFC 9110, section 11.7.2, the credentials are for a proxy",
    ),
    Known(
        "answer proxy-authenticate lost",
        ("answer, a proxy's credentials",),
        "none",
        "RFC 9110, section 11.7.1, likewise",
    ),
    *(
        Known(
            what,
            cases,
            "none",
            "nginx as a service compresses nothing for a request with `Via`, unless `gzip_proxied` says so;"
            " section 7 of the design and RFC 9110, section 7.6.3, have the sidecar send it",
        )
        for what, cases in {
            "answer content-length changed": ("file, gzip from a file",),
            "answer content-length added": ("file, gzip on the fly", "file, accepts an event stream"),
            "answer etag changed": ("file, gzip from a file", "file, gzip on the fly", "file, accepts an event stream"),
            "answer content-encoding lost": (
                "file, gzip from a file",
                "file, gzip on the fly",
                "file, accepts an event stream",
            ),
            "answer accept-ranges added": (
                "file, gzip from a file",
                "file, gzip on the fly",
                "file, accepts an event stream",
            ),
            "answer body": ("file, gzip from a file", "file, gzip on the fly", "file, accepts an event stream"),
            "status 200 -> 206": ("file, gzip from a file, a range",),
        }.items()
    ),
]

# What is no one's wish: the parser is aiohttp's, which knows a list of methods, and no byte above 0x7F in a target.
_OF_THE_PARSER = [
    Known(
        REFUSED,
        ("method BREW", "method X", "method VERSION-CONTROL", "method BASELINE-CONTROL"),
        "none",
        "the parser knows a list of methods",
    ),
    Known(REFUSED, ("method get", "method Post", "method !*"), "every", "the parser knows a list of methods"),
    Known("status 405 -> 400", ("file, unknown method",), "none", "the parser knows a list of methods"),
    Known(
        REFUSED, ("target, raw*",), "none", "the parser takes ASCII alone; clients are to encode the rest (RFC 3986)"
    ),
    Known(
        REFUSED,
        ("HTTP/1.2",),
        "none",
        "the parser knows HTTP/1.0 and 1.1; RFC 9110, section 2.5, would have it read as 1.1",
    ),
    Known(REFUSED, ("field, three hundred",), "none", "section 10 of the design: 256 fields"),
]

KNOWN = [*_OF_HTTP, *_REFUSED, *_BAD_ANSWERS, *_OF_THE_DESIGN, *_OF_THE_PARSER]
