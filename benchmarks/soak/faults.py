"""What is done to the service while clients use it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from itertools import cycle
from math import log2
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.soak.ledger import Ledger
from benchmarks.soak.vendors import UNUSABLE, picture_of
from benchmarks.stack import KEY, App, Unmeasurable, ask, target_of, wait_until
from picture import ImageRequest

# Longer than the 5 s for which a statement waits for the write lock.
LOCK_SECONDS = 7.0
FULL_SECONDS = 3.0
CROWD_SECONDS = 3.0
CROWD = 800
# Less than a picture, and than a page of the index.
LARGEST_FILE = 2000
REPETITIONS = 200
BACKENDS = 8
# From when a backend answers to when the picture is in the index; a kill in between loses it.
IN_FLIGHT_SECONDS = 0.5


@dataclass(frozen=True)
class Scene:
    """The service under attack: its processes, its CACHE_DIR, and what was paid for it."""

    app: App
    folder: Path
    ledger: Ledger

    @property
    def index(self) -> Path:
        return self.folder / "index.sqlite3"

    def pictures(self) -> set[str]:
        """Return the names of the picture files."""
        return {path.name for path in self.folder.glob("*-*.png")}

    def indexed(self) -> set[str]:
        """Return the names of the files that the index knows."""
        with closing(sqlite3.connect(f"file:{self.index}?mode=ro", uri=True)) as connection:
            return {row[0] for row in connection.execute("SELECT file FROM entries")}

    def unindexed(self, names: set[str]) -> set[str]:
        """Return which of these files still exist and are missing from the index."""
        with contextlib.suppress(sqlite3.Error):
            return (names - self.indexed()) & self.pictures()
        return names


def reload(scene: Scene) -> None:
    before = set(scene.app.workers())
    scene.app.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: not before & set(scene.app.workers()) and is_ready(scene.app), "new workers", 60
    )


def is_ready(app: App) -> bool:
    """Whether every worker has started its own threads; before that it would miss a signal."""
    try:
        threads = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in app.workers()]
    except FileNotFoundError:  # it has ended meanwhile
        return False
    return len(threads) == 2 and min(threads) > 1


def kill_worker(scene: Scene) -> None:
    with scene.ledger.danger(may_lose=True):
        pause(IN_FLIGHT_SECONDS)
        victim = scene.app.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: victim not in scene.app.workers() and is_ready(scene.app), "a new worker", 60
        )
        pause(IN_FLIGHT_SECONDS)


def hold_write_lock(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.index, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        pause(LOCK_SECONDS)
        unwritten = scene.pictures()
    # Within 2 s, and what a busy machine adds.
    wait_until(lambda: not scene.unindexed(unwritten), "the rows of pictures drawn meanwhile", 4)


def put_back_older_index(scene: Scene) -> None:
    """Restore a backup of the index in which the latest pictures are missing."""
    backup = scene.folder.with_name("backup.sqlite3")
    with closing(sqlite3.connect(scene.index)) as index, closing(sqlite3.connect(backup)) as copy:
        index.backup(copy)
    pause(2.0)
    # Workers notice another index within a second.
    with scene.ledger.danger(may_lose=False):
        replace_index(scene.index, backup)
        pause(1.5)
    adopted = scene.pictures()
    wait_until(lambda: not scene.unindexed(adopted), "pictures to be adopted", 30)


def replace_index(index: Path, backup: Path) -> None:
    index.rename(index.with_name("older.sqlite3"))
    for suffix in ("-wal", "-shm"):
        index.with_name(index.name + suffix).unlink(missing_ok=True)
    backup.rename(index)
    index.with_name("older.sqlite3").unlink()


def restore_pictures(scene: Scene) -> None:
    """Put pictures with old times beside an index that does not know them, and start anew."""
    number = time.monotonic_ns()
    prompts = [f"restored {number} {count}" for count in range(5)]
    for prompt in prompts:
        path = scene.folder / f"{ImageRequest(prompt, 64, 64).key}-{number:016x}.png"
        path.write_bytes(picture_of(prompt))
        os.utime(path, (1e9, 1e9))
    reload(scene)
    for prompt in prompts:
        if ask(scene.app.picture(prompt.replace(" ", "%20"))).body != picture_of(prompt):
            raise Unmeasurable("a restored picture was not served")
        if scene.ledger.calls[prompt]:
            raise Unmeasurable("a restored picture was paid again")


def fill_disk(scene: Scene) -> None:
    """Let no file grow: what a full disk does, without the right to mount one."""
    with scene.ledger.danger(may_lose=False):
        with ExitStack() as stack:
            for pid in scene.app.workers():
                before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (LARGEST_FILE, before[1]))
                stack.callback(resource.prlimit, pid, resource.RLIMIT_FSIZE, before)
            pause(FULL_SECONDS)
            kept = [prompt for prompt in scene.ledger.kept() if "deleted" not in prompt]
            paid = {ImageRequest(prompt, 64, 64).key for prompt in kept}
        wait_until(lambda: paid <= keys_of(scene.pictures()), "pictures kept in memory", 15)
        pause(2.0)  # until those that were deleted meanwhile are saved or dropped, too


def keys_of(names: set[str]) -> set[str]:
    return {name.partition("-")[0] for name in names}


def crowd(scene: Scene) -> None:
    """Open more connections than there are descriptors, and keep them."""
    before = scene.app.workers()
    parts = urlsplit(scene.app.url)
    with ExitStack() as stack:
        for _ in range(CROWD):
            client = stack.enter_context(closing(socket.socket()))
            client.setblocking(False)
            client.connect_ex((str(parts.hostname), parts.port))
            with contextlib.suppress(OSError):
                client.send(b"GET /robots.txt HTTP/1.1\r\nHost: crowd\r\n\r\n")
        pause(CROWD_SECONDS)
    if scene.app.workers() != before:
        raise Unmeasurable("a worker died of too many connections")


def repeat_url(scene: Scene) -> None:
    """Send one signed URL again and again whose drawing ends without a picture."""
    prompt, began = f"{UNUSABLE} {time.monotonic_ns()}", time.monotonic()
    body = {"description": prompt, "width": 64, "height": 64}
    bearer = {"Authorization": f"Bearer {KEY}"}
    signed = ask(f"{scene.app.url}/sign", body, headers=bearer).json["url"]
    url = scene.app.url + target_of(signed)
    with ThreadPoolExecutor(20) as pool:
        statuses = Counter(pool.map(lambda _: ask(url).status, range(REPETITIONS)))
    if not set(statuses) <= {502, 503, 504}:
        raise Unmeasurable(f"an unusable picture was answered with {dict(statuses)}")
    # Remembered for 2, 4, 8 … seconds; each round asks every backend once.
    rounds = 1 + int(log2((time.monotonic() - began) / 2 + 1))
    if (calls := scene.ledger.calls[prompt]) > rounds * BACKENDS:
        raise Unmeasurable(f"{REPETITIONS} requests for one URL were {calls} calls")


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


# To add a fault: a function that does it, and returns when the service should be well again.
FAULTS: list[Callable[[Scene], None]] = [
    reload,
    repeat_url,
    kill_worker,
    crowd,
    fill_disk,
    put_back_older_index,
    restore_pictures,
    hold_write_lock,
]


class Saboteur:
    """Commits one fault after the other, in a thread; `committed` counts them by name."""

    def __init__(self, scene: Scene, pause: float) -> None:
        self.scene = scene
        self.pause = pause  # seconds before each fault
        self.committed: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        faults = cycle(FAULTS)
        while not self._stop.wait(self.pause):
            fault = next(faults)
            try:
                fault(self.scene)
            except (Unmeasurable, OSError, HTTPException, sqlite3.Error) as reason:
                self.failures.append(f"not recovered from {fault.__name__}: {reason}")
            self.committed[fault.__name__.replace("_", " ")] += 1
