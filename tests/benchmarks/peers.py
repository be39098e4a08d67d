"""The servers that the sidecar is held against: each one process, with as little to do beside streaming as it lets.

Access logs are off, connections are kept alive, nothing is held back in a buffer, and limits are far away.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.processes import free_port, program
from tests.benchmarks.served import Server, served, source

NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log error;
{modules}
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    proxy_read_timeout 1h;
    send_timeout 1h;
    {http}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {locations}
    }}
}}
"""

PROXY = """location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}"""

NCHAN_HTTP = "nchan_shared_memory_size 512M;"
NCHAN_LOCATIONS = """location = /publish {
            nchan_publisher;
            nchan_channel_id $arg_c;
            nchan_message_buffer_length 100000;
            nchan_message_timeout 1h;
        }
        location = /live {
            nchan_subscriber eventsource;
            nchan_channel_id $arg_c;
            nchan_subscriber_first_message newest;
        }
        location = /held {
            nchan_subscriber eventsource;
            nchan_channel_id $arg_c;
            nchan_subscriber_first_message oldest;
        }"""


@contextmanager
def _nginx(name: str, bench: Bench, locations: str, modules: str = "", http: str = "") -> Iterator[Server]:
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "nginx.conf")
        connections = min(bench.file_limit, 65536)
        parts = {"modules": modules, "http": http, "locations": locations}
        file.write_text(NGINX.format(directory=directory, port=port, connections=connections, **parts))
        command = [_found("nginx"), "-p", directory, "-e", f"{directory}/early.log", "-c", str(file)]
        with served(name, command, bench.cores.server, port) as server:
            yield server


@contextmanager
def nginx(bench: Bench) -> Iterator[Server]:
    with (
        source(bench, bench.cores.load) as upstream,
        _nginx("nginx", bench, PROXY.format(upstream=upstream.port)) as server,
    ):
        yield server._replace(feed=upstream.pid)


def nchan(bench: Bench) -> AbstractContextManager[Server]:
    """nginx as a pub/sub server: POST to /publish?c=ID, read /live?c=ID or, from the first message on, /held?c=ID."""
    return _nginx("nchan", bench, NCHAN_LOCATIONS, f"load_module {_nchan_module()};", NCHAN_HTTP)


HAPROXY = """
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    option http-no-delay
    timeout connect 10s
    timeout client 1h
    timeout server 1h
frontend front
    bind 127.0.0.1:{port} backlog 4096
    default_backend back
backend back
    server source 127.0.0.1:{upstream}
"""


@contextmanager
def haproxy(bench: Bench) -> Iterator[Server]:
    port = free_port()
    with source(bench, bench.cores.load) as upstream, tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "haproxy.cfg")
        connections = min(bench.file_limit - 100, 65536) // 2
        file.write_text(HAPROXY.format(port=port, upstream=upstream.port, connections=connections))
        command = [_found("haproxy"), "-db", "-f", str(file)]
        with served("haproxy", command, bench.cores.server, port) as server:
            yield server._replace(feed=upstream.pid)


CADDY = """
{{
    admin off
    auto_https off
    log {{
        level ERROR
    }}
}}
http://127.0.0.1:{port} {{
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:{upstream} {{
        flush_interval -1
    }}
}}
"""


@contextmanager
def caddy(bench: Bench) -> Iterator[Server]:
    port = free_port()
    with source(bench, bench.cores.load) as upstream, tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "Caddyfile")
        file.write_text(CADDY.format(port=port, upstream=upstream.port))
        command = [_found("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
        env = {"GOMAXPROCS": "1"} | dict.fromkeys(["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"], directory)
        with served("caddy", command, bench.cores.server, port, env) as server:
            yield server._replace(feed=upstream.pid)


_VERSIONS = {
    "nginx": (["nginx", "-v"], r"nginx/(\S+)"),
    "haproxy": (["haproxy", "-v"], r"version ([\d.]+)"),
    "caddy": (["caddy", "version"], r"v?(\d\S*)"),
}


def missing(name: str) -> str:
    """Why a server cannot be started; empty where it can."""
    if name in _VERSIONS and program(name) is None:
        return f"{name} is not installed"
    if name == "nchan" and _nchan_module() is None:
        return "nginx with its module nchan is not installed"
    return ""


def versions() -> dict[str, str]:
    """Those of the peers that are installed."""
    return {name: _version(*how) for name, how in _VERSIONS.items() if not missing(name)}


def _version(command: list[str], pattern: str) -> str:
    found = re.search(pattern, _output(_found(command[0]), *command[1:]))
    return found[1] if found else "unknown"


def _found(name: str) -> str:
    path = program(name)
    if path is None:
        raise FileNotFoundError(name)
    return path


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _nchan_module() -> Path | None:
    """The module's file, which nginx looks for where it was built to."""
    if program("nginx") is None:
        return None
    built = _output(_found("nginx"), "-V")
    places = re.findall(r"--modules-path=(\S+)", built) + re.findall(r"--prefix=(\S+)", built)
    files = [Path(place, below, "ngx_nchan_module.so") for place in places for below in (".", "modules")]
    return next((file for file in files if file.exists()), None)
