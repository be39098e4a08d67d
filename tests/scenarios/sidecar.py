"""The sidecar, as a process of its own, run as its users run it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path

from tests.harness import until

LISTENS = re.compile(r" on ([\d.]+):(\d+), admin on ")


class SidecarProcess:
    """One process, which may be killed and started anew on its port. `prefix` is a command that starts commands."""

    def __init__(self, folder: Path, config: str, prefix: tuple[str, ...] = ()) -> None:
        self.host, self.port = "", 0
        self._log = folder / "sidecar.log"
        self._config = folder / "sidecar.toml"
        self._config.write_text(config)
        self._prefix = prefix
        self._process: Process | None = None

    async def start(self, listen: str = "127.0.0.1:0") -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith("SSE_SIDECAR_")}
        command = [*self._prefix, sys.executable, "-m", "sse_sidecar", "--config", str(self._config)]
        with self._log.open("w") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, "--listen", listen, env=own, stdin=DEVNULL, stderr=log
            )
        await until(lambda: LISTENS.search(self._log.read_text()) or self._has_ended())
        found = LISTENS.search(self._log.read_text())
        assert found, self._log.read_text()
        self.host, self.port = found[1], int(found[2])

    async def kill(self) -> None:
        """At once, as a machine that loses its power: nothing is drained, everything held is gone."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def restart(self) -> None:
        await self.kill()
        await self.start(f"{self.host}:{self.port}")

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None
