"""Counts and timings. `Metrics` counts nothing; with METRICS, prometheus.py counts in its place.

Each method is called in the place where the event happens. No label is a prompt or a key.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_NOTHING = nullcontext()


class Metrics:
    """Says what is counted under which name; the last methods, which count, do nothing here."""

    # --- requests and pictures

    def answered(self, route: str, status: str) -> None:
        """Count an HTTP request by the pattern of its route and its status, such as `200`."""
        self._count("requests", route, status)

    def hit(self) -> None:
        """Count a picture found in the cache."""
        self._count("pictures", "hit")

    def drawn(self, source: str) -> None:
        """Count a picture drawn: by a `backend`, from a `rewritten` prompt, by the `fallback`."""
        self._count("pictures", source)

    def waited(self) -> None:
        """Count a picture obtained by waiting for another request's drawing."""
        self._count("pictures", "waited")

    # --- drawings

    def limits(self, drawings: int, waiting: int) -> None:
        """Show how many drawings can be under way, and how many requests can wait."""
        self._set("drawings_limit", drawings)
        self._set("waiting_requests_limit", waiting)

    def waiting(self) -> AbstractContextManager[None]:
        """Show a request as waiting while in the block: for a drawing, or for a bucket."""
        return self._track("waiting_requests")

    def drawing(self) -> AbstractContextManager[None]:
        """Show a drawing as under way while in the block."""
        return self._track("drawings_in_progress")

    def drawing_ended(self, outcome: str, seconds: float) -> None:
        """Time a drawing that was `drawn`, `refused` or `failed`."""
        self._observe(seconds, "drawing", outcome)

    def stage(self, stage: str, outcome: str, seconds: float) -> None:
        """Time one stage of a drawing."""
        self._observe(seconds, "stage", stage, outcome)

    # --- calls to other servers

    def backend_listed(self, backend: str) -> None:
        """Start the series of a backend at 0."""

    def backend_called(self, backend: str, outcome: str, seconds: float) -> None:
        """Count and time a call to a backend or the fallback."""
        self._count("backend_calls", backend, outcome)
        self._observe(seconds, "backend_call", backend)
        if outcome == "refused":
            self._count("refusals")

    def retried(self) -> None:
        """Count a backend asked because the one before had not drawn the prompt."""
        self._count("retries")

    def rewritten(self) -> None:
        """Count a prompt rewritten for safety."""
        self._count("rewrites")

    def llm_call(self, task: str) -> AbstractContextManager[None]:
        """Count a call to the LLM, for `optimise` or `rewrite`; if the block raises, it failed."""
        return self._count_outcome("llm_calls", task)

    def upload(self) -> AbstractContextManager[None]:
        """Count an upload to the image host; if the block raises, it failed."""
        return self._count_outcome("uploads")

    def connected(self, *, is_new: bool) -> None:
        """Count a call to another server, over a new connection or a reused one."""
        self._count(f"upstream_connections_{'opened' if is_new else 'reused'}")

    # --- the cache

    def state_call(self, call: str) -> AbstractContextManager[None]:
        """Time a call of the state."""
        return self._time("state_call", call)

    def store_call(self, call: str) -> AbstractContextManager[None]:
        """Time a call of the store."""
        return self._time("store_call", call)

    def adopted(self, pictures: int) -> None:
        """Count files that the index did not have."""
        self._count("cache_adoptions", amount=pictures)

    def evicted(self, pictures: int) -> None:
        """Count pictures that were deleted to make room."""
        self._count("cache_evictions", amount=pictures)

    # --- how it is counted

    @contextmanager
    def _count_outcome(self, name: str, *labels: str) -> Iterator[None]:
        outcome = "failed"
        try:
            yield
            outcome = "ok"
        finally:
            self._count(name, *labels, outcome)

    def _count(self, name: str, *labels: str, amount: int = 1) -> None:
        """Add to a counter."""

    def _observe(self, seconds: float, name: str, *labels: str) -> None:
        """Add a time to a histogram."""

    def _time(self, name: str, label: str) -> AbstractContextManager[None]:
        """Add the time of the block to a histogram."""
        return _NOTHING

    def _set(self, name: str, value: int) -> None:
        """Set a gauge."""

    def _track(self, name: str) -> AbstractContextManager[None]:
        """Raise a gauge by 1 while in the block."""
        return _NOTHING


OFF = Metrics()
