"""Cheap locks between processes: no lock files, and released when the process exits."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from storage.waiting import ProcessLocks

log = logging.getLogger("prompt_image_proxy.locks")


class Locks(ProcessLocks):
    """A lock for each key: one byte of the file at `path`, which must not be deleted meanwhile.

    See fcntl(2), "Advisory record locking". Where the file system has no locks, each process works
    alone.
    """

    longest_pause = 0.02

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._file: int | None = None
        self._has_complained = False

    def close(self) -> None:
        with self._mutex:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def _take(self, key: str) -> bool:
        # Not the blocking call: it has no time-out, and takes two processes that wait for each
        # other's keys in different threads for a deadlock (EDEADLK).
        try:
            fcntl.lockf(self._open(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except OSError as error:
            # With a file name, it is the error of opening the file.
            if error.errno in (errno.EACCES, errno.EAGAIN) and error.filename is None:
                return False
            if not self._has_complained:
                self._has_complained = True
                why = error.strerror
                log.warning("Locks cannot be used, so each process draws on its own: %s", why)
        return True

    def _release(self, key: str) -> None:
        with contextlib.suppress(OSError):
            fcntl.lockf(self._open(), fcntl.LOCK_UN, 1, _offset(key))

    def _open(self) -> int:
        with self._mutex:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            return self._file


def _offset(key: str) -> int:
    return int(key[:15], 16)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the file at `path` against all other threads and processes, as long as it takes."""
    with path.open("a") as file:
        # On a file system without locks, nobody is kept out.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
