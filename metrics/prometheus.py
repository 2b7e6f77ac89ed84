"""Counters and timings for Prometheus. Imports prometheus_client, which only METRICS needs.

Under gunicorn the values are in files that all workers share (metrics/multiprocess.py);
elsewhere they are this process's own.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import product
from types import MappingProxyType
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
    """A metric: its help text, and its labels with the values of each that start at 0."""

    text: str
    labels: Mapping[str, Sequence[str]] = MappingProxyType({})
    buckets: Sequence[float] = _SECONDS


# `_total` is appended to their names.
COUNTERS = {
    "requests": Family("HTTP requests answered.", {"route": (), "status": ()}),
    "pictures": Family(
        "Pictures found in the cache (hit), drawn (backend; rewritten: from a prompt rewritten"
        " for safety; fallback), or obtained by waiting for another request's drawing (waited).",
        {"source": ("hit", "backend", "rewritten", "fallback", "waited")},
    ),
    "backend_calls": Family(
        "Drawings requested from a backend or the fallback.", {"backend": (), "outcome": ()}
    ),
    "retries": Family("Backends tried because the one before had not drawn the prompt."),
    "refusals": Family("Prompts refused by the moderation of a backend or the fallback."),
    "rewrites": Family("Prompts rewritten for safety."),
    "llm_calls": Family(
        "Calls to the LLM.", {"task": ("optimise", "rewrite"), "outcome": _OUTCOMES}
    ),
    "uploads": Family("Uploads to the image host.", {"outcome": _OUTCOMES}),
    "cache_evictions": Family("Pictures deleted to stay within CACHE_MAX_BYTES."),
    "cache_adoptions": Family("Picture files added to the index, which lacked them."),
    "upstream_connections_opened": Family("Connections opened to other servers."),
    "upstream_connections_reused": Family("Calls to other servers over a kept connection."),
}

# `_duration_seconds` is appended to their names.
TIMINGS = {
    "drawing": Family(
        "Time from the start of a drawing, after any wait in the queue, to its end.",
        {"outcome": ("drawn", "refused", "failed")},
    ),
    "stage": Family(
        "Time that a stage of a drawing took.", {"stage": STAGES, "outcome": _OUTCOMES}
    ),
    "backend_call": Family("Time that a backend or the fallback took to answer.", {"backend": ()}),
    "state_call": Family("Time that a call to the index took.", {"call": ()}, _LATENCIES),
    "store_call": Family("Time that a call to the store took.", {"call": ()}, _LATENCIES),
}

# Of each worker; the sum over the living ones is shown.
GAUGES = {
    "drawings_in_progress": "Drawings under way.",
    "drawings_limit": "Most drawings that can be under way: DRAWINGS in each worker.",
    "waiting_requests": "Requests waiting for a drawing, or for a picture from the bucket.",
    "waiting_requests_limit": "Most requests that can wait: THREADS - 16 in each worker.",
}


class Prometheus(Metrics):
    """Counts in this process; `collector` adds up all workers of the service."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._counters = {
            name: Counter(PREFIX + name, about.text, about.labels, registry=registry)
            for name, about in COUNTERS.items()
        }
        self._timings = {
            name: Histogram(
                f"{PREFIX}{name}_duration_seconds",
                about.text,
                about.labels,
                registry=registry,
                buckets=about.buckets,
            )
            for name, about in TIMINGS.items()
        }
        self._gauges = {
            name: Gauge(PREFIX + name, text, registry=registry, multiprocess_mode="livesum")
            for name, text in GAUGES.items()
        }
        for name, about in (COUNTERS | TIMINGS).items():
            for values in product(*about.labels.values()) if about.labels else ():
                (self._counters | self._timings)[name].labels(*values)

    @property
    def collector(self) -> Collector:
        with suppress(ValueError):  # not under gunicorn
            return MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        return self._registry

    def backend_listed(self, backend: str) -> None:
        # rate() misses whatever a new series starts with.
        for outcome in BACKEND_OUTCOMES:
            self._counters["backend_calls"].labels(backend, outcome)
        self._timings["backend_call"].labels(backend)

    def _count(self, name: str, *labels: str, amount: int = 1) -> None:
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(amount)

    def _observe(self, seconds: float, name: str, *labels: str) -> None:
        self._timings[name].labels(*labels).observe(seconds)

    def _time(self, name: str, label: str) -> AbstractContextManager[None]:
        return self._timings[name].labels(label).time()

    def _set(self, name: str, value: int) -> None:
        self._gauges[name].set(value)

    def _track(self, name: str) -> AbstractContextManager[None]:
        return self._gauges[name].track_inprogress()
