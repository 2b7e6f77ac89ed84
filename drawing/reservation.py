"""Daily limits: places for the drawings of one access key, counted in the state."""

import math
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from access import Caller
from picture import Problem
from storage import Unavailable
from storage.state import State

_DAY = 86400.0
# A day's count is read on that day only; the rest allows for differing clocks.
_COUNT_TTL = 2 * _DAY
# No name of a key has a slash.
_ATTEMPTS = "/attempts"


class OverLimit(Problem):
    """A caller has no drawings left today. `retry_after` is in seconds, until midnight UTC.

    It is None for a caller who may never draw.
    """

    def __init__(
        self, code: str, caller: Caller, limit: int | None, retry_after: int | None
    ) -> None:
        super().__init__(code, limit=limit)
        self.caller = caller
        self.retry_after = retry_after


@dataclass(eq=False)
class Reservation:
    """Places for drawings of one caller: `amount` at once, or none; closing gives back the unused.

    Places beyond those are reserved when they are taken. A place that is taken counts as an
    attempt as well, so that drawings that fail and are given back come to an end, too. All count
    for the day, by the state's clock, on which the first was reserved. Thread-safe. Raises
    OverLimit and Unavailable.
    """

    state: State
    caller: Caller
    amount: int = 0

    def __post_init__(self) -> None:
        self._mutex = threading.Lock()
        if self.amount:
            self._reserve(self.amount)

    def take(self) -> None:
        """Take a place for a drawing. Raises OverLimit and Unavailable.

        It always writes to the state, even for a place that was reserved before: if that fails,
        the picture could not be stored either.
        """
        with self._mutex:
            self._reserve(0 if self.amount else 1)
            self.amount = max(0, self.amount - 1)
        limit = self.caller.attempts_per_day
        if limit is not None and not self._count(1, limit, _ATTEMPTS):
            self.give_back()
            raise self._over_limit("daily_attempts_reached", limit)

    def give_back(self, amount: int = 1, *, was_tried: bool = True) -> None:
        """Give back places of drawings that cost nothing; without a call, their attempts too."""
        with suppress(Unavailable):
            self._count(-amount)
            if not was_tried and self.caller.per_day is not None:
                self._count(-amount, kind=_ATTEMPTS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            left, self.amount = self.amount, 0
        if left:
            self.give_back(left)

    def _reserve(self, amount: int) -> None:
        limit = self.caller.per_day if amount else None
        if not self._count(amount, limit):
            raise self._over_limit("daily_limit_reached", limit)

    def _count(self, amount: int, limit: int | None = None, kind: str = "") -> bool:
        return self.state.count(self._count_key + kind, amount, _COUNT_TTL, limit)

    def _over_limit(self, code: str, limit: int | None) -> OverLimit:
        if limit == 0:
            return OverLimit("may_not_draw", self.caller, limit, None)
        retry_after = math.ceil(_DAY - self.state.now() % _DAY)
        return OverLimit(code, self.caller, limit, retry_after)

    @cached_property
    def _count_key(self) -> str:
        return self.caller.count_key(self.state.now())
