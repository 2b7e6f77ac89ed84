"""Locks between machines: PostgreSQL's advisory locks, which end with their holder's connection.

See "Advisory Locks" in PostgreSQL's manual.
"""

from __future__ import annotations

from storage import Unavailable
from storage.cluster.connection import Connection
from storage.cluster.server import Server
from storage.key_locks import ProcessLocks


class AdvisoryLocks(ProcessLocks):
    """A lock for each key, all of them held by the one connection of `server`.

    A lost connection loses the locks: at worst, a picture is drawn twice. `hold` raises
    Unavailable without a server.
    """

    longest_pause = 0.25

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def close(self) -> None:
        """Give up every lock; later calls open another connection."""
        self._server.close()

    def _take(self, key: str) -> bool:
        return self._call("pg_try_advisory_lock", key)

    def _release(self, key: str) -> None:
        try:
            # Of a connection that was opened since, the server says that it holds no such lock.
            self._call("pg_advisory_unlock", key)
        except Unavailable:
            # The other locks of the connection go, too: this one would keep everybody out.
            self.close()

    def _call(self, function: str, key: str) -> bool:
        def work(connection: Connection) -> bool:
            found = connection.execute(f"SELECT {function}(%s)", (lock_number(key),)).fetchone()
            return found == (True,)

        return self._server.run(work)


def lock_number(key: str) -> int:
    """Return 63 bits of a key in hex digits: not negative as a bigint."""
    return int(key[:16], 16) >> 1
