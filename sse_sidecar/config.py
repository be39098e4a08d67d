"""Settings and routes: one frozen tree, from a TOML file, the environment and the command line.

A setting is written once, as a field below: its name is the key of the file, `SSE_SIDECAR_<NAME>` of the environment
and, where `flag` says so, `--<name>` of the command line. A value that cannot be used is a ConfigError that names the
key, the value and what was expected; nothing is opened before all of them are good.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import tomllib
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from sse_sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Network = IPv4Network | IPv6Network

EVERYONE: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

ENV_PREFIX = "SSE_SIDECAR_"

# What Kubernetes puts into every pod beside Services called `sse-sidecar` or `sse-sidecar-…`; it is not meant for us.
_SERVICE_LINK = re.compile(r"(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT|PORT_\d+_.*)")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?")


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Upstream(NamedTuple):
    """Where the service is: a host and port with or without TLS, or the path of a Unix socket."""

    host: str
    port: int
    tls: bool = False
    socket: str = ""

    @property
    def authority(self) -> str:
        """What its own `Host` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


# Values, as any of the three sources gives them. Each raises ValueError with what was expected.


def upstream_url(value: Any) -> Upstream:
    expected = "http://HOST[:PORT], https://HOST[:PORT] or unix:///PATH"
    try:
        parts = urlsplit(str(value))
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme == "unix" and parts.path and not (parts.netloc or parts.query or parts.fragment):
        return Upstream("localhost", 80, socket=parts.path)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or port == 0 or not _HOST.fullmatch(host):
        raise ValueError(expected)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(expected + ", without a path: a request's own path is used")
    tls = parts.scheme == "https"
    return Upstream(host, port or (443 if tls else 80), tls)


def upstreams(value: Any) -> tuple[Upstream, ...]:
    """One address, or several of one service."""
    found = tuple(upstream_url(member) for member in names(value))
    if not found:
        raise ValueError("an address, as in http://127.0.0.1:8000")
    if len({address.tls for address in found}) > 1:
        raise ValueError("addresses that are all http, or all https")
    return found


def listen_address(value: Any) -> Address:
    host, colon, port = str(value).rpartition(":")
    host = host.strip("[]")
    known = not host or _HOST.fullmatch(host)
    if not colon or not known or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("HOST:PORT, as in 127.0.0.1:8080 or [::]:8080")
    return Address(host or "0.0.0.0", int(port))  # noqa: S104 - ":8080" asks for it


def optional_address(value: Any) -> Address | None:
    return None if value == "" else listen_address(value)


def _number(value: Any, expected: str) -> float:
    if isinstance(value, bool):
        raise ValueError(expected)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(expected) from None
    if not 0 <= number < float("inf"):
        raise ValueError(expected)
    return number


def seconds(value: Any) -> float:
    return _number(value, "a number of seconds, 0 or more")


def positive_seconds(value: Any) -> float:
    number = _number(value, "a number of seconds above 0")
    if not number:
        raise ValueError("a number of seconds above 0")
    return number


def count(value: Any) -> int:
    number = _number(value, "a whole number of 1 or more")
    if number < 1 or number != int(number):
        raise ValueError("a whole number of 1 or more")
    return int(number)


def count_or_none(value: Any) -> int:
    number = _number(value, "a whole number of 0 or more")
    if number != int(number):
        raise ValueError("a whole number of 0 or more")
    return int(number)


_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}


def size(value: Any) -> int:
    expected = "a size above 0, as in 512MiB or a number of bytes"
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", "" if isinstance(value, bool) else str(value))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(expected)
    amount = float(match[1]) * _UNITS[match[2].lower()]
    if not 1 <= amount < float("inf"):
        raise ValueError(expected)
    return int(amount)


def one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return str(value)

    return parse


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def boolean(value: Any) -> bool:
    if str(value).lower() not in _BOOLEANS:
        raise ValueError("true or false")
    return _BOOLEANS[str(value).lower()]


def names(value: Any) -> tuple[str, ...]:
    """A list, or its members separated by commas where the source has no lists."""
    members = value.split(",") if isinstance(value, str) else value
    if not (isinstance(members, list | tuple) and all(isinstance(member, str) for member in members)):
        raise ValueError("a list of names")
    return tuple(member.strip() for member in members if member.strip())


def header_names(value: Any) -> tuple[str, ...]:
    members = tuple(member.lower() for member in names(value))
    if not all(re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+", member) for member in members):
        raise ValueError("a list of header names")
    return members


def marks(value: Any) -> tuple[str, ...]:
    members = names(value)
    if not all(":" in member for member in members):
        raise ValueError('a list of lines, as in "data: [DONE]"')
    return members


def control_prefix(value: Any) -> str:
    if value == "" or (isinstance(value, str) and re.fullmatch(r"/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]", value)):
        return str(value)
    raise ValueError('a path that begins with / and does not end with it, or "" for none')


def origins(value: Any) -> tuple[str, ...]:
    members = names(value)
    if not all(re.fullmatch(r"https?://[^\s/?#@]+", member) for member in members):
        raise ValueError("a list of origins, as in https://example.com")
    return members


def networks(value: Any) -> tuple[Network, ...]:
    """Networks, or all or none of them."""
    expected = "true, false, or a list of networks, as in 10.0.0.0/8"
    if str(value).lower() in _BOOLEANS:
        return EVERYONE if boolean(value) else ()
    try:
        return tuple(ip_network(member) for member in names(value))
    except ValueError:
        raise ValueError(expected) from None


def path_prefix(value: Any) -> str:
    if value == "" or (isinstance(value, str) and re.fullmatch(r"/[^\s?#]*[^\s?#/]", value)):
        return str(value)
    raise ValueError('a path that begins with / and does not end with it, or ""')


def path(value: Any) -> str:
    if value == "" or (isinstance(value, str) and re.fullmatch(r"/[^\s#]*", value)):
        return str(value)
    raise ValueError('a path that begins with /, or ""')


def files(value: Any) -> tuple[str, ...]:
    members = names(value)
    for member in members:
        readable(member)
    return members


def file_name(value: Any) -> str:
    if value != "":
        readable(value)
    return str(value)


def readable(name: Any) -> None:
    """Raises ValueError where there is no such file to be read."""
    try:
        with Path(name).open("rb"):
            pass
    except (OSError, TypeError) as error:
        raise ValueError(f"a file that can be read ({getattr(error, 'strerror', None) or error})") from None


def host_choice(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._\-\[\]:]+", value):
        raise ValueError("auto, client, upstream, or a host name")
    return value


def setting(default: Any, parse: Any, help_text: str, *, flag: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help_text, "flag": flag})


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What a route may set for itself."""

    upstream: tuple[Upstream, ...] | None = setting(
        None, upstreams, "The service: http://, https:// or unix:///path.sock; or several addresses of it.", flag=True
    )
    upstream_keepalive: int = setting(
        32, count_or_none, "Idle connections kept to each address of the service; 0: none is used twice."
    )
    strip_prefix: str = setting("", path_prefix, "What is taken off the path before the service is asked.")
    upstream_ca: str = setting("", file_name, "A file of the certificates that https:// is verified by.")
    upstream_certificate: str = setting("", file_name, "A file with the certificate that https:// is shown.")
    upstream_key: str = setting("", file_name, "The key to it, where the same file does not hold it.")
    upstream_verify: bool = setting(
        True,  # noqa: FBT003
        boolean,
        "Whether the certificate of an https:// service is verified. Without, anyone can be it.",
    )
    authorize: str = setting(
        "", path, "A path of the service that is asked, with the client's headers, before it is sent what is held."
    )
    authorize_ttl: float = setting(0.0, seconds, "Seconds for which a yes to that is taken for the next one's.")
    mode: str = setting(
        "private", one_of("private", "shared"), "Whether GETs with the same key share one upstream connection."
    )
    key_headers: tuple[str, ...] | None = setting(
        None, header_names, "Headers that keep shared streams apart; by default those of bind, and cookie."
    )
    join: str = setting(
        "live", one_of("live", "start"), "Where a new client enters a shared stream: at its live edge or its start."
    )
    ids: str = setting(
        "own",
        one_of("own", "keep"),
        "keep leaves a service that can resume to its own ids: headers and heartbeats only.",
    )
    reconnect: str = setting(
        "auto",
        one_of("auto", "exact", "always", "never"),
        "Whether a lost GET upstream is asked again behind its clients; auto: exact, and always where shared.",
    )
    on_stall: str = setting(
        "wait", one_of("wait", "reconnect"), "What a stall leads to, beside a comment to the readers."
    )
    heartbeat: float = setting(
        10.0,
        positive_seconds,
        "Seconds of silence toward a reader before it is sent a comment.",
        flag=True,
    )
    stall_timeout: float = setting(
        30.0,
        positive_seconds,
        "Seconds without a byte from the upstream before it counts as stalled.",
        flag=True,
    )
    linger: float = setting(30.0, seconds, "Seconds a GET upstream is kept when its last reader has left.", flag=True)
    history_ttl: float = setting(
        3600.0,
        positive_seconds,
        "Seconds that events are kept, and a stream after its last activity.",
        flag=True,
    )
    max_stream_events: int = setting(100_000, count, "Events held of one stream.")
    max_stream_bytes: int = setting(64 << 20, size, "Bytes held of one stream.")
    max_event_bytes: int = setting(16 << 20, size, "Bytes of one event; a larger one breaks its stream.")
    connect_timeout: float = setting(10.0, positive_seconds, "Seconds to connect to the upstream.")
    response_timeout: float = setting(300.0, positive_seconds, "Seconds to the upstream's status line.")
    reconnect_timeout: float = setting(
        60.0, seconds, "Seconds that an upstream which is away is asked again on behalf of its clients."
    )
    finish_timeout: float = setting(
        600.0, positive_seconds, "Seconds that an upstream is read to its end without a reader."
    )
    slow_reader_timeout: float = setting(
        10.0, positive_seconds, "Seconds that a full history waits for a reader that lags in it."
    )
    on_disconnect: str = setting(
        "auto",
        one_of("auto", "linger", "finish", "cancel"),
        "What happens to the upstream when the last reader leaves; auto: linger for GET, finish for the rest.",
    )
    max_unread: int = setting(1000, count, "Upstreams of a route that are kept without a reader.")
    max_connection_age: float = setting(
        0.0, seconds, "Seconds after which an EventSource is sent away to come back, less up to a fifth; 0: never."
    )
    completion_marks: tuple[str, ...] = setting(
        (
            "data: [DONE]",
            "event: message_stop",
            "event: response.completed",
            "event: response.failed",
            "event: response.incomplete",
        ),
        marks,
        "Lines that mark an event after which a connection's end is the stream's.",
    )
    dialect: str = setting(
        "auto",
        one_of("auto", "block", "line"),
        "How heartbeats and comments are ended; auto: by the client's class.",
    )
    bind: tuple[str, ...] = setting(
        ("authorization", "x-api-key", "api-key", "x-goog-api-key", "mcp-session-id"),
        header_names,
        "Headers whose values a resume must bear as the first request did.",
    )
    bind_cookies: tuple[str, ...] = setting((), names, "Cookies, by name, that a resume must bear likewise.")
    volatile_query: tuple[str, ...] = setting(
        (), names, "Query parameters that may differ between a request and its resume."
    )
    host_header: str = setting(
        "auto",
        host_choice,
        "The Host header sent: client, upstream, or a name; auto: the client's to http, its own to https.",
    )


@dataclass(frozen=True, kw_only=True)
class Route:
    """Which requests, and what holds for them. `name` is its label in metrics and logs."""

    name: str
    settings: StreamSettings
    host: str = "*"
    path: str = "*"
    methods: tuple[str, ...] = ()

    def matches(self, host: str, path: str, method: str) -> bool:
        return (
            (not self.methods or method in self.methods)
            and fnmatch.fnmatchcase(path, _literal_but_stars(self.path))
            and fnmatch.fnmatchcase(host, _literal_but_stars(self.host.lower()))
        )


@dataclass(frozen=True, kw_only=True)
class Settings(StreamSettings):
    """Everything. The stream settings here are the defaults of the routes."""

    listen: Address = setting(Address("127.0.0.1", 8080), listen_address, "Where clients connect.", flag=True)
    admin_listen: Address | None = setting(
        Address("127.0.0.1", 9464),
        optional_address,
        'Where health, metrics and the live page are served; "" for nowhere.',
        flag=True,
    )
    max_memory: int = setting(512 << 20, size, "Bytes held of all streams together.", flag=True)
    store: str = setting("memory", one_of("memory"), "Where streams are held.", flag=True)
    max_streams: int = setting(10_000, count, "Streams with an upstream or a reader.")
    max_readers: int = setting(20_000, count, "Clients connected to streams.")
    control_path: str = setting(
        "/.well-known/sse-sidecar",
        control_prefix,
        'Where the sidecar\'s own paths are on the main port; "" for nowhere.',
    )
    control_origins: tuple[str, ...] = setting(
        (), origins, "Origins whose pages may use the sidecar's own paths, as in https://example.com."
    )
    drain_delay: float = setting(
        0.0, seconds, "Seconds between a failing /readyz and the drain, where someone has to see it fail first."
    )
    drain_timeout: float = setting(10.0, positive_seconds, "Seconds that streams may run on after SIGTERM.")
    header_timeout: float = setting(10.0, positive_seconds, "Seconds for the head of a request to be whole.")
    body_timeout: float = setting(60.0, positive_seconds, "Seconds without a byte of a request's body.")
    tls_certificate: tuple[str, ...] = setting(
        (), files, "Files with the certificates, and their chains, that clients are shown; chosen by name.", flag=True
    )
    tls_key: tuple[str, ...] = setting(
        (), files, "Files with the keys to them, in the same order, where those do not hold them.", flag=True
    )
    trust_forwarded: tuple[Network, ...] = setting(
        (), networks, "Networks whose Forwarded and X-Forwarded-* headers are kept; true for all."
    )
    access_log: bool = setting(
        False,  # noqa: FBT003
        boolean,
        "Whether a line is logged for every request, with its path and without its query.",
    )
    log_format: str = setting("text", one_of("text", "json"), "Log lines for people or for machines.", flag=True)
    log_level: str = setting(
        "info",
        one_of("debug", "info", "warning", "error"),
        "The least severe log line that is written.",
        flag=True,
    )
    routes: tuple[Route, ...] = ()

    def route(self, host: str, path: str, method: str) -> Route:
        """The first route that matches; there is always one, as the last matches everything."""
        return next(route for route in self.routes if route.matches(host, path, method))


def declared(kind: type[StreamSettings] = Settings) -> list[dataclasses.Field[Any]]:
    """The settings that a source may give."""
    return [item for item in dataclasses.fields(kind) if "parse" in item.metadata]


def load(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
    tables: Any = None,
) -> Settings:
    """The settings, flags before environment before file. `tables` are routes of its caller's, before the file's.

    Raises ConfigError.
    """
    environ = environ or {}
    file = file or environ.get(ENV_PREFIX + "CONFIG")
    table = _read_file(file) if file else {}
    tables = [*(tables or []), *_tables(table.pop("route", []))]
    sources = _parsed(table, Settings) | _parsed(_from_environ(environ), Settings, label=_env_name)
    flags = {key: value for key, value in (flags or {}).items() if value is not None}
    values = sources | _parsed(flags, Settings, label=lambda key: "--" + key.replace("_", "-"))
    settings = Settings(**values)
    settings = dataclasses.replace(settings, routes=_routes(settings, tables))
    _check(settings)
    return settings


def _read_file(file: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", str(file), f"a file that can be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError("config", str(file), f"a TOML file ({error})") from None


def _env_name(key: str) -> str:
    return ENV_PREFIX + key.upper()


def _from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in environ.items():
        key = name.removeprefix(ENV_PREFIX)
        if key not in (name, "CONFIG") and not _SERVICE_LINK.fullmatch(key):
            found[key.lower()] = value
    return found


def _parsed(table: Mapping[str, Any], kind: type[StreamSettings], label: Callable[[str], str] = str) -> dict[str, Any]:
    parsers = {item.name: item.metadata["parse"] for item in declared(kind)}
    values = {}
    for key, value in table.items():
        if key not in parsers:
            raise ConfigError(label(key), value, f"a setting that exists{_nearest(key, parsers)}")
        try:
            values[key] = parsers[key](value)
        except ValueError as error:
            raise ConfigError(label(key), value, str(error)) from None
    return values


def _nearest(key: str, known: Iterable[str]) -> str:
    import difflib  # noqa: PLC0415 - only a mistake needs it

    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _tables(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ConfigError("route", value, "tables written as [[route]]")
    return value


def _routes(settings: Settings, tables: list[dict[str, Any]]) -> tuple[Route, ...]:
    base = {item.name: getattr(settings, item.name) for item in declared(StreamSettings)}
    routes = [_route(table, f"route[{index}]", base) for index, table in enumerate(tables)]
    return (*routes, Route(name="default", settings=StreamSettings(**base)))


def _route(table: dict[str, Any], where: str, base: dict[str, Any]) -> Route:
    rest = dict(table)
    host, path, methods = rest.pop("host", "*"), rest.pop("path", "*"), rest.pop("methods", [])
    name = rest.pop("name", path)
    for key, value in (("host", host), ("path", path), ("name", name)):
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where}.{key}", value, "a text that is not empty")
    try:
        verbs = tuple(verb.upper() for verb in names(methods))
    except ValueError as error:
        raise ConfigError(f"{where}.methods", methods, str(error)) from None
    own = _parsed(rest, StreamSettings, label=lambda key: f"{where}.{key}")
    return Route(name=name, settings=StreamSettings(**base | own), host=host, path=path, methods=verbs)


def _literal_but_stars(pattern: str) -> str:
    """`fnmatch` without its ? and [], which paths contain as they are."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


def _check(settings: Settings) -> None:
    """Contradictions: values that are good alone and not together."""
    for route in settings.routes:
        own, where = route.settings, "" if route.name == "default" else f"[route {route.name}] "
        if own.upstream is None and (where or len(settings.routes) == 1):
            raise ConfigError(
                f"{where}upstream",
                None,
                "the URL of the service, as in --upstream http://127.0.0.1:8000",
            )
        if own.max_event_bytes > own.max_stream_bytes:
            raise ConfigError(f"{where}max_event_bytes", own.max_event_bytes, "at most max_stream_bytes")
        if own.mode == "shared" and route.methods and "GET" not in route.methods:
            raise ConfigError(f"{where}mode", "shared", "GET among methods: nothing else is shared")
        if own.mode == "shared" and own.ids == "keep":
            raise ConfigError(f"{where}ids", "keep", "mode = private: a shared stream needs ids of its own")
        if own.max_stream_bytes > settings.max_memory:
            raise ConfigError(f"{where}max_stream_bytes", own.max_stream_bytes, "at most max_memory")
    if settings.admin_listen == settings.listen and settings.listen.port:
        raise ConfigError("admin_listen", str(settings.listen), "another address than listen")
