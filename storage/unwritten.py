"""Notes that could not be written, for the process that made them.

On a full disk a failure would otherwise be forgotten at once, and each repetition cost money.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from storage import Note, Recalled

# The oldest is dropped beyond that: clients choose the keys.
MAX_NOTES = 1000

Name = tuple[str, str]


class Unwritten:
    """Notes by kind and key. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._notes: dict[Name, tuple[Note, float, float]] = {}
        self._mutex = threading.Lock()

    def keep(self, note: Note, key: str, ttl: float) -> None:
        with self._mutex:
            self._notes.pop((note.kind, key), None)
            self._notes[note.kind, key] = note, ttl, self._clock()
            if len(self._notes) > MAX_NOTES:
                del self._notes[next(iter(self._notes))]

    def drop(self, name: Name) -> bool:
        """Drop a note; return whether there was one."""
        with self._mutex:
            return self._notes.pop(name, None) is not None

    def recall(self, wanted: Collection[Name]) -> dict[Name, Recalled[Any]]:
        """Return the notes of these names that have not expired."""
        if not self._notes:
            return {}
        now = self._clock()
        with self._mutex:
            notes = {name: self._notes[name] for name in wanted if name in self._notes}
        return {
            name: Recalled(note, max(0.0, now - written), written + ttl - now)
            for name, (note, ttl, written) in notes.items()
            if written + ttl > now
        }
