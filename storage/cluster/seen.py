"""The rows that a process has read last, for when the database is down."""

from __future__ import annotations

import threading

from storage import Row

MAX_ROWS = 1000


class SeenRows:
    """Rows by key; beyond MAX_ROWS the least recently seen are dropped. Thread-safe."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._mutex = threading.Lock()

    def get(self, key: str) -> Row | None:
        return self._rows.get(key)

    def all(self) -> list[Row]:
        with self._mutex:
            return list(self._rows.values())

    def replace(self, key: str, row: Row | None) -> None:
        """Keep the row of a key, or drop it."""
        with self._mutex:
            self._rows.pop(key, None)
            if row:
                self._rows[key] = row
                if len(self._rows) > MAX_ROWS:
                    del self._rows[next(iter(self._rows))]
