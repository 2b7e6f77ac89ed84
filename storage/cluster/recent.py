"""A folder of copies that holds what was used recently."""

from __future__ import annotations

import contextlib
import os
import threading
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

    When a file was used is its access time, which each process writes down from time to time: a
    hit writes nothing. Any file can go at any moment, also by the hand of another process.
    """

    def __init__(
        self, directory: Path, max_bytes: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(directory, clock)
        self.max_bytes = max_bytes
        self._used: dict[str, float] = {}
        # How many bytes this process may write before it lists the folder again.
        self._room = 0.0
        self._making_room = threading.Lock()

    def open(self, name: str, size: int | None = None) -> FileIO:
        file = super().open(name, size)
        self._used[name] = self._clock()
        return file

    def write(self, name: str, data: bytes, created: float) -> None:
        super().write(name, data, created)
        self.count(len(data))

    def count(self, size: int) -> None:
        """Count a new file, and make room if that is needed."""
        self._room -= size
        if self.max_bytes and self._room < 0 and self._making_room.acquire(blocking=False):
            with contextlib.ExitStack() as stack:
                stack.callback(self._making_room.release)
                self.flush()
                self._make_room()

    def flush(self) -> None:
        """Write down when files were used since the last time."""
        used, self._used = self._used, {}
        # A copy: a thread that has fetched the old dict may still be about to write to it.
        for name, moment in used.copy().items():
            path = self.directory / name
            with contextlib.suppress(OSError):  # gone
                os.utime(path, ns=(int(moment * 10**9), path.stat().st_mtime_ns))

    def _make_room(self) -> None:
        found = [
            (status.st_atime, status.st_size, entry.name) for entry, status in self.scan(PICTURE)
        ]
        total = sum(size for _, size, _ in found)
        if total > self.max_bytes:
            for _, size, name in sorted(found):
                if total <= self.max_bytes * _TARGET:
                    break
                self.delete(name)
                total -= size
        self._room = (self.max_bytes - total) * _SHARE
