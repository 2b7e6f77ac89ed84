"""How many drawings run at once: in the pool of this process, and at one backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Generic, TypeVar

from metrics import OFF, Metrics
from picture import Problem
from storage import LockTimeout
from storage.state import State
from storage.waiting import NoPlace, Places, SingleFlight
from upstream.client import Deadline

# Seconds between two looks at the slots; each look costs a round trip to a shared database.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


class Slots:
    """The slots of one backend, each a lock of the state; without keys there is no limit.

    A killed process loses its locks, and so frees its slots. A lost session of PostgreSQL loses
    them, too, while its drawings go on: for a while there may be more than the limit.
    """

    def __init__(self, state: State, keys: Sequence[str] = ()) -> None:
        self.state = state
        self.keys = keys

    def take(self) -> ExitStack | None:
        """Return a slot, which is freed by closing it, or None if all are taken.

        Raises Unavailable.
        """
        slot = ExitStack()
        if not self.keys:
            return slot
        for key in self.keys:
            with suppress(LockTimeout):
                slot.enter_context(self.state.hold(key, 0))
                return slot
        return None


def first_free(
    wanted: Sequence[Slots], deadline: Deadline, sleep: Callable[[float], None] = time.sleep
) -> tuple[int, ExitStack, bool]:
    """Take a slot of the first that has one free, and wait for one if none has.

    Return its index, the slot, and whether that took waiting. Raises LockTimeout at the deadline,
    and Unavailable.
    """
    pause, has_waited = FIRST_PAUSE, False
    while not deadline.is_over:
        for index, slots in enumerate(wanted):
            if slot := slots.take():
                return index, slot, has_waited
        sleep(min(pause, deadline.remaining()))
        pause, has_waited = min(2 * pause, LONGEST_PAUSE), True
    raise LockTimeout


T = TypeVar("T")


class Busy(Problem):
    """Too many requests are queued, drawing or waiting."""

    def __init__(self) -> None:
        super().__init__("too_many_drawings")


class StillRunning(Problem):
    """The caller's time ran out before the work was done; the work continues."""

    def __init__(self) -> None:
        super().__init__("still_drawing")


class Pool(Generic[T]):
    """Runs work in its own threads while callers wait, and finishes it even if they disconnect.

    At most `threads` run at once. Each caller takes one of the `places`, and no more work than
    that is queued or running.
    """

    def __init__(self, state: State, threads: int, places: Places, metrics: Metrics = OFF) -> None:
        self.places = places
        self.metrics = metrics
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="drawing")
        self._drawings: SingleFlight[T] = SingleFlight(state.hold, self._threads)
        metrics.limits(threads, places.size)

    def run(self, key: str, until: Deadline, work: Callable[[], T]) -> T:
        """Return the result of `work` for `key`, run once for all concurrent callers.

        Another process may have just done the work, so `work` must check first. A caller that
        waits for another process takes no thread of the pool. Raises Busy, any error of `work`,
        and StillRunning at the moment `until`, or earlier if the first caller had less time and
        was waiting for another process.
        """
        is_own = False

        def own_work() -> T:
            nonlocal is_own
            is_own = True
            return work()

        try:
            with self.places.take(key):
                wanted = self._drawings.keys
                if key not in wanted and len(wanted) >= self.places.size:
                    raise Busy
                result = self._drawings.run(key, until.remaining(), own_work)
        except LockTimeout:
            raise StillRunning from None
        except (NoPlace, CancelledError):
            raise Busy from None
        if not is_own:
            self.metrics.waited()
        return result

    def close(self) -> None:
        """Finish running work and drop queued work: callers of the latter get Busy."""
        self._threads.shutdown(cancel_futures=True)
