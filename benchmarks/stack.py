"""What is measured, as real processes on loopback: backend, gunicorn, nginx, and wrk before them.

Every process is ended by its handle, however the block that started it is left.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
KEY = "access-key-of-the-benchmarks"
WORKERS = 2
PATIENCE = 15.0  # seconds in which anything starts or ends

# As in Debian's own, with the static site that nginx is compared with.
AROUND = """
{user}
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    access_log {folder}/static-access.log;
    gzip on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/conf.d/*.conf;
    server {{
        listen 127.0.0.1:{static_port};
        root {folder}/static;
    }}
}}
"""


class Unmeasurable(Exception):
    """A figure could not be measured; its text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer, and the seconds it took from before connecting to its last byte."""

    status: int
    body: bytes
    seconds: float


def tool(name: str) -> str:
    """Return where a program is, in sbin too. Raises Unmeasurable."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        raise Unmeasurable(f"{name} is not installed; on Debian: apt-get install nginx wrk")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, body: Any = None, timeout: float = 60.0) -> Answer:
    """GET a URL, or POST `body` as JSON, over a connection of its own."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    sent = None if body is None else json.dumps(body)
    headers = {"Connection": "close"} | ({"Content-Type": "application/json"} if sent else {})
    began = time.perf_counter()
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("POST" if sent else "GET", target, sent, headers)
        response = connection.getresponse()
        data = response.read()
    return Answer(response.status, data, time.perf_counter() - began)


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    """Return when `url` answers with 200. Raises Unmeasurable."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if ask(url).status == 200:
                return
        time.sleep(0.002)
    raise Unmeasurable(f"{process.args!r} did not answer")


@contextlib.contextmanager
def running(command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program for the length of the block, out of reach of the terminal's Ctrl-C."""
    process = subprocess.Popen(command, start_new_session=True, **more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


@contextlib.contextmanager
def backend(size: int, delay: float = 0.0) -> Iterator[str]:
    """Run a backend that draws pictures of `size` bytes after `delay` seconds; yield its URL."""
    command = [sys.executable, "-m", "benchmarks.backend", "--bytes", str(size)]
    command += ["--delay", str(delay)]
    with running(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().rpartition(" ")[2].strip()


@dataclass(frozen=True, slots=True)
class App:
    """A gunicorn, under the shipped gunicorn.conf.py."""

    url: str
    process: subprocess.Popen[Any]

    def picture(self, prompt: str, seed: int = 42) -> str:
        """Return the URL of a small picture."""
        return f"{self.url}/prompt/{prompt}?key={KEY}&width=64&height=64&seed={seed}"

    def pids(self) -> list[int]:
        """Return the process ids of master and workers."""
        master = self.process.pid
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return [master, *map(int, children)]


@contextlib.contextmanager
def gunicorn(
    folder: Path,
    backend_url: str = "http://127.0.0.1:9",
    wsgi_app: str | None = None,
    ready: str = "/robots.txt",
    **settings: str,
) -> Iterator[App]:
    """Run the app, or another `wsgi_app`, with its pictures in `folder`, until it answers."""
    port = free_port()
    # Nothing of this shell's settings gets in, and no .env: it would be read from the folder.
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
    }
    environment |= {
        "PYTHONPATH": str(ROOT),
        "BACKEND_API_URLS": backend_url,
        "PROXY_ACCESS_KEY": KEY,
        "POLLINATIONS_ENABLED": "false",
        "CACHE_DIR": str(folder / "pictures"),
        "WORKERS": str(WORKERS),
        "PORT": str(port),
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")]
    command += [wsgi_app] if wsgi_app else []
    with (
        (folder / "gunicorn.log").open("ab") as log,
        running(command, cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):
        app = App(f"http://127.0.0.1:{port}", process)
        wait_for(app.url + ready, process)
        try:
            yield app
        finally:
            # At once, where SIGTERM would let running drawings finish.
            process.send_signal(signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Nginx:
    """The shipped configuration at `url`, and beside it `folder`/static at `static_url`."""

    url: str
    static_url: str
    folder: Path

    def publish(self, name: str, data: bytes) -> str:
        """Put a file into the static site; return its URL."""
        (self.folder / "static" / name).write_bytes(data)
        return f"{self.static_url}/{name}"


@contextlib.contextmanager
def nginx(folder: Path, app: App) -> Iterator[Nginx]:
    """Run nginx with the shipped configuration before `app`, and a static site beside it."""
    port, static_port = free_port(), free_port()
    for name in ("conf.d", "static"):
        (folder / name).mkdir(parents=True)
    shipped = replaced(
        (ROOT / "deploy" / "nginx.conf").read_text("utf-8"),
        {
            "\n    listen 80;": f"\n    listen 127.0.0.1:{port};",
            "server 127.0.0.1:8080;": f"server {urlsplit(app.url).netloc};",
            "proxy_cache_path /var/cache/prompt-image-proxy ": f"proxy_cache_path {folder}/cache ",
            "\n    access_log /var/log/nginx/": f"\n    access_log {folder}/",
            "\n    error_log /var/log/nginx/": f"\n    error_log {folder}/",
            # The limit still counts, and lets one client through that asks like a thousand.
            "rate=30r/s": "rate=1000000r/s",
            "burst=300": "burst=1000000",
        },
    )
    (folder / "conf.d" / "prompt-image-proxy.conf").write_text(shipped, "utf-8")
    user = "user root;" if os.geteuid() == 0 else ""
    around = AROUND.format(user=user, folder=folder, static_port=static_port)
    (folder / "nginx.conf").write_text(around, "utf-8")
    command = [tool("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, stderr=subprocess.DEVNULL) as process:
        made = Nginx(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{static_port}", folder)
        wait_for(f"{made.url}/robots.txt", process)
        yield made


def replaced(text: str, pairs: Mapping[str, str]) -> str:
    """Put values for keys, each of which has to stand in `text` exactly once."""
    for old, new in pairs.items():
        if text.count(old) != 1:
            raise Unmeasurable(f"deploy/nginx.conf has {text.count(old)} of {old!r}")
        text = text.replace(old, new)
    return text


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw: requests a second, and milliseconds."""

    rate: float
    p50: float
    p99: float
    longest: float


def wrk(url: str, seconds: int, connections: int) -> Load:
    """Ask for `url` again and again. Raises Unmeasurable where any request failed."""
    script = str(ROOT / "benchmarks" / "wrk.lua")
    command = [tool("wrk"), "-t2", f"-c{connections}", f"-d{seconds}s", "-s", script, url]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said, _ = process.communicate(timeout=seconds + PATIENCE)
    _, marked, result = said.partition("RESULT ")
    if not marked:
        raise Unmeasurable(f"wrk said: {said}")
    found = json.loads(result)
    if found["bad"] or not found["requests"]:
        raise Unmeasurable(f"{found['bad']} of {found['requests']} requests failed")
    return Load(
        found["requests"] / (found["microseconds"] / 1e6),
        *(found[name] / 1000 for name in ("p50", "p99", "max")),
    )
