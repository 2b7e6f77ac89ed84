"""How many drawings each access key may cause a day, counted over all workers.

A key with a limit reserves a place in the state before it draws. Drawings of the others are
counted in memory and written down a few seconds later, so that they never wait for a count.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from picture import Problem
from storage import State, Unavailable

DAY = 86400.0
# A day's count is read during that day only; this leaves room for clocks that differ.
COUNT_TTL = 2 * DAY


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of an access key, and its drawings per UTC day (None: no limit)."""

    name: str
    per_day: int | None = None


class OverLimit(Problem):
    """A caller has no drawings left today. `retry_after` is in seconds, until midnight UTC."""

    def __init__(self, caller: Caller, retry_after: int) -> None:
        super().__init__("daily_limit_reached", limit=caller.per_day)
        self.caller = caller
        self.retry_after = retry_after


class Limits:
    """The drawings of each caller and UTC day. Thread-safe."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        """`clock` returns Unix time."""
        self.state = state
        self.clock = clock
        self._unwritten: Counter[tuple[str, str]] = Counter()
        self._mutex = threading.Lock()

    @property
    def today(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).date().isoformat()

    def reserve(self, caller: Caller | None, amount: int = 0) -> Reservation:
        """Reserve `amount` drawings at once, or none of them. Raises OverLimit and Unavailable.

        Without a caller nothing is counted.
        """
        return Reservation(self, caller, amount)

    def add(self, caller: Caller, day: str, amount: int) -> None:
        """Count drawings, or give them back where `amount` is below 0.

        Raises OverLimit, in which case nothing was counted, and Unavailable.
        """
        if caller.per_day is None:
            with self._mutex:
                self._unwritten[day, caller.name] += amount
        elif not self.state.count(_key(day, caller.name), amount, COUNT_TTL, caller.per_day):
            raise OverLimit(caller, math.ceil(DAY - self.clock() % DAY))

    def drawings(self, names: Iterable[str]) -> dict[str, int]:
        """Return how many drawings each name has caused today. Raises Unavailable."""
        day, names = self.today, list(names)
        counts = self.state.counts([_key(day, name) for name in names])
        return {name: counts.get(_key(day, name), 0) + self._unwritten[day, name] for name in names}

    def flush(self) -> None:
        """Write down what was counted in memory only. Raises Unavailable and keeps it then."""
        with self._mutex:
            counted, self._unwritten = self._unwritten, Counter()
        try:
            while counted:
                (day, name), amount = next(iter(counted.items()))
                if amount:
                    self.state.count(_key(day, name), amount, COUNT_TTL)
                del counted[day, name]
        finally:
            with self._mutex:
                self._unwritten.update(counted)


class Reservation:
    """Places for drawings of one caller, taken one by one; closing gives back the rest.

    Beyond what was reserved, each place is reserved when it is taken. The places belong to the
    day on which they were reserved. Thread-safe.
    """

    def __init__(self, limits: Limits, caller: Caller | None, amount: int) -> None:
        self.caller = caller
        self._limits = limits
        self._day = limits.today
        self._left = amount
        self._is_open = amount > 0
        self._mutex = threading.Lock()
        self._add(amount)

    def take(self) -> None:
        """Take a place for a drawing. Raises OverLimit and Unavailable."""
        with self._mutex:
            if self._left:
                self._left -= 1
                return
        self._add(1)

    def give_back(self) -> None:
        """Return a place that was taken: its drawing made no call."""
        with self._mutex:
            if self._is_open:
                self._left += 1
                return
        with suppress(Unavailable):
            self._add(-1)

    def close(self) -> None:
        """Give back what was not taken."""
        with self._mutex:
            left, self._left, self._is_open = self._left, 0, False
        with suppress(Unavailable):
            self._add(-left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, amount: int) -> None:
        if self.caller and amount:
            self._limits.add(self.caller, self._day, amount)


def _key(day: str, name: str) -> str:
    return f"{day} {name}"
