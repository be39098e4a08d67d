"""What the running sidecar puts on the wire: its ids, and events as the format has them."""

from __future__ import annotations

import asyncio
import re

from tests.harness import EVENT_SOURCE, Asked, Response, request
from tests.reference import interpret
from tests.scenarios.conftest import SetUp, one_loop, path_for
from tests.scenarios.service import EVENTS, Feed, Service
from tests.scenarios.sidecar import SidecarProcess

pytestmark = one_loop

TOKEN = re.compile(r"(\d+)-(g[\w-]{22})(\.[\w-]+)?")


async def read_whole(sidecar: SidecarProcess, service: Service) -> Response:
    """All of a new feed."""
    feed = service.feed(path := path_for())
    feed.say(EVENTS)
    feed.end()
    answer = await request(sidecar.port, path, headers=EVENT_SOURCE)
    await answer.read_to_end()
    answer.close()
    return answer


def ids(answer: Response) -> list[re.Match[str]]:
    found = [TOKEN.fullmatch(event.last_event_id) for event in interpret(answer.body).events]
    assert all(found)
    return [match for match in found if match]


class TestIdGeneration:
    async def test_numbers_go_up_by_one_under_the_name_of_the_stream(
        self, sidecar: SidecarProcess, service: Service
    ) -> None:
        answer = await read_whole(sidecar, service)

        # The mark of completion is an event too.
        assert list(range(1, EVENTS + 2)) == [int(match[1]) for match in ids(answer)]
        assert {answer.stream_id} == {match[2] for match in ids(answer)}

    async def test_no_two_streams_have_a_name_in_common(self, sidecar: SidecarProcess, service: Service) -> None:
        answers = await asyncio.gather(*(read_whole(sidecar, service) for _ in range(20)))

        assert 20 == len({answer.stream_id for answer in answers})
        assert 20 * (EVENTS + 1) == len({match[0] for answer in answers for match in ids(answer)})

    async def test_a_browser_gets_them_as_its_last_event_id(self, set_up: SetUp) -> None:
        scene = await set_up("native")
        await scene.open(10)
        await scene.finish()

        got = [TOKEN.fullmatch(each) for each in (await scene.viewer.seen())["ids"]]
        assert list(range(1, EVENTS + 1)) == [int(match[1]) for match in got if match]


class Raw(Feed):
    """A feed that says something word for word."""

    def __init__(self, said: bytes) -> None:
        super().__init__()
        self._said = said

    async def answer(self, asked: Asked) -> None:
        await asked.begin()
        await asked.stream(self._said)
        await asked.end()


SAID = (
    ": a comment\n\n"
    "data: one line\n\n"
    "event: named\r\nid: 7\r\ndata: two\r\ndata:  lines\r\n\r\n"
    "retry: 200\rdata\rdata\r\r"
    "unknown: field\ndata:ünï✓\n\n"
    "event: without data\n\n"
    "data: [DONE]\n\n"
).encode()
MEANT = [
    ("message", "one line"),
    ("named", "two\n lines"),
    ("message", "\n"),
    ("message", "ünï✓"),
    ("message", "[DONE]"),
]

READ = """([path, kind]) => new Promise((resolve) => {
  const read = [];
  const source = make(kind, path);
  const take = ({ type, data }) => {
    read.push([type, data]);
    if (data !== "[DONE]") return;
    source.close();
    resolve(read);
  };
  source.addEventListener("message", take);
  source.addEventListener("named", take);
})"""


class TestEventFormat:
    async def test_what_was_said_is_what_is_meant(self, sidecar: SidecarProcess, service: Service) -> None:
        service.feed(path := path_for(), Raw(SAID))
        answer = await request(sidecar.port, path, headers=EVENT_SOURCE)
        await answer.read_to_end()
        answer.close()

        assert MEANT == [(event.type, event.data) for event in interpret(answer.body).events]

    async def test_browser_and_client_read_it_alike(self, set_up: SetUp, service: Service) -> None:
        scene = await set_up("native")
        service.feed(scene.path, Raw(SAID))

        assert [list(each) for each in MEANT] == await scene.viewer.page.evaluate(READ, [scene.path, "native"])
        assert [list(each) for each in MEANT] == await scene.viewer.page.evaluate(READ, [scene.path, "client"])

    async def test_every_event_ends_with_its_id(self, sidecar: SidecarProcess, service: Service) -> None:
        blocks = (await read_whole(sidecar, service)).body.split(b"\n\n")[:-1]

        last_lines = [block.split(b"\n")[-1] for block in blocks if b"data:" in block]
        assert EVENTS + 1 == len(last_lines)
        assert all(line.startswith(b"id: ") for line in last_lines)
