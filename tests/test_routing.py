"""Which service gets a request, under which path, and what it is told of where it came from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from sse_sidecar.errors import ConfigError
from tests.conftest import Ask, StartSidecar, with_settings
from tests.harness import Response, Upstream, connect, port_of, request


@pytest.fixture
async def other() -> AsyncIterator[Upstream]:
    server = Upstream()
    await server.start()
    yield server
    await server.stop()


async def answered(port: int, server: Upstream, target: str, **kwargs: object) -> Response:
    asking = asyncio.ensure_future(request(port, target, **kwargs))  # type: ignore[arg-type]
    await (await server.asked()).respond("200 OK")
    response = await asking
    response.close()
    return response


async def test_host_path_and_method_lead_to_services_of_their_own(
    start: StartSidecar, upstream: Upstream, other: Upstream
) -> None:
    """Two routes with one path are two routes."""
    sidecar = await start(
        route=[
            {"path": "/a", "methods": ["POST"], "upstream": other.url},
            {"path": "/a", "methods": ["GET"], "upstream": upstream.url},
            {"host": "other.example", "upstream": other.url},
        ]
    )
    port = port_of(sidecar)
    await answered(port, other, "/a", method="POST", body=b"1")
    await answered(port, upstream, "/a")
    await answered(port, other, "/b", headers={"Host": "Other.Example:8080"})
    await answered(port, upstream, "/b")

    assert ["/a", "/b"] == [asked.target for asked in upstream.requests]
    assert ["/a", "/b"] == [asked.target for asked in other.requests]


async def test_what_no_route_is_for_is_a_clear_404(start: StartSidecar, upstream: Upstream) -> None:
    sidecar = await start(upstream=None, route=[{"path": "/a/*", "upstream": upstream.url}])
    await answered(port_of(sidecar), upstream, "/a/1")
    response = await request(port_of(sidecar), "/b", headers={"Connection": "close"})
    body = await response.read_to_end()
    response.close()

    assert (404, "application/problem+json") == (response.status, response.header("content-type"))
    assert "no service for this host, path and method" in json.loads(body)["detail"]
    assert ["/a/1"] == [asked.target for asked in upstream.requests]


async def test_without_a_service_for_anything_there_is_nothing_to_start(start: StartSidecar) -> None:
    with pytest.raises(ConfigError, match="upstream"):
        await start(upstream=None)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/api/users?a=1", "/users?a=1"),
        ("/api/", "/"),
        ("/api", "/"),
        ("/api?a=1", "/?a=1"),
        ("/api//x", "//x"),
        ("/api/%2e%2e/x", "/%2e%2e/x"),
        ("/apix/users", "/apix/users"),
        ("/users", "/users"),
    ],
)
@with_settings(strip_prefix="/api")
async def test_a_prefix_is_taken_off_where_it_is_whole(
    ask: Ask, upstream: Upstream, target: str, expected: str
) -> None:
    asking = asyncio.ensure_future(ask(target))
    asked = await upstream.asked()
    await asked.respond("200 OK")
    await asking

    assert expected == asked.target


@pytest.mark.parametrize(
    ("setting", "trusted"),
    [
        (False, False),
        (True, True),
        (["127.0.0.0/8"], True),
        (["10.0.0.0/8", "127.0.0.1"], True),
        (["10.0.0.0/8", "::1/128"], False),
        ("127.0.0.1, fd00::/8", True),
    ],
)
async def test_forwarded_fields_are_believed_of_trusted_networks_only(
    start: StartSidecar, upstream: Upstream, setting: object, trusted: bool
) -> None:
    sidecar = await start(trust_forwarded=setting)
    claims = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "Forwarded": "for=1.2.3.4"}
    await answered(port_of(sidecar), upstream, "/", headers=claims)
    asked = upstream.requests[0]

    assert ("1.2.3.4, 127.0.0.1" if trusted else "127.0.0.1") == asked.header("x-forwarded-for")
    assert ("https" if trusted else "http") == asked.header("x-forwarded-proto")
    assert ("for=1.2.3.4" if trusted else None) == asked.header("forwarded")


@pytest.mark.parametrize("setting", [False, True])
@pytest.mark.parametrize("name", ["X_Forwarded_For", "x-forwarded_proto", "X_FORWARDED-HOST"])
async def test_a_field_that_only_looks_like_one_of_them_does_not_pass(
    start: StartSidecar, upstream: Upstream, name: str, setting: bool
) -> None:
    """A WSGI application cannot tell the two apart."""
    sidecar = await start(trust_forwarded=setting)
    await answered(port_of(sidecar), upstream, "/", headers={name: "1.2.3.4", "X_Other": "x"})

    assert (None, "x") == (upstream.requests[0].header(name), upstream.requests[0].header("x_other"))


async def test_a_length_is_sent_on_as_a_plain_number(start: StartSidecar, upstream: Upstream) -> None:
    client = await connect(port_of(await start()))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\n123")
    asked = await upstream.asked()
    await asked.respond("200 OK")
    await client.read_head()
    client.close()

    assert "3" == asked.header("content-length")


@pytest.mark.parametrize("value", ["10.0.0.0/33", "10.0.0.1/8", "localhost", ["maybe"]])
async def test_what_is_no_network_is_refused(start: StartSidecar, value: object) -> None:
    with pytest.raises(ConfigError, match="a list of networks"):
        await start(trust_forwarded=value)


# Errors that a page of another origin may read


@with_settings(control_origins=["https://page.example"])
async def test_an_error_of_the_sidecars_own_can_be_read_by_the_pages_that_are_named(ask: Ask) -> None:
    gone = {"Last-Event-ID": "1-p" + "A" * 22}
    named = await ask("/", headers={**gone, "Origin": "https://page.example"})
    other = await ask("/", headers={**gone, "Origin": "https://elsewhere.example"})

    assert [410, 410] == [named.status, other.status]
    assert ("https://page.example", "true", "Origin") == (
        named.header("access-control-allow-origin"),
        named.header("access-control-allow-credentials"),
        named.header("vary"),
    )
    assert None is other.header("access-control-allow-origin")
