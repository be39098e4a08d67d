"""Log lines: a few words that say what happened, and the facts beside them, for people or for machines."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9_./:*@%+,-]+")


def facts(**values: object) -> dict[str, dict[str, object]]:
    """For a log call's `extra`: what is known, without what is not."""
    return {"facts": {name: value for name, value in values.items() if value is not None}}


def _facts_of(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "facts", {})


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, with milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextLines(logging.Formatter):
    """For people: time, level, what happened, name=value."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = (f" {name}={_shown(value)}" for name, value in _facts_of(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()}{''.join(pairs)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """For machines: one object a line, the facts beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _shown(value: object) -> str:
    """Quoted where it could be read as more than one value, or as another line."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


def to_stderr(level: str, form: str) -> None:
    """Sends the log lines of `level` and above to standard error, in the `text` or `json` form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
