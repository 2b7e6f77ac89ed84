"""The verdict on a failed drawing, and the notes that remember it: `Blocked` and `Failure`."""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dialect.judging import Outcome
from drawing.record import Drawing, Ending, GaveUp, Stage
from storage import Note, Recalled, Unavailable
from storage.state import State

FIRST_FAILURE_SECONDS = 2.0
MAX_FAILURE_SECONDS = 300.0
# A failure within this time of the last one is remembered for twice as long.
FAILURE_TTL = 3600.0


def verdict(drawing: Drawing, ready_in: float, *, has_fallback: bool) -> GaveUp:
    """Return the final failure of a drawing; `ready_in` is when the first server is ready."""
    stages = drawing.stages
    refused = any(s.stage == "fallback" and s.outcome == Outcome.REFUSED for s in stages)
    if is_refused(drawing) and (refused or not has_fallback):
        return GaveUp("moderation_refused", stages, remembered_for=drawing.blocked_for or None)
    if drawing.deadline.is_over:
        return GaveUp("deadline_passed", stages)
    wait = math.ceil(ready_in) or None
    is_cooling = wait and not drawing.faults and (drawing.rounds or not drawing.made_a_call)
    code: Ending = "all_cooling_down" if is_cooling else "no_backend_drew"
    if drawing.request.model and not all(found.has_model for found in drawing.rounds):
        code = "unknown_model"
    return GaveUp(code, stages, retry_after=wait)


def is_refused(drawing: Drawing) -> bool:
    """Return whether moderation alone prevented the drawing."""
    if drawing.blocked_for:
        return True
    outcomes = {fault.outcome for fault in drawing.faults}
    is_cut = any(found.is_cut for found in drawing.rounds)
    return drawing.image is None and not is_cut and outcomes == {Outcome.REFUSED}


def is_blocked(drawing: Drawing) -> bool:
    """Return whether the prompt counts as blocked.

    It does not if rewriting failed: an outage of the LLM would block the prompt for a day.
    """
    is_undone = any(s.stage == "rewrite" and s.outcome == "failed" for s in drawing.stages)
    return is_refused(drawing) and not is_undone


@dataclass(frozen=True, slots=True)
class Blocked(Note):
    """A prompt that moderation refused in every round, with its rewritten forms.

    `fingerprint` identifies the settings under which that happened.
    """

    kind: ClassVar[str] = "blocked"

    optimized: str | None = None
    rewritten: str | None = None
    fingerprint: str = ""

    @classmethod
    def recall(cls, state: State, key: str, fingerprint: str) -> Recalled[Self] | None:
        """Return the refusal of a picture under these settings. Raises Unavailable."""
        found = state.recall(cls, key)
        return found if found and found.note.fingerprint == fingerprint else None


@dataclass(frozen=True, slots=True)
class Failure(Note):
    """The final failure of a picture, repeated for `seconds` without an upstream call."""

    kind: ClassVar[str] = "failure"

    code: Ending
    stages: tuple[Stage, ...]
    seconds: float
    fingerprint: str = ""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**(value | {"stages": tuple(Stage(**stage) for stage in value["stages"])}))

    @classmethod
    def recall(cls, state: State, key: str, fingerprint: str) -> GaveUp | None:
        """Return the failure of a picture while it is remembered. Raises Unavailable."""
        found = state.recall(cls, key)
        if found is None or found.note.fingerprint != fingerprint:
            return None
        left = found.note.seconds - found.age
        gave_up = GaveUp(found.note.code, found.note.stages, is_repeated=True)
        return gave_up.remembered(left) if left > 0 else None

    @classmethod
    def remember(cls, state: State, key: str, gave_up: GaveUp, fingerprint: str) -> GaveUp:
        """Remember a failure for twice as long as the one before; return what to answer."""
        seconds = FIRST_FAILURE_SECONDS
        with suppress(Unavailable):
            before = state.recall(cls, key)
            if before and before.note.fingerprint == fingerprint:
                seconds = min(MAX_FAILURE_SECONDS, 2 * before.note.seconds)
        note = cls(gave_up.code, gave_up.stages, seconds, fingerprint)
        state.try_remember(note, key, FAILURE_TTL)
        return gave_up.remembered(seconds)


def forget_failures(state: State, key: str) -> bool:
    """Forget a picture's refusal and failure; return whether there was one. Raises Unavailable."""
    forgotten = [state.forget(kind, key) for kind in (Blocked, Failure)]
    return any(forgotten)
