"""Attacks on a running service: nothing is lost, nothing is paid twice, nobody is kept waiting."""

from __future__ import annotations

import resource
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .conftest import Gunicorn, InProcess
from .servers import ScriptedServer, wait_until

Start = Callable[..., Gunicorn]
Serve = Callable[..., InProcess]
MakeServer = Callable[[], ScriptedServer]

HIT = "PromptImageProxy; hit"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Hold the index's write lock, as a backup does."""
    with closing(sqlite3.connect(folder / "index.sqlite3", isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        yield


def reload(service: Gunicorn) -> None:
    before = set(service.workers())
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(service.workers()) == 2 and not before & set(service.workers()))


# --- places and descriptors


def test_crowd_beyond_the_descriptors_ends_no_worker(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    service = gunicorn(backend, DRAWINGS="8")
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (128, 128))
    reload(service)
    workers, address = service.workers(), urlsplit(service.url)
    at_rest = max(map(open_files, workers))
    with ExitStack() as stack:
        for _ in range(400):
            client = stack.enter_context(closing(socket.socket()))
            client.setblocking(False)
            client.connect_ex((str(address.hostname), address.port))
        counts = [at_rest]

        def all_are_accepted() -> bool:
            counts.append(max(map(open_files, workers)))
            return counts[-1] >= at_rest + 16 and len(set(counts[-5:])) == 1

        wait_until(all_are_accepted)
    assert service.picture("x").status == 200
    assert service.workers() == workers
    assert "LimitNOFILE" in service.said()


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
