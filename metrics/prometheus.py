"""Counters and timings for Prometheus. Imports prometheus_client, which only METRICS needs.

Under gunicorn the values are in files that all workers share (metrics/multiprocess.py);
elsewhere they are this process's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache, partial
from re import sub
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from dialect.judging import Outcome
from drawing.backend import NotDrawn
from drawing.pool import Pool
from drawing.record import GaveUp
from drawing.storing import Drawn
from metrics import Kind, Metrics
from metrics.families import COUNTERS, GAUGES, PREFIX, TIMINGS, Family
from metrics.watching import Call, Watched, methods_of, watched
from storage import State
from storage.store import Store
from upstream.deadline import Deadline

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

T = TypeVar("T")

# hold() waits for other processes, and names() works while its result is read.
_UNTIMED = frozenset(("hold", "names", "check", "close", "tasks"))


class Values:
    """The instruments of prometheus_client, by their names in families.py."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters = {name: self._counter(name, about) for name, about in COUNTERS.items()}
        self._timings = {name: self._timing(name, about) for name, about in TIMINGS.items()}
        self._gauges = {name: self._gauge(name, about) for name, about in GAUGES.items()}

    def count(self, name: str, *labels: str, amount: float = 1) -> None:
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(amount)

    def time(self, name: str, seconds: float, *labels: str) -> None:
        self._timings[name].labels(*labels).observe(seconds)

    def show_backend(self, name: str) -> None:
        """Start the series of a backend at 0: rate() misses whatever a new series starts with."""
        for outcome in Outcome:
            self._counters["backend_calls"].labels(name, outcome)
        self._timings["backend_call"].labels(name)

    def gauge(self, name: str) -> Gauge:
        return self._gauges[name]

    def _counter(self, name: str, about: Family) -> Counter:
        counter = Counter(PREFIX + name, about.text, about.labels, registry=self.registry)
        for labels in about.known:
            counter.labels(*labels)
        return counter

    def _timing(self, name: str, about: Family) -> Histogram:
        timing = Histogram(
            f"{PREFIX}{name}_duration_seconds",
            about.text,
            about.labels,
            registry=self.registry,
            buckets=about.buckets,
        )
        for labels in about.known:
            timing.labels(*labels)
        return timing

    def _gauge(self, name: str, about: Family) -> Gauge:
        return Gauge(PREFIX + name, about.text, registry=self.registry, multiprocess_mode="livesum")


class Prometheus(Metrics):
    """Counts in this process; `collector` adds up all workers of the service."""

    def __init__(self) -> None:
        self._values = Values()
        self._watchers: dict[Kind, tuple[Iterable[str], Callable[[Any, Call], None]]] = {
            "state": (methods_of(State) - _UNTIMED, partial(self._storage_called, "state_call")),
            "store": (methods_of(Store) - _UNTIMED, partial(self._storage_called, "store_call")),
            "look-ups": (["get"], self._looked_up),
            "backend": (["draw"], self._backend_called),
            "backends": (["draw"], self._backends_asked),
            "llm": (["rewrite"], self._llm_called),
            "image host": (["upload"], self._uploaded),
        }

    @property
    def collector(self) -> Collector:
        with suppress(ValueError):  # not under gunicorn
            return MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        return self._values.registry

    def watch(self, kind: Kind, part: T) -> T:
        if kind == "backend":
            self._values.show_backend(cast(Any, part).name)
        methods, report = self._watchers[kind]
        return cast(T, Watched(part, methods, partial(report, part)))

    def watch_pool(self, pool: Pool[Drawn]) -> Pool[Drawn]:
        self._values.gauge("drawings_limit").set(pool.threads)
        self._values.gauge("waiting_requests_limit").set(pool.places)
        return cast("Pool[Drawn]", _WatchedPool(pool, self._values))

    def watch_requests(self, app: WSGIApplication) -> WSGIApplication:
        def watched_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
                self._values.count("requests", _route(environ), status[:3])
                return start_response(status, headers, exc_info)

            return app(environ, start)

        return watched_app

    def adopted(self, pictures: int) -> None:
        self._values.count("cache_adoptions", amount=pictures)

    def evicted(self, pictures: int) -> None:
        self._values.count("cache_evictions", amount=pictures)

    def connected(self, *, is_new: bool) -> None:
        self._values.count(f"upstream_connections_{'opened' if is_new else 'reused'}")

    # --- what the calls of each part mean

    def _storage_called(self, name: str, part: Any, call: Call) -> None:
        self._values.time(name, call.seconds, call.method)

    def _looked_up(self, part: Any, call: Call) -> None:
        if call.result:
            self._values.count("pictures", "hit")

    def _backend_called(self, backend: Any, call: Call) -> None:
        outcome = Outcome.FAILED if call.error else Outcome.DRAWN
        if isinstance(call.error, NotDrawn):
            outcome = call.error.fault.outcome
        self._values.count("backend_calls", backend.name, outcome)
        self._values.time("backend_call", call.seconds, backend.name)
        if outcome is Outcome.REFUSED:
            self._values.count("refusals")

    def _backends_asked(self, part: Any, call: Call) -> None:
        if found := call.result:
            asked = len(found.attempts) + bool(found.image)
            self._values.count("retries", amount=max(0, asked - 1))

    def _llm_called(self, part: Any, call: Call) -> None:
        self._values.count("llm_calls", call.arguments[0], call.outcome)

    def _uploaded(self, part: Any, call: Call) -> None:
        self._values.count("uploads", call.outcome)


class _WatchedPool(Watched):
    """Behaves like the pool of drawings, and counts its waiting callers and the drawings."""

    def __init__(self, pool: Pool[Drawn], values: Values) -> None:
        super().__init__(pool, (), lambda call: None)
        self._values = values
        self._waiting = values.gauge("waiting_requests")
        self._in_progress = values.gauge("drawings_in_progress")

    def run(self, key: str, until: Deadline, work: Callable[[bool], Drawn]) -> Drawn:
        is_own = False

        def own_work(has_waited: bool) -> Drawn:
            nonlocal is_own
            is_own = True
            with self._in_progress.track_inprogress():
                return watched("draw", work, self._ended)(has_waited)

        with self._waiting.track_inprogress():
            drawn: Drawn = self._part.run(key, until, own_work)
        if not is_own or drawn.source == "cache":
            self._values.count("pictures", "waited")
        return drawn

    def _ended(self, call: Call) -> None:
        """Count a drawing, but not one that found a picture or a remembered failure meanwhile."""
        drawn, error = call.result, call.error
        if drawn and drawn.source != "cache":
            outcome, stages = "drawn", drawn.stages
            self._values.count("pictures", drawn.source)
        elif isinstance(error, GaveUp) and not error.is_repeated:
            outcome, stages = (
                "refused" if error.code == "moderation_refused" else "failed",
                error.stages,
            )
        else:
            return
        self._values.time("drawing", call.seconds, outcome)
        for stage in stages:
            self._values.time("stage", stage.seconds, stage.stage, stage.outcome)
            if (stage.stage, stage.outcome) == ("rewrite", "ok"):
                self._values.count("rewrites")


def _route(environ: WSGIEnvironment) -> str:
    """Return the pattern of the route that answered, as in docs/api.md; `other` for none."""
    request = environ.get("werkzeug.request")
    if request is None:  # a hit, answered in front of Flask
        return "/prompt/{description}"
    return _pattern(request.url_rule.rule) if request.url_rule else "other"


@lru_cache
def _pattern(rule: str) -> str:
    return sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", rule)
