"""The state of a single machine: a SQLite database and a file of locks."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from storage import Note, Notes, Recalled, Row, Totals, Unavailable, sql
from storage.database import Database, transaction
from storage.locks import Locks
from storage.rows import from_columns, to_columns
from storage.unwritten import Unwritten

_NO_LIMIT = 2**53


class SqliteState:
    """The state in a folder: `index.sqlite3` and `locks`."""

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = Database(directory / "index.sqlite3", monotonic)
        self._locks = Locks(directory / "locks")
        self._clock = clock
        self._unwritten = Unwritten(clock)

    @property
    def epoch(self) -> int:
        with contextlib.suppress(OSError):
            self._database.notice_replacement()
        return self._database.epoch

    # --- rows

    def find(self, key: str) -> Row | None:
        found = self._database.run(lambda c: c.execute(sql.FIND, {"key": key}).fetchone())
        row = from_columns(found) if found else None
        # A damaged index of the table can lead to the row of another key.
        return row if row and row.key == key else None

    def store(self, row: Row) -> str | None:
        columns = to_columns(row) | {"now": self._clock()}

        def work(connection: sqlite3.Connection) -> str | None:
            with transaction(connection):
                replaced = connection.execute(sql.FIND_FILE, {"key": row.key}).fetchone()
                connection.execute(sql.STORE, columns)
            return replaced["file"] if replaced else None

        return self._database.run(work)

    def add(self, rows: Sequence[Row]) -> int:
        return self._write(sql.ADD, [to_columns(row) | {"used": row.created} for row in rows])

    def amend(self, old: Row, new: Row) -> bool:
        changes = {f"new_{name}": value for name, value in to_columns(new).items()}
        return self._write(sql.AMEND, [to_columns(old) | changes]) > 0

    def remove(self, rows: Sequence[Row]) -> int:
        return self._write(sql.REMOVE, [to_columns(row) for row in rows])

    def newest(self, search: str, limit: int, before: tuple[float, str] | None) -> list[Row]:
        return self._listed(sql.NEWEST, search, limit, before or (float("inf"), ""))

    def largest(self, search: str, limit: int, before: tuple[int, str] | None) -> list[Row]:
        return self._listed(sql.LARGEST, search, limit, before or (sql.MAX_INTEGER, ""))

    def oldest(self, limit: int) -> list[Row]:
        return self._rows(sql.OLDEST, {"limit": limit})

    def touch(self, ages: Mapping[str, float]) -> None:
        now = self._clock()
        self._write(sql.TOUCH, [{"key": k, "age": age, "now": now} for k, age in ages.items()])

    def files(self, keys: Sequence[str]) -> dict[str, str | None]:
        if not keys:
            return {}
        wanted = {f"key{number}": key for number, key in enumerate(keys)}
        found = self._all(sql.files(len(keys)), wanted)
        return {row["key"]: row["file"] for row in found}

    def totals(self) -> Totals:
        def work(connection: sqlite3.Connection) -> Totals:
            row = connection.execute("SELECT entries, bytes FROM totals").fetchone()
            if row is None or not all(isinstance(total, int) for total in row):
                raise sqlite3.DatabaseError("no such totals")
            return Totals(**row)

        return self._database.run(work)

    def last_drawn(self, names: Sequence[str]) -> dict[str, float]:
        if not names:
            return {}
        wanted = {f"name{number}": name for number, name in enumerate(names)}
        found = self._all(sql.last_drawn(len(names)), wanted)
        return {row["name"]: row["created"] for row in found if row["created"]}

    # --- notes

    def recall(self, wanted: Iterable[tuple[type[Note], str]]) -> Notes:
        kinds = {(kind.kind, key): kind for kind, key in wanted}
        if not kinds:
            return Notes()
        found = self._unwritten.recall(kinds)
        try:
            for name, recalled in self._recall(kinds).items():
                # The newer one: another process may have written since.
                if name not in found or recalled.age < found[name].age:
                    found[name] = recalled
        except Unavailable:
            if not found:
                raise
        return Notes(found)

    def _recall(self, kinds: Mapping[tuple[str, str], type[Note]]) -> dict[Any, Recalled[Any]]:
        values: dict[str, Any] = {"now": self._clock()}
        for number, (kind, key) in enumerate(kinds):
            values |= {f"kind{number}": kind, f"key{number}": key}
        found = {}
        for row in self._all(sql.recall(len(kinds)), values):
            name = row["kind"], row["key"]
            if name in kinds and (note := _read_note(kinds[name], row["value"])):
                found[name] = Recalled(note, max(0.0, row["age"]), row["remaining"])
        return found

    def remember(self, note: Note, key: str, ttl: float) -> None:
        value = json.dumps(note.to_json())
        values = {"kind": note.kind, "key": key, "value": value, "now": self._clock(), "ttl": ttl}
        try:
            self._write(sql.REMEMBER, [values])
        except Unavailable:
            self._unwritten.keep(note, key, ttl)
            raise
        self._unwritten.drop((note.kind, key))

    def forget(self, kind: type[Note], key: str) -> bool:
        was_unwritten = self._unwritten.drop((kind.kind, key))
        return self._write(sql.FORGET, [{"kind": kind.kind, "key": key}]) > 0 or was_unwritten

    def count(self, key: str, amount: int, ttl: float, limit: int | None = None) -> bool:
        values = {"key": key, "amount": abs(amount), "now": self._clock(), "ttl": ttl}
        values["limit"] = _NO_LIMIT if limit is None else limit
        return self._write(sql.COUNT if amount >= 0 else sql.TAKE_BACK, [values]) > 0

    def counts(self, keys: Sequence[str]) -> dict[str, int]:
        if not keys:
            return {}
        wanted = {f"key{number}": key for number, key in enumerate(keys)}
        found = self._all(sql.counts(len(keys)), wanted | {"now": self._clock()})
        return {row["key"]: row["count"] for row in found}

    def expire(self) -> None:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute(sql.EXPIRE, {"now": now})
                connection.execute(sql.TRIM)

        self._database.run(work)

    # --- locks and lifetime

    def hold(self, key: str, seconds: float) -> AbstractContextManager[bool]:
        return self._locks.hold(key, seconds)

    def check(self) -> None:
        self.totals()

    def close(self) -> None:
        self._database.close()
        self._locks.close()

    # --- ways to run a statement

    def _all(self, statement: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        return self._database.run(lambda c: c.execute(statement, values).fetchall())

    def _listed(
        self, statement: str, search: str, limit: int, before: tuple[float, str]
    ) -> list[Row]:
        pattern = "%" + re.sub(r"([!%_])", r"!\1", search) + "%"
        values = {"search": search, "pattern": pattern, "limit": limit}
        return self._rows(statement, values | {"before": before[0], "key": before[1]})

    def _rows(self, statement: str, values: Mapping[str, Any]) -> list[Row]:
        return [row for found in self._all(statement, values) if (row := from_columns(found))]

    def _write(self, statement: str, values: Sequence[Mapping[str, Any]]) -> int:
        """Run a statement for each of `values`, all or none; return how many rows it changed."""

        if not values:
            return 0

        def work(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                return connection.executemany(statement, values).rowcount

        return self._database.run(work)


def _read_note(kind: type[Note], value: str) -> Note | None:
    """Return a note, or None for one that is damaged or of another version."""
    try:
        return kind.from_json(json.loads(value))
    except (TypeError, ValueError, KeyError):
        return None
