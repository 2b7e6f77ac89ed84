"""A folder of copies that holds what was used recently."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from storage.local.folder import PICTURE, Folder

# What is left when room is made.
_TARGET = 0.9
# A process lists the folder again after writing this share of the room: others write as well.
_SHARE = 1 / 16
# A hit within this time of the one before writes nothing.
_USE_SECONDS = 60.0


class Recent(Folder):
    """Files of about `max_bytes` in all; 0 means no limit. The least recently used go first.

    When a file was used is its modification time, to the minute. Any process may delete any file at
    any time.
    """

    def __init__(
        self, directory: Path, max_bytes: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(directory, clock)
        self.max_bytes = max_bytes
        # How many bytes this process may write before it lists the folder again.
        self._room = 0.0

    def open(self, name: str, size: int | None = None) -> FileIO:
        file, now = super().open(name, size), self._clock()
        with contextlib.suppress(OSError):  # a read-only folder
            if now - os.fstat(file.fileno()).st_mtime >= _USE_SECONDS:
                os.utime(file.fileno(), (now, now))
        return file

    def write(self, name: str, data: bytes, created: float) -> None:
        super().write(name, data, created)
        self._room -= len(data)
        if self.max_bytes and self._room < 0:
            self._make_room()

    def _make_room(self) -> None:
        found = self.scan(PICTURE)
        files = sorted((status.st_mtime, status.st_size, entry.name) for entry, status in found)
        total = sum(size for _, size, _ in files)
        target = self.max_bytes * _TARGET if total > self.max_bytes else total
        for _, size, name in files:
            if total <= target:
                break
            self.delete(name)
            total -= size
        self._room = (self.max_bytes - total) * _SHARE
