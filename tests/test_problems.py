"""Errors: problem+json for programs, a card for what shows pictures, and nothing secret in them."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import datetime

import pytest

from picture import ImageRequest
from web.cards import VARY, card, wrap
from web.sentences import ADVICE, CLEARING, SENTENCES, TITLES
from web.status import Status

from .conftest import (
    BROKEN,
    KEY,
    REFUSAL,
    ROOT,
    InProcess,
    llm_settings,
    pollinations_settings,
    saying,
)
from .servers import Got, Say, ScriptedServer, fetch

Serve = Callable[..., InProcess]
MakeServer = Callable[[], ScriptedServer]

ROOMS = ("", "drawing", "storage", "web")
RAISED = re.compile(r'(?:BadRequest|Unauthorised|Forbidden|NotFound|TooLarge|Problem)\(\s*"(\w+)"')

CHROME_IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
FIREFOX_IMG = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
CAMO = "image/png,image/svg+xml,image/*"
CHROME_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/*,*/*;q=0.8"


@pytest.mark.parametrize(
    ("headers", "is_card"),
    [
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
    ],
)
def test_client_that_shows_pictures_gets_a_card(
    serve: Serve, backend: ScriptedServer, headers: dict[str, str], is_card: bool
) -> None:
    got = serve(backend).get("/prompt/x?key=wrong", headers=headers)
    assert (got.status, got.headers["Cache-Control"]) == (401, "no-store")
    assert got.headers["Vary"] == VARY
    if is_card:
        assert got.headers["Content-Type"] == "image/svg+xml"
        assert got.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert "The access key is wrong." in texts(got.body)
    else:
        assert got.detail == "The access key is wrong."


def texts(svg: bytes | str) -> list[str]:
    """Return the texts of an SVG, which has to be well-formed."""
    root = ElementTree.fromstring(svg)
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def as_picture(service: InProcess, target: str) -> Got:
    return service.get(target, headers={"Accept": CHROME_IMG})


def test_card_gives_the_advice_that_helps(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    for say, status, title, advice in [
        (REFUSAL, 422, "Refused by moderation", "Change the description."),
        (Say("", 503, {"Retry-After": "0"}), 502, "Drawing failed", "Try again in 2 s."),
        (
            Say("", 401, {"Retry-After": "0"}),
            502,
            "Drawing failed",
            "Only the operator can fix this",
        ),
    ]:
        backend.say(say)
        got = as_picture(service, f"/prompt/{status}{advice[:3]}?key={KEY}")
        assert (got.status, texts(got.body)[0]) == (status, title)
        assert advice in " ".join(texts(got.body)[1:])
    # A wrong token is avoided for a minute, longer than a request waits.
    cooling = as_picture(service, f"/prompt/y?key={KEY}")
    assert (cooling.status, texts(cooling.body)[0]) == (503, "Try again later")
    assert 50 <= int(cooling.headers["Retry-After"]) <= 60


def test_remembered_refusal_says_until_when_and_how_to_clear_it(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(REFUSAL)
    service = serve(backend, BLOCKED_TTL="3600")
    first, again = service.picture("x").json, service.picture("x").json
    assert (first.get("remembered"), again["remembered"]) == (None, True)
    for about in (first, again):
        left = datetime.fromisoformat(about["until"]).timestamp() - time.time()
        assert 3500 < left <= 3601
        assert "This result is cached until " in about["detail"]
        assert (about["key"], about["remedy"]) == (ImageRequest("x").key, "reword")
        assert "POST /cache/delete" in about["advice"]
    shown = " ".join(texts(as_picture(service, f"/prompt/x?key={KEY}").body)[1:])
    assert shown == f"{again['detail']} {again['advice']}"


def test_remembered_failure_says_until_when_and_how_to_clear_it(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(Say("", 401, {"Retry-After": "0"}))
    service = serve(backend)
    first, again = service.picture("x").json, service.picture("x").json
    assert (first["remedy"], again["remedy"], again["remembered"]) == ("operator", "operator", True)
    assert "cached until" not in first["detail"], "it is over when one has read so"
    left = datetime.fromisoformat(again["until"]).timestamp() - time.time()
    assert -1 <= left <= 2
    shown = " ".join(texts(as_picture(service, f"/prompt/x?key={KEY}").body)[1:])
    assert shown == f"{again['detail']} {again['advice']}"
    assert len(backend.seen) == 1


def test_cards_can_be_turned_off(serve: Serve, backend: ScriptedServer) -> None:
    got = as_picture(serve(backend, ERROR_IMAGES="false"), "/prompt/x?key=wrong")
    assert got.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("word " * 9, ["word word word word word word word", "word word"]),
        ("W" * 50, ["W" * 22, "W" * 22, "W" * 6]),
        ("画" * 21 + "完，" + "画" * 3, ["画" * 21, "完，画画画"]),
        ("参数 width 须为整数。" * 3, ["参数 width 须为整数。" * 2, "参数 width 须为整数。"]),
    ],
)
def test_sentence_is_wrapped_where_a_line_may_end(text: str, lines: list[str]) -> None:
    assert list(wrap(text)) == lines


def test_card_is_as_high_as_its_text() -> None:
    for sentence, height in (("short", "200"), ("word " * 60, "300")):
        root = ElementTree.fromstring(card("Title", sentence))
        assert (root.get("width"), root.get("height")) == ("480", height)
        assert root.get("viewBox") == f"0 0 480 {height}"


@pytest.mark.parametrize(
    ("languages", "is_chinese"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", True),
        ("zh", True),
        ("en-US,en;q=0.9,zh;q=0.8", False),
        ("fr", False),
        ("*", False),
        ("", False),
    ],
)
def test_card_speaks_the_language_of_its_reader(
    serve: Serve, backend: ScriptedServer, languages: str, is_chinese: bool
) -> None:
    headers = {"Accept": CHROME_IMG, "Accept-Language": languages}
    title, *lines = texts(serve(backend).get("/prompt/x?key=wrong", headers=headers).body)
    chinese = ("未授权", "访问密钥不正确。")
    assert (title, "".join(lines)) == (
        chinese if is_chinese else ("Unauthorised", "The access key is wrong.")
    )


def test_every_code_has_a_sentence_and_every_sentence_is_used() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).glob("*.py")]
    source = "".join(path.read_text("utf-8") for path in files if path.name != "sentences.py")
    raised = RAISED.findall(source)
    assert len(raised) > 30
    assert set(raised) <= SENTENCES.keys()
    assert [code for code in SENTENCES if f'"{code}"' not in source] == []


def test_both_languages_name_the_same_parameters_and_none_is_missing() -> None:
    for sentence in (*SENTENCES.values(), *TITLES.values(), *ADVICE.values(), CLEARING):
        english, chinese = (re.findall(r"{(\w+)", text) for text in sentence)
        assert english == chinese
        assert re.search("[\u4e00-\u9fff]", sentence.zh), sentence


def test_sentences_follow_each_other_without_a_space_in_chinese(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(REFUSAL)
    service = serve(backend)
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


def test_nothing_of_the_request_is_echoed(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(BROKEN)
    service = serve(backend)
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
    serve: Serve,
    backend: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(status: Status, *, for_admin: bool) -> None:
        raise RuntimeError("an invariant that does not hold")

    service = serve(backend)
    monkeypatch.setattr(Status, "describe", fail)
    got = service.get("/status")
    assert (got.status, "invariant" in got.body.decode()) == (500, False)
    assert "an invariant that does not hold" in caplog.text
