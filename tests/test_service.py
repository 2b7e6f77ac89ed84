"""HTTP in: the routes, their parameters, headers and statuses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from picture import ImageRequest

from .conftest import ADMIN, BROKEN, KEY, InProcess, drawing, llm_settings
from .servers import JPEG, Got, Say, ScriptedServer, fetch, png

Serve = Callable[..., InProcess]
MakeServer = Callable[[], ScriptedServer]

HIT = "PromptImageProxy; hit"


# --- pictures -----------------------------------------------------------------------------------


def test_first_request_draws_and_later_ones_are_hits(serve: Serve, backend: ScriptedServer) -> None:
    asked: dict[str, Any] = {"width": 512, "height": 256, "seed": 7, "model": "dall-e-3"}
    service = serve(backend)
    cold = service.picture("a%20red%20apple", **asked)
    warm = service.picture("a%20red%20apple", **asked)
    assert (cold.status, cold.body) == (200, png())
    assert cold.headers["Cache-Status"] == "PromptImageProxy; fwd=miss; stored; detail=backend"
    assert "generate;dur=" in cold.headers["Server-Timing"]
    assert (warm.status, warm.body, warm.headers["Cache-Status"]) == (200, png(), HIT)
    assert "Server-Timing" not in warm.headers
    # A restart changes nothing.
    assert serve(backend).picture("a%20red%20apple", **asked).headers["Cache-Status"] == HIT
    [seen] = backend.seen
    assert seen.path == "/v1/images/generations"
    body = {"n": 1, "size": "512x256", "seed": 7, "model": "dall-e-3"}
    assert seen.json == {"prompt": "a red apple", **body}


def test_headers_are_those_of_the_contract_cold_and_warm(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    for headers in (service.picture("a%20red%20apple").headers for _ in ("cold", "warm")):
        expected = {
            "Content-Type": "image/png",
            "Content-Length": str(len(png())),
            "Cache-Control": "public, max-age=31536000, immutable",
            "Content-Disposition": 'inline; filename="a-red-apple.png"',
            "X-Content-Type-Options": "nosniff",
            "Access-Control-Allow-Origin": "*",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "X-Accel-Expires": "10",
            "Accept-Ranges": "bytes",
        }
        assert {name: headers[name] for name in expected} == expected
        assert headers["ETag"].startswith('"')
        assert headers["Last-Modified"].endswith("GMT")


def test_type_and_extension_are_those_of_the_bytes(
    serve: Serve, backend: ScriptedServer, tmp_path: Path
) -> None:
    backend.say(drawing(JPEG))
    got = serve(backend).picture("x")
    assert (got.headers["Content-Type"], got.body) == ("image/jpeg", JPEG)
    assert got.headers["Content-Disposition"] == 'inline; filename="x.jpg"'
    assert len(list((tmp_path / "cache").glob("*-*.jpg"))) == 1


@pytest.mark.parametrize(
    ("written", "disposition"),
    [
        (
            "%E7%BA%A2%20apple",
            "inline; filename=\"apple.png\"; filename*=UTF-8''%E7%BA%A2-apple.png",
        ),
        ("a%0D%0AX-Injected:%201%22;x=", 'inline; filename="a-X-Injected-1-x.png"'),
        ("%3F", 'inline; filename="picture.png"'),
    ],
)
def test_file_name_is_made_of_the_words_of_the_prompt(
    serve: Serve, backend: ScriptedServer, written: str, disposition: str
) -> None:
    got = serve(backend).picture(written)
    assert (got.status, got.headers["Content-Disposition"]) == (200, disposition)
    assert "X-Injected" not in got.headers


def test_description_reaches_the_backend_unchanged(serve: Serve, backend: ScriptedServer) -> None:
    prompts = {
        "a/b//c": "a/b//c",
        "/leading": "/leading",
        "trailing/": "trailing/",
        "..": "..",
        "../../etc/passwd": "../../etc/passwd",
        "a%2Fb": "a/b",
        "a%3Fb%23c%25d": "a?b#c%d",
        "a%0Ab": "a\nb",
        "%22quoted%22%20'single'": "\"quoted\" 'single'",
        "%F0%9F%8D%8E": "🍎",
        "%3Cscript%3Ealert(1)%3C/script%3E": "<script>alert(1)</script>",
        "%20%20a%20cat%20": "a cat",
        "a+b": "a+b",
        "who?": "who?",
        "what?%20Why+so??": "what? Why+so??",
    }
    service = serve(backend)
    assert {service.picture(written, seed=1).status for written in prompts} == {200}
    assert [seen.json["prompt"] for seen in backend.seen] == list(prompts.values())


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (f"/prompt/x?key={KEY}&width=0", "width"),
        (f"/prompt/x?key={KEY}&seed=%D9%A3", "seed"),
        (f"/prompt/x?key={KEY}&key=b", "key"),
        (f"/prompt/x?key={KEY}&model=%E4", "not valid UTF-8"),
        (f"/prompt/?key={KEY}", "description"),
        (f"/prompt/%FF?key={KEY}", "description"),
        (f"/prompt/{'x' * 4001}?key={KEY}", "description"),
        ("/prompt/x?key=wrong&width=0", "width"),
    ],
)
def test_bad_parameter_is_a_400_before_anything_else(
    serve: Serve, backend: ScriptedServer, target: str, named: str
) -> None:
    service = serve(backend)
    for method in ("GET", "HEAD"):
        got = service.get(target, method=method)
        assert (got.status, got.headers["Cache-Control"]) == (400, "no-store")
        assert got.headers["Content-Type"] == "application/problem+json"
        if method == "GET":
            assert named in got.detail
    assert backend.seen == []


def test_unknown_parameter_is_ignored(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    assert service.picture("x", utm_source="readme").status == 200
    assert service.picture("x").headers["Cache-Status"] == HIT


def test_picture_stored_with_the_extension_in_its_prompt_wins(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    plain, literal = png(2, 2), png(3, 3)
    backend.say(lambda seen: drawing(literal if ".png" in seen.json["prompt"] else plain))
    assert service.picture("logo.png").body == service.picture("logo").body == plain
    body = json.dumps({"prompt": "logo.png", "seed": 42}).encode()
    bearer = {"Authorization": f"Bearer {KEY}"}
    service.get("/v1/images/generations", method="POST", headers=bearer, body=body)
    assert service.picture("logo.png").body == service.picture("logo.png.jpg").body == literal
    assert service.picture("logo").body == plain
    assert service.delete(b'{"description": "logo.png"}').status == 200
    assert listing(service).json["entries"] == []


# --- HEAD, conditions, ranges ----------------------------------------------------------


def test_head_of_a_miss_draws_nothing(serve: Serve, backend: ScriptedServer) -> None:
    got = serve(backend).picture("x", method="HEAD")
    assert (got.status, got.body, backend.seen) == (200, b"", [])
    assert got.headers["Cache-Status"] == "PromptImageProxy; fwd=miss"
    assert got.headers["Cache-Control"] == "no-store"
    assert "Content-Length" not in got.headers
    assert "Content-Type" not in got.headers


def test_head_of_a_hit_has_the_headers_of_get(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    service.picture("x")
    got, head = service.picture("x"), service.picture("x", method="HEAD")
    assert head.body == b""
    for answer in (got, head):
        del answer.headers["Date"]
    assert sorted(got.headers.items()) == sorted(head.headers.items())


def test_conditional_requests_are_answered_304(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    first = service.picture("x").headers
    for name, value, status in [
        ("If-None-Match", first["ETag"], 304),
        ("If-None-Match", f'"other", {first["ETag"]}', 304),
        ("If-None-Match", '"other"', 200),
        ("If-Modified-Since", first["Last-Modified"], 304),
        ("If-Modified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", 200),
    ]:
        got = service.get(f"/prompt/x?key={KEY}", headers={name: value})
        assert (got.status, got.body) == (status, b"" if status == 304 else png()), (name, value)
        assert got.headers["ETag"] == first["ETag"]
        assert got.headers["X-Accel-Expires"] == "10"


def test_one_range_of_bytes_is_served_cold_and_warm(serve: Serve, backend: ScriptedServer) -> None:
    data = png(size=1000)
    backend.say(drawing(data))
    service = serve(backend)
    for headers, status, body, content_range in [
        ({"Range": "bytes=10-19"}, 206, data[10:20], "bytes 10-19/1000"),
        ({"Range": "bytes=990-"}, 206, data[990:], "bytes 990-999/1000"),
        ({"Range": "bytes=-5"}, 206, data[-5:], "bytes 995-999/1000"),
        ({"Range": "bytes=5000-"}, 416, None, "bytes */1000"),
        ({"Range": "bytes=0-1", "If-Range": '"other"'}, 200, data, None),
        ({"Range": "bytes=0-1,5-6"}, 200, data, None),
        ({"Range": "lines=0-1"}, 200, data, None),
    ]:
        got = service.get(f"/prompt/x?key={KEY}", headers=headers)
        assert (got.status, got.headers.get("Content-Range")) == (status, content_range), headers
        assert body in (None, got.body)
    assert len(backend.seen) == 1


# --- who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?key=", "?key=wrong", f"?key={KEY}x", "?key=%C3%A9"])
def test_picture_needs_the_access_key(serve: Serve, backend: ScriptedServer, query: str) -> None:
    service = serve(backend)
    for method in ("GET", "HEAD"):
        got = service.get(f"/prompt/x{query}", method=method)
        assert got.status == 401
        assert got.headers["WWW-Authenticate"].startswith("Bearer")
    assert backend.seen == []


def test_likely_cause_is_named_where_a_url_has_no_credentials(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    assert "%23" in service.get("/prompt/a%20cat?width=64").detail
    for target in ("/prompt/a%20cat?key=wrong", "/prompt/a%20cat?exp=1", "/v1/models"):
        assert "%23" not in service.get(target).body.decode()


def test_access_key_may_be_a_bearer_token(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    for credentials, status in [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY}", 200),
        ("Bearer é", 401),
        (f"Basic {KEY}", 401),
    ]:
        got = service.get("/prompt/x", headers={"Authorization": credentials})
        assert got.status == status, credentials


def test_access_key_may_be_of_any_script(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend, PROXY_ACCESS_KEY="钥匙")
    assert service.picture("x", key="%E9%92%A5%E5%8C%99").status == 200
    bearer = "Bearer 钥匙".encode().decode("latin-1")
    assert service.get("/prompt/x", headers={"Authorization": bearer}).status == 200


@pytest.mark.parametrize("token", [None, "", "wrong", "\xe9", KEY])
def test_administration_needs_the_admin_token(
    serve: Serve, backend: ScriptedServer, token: str | None
) -> None:
    service = serve(backend)
    assert service.delete(b'{"description": "x"}', token).status == 401
    assert listing(service, token=token).status == 401


def test_administration_is_off_without_an_admin_token(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend, ADMIN_TOKEN="")
    assert service.delete(b'{"description": "x"}').status == 403
    assert listing(service).status == 403


# --- deleting and listing -----------------------------------------------------------------------


def test_deleted_picture_is_drawn_again(
    serve: Serve, backend: ScriptedServer, tmp_path: Path
) -> None:
    service = serve(backend)
    asked: dict[str, Any] = {"width": 64, "height": 64, "seed": 1, "model": "m"}
    service.picture("a%20cat", **asked)
    body = b'{"description": " A Cat ", "width": 64, "height": "64", "seed": 1, "model": "m"}'
    assert service.delete(body).json["deleted"] is True
    assert not list((tmp_path / "cache").glob("*.png"))
    assert service.delete(body).status == 404
    service.picture("a%20cat", **asked)
    assert len(backend.seen) == 2


def test_deleting_forgets_a_failure(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    backend.say(BROKEN)
    assert service.picture("x").status == 502
    assert service.delete(b'{"description": "x"}').status == 200
    assert service.delete(b'{"description": "x"}').status == 404


def test_picture_is_deleted_by_its_key(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    service.picture("x")
    [entry] = listing(service).json["entries"]
    assert service.delete(f'{{"key": "{entry["key"]}"}}'.encode()).status == 200
    assert listing(service).json["entries"] == []


def test_options_are_accepted_wherever_a_picture_is_named(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    given = {"quality": "high", "style": "a b", "background": "red", "negative_prompt": "no=text"}
    body = json.dumps({"description": "x", **given}).encode()
    signed = service.get(f"/sign?key={KEY}", method="POST", body=body).json
    assert fetch(signed["url"]).status == 200
    assert backend.seen[0].json.items() >= given.items()
    assert service.delete(b'{"description": "x"}').status == 404
    assert service.delete(body).status == 200


def test_administrator_sees_a_picture_by_its_key(serve: Serve, backend: ScriptedServer) -> None:
    service, admin = serve(backend), {"X-Admin-Token": ADMIN}
    service.picture("x")
    path = f"/cache/{ImageRequest('x').key}"
    got = service.get(path, headers=admin)
    assert (got.status, got.body, got.headers["Content-Type"]) == (200, png(), "image/png")
    assert got.headers["Cache-Control"] == "private, no-cache"
    assert service.get(path).status == 401
    for missing in ("/cache/x", f"/cache/{'0' * 64}"):
        assert service.get(missing, headers=admin).status == 404


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b"[" * 15_000, b'{"width": 5}', b'{"key": "x"}'),
        *(b'{"description": 5}', b'{"description": ""}', b'{"description": "\\ud800"}'),
        *(b'{"description": "x", "width": true}', b'{"description": "x", "width": 1.5}'),
        b'{"description": "x", "seed": [1]}',
    ],
)
def test_bad_body_is_a_400(serve: Serve, backend: ScriptedServer, body: bytes) -> None:
    got = serve(backend).delete(body)
    assert (got.status, got.headers["Content-Type"]) == (400, "application/problem+json")


@pytest.mark.parametrize(
    "target",
    [
        f"cat%3Fkey={KEY}",
        f"cat&key={KEY}?key={KEY}",
        f"cat?k%2565y={KEY}?key={KEY}",
        f"cat?{KEY}.png?key={KEY}",
        f"cat?style=a%26key={KEY}&key={KEY}",
    ],
)
def test_key_in_a_prompt_is_a_400(serve: Serve, backend: ScriptedServer, target: str) -> None:
    service = serve(backend)
    got = service.get(f"/prompt/{target}", headers={"Authorization": f"Bearer {KEY}"})
    assert (got.status, KEY in got.body.decode()) == (400, False)
    assert not backend.seen


def test_body_over_16_kib_is_a_413(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    assert [service.delete(b" " * size).status for size in (16_384, 16_385)] == [400, 413]


def listing(service: InProcess, query: str = "", token: str | None = ADMIN) -> Got:
    headers = {} if token is None else {"X-Admin-Token": token}
    return service.get(f"/cache{query}", headers=headers)


def test_listing_shows_the_newest_first_page_by_page(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    for n in range(5):
        service.picture(f"cat%20{n}", width=8)
    first = listing(service, "?limit=3").json
    second = listing(service, f"?limit=3&before={first['next']}").json
    prompts = [entry["prompt"] for entry in first["entries"] + second["entries"]]
    assert prompts == ["cat 4", "cat 3", "cat 2", "cat 1", "cat 0"]
    assert second["next"] is None
    assert first["totals"] == second["totals"] == {"entries": 5, "bytes": 5 * len(png())}
    entry = first["entries"][0]
    assert (entry["width"], entry["height"], entry["seed"], entry["model"]) == (8, None, 42, None)
    assert (entry["bytes"], entry["media_type"]) == (len(png()), "image/png")
    assert entry["drawn_by"] == backend.url
    assert fetch(entry["url"]).headers["Cache-Status"] == HIT
    assert entry["markdown"] == f"![cat 4]({entry['url']})"
    assert urlsplit(entry["url"]).netloc == urlsplit(service.url).netloc


def test_listing_shows_the_largest_first_page_by_page(
    serve: Serve, backend: ScriptedServer
) -> None:
    sizes = {"cat%200": 300, "cat%201": 500, "cat%202": 400}
    backend.say(*(drawing(png(size=size)) for size in sizes.values()))
    service = serve(backend)
    for prompt in sizes:
        service.picture(prompt)
    first = listing(service, "?order=largest&limit=2").json
    second = listing(service, f"?order=largest&limit=2&before={first['next']}").json
    assert [entry["bytes"] for entry in first["entries"] + second["entries"]] == [500, 400, 300]
    assert second["next"] is None


def test_listing_searches_prompts_and_shows_final_ones(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(drawing(revised_prompt="a revised cat"))
    service = serve(backend)
    for prompt in ("a%20Cat", "100%25%20cat", "a_dog"):
        service.picture(prompt)
    found = listing(service, "?q=CAT").json["entries"]
    assert [entry["prompt"] for entry in found] == ["100% cat", "a Cat"]
    assert found[0]["final_prompt"] == "a revised cat"
    assert len(listing(service, "?since=1&until=999999999999").json["entries"]) == 3
    assert listing(service, "?model=x").json["entries"] == []
    for description, final in (("a_dog", "a revised cat"), ("never drawn", None)):
        body = json.dumps({"description": description}).encode()
        signed = service.get(f"/sign?key={KEY}", method="POST", body=body).json
        assert signed["final_prompt"] == final


@pytest.mark.parametrize(
    "query",
    [
        "?limit=0",
        "?limit=201",
        "?limit=x",
        "?before=x",
        "?before=1e5-" + "a" * 64,
        "?order=oldest",
        "?since=x",
    ],
)
def test_bad_parameter_of_the_listing_is_a_400(
    serve: Serve, backend: ScriptedServer, query: str
) -> None:
    assert listing(serve(backend), query).status == 400


# --- status and the rest ------------------------------------------------------------------------


def test_status_shows_everything_but_secrets(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    secret_url = backend.url.replace("http://", "http://user:pass-word@") + "/v1?api-key=in-query"
    service = serve(
        backend,
        BACKEND_API_URLS=secret_url,
        AUTH_TOKEN="backend-token",
        POLLINATIONS_ENABLED="true",
        POLLINATIONS_URL="http://127.0.0.1:9/prompt",
        POLLINATIONS_TOKEN="pollinations-token",
        LLM_OPTIMIZATION_TOKEN="llm-token",
        **llm_settings(server(), optimise=True, rewrite=True),
    )
    got = service.get("/status")
    assert got.headers["Cache-Control"] == "no-store"
    assert got.json["status"] == "ok"
    assert got.json["backends"] == [
        {"url": f"{backend.url}/v1", "weight": 1.0, "state": "ready", "last_drew": None}
    ]
    assert got.json["administration"] == {"enabled": True}
    assert got.json["cache"]["entries"] == 0
    assert got.json["de_nsfw"] == {"enabled": True, "max_attempts": 2}
    assert got.json["fallback"]["enabled"] is True
    for secret in (KEY, ADMIN, "token", "pass-word", "in-query"):
        assert secret not in got.body.decode()


def test_status_says_when_and_why_each_server_failed(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(Say({"error": {"message": "Incorrect API key provided."}}, 401))
    service = serve(backend, **llm_settings(llm, optimise=True))
    unknown = Say({"error": {"message": "Unknown parameter: 'seed'.", "param": "seed"}}, 400)
    backend.say(unknown, drawing(), BROKEN)
    assert [service.picture(prompt).status for prompt in "ab"] == [200, 502]
    about = service.get("/status").json
    [found] = about["backends"]
    assert (found["state"], found["why"]) == ("cooling", "down")
    assert found["models"] == {"": {"learned": {"dropped": ["seed"]}}}
    assert about["llm_optimization"]["why"] == "unauthorised"
    moments = (found["last_drew"], found["last_failed"], about["llm_optimization"]["last_failed"])
    for moment in moments:
        assert abs(datetime.fromisoformat(moment).timestamp() - time.time()) < 60


def test_crawlers_are_kept_away_from_pictures(serve: Serve, backend: ScriptedServer) -> None:
    got = serve(backend).get("/robots.txt")
    assert (got.status, got.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert "Disallow: /prompt/" in got.body.decode()


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/Prompt/x", "GET", 404),
        ("/prompt", "GET", 404),
        ("/prompt/x", "POST", 405),
        ("/cache/delete", "GET", 405),
        ("/status", "DELETE", 405),
    ],
)
def test_unknown_route_is_a_problem(
    serve: Serve, backend: ScriptedServer, target: str, method: str, status: int
) -> None:
    got = serve(backend).get(target, method=method)
    assert (got.status, got.json["status"]) == (status, status)
    assert got.headers["Content-Type"] == "application/problem+json"
