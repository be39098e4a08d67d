"""One laboratory for all cases: processes are slow to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.differential.lab import Lab, laboratory


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path_factory.mktemp("differential")) as made:
        yield made
