"""What the rest of the program knows of metrics. With METRICS, prometheus.py does the counting.

Most is counted from outside: `watch` wraps a part of the program and sees its calls. A part
reports itself only what its calls do not show. Without METRICS nothing is wrapped or counted.
"""

from __future__ import annotations

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
