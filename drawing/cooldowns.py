"""How long a failing backend is avoided.

One note per backend and one per model of it, so that all workers know the same. What counts
is what a drawing knew when it began: twenty drawings that fail together are one failure.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from dialect.judging import Fault, Outcome
from storage import Note
from storage.memory import Memory

log = logging.getLogger("prompt_image_proxy.backends")

FIRST_COOLDOWN = 5.0
ACCOUNT_COOLDOWN = 60.0
MAX_COOLDOWN = 300.0
# Failures further apart than this are not one series.
SERIES_SECONDS = 2 * MAX_COOLDOWN
# Long enough for /status to say in the evening what failed in the morning.
COOLDOWN_TTL = 86400.0
REJECTIONS_IN_A_ROW = 3
# More than a page holds, so that reloading it counts nothing again.
MAX_PICTURES = 50
_PICTURE_LENGTH = 16
_MAX_WRITTEN = 256


@dataclass(frozen=True, slots=True)
class Cooldown(Note):
    """A series of failures of a backend, or of one of its models.

    `seconds` is for how long to avoid it from when the note was written, at the Unix time `at`;
    `failed_at` is one too, for /status. `failing` and `rejecting` are the beginnings of the keys
    of the pictures that failed and that were rejected since it last drew.
    """

    kind: ClassVar[str] = "cooldown"

    failures: int = 0
    seconds: float = 0.0
    why: str = ""
    at: float = 0.0
    failed_at: float = 0.0
    failing: tuple[str, ...] = ()
    rejecting: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        lists = {name: tuple(value[name]) for name in ("failing", "rejecting")}
        return cls(**(value | lists))

    def failed(self, fault: Fault, picture: str, now: float) -> Cooldown:
        """Return the cooldown after a failure: unchanged if this picture has failed before."""
        if picture in self.failing:
            return self
        # The exponent is bounded as well: 2.0 ** 1024 is an OverflowError.
        growing = FIRST_COOLDOWN * 2.0 ** min(self.failures, 10)
        fixed = ACCOUNT_COOLDOWN if fault.is_of_account else fault.wait
        return replace(
            self._with_failing(picture, now),
            failures=self.failures + 1,
            seconds=min(MAX_COOLDOWN, growing if fixed is None else fixed),
            why=fault.why,
            failed_at=now,
        )

    def joined(self, picture: str, now: float) -> Cooldown:
        """Return the cooldown after one more failure of an outage that is counted already."""
        return self if picture in self.failing else self._with_failing(picture, now)

    def rejected(self, picture: str, now: float) -> Cooldown:
        """Return the cooldown after a rejection: three pictures in a row are its fault."""
        rejecting = tuple(dict.fromkeys((*self.rejecting, picture)))
        if rejecting == self.rejecting:
            return self
        if len(rejecting) < REJECTIONS_IN_A_ROW:
            return replace(self.later(now), rejecting=rejecting)
        fault = Fault(Outcome.FAILED, "rejecting")
        return replace(self.failed(fault, picture, now), rejecting=())

    def later(self, now: float) -> Cooldown:
        """Return the same cooldown, counted from the time `now`."""
        return replace(self, seconds=max(0.0, self.seconds - (now - self.at)), at=now)

    def ended(self, now: float) -> Cooldown:
        """Return what stays known of it after the backend has drawn again."""
        return Cooldown(why=self.why, failed_at=self.failed_at, at=now)

    def _with_failing(self, picture: str, now: float) -> Cooldown:
        return replace(self.later(now), failing=(*self.failing, picture)[-MAX_PICTURES:])


class Cooldowns:
    """Counts the failures of one server, under the key of the server or of one of its models."""

    def __init__(
        self, name: str, *, is_avoided: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        """`is_avoided` is False for a server without which there is nothing else to ask."""
        self.name = name
        self.is_avoided = is_avoided
        self.clock = clock
        self._mutex = threading.Lock()
        # What this process has written: newer than what drawings under way have read.
        self._written: dict[str, Cooldown] = {}

    @staticmethod
    def left(memory: Memory, key: str) -> float:
        """Return for how many seconds more `key` is to be avoided; 0 if it is not."""
        recalled = memory.get(Cooldown, key)
        return max(0.0, recalled.note.seconds - recalled.age) if recalled else 0.0

    @staticmethod
    def current(memory: Memory, key: str) -> Cooldown:
        """Return the series as the drawing knows it; one that is long over has no failures."""
        recalled = memory.get(Cooldown, key)
        if recalled is None:
            return Cooldown()
        note = recalled.note
        return note.ended(note.at) if recalled.age > SERIES_SECONDS else note

    def count(self, memory: Memory, key: str, fault: Fault, detail: str, picture: str) -> None:
        """Count a failure or a rejection of one picture."""
        known, now, picture = self.current(memory, key), self.clock(), picture[:_PICTURE_LENGTH]
        with self._mutex:
            before = self._latest(key, known)
            if fault.outcome is Outcome.REJECTED:
                after = before.rejected(picture, now)
            elif before.failures > known.failures:
                after = before.joined(picture, now)
            else:
                after = before.failed(fault, picture, now)
            if after != before:
                self._write(memory, key, after)
        self._log(before, after, fault, detail)

    def _log(self, before: Cooldown, after: Cooldown, fault: Fault, detail: str) -> None:
        """Log a WARNING once per change of state, not once per picture."""
        is_counted = after.failures > before.failures
        is_news = is_counted and (before.failures == 0 or before.why != after.why)
        consequence = ""
        if self.is_avoided and is_counted:
            avoided = "this model of it is avoided" if fault.is_of_model else "avoided"
            consequence = f"; {avoided} for {after.seconds:.0f} s"
        level = logging.WARNING if is_news else logging.INFO
        log.log(level, "%s: %s%s", self.name, detail, consequence)

    def answered(self, memory: Memory, key: str) -> None:
        """End the series: the backend has drawn, or looked at a prompt and refused it."""
        before = self.current(memory, key)
        if before.failures or before.rejecting:
            with self._mutex:
                self._write(memory, key, before.ended(self.clock()))
        if before.failures:
            log.warning("%s works again", self.name)

    def _latest(self, key: str, known: Cooldown) -> Cooldown:
        written = self._written.get(key, known)
        return written if written.at > known.at else known

    def _write(self, memory: Memory, key: str, cooldown: Cooldown) -> None:
        if len(self._written) >= _MAX_WRITTEN:  # clients may make up names of models
            self._written.clear()
        self._written[key] = cooldown
        memory.remember(cooldown, key, COOLDOWN_TTL)
