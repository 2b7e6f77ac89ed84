"""Pictures and rows that could not be saved, kept in memory until they can be.

A full disk, a read-only folder or a write lock held by a backup would otherwise lose what was
paid for, or have it paid again.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

from images.formats import EXTENSIONS
from storage import LockTimeout, Note, Row, State, Unavailable
from storage.store import Store
from storage.upkeep import store_errors

log = logging.getLogger("prompt_image_proxy.cache")

# Bytes of pictures kept in memory; the oldest is dropped beyond that.
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Deleted(Note):
    """A picture was deleted: a process that has yet to save it drops it instead."""

    kind: ClassVar[str] = "deleted"
    ttl: ClassVar[float] = 86400.0


@dataclass(frozen=True, slots=True)
class Unsaved:
    """A row to be written; `data` if its file has to be written as well.

    `spare` is a file with a hosted picture, where files without a row are adopted: after a crash
    it is served instead of being drawn again.
    """

    row: Row
    data: bytes | None
    spare: str | None
    lock: ExitStack
    added: float = field(default_factory=time.monotonic)


class Backlog:
    """Pictures and rows that one process could not save yet. Thread-safe."""

    def __init__(self, state: State, store: Store, max_bytes: int = MAX_BYTES) -> None:
        self.state = state
        self.store = store
        self.max_bytes = max_bytes
        self._entries: dict[str, Unsaved] = {}
        self._mutex = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def has_pictures(self) -> bool:
        """Whether the store fails: pictures are in memory only."""
        return any(entry.data is not None for entry in self._entries.copy().values())

    def get(self, key: str) -> Unsaved | None:
        """Return the entry of a picture, unless another process has deleted it since."""
        entry = self._entries.get(key)
        if entry:
            with suppress(Unavailable):
                if self._is_deleted(entry):
                    self._drop(key, entry)
                    return None
        return entry

    def add(self, row: Row, data: bytes, *, is_stored: bool) -> None:
        """Keep a row, and its bytes unless they are in the store already.

        Until a row is written the lock of its key is held, if it can be: another process would
        not find the picture and draw it again.
        """
        spare = None
        if row.file is None and self.store.machine is None:
            spare = self._store_spare(row, data)
        is_kept = is_stored or row.file is None
        lock = ExitStack()
        if is_kept:
            with suppress(LockTimeout, Unavailable):
                lock.enter_context(self.state.hold(row.key, 0.0))
        with self._mutex:
            if not self._entries:
                log.error("Pictures cannot be saved; they are kept in memory until they can be")
            before = self._entries.pop(row.key, None)
            self._entries[row.key] = Unsaved(row, None if is_kept else data, spare, lock)
            self._limit()
        if before:
            before.lock.close()

    def remove(self, key: str) -> bool:
        """Drop an entry and its file; return whether there was one."""
        while entry := self._entries.get(key):
            if self._drop(key, entry):
                return True
        return False

    def _drop(self, key: str, entry: Unsaved) -> bool:
        """Drop an entry and its file; return False if another has taken its place."""
        if not self._swap(key, entry, None):
            return False
        entry.lock.close()
        for name in (entry.row.file if entry.data is None else None, entry.spare):
            self._discard(name)
        return True

    def check_elsewhere(self, key: str) -> None:
        """Raise Unavailable while another process draws a picture or has yet to write its row."""
        try:
            with self.state.hold(key, 0.0):
                pass
        except LockTimeout as error:
            raise Unavailable("another worker is drawing or saving the picture") from error

    def save(self) -> None:
        """Save what can be saved. Raises Unavailable at the first that cannot be."""
        with store_errors():
            for key, entry in list(self._entries.items()):
                self._save(key, entry)

    def _save(self, key: str, entry: Unsaved) -> None:
        row, written = entry.row, entry
        if entry.data is not None and row.file:
            row = replace(row, machine=self.store.write(row.file, entry.data, row.created))
            written = replace(entry, row=row, data=None)
        if not self._swap(key, entry, written):
            self._discard(row.file)
            return
        replaced = self.state.store(row)
        # Whoever deletes it from now on finds the row.
        is_deleted = self._is_deleted(entry)
        if not self._swap(key, written, None) or is_deleted:
            self.state.remove([row])
            self._discard(row.file)
        entry.lock.close()
        for name in {replaced, entry.spare} - {row.file}:
            self._discard(name)
        if not self._entries:
            log.warning("Pictures can be saved again")

    def _is_deleted(self, entry: Unsaved) -> bool:
        deleted = self.state.recall([(Deleted, entry.row.key)]).get(Deleted, entry.row.key)
        return deleted is not None and deleted.age < time.monotonic() - entry.added

    def _swap(self, key: str, before: Unsaved, after: Unsaved | None) -> bool:
        """Put `after` in place of `before`; return False if that is no longer there."""
        with self._mutex:
            if self._entries.get(key) is not before:
                return False
            if after:
                self._entries[key] = after
            else:
                del self._entries[key]
            return True

    def _discard(self, name: str | None) -> None:
        if name:
            with suppress(OSError):
                self.store.delete(name)

    def _store_spare(self, row: Row, data: bytes) -> str | None:
        name = f"{row.key}-{str(row.digest)[:16]}.{EXTENSIONS[row.media_type]}"
        with suppress(OSError):
            self.store.write(name, data, row.created)
            return name
        return None

    def _limit(self) -> None:
        """Drop the oldest pictures beyond the limit: memory is as finite as the disk."""
        total = sum(len(entry.data or b"") for entry in self._entries.values())
        for key, entry in list(self._entries.items()):
            if total <= self.max_bytes:
                return
            if entry.data is not None:
                total -= len(entry.data)
                del self._entries[key]
