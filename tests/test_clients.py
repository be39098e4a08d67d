"""Real clients get through the sidecar what they get from the service itself, with heartbeats between the events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import httpx
import httpx2
import httpx_sse
import openai
import pytest
from mcp import Client, MCPError
from mcp.client.context import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult
from pydantic import BaseModel

from sse_sidecar.app import Sidecar
from sse_sidecar.event_id import parse
from tests.conftest import StartSidecar
from tests.harness import TIMEOUT, Asked, ManualClock, Upstream, port_of, until
from tests.real_upstreams import Line, Mcp, OpenAI, Store
from tests.reference import interpret

T = TypeVar("T")
Event = tuple[str, str]
"""Its type and its data."""


@pytest.fixture(autouse=True)
def _past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


class Ways:
    """A service, `direct` and `through` the sidecar, and the seconds of the sidecar's clock."""

    def __init__(self, direct: str, sidecar: Sidecar, clock: ManualClock) -> None:
        self.direct, self.through = direct, f"http://127.0.0.1:{port_of(sidecar)}"
        self.sidecar = sidecar
        self._clock = clock

    @property
    def heartbeats(self) -> int:
        return self.sidecar.metrics.route("default").heartbeats

    @property
    def resumes(self) -> Counter[str]:
        return self.sidecar.metrics.route("default").resumes

    async def pause(self, via: str) -> None:
        """Lets seconds pass until the sidecar has sent a heartbeat; none on behalf of a request that came past it."""
        before = self.heartbeats
        if "sse-sidecar" in via:
            await self.until(lambda: self.heartbeats > before)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Lets seconds pass, while someone reads, until the condition holds."""

        def after_a_second() -> Any:
            if self.sidecar.streams.reader_count:
                self._clock.advance(1)
            return condition()

        await until(after_a_second)

    async def both(self, client: Callable[[str], Awaitable[T]]) -> tuple[T, T]:
        """What a client gets directly and through the sidecar."""
        return await client(self.direct), await client(self.through)


async def open_ways(start: StartSidecar, clock: ManualClock, service: str) -> Ways:
    return Ways(service, await start(upstream=service, heartbeat=1, stall_timeout=1e6), clock)


@pytest.fixture
async def ways(start: StartSidecar, clock: ManualClock, upstream: Upstream) -> Ways:
    return await open_ways(start, clock, upstream.url)


# What the scripted service tells

PIECES = (
    b": OPENROUTER PROCESSING\n\n",
    b'data: {"n": 1}\n\n',
    b": ping - 2026-01-01 00:00:00+00:00\r\n\r\n",
    "event: token\r\ndata: né€\r\ndata:  of two lines\r\n\r\n".encode(),
    b": a comment within the event\ndata: 3\n\n",
    b"event: empty\ndata\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b"data: [DONE]\n\n",
)
EVENTS = [
    ("message", '{"n": 1}'),
    ("token", "né€\n of two lines"),
    ("message", "3"),
    ("empty", ""),
    ("message", "[DONE]"),
]
PIECES_WITH_IDS = (
    b"id: a\ndata: 1\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b"data: 2\nid: b\n\n",
    b": ping\r\n\r\n",
    b"data: 3\n\n",
)


def tell(upstream: Upstream, ways: Ways, pieces: Iterable[bytes] = PIECES, *, whole: bool = True) -> None:
    """Makes the service answer each request with these pieces, waiting before each, and a clean end or none."""

    async def telling(asked: Asked) -> None:
        await asked.read_body()
        await asked.begin()
        for piece in pieces:
            await ways.pause(asked.header("via") or "")
            await asked.stream(piece)
        if whole:
            await asked.end()

    upstream.handler = telling


# curl


class Curl(NamedTuple):
    """What curl printed, and how it ended: 18 is a partial file, 28 a time-out."""

    code: int
    output: bytes

    @property
    def events(self) -> list[Event]:
        return [(event.type, event.data) for event in interpret(self.output).events]

    @property
    def ids(self) -> list[str]:
        return [event.last_event_id for event in interpret(self.output).events]


async def curl(url: str, *options: str) -> Curl:
    process = await asyncio.create_subprocess_exec(
        "curl", "-qsN", *options, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(TIMEOUT):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return Curl(process.returncode, output)


@pytest.mark.parametrize("options", [(), ("--json", '{"n": 1}')], ids=["GET", "POST"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "broken"])
async def test_curl_prints_the_same_events(
    upstream: Upstream, ways: Ways, options: tuple[str, ...], whole: bool
) -> None:
    """And tells a whole answer from one that broke off before its end; of the latter the sidecar says why."""
    events = EVENTS if whole else EVENTS[:-1]
    code = 0 if whole else 18
    tell(upstream, ways, PIECES if whole else PIECES[:-1], whole=whole)

    direct, through = await ways.both(lambda url: curl(url, *options))

    assert (code, events) == (direct.code, direct.events)
    assert (code, events) == (through.code, through.events[: len(events)])
    assert ([] if whole else ["sse-sidecar"]) == [event for event, _ in through.events[len(events) :]]
    assert list(range(1, len(events) + 1)) == [number(token) for token in through.ids[: len(events)]]
    assert through.output.count(b": heartbeat\n") == ways.heartbeats >= len(PIECES) - 1
    assert through.output.count(b": OPENROUTER PROCESSING\n") == direct.output.count(b": OPENROUTER PROCESSING\n")


@pytest.mark.parametrize("options", [(), ("-d", "x")], ids=["GET", "POST"])
async def test_curl_goes_on_after_its_time_is_up(upstream: Upstream, ways: Ways, options: tuple[str, ...]) -> None:
    """`--max-time` cuts the answer off; the last id, as it was printed, in `Last-Event-ID` brings the rest."""
    first, rest = await leave_and_come_back(
        upstream,
        ways,
        curl(ways.through, "--max-time", "1.5", *options),
        lambda first: curl(ways.through, "-H", f"Last-Event-ID: {first.ids[-1]}"),
    )

    assert (28, 0) == (first.code, rest.code)
    assert ["1", "2", "3", "4"] == [data for _, data in first.events + rest.events]
    assert 1 == len(upstream.requests)


async def leave_and_come_back(
    upstream: Upstream, ways: Ways, leave: Coroutine[None, None, T], come_back: Callable[[T], Coroutine[None, None, T]]
) -> tuple[T, T]:
    """Two events for a client that leaves after them, one while it is away, and one when it is back."""
    async with asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(leave)
        asked = await upstream.asked()
        await asked.read_body()
        await asked.begin()
        await asked.stream(b": OPENROUTER PROCESSING\n\ndata: 1\n\n")
        await ways.pause("sse-sidecar")
        await asked.stream(b"data: 2\n\n")
        await until(lambda: leaving.done() and not ways.sidecar.streams.reader_count)
        await asked.stream(b"data: 3\n\n")
        coming_back = tasks.create_task(come_back(leaving.result()))
        await ways.pause("sse-sidecar")
        await asked.stream(b": OPENROUTER PROCESSING\n\ndata: 4\n\n")
        await asked.end()
    return leaving.result(), coming_back.result()


def number(token: str) -> int:
    parsed = parse(token)
    assert parsed is not None
    return parsed.seq


# SSE libraries of Python


class Read(NamedTuple):
    """What a library handed out."""

    status: int
    events: list[Event]
    ids: list[str]


class Reads(Protocol):
    """Reads a stream, or so much of it, with a library."""

    def __call__(
        self, url: str, method: str, *, last_id: str = "", events: int | None = None
    ) -> Coroutine[None, None, Read]: ...


def _options(method: str, last_id: str) -> dict[str, Any]:
    return {
        "json": {"prompt": "hällo"} if method == "POST" else None,
        "headers": {"Last-Event-ID": last_id} if last_id else {},
    }


def _read(response: Any, found: Iterable[Any]) -> Read:
    events = list(found)
    return Read(response.status_code, [(event.event, event.data) for event in events], [event.id for event in events])


async def read_httpx_sse(url: str, method: str, *, last_id: str = "", events: int | None = None) -> Read:
    def run() -> Read:
        with (
            httpx.Client(timeout=TIMEOUT) as client,
            httpx_sse.connect_sse(client, method, url, **_options(method, last_id)) as source,
        ):
            return _read(source.response, islice(source.iter_sse(), events))

    return await asyncio.to_thread(run)


async def read_httpx_sse_async(url: str, method: str, *, last_id: str = "", events: int | None = None) -> Read:
    async with (
        httpx.AsyncClient(timeout=TIMEOUT) as client,
        httpx_sse.aconnect_sse(client, method, url, **_options(method, last_id)) as source,
        aclosing(source.aiter_sse()) as found,
    ):
        taken: list[httpx_sse.ServerSentEvent] = []
        while events is None or len(taken) < events:
            event = await anext(found, None)
            if event is None:
                break
            taken.append(event)
        return _read(source.response, taken)


async def read_httpx2(url: str, method: str, *, last_id: str = "", events: int | None = None) -> Read:
    def run() -> Read:
        with (
            httpx2.Client(timeout=TIMEOUT) as client,
            client.sse(url, method=method, **_options(method, last_id)) as source,
        ):
            return _read(source.response, islice(source, events))

    return await asyncio.to_thread(run)


each_library = pytest.mark.parametrize("read", [read_httpx_sse, read_httpx_sse_async, read_httpx2])
each_method = pytest.mark.parametrize("method", ["GET", "POST"])


@each_library
@each_method
async def test_an_sse_library_hands_out_the_same_events(
    upstream: Upstream, ways: Ways, read: Reads, method: str
) -> None:
    """Heartbeats and comments make no empty events between them, although every event now has an id."""
    tell(upstream, ways)

    direct, through = await ways.both(lambda url: read(url, method))

    assert EVENTS == direct.events == through.events
    assert [1, 2, 3, 4, 5] == [number(token) for token in through.ids]
    assert len(PIECES) <= ways.heartbeats
    assert upstream.requests[0].body == upstream.requests[1].body


@each_library
@each_method
async def test_an_sse_library_hands_out_no_empty_event_where_the_service_gives_ids(
    upstream: Upstream, ways: Ways, read: Reads, method: str
) -> None:
    """Directly, httpx-sse hands out one for each comment after the first id: those are spared its users here."""
    tell(upstream, ways, PIECES_WITH_IDS)

    direct, through = await ways.both(lambda url: read(url, method))

    assert [("message", "1"), ("message", "2"), ("message", "3")] == through.events
    assert through.events == [event for event in direct.events if event[1]]
    assert len(PIECES_WITH_IDS) <= ways.heartbeats


@each_library
@pytest.mark.parametrize(("method", "again"), [("GET", "GET"), ("POST", "GET"), ("POST", "POST")])
async def test_an_sse_library_goes_on_where_it_left(
    upstream: Upstream, ways: Ways, read: Reads, method: str, again: str
) -> None:
    """With the last id it was given, by GET or by repeating its POST; the service is asked once."""
    first, rest = await leave_and_come_back(
        upstream,
        ways,
        read(ways.through, method, events=2),
        lambda first: read(ways.through, again, last_id=first.ids[-1]),
    )

    assert ["1", "2", "3", "4"] == [data for _, data in first.events + rest.events]
    assert 1 == len(upstream.requests)


@each_library
@pytest.mark.parametrize(("again", "status"), [("GET", 204), ("POST", 200)])
async def test_an_sse_library_that_has_everything_is_told_so_without_an_error(
    upstream: Upstream, ways: Ways, read: Reads, again: str, status: int
) -> None:
    tell(upstream, ways)
    whole = await read(ways.through, "POST")

    over = await read(ways.through, again, last_id=whole.ids[-1])

    assert Read(status, [], []) == over


# The OpenAI SDK


@pytest.fixture
async def api() -> AsyncIterator[OpenAI]:
    service = OpenAI()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def api_ways(api: OpenAI, start: StartSidecar, clock: ManualClock) -> Ways:
    found = await open_ways(start, clock, api.url)
    api.pause = found.pause
    return found


class Answer(NamedTuple):
    """What the SDK gave to its caller, and what it raised then."""

    parts: list[dict[str, Any]]
    error: openai.APIError | None = None


Call = Callable[[Any, str], Any]
"""A method of the SDK's client, sync or async, for a model."""


def chat(client: Any, model: str) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi?"}], stream=True)


def responses(client: Any, model: str) -> Any:
    return client.responses.create(model=model, input="Hi?", stream=True)


async def ask_sync(url: str, call: Call, model: str, key: str = OpenAI.KEY) -> Answer:
    def run() -> Answer:
        parts: list[dict[str, Any]] = []
        with openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0) as client:
            try:
                parts.extend(part.to_dict() for part in call(client, model))
            except openai.APIError as error:
                return Answer(parts, error)
        return Answer(parts)

    return await asyncio.to_thread(run)


async def ask_async(url: str, call: Call, model: str, key: str = OpenAI.KEY) -> Answer:
    parts: list[dict[str, Any]] = []
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0) as client:
        try:
            async for part in await call(client, model):
                parts.append(part.to_dict())  # noqa: PERF401 - those before an error count
        except openai.APIError as error:
            return Answer(parts, error)
    return Answer(parts)


each_sdk = pytest.mark.parametrize("ask", [ask_sync, ask_async])
each_call = pytest.mark.parametrize("call", [chat, responses])


@each_sdk
@each_call
@pytest.mark.parametrize("model", ["plain", "compressed"])
async def test_the_openai_sdk_yields_the_same_parts(
    api: OpenAI, api_ways: Ways, ask: Callable[..., Awaitable[Answer]], call: Call, model: str
) -> None:
    """Those of a chat and the typed events of a response; the SDK asks for gzip, and may get it."""
    direct, through = await api_ways.both(lambda url: ask(url, call, model))

    assert direct == through
    assert (len(api.WORDS) + 2 * (call is responses), None) == (len(through.parts), through.error)
    assert len(api.WORDS) <= api_ways.heartbeats
    assert api.bodies[0] == api.bodies[1]


@each_sdk
@each_call
async def test_the_openai_sdk_raises_where_its_service_breaks_off(
    api: OpenAI, api_ways: Ways, ask: Callable[..., Awaitable[Answer]], call: Call
) -> None:
    """After the same parts: a lost connection directly, and the signal's own error through the sidecar."""
    direct, through = await api_ways.both(lambda url: ask(url, call, "breaks"))

    assert direct.parts == through.parts
    assert len(api.WORDS) - (call is chat) <= len(through.parts)
    assert openai.APIConnectionError is type(direct.error)
    assert openai.APIError is type(through.error)
    assert "upstream-lost" == through.error.code
    assert 3 <= api_ways.heartbeats


@each_sdk
async def test_the_openai_sdk_raises_the_same_where_it_is_refused(
    api_ways: Ways, ask: Callable[..., Awaitable[Answer]]
) -> None:
    direct, through = await api_ways.both(lambda url: ask(url, chat, "plain", key="wrong"))

    assert openai.AuthenticationError is type(direct.error) is type(through.error)
    assert str(direct.error) == str(through.error)


async def test_the_openai_sdk_gets_the_same_whole_answer(api_ways: Ways) -> None:
    async def complete(url: str) -> openai.types.chat.ChatCompletion:
        async with openai.AsyncOpenAI(api_key=OpenAI.KEY, base_url=f"{url}/v1") as client:
            return await client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "Hi?"}])

    direct, through = await api_ways.both(complete)

    assert direct == through
    assert "".join(OpenAI.WORDS) == through.choices[0].message.content


# The MCP client

HANDSHAKES = ("2025-06-18", "2025-11-25")
WITHOUT_RESUME = "2026-07-28"


@pytest.fixture
async def mcp(request: pytest.FixtureRequest) -> AsyncIterator[Mcp]:
    """Without an event store, unless it is asked for."""
    service = Mcp(getattr(request, "param", None))
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def mcp_ways(mcp: Mcp, start: StartSidecar, clock: ManualClock) -> Ways:
    return await open_ways(start, clock, mcp.url)


@pytest.fixture
def revision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The revision that clients offer. Of the older ones the SDK offers only the last of its own accord."""
    wanted: str = request.param
    if wanted in HANDSHAKES:
        monkeypatch.setattr("mcp.client.session.LATEST_HANDSHAKE_VERSION", wanted)
    return wanted


def each_revision(*revisions: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("revision", revisions, indirect=True)


class Talk:
    """An MCP client: what it `heard` of its calls, and of what it was `notified`."""

    def __init__(self, url: str, revision: str) -> None:
        self.heard: list[str] = []
        self.notified: list[str] = []
        self.client = Client(
            f"{url}/mcp",
            mode="legacy" if revision in HANDSHAKES else revision,
            message_handler=self._notice,
            elicitation_callback=self._answer,
            read_timeout_seconds=TIMEOUT,
        )

    async def _notice(self, message: object) -> None:
        self.notified.append(str(getattr(message, "method", message)))

    async def _answer(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        self.note(params)
        return ElicitResult(action="accept", content={"name": "Zoë"})

    def note(self, said: object) -> None:
        self.heard.append(said.model_dump_json() if isinstance(said, BaseModel) else repr(said))

    async def call(self, tool: str, on_progress: Callable[[str], None] | None = None) -> None:
        async def progress(progress: float, total: float | None, message: str | None) -> None:
            self.note((progress, total, message))
            if on_progress:
                on_progress(message or "")

        try:
            self.note(await self.client.call_tool(tool, {}, progress_callback=progress))
        except MCPError as error:
            self.note(error)


async def converse(mcp: Mcp, line: Line, revision: str) -> list[str]:
    """All that a session is made of, the GET stream for what the server says unasked included."""
    mcp.requests.clear()
    talk = Talk(line.url, revision)
    async with talk.client as client:
        talk.note(client.protocol_version)
        talk.note(await client.list_tools())
        talk.note(await client.read_resource("text://poem"))
        for tool in ("count", "fail", "no such tool", "greet"):
            await talk.call(tool)
        await until(lambda: revision not in HANDSHAKES or ("GET", 200) in mcp.requests)
    return talk.heard


@each_revision(*HANDSHAKES)
async def test_an_mcp_session_is_the_same(mcp: Mcp, mcp_ways: Ways, revision: str) -> None:
    """Tools with progress, errors, a resource, and a question of the server's, up to the DELETE at the end."""
    async with Line(mcp.port) as line:
        direct = await converse(mcp, line, revision)
    requests = Counter(mcp.requests)
    async with Line(port_of(mcp_ways.sidecar)) as line:
        mcp.pause = lambda step: mcp_ways.until(lambda: heartbeat_after(line, f"step {step}"))
        through = await converse(mcp, line, revision)

    assert direct == through
    assert repr(revision) == through[0]
    assert "Hello, Zoë!" in through[-1]
    assert requests == Counter(mcp.requests)
    assert 1 == requests["GET", 200] == requests["DELETE", 200]


def heartbeat_after(line: Line, message: str) -> bool:
    return any(b": heartbeat" in answer.partition(message.encode())[2] for answer in line.answers)


@each_revision("auto", WITHOUT_RESUME)
async def test_an_mcp_session_without_resumption_is_relayed_as_it_is(mcp: Mcp, mcp_ways: Ways, revision: str) -> None:
    """What the SDK negotiates by itself: in this revision a closed answer is a cancelled call."""
    async with Line(mcp.port) as line:
        direct = await converse(mcp, line, revision)
    async with Line(port_of(mcp_ways.sidecar)) as line:
        through = await converse(mcp, line, revision)
        answers = b"".join(line.answers).lower()

    assert direct == through
    assert repr(WITHOUT_RESUME) == through[0]
    assert b"text/event-stream" in answers
    assert b"sse-stream" not in answers
    assert b"id: " not in answers.replace(b"mcp-session-id: ", b"")


class Interrupted(NamedTuple):
    """A call of `count` whose line was cut after its second step."""

    heard: list[str]
    calls: list[str]


async def interrupt(mcp: Mcp, port: int, revision: str, back: Callable[[], Any]) -> Interrupted:
    """Cuts the line when the client has heard of the second step; the server goes on when the client is `back`."""
    cut = asyncio.Event()
    mcp.calls.clear()
    async with Line(port) as line:

        async def pause(step: int) -> None:
            if step == 2:
                await cut.wait()
            if step == 3:
                await until(back)

        def on_progress(message: str) -> None:
            if message == "step 2":
                line.cut()
                cut.set()

        mcp.pause = pause
        talk = Talk(line.url, revision)
        async with talk.client:
            await talk.call("count", on_progress)
    return Interrupted(talk.heard, mcp.calls.copy())


@each_revision(*HANDSHAKES)
async def test_an_mcp_call_that_is_cut_half_way_completes(mcp: Mcp, mcp_ways: Ways, revision: str) -> None:
    """The client comes back by GET with the last id of its POST. Directly, the call fails, and its work is lost."""
    direct = await interrupt(mcp, mcp.port, revision, back=lambda: True)
    through = await interrupt(mcp, port_of(mcp_ways.sidecar), revision, back=lambda: mcp_ways.resumes["resumed"])

    assert "SSE stream ended without a response" in direct.heard[-1]
    assert "counted — all of them" in through.heard[-1]
    assert [f"step {step}" for step in range(1, mcp.STEPS + 1)] == steps(through)
    assert ["count"] == direct.calls == through.calls


def steps(interrupted: Interrupted) -> list[str]:
    return [heard.split("'")[1] for heard in interrupted.heard if heard.startswith("(")]


@each_revision(WITHOUT_RESUME)
async def test_an_mcp_call_that_is_cut_fails_where_the_revision_knows_no_resumption(
    mcp: Mcp, mcp_ways: Ways, revision: str
) -> None:
    direct = await interrupt(mcp, mcp.port, revision, back=lambda: True)
    through = await interrupt(mcp, port_of(mcp_ways.sidecar), revision, back=lambda: True)

    assert "SSE stream ended without a response" in direct.heard[-1]
    assert direct == through


@each_revision(*HANDSHAKES)
@pytest.mark.parametrize("heard_before", [True, False], ids=["after an event", "before any event"])
async def test_an_mcp_client_hears_what_its_server_said_while_the_line_was_cut(
    mcp: Mcp, mcp_ways: Ways, revision: str, heard_before: bool
) -> None:
    """On the GET stream that it opens for that, and opens again: a server refuses a second one."""
    async with Line(port_of(mcp_ways.sidecar)) as line:
        talk = Talk(line.url, revision)
        async with talk.client:
            await talk.call("remember")
            assert mcp.session is not None
            await until(lambda: any(b"SSE-Stream: g" in answer for answer in line.answers))
            if heard_before:
                await mcp.session.send_tool_list_changed()
                await until(lambda: talk.notified)
            line.cut()
            await mcp.session.send_resource_list_changed()
            await until(lambda: len(talk.notified) > heard_before or ("GET", 409) in mcp.requests)

    assert ["notifications/resources/list_changed"] == talk.notified[-1:]
    assert Counter({("GET", 200): 1}) == Counter(asked for asked in mcp.requests if asked[0] == "GET")


@each_revision("2025-11-25")
@pytest.mark.parametrize("mcp", [Store()], ids=["store"], indirect=True)
async def test_an_mcp_client_asks_for_the_rest_of_an_answer_that_its_server_ended(
    mcp: Mcp, mcp_ways: Ways, revision: str
) -> None:
    """A server that is resumable by itself may end a connection on purpose before its answer, and be polled for it."""

    async def poll(url: str) -> list[str]:
        mcp.requests.clear()
        talk = Talk(url, revision)
        async with talk.client:
            await until(lambda: ("GET", 200) in mcp.requests)
            await talk.call("poll")
        assert 2 == mcp.requests.count(("GET", 200))
        return talk.heard

    direct, through = await mcp_ways.both(poll)

    assert "polled" in direct[-1]
    assert direct == through


@each_revision(*HANDSHAKES, WITHOUT_RESUME)
async def test_an_mcp_client_cancels_its_call(mcp: Mcp, mcp_ways: Ways, revision: str) -> None:
    """By a notification, or in the last revision by closing the answer: either reaches the server."""

    async def give_up(url: str) -> int:
        begun = asyncio.Event()
        talk = Talk(url, revision)
        mcp.cancelled = 0
        async with talk.client:
            calling = asyncio.ensure_future(talk.call("hang", lambda _: begun.set()))
            await begun.wait()
            calling.cancel()
            with suppress(asyncio.CancelledError):
                await calling
            await until(lambda: mcp.cancelled)
        return mcp.cancelled

    assert (1, 1) == await mcp_ways.both(give_up)
