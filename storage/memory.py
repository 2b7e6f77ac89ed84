"""The notes of one drawing: read in one call when it starts, and written through."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

from storage import N, Note, Notes, Recalled, State, Unavailable


class Memory:
    """Notes of one drawing, or of one answer to /status.

    A state that cannot be used recalls at most what this process noted: drawing goes on.
    """

    def __init__(
        self,
        state: State,
        wanted: Iterable[tuple[type[Note], str]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self.wanted = list(wanted)
        self.clock = clock
        self._read_at = clock()
        self._recalled = Notes()
        self._written: dict[tuple[str, str], tuple[Note, float, float]] = {}
        self.refresh()

    @property
    def age(self) -> float:
        """How many seconds ago the notes were read."""
        return self.clock() - self._read_at

    def refresh(self) -> None:
        """Read the notes again: other drawings may have written since."""
        with contextlib.suppress(Unavailable):
            self._recalled = self.state.recall_all(self.wanted)
            self._read_at = self.clock()
            self._written.clear()

    def get(self, kind: type[N], key: str) -> Recalled[N] | None:
        """Return a note as it is now, without a call of the state."""
        if (kind.kind, key) in self._written:
            note, ttl, written_at = self._written[kind.kind, key]
            age = self.clock() - written_at
            return Recalled(note, age, ttl - age) if isinstance(note, kind) and age < ttl else None
        found, elapsed = self._recalled.get(kind, key), self.clock() - self._read_at
        if found is None or found.left <= elapsed:
            return None
        return Recalled(found.note, found.age + elapsed, found.left - elapsed)

    def remember(self, note: Note, key: str, ttl: float) -> None:
        """Keep a note for `ttl` seconds, here and in the state."""
        self._written[note.kind, key] = note, ttl, self.clock()
        with contextlib.suppress(Unavailable):
            self.state.remember(note, key, ttl)

    def recall(self, kind: type[N], key: str) -> N | None:
        """Return a note whose key was not known when the drawing started: one more call."""
        with contextlib.suppress(Unavailable):
            if found := self.state.recall(kind, key):
                return found.note
        return None
