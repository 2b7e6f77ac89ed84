"""What is done to the index of pictures while the service uses it."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import cycle
from pathlib import Path

from benchmarks.soak.scene import Scene, pause, wait_until_well
from benchmarks.stack import Unmeasurable, wait_until
from storage.local.backup import DailyBackup
from storage.local.locks import exclusive

# Less than the 30 s for which a statement waits for the write lock.
LOCK_SECONDS = 7.0
PAGE = 4096


def hold_write_lock(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.index, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        pause(LOCK_SECONDS)
        unwritten = scene.pictures()
    # At once, and what a busy machine adds.
    wait_until(lambda: not scene.unindexed(unwritten), "the rows of pictures drawn meanwhile", 4)


def put_back_older_index(scene: Scene) -> None:
    """Restore a backup of the index in which the latest pictures are missing."""
    backup = scene.folder / "older.sqlite3"
    with closing(sqlite3.connect(scene.index)) as index, closing(sqlite3.connect(backup)) as copy:
        index.backup(copy)
    pause(2.0)
    replace_index(scene.index, backup)
    adopted = scene.pictures()
    wait_until(lambda: not scene.unindexed(adopted), "pictures to be adopted", 30)


def replace_index(index: Path, backup: Path) -> None:
    newer = index.with_name("newer.sqlite3")
    # Without this lock, the service would put its own backup in the place of a missing index.
    with exclusive(index.with_name(f"{index.name}.lock")):
        index.rename(newer)
        for suffix in ("-wal", "-shm"):
            index.with_name(index.name + suffix).unlink(missing_ok=True)
        backup.rename(index)
    newer.unlink()


def damage_index(scene: Scene) -> None:
    """Damage the index some time after its daily backup."""
    daily = DailyBackup(scene.index)
    daily.path.unlink(missing_ok=True)
    daily.make()
    pause(2.0)
    damage = next(DAMAGES)
    for _ in range(5):
        with closing(sqlite3.connect(scene.index)) as connection, suppress(sqlite3.DatabaseError):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(scene.index)
        pause(2.0)
        if damaged(scene):
            break
        # Of a page that was written meanwhile, the WAL had a copy, and a checkpoint mended it.
    wait_until(lambda: damaged(scene) != set(), "the damaged index to be put aside", 15)
    adopted = scene.pictures()
    wait_until(lambda: not scene.unindexed(adopted), "pictures to be adopted", 30)
    wait_until(lambda: "was damaged" in str(scene.fault()), "/status to tell of the damage", 15)
    log = scene.ledger.log.read_text(errors="replace")
    for path in damaged(scene):
        name = path.name.removesuffix("-wal")
        if f"The index was damaged, and is now {name}; in its place is the backup" not in log:
            raise Unmeasurable(f"the log says nothing of {name}, or no backup took its place")
        path.unlink()
    wait_until_well(scene)


def damaged(scene: Scene) -> set[Path]:
    return set(scene.folder.glob("index.sqlite3.damaged-*"))


def overwrite(index: Path, begin: int, end: int) -> None:
    with index.open("r+b", buffering=0) as file:
        file.seek(begin)
        file.write(os.urandom(end - begin))


# Ways to damage the index, used in turn.
DAMAGES: Iterator[Callable[[Path], object]] = cycle(
    [
        lambda index: overwrite(index, PAGE, index.stat().st_size),
        lambda index: overwrite(index, 0, PAGE),
        lambda index: os.truncate(index, PAGE + 100),
    ]
)
