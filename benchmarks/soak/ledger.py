"""What was paid for: every picture that a backend delivered, and every call of it."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Danger:
    """A time in which a picture just paid for may be paid again, or even be lost."""

    begin: float
    may_lose: bool
    end: float = float("inf")

    def includes(self, moment: float) -> bool:
        return self.begin <= moment <= self.end


class Ledger:
    """Calls and payments by prompt, with the times that excuse paying twice. Thread-safe."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._paid: defaultdict[str, list[float]] = defaultdict(list)
        self._dangers: list[Danger] = []
        self._mutex = threading.Lock()

    def call(self, prompt: str) -> None:
        with self._mutex:
            self.calls[prompt] += 1

    def pay(self, prompt: str) -> None:
        with self._mutex:
            self._paid[prompt].append(time.monotonic())

    def forget(self, prompt: str) -> None:
        """Forget what was paid for a picture that was deleted: it may be drawn again."""
        with self._mutex:
            self._paid.pop(prompt, None)

    @contextmanager
    def danger(self, *, may_lose: bool) -> Iterator[None]:
        """Excuse whatever is paid for in the block, if it is paid again or, maybe, lost."""
        self._dangers.append(danger := Danger(time.monotonic(), may_lose))
        try:
            yield
        finally:
            danger.end = time.monotonic()

    @property
    def is_in_danger(self) -> bool:
        return self._is_excused(time.monotonic())

    def payments(self) -> int:
        with self._mutex:
            return sum(map(len, self._paid.values()))

    def kept(self) -> list[str]:
        """Return the prompts whose pictures have to be in the cache."""
        with self._mutex:
            return sorted(p for p, paid in self._paid.items() if not self._may_be_lost(paid[-1]))

    def paid_twice(self) -> list[str]:
        """Return the prompts that were paid again although nothing had endangered them."""
        with self._mutex:
            return [
                prompt
                for prompt, paid in self._paid.items()
                if not all(self._is_excused(moment) for moment in paid[:-1])
            ]

    def _may_be_lost(self, moment: float) -> bool:
        return any(d.includes(moment) for d in self._dangers if d.may_lose)

    def _is_excused(self, moment: float) -> bool:
        return any(danger.includes(moment) for danger in self._dangers)
