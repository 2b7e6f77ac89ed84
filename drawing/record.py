"""One drawing: its stages and, if none succeeded, its final error."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from access import Caller
from dialect.judging import TOO_LONG, Outcome
from picture import ImageRequest, Problem
from upstream.client import Deadline, Why

# Reasons for which there is no picture although a backend may have drawn one.
_PERHAPS_BILLED = frozenset(
    (Why.TIMED_OUT, Why.UNREADABLE, Why.INTERIM, Why.TOO_LARGE, Why.FORBIDDEN, "not a picture")
)

# The reasons why a server was not asked.
COOLING = "cooling down"
NO_MODEL = "no model"

# How a drawing can end without a picture.
Ending = Literal["moderation_refused", "deadline_passed", "all_cooling_down", "no_backend_drew"]


@dataclass(frozen=True, slots=True)
class Image:
    """A picture just drawn: its bytes, their media type, the backend, and its revised prompt."""

    data: bytes
    media_type: str
    drawn_by: str
    revised_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a drawing: its outcome, the seconds it took, and why it did not succeed."""

    stage: str
    outcome: str
    seconds: float
    why: str | None = None

    @classmethod
    def since(cls, began: float, stage: str, outcome: str, why: str | None = None) -> Stage:
        """`began` is a moment of the monotonic clock."""
        return cls(stage, str(outcome), round(time.monotonic() - began, 3), why)

    def to_json(self) -> dict[str, Any]:
        own = {"stage": self.stage, "outcome": self.outcome, "seconds": self.seconds}
        return own | ({"why": self.why} if self.why else {})


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one backend answered one prompt. `why` is the word of its fault."""

    backend: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Round:
    """The result of asking backends for one prompt: a picture, or the failed attempts.

    `is_cut`: it ended early, because time ran out or no backend was ready.
    """

    image: Image | None
    attempts: tuple[Attempt, ...]
    is_cut: bool = False

    def count(self, outcome: Outcome) -> int:
        return sum(attempt.outcome is outcome for attempt in self.attempts)

    @property
    def outcome(self) -> str:
        if self.image:
            return "ok"
        for outcome in (Outcome.REFUSED, Outcome.REJECTED):
            if self.count(outcome):
                return outcome
        return Outcome.FAILED

    @property
    def why(self) -> str | None:
        """Why there is no picture, each reason once, such as `refused, timed out`."""
        if self.image:
            return None
        return ", ".join(dict.fromkeys(attempt.why for attempt in self.attempts)) or COOLING


class GaveUp(Problem):
    """Every stage was tried. `code` says how it ended.

    `retry_after` is in seconds, and so is `remembered_for`, which is None if the failure is not
    remembered. `is_repeated`: it was remembered already, and no upstream was asked.
    """

    code: Ending

    def __init__(
        self,
        code: Ending,
        stages: Iterable[Stage] = (),
        *,
        retry_after: int | None = None,
        remembered_for: float | None = None,
        is_repeated: bool = False,
        is_worth_remembering: bool = False,
    ) -> None:
        super().__init__(code)
        self.stages = tuple(stages)
        self.retry_after = retry_after
        self.remembered_for = remembered_for
        self.is_repeated = is_repeated
        self.is_worth_remembering = is_worth_remembering

    @property
    def until(self) -> datetime | None:
        """The time when it is forgotten, or None if it is not remembered."""
        if self.remembered_for is None:
            return None
        return datetime.now(UTC) + timedelta(seconds=self.remembered_for)

    @property
    def is_lasting(self) -> bool:
        """Return whether `until` is worth showing: a new failure is forgotten within seconds."""
        return self.until is not None and (self.is_repeated or not self.retry_after)

    def __str__(self) -> str:
        """Return the code and the stages, for the log."""
        stages = (f"{s.stage} {s.outcome}" + (f" ({s.why})" if s.why else "") for s in self.stages)
        return "; ".join((self.code, *stages))


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawing under way; each stage returns a new one.

    `blocked_for` is how long its refusal is remembered, 0 if it is not.
    """

    request: ImageRequest
    deadline: Deadline
    caller: Caller
    optimized: str | None = None
    rewritten: str | None = None
    stages: tuple[Stage, ...] = ()
    rounds: tuple[Round, ...] = ()
    image: Image | None = None
    blocked_for: float = 0.0

    @property
    def key(self) -> str:
        return self.request.key

    @property
    def best_prompt(self) -> str:
        """The most promising prompt: the last rewritten, else the optimised, else the original."""
        return self.rewritten or self.optimized or self.request.prompt

    @property
    def source(self) -> str:
        """What drew the picture: fallback, backend, or rewritten (a backend, after a rewrite)."""
        if any(stage.stage == "fallback" and stage.outcome == "ok" for stage in self.stages):
            return "fallback"
        return "rewritten" if self.rewritten else "backend"

    @property
    def made_a_call(self) -> bool:
        """Return whether a backend, the fallback or the LLM was asked."""
        asked = any(
            found.image or any(one.why != NO_MODEL for one in found.attempts)
            for found in self.rounds
        )
        others = ("optimise", "rewrite", "fallback")
        return asked or any(s.stage in others and s.why != COOLING for s in self.stages)

    @property
    def may_have_been_billed(self) -> bool:
        """Return whether a backend or the fallback has drawn, or may have without our seeing it.

        Vendors do not bill the errors that they answer with.
        """
        reasons = [attempt.why for found in self.rounds for attempt in found.attempts]
        reasons += [stage.why or "" for stage in self.stages if stage.stage == "fallback"]
        # Some reasons are more precise, after a colon.
        kinds = (reason.partition(":")[0] for reason in reasons)
        return self.image is not None or not _PERHAPS_BILLED.isdisjoint(kinds)

    @property
    def can_rewriting_help(self) -> bool:
        """Return whether the prompt itself may be at fault: a backend refused or rejected it."""
        last = self.rounds[-1]
        return bool(last.count(Outcome.REFUSED) or last.count(Outcome.REJECTED))

    @property
    def is_made_too_long(self) -> bool:
        """Return whether a backend called the LLM's prompt too long, but not yet the user's own."""
        if self.optimized is None or self.image:
            return False
        is_longer = len(self.best_prompt) > len(self.request.prompt)
        return is_longer and any(one.why == TOO_LONG for one in self.rounds[-1].attempts)

    def __str__(self) -> str:
        """Return the picture's key and prompt, shortened, for the log."""
        return f"{self.key[:12]} ({' '.join(self.request.prompt.split())[:40]})"

    def after(self, stage: Stage) -> Drawing:
        return replace(self, stages=(*self.stages, stage))

    def after_round(self, found: Round, began: float) -> Drawing:
        """Return the drawing after the backends were asked from the moment `began` on."""
        stage = Stage.since(began, "generate", found.outcome, found.why)
        return replace(self.after(stage), rounds=(*self.rounds, found), image=found.image)
