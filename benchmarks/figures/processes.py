"""How soon the service answers after its start, and how much memory it takes."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures.plan import KB, MIB, Figure, Plan, median
from benchmarks.stack import App, Unmeasurable, ask, backend, gunicorn


def start(plan: Plan) -> Iterator[Figure]:
    folder = plan.folder / "start"
    with backend(50 * KB) as upstream, gunicorn(folder, upstream.url) as app:
        ask(app.picture("apple"))
        hit = app.picture("apple").removeprefix(app.url)
    seconds = []
    for _ in range(plan.starts):
        began = time.perf_counter()
        with gunicorn(folder, ready=hit):
            seconds.append(time.perf_counter() - began)
    details = {"seconds": [round(value, 3) for value in seconds]}
    title = "start to first answer, a hit"
    yield Figure("start", title, median(seconds), 0.7, "s", details=details)


def memory(plan: Plan) -> Iterator[Figure]:
    with backend(MIB) as upstream, gunicorn(plan.folder / "memory", upstream.url) as app:
        fresh = megabytes(app)
        with ThreadPoolExecutor(16) as pool:
            urls = [app.picture("apple", seed) for seed in range(plan.pictures)]
            statuses = Counter(answer.status for answer in pool.map(ask, urls))
        if statuses != {200: plan.pictures}:
            raise Unmeasurable(f"cold requests were answered with {statuses}")
        after = megabytes(app)
    title = f"memory after {plan.pictures} cold pictures of 1 MiB"
    details = {"at start": fresh, "after": after}
    yield Figure("memory", title, after["Pss"], 250.0, "MB", details=details)


def megabytes(app: App) -> dict[str, float]:
    return {kind: round(app.memory(kind) / 1e6, 1) for kind in ("Pss", "Rss")}
