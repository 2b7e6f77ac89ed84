"""Daily limits of access keys: counting drawings, and reaching a limit."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from access import Caller
from drawing.reservation import OverLimit, Reservation
from storage import Unavailable
from storage.state import State

from .conftest import (
    BROKEN,
    REFUSAL,
    InProcess,
    MakeServer,
    Serve,
    Service,
    Start,
    drawing,
    pollinations_settings,
)
from .scripted import Gate, Got, Say, ScriptedServer, wait_until
from .states import Clock, refusing

KEYS = json.dumps({"blog": {"key": "blog-key", "per_day": 2}, "phone": {"key": "phone-key"}})
HIT = "PromptImageProxy; hit"
BLOG = Caller("blog", 3)


def keys_of(service: Service) -> dict[str, int]:
    """Return how many drawings /status counts for each key."""
    return {key["name"]: key["drawings"] for key in service.as_admin("/status").json["keys"]}


@pytest.fixture
def service(serve: Serve) -> InProcess:
    return serve(ACCESS_KEYS=KEYS, DRAWINGS_PER_DAY="1")


def blog(service: Service, prompt: str) -> Got:
    return service.picture(prompt, key="blog-key")


def test_only_hits_are_served_beyond_the_limit(service: InProcess) -> None:
    assert [blog(service, prompt).status for prompt in "aabcd"] == [200, 200, 200, 429, 429]
    assert blog(service, "a").headers["Cache-Status"] == HIT
    assert len(service.backend.seen) == 2
    assert service.picture("c", key="phone-key").status == 200
    assert blog(service, "c").status == 200


def test_limit_ends_at_midnight_utc(service: InProcess) -> None:
    for prompt in "ab":
        blog(service, prompt)
    got = blog(service, "c")
    assert got.status == 429
    left = int(got.headers["Retry-After"])
    assert abs(left - (86400 - time.time() % 86400)) < 30
    assert (got.json["remedy"], got.json["title"]) == ("tomorrow", "Daily limit reached")
    card = service.get("/prompt/c?key=blog-key", headers={"Accept": "image/*"})
    assert (card.status, b"Daily limit reached" in card.body) == (429, True)
    service.ahead = left + 1.0
    assert blog(service, "c").status == 200


def test_signed_urls_share_the_limit_of_the_key_that_signed(service: InProcess) -> None:
    assert service.get(service.sign_target({"description": "signed"})).status == 200
    assert service.picture("x").status == 429
    urls = [service.sign_target({"description": prompt}, "blog-key") for prompt in "abcd"]
    ordered = service.order({"prompt": "e", "seed": 1, "response_format": "url"}, "blog-key")
    urls.append(ordered.json["data"][0]["url"].removeprefix(service.url))
    assert all("by=blog&sig=" in url for url in urls)
    assert [service.get(url).status for url in urls] == [200, 429, 429, 429, 200]
    assert keys_of(service) == {"PROXY_ACCESS_KEY": 1, "blog": 2, "phone": 0}


def test_failure_that_vendors_do_not_bill_is_given_back(service: InProcess) -> None:
    for say, status in ((REFUSAL, 422), (BROKEN, 502), (drawing(), 200)):
        service.backend.say(say)
        assert [blog(service, str(status)).status for _ in range(3)] == [status] * 3
        service.ahead += 60
    assert keys_of(service)["blog"] == 1


def test_key_that_may_not_draw_is_not_told_to_wait(serve: Serve) -> None:
    service = serve(ACCESS_KEYS='{"old": {"key": "old-access-key-1", "per_day": 0}}')
    got = service.picture("x", key="old-access-key-1")
    assert (got.status, got.headers["Retry-After"]) == (403, None)
    assert got.detail.startswith("This key or link only opens pictures")
    service.picture("x")
    assert service.picture("x", key="old-access-key-1").status == 200


def test_failing_url_of_a_stranger_leaves_the_owner_his_limit(service: InProcess) -> None:
    url = service.sign_target({"description": "cursed"})
    service.backend.say(lambda seen: BROKEN if seen.json["prompt"] == "cursed" else drawing())
    for _ in range(5):
        assert service.get(url).status == 502
        service.ahead += 301
    assert service.picture("x").status == 200


def test_drawing_that_the_state_ended_is_given_back(
    service: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(service.services.pipeline.backends, "recall", fail)
        assert blog(service, "x").status == 503
    assert keys_of(service)["blog"] == 0


def test_drawing_that_timed_out_counts(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(gate := Gate(drawing()))
    service = serve(backend, ACCESS_KEYS=KEYS, BACKEND_TIMEOUT="1")
    assert blog(service, "x").json["stages"][0]["why"] == "timed out"
    gate.opened.set()
    assert keys_of(service)["blog"] == 1


def test_drawing_that_is_no_picture_counts(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    (fallback := server()).say(BROKEN, Say(b"no picture"))
    backend.say(Say(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), BROKEN)
    service = serve(backend, ACCESS_KEYS=KEYS, **pollinations_settings(fallback))
    for drawings, why in enumerate((["not a picture: SVG", "down"], ["down", "not a picture"]), 1):
        assert [stage["why"] for stage in blog(service, str(drawings)).json["stages"]] == why
        assert keys_of(service)["blog"] == drawings
        service.ahead += 60


def test_attempts_of_a_limited_key_are_bounded(service: InProcess) -> None:
    service.backend.say(REFUSAL)
    statuses = [blog(service, f"rude-{number}").status for number in range(31)]
    assert statuses == [422] * 30 + [429]
    assert len(service.backend.seen) == 30
    assert "30 drawings have been tried" in blog(service, "rude-31").detail
    assert keys_of(service)["blog"] == 0
    assert service.picture("rude-31", key="phone-key").status == 422


def test_drawing_without_a_call_is_free(service: InProcess) -> None:
    service.backend.say(Say("", 401))  # the only backend is avoided for a minute
    # It is no attempt either, of which the key has 30.
    assert [blog(service, str(number)).status for number in range(32)] == [502] + [503] * 31
    assert keys_of(service)["blog"] == 0


def test_waiting_for_the_drawing_of_another_key_is_free(service: InProcess) -> None:
    service.backend.say(gate := Gate(drawing()))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(service.picture, "x", key="phone-key")
        wait_until(lambda: service.backend.seen)
        others = [pool.submit(blog, service, "x") for _ in range(2)]
        wait_until(lambda: service.services.pipeline.pool.places.taken == 3)
        gate.opened.set()
        assert [one.result().status for one in (first, *others)] == [200] * 3
    assert keys_of(service) == {"PROXY_ACCESS_KEY": 0, "blog": 0, "phone": 1}


def test_exhausted_key_does_not_fail_another_that_waited_for_it(serve: Serve) -> None:
    gate = Gate(drawing())
    service = serve(ACCESS_KEYS=KEYS, DRAWINGS="1")
    for prompt in "ab":
        blog(service, prompt)
    service.backend.say(gate, drawing())
    with ThreadPoolExecutor(3) as pool:
        pool.submit(service.picture, "takes-the-only-thread")
        wait_until(lambda: len(service.backend.seen) == 3)
        exhausted = pool.submit(blog, service, "x")
        wait_until(lambda: service.services.pipeline.pool.places.taken == 2)
        other = pool.submit(service.picture, "x", key="phone-key")
        wait_until(lambda: service.services.pipeline.pool.places.taken == 3)
        gate.opened.set()
        assert (exhausted.result().status, other.result().status) == (429, 200)


def test_keys_are_shown_to_administrator_and_owner(service: InProcess) -> None:
    blog(service, "x")
    service.picture("y", key="phone-key")
    assert service.get("/status", headers={"X-Admin-Token": "wrong"}).status == 401
    shared, own, phone = service.as_admin("/status").json["keys"]
    assert shared == {"name": "PROXY_ACCESS_KEY", "drawings": 0, "per_day": 1, "expires": None}
    assert own == {"name": "blog", "drawings": 1, "per_day": 2, "expires": None}
    assert phone == {"name": "phone", "drawings": 1, "per_day": None, "expires": None}
    keys = {"Bearer blog-key": own, "Basic abc": None, "Bearer wrong": None, "": None}
    for authorization, known in keys.items():
        got = service.get("/status", headers={"Authorization": authorization})
        assert (got.status, got.json.get("key"), "keys" in got.json) == (200, known, False)


def test_log_names_the_key(service: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    blog(service, "x")
    assert "(x), for blog: backend, by http" in caplog.text
    assert "blog-key" not in caplog.text


def test_two_workers_never_exceed_a_limit_together(gunicorn: Start) -> None:
    keys = {"blog": {"key": "blog-key", "per_day": 7}, "phone": {"key": "phone-key"}}
    service = gunicorn(ACCESS_KEYS=json.dumps(keys))
    with ThreadPoolExecutor(40) as pool:
        limited = list(pool.map(lambda n: blog(service, f"a{n}").status, range(40)))
        free = list(pool.map(lambda n: service.picture(f"b{n}", key="phone-key").status, range(20)))
    assert (sorted(limited), free) == ([200] * 7 + [429] * 33, [200] * 20)
    assert len(service.backend.seen) == 27
    assert keys_of(service) == {"PROXY_ACCESS_KEY": 0, "blog": 7, "phone": 20}


def drawings(state: State, caller: Caller) -> int:
    """Return how many drawings the state has counted, today or earlier."""
    days = ("2027-01-15", "2027-01-16")
    return sum(state.counts([f"{day} {caller.name}" for day in days]).values())


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_014_400.0)  # noon


@pytest.mark.parametrize("caller", [BLOG, Caller("phone")])
def test_closing_gives_back_what_was_not_needed(state: State, caller: Caller) -> None:
    with Reservation(state, caller, 3) as reservation:
        reservation.take()
        reservation.take()
        assert drawings(state, caller) == 3
        reservation.give_back(was_tried=False)
        assert drawings(state, caller) == 2
    assert drawings(state, caller) == 1
    # A drawing may end after the request that reserved its place.
    reservation.give_back()
    assert drawings(state, caller) == 0


def test_place_is_given_back_to_its_own_day(state: State, clock: Clock) -> None:
    reservation = Reservation(state, BLOG)
    reservation.take()
    clock.now += 86400
    Reservation(state, BLOG, 3)
    reservation.give_back()
    with pytest.raises(OverLimit):
        Reservation(state, BLOG, 1)


def test_place_is_taken_only_if_the_state_can_be_written(state: State, tmp_path: Path) -> None:
    reservation = Reservation(state, BLOG, 3)
    with refusing(tmp_path, "INSERT ON notes"), pytest.raises(Unavailable):
        reservation.take()
