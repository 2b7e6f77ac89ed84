"""Which pictures a listing shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Filter:
    """Rows of one model ("": of any), created from `since` on and before `until`, Unix times."""

    model: str = ""
    since: float = 0.0
    until: float = float("inf")


ALL = Filter()
