"""The processes that are measured, on loopback: a backend, and the app under gunicorn.

Every process is ended by its handle, however the block that started it is left.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.scripted import free_port

ROOT = Path(__file__).resolve().parent.parent
KEY = "access-key-of-the-benchmarks"
WORKERS = 2
PATIENCE = 15.0  # seconds in which any process starts or ends


class Unmeasurable(Exception):
    """A figure could not be measured; its text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer, and the seconds from before connecting to its last byte."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def tool(name: str) -> str:
    """Return the path of a program, in sbin too. Raises Unmeasurable."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        raise Unmeasurable(f"{name} is not installed; on Debian: apt-get install nginx wrk openssl")
    return found


def target_of(url: str) -> str:
    """Return the path and query of a URL, as they are written."""
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def ask(
    url: str, body: Any = None, timeout: float = 60.0, headers: Mapping[str, str] | None = None
) -> Answer:
    """GET a URL, or POST `body` as JSON, over a connection of its own. Raises OSError."""
    sent = {"Connection": "close", **(headers or {})}
    data = None
    if body is not None:
        data, sent["Content-Type"] = json.dumps(body), "application/json"
    began = time.perf_counter()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("POST" if data else "GET", target_of(url), data, sent)
        response = connection.getresponse()
        received = response.read()
    return Answer(response.status, response.headers, received, time.perf_counter() - began)


def wait_until(
    condition: Callable[[], bool], what: str, seconds: float = PATIENCE, pause: float = 0.02
) -> None:
    """Return as soon as `condition` holds. Raises Unmeasurable after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Unmeasurable(f"waited {seconds:g} s for {what}")
        time.sleep(pause)


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    """Return when `url` answers with 200. Raises Unmeasurable."""

    def answers() -> bool:
        if process.poll() is not None:
            raise Unmeasurable(f"{process.args!r} ended with status {process.returncode}")
        with contextlib.suppress(OSError):
            return ask(url).status == 200
        return False

    wait_until(answers, f"{process.args!r} to answer", pause=0.002)


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
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running backend."""

    url: str

    def calls(self) -> int:
        """Return how often it was asked to draw."""
        return int(ask(self.url).json["calls"])

    def connections(self) -> int:
        """Return how many connections carried those calls."""
        return int(ask(self.url).json["connections"])


@contextlib.contextmanager
def backend(size: int = 0, delay: float = 0.0, picture: Path | None = None) -> Iterator[Upstream]:
    """Run a backend that draws pictures of `size` bytes, or a given one, after `delay` seconds."""
    command = [sys.executable, "-m", "benchmarks.fake_backend", "--bytes", str(size)]
    command += ["--delay", str(delay)] + (["--picture", str(picture)] if picture else [])
    with running(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield Upstream(process.stdout.readline().strip())


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, that of its finished threads included.

    /proc/PID/stat has it too, in ticks of 10 ms: too coarse for twenty requests. The number of a
    process's CPU clock is Linux's (clock_getcpuclockid(3), which Python does not offer).
    """
    return time.clock_gettime((~pid << 3) | 2)


@dataclass(frozen=True, slots=True)
class App:
    """A gunicorn with the shipped gunicorn.conf.py, and what its processes use."""

    url: str
    process: subprocess.Popen[Any]

    def picture(self, prompt: str, seed: int = 42) -> str:
        """Return the URL of a small picture."""
        return f"{self.url}/prompt/{prompt}?key={KEY}&width=64&height=64&seed={seed}"

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        master = self.process.pid
        children = Path(f"/proc/{master}/task/{master}/children").read_text()
        return [int(pid) for pid in children.split()]

    def pids(self) -> list[int]:
        """Return the process ids of the master and the workers."""
        return [self.process.pid, *self.workers()]

    def memory(self, kind: str = "Pss") -> int:
        """Return the bytes of memory of all processes; Pss counts shared pages once (proc(5))."""
        total = 0
        for pid in self.pids():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
        return total * 1024

    def descriptors(self) -> int:
        """Return how many files all processes have open."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids())

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes that are running."""
        return sum(cpu_seconds(pid) for pid in self.pids())


def clean_environment() -> dict[str, str]:
    """Return what a child needs of this environment: none of the shell's settings get in."""
    names = ("PATH", "HOME", "LANG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT)}


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
    environment = clean_environment() | {
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
    # Started in `folder`, since a .env would be read from the current one.
    with (
        (folder / "gunicorn.log").open("ab") as log,
        running(command, cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):
        app = App(f"http://127.0.0.1:{port}", process)
        wait_for(app.url + ready, process)
        try:
            yield app
        finally:
            # SIGTERM would wait for the drawings in progress.
            process.send_signal(signal.SIGQUIT)
