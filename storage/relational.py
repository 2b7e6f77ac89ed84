"""What the states of SQLite and PostgreSQL have in common: parameters in, rows and notes out."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from storage import Note, Notes, Recalled, Row, Unavailable, sql
from storage.rows import from_columns, to_columns
from storage.store import Task

_NO_LIMIT = 2**53

Values = Mapping[str, Any]
Step = tuple[str, Values]
Found = Sequence[Any]


class RelationalState(ABC):
    """All of `State` but its totals, its locks and its lifetime.

    A subclass runs the statements of storage/sql.py and supplies `:now`.
    """

    # --- ways to run statements; all of them raise Unavailable

    @abstractmethod
    def _select(self, statement: str, values: Values) -> Found:
        """Return what a statement finds."""

    @abstractmethod
    def _execute(self, statement: str, values: Sequence[Values]) -> int:
        """Run a statement for each of `values`, all or none; return how many rows it changed."""

    @abstractmethod
    def _transact(self, key: str, *steps: Step) -> list[Found]:
        """Run statements in one transaction; return what each found.

        No other transaction of the same `key` (hex digits) runs at the same time.
        """

    def now(self) -> float:
        [(now,)] = self._select(sql.NOW, {})
        return float(now)

    # --- rows

    def find(self, key: str) -> Row | None:
        found = self._select(sql.FIND, {"key": key})
        row = from_columns(found[0]) if found else None
        # A damaged index of the table can lead to the row of another key.
        return row if row and row.key == key else None

    def store(self, row: Row) -> str | None:
        columns = to_columns(row)
        replaced, _ = self._transact(row.key, (sql.FIND_FILE, columns), (sql.STORE, columns))
        return replaced[0][0] if replaced else None

    def add(self, rows: Sequence[Row]) -> int:
        return self._write(sql.ADD, [to_columns(row) | {"used": row.created} for row in rows])

    def amend(self, old: Row, new: Row) -> bool:
        return self._write(sql.AMEND, [amendment(old, new)]) > 0

    def learn(self, old: Row, new: Row) -> None:
        with suppress(Unavailable):
            self.amend(old, new)

    def remove(self, rows: Sequence[Row]) -> int:
        return self._write(sql.REMOVE, [to_columns(row) for row in rows])

    def delete(self, key: str) -> bool:
        return self._write(sql.DELETE, [{"key": key}]) > 0

    def newest(self, search: str, limit: int, before: tuple[float, str] | None) -> list[Row]:
        return self._listed(sql.NEWEST, search, limit, before or (float("inf"), ""))

    def largest(self, search: str, limit: int, before: tuple[int, str] | None) -> list[Row]:
        return self._listed(sql.LARGEST, search, limit, before or (sql.MAX_INTEGER, ""))

    def oldest(self, limit: int) -> list[Row]:
        return self._rows(sql.OLDEST, {"limit": limit})

    def touch(self, ages: Mapping[str, float]) -> None:
        self._write(sql.TOUCH, [{"key": key, "age": age} for key, age in ages.items()])

    def files(self, keys: Sequence[str]) -> dict[str, str | None]:
        if not keys:
            return {}
        wanted = {f"key{number}": key for number, key in enumerate(keys)}
        return dict(self._select(sql.files(len(keys)), wanted))

    def last_drawn(self, names: Sequence[str]) -> dict[str, float]:
        if not names:
            return {}
        wanted = {f"name{number}": name for number, name in enumerate(names)}
        found = self._select(sql.last_drawn(len(names)), wanted)
        return {name: created for name, created in found if created}

    # --- notes

    def recall(self, wanted: Iterable[tuple[type[Note], str]]) -> Notes:
        kinds = {(kind.kind, key): kind for kind, key in wanted}
        if not kinds:
            return Notes()
        return Notes(self._recall(kinds))

    def _recall(self, kinds: Mapping[tuple[str, str], type[Note]]) -> dict[Any, Recalled[Any]]:
        values: dict[str, str] = {}
        for number, (kind, key) in enumerate(kinds):
            values |= {f"kind{number}": kind, f"key{number}": key}
        found = {}
        for kind, key, value, age, left in self._select(sql.recall(len(kinds)), values):
            name = kind, key
            if name in kinds and (note := _read_note(kinds[name], value)):
                found[name] = Recalled(note, max(0.0, age), left)
        return found

    def remember(self, note: Note, key: str, ttl: float) -> None:
        value = json.dumps(note.to_json())
        self._write(sql.REMEMBER, [{"kind": note.kind, "key": key, "value": value, "ttl": ttl}])

    def forget(self, kind: type[Note], key: str) -> bool:
        return self._write(sql.FORGET, [{"kind": kind.kind, "key": key}]) > 0

    def count(self, key: str, amount: int, ttl: float, limit: int | None = None) -> bool:
        values = {"key": key, "amount": abs(amount), "ttl": ttl}
        values["limit"] = _NO_LIMIT if limit is None else limit
        return self._write(sql.COUNT if amount >= 0 else sql.TAKE_BACK, [values]) > 0

    def counts(self, keys: Sequence[str]) -> dict[str, int]:
        if not keys:
            return {}
        wanted = {f"key{number}": key for number, key in enumerate(keys)}
        return dict(self._select(sql.counts(len(keys)), wanted))

    def expire(self) -> None:
        self._transact("0", (sql.EXPIRE, {}), (sql.TRIM, {}))

    # --- upkeep

    @property
    def fault(self) -> str | None:
        return None

    def tasks(self) -> tuple[Task, ...]:
        return ()

    # ---

    def _listed(
        self, statement: str, search: str, limit: int, before: tuple[float, str]
    ) -> list[Row]:
        pattern = "%" + re.sub(r"([!%_])", r"!\1", search) + "%"
        values = {"search": search, "pattern": pattern, "limit": limit}
        return self._rows(statement, values | {"before": before[0], "key": before[1]})

    def _rows(self, statement: str, values: Values) -> list[Row]:
        return [row for found in self._select(statement, values) if (row := from_columns(found))]

    def _write(self, statement: str, values: Sequence[Values]) -> int:
        return self._execute(statement, values) if values else 0


def amendment(old: Row, new: Row) -> Values:
    """Return the values of sql.AMEND."""
    return to_columns(old) | {f"new_{name}": value for name, value in to_columns(new).items()}


def _read_note(kind: type[Note], value: str) -> Note | None:
    """Return a note, or None for one that is damaged or of another version."""
    try:
        return kind.from_json(json.loads(value))
    except (TypeError, ValueError, KeyError):
        return None
