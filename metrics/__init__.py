"""What the rest of the program knows of metrics. With METRICS, prometheus.py does the counting.

Most is counted from outside: `watch` wraps a part of the program and sees its calls. A part
reports itself only what its calls do not show. Without METRICS nothing is wrapped or counted.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from drawing.pool import Pool
    from drawing.storing import Drawn

T = TypeVar("T")

Kind = Literal["state", "store", "look-ups", "backend", "backends", "llm", "image host"]


class Metrics:
    """Counts nothing and changes nothing."""

    def watch(self, kind: Kind, part: T) -> T:
        """Return `part`, or a stand-in that counts its calls."""
        return part

    def watch_pool(self, pool: Pool[Drawn]) -> Pool[Drawn]:
        """The same for the pool of drawings."""
        return pool

    def watch_requests(self, app: WSGIApplication) -> WSGIApplication:
        """The same for the WSGI application."""
        return app

    def adopted(self, pictures: int) -> None:
        """Count files that the index did not have."""

    def evicted(self, pictures: int) -> None:
        """Count pictures that were deleted to make room."""

    def connected(self, *, is_new: bool) -> None:
        """Count a call to another server, over a new connection or a reused one."""

    # --- called where it happens ---

    def answered(self, route: str, status: str) -> None:
        """Count an HTTP request by the pattern of its route and its status, such as `200`."""

    def hit(self) -> None:
        """Count a picture found in the cache."""

    def drawn(self, source: str) -> None:
        """Count a picture drawn: by a `backend`, from a `rewritten` prompt, by the `fallback`."""

    def waited(self) -> None:
        """Count a picture obtained by waiting for another request's drawing."""

    def drawing_ended(self, outcome: str, seconds: float) -> None:
        """Time a drawing that was `drawn`, `refused` or `failed`."""

    def stage(self, stage: str, outcome: str, seconds: float) -> None:
        """Time one stage of a drawing."""

    def backend_listed(self, backend: str) -> None:
        """Start the series of a backend at 0."""

    def backend_called(self, backend: str, outcome: str, seconds: float) -> None:
        """Count and time a call to a backend or the fallback, and a refusal among them."""

    def retried(self) -> None:
        """Count a backend asked because the one before had not drawn the prompt."""

    def rewritten(self) -> None:
        """Count a prompt rewritten for safety."""

    def llm_called(self, task: str, outcome: str) -> None:
        """Count a call to the LLM: `optimise` or `rewrite`, `ok` or `failed`."""

    def uploaded(self, outcome: str) -> None:
        """Count an upload to the image host, `ok` or `failed`."""

    def state_call(self, call: str) -> AbstractContextManager[None]:
        """Time a call of the state."""
        return nullcontext()

    def store_call(self, call: str) -> AbstractContextManager[None]:
        """Time a call of the store."""
        return nullcontext()

    def drawing(self) -> AbstractContextManager[None]:
        """Show a drawing as under way while in the block."""
        return nullcontext()

    def waiting(self) -> AbstractContextManager[None]:
        """Show a request as waiting for a drawing while in the block."""
        return nullcontext()

    def limits(self, drawings: int, waiting: int) -> None:
        """Show how many drawings can be under way, and how many requests can wait."""
