"""How fast hits are: through nginx, from gunicorn, counted, and while drawings are under way."""

import http.client
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

from benchmarks import nginx
from benchmarks.figures.plan import KB, MIB, Figure, Plan, median
from benchmarks.load import Misses, compare, wrk
from benchmarks.stack import WORKERS, App, Unmeasurable, ask, backend, gunicorn, target_of


def through_nginx(plan: Plan) -> Iterator[Figure]:
    for name, size, target in (("50 KB", 50 * KB, 0.90), ("1 MiB", MIB, 0.85)):
        folder = plan.folder / f"nginx-{size}"
        with (
            backend(size) as upstream,
            gunicorn(folder, upstream.url) as app,
            nginx.shipped(folder / "nginx", app) as front,
        ):
            cached = app.picture("apple").replace(app.url, front.url)
            picture = ask(cached).body
            if len(picture) != size:
                raise Unmeasurable(f"the picture has {len(picture)} bytes instead of {size}")
            static = front.publish("apple.png", picture)
            ratio, details = compare(cached, static, plan.rounds)
        title = f"hits through nginx ÷ static file, {name}"
        yield Figure("nginx", title, ratio, target, at_least=True, details=details)


def from_gunicorn(plan: Plan) -> Iterator[Figure]:
    folder = plan.folder / "gunicorn"
    with (
        backend(50 * KB) as upstream,
        gunicorn(folder, upstream.url) as app,
        gunicorn(folder / "hello", wsgi_app="benchmarks.hello:app", ready="/") as hello,
    ):
        ask(app.picture("apple"))
        ratio, details = compare(app.picture("apple"), f"{hello.url}/", plan.rounds)
    title = f"hits from gunicorn ÷ Flask hello world, 50 KB, {WORKERS} workers"
    yield Figure("gunicorn", title, ratio, 0.90, at_least=True, details=details)


def with_metrics(plan: Plan) -> Iterator[Figure]:
    folder, ratios, costs = plan.folder / "metrics", [], []
    with (
        backend(50 * KB) as upstream,
        gunicorn(folder / "on", upstream.url, WORKERS="1", METRICS="true") as counted,
        gunicorn(folder / "off", upstream.url, WORKERS="1") as uncounted,
    ):
        for app in (counted, uncounted):
            cpu_of_hits(app, plan.cold_requests)
        for _ in range(plan.rounds):
            with_them, without = (cpu_of_hits(app, 500) for app in (counted, uncounted))
            ratios.append(with_them / without)
            costs.append((with_them - without) / 500 * 1e6)
    details = {"ratios": [round(ratio, 2) for ratio in sorted(ratios)], "CPU µs": median(costs)}
    title = "CPU of a hit with METRICS ÷ without"
    yield Figure("metrics", title, median(ratios), 1.2, details=details)


def cpu_of_hits(app: App, count: int) -> float:
    """Return the CPU seconds of the service for hits over one kept connection, as nginx's."""
    target, before = target_of(app.picture("apple")), app.cpu_seconds()
    with closing(http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=60)) as connection:
        for _ in range(count):
            connection.request("GET", target)
            if len(connection.getresponse().read()) != 50 * KB:
                raise Unmeasurable("a hit was not answered with the picture")
    return app.cpu_seconds() - before


def beside_misses(plan: Plan) -> Iterator[Figure]:
    idle, loaded, in_flight, statuses = [], [], [], Counter[int]()
    folder = plan.folder / "busy"
    with backend(50 * KB, 3.0) as upstream, gunicorn(folder, upstream.url) as app:
        hit = app.picture("apple")
        ask(hit)
        wrk(hit, 1, 8)
        for number in range(plan.loaded_rounds):
            idle.append(wrk(hit, 1, 8))
            misses = Misses(app, 300, f"miss-{number}")
            in_flight.append(misses.settle())
            loaded.append(wrk(hit, 1, 8))
            statuses += misses.finish()
    ratio = median([busy.p99 / free.p99 for busy, free in zip(loaded, idle, strict=True)])
    details = {
        "idle p99 ms": [load.p99 for load in idle],
        "loaded p99 ms": [load.p99 for load in loaded],
        "hits per second, idle and loaded": [
            round(statistics.median(load.rate for load in loads)) for loads in (idle, loaded)
        ],
        "misses in flight": in_flight,
        "misses by status": dict(sorted(statuses.items())),
    }
    yield Figure("busy", "p99 of hits, 300 misses in flight ÷ idle", ratio, 3.0, details=details)
    longest = max(load.longest for load in loaded)
    yield Figure("busy", "… the longest of these hits", round(longest, 1), 1000.0, "ms")
