"""The product: a stream that is cut anywhere is resumed exactly."""

from __future__ import annotations

from tests.conftest import Ask, OpenStream


async def test_a_client_that_left_gets_what_it_missed(open_stream: OpenStream, ask: Ask) -> None:
    """Events that came after the client left, and those that come after it is back, each once."""
    asked, response = await open_stream("/a")
    await asked.stream(b"data: 1\n\n: hi\n\ndata: 2\n\n")
    await response.read_until(b"data: 2\nid: 2-")
    response.close()

    again = await ask("/a", headers={"Last-Event-ID": f"1-{response.stream_id}"})
    await asked.stream(b"data: 3\n\n")
    await asked.end()
    await again.read_to_end()

    assert ["data: 2", "data: 3"] == [data for _, data in again.events()]
