"""GET /metrics: the counters of all workers, and the facts of /status as numbers."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flask import request
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import GaugeMetricFamily
from werkzeug.wrappers import Response

from access import Access
from metrics.prometheus import FACTS, PREFIX, Prometheus
from storage import Unavailable
from web.headers import NOSNIFF
from web.status import Status

_STATES = ("ready", "cooling", "drained")

# The values of the labels, and the value.
Sample = tuple[Sequence[str], float]


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
        yield from self._backends(found["backends"])
        yield from self._cache(found["cache"])
        yield from self._keys()
        yield _family("build_info", [([self.status.version, platform.python_version()], 1)])

    def _backends(self, backends: Iterable[dict[str, Any]]) -> Iterator[GaugeMetricFamily]:
        states = [([b["url"], state], b["state"] == state) for b in backends for state in _STATES]
        yield _family("backend_state", states)
        cooldowns = [([b["url"]], b.get("ready_in", 0)) for b in backends]
        yield _family("backend_cooldown_seconds", cooldowns)

    def _cache(self, cache: Mapping[str, Any]) -> Iterator[GaugeMetricFamily]:
        if limit := self.status.cache.max_bytes:
            yield _family("cache_limit_bytes", [([], limit)])
        if cache["entries"] is not None:  # the index can be used
            yield _family("cache_entries", [([], cache["entries"])])
            yield _family("cache_bytes", [([], cache["bytes"])])

    def _keys(self) -> Iterator[GaugeMetricFamily]:
        with suppress(Unavailable):
            keys = self.access.usage(self.status.cache.state)
            yield _family("key_drawings_today", [([key["name"]], key["drawings"]) for key in keys])
            limits = [([k["name"]], k["per_day"]) for k in keys if k["per_day"] is not None]
            yield _family("key_drawings_limit", limits)


def _family(name: str, samples: Iterable[Sample]) -> GaugeMetricFamily:
    about = FACTS[name]
    family = GaugeMetricFamily(PREFIX + name, about.text, labels=about.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
