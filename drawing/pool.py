"""How many drawings run at once in this process."""

from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Generic, TypeVar

from metrics import OFF, Metrics
from picture import Problem
from storage import LockTimeout
from storage.state import State
from storage.waiting import NoPlace, Places, SingleFlight
from upstream.client import Deadline

T = TypeVar("T")


class Busy(Problem):
    """Too many requests are queued, drawing or waiting."""


class StillRunning(Problem):
    """The caller's time ran out before the work was done; the work continues."""


class Pool(Generic[T]):
    """Runs work in its own threads while callers wait, and finishes it even if they disconnect.

    At most `threads` run at once. Each caller takes one of the `places`, and no more work than
    that is queued or running.
    """

    def __init__(self, state: State, threads: int, places: Places, metrics: Metrics = OFF) -> None:
        self.places = places
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
        try:
            with self.places.take(key):
                wanted = self._drawings.keys
                if key not in wanted and len(wanted) >= self.places.size:
                    raise Busy("too_many_drawings")
                return self._drawings.run(key, until.remaining(), work)
        except LockTimeout:
            raise StillRunning("still_drawing") from None
        except (NoPlace, CancelledError):
            raise Busy("too_many_drawings") from None

    def close(self) -> None:
        """Finish running work and drop queued work: callers of the latter get Busy."""
        self._threads.shutdown(cancel_futures=True)
