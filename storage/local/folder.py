"""Pictures as files of one flat folder."""

import errno
import logging
import os
import pwd
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from metrics import OFF, Metrics
from storage import NoRoom
from storage.gate import LastingFault
from storage.store import STALE_SECONDS, Stored, Task

log = logging.getLogger("prompt_image_proxy.cache")

# Room for each drawing under way; few pictures are larger.
DRAWING_BYTES = 4 * 2**20
# After a write that failed like this, the next one would fail as well.
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@dataclass
class Room:
    """The room in a folder, of which a picture may need `picture_bytes`. Thread-safe.

    After a failed write, nothing can be reserved until `try_again` succeeds.
    """

    directory: Path
    picture_bytes: int
    _failure: OSError | None = field(default=None, init=False)
    _drawings: int = field(default=0, init=False)
    _mutex: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._fault = LastingFault(log, "New pictures", "stored")

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Raise NoRoom unless a picture could be written, while in the block."""
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
        with suppress(NoRoom), self._mutex:
            self._check()
        return self._fault.reason

    def has_failed(self, error: OSError) -> None:
        """Note that a write failed, if others would fail as well."""
        if error.errno in _LASTING:
            self._failure = error

    def try_again(self) -> None:
        """Write a trial file, if a write has failed. Raises NoRoom, which the log says."""
        with self._mutex:
            if self._failure:
                with suppress(OSError), tempfile.TemporaryFile(dir=self.directory) as trial:
                    os.posix_fallocate(trial.fileno(), 0, self.picture_bytes)
                    self._failure = None
            self._check()

    def _check(self) -> None:
        try:
            if self._failure:
                raise self._failure.with_traceback(None)
            self._measure()
        except OSError as error:
            reason = str(error.strerror)
            self._fault.begin(reason)
            raise NoRoom(reason) from error
        self._fault.end()

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


def _sync(directory: Path) -> None:
    """Make the names in a folder durable, where its file system can."""
    with suppress(OSError):
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def free_bytes(found: os.statvfs_result) -> float:
    """Return how much the user of this process may write, if the file system knows."""
    return found.f_bavail * found.f_frsize if found.f_blocks else float("inf")


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


_NAME = r"[0-9a-f]{64}-[0-9a-f]{16}\.(png|jpg|webp|gif)"
PICTURE = re.compile(_NAME)
_TEMPORARY = re.compile(_NAME + r".*\.tmp")
# What follows the name of a picture in that of its thumbnail.
THUMBNAIL = ".thumbnail"
_THUMBNAIL = re.compile(_NAME + re.escape(THUMBNAIL))


@dataclass
class Folder:
    """The store of a single machine. A picture may have `picture_bytes`."""

    is_shared = False

    directory: Path
    clock: Callable[[], float] = time.time
    picture_bytes: int = 1
    metrics: Metrics = OFF

    def __post_init__(self) -> None:
        self.room = Room(self.directory, self.picture_bytes)

    @property
    def fault(self) -> str | None:
        return self.room.fault

    def reserve(self) -> AbstractContextManager[None]:
        return self.room.reserve()

    def check(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes, created: float) -> None:
        temporary = self.directory / f"{name}.{secrets.token_hex(4)}.tmp"
        try:
            with self.metrics.store_call("write"):
                self.check()
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    os.utime(file.fileno(), (int(created), int(created)))
                temporary.rename(self.directory / name)
                _sync(self.directory)
        except OSError as error:
            self.room.has_failed(error)
            raise
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def open(self, name: str, size: int | None = None) -> FileIO:
        with self.metrics.store_call("open"):
            file = FileIO(f"{self.directory}/{name}")
            if size in (None, os.fstat(file.fileno()).st_size):
                return file
            file.close()
            raise FileNotFoundError(errno.ENOENT, "no such file of that size")

    def delete(self, name: str) -> None:
        with self.metrics.store_call("delete"):
            for path in (self.directory / name, self.directory / f"{name}{THUMBNAIL}"):
                path.unlink(missing_ok=True)

    def names(self) -> Iterator[Stored]:
        for entry, found in self.scan(PICTURE):
            yield Stored(entry.name, found.st_size, found.st_mtime)

    def sweep(self) -> None:
        cutoff = self.clock() - STALE_SECONDS
        for entry, found in self.scan(_TEMPORARY):
            if found.st_ctime < cutoff:
                self.delete(entry.name)
        for entry, _ in self.scan(_THUMBNAIL):
            if not (self.directory / entry.name.removesuffix(THUMBNAIL)).exists():
                self.delete(entry.name)

    def tasks(self) -> tuple[Task, ...]:
        return (Task(self.room.try_again, 5),)

    def scan(self, wanted: re.Pattern[str]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        """Yield the regular files that are named as wanted; none if there is no folder."""
        with suppress(FileNotFoundError), os.scandir(self.directory) as listing:
            for entry in listing:
                if wanted.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    # A file may be deleted while the folder is read.
                    with suppress(FileNotFoundError):
                        yield entry, entry.stat(follow_symlinks=False)


def owner_fault(directory: Path) -> str | None:
    """Return what is wrong if files made in a folder would belong to another user than it does.

    A folder of root's that others may write is shared on purpose, as volumes of Kubernetes are.
    """
    try:
        owner = directory.stat().st_uid
        with tempfile.TemporaryFile(dir=directory) as trial:
            mine = os.fstat(trial.fileno()).st_uid
    except OSError:  # no folder yet, or one in which nothing can be created
        return None
    if owner in (mine, 0):
        return None
    user = _user(owner)
    return (
        f"{str(directory)!r} belongs to {user}, and files of this process would belong to"
        f" {_user(mine)}, so that {user} could not write them; run it as {user}"
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
