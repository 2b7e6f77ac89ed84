"""Work that runs once for all who want it, in this process and in others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from storage import LockTimeout, Unavailable
from storage.state import State
from storage.waiting import SingleFlight

from .servers import wait_until

KEY = "a" * 64


class Lost:
    """Locks that cannot be used until `is_back`."""

    is_back = False

    @contextmanager
    def hold(self, key: str, seconds: float) -> Iterator[None]:
        if not self.is_back:
            raise Unavailable("the connection is lost")
        yield


def test_result_is_shared_while_it_is_waited_for(state: State) -> None:
    flight: SingleFlight[str] = SingleFlight(state)
    begun, gate = [], threading.Event()

    def work() -> str:
        begun.append(1)
        assert gate.wait(20)
        return "answer"

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(flight.run, KEY, 20, work) for _ in range(8)]
        wait_until(lambda: begun)
        assert flight.keys == {KEY}
        with pytest.raises(LockTimeout):
            flight.run(KEY, 0.05, work)
        gate.set()
        assert {one.result(20) for one in waiting} == {"answer"}
    assert flight.keys == set()
    assert flight.run(KEY, 5, lambda: "again") == "again"


def test_error_is_raised_and_the_work_can_be_tried_again(state: State) -> None:
    flight: SingleFlight[str] = SingleFlight(state)
    for error in (ZeroDivisionError(), TimeoutError("the work's own")):
        with pytest.raises(type(error)):
            flight.run(KEY, 5, lambda: raise_(error))  # noqa: B023 # run at once
    assert flight.run(KEY, 5, lambda: "again") == "again"


def raise_(error: Exception) -> str:
    raise error


def test_other_processes_wait(state: State) -> None:
    flight: SingleFlight[str] = SingleFlight(state)
    with state.hold(KEY, 1), pytest.raises(LockTimeout):
        flight.run(KEY, 0.05, lambda: "answer")
    assert flight.run(KEY, 5, lambda: "answer") == "answer"


def test_locks_that_fail_leave_nothing_behind() -> None:
    locks = Lost()
    flight: SingleFlight[str] = SingleFlight(locks)
    with pytest.raises(Unavailable):
        flight.run(KEY, 5, lambda: "answer")
    locks.is_back = True
    assert flight.run(KEY, 5, lambda: "answer") == "answer"


def test_work_that_is_dropped_from_the_queue_is_cancelled(state: State) -> None:
    gate = threading.Event()
    with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as caller:
        executor.submit(gate.wait, 20)
        flight: SingleFlight[str] = SingleFlight(state, executor)
        queued = caller.submit(flight.run, KEY, 20, lambda: "answer")
        wait_until(lambda: flight.keys)
        executor.shutdown(wait=False, cancel_futures=True)
        gate.set()
        with pytest.raises(CancelledError):
            queued.result(20)
        with state.hold(KEY, 5):
            pass
