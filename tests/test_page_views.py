"""Every view of the page in both languages, themes and several widths; and cards in documents."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from selenium.webdriver.common.keys import Keys

from metrics.prometheus import STAGES

from .browser import Page
from .conftest import ADMIN, KEY, REFUSAL, ROOT, MakeServer, Serve, drawing
from .scripted import Gate, Say, png
from .studio import Studio

Inspect = Callable[[tuple[int, ...], str], None]

# How wide the page is, and which controls are too small for a finger.
LAYOUT = (
    "return [document.documentElement.scrollWidth,"
    " [...document.querySelectorAll('button, a, input, select, textarea, summary')]"
    ".filter((one) => one.checkVisibility() && one.id !== 'skip')"
    ".map((one) => one.matches('[type=checkbox]') ? one.parentNode : one)"
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
    r"|/status|POST /cache/delete|python -m commands cache delete|\d (kB|MB)|flux/1-schnell"
    r"|gpt-image-1|\.png"
)
PLACEHOLDERS = (
    "return [...document.querySelectorAll('[placeholder]')]"
    ".filter((one) => one.checkVisibility()).map((one) => one.placeholder).join(' ')"
)


@pytest.fixture
def inspect(page: Page, node_modules: Path) -> Inspect:
    """Look at whatever view the page shows: `inspect(widths, "its name")`."""
    axe = (node_modules / "node_modules/axe-core/axe.min.js").read_text("utf-8")

    def look(widths: tuple[int, ...], view: str) -> None:
        for width in widths:
            page.resize(width, 640)
            actual, small = page.run(LAYOUT)
            assert (actual <= width, small) == (True, []), f"{view} at {width} pixels"
        if not page.run("return 'axe' in window"):
            page.run(axe)
        assert page.driver.execute_async_script(VIOLATIONS) == [], view
        assert page.run(MOVING) == 0, view
        if page.run("return document.documentElement.lang") == "zh":
            shown = page.text("body") + re.sub(r"\w+（", "", page.run(PLACEHOLDERS))
            assert not re.search("[A-Za-z]{2}", LATIN.sub("", shown)), f"{view}: {shown}"

    return look


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
    inspect: Inspect,
    language: str,
    media: dict[str, str],
    widths: tuple[int, ...],
) -> None:
    look = partial(inspect, widths)
    page.prefer(**media)
    page.open(studio.service, key=None, language=language)
    look("the key")
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("empty")
    page.resize(360, 640)
    page.click("#toggle-settings")
    page.click("#options summary")
    page.choose("#shapes", "own")
    look("the form")
    page.resize(360, 640)
    page.click("#toggle-settings")
    page.click("#open-preferences")
    look("the preferences")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
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
    page.click("#variants")
    page.wait_until("document.querySelectorAll('#variant-tiles [data-state=done]').length === 4")
    look("variants")
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


def test_every_state_of_the_queue_is_accessible(
    page: Page, studio: Studio, inspect: Inspect
) -> None:
    look = partial(inspect, (1280, 360))
    page.prefer(color_scheme="dark", reduced_motion="reduce")
    studio.backend.say(gate := Gate(drawing(png(64, 48))))
    page.open(studio.service, key=None, language="zh")
    for prompt in ("苹果", "梨"):
        page.draw(prompt, until="key")
    look("pictures that need the key")
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("waiting")
    page.click("#variants")
    page.wait_for_state("group")
    look("variants, drawn and queued")
    page.draw("桃", until="queued")
    look("a queued picture")
    page.press(Keys.ESCAPE)
    page.wait_for_state("stopped")
    look("a stopped picture")
    gate.opened.set()
    page.wait_until("document.querySelectorAll('#strip [data-state=done]').length === 6")
    page.click("#strip .variant button")
    page.wait_for_state("done")
    look("one of the variants")
    studio.backend.say(REFUSAL)
    page.type("#prompt", "禁")
    page.click("#variants")
    page.wait_until("document.querySelectorAll('#variant-tiles [data-state=failed]').length === 4")
    look("variants that failed")


def test_gallery_and_links_that_are_not_configured_are_not_offered(
    page: Page, serve: Serve, inspect: Inspect
) -> None:
    keys = json.dumps({"blog": {"key": KEY}})
    service = serve(ADMIN_TOKEN="", PROXY_ACCESS_KEY="", ACCESS_KEYS=keys)
    page.open(service, "#view=gallery", language="zh")
    page.wait_for_text("#gallery-view", "没有设置 ADMIN_TOKEN")
    assert not page.shows("#admin-token")
    inspect((360,), "no gallery")
    page.click("#draw-tab")
    page.draw("苹果")
    assert page.text("#actions") == "复制图片 下载"


def test_no_two_texts_are_the_same_and_none_is_missing(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    fetch_texts = "import(`/page/${arguments[0]}.js`).then((it) => arguments[1](it.default))"
    english, chinese = (page.driver.execute_async_script(fetch_texts, a) for a in ("en", "zh"))
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
    assert "由后端生成" in page.text("#how")
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


def test_telephone_keeps_prompt_and_key_below_the_picture(page: Page, studio: Studio) -> None:
    page.resize(390, 844, is_phone=True)
    page.open(studio.service)
    studio.backend.say(drawing(png(768, 1024)))
    assert not page.shows("#shapes")
    page.click("#toggle-settings")
    page.choose("#shapes", "768x1024")
    page.click("#toggle-settings")
    page.draw("a red apple")
    assert not page.all("kbd, #prompt-hint, #shortcuts")
    in_view = (
        "const box = document.querySelector('#picture').getBoundingClientRect();"
        "const bar = document.querySelector('#draw-form').getBoundingClientRect();"
        "return box.top >= 0 && box.bottom <= bar.top && box.height > innerHeight / 3"
    )
    page.wait(lambda: page.run(in_view), "the picture in view, above the bar")
    for place in (0, 1000):
        page.run("scrollTo(0, arguments[0])", place)
        for control in ("#prompt", "#draw", "#change-key"):
            script = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
            assert 0 < page.run(script, control) <= 844, f"{control} is in reach"


SHOWN = "return [...document.images].filter((one) => one.complete && one.naturalWidth === 8).length"


def test_markdown_document_shows_twenty_signed_pictures_cold_and_warm(
    page: Page, studio: Studio, server: MakeServer
) -> None:
    prompts = [f"picture ({number}) *of* [twenty]" for number in range(20)]
    studio.backend.say(drawing(png(8, 8)))
    links = [studio.service.sign({"description": one, "width": 8}).json for one in prompts]
    markdown = "\n\n".join(one["markdown"] for one in links)
    assert KEY not in markdown
    document = f"<!doctype html><title>x</title>{MarkdownIt().render(markdown)}"
    elsewhere = server()
    elsewhere.say(Say(document, 200, {"Content-Type": "text/html; charset=utf-8"}))
    for _ in ("cold", "warm"):
        page.driver.get(elsewhere.url)
        page.wait(lambda: page.run(SHOWN) == 20, "twenty pictures")
    assert sorted(seen.json["prompt"] for seen in studio.backend.seen) == sorted(prompts)


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
