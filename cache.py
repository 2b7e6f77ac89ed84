"""What has been drawn, and where it lies: SQLite is the index, pictures are files beside it.

The contract is the public methods of `Cache`. No fault of disk or index is an error here: it is
a miss, or a picture that could not be kept, with one line in the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from formats import EXTENSIONS, media_type_of
from picture import BadRequest, ImageRequest
from storage.locks import Locks
from storage.sqlite import Index, Unavailable, transaction

log = logging.getLogger("prompt_image_proxy.cache")

STALE_SECONDS = 600.0
MAX_NOTES = 100_000
# A clock that was set back by more than this makes what was noted "in the future" invalid.
CLOCK_TOLERANCE = 60.0
# The year 9999 begins then: no HTTP date is later.
MAX_SECONDS = 253_370_764_800.0

_PICTURE_NAME = re.compile(r"([0-9a-f]{64})-[0-9a-f]{16}\.(png|jpg|webp|gif)")
_TEMPORARY_NAME = re.compile(r"([0-9a-f]{64}|index\.sqlite3)-[0-9a-z.]+\.tmp")
_MEDIA_TYPES = {extension: media_type for media_type, extension in EXTENSIONS.items()}


class NotKept(Exception):
    """The picture could not be stored; it can still be delivered."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a picture came to be: what was asked for, the prompts on its way, and who drew it."""

    prompt: str | None = None
    width: int | None = None
    height: int | None = None
    model: str | None = None
    seed: int | None = None
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


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of a picture. `request` is None for one found again without its row."""

    key: str
    request: ImageRequest | None
    final_prompt: str | None
    drawn_by: str | None
    media_type: str
    bytes: int
    created: float

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Record:
        key, prompt, width, height, model, seed, optimized, rewritten, revised, *rest = row
        request = prompt and ImageRequest(prompt, width, height, model, seed)
        return cls(key, request or None, revised or rewritten or optimized or prompt, *rest)

    def to_json(self) -> dict[str, Any]:
        asked = asdict(self.request) if self.request else dict.fromkeys(_ASKED)
        own = ("key", "final_prompt", "drawn_by", "media_type", "bytes", "created")
        return asked | {name: getattr(self, name) for name in own}


_ASKED = ("prompt", "width", "height", "model", "seed")
_LIST = (
    "SELECT key, prompt, width, height, model, seed, optimized, rewritten, revised,"
    " drawn_by, media_type, bytes, created, rowid FROM entries"
    " WHERE (created, rowid) < (?, ?) AND (? = '' OR prompt LIKE ? ESCAPE '!')"
    " ORDER BY created DESC, rowid DESC LIMIT ?"
)
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
        self.locks = Locks(directory / "locks")

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
        if not _is_sound(entry):
            return None
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
        key: str,
        data: bytes,
        media_type: str,
        provenance: Provenance,
        *,
        url: str | None = None,
        created: float | None = None,
    ) -> None:
        """Keep a picture: as a file, or where `url` is given as that alone. Raises NotKept.

        `created` is in seconds since the epoch, for a picture that is not from just now.
        """
        now = self.clock()
        name = mtime_ns = None
        try:
            if url is None:
                name = f"{key}-{secrets.token_hex(8)}.{EXTENSIONS[media_type]}"
                mtime_ns = self._write(name, data)
            digest = hashlib.sha256(data).hexdigest()
            row = (key, name, url, media_type, len(data), mtime_ns, digest, created or now, now)
            replaced = self.index.run(lambda c: _replace_row(c, row + astuple(provenance)))
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
            entries, size = self.index.run(_read_totals)
        except Unavailable:
            return None
        return {"entries": entries, "bytes": size}

    def records(
        self, search: str = "", limit: int = 50, before: str | None = None
    ) -> tuple[list[Record], str | None]:
        """Return the newest records whose prompt holds `search`, and the `before` of the rest.

        Raises BadRequest for a `before` that is none of ours, and Unavailable.
        """
        after = _read_cursor(before) if before else (float("inf"), 0)
        pattern = "%" + re.sub(r"([!%_])", r"!\1", search) + "%"
        arguments = (*after, search, pattern, limit + 1)
        rows = self.index.run(lambda connection: connection.execute(_LIST, arguments).fetchall())
        following = f"{rows[limit - 1][-2]!r}-{rows[limit - 1][-1]}" if len(rows) > limit else None
        return [Record.of(row[:-1]) for row in rows[:limit]], following

    # --- notes

    def recall(self, kind: str, key: str) -> Any:
        """Return what was remembered, or None once it has expired."""
        sql = "SELECT value, created, expires FROM notes WHERE kind = ? AND key = ?"
        try:
            row = self.index.run(lambda c: c.execute(sql, (kind, key)).fetchone())
        except Unavailable:
            return None
        try:
            if row is None or not row[1] - CLOCK_TOLERANCE <= self.clock() < row[2]:
                return None
            return json.loads(row[0])
        except (ValueError, TypeError):
            return None  # a damaged row

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
            descriptor = os.open(f"{self.directory}/{name}", flags)
        except FileNotFoundError:
            self._lost(entry, "is gone")
            return None
        except OSError as error:
            log.warning("A picture cannot be read, and will be drawn again: %s", error.strerror)
            return None
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):  # FileIO would refuse it, and leave it open
            os.close(descriptor)
            self._lost(entry, "is damaged")
            return None
        file = FileIO(descriptor)
        if found.st_mtime_ns == entry.mtime_ns and found.st_size == entry.bytes and entry.digest:
            return entry._replace(opened=file)
        return self._looked_into(entry, file, found)

    def _looked_into(self, entry: Entry, file: FileIO, found: os.stat_result) -> Entry | None:
        """Read a file that is not as it was left: restored from a backup, or damaged?"""
        data = file.readall() if stat.S_ISREG(found.st_mode) else b""
        digest, media_type = hashlib.sha256(data).hexdigest(), media_type_of(data)
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

    def close(self) -> None:
        """Write down what has not been yet, and let go of every file."""
        self.flush()
        self.index.close()
        self.locks.close()

    def is_filling(self) -> bool:
        """Say whether who was used last will soon matter: something may have to go."""
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
        _, total = _read_totals(connection)
        if total <= self.max_bytes:
            return []
        touched, self._touched = self._touched, {}
        names = []
        with transaction(connection):
            connection.executemany(_USE, [(used, key) for key, used in touched.items()])
            _, total = _read_totals(connection)
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


def _is_sound(entry: Entry) -> bool:
    """Say whether a row can be answered with: never with a picture of another key."""
    return (
        entry.media_type in EXTENSIONS
        and isinstance(entry.bytes, int)
        and isinstance(entry.created, float)
        and 0 <= entry.created < MAX_SECONDS
        and (entry.url is not None or str(entry.file).startswith(entry.key))
    )


def _read_cursor(text: str) -> tuple[float, int]:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)-([0-9]{1,18})", text)
    if not match:
        raise BadRequest("The parameter before must be what an earlier answer called next.")
    return float(match[1]), int(match[2])


_USE = "UPDATE entries SET used = ? WHERE key = ?"


def _write_uses(connection: sqlite3.Connection, touched: dict[str, float]) -> None:
    with transaction(connection):
        connection.executemany(_USE, [(used, key) for key, used in touched.items()])


def _read_totals(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many entries there are, and their bytes. An index without them is damaged."""
    row = connection.execute("SELECT entries, bytes FROM totals").fetchone()
    if row is None or not all(isinstance(total, int) for total in row):
        raise sqlite3.DatabaseError("no such totals")
    return row[0], row[1]


def _replace_row(connection: sqlite3.Connection, row: tuple[Any, ...]) -> str | None:
    """Store a row; return the file of the one it replaced."""
    with transaction(connection):
        before = connection.execute("SELECT file FROM entries WHERE key = ?", row[:1]).fetchone()
        connection.execute(_STORE, row)
    return before[0] if before else None


def _is_older(item: os.DirEntry[str], cutoff: float) -> bool:
    try:
        return item.stat(follow_symlinks=False).st_mtime < cutoff
    except OSError:
        return False
