"""The state of a single machine: a SQLite database and a file of locks."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from metrics import OFF, Metrics
from storage import Totals
from storage.local.database import Database, transaction
from storage.local.locks import Locks
from storage.relational import Found, RelationalState, Step, Values


class SqliteState(RelationalState):
    """The state in a folder: `index.sqlite3` and `locks`."""

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Metrics = OFF,
    ) -> None:
        super().__init__(metrics)
        self._database = Database(directory / "index.sqlite3", monotonic)
        self._locks = Locks(directory / "locks")
        self._clock = clock

    @property
    def epoch(self) -> int:
        with contextlib.suppress(OSError):
            self._database.notice_replacement()
        return self._database.epoch

    def totals(self) -> Totals:
        def work(connection: sqlite3.Connection) -> Totals:
            row = connection.execute("SELECT entries, bytes FROM totals").fetchone()
            if row is None or not all(isinstance(total, int) for total in row):
                raise sqlite3.DatabaseError("no such totals")
            return Totals(**row)

        with self._metrics.state_call("totals"):
            return self._database.run(work)

    def hold(self, key: str, seconds: float) -> AbstractContextManager[bool]:
        return self._locks.hold(key, seconds)

    def check(self) -> None:
        self.totals()

    def close(self) -> None:
        self._database.close()
        self._locks.close()

    # --- ways to run statements

    def _select(self, name: str, statement: str, values: Values) -> Found:
        timed = self._timed(values)
        with self._metrics.state_call(name):
            return self._database.run(lambda c: c.execute(statement, timed).fetchall())

    def _execute(self, name: str, statement: str, values: Sequence[Values]) -> int:
        timed = [self._timed(each) for each in values]

        def work(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                return connection.executemany(statement, timed).rowcount

        with self._metrics.state_call(name):
            return self._database.run(work)

    def _transact(self, name: str, key: str, *steps: Step) -> list[Found]:
        # SQLite runs one writing transaction at a time, whatever its key.
        timed = [(statement, self._timed(values)) for statement, values in steps]

        def work(connection: sqlite3.Connection) -> list[Found]:
            with transaction(connection):
                return [connection.execute(*step).fetchall() for step in timed]

        with self._metrics.state_call(name):
            return self._database.run(work)

    def _timed(self, values: Values) -> Values:
        return {**values, "now": self._clock()}
