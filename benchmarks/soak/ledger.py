"""What was paid for: every picture that a backend delivered, and every call of it."""

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from picture import ImageRequest

KILLED = "kill -9"
UNSTORED = "a write that failed, and was logged"

_FAILED_WRITE = re.compile(r"Picture ([0-9a-f]{64}) could not be stored")


@dataclass(slots=True)
class Danger:
    """A period, by the monotonic clock, in which a drawing may be lost and paid for again."""

    begin: float
    end: float = float("inf")

    def includes(self, moment: float) -> bool:
        return self.begin <= moment <= self.end


class Ledger:
    """Counts calls and payments by prompt, and explains losses. Thread-safe.

    `log` is the service's: it names each picture that was drawn but could not be stored.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
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
    def danger(self) -> Iterator[None]:
        """Excuse the loss of pictures drawn while in the block, which kills a process."""
        self._dangers.append(danger := Danger(time.monotonic()))
        try:
            yield
        finally:
            danger.end = time.monotonic()

    @property
    def is_in_danger(self) -> bool:
        return self._is_endangered(time.monotonic())

    def paid(self) -> list[str]:
        """Return the prompts whose pictures were paid for, and not deleted."""
        with self._mutex:
            return sorted(self._paid)

    def paid_again(self) -> Counter[str]:
        """Return how often each prompt was paid for after the first time."""
        with self._mutex:
            again = {prompt: len(moments) - 1 for prompt, moments in self._paid.items()}
        return +Counter(again)

    def unstored(self) -> Counter[str]:
        """Return how many writes of each picture, named by its cache key, failed."""
        return Counter(_FAILED_WRITE.findall(self.log.read_text(errors="replace")))

    def was_unstored(self, prompt: str) -> bool:
        return key_of(prompt) in self.unstored()

    def explain(self, prompt: str, unstored: Counter[str], times: int = 1) -> str | None:
        """Return the fault that explains why a picture was lost so many times, if one does."""
        with self._mutex:
            killed = sum(map(self._is_endangered, self._paid.get(prompt, [])))
        failed = unstored[key_of(prompt)]
        if killed + failed < times:
            return None
        return KILLED if killed >= times else UNSTORED

    def _is_endangered(self, moment: float) -> bool:
        return any(danger.includes(moment) for danger in self._dangers)


def key_of(prompt: str) -> str:
    """Return the cache key of a prompt's picture, as all clients ask for it."""
    return ImageRequest(prompt, 64, 64).key
