"""How long a failing backend is avoided.

Workers share one note per backend and one per model. Failures of drawings that were already
running when a cooldown began count as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from dialect.judging import TOO_LONG, Fault, Outcome
from storage import Note, Recalled, Unavailable
from storage.state import State

log = logging.getLogger("prompt_image_proxy.backends")

FIRST_COOLDOWN = 5.0
ACCOUNT_COOLDOWN = 60.0
MAX_COOLDOWN = 300.0
# Failures further apart than this do not belong to one series.
SERIES_SECONDS = 2 * MAX_COOLDOWN
# In the evening /status still shows what failed in the morning.
COOLDOWN_TTL = 86400.0
REJECTIONS_IN_A_ROW = 3
# More than a page shows, so that reloading it does not count the same pictures again.
MAX_PICTURES = 50
_PICTURE_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Cooldown(Note):
    """A series of failures of a server, or of one of its models.

    `seconds` is how long to avoid it, from the moment this was read or written; `failed_at` is the
    Unix time of the last failure that began a cooldown. `failing` and `rejecting` are shortened
    keys of the pictures that failed, or were rejected, since the server last answered.
    """

    kind: ClassVar[str] = "cooldown"

    failures: int = 0
    seconds: float = 0.0
    why: str = ""
    failed_at: float = 0.0
    failing: tuple[str, ...] = ()
    rejecting: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        lists = {name: tuple(value[name]) for name in ("failing", "rejecting")}
        return cls(**(value | lists))

    @staticmethod
    def of(recalled: Recalled[Cooldown] | None) -> Cooldown:
        """Return the cooldown of a note as of now; an expired series has no failures."""
        if recalled is None:
            return Cooldown()
        if recalled.age > SERIES_SECONDS:
            return recalled.note.ended()
        left = max(0.0, recalled.note.seconds - recalled.age)
        return replace(recalled.note, seconds=left)

    @staticmethod
    def recall_all(state: State, keys: Iterable[str]) -> dict[str, Cooldown]:
        """Return the cooldowns under these keys. Raises Unavailable."""
        keys = tuple(keys)
        notes = state.recall_all(Cooldown, keys)
        return {key: Cooldown.of(notes.get(key)) for key in keys}

    def failed(self, fault: Fault, picture: str, now: float) -> Cooldown:
        """Return the cooldown after a failure: unchanged if this picture has failed before."""
        if picture in self.failing:
            return self
        # The exponent is bounded as well: 2.0 ** 1024 is an OverflowError.
        growing = FIRST_COOLDOWN * 2.0 ** min(self.failures, 10)
        fixed = ACCOUNT_COOLDOWN if fault.is_of_account else fault.wait
        return replace(
            self.joined(picture),
            failures=self.failures + 1,
            seconds=min(MAX_COOLDOWN, growing if fixed is None else fixed),
            why=fault.why,
            failed_at=now,
        )

    def joined(self, picture: str) -> Cooldown:
        """Return the cooldown after another failure of an outage that is already counted."""
        failing = tuple(dict.fromkeys((*self.failing, picture)))
        return replace(self, failing=failing[-MAX_PICTURES:])

    def rejected(self, picture: str, now: float) -> Cooldown:
        """Return the cooldown after a rejection: three pictures in a row are the server's fault."""
        rejecting = tuple(dict.fromkeys((*self.rejecting, picture)))
        if len(rejecting) < REJECTIONS_IN_A_ROW:
            return replace(self, rejecting=rejecting)
        fault = Fault(Outcome.FAILED, "rejecting")
        return replace(self.failed(fault, picture, now), rejecting=())

    def ended(self) -> Cooldown:
        """Return the cooldown after an answer: only the last failure is remembered, for /status."""
        return Cooldown(why=self.why, failed_at=self.failed_at)

    def has_begun_since(self, known: Cooldown) -> bool:
        """Return whether this cooldown began after a drawing read it as `known`."""
        before = known.failures, known.failed_at
        return self.failures > 0 and (self.failures, self.failed_at) != before


@dataclass(frozen=True, slots=True)
class LastError(Note):
    """The last error of a server, for the administrator: in its own words, or else in ours.

    `at` is a Unix time; `model` is None for the server's default.
    """

    kind: ClassVar[str] = "last error"

    at: float
    why: str
    text: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Outages:
    """Counts the failures of a server, or of one of its models, until it answers again.

    `name` is for the log. `is_avoided` is False for a server without a substitute, which is
    asked despite its cooldown. `model` is the one asked for, and `server` the key of the whole
    server where `key` is a model's.
    """

    state: State
    key: str
    name: str
    is_avoided: bool = True
    model: str | None = None
    server: str = ""

    def recall(self) -> Cooldown:
        """Return the current cooldown. Raises Unavailable."""
        return Cooldown.of(self.state.recall(Cooldown, self.key))

    def count(self, known: Cooldown, fault: Fault, detail: str, picture: str) -> None:
        """Count a failure or a rejection of one picture.

        `known` is the cooldown as it was before the server was asked.
        """
        self.note(fault, detail)
        picture = picture[:_PICTURE_LENGTH]

        def change(before: Cooldown) -> Cooldown:
            if fault.why == TOO_LONG:
                return before  # it is the prompt's fault, however many are too long
            if fault.outcome is Outcome.REJECTED:
                return before.rejected(picture, self.state.now())
            if before.has_begun_since(known):
                return before.joined(picture)
            return before.failed(fault, picture, self.state.now())

        self._log(*self._exchange(known, change), detail)

    def note(self, fault: Fault, detail: str) -> None:
        """Remember an error, a refusal too, for the administrator."""
        with suppress(Unavailable):
            text = fault.detail or detail
            error = LastError(self.state.now(), fault.why, text, self.model)
            self.state.remember(error, self.server or self.key, COOLDOWN_TTL)

    def end(self, known: Cooldown) -> None:
        """End the series: the server has drawn, or looked at a prompt and refused it."""
        if known.failures or known.rejecting:
            before, after = self._exchange(known, Cooldown.ended)
            if before.failures > after.failures:
                log.warning("%s works again", self.name)

    def _exchange(
        self, known: Cooldown, change: Callable[[Cooldown], Cooldown]
    ) -> tuple[Cooldown, Cooldown]:
        """Change the cooldown; return it before and after, or `known` twice if that fails."""
        with suppress(Unavailable):
            # Another drawing may write first, and has then counted the same outage.
            for _ in range(MAX_PICTURES):
                note = self.state.recall(Cooldown, self.key)
                after = change(before := Cooldown.of(note))
                if after == before or self.state.exchange(note, after, self.key, COOLDOWN_TTL):
                    return before, after
        return known, known

    def _log(self, before: Cooldown, after: Cooldown, detail: str) -> None:
        """Log a WARNING once per change of state, not once per picture."""
        is_counted = after.failures > before.failures
        is_news = is_counted and (before.failures == 0 or before.why != after.why)
        avoided = f"; avoided for {after.seconds:.0f} s" if is_counted and self.is_avoided else ""
        level = logging.WARNING if is_news else logging.INFO
        log.log(level, "%s: %s%s", self.name, detail, avoided)
