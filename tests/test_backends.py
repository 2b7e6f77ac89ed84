"""Choosing the next backend, and waiting when all of them are cooling down."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends import Backends
from dialect.judging import Outcome
from drawing.backend import Backend
from drawing.record import Round
from metrics import Metrics
from picture import ImageRequest
from settings.servers import BackendSettings
from storage.local.sqlite import SqliteState
from storage.state import State
from upstream.client import Deadline, Upstream

from .conftest import REFUSAL, drawing
from .servers import Say, ScriptedServer, Seen, png
from .states import Clock

MakeServer = Callable[[], ScriptedServer]

BROKEN = Say("", 500)
REJECTION = Say({"error": {"message": "It cannot be drawn."}}, 400)
NO_MODEL = Say({"error": {"message": "The model `typo` does not exist"}}, 404)


@dataclass
class House:
    """Some backends, their servers, and a clock that only sleeping drawings move.

    It moves once `sleepers` drawings sleep, so that no drawing finds the cooldown over already.
    """

    backends: Backends
    servers: list[ScriptedServer]
    clock: Clock
    slept: list[float] = field(default_factory=list)
    all_sleep: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.wake_after(1)

    def wake_after(self, sleepers: int) -> None:
        self.all_sleep = threading.Barrier(sleepers, action=self._wake)

    def _wake(self) -> None:
        self.clock.now += self.slept[-1]

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.all_sleep.wait(20)

    def draw_at_once(self, count: int) -> list[Round]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(self.draw, (f"picture {n}" for n in range(count))))

    def draw(self, name: str = "a fox", *, model: str | None = None, seconds: float = 100) -> Round:
        deadline = Deadline.after(seconds, self.clock)
        return self.backends.draw(name, ImageRequest(name, model=model), deadline)

    def ready_in(self, model: str | None = None) -> float:
        return self.backends.ready_in(ImageRequest("any", model=model))

    @property
    def asked(self) -> list[int]:
        return [len(server.seen) for server in self.servers]

    def outcomes(self, name: str = "a fox") -> list[Outcome]:
        return [attempt.outcome for attempt in self.draw(name).attempts]


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def state(tmp_path: Path, clock: Clock) -> Iterator[State]:
    with closing(SqliteState(tmp_path, clock)) as made:
        yield made


def backend_at(state: State, url: str, weight: float = 1.0) -> Backend:
    settings = BackendSettings(url, weight)
    # Real time bounds the calls; the clock of a test stands still meanwhile.
    return Backend(settings, Upstream(), state, timeout=30, max_image_bytes=2**20)


@pytest.fixture
def house(server: MakeServer, state: State, clock: Clock) -> Callable[..., House]:
    """Build backends with one answer each: `house(BROKEN, drawing(), attempts=2)`."""

    def build(*says: Say | Callable[[Seen], Say], attempts: int = 2) -> House:
        servers = [server() for _ in says]
        for there, say in zip(servers, says, strict=True):
            there.say(say)
        made = House(Backends([], state), servers, clock)
        made.backends = Backends(
            [backend_at(state, there.url) for there in servers],
            state,
            blocked_retry_attempts=attempts,
            rng=random.Random(1),
            sleep=made.sleep,
        )
        return made

    return build


MakeHouse = Callable[..., House]


# --- who is next --------------------------------------------------------------------------------


def orders(backends: list[Backend], state: State, count: int) -> list[list[int]]:
    """Return the orders of `count` drawings, as indices."""
    everything, request = Backends(backends, state, rng=random.Random(1)), ImageRequest("a")
    known = everything.recall(request)
    found = (everything.order(request, known) for _ in range(count))
    return [[backends.index(backend) for backend in order] for order in found]


def weighted(state: State, *weights: float) -> list[Backend]:
    return [backend_at(state, f"http://127.0.0.1:{port}", w) for port, w in enumerate(weights, 1)]


@pytest.mark.parametrize("weights", [(1, 3), (1, 2, 7), (0.001, 0.002, 0.007)])
def test_each_next_backend_is_chosen_by_weight(state: State, weights: tuple[float, ...]) -> None:
    count = 2500
    drawn = orders(weighted(state, *weights), state, count)
    assert all(sorted(order) == list(range(len(weights))) for order in drawn)
    pairs = Counter((order[0], order[1]) for order in drawn)
    for one, other in itertools.permutations(range(len(weights)), 2):
        share = weights[one] / sum(weights) * weights[other] / (sum(weights) - weights[one])
        assert pairs[one, other] / count == pytest.approx(share, abs=0.04)


def test_backend_without_weight_is_drained(state: State) -> None:
    backends = weighted(state, 0, 1, 0.25)
    assert {tuple(sorted(order)) for order in orders(backends, state, 100)} == {(1, 2)}


def test_extreme_weights_still_make_an_order(state: State) -> None:
    backends = weighted(state, 5e-324, 1e308, 1)
    assert {len(order) for order in orders(backends, state, 100)} == {3}


def test_cooling_backend_is_passed_over(house: MakeHouse) -> None:
    made = house(BROKEN, drawing(), attempts=0)
    for name in "abcdef":
        assert made.draw(name).image
    assert made.asked == [1, 6]


# --- one round ----------------------------------------------------------------------------------


@pytest.mark.parametrize("say", [BROKEN, REJECTION])
def test_failure_and_rejection_move_on_until_one_draws(house: MakeHouse, say: Say) -> None:
    made = house(*[say] * 4, drawing(), attempts=0)
    image = made.draw().image
    assert image
    assert (image.data, image.drawn_by) == (png(), made.servers[-1].url)


def test_failure_moves_on_until_all_were_asked(house: MakeHouse) -> None:
    made = house(*[BROKEN] * 5)
    found = made.draw()
    assert (found.image, found.is_cut, found.count(Outcome.FAILED)) == (None, False, 5)
    assert {attempt.why for attempt in found.attempts} == {"down"}
    assert made.asked == [1] * 5


@pytest.mark.parametrize(("attempts", "requests"), [(0, 1), (1, 1), (2, 2), (3, 3), (9, 4)])
def test_round_ends_after_the_allowed_number_of_refusals(
    house: MakeHouse, attempts: int, requests: int
) -> None:
    made = house(*[REFUSAL] * 4, attempts=attempts)
    assert made.outcomes() == [Outcome.REFUSED] * requests
    assert made.ready_in() == 0


def test_failures_do_not_count_as_refusals(house: MakeHouse) -> None:
    made = house(BROKEN, REFUSAL, REJECTION, REFUSAL)
    assert sorted(made.outcomes()).count(Outcome.REFUSED) == 2


class SlowCalls(Metrics):
    """Moves a clock when a call is over: earlier, and the call itself would be out of time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def backend_called(self, backend: str, outcome: str, seconds: float) -> None:
        self.clock.now += 200


def test_round_that_the_deadline_ends_is_cut(house: MakeHouse, clock: Clock) -> None:
    made = house(REFUSAL, REFUSAL)
    for backend in made.backends.all:
        backend.metrics = SlowCalls(clock)
    found = made.draw()
    assert (found.is_cut, found.count(Outcome.REFUSED)) == (True, 1)
    assert sum(made.asked) == 1


def test_fault_of_a_model_cools_that_model_alone(house: MakeHouse) -> None:
    def server_of_models(seen: Seen) -> Say:
        return NO_MODEL if seen.json.get("model") == "typo" else drawing()

    made = house(server_of_models)
    found = made.draw("a", model="typo")
    assert (found.attempts[0].why, found.has_model) == ("unknown model", False)
    assert made.ready_in("typo") == 5
    assert made.draw("a", model="typo", seconds=4) == Round(None, (), True, has_model=False)
    assert made.draw("b", model="real").image
    assert made.draw("c").image


def test_concurrent_failures_count_once(house: MakeHouse) -> None:
    all_are_in = threading.Barrier(20)

    def break_down(seen: Seen) -> Say:
        all_are_in.wait(20)
        return BROKEN

    made = house(break_down)
    rounds = made.draw_at_once(20)
    assert {found.attempts[0].outcome for found in rounds} == {Outcome.FAILED}
    assert made.ready_in() == 5


# --- all of them are cooling --------------------------------------------------------------------


def test_drawing_waits_for_the_first_that_is_ready(house: MakeHouse) -> None:
    made = house(Say("", 503, {"Retry-After": "14"}), Say("", 503, {"Retry-After": "100"}))
    made.draw("a")
    for server in made.servers:
        server.say(drawing())
    assert made.draw("b").image
    assert made.slept == [14]
    assert made.asked == [2, 1]
    assert made.draw("c").image
    assert made.slept == [14]


@pytest.mark.parametrize(("wait", "seconds"), [("16", 100.0), ("14", 13.0)])
def test_drawing_does_not_wait_for_long_nor_past_its_deadline(
    house: MakeHouse, wait: str, seconds: float
) -> None:
    made = house(Say("", 503, {"Retry-After": wait}))
    made.draw("a")
    assert made.draw("b", seconds=seconds) == Round(None, (), is_cut=True)
    assert (made.slept, made.asked) == ([], [1])


def test_one_asks_first_and_the_others_follow_its_success(house: MakeHouse) -> None:
    made = house(BROKEN)
    made.draw("first")
    arrivals, has_answered, all_follow = itertools.count(), threading.Event(), threading.Barrier(7)
    too_early: list[Seen] = []

    def draw_together(seen: Seen) -> Say:
        if next(arrivals) == 0:
            has_answered.set()
        elif has_answered.is_set():
            all_follow.wait(20)
        else:
            too_early.append(seen)
        return drawing()

    made.servers[0].say(draw_together)
    made.wake_after(8)
    assert all(found.image for found in made.draw_at_once(8))
    assert not too_early


def test_others_do_not_ask_when_the_first_has_failed(house: MakeHouse) -> None:
    made = house(BROKEN)
    made.draw("first")
    made.draw("second")
    made.wake_after(8)
    rounds = made.draw_at_once(8)
    # The 20 s that follow the third failure are too long to wait for.
    assert sorted(len(found.attempts) for found in rounds) == [0] * 7 + [1]
    assert made.ready_in() == 20


def test_refusal_shows_that_a_backend_works_again(house: MakeHouse) -> None:
    made = house(BROKEN)
    made.draw("a")
    made.servers[0].say(REFUSAL)
    made.draw("b")
    made.servers[0].say(BROKEN)
    made.draw("c")
    assert made.ready_in() == 5
