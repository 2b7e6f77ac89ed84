"""Log lines about a state that cannot be used: one a minute, however many requests it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable

PERIOD_SECONDS = 60.0


class Complaints:
    """Logs a reason unless it did so within the last minute. `text` has one `%s` for it."""

    def __init__(self, log: logging.Logger, text: str, monotonic: Callable[[], float]) -> None:
        self._log = log
        self._text = text
        self._monotonic = monotonic
        self._logged: dict[str, float] = {}

    def add(self, reason: str) -> None:
        now = self._monotonic()
        if now - self._logged.get(reason, -PERIOD_SECONDS) >= PERIOD_SECONDS:
            self._logged[reason] = now
            self._log.error(self._text, reason)
