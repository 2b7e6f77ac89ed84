"""Room for requests that wait: for a drawing, or for a picture from a bucket."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from metrics import OFF, Metrics


class NoPlace(Exception):
    """As many requests wait as may."""


class Places:
    """At most `size` places, of which at most half for the same key.

    So one popular URL cannot starve the rest, and waiting requests never take the threads that
    serve cache hits.
    """

    def __init__(self, size: int, metrics: Metrics = OFF) -> None:
        self.size = size
        self._metrics = metrics
        self._taken: Counter[str] = Counter()
        self._mutex = threading.Lock()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        with self._mutex:
            return self._taken.total()

    @contextmanager
    def take(self, key: str) -> Iterator[None]:
        """Take a place while in the block. Raises NoPlace."""
        with self._mutex:
            is_crowded = self._taken[key] >= max(1, self.size // 2)
            if is_crowded or self._taken.total() >= self.size:
                raise NoPlace
            self._taken[key] += 1
        try:
            with self._metrics.waiting():
                yield
        finally:
            with self._mutex:
                self._taken[key] -= 1
                if not self._taken[key]:
                    del self._taken[key]
