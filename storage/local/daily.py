"""The daily backup of the index, for when it is damaged; and copies of it in general."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from storage import sql
from storage.local.locks import exclusive
from storage.local.recovery import put_in_place
from storage.local.room import free_bytes
from storage.store import DAY

log = logging.getLogger("prompt_image_proxy.index")


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

    def make(self) -> None:
        """Make the backup if it is due. A failure is logged."""
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            with self._locked():
                if self._is_due() and self._has_room():
                    copy_index(self.index, fresh := self.path.with_name(f"{self.path.name}.new"))
                    put_in_place(fresh, self.path)
        except (sqlite3.Error, OSError) as error:
            log.error("The index could not be backed up: %s", error)

    def delete(self, key: str) -> None:
        """Delete a row, or else the backup, so that a deleted picture never comes back from it."""
        with suppress(OSError):
            if not self.path.parent.exists():
                return
            # One that is being made may have the row yet.
            with self._locked():
                made = self.path.stat()
                try:
                    self._delete(key)
                except sqlite3.Error:
                    self.path.unlink()
                else:
                    os.utime(self.path, ns=(made.st_atime_ns, made.st_mtime_ns))

    def _delete(self, key: str) -> None:
        with closing(sqlite3.connect(_uri(self.path), uri=True, isolation_level=None)) as backup:
            # A power failure costs the backup at most.
            backup.execute("PRAGMA synchronous = OFF")
            backup.execute(sql.DELETE, {"key": key})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with exclusive(self.path.with_name(f"{self.path.name}.lock")):
            yield

    def _is_due(self) -> bool:
        return not self.path.exists() or self.clock() - self.path.stat().st_mtime >= DAY

    def _has_room(self) -> bool:
        files = (self.index, self.index.with_name(f"{self.index.name}-wal"))
        size = sum(file.stat().st_size for file in files if file.exists())
        return free_bytes(os.statvfs(self.index)) >= 2 * size + self.spare_bytes


def copy_index(index: Path, target: Path) -> None:
    """Copy an index that may be in use. Raises sqlite3.Error and OSError."""
    target.unlink(missing_ok=True)
    try:
        with open(target, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            with closing(sqlite3.connect(_uri(index), uri=True, isolation_level=None)) as source:
                source.execute("VACUUM INTO :target", {"target": str(target.absolute())})
            os.fsync(file.fileno())
    except BaseException:
        target.unlink()
        raise


def _uri(path: Path) -> str:
    return f"file:{quote(str(path))}?mode=rw"
