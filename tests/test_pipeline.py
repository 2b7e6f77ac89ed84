"""A drawing from its first stage to its last, and what it costs: calls, drawings, places."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import app
from cache import Cache
from config import Settings
from drawing.pool import StillRunning
from picture import ImageRequest
from storage.local.sqlite import SqliteState

from .conftest import (
    BROKEN,
    KEY,
    REFUSAL,
    InProcess,
    drawing,
    hosting_settings,
    llm_settings,
    pollinations_settings,
    saying,
)
from .servers import Gate, Say, ScriptedServer, Seen, png, send_and_leave, wait_until
from .states import Clock, CountingState, SqlitePlace, held_elsewhere

Serve = Callable[..., InProcess]
MakeServer = Callable[[], ScriptedServer]

PICTURE = Say(png(), headers={"Content-Type": "image/png"})
HIT = "PromptImageProxy; hit"


@pytest.fixture
def llm(server: MakeServer) -> ScriptedServer:
    return server()


@pytest.fixture
def fallback(server: MakeServer) -> ScriptedServer:
    return server()


def prompts(server: ScriptedServer) -> list[str]:
    return [seen.json["prompt"] for seen in server.seen]


def content(seen: Seen) -> str:
    return str(seen.json["messages"][-1]["content"])


# --- optimise -----------------------------------------------------------------------------------


def test_optimised_prompt_is_drawn_under_the_key_of_the_original(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer
) -> None:
    llm.say(saying("<prompt>a glossy red apple</prompt>"))
    service = serve(backend, **llm_settings(llm, optimise=True))
    service.picture("a%20red%20apple")
    assert prompts(backend) == ["a glossy red apple"]
    assert content(llm.seen[0]) == "OPTIMISE a red apple"
    assert service.picture("a%20red%20apple").headers["Cache-Status"] == HIT


@pytest.mark.parametrize("answer", [BROKEN, saying("x")])
def test_original_prompt_is_drawn_if_optimising_fails(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer, answer: Say
) -> None:
    llm.say(answer)
    assert serve(backend, **llm_settings(llm, optimise=True)).picture("a%20cat").status == 200
    assert prompts(backend) == ["a cat"]


def test_one_prompt_in_four_sizes_costs_one_llm_call(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer
) -> None:
    llm.say(saying("<prompt>a splendid cat</prompt>"))
    settings = llm_settings(llm, optimise=True)
    service = serve(backend, **settings)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda width: service.picture("a%20cat", width=width), (64, 65, 66)))
    serve(backend, **settings).picture("a%20cat", width=67)
    assert len(llm.seen) == 1
    assert prompts(backend) == ["a splendid cat"] * 4


# --- generate -----------------------------------------------------------------------------------


def urls_of(backend: ScriptedServer, names: str) -> str:
    """Return the URLs of several backends that share one script, for BACKEND_API_URLS."""
    return ",".join(f"{backend.url}/{name}" for name in names)


def test_failure_moves_on_until_a_backend_draws(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(BROKEN, BROKEN, BROKEN, drawing())
    assert serve(BACKEND_API_URLS=urls_of(backend, "abcd")).picture("x").status == 200
    assert len({seen.path for seen in backend.seen}) == 4


@pytest.mark.parametrize(("attempts", "backends"), [("0", 1), ("1", 1), ("3", 3)])
def test_blocked_retry_attempts_counts_the_backends_that_refuse(
    serve: Serve, backend: ScriptedServer, attempts: str, backends: int
) -> None:
    backend.say(REFUSAL)
    urls = urls_of(backend, "abcd")
    service = serve(BACKEND_API_URLS=urls, BLOCKED_RETRY_ATTEMPTS=attempts)
    assert service.picture("x").status == 422
    assert len(backend.seen) == backends


def test_backend_has_its_own_token_models_and_weight(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    drained = server()
    service = serve(
        backend,
        drained,
        AUTH_TOKEN="token-of-all",
        TOKEN_MAP=json.dumps({backend.url + "/": "own-token"}),
        MODEL_MAP=json.dumps({backend.url: {"dall-e-3": "dall-e-3-hd"}}),
        BACKEND_WEIGHTS=json.dumps({drained.url: 0}),
    )
    service.picture("x", model="dall-e-3")
    assert backend.seen[0].headers["Authorization"] == "Bearer own-token"
    assert backend.seen[0].json["model"] == "dall-e-3-hd"
    backend.say(BROKEN)
    assert service.picture("y").status == 502
    assert drained.seen == []


def test_rejected_parameter_is_omitted_from_then_on(serve: Serve, backend: ScriptedServer) -> None:
    error = {"message": "Unknown parameter: 'seed'.", "param": "seed", "code": "unknown_parameter"}
    backend.say(lambda seen: Say({"error": error}, 400) if "seed" in seen.json else drawing())
    service = serve(backend)
    assert [service.picture(prompt).status for prompt in "xy"] == [200, 200]
    assert ["seed" in seen.json for seen in backend.seen] == [True, False, False]


# --- rewrite and retry --------------------------------------------------------------------------


def test_refused_prompt_is_rewritten_and_drawn(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer
) -> None:
    llm.say(saying("<prompt>a splendid rude cat</prompt>"), saying("<prompt>a gentle cat</prompt>"))
    backend.say(REFUSAL, drawing())
    got = serve(backend, **llm_settings(llm, optimise=True, rewrite=True)).picture("a%20rude%20cat")
    assert got.headers["Cache-Status"].endswith("stored; detail=rewritten")
    assert prompts(backend) == ["a splendid rude cat", "a gentle cat"]
    asked = [content(seen) for seen in llm.seen]
    assert asked == ["OPTIMISE a rude cat", "MAKE SAFE a splendid rude cat"]
    stages = [part.split(";")[0] for part in got.headers["Server-Timing"].split(", ")]
    assert stages == ["optimise", "generate", "rewrite", "generate"]


def test_each_round_rewrites_the_last_refused_prompt(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer
) -> None:
    llm.say(lambda seen: saying(f"<prompt>{content(seen).removeprefix('MAKE SAFE ')}!</prompt>"))
    backend.say(REFUSAL)
    settings = llm_settings(llm, rewrite=True) | {"DE_NSFW_MAX_ATTEMPTS": "3"}
    assert serve(backend, **settings).picture("a%20cat").status == 422
    assert prompts(backend) == ["a cat", "a cat!", "a cat!!", "a cat!!!"]


@pytest.mark.parametrize("answer", [BROKEN, saying("<prompt>a rude cat</prompt>")])
def test_retrying_ends_when_rewriting_fails_or_changes_nothing(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer, answer: Say
) -> None:
    llm.say(answer)
    backend.say(REFUSAL)
    got = serve(backend, **llm_settings(llm, rewrite=True)).picture("a%20rude%20cat")
    assert (got.status, len(llm.seen), len(backend.seen)) == (422, 1, 1)


# --- fall back ----------------------------------------------------------------------------------


def test_fallback_draws_the_same_picture_and_it_is_cached(
    serve: Serve, backend: ScriptedServer, fallback: ScriptedServer
) -> None:
    fallback.say(PICTURE)
    backend.say(BROKEN)
    service = serve(backend, **pollinations_settings(fallback))
    got = service.picture("a/b%3F", width=64, height=32, seed=9)
    assert (got.status, got.body) == (200, png())
    assert got.headers["Cache-Status"].endswith("stored; detail=fallback")
    [seen] = fallback.seen
    assert seen.path == "/image/a%2Fb%3F"
    assert seen.query.items() >= {"width": "64", "height": "32", "seed": "9"}.items()
    again = service.picture("a/b%3F", width=64, height=32, seed=9)
    assert again.headers["Cache-Status"] == HIT


@pytest.mark.parametrize(
    ("optimise", "rewrite", "expected"),
    [
        (False, False, "a cat"),
        (True, False, "a better cat"),
        (False, True, "a safer cat"),
        (True, True, "a safer cat"),
    ],
)
def test_fallback_draws_the_most_promising_prompt(
    serve: Serve,
    backend: ScriptedServer,
    fallback: ScriptedServer,
    llm: ScriptedServer,
    optimise: bool,
    rewrite: bool,
    expected: str,
) -> None:
    fallback.say(PICTURE)
    better, safer = (saying(f"<prompt>a {word} cat</prompt>") for word in ("better", "safer"))
    llm.say(lambda seen: better if content(seen).startswith("OPTIMISE") else safer)
    backend.say(REFUSAL)
    settings = llm_settings(llm, optimise=optimise, rewrite=rewrite)
    serve(backend, **settings, **pollinations_settings(fallback)).picture("a%20cat")
    assert [seen.last_segment for seen in fallback.seen] == [expected]


def test_redirect_of_the_fallback_is_followed_and_not_passed_on(
    serve: Serve, backend: ScriptedServer, fallback: ScriptedServer
) -> None:
    backend.say(BROKEN)
    fallback.say(Say(b"", 302, {"Location": "/moved"}), PICTURE)
    got = serve(backend, **pollinations_settings(fallback)).picture("x")
    assert (got.status, got.body, fallback.seen[1].path) == (200, png(), "/moved")


# --- give up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend_says", "fallback_says", "status"),
    [
        (REFUSAL, Say({"error": {"code": "content_policy_violation"}}, 422), 422),
        (REFUSAL, BROKEN, 502),
        (BROKEN, REFUSAL, 502),
    ],
)
def test_only_a_prompt_that_was_refused_everywhere_is_a_422(
    serve: Serve,
    backend: ScriptedServer,
    fallback: ScriptedServer,
    backend_says: Say,
    fallback_says: Say,
    status: int,
) -> None:
    backend.say(backend_says)
    fallback.say(fallback_says)
    assert serve(backend, **pollinations_settings(fallback)).picture("x").status == status


def test_deadline_is_a_504(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(gate := Gate(drawing()))
    assert serve(backend, GENERATION_DEADLINE="0.4").picture("x").status == 504
    gate.opened.set()


def test_failure_is_remembered_twice_as_long_each_time(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(Say("", 500, {"Retry-After": "0"}))
    service = serve(backend)
    for calls, seconds in enumerate((2, 4, 8), start=1):
        first, again = service.picture("x"), service.picture("x")
        assert (first.status, first.headers["Retry-After"]) == (502, str(seconds))
        assert (again.status, len(backend.seen)) == (502, calls)
        assert seconds - 1 <= int(again.headers["Retry-After"]) <= seconds
        assert ("remembered" in first.json, again.json["remembered"]) == (False, True)
        service.ahead += seconds
    backend.say(drawing())
    assert service.picture("x").status == 200


def test_busy_answer_is_not_remembered(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend, THREADS="17")
    service.picture("cached")
    backend.say(gate := Gate(drawing()))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(service.picture, "slow")
        wait_until(lambda: len(backend.seen) == 2)
        busy = service.picture("other")
        assert (busy.status, busy.headers["Cache-Control"]) == (503, "no-store")
        assert int(busy.headers["Retry-After"]) >= 1
        assert service.picture("slow").status == 503  # to wait for a drawing takes a place too
        assert service.picture("cached").headers["Cache-Status"] == HIT
        gate.opened.set()
        assert slow.result().status == 200
    assert service.picture("other").status == 200


# --- remembered refusals ------------------------------------------------------------------------


def test_blocked_prompt_goes_straight_to_the_fallback(
    serve: Serve, backend: ScriptedServer, fallback: ScriptedServer, llm: ScriptedServer
) -> None:
    fallback.say(BROKEN, PICTURE)
    llm.say(saying("<prompt>a safer cat</prompt>"))
    backend.say(REFUSAL)
    settings = llm_settings(llm, rewrite=True) | {"DE_NSFW_MAX_ATTEMPTS": "1"}
    service = serve(backend, **settings, **pollinations_settings(fallback))
    assert service.picture("a%20cat").status == 502
    assert (len(backend.seen), len(llm.seen)) == (2, 1)
    service.ahead = 3  # the failure of the fallback is remembered, too
    assert service.picture("a%20cat").status == 200
    assert (len(backend.seen), len(llm.seen)) == (2, 1)
    assert [seen.last_segment for seen in fallback.seen] == ["a safer cat"] * 2


def test_refusal_is_remembered_until_the_settings_change(
    serve: Serve, backend: ScriptedServer, fallback: ScriptedServer
) -> None:
    backend.say(REFUSAL, drawing())
    assert serve(backend).picture("x").status == 422
    again = serve(backend).picture("x")
    assert (again.status, "is cached until" in again.detail) == (422, True)
    fallback.say(BROKEN)  # the fallback is not among the settings that count
    assert serve(backend, **pollinations_settings(fallback)).picture("x").status == 502
    assert len(backend.seen) == 1
    assert serve(backend, AUTH_TOKEN="another").picture("x").status == 200


def test_refusal_is_forgotten_after_blocked_ttl(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(REFUSAL, drawing())
    service = serve(backend, BLOCKED_TTL="60")
    for seconds, status in ((0, 422), (59, 422), (61, 200)):
        service.ahead = seconds
        assert service.picture("x").status == status


@pytest.mark.parametrize("say", [BROKEN, Say("busy", 503), Say("", 429)])
def test_outage_beside_a_refusal_is_not_remembered_as_one(
    serve: Serve, backend: ScriptedServer, server: MakeServer, say: Say
) -> None:
    refusing = server()
    refusing.say(REFUSAL, drawing())
    backend.say(say)
    service = serve(refusing, backend)
    assert service.picture("x").status == 502
    service.ahead = 3
    assert service.picture("x").status == 200


def test_llm_outage_leaves_the_prompt_unblocked(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer
) -> None:
    llm.say(BROKEN)
    backend.say(REFUSAL, drawing())
    service = serve(backend, **llm_settings(llm, rewrite=True))
    assert service.picture("a%20cat").status == 422
    service.ahead = 3
    assert service.picture("a%20cat").status == 200


@pytest.mark.parametrize(("say", "status"), [(REFUSAL, 422), (BROKEN, 502)])
def test_head_answers_a_remembered_failure_without_drawing(
    serve: Serve, backend: ScriptedServer, say: Say, status: int
) -> None:
    backend.say(say)
    service = serve(backend)
    assert service.picture("x", method="HEAD").status == 200
    assert backend.seen == []
    assert service.picture("x").status == status
    assert service.picture("x", method="HEAD").status == status
    assert len(backend.seen) == 1


# --- one drawing for many -----------------------------------------------------------------------


@pytest.mark.parametrize(("say", "status"), [(drawing(), 200), (BROKEN, 502)])
def test_identical_requests_share_one_drawing_and_its_failure(
    serve: Serve, backend: ScriptedServer, say: Say, status: int
) -> None:
    backend.say(gate := Gate(say))
    service = serve(backend)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(service.picture, "x") for _ in range(20)]
        wait_until(lambda: backend.seen)
        gate.opened.set()
        assert {answer.result().status for answer in answers} == {status}
    assert len(backend.seen) == 1


def test_drawing_goes_on_when_its_client_is_gone(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(gate := Gate(drawing()))
    service = serve(backend)
    send_and_leave(service.url, f"/prompt/x?key={KEY}")
    wait_until(lambda: backend.seen)
    gate.opened.set()
    wait_until(lambda: service.picture("x", method="HEAD").headers["Cache-Status"] == HIT)
    assert len(backend.seen) == 1


def test_answer_comes_before_a_long_drawing_which_goes_on(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(gate := Gate(drawing()))
    service = serve(backend, ANSWER_WITHIN="0.1")
    first = service.picture("x")
    assert (first.status, first.headers["Retry-After"]) == (503, "2")
    assert (first.json["title"], first.json["remedy"]) == ("Being drawn", "reload")
    card = service.get(f"/prompt/x?key={KEY}", headers={"Accept": "image/*"})
    assert (card.status, b"still being drawn" in card.body) == (503, True)
    gate.opened.set()
    wait_until(lambda: service.picture("x").headers.get("Cache-Status") == HIT)
    assert len(backend.seen) == 1


def test_long_drawing_that_fails_is_remembered_for_the_next_view(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(gate := Gate(BROKEN))
    service = serve(backend, ANSWER_WITHIN="0.1")
    assert service.picture("x").status == 503
    gate.opened.set()
    wait_until(lambda: service.picture("x").status == 502)
    assert len(backend.seen) == 1


def test_patient_caller_outlasts_one_that_has_to_be_answered(
    serve: Serve, backend: ScriptedServer, environment: dict[str, str]
) -> None:
    """While another process draws, both wait for its lock, the impatient one first."""
    wanted = ImageRequest("x")
    service = serve(backend)
    pipeline = service._services.pipeline
    place = SqlitePlace(Path(environment["CACHE_DIR"]), Clock())
    with held_elsewhere(place, wanted.key) as process, ThreadPoolExecutor(2) as pool:
        hasty = pool.submit(pipeline.draw, wanted, answer_within=1.0)
        wait_until(lambda: pipeline._drawings._waiting == 1)
        patient = pool.submit(pipeline.draw, wanted)
        with pytest.raises(StillRunning):
            hasty.result(10)
        process.kill()
        assert patient.result(10).source == "backend"


# --- image hosting ------------------------------------------------------------------------------


def test_hosted_picture_is_a_redirect_at_first_and_on_every_hit(
    serve: Serve, backend: ScriptedServer, server: MakeServer, tmp_path: Path
) -> None:
    host = server()
    host.say(Say({"status_code": 200, "image": {"url": "https://img.example/a.png"}}))
    service = serve(backend, **hosting_settings(host))
    for cache_status in ("PromptImageProxy; fwd=miss; stored; detail=backend", HIT):
        got = service.picture("x")
        assert (got.status, got.headers["Location"]) == (302, "https://img.example/a.png")
        assert got.headers["Cache-Control"] == "public, max-age=3600"
        assert got.headers["Cache-Status"] == cache_status
    assert service.picture("x", method="HEAD").status == 302
    assert not list((tmp_path / "cache").glob("*.png"))
    assert service.get("/status").json["cache"]["mode"] == "hosted"
    assert (len(host.seen), len(backend.seen)) == (1, 1)


def test_picture_is_kept_as_a_file_if_its_upload_fails(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    host = server()
    host.say(BROKEN)
    service = serve(backend, **hosting_settings(host))
    assert "upload;dur=" in service.picture("x").headers["Server-Timing"]
    again = service.picture("x")
    assert (again.status, again.body, again.headers["Cache-Status"]) == (200, png(), HIT)
    assert (len(host.seen), len(backend.seen)) == (1, 1)


def test_image_host_that_fails_is_one_warning_and_stands_in_status(
    serve: Serve, backend: ScriptedServer, server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    host = server()
    host.say(BROKEN)
    service = serve(backend, **hosting_settings(host))
    for prompt in "abc":
        assert service.picture(prompt).status == 200
    said = [record for record in caplog.records if "The image host" in record.getMessage()]
    assert [record.levelname for record in said].count("WARNING") == 1
    hosting = service.get("/status").json["image_hosting"]
    assert (hosting["why"], bool(hosting["last_failed"])) == ("upload failed", True)


# --- calls of the state -------------------------------------------------------------------------


Count = Callable[[Callable[[], object]], dict[str, int]]
MISS = {"find": 2, "hold": 1, "recall": 1, "store": 1}


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Return the calls of the state that a piece of work makes in the service of this test."""
    counting: list[CountingState] = []
    make = app.make_cache

    def make_counted(settings: Settings, *more: Any) -> Cache:
        cache = make(settings, *more)
        assert isinstance(cache.state, SqliteState)
        counting.append(CountingState(cache.state))
        cache.state = counting[0].counted
        return cache

    def count(work: Callable[[], object]) -> dict[str, int]:
        counting[0].calls.clear()
        work()
        return dict(counting[0].calls)

    monkeypatch.setattr(app, "make_cache", make_counted)
    return count


def test_hit_is_one_call_and_a_plain_miss_five(
    serve: Serve, backend: ScriptedServer, calls_of: Count
) -> None:
    service = serve(backend)
    service.picture("first")  # settles what an earlier process may have left behind
    assert calls_of(lambda: service.picture("x")) == MISS
    assert calls_of(lambda: service.picture("x")) == {"find": 1}
    assert calls_of(lambda: service.get("/status")) == {"recall": 1, "totals": 1, "last_drawn": 1}
    assert calls_of(lambda: service.picture("x", key="wrong")) == {}


def test_llm_call_is_three_calls_more(
    serve: Serve, backend: ScriptedServer, llm: ScriptedServer, calls_of: Count
) -> None:
    llm.say(saying("<prompt>a better cat</prompt>"))
    service = serve(backend, **llm_settings(llm, optimise=True))
    service.picture("first")
    optimised = calls_of(lambda: service.picture("a%20cat"))
    assert optimised == Counter(MISS) + Counter({"hold": 1, "recall": 1, "remember": 1})
    assert calls_of(lambda: service.picture("a%20cat", width=8)) == MISS


def test_refusal_or_failure_is_one_call_more(
    serve: Serve, backend: ScriptedServer, calls_of: Count
) -> None:
    service = serve(BACKEND_API_URLS=urls_of(backend, "ab"))
    service.picture("first")
    failure = Say("", 500, {"Retry-After": "0"})
    undrawn = {name: count for name, count in MISS.items() if name != "store"}
    backend.say(REFUSAL)
    assert calls_of(lambda: service.picture("refused")) == undrawn | {"remember": 1}
    assert calls_of(lambda: service.picture("refused")) == undrawn
    assert calls_of(lambda: service.picture("refused", "HEAD")) == {"find": 1, "recall": 1}
    backend.say(failure, drawing())
    assert calls_of(lambda: service.picture("drawn")) == MISS | {"remember": 1}
    backend.say(failure)
    # Each backend's cooldown and the failure of the picture.
    assert calls_of(lambda: service.picture("failed")) == undrawn | {"remember": 3}
    assert calls_of(lambda: service.picture("failed")) == {"find": 1, "recall": 1}
