"""Errors as problem+json and as pictures, and the gallery's listing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from web.answers import card

from .conftest import ADMIN, KEY, REFUSAL, InProcess, drawing
from .servers import Got, Say, ScriptedServer, png

Serve = Callable[..., InProcess]

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
        ({"Accept": "application/json"}, False),
        ({}, False),
    ],
)
def test_error_is_a_picture_for_what_shows_pictures(
    serve: Serve, backend: ScriptedServer, headers: dict[str, str], is_card: bool
) -> None:
    got = serve(backend).get("/prompt/x?key=wrong", headers=headers)
    assert (got.status, got.headers["Cache-Control"]) == (401, "no-store")
    assert got.headers["Vary"] == "Accept, Sec-Fetch-Dest"
    if is_card:
        assert got.headers["Content-Type"] == "image/svg+xml"
        assert "The access key is wrong." in texts(got.body)
    else:
        assert got.detail == "The access key is wrong."


def texts(svg: bytes | str) -> list[str]:
    """Return the texts of an SVG, which has to be well-formed."""
    root = ElementTree.fromstring(svg)
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def as_picture(service: InProcess, target: str) -> Got:
    return service.get(target, headers={"Accept": CHROME_IMG})


def test_card_tells_refusals_outages_and_waits_apart(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    backend.say(REFUSAL)
    refused = as_picture(service, f"/prompt/rude?key={KEY}")
    assert (refused.status, texts(refused.body)[0]) == (422, "Refused by moderation")
    backend.say(Say("", 429, {"Retry-After": "77"}))
    as_picture(service, f"/prompt/x?key={KEY}")
    cooling = as_picture(service, f"/prompt/y?key={KEY}")
    assert cooling.status == 503
    assert texts(cooling.body)[-1].startswith("Try again in 7")


def test_card_holds_nothing_of_the_request_or_an_upstream(
    serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(Say({"error": {"message": "upstream <text>"}}, 500))
    service = serve(backend)
    for target in (f"/prompt/secret-word?key={KEY}", "/prompt/secret-word?key=bad-key"):
        body = as_picture(service, target).body.decode()
        assert "secret-word" not in body
        assert "bad-key" not in body
        assert "upstream" not in body


def test_cards_can_be_turned_off(serve: Serve, backend: ScriptedServer) -> None:
    got = as_picture(serve(backend, ERROR_IMAGES="false"), "/prompt/x?key=wrong")
    assert got.headers["Content-Type"] == "application/problem+json"


def test_long_sentence_is_wrapped_into_the_card() -> None:
    lines = texts(card("Title", "word " * 40, "9"))
    assert len(lines) == 6
    assert max(map(len, lines)) <= 46
    assert lines[-1] == "Try again in 9 s."


# --- the listing


def listing(service: InProcess, query: str = "", token: str | None = ADMIN) -> Got:
    return service.get(f"/cache{query}", headers={"X-Admin-Token": token} if token else {})


def test_listing_is_the_newest_first_a_page_at_a_time(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    for n in range(5):
        service.picture(f"cat%20{n}", width=8)
    first = listing(service, "?limit=3").json
    second = listing(service, f"?limit=3&before={first['next']}").json
    prompts = [entry["prompt"] for entry in first["entries"] + second["entries"]]
    assert prompts == ["cat 4", "cat 3", "cat 2", "cat 1", "cat 0"]
    assert second["next"] is None
    entry = first["entries"][0]
    assert (entry["width"], entry["height"], entry["seed"], entry["model"]) == (8, None, 42, None)
    assert (entry["bytes"], entry["media_type"]) == (len(png()), "image/png")
    assert entry["drawn_by"] == backend.url
    assert service.get(urlsplit(entry["url"])._replace(scheme="", netloc="").geturl()).status == 200
    assert entry["markdown"] == f"![cat 4]({entry['url']})"


def test_listing_searches_prompts_literally(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(drawing(revised_prompt="a revised cat"))
    service = serve(backend)
    for prompt in ("a%20Cat", "100%25%20cat", "a_dog"):
        service.picture(prompt)
    assert [e["prompt"] for e in listing(service, "?q=CAT").json["entries"]] == [
        "100% cat",
        "a Cat",
    ]
    assert [e["prompt"] for e in listing(service, "?q=%25").json["entries"]] == ["100% cat"]
    assert [e["prompt"] for e in listing(service, "?q=_").json["entries"]] == ["a_dog"]
    assert listing(service, "?q=CAT").json["entries"][0]["final_prompt"] == "a revised cat"


def test_listing_is_for_the_admin(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    assert listing(service, token=None).status == 401
    assert listing(service, token=KEY).status == 401
    assert listing(serve(backend, ADMIN_TOKEN="")).status == 403
    for query in ("?limit=0", "?limit=201", "?limit=x", "?before=x", "?before=1-"):
        assert listing(service, query).status == 400, query


def test_picture_without_a_prompt_is_deleted_by_its_key(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    service.picture("x")
    [entry] = listing(service).json["entries"]
    assert service.delete(f'{{"key": "{entry["key"]}"}}'.encode()).status == 200
    assert listing(service).json == {"entries": [], "next": None}
