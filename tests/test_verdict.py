"""The verdict on a drawing without a picture, and how long it is remembered."""

from typing import Any, get_args

import pytest

from dialect.judging import TOO_LONG, Fault, Outcome
from drawing.record import Drawing, Ending, GaveUp, Image, Round, Stage
from drawing.verdict import Blocked, Failure, forget_failures, is_blocked, verdict
from picture import ImageRequest
from storage.state import State
from upstream.client import Deadline

from .states import Clock

Values = dict[str, Any]

REFUSED, REJECTED, FAILED = (
    Fault(outcome, str(outcome)) for outcome in (Outcome.REFUSED, Outcome.REJECTED, Outcome.FAILED)
)
IMAGE = Image(b"", "image/png", "b")


def round_of(*faults: Fault, image: Image | None = None, **values: bool) -> Round:
    return Round(image, faults, **values)


def drawing_of(*rounds: Round, stages: tuple[str, ...] = (), **values: Any) -> Drawing:
    """Return a drawing; a stage is written as `fallback failed` or `fallback failed (why)`."""
    split = (text.rstrip(")").replace("(", "").split(" ", 2) for text in stages)
    made = [Stage(stage, outcome, 0.0, *why) for stage, outcome, *why in split]
    now = values.pop("now", 0.0)
    request = ImageRequest("a fox", model=values.pop("model", None))
    return Drawing(request, Deadline(10.0, lambda: now), rounds=[*rounds], stages=made, **values)


# --- on the way ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "best_prompt", "source"),
    [
        ({}, "a fox", "cache"),
        ({"image": IMAGE}, "a fox", "backend"),
        ({"image": IMAGE, "optimized": "o"}, "o", "backend"),
        ({"image": IMAGE, "optimized": "o", "rewritten": "r"}, "r", "rewritten"),
        ({"image": IMAGE, "rewritten": "r", "stages": ("fallback ok",)}, "r", "fallback"),
    ],
)
def test_drawing_knows_its_prompt_and_source(values: Values, best_prompt: str, source: str) -> None:
    drawing = drawing_of(**values)
    assert (drawing.best_prompt, drawing.source) == (best_prompt, source)


@pytest.mark.parametrize(
    ("found", "outcome", "why", "may_help"),
    [
        (round_of(FAILED, FAILED, REFUSED), "refused", "failed, refused", True),
        (round_of(FAILED, REJECTED), "rejected", "failed, rejected", True),
        (round_of(FAILED), "failed", "failed", False),
        (round_of(), "failed", "cooling down", False),
        (round_of(FAILED, image=IMAGE), "ok", None, False),
    ],
)
def test_round_says_whether_rewriting_may_help(
    found: Round, outcome: str, why: str | None, may_help: bool
) -> None:
    drawing = drawing_of()
    drawing.add_round(found, 0.0)
    [stage] = drawing.stages
    assert (stage.stage, stage.outcome, stage.why) == ("generate", outcome, why)
    assert (drawing.image, drawing.can_rewriting_help) == (found.image, may_help)


@pytest.mark.parametrize(
    ("values", "why", "is_too_long"),
    [
        ({"optimized": "a splendid fox"}, TOO_LONG, True),
        ({"optimized": "a splendid fox"}, "rejected", False),
        ({"optimized": "fox"}, TOO_LONG, False),
        ({"optimized": "fox", "rewritten": "a very harmless fox"}, TOO_LONG, True),
        ({"rewritten": "a very harmless fox"}, TOO_LONG, False),  # the original was refused
        ({"optimized": "a splendid fox", "image": IMAGE}, TOO_LONG, False),
    ],
)
def test_llm_alone_makes_a_prompt_too_long(values: Values, why: str, is_too_long: bool) -> None:
    faults = (FAILED, Fault(Outcome.REJECTED, why))
    assert drawing_of(round_of(*faults), **values).is_made_too_long is is_too_long


@pytest.mark.parametrize(
    ("drawing", "blocked"),
    [
        (drawing_of(round_of(REFUSED)), True),
        (drawing_of(round_of(REFUSED, REFUSED), round_of(REFUSED)), True),
        (drawing_of(round_of(REFUSED, FAILED)), False),
        (drawing_of(round_of(REFUSED, REJECTED)), False),
        (drawing_of(round_of(REFUSED), round_of(FAILED)), False),
        (drawing_of(round_of(REFUSED, is_cut=True)), False),
        (drawing_of(round_of(REFUSED), round_of(is_cut=True)), False),
        (drawing_of(round_of(REFUSED), stages=("rewrite failed",)), False),
        (drawing_of(round_of(REFUSED), image=IMAGE), False),
        (drawing_of(), False),
    ],
)
def test_prompt_is_blocked_if_all_refused_in_every_round(drawing: Drawing, blocked: bool) -> None:
    assert is_blocked(drawing) is blocked


# --- the verdict --------------------------------------------------------------------------------

BLOCKED: Values = {"blocked_for": 60.0}
ALL_REFUSED = round_of(REFUSED)
NONE_READY = round_of(is_cut=True)
NO_MODEL = round_of(FAILED, has_model=False)
MODERATED, LATE, COOLING, UNDRAWN, UNKNOWN = get_args(Ending)
# The drawing, when a backend is ready, whether there is a fallback; the code, whether the
# client is told when to come back, and whether a call was made.
VERDICTS: dict[str, tuple[Drawing, float, bool, str, bool, bool]] = {
    "refused everywhere": (drawing_of(ALL_REFUSED, **BLOCKED), 0, False, MODERATED, False, True),
    "refused by the fallback too": (
        drawing_of(ALL_REFUSED, stages=("fallback refused",), **BLOCKED),
        0, True, MODERATED, False, True,
    ),
    "refused, and the fallback failed": (
        drawing_of(ALL_REFUSED, stages=("fallback failed",), **BLOCKED),
        0, True, UNDRAWN, False, True,
    ),
    "blocked before, and the fallback failed": (
        drawing_of(stages=("fallback failed",), **BLOCKED), 9, True, UNDRAWN, True, True,
    ),
    "refused by some": (drawing_of(round_of(REFUSED, FAILED)), 4.2, False, UNDRAWN, True, True),
    "rejected": (drawing_of(round_of(REJECTED)), 0, False, UNDRAWN, False, True),
    "failed": (drawing_of(round_of(FAILED)), 5, False, UNDRAWN, True, True),
    "too late": (drawing_of(round_of(FAILED), now=11.0), 5, False, LATE, False, True),
    "too late for any call": (drawing_of(NONE_READY, now=11.0), 5, False, LATE, False, False),
    "no such model": (drawing_of(NO_MODEL, model="typo"), 5, False, UNKNOWN, True, True),
    "no such model, and it is cooling": (
        drawing_of(round_of(is_cut=True, has_model=False), model="typo"),
        30, False, UNKNOWN, True, False,
    ),
    "no default model": (drawing_of(NO_MODEL), 5, False, UNDRAWN, True, True),
    "all cooling": (drawing_of(NONE_READY), 30, False, COOLING, True, False),
    "all cooling, and the fallback failed": (
        drawing_of(NONE_READY, stages=("fallback failed",)), 30, True, COOLING, True, True,
    ),
    "all cooling, the fallback too": (
        drawing_of(NONE_READY, stages=("fallback failed (cooling down)",)),
        30, True, COOLING, True, False,
    ),
    "blocked before, and the fallback is cooling": (
        drawing_of(stages=("fallback failed (cooling down)",), **BLOCKED),
        30, True, COOLING, True, False,
    ),
    "all cooling after a call of the LLM": (
        drawing_of(NONE_READY, stages=("optimise failed",)), 30, False, COOLING, True, True,
    ),
    "cooling in the second round": (
        drawing_of(round_of(REFUSED), NONE_READY), 30, False, UNDRAWN, True, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_has_its_code_and_says_when_to_come_back(case: str) -> None:
    drawing, ready_in, has_fallback, code, has_wait, made_a_call = VERDICTS[case]
    found = verdict(drawing, ready_in, has_fallback=has_fallback)
    assert (found.code, found.retry_after is not None) == (code, has_wait)
    assert drawing.made_a_call is made_a_call
    assert found.stages == (*drawing.stages,)


def test_refusal_is_remembered_if_the_prompt_is_blocked() -> None:
    for seconds, remembered_for in (60.0, 60.0), (0.0, None):
        drawing = drawing_of(ALL_REFUSED, blocked_for=seconds)
        assert verdict(drawing, 0, has_fallback=False).remembered_for == remembered_for


# --- failures that are remembered ---------------------------------------------------------------

STAGES = (Stage("generate", "failed", 1.5, "down"),)


def fail(state: State, settings: str = "settings") -> GaveUp:
    gave_up = GaveUp("no_backend_drew", STAGES, retry_after=5)
    return Failure.remember(state, "k", gave_up, settings)


def test_failure_is_remembered_for_longer_each_time(state: State) -> None:
    waits = [fail(state).remembered_for for _ in range(10)]
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert sum([2, 4, 8, 16, 32, 64, 128, 256] + [300] * 16) > 3600, "25 drawings in an hour"
    assert fail(state, "other settings").remembered_for == 2


def test_remembered_failure_is_answered_again_until_it_is_over(state: State, clock: Clock) -> None:
    first = fail(state)
    assert (first.retry_after, first.is_repeated) == (2, False)
    clock.now += 0.5
    assert (again := Failure.recall(state, "k", "settings"))
    assert str(again) == "no_backend_drew; generate failed (down)"
    assert again.stages == STAGES
    assert (again.retry_after, again.remembered_for, again.is_repeated) == (2, 1.5, True)
    assert Failure.recall(state, "k", "other settings") is None
    clock.now += 1.5
    assert Failure.recall(state, "k", "settings") is None


def test_refusal_is_recalled_under_its_settings_and_forgotten(state: State) -> None:
    state.remember(Blocked("better", "safer", "settings"), "k", 60)
    assert (found := Blocked.recall(state, "k", "settings"))
    assert (found.note.rewritten, found.left) == ("safer", 60)
    assert Blocked.recall(state, "k", "other settings") is None
    fail(state)
    assert (forget_failures(state, "k"), forget_failures(state, "k")) == (True, False)
    assert Blocked.recall(state, "k", "settings") is None
    assert Failure.recall(state, "k", "settings") is None
