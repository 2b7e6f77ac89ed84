"""The state of a single machine: a SQLite database and a file of locks."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from storage import IncompatibleSchema, Totals, Unavailable
from storage.local.backup import DailyBackup, Damage
from storage.local.database import Database
from storage.local.folder import owner_fault
from storage.local.locks import Locks
from storage.state import Found, State, Step, Values
from storage.store import HOUR, Task


@dataclass
class SqliteState(State):
    """The state in a folder: `index.sqlite3`, `locks`, and in `backup` a copy of the index.

    The copy is made only where `spare_bytes` stay free.
    """

    directory: Path
    clock: Callable[[], float] = time.time
    spare_bytes: int = 0

    def __post_init__(self) -> None:
        index = self.directory / "index.sqlite3"
        self._backup = DailyBackup(index, self.spare_bytes, self.clock)
        self._database = Database(index, self._backup.restore)
        self._locks = Locks(self.directory / "locks")

    @property
    def epoch(self) -> object:
        return self._database.identity()

    @property
    def fault(self) -> str | None:
        if reason := self._database.fault.reason:
            return f"the index cannot be used: {reason}"
        with contextlib.suppress(Unavailable):
            damage = self.recall(Damage, Damage.key)
            if damage and (self.directory / damage.note.aside).exists():
                return str(damage.note)
        return None

    def totals(self) -> Totals:
        def work(connection: sqlite3.Connection) -> Totals:
            row = connection.execute("SELECT entries, bytes FROM totals").fetchone()
            if row is None or not all(isinstance(total, int) for total in row):
                raise sqlite3.DatabaseError("no such totals")
            return Totals(**row)

        with self.metrics.state_call("totals"):
            return self._database.read(work)

    def delete(self, key: str) -> bool:
        try:
            return super().delete(key)
        finally:
            self._backup.delete(key)

    def hold(self, key: str, seconds: float) -> AbstractContextManager[None]:
        return self._locks.hold(key, seconds)

    def check(self) -> None:
        if fault := owner_fault(self.directory):
            raise Unavailable(fault)
        try:
            self.totals()
        except IncompatibleSchema:
            raise
        except Unavailable as error:
            reason = f"the index cannot be opened or created there ({error})"
            raise Unavailable(f"{reason}; write the path of another folder") from error

    def tasks(self) -> tuple[Task, ...]:
        # The first finds out whether the index can be written, for /status.
        probe = Task(lambda: self._database.write(lambda connection: None), 5)
        return probe, Task(self._backup.make, HOUR, HOUR)

    def close(self) -> None:
        self._database.close()
        self._locks.close()

    # --- ways to run statements

    def _select(self, name: str, statement: str, values: Values) -> Found:
        timed = self._timed(values)
        with self.metrics.state_call(name):
            return self._database.read(lambda c: c.execute(statement, timed).fetchall())

    def _execute(self, name: str, statement: str, values: Sequence[Values]) -> int:
        timed = [self._timed(each) for each in values]
        with self.metrics.state_call(name):
            return self._database.write(lambda c: c.executemany(statement, timed).rowcount)

    def _transact(self, name: str, key: str, *steps: Step) -> list[Found]:
        # SQLite runs one writing transaction at a time, whatever its key.
        timed = [(statement, self._timed(values)) for statement, values in steps]
        with self.metrics.state_call(name):
            return self._database.write(lambda c: [c.execute(*step).fetchall() for step in timed])

    def _timed(self, values: Values) -> Values:
        return {**values, "now": self.clock()}
