"""The pool of drawings: one piece of work for everybody who wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from metrics import OFF, Metrics
from picture import Problem
from storage import LockTimeout, State
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


@dataclass(slots=True)
class _Flight(Generic[T]):
    future: Future[T] = field(default_factory=Future)
    waiting: int = 0


class Pool(Generic[T]):
    """Runs work in threads of its own while callers wait; it goes on when they have gone.

    At most `threads` run at once, `places` are queued or running, and `places` callers wait,
    of whom one piece of work has at most half: a stranger's URL leaves room for others.
    """

    def __init__(self, state: State, threads: int, places: int, metrics: Metrics = OFF) -> None:
        self.state = state
        self.threads = threads
        self.places = places
        self.metrics = metrics
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="drawing")
        self._flights: dict[str, _Flight[T]] = {}
        self._waiting = 0
        # How many pieces of work have ended: a caller can see whether any did since it looked.
        self.landings = 0
        self._mutex = threading.Lock()
        metrics.limits(threads, places)

    def run(self, key: str, until: Deadline, work: Callable[[bool], T]) -> T:
        """Return the result of `work` for `key`, run once for all concurrent callers.

        `work` is told whether another process was waited for, and has to look first whether
        there is still something to do. A caller that waits for another process takes no thread
        of the pool. Raises Busy, any error of `work`, and StillRunning at the moment `until`, or
        earlier if another process was waited for by a caller who had less time.
        """
        flight, is_first = self._join(key)
        try:
            with self.metrics.waiting():
                if is_first:
                    self._start(key, flight, until, work)
                result = self._result(flight, until)
        finally:
            with self._mutex:
                flight.waiting -= 1
                self._waiting -= 1
        if not is_first:
            self.metrics.waited()
        return result

    def close(self) -> None:
        """Finish what is running and drop what is queued: its callers get Busy."""
        self._pool.shutdown(cancel_futures=True)

    def _join(self, key: str) -> tuple[_Flight[T], bool]:
        with self._mutex:
            flight = self._flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = _Flight()
            is_crowded = flight.waiting >= max(1, self.places // 2)
            is_full = is_first and len(self._flights) >= self.places
            if is_crowded or is_full or self._waiting >= self.places:
                raise Busy
            self._flights[key] = flight
            flight.waiting += 1
            self._waiting += 1
            return flight, is_first

    def _result(self, flight: _Flight[T], until: Deadline) -> T:
        try:
            return flight.future.result(until.remaining())
        except TimeoutError:
            if not flight.future.done():
                raise StillRunning from None
            return flight.future.result()  # done just now, or the work's own TimeoutError

    def _start(
        self, key: str, flight: _Flight[T], until: Deadline, work: Callable[[bool], T]
    ) -> None:
        lock = ExitStack()
        try:
            has_waited = self._hold(lock, key, until)
            queued = self._pool.submit(self._fly, key, flight, lock, lambda: work(has_waited))
        except BaseException as error:
            lock.close()
            self._land(key)
            flight.future.set_exception(error)
            raise
        queued.add_done_callback(lambda done: self._drop(key, flight, lock, done))

    def _hold(self, lock: ExitStack, key: str, until: Deadline) -> bool:
        try:
            return lock.enter_context(self.state.hold(key, until.remaining()))
        except LockTimeout:
            raise StillRunning from None

    def _fly(self, key: str, flight: _Flight[T], lock: ExitStack, work: Callable[[], T]) -> None:
        try:
            with lock, self.metrics.drawing():
                result = work()
        except BaseException as error:
            self._land(key)
            flight.future.set_exception(error)
        else:
            self._land(key)
            flight.future.set_result(result)

    def _drop(self, key: str, flight: _Flight[T], lock: ExitStack, done: Future[None]) -> None:
        if done.cancelled():
            lock.close()
            self._land(key)
            flight.future.set_exception(Busy())

    def _land(self, key: str) -> None:
        with self._mutex:
            self.landings += 1
            del self._flights[key]
