"""The daily backup of the index, which takes the place of an index that is damaged or missing."""

import json
import logging
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from storage import Note, sql
from storage.local.folder import free_bytes
from storage.local.locks import exclusive
from storage.local.schema import connect, create, migrate

log = logging.getLogger("prompt_image_proxy.index")

DAY = 86_400.0
_FOR_YEARS = 1e9
_REMOVE_WITHOUT_FILE = "DELETE FROM entries WHERE file NOT IN (SELECT value FROM json_each(:names))"


@dataclass(frozen=True, slots=True)
class Damage(Note):
    """The index was damaged, and lies in the folder as `aside`, which holds the time."""

    kind: ClassVar[str] = "damage"
    key: ClassVar[str] = "index"
    aside: str

    def __str__(self) -> str:
        return f"the index was damaged; delete {self.aside} when nothing is missing"


@dataclass
class DailyBackup:
    """A copy of the index, made anew by one process once it is a day old.

    Only where the folder has room for two copies of the index and `spare_bytes`.
    """

    index: Path
    spare_bytes: int = 0
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.path = self.index.parent / "backup" / self.index.name
        self._lock = self.path.with_name(f"{self.index.name}.lock")

    def make(self) -> None:
        """Make the backup if it is due. A failure is logged."""
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            with exclusive(self._lock):
                is_due = not self.path.exists() or self.clock() - self.path.stat().st_mtime >= DAY
                if is_due and self._has_room():
                    self._copy_index()
        except (sqlite3.Error, OSError) as error:
            log.error("The index could not be backed up: %s", error)

    def delete(self, key: str) -> None:
        """Delete a row, or else the backup, so that a deleted picture never comes back from it."""
        # One that is being made may have the row yet.
        with suppress(OSError), exclusive(self._lock):
            made = self.path.stat()
            try:
                with closing(connect(self.path)) as backup:
                    # Without a file for its journal, which could spoil the next backup: a
                    # crash costs this one at most.
                    backup.execute("PRAGMA journal_mode = MEMORY")
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
        try:
            made = self._make_fresh(fresh)
            if was_damaged:
                values = {"kind": damage.kind, "key": damage.key, "ttl": _FOR_YEARS}
                values |= {"value": json.dumps(damage.to_json()), "now": time.time()}
                with closing(connect(fresh)) as connection:
                    connection.execute(sql.REMEMBER, values)
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

    def _has_room(self) -> bool:
        files = (self.index, self.index.with_name(f"{self.index.name}-wal"))
        size = sum(file.stat().st_size for file in files if file.exists())
        return free_bytes(os.statvfs(self.index)) >= 2 * size + self.spare_bytes

    def _copy_index(self) -> None:
        fresh = self.path.with_name(f"{self.path.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        try:
            with closing(connect(self.index)) as index:
                index.execute("VACUUM INTO :target", {"target": str(fresh.absolute())})
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.replace(self.path)
        finally:
            fresh.unlink(missing_ok=True)

    def _make_fresh(self, fresh: Path) -> str | None:
        """Make a copy of the backup, of the present version and without rows whose file is lost.

        Return when the backup was made. Without one that can be used, make an empty database.
        """
        try:
            made = self.path.stat().st_mtime
            shutil.copyfile(self.path, fresh)
            with closing(connect(fresh)) as connection:
                [(verdict,)] = connection.execute("PRAGMA quick_check(1)")
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                migrate(connection)
                names = json.dumps(os.listdir(fresh.parent))
                connection.execute(_REMOVE_WITHOUT_FILE, {"names": names})
            return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(made))
        except FileNotFoundError:
            pass
        except sqlite3.DatabaseError as error:
            log.error("The backup of the index is damaged, too: %s", error)
        fresh.write_bytes(b"")
        with closing(connect(fresh)) as connection:
            create(connection)
        return None

    def _put_aside(self, name: str) -> None:
        # The database first: once it is moved, no process can pair its WAL with the new one.
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                self.index.with_name(self.index.name + suffix).rename(
                    self.index.with_name(name + suffix)
                )
        self.index.with_name(f"{self.index.name}-shm").unlink(missing_ok=True)
