"""The pool of drawings: work that runs once, and its callers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from drawing.pool import Busy, Pool, StillRunning
from storage.local.sqlite import SqliteState
from storage.waiting import Places
from upstream.calls import Deadline

from .servers import wait_until
from .states import held_elsewhere

KEYS = [f"{number:064x}" for number in range(1, 50)]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqliteState]:
    state = SqliteState(tmp_path)
    yield state
    state.close()


class Callers:
    """Callers of a pool in threads of their own, and work that a gate holds back."""

    def __init__(self, pool: Pool[str]) -> None:
        self.pool = pool
        self.gate = threading.Event()
        self.begun: list[str] = []
        self.threads = ThreadPoolExecutor(100)

    def work(self, key: str) -> str:
        self.begun.append(key)
        assert self.gate.wait(20)
        return f"drawn {key}"

    def call(self, key: str, seconds: float = 20.0) -> Future[str]:
        deadline = Deadline.after(seconds)
        return self.threads.submit(self.pool.run, key, deadline, lambda: self.work(key))


@pytest.fixture
def callers(state: SqliteState) -> Iterator[Callable[[int, int], Callers]]:
    made: list[Callers] = []

    def make(threads: int, places: int) -> Callers:
        made.append(one := Callers(Pool(state, threads, Places(places))))
        return one

    yield make
    for one in made:
        one.gate.set()
        one.threads.shutdown()
        one.pool.close()


Make = Callable[[int, int], Callers]


def test_work_is_done_once_for_all_who_want_it(callers: Make) -> None:
    some = callers(4, 40)
    futures = [some.call(KEYS[0]) for _ in range(20)]
    wait_until(lambda: some.pool.places.taken == 20)
    some.gate.set()
    assert {future.result(20) for future in futures} == {f"drawn {KEYS[0]}"}
    assert some.begun == [KEYS[0]]


def test_work_beyond_the_threads_is_queued(callers: Make) -> None:
    some = callers(2, 10)
    futures = [some.call(key) for key in KEYS[:6]]
    wait_until(lambda: some.pool.places.taken == 6 and len(some.begun) == 2)
    some.gate.set()
    assert [future.result(20) for future in futures] == [f"drawn {key}" for key in KEYS[:6]]


def test_more_work_than_places_is_turned_away_at_once(callers: Make) -> None:
    some = callers(1, 3)
    for key in KEYS[:3]:
        some.call(key)
    wait_until(lambda: some.pool.places.taken == 3)
    with pytest.raises(Busy):
        some.call(KEYS[3]).result(20)


def test_work_goes_on_when_its_caller_has_given_up(callers: Make) -> None:
    some = callers(1, 4)
    with pytest.raises(StillRunning):
        some.call(KEYS[0], seconds=0.2).result(20)
    later = some.call(KEYS[0])
    wait_until(lambda: some.pool.places.taken == 1)
    some.gate.set()
    assert later.result(20) == f"drawn {KEYS[0]}"
    assert some.begun == [KEYS[0]]


def test_caller_stops_waiting_for_another_process_in_time(tmp_path: Path, callers: Make) -> None:
    waiting = callers(1, 4)
    with held_elsewhere(tmp_path, KEYS[0]), pytest.raises(StillRunning):
        waiting.call(KEYS[0], 0.1).result(5)
    waiting.gate.set()
    assert waiting.call(KEYS[0]).result(5) == f"drawn {KEYS[0]}"


def test_error_reaches_every_caller_and_the_next_one_tries_again(callers: Make) -> None:
    some = callers(1, 8)

    def fail() -> str:
        assert some.gate.wait(20)
        raise ValueError("no picture")

    def call() -> str:
        return some.pool.run(KEYS[0], Deadline.after(20), fail)

    futures = [some.threads.submit(call) for _ in range(3)]
    wait_until(lambda: some.pool.places.taken == 3)
    some.gate.set()
    for future in futures:
        with pytest.raises(ValueError, match="no picture"):
            future.result(20)
    assert some.call(KEYS[0]).result(20) == f"drawn {KEYS[0]}"


def test_stop_finishes_what_is_running_and_drops_the_queue(callers: Make) -> None:
    some = callers(1, 8)
    running, queued = some.call(KEYS[0]), some.call(KEYS[1])
    wait_until(lambda: some.pool.places.taken == 2)
    wait_until(lambda: some.begun)
    first, second = (running, queued) if some.begun == [KEYS[0]] else (queued, running)
    stopping = some.threads.submit(some.pool.close)
    with pytest.raises(Busy):
        second.result(20)
    assert not stopping.done()
    some.gate.set()
    assert first.result(20).startswith("drawn")
    stopping.result(20)


def test_caller_that_comes_after_the_stop_is_turned_away(callers: Make) -> None:
    some = callers(1, 8)
    some.pool.close()
    with pytest.raises(Busy):
        some.call(KEYS[0]).result(20)
    assert not some.begun
