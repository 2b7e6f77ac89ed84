"""The cache: order of writes, eviction, adoption. Policy over one State and one Store."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from io import FileIO
from typing import NamedTuple

from images.formats import EXTENSIONS
from metrics import OFF, Metrics
from picture import ImageRequest
from storage import BeingDrawn, LockTimeout, NoRoom, Note, Row, State, Totals, Unavailable
from storage.store import DAY, STALE_SECONDS, Store, Task
from storage.upkeep import adopt, discard, evict, learn, repeat_both, store_errors, sweep
from storage.verify import Lost, open_verified

log = logging.getLogger("prompt_image_proxy.cache")


class NotKept(Exception):
    """The picture could not be cached; it can still be delivered."""


class Picture(NamedTuple):
    """A cache hit: its row and, unless it is hosted, its open file, which the receiver closes."""

    row: Row
    file: FileIO | None

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
        """Delete a picture; return whether there was one.

        Raises Unavailable, and BeingDrawn while another one is being drawn in its place.
        """
        # After an older database was put back, the file may not be that of the row.
        self.settle()
        with self._locked(key):
            row = self.state.find(key)
            if row is None:
                return False
            # The file first, which makes room on a full disk: a row without one is a miss.
            if row.file:
                with store_errors():
                    self.store.delete(row.file)
            self.state.remove([row])
            return True

    @contextmanager
    def reserve(self, *, is_hosted: bool) -> Iterator[None]:
        """Raise NoRoom unless a picture drawn in the block could be stored.

        `is_hosted`: an image host takes it, so that the store does not matter.
        """
        try:
            with nullcontext() if is_hosted else self.store.reserve():
                yield
        except OSError as error:
            raise NoRoom(f"new pictures cannot be stored: {error.strerror}") from error

    def totals(self) -> Totals | None:
        with suppress(Unavailable):
            return self.state.totals()
        return None

    @property
    def fault(self) -> str | None:
        """Why new pictures cannot be stored at the moment, None where they can."""
        return self.store.fault

    def forget(self, kind: type[Note], key: str) -> bool:
        """Forget a note, if the state can be written; return whether there was one."""
        with suppress(Unavailable):
            return self.state.forget(kind, key)
        return False

    # --- files

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        try:
            with self.state.hold(key, 0.0):
                yield
        except LockTimeout as error:
            raise BeingDrawn("the picture is being drawn") from error

    def _open(self, row: Row) -> Picture | None:
        try:
            known, file = open_verified(self.store, row)
        except Lost as why:
            log.warning("Picture %s %s; it will be redrawn on the next request", row.file, why)
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
                self.store.write(row.file, data, row.created)
            replaced = self.state.store(row)
        except (OSError, Unavailable) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.error("Picture %s could not be stored: %s", row.key, reason)
            raise NotKept(str(reason)) from error
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
        if self.store.is_shared or self._settled == self.state.epoch:
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
            Task(self.flush, first=30, period=30),
            Task(self.state.expire, first=0, period=60),
            *more,
        ]
        slow = [
            # What a crash just before the start left behind is too young for the first sweep.
            *(Task(self.sweep, first, period=DAY) for first in (0, STALE_SECONDS + 60)),
            *self.store.tasks(),
        ]
        repeat_both(quick, slow, stop)
        with suppress(Unavailable):
            self.flush()

    def close(self) -> None:
        """Write down when pictures were used, and close the state."""
        with suppress(Unavailable):
            self.flush()
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
            if not self.store.is_shared:
                sweep(self.state, self.store, self.clock() - STALE_SECONDS)

    def _keep_up(self) -> None:
        """Evict what other processes stored too much; near the limit, tell them what is used."""
        self.evict()
        if self.max_bytes and self._room < self.max_bytes / 4:
            self.flush()
