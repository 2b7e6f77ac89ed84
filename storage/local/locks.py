"""Cheap locks between processes: no lock files, and released when the process exits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from storage import LockTimeout
from storage.key_locks import KeyLocks

log = logging.getLogger("prompt_image_proxy.locks")

POLL_SECONDS = 0.02


class Locks:
    """A lock for each key: one byte of the file at `path`.

    See fcntl(2), "Advisory record locking". Those locks belong to the process; its threads are
    kept apart by locks of their own. Where the file system has no locks, each process works
    alone.
    """

    def __init__(self, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self.path = path
        self._sleep = sleep
        self._files: list[int] = []
        self._threads = KeyLocks()
        self._mutex = threading.Lock()
        self._has_complained = False

    @contextlib.contextmanager
    def hold(self, key: str, seconds: float) -> Iterator[None]:
        """Hold the lock of `key` (hex digits). Raises LockTimeout after `seconds`."""
        end = time.monotonic() + seconds
        with self._threads.hold(key, seconds):
            file, offset = self._open(), int(key[:15], 16)
            if file is None:
                yield
                return
            self._acquire(file, offset, end)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    fcntl.lockf(file, fcntl.LOCK_UN, 1, offset)

    def close(self) -> None:
        with self._mutex:
            while self._files:
                os.close(self._files.pop())

    def _acquire(self, file: int, offset: int, end: float) -> None:
        # Not the blocking call: it has no time-out, and takes two processes that wait for each
        # other's keys in different threads for a deadlock (EDEADLK).
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    self._complain(error)
                    return
            if time.monotonic() >= end:
                raise LockTimeout
            self._sleep(POLL_SECONDS)

    def _open(self) -> int | None:
        """Return the open file, or None where it cannot be opened."""
        with self._mutex:
            try:
                if not self._files or not self._is_in_place(self._files[-1]):
                    # An older one stays open: closing it would drop the locks held in it.
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._files.append(os.open(self.path, flags, 0o600))
            except OSError as error:
                self._complain(error)
            return self._files[-1] if self._files else None

    def _is_in_place(self, file: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(self.path.stat(), os.fstat(file))
        return False

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            why = error.strerror
            log.warning("Locks cannot be used, so each process draws on its own: %s", why)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the file at `path` against all other threads and processes, as long as it takes."""
    with path.open("a") as file:
        # On a file system without locks, nobody is kept out.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
