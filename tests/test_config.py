"""Settings and routes: which source wins, what is refused and with which words, and which route a request is on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_sidecar import config
from sse_sidecar.config import Address, Route, Settings, StreamSettings, Upstream, load
from sse_sidecar.errors import ConfigError

URL = "http://127.0.0.1:8000"
FLAGS = {"upstream": URL}
SETTINGS = {item.name: item for item in config.declared()}

Written = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a file of settings."""

    def writing(text: str) -> Path:
        path = tmp_path / "sse-sidecar.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return writing


def refused(*args: Any, **kwargs: Any) -> tuple[str, object, str]:
    """The key, the value and the expectation of the error with which settings are refused."""
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    error = caught.value
    assert f"{error.key} = {error.value!r}: expected {error.expected}" == str(error)
    return error.key, error.value, error.expected


def taken(parse: Callable[[Any], Any], value: object) -> object:
    """What a parser makes of a value; its expectation where it takes none."""
    try:
        return parse(value)
    except ValueError as error:
        return f"expected {error}"


# Sources


def test_the_defaults_are_those_that_are_documented() -> None:
    found = load(FLAGS)
    assert ((Upstream("127.0.0.1", 8000),), Address("127.0.0.1", 8080)) == (found.upstream, found.listen)
    assert Address("127.0.0.1", 9464) == found.admin_listen
    assert (10, 30, 30, 3600) == (found.heartbeat, found.stall_timeout, found.linger, found.history_ttl)
    assert (512 << 20, 64 << 20, 16 << 20) == (found.max_memory, found.max_stream_bytes, found.max_event_bytes)
    assert (10_000, 20_000, 100_000) == (found.max_streams, found.max_readers, found.max_stream_events)
    assert (10, 300, 60, 600) == (
        found.connect_timeout,
        found.response_timeout,
        found.reconnect_timeout,
        found.finish_timeout,
    )
    assert (10, 10, 0) == (found.slow_reader_timeout, found.drain_timeout, found.drain_delay)
    assert ("memory", "text", "info", ()) == (found.store, found.log_format, found.log_level, found.trust_forwarded)
    assert ("auto", "auto", "auto") == (found.on_disconnect, found.dialect, found.host_header)
    assert ("private", None, "live", "own") == (found.mode, found.key_headers, found.join, found.ids)
    assert ("auto", "wait", 1000, 0) == (found.reconnect, found.on_stall, found.max_unread, found.max_connection_age)
    assert ("/.well-known/sse-sidecar", ()) == (found.control_path, found.control_origins)
    assert (
        "data: [DONE]",
        "event: message_stop",
        "event: response.completed",
        "event: response.failed",
        "event: response.incomplete",
    ) == found.completion_marks
    assert ((), ()) == (found.bind_cookies, found.volatile_query)
    assert ("authorization", "x-api-key", "api-key", "x-goog-api-key", "mcp-session-id") == found.bind


def test_flags_win_over_the_environment_which_wins_over_the_file(written: Written) -> None:
    file = written("heartbeat = 1\nlinger = 1\nhistory_ttl = 1\n")
    environ = {"SSE_SIDECAR_LINGER": "2", "SSE_SIDECAR_HISTORY_TTL": "2"}
    found = load(FLAGS | {"history_ttl": "3"}, environ, file)
    assert (1.0, 2.0, 3.0) == (found.heartbeat, found.linger, found.history_ttl)


def test_a_flag_that_was_not_given_wins_over_nothing() -> None:
    assert 2.0 == load(FLAGS | {"linger": None}, {"SSE_SIDECAR_LINGER": "2"}).linger


def test_a_value_may_be_turned_back_to_its_default(written: Written) -> None:
    assert load(FLAGS, {"SSE_SIDECAR_ADMIN_LISTEN": ""}, written('admin_listen = ":1"')).admin_listen is None


def test_the_environment_may_name_the_file(written: Written) -> None:
    file = written(f'upstream = "{URL}"\nheartbeat = 7\n')
    assert 7.0 == load({}, {"SSE_SIDECAR_CONFIG": str(file)}).heartbeat


def test_a_file_that_is_named_to_the_command_wins_over_that_of_the_environment(written: Written) -> None:
    file = written("heartbeat = 7\n")
    assert 7.0 == load(FLAGS, {"SSE_SIDECAR_CONFIG": "/nowhere.toml"}, file).heartbeat


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_given_in_the_environment_and_the_file(name: str, written: Written) -> None:
    text = {
        "upstream": "http://localhost:81",
        "listen": "127.0.0.1:81",
        "admin_listen": "127.0.0.1:82",
        "mode": "shared",
        "join": "start",
        "ids": "keep",
        "reconnect": "never",
        "on_stall": "reconnect",
        "completion_marks": "data: END, event: bye",
        "control_path": "/sidecar",
        "control_origins": "https://a.example, http://localhost:3000",
        "dialect": "line",
        "on_disconnect": "finish",
        "log_format": "json",
        "log_level": "debug",
        "store": "memory",
        "trust_forwarded": "10.0.0.0/8, fd00::/8",
        "strip_prefix": "/api",
        "authorize": "/me",
        "upstream_ca": __file__,
        "upstream_certificate": __file__,
        "upstream_key": __file__,
        "upstream_verify": "false",
        "tls_certificate": __file__,
        "tls_key": __file__,
        "access_log": "true",
        "max_memory": "2GiB",
        "max_stream_bytes": "33MiB",
        "max_event_bytes": "3MiB",
        "host_header": "app.example",
        "bind": "x-a, x-b",
        "bind_cookies": "a, b",
        "volatile_query": "t, u",
    }.get(name, "17")
    expected = SETTINGS[name].metadata["parse"](text)
    assert (expected == SETTINGS[name].default) == (name == "store")  # of which there is only one yet
    flags = {} if name == "upstream" else FLAGS
    assert expected == getattr(load(flags, {f"SSE_SIDECAR_{name.upper()}": text}), name)
    assert expected == getattr(load(flags, file=written(f'{name} = "{text}"')), name)


def test_other_variables_of_the_environment_are_none_of_ours() -> None:
    assert load(FLAGS) == load(FLAGS, {"HOME": "/", "SSE_SIDECARS": "1", "sse_sidecar_linger": "x", "LINGER": "x"})


def service_links(prefix: str) -> dict[str, str]:
    """What Kubernetes puts into every pod of a namespace for one Service in it."""
    return {
        f"{prefix}_SERVICE_HOST": "10.96.0.10",
        f"{prefix}_SERVICE_PORT": "8080",
        f"{prefix}_SERVICE_PORT_HTTP": "8080",
        f"{prefix}_SERVICE_PORT_ADMIN_UI": "9464",
        f"{prefix}_PORT": "tcp://10.96.0.10:8080",
        f"{prefix}_PORT_8080_TCP": "tcp://10.96.0.10:8080",
        f"{prefix}_PORT_8080_TCP_PROTO": "tcp",
        f"{prefix}_PORT_8080_TCP_PORT": "8080",
        f"{prefix}_PORT_8080_TCP_ADDR": "10.96.0.10",
    }


def test_the_variables_of_a_kubernetes_service_of_our_name_are_ignored() -> None:
    assert load(FLAGS) == load(FLAGS, service_links("SSE_SIDECAR"))


@pytest.mark.parametrize("service", ["SSE_SIDECAR_ADMIN", "SSE_SIDECAR_2"])
def test_the_variables_of_a_kubernetes_service_beside_it_are_ignored(service: str) -> None:
    assert load(FLAGS) == load(FLAGS, service_links(service))


# What is refused


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_value_in_the_file_is_named_with_its_key(name: str, written: Written) -> None:
    expected = str(taken(SETTINGS[name].metadata["parse"], {})).removeprefix("expected ")
    assert (name, {}, expected) == refused(FLAGS, file=written(f"{name} = {{}}"))


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("bind_cookies", "volatile_query")])
def test_a_bad_value_in_the_environment_or_a_flag_is_named_as_it_is_written_there(name: str) -> None:
    expected = str(taken(SETTINGS[name].metadata["parse"], "\0")).removeprefix("expected ")
    variable, flag = "SSE_SIDECAR_" + name.upper(), "--" + name.replace("_", "-")
    assert (variable, "\0", expected) == refused(FLAGS, {variable: "\0"})
    assert (flag, "\0", expected) == refused(FLAGS | {name: "\0"})


def test_a_bad_value_is_refused_even_where_another_source_wins(written: Written) -> None:
    assert ("linger", "soon", "a number of seconds, 0 or more") == refused(
        FLAGS | {"linger": "5"}, file=written('linger = "soon"')
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("heartbeats", "a setting that exists; did you mean heartbeat?"),
        ("max-memory", "a setting that exists; did you mean max_memory?"),
        ("on_disconect", "a setting that exists; did you mean on_disconnect?"),
        ("zzz", "a setting that exists"),
        ("routes", "a setting that exists"),
        ("config", "a setting that exists"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(key: str, expected: str, written: Written) -> None:
    found = refused(FLAGS, file=written(f'"{key}" = 1'))
    assert (key, 1) == found[:2]
    assert found[2].startswith(expected)


def test_an_unknown_variable_or_flag_is_refused_too() -> None:
    key, value, expected = refused(FLAGS, {"SSE_SIDECAR_HEARTBEET": "1"})
    assert ("SSE_SIDECAR_HEARTBEET", "1") == (key, value)
    assert "did you mean" in expected
    assert "heartbeat" in expected.lower()
    assert ("--heart-beat", "1") == refused(FLAGS | {"heart_beat": "1"})[:2]


def test_a_setting_of_all_streams_cannot_be_set_for_a_route(written: Written) -> None:
    key, value, _ = refused(FLAGS, file=written('[[route]]\nlisten = ":80"'))
    assert ("route[0].listen", ":80") == (key, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heartbeat =", "a TOML file"),
        ("heartbeat = 1\nheartbeat = 2", "a TOML file"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(text: str, expected: str, written: Written) -> None:
    file = written(text)
    key, value, found = refused(FLAGS, file=file)
    assert ("config", str(file)) == (key, value)
    assert found.startswith(expected)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff")
    assert refused(FLAGS, file=file)[2].startswith("a TOML file")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    key, value, expected = refused(FLAGS, file=tmp_path / name)
    assert ("config", str(tmp_path / name)) == (key, value)
    assert expected.startswith("a file that can be read")


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ("route = 1", "route", 1, "tables written as [[route]]"),
        ("[route]\npath = '/a'", "route", {"path": "/a"}, "tables written as [[route]]"),
        ("route = [1]", "route", [1], "tables written as [[route]]"),
        ("[[route]]\npath = 1", "route[0].path", 1, "a text that is not empty"),
        ("[[route]]\npath = ''", "route[0].path", "", "a text that is not empty"),
        ("[[route]]\nhost = []", "route[0].host", [], "a text that is not empty"),
        ("[[route]]\nname = 1", "route[0].name", 1, "a text that is not empty"),
        ("[[route]]\nmethods = 1", "route[0].methods", 1, "a list of names"),
        ("[[route]]\nmethods = [1]", "route[0].methods", [1], "a list of names"),
        ("[[route]]\n[[route]]\nlinger = -1", "route[1].linger", -1, "a number of seconds, 0 or more"),
        ("[[route]]\npaths = 'x'", "route[0].paths", "x", "a setting that exists"),
    ],
)
def test_a_bad_route_is_named_by_its_place(text: str, key: str, value: object, expected: str, written: Written) -> None:
    assert (key, value, expected) == refused(FLAGS, file=written(text))


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ("max_event_bytes = '65MiB'", "max_event_bytes", 65 << 20, "at most max_stream_bytes"),
        ("max_stream_bytes = '513MiB'", "max_stream_bytes", 513 << 20, "at most max_memory"),
        ("max_memory = '63MiB'", "max_stream_bytes", 64 << 20, "at most max_memory"),
        ("listen = '127.0.0.1:9464'", "admin_listen", "127.0.0.1:9464", "another address than listen"),
        (
            "[[route]]\nname = 'big'\nmax_event_bytes = '65MiB'",
            "[route big] max_event_bytes",
            65 << 20,
            "at most max_stream_bytes",
        ),
        (
            "[[route]]\npath = '/a'\nmax_stream_bytes = '1GiB'",
            "[route /a] max_stream_bytes",
            1 << 30,
            "at most max_memory",
        ),
        (
            "[[route]]\nname = 'feed'\nmode = 'shared'\nmethods = ['POST']",
            "[route feed] mode",
            "shared",
            "GET among methods: nothing else is shared",
        ),
        (
            "mode = 'shared'\nids = 'keep'",
            "ids",
            "keep",
            "mode = private: a shared stream needs ids of its own",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    text: str, key: str, value: object, expected: str, written: Written
) -> None:
    assert (key, value, expected) == refused(FLAGS, file=written(text))


def test_both_ports_may_be_left_to_the_system() -> None:
    found = load(FLAGS | {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"})
    assert found.listen == found.admin_listen


def test_there_is_no_sidecar_without_an_upstream() -> None:
    assert ("upstream", None, "the URL of the service, as in --upstream http://127.0.0.1:8000") == refused()


# Values, each as a table of what is taken and what is not


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://localhost:8000", Upstream("localhost", 8000)),
        ("http://LOCALHOST", Upstream("localhost", 80)),
        ("http://localhost/", Upstream("localhost", 80)),
        ("https://api.example", Upstream("api.example", 443, tls=True)),
        ("https://api.example:8443", Upstream("api.example", 8443, tls=True)),
        ("http://[::1]:8000", Upstream("::1", 8000)),
        ("unix:///run/app.sock", Upstream("localhost", 80, socket="/run/app.sock")),
    ],
)
def test_an_upstream_is_a_host_and_a_port_or_a_socket(value: str, expected: Upstream) -> None:
    assert expected == config.upstream_url(value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "localhost:8000",
        "//localhost",
        "ftp://localhost",
        "http://",
        "http://:80",
        "http://localhost:x",
        "http://localhost:65536",
        "http://[::1",
        "http://user:secret@localhost",
        "unix://",
        "unix://host/run/app.sock",
        1,
        True,
        None,
        [],
    ],
)
def test_what_is_no_upstream_is_refused(value: object) -> None:
    expected = "expected http://HOST[:PORT], https://HOST[:PORT] or unix:///PATH"
    assert expected == taken(config.upstream_url, value)


@pytest.mark.parametrize("rest", ["/api", "/api/", "/?a=b", "?a=b", "#top"])
def test_an_upstream_has_no_path(rest: str) -> None:
    assert str(taken(config.upstream_url, URL + rest)).endswith(", without a path: a request's own path is used")


@pytest.mark.parametrize("value", ["http://localhost:0", "http://a b", "unix:///a?b", "unix:///a#b"])
def test_an_upstream_that_would_fail_later_or_be_another_is_refused(value: str) -> None:
    assert str(taken(config.upstream_url, value)).startswith("expected ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://localhost", "localhost"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://localhost:443", "localhost:443"),
        ("https://api.example", "api.example"),
        ("https://api.example:80", "api.example:80"),
        ("http://[::1]", "[::1]"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("unix:///run/app.sock", "localhost"),
    ],
)
def test_an_upstream_has_a_host_header_of_its_own(value: str, expected: str) -> None:
    assert expected == config.upstream_url(value).authority


@pytest.mark.parametrize(
    ("value", "expected", "written_out"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080), "127.0.0.1:8080"),
        ("localhost:0", Address("localhost", 0), "localhost:0"),
        (":8080", Address("0.0.0.0", 8080), "0.0.0.0:8080"),
        ("[::]:8080", Address("::", 8080), "[::]:8080"),
        ("[::1]:65535", Address("::1", 65535), "[::1]:65535"),
    ],
)
def test_an_address_is_a_host_and_a_port(value: str, expected: Address, written_out: str) -> None:
    assert expected == config.listen_address(value)
    assert expected == config.optional_address(value)
    assert written_out == str(expected)


@pytest.mark.parametrize(
    "value",
    ["8080", 8080, "localhost", "localhost:", "localhost:http", "localhost:-1", "localhost:65536", "[::]", None, True],
)
def test_what_is_no_address_is_refused(value: object) -> None:
    expected = "expected HOST:PORT, as in 127.0.0.1:8080 or [::]:8080"
    assert expected == taken(config.listen_address, value)
    assert expected == taken(config.optional_address, value)


@pytest.mark.parametrize("value", ["http://127.0.0.1:8080", "a b:8080"])
def test_an_address_that_could_only_fail_later_is_refused(value: str) -> None:
    assert "expected HOST:PORT, as in 127.0.0.1:8080 or [::]:8080" == taken(config.listen_address, value)


def test_only_the_admin_port_may_be_nowhere() -> None:
    assert config.optional_address("") is None
    assert str(taken(config.listen_address, "")).startswith("expected ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ("1", 1),
        (1 << 40, 1 << 40),
        ("100 b", 100),
        ("1KiB", 1024),
        ("1kib", 1024),
        ("1 KB", 1000),
        ("512MiB", 512 << 20),
        ("1.5MiB", 3 << 19),
        ("2GB", 2 * 10**9),
        ("2GiB", 2 << 30),
        (2.0, 2),
    ],
)
def test_a_size_is_in_bytes_or_has_a_unit(value: object, expected: int) -> None:
    assert expected == config.size(value)


@pytest.mark.parametrize(
    "value",
    [0, "0", "0MiB", -1, "-1", "", "MiB", "1TiB", "1 M", "1e3", "1MiB ", ".5MiB", "1,5MiB", "1_000", True, None, []],
)
def test_what_is_no_size_is_refused(value: object) -> None:
    assert "expected a size above 0, as in 512MiB or a number of bytes" == taken(config.size, value)


@pytest.mark.parametrize("value", [0.5, "0.5", "0.0001KiB", "9" * 400], ids=lambda value: str(value)[:9])
def test_a_size_that_comes_to_nothing_or_beyond_all_bounds_is_refused(value: object) -> None:
    assert "expected a size above 0, as in 512MiB or a number of bytes" == taken(config.size, value)


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), ("0", 0.0), (1.5, 1.5), ("1.5", 1.5), ("1e3", 1000.0)])
def test_seconds_are_a_number(value: object, expected: float) -> None:
    assert expected == config.seconds(value)


@pytest.mark.parametrize("value", [-1, "-0.1", "nan", "inf", float("inf"), "", "5s", True, None, [], {}])
def test_what_are_no_seconds_is_refused(value: object) -> None:
    assert "expected a number of seconds, 0 or more" == taken(config.seconds, value)
    assert "expected a number of seconds above 0" == taken(config.positive_seconds, value)


def test_a_timeout_of_no_seconds_is_refused() -> None:
    assert "expected a number of seconds above 0" == taken(config.positive_seconds, 0)
    assert 0.1 == config.positive_seconds("0.1")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), ("20", 20), (3.0, 3)],
)
def test_a_count_is_a_whole_number(value: object, expected: int) -> None:
    assert expected == config.count(value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1.5", "x", "inf", True, None])
def test_what_is_no_count_is_refused(value: object) -> None:
    assert "expected a whole number of 1 or more" == taken(config.count, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        ("true", True),
        ("TRUE", True),
        ("1", True),
        (False, False),
        ("false", False),
        ("0", False),
    ],
)
def test_a_switch_is_true_or_false(value: object, expected: bool) -> None:
    assert expected == config.boolean(value)


@pytest.mark.parametrize("value", ["", "yes", "on", 2, None, []])
def test_what_is_no_switch_is_refused(value: object) -> None:
    assert "expected true or false" == taken(config.boolean, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ()),
        ("a", ("a",)),
        (" a, b ,,", ("a", "b")),
        ([], ()),
        (["a", "b"], ("a", "b")),
    ],
)
def test_names_are_a_list_or_set_apart_by_commas(value: object, expected: tuple[str, ...]) -> None:
    assert expected == config.names(value)


@pytest.mark.parametrize("value", [1, True, None, [1], {"a": 1}])
def test_what_are_no_names_is_refused(value: object) -> None:
    assert "expected a list of names" == taken(config.names, value)


def test_header_names_are_in_lower_case_and_could_be_sent() -> None:
    assert ("x-api-key", "authorization") == config.header_names("X-Api-Key, Authorization")
    for value in ("x y", "x:", "é", "a\nb"):
        assert "expected a list of header names" == taken(config.header_names, value)


def test_headers_that_keep_streams_apart_may_be_none_at_all() -> None:
    assert () == load(FLAGS, {"SSE_SIDECAR_KEY_HEADERS": ""}).key_headers
    assert ("cookie",) == load(FLAGS, {"SSE_SIDECAR_KEY_HEADERS": "Cookie"}).key_headers


def test_completion_marks_are_lines_of_fields() -> None:
    assert ("data: [DONE]", "event:end") == config.marks(["data: [DONE]", " event:end "])
    for value in ("[DONE]", ["data: [DONE]", "end"]):
        assert 'expected a list of lines, as in "data: [DONE]"' == taken(config.marks, value)


@pytest.mark.parametrize("value", ["", "/a", "/.well-known/sse-sidecar", "/a/b~c_d-e.f"])
def test_the_sidecars_own_paths_are_below_one_or_nowhere(value: str) -> None:
    assert value == config.control_prefix(value)


@pytest.mark.parametrize("value", ["/", "a", "/a/", "/a?b", "/a b", "/é", "http://a/b", 1, None, []])
def test_what_is_no_place_for_the_sidecars_own_paths_is_refused(value: object) -> None:
    expected = 'expected a path that begins with / and does not end with it, or "" for none'
    assert expected == taken(config.control_prefix, value)


def test_origins_are_those_that_a_browser_sends() -> None:
    assert ("https://a.example", "http://localhost:3000") == config.origins("https://a.example, http://localhost:3000")
    for value in (
        "*",
        "a.example",
        "https://a.example/",
        "https://a.example/b",
        "https://u@a.example",
        "null",
        "ftp://a",
    ):
        assert "expected a list of origins, as in https://example.com" == taken(config.origins, value)


@pytest.mark.parametrize("value", ["auto", "client", "upstream", "app.example", "app.example:8080", "[::1]:80"])
def test_a_host_header_is_one_of_three_words_or_a_name(value: str) -> None:
    assert value == config.host_choice(value)


@pytest.mark.parametrize("value", ["", "a b", "a/b", "a\r\nX: 1", "é", 1, None])
def test_what_is_no_host_header_is_refused(value: object) -> None:
    assert "expected auto, client, upstream, or a host name" == taken(config.host_choice, value)


values = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.from_regex(r"[\w.:/\[\]-]{0,12}"),
        st.from_regex(r"\d+(\.\d*)? ?([kmgKMG]i?[bB])?"),
        st.dates(),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SETTINGS)), values)
@example("linger", 10**400)
@example("max_streams", 10**400)
@example("max_memory", "9" * 400)
@example("upstream", "http://[::1")
@example("listen", dt.time(1, 2))
def test_any_value_of_toml_can_be_used_or_is_refused_with_an_expectation(name: str, value: Any) -> None:
    assert "expected " != taken(SETTINGS[name].metadata["parse"], value)


# Routes


def on(asked: str = "/", *, at: str = "app.example", method: str = "GET", **conditions: Any) -> bool:
    """Whether a request is on a route with these conditions."""
    return Route(name="it", settings=StreamSettings(), **conditions).matches(at, asked, method)


def test_a_route_without_conditions_is_for_every_request() -> None:
    assert on()
    assert on("/a/b", at="", method="POST")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/a", "/a", True),
        ("/a", "/a/", False),
        ("/a", "/ab", False),
        ("/a", "/A", False),
        ("/a", "/x/a", False),
        ("/a/*", "/a/", True),
        ("/a/*", "/a/b/c", True),
        ("/a/*", "/a", False),
        ("/a*", "/a", True),
        ("*/events", "/a/b/events", True),
        ("/*/events", "/a/events", True),
        ("/*/events", "/events", False),
        ("/a?b", "/a?b", True),
        ("/a?b", "/axb", False),
        ("/[ab]", "/[ab]", True),
        ("/[ab]", "/a", False),
        ("/[!a]", "/[!a]", True),
        ("/[!a]", "/b", False),
        ("/[*]", "/[x]", True),
        ("/[*]", "/x", False),
        ("/a.b", "/axb", False),
        ("/a]", "/a]", True),
        ("/a\\b", "/a\\b", True),
        ("/a*", "/a\nb", True),
    ],
)
def test_only_a_star_is_more_than_itself_in_a_path(pattern: str, path: str, expected: bool) -> None:
    assert expected == on(path, path=pattern)


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("app.example", "app.example", True),
        ("App.Example", "app.example", True),
        ("app.example", "a.app.example", False),
        ("*.example", "app.example", True),
        ("*.example", "example", False),
        ("[::1]", "[::1]", True),
        ("*", "", True),
    ],
)
def test_a_host_is_matched_like_a_path_in_any_case(pattern: str, host: str, expected: bool) -> None:
    assert expected == on(at=host, host=pattern)


def test_a_route_may_be_for_some_methods() -> None:
    assert on(method="POST", methods=("GET", "POST"))
    assert not on(method="PUT", methods=("GET", "POST"))


def test_all_conditions_of_a_route_must_hold() -> None:
    conditions: dict[str, Any] = {"host": "app.example", "path": "/a", "methods": ("GET",)}
    assert on("/a", **conditions)
    assert not on("/b", **conditions)
    assert not on("/a", at="b.example", **conditions)
    assert not on("/a", method="POST", **conditions)


ROUTES = """
linger = 5

[[route]]
name = "chat"
path = "/v1/chat/*"
methods = ["post", "Get"]
linger = 1
upstream = "https://api.example"

[[route]]
path = "/v1/*"
heartbeat = "2"

[[route]]
host = "feed.example"
bind = ["X-User"]
"""


@pytest.fixture
def routed(written: Written) -> Settings:
    return load(FLAGS, file=written(ROUTES))


@pytest.mark.parametrize(
    ("host", "path", "method", "expected"),
    [
        ("app.example", "/v1/chat/completions", "POST", "chat"),
        ("app.example", "/v1/chat/completions", "GET", "chat"),
        ("app.example", "/v1/chat/completions", "PUT", "/v1/*"),
        ("feed.example", "/v1/models", "GET", "/v1/*"),
        ("feed.example", "/", "GET", "*"),
        ("app.example", "/", "GET", "default"),
    ],
)
def test_the_first_route_that_matches_is_taken(
    routed: Settings, host: str, path: str, method: str, expected: str
) -> None:
    assert expected == routed.route(host, path, method).name


def test_a_route_overrides_what_it_sets_and_takes_the_rest_from_all(routed: Settings) -> None:
    chat, models, feed, default = routed.routes
    assert [1.0, 5.0, 5.0, 5.0] == [route.settings.linger for route in routed.routes]
    assert [10.0, 2.0, 10.0, 10.0] == [route.settings.heartbeat for route in routed.routes]
    assert (Upstream("api.example", 443, tls=True),) == chat.settings.upstream
    assert (Upstream("127.0.0.1", 8000),) == models.settings.upstream
    assert ("x-user",) == feed.settings.bind
    assert StreamSettings().bind == default.settings.bind


def test_what_the_environment_and_flags_set_holds_for_routes_that_do_not_set_it(written: Written) -> None:
    file = written("linger = 1\n[[route]]\npath = '/a'\n[[route]]\npath = '/b'\nlinger = 4")
    assert [2.0, 4.0, 2.0] == [it.settings.linger for it in load(FLAGS, {"SSE_SIDECAR_LINGER": "2"}, file).routes]
    assert [3.0, 4.0, 3.0] == [it.settings.linger for it in load(FLAGS | {"linger": "3"}, file=file).routes]


def test_the_routes_of_a_caller_come_before_those_of_the_file(written: Written) -> None:
    file = written("[[route]]\nname = 'file'\npath = '/a'")
    found = load(FLAGS, file=file, tables=[{"name": "caller", "path": "/a", "linger": 0}])
    assert ["caller", "file", "default"] == [route.name for route in found.routes]
    assert 0.0 == found.route("", "/a", "GET").settings.linger


def test_without_routes_there_is_one_for_everything() -> None:
    [only] = load(FLAGS | {"linger": "7"}).routes
    assert ("default", 7.0, (Upstream("127.0.0.1", 8000),)) == (only.name, only.settings.linger, only.settings.upstream)
