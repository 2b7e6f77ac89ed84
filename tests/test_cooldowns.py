"""Cooldowns: how long a failing backend is avoided, and what the log says."""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from dialect.judging import TOO_LONG, Fault, Outcome
from drawing.cooldowns import Cooldown, Known, Outages
from storage.local.sqlite import SqliteState
from storage.state import State

from .states import Clock

KEY = "a" * 32
DOWN = Fault(Outcome.FAILED, "down")
REJECTED = Fault(Outcome.REJECTED, "rejected")
UNAUTHORISED = Fault(Outcome.FAILED, "unauthorised", wait=7.0)
RESTED = {KEY: Cooldown()}


@dataclass
class Site:
    """A backend in one worker; each call is a separate drawing."""

    outages: Outages
    clock: Clock

    def fail(self, picture: str, fault: Fault = DOWN, known: Known | None = None) -> float:
        """Let a drawing fail; return for how long the backend is avoided."""
        self.outages.count(known or self.outages.recall(), fault, "down (HTTP 500)", picture)
        return self.left

    def draw(self) -> None:
        self.outages.end(self.outages.recall())

    @property
    def note(self) -> Cooldown:
        return self.outages.recall()[KEY]

    @property
    def left(self) -> float:
        return self.note.seconds


@pytest.fixture
def site(state: State, clock: Clock) -> Site:
    return Site(Outages(state, KEY, "Backend b"), clock)


# --- how long -----------------------------------------------------------------------------------


def test_cooldown_grows_with_failures_of_different_pictures(site: Site) -> None:
    waits = []
    for number in range(20):
        waits.append(site.fail(f"picture {number}"))
        site.clock.now += waits[-1]
        assert site.left == 0
    assert waits == [5, 10, 20, 40, 80, 160] + [300] * 14


def test_same_picture_failing_again_neither_extends_nor_deepens(site: Site) -> None:
    site.fail("a")
    site.clock.now += 3
    assert site.fail("a") == pytest.approx(2)
    site.clock.now += 60
    assert site.fail("a") == 0
    assert site.note.failures == 1
    assert site.fail("b") == 10


@pytest.mark.parametrize(("asked", "left"), [(0.0, 0), (0.5, 0.5), (17.0, 17), (1e9, 300)])
def test_retry_after_is_honoured_up_to_five_minutes(site: Site, asked: float, left: float) -> None:
    assert site.fail("a", Fault(Outcome.FAILED, "rate limited", wait=asked)) == left
    assert site.fail("b") == 10


def test_fault_of_the_account_cools_for_a_minute(site: Site) -> None:
    assert [site.fail("a", UNAUTHORISED), site.fail("b", UNAUTHORISED)] == [60, 60]


def test_answer_ends_the_series_and_leaves_why_it_failed(site: Site) -> None:
    for picture in "abc":
        site.fail(picture)
    failed_at = site.clock.now
    site.clock.now += 20
    site.draw()
    assert site.note == Cooldown(why="down", failed_at=failed_at)
    assert site.fail("a") == 5


def test_failures_far_apart_form_no_series(site: Site) -> None:
    site.fail("a")
    site.fail("b")
    site.clock.now += 601
    assert site.fail("a") == 5


@pytest.mark.parametrize("fault", [DOWN, REJECTED])
def test_clock_that_is_set_back_prolongs_nothing(site: Site, fault: Fault) -> None:
    site.fail("a")
    site.clock.now -= 3600
    assert site.left == 5
    site.fail("b", fault, known=RESTED)
    for seconds, left in (3, 2), (2, 0):
        site.clock.now += seconds
        assert site.left == left


# --- together -----------------------------------------------------------------------------------


def test_drawings_that_fail_together_count_once(site: Site) -> None:
    known = site.outages.recall()
    for number in range(20):
        site.clock.now += 0.1
        site.fail(f"picture {number}", known=known)
    assert site.note.failures == 1
    assert site.left == pytest.approx(5 - 19 * 0.1)
    # The same page once more.
    site.clock.now += 10
    for number in range(20):
        site.fail(f"picture {number}")
    assert (site.note.failures, site.left) == (1, 0)


def test_late_failure_does_not_shorten_what_others_have_counted(site: Site) -> None:
    for picture in "abcd":
        site.fail(picture)
    assert site.fail("slow", known=RESTED) == 40


def test_failure_after_an_answer_begins_a_series(site: Site) -> None:
    site.fail("a")
    known = site.outages.recall()
    site.draw()
    assert site.fail("b", known=known) == 5


def test_processes_count_one_outage_once(tmp_path: Path, clock: Clock) -> None:
    with closing(SqliteState(tmp_path, clock)) as one, closing(SqliteState(tmp_path, clock)) as two:
        sites = [Site(Outages(state, KEY, "Backend b"), clock) for state in (one, two)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: sites[n % 2].fail(str(n), known=RESTED), range(30)))
        assert (sites[0].note.failures, sites[1].left) == (1, 5)
        assert len(sites[0].note.failing) == 30, "none is forgotten"


# --- rejections ---------------------------------------------------------------------------------


def test_third_picture_rejected_in_a_row_cools(site: Site) -> None:
    assert [site.fail(picture, REJECTED) for picture in "aabbaac"] == [0, 0, 0, 0, 0, 0, 5]
    assert (site.note.why, site.note.failures) == ("rejecting", 1)
    site.clock.now += 5
    assert [site.fail(picture, REJECTED) for picture in "def"] == [0, 0, 10]


def test_long_prompts_do_not_count_and_an_answer_resets(site: Site) -> None:
    too_long = Fault(Outcome.REJECTED, TOO_LONG)
    assert [site.fail(picture, too_long) for picture in "abcd"] == [0, 0, 0, 0]
    assert [site.fail(picture, REJECTED) for picture in "ef"] == [0, 0]
    site.draw()
    assert [site.fail(picture, REJECTED) for picture in "gh"] == [0, 0]


def test_simultaneous_rejections_all_count(site: Site) -> None:
    assert [site.fail(picture, REJECTED, RESTED) for picture in "abc"] == [0, 0, 5]


def test_rejection_does_not_extend_a_cooldown(site: Site) -> None:
    site.fail("a")
    site.clock.now += 4
    assert site.fail("b", REJECTED) == pytest.approx(1)


# --- what is logged -----------------------------------------------------------------------------


def test_change_of_state_is_one_warning(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for picture in "aabc":
        site.fail(picture)
    site.fail("d", UNAUTHORISED)
    site.draw()
    site.draw()
    changes = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert changes == [
        "Backend b: down (HTTP 500); avoided for 5 s",
        "Backend b: down (HTTP 500); avoided for 60 s",
        "Backend b works again",
    ]
    assert [record.levelname for record in caplog.records].count("INFO") == 3


def test_lone_server_is_not_avoided(state: State, caplog: pytest.LogCaptureFixture) -> None:
    Outages(state, KEY, "Backend b", is_avoided=False).count(RESTED, DOWN, "down (HTTP 500)", "a")
    assert caplog.messages == ["Backend b: down (HTTP 500)"]


def test_failure_is_logged_without_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    unusable = SqliteState(tmp_path / "file")
    caplog.set_level(logging.INFO)
    Outages(unusable, KEY, "Backend b").count(RESTED, DOWN, "down (HTTP 500)", "a")
    assert "Backend b: down (HTTP 500)" in caplog.messages
