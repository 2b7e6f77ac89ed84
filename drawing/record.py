"""One drawing as a value: what each stage left behind, and the verdict where none drew.

`Blocked` and `Failure` are what is remembered of drawings that ended without a picture.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, Self

from backends import Round
from dialect.judging import Outcome
from drawing.backend import Image
from limits import Caller
from picture import ImageRequest, Problem
from storage import Note
from upstream.client import Deadline

FIRST_FAILURE_SECONDS = 2.0
MAX_FAILURE_SECONDS = 300.0
# How a drawing can end without a picture.
Ending = Literal["moderation_refused", "deadline_passed", "all_cooling_down", "no_backend_drew"]
# How long the number of failures is known: it makes the next pause longer.
FAILURE_TTL = 3600.0


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


class GaveUp(Problem):
    """Every stage was tried. `code` says how it ended.

    `retry_after` is in seconds, and so is `remembered_for`, None for what is not remembered.
    `is_repeated`: it was remembered, and no upstream was asked.
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
        """When it will be forgotten, None for what is not remembered."""
        if self.remembered_for is None:
            return None
        return datetime.now(UTC) + timedelta(seconds=self.remembered_for)

    @property
    def is_lasting(self) -> bool:
        """Whether to say until when it is remembered: a failure made just now is over in 2 s."""
        return self.until is not None and (self.is_repeated or not self.retry_after)

    def __str__(self) -> str:
        """Return the code and the stages, for the log."""
        stages = (f"{s.stage} {s.outcome}" + (f" ({s.why})" if s.why else "") for s in self.stages)
        return "; ".join((self.code, *stages))


@dataclass(frozen=True, slots=True)
class Blocked(Note):
    """A prompt that moderation refused in every round, with its rewritten forms."""

    kind: ClassVar[str] = "blocked"

    optimized: str | None = None
    rewritten: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Failure(Note):
    """The final failure of a picture, answered again for `seconds` without an upstream call."""

    kind: ClassVar[str] = "failure"

    code: Ending
    stages: tuple[Stage, ...]
    seconds: float
    fingerprint: str = ""
    ttl: ClassVar[float] = FAILURE_TTL

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**(value | {"stages": tuple(Stage(**stage) for stage in value["stages"])}))

    @classmethod
    def after(cls, before: Failure | None, gave_up: GaveUp, fingerprint: str) -> Failure:
        """Return the note of a failure that follows `before`, for twice as long."""
        is_same = before is not None and before.fingerprint == fingerprint
        seconds = 2 * before.seconds if before and is_same else FIRST_FAILURE_SECONDS
        seconds = min(MAX_FAILURE_SECONDS, seconds)
        return cls(gave_up.code, gave_up.stages, seconds, fingerprint)

    def again(self, age: float, *, is_first: bool = False) -> GaveUp | None:
        """Return this failure `age` seconds later, or None once it is over."""
        left = self.seconds - age
        if left <= 0:
            return None
        return GaveUp(
            self.code,
            self.stages,
            retry_after=math.ceil(left),
            remembered_for=left,
            is_repeated=not is_first,
        )


@dataclass(frozen=True, slots=True)
class Journey:
    """A drawing under way. `blocked_for` is how long its refusal is remembered, 0 if it is not."""

    request: ImageRequest
    deadline: Deadline
    caller: Caller | None = None
    optimized: str | None = None
    rewritten: str | None = None
    stages: tuple[Stage, ...] = ()
    rounds: tuple[Round, ...] = ()
    image: Image | None = None
    blocked_for: float = 0.0

    @property
    def best_prompt(self) -> str:
        """The most promising prompt: the last rewritten, else the optimised, else the original."""
        return self.rewritten or self.optimized or self.request.prompt

    @property
    def source(self) -> str:
        """Who drew: the fallback, or a backend, from a rewritten prompt or not."""
        if self.stages and any(s.stage == "fallback" and s.outcome == "ok" for s in self.stages):
            return "fallback"
        return "rewritten" if self.rewritten else "backend"

    @property
    def made_a_call(self) -> bool:
        """Whether a backend or the fallback was asked."""
        asked = any(found.attempts or found.image for found in self.rounds)
        return asked or any(stage.stage == "fallback" for stage in self.stages)

    @property
    def label(self) -> str:
        """The picture's key and prompt, shortened, for the log."""
        return f"{self.request.key[:12]} ({' '.join(self.request.prompt.split())[:40]})"

    @property
    def may_rewriting_help(self) -> bool:
        """Whether a backend has turned down the prompt itself, as far as one can tell."""
        last = self.rounds[-1]
        return bool(last.count(Outcome.REFUSED) or last.count(Outcome.REJECTED))

    def after(self, stage: Stage) -> Journey:
        return replace(self, stages=(*self.stages, stage))

    def after_round(self, found: Round, began: float) -> Journey:
        """Return the journey after the backends were asked from the moment `began` on."""
        stage = Stage.since(began, "generate", _outcome(found), _reasons(found))
        return replace(self.after(stage), rounds=(*self.rounds, found), image=found.image)


def _outcome(found: Round) -> str:
    if found.image:
        return "ok"
    for outcome in (Outcome.REFUSED, Outcome.REJECTED):
        if found.count(outcome):
            return outcome
    return Outcome.FAILED


def _reasons(found: Round) -> str | None:
    """Return why there is no picture, each reason once, such as `refused, timed out`."""
    if found.image:
        return None
    return ", ".join(dict.fromkeys(attempt.why for attempt in found.attempts)) or "cooling down"


def is_refused(journey: Journey) -> bool:
    """Return whether moderation, and nothing else, has kept the picture from being drawn."""
    if journey.blocked_for:
        return True
    attempts = [attempt for found in journey.rounds for attempt in found.attempts]
    return (
        journey.image is None
        and not any(found.is_cut for found in journey.rounds)
        and bool(attempts)
        and all(attempt.outcome is Outcome.REFUSED for attempt in attempts)
    )


def is_blocked(journey: Journey) -> bool:
    """Return whether the refusal is to be remembered.

    It is not where rewriting failed: the LLM's outage would keep the prompt blocked.
    """
    is_undone = any(s.stage == "rewrite" and s.outcome == "failed" for s in journey.stages)
    return is_refused(journey) and not is_undone


def verdict(journey: Journey, ready_in: float, *, has_fallback: bool) -> GaveUp:
    """Return the final failure of a drawing; `ready_in` is when the first backend is ready."""
    stages = journey.stages
    refused = [s for s in stages if s.stage == "fallback" and s.outcome == Outcome.REFUSED]
    made_a_call = journey.made_a_call
    if is_refused(journey) and (refused or not has_fallback):
        is_free = journey.blocked_for > 0 and not has_fallback
        return GaveUp(
            "moderation_refused",
            stages,
            remembered_for=journey.blocked_for or None,
            is_repeated=not made_a_call,
            is_worth_remembering=made_a_call and not is_free,
        )
    if journey.deadline.is_over:
        return GaveUp("deadline_passed", stages, is_worth_remembering=made_a_call)
    wait = math.ceil(ready_in) or None
    has_asked = any(found.attempts for found in journey.rounds)
    is_cooling = wait and journey.rounds and not has_asked
    code: Ending = "all_cooling_down" if is_cooling else "no_backend_drew"
    return GaveUp(code, stages, retry_after=wait, is_worth_remembering=made_a_call)
