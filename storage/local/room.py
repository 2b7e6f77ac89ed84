"""Whether a folder has room for the pictures that are being drawn."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.lasting_fault import LastingFault

log = logging.getLogger("prompt_image_proxy.cache")

# Room for each drawing under way; few pictures are larger.
DRAWING_BYTES = 4 * 2**20
# After a write that failed like this, the next one would fail as well.
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_TRIAL_SECONDS = 5.0


class Room:
    """The room in a folder, of which a picture may need `picture_bytes`. Thread-safe."""

    def __init__(
        self,
        directory: Path,
        picture_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.picture_bytes = picture_bytes
        self._monotonic = monotonic
        self._fault = LastingFault(
            log, "New pictures cannot be stored: %s", "New pictures can be stored again", monotonic
        )
        self._failure: tuple[int, str] | None = None
        self._next_trial = 0.0
        self._drawings = 0
        self._mutex = threading.Lock()

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Raise OSError unless a picture could be written, while in the block."""
        with self._mutex:
            self._check()
            self._drawings += 1
        try:
            yield
        finally:
            with self._mutex:
                self._drawings -= 1

    @property
    def fault(self) -> str | None:
        """Why no picture could be written now, None if one could."""
        with suppress(OSError), self._mutex:
            self._check()
        return self._fault.reason

    def has_failed(self, error: OSError) -> None:
        """Note that a write failed. If others would fail as well, trials come before the next."""
        if error.errno in _LASTING:
            self._next_trial = self._monotonic() + _TRIAL_SECONDS
            self._failure = error.errno, str(error.strerror)

    def _check(self) -> None:
        try:
            self._try_again()
            self._measure()
        except OSError as error:
            self._fault.begin(str(error.strerror))
            raise
        self._fault.end()

    def _try_again(self) -> None:
        """Raise the last failure, unless it is time for a trial and that succeeds."""
        if self._failure is None:
            return
        if self._monotonic() < self._next_trial:
            raise OSError(*self._failure)
        try:
            with tempfile.TemporaryFile(dir=self.directory) as trial:
                os.posix_fallocate(trial.fileno(), 0, self.picture_bytes)
        except OSError as error:
            self.has_failed(error)
            raise
        self._failure = None

    def _measure(self) -> None:
        try:
            found = os.statvfs(self.directory)
        except FileNotFoundError:
            self.directory.mkdir(parents=True, exist_ok=True)
            found = os.statvfs(self.directory)
        if found.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        needed = self.picture_bytes + self._drawings * DRAWING_BYTES
        if (free := free_bytes(found)) < needed:
            raise OSError(errno.ENOSPC, f"{_mib(free)} free, {_mib(needed)} needed")


def free_bytes(found: os.statvfs_result) -> float:
    """Return how much the user of this process may write, if the file system knows."""
    return found.f_bavail * found.f_frsize if found.f_blocks else float("inf")


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
