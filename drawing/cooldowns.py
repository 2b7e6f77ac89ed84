"""How long a failing backend is avoided.

Workers share one note per backend and one per model. Failures of drawings that were already
running when a cooldown began count as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
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
    def recall_all(state: State, keys: Collection[str]) -> dict[str, Cooldown]:
        """Return the cooldowns under these keys. Raises Unavailable."""
        notes = state.recall_all(Cooldown, keys)
        return {key: Cooldown.of(notes.get(key)) for key in keys}

    def after(self, fault: Fault, picture: str, known: Cooldown, now: float) -> Cooldown:
        """Return the cooldown after a picture failed or was rejected, at the Unix time `now`.

        A picture that has failed before changes nothing. If this cooldown began after the drawing
        had read `known`, the failure is part of the same outage.
        """
        if fault.why == TOO_LONG:
            return self  # it is the prompt's fault, however many are too long
        if fault.outcome is Outcome.REJECTED:
            rejecting = _added(self.rejecting, picture)
            if len(rejecting) < REJECTIONS_IN_A_ROW:
                return replace(self, rejecting=rejecting)
            # So many pictures in a row are the server's fault.
            fault, known = Fault(Outcome.FAILED, "rejecting"), self
            return replace(self, rejecting=()).after(fault, picture, known, now)
        if picture in self.failing:
            return self
        after = replace(self, failing=_added(self.failing, picture))
        if self.failures and (self.failures, self.failed_at) != (known.failures, known.failed_at):
            return after
        # The exponent is bounded as well: 2.0 ** 1024 is an OverflowError.
        growing = FIRST_COOLDOWN * 2.0 ** min(self.failures, 10)
        fixed = ACCOUNT_COOLDOWN if fault.is_of_account else fault.wait
        seconds = min(MAX_COOLDOWN, growing if fixed is None else fixed)
        failures = self.failures + 1
        return replace(after, failures=failures, seconds=seconds, why=fault.why, failed_at=now)

    def ended(self) -> Cooldown:
        """Return the cooldown after an answer: only the last failure is remembered, for /status."""
        return Cooldown(why=self.why, failed_at=self.failed_at)


def _added(pictures: tuple[str, ...], picture: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*pictures, picture)))[-MAX_PICTURES:]


# Cooldowns by the keys of their notes.
Known = Mapping[str, Cooldown]


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
    """Counts the failures of a server, and of the model asked for, until it answers again.

    `name` is for the log. The model is counted under `model_key`, or without one as the server.
    `is_avoided` is False for a server without a substitute, which is asked despite its cooldown.
    """

    state: State
    key: str
    name: str
    is_avoided: bool = True
    model: str | None = None
    model_key: str = ""

    @property
    def names(self) -> Mapping[str, str]:
        """The keys of the notes, and what each is called in the log."""
        if not self.model_key:
            return {self.key: self.name}
        model = f"model {self.model}" if self.model else "default model"
        return {self.key: self.name, self.model_key: f"{self.name}, {model}"}

    def recall(self) -> Known:
        """Return the current cooldowns. Raises Unavailable."""
        return Cooldown.recall_all(self.state, self.names)

    def wait(self, known: Known | None = None) -> float:
        """Return the seconds until the server may be asked for the model.

        `known` are the cooldowns, if they have been recalled already. Raises Unavailable.
        """
        known = known or self.recall()
        return max(known[key].seconds for key in self.names)

    def count(self, known: Known, fault: Fault, detail: str, picture: str) -> None:
        """Count a failure or a rejection of one picture; a refusal is an answer like any other.

        `known` are the cooldowns as they were before the server was asked.
        """
        with suppress(Unavailable):
            error = LastError(self.state.now(), fault.why, fault.detail or detail, self.model)
            self.state.remember(error, self.key, COOLDOWN_TTL)
        if fault.outcome is Outcome.REFUSED:
            self.end(known)
            return
        key = self.model_key if fault.is_of_model and self.model_key else self.key
        before, after = self._exchange(
            key,
            known[key],
            lambda one: one.after(fault, picture[:_PICTURE_LENGTH], known[key], self.state.now()),
        )
        # A WARNING once per change of state, not once per picture.
        is_counted = after.failures > before.failures
        is_news = is_counted and (before.failures == 0 or before.why != after.why)
        avoided = f"; avoided for {after.seconds:.0f} s" if is_counted and self.is_avoided else ""
        level = logging.WARNING if is_news else logging.INFO
        log.log(level, "%s: %s%s", self.names[key], detail, avoided)

    def end(self, known: Known) -> None:
        """End the series: the server has drawn, or looked at a prompt and refused it."""
        for key, name in self.names.items():
            if known[key].failures or known[key].rejecting:
                before, after = self._exchange(key, known[key], Cooldown.ended)
                if before.failures > after.failures:
                    log.warning("%s works again", name)

    def _exchange(
        self, key: str, known: Cooldown, change: Callable[[Cooldown], Cooldown]
    ) -> tuple[Cooldown, Cooldown]:
        """Change a cooldown; return it before and after, or `known` twice if that fails."""
        with suppress(Unavailable):
            # Another drawing may write first, and has then counted the same outage.
            for _ in range(MAX_PICTURES):
                note = self.state.recall(Cooldown, key)
                after = change(before := Cooldown.of(note))
                if after == before or self.state.exchange(note, after, key, COOLDOWN_TTL):
                    return before, after
        return known, known
