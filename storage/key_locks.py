"""Locks by key between the threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from storage import LockTimeout


class KeyLocks:
    """A lock for each key. It belongs to no thread: another one may release it."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._released = threading.Condition()

    @contextmanager
    def hold(self, key: str, seconds: float) -> Iterator[None]:
        """Hold the lock of `key`. Raises LockTimeout after `seconds`."""
        with self._released:
            if not self._released.wait_for(lambda: key not in self._held, seconds):
                raise LockTimeout
            self._held.add(key)
        try:
            yield
        finally:
            with self._released:
                self._held.remove(key)
                self._released.notify_all()
