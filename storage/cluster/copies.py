"""Pictures in an object store that machines share, with copies in a folder of this machine."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path

from images.formats import media_type_of
from metrics import OFF, Metrics
from storage import LockTimeout, State
from storage.cluster.objects import Objects
from storage.cluster.recent import Recent
from storage.local.folder import PICTURE, Folder
from storage.local.locks import Locks
from storage.single_flight import SingleFlight
from storage.store import DAY, STALE_SECONDS, Stored, Task
from storage.upkeep import store_errors, strays
from storage.verify import PATIENCE_SECONDS

# How long to wait for a picture that another thread or process is fetching.
_FETCH_SECONDS = 15.0
# How long one process uploads before it returns to its other work.
_UPLOAD_SECONDS = 5.0
# The modification time of a file that has not been compared with its digest yet.
_UNVERIFIED = 0.0
_UPLOADS = "f" * 15


class Copies:
    """The store of several machines.

    `directory` holds copies, up to about `max_bytes`, and below it, in `pending`, the pictures
    that could not be uploaded yet. `machine` names the machine; no other has this name.
    """

    def __init__(
        self,
        objects: Objects,
        directory: Path,
        machine: str,
        max_bytes: int = 0,
        clock: Callable[[], float] = time.time,
        metrics: Metrics = OFF,
    ) -> None:
        self.machine = machine
        self._metrics = metrics
        self._objects = objects
        self._copies = Recent(directory, max_bytes, clock)
        self._pending = Folder(directory / "pending", clock)
        self._locks = Locks(directory / "copies.lock")
        self._fetches: SingleFlight[bytes] = SingleFlight(self._locks)
        self._clock = clock

    @property
    def has_pending(self) -> bool:
        with suppress(OSError):
            return any(True for _ in self._pending.names())
        return True  # in a folder that cannot be read they may

    def check(self) -> None:
        self._objects.check()

    def write(self, name: str, data: bytes, created: float) -> str | None:
        with self._metrics.store_call("write"):
            return self._write(name, data, created)

    def _write(self, name: str, data: bytes, created: float) -> str | None:
        try:
            self._upload(name, data)
        except OSError:
            self._pending.write(name, data, created)
            return self.machine
        with suppress(OSError):  # Without a copy, the next request fetches the picture.
            self._copies.write(name, data, created)
        return None

    def open(self, name: str) -> FileIO:
        with self._metrics.store_call("open"):
            return self._open(name)

    def _open(self, name: str) -> FileIO:
        with suppress(OSError):
            return self._copies.open(name)
        with suppress(FileNotFoundError, NotADirectoryError):
            return self._pending.open(name)
        try:
            data = self._fetches.run(name, _FETCH_SECONDS, lambda: self._fetch(name))
        except (LockTimeout, TimeoutError) as error:
            raise OSError(errno.ETIMEDOUT, "the picture is still being fetched") from error
        with suppress(OSError):
            return self._copies.open(name)
        return _unnamed(data)

    def drop_copy(self, name: str) -> bool:
        try:
            (self._copies.directory / name).unlink()
        except OSError:
            return False
        return True

    def delete(self, name: str) -> None:
        with self._metrics.store_call("delete"):
            self._objects.delete(name)
            self._copies.delete(name)
            self._pending.delete(name)

    def names(self) -> Iterator[Stored]:
        """Yield what is in the object store, dated by its upload."""
        for name, size, modified in self._objects.list():
            if PICTURE.fullmatch(name):
                yield Stored(name, size, modified, modified)

    def sweep(self) -> None:
        self._copies.sweep()
        self._pending.sweep()

    def tasks(self, state: State) -> Sequence[Task]:
        return (
            Task(lambda: self._upload_pending(state), first=0, period=1),
            Task(self._copies.flush, first=30, period=30),
            Task(lambda: self._tidy(state), first=STALE_SECONDS, period=DAY),
        )

    def _upload(self, name: str, data: bytes) -> None:
        self._objects.put(name, data, media_type_of(data) or "application/octet-stream")

    def _fetch(self, name: str) -> bytes:
        """Return a picture, and keep a copy of it if possible."""
        with suppress(OSError), self._copies.open(name) as file:
            return file.readall()  # another process was first
        data = self._objects.get(name)
        with suppress(OSError):
            self._copies.write(name, data, _UNVERIFIED)
        return data

    # --- upkeep

    def _upload_pending(self, state: State) -> None:
        """Make up for uploads that failed, in one process at a time."""
        end = time.monotonic() + _UPLOAD_SECONDS
        with store_errors():
            if names := [stored.name for stored in self._pending.names()]:
                with suppress(LockTimeout), self._locks.hold(_UPLOADS, 0.0):
                    for name in names:
                        if time.monotonic() < end:
                            self._make_up(state, name)

    def _make_up(self, state: State, name: str) -> None:
        """Upload a picture, and write into its row that every machine can read it."""
        row = state.find(name.partition("-")[0])
        if row is None or row.file != name:
            return  # The row is yet to be written, or it has gone and _tidy sees to the file.
        with self._pending.open(name) as file:
            data = file.readall()
        self._upload(name, data)
        if state.amend(row, replace(row, machine=None)):
            (self._pending.directory / name).rename(self._copies.directory / name)
            self._copies.count(len(data))
        else:  # deleted or replaced meanwhile
            self.delete(name)

    def _tidy(self, state: State) -> None:
        """Delete copies of pictures that were deleted or replaced, perhaps by another machine."""
        state.expire()  # A state that cannot be written may be out of date.
        now = self._clock()
        with store_errors():
            for stray in strays(state, self._copies, now - STALE_SECONDS):
                self._copies.delete(stray.name)
            for stray in strays(state, self._pending, now - PATIENCE_SECONDS):
                # A process that could not write the row yet holds the lock.
                with suppress(LockTimeout), state.hold(stray.key, 0.0):
                    self.delete(stray.name)


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
