"""Errors: problem+json for programs, a card for what shows pictures, and nothing secret in them."""

import io
import json
import re
import time
from datetime import datetime
from itertools import product
from typing import get_args

import pytest
from PIL import Image

from demo.render_cards import FOLDER, describe, parts_of_each
from picture import ImageRequest
from web.problems import VARY, card
from web.sentences import ADVICE, CLEARING, REASON, SENTENCES, TITLES, Language
from web.status import Status

from .conftest import (
    BROKEN,
    KEY,
    REFUSAL,
    ROOT,
    InProcess,
    MakeServer,
    Serve,
    llm_settings,
    pollinations_settings,
    saying,
)
from .scripted import Got, Say, ScriptedServer, fetch

ROOMS = ("", "drawing", "storage", "web")
RAISED = re.compile(r'(?:BadRequest|Unauthorised|Forbidden|NotFound|Problem)\(\s*"(\w+)"')

CHROME_IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
FIREFOX_IMG = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
KEYS = {"reader": {"key": KEY}, "old": {"key": "old-key", "expires": "2020-01-31"}}
CAMO = "image/png,image/svg+xml,image/*"
CHROME_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/*,*/*;q=0.8"


def test_client_that_shows_pictures_gets_a_card(service: InProcess) -> None:
    for headers, is_card in [
        ({"Accept": CHROME_IMG}, True),
        ({"Accept": FIREFOX_IMG}, True),
        ({"Accept": CAMO}, True),
        ({"Accept": "image/*"}, True),
        ({"Sec-Fetch-Dest": "image", "Accept": "*/*"}, True),
        ({"Sec-Fetch-Dest": "empty", "Accept": CHROME_IMG}, False),
        ({"Sec-Fetch-Dest": "document", "Accept": CHROME_PAGE}, False),
        ({"Accept": CHROME_PAGE}, False),
        ({"Accept": "*/*"}, False),
        ({"Accept": "*/*", "User-Agent": "github-camo (0123abcd)"}, True),
        ({"Accept": "*/*", "Via": "1.1 Camo Asset Proxy 2.3.0"}, True),
        ({"User-Agent": "go-camo"}, True),
        ({"Accept": "application/json"}, False),
        ({}, False),
    ]:
        got = service.get("/prompt/x?key=wrong", headers=headers)
        assert (got.status, got.headers["Cache-Control"]) == (401, "no-store")
        assert got.headers["Vary"] == VARY
        assert (got.headers["Content-Type"] == "image/png") is is_card, headers
        text = said(got.body) if is_card else got.detail
        expected = "Unauthorised: The key or the signature in this link"
        assert text.startswith(expected if is_card else "The access key is wrong.")


def said(picture: bytes) -> str:
    """Return the text of a card, which it also holds as its description."""
    with Image.open(io.BytesIO(picture)) as image:
        return str(image.info["Description"])


def as_picture(service: InProcess, target: str) -> Got:
    return service.get(target, headers={"Accept": CHROME_IMG})


def test_card_says_what_its_reader_can_do(serve: Serve) -> None:
    service = serve(PROXY_ACCESS_KEY="", ACCESS_KEYS=json.dumps(KEYS))
    for say, status, text in [
        (REFUSAL, 422, "Refused by moderation: This description cannot be drawn. Change it"),
        (Say("", 503, {"Retry-After": "0"}), 502, "Try again later: This picture is not available"),
        (Say("", 401, {"Retry-After": "0"}), 502, "Drawing failed: Reloading does not help. Tell"),
    ]:
        service.backend.say(say)
        got = as_picture(service, f"/prompt/{text[:3]}?key={KEY}")
        assert (got.status, said(got.body).startswith(text)) == (status, True)
    # A wrong token is avoided for a minute, longer than a request waits.
    cooling = as_picture(service, f"/prompt/y?key={KEY}")
    assert (cooling.status, said(cooling.body)[:15]) == (503, "Try again later")
    assert 50 <= int(cooling.headers["Retry-After"]) <= 60
    for query, status, title in [
        ("", 401, "Incomplete link"),
        ("?sig=0", 401, "Unauthorised"),
        ("?key=old-key", 401, "Link expired"),
        (f"?key={KEY}&width=0", 400, "Invalid link"),
    ]:
        got = as_picture(service, f"/prompt/x{query}")
        assert (got.status, said(got.body).partition(":")[0]) == (status, title)


def test_administrators_are_told_more_but_in_json_alone(service: InProcess) -> None:
    for say, more in [
        (REFUSAL, "POST /cache/delete"),
        (Say("", 401, {"Retry-After": "0"}), "See /status or the log."),
    ]:
        service.backend.say(say)
        assert more in service.picture("x").json["advice"]
        ordered = service.order({"prompt": "x", "seed": 42})
        for got in (ordered, as_picture(service, f"/prompt/x?key={KEY}")):
            assert got.status in (400, 422, 502)
            text = said(got.body) if got.body.startswith(b"\x89PNG") else got.body.decode()
            assert not re.search("administrator|/status|/cache/delete|the log", text)
        service.delete({"description": "x"})


def test_model_that_nobody_knows_is_not_blamed_on_the_operator(service: InProcess) -> None:
    service.backend.say(Say({"error": {"message": "The model `typo` does not exist"}}, 404))
    found = service.picture("x", model="typo").json
    assert (found["status"], found["title"], found["remedy"]) == (502, "Unknown model", "model")
    assert service.picture("x").json["remedy"] == "operator"


def test_remembered_refusal_says_until_when_and_how_to_clear_it(serve: Serve) -> None:
    service = serve(BLOCKED_TTL="3600")
    service.backend.say(REFUSAL)
    first, again = service.picture("x").json, service.picture("x").json
    assert (first.get("remembered"), again["remembered"]) == (None, True)
    for about in (first, again):
        assert 3500 < seconds_until(about["until"]) <= 3601
        assert "This result is cached until " in about["detail"]
        assert (about["key"], about["remedy"]) == (ImageRequest("x").key, "reword")
        assert "POST /cache/delete" in about["advice"]


def test_remembered_failure_says_until_when_and_how_to_clear_it(service: InProcess) -> None:
    service.backend.say(Say("", 401, {"Retry-After": "0"}))
    first, again = service.picture("x").json, service.picture("x").json
    assert (first["remedy"], again["remedy"], again["remembered"]) == ("operator", "operator", True)
    assert "cached until" not in first["detail"], "it is over when one has read so"
    assert -1 <= seconds_until(again["until"]) <= 2
    assert len(service.backend.seen) == 1


def seconds_until(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp() - time.time()


def test_cards_can_be_turned_off(serve: Serve) -> None:
    got = as_picture(serve(ERROR_IMAGES="false"), "/prompt/x?key=wrong")
    assert got.headers["Content-Type"] == "application/problem+json"


def test_cards_are_small_and_show_the_present_texts() -> None:
    wanted = {name: describe(parts) for name, parts in parts_of_each().items()}
    cards = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert {name: said(data) for name, data in cards.items()} == wanted
    for data in cards.values():
        assert len(data) <= 8 * 1024
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (480, 320)


def test_every_error_has_a_card_and_every_card_an_error() -> None:
    statuses = (400, 401, 403, 404, 405, 413, 416, 422, 429, 500, 502, 503, 504)
    errors = product(SENTENCES, ADVICE, statuses, get_args(Language))
    shown = {said(one) for one in {card(*error) for error in errors}}
    by_nginx = {"unreadable.png", "many.en.png", "many.zh.png"}
    parts = [parts for name, parts in parts_of_each().items() if name not in by_nginx]
    assert shown == {*map(describe, parts)}


def test_card_speaks_the_language_of_its_reader(service: InProcess) -> None:
    chinese = ("zh-CN,zh;q=0.9,en;q=0.8", "zh-TW;q=0.9,en;q=0.8", "zh")
    for languages in (*chinese, "en-US,en;q=0.9,zh;q=0.8", "zh;q=0,fr", "fr", "*", ""):
        headers = {"Accept": CHROME_IMG, "Accept-Language": languages}
        got = service.get("/prompt/x?key=wrong", headers=headers)
        title = "未授权: 链接中" if languages in chinese else "Unauthorised: The key"
        assert said(got.body).startswith(title), languages


def test_every_code_has_a_sentence_and_every_sentence_is_used() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).glob("*.py")]
    source = "".join(path.read_text("utf-8") for path in files if path.name != "sentences.py")
    raised = RAISED.findall(source)
    assert len(raised) > 30
    assert set(raised) <= SENTENCES.keys()
    assert [code for code in SENTENCES if f'"{code}"' not in source] == []


def test_both_languages_name_the_same_parameters_and_none_is_missing() -> None:
    for sentence in (*SENTENCES.values(), *TITLES.values(), *ADVICE.values(), CLEARING, REASON):
        english, chinese = (re.findall(r"{(\w+)", text) for text in sentence)
        assert english == chinese
        assert re.search("[\u4e00-\u9fff]", sentence.zh), sentence


def test_sentences_follow_each_other_without_a_space_in_chinese(service: InProcess) -> None:
    service.backend.say(REFUSAL)
    found = service.get(f"/prompt/a?key={KEY}", headers={"Accept-Language": "zh"}).json
    assert found["title"] == "未通过审核"
    assert re.fullmatch(r"所有后端的审核都拒绝了此提示词。此结果会缓存到 .* UTC。", found["detail"])
    assert found["advice"].startswith("请修改描述。管理员可以清除它：")


def test_problem_names_the_stages_and_why_they_failed(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    fallback, llm = server(), server()
    backend.say(Say({"error": {"message": "upstream-text"}}, 500))
    fallback.say(Say("upstream-text", 500))
    llm.say(saying("<prompt>a better cat</prompt>"))
    settings = llm_settings(llm, optimise=True) | pollinations_settings(fallback)
    got = serve(backend, AUTH_TOKEN="token-of-the-backend", **settings).picture("secret-word")
    assert (got.status, got.headers["Content-Type"]) == (502, "application/problem+json")
    assert got.headers["Cache-Control"] == "no-store"
    assert got.json["title"] == "Drawing failed"
    assert [(s["stage"], s["outcome"], s.get("why")) for s in got.json["stages"]] == [
        ("optimise", "ok", None),
        ("generate", "failed", "down"),
        ("fallback", "failed", "down"),
    ]
    for secret in ("upstream-text", "token-of", backend.url, "secret-word", KEY):
        assert secret not in got.body.decode()


def test_nothing_of_the_request_is_echoed(service: InProcess) -> None:
    service.backend.say(BROKEN)
    prompt = "%3Cscript%3Ealert(1)%3C/script%3E%0D%0AX-Injected:%201"
    for got in (
        service.picture(prompt),
        as_picture(service, f"/prompt/{prompt}?key={KEY}"),
        as_picture(service, f"/prompt/{prompt}?key=bad-key"),
        fetch(f"{service.url}/%3Cscript%3E"),
    ):
        assert got.status in (401, 404, 502)
        assert not any(word in got.body for word in (b"script>", b"alert", b"bad-key"))
        assert "X-Injected" not in got.headers


def test_unforeseen_error_is_a_500_that_only_the_log_explains(
    service: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(status: Status, *, for_admin: bool) -> None:
        raise RuntimeError("an invariant that does not hold")

    monkeypatch.setattr(Status, "describe", fail)
    got = service.get("/status")
    assert (got.status, "invariant" in got.body.decode()) == (500, False)
    assert "an invariant that does not hold" in caplog.text
