"""The contract of a state: rows, notes, counts and locks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from storage import ALL, Filter, N, Note, Notes, Recalled, Row, Totals
from storage.store import Task


class State(Protocol):
    """Rows, notes and locks, shared by all processes that use the same database.

    Every method is one call: one round trip where the database is another machine's. All but
    `close` raise Unavailable. Durations are seconds, and moments are read off the state's own
    clock, so that a machine whose clock is wrong invalidates nothing. Thread-safe.
    """

    @property
    def epoch(self) -> object:
        """A value that changes when another database, with other rows, takes the place of this."""

    @property
    def fault(self) -> str | None:
        """What is wrong with the state, although calls may work."""

    def find(self, key: str) -> Row | None:
        """Return the row of a picture. A damaged row counts as none."""

    def store(self, row: Row) -> str | None:
        """Insert or replace a row, as used just now; return the file of the row it replaced."""

    def add(self, rows: Sequence[Row]) -> int:
        """Insert those of at most 10,000 rows whose key has none; return how many those are.

        They count as last used when they were created.
        """

    def amend(self, old: Row, new: Row) -> bool:
        """Replace `old` by `new`, which has the same key, unless it has been replaced already.

        Return whether it was replaced. When it was last used stays as it is.
        """

    def remove(self, rows: Sequence[Row]) -> int:
        """Remove rows, except those that have been replaced since they were read.

        Return how many were removed. All or none are, if the state fails meanwhile.
        """

    def delete(self, key: str) -> bool:
        """Remove a row here and in every backup of the state's own; return whether it was here."""

    def newest(
        self, search: str, limit: int, before: tuple[float, str] | None, only: Filter = ALL
    ) -> list[Row]:
        """Return rows, the newest first, whose prompt contains `search` in any case of ASCII.

        `before` is the `(created, key)` of the last row of the page before.
        """

    def largest(
        self, search: str, limit: int, before: tuple[int, str] | None, only: Filter = ALL
    ) -> list[Row]:
        """Return rows like `newest`, the largest first; `before` is `(bytes, key)`."""

    def oldest(self, limit: int) -> list[Row]:
        """Return rows that have a file, the least recently used first."""

    def touch(self, ages: Mapping[str, float]) -> None:
        """Note for each key how many seconds ago its picture was last used."""

    def files(self, keys: Sequence[str]) -> dict[str, str | None]:
        """Return the file (None: hosted) of each of at most 10,000 keys that has a row."""

    def totals(self) -> Totals: ...

    def last_drawn(self, names: Sequence[str]) -> dict[str, float]:
        """Return when the newest picture of each `drawn_by` was created."""

    def now(self) -> float:
        """Return the Unix time of the state's own clock."""

    def recall(self, kind: type[N], key: str) -> Recalled[N] | None:
        """Return a note, or None if it does not exist or has expired.

        One that cannot be read, such as another version's, is forgotten. If the clock was set
        back to before notes were written, their time begins anew; by more than 12 hours, it was
        wrong before, and those notes are void.
        """

    def recall_all(self, wanted: Iterable[tuple[type[Note], str]]) -> Notes:
        """Return the notes of several kinds and keys in one call, each as `recall` would."""

    def remember(self, note: Note, key: str, ttl: float) -> None:
        """Store a note for `ttl` seconds, in place of one of the same kind and key."""

    def try_remember(self, note: Note, key: str, ttl: float) -> None:
        """Store a note like `remember`, if the state can be written: a drawing goes on without."""

    def exchange(self, before: Recalled[N] | None, after: N, key: str, ttl: float) -> bool:
        """Store a note like `remember`, unless `before` is no longer what `recall` would return.

        Return whether it was stored: of several processes that exchange the same note, one does.
        """

    def forget(self, kind: type[Note], key: str) -> bool:
        """Drop a note; return whether there was one."""

    def count(self, key: str, amount: int, ttl: float, limit: int | None = None) -> bool:
        """Add `amount` to a count, unless it would exceed `limit`; return whether it was added.

        A negative amount takes back what was added, which no limit prevents; a count never
        falls below 0. It ends `ttl` seconds after the last addition. However many processes add
        to it at once, it never exceeds `limit`.
        """

    def counts(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the counts of those keys that have one."""

    def expire(self) -> None:
        """Drop notes and counts that have expired, and the oldest where there are too many."""

    def hold(self, key: str, seconds: float) -> AbstractContextManager[None]:
        """Hold the lock of `key` (hex digits) against everybody else while in the block.

        It ends with its process, however that ends, and belongs to no thread. Raises LockTimeout
        after `seconds`. On a file system without locks, each process works alone.
        """

    def check(self) -> None:
        """Open and migrate the state, before its first use.

        Raises Unavailable, and IncompatibleSchema for one that a newer version has written.
        """

    def tasks(self) -> tuple[Task, ...]:
        """Return what this state needs done from time to time."""

    def close(self) -> None:
        """Close every connection and file; later calls open and close their own."""
