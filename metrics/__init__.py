"""What the program measures: nothing here, and with METRICS what prometheus.py counts.

Most of it is seen from outside, by watching the calls of a part of the program; a part itself
reports only what its calls do not show. Without METRICS every part is used as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from flights import Pool
    from keeping import Drawn

T = TypeVar("T")

Kind = Literal["state", "store", "look-ups", "backend", "backends", "llm", "image host"]


class Metrics:
    """Counts nothing and changes nothing."""

    def watch(self, kind: Kind, part: T) -> T:
        """Return `part`, or what stands for it while its calls are counted."""
        return part

    def watch_pool(self, pool: Pool[Drawn]) -> Pool[Drawn]:
        """Return the pool of drawings, likewise."""
        return pool

    def watch_requests(self, app: WSGIApplication) -> WSGIApplication:
        """Return the application, likewise."""
        return app

    def adopted(self, pictures: int) -> None:
        """Count files that the index did not have."""

    def evicted(self, pictures: int) -> None:
        """Count pictures that were deleted to make room."""

    def connected(self, *, is_new: bool) -> None:
        """Count a call of another server, over a new connection or one that was kept."""
