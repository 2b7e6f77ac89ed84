"""Drawings from the first stage to the last, and the calls and places they cost."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from access import COMMAND_LINE
from drawing.pool import StillRunning
from drawing.record import Drawing, GaveUp, Image
from drawing.reservation import Reservation
from drawing.verdict import Failure
from picture import ImageRequest
from storage.cluster.copies import Nowhere
from upstream.client import Deadline

from .conftest import (
    BROKEN,
    HOSTED_URL,
    KEY,
    REFUSAL,
    InProcess,
    MakeServer,
    Serve,
    drawing,
    hosting_settings,
    llm_settings,
    pollinations_settings,
    saying,
)
from .scripted import Gate, Say, ScriptedServer, Seen, png, wait_until
from .states import held_elsewhere

PICTURE = Say(png(), headers={"Content-Type": "image/png"})
HOSTED = Say({"status_code": 200, "image": {"url": HOSTED_URL}})
HIT = "PromptImageProxy; hit"


class World:
    """The proxy, and the servers that it may ask."""

    def __init__(self, start: Serve, server: MakeServer) -> None:
        self.start = start
        self.backend, self.llm, self.fallback, self.host = (server() for _ in range(4))
        self.backend.say(drawing())

    def serve(self, *stages: str, **settings: str) -> InProcess:
        """Start the proxy with the backend, and the stages that are switched on."""
        optimise, rewrite = "optimise" in stages, "rewrite" in stages
        settings |= llm_settings(self.llm, optimise=optimise, rewrite=rewrite)
        settings |= pollinations_settings(self.fallback) if "fall back" in stages else {}
        settings |= hosting_settings(self.host) if "host" in stages else {}
        return self.start(self.backend, **settings)


@pytest.fixture
def world(serve: Serve, server: MakeServer) -> World:
    return World(serve, server)


def prompts(server: ScriptedServer) -> list[str]:
    return [seen.json["prompt"] for seen in server.seen]


def content(seen: Seen) -> str:
    return str(seen.json["messages"][-1]["content"])


# --- optimise -----------------------------------------------------------------------------------


def test_optimised_prompt_is_drawn_under_the_key_of_the_original(world: World) -> None:
    world.llm.say(saying("<prompt>a glossy red apple</prompt>"))
    service = world.serve("optimise")
    service.picture("a%20red%20apple")
    assert prompts(world.backend) == ["a glossy red apple"]
    assert content(world.llm.seen[0]) == "OPTIMISE a red apple"
    assert service.picture("a%20red%20apple").headers["Cache-Status"] == HIT


@pytest.mark.parametrize("answer", [BROKEN, saying("x")])
def test_original_prompt_is_drawn_if_optimising_fails(world: World, answer: Say) -> None:
    world.llm.say(answer)
    assert world.serve("optimise").picture("a%20cat").status == 200
    assert prompts(world.backend) == ["a cat"]


def test_llm_is_not_asked_while_no_backend_is_ready(world: World) -> None:
    world.llm.say(saying("I'm sorry, but I can't help with that."))
    world.backend.say(Say("", 401))
    service = world.serve("optimise")
    for prompt, status in ("a", 502), ("b", 503), ("b", 503):
        assert service.picture(prompt).status == status
    assert (len(world.llm.seen), len(world.backend.seen)) == (1, 1)


def test_llm_is_not_asked_to_rewrite_for_nobody(world: World) -> None:
    world.backend.say(Say({"error": {"message": "Bad."}}, 400))
    world.llm.say(lambda seen: saying(f"<prompt>{content(seen)} again</prompt>"))
    service = world.serve("rewrite", DE_NSFW_MAX_ATTEMPTS="1", GENERATION_DEADLINE="4")
    assert [service.picture(prompt).status for prompt in "abc"] == [502] * 3
    assert len(world.llm.seen) == 2, "the third rejection in a row is a cooldown"


def test_one_prompt_in_four_sizes_costs_one_llm_call(world: World) -> None:
    world.llm.say(saying("<prompt>a splendid cat</prompt>"))
    service = world.serve("optimise")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda width: service.picture("a%20cat", width=width), (64, 65, 66, 67)))
    assert len(world.llm.seen) == 1
    assert prompts(world.backend) == ["a splendid cat"] * 4


# --- generate -----------------------------------------------------------------------------------


def test_blocked_retry_attempts_counts_the_backends_that_refuse(world: World) -> None:
    world.backend.say(REFUSAL)
    urls = ",".join(f"{world.backend.url}/{name}" for name in "abcd")
    service = world.serve(BACKEND_API_URLS=urls, BLOCKED_RETRY_ATTEMPTS="3")
    assert service.picture("x").status == 422
    assert len(world.backend.seen) == 3


def test_backend_has_its_own_settings(world: World, serve: Serve, server: MakeServer) -> None:
    service = serve(
        world.backend,
        drained := server(),
        AUTH_TOKEN="token-of-all",
        TOKEN_MAP=json.dumps({world.backend.url + "/": "own-token"}),
        MODEL_MAP=json.dumps({world.backend.url: {"dall-e-3": "dall-e-3-hd"}}),
        BACKEND_PARAMS=json.dumps({f"{world.backend.url}/": {"*": {"size": "auto"}}}),
        BACKEND_WEIGHTS=json.dumps({drained.url: 0}),
    )
    service.picture("x", model="dall-e-3")
    assert world.backend.seen[0].headers["Authorization"] == "Bearer own-token"
    sent = world.backend.seen[0].json
    assert (sent["model"], sent["size"]) == ("dall-e-3-hd", "auto")
    world.backend.say(BROKEN)
    assert service.picture("y").status == 502
    assert drained.seen == []


def test_prompt_made_too_long_is_drawn_as_written(world: World) -> None:
    world.llm.say(saying("<prompt>a splendid and very long cat</prompt>"))
    too_long = Say({"error": {"message": "Prompt must be length 10 or less"}}, 400)
    world.backend.say(lambda seen: drawing() if len(seen.json["prompt"]) <= 10 else too_long)
    service = world.serve("optimise")
    assert service.picture("a%20cat").status == 200
    assert prompts(world.backend) == ["a splendid and very long cat", "a cat"]
    assert service.as_admin("/cache").json["entries"][0]["final_prompt"] == "a cat"


# --- rewrite and retry --------------------------------------------------------------------------


def test_refused_prompt_is_rewritten_and_drawn(world: World) -> None:
    answers = "<prompt>a splendid rude cat</prompt>", "<prompt>a gentle cat</prompt>"
    world.llm.say(*map(saying, answers))
    world.backend.say(REFUSAL, drawing())
    got = world.serve("optimise", "rewrite").picture("a%20rude%20cat")
    assert got.headers["Cache-Status"].endswith("stored; detail=rewritten")
    assert prompts(world.backend) == ["a splendid rude cat", "a gentle cat"]
    asked = [content(seen) for seen in world.llm.seen]
    assert asked == ["OPTIMISE a rude cat", "MAKE SAFE a splendid rude cat"]
    stages = [part.split(";")[0] for part in got.headers["Server-Timing"].split(", ")]
    assert stages == ["optimise", "generate", "rewrite", "generate"]


def test_each_round_rewrites_the_last_refused_prompt(world: World) -> None:
    world.llm.say(lambda seen: saying(f"<prompt>{content(seen)[len('MAKE SAFE ') :]}!</prompt>"))
    world.backend.say(REFUSAL)
    service = world.serve("rewrite", DE_NSFW_MAX_ATTEMPTS="3")
    assert service.picture("a%20cat").status == 422
    assert prompts(world.backend) == ["a cat", "a cat!", "a cat!!", "a cat!!!"]


@pytest.mark.parametrize("answer", [BROKEN, saying("<prompt>a rude cat</prompt>")])
def test_retrying_ends_when_rewriting_fails_or_changes_nothing(world: World, answer: Say) -> None:
    world.llm.say(answer)
    world.backend.say(REFUSAL)
    got = world.serve("rewrite").picture("a%20rude%20cat")
    assert (got.status, len(world.llm.seen), len(world.backend.seen)) == (422, 1, 1)


# --- fall back ----------------------------------------------------------------------------------


def test_fallback_draws_the_same_picture_and_it_is_cached(world: World) -> None:
    world.fallback.say(PICTURE)
    world.backend.say(BROKEN)
    service = world.serve("fall back")
    got = service.picture("a/b%3F", width=64, height=32, seed=9)
    assert (got.status, got.body) == (200, png())
    assert got.headers["Cache-Status"].endswith("stored; detail=fallback")
    [seen] = world.fallback.seen
    assert seen.path == "/image/a%2Fb%3F"
    assert seen.query.items() >= {"width": "64", "height": "32", "seed": "9"}.items()
    again = service.picture("a/b%3F", width=64, height=32, seed=9)
    assert again.headers["Cache-Status"] == HIT


def test_fallback_that_cools_down_is_a_503_until_then(world: World) -> None:
    world.fallback.say(Say("", 429, {"Retry-After": "45"}), PICTURE)
    world.backend.say(REFUSAL, Say("", 401))
    service = world.serve("fall back")
    assert service.picture("x").status == 502
    service.ahead = 3
    again = service.picture("x")  # blocked
    assert (again.status, 40 <= int(again.headers["Retry-After"]) <= 45) == (503, True)
    assert service.picture("y").status == 502
    assert service.picture("z").status == 503
    about = service.get("/status").json["fallback"]
    assert (about["state"], about["why"]) == ("cooling", "rate limited")
    assert len(world.fallback.seen) == 1
    service.ahead = 46
    assert service.picture("x").status == 200
    assert service.get("/status").json["fallback"]["state"] == "ready"


def test_placeholder_that_was_taken_for_a_picture_is_deleted(world: World) -> None:
    world.fallback.say(PICTURE)
    world.backend.say(BROKEN)
    service = world.serve("fall back", GENERATION_DEADLINE="4")
    assert [service.picture(prompt).status for prompt in "aba"] == [200, 503, 503]
    assert service.get("/status").json["cache"]["entries"] == 0


def test_picture_that_a_backend_drew_since_is_kept(world: World) -> None:
    world.fallback.say(PICTURE)
    world.backend.say(BROKEN, drawing(png(2)), BROKEN)
    service = world.serve("fall back")
    assert service.picture("a").body == png()
    service.delete(b'{"description": "a"}')
    service.ahead = 6
    assert service.picture("a").body == png(2)
    assert service.picture("b").status == 502
    assert service.picture("a").headers["Cache-Status"] == HIT


def test_picture_drawn_at_the_last_moment_is_uploaded(world: World) -> None:
    world.host.say(HOSTED)
    storing = world.serve("host").services.pipeline.storing
    late = Drawing(ImageRequest("x"), Deadline.after(0), image=Image(png(), "image/png", "backend"))
    assert late.image
    storing.store(late, late.image)
    assert late.row
    assert late.row.url == HOSTED_URL


# --- give up ------------------------------------------------------------------------------------


def test_prompt_that_was_refused_everywhere_is_a_422(world: World) -> None:
    world.backend.say(REFUSAL)
    world.fallback.say(REFUSAL)
    assert world.serve("fall back").picture("x").status == 422


def test_deadline_is_a_504_that_names_the_stage(world: World) -> None:
    world.backend.say(gate := Gate(drawing()))
    service = world.serve(GENERATION_DEADLINE="0.4")
    drawn = service.picture("drawn").json
    # As by another process that draws it.
    with service.services.cache.state.hold(ImageRequest("queued").key, 1):
        queued = service.picture("queued").json
    gate.opened.set()
    stages = [[(s["stage"], s["why"]) for s in got["stages"]] for got in (drawn, queued)]
    assert [drawn["status"], queued["status"]] == [504, 504]
    assert stages == [[("generate", "timed out")], [("queue", "timed out")]]


def test_failure_is_remembered_twice_as_long_each_time(world: World) -> None:
    world.backend.say(Say("", 500, {"Retry-After": "0"}))
    service = world.serve()
    for calls, seconds in enumerate((2, 4, 8), start=1):
        first, again = service.picture("x"), service.picture("x")
        assert (first.status, first.headers["Retry-After"]) == (502, str(seconds))
        assert (again.status, len(world.backend.seen)) == (502, calls)
        assert seconds - 1 <= int(again.headers["Retry-After"]) <= seconds
        assert ("remembered" in first.json, again.json["remembered"]) == (False, True)
        assert service.picture("x", method="HEAD").status == 502
        service.ahead += seconds
    world.backend.say(drawing())
    assert service.picture("x").status == 200


def test_busy_answer_is_not_remembered(world: World) -> None:
    service = world.serve(THREADS="17")
    service.picture("cached")
    world.backend.say(gate := Gate(drawing()))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(service.picture, "slow")
        wait_until(lambda: len(world.backend.seen) == 2)
        busy = service.picture("other")
        assert (busy.status, busy.headers["Cache-Control"]) == (503, "no-store")
        assert int(busy.headers["Retry-After"]) >= 1
        assert service.picture("slow").status == 503  # to wait for a drawing takes a place too
        assert service.picture("cached").headers["Cache-Status"] == HIT
        gate.opened.set()
        assert slow.result().status == 200
    assert service.picture("other").status == 200


# --- remembered refusals ------------------------------------------------------------------------


def test_blocked_prompt_goes_straight_to_the_fallback(world: World) -> None:
    world.fallback.say(BROKEN, PICTURE)
    world.llm.say(saying("<prompt>a safer cat</prompt>"))
    world.backend.say(REFUSAL)
    service = world.serve("rewrite", "fall back", DE_NSFW_MAX_ATTEMPTS="1")
    assert service.picture("a%20cat").status == 502
    assert (len(world.backend.seen), len(world.llm.seen)) == (2, 1)
    service.ahead = 6  # the fallback has cooled down
    assert service.picture("a%20cat").status == 200
    assert (len(world.backend.seen), len(world.llm.seen)) == (2, 1)
    assert [seen.last_segment for seen in world.fallback.seen] == ["a safer cat"] * 2


def test_refusal_is_remembered_until_the_settings_change(world: World) -> None:
    world.backend.say(REFUSAL, drawing())
    assert world.serve().picture("x").status == 422
    again = world.serve().picture("x")
    assert (again.status, "is cached until" in again.detail) == (422, True)
    assert world.serve().picture("x", method="HEAD").status == 422
    world.fallback.say(BROKEN)  # the fallback is not among the settings that count
    assert world.serve("fall back").picture("x").status == 502
    assert len(world.backend.seen) == 1
    assert world.serve(AUTH_TOKEN="another").picture("x").status == 200


def test_refusal_is_forgotten_after_blocked_ttl(world: World) -> None:
    world.backend.say(REFUSAL, drawing())
    service = world.serve(BLOCKED_TTL="60")
    for seconds, status in ((0, 422), (59, 422), (61, 200)):
        service.ahead = seconds
        assert service.picture("x").status == status


# --- one drawing for many -----------------------------------------------------------------------


def test_answer_within_ends_the_wait_and_not_the_drawing(world: World) -> None:
    world.backend.say(gate := Gate(drawing()))
    service = world.serve(ANSWER_WITHIN="0.1")
    first = service.picture("x")
    assert (first.status, first.headers["Retry-After"]) == (503, "2")
    assert (first.json["title"], first.json["remedy"]) == ("Being drawn", "reload")
    card = service.get(f"/prompt/x?key={KEY}", headers={"Accept": "image/*"})
    assert (card.status, b"Being drawn" in card.body) == (503, True)
    gate.opened.set()
    wait_until(lambda: service.picture("x").headers.get("Cache-Status") == HIT)
    world.backend.say(gate := Gate(BROKEN))
    assert service.picture("y").status == 503
    gate.opened.set()
    wait_until(lambda: service.picture("y").status == 502)
    assert len(world.backend.seen) == 2


def test_each_caller_waits_as_long_as_its_own_deadline(world: World, tmp_path: Path) -> None:
    """While another process draws, both wait for its lock, the impatient one first."""
    wanted = ImageRequest("x")
    pipeline = world.serve().services.pipeline
    unlimited = Reservation(pipeline.cache.state, COMMAND_LINE)
    folder = tmp_path / "cache"
    with held_elsewhere(folder, wanted.key) as process, ThreadPoolExecutor(2) as pool:
        hasty = pool.submit(pipeline.draw, wanted, unlimited, 1.0)
        wait_until(lambda: pipeline.pool.places.taken == 1)
        patient = pool.submit(pipeline.draw, wanted, unlimited)
        with pytest.raises(StillRunning):
            hasty.result(10)
        process.kill()
        assert patient.result(10).source == "backend"


def test_failure_of_another_process_costs_no_second_call(
    world: World, environment: dict[str, str]
) -> None:
    service, key = world.serve(), ImageRequest("x").key
    pipeline = service.services.pipeline
    with held_elsewhere(environment["CACHE_DIR"], key) as process, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.picture, "x")
        wait_until(lambda: pipeline.pool.places.taken == 1)
        for _ in range(4):  # the last is remembered for 16 s, enough for a busy machine
            found = GaveUp("no_backend_drew")
            Failure.remember(pipeline.cache.state, key, found, pipeline.fingerprint)
        process.kill()
        assert waiting.result().json["remembered"]
    assert world.backend.seen == []


# --- what cannot be written down is not drawn ---------------------------------------------------


def test_nothing_is_paid_for_unless_the_state_takes_a_write(world: World, tmp_path: Path) -> None:
    service = world.serve("optimise")
    world.backend.say(BROKEN)
    world.llm.say(saying("no"))
    assert service.picture("failed").status == 502
    index = tmp_path / "cache" / "index.sqlite3"
    with closing(sqlite3.connect(index, isolation_level=None)) as other:
        refuse = "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        other.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON notes {refuse}")
        for _ in range(2):
            got = service.picture("new")
            assert (got.status, int(got.headers["Retry-After"]) > 0) == (503, True)
        assert service.picture("new", method="HEAD").status == 200
        assert service.picture("failed").status == 502
        assert (len(world.backend.seen), len(world.llm.seen)) == (1, 1)
        other.execute("DROP TRIGGER refuse")
    world.backend.say(drawing())
    service.ahead = 6  # the cooldown
    assert service.picture("new").status == 200


def test_nothing_is_paid_for_unless_there_is_room(world: World) -> None:
    service = world.serve("optimise")
    service.services.cache.store = Nowhere(Path())
    got = service.picture("x")
    assert (got.status, "cannot be stored" in got.detail) == (503, True)
    assert world.backend.seen == world.llm.seen == []


def test_picture_under_way_is_not_deleted(world: World) -> None:
    failure = Say("", 500, {"Retry-After": "0"})
    world.backend.say(failure, gate := Gate(failure))
    service = world.serve()
    assert service.picture("x").headers["Retry-After"] == "2"
    service.ahead = 3
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(service.picture, "x")
        wait_until(lambda: len(world.backend.seen) == 2)
        got = service.delete(b'{"description": "x"}')
        assert (got.status, "being drawn" in got.detail) == (503, True)
        assert int(got.headers["Retry-After"]) > 0
        gate.opened.set()
        assert again.result().headers["Retry-After"] == "4", "the first failure is remembered"
    assert service.delete(b'{"description": "x"}').status == 200
    service.ahead += 5
    assert service.picture("x").headers["Retry-After"] == "2"


# --- image hosting ------------------------------------------------------------------------------


def test_hosted_picture_is_always_a_redirect(world: World, tmp_path: Path) -> None:
    world.host.say(HOSTED)
    service = world.serve("host")
    for cache_status in ("PromptImageProxy; fwd=miss; stored; detail=backend", HIT):
        got = service.picture("x")
        assert (got.status, got.headers["Location"]) == (302, HOSTED_URL)
        assert got.headers["Cache-Control"] == "public, max-age=3600"
        assert got.headers["Cache-Status"] == cache_status
    assert service.picture("x", method="HEAD").status == 302
    assert not list((tmp_path / "cache").glob("*.png"))
    assert service.get("/status").json["cache"]["mode"] == "hosted"
    assert (len(world.host.seen), len(world.backend.seen)) == (1, 1)


def test_failed_upload_leaves_a_file(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.host.say(BROKEN)
    service = world.serve("host")
    for prompt in "xyz":
        assert "upload;dur=" in service.picture(prompt).headers["Server-Timing"]
    again = service.picture("x")
    assert (again.status, again.body, again.headers["Cache-Status"]) == (200, png(), HIT)
    assert (len(world.host.seen), len(world.backend.seen)) == (3, 3)
    said = [record for record in caplog.records if "The image host" in record.getMessage()]
    assert [record.levelname for record in said].count("WARNING") == 1
    hosting = service.get("/status").json["image_hosting"]
    assert (hosting["why"], bool(hosting["last_failed"])) == ("upload failed", True)


def test_cache_needs_room_only_while_uploads_fail(world: World) -> None:
    world.host.say(HOSTED, BROKEN, HOSTED)
    service = world.serve("host")
    service.services.cache.store = Nowhere(Path())
    found = [service.picture(prompt) for prompt in "abc"]
    assert [got.status for got in found] == [302, 200, 503]
    assert "stored" not in found[1].headers["Cache-Status"]
    service.ahead = 6
    assert service.picture("c").status == 302
