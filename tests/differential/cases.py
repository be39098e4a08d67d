"""The requests: data, each sent as the bytes that it is."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.harness import chunk

TCHARS = b"!#$%&'*+-.^_`|~09azAZ"
END = b"0\r\n\r\n"
LARGE = bytes(range(256)) * 4096


class Case(NamedTuple):
    name: str
    method: bytes = b"GET"
    target: bytes = b"/"
    fields: tuple[bytes, ...] = ()
    body: bytes = b""
    to: str = "echo"
    host: bytes | None = b""
    """Its `Host`; by default the service's, and None for none."""
    version: bytes = b"HTTP/1.1"
    sent: str = "at once"
    """Or: byte by byte; in pieces; the body after 100, or after the answer; cut off; half-closed."""
    times: int = 1
    """Requests on the one connection, each when the one before has been answered; or all at once, if `pipelined`."""
    pipelined: bool = False
    answer: bytes = b""
    """The echo's own; nothing for the request's body."""
    ending: str = "kept"
    """What the echo does with its connection then: kept, closed, reset; or held, until it hears something more."""
    early: bool = False
    """The echo answers before it reads the body."""

    @property
    def head(self) -> bytes:
        named = [] if self.host is None else [b"Host: " + (self.host or self.to.encode() + b".example")]
        return b"\r\n".join([b" ".join([self.method, self.target, self.version]), *named, *self.fields]) + b"\r\n\r\n"


def _upload(name: str, body: bytes, *fields: bytes, **more: Any) -> Case:
    return Case(name, b"POST", body=body, fields=(*fields, b"Content-Length: %d" % len(body)))._replace(**more)


def _chunked(name: str, body: bytes, *fields: bytes, **more: Any) -> Case:
    return Case(name, b"POST", body=body, fields=(*fields, b"Transfer-Encoding: chunked"))._replace(**more)


def _answered(name: str, answer: bytes, **more: Any) -> Case:
    return Case(f"answer, {name}", answer=answer)._replace(**more)


def _ok(*lines: bytes, body: bytes = b"ok") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body


METHODS = [
    *(b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"),
    *(b"PROPFIND", b"PROPPATCH", b"MKCOL", b"COPY", b"MOVE", b"LOCK", b"UNLOCK", b"REPORT", b"MKCALENDAR", b"ACL"),
    *(b"M-SEARCH", b"NOTIFY", b"SUBSCRIBE", b"PURGE", b"LINK", b"UNLINK", b"QUERY", b"SEARCH", b"REBIND"),
    *(b"BREW", b"X", b"VERSION-CONTROL", b"BASELINE-CONTROL", b"get", b"Post", TCHARS),
]

TARGETS = {
    "two slashes": b"//",
    "slashes within": b"//a///b//",
    "dots": b"/a/../b/./c",
    "dots above the root": b"/../a",
    "percent-encoded dots": b"/%2e%2e/",
    "percent-encoded slash": b"/a%2Fb%5cc",
    "percent-encoded nul": b"/a%00b",
    "percent-encoded letters, either case": b"/%41%6a%6A",
    "percent, not UTF-8": b"/%ff%FE%c3",
    "percent, malformed": b"/%zz%",
    "empty query": b"/a?",
    "empty query members": b"/?a&&b=",
    "query in query": b"/a?b?c=/d?e",
    "plus and encoded space": b"/a+b%20c?d+e%20f",
    "semicolons": b"/a;p=1/b;q?c;d",
    "sub-delims": b"/~a/(b)*!'$@,:=&",
    "unwise characters": b'/{a}|b\\c^`"<>',
    "raw UTF-8": "/caf\u00e9".encode(),
    "raw Latin-1": b"/caf\xe9?\xff=\xfe",
    "fragment": b"/a#b",
    "long": b"/" + b"a" * 7000,
    "very long": b"/" + b"a" * 60_000,
    "long query": b"/?" + b"a=b&" * 1500,
    "absolute": b"http://echo.example/a/../b?c",
    "absolute, other host": b"http://other.example:81/a",
    "URL as path": b"/http://a.example/b",
    "foreign token in the query": b"/a?lastEventId=7&last_event_id=x",
    "asterisk, not OPTIONS": b"*",
    "no slash": b"a",
    "space within": b"/a b",
    "control character": b"/a\x01b",
    "longer than the sidecar takes": b"/" + b"a" * 70_000,
    "the sidecar's own": b"/.well-known/sse-sidecar/client.js",
}

FIELDS = {
    "obs-text": (b"X-Bytes: caf\xe9\xff\x80",),
    "UTF-8": ("X-Text: caf\u00e9 \u2603".encode(),),
    "empty": (b"X-Empty:", b"X-Spaces:    "),
    "spaces around": (b"X-A:   a  b \t ", b"X-B:b"),
    "tab within": (b"X-A: a\tb",),
    "repeated": (b"X-R: 1", b"x-r: 2", b"X-Between: 3", b"X-R: 1", b"X-R:"),
    "case": (b"x-lower: 1", b"X-UPPER: 2", b"x-MiXeD: 3"),
    "every tchar in a name": (b"X" + TCHARS + b": 1",),
    "underscore and dot in a name": (b"X_under: 1", b"X.dot: 2"),
    "cookies": (b'Cookie: a=1; b="2"; c', b"Cookie: d=\xe9", b"Cookie2: $Version=1"),
    "long value": (b"X-Long: " + b"v" * 7000,),
    "very long value": (b"X-Long: " + b"v" * 60_000,),
    "a hundred": tuple(b"X-%d: %d" % (number, number) for number in range(100)),
    "three hundred": tuple(b"X-%d: %d" % (number, number) for number in range(300)),
    "value longer than the sidecar takes": (b"X-Long: " + b"v" * 70_000,),
    "credentials": (b"Authorization: Basic YTpi", b"X-Api-Key: k"),
    "what a browser sends": (
        b"User-Agent: Mozilla/5.0 (X11)",
        b"Accept: text/html,*/*;q=0.8",
        b"Accept-Language: de,en;q=0.5",
        b"Accept-Encoding: gzip, deflate, br, zstd",
        b"Referer: http://echo.example/?a=b",
        b"DNT: 1",
        b"Sec-Fetch-Dest: document",
        b"Sec-Fetch-Mode: navigate",
        b"Upgrade-Insecure-Requests: 1",
        b'If-None-Match: W/"a", "b"',
        b"Priority: u=0, i",
    ),
    "hop-by-hop": (
        b"Connection: keep-alive, X-Hop",
        b"X-Hop: 1",
        b"Keep-Alive: timeout=5",
        b"TE: trailers, gzip",
        b"Upgrade: h2c",
        b"X-Stays: 1",
    ),
    "a proxy's own": (b"Via: 1.0 before", b"X-Forwarded-For: 10.0.0.1", b"X-Forwarded-Proto: https"),
    "forwarding, other names": (b"X-Real-IP: 10.0.0.1", b"X-Forwarded-Port: 8443", b"X-Forwarded-Prefix: /a"),
    "credentials for a proxy": (b"Proxy-Authorization: Basic YTpi",),
    "max-forwards": (b"Max-Forwards: 0",),
    "foreign Last-Event-ID": (b"Last-Event-ID: 7",),
    "accepts an event stream, gets none": (b"Accept: text/event-stream", b"Accept-Encoding: gzip"),
    "values with quotes and commas": (b'X-Q: "a, \\"b", c;d=e', b"Date: not a date"),
    "no value that could be one": (b"Range: lines=1-2", b"Content-Type: ;;", b"If-Modified-Since: yesterday"),
}

SMUGGLING = {
    "length and chunks": (b"Content-Length: 6", b"Transfer-Encoding: chunked"),
    "chunks and length": (b"Transfer-Encoding: chunked", b"Content-Length: 6"),
    "two lengths": (b"Content-Length: 6", b"Content-Length: 5"),
    "two equal lengths": (b"Content-Length: 6", b"Content-Length: 6"),
    "lengths in a list": (b"Content-Length: 6, 6",),
    "length with zeros before": (b"Content-Length: 006",),
    "length that Connection names": (b"Connection: keep-alive, Content-Length", b"Content-Length: 6"),
    "host that Connection names": (b"Connection: Host", b"Content-Length: 6"),
    "signed length": (b"Content-Length: +6",),
    "chunks, twice": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunks after identity": (b"Transfer-Encoding: identity, chunked",),
    "chunks after a vertical tab": (b"Transfer-Encoding: \x0bchunked",),
    "chunks, not quite": (b"Transfer-Encoding: xchunked",),
    "chunks before gzip": (b"Transfer-Encoding: chunked, gzip",),
    "space before a colon": (b"Content-Length : 6",),
    "folded line": (b"X-A: a", b" b", b"Content-Length: 6"),
    "line without a colon": (b"Content-Length: 6", b"nothing"),
    "nul in a value": (b"X-A: a\x00b", b"Content-Length: 6"),
    "bare CR in a value": (b"X-A: a\rb", b"Content-Length: 6"),
    "bare LF": (b"X-A: a\nX-B: b", b"Content-Length: 6"),
    "empty name": (b": a", b"Content-Length: 6"),
}

REQUESTS = [
    Case("GET"),
    *(Case(f"method {method.decode()}", method) for method in METHODS),
    *(Case(f"target, {name}", target=target) for name, target in TARGETS.items()),
    Case("CONNECT", b"CONNECT", b"a.example:443"),
    Case("OPTIONS *", b"OPTIONS", b"*"),
    *(Case(f"field, {name}", fields=fields) for name, fields in FIELDS.items()),
    *(Case(f"framing, {name}", b"POST", fields=fields, body=END + b"x") for name, fields in SMUGGLING.items()),
    # Host
    Case("host with a port", host=b"echo.example:8080"),
    Case("host as an address", host=b"[::1]:80"),
    Case("host in capitals", host=b"ECHO.Example"),
    Case("host that is empty", fields=(b"Host:",), host=None),
    Case("host missing", host=None),
    Case("host twice", fields=(b"Host: b.example",)),
    # Bodies
    _upload("upload, empty", b""),
    _upload("upload, small", b"a=1&b=2", b"Content-Type: application/x-www-form-urlencoded"),
    _upload("upload, binary", bytes(range(256))),
    _upload("upload, 1 MiB", LARGE),
    _upload("upload, compressed", b"\x1f\x8b\x08\x00 no gzip at all", b"Content-Encoding: gzip"),
    _upload("upload, byte by byte", b"a=1", sent="byte by byte"),
    _upload("upload, in pieces", LARGE[:100_000], sent="in pieces"),
    _upload("upload under GET", b"a=1", method=b"GET"),
    _upload("upload under DELETE", b"a=1", method=b"DELETE"),
    _upload("upload under PROPFIND", b"<a/>", method=b"PROPFIND"),
    _upload("upload under OPTIONS", b"a", method=b"OPTIONS"),
    _upload("upload under GET, empty", b"", method=b"GET"),
    Case("upload without a length", b"POST"),
    _chunked("chunks, none", END),
    _chunked("chunks", chunk(b"one") + chunk(b"two") + END),
    _chunked("chunks, byte by byte", chunk(b"one") + chunk(b"two") + END, sent="byte by byte"),
    _chunked("chunks, 1 MiB", chunk(LARGE) + END),
    _chunked("chunks, under GET", chunk(b"one") + END, method=b"GET"),
    _chunked("chunks, with extensions", b'3;a=b;c="d"\r\none\r\n0;e\r\n\r\n'),
    _chunked("chunks, with zeros before", b"0003\r\none\r\n000\r\n\r\n"),
    _chunked("chunks, with trailers", chunk(b"one") + b"0\r\nX-Sum: 1\r\n\r\n", b"Trailer: X-Sum"),
    _chunked("chunks, that Connection names", chunk(b"one") + END, b"Connection: Transfer-Encoding"),
    _chunked("chunks, malformed", b"3\r\none\r\nno\r\n"),
    _chunked("chunks, longer than they say", b"3\r\nfour\r\n" + END),
    _chunked("chunks, in capitals", chunk(b"one") + END)._replace(fields=(b"transfer-encoding: CHUNKED",)),
    _upload("upload, cut off", b"half", sent="cut off")._replace(fields=(b"Content-Length: 10",)),
    _chunked("chunks, cut off", chunk(b"half"), sent="cut off"),
    Case("half-closed client", sent="half-closed", ending="held"),
    _upload("continue", b"body", b"Expect: 100-continue", sent="after 100"),
    _upload("continue, not waited for", b"body", b"Expect: 100-continue"),
    _chunked("continue, chunks", chunk(b"body") + END, b"Expect: 100-Continue", sent="after 100"),
    _upload(
        "continue, refused",
        b"body",
        b"Expect: 100-continue",
        sent="after 100",
        early=True,
        ending="closed",
        answer=b"HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ),
    _upload("continue, and nothing to come", b"", b"Expect: 100-continue"),
    _upload("expectation that is none", b"body", b"Expect: the-unexpected"),
    _upload("answered before the body is sent", b"body", sent="after the answer", early=True, answer=_ok()),
    # Versions and connections
    Case("HTTP/1.0", version=b"HTTP/1.0"),
    Case("HTTP/1.0 without a host", version=b"HTTP/1.0", host=None),
    Case("HTTP/1.0, kept", version=b"HTTP/1.0", fields=(b"Connection: keep-alive",), times=3),
    _upload("HTTP/1.0, upload", b"a=1", version=b"HTTP/1.0"),
    Case(
        "HTTP/1.0, chunked answer",
        version=b"HTTP/1.0",
        answer=_ok()[:17] + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"ok") + END,
    ),
    Case("HTTP/2.0 in the request line", version=b"HTTP/2.0"),
    Case("HTTP/1.2", version=b"HTTP/1.2"),
    Case("no version", version=b""),
    Case("closed when answered", fields=(b"Connection: close",)),
    Case("one connection, twenty times", times=20),
    Case("pipelined", times=5, pipelined=True),
    Case("pipelined, fifty times", times=50, pipelined=True),
    _upload("one connection, uploads", b"a=1", times=5),
    _upload("pipelined uploads", b"a=1", times=5, pipelined=True),
    Case("one connection, HEAD", b"HEAD", times=3, answer=_ok(body=b"")[:-5] + b"99\r\n\r\n"),
    Case("line ends before a request", b"\r\nGET"),
]

ANSWERS = [
    *(
        _answered(f"status {line.decode('latin-1')}", b"HTTP/1.1 " + line + b"\r\nContent-Length: 2\r\n\r\nok")
        for line in (
            *(b"201 Created", b"202 Accepted", b"203 ", b"206 Partial Content", b"207 Multi-Status", b"226 IM Used"),
            *(b"300 Multiple Choices", b"301 Moved Permanently", b"307 ", b"308 Permanent Redirect"),
            *(b"400 Bad Request", b"401 Unauthorized", b"402 Payment Required", b"409 Conflict", b"418 I'm a teapot"),
            *(b"421 Misdirected", b"425 Too Early", b"429 Slow down, please", b"451 ", b"499 Own"),
            *(
                b"500 ",
                b"502 Bad Gateway",
                b"503 Later",
                b"504 Gateway Timeout",
                b"511 N",
                b"599 Own",
                b"600 X",
                b"999 X",
            ),
            *(b"200 caf\xe9", b"200   spaces  within ", b"200 OK\tthen"),
        )
    ),
    _answered("status without a reason's space", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"),
    _answered("205", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"),
    _answered("204", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"),
    _answered("204 with a length", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
    _answered("304", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 99\r\n\r\n'),
    _answered("HEAD with a length", _ok(b"X-A: 1")[:-2], method=b"HEAD"),
    _answered("HEAD without a length", b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n", method=b"HEAD"),
    _answered("HEAD of chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", method=b"HEAD"),
    _answered("HEAD of an event stream", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", method=b"HEAD"),
    _answered("empty", _ok(body=b"")),
    _answered("obs-text in a field", _ok(b"X-Bytes: caf\xe9\xff\x80")),
    _answered("empty fields", _ok(b"X-Empty:", b"X-Spaces:   ")),
    _answered("spaces around a field", _ok(b"X-A:   a  b \t ", b"X-B:b")),
    _answered(
        "cookies",
        _ok(
            b"Set-Cookie: a=1; Path=/",
            b"X-A: 1",
            b"set-cookie: b=2; Expires=Wed, 01 Jan 2031 00:00:00 GMT",
            b"Set-Cookie: a=1; Path=/",
            b"Set-Cookie2: c",
        ),
    ),
    _answered(
        "repeated fields",
        _ok(b"Vary: A", b"X-R: 1", b"Vary: B", b"x-r: 2", b"WWW-Authenticate: Basic", b"WWW-Authenticate: Digest"),
    ),
    _answered("long field", _ok(b"X-Long: " + b"v" * 3000)),
    _answered("very long field", _ok(b"X-Long: " + b"v" * 100_000)),
    _answered("a hundred fields", _ok(*(b"X-%d: %d" % (number, number) for number in range(100)))),
    _answered("three hundred fields", _ok(*(b"X-%d: %d" % (number, number) for number in range(300)))),
    _answered("head longer than the sidecar takes", _ok(b"X-Long: " + b"v" * 1_000_000)),
    _answered("every tchar in a name", _ok(b"X" + TCHARS + b": 1")),
    _answered(
        "fields of caches and origins",
        _ok(
            b"Date: Wed, 01 Jan 2031 00:00:00 GMT",
            b"Server: own/1.0",
            b"Age: 5",
            b'ETag: W/"a"',
            b"Cache-Control: max-age=5",
            b"Expires: 0",
            b"Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT",
            b"Accept-Ranges: none",
            b'Alt-Svc: h3=":443"',
            b"Strict-Transport-Security: max-age=1",
            b"X-Accel-Buffering: no",
            b"Link: </a>; rel=next",
            b"Via: 1.1 other",
            b"Content-Encoding: x-own",
            b"Content-Language: de",
            b"Content-Disposition: attachment",
            b"Refresh: 5",
        ),
    ),
    _answered("no date", _ok(b"X-A: 1")),
    _answered("hop-by-hop", _ok(b"Connection: X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"X-Stays: 1")),
    _answered("connection closed", _ok(b"Connection: close"), ending="closed"),
    _answered("a proxy's credentials", b"HTTP/1.1 407 P\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"),
    _answered(
        "upgrade offered",
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
    ),
    _answered(
        "location kept", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/a%2fb?c#d\r\nContent-Length: 0\r\n\r\n"
    ),
    _answered("folded field", _ok(b"X-A: a", b"  b")),
    _answered("space before a colon", _ok(b"X-A : a")),
    _answered("line ends without CR", _ok(b"X-A: 1").replace(b"\r\n", b"\n")),
    _answered("line without a colon", _ok(b"nothing")),
    _answered("nul in a field", _ok(b"X-A: a\x00b")),
    _answered("chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one") + chunk(b"two") + END),
    _answered("chunks, 1 MiB", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(LARGE) + END),
    _answered(
        "chunks with extensions", b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a="b"\r\none\r\n0;c\r\n\r\n'
    ),
    _answered(
        "chunks with trailers",
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(b"one")
        + b"0\r\nX-Sum: 1\r\n\r\n",
        fields=(b"TE: trailers",),
    ),
    _answered("chunks of a byte", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"x") * 1000 + END),
    _answered(
        "chunks, compressed", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + chunk(b"one") + END
    ),
    _answered("chunks in capitals", b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n" + chunk(b"one") + END),
    _answered(
        "chunks and a length",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n" + chunk(b"one") + END,
    ),
    _answered(
        "chunks from HTTP/1.0",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one") + END,
        ending="closed",
    ),
    _answered("two lengths", _ok(b"Content-Length: 3"), ending="closed"),
    _answered("two equal lengths", _ok(b"Content-Length: 2"), ending="closed"),
    _answered("to the end", b"HTTP/1.1 200 OK\r\n\r\nto the end", ending="closed"),
    _answered("to the end, HTTP/1.0", b"HTTP/1.0 200 Fine\r\nX-A: 1\r\n\r\nto the end", ending="closed"),
    _answered("to the end, nothing", b"HTTP/1.1 200 OK\r\n\r\n", ending="closed"),
    _answered("to the end, reset", b"HTTP/1.1 200 OK\r\n\r\nhalf", ending="reset"),
    _answered("HTTP/1.0 with a length", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", ending="closed"),
    _answered("length, cut off", _ok(body=b"four")[:-2], ending="closed"),
    _answered(
        "chunks, cut off between",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one"),
        ending="closed",
    ),
    _answered(
        "chunks, cut off within", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\none", ending="closed"
    ),
    _answered(
        "chunks, malformed", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\nno\r\n", ending="closed"
    ),
    _answered("longer than it says", _ok() + b"more", ending="closed"),
    _answered("1 MiB", _ok(body=LARGE)),
    _answered("no HTTP at all", b"SSH-2.0-own\r\n\r\n", ending="closed"),
    _answered("none", b"\r\n", ending="closed"),
    _answered(
        "early hints",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nX-B: \xe9\r\n\r\n" + _ok(),
    ),
    _answered(
        "several interim",
        b"HTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 103 A\r\nLink: <a>\r\n\r\nHTTP/1.1 103 B\r\nLink: <b>\r\n\r\nHTTP/1.1 199 Own\r\n\r\n" + _ok(),
    ),
    _answered(
        "early hints for HTTP/1.0", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _ok(), version=b"HTTP/1.0"
    ),
    _answered("100 unasked", b"HTTP/1.1 100 Continue\r\n\r\n" + _ok()),
    _answered("101 unasked", b"HTTP/1.1 101 Switching\r\nUpgrade: own\r\nConnection: upgrade\r\n\r\n", ending="closed"),
    _answered(
        "event stream, 404",
        b"HTTP/1.1 404 N\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: 1\n\n",
    ),
    _answered("event stream in an unknown coding", _ok(b"Content-Type: text/event-stream", b"Content-Encoding: x-own")),
    _answered(
        "preflight",
        b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: x\r\n\r\n",
        method=b"OPTIONS",
        fields=(b"Origin: http://a.example", b"Access-Control-Request-Headers: x"),
    ),
    _answered(
        "preflight for Last-Event-ID",
        b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: x\r\n\r\n",
        method=b"OPTIONS",
        fields=(b"Origin: http://a.example", b"Access-Control-Request-Headers: x, last-event-id"),
    ),
]


def _file(name: str, target: bytes, *fields: bytes, **more: Any) -> Case:
    return Case(f"file, {name}", target=target, fields=fields, to="nginx")._replace(**more)


_MODIFIED = b"Tue, 14 Nov 2023 22:13:20 GMT"

FILES = [
    _file("whole", b"/a.txt"),
    _file("HEAD", b"/a.txt", method=b"HEAD"),
    _file("empty", b"/empty.txt"),
    _file("large", b"/large.bin"),
    _file("404", b"/none"),
    _file("404 to HEAD", b"/none", method=b"HEAD"),
    _file("403", b"/kept/"),
    _file("405", b"/a.txt", b"Content-Length: 1", method=b"POST", body=b"x"),
    _file("405 to a DELETE", b"/a.txt", method=b"DELETE"),
    _file("OPTIONS", b"/a.txt", method=b"OPTIONS"),
    _file("folder", b"/folder/"),
    _file("folder without its slash", b"/folder"),
    _file("redirect", b"/moved?x=y"),
    _file("204", b"/empty"),
    _file("418 with fields", b"/says"),
    _file("spaces and UTF-8 in the name", b"/a%20b%20%C3%A9.txt"),
    _file("encoded letters", b"/%61.txt"),
    _file("two slashes", b"//a.txt"),
    _file("dots", b"/folder/../a.txt"),
    _file("dots, encoded", b"/folder/%2e%2e/a.txt"),
    _file("dots above the root", b"/%2e%2e/a.txt"),
    _file("empty query", b"/a.txt?"),
    _file("range", b"/a.txt", b"Range: bytes=2-5"),
    _file("range to the end", b"/a.txt", b"Range: bytes=30-"),
    _file("range from the end", b"/a.txt", b"Range: bytes=-3"),
    _file("ranges", b"/a.txt", b"Range: bytes=0-1,5-6,-2"),
    _file("ranges of a large file", b"/large.bin", b"Range: bytes=0-99999,200000-399999"),
    _file("range that is none", b"/a.txt", b"Range: bytes=9-2"),
    _file("range beyond the end", b"/a.txt", b"Range: bytes=999-"),
    _file("range to HEAD", b"/a.txt", b"Range: bytes=2-5", method=b"HEAD"),
    _file("If-Range, same", b"/a.txt", b"Range: bytes=2-5", b"If-Range: " + _MODIFIED),
    _file("If-Range, other", b"/a.txt", b"Range: bytes=2-5", b'If-Range: "other"'),
    _file("If-Modified-Since, not", b"/a.txt", b"If-Modified-Since: " + _MODIFIED),
    _file("If-Modified-Since, yes", b"/a.txt", b"If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT"),
    _file("If-Unmodified-Since", b"/a.txt", b"If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT"),
    _file("If-None-Match, same", b"/a.txt", b'If-None-Match: "x", "6553f100-25"'),
    _file("If-None-Match, other", b"/a.txt", b'If-None-Match: "x"'),
    _file("If-None-Match, any", b"/a.txt", b"If-None-Match: *", method=b"HEAD"),
    _file("If-Match, other", b"/a.txt", b'If-Match: "x"'),
    _file("gzip from a file", b"/static/page.html", b"Accept-Encoding: gzip"),
    _file("gzip from a file, a range", b"/static/page.html", b"Accept-Encoding: gzip", b"Range: bytes=0-9"),
    _file("gzip on the fly", b"/fly/page.html", b"Accept-Encoding: gzip, br"),
    _file("gzip on the fly, for proxies too", b"/any/page.html", b"Accept-Encoding: gzip, br"),
    _file("gzip not wanted", b"/fly/page.html", b"Accept-Encoding: gzip;q=0"),
    _file("gzip on the fly, HTTP/1.0", b"/fly/page.html", b"Accept-Encoding: gzip", version=b"HTTP/1.0"),
    _file("HTTP/1.0", b"/a.txt", version=b"HTTP/1.0"),
    _file("HTTP/1.0, kept", b"/a.txt", b"Connection: keep-alive", version=b"HTTP/1.0", times=3),
    _file("one connection", b"/a.txt", times=10),
    _file("pipelined", b"/a.txt", times=5, pipelined=True),
    _file("unknown method", b"/a.txt", method=b"BREW"),
    _file("accepts an event stream", b"/fly/page.html", b"Accept: text/event-stream", b"Accept-Encoding: gzip"),
]


def _app(name: str, target: bytes, *fields: bytes, **more: Any) -> Case:
    return Case(f"aiohttp, {name}", target=target, fields=fields, to="aiohttp")._replace(**more)


def _node(name: str, target: bytes, *fields: bytes, **more: Any) -> Case:
    return Case(f"node, {name}", target=target, fields=fields, to="node")._replace(**more)


_SINKS = [
    case
    for name, make in (("aiohttp", _app), ("node", _node))
    for case in (
        make("sink, length", b"/sink", b"Content-Length: %d" % len(LARGE), method=b"POST", body=LARGE),
        make(
            "sink, chunks",
            b"/sink",
            b"Transfer-Encoding: chunked",
            method=b"PUT",
            body=(chunk(LARGE[:70_000]) * 5) + END,
        ),
        make("sink, empty", b"/sink", b"Content-Length: 0", method=b"PATCH"),
        make("sink, under DELETE", b"/sink", b"Content-Length: 3", method=b"DELETE", body=b"abc"),
        make(
            "sink, in pieces",
            b"/sink",
            b"Content-Length: 100000",
            method=b"POST",
            body=LARGE[:100_000],
            sent="in pieces",
        ),
        make(
            "sink, continue",
            b"/sink",
            b"Content-Length: 4",
            b"Expect: 100-continue",
            method=b"POST",
            body=b"body",
            sent="after 100",
        ),
        make("sink, HTTP/1.0", b"/sink", b"Content-Length: 3", method=b"POST", body=b"abc", version=b"HTTP/1.0"),
        make("sink, on one connection", b"/sink", b"Content-Length: 3", method=b"POST", body=b"abc", times=10),
        make(
            "sink, chunks on one connection",
            b"/sink",
            b"Transfer-Encoding: chunked",
            method=b"POST",
            body=chunk(b"abc") + END,
            times=5,
        ),
        make("sink, pipelined", b"/sink", b"Content-Length: 3", method=b"POST", body=b"abc", times=4, pipelined=True),
        make("sink, odd method", b"/sink", b"Content-Length: 4", method=b"PROPFIND", body=b"<a/>"),
        make("cookies", b"/cookies", b"Cookie: a=1; b=2"),
        make("slowly", b"/slowly"),
        make("slowly, HTTP/1.0", b"/slowly", version=b"HTTP/1.0"),
        make("404", b"/none"),
        make("HEAD", b"/cookies", method=b"HEAD"),
    )
]

SERVICES = [
    *_SINKS,
    _app("compressed", b"/compressed", b"Accept-Encoding: gzip, deflate"),
    _app("not compressed", b"/compressed"),
    _app("moved", b"/moved"),
    _app("failing", b"/failing"),
    _app("405", b"/cookies", b"Content-Length: 1", method=b"POST", body=b"x"),
    _app("expectation that is none", b"/sink", b"Expect: x", b"Content-Length: 1", method=b"POST", body=b"x"),
    _node(
        "trailers in the request",
        b"/sink",
        b"Transfer-Encoding: chunked",
        b"Trailer: X-Sum",
        method=b"POST",
        body=chunk(b"one") + b"0\r\nX-Sum: 1\r\n\r\n",
    ),
    _node("trailers in the answer", b"/trailers", b"TE: trailers"),
    _node("early hints", b"/hints"),
    _node("early hints, on one connection", b"/hints", times=3),
    _node("processing", b"/processing"),
    _node("cut off", b"/cut"),
    _node(
        "continue, refused",
        b"/refused",
        b"Expect: 100-continue",
        b"Content-Length: 4",
        method=b"POST",
        body=b"body",
        sent="after 100",
    ),
    _node("answered early", b"/early", b"Content-Length: %d" % len(LARGE), method=b"POST", body=LARGE),
]

CASES = [*REQUESTS, *ANSWERS, *FILES, *SERVICES]
