"""The state of several machines: a PostgreSQL database.

It needs a connection of its own for the locks, so a pooler in between must keep a server's
connection for as long as the client's ("session mode" in PgBouncer).
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field

from storage import Totals, Unavailable, sql
from storage.cluster.server import BoundedConnection, Server, explained, log
from storage.cluster.tables import FOLD_TOTALS, TOTALS, ensure_writable, translate
from storage.gate import Gate
from storage.state import Found, State, Step, Values
from storage.waiting import ProcessLocks


class AdvisoryLocks(ProcessLocks):
    """A lock for each key, all of them held by the one connection of `server`.

    A lost connection loses the locks: at worst, a picture is drawn twice. `hold` raises
    Unavailable without a server.
    """

    longest_pause = 0.25

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server

    def _take(self, key: str) -> bool:
        return self._call("pg_try_advisory_lock", key)

    def _release(self, key: str) -> None:
        try:
            # Of a connection that was opened since, the server says that it holds no such lock.
            self._call("pg_advisory_unlock", key)
        except Unavailable:
            # The other locks of the connection go, too: this one would keep everybody out.
            self.server.close()

    def _call(self, function: str, key: str) -> bool:
        query, number = f"SELECT {function}(%s)", (lock_number(key),)
        return self.server.run(lambda c: c.execute(query, number).fetchone()) == (True,)


def lock_number(key: str) -> int:
    """Return 63 bits of a key in hex digits: not negative as a bigint."""
    return int(key[:16], 16) >> 1


# Connections per process, beside the one of its locks. A call takes a fraction of a millisecond,
# so eight serve thousands a second, and ten processes stay below PostgreSQL's default of 100.
CONNECTIONS = 8
# How long a call may take. With a probe after it, a request ends within six seconds.
CALL_SECONDS = 4.0
# A first start has to say within 10 s what is wrong.
_CHECK_SECONDS = 8.0


@dataclass
class PostgresState(State):
    """The state in the database at `url`, in the schema that its search_path leads to.

    `seconds` bound each call.
    """

    # It never changes: whoever replaces the database, say by a backup, restarts the service.
    epoch = 0

    url: str = field(repr=False)
    seconds: float = CALL_SECONDS

    def __post_init__(self) -> None:
        self._gate = Gate(log, "The database", "used")
        self._server = Server(self.url, CONNECTIONS, self._gate, self.seconds)
        lock_server = Server(self.url, 1, self._gate, self.seconds, lifetime=math.inf)
        self._locks = AdvisoryLocks(lock_server)

    @property
    def fault(self) -> str | None:
        return self._gate.reason

    # --- rows

    def totals(self) -> Totals:
        [(entries, size)] = self._select("totals", TOTALS, {})
        return Totals(entries, size)

    def expire(self) -> None:
        self._transact("expire", "0", (sql.EXPIRE, {}), (sql.TRIM, {}), (FOLD_TOTALS, {}))

    # --- locks and lifetime

    def hold(self, key: str, seconds: float) -> AbstractContextManager[None]:
        return self._locks.hold(key, seconds)

    def check(self) -> None:
        # Without the pool: nothing is left open.
        connect = BoundedConnection.connect(
            self.url, seconds=_CHECK_SECONDS, report=self._gate.note
        )
        with explained(), closing(connect) as connection:
            ensure_writable(connection)

    def close(self) -> None:
        self._server.close()
        self._locks.server.close()

    # --- ways to run statements, each of them one round trip

    def _select(self, name: str, statement: str, values: Values) -> Found:
        query = translate(statement)
        with self.metrics.state_call(name):
            return self._server.run(lambda c: c.execute(query, values, binary=True).fetchall())

    def _execute(self, name: str, statement: str, values: Sequence[Values]) -> int:
        query = translate(statement)
        # In one order for all, so that two of them never wait for each other's rows.
        ordered = sorted(values, key=lambda each: str(each["key"]))

        def work(connection: BoundedConnection) -> int:
            with connection.cursor() as cursor:
                cursor.executemany(query, ordered)  # one pipeline, and so one transaction
                return cursor.rowcount

        with self.metrics.state_call(name):
            return self._server.run(work)

    def _transact(self, name: str, key: str, *steps: Step) -> list[Found]:
        # Negative, so that it is not the lock that `hold` takes for the key.
        lock = "SELECT pg_advisory_xact_lock(:lock)", {"lock": ~lock_number(key)}
        queries = [(translate(query), values) for query, values in (lock, *steps)]

        def work(connection: BoundedConnection) -> list[Found]:
            # What is sent before the pipeline ends is one transaction.
            with connection.pipeline():
                cursors = [connection.execute(*query) for query in queries]
            return [cursor.fetchall() if cursor.description else [] for cursor in cursors[1:]]

        with self.metrics.state_call(name):
            return self._server.run(work)
