"""TLS on both sides: certificates by name, reloaded under open streams, and how the service is verified."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from sse_sidecar import app, tls
from sse_sidecar.app import Sidecar
from sse_sidecar.config import load
from sse_sidecar.errors import ConfigError
from sse_sidecar.tls import Certificates, client_context
from tests.conftest import StartSidecar
from tests.harness import TIMEOUT, Asked, ManualClock, Response, Upstream, port_of, unread, until
from tests.test_cli import COMMAND, Running, environment, run
from tests.together import backed_up, data_of, event, narrow, numbers_of, request_of

STREAM = request_of(headers={"Accept": "text/event-stream"})
PLAIN_REQUEST = request_of(headers={"Connection": "close"})


def tool(name: str) -> str:
    """Where a program is that the test runs."""
    path = shutil.which(name)
    if path is not None:
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"no {name}", pytrace=False)
    pytest.skip(f"no {name} on this machine")


class Authority:
    """Issues certificates, each as one file with its key and its chain."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))
        self.trust = ssl.create_default_context(cafile=self.file)

    def issue(self, *names: str, file: str = "", **options: Any) -> str:
        """A certificate with its key, in a file called after its first name."""
        issued = self._ca.issue_cert(*names, **options)
        path = self.folder / (file or f"{names[0].replace('*', '_')}.pem")
        path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        return str(path)

    def sign_itself(self, file: str, *options: str) -> str:
        """A certificate without names that no one issued, with its key."""
        path, key = self.folder / file, self.folder / f"{file}.secret"
        openssl = tool("openssl")
        made = ("-x509", "-nodes", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(path))
        subprocess.run([openssl, "req", *made, *(options or ("-newkey", "rsa:2048"))], check=True, capture_output=True)
        path.write_bytes(key.read_bytes() + path.read_bytes())
        return str(path)

    def spoil(self, file: str) -> str:
        """A file in which there is nothing that can be used."""
        path = self.folder / file
        path.write_bytes(b"spoilt")
        return str(path)

    def serving(self, *names: str) -> ssl.SSLContext:
        """What a service with such a certificate listens with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(*names))
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def blind() -> ssl.SSLContext:
    """For a client that verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


StartSecure = Callable[..., Awaitable[Sidecar]]


@pytest.fixture
def start_secure(start: StartSidecar, authority: Authority) -> StartSecure:
    """Starts a sidecar that has a certificate for localhost, unless it is given others."""

    async def starting(*certificates: str, **settings: Any) -> Sidecar:
        shown = certificates or (authority.issue("localhost"),)
        return await start(tls_certificate=shown, **settings)

    return starting


Connect = Callable[..., Awaitable[Response]]


@pytest.fixture
async def connect(authority: Authority) -> AsyncIterator[Connect]:
    """Opens a connection with TLS, on which nothing has been said yet; all are closed at the end."""
    opened: list[Response] = []

    async def connecting(sidecar: Sidecar, context: ssl.SSLContext | None = None, name: str = "localhost") -> Response:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port_of(sidecar), limit=1 << 20, ssl=context or authority.trust, server_hostname=name
        )
        opened.append(Response(reader, writer))
        return opened[-1]

    yield connecting
    for response in opened:
        response.writer.transport.abort()


async def asked(client: Response, raw: bytes) -> Response:
    """Sends a request and reads the answer's head."""
    await client.send(raw)
    await client.read_head()
    return client


async def opened(upstream: Upstream, client: Response, raw: bytes = STREAM) -> Asked:
    """Opens a stream for a client: the request as the upstream got it."""
    await client.send(raw)
    got = await upstream.asked()
    await got.begin()
    await client.read_head()
    return got


def blocking(sidecar: Sidecar) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(sidecar)), timeout=TIMEOUT)


async def names_shown(sidecar: Sidecar, context: ssl.SSLContext, name: str | None) -> list[str]:
    """The names in the certificate that a client gets who asks for `name`, or for none."""

    def shake() -> dict[str, Any]:
        with blocking(sidecar) as sock, context.wrap_socket(sock, server_hostname=name) as secure:
            return secure.getpeercert() or {}

    shown = await asyncio.to_thread(shake)
    return [value for _, value in shown["subjectAltName"]]


@pytest.fixture
def unchecked(authority: Authority) -> ssl.SSLContext:
    """For a client that verifies who signed the certificate, and not whose it is."""
    context = ssl.create_default_context(cafile=authority.file)
    context.check_hostname = False
    return context


# Which certificate


BY_NAME = [
    pytest.param("first.test", "first.test", id="the first"),
    pytest.param("second.test", "second.test", id="another"),
    pytest.param("SECOND.test", "second.test", id="in upper case"),
    pytest.param("any.wild.test", "second.test", id="by wildcard"),
    pytest.param("exact.wild.test", "third.test", id="exact before wildcard"),
    pytest.param("both.test", "second.test", id="an earlier file before a later one"),
    pytest.param("a.b.wild.test", "first.test", id="a wildcard is one label"),
    pytest.param("wild.test", "first.test", id="a wildcard is a label"),
    pytest.param("other.test", "first.test", id="no certificate has it"),
    pytest.param(None, "first.test", id="none is sent"),
    pytest.param("xn--caf-dma.test", "fourth.test", id="beyond ASCII"),
]


@pytest.fixture
def several(authority: Authority) -> list[str]:
    return [
        authority.issue("first.test"),
        authority.issue("second.test", "*.wild.test", "both.test"),
        authority.issue("third.test", "exact.wild.test", "both.test", "127.0.0.1", "::1"),
        authority.issue("fourth.test", "café.test", key_type=trustme.KeyType.RSA),
    ]


@pytest.mark.parametrize(("name", "expected"), BY_NAME)
async def test_a_client_is_shown_the_certificate_that_has_the_name_it_asks_for(
    start_secure: StartSecure, several: list[str], unchecked: ssl.SSLContext, name: str | None, expected: str
) -> None:
    sidecar = await start_secure(*several)
    shown = await names_shown(sidecar, unchecked, name)
    assert expected == shown[0]


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "0:0:0:0:0:0:0:1"])
async def test_a_client_may_ask_for_an_address(
    start_secure: StartSecure, several: list[str], authority: Authority, name: str
) -> None:
    openssl = tool("openssl")
    sidecar = await start_secure(*several)
    arguments = ("-connect", f"127.0.0.1:{port_of(sidecar)}", "-servername", name, "-CAfile", str(authority.file))
    code, out = await run_tool(openssl, "s_client", *arguments)
    assert 0 == code
    _, shown = await run_tool(openssl, "x509", "-noout", "-ext", "subjectAltName", said=out)
    assert b"DNS:third.test" in shown


async def run_tool(*arguments: str, said: bytes = b"") -> tuple[int | None, bytes]:
    """Exit code and output of a tool."""
    process = await asyncio.create_subprocess_exec(*arguments, stdin=PIPE, stdout=PIPE, stderr=STDOUT)
    async with asyncio.timeout(TIMEOUT):
        out, _ = await process.communicate(said)
    return process.returncode, out


async def test_keys_may_be_in_files_of_their_own(
    start: StartSidecar, authority: Authority, unchecked: ssl.SSLContext
) -> None:
    certificates, keys = [], []
    for name in ("one.test", "two.test"):
        certificate, key = halves(authority.issue(name))
        certificates.append(certificate)
        keys.append(key)
    sidecar = await start(tls_certificate=certificates, tls_key=keys)
    assert [["one.test"], ["two.test"]] == [
        await names_shown(sidecar, unchecked, name) for name in ("one.test", "two.test")
    ]


def halves(file: str) -> tuple[str, str]:
    """A file's certificates and its key, each in a file of its own."""
    pem = Path(file).read_bytes()
    at = pem.index(b"-----BEGIN CERTIFICATE")
    certificate, key = Path(file + ".crt"), Path(file + ".key")
    certificate.write_bytes(pem[at:])
    key.write_bytes(pem[:at])
    return str(certificate), str(key)


def hello(context: ssl.SSLContext, name: str) -> bytes:
    """What a client says first."""
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


NO_NAMES = [b"caf\xe9.tests", b"..........", b"." * 9 + b"a", b"\x01\n\r\x7f\x1b[31m1", b"%s%n{}[]*?"]


@pytest.mark.parametrize("name", [*NO_NAMES, b"y" * 200])
async def test_a_name_that_can_be_none_harms_no_one(
    start_secure: StartSecure,
    several: list[str],
    *,
    blind: ssl.SSLContext,
    unchecked: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    name: bytes,
) -> None:
    sidecar = await start_secure(*several)
    placeholder = ".".join(["x" * 49] * 4) + "z" if len(name) == 200 else "x" * len(name)
    assert len(placeholder) == len(name)
    said = hello(blind, placeholder)
    assert placeholder.encode() in said
    caplog.set_level(logging.DEBUG)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(sidecar))
    writer.write(said.replace(placeholder.encode(), name))
    writer.write_eof()
    async with asyncio.timeout(TIMEOUT):
        await reader.read()
    writer.close()
    assert ["first.test"] == await names_shown(sidecar, unchecked, "first.test")
    assert not caplog.text or caplog.messages == ["refused a TLS client that asked for a name that can be none"]
    assert not any(record.exc_info for record in caplog.records)
    assert ("", "") == capfd.readouterr()


async def test_a_certificate_may_have_no_names(
    start_secure: StartSecure, authority: Authority, unchecked: ssl.SSLContext
) -> None:
    nameless = authority.sign_itself("nameless.pem")
    unchecked.load_verify_locations(nameless)
    sidecar = await start_secure(nameless, authority.issue("two.test"))
    with blocking(sidecar) as sock:
        secure = await asyncio.to_thread(unchecked.wrap_socket, sock, server_hostname="localhost")
        assert "subjectAltName" not in (secure.getpeercert() or {})
        secure.close()
    assert ["two.test"] == await names_shown(sidecar, unchecked, "two.test")


# Versions, protocols, and what is no TLS


@pytest.mark.parametrize(("version", "code"), [("tls1_1", 1), ("tls1_2", 0), ("tls1_3", 0)])
async def test_tls_1_2_is_the_least(start_secure: StartSecure, authority: Authority, version: str, code: int) -> None:
    openssl = tool("openssl")
    sidecar = await start_secure()
    arguments = ("-connect", f"127.0.0.1:{port_of(sidecar)}", f"-{version}", "-CAfile", str(authority.file))
    ended, out = await run_tool(openssl, "s_client", "-cipher", "ALL:@SECLEVEL=0", *arguments)
    assert code == ended, out
    assert (b"Cipher is (NONE)" in out) is bool(code)


async def test_a_client_cannot_begin_a_second_handshake(start_secure: StartSecure, authority: Authority) -> None:
    sidecar = await start_secure()
    where = f"127.0.0.1:{port_of(sidecar)}"
    arguments = ("-connect", where, "-tls1_2", "-CAfile", str(authority.file))
    _, out = await run_tool(tool("openssl"), "s_client", *arguments, said=b"R\n")
    assert b"no renegotiation" in out


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], None), ([], None)]
)
async def test_http_1_1_is_what_is_spoken(
    start_secure: StartSecure, authority: Authority, connect: Connect, offered: list[str], chosen: str | None
) -> None:
    sidecar = await start_secure()
    if offered:
        authority.trust.set_alpn_protocols(offered)
    client = await connect(sidecar)
    assert chosen == client.writer.get_extra_info("ssl_object").selected_alpn_protocol()


GARBAGE = {
    "a plain request": PLAIN_REQUEST,
    "zeros": b"\0" * 100,
    "a record of 2^14+1 bytes": b"\x16\x03\x01\xff\xff" + b"\x01" * 20,
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "nothing": b"",
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_no_tls_is_refused_quietly(
    start_secure: StartSecure, upstream: Upstream, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    sidecar = await start_secure()
    caplog.set_level(logging.DEBUG)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(sidecar))
    writer.write(said)
    writer.write_eof()
    client = Response(reader, writer)
    await client.closed()
    writer.close()
    assert [] == [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    assert not any(record.exc_info for record in caplog.records)
    assert [] == upstream.requests


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_slow_handshake_is_given_up(
    start_secure: StartSecure, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    sidecar = await start_secure(header_timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(sidecar))
    writer.write(said)
    await Response(reader, writer).closed()
    writer.close()
    assert "" == caplog.text


# Files


Told = tuple[list[str], list[str], str, str, str]
"""Certificates, keys, and the setting, the file and the words with which they are refused."""


class Wrong:
    """Files that can not be used, and what is said of them."""

    def __init__(self, authority: Authority) -> None:
        self.good = authority.issue("good.test")
        self.other = authority.issue("other.test")
        self.certificate, self.key = halves(self.good)
        self._folder = authority.folder
        self._authority = authority

    def file(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        return str(path)

    def garbage(self) -> Told:
        file = self.file("garbage.pem", b"\0garbage")
        return [file], [], "tls_certificate", file, "a PEM file with a certificate"

    def no_key(self) -> Told:
        file = self.certificate
        return [file], [], "tls_certificate", file, "a PEM file with a key that has no passphrase"

    def key_alone(self) -> Told:
        return [self.key], [], "tls_certificate", self.key, "a PEM file with a certificate"

    def broken_certificate(self) -> Told:
        pem = Path(self.good).read_bytes()
        file = self.file("broken.pem", pem[: pem.index(b"-----BEGIN CERT") + 100] + b"\n-----END CERTIFICATE-----\n")
        return [file], [], "tls_certificate", file, "a PEM file with a certificate"

    def no_pem_key(self) -> Told:
        file = self.file("key.pem", b"no key")
        return [self.certificate], [file], "tls_key", file, "a PEM file with a key that has no passphrase"

    def secret_key(self) -> Told:
        key = load_pem_private_key(Path(self.key).read_bytes(), None)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        file = self.file("secret.pem", secret)
        return [self.certificate], [file], "tls_key", file, "a PEM file with a key that has no passphrase"

    def another_key(self) -> Told:
        _, key = halves(self.other)
        return [self.certificate], [key], "tls_key", key, f"the key to the first certificate in {self.certificate}"

    def key_of_another_type(self) -> Told:
        _, key = halves(self._authority.issue("rsa.test", key_type=trustme.KeyType.RSA))
        return [self.certificate], [key], "tls_key", key, f"the key to the first certificate in {self.certificate}"

    def gone(self) -> Told:
        file = str(self._folder / "gone.pem")
        return [file], [], "tls_certificate", file, "a file that can be read (No such file or directory)"

    def key_gone(self) -> Told:
        file = str(self._folder / "gone.key")
        return [self.certificate], [file], "tls_key", file, "a file that can be read (No such file or directory)"

    def folder(self) -> Told:
        file = str(self._folder)
        return [file], [], "tls_certificate", file, "a file that can be read (Is a directory)"

    def weak(self) -> Told:
        file = self._authority.sign_itself("weak.pem", "-newkey", "rsa:1024")
        return [file], [], "tls_certificate", file, "a certificate that is strong enough (EE_KEY_TOO_SMALL)"

    def not_for_servers(self) -> Told:
        file = self._authority.sign_itself("client.pem", "-addext", "extendedKeyUsage=clientAuth")
        return [file], [], "tls_certificate", file, "a certificate for a server (unsuitable certificate purpose)"

    def second(self) -> Told:
        _, _, *rest = self.garbage()
        return [self.good, rest[1]], [], rest[0], rest[1], rest[2]


WRONG = [name for name in vars(Wrong) if name != "file" and not name.startswith("_")]


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_can_not_be_used_is_named_with_its_setting(authority: Authority, what: str) -> None:
    certificates, keys, setting, file, expected = getattr(Wrong(authority), what)()
    with pytest.raises(ConfigError) as raised:
        Certificates(certificates, keys)
    assert (setting, file, expected) == (raised.value.key, raised.value.value, raised.value.expected)


@pytest.mark.parametrize("what", WRONG)
async def test_a_reload_that_fails_changes_nothing(
    start_secure: StartSecure, authority: Authority, unchecked: ssl.SSLContext, connect: Connect, what: str
) -> None:
    sidecar = await start_secure(authority.issue("before.test"))
    before = sidecar.settings
    client = await connect(sidecar, unchecked)
    certificates, keys, setting, *_ = getattr(Wrong(authority), what)()
    with pytest.raises(ConfigError) as raised:
        reload(sidecar, *certificates, keys=tuple(keys))
    assert setting == raised.value.key
    assert before is sidecar.settings
    assert ["before.test"] == await names_shown(sidecar, unchecked, None)
    await client.send(request_of("/.well-known/sse-sidecar/client.js"))
    await client.read_head()
    assert 200 == client.status


async def test_a_reload_that_fails_elsewhere_leaves_the_certificates(
    start_secure: StartSecure, authority: Authority, unchecked: ssl.SSLContext
) -> None:
    sidecar = await start_secure(authority.issue("before.test"))
    settings = load(
        {
            "listen": str(sidecar.settings.listen),
            "admin_listen": str(sidecar.settings.admin_listen),
            "upstream": "https://service.test",
            "upstream_ca": authority.spoil("bad.pem"),
            "tls_certificate": authority.issue("after.test"),
        }
    )
    with pytest.raises(ConfigError, match="upstream_ca"):
        sidecar.reload(settings)
    assert ["before.test"] == await names_shown(sidecar, unchecked, None)


def reload(sidecar: Sidecar, *certificates: str, keys: tuple[str, ...] = (), **others: Any) -> None:
    sidecar.reload(dataclasses.replace(sidecar.settings, tls_certificate=certificates, tls_key=keys, **others))


async def test_a_sidecar_with_a_bad_file_opens_no_port(authority: Authority) -> None:
    file = authority.spoil("bad.pem")
    code, out, err = await run("--upstream", "http://127.0.0.1:1", "--tls-certificate", file, "--listen", ":0")
    assert (2, "") == (code, out)
    assert f"sse-sidecar: tls_certificate = '{file}': expected a PEM file with a certificate\n" == err


@pytest.mark.parametrize("setting", ["tls_certificate", "upstream_ca", "upstream_certificate"])
async def test_check_reads_the_files_too(authority: Authority, setting: str) -> None:
    bad = authority.spoil("bad.pem")
    settings = authority.folder / "settings.toml"
    settings.write_text(f'upstream = "https://127.0.0.1:1"\n{setting} = "{bad}"\n')
    code, out, err = await run("check", "--config", str(settings))
    assert (2, "") == (code, out)
    assert f"sse-sidecar: {setting} = '{bad}': expected a PEM file with a certificate\n" == err


@pytest.mark.parametrize("setting", ["upstream_ca", "upstream_certificate"])
def test_files_for_a_service_without_tls_are_not_read(authority: Authority, setting: str) -> None:
    bad = authority.spoil("bad.pem")
    tls.check(load({"upstream": "http://127.0.0.1:1", setting: bad}))


async def test_a_certificate_that_is_out_of_date_is_used_and_said_to_be(
    start_secure: StartSecure, authority: Authority, blind: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
    old = authority.issue("old.test", not_before=past[0], not_after=past[1])
    sidecar = await start_secure(old)
    said = f"{old} holds from Jan  1 00:00:00 2020 GMT to Jan  1 00:00:00 2021 GMT, which is not now"
    assert [said] == caplog.messages
    with blocking(sidecar) as sock, pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        await asyncio.to_thread(authority.trust.wrap_socket, sock, server_hostname="old.test")


# Reload


async def test_a_reload_gives_later_clients_another_certificate_and_streams_go_on(
    start_secure: StartSecure, upstream: Upstream, authority: Authority, unchecked: ssl.SSLContext, connect: Connect
) -> None:
    sidecar = await start_secure(authority.issue("before.test", file="shown.pem"))
    client = await connect(sidecar, unchecked)
    got = await opened(upstream, client)
    await got.stream(b"data: 1\n\n")
    await client.read_until(b"data: 1\n")
    reload(sidecar, authority.issue("after.test", file="shown.pem", key_type=trustme.KeyType.RSA))
    assert ["after.test"] == await names_shown(sidecar, unchecked, None)
    await got.stream(b"data: 2\n\n")
    await got.end()
    await client.read_to_end()
    assert ["1", "2"] == data_of(client)
    assert client.whole


async def test_a_reload_may_bring_more_certificates_or_fewer(
    start_secure: StartSecure, authority: Authority, unchecked: ssl.SSLContext
) -> None:
    one, two = authority.issue("one.test"), authority.issue("two.test")
    sidecar = await start_secure(one)
    assert ["one.test"] == await names_shown(sidecar, unchecked, "two.test")
    reload(sidecar, one, two)
    assert ["two.test"] == await names_shown(sidecar, unchecked, "two.test")
    reload(sidecar, one)
    assert ["one.test"] == await names_shown(sidecar, unchecked, "two.test")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_resumes_its_session_and_not_past_a_reload(
    start_secure: StartSecure, authority: Authority, unchecked: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    unchecked.minimum_version = unchecked.maximum_version = version
    one, two = authority.issue("one.test"), authority.issue("two.test")
    sidecar = await start_secure(one, two)

    def visit(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            blocking(sidecar) as sock,
            unchecked.wrap_socket(sock, server_hostname="two.test", session=session) as secure,
        ):
            secure.sendall(request_of("/.well-known/sse-sidecar/client.js", headers={"Connection": "close"}))
            while secure.recv(65536):
                pass
            return secure.session, secure.session_reused

    session, _ = await asyncio.to_thread(visit, None)
    _, again = await asyncio.to_thread(visit, session)
    reload(sidecar, one, two)
    _, past = await asyncio.to_thread(visit, session)
    assert (True, False) == (again, past)


@pytest.mark.parametrize("at_first", [True, False])
async def test_tls_comes_or_goes_only_with_a_restart(
    start: StartSidecar, authority: Authority, *, at_first: bool
) -> None:
    file = authority.issue("localhost")
    sidecar = await start(tls_certificate=[file] if at_first else [])
    with pytest.raises(ConfigError, match=r"tls_certificate = .*: expected some or none, as it was; a restart"):
        reload(sidecar, *([] if at_first else [file]))


# Event streams


async def test_a_stream_is_resumed_and_kept_alive_over_tls(
    start_secure: StartSecure, upstream: Upstream, connect: Connect, clock: ManualClock
) -> None:
    sidecar = await start_secure()
    client = await connect(sidecar)
    got = await opened(upstream, client)
    assert ("https", "127.0.0.1") == (got.header("x-forwarded-proto"), got.header("x-forwarded-for"))
    await got.stream(b"data: 1\n\ndata: 2\n\n")
    await client.read_until(b"data: 2\n")
    await until(lambda: clock.next_in <= 10)
    clock.advance(10)
    await client.read_until(b"\n\n:")
    token = client.last_id
    client.close()
    await unread(sidecar)
    await got.stream(b"data: 3\n\n")
    back = await connect(sidecar)
    await asked(back, request_of(headers={"Accept": "text/event-stream", "Last-Event-ID": token}))
    await back.read_until(b"data: 3\n")
    assert ("resumed", ["3"]) == (back.sse_status, data_of(back))
    await got.stream(b"data: 4\n\n")
    await got.end()
    await back.read_to_end()
    assert ["3", "4"] == data_of(back)


def close(client: Response) -> None:
    client.close()


def fin(client: Response) -> None:
    """As a process that is killed: no close_notify."""
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as sock:
        sock.shutdown(socket.SHUT_WR)


def reset(client: Response) -> None:
    client.reset()


def garble(client: Response) -> None:
    """Bytes that are no TLS, within a connection that is."""
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as sock:
        sock.sendall(b"\x17\x03\x03\x00\x20" + b"garbage!" * 4)


WAYS_TO_LEAVE = [close, fin, reset, garble]


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
async def test_a_client_that_vanishes_within_its_request_is_noticed(
    start_secure: StartSecure,
    upstream: Upstream,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    leave: Callable[[Response], None],
) -> None:
    sidecar = await start_secure()
    client = await connect(sidecar)
    await client.send(request_of(method="POST", headers={"Content-Length": "100"}))
    got = await upstream.asked()
    leave(client)
    await got.closed()
    await until(lambda: not sidecar._server.connections)
    assert [] == caplog.messages


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
async def test_a_client_that_vanishes_is_noticed(
    start_secure: StartSecure,
    upstream: Upstream,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    leave: Callable[[Response], None],
) -> None:
    sidecar = await start_secure(on_disconnect="cancel")
    client = await connect(sidecar)
    got = await opened(upstream, client)
    leave(client)
    await unread(sidecar)
    await got.closed()
    await until(lambda: not sidecar._server.connections)
    assert not any(record.exc_info for record in caplog.records)


async def test_many_readers_get_every_event_over_tls(
    start_secure: StartSecure, upstream: Upstream, connect: Connect
) -> None:
    sidecar = await start_secure(mode="shared", key_headers=[])
    first = await connect(sidecar)
    got = await opened(upstream, first)
    readers = [first, *[await asked(await connect(sidecar), STREAM) for _ in range(79)]]
    reading = [asyncio.ensure_future(reader.read_to_end()) for reader in readers]
    for number in range(0, 1000, 10):
        await got.stream(b"".join(event(number + each, each * 100) for each in range(10)))
    await got.end()
    await asyncio.gather(*reading)
    assert [list(range(1000))] * 80 == [numbers_of(reader) for reader in readers]
    assert all(reader.whole for reader in readers)


class Asleep:
    """A client that has asked for a stream, and reads nothing of it."""

    def __init__(self, sidecar: Sidecar, context: ssl.SSLContext) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(("127.0.0.1", port_of(sidecar)))
        self.secure = context.wrap_socket(self.sock, server_hostname="localhost")
        self.secure.sendall(request_of(headers={"Accept": "text/event-stream", "Connection": "close"}))

    def read(self) -> bytes:
        """All there is, to the end of the connection."""
        got = b""
        with contextlib.suppress(OSError):
            while data := self.secure.recv(65536):
                got += data
        return got


@pytest.fixture
async def asleep(authority: Authority) -> AsyncIterator[Callable[[Sidecar], Awaitable[Asleep]]]:
    sleepers: list[Asleep] = []

    async def falling(sidecar: Sidecar) -> Asleep:
        narrow(sidecar)
        before = sidecar.streams.reader_count
        sleepers.append(await asyncio.to_thread(Asleep, sidecar, authority.trust))
        await until(lambda: sidecar.streams.reader_count > before)
        return sleepers[-1]

    yield falling
    for sleeper in sleepers:
        sleeper.secure.close()


def buffered(sidecar: Sidecar) -> int:
    """The most bytes that are kept for any client, encrypted or not."""
    transports = [connection.transport for connection in sidecar._server.connections]
    return max(transport.get_write_buffer_size() for transport in transports if transport is not None)


async def test_a_client_that_reads_nothing_costs_little_over_tls_and_is_cut_off(
    start_secure: StartSecure,
    upstream: Upstream,
    connect: Connect,
    clock: ManualClock,
    asleep: Callable[[Sidecar], Awaitable[Asleep]],
) -> None:
    sidecar = await start_secure(mode="shared", key_headers=[], slow_reader_timeout=30)
    awake = await connect(sidecar)
    got = await opened(upstream, awake)
    sleeper = await asleep(sidecar)
    for number in range(200):
        await got.stream(event(number, 8192))
        await awake.read_until(b"data: %d " % number)
    assert 1 == backed_up(sidecar)
    # The high-water mark of a connection without TLS is 64 KiB, and one event may go beyond.
    assert buffered(sidecar) < 2 * 65536
    await until(lambda: clock.next_in <= 30)
    clock.advance(30)
    await until(lambda: sidecar.streams.reader_count == 1)
    await until(lambda: len(sidecar._server.connections) == 1)
    await got.stream(event(200))
    await got.end()
    await awake.read_to_end()
    assert list(range(201)) == numbers_of(awake)
    read = await asyncio.to_thread(sleeper.read)
    assert not read.endswith(b"0\r\n\r\n")


async def test_a_client_that_wakes_up_gets_everything_over_tls(
    start_secure: StartSecure,
    upstream: Upstream,
    connect: Connect,
    asleep: Callable[[Sidecar], Awaitable[Asleep]],
) -> None:
    sidecar = await start_secure(mode="shared", key_headers=[])
    awake = await connect(sidecar)
    got = await opened(upstream, awake)
    sleeper = await asleep(sidecar)
    for number in range(200):
        await got.stream(event(number, 8192))
        await awake.read_until(b"data: %d " % number)
    assert 1 == backed_up(sidecar)
    reading = asyncio.ensure_future(asyncio.to_thread(sleeper.read))
    await until(lambda: not backed_up(sidecar))
    await got.end()
    await until(lambda: not sidecar.streams.reader_count)
    read = await reading
    found = [number for number in range(200) if b"data: %d " % number in read]
    assert list(range(200)) == found
    assert read.endswith(b"0\r\n\r\n")


async def test_a_drain_ends_streams_and_connections_over_tls(
    start_secure: StartSecure, upstream: Upstream, connect: Connect, clock: ManualClock
) -> None:
    sidecar = await start_secure()
    client = await connect(sidecar)
    got = await opened(upstream, client)
    await got.stream(b"data: 1\n\n")
    await client.read_until(b"data: 1\n")
    silent = await asyncio.open_connection("127.0.0.1", port_of(sidecar))
    draining = asyncio.ensure_future(sidecar.drain())
    while not draining.done():
        clock.advance(1)
        await asyncio.sleep(0.001)
    await draining
    await client.read_to_end()
    assert not sidecar._server.connections
    silent[1].close()


# Everything else


async def test_bodies_cross_over_tls_both_ways(start_secure: StartSecure, upstream: Upstream, connect: Connect) -> None:
    sidecar = await start_secure()
    body = bytes(range(256)) * 32 * 1024  # 8 MiB

    async def echo(asked: Asked) -> None:
        got = await asked.read_body()
        await asked.respond("200 OK", "Content-Type: application/octet-stream", body=got)

    upstream.handler = echo
    client = await connect(sidecar)
    sending = asyncio.ensure_future(client.send(request_of(method="POST", body=body)))
    await client.read_head()
    await client.read_to_end()
    await sending
    assert hashlib.sha256(body).hexdigest() == hashlib.sha256(client.body).hexdigest()


@pytest.mark.parametrize("slow", [False, True])
async def test_a_body_that_ends_with_the_connection_is_whole_over_tls(
    start_secure: StartSecure, upstream: Upstream, authority: Authority, *, slow: bool
) -> None:
    sidecar = await start_secure()
    narrow(sidecar)
    body = b"x" * 1_000_000 + b"end"

    async def answer(asked: Asked) -> None:
        await asked.send(b"HTTP/1.1 200 OK\r\n\r\n" + body)

    upstream.handler = answer

    def fetch() -> bytes:
        with blocking(sidecar) as sock, authority.trust.wrap_socket(sock, server_hostname="localhost") as secure:
            secure.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            got = b""
            # A truncated connection would raise here.
            while data := secure.recv(1000 if slow else 65536):
                got += data
            return got

    got = await asyncio.to_thread(fetch)
    assert hashlib.sha256(body).hexdigest() == hashlib.sha256(got.partition(b"\r\n\r\n")[2]).hexdigest()


async def test_a_client_that_does_not_say_goodbye_is_let_go(
    start_secure: StartSecure, upstream: Upstream, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_PEER_TIMEOUT", 0.2)
    sidecar = await start_secure(slow_reader_timeout=0.2)
    upstream.handler = greet

    def ask() -> ssl.SSLSocket:
        secure = authority.trust.wrap_socket(blocking(sidecar), server_hostname="localhost")
        secure.sendall(PLAIN_REQUEST)
        while secure.recv(65536):
            pass
        return secure

    client = await asyncio.to_thread(ask)
    await until(lambda: not sidecar._server.connections)
    client.close()


async def test_a_kept_connection_serves_many_requests_over_tls(
    start_secure: StartSecure, upstream: Upstream, connect: Connect
) -> None:
    sidecar = await start_secure()

    async def answer(asked: Asked) -> None:
        await asked.respond("200 OK", body=asked.target.encode())

    upstream.handler = answer
    client = await connect(sidecar)
    await client.send(b"".join(request_of(f"/{number}") for number in range(20)))
    for number in range(20):
        one = Response(client.reader, client.writer)
        await one.read_head()
        await one.read_to_end()
        assert f"/{number}".encode() == one.body


SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("politely", [True, False])
async def test_a_tunnel_loses_nothing_of_a_client_that_says_much_and_leaves(
    start_secure: StartSecure, upstream: Upstream, authority: Authority, *, politely: bool
) -> None:
    sidecar = await start_secure()
    said = bytes(range(256)) * 4096 * 8

    def speak() -> None:
        with blocking(sidecar) as sock, authority.trust.wrap_socket(sock, server_hostname="localhost") as secure:
            secure.sendall(request_of(headers={"Connection": "Upgrade", "Upgrade": "websocket"}))
            assert SWITCHED.split(b"\r\n")[0] == secure.recv(65536).split(b"\r\n")[0]
            secure.sendall(said)
            if politely:
                with contextlib.suppress(OSError):
                    secure.unwrap()

    speaking = asyncio.ensure_future(asyncio.to_thread(speak))
    service = await upstream.asked()
    await service.send(SWITCHED)
    heard = b""
    async with asyncio.timeout(TIMEOUT):
        while part := await service.reader.read(65536):
            heard += part
            await asyncio.sleep(0.0005)
    await speaking
    assert len(said) == len(heard)
    assert said == heard


# Toward the upstream


@pytest.fixture
async def secure_upstream(authority: Authority) -> AsyncIterator[Upstream]:
    """A scripted service with a certificate for localhost, that answers `hello` to whoever asks."""
    server = Upstream()
    await server.start(tls=authority.serving("localhost"))
    server.handler = greet
    yield server
    await server.stop()


async def greet(asked: Asked) -> None:
    await asked.respond("200 OK", body=b"hello")


async def answered(sidecar: Sidecar) -> Response:
    """The answer to a plain request without TLS, read whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(sidecar))
    response = await asked(Response(reader, writer), PLAIN_REQUEST)
    await response.read_to_end()
    writer.close()
    return response


def https(upstream: Upstream, host: str = "localhost") -> str:
    return f"https://{host}:{upstream.port}"


def assert_refused(response: Response) -> None:
    """A 502 that tells nothing of the service."""
    assert 502 == response.status
    told = {"title": "Bad Gateway", "status": 502, "detail": "The upstream could not be reached."}
    assert told == json.loads(response.body)


async def test_a_service_is_verified_by_its_authority(
    start: StartSidecar, secure_upstream: Upstream, authority: Authority
) -> None:
    sidecar = await start(upstream=https(secure_upstream), upstream_ca=str(authority.file))
    assert (200, b"hello") == status_and_body(await answered(sidecar))


def status_and_body(response: Response) -> tuple[int, bytes]:
    return response.status, response.body


async def test_a_service_may_be_verified_by_its_own_certificate(
    start: StartSidecar, secure_upstream: Upstream, authority: Authority
) -> None:
    certificate, _ = halves(str(authority.folder / "localhost.pem"))
    sidecar = await start(upstream=https(secure_upstream), upstream_ca=certificate)
    assert (200, b"hello") == status_and_body(await answered(sidecar))


async def test_a_service_of_an_unknown_authority_is_not_asked(
    start: StartSidecar, secure_upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar = await start(upstream=https(secure_upstream))
    assert_refused(await answered(sidecar))
    assert [] == secure_upstream.requests
    assert not any(record.exc_info for record in caplog.records)


async def test_a_service_by_another_name_is_not_asked(
    start: StartSidecar, secure_upstream: Upstream, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar = await start(upstream=https(secure_upstream, "127.0.0.1"), upstream_ca=str(authority.file))
    assert_refused(await answered(sidecar))
    assert [] == secure_upstream.requests
    assert "IP address mismatch" in caplog.records[-1].facts["cause"]  # type: ignore[attr-defined]


async def test_a_service_that_is_not_verified_may_be_anyone(
    start: StartSidecar, secure_upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    where = https(secure_upstream, "127.0.0.1")
    sidecar = await start(upstream=where, upstream_verify=False)
    said = "upstream_verify is off: whoever stands between can be %s, and reads and changes all"
    assert [said % where.removeprefix("https://")] == caplog.messages
    assert (200, b"hello") == status_and_body(await answered(sidecar))


async def test_the_system_s_authorities_are_taken_without_a_file(
    start: StartSidecar, secure_upstream: Upstream, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    sidecar = await start(upstream=https(secure_upstream))
    assert (200, b"hello") == status_and_body(await answered(sidecar))


async def test_with_a_file_the_system_s_authorities_are_not_taken(
    start: StartSidecar, secure_upstream: Upstream, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    other = authority.folder / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    sidecar = await start(upstream=https(secure_upstream), upstream_ca=str(other))
    assert_refused(await answered(sidecar))


@pytest.fixture
async def demanding(authority: Authority) -> AsyncIterator[Upstream]:
    """A service that lets in only clients with a certificate of the same authority."""
    context = authority.serving("localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    server = Upstream()
    await server.start(tls=context)
    server.handler = greet
    yield server
    await server.stop()


@pytest.mark.parametrize("apart", [False, True])
async def test_a_service_is_shown_the_certificate_that_it_demands(
    start: StartSidecar, demanding: Upstream, authority: Authority, *, apart: bool
) -> None:
    file = authority.issue("sidecar.test")
    certificate, key = halves(file) if apart else (file, "")
    sidecar = await start(
        upstream=https(demanding),
        upstream_ca=str(authority.file),
        upstream_certificate=certificate,
        upstream_key=key,
    )
    assert (200, b"hello") == status_and_body(await answered(sidecar))


async def test_a_service_that_demands_a_certificate_refuses_without_one(
    start: StartSidecar, demanding: Upstream, authority: Authority
) -> None:
    sidecar = await start(upstream=https(demanding), upstream_ca=str(authority.file))
    response = await answered(sidecar)
    assert 502 == response.status
    assert b"certificate" not in response.body
    assert [] == demanding.requests


@pytest.mark.parametrize("setting", ["upstream_ca", "upstream_certificate", "upstream_key"])
def test_a_file_for_the_service_that_can_not_be_used_is_named(authority: Authority, setting: str) -> None:
    bad = authority.spoil("bad.pem")
    good = {"upstream_certificate": authority.issue("sidecar.test")} if setting == "upstream_key" else {}
    settings = load({"upstream": "https://service.test", **good, setting: bad})
    with pytest.raises(ConfigError) as raised:
        client_context(settings.routes[0].settings)
    assert (setting, bad) == (raised.value.key, raised.value.value)


async def test_a_handshake_that_a_service_does_not_answer_is_given_up(
    start: StartSidecar, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    silent = Upstream()
    await silent.start()
    sidecar = await start(upstream=https(silent), connect_timeout=3)
    answering = asyncio.ensure_future(answered(sidecar))
    await until(lambda: clock.next_in <= 3)
    clock.advance(3)
    assert 504 == (await answering).status
    await until(lambda: not silent._tasks)
    assert not any(record.exc_info for record in caplog.records)
    await silent.stop()


async def test_a_stream_from_a_service_with_tls_is_resumed(
    start: StartSidecar, authority: Authority, secure_upstream: Upstream
) -> None:
    secure_upstream.handler = None
    sidecar = await start(upstream=https(secure_upstream), upstream_ca=str(authority.file))
    client = Response(*await asyncio.open_connection("127.0.0.1", port_of(sidecar), limit=1 << 20))
    got = await opened(secure_upstream, client)
    await got.stream(event(0))
    await client.read_until(b"data: 0 ")
    for number in range(1, 200):
        await got.stream(event(number, 10_000))
    await client.read_until(b"data: 199 ")
    client.close()
    await unread(sidecar)
    back = Response(*await asyncio.open_connection("127.0.0.1", port_of(sidecar), limit=1 << 20))
    token = client.body.partition(b"id: ")[2].partition(b"\n")[0].decode()
    await asked(back, request_of(headers={"Accept": "text/event-stream", "Last-Event-ID": token}))
    await got.end()
    await back.read_to_end()
    assert list(range(1, 200)) == numbers_of(back)
    back.close()


class Raw:
    """A service that answers with bytes, then ends as it is told."""

    def __init__(self, context: ssl.SSLContext, answer: bytes, *, politely: bool) -> None:
        self._context, self._answer, self._politely = context, answer, politely
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def serve(self) -> None:
        """One connection."""
        sock, _ = self._listener.accept()
        sock.settimeout(TIMEOUT)
        secure = self._context.wrap_socket(sock, server_side=True)
        secure.recv(65536)
        secure.sendall(self._answer)
        if self._politely:
            with contextlib.suppress(OSError):
                secure.unwrap()
        with contextlib.suppress(OSError):
            secure.shutdown(socket.SHUT_WR)
            while secure.recv(65536):
                pass
        secure.close()
        self._listener.close()


UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello"


@pytest.mark.parametrize("politely", [True, False])
async def test_a_body_that_ends_with_the_connection_is_whole_only_where_tls_says_so(
    start: StartSidecar, authority: Authority, *, politely: bool
) -> None:
    service = Raw(authority.serving("localhost"), UNTIL_CLOSE, politely=politely)
    serving = asyncio.ensure_future(asyncio.to_thread(service.serve))
    sidecar = await start(upstream=f"https://localhost:{service.port}", upstream_ca=str(authority.file))
    response = await answered(sidecar)
    await serving
    assert (b"hello", politely) == (response.body, response.whole)


@pytest.mark.parametrize("politely", [True, False])
async def test_nothing_is_lost_of_a_service_that_ends_while_its_client_is_slow(
    start: StartSidecar, authority: Authority, *, politely: bool
) -> None:
    body = bytes(range(256)) * 4096
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    service = Raw(authority.serving("localhost"), head + body, politely=politely)
    serving = asyncio.ensure_future(asyncio.to_thread(service.serve))
    sidecar = await start(upstream=f"https://localhost:{service.port}", upstream_ca=str(authority.file))
    narrow(sidecar)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(TIMEOUT)

    def fetch() -> bytes:
        sock.connect(("127.0.0.1", port_of(sidecar)))
        sock.sendall(PLAIN_REQUEST)
        got = b""
        while data := sock.recv(4096):
            got += data
        return got

    with sock:
        got = await asyncio.to_thread(fetch)
    await serving
    assert len(body) == len(got.partition(b"\r\n\r\n")[2])
    assert hashlib.sha256(body).hexdigest() == hashlib.sha256(got.partition(b"\r\n\r\n")[2]).hexdigest()


# The command, and clients that no one here wrote


@pytest.fixture
async def command(upstream: Upstream, authority: Authority) -> AsyncIterator[Running]:
    """The command with a certificate for localhost, on the real clock."""
    settings = {
        "SSE_SIDECAR_UPSTREAM": upstream.url,
        "SSE_SIDECAR_LISTEN": "127.0.0.1:0",
        "SSE_SIDECAR_ADMIN_LISTEN": "",
        "SSE_SIDECAR_TLS_CERTIFICATE": authority.issue("localhost", file="shown.pem"),
    }
    process = await asyncio.create_subprocess_exec(*COMMAND, env=environment(**settings), stdout=PIPE, stderr=PIPE)
    running = Running(process)
    try:
        await running.ready()
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_sighup_reloads_the_certificate_under_an_open_stream(
    command: Running, upstream: Upstream, authority: Authority, unchecked: ssl.SSLContext
) -> None:
    where = ("127.0.0.1", command.port)
    stream = Response(*await asyncio.open_connection(*where, ssl=unchecked, server_hostname="localhost"))
    got = await opened(upstream, stream)
    authority.issue("after.test", file="shown.pem")
    command.send(signal.SIGHUP)
    await command.logged("settings reloaded")
    later = Response(*await asyncio.open_connection(*where, ssl=unchecked, server_hostname="localhost"))
    assert "after.test" == later.writer.get_extra_info("peercert")["subjectAltName"][0][1]
    authority.spoil("shown.pem")
    command.send(signal.SIGHUP)
    await command.logged("not reloaded")
    again = Response(*await asyncio.open_connection(*where, ssl=unchecked, server_hostname="localhost"))
    assert "after.test" == again.writer.get_extra_info("peercert")["subjectAltName"][0][1]
    await got.stream(b"data: 1\n\n")
    await stream.read_until(b"data: 1\n")
    for client in (stream, later, again):
        client.close()
    command.send(signal.SIGTERM)
    assert 0 == await command.ended()
    assert "Traceback" not in command.log


async def test_curl_reads_a_stream_over_tls(command: Running, upstream: Upstream, authority: Authority) -> None:
    curl = tool("curl")

    async def answer(asked: Asked) -> None:
        await asked.begin()
        await asked.stream(b"data: 1\n\n")
        await asked.end()

    upstream.handler = answer
    target = f"https://localhost:{command.port}/"
    code, out = await run_tool(
        curl, "-sSN", "--cacert", str(authority.file), "--resolve", f"localhost:{command.port}:127.0.0.1", target
    )
    assert 0 == code, out
    assert b"data: 1\n" in out


async def test_httpx_reads_a_stream_over_tls(command: Running, upstream: Upstream, authority: Authority) -> None:
    async with httpx.AsyncClient(verify=authority.trust) as client:
        sending = client.stream("GET", f"https://localhost:{command.port}/", headers={"Accept": "text/event-stream"})
        reading = asyncio.ensure_future(read_lines(sending))
        got = await upstream.asked()
        await got.begin()
        await got.stream(b"data: 1\n\n")
        await got.end()
        assert "data: 1" in await reading
        assert (
            "HTTP/1.1"
            == (await client.get(f"https://localhost:{command.port}/.well-known/sse-sidecar/client.js")).http_version
        )


async def read_lines(sending: contextlib.AbstractAsyncContextManager[httpx.Response]) -> list[str]:
    async with sending as response:
        return [line async for line in response.aiter_lines()]
