"""Counters and timings for Prometheus. Imports prometheus_client, which only METRICS needs.

Under gunicorn the values are in files that all workers share (metrics/multiprocess.py);
elsewhere they are this process's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from metrics import Metrics
from metrics.families import BACKEND_OUTCOMES, COUNTERS, GAUGES, PREFIX, TIMINGS, Family


class Prometheus(Metrics):
    """Counts in this process; `collector` adds up all workers of the service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters = {name: self._counter(name, about) for name, about in COUNTERS.items()}
        self._timings = {name: self._timing(name, about) for name, about in TIMINGS.items()}
        self._gauges = {name: self._gauge(name, about) for name, about in GAUGES.items()}

    @property
    def collector(self) -> Collector:
        with suppress(ValueError):  # not under gunicorn
            return MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        return self._registry

    # --- requests and pictures

    def answered(self, route: str, status: str) -> None:
        self._count("requests", route, status)

    def hit(self) -> None:
        self._count("pictures", "hit")

    def drawn(self, source: str) -> None:
        self._count("pictures", source)

    def waited(self) -> None:
        self._count("pictures", "waited")

    # --- drawings

    def limits(self, drawings: int, waiting: int) -> None:
        self._gauges["drawings_limit"].set(drawings)
        self._gauges["waiting_requests_limit"].set(waiting)

    def waiting(self) -> AbstractContextManager[None]:
        return self._gauges["waiting_requests"].track_inprogress()

    def drawing(self) -> AbstractContextManager[None]:
        return self._gauges["drawings_in_progress"].track_inprogress()

    def drawing_ended(self, outcome: str, seconds: float) -> None:
        self._timings["drawing"].labels(outcome).observe(seconds)

    def stage(self, stage: str, outcome: str, seconds: float) -> None:
        self._timings["stage"].labels(stage, outcome).observe(seconds)

    # --- calls to other servers

    def backend_listed(self, backend: str) -> None:
        # rate() misses whatever a new series starts with.
        for outcome in BACKEND_OUTCOMES:
            self._counters["backend_calls"].labels(backend, outcome)
        self._timings["backend_call"].labels(backend)

    def backend_called(self, backend: str, outcome: str, seconds: float) -> None:
        self._count("backend_calls", backend, outcome)
        self._timings["backend_call"].labels(backend).observe(seconds)
        if outcome == "refused":
            self._count("refusals")

    def retried(self) -> None:
        self._count("retries")

    def rewritten(self) -> None:
        self._count("rewrites")

    def llm_call(self, task: str) -> AbstractContextManager[None]:
        return self._counting_outcome("llm_calls", task)

    def upload(self) -> AbstractContextManager[None]:
        return self._counting_outcome("uploads")

    def connected(self, *, is_new: bool) -> None:
        self._count(f"upstream_connections_{'opened' if is_new else 'reused'}")

    # --- the cache

    def state_call(self, call: str) -> AbstractContextManager[None]:
        return self._timings["state_call"].labels(call).time()

    def store_call(self, call: str) -> AbstractContextManager[None]:
        return self._timings["store_call"].labels(call).time()

    def adopted(self, pictures: int) -> None:
        self._count("cache_adoptions", amount=pictures)

    def evicted(self, pictures: int) -> None:
        self._count("cache_evictions", amount=pictures)

    # --- the instruments of prometheus_client

    def _count(self, name: str, *labels: str, amount: float = 1) -> None:
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(amount)

    @contextmanager
    def _counting_outcome(self, name: str, *labels: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._count(name, *labels, "failed")
            raise
        self._count(name, *labels, "ok")

    def _counter(self, name: str, about: Family) -> Counter:
        counter = Counter(PREFIX + name, about.text, about.labels, registry=self._registry)
        for labels in about.known:
            counter.labels(*labels)
        return counter

    def _timing(self, name: str, about: Family) -> Histogram:
        timing = Histogram(
            f"{PREFIX}{name}_duration_seconds",
            about.text,
            about.labels,
            registry=self._registry,
            buckets=about.buckets,
        )
        for labels in about.known:
            timing.labels(*labels)
        return timing

    def _gauge(self, name: str, about: Family) -> Gauge:
        return Gauge(
            PREFIX + name, about.text, registry=self._registry, multiprocess_mode="livesum"
        )
