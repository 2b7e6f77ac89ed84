"""The pool of drawings: work that runs once, and its callers."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from drawing.pool import Busy, Pool, StillRunning
from storage.state import State
from storage.waiting import Places
from upstream.client import Deadline

from .scripted import wait_until

KEYS = [f"{number:064x}" for number in range(1, 50)]


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

    def have_come(self, count: int) -> None:
        wait_until(lambda: self.pool.places.taken == count)


Make = Callable[[int, int], Callers]


@pytest.fixture
def callers(state: State) -> Iterator[Make]:
    """Make a pool of so many threads and places."""
    made: list[Callers] = []

    def make(threads: int, places: int) -> Callers:
        made.append(one := Callers(Pool(state, threads, Places(places))))
        return one

    yield make
    for one in made:
        one.gate.set()
        one.threads.shutdown()
        one.pool.close()


def test_work_is_done_once_for_all_who_want_it(callers: Make) -> None:
    some = callers(4, 40)
    futures = [some.call(KEYS[0]) for _ in range(20)]
    some.have_come(20)
    some.gate.set()
    assert {future.result(20) for future in futures} == {f"drawn {KEYS[0]}"}
    assert some.begun == [KEYS[0]]


def test_work_beyond_the_threads_is_queued(callers: Make) -> None:
    some = callers(2, 10)
    futures = [some.call(key) for key in KEYS[:6]]
    some.have_come(6)
    wait_until(lambda: len(some.begun) == 2)
    some.gate.set()
    assert [future.result(20) for future in futures] == [f"drawn {key}" for key in KEYS[:6]]


def test_work_goes_on_when_its_caller_has_given_up(callers: Make) -> None:
    some = callers(1, 4)
    with pytest.raises(StillRunning):
        some.call(KEYS[0], seconds=0.2).result(20)
    later = some.call(KEYS[0])
    some.have_come(1)
    some.gate.set()
    assert later.result(20) == f"drawn {KEYS[0]}"
    assert some.begun == [KEYS[0]]


def test_stop_finishes_what_is_running_and_drops_the_queue(callers: Make) -> None:
    some = callers(1, 8)
    running = some.call(KEYS[0])
    wait_until(lambda: some.begun)
    queued = some.call(KEYS[1])
    some.have_come(2)
    stopping = some.threads.submit(some.pool.close)
    for dropped in queued, some.call(KEYS[2]):
        with pytest.raises(Busy):
            dropped.result(20)
    assert not stopping.done()
    some.gate.set()
    assert running.result(20) == f"drawn {KEYS[0]}"
    stopping.result(20)
    assert some.begun == [KEYS[0]]
