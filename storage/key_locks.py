"""Locks by key: between the threads of one process, and what locks between processes share."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from storage import LockTimeout

_FIRST_PAUSE = 0.01


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


class ProcessLocks(ABC):
    """A lock for each key between processes; while another one has it, asks again and again.

    To the system, all threads of a process are one holder: locks of their own keep them apart.
    """

    longest_pause: float

    def __init__(self) -> None:
        self._threads = KeyLocks()

    @abstractmethod
    def _take(self, key: str) -> bool:
        """Return whether this process has the lock now."""

    @abstractmethod
    def _release(self, key: str) -> None: ...

    @contextmanager
    def hold(self, key: str, seconds: float) -> Iterator[None]:
        """Hold the lock of `key` (hex digits). Raises LockTimeout after `seconds`."""
        end, pause = time.monotonic() + seconds, _FIRST_PAUSE
        with self._threads.hold(key, seconds):
            while not self._take(key):
                if (left := end - time.monotonic()) <= 0:
                    raise LockTimeout
                time.sleep(min(pause, left))
                pause = min(2 * pause, self.longest_pause)
            try:
                yield
            finally:
                self._release(key)
