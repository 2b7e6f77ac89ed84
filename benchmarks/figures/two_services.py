"""Several machines: two services on one PostgreSQL and one object store, beside a single one.

All of them share one machine here, so two services are not faster than one.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks import cluster_servers
from benchmarks.figures.plan import KB, Figure, Plan, median
from benchmarks.load import CONNECTIONS, Load, wrk
from benchmarks.stack import App, Unmeasurable, Upstream, ask, backend, gunicorn, wait_until

AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Contestants:
    """A service with SQLite and a folder, and two that share a database and a bucket."""

    alone: App
    one: App
    other: App

    @property
    def sides(self) -> dict[str, tuple[App, ...]]:
        return {"SQLite": (self.alone,), "one": (self.one,), "two": (self.one, self.other)}


@contextmanager
def contestants(plan: Plan, name: str) -> Iterator[Contestants]:
    folder = plan.folder / name
    with backend(50 * KB) as upstream, cluster_servers.shared() as shared, ExitStack() as stack:
        places: dict[str, dict[str, str]] = {"alone": {}, "one": shared, "other": shared}
        yield Contestants(
            *(
                stack.enter_context(gunicorn(folder / place, upstream.url, **settings))
                for place, settings in places.items()
            )
        )


@contextmanager
def services(plan: Plan, name: str, delay: float) -> Iterator[tuple[Upstream, App, App]]:
    """Run two services that share everything, and a backend that answers after `delay` seconds."""
    folder = plan.folder / name
    with (
        backend(50 * KB, delay) as upstream,
        cluster_servers.shared() as shared,
        gunicorn(folder / "one", upstream.url, **shared) as one,
        gunicorn(folder / "other", upstream.url, **shared) as other,
    ):
        yield upstream, one, other


def hits(plan: Plan) -> Iterator[Figure]:
    """Local copies, at rest with one connection at a time, and as many as can be."""
    rest: dict[str, list[Load]] = {}
    full: dict[str, list[Load]] = {}
    with contestants(plan, "hits") as found:
        for apps in found.sides.values():
            for app in apps:
                wrk_all([app], 1)  # the first one draws it, the others fetch it
        for _ in range(plan.rounds):
            for side, apps in found.sides.items():
                rest.setdefault(side, []).append(wrk_all(apps, 1))
                full.setdefault(side, []).append(wrk_all(apps, CONNECTIONS))
    details = {
        f"{side}: {what}": [median([getattr(load, name) for load in loads[side]]) for name in names]
        for side in rest
        for what, loads, names in (
            ("p50 and p99 ms, one connection each", rest, ("p50", "p99")),
            ("hits per second, p50 and p99 ms", full, ("rate", "p50", "p99")),
        )
    }
    for title, loads, name, target in (
        ("hit of a local copy, p50 ÷ SQLite", rest, "p50", 1.5),
        ("hits per second, one service ÷ SQLite", full, "rate", None),
    ):
        pairs = zip(loads["one"], loads["SQLite"], strict=True)
        ratio = median([getattr(one, name) / getattr(alone, name) for one, alone in pairs])
        yield Figure("hits", title, ratio, target, details=details)


def wrk_all(apps: tuple[App, ...] | list[App], connections: int) -> Load:
    """Load services at the same time for a second; return the sum, and the worse latencies."""
    with ThreadPoolExecutor(len(apps)) as pool:
        loads = list(pool.map(lambda app: wrk(app.picture("apple"), 1, connections), apps))
    latencies = ((load.p50, load.p99, load.longest) for load in loads)
    return Load(sum(load.rate for load in loads), *map(max, zip(*latencies, strict=True)))


def cold(plan: Plan) -> Iterator[Figure]:
    """New pictures of 50 KB, eight at a time."""
    rates: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    with contestants(plan, "cold") as found, ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(plan.loaded_rounds + 1):
            for side, apps in found.sides.items():
                urls = [
                    apps[n % len(apps)].picture(f"{side}-{number}", n)
                    for n in range(plan.cold_requests)
                ]
                began = time.perf_counter()
                answers = list(pool.map(ask, urls))
                if {answer.status for answer in answers} != {200}:
                    raise Unmeasurable("a cold request was not answered with a 200")
                if number:  # not the first round, in which connections are opened
                    rates.setdefault(side, []).append(len(urls) / (time.perf_counter() - began))
                    seconds.setdefault(side, []).extend(answer.seconds for answer in answers)
    details: dict[str, Any] = {f"{side}: per second": median(rates[side]) for side in rates}
    details |= {f"{side}: p50, p99 ms": quantiles(seconds[side], 1000) for side in seconds}
    pairs = zip(rates["one"], rates["SQLite"], strict=True)
    ratio = median([one / alone for one, alone in pairs])
    title = "cold requests per second, one service ÷ SQLite"
    yield Figure("cold", title, ratio, None, details=details)


def quantiles(values: list[float], scale: float) -> list[float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(values)
    return [round(ordered[int(len(ordered) * share)] * scale, 2) for share in (0.5, 0.99)]


def identical(plan: Plan) -> Iterator[Figure]:
    with services(plan, "identical", delay=1.0) as (upstream, one, other):
        with ThreadPoolExecutor(200) as pool:
            urls = [app.picture("apple") for app in (one, other)] * 100
            statuses = Counter(answer.status for answer in pool.map(ask, urls))
        calls = upstream.calls()
    details = {"answers by status": dict(sorted(statuses.items()))}
    title = "upstream calls for 200 identical requests over two services"
    yield Figure("identical", title, calls, 1, details=details)
    yield Figure("identical", "… of them answered with 200", statuses[200], 200, at_least=True)


def take_over(plan: Plan) -> Iterator[Figure]:
    """From `kill -9` of a service that draws to the other one's call of the backend."""
    seconds = [_take_over(plan, number) for number in range(plan.loaded_rounds)]
    details = {"seconds": [round(value, 3) for value in seconds]}
    title = "a drawing is taken over after kill -9"
    yield Figure("takeover", title, round(max(seconds), 3), 1.0, "s", details=details)


def _take_over(plan: Plan, number: int) -> float:
    name = f"takeover-{number}"
    with services(plan, name, delay=3.0) as (upstream, one, other), ThreadPoolExecutor(2) as pool:
        lost = pool.submit(ask, one.picture("apple"))
        wait_until(lambda: upstream.calls() == 1, "the first service to draw")
        kept = pool.submit(ask, other.picture("apple"))
        time.sleep(1.0)  # until it waits for the lock as seldom as it ever does
        began = time.perf_counter()
        for pid in one.pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: upstream.calls() == 2, "the second service to draw", pause=0.005)
        taken = time.perf_counter() - began
        if kept.result().status != 200:
            raise Unmeasurable("the second service did not deliver the picture")
        lost.exception()
    return taken
