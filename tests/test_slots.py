"""BACKEND_CONCURRENCY: so many drawings of a backend under way at once, wherever they run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from backends import Backends
from drawing.backend import Backend
from drawing.pool import Slots, first_free
from drawing.record import Round
from picture import ImageRequest
from settings.servers import BackendSettings
from storage import LockTimeout
from storage.state import State
from upstream.client import Deadline, Upstream

from .conftest import Gunicorn, drawing
from .servers import Gate, Say, ScriptedServer, Seen, png, wait_until
from .states import Clock, PostgresPlace, SqlitePlace, StatePlace, held_elsewhere
from .wire import MakeServer

KEYS = ["a" * 32, "b" * 32]


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


def backend_at(state: State, server: ScriptedServer, concurrency: int | None) -> Backend:
    settings = BackendSettings(server.url, concurrency=concurrency)
    return Backend(settings, Upstream(), state, timeout=20, max_image_bytes=2**20)


def taken(slots: Slots) -> ExitStack:
    slot = slots.take()
    assert slot
    return slot


def draw(backends: Backends, name: str, seconds: float = 30) -> Round:
    return backends.draw(name, ImageRequest(name), Deadline.after(seconds))


# --- slots alone --------------------------------------------------------------------------------


def test_slot_is_free_again_once_it_is_closed(state: State) -> None:
    slots = Slots(state, KEYS)
    with taken(slots):
        one = taken(slots)
        assert slots.take() is None
        one.close()
        assert slots.take()


def test_without_keys_there_is_no_limit(state: State) -> None:
    assert all(Slots(state).take() for _ in range(100))


@pytest.fixture(params=[SqlitePlace, PostgresPlace])
def place(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[StatePlace]:
    is_local = request.param is SqlitePlace
    address = tmp_path if is_local else request.getfixturevalue("postgres").schema()
    with closing(request.param(address, clock)) as made:
        yield made


def test_slot_of_a_killed_process_is_free(place: StatePlace) -> None:
    slots = Slots(place.open(), KEYS[:1])
    with held_elsewhere(place, KEYS[0]) as child:
        assert slots.take() is None
        child.kill()
        child.wait()
        wait_until(slots.take)


def test_first_that_has_room_is_taken_without_waiting(state: State) -> None:
    full, free = Slots(state, KEYS[:1]), Slots(state, KEYS[1:])
    with taken(full), first_free([full, free], Deadline.after(10), fail)[1]:
        assert free.take() is None
    assert first_free([full, free], Deadline.after(10), fail)[0] == 0


def fail(seconds: float) -> None:
    raise AssertionError("it waited")


def test_wait_for_a_slot_ends_at_the_deadline(state: State) -> None:
    clock = Clock(0.0)
    slots = Slots(state, KEYS[:1])

    def sleep(seconds: float) -> None:
        clock.now += seconds

    with taken(slots), pytest.raises(LockTimeout):
        first_free([slots], Deadline.after(10, clock), sleep)
    assert clock.now == 10


# --- drawings -----------------------------------------------------------------------------------


def test_drawing_without_room_is_drawn_by_another_backend(server: MakeServer, state: State) -> None:
    full, other, gate = server(), server(), Gate(drawing())
    full.say(gate)
    other.say(drawing(png(shade=9)))
    backends = Backends([backend_at(state, full, 1), backend_at(state, other, None)], state)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(draw, Backends(backends.all[:1], state), "first")
        wait_until(lambda: full.seen)
        for name in "abcdef":
            image = draw(backends, name).image
            assert image
            assert image.drawn_by == other.url
        gate.opened.set()
        assert first.result().image
    assert (len(full.seen), len(other.seen)) == (1, 6)


def test_slot_is_not_held_during_the_download(backend: ScriptedServer, state: State) -> None:
    backends = Backends([backend_at(state, backend, 1)], state)

    def answer(seen: Seen) -> Say:
        if seen.method == "POST":
            return Say({"data": [{"url": f"/{seen.json['prompt']}.png"}]})
        # The other drawing is done while this download waits.
        if seen.path == "/first.png":
            assert draw(backends, "second").image
        return Say(png())

    backend.say(answer)
    assert draw(backends, "first").image


def test_second_call_for_base64_takes_a_slot_again(backend: ScriptedServer, state: State) -> None:
    there = backend_at(state, backend, 1)

    def answer(seen: Seen) -> Say:
        assert there.slots.take() is None
        if "response_format" in seen.json:
            return drawing()
        return Say({"data": [{"url": "http://10.0.0.1/a.png"}]})

    backend.say(answer)
    assert draw(Backends([there], state), "a").image
    assert there.slots.take()


def test_deadline_ends_the_wait_for_room(backend: ScriptedServer, state: State) -> None:
    there = backend_at(state, backend, 1)
    with taken(there.slots):
        assert draw(Backends([there], state), "a", seconds=0.2) == Round(None, (), is_cut=True)
    assert backend.seen == []


def test_drawing_that_waited_heeds_a_cooldown_begun_meanwhile(
    backend: ScriptedServer, state: State, clock: Clock
) -> None:
    gate = Gate(Say("", 503, {"Retry-After": "10"}))
    backend.say(gate, drawing())
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds < 1:
            gate.opened.set()
            wait_until(lambda: backends.ready_in(ImageRequest("any")))
        else:
            clock.now += seconds

    there = backend_at(state, backend, 1)
    backends = Backends([there], state, sleep=sleep)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(draw, Backends([there], state), "first")
        wait_until(lambda: backend.seen)
        assert draw(backends, "second").image
        assert first.result().image is None
    assert slept[-1] == 10


def test_page_of_twenty_is_drawn_two_at_a_time(
    gunicorn: Callable[..., Gunicorn], backend: ScriptedServer
) -> None:
    pairs = Pairs()
    backend.say(pairs)
    service = gunicorn(backend, BACKEND_CONCURRENCY=json.dumps({backend.url: 2}))
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(service.picture, (f"picture-{n}" for n in range(20))))
    assert {answer.status for answer in answers} == {200}
    assert (len(backend.seen), pairs.most) == (20, 2)
