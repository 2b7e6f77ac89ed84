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


class Recent(Folder):
    """Files of about `max_bytes` in all; 0 means no limit. The least recently used go first.

    When a file was used is its modification time, which each process writes down from time to
    time: a hit writes nothing. Any process may delete any file at any time.
    """

    def __init__(
        self, directory: Path, max_bytes: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(directory, clock)
        self.max_bytes = max_bytes
        self._used: dict[str, float] = {}
        # How many bytes this process may write before it lists the folder again.
        self._room = 0.0

    def open(self, name: str, size: int | None = None) -> FileIO:
        file = super().open(name, size)
        self._used[name] = self._clock()
        return file

    def write(self, name: str, data: bytes, created: float) -> None:
        super().write(name, data, created)
        self._room -= len(data)
        if self.max_bytes and self._room < 0:
            self.flush()
            self._make_room()

    def flush(self) -> None:
        """Write down when files were used since the last time."""
        used, self._used = self._used, {}
        # Copied, because a thread may still be writing to the old dict.
        for name, moment in used.copy().items():
            with contextlib.suppress(OSError):  # gone
                os.utime(self.directory / name, (moment, moment))

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
