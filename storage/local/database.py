"""The SQLite file: connections to it, and what its errors mean.

A database that is lost or damaged is replaced while every process goes on working.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from storage import IncompatibleSchema, Unavailable
from storage.complaints import Complaints
from storage.local.locks import exclusive
from storage.local.repair import replace
from storage.local.schema import is_current, migrate
from storage.rows import decode_text

log = logging.getLogger("prompt_image_proxy.index")

T = TypeVar("T")

Identity = tuple[int, int]

# How long a statement waits for a lock; much shorter for a while after one has waited in vain: a
# backup that holds the write lock must not delay one drawing after the other.
BUSY_SECONDS = 5.0
_IMPATIENT_SECONDS = 0.1

_CODE_SHORT_READ = 522  # SQLITE_IOERR_SHORT_READ
# The errors of opening a database whose -wal and -shm can be neither created nor written.
_UNWRITABLE = (
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)
# A damaged schema can be quoted in a message that is not UTF-8.
_ERRORS = (sqlite3.Error, OSError, UnicodeDecodeError)

_ON_CONNECT = """
PRAGMA synchronous = NORMAL;
PRAGMA cache_size = -1024;
PRAGMA journal_size_limit = 4194304;
"""


class _Connection(sqlite3.Connection):
    generation = -1  # of no pool: closed after use
    identity: Identity | None = None
    is_snapshot = False
    patience = BUSY_SECONDS


class Database:
    """A pool of connections to the database at `path`."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.epoch = 0
        self._monotonic = monotonic
        # Last in, first out: few connections are ever open, however many threads there are.
        self._idle: deque[_Connection] = deque()
        self._generation = 0
        self._is_closed = False
        self._identity: Identity | None = None
        self._mutex = threading.Lock()
        self._checked = 0.0
        self._impatient_until = 0.0
        self._complaints = Complaints(log, "The index cannot be used: %s", monotonic)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return `work(connection)`. Raises Unavailable; a lost database is replaced first."""
        for may_recover in (True, False):
            connection = None
            try:
                connection = self._borrow()
                result = work(connection)
            except IncompatibleSchema as error:
                self._complaints.add(str(error))
                raise
            except _ERRORS as error:
                if connection:
                    connection.close()
                if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                    self._impatient_until = self._monotonic() + BUSY_SECONDS
                if not (may_recover and self._recover(error, connection)):
                    raise self._unavailable(error) from error
            except BaseException:
                if connection:
                    connection.close()
                raise
            else:
                self._give_back(connection)
                return result
        raise AssertionError("the second attempt returns or raises")

    def close(self) -> None:
        """Close every connection; those in use, and later ones, are closed after use."""
        self._is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        """Close the connections in the pool; those in use are closed when they are given back."""
        self._generation += 1
        while self._idle:
            self._idle.pop().close()

    # --- connections

    def _borrow(self) -> _Connection:
        if self._monotonic() - self._checked > 1.0:
            self.notice_replacement()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        is_impatient = self._monotonic() < self._impatient_until
        patience = _IMPATIENT_SECONDS if is_impatient else BUSY_SECONDS
        if connection.patience != patience:
            connection.execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
            connection.patience = patience
        return connection

    def _give_back(self, connection: _Connection) -> None:
        if self._is_closed or connection.generation != self._generation:
            connection.close()
            return
        self._idle.append(connection)
        if self._is_closed or connection.generation != self._generation:  # closed meanwhile
            self._close_idle()

    def _open(self) -> _Connection:
        if self._find() is None:
            self._replace(lost=None)
        identity = self._find()
        try:
            # mode=rw: the default would quietly make an empty database without tables.
            connection = self._connect("mode=rw")
        except sqlite3.OperationalError as error:
            with contextlib.suppress(sqlite3.Error):
                if self._is_whole_without_wal(error):
                    return self._open_snapshot()
            raise
        connection.identity = identity
        self.notice_replacement()
        generation = self._generation
        # Otherwise it may be a connection to the file that was there before.
        if identity == self._identity:
            connection.generation = generation
        return connection

    def _open_snapshot(self) -> _Connection:
        """Open for one use: another process may be able to write at any moment."""
        connection = self._connect("mode=ro&immutable=1")
        connection.is_snapshot = True
        return connection

    def _is_whole_without_wal(self, error: sqlite3.OperationalError) -> bool:
        """Whether opening failed for want of a WAL that has nothing in it.

        It does on a full disk and in a read-only folder after every process had closed the
        database. SQLite opens it only if told that no process writes (`immutable`), and would then
        ignore a WAL: so there must be none, or an empty one.
        """
        code = error.sqlite_errorcode
        return (
            code & 0xFF in _UNWRITABLE
            and code != _CODE_SHORT_READ
            and _size_of(self.path.with_name(f"{self.path.name}-wal")) == 0
        )

    def _connect(self, mode: str) -> _Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?{mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.text_factory = decode_text
            connection.executescript(_ON_CONNECT)
            if not is_current(connection):
                with self._exclusive():
                    migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    # --- recovery

    def _find(self) -> Identity | None:
        """Return which file is at the path, or None for none or an empty one."""
        # Only ever stat: opening and closing the file would drop SQLite's locks on it.
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (found.st_dev, found.st_ino) if found.st_size else None

    def notice_replacement(self) -> bool:
        """Return whether the database at the path is another than before, having counted an epoch.

        The connections to that one are closed: its rows are out of date from now on.
        """
        self._checked = self._monotonic()
        with self._mutex:
            identity = self._find()
            is_new = self._identity not in (None, identity)
            self._identity = identity
            self.epoch += is_new
        if is_new:
            self._close_idle()
        return is_new

    def _recover(self, error: Exception, connection: _Connection | None) -> bool:
        """Return whether to try again, having replaced the database if `error` calls for it."""
        code = getattr(error, "sqlite_errorcode", 0)
        # A connection to a file that was moved away, or opened while the folder was read-only,
        # can never write again; a new one may.
        if code & 0xFF == sqlite3.SQLITE_READONLY or isinstance(error, FileNotFoundError):
            self._close_idle()
            return True
        # While one process reads a snapshot, another may write: what it reads proves nothing.
        if not _is_damage(error) or (connection and connection.is_snapshot):
            return False
        try:
            self._replace(connection.identity if connection else self._find())
        except (sqlite3.Error, OSError) as failure:
            raise self._unavailable(failure) from failure
        return True

    def _replace(self, lost: Identity | None) -> None:
        """Put a new database where `lost` is, or where none is; another process may be first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            if self._find() in (None, lost):
                replace(self.path)
        self._close_idle()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with exclusive(self.path.with_name(f"{self.path.name}.lock")):
            yield

    def _unavailable(self, error: Exception) -> Unavailable:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self._complaints.add(reason := reason or type(error).__name__)
        return Unavailable(reason)


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return (
        code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        or code == _CODE_SHORT_READ
        or isinstance(error, UnicodeDecodeError)
        or str(error).startswith(("no such", "unsupported file format"))
    )


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing. A failure needs no rollback: the pool closes the connection."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")
