"""The SQLite database under the cache: its schema, its connections, and how it heals.

Nothing in it is lost for good when it is: whoever finds it missing, empty or damaged puts a new
one in its place, while every process goes on serving.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

log = logging.getLogger("prompt_image_proxy.index")

T = TypeVar("T")

SCHEMA_VERSION = 1
# Totals by triggers: counting a million rows for /status would take a second. INSERT OR REPLACE
# would not fire the delete trigger: write ON CONFLICT DO UPDATE.
SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE entries (
    key TEXT NOT NULL UNIQUE,
    file TEXT,              -- the name of the picture's file, or
    url TEXT,               -- where an image host keeps it
    media_type TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    mtime_ns INTEGER,
    digest TEXT,            -- SHA-256 in hex; NULL until a found file is looked into
    created REAL NOT NULL,  -- seconds since the epoch, as is `used`
    used REAL NOT NULL,
    prompt TEXT, width INTEGER, height INTEGER, model TEXT, seed INTEGER,
    optimized TEXT, rewritten TEXT, revised TEXT, drawn_by TEXT
);
CREATE INDEX entries_by_use ON entries (used);
CREATE INDEX entries_by_age ON entries (created);
CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + iif(new.file IS NULL, 0, new.bytes);
END;
CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - iif(old.file IS NULL, 0, old.bytes);
END;
CREATE TRIGGER entry_changed AFTER UPDATE OF file, bytes ON entries BEGIN
    UPDATE totals SET bytes = bytes + iif(new.file IS NULL, 0, new.bytes)
                                    - iif(old.file IS NULL, 0, old.bytes);
END;
CREATE TABLE notes (
    kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    created REAL NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (kind, key)
);
CREATE INDEX notes_by_expiry ON notes (expires);
CREATE INDEX notes_by_age ON notes (created);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_CODE_SHORT_READ = 522  # SQLITE_IOERR_SHORT_READ
# What opening ends with where the files beside the database can be neither made nor written.
_UNWRITABLE = (
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)


class Unavailable(Exception):
    """The index cannot be used just now: a full disk, a read-only folder, a lock held too long."""


_ON_CONNECT = """
PRAGMA synchronous = NORMAL;
PRAGMA cache_size = -1024;
PRAGMA journal_size_limit = 4194304;
"""


class _Connection(sqlite3.Connection):
    generation = -1  # of no pool: closed after use
    identity: tuple[int, int] | None = None


class Index:
    """A pool of connections to one database, which is made anew when it is lost.

    `restore` fills a new database with what can be found again and returns how much that was.
    """

    def __init__(self, path: Path, restore: Callable[[sqlite3.Connection], int]) -> None:
        self.path = path
        self.restore = restore
        # Last in, first out: few connections are ever open, however many threads there are.
        self._idle: deque[_Connection] = deque()
        self._generation = 0
        self._identity: tuple[int, int] | None = None
        self._checked = 0.0
        self._complained: dict[str, float] = {}

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return `work(connection)`. Raises Unavailable; a lost database is replaced first."""
        for may_heal in (True, False):
            connection = None
            try:
                connection = self._borrow()
                result = work(connection)
            # A damaged schema can be quoted in a message that is no UTF-8.
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                lost = connection.identity if connection else self._found()
                if connection:
                    connection.close()
                if not (may_heal and self._heal(error, lost)):
                    raise self._unavailable(error) from error
            else:
                self._give_back(connection)
                return result
        raise AssertionError("the second attempt returns or raises")

    def close(self) -> None:
        self._generation += 1
        while self._idle:
            self._idle.pop().close()

    def _borrow(self) -> _Connection:
        if time.monotonic() - self._checked > 1.0:
            self._notice_replacement()
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    def _give_back(self, connection: _Connection) -> None:
        if connection.generation == self._generation:
            self._idle.append(connection)
        else:
            connection.close()

    def _open(self) -> _Connection:
        if self._found() is None:
            self._replace(lost=None)
        generation, identity = self._generation, self._found()
        try:
            # mode=rw: the default would quietly make an empty database without tables.
            connection = self._connect("mode=rw")
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code & 0xFF not in _UNWRITABLE or code == _CODE_SHORT_READ:
                raise
            with contextlib.suppress(sqlite3.Error):
                # Started on a full disk or in a read-only folder: reading is still possible.
                return self._connect("mode=ro&immutable=1")
            raise
        connection.generation, connection.identity = generation, identity
        self._identity = identity
        return connection

    def _connect(self, how: str) -> _Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?{how}",
            uri=True,
            timeout=5.0,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        try:
            connection.executescript(_ON_CONNECT)
            if connection.execute("PRAGMA user_version").fetchone() != (SCHEMA_VERSION,):
                raise sqlite3.DatabaseError("no such schema")
        except BaseException:
            connection.close()
            raise
        return connection

    def _found(self) -> tuple[int, int] | None:
        """Return which file is there, or None for none or an empty one."""
        # Only ever stat: opening and closing the file would drop SQLite's locks on it.
        try:
            stat = os.stat(self.path)
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino) if stat.st_size else None

    def _notice_replacement(self) -> None:
        """Let go of a database that is no longer the one in the folder."""
        self._checked = time.monotonic()
        if self._identity is not None and self._found() != self._identity:
            self._identity = None
            self.close()

    def _heal(self, error: Exception, lost: tuple[int, int] | None) -> bool:
        """Replace the file `lost`, if `error` says so; return whether trying again can help."""
        code = getattr(error, "sqlite_errorcode", 0)
        # A connection to a file that was moved away, or opened while the folder was read-only,
        # can never write again; a new one may.
        if code & 0xFF == sqlite3.SQLITE_READONLY or isinstance(error, FileNotFoundError):
            self.close()
            return True
        is_damaged = (
            code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            or code == _CODE_SHORT_READ
            or isinstance(error, UnicodeDecodeError)
            or str(error).startswith(("no such", "Could not decode", "unsupported file format"))
        )
        if not is_damaged:
            return False
        try:
            self._replace(lost)
        except (sqlite3.Error, OSError) as failure:
            raise self._unavailable(failure) from failure
        return True

    def _replace(self, lost: tuple[int, int] | None) -> None:
        """Put a new database where `lost` is, or where none is; another process may be first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            found = self._found()
            if found is None or found == lost:
                self._build(was_there=self.path.exists())
        self.close()

    def _build(self, was_there: bool) -> None:
        fresh = self.path.with_name(f"{self.path.name}-{secrets.token_hex(4)}.tmp")
        try:
            with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
                connection.executescript(SCHEMA)
                connection.execute("BEGIN")
                count = self.restore(connection)
                connection.execute("COMMIT")
            if was_there:
                self.path.replace(self.path.with_name(f"{self.path.name}.damaged"))
            for leftover in ("-wal", "-shm"):
                self.path.with_name(self.path.name + leftover).unlink(missing_ok=True)
            fresh.replace(self.path)
        finally:
            fresh.unlink(missing_ok=True)
        if was_there or count:
            log.warning("The cache's index was lost: made a new one, %d pictures found", count)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self.path.with_name(f"{self.path.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _unavailable(self, error: Exception) -> Unavailable:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        # What cannot be decoded is quoted in the message: a prompt, perhaps.
        reason = (reason or type(error).__name__).partition(" with text ")[0]
        now = time.monotonic()
        if now - self._complained.get(reason, -60.0) >= 60.0:
            self._complained[reason] = now
            log.error("The cache's index cannot be used: %s", reason)
        return Unavailable(reason)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing. A failure needs no rollback: the pool closes the connection."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")
