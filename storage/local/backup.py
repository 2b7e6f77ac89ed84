"""The daily backup of the index, which takes the place of an index that is damaged or missing."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from storage import Note, sql
from storage.local.folder import free_bytes
from storage.local.locks import exclusive
from storage.local.schema import create, is_current, migrate
from storage.sql import decode_text
from storage.store import DAY

log = logging.getLogger("prompt_image_proxy.index")

_FOR_YEARS = 1e9


@dataclass(frozen=True, slots=True)
class Damage(Note):
    """The index was damaged, and lies in the folder as `aside`, which holds the time."""

    kind: ClassVar[str] = "damage"
    key: ClassVar[str] = "index"
    aside: str

    def __str__(self) -> str:
        return f"the index was damaged; delete {self.aside} when nothing is missing"


class DailyBackup:
    """A copy of the index at `path`, made anew by one process once it is a day old.

    Only where the folder has room for two copies of the index and `spare_bytes`.
    """

    def __init__(
        self, index: Path, spare_bytes: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self.index = index
        self.path = index.parent / "backup" / index.name
        self.spare_bytes = spare_bytes
        self.clock = clock
        self._lock = self.path.with_name(f"{index.name}.lock")

    def make(self) -> None:
        """Make the backup if it is due. A failure is logged."""
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            with exclusive(self._lock):
                if self._is_due() and self._has_room():
                    self._copy_index()
        except (sqlite3.Error, OSError) as error:
            log.error("The index could not be backed up: %s", error)

    def delete(self, key: str) -> None:
        """Delete a row, or else the backup, so that a deleted picture never comes back from it."""
        with suppress(OSError):
            if not self.path.parent.exists():
                return
            # One that is being made may have the row yet.
            with exclusive(self._lock):
                made = self.path.stat()
                try:
                    with _opened(self.path) as backup:
                        # Without a file for its journal, which could spoil the next backup: a
                        # crash costs this one at most.
                        backup.execute("PRAGMA journal_mode = MEMORY")
                        backup.execute("PRAGMA synchronous = OFF")
                        backup.execute(sql.DELETE, {"key": key})
                except sqlite3.Error:
                    self.path.unlink()
                else:
                    os.utime(self.path, ns=(made.st_atime_ns, made.st_mtime_ns))

    def restore(self) -> None:
        """Put the backup, or an empty database, in the place of the index.

        Whatever is there is moved aside, under a name of its own and with its WAL. The caller
        keeps other processes out. Raises IncompatibleSchema if a newer version wrote the backup,
        and sqlite3.Error and OSError.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        damage = Damage(f"{self.index.name}.damaged-{stamp}-{secrets.token_hex(2)}")
        fresh, was_damaged = self.index.with_name(f"{self.index.name}.new"), self.index.exists()
        fresh.unlink(missing_ok=True)
        try:
            made = self._copy_backup(fresh)
            fresh.touch()
            with _opened(fresh) as connection:
                if made is None:
                    connection.execute("BEGIN")
                    create(connection)
                    connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")
                if was_damaged:
                    _remember(connection, damage)
            self._put_aside(damage.aside)
            fresh.replace(self.index)
        finally:
            fresh.unlink(missing_ok=True)
        source = f"the backup of {made}" if made else "an empty one: prompts are lost"
        if was_damaged:
            log.error(
                "The index was damaged, and is now %s; in its place is %s", damage.aside, source
            )
        elif made:
            log.error("The index was missing; in its place is %s", source)

    def _is_due(self) -> bool:
        return not self.path.exists() or self.clock() - self.path.stat().st_mtime >= DAY

    def _has_room(self) -> bool:
        files = (self.index, self.index.with_name(f"{self.index.name}-wal"))
        size = sum(file.stat().st_size for file in files if file.exists())
        return free_bytes(os.statvfs(self.index)) >= 2 * size + self.spare_bytes

    def _copy_index(self) -> None:
        fresh = self.path.with_name(f"{self.path.name}.new")
        fresh.unlink(missing_ok=True)
        try:
            with open(fresh, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                with _opened(self.index) as index:
                    index.execute("VACUUM INTO :target", {"target": str(fresh.absolute())})
                os.fsync(file.fileno())
            fresh.replace(self.path)
        finally:
            fresh.unlink(missing_ok=True)

    def _copy_backup(self, fresh: Path) -> str | None:
        """Copy the backup, migrate it and remove rows without files; return when it was made."""
        try:
            made = self.path.stat().st_mtime
            shutil.copyfile(self.path, fresh)
            with _opened(fresh) as connection:
                [(verdict,)] = connection.execute("PRAGMA quick_check(1)")
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                if not is_current(connection):
                    migrate(connection)
                _remove_rows_without_files(connection, set(os.listdir(fresh.parent)))
        except FileNotFoundError:
            return None
        except sqlite3.DatabaseError as error:
            log.error("The backup of the index is damaged, too: %s", error)
            fresh.unlink(missing_ok=True)
            return None
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(made))

    def _put_aside(self, name: str) -> None:
        # The database first: once it is moved, no process can pair its WAL with the new one.
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                self.index.with_name(self.index.name + suffix).rename(
                    self.index.with_name(name + suffix)
                )
        self.index.with_name(f"{self.index.name}-shm").unlink(missing_ok=True)


def _remove_rows_without_files(connection: sqlite3.Connection, names: set[str]) -> None:
    rows = connection.execute("SELECT key, file FROM entries WHERE file IS NOT NULL").fetchall()
    connection.execute("BEGIN")
    connection.executemany(sql.DELETE, [{"key": key} for key, file in rows if file not in names])
    connection.execute("COMMIT")


def _remember(connection: sqlite3.Connection, damage: Damage) -> None:
    values = {"kind": damage.kind, "key": damage.key, "value": json.dumps(damage.to_json())}
    connection.execute(sql.REMEMBER, values | {"now": time.time(), "ttl": _FOR_YEARS})


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(path))}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.text_factory = decode_text
        yield connection
