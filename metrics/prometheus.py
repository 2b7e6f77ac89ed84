"""Counters and timings for Prometheus. Imports prometheus_client, which only METRICS needs.

Under gunicorn the values are in files that all workers share (metrics/multiprocess.py);
elsewhere they are this process's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import product
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from metrics import Metrics

PREFIX = "prompt_image_proxy_"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180)
_LATENCIES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
_OUTCOMES = ("ok", "failed")
BACKEND_OUTCOMES = ("drawn", "refused", "rejected", "failed")
STAGES = ("optimise", "generate", "rewrite", "fallback", "convert", "upload")


class Family(NamedTuple):
    """A metric: its help text, its labels, and the label values that start at 0."""

    text: str
    labels: Sequence[str] = ()
    known: Sequence[Sequence[str]] = ()
    buckets: Sequence[float] = _SECONDS


# `_total` is appended to their names.
COUNTERS = {
    "requests": Family("HTTP requests answered.", ["route", "status"]),
    "pictures": Family(
        "Pictures found in the cache (hit), drawn (backend; rewritten: from a prompt rewritten"
        " for safety; fallback), or obtained by waiting for another request's drawing (waited).",
        ["source"],
        [[source] for source in ("hit", "backend", "rewritten", "fallback", "waited")],
    ),
    "backend_calls": Family(
        "Drawings requested from a backend or the fallback.", ["backend", "outcome"]
    ),
    "retries": Family("Backends tried because the one before had not drawn the prompt."),
    "refusals": Family("Prompts refused by the moderation of a backend or the fallback."),
    "rewrites": Family("Prompts rewritten for safety."),
    "llm_calls": Family(
        "Calls to the LLM.", ["task", "outcome"], [*product(("optimise", "rewrite"), _OUTCOMES)]
    ),
    "uploads": Family(
        "Uploads to the image host.", ["outcome"], [[outcome] for outcome in _OUTCOMES]
    ),
    "cache_evictions": Family("Pictures deleted to stay within CACHE_MAX_BYTES."),
    "cache_adoptions": Family("Picture files added to the index, which lacked them."),
    "upstream_connections_opened": Family("Connections opened to other servers."),
    "upstream_connections_reused": Family("Calls to other servers over a kept connection."),
}

# `_duration_seconds` is appended to their names.
TIMINGS = {
    "drawing": Family(
        "Time from the start of a drawing, after any wait in the queue, to its end.",
        ["outcome"],
        [["drawn"], ["refused"], ["failed"]],
    ),
    "stage": Family(
        "Time that a stage of a drawing took.",
        ["stage", "outcome"],
        [*product(STAGES, _OUTCOMES)],
    ),
    "backend_call": Family("Time that a backend or the fallback took to answer.", ["backend"]),
    "state_call": Family("Time that a call to the index took.", ["call"], buckets=_LATENCIES),
    "store_call": Family(
        "Time that a call to the store of pictures took.", ["call"], buckets=_LATENCIES
    ),
}

# Of each worker; the sum over the living ones is shown.
GAUGES = {
    "drawings_in_progress": Family("Drawings under way."),
    "drawings_limit": Family("Most drawings that can be under way: DRAWINGS in each worker."),
    "waiting_requests": Family("Requests waiting for a drawing, or for a picture from the bucket."),
    "waiting_requests_limit": Family("Most requests that can wait: THREADS - 16 in each worker."),
}

# Read at each scrape (web/metrics.py).
FACTS = {
    "backend_state": Family(
        "Whether a backend is ready, cooling down or drained: 1 for its state.",
        ["backend", "state"],
    ),
    "backend_cooldown_seconds": Family("Time until a backend is asked again.", ["backend"]),
    "cache_entries": Family("Pictures in the cache."),
    "cache_bytes": Family("Size of the pictures in the cache."),
    "cache_limit_bytes": Family("CACHE_MAX_BYTES, if there is a limit."),
    "key_drawings_today": Family("Drawings of an access key since midnight UTC.", ["key"]),
    "key_drawings_limit": Family("Drawings that an access key may cause per UTC day.", ["key"]),
    "build_info": Family("Version of the service and of Python.", ["version", "python"]),
}


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
