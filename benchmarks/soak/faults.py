"""What is done to the service while clients use it."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

from benchmarks.stack import App, Unmeasurable, wait_until


def reload(app: App) -> None:
    before = set(app.workers())
    app.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(app.workers()) and is_ready(app), "new workers", 60)


def is_ready(app: App) -> bool:
    """Whether every worker has started its own threads; before that it would miss a signal."""
    try:
        threads = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in app.workers()]
    except FileNotFoundError:  # it has ended meanwhile
        return False
    return len(threads) == 2 and min(threads) > 1


# To add a fault: a function that does it, and returns when the service should be well again.
FAULTS: list[Callable[[App], None]] = [reload]


class Saboteur:
    """Commits one fault after the other, in a thread; `committed` counts them by name."""

    def __init__(self, app: App, pause: float) -> None:
        self.app = app
        self.pause = pause  # seconds before each fault
        self.committed: Counter[str] = Counter()
        self.failure: str | None = None
        self._stop = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        faults = cycle(FAULTS)
        while not self._stop.wait(self.pause):
            fault = next(faults)
            try:
                fault(self.app)
            except Unmeasurable as reason:
                self.failure = f"not recovered from {fault.__name__}: {reason}"
                return
            self.committed[fault.__name__] += 1
