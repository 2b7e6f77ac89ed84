"""Pictures in a bucket that machines share, with copies in a folder of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
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
        file, now = super().open(name, size), self.clock()
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


class Copies:
    """The store of several machines.

    `directory` holds copies, up to about `max_bytes`: what this machine drew or served lately.
    `files` is that of the state. A request that fetches a picture takes one of the `places`.
    """

    is_shared = True

    def __init__(
        self,
        objects: Objects,
        directory: Path,
        files: Callable[[Sequence[str]], Mapping[str, str | None]],
        places: Places,
        max_bytes: int = 0,
        clock: Callable[[], float] = time.time,
        metrics: Metrics = OFF,
    ) -> None:
        self._metrics = metrics
        self._objects = objects
        self._copies = Recent(directory, max_bytes, clock)
        self._files = files
        self._places = places
        self._fetches: SingleFlight[bytes] = SingleFlight()
        self._clock = clock

    @property
    def fault(self) -> str | None:
        return self._objects.fault

    def reserve(self) -> AbstractContextManager[None]:
        if fault := self.fault:
            raise NoRoom(fault)
        return nullcontext()

    def check(self) -> None:
        self._objects.check()

    def write(self, name: str, data: bytes, created: float) -> None:
        with self._metrics.store_call("write"):
            self._objects.put(name, data, media_type_of(data) or "application/octet-stream")
        with suppress(OSError):  # Without a copy, the next request fetches the picture.
            self._copies.write(name, data, created)

    def open(self, name: str, size: int | None = None) -> FileIO:
        with self._metrics.store_call("open"):
            return self._open(name, size)

    def _open(self, name: str, size: int | None) -> FileIO:
        # A damaged copy is no lost picture: it is fetched again.
        with suppress(OSError):
            return self._copies.open(name, size)
        try:
            with self._places.take(name):
                data = self._fetches.run(name, READ_SECONDS, lambda: self._fetch(name, size))
        except (LockTimeout, TimeoutError, NoPlace) as error:
            raise OSError(errno.EBUSY, "too many requests wait for the bucket") from error
        with suppress(OSError):
            return self._copies.open(name, size)
        return _unnamed(data)

    def delete(self, name: str) -> None:
        with self._metrics.store_call("delete"):
            self._objects.delete(name)
            self._copies.delete(name)

    def names(self) -> Iterator[Stored]:
        """Return what is in the bucket, dated by its upload."""
        return (stored for stored in self._objects.list() if PICTURE.fullmatch(stored.name))

    def sweep(self) -> None:
        """Delete interrupted writes, and copies of pictures that other machines have deleted.

        Raises Unavailable, too.
        """
        self._copies.sweep()
        cutoff = self._clock() - STALE_SECONDS
        found = self._copies.scan(PICTURE)
        old = (entry.name for entry, status in found if status.st_ctime < cutoff)
        while batch := list(islice(old, BATCH)):
            known = set(self._files([name.partition("-")[0] for name in batch]).values())
            for name in batch:
                if name not in known:
                    self._copies.delete(name)

    def tasks(self) -> tuple[Task, ...]:
        return (Task(self._recover, first=2, period=2),)

    def _fetch(self, name: str, size: int | None) -> bytes:
        """Return a picture, and keep a copy of it if possible."""
        with suppress(OSError), self._copies.open(name, size) as file:
            return file.readall()  # another thread was first
        data = self._objects.get(name)
        if size not in (None, len(data)):
            raise FileNotFoundError(errno.ENOENT, "object store: no such object of that size")
        with suppress(OSError):
            self._copies.write(name, data, self._clock())
        return data

    def _recover(self) -> None:
        """Try a bucket that has failed: without a drawing, nothing else would write to it."""
        with suppress(OSError):
            if self.fault:
                self.check()


def _unnamed(data: bytes) -> FileIO:
    """Return a picture as a temporary file, where no copy can be kept: the disk may be full."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 # the caller closes it
    try:
        file.write(data)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


class Nowhere:
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
        raise OSError(errno.EROFS, self.fault)

    def open(self, name: str, size: int | None = None) -> FileIO:
        raise FileNotFoundError(errno.ENOENT, "there is no store")

    def delete(self, name: str) -> None:
        pass

    def names(self) -> Iterator[Stored]:
        return iter(())

    def sweep(self) -> None:
        pass

    def tasks(self) -> tuple[Task, ...]:
        return ()
