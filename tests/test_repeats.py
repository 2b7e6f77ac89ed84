"""Orders that are repeated: by OpenAI's SDK, by clients that know no better, and at once."""

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from storage.state import State
from web.repeats import ORDER_TTL, Claim, claim

from .conftest import BROKEN, KEY, REFUSAL, InProcess, Serve, Service, Start, drawing, seeds
from .scripted import Gate, Got, Say, ScriptedServer, png, wait_until
from .states import Clock, orders

CAT = {"prompt": "a cat"}


def post(service: Service, body: Any = CAT, retry: int = 0, key: str = KEY) -> Got:
    return service.order(body, key, **{"x-stainless-retry-count": str(retry)})


@contextmanager
def ordering(service: Service) -> Iterator[socket.socket]:
    """Send an order over a connection, which is closed at the end."""
    parts, body = urlsplit(service.url), json.dumps(CAT).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((str(parts.hostname), parts.port or 0)) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield client


def wait_for_the_end(folder: Path) -> None:
    wait_until(lambda: [note["has_ended"] for note in orders(folder)] == [True])


def drawn(backend: ScriptedServer) -> list[int]:
    return [seen.json["seed"] for seen in backend.seen]


def wait_for_retries(folder: Path, retries: list[int]) -> None:
    wait_until(lambda: [note["retry"] for note in orders(folder)] == retries)


# --- a client whose time is up


def test_sdk_that_times_out_gets_its_picture(gunicorn: Start, backend: ScriptedServer) -> None:
    asked: list[Any] = []
    backend.say(gate := Gate(drawing()))
    service = gunicorn(backend)
    http = openai.DefaultHttpxClient(trust_env=False, event_hooks={"request": [asked.append]})
    url = f"{service.url}/v1"
    with (
        openai.OpenAI(api_key=KEY, base_url=url, http_client=http, max_retries=5) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(client.images.generate, prompt="a cat", timeout=1.0)
        wait_until(lambda: len(asked) >= 2)
        gate.opened.set()
        [picture] = answer.result().data or []
    assert drawn(backend) == [(picture.model_extra or {})["seed"]], "one drawing, one picture"
    wait_until(lambda: not orders(service.log.parent))
    assert seeds(post(service)) != drawn(backend)[:1], "the next one is a new order"


def test_undelivered_order_answers_the_next(gunicorn: Start, backend: ScriptedServer) -> None:
    backend.say(gate := Gate(drawing()))
    service = gunicorn(backend)
    with ordering(service):
        wait_until(lambda: backend.seen)
    gate.opened.set()
    wait_for_the_end(service.log.parent)
    first, second = post(service), post(service)
    assert seeds(first) == drawn(backend)[:1]
    assert seeds(second) == drawn(backend)[1:] != seeds(first)


def test_client_that_left_gets_its_picture(gunicorn: Start, backend: ScriptedServer) -> None:
    backend.say(drawing(png(size=20_000_000)))
    service = gunicorn(backend, WORKERS="1")
    with ordering(service) as client:
        assert client.recv(100)
    wait_for_the_end(service.log.parent)
    assert seeds(post(service)) == drawn(backend), "one drawing"


# --- orders at once


def test_equal_orders_at_once_are_different_pictures(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(gate := Gate(drawing()))
    service = serve(backend, ACCESS_KEYS=json.dumps({"blog": {"key": "blog-key"}}))
    with ThreadPoolExecutor(8) as pool:
        placed = [pool.submit(post, service) for _ in range(6)]
        # Another body or key is another order, whatever its client counts.
        placed.append(pool.submit(post, service, CAT | {"user": "someone"}, 1))
        placed.append(pool.submit(post, service, CAT, 1, "blog-key"))
        wait_until(lambda: len(backend.seen) == 8)
        gate.opened.set()
        got = [seed for order in placed for seed in seeds(order.result())]
    assert sorted(got) == sorted(drawn(backend))
    assert len(set(got)) == 8


def test_repeated_orders_get_a_picture_each(
    service: InProcess, backend: ScriptedServer, tmp_path: Path
) -> None:
    backend.say(gate := Gate(drawing()))
    with ThreadPoolExecutor(6) as pool:
        for retry in (0, 1, 2):
            placed = [pool.submit(post, service, CAT, retry) for _ in range(2)]
            wait_until(lambda: len(backend.seen) == 2)
            wait_for_retries(tmp_path, [retry, retry])
        gate.opened.set()
        got = [seed for order in placed for seed in seeds(order.result())]
    assert sorted(got) == sorted(drawn(backend))
    assert len(set(got)) == 2


def test_several_repeat_together(serve: Serve, backend: ScriptedServer, tmp_path: Path) -> None:
    backend.say(gate := Gate(drawing()))
    service = serve(backend, DRAWINGS_PER_DAY="3")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, service, CAT | {"n": 3})
        wait_until(lambda: len(backend.seen) == 3)
        again = pool.submit(post, service, CAT | {"n": 3}, 1)
        wait_for_retries(tmp_path, [1])
        gate.opened.set()
        assert seeds(again.result()) == seeds(first.result()) == sorted(drawn(backend))


# --- orders that failed


@pytest.mark.parametrize("say", [BROKEN, REFUSAL])
def test_failure_is_answered_again(service: InProcess, backend: ScriptedServer, say: Say) -> None:
    backend.say(say)
    first = post(service)
    with ThreadPoolExecutor(6) as pool:
        again = [*pool.map(lambda retry: post(service, CAT, retry), (0, 0, 0, 1, 1, 2))]
    assert {got.status for got in (first, *again)} == {first.status}
    assert len(backend.seen) == 1


def test_forgotten_failure_may_be_drawn_again(service: InProcess, backend: ScriptedServer) -> None:
    backend.say(BROKEN, drawing())
    assert post(service).status == 502
    service.ahead = 300.0
    again, new = post(service), post(service)
    assert drawn(backend)[:2] == seeds(again) * 2, "as often as its URL, and no more"
    assert seeds(new) != seeds(again)


def test_free_failure_leaves_no_note(serve: Serve, backend: ScriptedServer, tmp_path: Path) -> None:
    service = serve(backend, DRAWINGS_PER_DAY="1")
    assert post(service, CAT | {"n": 2}).status == 429
    assert orders(tmp_path) == []


# --- the notes themselves


Place = Callable[[int, int], Claim]


@pytest.fixture
def place(state: State) -> Place:
    """Place an order that is repeated so often, and would have that seed."""
    return lambda retry, seed: claim(state, "k", retry, seed, lambda seed: False)


def test_seeds_are_claimed_by_one_of_many_at_once(place: Place) -> None:
    place(0, 1000).end()
    with ThreadPoolExecutor(8) as pool:
        got = [*pool.map(lambda seed: place(0, seed).seed, range(8))]
    assert got.count(1000) == 1
    assert len(set(got)) == 8


def test_order_whose_seeds_were_taken_over_changes_nothing(place: Place) -> None:
    first, again = place(0, 1), place(1, 2)
    first.end(0.0)
    assert (again.seed, again.joins) == (1, True)
    again.end()
    assert place(0, 3).seed == 1


def test_order_is_forgotten_after_ten_minutes(place: Place, clock: Clock) -> None:
    place(0, 1)
    for seconds, seed in ((ORDER_TTL - 1, 1), (ORDER_TTL + 1, 2)):
        clock.now += seconds
        assert place(1, 2).seed == seed


def test_more_orders_at_once_than_notes_are_drawn(place: Place) -> None:
    claims = [place(0, seed) for seed in range(33)]
    assert [one.placed is None for one in claims] == [False] * 32 + [True]
