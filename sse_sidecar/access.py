"""The access log: a line for every request when it is over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sse_sidecar.errors import AnswerError
from sse_sidecar.logs import facts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sse_sidecar.clock import Clock
    from sse_sidecar.downstream import Client

log = logging.getLogger(__name__)

_LEFT = 499
"""As nginx has it: the client has left before it was answered."""


def logged(
    handle: Callable[[Client], Awaitable[None]], clock: Clock, *, wanted: Callable[[], bool]
) -> Callable[[Client], Awaitable[None]]:
    """`handle`, with a log line for each request. A query may hold credentials, so only the path is in it."""

    async def handling(client: Client) -> None:
        started, address = clock.time(), client.address  # which a connection that is closed no longer tells
        status = _LEFT
        try:
            await handle(client)
        except AnswerError as error:
            status = error.status
            raise
        except Exception:
            status = AnswerError.status
            raise
        finally:
            if wanted():
                _tell(client, address, client.status or status, clock.time() - started)

    return handling


def _tell(client: Client, address: str, status: int, seconds: float) -> None:
    log.info(
        "request",
        extra=facts(
            client=address or None,
            method=client.method,
            path=client.target.partition(b"?")[0].decode("utf-8", "backslashreplace"),
            status=status,
            route=client.route or None,
            stream=client.stream or None,
            duration_ms=round(seconds * 1000),
        ),
    )
