"""GET /metrics: the counters of all workers, and the facts of /status as numbers."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from flask import request
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import GaugeMetricFamily
from werkzeug.wrappers import Response

from access import Access
from metrics.prometheus import PREFIX, Prometheus
from storage import Unavailable
from web.headers import NOSNIFF
from web.status import Status

_STATES = ("ready", "cooling", "drained")


class MetricsPage:
    """The view, and a collector of numbers that are read at each scrape."""

    def __init__(self, metrics: Prometheus, access: Access, status: Status) -> None:
        self.access = access
        self.status = status
        registry = CollectorRegistry()
        registry.register(metrics.collector)
        registry.register(self)
        # It answers in OpenMetrics and with gzip if the client accepts them.
        self._app = make_wsgi_app(registry)

    def show(self) -> Response:
        """GET /metrics, for the admin token as Prometheus sends it."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        self.access.authorise_admin(token.strip() if scheme.lower() == "bearer" else "")
        response = Response.from_app(self._app, {**request.environ, "REQUEST_METHOD": "GET"})
        response.headers.extend([NOSNIFF, ("Cache-Control", "no-store")])
        return response

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the state of backends, cache and keys."""
        found = self.status.describe()
        backends, cache = found["backends"], found["cache"]
        text = "Whether a backend is ready, cooling down or drained: 1 for its state."
        states = {(b["url"], state): b["state"] == state for b in backends for state in _STATES}
        yield _gauge("backend_state", text, states, "backend", "state")
        text = "Time until a backend is asked again."
        cooldowns = {(b["url"],): b.get("ready_in", 0) for b in backends}
        yield _gauge("backend_cooldown_seconds", text, cooldowns, "backend")
        if limit := self.status.cache.max_bytes:
            yield _gauge("cache_limit_bytes", "CACHE_MAX_BYTES, if there is a limit.", {(): limit})
        if cache["entries"] is not None:  # the index can be used
            yield _gauge("cache_entries", "Pictures in the cache.", {(): cache["entries"]})
            yield _gauge("cache_bytes", "Size of the pictures in the cache.", {(): cache["bytes"]})
        yield from self._keys()
        text = "Version of the service and of Python."
        versions = {(self.status.version, platform.python_version()): 1}
        yield _gauge("build_info", text, versions, "version", "python")

    def _keys(self) -> Iterator[GaugeMetricFamily]:
        with suppress(Unavailable):
            keys = self.access.usage(self.status.cache.state)
            drawings = {(key["name"],): key["drawings"] for key in keys}
            text = "Drawings of an access key since midnight UTC."
            yield _gauge("key_drawings_today", text, drawings, "key")
            limits = {(k["name"],): k["per_day"] for k in keys if k["per_day"] is not None}
            text = "Drawings that an access key may cause per UTC day."
            yield _gauge("key_drawings_limit", text, limits, "key")


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> GaugeMetricFamily:
    """Return a metric whose values are given by those of its labels."""
    gauge = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for of_labels, value in values.items():
        gauge.add_metric(of_labels, value)
    return gauge
