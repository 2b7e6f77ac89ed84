"""The cache: order of writes, eviction, adoption. Policy over one State and one Store."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from io import FileIO
from typing import NamedTuple

from images.formats import EXTENSIONS
from metrics import OFF, Metrics
from picture import ImageRequest
from storage import Note, Row, State, Totals, Unavailable
from storage.store import DAY, STALE_SECONDS, Store, Task
from storage.unsaved import Backlog, Deleted
from storage.upkeep import adopt, discard, evict, learn, repeat_both, store_errors, sweep
from storage.verify import Lost, open_verified

log = logging.getLogger("prompt_image_proxy.cache")


class NotKept(Exception):
    """The picture could not be cached; it can still be delivered."""


class Picture(NamedTuple):
    """A cache hit: its row and, unless it is hosted, its open file, which the receiver closes.

    `data` are the bytes in place of a file while pictures cannot be saved.
    """

    row: Row
    file: FileIO | None
    data: bytes | None = None

    def close(self) -> None:
        if self.file:
            self.file.close()


class Cache:
    """Pictures by key, notes that expire, and a lock for each key.

    `max_bytes` bounds the files of the store; 0 means no limit.
    """

    def __init__(
        self,
        state: State,
        store: Store,
        max_bytes: int = 0,
        clock: Callable[[], float] = time.time,
        metrics: Metrics = OFF,
    ) -> None:
        self.state = state
        self.store = store
        self.max_bytes = max_bytes
        self.clock = clock
        self.metrics = metrics
        self._backlog = Backlog(state, store)
        self._used: dict[str, float] = {}
        # How many bytes this process may store before it has to look at the totals again.
        self._room = 0.0
        self._settled: int | None = None
        self._settling = threading.Lock()

    # --- pictures

    def get(self, key: str, request: ImageRequest | None = None) -> Picture | None:
        """Return a picture, verified to be the one that was stored, or None.

        A row without a prompt learns it from `request`. Raises Unavailable where it cannot be
        known whether there is a picture: drawing might be paid for twice.
        """
        if self._backlog and (unsaved := self._backlog.get(key)):
            in_store = unsaved.row.file and unsaved.data is None
            return self._open(unsaved.row) if in_store else Picture(unsaved.row, None, unsaved.data)
        row = self.state.find(key)
        if row is None:
            return None
        picture = Picture(row, None) if row.file is None else self._open(row)
        if picture:
            if request and picture.row.prompt is None and key not in self._used:
                picture = picture._replace(row=learn(self.state, picture.row, request))
            # A hit writes nothing: maintain() writes these down, many at once.
            self._used[key] = self.clock()
        return picture

    def put(
        self,
        key: str,
        data: bytes,
        media_type: str,
        *,
        url: str | None = None,
        created: float | None = None,
        request: ImageRequest | None = None,
        optimized: str | None = None,
        rewritten: str | None = None,
        revised: str | None = None,
        drawn_by: str | None = None,
    ) -> Row:
        """Cache a picture: as a file, or by its `url` alone if it is hosted. Raises NotKept.

        `created` is a Unix time, for a picture that was not made just now.
        """
        row = Row(
            key=key,
            file=None if url else f"{key}-{secrets.token_hex(8)}.{EXTENSIONS[media_type]}",
            url=url,
            media_type=media_type,
            bytes=len(data),
            digest=hashlib.sha256(data).hexdigest(),
            created=self.clock() if created is None else float(created),
            **(asdict(request) if request else {}),
            optimized=optimized,
            rewritten=rewritten,
            revised=revised,
            drawn_by=drawn_by,
        )
        return self._keep(row, data)

    def delete(self, key: str) -> bool:
        """Delete a picture; return whether there was one. Raises Unavailable."""
        # After an older database was put back, the file may not be that of the row.
        self.settle()
        # On a full disk, this makes room for what is written below.
        found = self._delete_file(key)
        # Another process may have the picture in memory, or its row to write yet.
        self.state.remember(Deleted(), key, Deleted.ttl)
        was_unsaved = self._backlog.remove(key)
        # Again: that process may have written the row before it could see the note.
        if row := self._delete_file(key):
            # The row last: after a crash in between, it leads to nothing and is a miss.
            self.state.remove([row])
        if found or row or was_unsaved:
            return True
        self._backlog.check_elsewhere(key)
        return False

    def totals(self) -> Totals | None:
        with suppress(Unavailable):
            return self.state.totals()
        return None

    @property
    def is_degraded(self) -> bool:
        """Whether pictures are in memory only, because the store cannot be written."""
        return self._backlog.has_pictures

    def forget(self, kind: type[Note], key: str) -> bool:
        """Forget a note, if the state can be written; return whether there was one."""
        with suppress(Unavailable):
            return self.state.forget(kind, key)
        return False

    # --- files

    def _delete_file(self, key: str) -> Row | None:
        """Delete the file of a picture; return its row."""
        row = self.state.find(key)
        if row and row.file:
            with store_errors():
                self.store.delete(row.file)
        return row

    def _open(self, row: Row) -> Picture | None:
        try:
            known, file = open_verified(self.store, row, self.clock)
        except Lost as why:
            log.warning("The picture %s %s, and will be drawn again", row.file, why)
            with suppress(Unavailable):
                discard(self.state, self.store, [row])
            return None
        if known is not row:
            with suppress(Unavailable):
                self.state.amend(row, known)
        return Picture(known, file)

    def _keep(self, row: Row, data: bytes) -> Row:
        if row.file and 0 < self.max_bytes < row.bytes:
            raise NotKept("the picture is larger than CACHE_MAX_BYTES")
        try:
            if row.file:
                row = replace(row, machine=self.store.write(row.file, data, row.created))
        except OSError as error:
            log.debug("A picture could not be written: %s", error.strerror)
            self._backlog.add(row, data, is_stored=False)
            raise NotKept(str(error.strerror)) from error
        try:
            replaced = self.state.store(row)
        except Unavailable:
            self._backlog.add(row, data, is_stored=row.file is not None)
            return row
        if replaced and replaced != row.file:
            with suppress(OSError):
                self.store.delete(replaced)
        self._room -= row.bytes if row.file else 0
        if self.max_bytes and self._room < 0:
            with suppress(Unavailable):
                self.evict()
        return row

    # --- adoption

    def settle(self) -> None:
        """Adopt the store's files before a drawing, which may be in one of them already.

        Works once per process, and once more whenever the state's database was replaced;
        meanwhile other threads wait. After it, look the picture up again. Raises Unavailable.
        Where machines share the state, there is nothing to adopt.
        """
        if self.store.machine or self._settled == self.state.epoch:
            return
        with self._settling:
            while self._settled != (epoch := self.state.epoch):
                if count := self.adopt():
                    log.warning("Adopted %d pictures that the index did not have", count)
                with suppress(Unavailable):
                    self.evict()
                self._settled = epoch

    def adopt(self) -> int:
        """Give each picture in the store that has no row one; return how many got one."""
        with store_errors():
            count = adopt(self.state, self.store)
        self.metrics.adopted(count)
        return count

    # --- upkeep

    def maintain(self, stop: threading.Event, *more: Task) -> None:
        """Keep the cache in order until `stop` is set, and do `more`: the work of a thread."""
        quick = [
            Task(self.settle, first=0, period=1),
            Task(self._keep_up, first=0, period=1),
            Task(self._backlog.save, first=0, period=1),
            # An outage must not bring back what another machine has deleted.
            Task(self.state.refresh, first=5, period=5),
            Task(self.flush, first=30, period=30),
            Task(self.state.expire, first=0, period=60),
            *more,
        ]
        slow = [
            # What a crash just before the start left behind is too young for the first sweep.
            *(Task(self.sweep, first, period=DAY) for first in (0, STALE_SECONDS + 60)),
            *self.store.tasks(self.state),
        ]
        repeat_both(quick, slow, stop)
        with suppress(Unavailable):
            self.flush()

    def close(self) -> None:
        """Write down what is in memory only, and close the state."""
        for task in (self._backlog.save, self.flush):
            with suppress(Unavailable):
                task()
        self.state.close()

    def flush(self) -> None:
        """Write down when pictures were used since the last time. Raises Unavailable."""
        used, self._used = self._used, {}
        now = self.clock()
        # A copy: a thread that has fetched the old dict may still be about to write to it.
        ages = {key: max(0.0, now - moment) for key, moment in used.copy().items()}
        if ages:
            self.state.touch(ages)

    def evict(self) -> None:
        """Hold `max_bytes`, least recently used first. Raises Unavailable."""
        if self.max_bytes:
            total = evict(self.state, self.store, self.max_bytes, self.flush, self.metrics.evicted)
            # Other processes store as well: half of what is left is theirs.
            self._room = (self.max_bytes - total) / 2

    def sweep(self) -> None:
        """Delete what crashes left behind. Raises Unavailable.

        A picture goes only if its key has another one, and the state can be written: one that
        can only be read may be out of date.
        """
        self.state.expire()
        with store_errors():
            self.store.sweep()
            if self.store.machine is None:
                sweep(self.state, self.store, self.clock() - STALE_SECONDS)

    def _keep_up(self) -> None:
        """Evict what other processes stored too much; near the limit, tell them what is used."""
        self.evict()
        if self.max_bytes and self._room < self.max_bytes / 4:
            self.flush()
