"""HTTP in: the routes, their parameters, headers and statuses."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from picture import ImageRequest

from .conftest import ADMIN, BROKEN, KEY, InProcess, MakeServer, Serve, drawing, llm_settings
from .scripted import JPEG, Say, ScriptedServer, fetch, png

HIT = "PromptImageProxy; hit"


# --- pictures -----------------------------------------------------------------------------------


def test_first_request_draws_and_later_ones_are_hits(serve: Serve) -> None:
    asked: dict[str, Any] = {"width": 512, "height": 256, "seed": 7, "model": "dall-e-3"}
    service = serve()
    cold, warm = (service.picture("a%20red%20apple", **asked) for _ in range(2))
    assert (cold.status, cold.body) == (200, png())
    assert cold.headers["Cache-Status"] == "PromptImageProxy; fwd=miss; stored; detail=backend"
    assert "generate;dur=" in cold.headers["Server-Timing"]
    assert (warm.status, warm.body, warm.headers["Cache-Status"]) == (200, png(), HIT)
    assert "Server-Timing" not in warm.headers
    # A restart changes nothing.
    assert serve().picture("a%20red%20apple", **asked).headers["Cache-Status"] == HIT
    [seen] = service.backend.seen
    assert seen.path == "/v1/images/generations"
    body = {"n": 1, "size": "512x256", "seed": 7, "model": "dall-e-3"}
    assert seen.json == {"prompt": "a red apple", **body}


def test_headers_are_those_of_the_contract_cold_and_warm(service: InProcess) -> None:
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


def test_type_and_extension_are_those_of_the_bytes(service: InProcess, tmp_path: Path) -> None:
    service.backend.say(drawing(JPEG))
    got = service.picture("x")
    assert (got.headers["Content-Type"], got.body) == ("image/jpeg", JPEG)
    assert got.headers["Content-Disposition"] == 'inline; filename="x.jpg"'
    assert len(list((tmp_path / "cache").glob("*-*.jpg"))) == 1


def test_file_name_is_made_of_the_words_of_the_prompt(service: InProcess) -> None:
    for written, disposition in [
        ("%E7%BA%A2%20apple", "\"apple.png\"; filename*=UTF-8''%E7%BA%A2-apple.png"),
        ("a%0D%0AX-Injected:%201%22;x=", '"a-X-Injected-1-x.png"'),
        ("%3F", '"picture.png"'),
    ]:
        got = service.picture(written)
        assert (got.status, got.headers["X-Injected"]) == (200, None)
        assert got.headers["Content-Disposition"] == f"inline; filename={disposition}"


def test_description_reaches_the_backend_unchanged(service: InProcess) -> None:
    prompts = {
        **{text: text for text in ("a/b//c", "/leading", "trailing/", "../../etc/passwd")},
        "a%2Fb%3Fc%23d%25e+f": "a/b?c#d%e+f",
        "a%0Ab": "a\nb",
        "%F0%9F%8D%8E": "🍎",
        "%20%20a%20cat%20": "a cat",
        "what?%20Why+so??": "what? Why+so??",
    }
    assert {service.picture(written, seed=1).status for written in prompts} == {200}
    assert [seen.json["prompt"] for seen in service.backend.seen] == list(prompts.values())


def test_bad_parameter_is_a_400_before_anything_else(service: InProcess) -> None:
    for target, named in [
        ("/prompt/x?key=wrong&width=0", "width"),
        (f"/prompt/x?key={KEY}&key=b", "key"),
        (f"/prompt/x?key={KEY}&model=%E4", "not valid UTF-8"),
        (f"/prompt/?key={KEY}", "description"),
        (f"/prompt/%FF?key={KEY}", "description"),
        (f"/prompt/{'x' * 4001}?key={KEY}", "description"),
    ]:
        for method in ("GET", "HEAD"):
            got = service.get(target, method=method)
            assert (got.status, got.headers["Cache-Control"]) == (400, "no-store")
            assert got.headers["Content-Type"] == "application/problem+json"
            assert method == "HEAD" or named in got.detail
    assert service.backend.seen == []


def test_picture_stored_with_the_extension_in_its_prompt_wins(service: InProcess) -> None:
    plain, literal = png(2, 2), png(3, 3)
    service.backend.say(lambda seen: drawing(literal if ".png" in seen.json["prompt"] else plain))
    assert service.picture("logo.png").body == service.picture("logo").body == plain
    service.order({"prompt": "logo.png", "seed": 42})
    assert service.picture("logo.png").body == service.picture("logo.png.jpg").body == literal
    assert service.picture("logo").body == plain
    assert service.delete({"description": "logo.png"}).status == 200
    assert service.as_admin("/cache").json["entries"] == []


# --- HEAD, conditions, ranges ----------------------------------------------------------


def test_head_draws_nothing_and_has_the_headers_of_a_hit(service: InProcess) -> None:
    miss = service.picture("x", method="HEAD")
    assert (miss.status, miss.body, service.backend.seen) == (200, b"", [])
    assert miss.headers["Cache-Status"] == "PromptImageProxy; fwd=miss"
    assert miss.headers["Cache-Control"] == "no-store"
    assert miss.headers["Content-Length"] is miss.headers["Content-Type"] is None
    service.picture("x")
    got, head = service.picture("x"), service.picture("x", method="HEAD")
    assert head.body == b""
    for answer in (got, head):
        del answer.headers["Date"]
    assert sorted(got.headers.items()) == sorted(head.headers.items())


def test_conditional_requests_are_answered_304(service: InProcess) -> None:
    first = service.picture("x").headers
    for name, value, status in [
        ("If-None-Match", first["ETag"], 304),
        ("If-None-Match", f'"other", {first["ETag"]}', 304),
        ("If-None-Match", '"other"', 200),
        ("If-Modified-Since", first["Last-Modified"], 304),
        ("If-Modified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", 200),
        ("If-Modified-Since", "Mon, 01 Jan 99999999999 00:00:00 GMT", 200),
        ("If-Unmodified-Since", "Mon, 01 Jan 99999999999 00:00:00 GMT", 200),
        ("If-Range", "Mon, 01 Jan 99999999999 00:00:00 GMT", 200),
    ]:
        got = service.get(f"/prompt/x?key={KEY}", headers={name: value})
        assert (got.status, got.body) == (status, b"" if status == 304 else png()), (name, value)
        assert got.headers["ETag"] == first["ETag"]
        assert got.headers["X-Accel-Expires"] == "10"


def test_one_range_of_bytes_is_served_cold_and_warm(service: InProcess) -> None:
    data = png(size=1000)
    service.backend.say(drawing(data))
    for headers, status, body, content_range in [
        ({"Range": "bytes=10-19"}, 206, data[10:20], "bytes 10-19/1000"),
        ({"Range": "bytes=990-"}, 206, data[990:], "bytes 990-999/1000"),
        ({"Range": "bytes=-5"}, 206, data[-5:], "bytes 995-999/1000"),
        ({"Range": "bytes=5000-"}, 416, None, "bytes */1000"),
        ({"Range": "bytes=0-1", "If-Range": '"other"'}, 200, data, None),
        ({"Range": "bytes=0-1,5-6"}, 200, data, None),
        ({"Range": "lines=0-1"}, 200, data, None),
        ({"Range": "bytes=9-1"}, 200, data, None),
        ({"Range": "bytes=some"}, 200, data, None),
    ]:
        got = service.get(f"/prompt/x?key={KEY}", headers=headers)
        assert (got.status, got.headers.get("Content-Range")) == (status, content_range), headers
        assert body in (None, got.body)
    assert len(service.backend.seen) == 1


# --- who may ------------------------------------------------------------------------------------


def test_picture_needs_the_access_key(service: InProcess) -> None:
    for query in ("", "?key=", "?key=wrong", f"?key={KEY}x", "?key=%C3%A9"):
        for method in ("GET", "HEAD"):
            got = service.get(f"/prompt/x{query}", method=method)
            assert got.status == 401
            assert got.headers["WWW-Authenticate"].startswith("Bearer")
    assert service.backend.seen == []


def test_likely_cause_is_named_where_a_url_has_no_credentials(service: InProcess) -> None:
    assert "%23" in service.get("/prompt/a%20cat?width=64").detail
    for target in ("/prompt/a%20cat?key=wrong", "/prompt/a%20cat?exp=1", "/v1/models"):
        assert "%23" not in service.get(target).body.decode()


def test_access_key_may_be_a_bearer_token(service: InProcess) -> None:
    for scheme, status in [(f"Bearer {KEY}", 200), (f"bearer  {KEY}", 200), (f"Basic {KEY}", 401)]:
        assert service.get("/prompt/x", headers={"Authorization": scheme}).status == status
    assert service.get("/prompt/x", headers={"Authorization": "Bearer é"}).status == 401


def test_access_key_may_be_of_any_script(serve: Serve) -> None:
    service = serve(PROXY_ACCESS_KEY="钥匙")
    assert service.picture("x", key="%E9%92%A5%E5%8C%99").status == 200
    bearer = "Bearer 钥匙".encode().decode("latin-1")
    assert service.get("/prompt/x", headers={"Authorization": bearer}).status == 200


def test_administration_needs_the_admin_token(service: InProcess) -> None:
    for token in ("", "wrong", "\xe9", KEY):
        assert service.delete({"description": "x"}, token).status == 401
        assert service.get("/cache", headers={"X-Admin-Token": token}).status == 401
    assert service.get("/cache").status == 401
    assert service.post("/cache/delete", {"description": "x"}).status == 401


def test_administration_is_off_without_an_admin_token(serve: Serve) -> None:
    service = serve(ADMIN_TOKEN="")
    assert service.delete({"description": "x"}).status == 403
    assert service.as_admin("/cache").status == 403


# --- deleting and listing -----------------------------------------------------------------------


def test_deleted_picture_is_drawn_again(service: InProcess, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"width": 64, "height": 64, "seed": 1, "model": "m"}
    service.picture("a%20cat", **asked)
    body = asked | {"description": " A Cat ", "height": "64"}
    assert service.delete(body).json["deleted"] is True
    assert not list((tmp_path / "cache").glob("*.png"))
    assert service.delete(body).status == 404
    service.picture("a%20cat", **asked)
    assert len(service.backend.seen) == 2


def test_deleting_forgets_a_failure(service: InProcess) -> None:
    service.backend.say(BROKEN)
    assert service.picture("x").status == 502
    assert [service.delete({"description": "x"}).status for _ in range(2)] == [200, 404]


def test_options_are_accepted_wherever_a_picture_is_named(service: InProcess) -> None:
    given = {"quality": "high", "style": "a b", "background": "red", "negative_prompt": "no=text"}
    body = {"description": "x", **given}
    assert service.get(service.sign_target(body)).status == 200
    assert service.backend.seen[0].json.items() >= given.items()
    assert service.delete({"description": "x"}).status == 404
    assert service.delete(body).status == 200


def test_administrator_sees_and_deletes_a_picture_by_its_key(service: InProcess) -> None:
    service.picture("x")
    key = ImageRequest("x").key
    got = service.as_admin(f"/cache/{key}")
    assert (got.status, got.body, got.headers["Content-Type"]) == (200, png(), "image/png")
    assert got.headers["Cache-Control"] == "private, no-cache"
    assert service.get(f"/cache/{key}").status == 401
    assert service.delete({"key": key}).status == 200
    for missing in ("x", "0" * 64, key):
        assert service.as_admin(f"/cache/{missing}").status == 404


def test_bad_body_is_a_400(service: InProcess) -> None:
    for body in [
        *(b"", b"{", b"[]", b"null", b"\xff", b"[" * 15_000, {"width": 5}, {"key": "x"}),
        *({"description": 5}, {"description": ""}, {"description": "\ud800"}),
        *({"description": "x", "width": width} for width in (True, 1.5, [1])),
    ]:
        got = service.delete(body)
        assert (got.status, got.headers["Content-Type"]) == (400, "application/problem+json"), body


def test_key_in_a_prompt_is_a_400(service: InProcess) -> None:
    for target in (
        f"cat%3Fkey={KEY}",
        f"cat&key={KEY}?key={KEY}",
        f"cat?k%2565y={KEY}?key={KEY}",
        f"cat?{KEY}.png?key={KEY}",
        f"cat?style=a%26key={KEY}&key={KEY}",
    ):
        got = service.get(f"/prompt/{target}", headers={"Authorization": f"Bearer {KEY}"})
        assert (got.status, KEY in got.body.decode()) == (400, False), target
    assert not service.backend.seen


def test_body_over_16_kib_is_a_413(service: InProcess) -> None:
    assert [service.delete(b" " * size).status for size in (16_384, 16_385)] == [400, 413]


def test_listing_shows_the_newest_or_largest_first_page_by_page(service: InProcess) -> None:
    service.backend.say(*(drawing(png(size=size)) for size in (300, 500, 400)))
    for n in range(3):
        service.picture(f"cat%20{n}", width=8)
    for order, sizes in (("newest", [400, 500, 300]), ("largest", [500, 400, 300])):
        first = service.as_admin(f"/cache?order={order}&limit=2").json
        second = service.as_admin(f"/cache?order={order}&limit=2&before={first['next']}").json
        assert [entry["bytes"] for entry in first["entries"] + second["entries"]] == sizes
        assert second["next"] is None
        assert first["totals"] == second["totals"] == {"entries": 3, "bytes": 1200}
    [entry] = second["entries"]
    assert (entry["width"], entry["height"], entry["seed"], entry["model"]) == (8, None, 42, None)
    shown = (entry["prompt"], entry["media_type"], entry["drawn_by"])
    assert shown == ("cat 0", "image/png", service.backend.url)
    assert fetch(entry["url"]).headers["Cache-Status"] == HIT
    assert entry["markdown"] == f"![cat 0]({entry['url']})"
    assert entry["url"].startswith(f"{service.url}/")


def test_listing_searches_prompts_and_shows_final_ones(service: InProcess) -> None:
    service.backend.say(drawing(revised_prompt="a revised cat"))
    for prompt in ("a%20Cat", "100%25%20cat", "a_dog"):
        service.picture(prompt)
    found = service.as_admin("/cache?q=CAT").json["entries"]
    assert [entry["prompt"] for entry in found] == ["100% cat", "a Cat"]
    assert found[0]["final_prompt"] == "a revised cat"
    assert len(service.as_admin("/cache?since=1&until=999999999999").json["entries"]) == 3
    for nothing in ("model=x", "until=1", "since=999999999999"):
        assert service.as_admin(f"/cache?{nothing}").json["entries"] == []
    for description, final in (("a_dog", "a revised cat"), ("never drawn", None)):
        assert service.sign({"description": description}).json["final_prompt"] == final


def test_bad_parameter_of_the_listing_is_a_400(service: InProcess) -> None:
    cursors = ("before=x", f"before=1e5-{'a' * 64}")
    for query in ("limit=0", "limit=201", "limit=x", "order=oldest", "since=x", *cursors):
        assert service.as_admin(f"/cache?{query}").status == 400, query


# --- status and the rest ------------------------------------------------------------------------


def test_status_shows_everything_but_secrets(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    secret_url = backend.url.replace("http://", "http://user:pass-word@") + "/v1?api-key=in-query"
    tokens = ("AUTH_TOKEN", "POLLINATIONS_TOKEN", "LLM_OPTIMIZATION_TOKEN")
    settings = llm_settings(server(), optimise=True, rewrite=True) | dict.fromkeys(tokens, "token")
    settings |= {"POLLINATIONS_ENABLED": "true", "POLLINATIONS_URL": "http://127.0.0.1:9/image"}
    got = serve(backend, **settings | {"BACKEND_API_URLS": secret_url}).get("/status")
    assert got.headers["Cache-Control"] == "no-store"
    assert got.json["status"] == "ok"
    [about] = got.json["backends"]
    assert about.pop("url") == f"{backend.url}/v1"
    assert about == {"weight": 1.0, "state": "ready", "last_drew": None}
    assert got.json["administration"] == {"enabled": True}
    assert got.json["cache"]["entries"] == 0
    assert got.json["de_nsfw"] == {"enabled": True, "max_attempts": 2}
    assert got.json["fallback"]["enabled"] is True
    for secret in (KEY, ADMIN, "token", "pass-word", "in-query"):
        assert secret not in got.body.decode()


def test_status_says_when_and_why_each_server_failed(serve: Serve, server: MakeServer) -> None:
    llm = server()
    llm.say(Say({"error": {"message": "Incorrect API key provided."}}, 401))
    service = serve(**llm_settings(llm, optimise=True))
    unknown = Say({"error": {"message": "Unknown parameter: 'seed'.", "param": "seed"}}, 400)
    service.backend.say(unknown, drawing(), BROKEN)
    assert [service.picture(prompt).status for prompt in "ab"] == [200, 502]
    about = service.get("/status").json
    [found] = about["backends"]
    assert (found["state"], found["why"]) == ("cooling", "down")
    assert found["models"] == {"": {"learned": {"dropped": ["seed"]}}}
    about_llm = about["llm_optimization"]
    assert about_llm["why"] == "unauthorised"
    for moment in (found["last_drew"], found["last_failed"], about_llm["last_failed"]):
        assert abs(datetime.fromisoformat(moment).timestamp() - time.time()) < 60


def test_crawlers_are_kept_away_from_pictures(service: InProcess) -> None:
    got = service.get("/robots.txt")
    assert (got.status, got.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert "Disallow: /prompt/" in got.body.decode()


def test_unknown_route_is_a_problem(service: InProcess) -> None:
    for target, method, status in [
        ("/nothing", "GET", 404),
        ("/Prompt/x", "GET", 404),
        ("/prompt", "GET", 404),
        ("/prompt/x", "POST", 405),
        ("/cache/delete", "GET", 405),
        ("/status", "DELETE", 405),
    ]:
        got = service.get(target, method=method)
        assert (got.status, got.json["status"]) == (status, status)
        assert got.headers["Content-Type"] == "application/problem+json"
