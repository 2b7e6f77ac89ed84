"""The PostgreSQL server: a pool of connections, what bounds every call, and outages.

Nothing is opened before the first call, so that processes can be forked until then.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg_pool import ConnectionPool

from storage import Unavailable
from storage.cluster.connection import Connection, parameters
from storage.cluster.diagnosis import explain
from storage.complaints import Complaints

T = TypeVar("T")

# How long a call may take in all.
CALL_SECONDS = 5.0
# Of that, for one statement: a slow one must not look like a server that does not answer.
_STATEMENT_SHARE = 0.8
# While the server is away, one call in so many seconds tries whether it is back, for at most so
# long; all others fail at once.
_PAUSE_SECONDS = 1.0
_PROBE_SECONDS = 1.5

_SILENT = "the host and port in DATABASE_URL do not answer: correct them, or open the firewall"


class Server:
    """A pool of at most `size` connections to the database at `url`.

    Once a connection is lost, all of the pool is closed, and the next call opens another.
    """

    def __init__(
        self,
        url: str,
        size: int,
        complaints: Complaints,
        prepare: Callable[[Connection], object] = lambda connection: None,
        lifetime: float = 3600.0,
        seconds: float = CALL_SECONDS,
    ) -> None:
        """`prepare` gets the database ready for use, before each pool; it may raise Unavailable.

        `lifetime` is that of a connection, and `seconds` bound each call.
        """
        self._url = url
        self._size = size
        self._complaints = complaints
        self._prepare = prepare
        self._lifetime = lifetime
        self._seconds = seconds
        self._pool: ConnectionPool[Connection] | None = None
        self._is_closed = False
        # Why the server cannot be used at the moment, and when to try again (monotonic).
        self._reason: str | None = None
        self._retry_at = 0.0
        self._opening = threading.Lock()
        self._mutex = threading.Lock()

    def run(self, work: Callable[[Connection], T]) -> T:
        """Return `work(connection)`. Raises Unavailable, within `seconds`.

        `work` is run once more on a new connection if the first turns out to be lost, although the
        server may have done it the first time.
        """
        deadline = time.monotonic() + self._seconds
        for may_retry in (True, False):
            pool = self._open(deadline)
            try:
                with _borrowed(pool, deadline) as connection:
                    return work(connection)
            except psycopg.Error as error:
                reason = self._examine(error, pool, deadline)
                if reason or not may_retry:
                    raise self._unavailable(reason or explain(error)) from error
            finally:
                if self._is_closed:
                    self._discard(pool)
        raise AssertionError("the second attempt returns or raises")

    def check(
        self, seconds: float, work: Callable[[Connection], object] = lambda connection: None
    ) -> None:
        """Connect without a pool, prepare the database, do `work`, and leave nothing open.

        Raises Unavailable. In a thread of its own, as a look-up of the host has no time-out.
        """
        outcome: Future[None] = Future()
        settings = self._parameters()

        def attempt() -> None:
            try:
                with closing(Connection.connect(self._url, **settings)) as connection:
                    connection.deadline = time.monotonic() + seconds
                    self._prepare(connection)
                    work(connection)
                # Even if the caller has given up: finding the one host of several that answers
                # can take longer than a call may.
                self._reason = None
                outcome.set_result(None)
            except (psycopg.Error, Unavailable) as error:
                outcome.set_exception(error)

        threading.Thread(target=attempt, daemon=True).start()
        try:
            outcome.result(seconds)
        except TimeoutError as error:
            raise Unavailable(_SILENT) from error
        except psycopg.Error as error:
            raise Unavailable(explain(error)) from error

    def reset(self) -> None:
        """Close every connection; the next call opens others."""
        if pool := self._pool:
            self._discard(pool)

    def close(self) -> None:
        """Close every connection, from now on after each call."""
        self._is_closed = True
        self.reset()

    # --- the pool

    def _open(self, deadline: float) -> ConnectionPool[Connection]:
        """Return the pool; open one unless another call has just found that it cannot be."""
        if pool := self._pool:
            return pool
        patience = 0 if self._reason else max(0.0, deadline - time.monotonic())
        if not self._opening.acquire(timeout=patience):
            raise self._unavailable(self._reason or _SILENT)
        try:
            if not (pool := self._pool):
                self._try(deadline)
                self._pool = pool = self._make_pool()
            return pool
        finally:
            self._opening.release()

    def _try(self, deadline: float) -> None:
        """Raise Unavailable unless the server answers. Not asked twice within _PAUSE_SECONDS."""
        reason, now = self._reason, time.monotonic()
        if reason and now < self._retry_at:
            raise self._unavailable(reason)
        self._retry_at = now + _PAUSE_SECONDS
        try:
            self.check(min(deadline - now, _PROBE_SECONDS if reason else math.inf))
        except Unavailable as error:
            self._complaints.add(str(error))
            # An attempt that was given up may since have removed the one there was.
            if not reason:
                self._reason = str(error)
            raise

    def _make_pool(self) -> ConnectionPool[Connection]:
        # It logs every request at INFO, and failures with the user's name; we log the latter.
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
        return ConnectionPool(
            self._url,
            connection_class=Connection,
            kwargs=self._parameters(),
            min_size=1,
            max_size=self._size,
            max_lifetime=self._lifetime,
            # Its attempts come at ever longer intervals; a call that waits in vain ends the pool.
            reconnect_timeout=self._seconds,
            num_workers=1,
            open=True,
        )

    def _parameters(self) -> dict[str, Any]:
        return parameters(self._url, self._seconds * _STATEMENT_SHARE)

    def _examine(
        self, error: psycopg.Error, pool: ConnectionPool[Connection], deadline: float
    ) -> str | None:
        """Return why a call has failed, or None if another connection may do better.

        A pool that has lost its server is discarded.
        """
        # The server has reported an error, other than that it ends the session (57P01 …).
        if error.sqlstate and not error.sqlstate.startswith("57P"):
            return explain(error)
        reason = _SILENT if time.monotonic() >= deadline else None
        self._discard(pool, reason)
        return reason

    def _discard(self, pool: ConnectionPool[Connection], reason: str | None = None) -> None:
        """Close a pool, and for a `reason` open none for a while.

        Connections in use are closed when they are given back.
        """
        with self._mutex:
            if self._pool is pool:
                self._pool = None
                self._reason, self._retry_at = reason, time.monotonic() + _PAUSE_SECONDS
        pool.close(timeout=0)

    def _unavailable(self, reason: str) -> Unavailable:
        self._complaints.add(reason)
        return Unavailable(reason)


@contextmanager
def _borrowed(pool: ConnectionPool[Connection], deadline: float) -> Iterator[Connection]:
    connection = pool.getconn(deadline - time.monotonic())
    connection.deadline = deadline
    try:
        yield connection
    except BaseException:
        connection.close()  # which also rolls back
        raise
    finally:
        pool.putconn(connection)
