"""Choosing the next backend, and waiting when all of them are cooling down or have no slot."""

import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from backends import Backends
from dialect.judging import Outcome
from drawing.backend import Backend
from drawing.cooldowns import Known
from drawing.record import Drawing, Round
from picture import ImageRequest
from storage import Unavailable
from storage.state import State
from upstream.client import Deadline

from .conftest import BROKEN, REFUSAL, MakeServer, Serve, drawing
from .one_backend import backend_at, taken
from .scripted import Gate, Say, ScriptedServer, Seen, png, wait_until
from .states import Clock

REJECTION = Say({"error": {"message": "It cannot be drawn."}}, 400)
NO_MODEL = Say({"error": {"message": "The model `typo` does not exist"}}, 404)
ANY = ImageRequest("any")


@dataclass
class House:
    """Some backends, their servers, and a clock that only sleeping drawings move.

    It moves once `sleepers` drawings sleep, so that no drawing finds the cooldown over already.
    """

    backends: Backends
    servers: list[ScriptedServer]
    clock: Clock
    slept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backends.sleep = self.sleep
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
        return self.backends.draw(Drawing(ImageRequest(name, model=model), deadline))

    def ready_in(self, model: str | None = None) -> float:
        return self.backends.ready_in(ImageRequest("any", model=model))

    @property
    def asked(self) -> list[int]:
        return [len(server.seen) for server in self.servers]

    def outcomes(self, name: str = "a fox") -> list[Outcome]:
        return [fault.outcome for fault in self.draw(name).faults]


@pytest.fixture
def house(server: MakeServer, state: State, clock: Clock) -> Callable[..., House]:
    """Build backends with one answer each: `house(BROKEN, drawing(), attempts=2)`."""

    def build(*says: Say | Callable[[Seen], Say], attempts: int = 2) -> House:
        servers = [server() for _ in says]
        for there, say in zip(servers, says, strict=True):
            there.say(say)
        all = [backend_at(state, there.url) for there in servers]
        rng = random.Random(1)
        backends = Backends(all, state, blocked_retry_attempts=attempts, rng=rng)
        return House(backends, servers, clock)

    return build


MakeHouse = Callable[..., House]


# --- who is next --------------------------------------------------------------------------------


def orders(state: State, *weights: float, count: int = 100) -> list[list[int]]:
    """Return in which orders `count` drawings would ask backends of these weights, as indices."""
    urls = [f"http://127.0.0.1:{port}" for port in range(1, len(weights) + 1)]
    all = [backend_at(state, url, weight=w) for url, w in zip(urls, weights, strict=True)]
    backends = Backends(all, state, rng=random.Random(1))
    known = backends.recall(ANY)
    return [[all.index(one) for one in backends.order(ANY, known)] for _ in range(count)]


@pytest.mark.parametrize("weights", [(1, 3), (1, 2, 7), (0.001, 0.002, 0.007)])
def test_each_next_backend_is_chosen_by_weight(state: State, weights: tuple[float, ...]) -> None:
    count = 2500
    drawn = orders(state, *weights, count=count)
    assert all(sorted(order) == list(range(len(weights))) for order in drawn)
    pairs = Counter((order[0], order[1]) for order in drawn)
    for one, other in itertools.permutations(range(len(weights)), 2):
        share = weights[one] / sum(weights) * weights[other] / (sum(weights) - weights[one])
        assert pairs[one, other] / count == pytest.approx(share, abs=0.04)


def test_backend_without_weight_is_drained_however_extreme_the_others(state: State) -> None:
    for weights in (0, 1, 0.25), (0, 5e-324, 1e308):
        assert {tuple(sorted(order)) for order in orders(state, *weights)} == {(1, 2)}


def test_state_that_fails_amid_a_round_hides_no_call(
    house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = house(BROKEN, BROKEN)
    recalls, recall = itertools.count(), made.backends.recall

    def failing(request: ImageRequest) -> Known:
        if next(recalls) == 2:
            raise Unavailable("for a moment")
        return recall(request)

    monkeypatch.setattr(made.backends, "recall", failing)
    found = made.draw()
    assert (len(found.faults), found.is_cut, sum(made.asked)) == (1, True, 1)


# --- one round ----------------------------------------------------------------------------------


@pytest.mark.parametrize("say", [BROKEN, REJECTION])
def test_failure_and_rejection_move_on_until_one_draws(house: MakeHouse, say: Say) -> None:
    made = house(*[say] * 4, drawing(), attempts=0)
    assert (image := made.draw().image)
    assert (image.data, image.drawn_by) == (png(), made.servers[-1].url)


def test_failure_moves_on_until_all_were_asked(house: MakeHouse) -> None:
    made = house(*[BROKEN] * 5)
    found = made.draw()
    assert (found.image, found.is_cut) == (None, False)
    assert [(fault.outcome, fault.why) for fault in found.faults] == [("failed", "down")] * 5
    assert made.asked == [1] * 5


@pytest.mark.parametrize(("attempts", "requests"), [(0, 1), (1, 1), (2, 2), (3, 3), (9, 4)])
def test_round_ends_after_enough_refusals(house: MakeHouse, attempts: int, requests: int) -> None:
    made = house(*[REFUSAL] * 4, attempts=attempts)
    assert made.outcomes() == [Outcome.REFUSED] * requests
    assert made.ready_in() == 0


def test_failures_do_not_count_as_refusals(house: MakeHouse) -> None:
    made = house(BROKEN, REFUSAL, REJECTION, REFUSAL)
    assert made.outcomes().count(Outcome.REFUSED) == 2


def test_fault_of_a_model_cools_that_model_alone(house: MakeHouse) -> None:
    def server_of_models(seen: Seen) -> Say:
        return NO_MODEL if seen.json.get("model") == "typo" else drawing()

    made = house(server_of_models)
    found = made.draw("a", model="typo")
    assert (found.faults[0].why, found.has_model) == ("unknown model", False)
    assert made.ready_in("typo") == 5
    assert made.draw("a", model="typo", seconds=4) == Round(None, (), True, has_model=False)
    assert made.draw("b", model="real").image
    assert made.draw("c").image


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
def test_drawing_waits_neither_long_nor_late(house: MakeHouse, wait: str, seconds: float) -> None:
    made = house(Say("", 503, {"Retry-After": wait}))
    made.draw("a")
    assert made.draw("b", seconds=seconds) == Round(None, is_cut=True)
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
    assert sorted(len(found.faults) for found in rounds) == [0] * 7 + [1]
    assert made.ready_in() == 20


def test_refusal_shows_that_a_backend_works_again(house: MakeHouse) -> None:
    made = house(BROKEN)
    made.draw("a")
    made.servers[0].say(REFUSAL)
    made.draw("b")
    made.servers[0].say(BROKEN)
    made.draw("c")
    assert made.ready_in() == 5


# --- BACKEND_CONCURRENCY: so many drawings of a backend under way at once, wherever they run -----


def draw(backends: Backends, name: str, seconds: float = 30) -> Round:
    return backends.draw(Drawing(ImageRequest(name), Deadline.after(seconds)))


@pytest.fixture
def slot(state: State, backend: ScriptedServer) -> Backend:
    """A backend with one slot."""
    return backend_at(state, backend.url, concurrency=1)


@pytest.fixture
def alone(slot: Backend, state: State) -> Backends:
    return Backends([slot], state)


def test_drawing_without_room_is_drawn_by_another_backend(
    server: MakeServer, state: State, backend: ScriptedServer, slot: Backend, alone: Backends
) -> None:
    other = server()
    backend.say(gate := Gate(drawing()))
    other.say(drawing())
    backends = Backends([slot, backend_at(state, other.url)], state)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(draw, alone, "first")
        wait_until(lambda: backend.seen)
        assert all(draw(backends, name).image for name in "abcdef")
        gate.opened.set()
        assert first.result().image
    assert (len(backend.seen), len(other.seen)) == (1, 6)


def test_slot_is_not_held_during_the_download(backend: ScriptedServer, alone: Backends) -> None:
    def answer(seen: Seen) -> Say:
        if seen.method == "POST":
            return Say({"data": [{"url": f"/{seen.json['prompt']}.png"}]})
        # The other drawing is done while this download waits.
        if seen.path == "/first.png":
            assert draw(alone, "second").image
        return Say(png())

    backend.say(answer)
    assert draw(alone, "first").image


def test_second_call_for_bytes_takes_a_slot_again(backend: ScriptedServer, alone: Backends) -> None:
    def answer(seen: Seen) -> Say:
        assert alone.all[0].take_slot() is None
        if "response_format" in seen.json:
            return drawing()
        return Say({"data": [{"url": "http://10.0.0.1/a.png"}]})

    backend.say(answer)
    assert draw(alone, "a").image
    assert alone.all[0].take_slot()


def test_deadline_ends_the_wait_for_room(backend: ScriptedServer, alone: Backends) -> None:
    with taken(alone.all[0]):
        assert draw(alone, "a", seconds=0.2) == Round(None, is_cut=True)
    assert backend.seen == []


def test_drawing_that_waited_heeds_a_cooldown_begun_meanwhile(
    backend: ScriptedServer, state: State, clock: Clock, slot: Backend, alone: Backends
) -> None:
    backend.say(gate := Gate(Say("", 503, {"Retry-After": "10"})), drawing())
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds < 1:
            gate.opened.set()
            wait_until(lambda: alone.ready_in(ANY))
        else:
            clock.now += seconds

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(draw, alone, "first")
        wait_until(lambda: backend.seen)
        assert draw(Backends([slot], state, sleep=sleep), "second").image
        assert first.result().image is None
    assert slept[-1] == 10


class Pairs:
    """A backend that draws for two at a time: each answer waits for a second request."""

    def __init__(self) -> None:
        self.most = 0
        self._under_way = 0
        self._mutex = threading.Lock()
        self._two_are_in = threading.Barrier(2)

    def __call__(self, seen: Seen) -> Say:
        with self._mutex:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        self._two_are_in.wait(20)
        with self._mutex:
            self._under_way -= 1
        return drawing()


def test_page_of_twenty_is_drawn_two_at_a_time(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(pairs := Pairs())
    service = serve(backend, BACKEND_CONCURRENCY=json.dumps({backend.url: 2}))
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(service.picture, (f"picture-{n}" for n in range(20))))
    assert {answer.status for answer in answers} == {200}
    assert (len(backend.seen), pairs.most) == (20, 2)
