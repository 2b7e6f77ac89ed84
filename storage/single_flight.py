"""Work that many callers want and that runs once, in this process and in all others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Generic, Protocol, TypeVar

from storage import LockTimeout

T = TypeVar("T")


class Holder(Protocol):
    """Whatever has locks between processes: see `State.hold`."""

    def hold(self, key: str, seconds: float) -> AbstractContextManager[None]: ...


class SingleFlight(Generic[T]):
    """Runs work once for all callers that want the same at the same time.

    It runs in the thread of the first caller or, with an `executor`, in one of its threads, where
    it goes on even if every caller stops waiting.
    """

    def __init__(self, holder: Holder, executor: Executor | None = None) -> None:
        self._holder = holder
        self._executor = executor
        self._running: dict[str, Future[T]] = {}
        self._mutex = threading.Lock()

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
            lock.enter_context(self._holder.hold(key, seconds))
            if self._executor:
                done = _submit(self._executor, work)
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
