"""The SQLite file: connections to it, and what its errors mean."""

import contextlib
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from storage import IncompatibleSchema, Unavailable
from storage.gate import LastingFault
from storage.local.locks import exclusive
from storage.local.schema import Connection, Identity, connect, migrate

log = logging.getLogger("prompt_image_proxy.index")

T = TypeVar("T")

# How long a statement waits for the lock of another one, or of a backup program.
PATIENCE_SECONDS = 30.0

_SHORT_READ = 522  # SQLITE_IOERR_SHORT_READ
# A damaged schema can be quoted in a message that is not UTF-8.
_ERRORS = (sqlite3.Error, OSError, UnicodeDecodeError)

_ON_CONNECT = """
PRAGMA synchronous = NORMAL;
PRAGMA cache_size = -1024;
PRAGMA journal_size_limit = 4194304;
"""


class Database:
    """A pool of connections to the database at `path`.

    If the file is missing or damaged, the call that finds out has `restore` put another one in
    its place.
    """

    def __init__(self, path: Path, restore: Callable[[], None]) -> None:
        self.path = path
        self._restore = restore
        self.fault = LastingFault(log, "The index", "used")
        # Last in, first out: few connections are ever open, however many threads there are.
        self._idle: deque[Connection] = deque()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return `work(connection)`. Raises Unavailable."""
        for may_mend in (True, False):
            identity = failed = None
            try:
                identity = self._find()
                failed = connection = self._borrow(identity)
                self._prepare(connection)
                result = work(connection)
                failed = None
                self._idle.append(connection)
                return result
            except IncompatibleSchema as error:
                self.fault.begin(str(error))
                raise
            except _ERRORS as error:
                is_mended = may_mend and self._mend(error, identity)
                if failed and _is_full(error):
                    # Its last connection takes the -shm file along, which needs room to come back.
                    failed.rollback()
                    self._idle.append(failed)
                    failed = None
                else:
                    # Others may be as useless: one opened in a read-only folder stays read-only.
                    self._close_idle()
                if not is_mended:
                    raise self._unavailable(error) from error
            finally:
                # After a damaged database was moved: before, SQLite would delete its WAL.
                if failed:
                    failed.close()
        raise AssertionError("the second attempt returns or raises")

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return `work(connection)`, done in a transaction: all or nothing. Raises Unavailable."""

        def in_transaction(connection: sqlite3.Connection) -> T:
            # A failure needs no rollback here: the connection is closed, or goes back without it.
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
            return result

        result = self.read(in_transaction)
        self.fault.end()
        return result

    def identity(self) -> Identity:
        """Return which file is at the path, made if there was none. Raises Unavailable."""
        return self.read(lambda connection: connection.identity)

    def close(self) -> None:
        """Close every connection that is not in use; later calls open others."""
        self._close_idle()
        # SQLite reads nothing without this file, deletes it, and cannot make it on a full disk.
        with contextlib.suppress(OSError):
            if self._find():
                with self.path.with_name(f"{self.path.name}-shm").open("xb") as file:
                    file.write(bytes(32768))

    # --- connections

    def _borrow(self, identity: Identity | None) -> Connection:
        if identity is None:
            self._replace(None)
            identity = self._find() or Connection.identity
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.identity == identity:
                    return connection
                connection.close()
        connection = connect(self.path, PATIENCE_SECONDS)
        # Of the file before, if another one was put in its place just now: it is used once.
        connection.identity = identity
        return connection

    def _prepare(self, connection: Connection) -> None:
        if connection.is_prepared:
            return
        connection.row_factory = sqlite3.Row
        connection.executescript(_ON_CONNECT)
        # A backup that was put back has another mode, and keeps it in a read-only folder.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection)
        connection.is_prepared = True

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _find(self) -> Identity | None:
        """Return which file is at the path, or None for none or an empty one. Raises OSError."""
        # Only ever stat: opening and closing the file would drop SQLite's locks on it.
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (found.st_dev, found.st_ino) if found.st_size else None

    # --- faults

    def _mend(self, error: Exception, identity: Identity | None) -> bool:
        """Return whether to try again, maybe with another database in place."""
        try:
            if self._find() != identity:
                return True  # another process has replaced it
            if _is_damage(error):
                self._replace(identity)
                return True
        except _ERRORS as failure:
            raise self._unavailable(failure) from failure
        return _code(error) & 0xFF == sqlite3.SQLITE_READONLY

    def _replace(self, lost: Identity | None) -> None:
        """Put another database where `lost` is, or where none is; another process may be first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path.with_name(f"{self.path.name}.lock")):
            if self._find() in (None, lost):
                self._restore()

    def _unavailable(self, error: Exception) -> Unavailable:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self.fault.begin(reason := reason or type(error).__name__)
        return Unavailable(reason)


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0)


def _is_full(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


def _is_damage(error: Exception) -> bool:
    return (
        _code(error) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        or _code(error) == _SHORT_READ
        or isinstance(error, UnicodeDecodeError)
        or str(error).startswith(("no such", "unsupported file format"))
    )
