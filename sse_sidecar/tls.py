"""TLS on both sides: the certificates that clients are shown, and how `https://` is asked."""

from __future__ import annotations

import logging
import ssl
import sys
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from sse_sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_sidecar.config import Settings, StreamSettings

log = logging.getLogger(__name__)

_ALPN = ["http/1.1"]
_ANY_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for."""
_NAMES = ("DNS", "IP Address")
"""The kinds that a server is asked for by."""
_CERTIFICATE = "a PEM file with a certificate"


def check(settings: Settings) -> None:
    """Raises ConfigError where a file of either side can not be used."""
    if settings.tls_certificate or settings.tls_key:
        Certificates(settings.tls_certificate, settings.tls_key)
    for route in settings.routes:
        if any(upstream.tls for upstream in route.settings.upstream or ()):
            client_context(route.settings)


# Toward clients


class Certificates:
    """What clients are shown, by the name they ask for; the first certificate where no name fits, or none is sent.

    An exact name goes before a wildcard, and an earlier file before a later one.
    """

    def __init__(self, certificates: Sequence[str], keys: Sequence[str] = ()) -> None:
        """Raises ConfigError."""
        if keys and len(keys) != len(certificates):
            raise ConfigError("tls_key", ", ".join(keys), "one for each tls_certificate, or none")
        pairs = zip(certificates, keys or [""] * len(certificates), strict=True)
        self.context = _Listening(ssl.PROTOCOL_TLS_SERVER)
        """To listen with, now and after each `follow`."""
        self.context.current = _by_name([_load(certificate, key) for certificate, key in pairs])

    def follow(self, other: Certificates) -> None:
        """From the next handshake on, clients are shown what `other` has; open connections go on.

        Its files have been read, so this cannot fail: a reload checks all first, and then changes all.
        """
        self.context.current = other.context.current


class _Listening(ssl.SSLContext):
    """Stands for the context that is in use at the moment a handshake begins.

    A listener's context cannot be exchanged, and a certificate of another key type would come beside the first in it.
    Each reload has a context of its own and so keys of its own for session tickets: no client resumes past a reload.
    """

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*args, **kwargs)


class _Loaded(NamedTuple):
    """A certificate and its key, ready to be shown, and the names that it is for."""

    context: ssl.SSLContext
    names: list[str]


def _by_name(loaded: list[_Loaded]) -> ssl.SSLContext:
    first = loaded[0].context
    if len(loaded) > 1:
        of_name: dict[str, ssl.SSLContext] = {}
        for context, names in reversed(loaded):
            of_name.update(dict.fromkeys(names, context))

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            name = _plain(name or "")
            connection.context = of_name.get(name) or of_name.get("*." + name.partition(".")[2]) or first

        first.sni_callback = choose
        _refuse_quietly()
    return first


def _plain(name: str) -> str:
    """A name as it is compared; addresses are written in more than one way."""
    try:
        return ip_address(name).compressed
    except ValueError:
        return name.lower().removesuffix(".")


def _refuse_quietly() -> None:
    """A name in other than ASCII ends its handshake in the ssl module, which prints a traceback with the name."""
    before = sys.unraisablehook
    if getattr(before, "is_quiet", False):
        return

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, UnicodeError):
            log.info("refused a TLS client that asked for a name that can be none")
        else:
            before(unraisable)

    hook.is_quiet = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _load(certificate: str, key: str) -> _Loaded:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could have the key's half of a handshake computed over and over.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_ALPN)
    _load_pair(context, ("tls_certificate", certificate), ("tls_key", key))
    shown = _shown_by(context, certificate)
    _warn_of_dates(shown, certificate)
    return _Loaded(context, [_plain(name) for kind, name in shown.get("subjectAltName", ()) if kind in _NAMES])


def _load_pair(context: ssl.SSLContext, certificate: tuple[str, str], key: tuple[str, str]) -> None:
    """Loads a certificate with its key, each given as setting and file. Raises ConfigError."""
    _load_trusted(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), *certificate)  # it tells which of the two is no PEM
    where = key if key[1] else certificate
    try:
        context.load_cert_chain(certificate[1], key[1] or None, password=_no_passphrase)
    except ssl.SSLError as error:
        raise ConfigError(*(_blame(error, certificate, where))) from None
    except OSError as error:
        raise ConfigError(*where, f"a file that can be read ({error.strerror})") from None


def _blame(error: ssl.SSLError, certificate: tuple[str, str], key: tuple[str, str]) -> tuple[str, str, str]:
    reason = error.reason or ""
    if "MISMATCH" in reason or reason == "NO_CERTIFICATE_ASSIGNED":  # of a key of this type
        return *key, f"the key to the first certificate in {certificate[1]}"
    if reason.startswith(("EE_", "CA_")):  # the security level refuses a weak one
        return *certificate, f"a certificate that is strong enough ({reason})"
    return *key, "a PEM file with a key that has no passphrase"


def _no_passphrase() -> str:
    """In place of OpenSSL's question on the terminal."""
    return ""


def _load_trusted(context: ssl.SSLContext, setting: str, file: str) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise ConfigError(setting, file, _CERTIFICATE) from None
    except OSError as error:
        raise ConfigError(setting, file, f"a file that can be read ({error.strerror})") from None


def _shown_by(context: ssl.SSLContext, certificate: str) -> dict[str, Any]:
    """The certificate as a client gets it.

    The ssl module reads certificates only for a client that has verified one, so here is one, in memory: no parser of
    our own, no private function, and a pair that fails in a handshake is found before it is used.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags = ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _ANY_TIME)
    _load_trusted(trusting, "tls_certificate", certificate)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = trusting.wrap_bio(down, up), context.wrap_bio(up, down, server_side=True)
    try:
        while not all([_has_shaken(client), _has_shaken(server)]):
            pass
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", error.reason)
        raise ConfigError("tls_certificate", certificate, f"a certificate for a server ({reason})") from None
    return client.getpeercert() or {}


def _has_shaken(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _warn_of_dates(shown: dict[str, Any], certificate: str) -> None:
    first, last = (ssl.cert_time_to_seconds(shown[key]) for key in ("notBefore", "notAfter"))
    if not first <= time.time() <= last:
        log.warning("%s holds from %s to %s, which is not now", certificate, shown["notBefore"], shown["notAfter"])


# Toward the upstream


def client_context(settings: StreamSettings) -> ssl.SSLContext:
    """How `https://` is asked. Raises ConfigError where one of its files can not be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    if settings.upstream_ca:
        _load_trusted(context, "upstream_ca", settings.upstream_ca)
        # Whatever is in the file is trusted, be it the service's own certificate; as Python 3.13 has it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    else:
        context.load_default_certs()
    if not settings.upstream_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        asked = ", ".join(upstream.authority for upstream in settings.upstream or ())
        log.warning("upstream_verify is off: whoever stands between can be %s, and reads and changes all", asked)
    if settings.upstream_certificate:
        certificate = ("upstream_certificate", settings.upstream_certificate)
        _load_pair(context, certificate, ("upstream_key", settings.upstream_key))
    return context
