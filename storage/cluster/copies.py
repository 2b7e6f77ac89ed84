"""Pictures in an object store that machines share, with copies in a folder of this machine."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from io import FileIO
from pathlib import Path

from images.formats import media_type_of
from metrics import OFF, Metrics
from storage import LockTimeout
from storage.cluster.objects import Objects
from storage.cluster.recent import Recent
from storage.local.folder import PICTURE
from storage.local.locks import Locks
from storage.single_flight import SingleFlight
from storage.store import Stored, Task

# How long to wait for a picture that another thread or process is fetching.
_FETCH_SECONDS = 15.0
# How long one process uploads before it returns to its other work.
_UPLOAD_SECONDS = 5.0
# The modification time of a file that has not been compared with its digest yet.
_UNVERIFIED = 0.0
_UPLOADS = "f" * 15


class Copies:
    """The store of several machines.

    `directory` holds copies, up to about `max_bytes`.
    """

    is_shared = True

    def __init__(
        self,
        objects: Objects,
        directory: Path,
        max_bytes: int = 0,
        clock: Callable[[], float] = time.time,
        metrics: Metrics = OFF,
    ) -> None:
        self._metrics = metrics
        self._objects = objects
        self._copies = Recent(directory, max_bytes, clock)
        self._locks = Locks(directory / "copies.lock")
        self._fetches: SingleFlight[bytes] = SingleFlight(self._locks)
        self._clock = clock

    @property
    def fault(self) -> str | None:
        return None

    def reserve(self) -> AbstractContextManager[None]:
        return nullcontext()

    def check(self) -> None:
        self._objects.check()

    def write(self, name: str, data: bytes, created: float) -> None:
        with self._metrics.store_call("write"):
            self._objects.put(name, data, media_type_of(data) or "application/octet-stream")
        with suppress(OSError):  # Without a copy, the next request fetches the picture.
            self._copies.write(name, data, created)

    def open(self, name: str) -> FileIO:
        with self._metrics.store_call("open"):
            return self._open(name)

    def _open(self, name: str) -> FileIO:
        with suppress(OSError):
            return self._copies.open(name)
        try:
            data = self._fetches.run(name, _FETCH_SECONDS, lambda: self._fetch(name))
        except (LockTimeout, TimeoutError) as error:
            raise OSError(errno.ETIMEDOUT, "the picture is still being fetched") from error
        with suppress(OSError):
            return self._copies.open(name)
        return _unnamed(data)

    def delete(self, name: str) -> None:
        with self._metrics.store_call("delete"):
            self._objects.delete(name)
            self._copies.delete(name)

    def names(self) -> Iterator[Stored]:
        """Yield what is in the object store, dated by its upload."""
        for name, size, modified in self._objects.list():
            if PICTURE.fullmatch(name):
                yield Stored(name, size, modified)

    def sweep(self) -> None:
        self._copies.sweep()

    def tasks(self) -> tuple[Task, ...]:
        return (Task(self._copies.flush, first=30, period=30),)

    def _fetch(self, name: str) -> bytes:
        """Return a picture, and keep a copy of it if possible."""
        with suppress(OSError), self._copies.open(name) as file:
            return file.readall()  # another process was first
        data = self._objects.get(name)
        with suppress(OSError):
            self._copies.write(name, data, 0.0)
        return data


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
        raise OSError(errno.EROFS, self.fault)

    def write(self, name: str, data: bytes, created: float) -> None:
        raise OSError(errno.EROFS, self.fault)

    def open(self, name: str) -> FileIO:
        raise FileNotFoundError(errno.ENOENT, "there is no store")

    def delete(self, name: str) -> None:
        pass

    def names(self) -> Iterator[Stored]:
        return iter(())

    def sweep(self) -> None:
        pass

    def tasks(self) -> tuple[Task, ...]:
        return ()
