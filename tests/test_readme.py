"""The README's table of settings is the code's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sse_sidecar.config import StreamSettings, declared

README = Path(__file__).parent.parent / "README.md"


def _shown(value: Any, name: str) -> str:
    if name.endswith("_bytes") or name == "max_memory":
        return f"{value >> 20}MiB"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return ", ".join(f"`{item}`" for item in value)
    return "" if value is None else str(value)


def _row(item: dataclasses.Field[Any], per_route: set[str]) -> str:
    flag = f"`--{item.name.replace('_', '-')}`" if item.metadata["flag"] else ""
    route = "route" if item.name in per_route else ""
    return f"| `{item.name}` | {_shown(item.default, item.name)} | {flag} | {route} | {item.metadata['help']} |"


def settings_table() -> list[str]:
    per_route = {item.name for item in declared(StreamSettings)}
    return [_row(item, per_route) for item in declared()]


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()

    assert [] == [row for row in settings_table() if row not in lines]


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    start = lines.index("| setting | default | flag | | what it is |")
    rows = lines[start + 2 : lines.index("", start)]

    assert settings_table() == rows
