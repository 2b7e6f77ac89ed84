"""Counts and timings. `Metrics` counts nothing; with METRICS, prometheus.py counts in its place.

Each method is called in the place where the event happens. No label is a prompt or a key.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

_NOTHING = nullcontext()


class Metrics:
    """Counts nothing."""

    # --- requests and pictures

    def answered(self, route: str, status: str) -> None:
        """Count an HTTP request by the pattern of its route and its status, such as `200`."""

    def hit(self) -> None:
        """Count a picture found in the cache."""

    def drawn(self, source: str) -> None:
        """Count a picture drawn: by a `backend`, from a `rewritten` prompt, by the `fallback`."""

    def waited(self) -> None:
        """Count a picture obtained by waiting for another request's drawing."""

    # --- drawings

    def limits(self, drawings: int, waiting: int) -> None:
        """Show how many drawings can be under way, and how many requests can wait."""

    def waiting(self) -> AbstractContextManager[None]:
        """Show a request as waiting while in the block: for a drawing, or for a bucket."""
        return _NOTHING

    def drawing(self) -> AbstractContextManager[None]:
        """Show a drawing as under way while in the block."""
        return _NOTHING

    def drawing_ended(self, outcome: str, seconds: float) -> None:
        """Time a drawing that was `drawn`, `refused` or `failed`."""

    def stage(self, stage: str, outcome: str, seconds: float) -> None:
        """Time one stage of a drawing."""

    # --- calls to other servers

    def backend_listed(self, backend: str) -> None:
        """Start the series of a backend at 0."""

    def backend_called(self, backend: str, outcome: str, seconds: float) -> None:
        """Count and time a call to a backend or the fallback."""

    def retried(self) -> None:
        """Count a backend asked because the one before had not drawn the prompt."""

    def rewritten(self) -> None:
        """Count a prompt rewritten for safety."""

    def llm_call(self, task: str) -> AbstractContextManager[None]:
        """Count a call to the LLM, for `optimise` or `rewrite`; if the block raises, it failed."""
        return _NOTHING

    def upload(self) -> AbstractContextManager[None]:
        """Count an upload to the image host; if the block raises, it failed."""
        return _NOTHING

    def connected(self, *, is_new: bool) -> None:
        """Count a call to another server, over a new connection or a reused one."""

    # --- the cache

    def state_call(self, call: str) -> AbstractContextManager[None]:
        """Time a call of the state."""
        return _NOTHING

    def store_call(self, call: str) -> AbstractContextManager[None]:
        """Time a call of the store."""
        return _NOTHING

    def adopted(self, pictures: int) -> None:
        """Count files that the index did not have."""

    def evicted(self, pictures: int) -> None:
        """Count pictures that were deleted to make room."""


OFF = Metrics()
