"""The settings file that shows them all: each setting once, with its default and a word on when to change it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from sse_sidecar.config import Upstream, declared, load

FILE = Path(__file__).parent.parent / "config/sse-sidecar.toml"
SETTINGS, MARK, ROUTES = FILE.read_text().partition("# [[route]]\n")
SHOWN = re.compile(r"^(?:# )?(\w+) = ", re.MULTILINE)
"""A setting; one whose default is nothing is commented out."""


def test_it_can_be_used_and_says_what_would_hold_without_it() -> None:
    upstream = "http://127.0.0.1:8000"

    assert load({"upstream": upstream}) == load(file=FILE)


def test_every_setting_is_shown_once() -> None:
    assert Counter(item.name for item in declared()) == Counter(SHOWN.findall(SETTINGS))


def test_only_settings_without_a_default_are_commented_out() -> None:
    commented = re.findall(r"^# (\w+) = ", SETTINGS, re.MULTILINE)

    assert [item.name for item in declared() if item.default is None and item.name != "upstream"] == commented


def test_each_has_a_line_of_its_own_on_when_to_change_it() -> None:
    lines = SETTINGS.splitlines()
    above = {found[1]: lines[index - 1] for index, line in enumerate(lines) if (found := SHOWN.match(line))}
    told = {item.name: item.metadata["help"] for item in declared()}

    assert [] == [name for name, line in above.items() if not re.fullmatch(r"# \S.*\.", line)]
    assert len(above) == len(set(above.values()))
    assert [] == [name for name, line in above.items() if told.get(name, "") in line]


def test_its_examples_of_routes_can_be_used(tmp_path: Path) -> None:
    used = tmp_path / "sse-sidecar.toml"
    used.write_text(SETTINGS + re.sub(r"^# ", "", MARK + ROUTES, flags=re.MULTILINE))
    chat, ticker, default = load(file=used).routes

    assert ("chat", ("POST",), 1200) == (chat.name, chat.methods, chat.settings.finish_timeout)
    assert ("ticker", "shared", ()) == (ticker.name, ticker.settings.mode, ticker.settings.key_headers)
    assert (Upstream("localhost", 80, socket="/run/ticker.sock"),) == ticker.settings.upstream
    assert load(file=FILE).routes == (default,)
