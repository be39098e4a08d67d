"""The addresses of a service: which is asked, which is passed over, and connections that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sse_sidecar.app import Sidecar
from sse_sidecar.errors import ConfigError
from sse_sidecar.origin import FAILED_FOR, KEPT_FOR
from tests.conftest import StartSidecar, with_settings
from tests.harness import EVENT_SOURCE, ManualClock, Response, Upstream, connect, port_of, request, scrape, until

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

Answer = Callable[[bytes], bytes]


class Service:
    """A server that keeps its connections, and remembers on which each request came."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.requests: list[tuple[int, bytes]] = []
        """The number of the connection, and the head."""
        self.connections: list[asyncio.StreamWriter] = []
        self.answer: Answer = lambda head: HELLO
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def used(self) -> list[int]:
        return [number for number, _ in self.requests]

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server:
            self._server.close()
        for writer in self.connections:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        number = len(self.connections)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                if length:
                    await reader.readexactly(int(length[0].partition(b":")[2]))
                self.requests.append((number, head))
                answer = self.answer(head)
                writer.write(answer)
                if not answer or b"Connection: close" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    served = Service()
    await served.start()
    yield served
    served.stop()


def named(name: str) -> Answer:
    return lambda head: HELLO.replace(b"hi", name.encode() * 2)


@pytest.fixture
async def services() -> AsyncIterator[list[Service]]:
    """Three of one kind."""
    made = [Service(name) for name in "abc"]
    for each in made:
        await each.start()
        each.answer = named(each.name)
    yield made
    for each in made:
        each.stop()


Get = Callable[..., Awaitable[Response]]


@pytest.fixture
async def get(start: StartSidecar, service: Service) -> Get:
    """Asks a sidecar that keeps connections to the service, and reads the answer."""
    sidecar = await start(upstream=service.url, upstream_keepalive=2)

    async def getting(*, headers: dict[str, str] | None = None, method: str = "GET", body: bytes = b"") -> Response:
        closing = {"Connection": "close", **(headers or {})}
        response = await request(port_of(sidecar), "/", method=method, headers=closing, body=body)
        await response.read_to_end()
        response.close()
        return response

    return getting


# Kept connections


async def test_a_connection_is_used_again(get: Get, service: Service) -> None:
    bodies = [(await get()).body for _ in range(3)]

    assert [b"hi"] * 3 == bodies
    assert [1, 1, 1] == service.used


@pytest.mark.parametrize(
    ("answer", "method"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nTrailer: x\r\n\r\n", "GET"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + HELLO, "GET"),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", "GET"),
    ],
    ids=["chunked", "204", "304", "HEAD", "early hints", "HTTP/1.0"],
)
async def test_it_is_used_again_after_any_answer_whose_end_is_known(
    get: Get, service: Service, answer: bytes, method: str
) -> None:
    service.answer = lambda head: answer
    for _ in range(2):
        await get(method=method)

    assert [1, 1] == service.used


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        HELLO + b"HTTP/1.1 200 OK\r\n",
        HELLO + b"what is this",
        b"HTTP/1.1 204 No Content\r\n\r\nhi",
    ],
    ids=["close", "HTTP/1.0", "another answer behind it", "more behind it", "a body of a 204"],
)
async def test_it_is_not_used_again_where_it_is_closed_or_not_clean(get: Get, service: Service, answer: bytes) -> None:
    """What stands behind an answer would be the next client's."""
    service.answer = lambda head: answer
    for _ in range(2):
        await get()

    assert [1, 2] == service.used


async def test_it_is_not_used_again_where_a_body_follows_the_head_to_head(get: Get, service: Service) -> None:
    service.answer = lambda head: HELLO
    for _ in range(2):
        await get(method="HEAD")

    assert [1, 2] == service.used


async def test_it_is_not_used_again_while_a_request_is_not_whole(start: StartSidecar, upstream: Upstream) -> None:
    """What still comes of it would be taken for the next one."""
    sidecar = await start(upstream_keepalive=2)
    client = await connect(port_of(sidecar))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123")
    asked = await upstream.asked()
    await asked.respond("200 OK")
    await client.read_head()
    await asked.closed()
    client.close()


async def test_an_upload_gives_its_connection_back_and_takes_none(get: Get, service: Service) -> None:
    """A kept one may just have been closed, and what is not safe must not be sent twice."""
    await get(method="POST", body=b"123")
    await get()
    await get(method="POST", body=b"123")

    assert [1, 1, 2] == service.used


async def test_a_request_for_a_stream_has_a_connection_of_its_own(get: Get, service: Service) -> None:
    await get()
    await get(headers=EVENT_SOURCE)

    assert [1, 2] == service.used


async def test_one_that_is_idle_for_long_is_not_used_any_more(get: Get, service: Service, clock: ManualClock) -> None:
    await get()
    clock.advance(KEPT_FOR + 0.1)
    await get()

    assert [1, 2] == service.used


async def test_a_request_that_meets_a_closed_connection_is_sent_on_another(
    start: StartSidecar, service: Service
) -> None:
    """The upstream gives it up without a byte, as it would have on its time-out."""
    sidecar = await start(upstream=service.url, upstream_keepalive=2)
    answers = iter([HELLO, b"", HELLO])
    service.answer = lambda head: next(answers)
    seen = []
    for _ in range(2):
        response = await request(port_of(sidecar), "/")
        seen.append((response.status, await response.read_to_end()))
        response.close()

    assert [(200, b"hi")] * 2 == seen
    assert [1, 1, 2] == service.used
    assert 1 == (await scrape(sidecar))['sse_upstream_connects_total{result="kept",route="default"}']


async def test_a_request_that_meets_two_is_answered_502(get: Get, service: Service) -> None:
    answers = iter([HELLO, b"", b""])
    service.answer = lambda head: next(answers)

    assert [200, 502] == [(await get()).status, (await get()).status]


async def test_a_connection_that_is_closed_while_idle_is_let_go_of(get: Get, service: Service) -> None:
    await get()
    service.connections[0].close()
    await service.connections[0].wait_closed()

    assert 200 == (await get()).status
    assert 2 == service.used[-1]


async def test_no_more_are_kept_than_may_be(start: StartSidecar, service: Service) -> None:
    sidecar = await start(upstream=service.url, upstream_keepalive=2)
    asked = [asyncio.ensure_future(request(port_of(sidecar), f"/{number}")) for number in range(5)]
    for response in await asyncio.gather(*asked):
        await response.read_to_end()
        response.close()
    await until(lambda: sum(not writer.is_closing() for writer in service.connections) <= 2)


async def test_idle_connections_are_closed_with_the_sidecar(start: StartSidecar, service: Service) -> None:
    sidecar = await start(upstream=service.url, upstream_keepalive=2)
    response = await request(port_of(sidecar), "/")
    await response.read_to_end()
    response.close()
    await sidecar.stop()

    await until(service.connections[0].is_closing)


# Several addresses


@pytest.fixture
async def three(start: StartSidecar, services: list[Service]) -> Sidecar:
    return await start(upstream=[each.url for each in services])


async def asked_of(sidecar: Sidecar, times: int, *, method: str = "GET", body: bytes = b"") -> list[str]:
    """Who answers."""
    names = []
    for _ in range(times):
        response = await request(port_of(sidecar), "/", method=method, body=body)
        names.append((await response.read_to_end()).decode()[:1] if response.status == 200 else str(response.status))
        response.close()
    return names


async def test_they_are_asked_in_turn(three: Sidecar) -> None:
    names = await asked_of(three, 6)

    assert sorted("abc") == sorted(names[:3])
    assert names[:3] == names[3:]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_one_that_refuses_is_passed_over(three: Sidecar, services: list[Service], method: str) -> None:
    """Nothing was sent to it, so that nothing is sent twice, whatever the method."""
    services[1].stop()
    names = await asked_of(three, 8, method=method, body=b"1" if method == "POST" else b"")
    values = await scrape(three)

    assert {"a", "c"} == set(names)
    assert 1 == values['sse_upstream_connects_total{result="Unreachable",route="default"}']


async def test_one_that_was_passed_over_is_asked_again_after_a_while(
    three: Sidecar, services: list[Service], clock: ManualClock
) -> None:
    services[1].stop()
    before = await asked_of(three, 3)
    await services[1].start(services[1].port)
    soon = await asked_of(three, 3)
    clock.advance(FAILED_FOR)
    later = await asked_of(three, 3)

    assert "b" not in [*before, *soon]
    assert "b" in later


async def test_one_that_gives_up_unanswered_is_passed_over_and_the_request_is_not_repeated(
    three: Sidecar, services: list[Service]
) -> None:
    services[1].answer = lambda head: b""
    names = await asked_of(three, 8)

    assert 1 == names.count("502")
    assert {"a", "c", "502"} == set(names)
    assert 1 == len(services[1].requests)


async def test_where_all_have_failed_they_are_asked_all_the_same(three: Sidecar, services: list[Service]) -> None:
    for each in services:
        each.stop()
    down = await asked_of(three, 1)
    await services[2].start(services[2].port)
    up = await asked_of(three, 2)

    assert (["502"], ["c", "c"]) == (down, up)


async def test_a_client_that_leaves_is_no_failure_of_the_service(three: Sidecar, services: list[Service]) -> None:
    """Each is asked by one that leaves, and would else be passed over."""
    for each in services:
        each.answer = lambda head: b"HTTP/1.1 100 Continue\r\n\r\n"
    for _ in services:
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(three))
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: not three.front.idle.is_set())
        await until(lambda: sum(len(each.requests) for each in services))
        writer.close()
        await three.front.idle.wait()
    for each in services:
        each.answer = named(each.name)

    assert ["a", "b", "c"] == sorted(await asked_of(three, 3))


@with_settings(host_header="upstream")
async def test_each_is_asked_by_its_own_name(
    start: StartSidecar, services: list[Service], settings: dict[str, str]
) -> None:
    sidecar = await start(upstream=[each.url for each in services[:2]], **settings)
    await asked_of(sidecar, 2)

    for each in services[:2]:
        [(_, head)] = each.requests
        assert f"Host: 127.0.0.1:{each.port}\r\n".encode() in head


async def test_addresses_of_two_kinds_are_refused(start: StartSidecar) -> None:
    with pytest.raises(ConfigError, match="all http, or all https"):
        await start(upstream="http://a, https://b")
