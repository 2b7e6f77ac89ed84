"""Pictures in a bucket that machines share, with copies in a folder of this machine."""

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from io import FileIO
from itertools import islice
from pathlib import Path

from images.formats import media_type_of
from metrics import OFF, Metrics
from storage import LockTimeout, NoRoom
from storage.cluster.objects import READ_SECONDS, Objects
from storage.local.folder import PICTURE, Folder
from storage.store import STALE_SECONDS, Stored, Task
from storage.upkeep import BATCH
from storage.waiting import NoPlace, Places, SingleFlight

# What is left when room is made.
_TARGET = 0.9
# A process lists the folder again after writing this share of the room: others write as well.
_SHARE = 1 / 16


@dataclass
class Recent(Folder):
    """Files of about `max_bytes` in all; 0 means no limit. The least recently used go first.

    When a file was used is its modification time. Any process may delete any file at any time.
    """

    max_bytes: int = 0
    # How many bytes this process may write before it lists the folder again.
    _room: float = field(default=0.0, init=False)

    def open(self, name: str, size: int | None = None) -> FileIO:
        file, now = super().open(name, size), self.clock()
        with suppress(OSError):  # a read-only folder
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


@dataclass
class Copies:
    """The store of several machines.

    `directory` holds copies, up to about `max_bytes`: what this machine drew or served lately.
    `files` is that of the state. A request that fetches a picture takes one of the `places`.
    """

    is_shared = True

    objects: Objects
    directory: Path
    files: Callable[[Sequence[str]], Mapping[str, str | None]]
    places: Places
    max_bytes: int = 0
    clock: Callable[[], float] = time.time
    metrics: Metrics = OFF

    def __post_init__(self) -> None:
        self._copies = Recent(self.directory, self.clock, max_bytes=self.max_bytes)
        self._fetches: SingleFlight[bytes] = SingleFlight()

    @property
    def fault(self) -> str | None:
        return self.objects.fault

    def reserve(self) -> AbstractContextManager[None]:
        if fault := self.fault:
            raise NoRoom(fault)
        return nullcontext()

    def check(self) -> None:
        self.objects.check()

    def write(self, name: str, data: bytes, created: float) -> None:
        with self.metrics.store_call("write"):
            self.objects.put(name, data, media_type_of(data) or "application/octet-stream")
        with suppress(OSError):  # Without a copy, the next request fetches the picture.
            self._copies.write(name, data, created)

    def open(self, name: str, size: int | None = None) -> FileIO:
        with self.metrics.store_call("open"):
            # A damaged copy is no lost picture: it is fetched again.
            with suppress(OSError):
                return self._copies.open(name, size)
            try:
                with self.places.take(name):
                    data = self._fetches.run(name, READ_SECONDS, lambda: self._fetch(name, size))
            except (LockTimeout, TimeoutError, NoPlace) as error:
                raise OSError(errno.EBUSY, "too many requests wait for the bucket") from error
            with suppress(OSError):
                return self._copies.open(name, size)
            # No copy can be kept: the disk may be full.
            return _nameless(data)

    def delete(self, name: str) -> None:
        with self.metrics.store_call("delete"):
            self.objects.delete(name)
            self._copies.delete(name)

    def names(self) -> Iterator[Stored]:
        """Return what is in the bucket, dated by its upload."""
        return (stored for stored in self.objects.list() if PICTURE.fullmatch(stored.name))

    def sweep(self) -> None:
        """Delete interrupted writes, and copies of pictures that other machines have deleted.

        Raises Unavailable, too.
        """
        self._copies.sweep()
        cutoff = self.clock() - STALE_SECONDS
        found = self._copies.scan(PICTURE)
        old = (entry.name for entry, status in found if status.st_ctime < cutoff)
        while batch := list(islice(old, BATCH)):
            known = set(self.files([name.partition("-")[0] for name in batch]).values())
            for name in batch:
                if name not in known:
                    self._copies.delete(name)

    def tasks(self) -> tuple[Task, ...]:
        return (Task(self._recover, 2),)

    def _fetch(self, name: str, size: int | None) -> bytes:
        """Return a picture, and keep a copy of it if possible."""
        with suppress(OSError), self._copies.open(name, size) as file:
            return file.readall()  # another thread was first
        data = self.objects.get(name)
        if size not in (None, len(data)):
            raise FileNotFoundError(errno.ENOENT, "object store: no such object of that size")
        with suppress(OSError):
            self._copies.write(name, data, self.clock())
        return data

    def _recover(self) -> None:
        """Try a bucket that has failed: without a drawing, nothing else would write to it."""
        with suppress(OSError):
            if self.fault:
                self.check()


def _nameless(data: bytes) -> FileIO:
    """Return an open file without a name. Raises OSError."""
    try:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 # the caller closes it
    except FileNotFoundError as error:  # as if the bucket had no such picture
        raise OSError(errno.EIO, "no temporary folder can be used") from error
    try:
        if file.write(data) < len(data):  # as on a disk that is nearly full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.seek(0)
    except OSError:
        file.close()
        raise
    return file


class Nowhere(Folder):
    """The store of several machines that have an image host and no bucket: it takes nothing.

    A file on one machine would be a picture that the others draw and pay for again.
    """

    is_shared = True
    fault = "uploads to the image host fail, and STORAGE_URL is not set"

    def check(self) -> None:
        pass

    def reserve(self) -> AbstractContextManager[None]:
        raise NoRoom(self.fault)

    def write(self, name: str, data: bytes, created: float) -> None:
        raise NoRoom(self.fault)

    def names(self) -> Iterator[Stored]:
        return iter(())

    def tasks(self) -> tuple[Task, ...]:
        return ()
