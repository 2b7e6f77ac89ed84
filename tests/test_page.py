"""The page at `/` in a real Chromium, against a real gunicorn with scripted upstreams."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import pytest
from markdown_it import MarkdownIt
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from metrics.families import STAGES
from storage import Row
from storage.local.sqlite import SqliteState
from web.cards import card
from web.sentences import ADVICE, CLEARING, SENTENCES, Language

from .browser import IS_CI, IS_MISSING, MISSING, STATE, Page, start_chromium
from .conftest import (
    ADMIN,
    KEY,
    REFUSAL,
    ROOT,
    Gunicorn,
    InProcess,
    drawing,
    hosting_settings,
    llm_settings,
    pollinations_settings,
    saying,
)
from .servers import Gate, Say, ScriptedServer, Seen, closing_all, fetch, png

Serve = Callable[..., InProcess]
MakeServer = Callable[[], ScriptedServer]

if IS_MISSING and not IS_CI:
    pytest.skip(MISSING, allow_module_level=True)

REQUESTED = "return performance.getEntries().map((one) => one.name).filter((n) => n.includes(':'))"
ANSWERS = "return performance.getEntries().filter((one) => one.name.includes('/prompt/')).length"


PROPORTIONS = (
    "return Object.fromEntries([...document.querySelectorAll('#shapes label')].map((label) => {"
    " const box = label.querySelector('i').getBoundingClientRect();"
    " return [label.querySelector('input').value, box.width / box.height]; }))"
)


def picture_by_seed(seen: Seen) -> Say:
    return drawing(png(64, 48, shade=seen.json["seed"] % 256))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    page = Page(driver)
    page.resize(1000, 640)
    page.prefer()
    yield page
    log = page.log()
    # Violations of the Content-Security-Policy, and uncaught errors.
    assert not [one for one in log if one["source"] in ("security", "javascript")]
    assert not [one for one in log if "Content Security Policy" in one["message"]]


@dataclass
class Studio:
    """A proxy and its backend, shared by the tests that need no settings of their own."""

    service: Gunicorn
    backend: ScriptedServer
    folder: Path

    @contextmanager
    def importing(self, count: int) -> Iterator[None]:
        """Put pictures into the cache as if they were adopted, and take them out again."""
        data, keys = png(64, 48), [f"{number:064x}" for number in range(count)]
        rows = [
            Row(
                key=key,
                file=f"{key}-{'0' * 16}.png",
                media_type="image/png",
                bytes=len(data),
                digest=hashlib.sha256(data).hexdigest(),
                created=time.time(),
            )
            for key in keys
        ]
        for row in rows:
            (self.folder / str(row.file)).write_bytes(data)
        with closing(SqliteState(self.folder)) as state:
            for start in range(0, count, 500):
                state.add(rows[start : start + 500])
            yield
            state.remove(rows)

    def clear(self) -> None:
        self.backend.say(drawing())
        self.backend.seen.clear()
        for entry in self.entries():
            self.service.delete(json.dumps({"key": entry["key"]}).encode())

    def entries(self) -> list[dict[str, Any]]:
        listed = self.service.get("/cache?limit=200", headers={"X-Admin-Token": ADMIN})
        found: list[dict[str, Any]] = listed.json["entries"]
        return found


@pytest.fixture(scope="module")
def opened_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder, backend = tmp_path_factory.mktemp("studio"), ScriptedServer()
    environment = {
        "PROXY_ACCESS_KEY": KEY,
        "ADMIN_TOKEN": ADMIN,
        "CACHE_DIR": str(folder / "cache"),
        "POLLINATIONS_ENABLED": "false",
        "WORKERS": "2",
        "MODELS": "flux/1-schnell, gpt-image-1",
        "BACKEND_API_URLS": backend.url,
    }
    with closing_all([backend]):
        service = Gunicorn(environment, folder / "gunicorn.log")
        with closing_all([service]):
            yield Studio(service, backend, folder / "cache")


@pytest.fixture
def studio(opened_studio: Studio) -> Studio:
    opened_studio.clear()
    return opened_studio


# --- the key


def test_key_is_asked_for_until_it_is_right_and_the_drawing_goes_on(
    page: Page, studio: Studio
) -> None:
    page.open(studio.service, key=None)
    page.draw("a red apple", until="key")
    page.type("#key", "wrong" + Keys.ENTER)
    page.wait_for_text("#key-wrong", "not accepted")
    assert not studio.backend.seen
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("done")
    assert [seen.json["prompt"] for seen in studio.backend.seen] == ["a red apple"]
    page.driver.refresh()
    page.wait_for_state("done")
    assert not page.shows("#key")
    page.click("#forget")
    page.wait_for_state("key")
    assert page.run("return localStorage.getItem('pip.key')") is None


def test_key_and_requests_go_to_the_proxy_only(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    page.draw("a red apple")
    page.open_gallery()
    requested = page.run(REQUESTED)
    assert any("/page/page.js" in url for url in requested)
    assert any("/sign" in url for url in requested)
    strangers = [url for url in requested if not url.removeprefix("blob:").startswith(page.url)]
    assert not strangers
    assert not [url for url in [*requested, page.driver.current_url] if KEY in url]
    stored = page.run("return JSON.stringify([localStorage['pip.history'], localStorage])")
    assert "a red apple" in stored
    assert ADMIN not in stored
    assert stored.count(KEY) == 1, "the history holds no key"


# --- drawing


def test_seconds_are_counted_and_compared_with_those_of_late(page: Page, studio: Studio) -> None:
    gates = [Gate(drawing(png(64, 48))) for _ in range(2)]
    studio.backend.say(*gates)
    page.open(studio.service)
    page.draw("a red apple", until="waiting")
    assert not page.shows("#lately"), "nothing was drawn here before"
    first = page.text("#seconds")
    page.wait(lambda: page.text("#seconds") not in ("", first), "the seconds to count")
    gates[0].opened.set()
    page.wait_for_state("done")
    assert (page.source(), page.picture_width()) == ("backend", 64)
    assert page.at("#picture").get_attribute("alt") == "a red apple"
    assert "Drawn by a backend, in " in page.text("#how")
    page.draw("a green apple", until="waiting")
    assert re.fullmatch(r"Recent pictures took about [\d.]+ s", page.text("#lately"))
    gates[1].opened.set()
    page.wait_for_state("done")
    page.driver.refresh()
    page.wait_for_state("done")
    assert (page.source(), page.picture_width()) == ("cache", 64)
    assert "From the cache" in page.text("#how")
    assert len(studio.backend.seen) == 2


def test_picture_that_takes_long_is_picked_up_when_it_is_drawn(
    page: Page, serve: Serve, backend: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.problems.RELOAD_SECONDS", 0)
    backend.say(gate := Gate(drawing(png(64, 48))))
    page.open(serve(backend, ANSWER_WITHIN="0.1"))
    page.draw("a red apple", until="waiting")
    page.wait(lambda: page.run(ANSWERS) >= 2, "a second request")
    assert page.run(STATE) == "waiting"
    gate.opened.set()
    page.wait_for_state("done")
    assert (page.picture_width(), len(backend.seen)) == (64, 1)
    assert page.source() in ("backend", "other"), "not from the cache"


def test_size_model_seed_and_options_are_sent_stored_and_shown(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    page.choose("#shapes", "own")
    page.type("#width", "640")
    page.type("#height", "180")
    shapes = {"": 1, "1024x1024": 1, "1024x768": 4 / 3, "768x1024": 3 / 4, "1280x720": 16 / 9}
    assert page.run(PROPORTIONS) == pytest.approx(shapes | {"own": 640 / 180}, abs=0.05)
    page.wait_until("document.querySelector('#offered').length === 4")
    assert page.text("#offered") == "default flux/1-schnell gpt-image-1 other …"
    page.choose("#offered", "flux/1-schnell")
    assert not page.shows("#model")
    page.type("#seed", "-123456789012345678")
    assert not page.shows("#quality")
    page.click("#options summary")
    given = {"quality": "high", "style": "a & b", "background": "red", "negative_prompt": "no=text"}
    for name, value in given.items():
        page.type(f"#{name}", value)
    page.draw("slash/and ü?")
    asked: dict[str, Any] = {"prompt": "slash/and ü?", "size": "640x180", **given}
    asked |= {"model": "flux/1-schnell", "seed": -123456789012345678}
    assert studio.backend.seen[0].json.items() >= asked.items()
    assert "flux/1-schnell · Quality: high · Style: a & b" in page.text("#facts")
    fragment = parse_qs(urlsplit(page.driver.current_url).fragment)
    expected = {**given, "width": "640", "height": "180", "seed": "-123456789012345678"}
    assert {name: fragment[name] for name in expected} == {n: [v] for n, v in expected.items()}
    page.driver.get(f"{page.url}/status")
    page.driver.get(f"{page.url}/")
    page.wait_for_state("done")
    assert (page.value("#width"), page.value("#style")) == ("640", "a & b")
    assert page.shows("#negative_prompt")
    page.choose("#offered", "?")
    page.type("#model", "vendor/secret")
    page.draw("slash/and ü?")
    assert studio.backend.seen[1].json["model"] == "vendor/secret"


def test_address_fills_the_form_and_never_draws(page: Page, studio: Studio) -> None:
    page.open(studio.service, "#prompt=a+red+apple&width=512&height=512&seed=7&model=vendor/x")
    page.wait(lambda: page.run(ANSWERS) == 1, "the look-up")
    page.wait_until("document.querySelector('#offered').length === 4")
    assert page.run(STATE) == "empty"
    assert (page.value("#prompt"), page.value("#seed")) == ("a red apple", "7")
    assert (page.value("#offered"), page.value("#model")) == ("?", "vendor/x")
    assert page.run("return document.querySelector('#shapes :checked').value") == "own"
    assert not studio.backend.seen


def test_enter_and_n_draw_but_not_while_one_types(page: Page, studio: Studio) -> None:
    studio.backend.say(picture_by_seed)
    page.open(studio.service)
    page.at("#prompt").send_keys("an apple")
    # While Chinese is composed, Enter takes the word.
    press = (
        "document.querySelector('#prompt').dispatchEvent(new KeyboardEvent('keydown',"
        " {key: 'Enter', bubbles: true, isComposing: arguments[0]}))"
    )
    page.run(press, True)
    assert (page.run(STATE), studio.backend.seen) == ("empty", [])
    page.run(press, False)
    page.wait_for_state("done")
    first = page.at("#picture").get_attribute("src")
    page.press("n")
    page.wait(lambda: len(studio.backend.seen) == 2, "another drawing")
    page.wait_for_state("done")
    assert page.at("#picture").get_attribute("src") != first
    assert page.text("#facts").endswith(str(studio.backend.seen[1].json["seed"]))
    assert [seen.json["prompt"] for seen in studio.backend.seen] == ["an apple", "an apple"]
    seeds = [seen.json["seed"] for seen in studio.backend.seen]
    assert seeds[0] == 42 != seeds[1]
    page.click("#shortcuts")
    page.press("n")
    assert page.run(STATE) == "done"
    page.click("#new-seed")
    page.wait(lambda: len(studio.backend.seen) == 3, "a third drawing")


def test_drawing_that_is_not_waited_for_goes_on_and_is_cached(page: Page, studio: Studio) -> None:
    gate = Gate(drawing())
    studio.backend.say(gate)
    page.open(studio.service)
    page.draw("a red apple", until="waiting")
    page.wait(lambda: studio.backend.seen, "the backend to be asked")
    page.press(Keys.ESCAPE)
    page.wait_for_text("#frame", "in the cache when it is finished")
    gate.opened.set()
    page.click("#draw")
    page.wait_for_state("done")
    assert len(studio.backend.seen) == 1


# --- how it was drawn


def test_rewriting_and_the_fallback_are_shown_with_their_stages_and_the_final_prompt(
    page: Page, serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    llm, fallback = server(), server()
    llm.say(saying("<prompt>a gentle apple</prompt>"))
    fallback.say(Say(png(64, 48), headers={"Content-Type": "image/png"}))
    backend.say(REFUSAL, drawing(), REFUSAL)
    settings = llm_settings(llm, rewrite=True) | pollinations_settings(fallback)
    page.open(serve(backend, **settings))
    page.draw("a forbidden apple")
    assert page.source() == "rewritten"
    assert page.text("#final") == "Final prompt a gentle apple"
    stages = [stage.text.rpartition(" ")[0].rpartition(" ")[0] for stage in page.all("figure li")]
    assert stages == ["draw refused", "rewrite", "draw"]
    # As if they had taken so long: widths are in proportion to durations, to a pixel.
    page.run(
        "[...document.querySelectorAll('figure .proportions i')]"
        ".forEach((one, index) => { one.style.flexGrow = [2, 869, 129][index]; })"
    )
    widths = [piece.size["width"] for piece in page.all("figure .proportions i")]
    shares = [width / sum(widths) for width in widths]
    assert shares == pytest.approx([0.002, 0.869, 0.129], abs=0.003)
    page.driver.refresh()
    page.wait_for_state("done")
    assert (page.source(), page.text("#final")) == ("cache", "Final prompt a gentle apple")
    page.draw("a forbidden pear")
    assert (page.source(), page.picture_width()) == ("fallback", 64)


def test_hosted_picture_is_loaded_from_its_host(
    page: Page, serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    host = server()

    def answer(seen: Seen) -> Say:
        if seen.method == "POST":
            uploaded = {"status_code": 200, "image": {"url": f"{host.url}/i/apple.png"}}
            return Say(uploaded, headers={"Content-Type": "application/json"})
        return Say(png(80, 60), headers={"Content-Type": "image/png"})

    host.say(answer)
    page.open(serve(backend, **hosting_settings(host)))
    page.draw("a red apple")
    assert (page.source(), page.picture_width()) == ("hosted", 80)
    assert page.text("#download") == "Open at its host"
    page.open_gallery()
    width = "return document.querySelector('#gallery img').naturalWidth"
    page.wait(lambda: page.run(width) == 80, "the picture in the gallery")
    page.open_history()
    assert page.prompts("#history") == ["a red apple"]
    assert len(backend.seen) == 1


# --- failures


def test_refusal_leads_back_to_the_prompt_and_says_how_long_it_is_remembered(
    page: Page, studio: Studio
) -> None:
    studio.backend.say(REFUSAL)
    page.open(studio.service)
    for _ in ("drawn", "remembered"):
        page.draw("a forbidden apple", until="failed")
        assert page.at("#error").get_attribute("data-status") == "422"
        assert "Moderation refused" in page.text("#error-text")
        assert "remembered until " in page.text("#error-memory")
        assert "POST /cache/delete" in page.text("#error-memory")
        assert not page.shows("#countdown")
    page.click("#retry")
    assert page.focused() == "prompt"
    assert len(studio.backend.seen) == 1


def test_retry_after_is_counted_down(page: Page, serve: Serve, backend: ScriptedServer) -> None:
    backend.say(Say({"error": {"message": "busy"}}, 503, {"Retry-After": "2"}))
    page.open(serve(backend))
    page.draw("a red apple", until="failed")
    assert page.at("#error").get_attribute("data-status") == "502"
    assert "You can try again in " in page.text("#countdown")
    assert not page.shows("#retry")
    page.run("const now = performance.now(); performance.now = () => now + 3000")
    page.wait_for("#retry")
    page.wait_until("document.querySelector('#status').textContent.includes('try again now')")


def test_every_reason_has_a_chinese_word() -> None:
    words = re.findall(r"(?m)^\| `(.+?)` \|", (ROOT / "docs/backends.md").read_text("utf-8"))
    script = (ROOT / "web/page/zh.js").read_text("utf-8")
    table = script[script.index("export const reasons") :]
    assert len(words) > 10
    assert [word for word in words if not re.search(rf"\b{word}'?: '", table)] == []


def test_failures_are_told_apart_in_both_languages(
    page: Page, serve: Serve, backend: ScriptedServer
) -> None:
    backend.say(Say({"error": {"message": "Incorrect API key provided."}}, 401))
    service = serve(backend)
    page.open(service, language="zh")
    page.run("document.querySelector('#prompt').value = 'x'.repeat(4001)")
    page.click("#draw")
    page.wait_for_state("failed")
    assert page.at("#error").get_attribute("data-status") == "400"
    assert page.text("#error-says") == "服务返回： 描述超过 4000 个字符。"
    page.draw("a red apple", until="failed")
    page.wait_for_text("#error-help", "需要服务的管理者")
    assert "绘制 失败 (未授权)" in page.text("#error .stages")
    assert page.text("#error-memory") == "", "it is over in two seconds"
    page.click("#language")
    assert "has to fix it" in page.text("#error-help")
    assert "draw failed (unauthorised)" in page.text("#error .stages")
    assert not page.shows("#countdown")
    service.close()
    page.click("#retry")
    page.wait_for_text("#error-text", "cannot be reached")
    assert page.text("#retry") == "Try again"


# --- the picture


def test_copied_links_are_those_of_sign(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    page.type("#seed", "7")
    page.draw("a [red] apple")
    body = json.dumps({"description": "a [red] apple", "seed": 7}).encode()
    headers = {"Authorization": f"Bearer {KEY}"}
    signed = studio.service.get("/sign", method="POST", headers=headers, body=body).json
    for kind in ("markdown", "html", "url"):
        assert page.copied(f'[data-copy="{kind}"]') == signed[kind]
    assert fetch(signed["url"]).body == png()
    page.choose("#expiry", "86400")
    url = page.copied('[data-copy="url"]')
    left = int(parse_qs(urlsplit(url).query)["exp"][0]) - page.run("return Date.now() / 1000")
    assert left == pytest.approx(86400, abs=60)
    assert fetch(url).body == png()
    # As on plain http in a home network.
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined}); window.copied = '';"
        "document.addEventListener('copy', () => { window.copied = String(getSelection()); });"
    )
    page.click('[data-copy="markdown"]')
    assert page.run("return window.copied").startswith("![a \\[red\\] apple](http://127.0.0.1")


def test_picture_is_downloaded_under_its_prompt_and_seen_in_full_size(
    page: Page, studio: Studio
) -> None:
    page.resize(1280, 900)
    studio.backend.say(drawing(png(3000, 2000)))
    page.open(studio.service)
    page.draw("Ein Apfel, 红苹果: roh/gekocht!")
    assert page.at("#download").get_attribute("download") == "Ein-Apfel-红苹果-roh-gekocht-42.png"
    assert page.run("return document.querySelector('#download').href.startsWith('blob:')")
    edges = (
        "return ['#enlarge', 'figcaption'].map((one) => document.querySelector(one))"
        ".map((one) => one.getBoundingClientRect()).map(({left, right}) => [left, right])"
    )
    picture, caption = page.run(edges)
    assert picture == pytest.approx(caption, abs=1)
    page.click("#enlarge")
    assert page.at("#enlarged").size == {"width": 3000, "height": 2000}
    scrolled = "return document.querySelector('#scroller').scrollLeft"
    middle = (3000 - 1280) / 2
    page.wait(lambda: page.run(scrolled) == middle, "the middle of the picture")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: page.run(scrolled) > middle, "the picture to move")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait_until("!document.querySelector(given[0]).checkVisibility()", "#full-size")
    assert (page.focused(), page.run(STATE)) == ("enlarge", "done")


# --- the history


def test_history_draws_each_entry_again_with_one_click_and_can_be_emptied(
    page: Page, studio: Studio
) -> None:
    studio.backend.say(picture_by_seed)
    page.open(studio.service)
    page.open_history()
    assert "Nothing has been drawn here" in page.text("#history-view")
    page.click("#draw-tab")
    page.draw("an apple")
    page.click("#new-seed")
    page.wait(lambda: len(studio.backend.seen) == 2, "another drawing")
    page.wait_for_state("done")
    page.draw("a pear")
    page.open_history()
    assert page.prompts("#history") == ["a pear", "an apple", "an apple"]
    assert page.text("#history .card:last-child .facts").startswith("seed 42 ")
    width = "return document.querySelector('#history img').naturalWidth"
    page.wait(lambda: page.run(width) > 0, "a picture")
    page.click("#history .card:last-child .open")
    page.wait_for_state("done")
    assert (page.text("#title"), page.value("#seed")) == ("an apple", "42")
    assert (page.source(), len(studio.backend.seen)) == ("cache", 3)
    studio.clear()
    page.open_history()
    assert page.prompts("#history") == ["an apple", "a pear", "an apple"]
    page.click("#history .card:nth-child(2) .open")
    page.wait(lambda: page.text("#title") == "a pear", "the picture to be drawn again")
    assert [seen.json["prompt"] for seen in studio.backend.seen] == ["a pear"]
    page.open_history()
    page.click("#empty-history")
    page.click('#confirm [value=""]')
    assert len(page.prompts("#history")) == 3
    page.click("#empty-history")
    page.click("#confirm-yes")
    page.wait(lambda: not page.prompts("#history"), "the history to be empty")
    assert page.run("return localStorage.getItem('pip.history')") is None


# --- the gallery


def test_gallery_asks_for_the_token_lists_sorts_and_searches(page: Page, studio: Studio) -> None:
    sizes = {"one": 300, "two": 500, "three": 400}
    studio.backend.say(*(drawing(png(size=size)) for size in sizes.values()))
    for prompt in sizes:
        studio.service.picture(prompt, width=64)
    page.open(studio.service, "#view=gallery")
    page.wait_for("#admin-token")
    page.type("#admin-token", "wrong" + Keys.ENTER)
    page.wait_for_text("#token-wrong", "not accepted")
    page.type("#admin-token", ADMIN + Keys.ENTER)
    page.wait_for_prompts("three", "two", "one")
    stored = page.run("return [localStorage.getItem('pip.token'), sessionStorage['pip.token']]")
    assert stored == [None, ADMIN]
    assert page.text("#totals") == "3 pictures, 2 kB"
    facts = page.text("#gallery .card:first-child .facts")
    assert facts.startswith("64 × 64 · 1 kB localhost · ")
    page.choose("#order", "largest")
    page.wait_for_prompts("two", "three", "one")
    page.type("#search", "zebra")
    page.wait_for_text("#gallery-note", "No prompt contains “zebra”")
    page.type("#search", "TWO")
    page.wait_for_prompts("two")
    assert page.copied("#gallery .copy") == next(
        entry["markdown"] for entry in studio.entries() if entry["prompt"] == "two"
    )
    page.click("#gallery .open")
    page.wait_for_state("done")
    # Only its width was given: with both sides it would be another picture, not yet drawn.
    assert (page.text("#title"), page.source()) == ("two", "cache")
    assert len(studio.backend.seen) == 3


def test_thousand_imported_pictures_are_shown_as_far_as_one_looks(
    page: Page, studio: Studio
) -> None:
    page.resize(640, 480)
    with studio.importing(1000):
        page.open(studio.service)
        page.open_gallery()
        assert page.text("#totals").startswith("1,000 pictures")
        script = (
            "const images = [...document.querySelectorAll('#gallery img')];"
            "return [images.length, images.filter((one) => one.naturalWidth).length,"
            " images.at(-1)?.naturalWidth]"
        )
        page.wait(lambda: page.run(script)[1] >= 4, "the pictures in view")
        assert page.run(script)[:2] < [100, 48]
        assert page.prompts()[0] == "The prompt is not known yet"
        to_the_end = "scrollTo(0, document.body.scrollHeight);"
        page.wait(lambda: page.run(to_the_end + script)[0] == 1000, "the last card")
        assert not page.shows("#more")
        page.wait(lambda: page.run(to_the_end + script)[2] == 64, "the last picture")
        page.click("#gallery .card:last-child .open")
        page.wait(lambda: page.at("#enlarged").size["width"] == 64, "the picture in full size")


def test_selected_pictures_are_deleted_after_a_question(page: Page, studio: Studio) -> None:
    for name in ("one", "two", "three", "four"):
        studio.service.picture(name, seed=123456789012345678)
    page.open(studio.service)
    page.open_gallery()
    page.wait_for_prompts("four", "three", "two", "one")
    assert not page.shows("#selection")
    page.click('[aria-label="Select: two"]')
    page.click("#delete")
    assert page.text("#confirm").startswith("Delete this picture? two ")
    page.at("#confirm").send_keys(Keys.ESCAPE)
    page.click("#unselect")
    assert not page.shows("#selection")
    for name in ("two", "four"):
        page.click(f'[aria-label="Select: {name}"]')
    assert page.text("#selected") == "2 selected"
    page.click("#delete")
    assert page.text("#confirm-title") == "Delete 2 pictures?"
    page.click("#confirm-yes")
    page.wait_for_prompts("three", "one")
    page.wait_for_text("#totals", "2 pictures")
    assert not page.shows("#selection")
    assert page.focused() == "main"
    assert [entry["prompt"] for entry in studio.entries()] == ["three", "one"]


# --- every view, in every language, theme and width


# How wide the page is, and which controls are too small for a finger.
LAYOUT = (
    "return [document.documentElement.scrollWidth,"
    " [...document.querySelectorAll('button, a, input, select, textarea, summary')]"
    ".filter((one) => one.checkVisibility() && one.id !== 'skip' && one.id !== 'shortcuts')"
    ".map((one) => one.matches('.select input') ? one.parentNode : one)"
    ".filter((one) => one.getBoundingClientRect().height < 43.9).map((one) => one.outerHTML)]"
)
MOVING = (
    "return matchMedia('(prefers-reduced-motion: reduce)').matches"
    " ? document.getAnimations().length : 0"
)
VIOLATIONS = (
    "axe.run(document, {resultTypes: ['violations']}).then(({violations}) => arguments[0]("
    "violations.map(({id, nodes}) => [id, nodes.map((node) => node.html + node.failureSummary)])))"
)
# Proper names, keys, units and commands, which are the same in Chinese.
LATIN = re.compile(
    r"Prompt Image Proxy|English|Markdown|HTML|URL|Shift|Enter|Esc|\bN\b|ADMIN_TOKEN|localhost"
    r"|/status|POST /cache/delete|flask cache delete|\d (kB|MB)|flux/1-schnell|gpt-image-1"
)
PLACEHOLDERS = (
    "return [...document.querySelectorAll('[placeholder]')]"
    ".filter((one) => one.checkVisibility()).map((one) => one.placeholder).join(' ')"
)


@dataclass
class Inspector:
    """Looks at whatever view the page shows."""

    page: Page
    axe: str
    widths: tuple[int, ...]

    def __call__(self, view: str) -> None:
        page = self.page
        for width in self.widths:
            page.resize(width, 640)
            actual, small = page.run(LAYOUT)
            assert (actual <= width, small) == (True, []), f"{view} at {width} pixels"
        if not page.run("return 'axe' in window"):
            page.run(self.axe)
        assert page.driver.execute_async_script(VIOLATIONS) == [], view
        assert page.run(MOVING) == 0, view
        if page.run("return document.documentElement.lang") == "zh":
            shown = page.text("body") + re.sub(r"\w+（", "", page.run(PLACEHOLDERS))
            assert not re.search("[A-Za-z]{2}", LATIN.sub("", shown)), f"{view}: {shown}"


@pytest.fixture
def inspect(page: Page, npm: Callable[[str], Path]) -> Callable[[tuple[int, ...]], Inspector]:
    folder = npm("axe-core@4.14.1")
    axe = (folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")
    return lambda widths: Inspector(page, axe, widths)


@pytest.mark.parametrize(
    ("language", "media", "widths"),
    [
        # 640 pixels are 1280 at 200 %.
        ("en", {"color_scheme": "light"}, (360, 640, 1920)),
        ("zh", {"color_scheme": "dark", "reduced_motion": "reduce"}, (1280, 360)),
    ],
    ids=["English, light", "Chinese, dark, still"],
)
def test_every_view_is_accessible_and_fits_its_window(
    page: Page,
    studio: Studio,
    inspect: Callable[[tuple[int, ...]], Inspector],
    language: str,
    media: dict[str, str],
    widths: tuple[int, ...],
) -> None:
    look = inspect(widths)
    page.prefer(**media)
    page.open(studio.service, key=None, language=language)
    look("the key")
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("empty")
    page.click("#options summary")
    page.choose("#shapes", "own")
    look("the form")
    page.open_history()
    look("an empty history")
    page.click("#draw-tab")
    studio.backend.say(gate := Gate(drawing(png(640, 480), revised_prompt="苹" * 300)))
    page.draw("苹" * 200, until="waiting")
    look("waiting")
    gate.opened.set()
    page.wait_for_state("done")
    look("a picture")
    page.click("#enlarge")
    look("the full size")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    studio.backend.say(REFUSAL)
    page.draw("禁", until="failed")
    look("a failure")
    page.open_history()
    look("the history")
    page.click("#gallery-tab")
    page.wait_for("#admin-token")
    look("the token")
    page.type("#admin-token", ADMIN + Keys.ENTER)
    page.wait_for("#gallery .card")
    page.click(".select input")
    look("the gallery")
    page.click("#delete")
    look("the question")


def test_gallery_and_links_that_are_not_configured_are_not_offered(
    page: Page,
    serve: Serve,
    backend: ScriptedServer,
    inspect: Callable[[tuple[int, ...]], Inspector],
) -> None:
    keys = json.dumps({"blog": {"key": KEY}})
    service = serve(backend, ADMIN_TOKEN="", PROXY_ACCESS_KEY="", ACCESS_KEYS=keys)
    page.open(service, "#view=gallery", language="zh")
    page.wait_for_text("#gallery-view", "没有设置 ADMIN_TOKEN")
    assert not page.shows("#admin-token")
    inspect((360,))("no gallery")
    page.click("#draw-tab")
    page.draw("苹果")
    assert page.text("#actions") == "下载"


def test_no_two_texts_are_the_same_and_none_is_missing(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    fetch_texts = "import(`/page/${arguments[0]}.js`).then((it) => arguments[1](it.default))"
    english, chinese = (
        page.driver.execute_async_script(fetch_texts, language) for language in ("en", "zh")
    )
    assert english.keys() == chinese.keys()
    for texts in (english, chinese):
        values = list(texts.values())
        assert {value for value in values if values.count(value) > 1} == set()
    html = (ROOT / "web/page/page.html").read_text("utf-8")
    named = re.findall(r'data-(?:text|label|title|placeholder)="(.+?)"', html)
    assert {*named, *(f"stage.{stage}" for stage in STAGES)} <= english.keys()
    page.draw("a red apple")
    page.click("#language")
    assert page.run("return document.documentElement.lang") == "zh"
    assert "由后端绘制" in page.text("#how")
    page.driver.refresh()
    page.wait_for_text("#how", "来自缓存")


def test_theme_follows_the_system_until_one_is_chosen(page: Page, studio: Studio) -> None:
    def background(scheme: str) -> str:
        page.prefer(color_scheme=scheme)
        return str(page.run("return getComputedStyle(document.body).backgroundColor"))

    page.open(studio.service)
    light, dark = background("light"), background("dark")
    assert light != dark
    page.click("#theme")
    assert background("dark") == light
    page.driver.refresh()
    assert background("dark") == light
    page.click("#theme")
    assert (background("light"), background("dark")) == (light, dark)


def test_telephone_shows_the_picture_when_it_comes_and_no_hints_for_keys(
    page: Page, studio: Studio
) -> None:
    page.resize(390, 844, is_phone=True)
    page.open(studio.service)
    studio.backend.say(drawing(png(768, 1024)))
    page.choose("#shapes", "768x1024")
    page.draw("a red apple")
    assert not page.all("kbd, #prompt-hint, #shortcuts")
    in_view = (
        "const box = document.querySelector('#picture').getBoundingClientRect();"
        "return box.top >= 0 && box.bottom <= innerHeight && box.height > innerHeight / 2"
    )
    page.wait(lambda: page.run(in_view), "the picture in view")
    below = (
        "const bottom = (it) => document.querySelector(it).getBoundingClientRect().bottom;"
        "return bottom('footer') - bottom('figcaption') -"
        " document.querySelector('footer').offsetHeight"
    )
    assert page.run(below) < 44, "there is no void below"


# --- by keyboard alone

STOP = (
    "const here = document.activeElement;"
    "const outlined = [here, here.closest('label')].filter(Boolean)"
    ".some((one) => getComputedStyle(one).outlineStyle !== 'none');"
    "return [here.id || here.className || here.name || here.tagName, outlined]"
)


class Keyboard:
    """Someone who never touches the mouse, and sees where the focus is."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.driver.switch_to.active_element.send_keys(key)

    def go(self, name: str, key: str = Keys.TAB) -> None:
        """Press Tab until something of this id, class or name has the focus."""
        for _ in range(40):
            self.press(key)
            found, is_outlined = self.page.run(STOP)
            assert is_outlined, f"{found} does not show that it has the focus"
            if found == name:
                return
        pytest.fail(f"the keyboard does not reach {name}")


def test_keyboard_alone_draws_enlarges_and_deletes(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    keyboard = Keyboard(page)
    keyboard.go("skip")
    keyboard.press(Keys.ENTER)
    assert page.focused() == "main"
    keyboard.go("prompt")
    keyboard.press("a red apple")
    keyboard.go("size")
    keyboard.press(Keys.ARROW_RIGHT)
    keyboard.go("draw")
    keyboard.press(Keys.ENTER)
    page.wait_for_state("done")
    assert studio.backend.seen[0].json["size"] == "1024x1024"
    keyboard.go("enlarge")
    keyboard.press(Keys.ENTER)
    page.wait_for("#full-size")
    keyboard.press(Keys.ESCAPE)
    page.wait_until("document.activeElement.id === given[0]", "enlarge")
    keyboard.go("gallery-tab", Keys.SHIFT + Keys.TAB)
    keyboard.press(Keys.ENTER)
    page.wait_until("document.activeElement.id === given[0]", "admin-token")
    keyboard.press(ADMIN, Keys.ENTER)
    page.wait_for("#gallery .card")
    keyboard.go("open")
    keyboard.go("INPUT")
    keyboard.press(Keys.SPACE)
    keyboard.go("delete")
    keyboard.press(Keys.ENTER)
    page.wait_for("#confirm")
    keyboard.press(Keys.ESCAPE)
    page.wait_until("document.activeElement.id === given[0]", "delete")
    keyboard.press(Keys.ENTER)
    keyboard.go("confirm-yes")
    keyboard.press(Keys.ENTER)
    page.wait_until("document.activeElement.id === given[0]", "main")
    assert studio.entries() == []


# --- pictures in documents


SHOWN = "return [...document.images].filter((one) => one.complete && one.naturalWidth === 8).length"


def test_markdown_document_shows_twenty_signed_pictures_cold_and_warm(
    page: Page, studio: Studio, server: MakeServer
) -> None:
    prompts = [f"picture ({number}) *of* [twenty]" for number in range(20)]
    studio.backend.say(drawing(png(8, 8)))
    headers = {"Authorization": f"Bearer {KEY}"}
    markdown = [
        studio.service.get(
            "/sign",
            method="POST",
            headers=headers,
            body=json.dumps({"description": prompt, "width": 8}).encode(),
        ).json["markdown"]
        for prompt in prompts
    ]
    assert KEY not in "".join(markdown)
    document = "<!doctype html><title>x</title>" + MarkdownIt().render("\n\n".join(markdown))
    elsewhere = server()
    elsewhere.say(Say(document, 200, {"Content-Type": "text/html; charset=utf-8"}))
    for _ in ("cold", "warm"):
        page.driver.get(elsewhere.url)
        page.wait(lambda: page.run(SHOWN) == 20, "twenty pictures")
    assert sorted(seen.json["prompt"] for seen in studio.backend.seen) == sorted(prompts)


WIDEST = (
    "return Math.max(...[...document.querySelectorAll('text')].map((one) => {"
    " const box = one.getBBox(); return box.x + box.width; }))"
)


def test_text_of_a_card_stays_inside_it(page: Page, server: MakeServer) -> None:
    elsewhere = server()
    told = (SENTENCES["all_cooling_down"], ADVICE["operator"], CLEARING)
    # As long as a line gets: each letter that a text may be full of, and what reads most often.
    texts = [
        " ".join(sentence.say(language) for sentence in told) for language in get_args(Language)
    ]
    texts += [letter * 200 for letter in "aeimsMWQ1"]
    cards = "".join(card("Refused by moderation", text) for text in texts)
    elsewhere.say(Say(f"<!doctype html>{cards}", 200, {"Content-Type": "text/html; charset=utf-8"}))
    page.driver.get(elsewhere.url)
    assert page.run(WIDEST) <= 470


def test_broken_picture_in_a_document_says_why(
    page: Page, studio: Studio, server: MakeServer
) -> None:
    elsewhere = server()
    source = f"{studio.service.url}/prompt/x?sig={'0' * 32}"
    html = f'<!doctype html><title>x</title><img src="{source}">'
    elsewhere.say(Say(html, 200, {"Content-Type": "text/html"}))
    page.driver.get(elsewhere.url)
    width = "return document.images[0].complete && document.images[0].naturalWidth"
    assert page.wait(lambda: page.run(width), "the card") == 480
