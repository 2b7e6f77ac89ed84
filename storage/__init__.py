"""Where pictures and what is known of them live: one contract, several implementations.

A `State` holds rows, notes and locks; a `Store` (store.py) holds bytes. On one machine they are
SQLite and a folder. tests/test_storage.py runs one behaviour suite over every implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from picture import OPTIONS, ImageRequest, Problem
from storage.listing import ALL, Filter
from storage.store import Task


class Unavailable(Problem):
    """The state cannot be used at the moment. `reason`, its text, names no file and no key."""

    _code: ClassVar[str] = "cache_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(self._code)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class IncompatibleSchema(Unavailable):
    """A newer version of the program has written this state; it is left as it is."""


class NoRoom(Unavailable):
    """A new picture could not be stored, so none is drawn. The text says why."""

    _code = "no_room"


class BeingDrawn(Unavailable):
    """The picture is being drawn, and cannot be deleted."""

    _code = "still_drawing"


class LockTimeout(Exception):
    """Others held the lock, or did the work, for longer than the caller would wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All that is known of one picture. Sizes are pixels and bytes, `created` a Unix time.

    A picture lies either in the store, as `file`, or at an image host, at `url`. `digest` is
    the SHA-256 of its bytes in hex, None for an adopted file until its first hit, as is its size
    (`drawn_width`, `drawn_height`), whatever size was requested. The fields from `prompt` on are
    None where they are unknown.
    """

    key: str
    file: str | None = None
    url: str | None = None
    media_type: str
    bytes: int
    digest: str | None
    created: float
    prompt: str | None = None
    width: int | None = None
    height: int | None = None
    model: str | None = None
    seed: int | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    negative_prompt: str | None = None
    optimized: str | None = None
    rewritten: str | None = None
    revised: str | None = None
    drawn_by: str | None = None
    drawn_width: int | None = None
    drawn_height: int | None = None

    @property
    def pixels(self) -> tuple[int, int] | None:
        """The size of the picture as it was drawn, if it is known."""
        if self.drawn_width is None or self.drawn_height is None:
            return None
        return self.drawn_width, self.drawn_height

    @property
    def request(self) -> ImageRequest | None:
        """The request that this picture answers, or None for an adopted or imported file."""
        if self.prompt is None or self.seed is None:
            return None
        options = {name: getattr(self, name) for name in OPTIONS}
        return ImageRequest(self.prompt, self.width, self.height, self.model, self.seed, **options)

    @property
    def final_prompt(self) -> str | None:
        """The prompt that was drawn, as far as it is known."""
        return self.revised or self.rewritten or self.optimized or self.prompt

    def to_json(self) -> dict[str, Any]:
        """Return what clients see of it."""
        return {name: getattr(self, name) for name in _SHOWN}


_SHOWN = (
    "key", "prompt", "width", "height", "model", "seed", *OPTIONS, "final_prompt", "drawn_by",
    "drawn_width", "drawn_height", "media_type", "bytes", "created",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Totals:
    """How many rows there are, and how many bytes the store holds for them."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Note:
    """A small fact that expires, stored as JSON under its kind and a key.

    Each kind is a frozen dataclass, and nothing but that class reads, writes and forgets it.
    """

    kind: ClassVar[str]

    def write(self, state: State, key: str, ttl: float) -> None:
        """Remember this for `ttl` seconds; a drawing goes on if the state cannot be written."""
        with suppress(Unavailable):
            state.remember(self, key, ttl)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Raises TypeError, ValueError or KeyError for what another version has written."""
        return cls(**value)


N = TypeVar("N", bound=Note)


@dataclass(frozen=True, slots=True)
class Recalled(Generic[N]):
    """A note with its age and the time that is left of it, in seconds by the state's clock."""

    note: N
    age: float
    left: float


class Notes:
    """The notes that one call of `State.recall_all` found."""

    def __init__(self, found: Mapping[tuple[str, str], Recalled[Any]] | None = None) -> None:
        self._found = found or {}

    def get(self, kind: type[N], key: str) -> Recalled[N] | None:
        return self._found.get((kind.kind, key))


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
