"""The record of one drawing: its stages, and the picture or the final error."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

from dialect.judging import TOO_LONG, Fault, Outcome
from picture import ImageRequest, Problem
from storage import Row
from upstream.client import Deadline, Why

# Reasons for which there is no picture although a backend may have drawn one.
_PERHAPS_BILLED = frozenset(
    (Why.TIMED_OUT, Why.UNREADABLE, Why.INTERIM, Why.TOO_LARGE, Why.FORBIDDEN, "not a picture")
)

# The reasons why a server was not asked.
COOLING = "cooling down"
NO_MODEL = "no model"

# How a drawing can end without a picture.
Ending = Literal[
    "moderation_refused", "deadline_passed", "all_cooling_down", "no_backend_drew", "unknown_model"
]


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

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Round:
    """The result of asking backends for one prompt: a picture, or the faults of those asked.

    `is_cut`: it ended early, because time ran out or no backend was ready. `has_model` is False
    if none of the backends knows the model.
    """

    image: Image | None
    faults: tuple[Fault, ...] = ()
    is_cut: bool = False
    has_model: bool = True


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
    ) -> None:
        super().__init__(code)
        self.stages = tuple(stages)
        self.retry_after = retry_after
        self.remembered_for = remembered_for
        self.is_repeated = is_repeated

    def remembered(self, seconds: float) -> Self:
        """Return this failure as one that is answered again for so many seconds."""
        self.retry_after, self.remembered_for = math.ceil(seconds), seconds
        return self

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


@dataclass(slots=True)
class Drawing:
    """A drawing and its picture; each stage writes down here what it did.

    `blocked_for` is how long its refusal is remembered, 0 if it is not. `was_lost`: a backend has
    drawn a picture that could not be had. `row` is None if the picture could not be cached.
    """

    request: ImageRequest
    deadline: Deadline
    optimized: str | None = None
    rewritten: str | None = None
    stages: list[Stage] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    blocked_for: float = 0.0
    was_lost: bool = False
    image: Image | None = None
    hosted_url: str | None = None
    row: Row | None = None

    @property
    def best_prompt(self) -> str:
        """The most promising prompt: the last rewritten, else the optimised, else the original."""
        return self.rewritten or self.optimized or self.request.prompt

    @property
    def source(self) -> str:
        """What drew it: backend, rewritten (a backend, after a rewrite), fallback or cache.

        The last is where another process drew it meanwhile.
        """
        if self.image is None:
            return "cache"
        if any(stage.stage == "fallback" and stage.outcome == "ok" for stage in self.stages):
            return "fallback"
        return "rewritten" if self.rewritten else "backend"

    @property
    def faults(self) -> list[Fault]:
        """How the backends failed to draw, in all rounds."""
        return [fault for found in self.rounds for fault in found.faults]

    @property
    def made_a_call(self) -> bool:
        """Return whether a backend, the fallback or the LLM was asked."""
        others = ("optimise", "rewrite", "fallback")
        return (
            self.image is not None
            or any(fault.why != NO_MODEL for fault in self.faults)
            or any(s.stage in others and s.why != COOLING for s in self.stages)
        )

    @property
    def may_have_been_billed(self) -> bool:
        """Return whether a backend or the fallback has drawn, or may have without our seeing it.

        Vendors do not bill the errors that they answer with.
        """
        reasons = [fault.why for fault in self.faults]
        reasons += [stage.why or "" for stage in self.stages if stage.stage == "fallback"]
        # Some reasons are more precise, after a colon.
        kinds = (reason.partition(":")[0] for reason in reasons)
        return self.was_lost or self.image is not None or not _PERHAPS_BILLED.isdisjoint(kinds)

    @property
    def can_rewriting_help(self) -> bool:
        """Return whether the prompt itself may be at fault: a backend refused or rejected it."""
        return any(fault.outcome is not Outcome.FAILED for fault in self.rounds[-1].faults)

    @property
    def is_made_too_long(self) -> bool:
        """Return whether a backend called the LLM's prompt too long, but not yet the user's own."""
        if self.optimized is None or self.image:
            return False
        is_longer = len(self.best_prompt) > len(self.request.prompt)
        return is_longer and any(fault.why == TOO_LONG for fault in self.rounds[-1].faults)

    def __str__(self) -> str:
        """Return the picture's key and prompt, shortened, for the log."""
        return f"{self.request.key[:12]} ({' '.join(self.request.prompt.split())[:40]})"

    def add(self, stage: str, began: float, outcome: str = "ok", why: str | None = None) -> None:
        """Add a stage that began at a moment of the monotonic clock."""
        seconds = round(time.monotonic() - began, 3)
        self.stages.append(Stage(stage, str(outcome), seconds, why))

    def add_round(self, found: Round, began: float) -> None:
        """Add the result of asking backends, and a stage that names each reason once."""
        self.rounds.append(found)
        self.image = found.image
        if found.image:
            self.add("generate", began)
            return
        outcomes = {fault.outcome for fault in found.faults}
        worst = next((o for o in (Outcome.REFUSED, Outcome.REJECTED) if o in outcomes), "failed")
        why = ", ".join(dict.fromkeys(fault.why for fault in found.faults)) or COOLING
        self.add("generate", began, worst, why)
