"""What a drawing that ends without a picture is answered with, and what is remembered of it."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from backends import Attempt, Round
from dialect.judging import Outcome
from drawing.backend import Image
from drawing.record import Ending, Failure, GaveUp, Journey, Stage, is_blocked, verdict
from picture import ImageRequest
from upstream.client import Deadline

REFUSED, REJECTED, FAILED = (
    Attempt("b", outcome, str(outcome))
    for outcome in (Outcome.REFUSED, Outcome.REJECTED, Outcome.FAILED)
)
IMAGE = Image(b"", "image/png", "b")


def round_of(*attempts: Attempt, is_cut: bool = False, image: Image | None = None) -> Round:
    return Round(image, attempts, is_cut)


def journey_of(*rounds: Round, stages: tuple[str, ...] = (), **values: Any) -> Journey:
    """Return a journey; a stage is written as `fallback failed`."""
    split = (text.partition(" ") for text in stages)
    made = tuple(Stage(stage, outcome, 0.0) for stage, _, outcome in split)
    now = values.pop("now", 0.0)
    deadline = Deadline(10.0, lambda: now)
    return Journey(ImageRequest("a fox"), deadline, rounds=rounds, stages=made, **values)


# --- on the way ---------------------------------------------------------------------------------


def test_best_prompt_is_the_one_that_came_last() -> None:
    assert journey_of().best_prompt == "a fox"
    assert journey_of(optimized="o").best_prompt == "o"
    assert journey_of(optimized="o", rewritten="r").best_prompt == "r"


@pytest.mark.parametrize(
    ("values", "source"),
    [
        ({}, "backend"),
        ({"rewritten": "r"}, "rewritten"),
        ({"rewritten": "r", "stages": ("fallback ok",)}, "fallback"),
    ],
)
def test_source_says_who_drew(values: dict[str, Any], source: str) -> None:
    assert journey_of(**values).source == source


@pytest.mark.parametrize(
    ("attempts", "outcome", "may_help"),
    [
        ((FAILED, REFUSED), "refused", True),
        ((FAILED, REJECTED), "rejected", True),
        ((FAILED,), "failed", False),
        ((), "failed", False),
    ],
)
def test_round_is_a_stage_and_says_whether_rewriting_may_help(
    attempts: tuple[Attempt, ...], outcome: str, may_help: bool
) -> None:
    journey = journey_of().after_round(round_of(*attempts), 0.0)
    assert (journey.stages[0].stage, journey.stages[0].outcome) == ("generate", outcome)
    assert journey.may_rewriting_help is may_help


def test_stage_names_each_reason_once() -> None:
    journey = journey_of().after_round(round_of(FAILED, FAILED, REFUSED), 0.0)
    assert journey.stages[0].why == "failed, refused"
    drawn = journey_of().after_round(round_of(FAILED, image=IMAGE), 0.0)
    assert (drawn.stages[0].outcome, drawn.stages[0].why, drawn.image) == ("ok", None, IMAGE)


@pytest.mark.parametrize(
    ("journey", "blocked"),
    [
        (journey_of(round_of(REFUSED)), True),
        (journey_of(round_of(REFUSED, REFUSED), round_of(REFUSED)), True),
        (journey_of(round_of(REFUSED, FAILED)), False),
        (journey_of(round_of(REFUSED, REJECTED)), False),
        (journey_of(round_of(REJECTED)), False),
        (journey_of(round_of(FAILED)), False),
        (journey_of(round_of(REFUSED), round_of(FAILED)), False),
        (journey_of(round_of(REFUSED, is_cut=True)), False),
        (journey_of(round_of(REFUSED), round_of(is_cut=True)), False),
        (journey_of(round_of(REFUSED), stages=("rewrite failed",)), False),
        (journey_of(round_of(REFUSED), image=IMAGE), False),
        (journey_of(), False),
    ],
)
def test_only_a_prompt_that_all_refused_in_every_round_is_blocked(
    journey: Journey, blocked: bool
) -> None:
    assert is_blocked(journey) is blocked


# --- the verdict --------------------------------------------------------------------------------

BLOCKED: dict[str, Any] = {"blocked_for": 60.0}
ALL_REFUSED = round_of(REFUSED)
NONE_READY = round_of(is_cut=True)
MODERATED, LATE, COOLING, UNDRAWN = get_args(Ending)
# The journey, when a backend is ready, whether there is a fallback; the code, whether the
# client is told when to come back, and whether it is remembered.
VERDICTS: dict[str, tuple[Journey, float, bool, str, bool, bool]] = {
    "refused everywhere": (journey_of(ALL_REFUSED, **BLOCKED), 0, False, MODERATED, False, False),
    "refused by the fallback too": (
        journey_of(ALL_REFUSED, stages=("fallback refused",), **BLOCKED),
        0, True, MODERATED, False, True,
    ),
    "refused, and the fallback failed": (
        journey_of(ALL_REFUSED, stages=("fallback failed",), **BLOCKED),
        0, True, UNDRAWN, False, True,
    ),
    "blocked before, and the fallback failed": (
        journey_of(stages=("fallback failed",), **BLOCKED), 9, True, UNDRAWN, True, True,
    ),
    "refused by some": (journey_of(round_of(REFUSED, FAILED)), 4.2, False, UNDRAWN, True, True),
    "rejected": (journey_of(round_of(REJECTED)), 0, False, UNDRAWN, False, True),
    "failed": (journey_of(round_of(FAILED)), 5, False, UNDRAWN, True, True),
    "too late": (journey_of(round_of(FAILED), now=11.0), 5, False, LATE, False, True),
    "too late for any call": (journey_of(NONE_READY, now=11.0), 5, False, LATE, False, False),
    "all cooling": (journey_of(NONE_READY), 30, False, COOLING, True, False),
    "all cooling, and the fallback failed": (
        journey_of(NONE_READY, stages=("fallback failed",)), 30, True, COOLING, True, True,
    ),
    "cooling in the second round": (
        journey_of(round_of(REFUSED), NONE_READY), 30, False, UNDRAWN, True, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_has_its_code_and_is_remembered_after_a_call(case: str) -> None:
    journey, ready_in, has_fallback, code, has_wait, is_remembered = VERDICTS[case]
    found = verdict(journey, ready_in, has_fallback=has_fallback)
    assert found.code == code
    assert (found.retry_after is not None) is has_wait
    assert found.is_worth_remembering is is_remembered
    assert found.stages == journey.stages


def test_blocked_prompt_is_remembered_and_repeated_without_a_call() -> None:
    for rounds, is_repeated in ((ALL_REFUSED,), False), ((), True):
        found = verdict(journey_of(*rounds, **BLOCKED), 0, has_fallback=False)
        assert (found.remembered_for, found.is_repeated) == (60.0, is_repeated)
    found = verdict(journey_of(ALL_REFUSED), 0, has_fallback=False)
    assert found.remembered_for is None


# --- failures that are remembered ---------------------------------------------------------------

GAVE_UP = GaveUp("no_backend_drew", [Stage("generate", "failed", 1.5, "down")], retry_after=5)


def failures(count: int) -> list[Failure]:
    made = [Failure.after(None, GAVE_UP, "settings")]
    for _ in range(count - 1):
        made.append(Failure.after(made[-1], GAVE_UP, "settings"))
    return made


def test_failure_is_remembered_for_longer_each_time() -> None:
    assert [f.seconds for f in failures(10)] == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_repeated_picture_costs_at_most_25_drawings_in_an_hour() -> None:
    spent, drawings = 0.0, 0
    for failure in failures(100):
        drawings += spent < 3600
        spent += failure.seconds
    assert drawings <= 25


def test_failure_under_other_settings_begins_anew() -> None:
    assert Failure.after(failures(5)[-1], GAVE_UP, "other").seconds == 2


def test_remembered_failure_is_answered_again_until_it_is_over() -> None:
    failure = failures(3)[-1]
    again = failure.again(1.5)
    assert again
    assert (again.code, again.stages) == (GAVE_UP.code, GAVE_UP.stages)
    assert (again.retry_after, again.remembered_for, again.is_repeated) == (7, 6.5, True)
    assert failure.again(8.0) is None


def test_first_answer_has_its_retry_after_and_is_not_a_memory() -> None:
    first = failures(1)[0].again(0.0, is_first=True)
    assert first
    assert (first.retry_after, first.remembered_for, first.is_repeated) == (2, 2.0, False)


def test_failure_survives_being_stored() -> None:
    failure = failures(1)[0]
    assert Failure.from_json(json.loads(json.dumps(failure.to_json()))) == failure


def test_log_gets_the_code_and_the_stages() -> None:
    assert str(GAVE_UP) == "no_backend_drew; generate failed (down)"
