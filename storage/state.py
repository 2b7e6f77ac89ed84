"""The contract of a state, rows, notes, counts and locks, and its SQL calls."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from metrics import OFF, Metrics
from storage import ALL, Filter, N, Note, Recalled, Row, Totals, Unavailable, sql
from storage.sql import from_columns, to_columns
from storage.store import Task

_NO_LIMIT = 2**53
# Seconds by which a note may be ahead of a call that began before it was written.
_CLOCK_PRECISION = 1.0

Values = Mapping[str, Any]
Step = tuple[str, Values]
Found = Sequence[Any]


@dataclass
class State(ABC):
    """Rows, notes and locks, shared by all processes that use the same database.

    Every method is one call: one round trip where the database is another machine's. All but
    `close` raise Unavailable. Durations are seconds, and moments are read off the state's own
    clock, so that a machine whose clock is wrong invalidates nothing. Thread-safe.

    A subclass runs the statements of storage/sql.py and supplies `:now`.
    """

    metrics: Metrics = field(default=OFF, kw_only=True)

    @property
    @abstractmethod
    def epoch(self) -> object:
        """A value that changes when another database, with other rows, takes the place of this."""

    @property
    @abstractmethod
    def fault(self) -> str | None:
        """What is wrong with the state, although calls may work."""

    @abstractmethod
    def check(self) -> None:
        """Open and migrate the state, before its first use.

        Raises Unavailable, and IncompatibleSchema for one that a newer version has written.
        """

    def tasks(self) -> tuple[Task, ...]:
        """Return what this state needs done from time to time."""
        return ()

    @abstractmethod
    def close(self) -> None:
        """Close every connection and file; later calls open others."""

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
        """Return the row of a picture. A damaged row counts as none."""
        found = self._select("find", sql.FIND, {"key": key})
        row = from_columns(found[0]) if found else None
        # A damaged index of the table can lead to the row of another key.
        return row if row and row.key == key else None

    def store(self, row: Row) -> str | None:
        """Insert or replace a row, as used just now; return the file of the row it replaced."""
        columns = to_columns(row)
        steps = (sql.FIND_FILE, columns), (sql.STORE, columns)
        replaced, _ = self._transact("store", row.key, *steps)
        return replaced[0][0] if replaced else None

    def add(self, rows: Sequence[Row]) -> int:
        """Insert those of at most 10,000 rows whose key has none; return how many those are.

        They count as last used when they were created. Of several with the same key, the first
        is inserted.
        """
        values = [to_columns(row) | {"used": row.created} for row in rows]
        return self._write("add", sql.ADD, *values)

    def amend(self, old: Row, new: Row) -> bool:
        """Replace `old` by `new`, which has the same key, unless it has been replaced already.

        Return whether it was replaced. When it was last used stays as it is.
        """
        changed = {f"new_{name}": value for name, value in to_columns(new).items()}
        return self._write("amend", sql.AMEND, to_columns(old) | changed) > 0

    def remove(self, rows: Sequence[Row]) -> int:
        """Remove rows, except those that have been replaced since they were read.

        Return how many were removed. All or none are, if the state fails meanwhile.
        """
        return self._write("remove", sql.REMOVE, *map(to_columns, rows))

    def delete(self, key: str) -> bool:
        """Remove a row here and in every backup of the state's own; return whether it was here."""
        return self._write("delete", sql.DELETE, {"key": key}) > 0

    def newest(
        self, search: str, limit: int, before: tuple[float, str] | None, only: Filter = ALL
    ) -> list[Row]:
        """Return rows, the newest first, whose prompt contains `search` in any case of ASCII.

        `before` is the `(created, key)` of the last row of the page before.
        """
        values = _wanted(search, limit, before or (float("inf"), ""), only)
        return self._rows("newest", sql.NEWEST, values)

    def largest(
        self, search: str, limit: int, before: tuple[float, str] | None, only: Filter = ALL
    ) -> list[Row]:
        """Return rows like `newest`, the largest first; `before` is `(bytes, key)`."""
        values = _wanted(search, limit, before or (sql.MAX_INTEGER, ""), only)
        return self._rows("largest", sql.LARGEST, values)

    def oldest(self, limit: int) -> list[Row]:
        """Return rows that have a file, the least recently used first."""
        return self._rows("oldest", sql.OLDEST, {"limit": limit})

    def touch(self, ages: Mapping[str, float]) -> None:
        """Note for each key how many seconds ago its picture was last used."""
        self._write("touch", sql.TOUCH, *({"key": key, "age": ages[key]} for key in ages))

    def files(self, keys: Sequence[str]) -> dict[str, str | None]:
        """Return the file (None: hosted) of each of at most 10,000 keys that has a row."""
        return dict(self._look_up("files", sql.FILES, keys))

    @abstractmethod
    def totals(self) -> Totals: ...

    def last_drawn(self, name: str) -> float | None:
        """Return when the newest picture whose `drawn_by` is `name` was created."""
        [(created,)] = self._select("last_drawn", sql.LAST_DRAWN, {"name": name})
        return None if created is None else float(created)

    # --- notes

    def now(self) -> float:
        """Return the Unix time of the state's own clock."""
        [(now,)] = self._select("now", sql.NOW, {})
        return float(now)

    def recall(self, kind: type[N], key: str) -> Recalled[N] | None:
        """Return a note, or None if it does not exist or has expired.

        One that cannot be read, such as another version's, is forgotten. If the clock was set
        back to before notes were written, their time begins anew; by more than 12 hours, it was
        wrong before, and those notes are void.
        """
        return self.recall_all(kind, [key]).get(key)

    def recall_all(self, kind: type[N], keys: Iterable[str]) -> dict[str, Recalled[N]]:
        """Return those notes of a kind that exist under these keys, each as `recall` would."""
        wanted = list(dict.fromkeys(keys))
        rows = self._look_up("recall", sql.RECALL, wanted, kind=kind.kind)
        if any(age < -_CLOCK_PRECISION for *_, age, _ in rows):
            with suppress(Unavailable):
                self._transact("restart", "0", (sql.RESTART, {}))
        found = {}
        for key, value, age, left in rows:
            # A damaged index of the table can lead to the note of another key.
            if key in wanted and (note := self._read_note(kind, key, value)):
                found[key] = Recalled(note, max(0.0, age), left + min(0.0, age))
        return found

    def _read_note(self, kind: type[N], key: str, value: str) -> N | None:
        """Return a note; forget one that is damaged or of another version."""
        try:
            return kind.from_json(json.loads(value))
        except (TypeError, ValueError, KeyError):
            with suppress(Unavailable):
                self.forget(kind, key)
            return None

    def remember(self, note: Note, key: str, ttl: float) -> None:
        """Store a note for `ttl` seconds, in place of one of the same kind and key."""
        self._write("remember", sql.REMEMBER, _columns_of(note, key, ttl))

    def try_remember(self, note: Note, key: str, ttl: float) -> None:
        """Store a note like `remember`, if the state can be written: a drawing goes on without."""
        with suppress(Unavailable):
            self.remember(note, key, ttl)

    def exchange(self, before: Recalled[N] | None, after: N, key: str, ttl: float) -> bool:
        """Store a note like `remember`, unless `before` is no longer what `recall` would return.

        Return whether it was stored: of several processes that exchange the same note, one does.
        """
        values = _columns_of(after, key, ttl)
        if before is None:
            return self._write("exchange", sql.REMEMBER_NEW, values) > 0
        values["before"] = json.dumps(before.note.to_json())
        return self._write("exchange", sql.EXCHANGE, values) > 0

    def forget(self, kind: type[Note], key: str) -> bool:
        """Drop a note; return whether there was one."""
        return self._write("forget", sql.FORGET, {"kind": kind.kind, "key": key}) > 0

    def count(self, key: str, amount: int, ttl: float, limit: int | None = None) -> bool:
        """Add `amount` to a count, unless it would exceed `limit`; return whether it was added.

        A negative amount takes back what was added, which no limit prevents; a count never
        falls below 0. It ends `ttl` seconds after the last addition. However many processes add
        to it at once, it never exceeds `limit`.
        """
        values = {"key": key, "amount": abs(amount), "ttl": ttl}
        values["limit"] = _NO_LIMIT if limit is None else limit
        return self._write("count", sql.COUNT if amount >= 0 else sql.TAKE_BACK, values) > 0

    def counts(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the counts of those keys that have one."""
        return dict(self._look_up("counts", sql.COUNTS, keys))

    def expire(self) -> None:
        """Drop notes and counts that have expired, and the oldest where there are too many."""
        self._transact("expire", "0", (sql.EXPIRE, {}), (sql.TRIM, {}))

    # --- locks

    @abstractmethod
    def hold(self, key: str, seconds: float) -> AbstractContextManager[None]:
        """Hold the lock of `key` (hex digits) against everybody else while in the block.

        It ends with its process, however that ends, and belongs to no thread. Raises LockTimeout
        after `seconds`. On a file system without locks, each process works alone.
        """

    # ---

    def _rows(self, name: str, statement: str, values: Values) -> list[Row]:
        found = map(from_columns, self._select(name, statement, values))
        return [row for row in found if row]

    def _look_up(self, name: str, statement: str, keys: Sequence[str], **values: str) -> Found:
        """Return what a statement about these keys finds."""
        values |= {f"key{number}": key for number, key in enumerate(keys)}
        return self._select(name, sql.with_keys(statement, len(keys)), values) if keys else ()

    def _write(self, name: str, statement: str, *values: Values) -> int:
        return self._execute(name, statement, values) if values else 0


def _wanted(search: str, limit: int, before: tuple[float, str], only: Filter) -> Values:
    """Return the parameters of a listing."""
    pattern = "%" + re.sub(r"([!%_])", r"!\1", search) + "%"
    values = {"search": search, "pattern": pattern, "limit": limit, **asdict(only)}
    return values | {"before": before[0], "key": before[1]}


def _columns_of(note: Note, key: str, ttl: float) -> dict[str, Any]:
    return {"kind": note.kind, "key": key, "value": json.dumps(note.to_json()), "ttl": ttl}
