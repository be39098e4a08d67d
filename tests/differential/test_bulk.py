"""Bodies of any size, both ways, in little memory: they are made as they are sent, and nothing holds them."""

from __future__ import annotations

import asyncio
import os
import random
import re
import select
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from pathlib import Path

import pytest
import pytest_asyncio

from tests.differential import upstreams
from tests.harness import TIMEOUT
from tests.test_cli import Running

pytestmark = pytest.mark.asyncio(loop_scope="package")

MIB = 1 << 20
BLOCKS = int(os.environ.get("BULK_MIB", "1024"))
"""MiB of each body; fewer for whoever is in a hurry."""
GROWTH = 64
"""MiB that the process may grow by."""
REST = random.Random(1).randbytes(MIB - 8)
STALLED = 0.2
"""Seconds for which nothing more can be written before a sender is held to be kept waiting."""


class Sender:
    """Numbered blocks, written as fast as they are taken. `stalled` is set when they are not taken, or all are."""

    def __init__(self) -> None:
        self.stalled = threading.Event()
        self.sent_when_stalled = 0

    def send(self, sock: socket.socket, *, chunked: bool) -> None:
        try:
            for number in range(BLOCKS):
                block = number.to_bytes(8, "big") + REST
                self._write(sock, b"%x\r\n%b\r\n" % (len(block), block) if chunked else block, number)
            sock.sendall(b"0\r\n\r\n" if chunked else b"")
        finally:
            self.stalled.set()

    def _write(self, sock: socket.socket, data: bytes, number: int) -> None:
        rest = memoryview(data)
        while rest:
            if not self.stalled.is_set() and not select.select([], [sock], [], STALLED)[1]:
                self.sent_when_stalled = number
                self.stalled.set()
            rest = rest[sock.send(rest) :]


class Blocks:
    """Takes a body's bytes in whatever pieces, and compares them."""

    def __init__(self) -> None:
        self.whole = 0
        self._part = bytearray()

    def take(self, piece: bytes) -> None:
        self._part += piece
        while len(self._part) >= MIB:
            block = self._part[:MIB]
            assert (self.whole.to_bytes(8, "big"), True) == (bytes(block[:8]), block[8:] == REST)
            del self._part[:MIB]
            self.whole += 1

    def end(self) -> None:
        assert (BLOCKS, 0) == (self.whole, len(self._part))


def read_head(file: BufferedIOBase) -> bytes:
    head = b""
    while line := file.readline().strip():
        head += line + b"\r\n"
    return head


def receive(file: BufferedIOBase, head: bytes, blocks: Blocks) -> None:
    if b"chunked" in head.lower():
        while size := int(file.readline(), 16):
            blocks.take(file.read(size))
            file.readline()
        file.readline()
    else:
        for _ in range(BLOCKS * 4):
            blocks.take(file.read(MIB // 4))
    blocks.end()


def framing(*, chunked: bool) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % (BLOCKS * MIB)


class Bulk:
    """A sidecar of its own, and the service behind it."""

    def __init__(self, service: socket.socket, command: Running) -> None:
        self.service, self._command = service, command
        self._at_first = self.highest

    @property
    def highest(self) -> int:
        """KiB that the sidecar has held at most."""
        status = Path(f"/proc/{self._command.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    @property
    def growth(self) -> int:
        return (self.highest - self._at_first) // 1024

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._command.port))
        sock.settimeout(TIMEOUT)
        return sock

    def accept(self) -> socket.socket:
        sock, _ = self.service.accept()
        sock.settimeout(TIMEOUT)
        return sock

    async def run(self, client: Callable[[], None], service: Callable[[], None]) -> None:
        with ThreadPoolExecutor() as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(loop.run_in_executor(pool, client), loop.run_in_executor(pool, service))


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def bulk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bulk]:
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(TIMEOUT)
        ports = {"echo": service.getsockname()[1]}
        async with upstreams.sidecar(tmp_path_factory.mktemp("bulk"), ports) as command:
            yield Bulk(service, command)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_a_large_answer_is_held_by_no_one(bulk: Bulk, chunked: bool) -> None:
    sender, blocks = Sender(), Blocks()

    def service() -> None:
        with bulk.accept() as sock:
            read_head(sock.makefile("rb"))
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + framing(chunked=chunked))
            sender.send(sock, chunked=chunked)

    def client() -> None:
        with bulk.connect() as sock:
            file = sock.makefile("rb")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: echo.example\r\n\r\n")
            assert sender.stalled.wait(TIMEOUT)
            receive(file, read_head(file), blocks)

    await bulk.run(client, service)

    assert sender.sent_when_stalled < GROWTH
    assert bulk.growth < GROWTH


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_a_large_upload_is_held_by_no_one(bulk: Bulk, chunked: bool) -> None:
    sender, blocks = Sender(), Blocks()

    def service() -> None:
        with bulk.accept() as sock:
            file = sock.makefile("rb")
            assert sender.stalled.wait(TIMEOUT)
            receive(file, read_head(file), blocks)
            sock.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def client() -> None:
        with bulk.connect() as sock:
            sock.sendall(b"PUT / HTTP/1.1\r\nHost: echo.example\r\n" + framing(chunked=chunked))
            sender.send(sock, chunked=chunked)
            assert read_head(sock.makefile("rb")).startswith(b"HTTP/1.1 201 Created\r\n")

    await bulk.run(client, service)

    assert sender.sent_when_stalled < GROWTH
    assert bulk.growth < GROWTH
