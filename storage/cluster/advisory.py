"""Locks between machines: PostgreSQL's advisory locks, which end with their holder's connection.

See "Advisory Locks" in PostgreSQL's manual.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storage import LockTimeout, Unavailable
from storage.cluster.connection import Connection
from storage.cluster.server import Server
from storage.key_locks import KeyLocks

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.25


class AdvisoryLocks:
    """A lock for each key, all of them held by the one connection of `server`.

    A lost connection loses the locks: at worst, a picture is drawn twice.
    """

    def __init__(self, server: Server, sleep: Callable[[float], None] = time.sleep) -> None:
        self._server = server
        self._sleep = sleep
        self._threads = KeyLocks()

    def close(self) -> None:
        """Give up every lock; later calls open another connection."""
        self._server.close()

    @contextmanager
    def hold(self, key: str, seconds: float) -> Iterator[bool]:
        """Hold the lock of `key` (hex digits); yield whether it had to be waited for.

        Raises LockTimeout after `seconds`, and Unavailable without a server.
        """
        number, end = lock_number(key), time.monotonic() + seconds
        with self._threads.hold(key, seconds) as has_waited:
            holder, was_held = self._acquire(number, end)
            try:
                yield has_waited or was_held
            finally:
                self._release(holder, number)

    def _acquire(self, number: int, end: float) -> tuple[Connection, bool]:
        """Return the connection that holds the lock, and whether another process held it."""

        def try_lock(connection: Connection) -> Connection | None:
            query = "SELECT pg_try_advisory_lock(%s)"
            found = connection.execute(query, (number,)).fetchone()
            return connection if found and found[0] else None

        pause = 0.0
        while not (holder := self._server.run(try_lock)):
            if time.monotonic() >= end:
                raise LockTimeout
            pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)
            self._sleep(min(pause, max(0.0, end - time.monotonic())))
        return holder, pause > 0

    def _release(self, holder: Connection, number: int) -> None:
        def unlock(connection: Connection) -> None:
            if connection is holder:
                connection.execute("SELECT pg_advisory_unlock(%s)", (number,))

        try:
            self._server.run(unlock)
        except Unavailable:
            holder.close()  # and give up its other locks, too: nobody else may wait for this one


def lock_number(key: str) -> int:
    """Return 63 bits of a key in hex digits: not negative as a bigint."""
    return int(key[:16], 16) >> 1
