"""The pool of drawings: places for those who wait, threads for those under way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from metrics import OFF, Metrics
from picture import Problem
from storage import LockTimeout
from storage.single_flight import Holder, SingleFlight
from upstream.deadline import Deadline

T = TypeVar("T")


class Busy(Problem):
    """Too much is queued, under way or waited for."""

    def __init__(self) -> None:
        super().__init__("too_many_drawings")


class StillRunning(Problem):
    """The work was not done when its caller had to stop waiting. It goes on."""

    def __init__(self) -> None:
        super().__init__("still_drawing")


class Pool(Generic[T]):
    """Runs work in its own threads while callers wait, and finishes it even if they disconnect.

    At most `threads` run at once, `places` are queued or running, and `places` callers wait,
    of whom at most half may wait for the same key, so that one popular URL cannot starve the rest.
    """

    def __init__(self, holder: Holder, threads: int, places: int, metrics: Metrics = OFF) -> None:
        self.places = places
        self.metrics = metrics
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="drawing")
        self._drawings: SingleFlight[T] = SingleFlight(holder, self._threads)
        self._waiting: Counter[str] = Counter()
        self._mutex = threading.Lock()
        metrics.limits(threads, places)

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        with self._mutex:
            return self._waiting.total()

    def run(self, key: str, until: Deadline, work: Callable[[], T]) -> T:
        """Return the result of `work` for `key`, run once for all concurrent callers.

        Another process may have done the work just before: `work` has to look first. A caller
        that waits for another process takes no thread of the pool. Raises Busy, any error of
        `work`, and StillRunning at the moment `until`, or earlier if another process was waited
        for by a caller who had less time.
        """
        with self._place(key) as is_joining, self.metrics.waiting():
            try:
                result = self._drawings.run(key, until.remaining(), work)
            except LockTimeout:
                raise StillRunning from None
            except CancelledError:
                raise Busy from None
        if is_joining:
            self.metrics.waited()
        return result

    def close(self) -> None:
        """Finish what is running and drop what is queued: its callers get Busy."""
        self._threads.shutdown(cancel_futures=True)

    @contextmanager
    def _place(self, key: str) -> Iterator[bool]:
        """Take a place to wait in; yield whether the work is wanted already. Raises Busy."""
        with self._mutex:
            wanted = self._drawings.keys | self._waiting.keys()
            is_full = key not in wanted and len(wanted) >= self.places
            is_crowded = self._waiting[key] >= max(1, self.places // 2)
            if is_full or is_crowded or self._waiting.total() >= self.places:
                raise Busy
            self._waiting[key] += 1
        try:
            yield key in wanted
        finally:
            with self._mutex:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key]
