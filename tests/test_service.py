"""The service from URL to picture: every row of the stages' table, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import ADMIN, KEY, REFUSAL, InProcess, drawing, saying
from .servers import GIF, JPEG, WEBP, Say, ScriptedServer, Seen, fetch, png, wait_until

Serve = Callable[..., InProcess]
MakeServer = Callable[[], ScriptedServer]

BROKEN = Say({"error": {"message": "boom"}}, 500)


def llm_settings(
    llm: ScriptedServer, *, optimise: bool = False, rewrite: bool = False
) -> dict[str, str]:
    return {
        "LLM_OPTIMIZATION_ENABLED": str(optimise),
        "DE_NSFW_ENABLED": str(rewrite),
        "LLM_OPTIMIZATION_API_URL": llm.url,
        "LLM_OPTIMIZATION_TEMPLATE": "OPTIMISE {ORIGINAL_PROMPT}",
        "DE_NSFW_TEMPLATE": "MAKE SAFE {ORIGINAL_PROMPT}",
    }


def pollinations_settings(fallback: ScriptedServer) -> dict[str, str]:
    return {"POLLINATIONS_ENABLED": "true", "POLLINATIONS_URL": f"{fallback.url}/image"}


def picture_say(data: bytes | None = None) -> Say:
    return Say(data or png(), 200, {"Content-Type": "image/png"})


def prompts(server: ScriptedServer) -> list[str]:
    return [seen.json["prompt"] for seen in server.seen]


def content(seen: Seen) -> str:
    return str(seen.json["messages"][-1]["content"])


# --- drawing and keeping


def test_first_request_draws_and_later_ones_are_hits(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    cold = service.picture("a%20red%20apple", width=512, height=256, seed=7, model="dall-e-3")
    warm = service.picture("a%20red%20apple", width=512, height=256, seed=7, model="dall-e-3")
    assert (cold.status, cold.body, cold.headers["Content-Type"]) == (200, png(), "image/png")
    assert cold.headers["Cache-Status"] == "PromptImageProxy; fwd=miss; stored; detail=backend"
    assert "generate;dur=" in cold.headers["Server-Timing"]
    assert (warm.status, warm.body) == (200, png())
    assert warm.headers["Cache-Status"] == "PromptImageProxy; hit"
    assert "Server-Timing" not in warm.headers
    assert warm.headers["ETag"] == cold.headers["ETag"]
    [seen] = backend.seen
    assert seen.path == "/v1/images/generations"
    assert seen.json == {
        "prompt": "a red apple",
        "n": 1,
        "size": "512x256",
        "seed": 7,
        "model": "dall-e-3",
    }


def test_picture_carries_the_headers_of_the_contract(serve: Serve, backend: ScriptedServer) -> None:
    headers = serve(backend).picture("a%20red%20apple").headers
    assert headers["Content-Length"] == str(len(png()))
    assert headers["ETag"].startswith('"')
    assert headers["Last-Modified"].endswith("GMT")
    assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert headers["Content-Disposition"] == 'inline; filename="a-red-apple.png"'
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["X-Accel-Expires"] == "10"


@pytest.mark.parametrize(
    ("data", "media_type", "extension"),
    [
        (png(), "image/png", "png"),
        (JPEG, "image/jpeg", "jpg"),
        (WEBP, "image/webp", "webp"),
        (GIF, "image/gif", "gif"),
    ],
)
def test_magic_bytes_decide_type_and_extension(
    serve: Serve,
    backend: ScriptedServer,
    tmp_path: Path,
    data: bytes,
    media_type: str,
    extension: str,
) -> None:
    backend.say(drawing(data))
    got = serve(backend).picture("x")
    assert (got.headers["Content-Type"], got.body) == (media_type, data)
    assert got.headers["Content-Disposition"] == f'inline; filename="x.{extension}"'
    assert [p.suffix for p in (tmp_path / "cache").glob("*-*.*") if p.suffix[1:] == extension]


def test_file_name_of_a_chinese_prompt_keeps_its_words(
    serve: Serve, backend: ScriptedServer
) -> None:
    got = serve(backend).picture("%E7%BA%A2%E8%8B%B9%E6%9E%9C")
    assert got.headers["Content-Disposition"] == (
        "inline; filename=\"picture.png\"; filename*=UTF-8''%E7%BA%A2%E8%8B%B9%E6%9E%9C.png"
    )


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ("a/b//c", "a/b//c"),
        ("/leading", "/leading"),
        ("trailing/", "trailing/"),
        ("..", ".."),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a%2Fb", "a/b"),
        ("a%3Fb%23c%25d", "a?b#c%d"),
        ("a%0Ab", "a\nb"),
        ("%22quoted%22%20'single'", "\"quoted\" 'single'"),
        ("%F0%9F%8D%8E", "🍎"),
        ("%3Cscript%3Ealert(1)%3C/script%3E", "<script>alert(1)</script>"),
        ("%20%20a%20cat%20", "a cat"),
        ("a+b", "a+b"),
    ],
)
def test_prompt_reaches_the_backend_unchanged(
    serve: Serve, backend: ScriptedServer, written: str, prompt: str
) -> None:
    assert serve(backend).picture(written).status == 200
    assert prompts(backend) == [prompt]


def test_lone_side_draws_a_square(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    service.picture("x", width=64)
    service.picture("x", height=64)
    assert [seen.json["size"] for seen in backend.seen] == ["64x64", "64x64"]


def test_pictures_survive_a_restart(serve: Serve, backend: ScriptedServer) -> None:
    serve(backend).picture("x")
    assert serve(backend).picture("x").headers["Cache-Status"] == "PromptImageProxy; hit"
    assert len(backend.seen) == 1


# --- bad input


@pytest.mark.parametrize(
    ("target", "named"),
    [(f"/prompt/x?key={KEY}&{name}={value}", name)
     for name in ("width", "height")
     for value in ("abc", "0", "-5", "1e9", "%D9%A3", "4097", "9" * 400, "", "1_0", "%205")]
    + [(f"/prompt/x?key={KEY}&seed={value}", "seed") for value in ("1.5", "x", "9" * 19, "")]
    + [(f"/prompt/x?key={KEY}&model={value}", "model") for value in ("", "a%20b", "m" * 101, "%E4")]
    + [(f"/prompt/x?key={KEY}&width=1&width=2", "width"), (f"/prompt/x?key={KEY}&key=b", "key")]
    + [(f"/prompt/{path}?key={KEY}", "description")
       for path in ("", "%20%0A", "%FF", "%C3%28", "a%00b", "%ED%A0%80", "x" * 4001)],
)  # fmt: skip
def test_bad_input_is_a_400_that_names_the_parameter(
    serve: Serve, backend: ScriptedServer, target: str, named: str
) -> None:
    got = serve(backend).get(target)
    assert got.status == 400
    assert got.headers["Content-Type"] == "application/problem+json"
    assert got.headers["Cache-Control"] == "no-store"
    assert named in got.detail.lower() or "a parameter is not valid utf-8" in got.detail.lower()
    assert "\n" not in got.detail
    assert backend.seen == []


def test_unknown_parameters_are_ignored(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    assert service.picture("x", utm_source="readme").status == 200
    assert service.picture("x").headers["Cache-Status"] == "PromptImageProxy; hit"


# --- who may


@pytest.mark.parametrize("query", ["", "?key=", "?key=wrong", f"?key={KEY}x", "?key=%C3%A9"])
def test_without_the_key_it_is_a_401(serve: Serve, backend: ScriptedServer, query: str) -> None:
    got = serve(backend).get(f"/prompt/x{query}")
    assert (got.status, got.json["title"]) == (401, "Unauthorised")
    assert got.headers["WWW-Authenticate"].startswith("Bearer")
    assert backend.seen == []


def test_bearer_is_as_good_as_the_key(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    assert service.get("/prompt/x", headers={"Authorization": f"Bearer {KEY}"}).status == 200
    assert service.get("/prompt/x", headers={"Authorization": "Bearer é"}).status == 401
    assert service.get("/prompt/x", headers={"Authorization": f"Basic {KEY}"}).status == 401


def test_key_of_any_script_works(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend, PROXY_ACCESS_KEY="钥匙")
    assert service.picture("x", key="%E9%92%A5%E5%8C%99").status == 200
    bearer = "Bearer 钥匙".encode().decode("latin-1")
    assert service.get("/prompt/x", headers={"Authorization": bearer}).status == 200


# --- HEAD, OPTIONS, conditions, ranges


def test_head_of_a_miss_draws_nothing(serve: Serve, backend: ScriptedServer) -> None:
    got = serve(backend).picture("x", method="HEAD")
    assert (got.status, got.body, backend.seen) == (200, b"", [])
    assert got.headers["Cache-Status"] == "PromptImageProxy; fwd=miss"
    assert "Content-Length" not in got.headers
    assert "Content-Type" not in got.headers


def test_head_of_a_hit_has_the_headers_of_get(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    service.picture("x")
    got, head = service.picture("x"), service.picture("x", method="HEAD")
    assert head.body == b""
    without_date = [{k: v for k, v in h.headers.items() if k != "Date"} for h in (got, head)]
    assert without_date[0] == without_date[1]


def test_head_is_authorised_and_checked_like_get(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    assert service.picture("x", method="HEAD", key="wrong").status == 401
    assert service.picture("x", method="HEAD", width="0").status == 400


def test_options_allows_any_page_to_fetch(serve: Serve, backend: ScriptedServer) -> None:
    got = serve(backend).get("/prompt/x", method="OPTIONS", headers={"Origin": "https://a.example"})
    assert (got.status, got.body) == (204, b"")
    assert got.headers["Access-Control-Allow-Origin"] == "*"
    assert "GET" in got.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in got.headers["Access-Control-Allow-Headers"]


def test_conditional_requests_are_answered_304(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    first = service.picture("x").headers
    target = f"/prompt/x?key={KEY}"
    for name, value, status in [
        ("If-None-Match", first["ETag"], 304),
        ("If-None-Match", f'"other", {first["ETag"]}', 304),
        ("If-None-Match", '"other"', 200),
        ("If-Modified-Since", first["Last-Modified"], 304),
        ("If-Modified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", 200),
    ]:
        got = service.get(target, headers={name: value})
        assert (got.status, got.body) == (status, b"" if status == 304 else png()), (name, value)
        assert got.headers["ETag"] == first["ETag"]
        assert got.headers["X-Accel-Expires"] == "10"


def test_ranges_are_served(serve: Serve, backend: ScriptedServer) -> None:
    data = png(size=1000)
    backend.say(drawing(data))
    service = serve(backend)
    service.picture("x")
    target = f"/prompt/x?key={KEY}"
    got = service.get(target, headers={"Range": "bytes=10-19"})
    assert (got.status, got.body) == (206, data[10:20])
    assert got.headers["Content-Range"] == "bytes 10-19/1000"
    tail = service.get(target, headers={"Range": "bytes=-5"})
    assert (tail.status, tail.body) == (206, data[-5:])
    beyond = service.get(target, headers={"Range": "bytes=5000-"})
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, "bytes */1000")
    stale = service.get(target, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (stale.status, stale.body) == (200, data)


# --- optimise


def test_optimised_prompt_is_drawn_and_the_key_stays_the_original(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(saying("<prompt>a glossy red apple</prompt>"))
    service = serve(backend, **llm_settings(llm, optimise=True))
    service.picture("a%20red%20apple")
    assert prompts(backend) == ["a glossy red apple"]
    assert content(llm.seen[0]) == "OPTIMISE a red apple"
    assert service.picture("a%20red%20apple").headers["Cache-Status"].endswith("hit")


@pytest.mark.parametrize("answer", [BROKEN, saying("x"), saying(None), Say("<html>", 200)])
def test_failed_optimisation_means_the_original_prompt(
    serve: Serve, backend: ScriptedServer, server: MakeServer, answer: Say
) -> None:
    llm = server()
    llm.say(answer)
    assert serve(backend, **llm_settings(llm, optimise=True)).picture("a%20cat").status == 200
    assert prompts(backend) == ["a cat"]


def test_one_prompt_in_three_sizes_costs_one_llm_call(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(saying("<prompt>a splendid cat</prompt>"))
    settings = llm_settings(llm, optimise=True)
    service = serve(backend, **settings)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda width: service.picture("a%20cat", width=width), (64, 65, 66)))
    serve(backend, **settings).picture("a%20cat", width=67)
    assert len(llm.seen) == 1
    assert prompts(backend) == ["a splendid cat"] * 4


# --- generate


def test_failure_moves_on_until_all_backends_are_tried(serve: Serve, server: MakeServer) -> None:
    backends = [server() for _ in range(4)]
    for broken in backends[:3]:
        broken.say(BROKEN)
    backends[3].say(drawing())
    weights = {backend.url: 10.0 ** (6 - 2 * n) for n, backend in enumerate(backends)}
    service = serve(*backends, BACKEND_WEIGHTS=json.dumps(weights))
    assert service.picture("x").status == 200
    assert [len(backend.seen) for backend in backends] == [1, 1, 1, 1]


def test_refusal_moves_on_at_most_blocked_retry_attempts_times(
    serve: Serve, server: MakeServer
) -> None:
    backends = [server() for _ in range(4)]
    for backend in backends:
        backend.say(REFUSAL)
    got = serve(*backends, BLOCKED_RETRY_ATTEMPTS="1").picture("x")
    assert got.status == 422
    assert sum(len(backend.seen) for backend in backends) == 2


def test_drained_backend_is_never_asked(serve: Serve, server: MakeServer) -> None:
    drained, ready = server(), server()
    ready.say(BROKEN)
    service = serve(drained, ready, BACKEND_WEIGHTS=json.dumps({drained.url: 0}))
    assert service.picture("x").status == 502
    assert drained.seen == []


def test_tokens_and_models_are_mapped_per_backend(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(
        backend,
        AUTH_TOKEN="global-token",
        TOKEN_MAP=json.dumps({backend.url + "/": "own-token"}),
        MODEL_MAP=json.dumps({backend.url: {"dall-e-3": "dall-e-3-hd"}}),
    )
    service.picture("x", model="dall-e-3")
    assert backend.seen[0].headers["Authorization"] == "Bearer own-token"
    assert backend.seen[0].json["model"] == "dall-e-3-hd"


def test_rejected_parameter_is_dropped_asked_again_once_and_remembered(
    serve: Serve, backend: ScriptedServer
) -> None:
    error = {
        "message": "Unknown parameter: 'seed'.",
        "type": "invalid_request_error",
        "param": "seed",
        "code": "unknown_parameter",
    }
    backend.say(lambda seen: Say({"error": error}, 400) if "seed" in seen.json else drawing())
    service = serve(backend)
    assert service.picture("x").status == 200
    assert service.picture("y").status == 200
    assert ["seed" in seen.json for seen in backend.seen] == [True, False, False]


# --- rewrite and retry


def test_refused_prompt_is_rewritten_and_drawn(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(saying("<prompt>a gentle cat</prompt>"))
    backend.say(REFUSAL, drawing())
    got = serve(backend, **llm_settings(llm, rewrite=True)).picture("a%20rude%20cat")
    assert got.headers["Cache-Status"].endswith("detail=rewritten")
    assert prompts(backend) == ["a rude cat", "a gentle cat"]
    assert [content(seen) for seen in llm.seen] == ["MAKE SAFE a rude cat"]
    timing = got.headers["Server-Timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == [
        "generate",
        "rewrite",
        "generate",
    ]


def test_rewriting_goes_on_for_max_attempts_from_the_last_refused_prompt(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(lambda seen: saying(f"<prompt>{content(seen).removeprefix('MAKE SAFE ')}!</prompt>"))
    backend.say(REFUSAL)
    settings = llm_settings(llm, rewrite=True) | {"DE_NSFW_MAX_ATTEMPTS": "3"}
    assert serve(backend, **settings).picture("a%20cat").status == 422
    assert prompts(backend) == ["a cat", "a cat!", "a cat!!", "a cat!!!"]


@pytest.mark.parametrize("answer", [BROKEN, saying("<prompt>a rude cat</prompt>")])
def test_rewriting_ends_early_when_it_fails_or_changes_nothing(
    serve: Serve, backend: ScriptedServer, server: MakeServer, answer: Say
) -> None:
    llm = server()
    llm.say(answer)
    backend.say(REFUSAL)
    got = serve(backend, **llm_settings(llm, rewrite=True)).picture("a%20rude%20cat")
    assert (got.status, len(llm.seen), len(backend.seen)) == (422, 1, 1)


def test_optimised_prompt_is_what_gets_rewritten(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(saying("<prompt>a splendid rude cat</prompt>"), saying("<prompt>a gentle cat</prompt>"))
    backend.say(REFUSAL, drawing())
    serve(backend, **llm_settings(llm, optimise=True, rewrite=True)).picture("a%20rude%20cat")
    assert [content(seen) for seen in llm.seen] == [
        "OPTIMISE a rude cat",
        "MAKE SAFE a splendid rude cat",
    ]


# --- fall back


def test_fallback_draws_the_original_when_nothing_better_is_there(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    fallback = server()
    fallback.say(picture_say(png(shade=7)))
    backend.say(BROKEN)
    service = serve(backend, **pollinations_settings(fallback))
    got = service.picture("a/b%3F", width=64, height=32, seed=9)
    assert (got.status, got.body) == (200, png(shade=7))
    assert got.headers["Cache-Status"].endswith("stored; detail=fallback")
    [seen] = fallback.seen
    assert seen.path == "/image/a%2Fb%3F"
    expected = {"width": "64", "height": "32", "seed": "9", "nofeed": "true", "private": "true"}
    assert seen.query == expected
    warm = service.picture("a/b%3F", width=64, height=32, seed=9)
    assert warm.headers["Cache-Status"].endswith("hit")


@pytest.mark.parametrize(
    ("optimise", "rewrite", "expected"),
    [(True, False, "a better cat"), (False, True, "a safer cat"), (True, True, "a safer cat")],
)
def test_fallback_draws_the_most_promising_prompt(
    serve: Serve,
    backend: ScriptedServer,
    server: MakeServer,
    optimise: bool,
    rewrite: bool,
    expected: str,
) -> None:
    fallback, llm = server(), server()
    fallback.say(picture_say())
    llm.say(lambda seen: saying(
        f"<prompt>a {'better' if content(seen).startswith('OPT') else 'safer'} cat</prompt>"
    ))  # fmt: skip
    backend.say(REFUSAL)
    settings = llm_settings(llm, optimise=optimise, rewrite=rewrite)
    serve(backend, **settings, **pollinations_settings(fallback)).picture("a%20cat")
    assert [seen.last_segment for seen in fallback.seen] == [expected]


def test_fallback_is_never_redirected_to(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    fallback = server()
    backend.say(BROKEN)
    fallback.say(
        lambda seen: (
            picture_say() if seen.path == "/moved" else Say(b"", 302, {"Location": "/moved"})
        )
    )
    got = serve(backend, **pollinations_settings(fallback)).picture("x")
    assert (got.status, got.body) == (200, png())


# --- refusals remembered


def test_block_is_remembered_and_goes_straight_to_the_fallback(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    fallback, llm = server(), server()
    fallback.say(BROKEN, picture_say())
    llm.say(saying("<prompt>a safer cat</prompt>"))
    backend.say(REFUSAL)
    settings = llm_settings(llm, rewrite=True) | {"DE_NSFW_MAX_ATTEMPTS": "1"}
    service = serve(backend, **settings, **pollinations_settings(fallback))
    assert service.picture("a%20cat").status == 502
    calls = len(backend.seen), len(llm.seen)
    assert calls == (2, 1)
    assert service.picture("a%20cat").status == 200
    assert (len(backend.seen), len(llm.seen)) == calls
    assert [seen.last_segment for seen in fallback.seen] == ["a safer cat"] * 2


def test_block_is_remembered_across_a_restart_and_forgotten_by_delete(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(REFUSAL)
    assert serve(backend).picture("x").status == 422
    service = serve(backend)
    assert service.picture("x").status == 422
    assert len(backend.seen) == 1
    assert service.delete(b'{"description": "x"}').status == 200
    backend.say(drawing())
    assert service.picture("x").status == 200


def test_block_expires(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(REFUSAL)
    service = serve(backend, BLOCKED_TTL="0")
    assert service.picture("x").status == 422
    assert service.picture("x").status == 422
    assert len(backend.seen) == 2


@pytest.mark.parametrize("script", [[BROKEN], [Say("busy", 503)], [Say("", 429)]])
def test_outage_is_never_remembered_as_a_block(
    serve: Serve, backend: ScriptedServer, script: list[Say]
) -> None:
    backend.say(*script)
    service = serve(backend)
    assert service.picture("x").status == 502
    backend.say(drawing())
    assert service.picture("x").status == 200


def test_refusal_beside_an_outage_is_not_remembered(serve: Serve, server: MakeServer) -> None:
    refusing, broken = server(), server()
    refusing.say(REFUSAL)
    broken.say(BROKEN)
    service = serve(refusing, broken)
    assert service.picture("x").status == 502
    refusing.say(drawing())
    assert service.picture("x").status == 200


def test_llm_outage_does_not_make_a_block(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(BROKEN, saying("<prompt>a safer cat</prompt>"))
    backend.say(REFUSAL, REFUSAL, drawing())
    service = serve(backend, **llm_settings(llm, rewrite=True))
    assert service.picture("a%20cat").status == 422
    assert service.picture("a%20cat").status == 200


# --- give up


def test_problem_names_the_stages_and_nothing_of_an_upstream(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    fallback, llm = server(), server()
    backend.say(Say({"error": {"message": "secret upstream text"}}, 500))
    fallback.say(Say("secret fallback text", 500))
    llm.say(saying("<prompt>a better cat</prompt>"))
    settings = llm_settings(llm, optimise=True) | pollinations_settings(fallback)
    got = serve(backend, AUTH_TOKEN="token-of-the-backend", **settings).picture("a%20cat")
    assert (got.status, got.headers["Content-Type"]) == (502, "application/problem+json")
    assert got.headers["Cache-Control"] == "no-store"
    stages = [(stage["stage"], stage["outcome"]) for stage in got.json["stages"]]
    assert stages == [("optimise", "ok"), ("generate", "failed"), ("fallback", "failed")]
    text = got.body.decode()
    assert "secret" not in text
    assert "token-of" not in text
    assert backend.url not in text


@pytest.mark.parametrize(
    ("backend_says", "fallback_says", "status"),
    [
        (REFUSAL, Say({"error": {"code": "content_policy_violation"}}, 422), 422),
        (REFUSAL, BROKEN, 502),
        (BROKEN, BROKEN, 502),
        (BROKEN, REFUSAL, 502),
    ],
)
def test_status_says_whether_it_was_refused_everywhere(
    serve: Serve,
    backend: ScriptedServer,
    server: MakeServer,
    backend_says: Say,
    fallback_says: Say,
    status: int,
) -> None:
    fallback = server()
    backend.say(backend_says)
    fallback.say(fallback_says)
    assert serve(backend, **pollinations_settings(fallback)).picture("x").status == status


def test_all_cooling_is_a_503_that_says_when(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(Say("", 429, {"Retry-After": "100"}))
    service = serve(backend)
    assert service.picture("x").status == 502
    got = service.picture("y")
    assert got.status == 503
    assert 90 <= int(got.headers["Retry-After"]) <= 100
    [state] = service.get("/status").json["backends"]
    assert state["state"] == "cooling"


def test_deadline_is_a_504(serve: Serve, backend: ScriptedServer) -> None:
    release = threading.Event()
    backend.say(lambda seen: (release.wait(10), drawing())[1])
    got = serve(backend, GENERATION_DEADLINE="0.4").picture("x")
    release.set()
    assert got.status == 504


# --- one drawing for many


def test_identical_requests_share_one_drawing(serve: Serve, backend: ScriptedServer) -> None:
    asked, release = threading.Event(), threading.Event()

    def slowly(seen: Seen) -> Say:
        asked.set()
        release.wait(10)
        return drawing()

    backend.say(slowly)
    service = serve(backend)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(service.picture, "x") for _ in range(20)]
        asked.wait(10)
        release.set()
        assert {answer.result().status for answer in answers} == {200}
    assert len(backend.seen) == 1


def test_failed_drawing_fails_whoever_waited_for_it(serve: Serve, backend: ScriptedServer) -> None:
    release = threading.Event()
    backend.say(lambda seen: (release.wait(10), BROKEN)[1])
    service = serve(backend)
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(service.picture, "x") for _ in range(10)]
        wait_until(lambda: backend.seen)
        release.set()
        assert {answer.result().status for answer in answers} <= {502, 503}
    assert len(backend.seen) <= 2


def test_no_place_for_drawing_is_a_503_while_hits_go_on(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend, THREADS="17")
    service.picture("kept")
    release = threading.Event()
    backend.say(lambda seen: (release.wait(10), drawing())[1])
    with ThreadPoolExecutor(1) as pool:
        drawing_one = pool.submit(service.picture, "slow")
        wait_until(lambda: len(backend.seen) == 2)
        full = service.picture("other")
        assert (full.status, full.headers["Cache-Control"]) == (503, "no-store")
        assert int(full.headers["Retry-After"]) >= 1
        assert service.picture("slow").status == 503
        assert service.picture("kept").status == 200
        release.set()
        assert drawing_one.result().status == 200


# --- image hosting


def hosting_settings(host: ScriptedServer) -> dict[str, str]:
    return {
        "IMAGE_HOSTING_ENABLED": "true",
        "IMAGE_HOSTING_PROVIDER": "picgo",
        "IMAGE_HOSTING_KEY": "picgo-key",
        "IMAGE_HOSTING_URL": host.url,
    }


def test_hosted_picture_is_a_redirect_at_first_and_on_every_hit(
    serve: Serve, backend: ScriptedServer, server: MakeServer, tmp_path: Path
) -> None:
    host = server()
    host.say(Say({"status_code": 200, "image": {"url": "https://img.example/a.png"}}))
    service = serve(backend, **hosting_settings(host))
    for cache_status in ("fwd=miss; stored; detail=backend", "hit"):
        got = service.picture("x")
        assert (got.status, got.headers["Location"]) == (302, "https://img.example/a.png")
        assert got.headers["Cache-Control"] == "public, max-age=3600"
        assert got.headers["Cache-Status"] == f"PromptImageProxy; {cache_status}"
    assert service.picture("x", method="HEAD").status == 302
    assert not list((tmp_path / "cache").glob("*.png"))
    assert service.get("/status").json["cache"]["mode"] == "hosted"
    assert (len(host.seen), len(backend.seen)) == (1, 1)


def test_failed_upload_serves_and_keeps_the_picture(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    host = server()
    host.say(BROKEN)
    service = serve(backend, **hosting_settings(host))
    assert (service.picture("x").status, service.picture("x").body) == (200, png())
    assert (len(host.seen), len(backend.seen)) == (1, 1)


# --- delete, status, the rest


def test_deleted_picture_is_drawn_anew(
    serve: Serve, backend: ScriptedServer, tmp_path: Path
) -> None:
    service = serve(backend)
    service.picture("a%20cat", width=64, seed=1, model="m")
    body = b'{"description": " A Cat ", "width": "64", "seed": 1, "model": "m"}'
    assert service.delete(body).json["deleted"] is True
    assert not list((tmp_path / "cache").glob("*.png"))
    assert service.delete(body).status == 404
    service.picture("a%20cat", width=64, seed=1, model="m")
    assert len(backend.seen) == 2


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b"[" * 15_000, b'{"width": 5}'),
        *(b'{"description": 5}', b'{"description": ""}', b'{"description": "\\ud800"}'),
        *(b'{"description": "x", "width": true}', b'{"description": "x", "width": 1.5}'),
        b'{"description": "x", "seed": [1]}',
    ],
)
def test_bad_body_is_a_400(serve: Serve, backend: ScriptedServer, body: bytes) -> None:
    got = serve(backend).delete(body)
    assert (got.status, got.headers["Content-Type"]) == (400, "application/problem+json")


def test_large_body_is_a_413(serve: Serve, backend: ScriptedServer) -> None:
    assert serve(backend).delete(b" " * 16_385).status == 413


@pytest.mark.parametrize("token", [None, "", "wrong", "\xe9", KEY])
def test_delete_needs_the_admin_token(
    serve: Serve, backend: ScriptedServer, token: str | None
) -> None:
    assert serve(backend).delete(b'{"description": "x"}', token).status == 401


def test_without_an_admin_token_nobody_deletes(serve: Serve, backend: ScriptedServer) -> None:
    assert serve(backend, ADMIN_TOKEN="").delete(b'{"description": "x"}').status == 403


def test_status_shows_everything_but_secrets(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    secret_url = backend.url.replace("http://", "http://user:pass-word@") + "/v1?api-key=in-query"
    service = serve(
        backend,
        BACKEND_API_URLS=secret_url,
        AUTH_TOKEN="backend-token",
        POLLINATIONS_ENABLED="true",
        POLLINATIONS_URL="http://127.0.0.1:9/prompt",
        POLLINATIONS_TOKEN="pollinations-token",
        LLM_OPTIMIZATION_TOKEN="llm-token",
        **llm_settings(llm, optimise=True, rewrite=True),
    )
    got = service.get("/status")
    assert got.headers["Cache-Control"] == "no-store"
    assert got.json["status"] == "ok"
    assert got.json["backends"] == [{"url": f"{backend.url}/v1", "weight": 1.0, "state": "ready"}]
    assert got.json["cache"]["entries"] == 0
    assert got.json["de_nsfw"] == {"enabled": True, "max_attempts": 2}
    assert got.json["fallback"]["enabled"] is True
    for secret in (KEY, ADMIN, "token", "pass-word", "in-query"):
        assert secret not in got.body.decode()


def test_robots_are_kept_from_spending_money(serve: Serve, backend: ScriptedServer) -> None:
    got = serve(backend).get("/robots.txt")
    assert (got.status, got.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert "Disallow: /prompt/" in got.body.decode()


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/prompt/x", "POST", 405),
        ("/cache/delete", "GET", 405),
        ("/status", "DELETE", 405),
    ],
)
def test_what_is_not_there_is_a_problem_too(
    serve: Serve, backend: ScriptedServer, target: str, method: str, status: int
) -> None:
    got = serve(backend).get(target, method=method)
    assert (got.status, got.json["status"]) == (status, status)
    assert got.headers["Content-Type"] == "application/problem+json"


def test_prompt_is_never_echoed(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(BROKEN)
    service = serve(backend)
    got = service.picture("%3Cscript%3Ealert(1)%3C/script%3E%0D%0AX-Injected:%201")
    assert (got.status, b"<script" in got.body) == (502, False)
    assert "X-Injected" not in got.headers
    assert b"<script" not in fetch(f"{service.url}/%3Cscript%3E").body


def test_prompt_cannot_inject_a_header(serve: Serve, backend: ScriptedServer) -> None:
    got = serve(backend).picture("a%0D%0AX-Injected:%201%22;x=")
    assert got.status == 200
    assert "X-Injected" not in got.headers
    assert got.headers["Content-Disposition"] == 'inline; filename="a-X-Injected-1-x.png"'
