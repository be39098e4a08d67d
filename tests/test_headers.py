"""Which header fields cross the proxy, and what is said on an event stream."""

from __future__ import annotations

import pytest

from sse_sidecar import headers
from sse_sidecar.headers import Field, Hop

HOP = Hop(client=b"10.0.0.9", scheme=b"http", host=b"app.example")
TRUSTING = HOP._replace(trusted=True)
STREAM_ID = "g" + 22 * "A"


def sent(*fields: Field, hop: Hop = HOP) -> list[Field]:
    """What of a request with `fields` goes upstream beside what the sidecar says of itself."""
    own = {b"host", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
    return headers.without(headers.to_upstream(fields, hop, b"up.example"), own)


def said(name: bytes, *fields: Field, hop: Hop = HOP) -> list[bytes]:
    """The values of `name` as a request with `fields` has them upstream."""
    return headers.get_all(headers.to_upstream(fields, hop, b"up.example"), name)


def answered(*fields: Field) -> list[Field]:
    return headers.event_stream_answer(fields, STREAM_ID, "new")


def answered_with(name: bytes, *fields: Field) -> list[bytes]:
    return headers.get_all(answered(*fields), name)


# Reading


def test_names_are_found_in_any_case_and_values_are_left_as_they_are() -> None:
    fields = [(b"X-A", b" One "), (b"x-b", b"\xff"), (b"x-a", b"two")]
    assert b" One " == headers.get(fields, b"x-a")
    assert b"\xff" == headers.get(fields, b"x-b")
    assert headers.get(fields, b"x-c") is None
    assert [b" One ", b"two"] == headers.get_all(fields, b"x-a")
    assert [] == headers.get_all(fields, b"x-c")


def test_a_list_is_read_over_all_its_lines() -> None:
    fields = [(b"Accept", b"Text/HTML , */*;q=0.1"), (b"accept", b""), (b"ACCEPT", b",a,,b,")]
    assert [b"text/html", b"*/*;q=0.1", b"a", b"b"] == headers.listed(fields, b"accept")
    assert [] == headers.listed([], b"accept")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream", True),
        (b"text/event-stream;charset=utf-8", True),
        (b"text/event-stream ; charset=utf-8", True),
        (b" text/event-stream", True),
        (b"text/event-streams", False),
        (b"text/plain; x=text/event-stream", False),
        (b"", False),
    ],
)
def test_an_event_stream_is_known_by_its_media_type(value: bytes, expected: bool) -> None:
    assert expected == headers.is_event_stream([(b"Content-Type", value)])


def test_an_answer_without_a_content_type_is_no_event_stream() -> None:
    assert not headers.is_event_stream([(b"Content-Length", b"0")])
    assert b"" == headers.media_type(None)


@pytest.mark.parametrize(
    ("lines", "names_it", "alone"),
    [
        ([b"text/event-stream"], True, True),
        ([b"Text/Event-Stream"], True, True),
        ([b"text/event-stream, */*"], True, False),
        ([b"application/json, text/event-stream"], True, False),
        ([b"application/json", b"text/event-stream"], True, False),
        ([b"application/json, text/event-stream;q=0.9"], True, False),
        ([b"*/*"], False, False),
        ([b"text/*"], False, False),
        ([b"application/json"], False, False),
        ([], False, False),
    ],
)
def test_what_a_client_accepts(lines: list[bytes], names_it: bool, alone: bool) -> None:
    fields = [(b"Accept", line) for line in lines]
    assert (names_it, alone) == (headers.accepts_event_stream(fields), headers.accepts_only_event_stream(fields))


# Hop by hop


@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Connection",
        b"Proxy-Authenticate",
        b"Proxy-Authorization",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
    ],
)
def test_hop_by_hop_fields_do_not_cross(name: bytes) -> None:
    for spelled in (name, name.lower(), name.upper()):
        assert [(b"X-A", b"1")] == headers.end_to_end([(spelled, b"x"), (b"X-A", b"1")])


def test_fields_that_connection_names_do_not_cross() -> None:
    fields = [
        (b"Connection", b"close, X-Mine"),
        (b"x-mine", b"1"),
        (b"X-Other", b"2"),
        (b"connection", b"x-second"),
        (b"X-Second", b"3"),
        (b"X-Mine", b"4"),
    ]
    assert [(b"X-Other", b"2")] == headers.end_to_end(fields)


def test_all_else_crosses_as_it_came() -> None:
    fields = [(b"x-B", b"2"), (b"X-A", b"1"), (b"x-B", b"\xff"), (b"Cookie", b"a=b"), (b"Last-Event-ID", b"")]
    assert fields == headers.end_to_end(fields)
    assert fields == sent(*fields)


# To the upstream


def test_the_host_comes_first_and_once() -> None:
    fields = headers.to_upstream([(b"X-A", b"1"), (b"Host", b"app.example")], HOP, b"up.example:81")
    assert (b"Host", b"up.example:81") == fields[0]
    assert [b"up.example:81"] == headers.get_all(fields, b"host")


@pytest.mark.parametrize("name", [b"Content-Length", b"Transfer-Encoding", b"Expect", b"TE", b"Trailer"])
def test_what_frames_the_body_is_left_to_who_sends_it(name: bytes) -> None:
    assert [] == sent((name, b"5"))


def test_a_connection_field_takes_off_nothing_that_the_sidecar_says_itself() -> None:
    fields = headers.to_upstream([(b"Connection", b"host, via, x-forwarded-for")], HOP, b"up.example")
    assert [b"host", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"] == sorted(
        name.lower() for name, _ in fields
    )


@pytest.mark.parametrize("accept", [b"text/event-stream", b"application/json, text/event-stream"])
def test_a_request_for_an_event_stream_asks_for_no_coding(accept: bytes) -> None:
    fields = ((b"Accept", accept), (b"accept-encoding", b"gzip, br"), (b"Accept-Encoding", b"zstd"))
    assert [b"identity"] == said(b"accept-encoding", *fields)
    assert [b"identity"] == said(b"accept-encoding", (b"Accept", accept))


@pytest.mark.parametrize("accept", [b"application/json", b"*/*"])
def test_other_requests_keep_their_codings(accept: bytes) -> None:
    fields = ((b"Accept-Encoding", b"gzip, br"), (b"Accept", accept))
    assert list(fields) == sent(*fields)


def test_the_upstream_is_told_where_a_request_came_from() -> None:
    assert [b"10.0.0.9"] == said(b"x-forwarded-for")
    assert [b"http"] == said(b"x-forwarded-proto")
    assert [b"app.example"] == said(b"x-forwarded-host")
    assert [b"1.1 sse-sidecar"] == said(b"via")
    assert [] == said(b"forwarded")


CLAIMED = (
    (b"X-Forwarded-For", b"203.0.113.7"),
    (b"x-forwarded-for", b"198.51.100.2, 198.51.100.3"),
    (b"X-Forwarded-Proto", b"https"),
    (b"X-Forwarded-Host", b"shop.example"),
    (b"Forwarded", b"for=203.0.113.7"),
)


def test_what_a_client_claims_of_its_origin_is_not_believed() -> None:
    assert headers.to_upstream([], HOP, b"up.example") == headers.to_upstream(CLAIMED, HOP, b"up.example")


def test_what_a_trusted_proxy_says_is_kept_and_the_chain_goes_on() -> None:
    assert [b"203.0.113.7, 198.51.100.2, 198.51.100.3, 10.0.0.9"] == said(b"x-forwarded-for", *CLAIMED, hop=TRUSTING)
    assert [b"https"] == said(b"x-forwarded-proto", *CLAIMED, hop=TRUSTING)
    assert [b"shop.example"] == said(b"x-forwarded-host", *CLAIMED, hop=TRUSTING)
    assert [b"for=203.0.113.7"] == said(b"forwarded", *CLAIMED, hop=TRUSTING)


def test_what_a_trusted_proxy_does_not_say_is_said_by_the_sidecar() -> None:
    assert headers.to_upstream([], HOP, b"up.example") == headers.to_upstream([], TRUSTING, b"up.example")


def test_via_is_added_to() -> None:
    assert [b"1.0 fred, 1.1 nowhere.com, 1.1 sse-sidecar"] == said(
        b"via", (b"Via", b"1.0 fred"), (b"via", b"1.1 nowhere.com")
    )


# The answer that carries a stream


def test_a_stream_says_what_it_is_and_that_no_one_may_keep_or_hold_it() -> None:
    assert [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"Cache-Control", b"no-cache, no-store, no-transform"),
        (b"Vary", b"Last-Event-ID"),
        (b"X-Accel-Buffering", b"no"),
        (b"SSE-Stream", STREAM_ID.encode()),
        (b"SSE-Stream-Status", b"new"),
    ] == answered((b"content-type", b"text/event-stream; charset=utf-8"))


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Length",
        b"Content-Encoding",
        b"Transfer-Encoding",
        b"ETag",
        b"Last-Modified",
        b"Expires",
        b"Age",
        b"Accept-Ranges",
        b"Content-Range",
        b"Pragma",
        b"Surrogate-Control",
        b"CDN-Cache-Control",
        b"Cloudflare-CDN-Cache-Control",
        b"Vercel-CDN-Cache-Control",
        b"Edge-Control",
        b"X-Accel-Expires",
        b"Content-MD5",
        b"Digest",
        b"Content-Digest",
        b"Repr-Digest",
        b"Connection",
        b"Keep-Alive",
    ],
)
def test_what_does_not_hold_for_a_stream_is_gone(name: bytes) -> None:
    for spelled in (name, name.lower()):
        assert [] == answered_with(name.lower(), (spelled, b"1"))


def test_the_upstreams_own_words_on_caching_and_buffering_give_way() -> None:
    assert [b"no-cache, no-store, no-transform"] == answered_with(
        b"cache-control", (b"Cache-Control", b"public, max-age=60"), (b"cache-control", b"immutable")
    )
    assert [b"no"] == answered_with(b"x-accel-buffering", (b"X-Accel-Buffering", b"yes"))


def test_a_stream_with_ids_of_its_own_is_held_by_no_one_either() -> None:
    fields = [(b"Content-Type", b"text/event-stream"), (b"Content-Length", b"5"), (b"ETag", b"x"), (b"Vary", b"Origin")]
    assert [
        (b"Content-Type", b"text/event-stream"),
        (b"Cache-Control", b"no-cache, no-store, no-transform"),
        (b"Vary", b"Origin, Last-Event-ID"),
        (b"X-Accel-Buffering", b"no"),
    ] == headers.unbuffered(fields)


def test_an_upstream_cannot_name_the_stream() -> None:
    assert [STREAM_ID.encode()] == answered_with(b"sse-stream", (b"SSE-Stream", b"another"))
    assert [b"new"] == answered_with(b"sse-stream-status", (b"sse-stream-status", b"gap"))


def test_the_upstreams_other_fields_are_kept_as_they_came() -> None:
    fields = [(b"x-B", b"2"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-B", b"\xff")]
    assert fields == answered(*fields)[:4]


def test_a_field_that_the_upstreams_connection_names_is_gone() -> None:
    assert [] == answered_with(b"x-hop", (b"Connection", b"x-hop"), (b"X-Hop", b"1"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], b"Last-Event-ID"),
        ([b""], b"Last-Event-ID"),
        ([b"Origin"], b"Origin, Last-Event-ID"),
        ([b"Origin, Accept", b"Cookie"], b"Origin, Accept, Cookie, Last-Event-ID"),
        ([b"last-event-id"], b"last-event-id"),
        ([b"Origin", b"last-event-id"], b"Origin, last-event-id"),
        ([b"Origin , LAST-EVENT-ID"], b"Origin , LAST-EVENT-ID"),
        ([b"*"], b"*, Last-Event-ID"),
    ],
)
def test_vary_is_added_to_the_upstreams(lines: list[bytes], expected: bytes) -> None:
    assert [expected] == answered_with(b"vary", *((b"Vary", line) for line in lines))


def test_only_the_client_that_an_answer_was_made_for_gets_its_cookies() -> None:
    fields = [(b"Set-Cookie", b"a=1"), (b"X-A", b"1"), (b"set-cookie", b"b=2"), (b"Set-Cookie2", b"c=3")]
    assert [(b"X-A", b"1")] == headers.without_cookies(fields)


# CORS

ALLOWED = (b"Access-Control-Allow-Origin", b"https://page.example")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], b"SSE-Stream, SSE-Stream-Status"),
        ([b"X-A"], b"X-A, SSE-Stream, SSE-Stream-Status"),
        ([b"X-A", b"X-B"], b"X-A, X-B, SSE-Stream, SSE-Stream-Status"),
        ([b"sse-stream"], b"sse-stream, SSE-Stream-Status"),
        ([b"*"], b"*, SSE-Stream, SSE-Stream-Status"),  # no wildcard when credentials are allowed
    ],
)
def test_a_page_that_may_read_a_stream_may_read_its_name_and_status(lines: list[bytes], expected: bytes) -> None:
    fields = [(b"Access-Control-Expose-Headers", line) for line in lines]
    assert [expected] == answered_with(b"access-control-expose-headers", ALLOWED, *fields)
    assert [ALLOWED[1]] == answered_with(b"access-control-allow-origin", ALLOWED, *fields)


def test_nothing_is_exposed_where_the_upstream_lets_no_page_read() -> None:
    assert [] == answered_with(b"access-control-expose-headers")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], b"Last-Event-ID"),
        ([b"Authorization"], b"Authorization, Last-Event-ID"),
        ([b"Authorization", b"X-A"], b"Authorization, X-A, Last-Event-ID"),
        ([b"last-event-id"], b"last-event-id"),
        ([b"*"], b"*, Last-Event-ID"),
    ],
)
@pytest.mark.parametrize("asked", [b"last-event-id", b"authorization,last-event-id", b"X-A, Last-Event-ID"])
def test_a_preflight_that_asks_for_last_event_id_gets_it(asked: bytes, lines: list[bytes], expected: bytes) -> None:
    answer = [ALLOWED, *((b"Access-Control-Allow-Headers", line) for line in lines)]
    given = headers.allow_last_event_id([(b"Access-Control-Request-Headers", asked)], answer)
    assert [expected] == headers.get_all(given, b"access-control-allow-headers")
    assert ALLOWED == given[0]


@pytest.mark.parametrize("asked", [[], [(b"Access-Control-Request-Headers", b"authorization")]])
def test_a_preflight_that_does_not_ask_for_it_is_answered_as_the_upstream_says(asked: list[Field]) -> None:
    answer = [ALLOWED, (b"Access-Control-Allow-Headers", b"Authorization")]
    assert answer == headers.allow_last_event_id(asked, answer)


def test_a_preflight_that_the_upstream_refuses_stays_refused() -> None:
    answer = [(b"Access-Control-Allow-Headers", b"Authorization")]
    asked = [(b"Access-Control-Request-Headers", b"last-event-id")]
    assert answer == headers.allow_last_event_id(asked, answer)


def test_try_again_is_an_uncached_event_stream() -> None:
    assert [
        (b"Content-Type", b"text/event-stream"),
        (b"Cache-Control", b"no-cache, no-store, no-transform"),
        (b"X-Accel-Buffering", b"no"),
    ] == headers.try_again_answer([])


def test_try_again_may_be_read_by_a_page_of_any_origin() -> None:
    fields = headers.try_again_answer([(b"Origin", b"https://page.example")])
    assert b"https://page.example" == headers.get(fields, b"access-control-allow-origin")
    assert b"true" == headers.get(fields, b"access-control-allow-credentials")
    assert b"Origin" == headers.get(fields, b"vary")
