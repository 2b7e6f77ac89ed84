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

    @contextmanager
    def hold(self, key: str, seconds: float) -> Iterator[None]:
        """Hold the lock of `key` (hex digits).

        Raises LockTimeout after `seconds`, and Unavailable without a server.
        """
        number, end = lock_number(key), time.monotonic() + seconds
        with self._threads.hold(key, seconds):
            pause = 0.0
            while not self._call("pg_try_advisory_lock", number):
                if time.monotonic() >= end:
                    raise LockTimeout
                pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)
                self._sleep(min(pause, max(0.0, end - time.monotonic())))
            try:
                yield
            finally:
                self._release(number)

    def close(self) -> None:
        """Give up every lock; later calls open another connection."""
        self._server.close()

    def _release(self, number: int) -> None:
        try:
            # Of a connection that was opened since, the server says that it holds no such lock.
            self._call("pg_advisory_unlock", number)
        except Unavailable:
            # The other locks of the connection go, too: this one would keep everybody out.
            self.close()

    def _call(self, function: str, number: int) -> bool:
        def work(connection: Connection) -> bool:
            found = connection.execute(f"SELECT {function}(%s)", (number,)).fetchone()
            return found == (True,)

        return self._server.run(work)


def lock_number(key: str) -> int:
    """Return 63 bits of a key in hex digits: not negative as a bigint."""
    return int(key[:16], 16) >> 1
