"""Waiting: locks by key, places for requests, and work that many callers want and runs once."""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from metrics import OFF, Metrics
from storage import LockTimeout

_FIRST_PAUSE = 0.01


class ProcessLocks(ABC):
    """A lock for each key between processes; while another one has it, asks again and again."""

    longest_pause: float

    def __init__(self) -> None:
        # To the system, all threads of a process are one holder: these keep them apart.
        self._threads: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._mutex = threading.Lock()

    @abstractmethod
    def _take(self, key: str) -> bool:
        """Return whether this process has the lock now."""

    @abstractmethod
    def _release(self, key: str) -> None: ...

    @contextmanager
    def hold(self, key: str, seconds: float) -> Iterator[None]:
        """Hold the lock of `key` (hex digits). Raises LockTimeout after `seconds`."""
        end, pause = time.monotonic() + seconds, _FIRST_PAUSE
        with self._mutex:
            own = self._threads.setdefault(key, threading.Lock())
        if not own.acquire(timeout=seconds):
            raise LockTimeout
        try:
            while not self._take(key):
                if (left := end - time.monotonic()) <= 0:
                    raise LockTimeout
                time.sleep(min(pause, left))
                pause = min(2 * pause, self.longest_pause)
            try:
                yield
            finally:
                self._release(key)
        finally:
            own.release()


class NoPlace(Exception):
    """As many requests wait as may."""


@dataclass
class Places:
    """At most `size` places, of which at most half for the same key.

    So one popular URL cannot starve the rest, and waiting requests never take the threads that
    serve cache hits.
    """

    size: int
    metrics: Metrics = OFF
    _taken: Counter[str] = field(default_factory=Counter, init=False)
    _mutex: threading.Lock = field(default_factory=threading.Lock, init=False)

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
            with self.metrics.waiting():
                yield
        finally:
            with self._mutex:
                self._taken -= Counter((key,))


T = TypeVar("T")


Hold = Callable[[str, float], AbstractContextManager[None]]


@dataclass
class SingleFlight(Generic[T]):
    """Runs work once for all callers that want the same at the same time.

    It runs in the thread of the first caller or, with an `executor`, in one of its threads, where
    it goes on even if every caller stops waiting. `hold` keeps other processes out: State.hold.
    """

    hold: Hold = lambda key, seconds: nullcontext()
    executor: Executor | None = None
    _running: dict[str, Future[T]] = field(default_factory=dict, init=False)
    _mutex: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def keys(self) -> set[str]:
        """The keys of all work that is waiting for its turn or under way."""
        with self._mutex:
            return set(self._running)

    def run(self, key: str, seconds: float, work: Callable[[], T]) -> T:
        """Return the result of `work`, run by this caller or by one that came first.

        Another process waits until this one is done and then works itself, so `work` has to look
        first whether it is still needed. Raises any error of `work`, LockTimeout after `seconds`
        of waiting, or earlier if the first caller had less time for another process,
        CancelledError if the executor is shut down first, and Unavailable.
        """
        end = time.monotonic() + seconds
        with self._mutex:
            is_first = key not in self._running
            shared = self._running.setdefault(key, Future())
        if is_first:
            self._start(key, seconds, work, shared)
        wait([shared], max(0.0, end - time.monotonic()))
        if not shared.done():
            raise LockTimeout
        return shared.result()

    def _start(self, key: str, seconds: float, work: Callable[[], T], shared: Future[T]) -> None:
        lock, done = ExitStack(), Future[T]()
        try:
            lock.enter_context(self.hold(key, seconds))
            if self.executor:
                done = _submit(self.executor, work)
            else:
                done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        done.add_done_callback(partial(self._end, key, lock, shared))

    def _end(self, key: str, lock: ExitStack, shared: Future[T], done: Future[T]) -> None:
        """Pass the result on to all callers, once the lock is released: they may ask again."""
        try:
            with self._mutex:
                del self._running[key]
            lock.close()
            shared.set_result(done.result())
        except BaseException as error:
            shared.set_exception(error)


def _submit(executor: Executor, work: Callable[[], T]) -> Future[T]:
    try:
        return executor.submit(work)
    except RuntimeError:  # it is shut down
        raise CancelledError from None
