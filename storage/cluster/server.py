"""The PostgreSQL server: a pool of connections to it, and what happens while it is down.

Nothing is opened before the first call, so that processes can be forked until then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from storage import Unavailable
from storage.cluster.connection import Connection
from storage.cluster.diagnosis import explain, explained
from storage.gate import Down, Gate
from storage.lasting_fault import LastingFault

log = logging.getLogger("prompt_image_proxy.database")

T = TypeVar("T")

# How long a call waits for a connection that is free; the first host of several may be dead.
_FREE_SECONDS = 3.0
# A shorter probe finds out sooner that the server is back.
_PROBE_SECONDS = 2.0
_SILENT = "the database does not answer in time"


class Server:
    """At most `size` connections to the database at `url`, each for at most `lifetime` seconds.

    A call ends within `seconds`. While the server is down, `gate` lets few calls through.
    """

    def __init__(
        self, url: str, size: int, gate: Gate, seconds: float, lifetime: float = 3600.0
    ) -> None:
        self._url = url
        self._size = size
        self._gate = gate
        self._seconds = seconds
        self._lifetime = lifetime
        self._refusals = LastingFault(
            log, "The database refused a call: %s", "The database takes calls again"
        )
        self._pool: ConnectionPool[Connection] | None = None
        self._mutex = threading.Lock()

    def run(self, work: Callable[[Connection], T]) -> T:
        """Return `work(connection)`. Raises Unavailable.

        `work` is run once more on a new connection if the first turns out to be lost, although the
        server may have done it the first time.
        """
        with self._gate.ask() as is_probe:
            seconds = min(_PROBE_SECONDS, self._seconds) if is_probe else self._seconds
            deadline = time.monotonic() + seconds
            try:
                return self._run(work, deadline)
            except _Lost:
                return self._run(work, deadline)

    def check(self, seconds: float, work: Callable[[Connection], object]) -> None:
        """Connect without the pool, do `work`, and leave nothing open. Raises Unavailable."""
        connect = Connection.connect(self._url, seconds=seconds, report=lambda fault: None)
        with explained(), closing(connect) as connection:
            work(connection)

    def close(self) -> None:
        """Close every connection; the next call opens others."""
        with self._mutex:
            pool, self._pool = self._pool, None
        if pool:
            pool.close(timeout=0)

    def _run(self, work: Callable[[Connection], T], deadline: float) -> T:
        pool = self._open()
        try:
            with pool.connection(min(_FREE_SECONDS, deadline - time.monotonic())) as connection:
                connection.deadline = deadline
                result = work(connection)
        except PoolTimeout as error:
            raise Down(self._gate.fault or _SILENT) from error
        except psycopg.Error as error:
            # The server has answered, and not that it ends the session (57P01 …).
            if error.sqlstate and not error.sqlstate.startswith("57P"):
                self._refusals.begin(reason := explain(error))
                raise Unavailable(reason) from error
            pool.drain()  # the other connections may be as dead
            if time.monotonic() >= deadline:
                raise Down(_SILENT) from error
            raise _Lost(explain(error)) from error
        self._refusals.end()
        return result

    def _open(self) -> ConnectionPool[Connection]:
        with self._mutex:
            if self._pool is None:
                # It would log every request, and failures with the user's name.
                logging.getLogger("psycopg").setLevel(logging.CRITICAL)
                self._pool = ConnectionPool(
                    self._url,
                    connection_class=Connection,
                    kwargs={"seconds": self._seconds, "report": self._gate.note},
                    min_size=1,
                    max_size=self._size,
                    max_lifetime=self._lifetime,
                    # It would try again at ever longer intervals; a probe makes it try at once.
                    reconnect_timeout=_PROBE_SECONDS,
                    num_workers=1,
                    open=True,
                )
            return self._pool


class _Lost(Down):
    """The connection was lost; another one may do better."""
