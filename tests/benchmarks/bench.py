"""What every work is given: the tool, the cores, the file limit, and whether it is to be quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tests.benchmarks.machine import SPARE_FILES, Cores
from tests.benchmarks.record import Work
from tests.benchmarks.tool import Tool

Size = TypeVar("Size")


@dataclass(frozen=True)
class Bench:
    tool: Tool
    cores: Cores
    file_limit: int
    quick: bool
    say: Callable[[str], None]

    def pick(self, full: Size, quick: Size) -> Size:
        return quick if self.quick else full

    def fit(self, wanted: int, files_each: int, work: Work) -> int:
        """As many streams as a process may have files for, up to those wanted. The work's notes say if it is fewer."""
        fitting = min(wanted, (self.file_limit - SPARE_FILES) // files_each)
        if fitting < wanted:
            work.notes.append(f"{fitting:,} instead of {wanted:,}: a process may open {self.file_limit:,} files here")
        return fitting
