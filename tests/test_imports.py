"""The import ladder: a file imports only from levels below its own, and the bottom knows no I/O, loop or clock."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sse_sidecar

PACKAGE = Path(sse_sidecar.__file__).parent

LADDER = [
    "errors event_id headers clock assets departures logs",
    "wire history config metrics decoding patience",
    "live turns exchange tls downstream repeats unread demo_relay health",
    "streams origin passthrough tunnel access listening",
    "asking",
    "delivery upstream asked overview",
    "opening control admin authorizing",
    "answer",
    "front",
    "app",
    "demo",
    "cli",
    "__main__",
]
LEVELS = {module: level for level, modules in enumerate(LADDER) for module in modules.split()}
LEVELS["__init__"] = -1  # everyone may import it, so it imports none of the others

NOT_AT_THE_BOTTOM = {"aiohttp", "asyncio", "time"}
MAY_KNOW = {"clock": {"asyncio"}}
"""It is where the loop is met."""

# What `from sse_sidecar import ...` finds in the package itself; all else is a module.
_DEFINED = {
    node.id for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text())) if isinstance(node, ast.Name)
}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imported(source: str) -> set[str]:
    """The dotted names that a file at the top of the package imports, wherever in it: absolute, as far as they go."""
    return {name for node in ast.walk(ast.parse(source)) for name in _names(node)}


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = ".".join(part for part in ("sse_sidecar" if node.level else "", node.module or "") if part)
        yield from (f"{origin}.{alias.name}" for alias in node.names)


def imported_modules(source: str) -> set[str]:
    """The modules of this package among them; `__init__` for the package itself."""
    paths = [f"{name}.__init__".split(".") for name in imported(source)]
    return {"__init__" if path[1] in _DEFINED else path[1] for path in paths if path[0] == "sse_sidecar"}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_stands_on_the_ladder(file: Path) -> None:
    assert module_name(file) in LEVELS


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_imports_only_from_levels_below_its_own(file: Path) -> None:
    module = module_name(file)
    own = LEVELS.get(module, len(LADDER))
    arrows = {(module, other) for other in imported_modules(file.read_text(encoding="utf-8"))}
    wrong = {(module, other) for module, other in arrows if LEVELS.get(other, len(LADDER)) >= own}
    assert set() == wrong


@pytest.mark.parametrize("file", [file for file in FILES if LEVELS.get(module_name(file), 2) < 2], ids=module_name)
def test_the_bottom_knows_no_io_no_loop_and_no_time(file: Path) -> None:
    known = {name.split(".")[0] for name in imported(file.read_text(encoding="utf-8"))}
    assert set() == (known & NOT_AT_THE_BOTTOM) - MAY_KNOW.get(module_name(file), set())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import json", set()),
        ("import sse_sidecar.wire", {"wire"}),
        ("import sse_sidecar.wire as w, sse_sidecar.history", {"wire", "history"}),
        ("from sse_sidecar import wire as w, history", {"wire", "history"}),
        ("from sse_sidecar.wire import frame", {"wire"}),
        ("from sse_sidecar import __version__", {"__init__"}),
        ("import sse_sidecar", {"__init__"}),
        ("from . import wire", {"wire"}),
        ("from .wire import frame", {"wire"}),
        ("if TYPE_CHECKING:\n    from sse_sidecar.wire import Block", {"wire"}),
        ("def late():\n    from sse_sidecar import wire", {"wire"}),
        ("class A:\n    async def late(self):\n        import sse_sidecar.wire", {"wire"}),
        ("try:\n    import sse_sidecar.wire\nexcept ImportError:\n    pass", {"wire"}),
        ("from sse_sidecar import nowhere", {"nowhere"}),
        ("from sse_sidecar_other import wire", set()),
    ],
)
def test_an_import_is_seen_wherever_and_however_it_is_written(source: str, expected: set[str]) -> None:
    assert expected == imported_modules(source)
