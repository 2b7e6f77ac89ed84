"""The page at `/` in a real Chromium, against a real gunicorn with scripted upstreams."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from markdown_it import MarkdownIt
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from web.cards import card, in_chinese

from .conftest import (
    ADMIN,
    KEY,
    REFUSAL,
    ROOT,
    Gunicorn,
    drawing,
    hosting_settings,
    llm_settings,
    pollinations_settings,
    saying,
)
from .servers import Gate, Say, ScriptedServer, Seen, closing_all, fetch, png

Start = Callable[..., Gunicorn]
MakeServer = Callable[[], ScriptedServer]

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "Chromium is not installed: `apt-get install chromium chromium-driver`, and these run"
if not (CHROMIUM and CHROMEDRIVER) and os.environ.get("CI") != "true":
    pytest.skip(MISSING, allow_module_level=True)

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --lang=en-US"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --disable-dev-shm-usage --hide-scrollbars"
)
STATE = "return document.querySelector('#stage').dataset.state"
REQUESTED = "return performance.getEntries().map((one) => one.name).filter((n) => n.includes(':'))"
ANSWERS = "return performance.getEntries().filter((one) => one.name.includes('/prompt/')).length"
COPIED = (
    "window.copied = [];"
    "navigator.clipboard.writeText = async (text) => { window.copied.push(text); };"
)


def picture_by_seed(seen: Seen) -> Say:
    return drawing(png(64, 48, shade=seen.json["seed"] % 256))


class Page:
    """The page as a person uses it: what is displayed, typed, pressed and clicked."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.url = ""

    def open(self, service: Gunicorn, fragment: str = "", key: str | None = KEY) -> None:
        """Open the page with nothing stored but the access key; without it, as if new."""
        self.url = service.url
        self.driver.get(f"{self.url}/robots.txt")
        self.run("localStorage.clear(); sessionStorage.clear()")
        if key:
            self.run("localStorage.setItem('pip.key', arguments[0])", key)
        self.driver.get(f"{self.url}/{fragment}")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def at(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text that is displayed there."""
        return " ".join(found.text for found in self.all(selector) if found.is_displayed())

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        waiting = WebDriverWait(self.driver, 10, 0.05)
        return waiting.until(lambda _: condition(), f"waited in vain for {what}")

    def wait_for_state(self, state: str) -> None:
        self.wait(lambda: self.run(STATE) == state, f"the state {state}")

    def wait_for_text(self, selector: str, text: str) -> None:
        self.wait(lambda: text in self.text(selector), f"{text!r} in {selector}")

    def type(self, selector: str, text: str) -> None:
        self.at(selector).clear()
        self.at(selector).send_keys(text)

    def press(self, key: str) -> None:
        """Press a key where no field has the focus."""
        self.run("document.activeElement.blur()")
        self.at("body").send_keys(key)

    def draw(self, prompt: str, until: str = "done") -> None:
        self.type("#prompt", prompt + Keys.ENTER)
        self.wait_for_state(until)

    def source(self) -> str | None:
        return self.at("#how").get_attribute("data-source")

    def picture_width(self) -> int:
        return int(self.run("return document.querySelector('#picture').naturalWidth"))

    def open_gallery(self) -> None:
        self.at("#gallery-tab").click()
        self.type("#admin-token", ADMIN + Keys.ENTER)

    def prompts(self) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll('.card .prompt')].map((one) => one.textContent)"
        )
        return found

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def log(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return found


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.fail(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Driver(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    page = Page(driver)
    page.resize(1280, 900)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    yield page
    log = page.log()
    driver.get("about:blank")
    # Violations of the Content-Security-Policy, and uncaught errors.
    assert not [one for one in log if one["source"] in ("security", "javascript")]
    assert not [one for one in log if "Content Security Policy" in one["message"]]


@dataclass
class Studio:
    """A proxy and its backend, shared by the tests that need no settings of their own."""

    service: Gunicorn
    backend: ScriptedServer

    def clear(self) -> None:
        self.backend.say(drawing())
        self.backend.seen.clear()
        listed = self.service.get("/cache?limit=200", headers={"X-Admin-Token": ADMIN})
        for entry in listed.json["entries"]:
            self.service.delete(json.dumps({"key": entry["key"]}).encode())


@pytest.fixture(scope="module")
def opened_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder, backend = tmp_path_factory.mktemp("studio"), ScriptedServer()
    environment = {
        "PROXY_ACCESS_KEY": KEY,
        "ADMIN_TOKEN": ADMIN,
        "CACHE_DIR": str(folder / "cache"),
        "POLLINATIONS_ENABLED": "false",
        "WORKERS": "2",
        "BACKEND_API_URLS": backend.url,
    }
    with closing_all([backend]):
        service = Gunicorn(environment, folder / "gunicorn.log")
        with closing_all([service]):
            yield Studio(service, backend)


@pytest.fixture
def studio(opened_studio: Studio) -> Studio:
    opened_studio.clear()
    return opened_studio


# --- the key


def test_key_is_asked_for_once_and_stored(page: Page, studio: Studio) -> None:
    page.open(studio.service, key=None)
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("empty")
    page.draw("a red apple")
    page.driver.refresh()
    page.wait_for_state("done")
    assert not page.at("#key").is_displayed()
    page.at("#forget").click()
    page.wait_for_state("key")
    assert page.run("return localStorage.getItem('pip.key')") is None


def test_wrong_key_is_asked_for_again_and_the_drawing_goes_on(page: Page, studio: Studio) -> None:
    page.open(studio.service, key=None)
    page.draw("a red apple", until="key")
    page.type("#key", "wrong" + Keys.ENTER)
    page.wait_for_text("#key-wrong", "not accepted")
    assert not studio.backend.seen
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("done")
    assert [seen.json["prompt"] for seen in studio.backend.seen] == ["a red apple"]


def test_key_and_requests_go_to_the_proxy_only(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    page.draw("a red apple")
    page.open_gallery()
    page.wait(page.prompts, "a card")
    requested = page.run(REQUESTED)
    assert any("/page.js" in url for url in requested)
    assert any("/sign" in url for url in requested)
    strangers = [url for url in requested if not url.removeprefix("blob:").startswith(page.url)]
    assert not strangers
    assert not [url for url in [*requested, page.driver.current_url] if KEY in url]


# --- drawing


def test_seconds_are_counted_until_the_picture_appears(page: Page, studio: Studio) -> None:
    gate = Gate(drawing(png(64, 48)))
    studio.backend.say(gate)
    page.open(studio.service)
    page.draw("a red apple", until="waiting")
    first = page.text("#seconds")
    page.wait(lambda: page.text("#seconds") not in ("", first), "the seconds to count")
    gate.opened.set()
    page.wait_for_state("done")
    assert (page.source(), page.picture_width()) == ("backend", 64)
    assert page.at("#picture").get_attribute("alt") == "a red apple"
    assert "Drawn by a backend, in " in page.text("#how")
    page.wait_for_text("#stages", "draw")
    page.driver.refresh()
    page.wait_for_state("done")
    assert (page.source(), page.picture_width()) == ("cache", 64)
    assert "From the cache" in page.text("#how")
    assert len(studio.backend.seen) == 1


def test_picture_that_takes_long_is_picked_up_when_it_is_drawn(
    page: Page, gunicorn: Start, backend: ScriptedServer
) -> None:
    backend.say(gate := Gate(drawing(png(64, 48))))
    page.open(gunicorn(backend, ANSWER_WITHIN="0.1"))
    page.draw("a red apple", until="waiting")
    page.wait(lambda: page.run(ANSWERS) >= 2, "a second request")
    assert page.run(STATE) == "waiting"
    gate.opened.set()
    page.wait_for_state("done")
    assert (page.picture_width(), page.source(), len(backend.seen)) == (64, "other", 1)


def test_size_model_and_seed_are_sent_and_stored(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    Select(page.at("#size")).select_by_value("own")
    page.type("#width", "640")
    page.type("#height", "360")
    page.type("#model", "flux/1-schnell")
    page.type("#seed", "-123456789012345678")
    page.draw("slash/and ü?")
    asked: dict[str, Any] = {"prompt": "slash/and ü?", "size": "640x360"}
    asked |= {"model": "flux/1-schnell", "seed": -123456789012345678}
    assert studio.backend.seen[0].json.items() >= asked.items()
    fragment = parse_qs(urlsplit(page.driver.current_url).fragment)
    for name, value in (("width", "640"), ("height", "360"), ("seed", "-123456789012345678")):
        assert fragment[name] == [value]
    page.driver.get(f"{page.url}/status")
    page.driver.get(f"{page.url}/")
    page.wait_for_state("done")
    assert page.at("#width").get_attribute("value") == "640"
    assert len(studio.backend.seen) == 1


def test_options_are_sent_stored_and_shown_when_given(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    assert not page.at("#quality").is_displayed()
    page.at("#options summary").click()
    given = {"quality": "high", "style": "a & b", "background": "red", "negative_prompt": "no=text"}
    for name, value in given.items():
        page.type(f"#{name}", value)
    page.draw("a red apple")
    assert studio.backend.seen[0].json.items() >= given.items()
    assert "Style: a & b" in page.text("#facts")
    fragment = parse_qs(urlsplit(page.driver.current_url).fragment)
    assert {name: fragment[name] for name in given} == {n: [text] for n, text in given.items()}
    page.driver.refresh()
    page.wait_for_state("done")
    assert page.at("#negative_prompt").is_displayed()
    assert page.at("#style").get_attribute("value") == "a & b"
    assert len(studio.backend.seen) == 1


def test_address_fills_the_form_and_never_draws(page: Page, studio: Studio) -> None:
    service = studio.service
    page.open(service, "#prompt=a+red+apple&width=512&height=512&seed=7")
    looked_up = "return performance.getEntriesByType('resource').some((e) => /prompt/.test(e.name))"
    page.wait(lambda: page.run(looked_up), "the look-up")
    page.wait_for_state("empty")
    assert page.at("#prompt").get_attribute("value") == "a red apple"
    assert page.at("#seed").get_attribute("value") == "7"
    assert Select(page.at("#size")).first_selected_option.get_attribute("value") == "own"
    assert not studio.backend.seen


def test_n_draws_another_picture_but_not_while_typing(page: Page, studio: Studio) -> None:
    studio.backend.say(picture_by_seed)
    page.open(studio.service)
    page.type("#prompt", "n")
    assert not studio.backend.seen
    page.draw("an apple")
    first = page.at("#picture").get_attribute("src")
    page.press("n")
    page.wait(lambda: len(studio.backend.seen) == 2, "another drawing")
    page.wait_for_state("done")
    assert page.at("#picture").get_attribute("src") != first
    assert page.text("#facts").endswith(str(studio.backend.seen[1].json["seed"]))
    assert [seen.json["prompt"] for seen in studio.backend.seen] == ["an apple", "an apple"]
    seeds = [seen.json["seed"] for seen in studio.backend.seen]
    assert seeds[0] == 42 != seeds[1]
    page.at("#shortcuts").click()
    page.press("n")
    assert page.run(STATE) == "done"
    page.at("#new-seed").click()
    page.wait(lambda: len(studio.backend.seen) == 3, "a third drawing")


def test_enter_confirms_a_word_while_chinese_is_composed(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    page.type("#prompt", "ping guo")
    press = (
        "document.querySelector('#prompt').dispatchEvent(new KeyboardEvent('keydown',"
        " {key: 'Enter', bubbles: true, isComposing: arguments[0]}))"
    )
    page.run(press, True)
    assert page.run(STATE) == "empty"
    page.run(press, False)
    page.wait_for_state("done")


def test_cancelled_drawing_goes_on_and_is_cached(page: Page, studio: Studio) -> None:
    gate = Gate(drawing())
    studio.backend.say(gate)
    page.open(studio.service)
    page.draw("a red apple", until="waiting")
    page.wait(lambda: studio.backend.seen, "the backend to be asked")
    page.press(Keys.ESCAPE)
    page.wait_for_text("#empty", "Cancelled")
    gate.opened.set()
    page.at("#draw").click()
    page.wait_for_state("done")
    assert len(studio.backend.seen) == 1


# --- how it was drawn


def test_rewriting_is_shown_with_its_stages(
    page: Page, gunicorn: Start, backend: ScriptedServer, server: MakeServer
) -> None:
    llm = server()
    llm.say(saying("<prompt>a gentle apple</prompt>"))
    backend.say(REFUSAL, drawing())
    page.open(gunicorn(backend, **llm_settings(llm, rewrite=True)))
    page.draw("a forbidden apple")
    assert page.source() == "rewritten"
    stages = [stage.text.rpartition(" ")[0].rpartition(" ")[0] for stage in page.all("#stages li")]
    assert stages == ["draw refused", "rewrite", "draw"]


def test_drawing_by_the_fallback_is_shown(
    page: Page, gunicorn: Start, backend: ScriptedServer, server: MakeServer
) -> None:
    fallback = server()
    fallback.say(Say(png(64, 48), headers={"Content-Type": "image/png"}))
    backend.say(REFUSAL)
    page.open(gunicorn(backend, **pollinations_settings(fallback)))
    page.draw("a forbidden apple")
    assert (page.source(), page.picture_width()) == ("fallback", 64)


def test_hosted_picture_is_loaded_from_its_host(
    page: Page, gunicorn: Start, backend: ScriptedServer, server: MakeServer
) -> None:
    host = server()

    def serve(seen: Seen) -> Say:
        if seen.method == "POST":
            answer = {"status_code": 200, "image": {"url": f"{host.url}/i/apple.png"}}
            return Say(answer, headers={"Content-Type": "application/json"})
        return Say(png(80, 60), headers={"Content-Type": "image/png"})

    host.say(serve)
    page.open(gunicorn(backend, **hosting_settings(host)))
    page.draw("a red apple")
    assert (page.source(), page.picture_width()) == ("hosted", 80)
    assert len(backend.seen) == 1


# --- failures


def test_retrying_a_refused_prompt_leads_back_to_the_prompt(page: Page, studio: Studio) -> None:
    studio.backend.say(REFUSAL)
    page.open(studio.service)
    page.draw("a forbidden apple", until="failed")
    assert page.at("#error").get_attribute("data-status") == "422"
    assert "Moderation refused" in page.text("#error-text")
    assert "draw refused" in page.text("#error-stages")
    page.at("#retry").click()
    assert page.run("return document.activeElement.id") == "prompt"


def test_retry_after_is_counted_down(page: Page, gunicorn: Start, backend: ScriptedServer) -> None:
    backend.say(Say({"error": {"message": "busy"}}, 503, {"Retry-After": "2"}))
    service = gunicorn(backend)
    page.open(service)
    page.draw("a red apple", until="failed")
    assert page.at("#error").get_attribute("data-status") == "502"
    assert "You can try again in " in page.text("#countdown")
    assert not page.at("#retry").is_displayed()
    backend.say(drawing())
    page.wait(lambda: page.at("#retry").is_displayed(), "the button")
    said = "return document.querySelector('#status').textContent"
    page.wait(lambda: "try again now" in page.run(said), "what a screen reader says")
    page.at("#retry").click()
    page.wait_for_state("done")


def test_panel_says_who_can_help_and_what_is_remembered(
    page: Page, gunicorn: Start, backend: ScriptedServer
) -> None:
    backend.say(Say({"error": {"message": "Incorrect API key provided."}}, 401), REFUSAL)
    service = gunicorn(backend)
    page.open(service)
    page.draw("a red apple", until="failed")
    assert "has to fix it" in page.text("#error-help")
    assert "draw failed (unauthorised)" in page.text("#error-stages")
    assert not page.at("#countdown").is_displayed()
    page.at("#language").click()
    assert "需要服务的管理者" in page.text("#error-help")
    assert "绘制 失败 (未授权)" in page.text("#error-stages")
    assert page.text("#error-memory") == "", "it is over in two seconds"


def test_refusal_says_how_long_it_is_remembered(page: Page, studio: Studio) -> None:
    studio.backend.say(REFUSAL)
    page.open(studio.service)
    for _ in ("drawn", "remembered"):
        page.draw("another forbidden apple", until="failed")
        assert "remembered until " in page.text("#error-memory")
        assert "POST /cache/delete" in page.text("#error-memory")
        assert not page.at("#countdown").is_displayed()
    assert len(studio.backend.seen) == 1


def test_every_reason_has_a_chinese_word() -> None:
    words = re.findall(r"(?m)^\| `(.+?)` \|", (ROOT / "docs/backends.md").read_text("utf-8"))
    script = (ROOT / "web/page/page.js").read_text("utf-8")
    table = script[script.index("const REASONS") : script.index("const $ =")]
    assert len(words) > 10
    assert [word for word in words if not re.search(rf"\b{word}'?: '", table)] == []


def test_bad_request_and_unreachable_service_are_told_apart(
    page: Page, gunicorn: Start, backend: ScriptedServer
) -> None:
    service = gunicorn(backend)
    page.open(service)
    page.run("document.querySelector('#prompt').value = 'x'.repeat(4001)")
    page.at("#draw").click()
    page.wait_for_state("failed")
    assert page.at("#error").get_attribute("data-status") == "400"
    assert "longer than 4000" in page.text("#error-says")
    service.close()
    page.draw("a red apple", until="failed")
    assert "cannot be reached" in page.text("#error-text")
    assert page.text("#retry") == "Try again"


# --- copying


def test_copied_links_are_those_of_sign(page: Page, studio: Studio) -> None:
    service = studio.service
    page.open(service)
    page.run(COPIED)
    page.type("#seed", "7")
    page.draw("a [red] apple")
    body = json.dumps({"description": "a [red] apple", "seed": 7}).encode()
    headers = {"Authorization": f"Bearer {KEY}"}
    signed = service.get("/sign", method="POST", headers=headers, body=body).json
    for kind in ("markdown", "html", "url"):
        page.at(f'[data-copy="{kind}"]').click()
        page.wait_for_text("#status", "Copied")
        assert page.run("return window.copied.pop()") == signed[kind]
        page.run("document.querySelector('#status').textContent = ''")
    assert fetch(signed["url"]).body == png()


def test_copying_works_without_the_clipboard_api(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    # As on plain http in a home network.
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.addEventListener('copy', () => { window.copied = String(getSelection()); });"
    )
    page.draw("a red apple")
    page.at('[data-copy="markdown"]').click()
    page.wait_for_text("#status", "Copied")
    assert page.run("return window.copied").startswith("![a red apple](http://127.0.0.1")


# --- the gallery


def test_gallery_lists_searches_and_loads_more(page: Page, studio: Studio) -> None:
    studio.backend.say(drawing(revised_prompt="what was really drawn"))
    service = studio.service
    for number in range(30):
        assert service.picture(f"picture%20{number}", width=64).status == 200
    page.open(service)
    page.open_gallery()
    page.wait(lambda: len(page.prompts()) >= 24, "the first cards")
    assert page.prompts()[:3] == ["picture 29", "picture 28", "picture 27"]
    page.run("scrollTo(0, document.body.scrollHeight)")
    page.wait(lambda: len(page.prompts()) == 30, "the last cards")
    assert page.prompts()[-1] == "picture 0"
    assert not page.at("#more").is_displayed()
    page.run("scrollTo(0, 0)")
    page.at(".card summary").click()
    assert page.text(".card:first-child .final") == "what was really drawn"
    assert "64 × 64" in page.text(".card:first-child .facts")
    assert "Drawn by 127.0.0.1" in page.text(".card:first-child .facts")
    page.type("#search", "ture 7")
    page.wait(lambda: page.prompts() == ["picture 7"], "the search result")
    page.run(COPIED)
    page.at('.card [data-action="copy"]').click()
    page.wait_for_text("#status", "Copied")
    assert page.run("return window.copied[0]").startswith("![picture 7](http")
    page.type("#search", "zebra")
    page.wait_for_text("#gallery-note", "No prompt contains “zebra”")
    assert not page.prompts()
    page.type("#search", "ture 7")
    page.wait(lambda: page.prompts() == ["picture 7"], "the search result")
    page.at(".card .open").click()
    page.wait_for_state("done")
    # Only its width was given: with both sides it would be another picture, not yet drawn.
    assert (page.text("#title"), page.source()) == ("picture 7", "cache")
    assert len(studio.backend.seen) == 30


def test_picture_without_a_prompt_is_shown_by_its_key(
    page: Page, gunicorn: Start, backend: ScriptedServer, environment: dict[str, str]
) -> None:
    folder = Path(environment["CACHE_DIR"])
    folder.mkdir()
    (folder / f"{'a' * 64}-{'0' * 16}.png").write_bytes(png(64, 48))
    page.open(gunicorn(backend))
    page.open_gallery()
    page.wait(page.prompts, "a card")
    assert page.prompts() == ["Its prompt is not known yet"]
    width = "return document.querySelector('.card img').naturalWidth"
    page.wait(lambda: page.run(width) == 64, "the picture")


def test_deleting_asks_first_and_then_moves_the_focus(page: Page, studio: Studio) -> None:
    service = studio.service
    for name in ("one", "two", "three"):
        service.picture(name, seed=123456789012345678)
    page.open(service)
    page.open_gallery()
    page.wait(lambda: page.prompts() == ["three", "two", "one"], "the cards")
    page.at('[aria-label="Delete: two"]').click()
    assert page.text("#confirm-prompt") == "two"
    page.at("#confirm-delete").send_keys(Keys.ESCAPE)
    assert page.prompts() == ["three", "two", "one"]
    page.at('[aria-label="Delete: two"]').click()
    page.at('#confirm-delete [data-action="confirm"]').click()
    page.wait(lambda: page.prompts() == ["three", "one"], "the card to go")
    assert page.run("return document.activeElement.ariaLabel") == "Delete: one"
    headers = {"X-Admin-Token": ADMIN}
    left = service.get("/cache", headers=headers).json["entries"]
    assert [entry["prompt"] for entry in left] == ["three", "one"]


def test_wrong_admin_token_is_asked_for_again(page: Page, studio: Studio) -> None:
    page.open(studio.service, "#view=gallery")
    page.type("#admin-token", "wrong" + Keys.ENTER)
    page.wait_for_text("#token-wrong", "not accepted")
    page.type("#admin-token", ADMIN + Keys.ENTER)
    page.wait_for_text("#gallery-note", "Nothing yet")
    kept = page.run("return [localStorage.getItem('pip.token'), sessionStorage['pip.token']]")
    assert kept == [None, ADMIN]


# --- languages, themes, sizes


def test_every_text_is_there_in_both_languages(page: Page, studio: Studio) -> None:
    untold = (
        "return [...document.querySelectorAll('[data-text]')].filter((one) =>"
        " !one.textContent || (arguments[0] && !/[\\u4e00-\\u9fff]/.test(one.textContent)))"
        ".map((one) => one.dataset.text)"
    )
    page.open(studio.service)
    page.draw("a red apple")
    assert page.run("return document.documentElement.lang") == "en"
    assert page.text("#draw") == "Draw"
    assert page.run(untold, False) == []
    page.at("#language").click()
    assert page.run("return document.documentElement.lang") == "zh"
    assert page.text("#draw") == "绘图"
    assert "由后端绘制" in page.text("#how")
    assert page.run(untold, True) == []
    page.driver.refresh()
    page.wait_for_text("#how", "来自缓存")
    page.at("#language").click()
    assert page.text("#draw") == "Draw"


def test_theme_follows_the_system_until_one_is_chosen(page: Page, studio: Studio) -> None:
    def background(scheme: str) -> str:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return str(page.run("return getComputedStyle(document.body).backgroundColor"))

    page.open(studio.service)
    light, dark = background("light"), background("dark")
    assert light != dark
    page.at("#theme").click()
    assert background("dark") == light
    page.driver.refresh()
    assert background("dark") == light
    page.at("#theme").click()
    assert (background("light"), background("dark")) == (light, dark)


def test_narrow_window_scrolls_vertically_and_has_large_controls(
    page: Page, studio: Studio
) -> None:
    small = (
        "return [...document.querySelectorAll('button, a, input, select, textarea, summary')]"
        ".filter((one) => one.checkVisibility() && one.id !== 'skip' && one.type !== 'checkbox')"
        ".filter((one) => one.getBoundingClientRect().height < 43.9).map((one) => one.outerHTML)"
    )

    def check() -> None:
        for _ in ("zh", "en"):
            page.run("document.querySelector('#language').click()")
            assert page.run("return document.documentElement.scrollWidth") <= 360
            assert page.run(small) == []

    studio.backend.say(drawing(png(640, 480), revised_prompt="w" * 300), REFUSAL)
    page.resize(360, 740)
    page.open(studio.service, key=None)
    check()
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("empty")
    page.draw("w" * 200)
    check()
    page.at("#options summary").click()
    page.draw("a forbidden apple", until="failed")
    check()
    page.run("scrollTo(0, 0)")
    page.open_gallery()
    page.wait(page.prompts, "a card")
    page.run("document.querySelector('.card details').open = true")
    check()


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
    sentences = (
        "No backend could draw the picture. The operator has to fix it: /status says why."
        " This is remembered until 2026-11-25 10:00:00 UTC. An administrator can clear it:"
        " POST /cache/delete or flask cache delete."
    )
    # As long as a line gets: each letter that a text may be full of, and what reads most often.
    for text in (sentences, in_chinese(sentences), *(f"{letter}" * 200 for letter in "aeimsMWQ1")):
        svg = card("Refused by moderation", text)
        elsewhere.say(Say(svg, 200, {"Content-Type": "image/svg+xml"}))
        page.driver.get(elsewhere.url)
        assert page.run(WIDEST) <= 470, text[:20]


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
