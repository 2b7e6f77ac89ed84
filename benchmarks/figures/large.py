"""Large answers of backends: what they take in memory, and the hits beside them."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from benchmarks.figures.plan import KB, Figure, Plan
from benchmarks.load import Misses, wrk
from benchmarks.stack import App, Unmeasurable, ask, backend, gunicorn

AT_ONCE = 8
SIZE = 30 * 10**6


class Watch:
    """Draws large pictures, eight at a time, and notes the most memory that the app takes."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.statuses = Counter[int]()
        self.peak = 0
        self._stopped = threading.Event()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        threads = [threading.Thread(target=work) for work in (self._draw, self._look)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def _draw(self) -> None:
        for number in count():
            self.statuses += Misses(self.app, AT_ONCE, f"large-{number}").finish()
            if self._stopped.is_set():
                return

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            self.peak = max(self.peak, self.app.memory())


def beside_large_answers(plan: Plan) -> Iterator[Figure]:
    folder = plan.folder / "large"
    with backend(50 * KB) as small, gunicorn(folder, small.url) as app:
        ask(app.picture("apple"))  # cached for the app below, which has another backend
    with backend(SIZE) as upstream, gunicorn(folder, upstream.url) as app:
        hit = app.picture("apple")
        idle = wrk(hit, 1, 2)
        watch = Watch(app)
        with watch.under_way():
            busy = wrk(hit, plan.large_seconds, 2)
    if set(watch.statuses) != {200}:
        raise Unmeasurable(f"cold requests were answered with {watch.statuses}")
    details = {
        "idle p99 ms": idle.p99,
        "longest ms": busy.longest,
        "pictures drawn": watch.statuses.total(),
    }
    title = f"p99 of hits beside {AT_ONCE} answers of 30 MB"
    yield Figure("large", title, round(busy.p99, 1), 50.0, "ms", details=details)
    yield Figure("large", "… most memory meanwhile", round(watch.peak / 1e6, 1), 600.0, "MB")
