"""The cache: order of writes, eviction, adoption. Policy over one State and one Store."""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO, NamedTuple

from images.formats import EXTENSIONS
from metrics import OFF, Metrics
from picture import ImageRequest
from storage import BeingDrawn, LockTimeout, Row, Unavailable
from storage.state import State
from storage.store import HOUR, FileLost, Store, Task, drawn_size, open_verified
from storage.upkeep import BATCH, adopt, repeat, store_errors

log = logging.getLogger("prompt_image_proxy.cache")


class NotKept(Exception):
    """The picture could not be cached; it can still be delivered."""


class Picture(NamedTuple):
    """A cache hit: its row and, unless it is hosted, its open file, which the receiver closes.

    `is_kept` is False for a picture that was drawn but could not be cached.
    """

    row: Row
    file: BinaryIO | None
    is_kept: bool = True

    def close(self) -> None:
        if self.file:
            self.file.close()


@dataclass
class Cache:
    """Pictures by key. `max_bytes` bounds the files of the store; 0 means no limit."""

    state: State
    store: Store
    max_bytes: int = 0
    clock: Callable[[], float] = time.time
    metrics: Metrics = OFF
    _used: dict[str, float] = field(default_factory=dict, init=False)
    _learned: dict[str, tuple[Row, Row]] = field(default_factory=dict, init=False)
    _settled: object = field(default=None, init=False)
    _settling: threading.Lock = field(default_factory=threading.Lock, init=False)

    # --- pictures

    def get(self, key: str, request: ImageRequest | None = None) -> Picture | None:
        """Return a picture, or None. A row without a prompt learns it from `request`.

        Raises Unavailable where it cannot be known whether there is a picture: drawing it might
        be paid for twice.
        """
        row = self.state.find(key)
        picture = self._open(row) if row else None
        if row is None or picture is None:
            return None
        if request and row.prompt is None:
            picture = picture._replace(row=replace(picture.row, **asdict(request)))
        # A hit writes nothing: flush() writes these down, many at once.
        if picture.row != row:
            self._learned[key] = row, picture.row
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
        **drawn: str | None,
    ) -> Row:
        """Cache a picture: as a file, or by its `url` alone if it is hosted. Raises NotKept.

        `created` is a Unix time, for a picture that was not made just now. `drawn` says how it
        was drawn: its prompts and `drawn_by`, as the row names them.
        """
        about: dict[str, Any] = {**drawn, **(asdict(request) if request else {})}
        row = Row(
            key=key,
            file=None if url else f"{key}-{secrets.token_hex(8)}.{EXTENSIONS[media_type]}",
            url=url,
            media_type=media_type,
            bytes=len(data),
            digest=hashlib.sha256(data).hexdigest(),
            created=self.clock() if created is None else float(created),
            **drawn_size(data),
            **about,
        )
        if row.file and 0 < self.max_bytes < row.bytes:
            raise _not_kept(key, "the picture is larger than CACHE_MAX_BYTES")
        self._write(row, data)
        with suppress(Unavailable):
            self.evict()
        return row

    def delete(self, key: str) -> bool:
        """Delete a picture; return whether there was one.

        Raises Unavailable, and BeingDrawn while another one is being drawn in its place.
        """
        with suppress(Unavailable):
            self.state.find(key)  # puts another index in the place of a damaged one
            self.settle()
        try:
            with self.state.hold(key, 0.0):
                return self._delete(key)
        except LockTimeout as error:
            raise BeingDrawn("the picture is being drawn") from error

    # --- files

    def _open(self, row: Row) -> Picture | None:
        if row.file is None:
            return Picture(row, None)
        try:
            return Picture(*open_verified(self.store, row))
        except FileLost as why:
            log.warning("Picture %s %s; it will be redrawn on the next request", row.file, why)
            with suppress(Unavailable):
                self._discard([row])
            return None

    def _write(self, row: Row, data: bytes) -> None:
        try:
            if row.file:
                self.store.write(row.file, data, row.created)
            replaced = self.state.store(row)
        except (OSError, Unavailable) as error:
            self._settled = None  # its file may wait to be adopted
            reason = error.strerror if isinstance(error, OSError) else error.reason
            raise _not_kept(row.key, str(reason)) from error
        # Another process may have adopted this file before its row was stored.
        if replaced and replaced != row.file:
            with suppress(OSError):
                self.store.delete(replaced)

    def _discard(self, rows: Sequence[Row]) -> int:
        """Remove rows, then their files: a state that cannot be written costs no picture."""
        removed = self.state.remove(rows)
        for row in rows:
            if row.file:
                with suppress(OSError):
                    self.store.delete(row.file)
        return removed

    def _delete(self, key: str) -> bool:
        row = self.state.find(key)
        if row is None or row.file is None:
            return self.state.delete(key)
        with store_errors():
            self.store.delete(row.file)  # first, which makes room on a full disk
        try:
            self.state.delete(key)
        except Unavailable:
            # Without its file, the row counts for nothing; but other machines have copies.
            if self.store.is_shared:
                raise
        return True

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
                self._settled = epoch

    def adopt(self) -> int:
        """Give each picture in the store that has no row one; return how many got one."""
        with store_errors():
            count = adopt(self.state, self.store)
        self.metrics.adopted(count)
        return count

    # --- upkeep

    def maintain(self, stop: threading.Event) -> None:
        """Keep the cache in order until `stop` is set: the work of a thread."""
        tasks = [
            Task(self.settle, 1),
            Task(self.evict, 1),
            Task(self.flush, 30),
            Task(self.state.expire, 60),
            Task(self.store.sweep, HOUR),
            *self.store.tasks(),
            *self.state.tasks(),
        ]
        repeat(tasks, stop)
        with suppress(Unavailable):
            self.flush()

    def flush(self) -> None:
        """Write down what hits have learned, and when pictures were used. Raises Unavailable."""
        used, self._used = self._used, {}
        learned, self._learned = self._learned, {}
        now = self.clock()
        # Copied, because a thread may still be writing to the old dicts.
        for old, new in learned.copy().values():
            self.state.amend(old, new)
        self.state.touch({key: max(0.0, now - moment) for key, moment in used.copy().items()})

    def evict(self) -> None:
        """Hold `max_bytes`, least recently used first. Raises Unavailable."""
        while 0 < self.max_bytes < (total := self.state.totals().bytes):
            self.flush()
            victims = []
            for row in self.state.oldest(BATCH):
                if total > self.max_bytes:
                    victims.append(row)
                    total -= row.bytes
            removed = self._discard(victims)
            self.metrics.evicted(removed)
            if not removed:
                return

    def close(self) -> None:
        """Write down when pictures were used, and close the state."""
        with suppress(Unavailable):
            self.flush()
        self.state.close()


def _not_kept(key: str, reason: str) -> NotKept:
    log.error("Picture %s could not be stored: %s", key, reason)
    return NotKept(reason)
