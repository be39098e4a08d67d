"""`python -m sse_sidecar.health`: whether the sidecar in this container lives, by exit code.

A health check is run every few seconds, beside streams that want the CPU; so this knows the settings and the standard
library, and neither aiohttp nor any other part of the sidecar.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from sse_sidecar.config import Address, load
from sse_sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = 2.0

_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where all addresses are listened on, this one is too
_NOT_ASKED = {"upstream": "http://localhost"}
"""The upstream may be given on the command line, which is not known here, and settings without one are an error."""


def main() -> None:
    """Exits with 0 or 1, and says why in a line on stderr."""
    try:
        said = ask(admin_address(os.environ))
    except (ConfigError, OSError) as error:
        sys.exit(f"unhealthy: {error}")
    sys.stderr.write(f"healthy: {said}\n")


def admin_address(environ: Mapping[str, str]) -> Address:
    """Where the sidecar with these settings is asked. Raises ConfigError."""
    listen = load(_NOT_ASKED, environ).admin_listen
    if listen is None:
        raise ConfigError("admin_listen", "", "HOST:PORT, where health is asked")
    return Address(_LOOPBACK.get(listen.host, listen.host), listen.port)


def ask(address: Address) -> str:
    """The status line of the answer. Raises OSError where it is none of 200."""
    try:
        with socket.create_connection(address, TIMEOUT) as connection, connection.makefile("rb") as answer:
            connection.sendall(_REQUEST)
            status_line = answer.readline(1024).decode("latin-1").strip()
    except OSError as error:
        raise OSError(f"{address}: {error.strerror or error}") from None
    if status_line.split()[1:2] != ["200"]:
        raise OSError(f"{address}: {status_line or 'no answer'}")
    return f"{address}: {status_line}"


if __name__ == "__main__":
    main()
