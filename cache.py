"""What has been drawn, and where it lies: SQLite is the index, pictures are files beside it.

The contract is the public methods of `Cache`. No fault of disk or index is an error here: it is
a miss, or a picture that could not be kept, with one line in the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from index import Index, Unavailable, transaction
from picture import EXTENSIONS, ImageRequest, image_type
from upstream import Deadline

log = logging.getLogger("prompt_image_proxy.cache")

FLUSH_SECONDS = 30.0
EXPIRE_SECONDS = 60.0
SWEEP_SECONDS = 86400.0
STALE_SECONDS = 600.0
MAX_NOTES = 100_000
# A clock that was set back by more than this makes what was noted "in the future" invalid.
CLOCK_TOLERANCE = 60.0

_PICTURE_NAME = re.compile(r"([0-9a-f]{64})-[0-9a-f]{16}\.(png|jpg|webp|gif)")
_TEMPORARY_NAME = re.compile(r"([0-9a-f]{64}|index\.sqlite3)-[0-9a-z.]+\.tmp")
_MEDIA_TYPES = {extension: media_type for media_type, extension in EXTENSIONS.items()}


class NotKept(Exception):
    """The picture could not be stored; it can still be delivered."""


class LockTimeout(Exception):
    """Another process held the lock until the deadline."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a picture came to be: the prompts on its way, and who drew it."""

    optimized: str | None = None
    rewritten: str | None = None
    revised: str | None = None
    drawn_by: str | None = None


class Entry(NamedTuple):
    """A picture that is there: an open file, which the receiver closes, or a hosted URL."""

    key: str
    file: str | None
    url: str | None
    media_type: str
    bytes: int
    mtime_ns: int | None
    digest: str | None
    created: float
    opened: FileIO | None = None

    def close(self) -> None:
        if self.opened:
            self.opened.close()


_FIND = (
    "SELECT key, file, url, media_type, bytes, mtime_ns, digest, created FROM entries WHERE key = ?"
)
_STORE = """
INSERT INTO entries (key, file, url, media_type, bytes, mtime_ns, digest, created, used,
                     prompt, width, height, model, seed, optimized, rewritten, revised, drawn_by)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    file = excluded.file, url = excluded.url, media_type = excluded.media_type,
    bytes = excluded.bytes, mtime_ns = excluded.mtime_ns, digest = excluded.digest,
    created = excluded.created, used = excluded.used, prompt = excluded.prompt,
    width = excluded.width, height = excluded.height, model = excluded.model,
    seed = excluded.seed, optimized = excluded.optimized, rewritten = excluded.rewritten,
    revised = excluded.revised, drawn_by = excluded.drawn_by
"""
_NOTE = """
INSERT INTO notes (kind, key, value, created, expires) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (kind, key) DO UPDATE SET
    value = excluded.value, created = excluded.created, expires = excluded.expires
"""


class Cache:
    """Pictures by key, notes that expire, and a lock for each key between processes."""

    def __init__(
        self, directory: Path, max_bytes: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.clock = clock
        self.index = Index(directory / "index.sqlite3", self._restore)
        self._touched: dict[str, float] = {}
        self._lock_file: int | None = None
        self._mutex = threading.Lock()
        self._closing = threading.Event()

    # --- pictures

    def get(self, key: str) -> Entry | None:
        """Return the picture of `key`, checked to be the one that was stored, or None."""
        try:
            row = self.index.run(lambda connection: connection.execute(_FIND, (key,)).fetchone())
        except Unavailable:
            return None
        if row is None:
            return None
        entry = Entry(*row)
        if entry.url is None and not str(entry.file).startswith(key):
            return None  # a damaged row: never a picture of another key
        if entry.url is None:
            opened = self._open_picture(entry)
            if opened is None:
                return None
            entry = opened
        # No write on a hit: who was used when is gathered here and flushed by maintain().
        self._touched[key] = self.clock()
        return entry

    def put(
        self,
        request: ImageRequest,
        data: bytes,
        media_type: str,
        provenance: Provenance,
        url: str | None = None,
    ) -> None:
        """Keep a picture: as a file, or where `url` is given as that alone. Raises NotKept."""
        key, now = request.key, self.clock()
        name = mtime_ns = None
        try:
            if url is None:
                name = f"{key}-{secrets.token_hex(8)}.{EXTENSIONS[media_type]}"
                mtime_ns = self._write(name, data)
            digest = hashlib.sha256(data).hexdigest()
            row = (key, name, url, media_type, len(data), mtime_ns, digest, now, now)
            asked = (request.prompt, request.width, request.height, request.model, request.seed)
            replaced = self.index.run(lambda c: _replace_row(c, row + asked + astuple(provenance)))
        except (OSError, Unavailable) as error:
            if name:
                self._unlink(name)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            log.error("A picture could not be kept: %s", reason)
            raise NotKept(str(reason)) from error
        if replaced and replaced != name:
            self._unlink(replaced)
        self._evict()

    def delete(self, key: str) -> bool:
        """Forget the picture of `key` and that it was ever refused; say whether there was any."""
        sql = "DELETE FROM entries WHERE key = ? RETURNING file"
        rows = self.index.run(lambda connection: connection.execute(sql, (key,)).fetchall())
        for (file,) in rows:
            if file:
                self._unlink(file)
        return self.forget("blocked", key) or bool(rows)

    def totals(self) -> dict[str, int] | None:
        """Return how many `entries` there are and how many `bytes` their files hold."""
        try:
            row = self.index.run(lambda c: c.execute("SELECT * FROM totals").fetchone())
        except Unavailable:
            return None
        return {"entries": row[0], "bytes": row[1]}

    # --- notes

    def recall(self, kind: str, key: str) -> Any:
        """Return what was remembered, or None once it has expired."""
        sql = "SELECT value, created, expires FROM notes WHERE kind = ? AND key = ?"
        try:
            row = self.index.run(lambda c: c.execute(sql, (kind, key)).fetchone())
        except Unavailable:
            return None
        if row is None or not row[1] - CLOCK_TOLERANCE <= self.clock() < row[2]:
            return None
        return json.loads(row[0])

    def remember(self, kind: str, key: str, value: Any, ttl: float) -> None:
        """Keep a JSON value for `ttl` seconds, if the index can be written."""
        now = self.clock()
        row = (kind, key, json.dumps(value), now, now + ttl)
        with contextlib.suppress(Unavailable):
            self.index.run(lambda connection: connection.execute(_NOTE, row))

    def forget(self, kind: str, key: str) -> bool:
        """Drop a note; say whether there was one."""
        sql = "DELETE FROM notes WHERE kind = ? AND key = ?"
        try:
            return self.index.run(lambda c: c.execute(sql, (kind, key)).rowcount) > 0
        except Unavailable:
            return False

    # --- the lock

    @contextlib.contextmanager
    def lock(
        self, key: str, deadline: Deadline, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[None]:
        """Hold `key` against all other processes; a killed holder's lock is free at once.

        A byte of one file stands for the key. The lock belongs to the process: threads of one
        process are to be kept apart beforehand. Raises LockTimeout.
        """
        locks, offset = self._locks(), int(key[:15], 16)
        while locks is not None and not _try_lock(locks, offset):
            if deadline.is_over:
                raise LockTimeout
            # Not the blocking call: it knows no time-out, and takes two processes that wait for
            # each other's keys in different threads for a deadlock (EDEADLK).
            sleep(0.02)
        try:
            yield
        finally:
            if locks is not None:
                fcntl.lockf(locks, fcntl.LOCK_UN, 1, offset)

    def _locks(self) -> int | None:
        """Return the open file of locks, or None where none can be: each process draws alone."""
        path = self.directory / "locks"
        with self._mutex:
            try:
                if self._lock_file is None or not _is_at(path, self._lock_file):
                    # An older one stays open: closing it would drop the locks still held in it.
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    self.directory.mkdir(parents=True, exist_ok=True)
                    self._lock_file = os.open(path, flags, 0o600)
            except OSError as error:
                log.warning("The file of locks cannot be used: %s", error.strerror)
            return self._lock_file

    # --- files

    def _write(self, name: str, data: bytes) -> int:
        """Write a picture so that its name never stands for half of it; return its mtime."""
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / f"{name}.tmp"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
            temporary.rename(self.directory / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return mtime_ns

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.directory / name).unlink()

    def _open_picture(self, entry: Entry) -> Entry | None:
        name = str(entry.file)
        try:
            # Neither follow a link nor wait for the writer of a FIFO put in the file's place.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            file = FileIO(os.open(f"{self.directory}/{name}", flags))
        except FileNotFoundError:
            self._lost(entry, "is gone")
            return None
        except OSError as error:
            log.warning("A picture cannot be read, and will be drawn again: %s", error.strerror)
            return None
        found = os.fstat(file.fileno())
        if found.st_mtime_ns == entry.mtime_ns and found.st_size == entry.bytes and entry.digest:
            return entry._replace(opened=file)
        return self._looked_into(entry, file, found)

    def _looked_into(self, entry: Entry, file: FileIO, found: os.stat_result) -> Entry | None:
        """Read a file that is not as it was left: restored from a backup, or damaged?"""
        data = file.readall() if stat.S_ISREG(found.st_mode) else b""
        digest, media_type = hashlib.sha256(data).hexdigest(), image_type(data)
        if media_type is None or entry.digest not in (None, digest):
            file.close()
            self._lost(entry, "is damaged")
            return None
        file.seek(0)
        row = (media_type, len(data), found.st_mtime_ns, digest)
        sql = (
            "UPDATE entries SET media_type = ?, bytes = ?, mtime_ns = ?, digest = ?"
            " WHERE key = ? AND file = ?"
        )
        with contextlib.suppress(Unavailable):
            self.index.run(lambda c: c.execute(sql, (*row, entry.key, entry.file)))
        return Entry(entry.key, entry.file, None, *row, entry.created, file)

    def _lost(self, entry: Entry, how: str) -> None:
        log.warning("The picture %s %s, and will be drawn again", entry.file, how)
        sql = "DELETE FROM entries WHERE key = ? AND file = ?"
        with contextlib.suppress(Unavailable):
            self.index.run(lambda connection: connection.execute(sql, (entry.key, entry.file)))
        self._unlink(str(entry.file))

    def _pictures(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield (key, directory entry) for every file that is named like a picture."""
        with os.scandir(self.directory) as listing:
            for item in listing:
                if match := _PICTURE_NAME.fullmatch(item.name):
                    yield match[1], item

    def _restore(self, connection: sqlite3.Connection) -> int:
        """Fill an empty index with the pictures that are there: they were paid for."""
        rows = []
        for key, item in self._pictures():
            with contextlib.suppress(OSError):
                found = item.stat(follow_symlinks=False)
                media_type = _MEDIA_TYPES[item.name.rpartition(".")[2]]
                rows.append((found.st_mtime, key, item.name, media_type, found.st_size))
        # The newest of one key comes last and stays. Without a digest, its first hit looks into it.
        for mtime, key, name, media_type, size in sorted(rows):
            row = (key, name, None, media_type, size, None, None, mtime, mtime)
            connection.execute(_STORE, row + (None,) * 9)
        return len(rows)

    # --- upkeep

    def start(self) -> None:
        """Do the upkeep from now on, in a thread of its own, until close()."""
        with contextlib.suppress(Unavailable):
            self.index.run(lambda connection: None)
        threading.Thread(target=self._keep_up, name="cache-upkeep", daemon=True).start()

    def close(self) -> None:
        """End the upkeep; write down what it has not yet."""
        self._closing.set()
        self.flush()
        self.index.close()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _keep_up(self) -> None:
        now = time.monotonic()
        flushed, expired, swept = now, now, now - SWEEP_SECONDS
        while not self._closing.wait(1.0):
            now = time.monotonic()
            with contextlib.suppress(Unavailable, OSError):
                # Who was used last matters once something has to go, and only then at once.
                if now - flushed >= FLUSH_SECONDS or self._is_filling():
                    flushed = now
                    self.flush()
                if now - expired >= EXPIRE_SECONDS:
                    expired = now
                    self.expire()
                if now - swept >= SWEEP_SECONDS:
                    swept = now
                    self.sweep()

    def _is_filling(self) -> bool:
        if not self._touched or not self.max_bytes:
            return False
        totals = self.totals()
        return totals is not None and totals["bytes"] > self.max_bytes // 2

    def flush(self) -> None:
        """Write down which pictures were used since the last time, and hold the limit."""
        touched, self._touched = self._touched, {}
        if touched:
            with contextlib.suppress(Unavailable):
                self.index.run(lambda connection: _write_uses(connection, touched))
        self._evict()

    def expire(self) -> None:
        """Drop notes that have expired, and the oldest beyond MAX_NOTES."""
        now = self.clock()

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM notes WHERE expires <= ?", (now,))
            connection.execute(
                "DELETE FROM notes WHERE rowid IN"
                " (SELECT rowid FROM notes ORDER BY created DESC LIMIT -1 OFFSET ?)",
                (MAX_NOTES,),
            )

        self.index.run(work)

    def sweep(self) -> None:
        """Unlink what a crash left behind: temporary files, and pictures without a row."""
        if not self.directory.is_dir():
            return
        cutoff = self.clock() - STALE_SECONDS
        with os.scandir(self.directory) as listing:
            names = [
                item.name
                for item in listing
                if _PICTURE_NAME.fullmatch(item.name) or _TEMPORARY_NAME.fullmatch(item.name)
                if _is_older(item, cutoff)
            ]
        for start in range(0, len(names), 500):
            batch = names[start : start + 500]
            for name in set(batch) - self._files_of([name[:64] for name in batch]):
                log.info("Swept up %s", name)
                self._unlink(name)

    def _files_of(self, keys: list[str]) -> set[str]:
        sql = f"SELECT file FROM entries WHERE key IN ({','.join('?' * len(keys))})"
        return {row[0] for row in self.index.run(lambda c: c.execute(sql, keys).fetchall())}

    def _evict(self) -> None:
        """Hold `max_bytes`, least recently used first."""
        if not self.max_bytes:
            return
        with contextlib.suppress(Unavailable):
            while names := self.index.run(self._take_victims):
                for name in names:
                    self._unlink(name)

    def _take_victims(self, connection: sqlite3.Connection) -> list[str]:
        (total,) = connection.execute("SELECT bytes FROM totals").fetchone()
        if total <= self.max_bytes:
            return []
        touched, self._touched = self._touched, {}
        names = []
        with transaction(connection):
            connection.executemany(_USE, [(used, key) for key, used in touched.items()])
            (total,) = connection.execute("SELECT bytes FROM totals").fetchone()
            excess = total - self.max_bytes
            oldest = connection.execute(
                "SELECT rowid, file, bytes FROM entries WHERE file IS NOT NULL ORDER BY used"
                " LIMIT 500"
            ).fetchall()
            for rowid, file, size in oldest:
                if excess <= 0:
                    break
                connection.execute("DELETE FROM entries WHERE rowid = ?", (rowid,))
                names.append(file)
                excess -= size
        return names


_USE = "UPDATE entries SET used = ? WHERE key = ?"


def _write_uses(connection: sqlite3.Connection, touched: dict[str, float]) -> None:
    with transaction(connection):
        connection.executemany(_USE, [(used, key) for key, used in touched.items()])


def _replace_row(connection: sqlite3.Connection, row: tuple[Any, ...]) -> str | None:
    """Store a row; return the file of the one it replaced."""
    with transaction(connection):
        before = connection.execute("SELECT file FROM entries WHERE key = ?", row[:1]).fetchone()
        connection.execute(_STORE, row)
    return before[0] if before else None


def _try_lock(file: int, offset: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _is_older(item: os.DirEntry[str], cutoff: float) -> bool:
    try:
        return item.stat(follow_symlinks=False).st_mtime < cutoff
    except OSError:
        return False
