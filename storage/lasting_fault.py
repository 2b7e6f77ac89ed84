"""Faults that last: logged once, however many requests they fail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

PERIOD_SECONDS = 60.0


class LastingFault:
    """What is wrong with something at the moment: logged when it begins, and when it has ended.

    One that comes and goes is logged once a minute.
    """

    def __init__(
        self,
        log: logging.Logger,
        begun: str,
        ended: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`begun` has one `%s` for the reason."""
        self.reason: str | None = None
        self._log = log
        self._begun = begun
        self._ended = ended
        self._monotonic = monotonic
        self._logged_at = -PERIOD_SECONDS
        self._is_logged = False

    def begin(self, reason: str) -> None:
        now = self._monotonic()
        if self.reason is None and now - self._logged_at >= PERIOD_SECONDS:
            self._logged_at, self._is_logged = now, True
            self._log.error(self._begun, reason)
        self.reason = reason

    def end(self) -> None:
        self.reason = None
        if self._is_logged:
            self._is_logged = False
            self._log.warning(self._ended)
