"""The service under attack, and how to tell that it is well."""

import contextlib
import signal
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.ledger import Ledger
from benchmarks.stack import Answer, App, ask, wait_until

# Within 6 s, and what a busy machine adds.
RECOVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Scene:
    """The service under attack: its processes, its CACHE_DIR, and what was paid for it.

    `is_disk`: CACHE_DIR is a file system of its own.
    """

    app: App
    folder: Path
    ledger: Ledger
    is_disk: bool

    @property
    def index(self) -> Path:
        return self.folder / "index.sqlite3"

    def fault(self) -> str | None:
        """Return what is wrong with the cache, as one worker's /status says."""
        fault: str | None = ask(f"{self.app.url}/status").json["cache"]["fault"]
        return fault

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
    """Return whether every worker has started its threads; before that it would miss a signal."""
    try:
        threads = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in app.workers()]
    except FileNotFoundError:  # it has ended meanwhile
        return False
    return len(threads) == 2 and min(threads) > 1


def draw(scene: Scene, name: str) -> Answer:
    """Ask for a new picture."""
    return ask(scene.app.picture(f"{name}-{time.monotonic_ns()}"))


def wait_until_well(scene: Scene) -> None:
    """Return when /status finds no fault with the cache, whichever worker answers."""
    wait_until(
        lambda: all(scene.fault() is None for _ in range(8)), "a sound cache", RECOVERY_SECONDS
    )


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)
