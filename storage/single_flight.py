"""Work that many callers want and that runs once, in this process and in all others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Holder(Protocol):
    """Whatever has locks between processes: see `State.hold`."""

    def hold(self, key: str, seconds: float) -> AbstractContextManager[bool]: ...


class SingleFlight(Generic[T]):
    """Runs work in the thread of the first caller; the others wait for its result."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self._flights: dict[str, Future[T]] = {}
        self._mutex = threading.Lock()

    def run(self, key: str, seconds: float, work: Callable[[], T]) -> T:
        """Return the result of `work`, run here or in the thread that came first; raise its error.

        Another process waits until this one is done and then works itself, so `work` has to
        look first whether it is still needed. Raises TimeoutError or LockTimeout after `seconds`
        of waiting, and Unavailable.
        """
        with self._mutex:
            is_first = key not in self._flights
            flight = self._flights.setdefault(key, Future())
        if not is_first:
            return flight.result(seconds)
        try:
            with self.holder.hold(key, seconds):
                result = work()
        except BaseException as error:
            flight.set_exception(error)
            raise
        else:
            flight.set_result(result)
            return result
        finally:
            with self._mutex:
                del self._flights[key]
