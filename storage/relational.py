"""What the states of SQLite and PostgreSQL have in common: parameters in, rows and notes out."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from metrics import Metrics
from storage import ALL, Filter, N, Note, Notes, Recalled, Row, Unavailable, sql
from storage.sql import from_columns, to_columns
from storage.store import Task

_NO_LIMIT = 2**53
# Seconds by which a note may be ahead of a call that began before it was written.
_CLOCK_PRECISION = 1.0

Values = Mapping[str, Any]
Step = tuple[str, Values]
Found = Sequence[Any]


class RelationalState(ABC):
    """All of `State` but its totals, its locks and its lifetime.

    A subclass runs the statements of storage/sql.py and supplies `:now`.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    # --- ways to run statements, timed by the name of the call; all of them raise Unavailable

    @abstractmethod
    def _select(self, name: str, statement: str, values: Values) -> Found:
        """Return what a statement finds."""

    @abstractmethod
    def _execute(self, name: str, statement: str, values: Sequence[Values]) -> int:
        """Run a statement for each of `values`, all or none; return how many rows it changed."""

    @abstractmethod
    def _transact(self, name: str, key: str, *steps: Step) -> list[Found]:
        """Run statements in one transaction; return what each found.

        No other transaction of the same `key` (hex digits) runs at the same time.
        """

    # --- rows

    def find(self, key: str) -> Row | None:
        found = self._select("find", sql.FIND, {"key": key})
        row = from_columns(found[0]) if found else None
        # A damaged index of the table can lead to the row of another key.
        return row if row and row.key == key else None

    def store(self, row: Row) -> str | None:
        columns = to_columns(row)
        replaced, _ = self._transact(
            "store", row.key, (sql.FIND_FILE, columns), (sql.STORE, columns)
        )
        return replaced[0][0] if replaced else None

    def add(self, rows: Sequence[Row]) -> int:
        return self._write(
            "add", sql.ADD, [to_columns(row) | {"used": row.created} for row in rows]
        )

    def amend(self, old: Row, new: Row) -> bool:
        changed = {f"new_{name}": value for name, value in to_columns(new).items()}
        return self._write("amend", sql.AMEND, [to_columns(old) | changed]) > 0

    def remove(self, rows: Sequence[Row]) -> int:
        return self._write("remove", sql.REMOVE, [to_columns(row) for row in rows])

    def delete(self, key: str) -> bool:
        return self._write("delete", sql.DELETE, [{"key": key}]) > 0

    def newest(
        self, search: str, limit: int, before: tuple[float, str] | None, only: Filter = ALL
    ) -> list[Row]:
        values = _wanted(search, limit, before or (float("inf"), ""), only)
        return self._rows("newest", sql.NEWEST, values)

    def largest(
        self, search: str, limit: int, before: tuple[int, str] | None, only: Filter = ALL
    ) -> list[Row]:
        values = _wanted(search, limit, before or (sql.MAX_INTEGER, ""), only)
        return self._rows("largest", sql.LARGEST, values)

    def oldest(self, limit: int) -> list[Row]:
        return self._rows("oldest", sql.OLDEST, {"limit": limit})

    def touch(self, ages: Mapping[str, float]) -> None:
        self._write("touch", sql.TOUCH, [{"key": key, "age": age} for key, age in ages.items()])

    def files(self, keys: Sequence[str]) -> dict[str, str | None]:
        if not keys:
            return {}
        wanted = {f"key{number}": key for number, key in enumerate(keys)}
        return dict(self._select("files", sql.files(len(keys)), wanted))

    def last_drawn(self, names: Sequence[str]) -> dict[str, float]:
        if not names:
            return {}
        wanted = {f"name{number}": name for number, name in enumerate(names)}
        found = self._select("last_drawn", sql.last_drawn(len(names)), wanted)
        return {name: created for name, created in found if created}

    # --- notes

    def now(self) -> float:
        [(now,)] = self._select("now", sql.NOW, {})
        return float(now)

    def recall(self, kind: type[N], key: str) -> Recalled[N] | None:
        return self.recall_all([(kind, key)]).get(kind, key)

    def recall_all(self, wanted: Iterable[tuple[type[Note], str]]) -> Notes:
        kinds = {(kind.kind, key): kind for kind, key in wanted}
        if not kinds:
            return Notes()
        values: dict[str, str] = {}
        for number, (name, key) in enumerate(kinds):
            values |= {f"kind{number}": name, f"key{number}": key}
        rows = self._select("recall", sql.recall(len(kinds)), values)
        if any(age < -_CLOCK_PRECISION for *_, age, _ in rows):
            with suppress(Unavailable):
                self._transact("restart", "0", (sql.RESTART, {}))
        found: dict[tuple[str, str], Recalled[Any]] = {}
        for name, key, value, age, left in rows:
            # A damaged index of the table can lead to the note of another key.
            kind = kinds.get((name, key))
            if kind and (note := self._read_note(kind, key, value)):
                found[name, key] = Recalled(note, max(0.0, age), left + min(0.0, age))
        return Notes(found)

    def _read_note(self, kind: type[N], key: str, value: str) -> N | None:
        """Return a note; forget one that is damaged or of another version."""
        try:
            return kind.from_json(json.loads(value))
        except (TypeError, ValueError, KeyError):
            with suppress(Unavailable):
                self.forget(kind, key)
            return None

    def remember(self, note: Note, key: str, ttl: float) -> None:
        values = {"kind": note.kind, "key": key, "value": _text_of(note), "ttl": ttl}
        self._write("remember", sql.REMEMBER, [values])

    def try_remember(self, note: Note, key: str, ttl: float) -> None:
        with suppress(Unavailable):
            self.remember(note, key, ttl)

    def exchange(self, before: Recalled[N] | None, after: N, key: str, ttl: float) -> bool:
        values = {"kind": after.kind, "key": key, "value": _text_of(after), "ttl": ttl}
        if before is None:
            return self._write("exchange", sql.REMEMBER_NEW, [values]) > 0
        values["before"] = _text_of(before.note)
        return self._write("exchange", sql.EXCHANGE, [values]) > 0

    def forget(self, kind: type[Note], key: str) -> bool:
        return self._write("forget", sql.FORGET, [{"kind": kind.kind, "key": key}]) > 0

    def count(self, key: str, amount: int, ttl: float, limit: int | None = None) -> bool:
        values = {"key": key, "amount": abs(amount), "ttl": ttl}
        values["limit"] = _NO_LIMIT if limit is None else limit
        return self._write("count", sql.COUNT if amount >= 0 else sql.TAKE_BACK, [values]) > 0

    def counts(self, keys: Sequence[str]) -> dict[str, int]:
        if not keys:
            return {}
        wanted = {f"key{number}": key for number, key in enumerate(keys)}
        return dict(self._select("counts", sql.counts(len(keys)), wanted))

    def expire(self) -> None:
        self._transact("expire", "0", (sql.EXPIRE, {}), (sql.TRIM, {}))

    # --- upkeep

    @property
    def fault(self) -> str | None:
        return None

    def tasks(self) -> tuple[Task, ...]:
        return ()

    # ---

    def _rows(self, name: str, statement: str, values: Values) -> list[Row]:
        return [
            row for found in self._select(name, statement, values) if (row := from_columns(found))
        ]

    def _write(self, name: str, statement: str, values: Sequence[Values]) -> int:
        return self._execute(name, statement, values) if values else 0


def _wanted(search: str, limit: int, before: tuple[float, str], only: Filter) -> Values:
    """Return the parameters of a listing."""
    pattern = "%" + re.sub(r"([!%_])", r"!\1", search) + "%"
    values = {"search": search, "pattern": pattern, "limit": limit, **asdict(only)}
    return values | {"before": before[0], "key": before[1]}


def _text_of(note: Note) -> str:
    return json.dumps(note.to_json())
