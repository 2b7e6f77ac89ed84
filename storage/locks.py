"""Locks between processes that cost microseconds, leave no litter and die with their holder.

One byte of one file stands for each key: see fcntl(2), "Advisory record locking". They belong to
the process; threads of one process are to be kept apart beforehand, as SingleFlight does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from upstream.client import Deadline

log = logging.getLogger("prompt_image_proxy.locks")

POLL_SECONDS = 0.02


class LockTimeout(Exception):
    """Another process held the lock until the deadline."""


class Locks:
    """A lock for each key, in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def hold(
        self, key: str, deadline: Deadline, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[None]:
        """Hold `key` (hex) against all other processes. Raises LockTimeout."""
        file, offset = self._open(), int(key[:15], 16)
        while file is not None and not _try_lock(file, offset):
            if deadline.is_over:
                raise LockTimeout
            # Not the blocking call: it knows no time-out, and takes two processes that wait for
            # each other's keys in different threads for a deadlock (EDEADLK).
            sleep(POLL_SECONDS)
        try:
            yield
        finally:
            if file is not None:
                fcntl.lockf(file, fcntl.LOCK_UN, 1, offset)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int | None:
        """Return the open file, or None where none can be: then each process works alone."""
        with self._mutex:
            try:
                if self._file is None or not self._is_in_place(self._file):
                    # An older one stays open: closing it would drop the locks still held in it.
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = os.open(self.path, flags, 0o600)
            except OSError as error:
                log.warning("The file of locks cannot be used: %s", error.strerror)
            return self._file

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file))
        except FileNotFoundError:
            return False


def _try_lock(file: int, offset: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
    except (BlockingIOError, PermissionError):
        return False
    return True
