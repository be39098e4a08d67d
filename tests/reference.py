"""A second event-stream parser, word for word from the WHATWG HTML standard, 9.2.6, for the tests to hold ours against.

Slow and obvious, on the whole stream at once; it shares no line and no idea with `sse_sidecar.wire`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# "... a U+000D CARRIAGE RETURN U+000A LINE FEED (CRLF) character pair, a single U+000A LINE FEED (LF) character not
# preceded by a U+000D CARRIAGE RETURN (CR) character, and a single U+000D CARRIAGE RETURN (CR) character not followed
# by a U+000A LINE FEED (LF) character being the ways in which a line can end."
_LINE_END = re.compile("\r\n|\n|\r")


class Dispatched(NamedTuple):
    """What a page is handed."""

    type: str
    data: str
    last_event_id: str


def interpret(stream: bytes) -> EventSource:
    """What a whole stream comes to."""
    # "Streams must be decoded using the UTF-8 decode algorithm", which "strips one leading BOM, if any".
    text = stream.decode("utf-8", errors="replace").removeprefix("\ufeff")
    source = EventSource()
    # What stands after the last line end is no line. "Once the end of the file is reached, any pending data must be
    # discarded": what has not been dispatched by then is lost.
    for line in _LINE_END.split(text)[:-1]:
        source.process_line(line)
    return source


class EventSource:
    """The buffers of the standard, and what came out of them."""

    def __init__(self) -> None:
        self.events: list[Dispatched] = []
        self.comments: list[str] = []
        self.last_event_id = ""
        """Of the event source, not of the buffer: it is set where a block ends."""
        self.retry: int | None = None
        """The reconnection time, where the stream has set it."""
        self._data_buffer = ""
        self._event_type_buffer = ""
        self._last_event_id_buffer = ""

    def process_line(self, line: str) -> None:
        if line == "":  # "If the line is empty (a blank line): dispatch the event"
            self._dispatch()
        elif line[0] == ":":  # "If the line starts with a U+003A COLON character (:): ignore the line"
            self.comments.append(line[1:])
        elif ":" in line:
            # "Collect the characters on the line before the first U+003A COLON character (:), and let field be that
            # string. Collect the characters on the line after [it], and let value be that string. If value starts
            # with a U+0020 SPACE character, remove it from value."
            field, value = line.split(":", 1)
            self._process_field(field, value[1:] if value[:1] == " " else value)
        else:  # "using the whole line as the field name, and the empty string as the field value"
            self._process_field(line, "")

    def _process_field(self, field: str, value: str) -> None:
        if field == "event":
            self._event_type_buffer = value
        elif field == "data":
            self._data_buffer += value + "\n"
        elif field == "id" and "\0" not in value:
            self._last_event_id_buffer = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            self.retry = int(value, base=10)

    def _dispatch(self) -> None:
        # "Set the last event ID string of the event source to the value of the last event ID buffer. The buffer does
        # not get reset."
        self.last_event_id = self._last_event_id_buffer
        # "If the data buffer is an empty string, set the data buffer and the event type buffer to the empty string
        # and return."
        if self._data_buffer != "":
            # "If the data buffer's last character is a U+000A LINE FEED (LF) character, then remove the last
            # character from the data buffer." As each `data` field adds one, it always is.
            data = self._data_buffer[:-1]
            self.events.append(Dispatched(self._event_type_buffer or "message", data, self.last_event_id))
        self._data_buffer = self._event_type_buffer = ""
