"""Room for requests that wait, and work that runs once for all who want it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from storage import LockTimeout, Unavailable
from storage.state import State
from storage.waiting import NoPlace, Places, SingleFlight

from .scripted import wait_until

KEY = "a" * 64


def test_one_key_takes_at_most_half_of_the_places() -> None:
    places = Places(5)
    with ExitStack() as waiting:
        for key in ("popular", "popular", "a", "b", "c"):
            waiting.enter_context(places.take(key))
        assert places.taken == 5
        for key in ("popular", "d"):
            with pytest.raises(NoPlace), places.take(key):
                pass
    assert places.taken == 0
    with places.take("popular"), pytest.raises(ValueError), places.take("popular"):
        raise ValueError
    assert places.taken == 0


def test_single_place_can_be_taken() -> None:
    places = Places(1)
    with places.take("a"), pytest.raises(NoPlace), places.take("b"):
        pass


@pytest.fixture
def flight(state: State) -> SingleFlight[str]:
    return SingleFlight(state.hold)


def test_result_is_shared_while_it_is_waited_for(flight: SingleFlight[str]) -> None:
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


def test_error_is_raised_and_the_work_can_be_tried_again(flight: SingleFlight[str]) -> None:
    def fail() -> str:
        raise error

    for error in (ZeroDivisionError(), TimeoutError("the work's own")):
        with pytest.raises(type(error)):
            flight.run(KEY, 5, fail)
    assert flight.run(KEY, 5, lambda: "again") == "again"


def test_other_processes_wait(state: State, flight: SingleFlight[str]) -> None:
    with state.hold(KEY, 1), pytest.raises(LockTimeout):
        flight.run(KEY, 0.05, lambda: "answer")
    assert flight.run(KEY, 5, lambda: "answer") == "answer"


def test_locks_that_fail_leave_nothing_behind() -> None:
    is_lost = True

    @contextmanager
    def hold(key: str, seconds: float) -> Iterator[None]:
        if is_lost:
            raise Unavailable("the connection is lost")
        yield

    flight: SingleFlight[str] = SingleFlight(hold)
    with pytest.raises(Unavailable):
        flight.run(KEY, 5, lambda: "answer")
    is_lost = False
    assert flight.run(KEY, 5, lambda: "answer") == "answer"
