"""Counts requests by route and status."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from flask import Response, request

from metrics import Metrics


def counting(metrics: Metrics) -> Callable[[Response], Response]:
    """Return a hook that counts Flask's answers; web/pictures.py counts the hits it answers."""

    def count(response: Response) -> Response:
        rule = request.url_rule
        metrics.answered(_pattern(rule.rule) if rule else "other", str(response.status_code))
        return response

    return count


@lru_cache
def _pattern(rule: str) -> str:
    """Return a route as docs/api.md writes it."""
    return re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", rule)
