"""A second event-stream parser, word for word from the WHATWG HTML standard, 9.2.6, for the tests to hold ours against.

Slow and obvious, on the whole stream at once; it shares no line and no idea with `sse_sidecar.wire`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

# "... a U+000D U+000A pair, a single U+000A not preceded by U+000D, and a single U+000D not followed by U+000A being
# the ways in which a line can end."
_LINE_END = re.compile("\r\n|\n|\r")


class Dispatched(NamedTuple):
    """What a page is handed."""

    type: str
    data: str
    last_event_id: str


@dataclass
class Interpreted:
    """What a whole stream came to. `last_event_id` is the event source's, which is set only where a block ends."""

    events: list[Dispatched] = field(default_factory=list)
    last_event_id: str = ""
    retry: int | None = None
    comments: list[str] = field(default_factory=list)


def interpret(stream: bytes) -> Interpreted:
    # "Streams must be decoded using the UTF-8 decode algorithm", which "strips one leading BOM, if any".
    text = stream.decode("utf-8", errors="replace").removeprefix("\ufeff")
    result = Interpreted()
    data_buffer = event_type_buffer = last_event_id_buffer = ""
    # What stands after the last line end is no line. "Once the end of the file is reached, any pending data must be
    # discarded", so what has not been dispatched when the loop ends is lost.
    for line in _LINE_END.split(text)[:-1]:
        if line == "":  # "If the line is empty: dispatch the event"
            # "Set the last event ID string of the event source to the value of the last event ID buffer. The buffer
            # does not get reset."
            result.last_event_id = last_event_id_buffer
            # "If the data buffer is an empty string, set the data buffer and the event type buffer to the empty
            # string and return."
            if data_buffer == "":
                event_type_buffer = ""
                continue
            # "If the data buffer's last character is a U+000A LINE FEED, then remove the last character."
            if data_buffer[-1] == "\n":
                data_buffer = data_buffer[:-1]
            event_type = "message" if event_type_buffer == "" else event_type_buffer
            result.events.append(Dispatched(event_type, data_buffer, result.last_event_id))
            data_buffer = event_type_buffer = ""
            continue
        if line[0] == ":":  # "If the line starts with a U+003A COLON character: ignore the line"
            result.comments.append(line[1:])
            continue
        if ":" in line:
            # "Collect the characters on the line before the first U+003A COLON character, and let field be that
            # string. Collect the characters after the first colon, and let value be that string. If value starts with
            # a U+0020 SPACE character, remove it from value."
            name, value = line.split(":", 1)
            if value != "" and value[0] == " ":
                value = value[1:]
        else:  # "using the whole line as the field name, and the empty string as the field value"
            name, value = line, ""
        if name == "event":
            event_type_buffer = value
        elif name == "data":
            data_buffer += value + "\n"
        elif name == "id":
            # "If the field value does not contain U+0000 NULL, then set the last event ID buffer to the field value.
            # Otherwise, ignore the field."
            if "\0" not in value:
                last_event_id_buffer = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            # "If the field value consists of only ASCII digits, then interpret the field value as an integer in base
            # ten, and set the event stream's reconnection time to that integer."
            result.retry = int(value)
        # "Otherwise: the field is ignored."
    return result
