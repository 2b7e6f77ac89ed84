"""The page at `/`, in a real Chromium against a real gunicorn: drawing, failures, the picture."""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from .browser import STATE, Page
from .conftest import (
    ADMIN,
    KEY,
    REFUSAL,
    ROOT,
    MakeServer,
    Serve,
    drawing,
    hosting_settings,
    llm_settings,
    pollinations_settings,
    saying,
)
from .scripted import Gate, Say, ScriptedServer, Seen, fetch, png
from .studio import Studio, picture_by_seed

REQUESTED = "return performance.getEntries().map((one) => one.name).filter((n) => n.includes(':'))"
ANSWERS = "return performance.getEntries().filter((one) => one.name.includes('/prompt/')).length"
PROPORTIONS = (
    "return Object.fromEntries([...document.querySelectorAll('#shapes label')].map((label) => {"
    " const box = label.querySelector('i').getBoundingClientRect();"
    " return [label.querySelector('input').value, box.width / box.height]; }))"
)

HOLD_MODELS = """
const real = window.fetch;
window.fetch = (url, ...more) => {
  if (!String(url).includes('v1/models') || window.releaseModels) return real(url, ...more);
  return new Promise((resolve) => {
    window.releaseModels = async () => {
      resolve(real(url, ...more));
      await new Promise((done) => setTimeout(done, 0));
    };
  });
};
"""


def test_wrong_key_is_asked_for_again_before_drawing(page: Page, studio: Studio) -> None:
    page.open(studio.service, key=None)
    page.draw("a red apple", until="key")
    page.type("#key", "wrong" + Keys.ENTER)
    page.wait_for_text("#key-wrong", "The access key is wrong")
    assert not studio.backend.seen
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("done")
    assert [seen.json["prompt"] for seen in studio.backend.seen] == ["a red apple"]
    page.driver.refresh()
    page.wait_for_state("done")
    assert not page.shows("#key")
    page.click("#open-preferences")
    page.click("#forget")
    page.wait_for_state("key")
    assert page.run("return localStorage.getItem('pip.key')") is None


def test_late_answer_to_a_wrong_key_spares_the_right_one(page: Page, studio: Studio) -> None:
    page.open(studio.service, key=None)
    page.draw("a red apple", until="key")
    # The list of models is asked for at once, and answered when the right key has been entered.
    page.run(HOLD_MODELS)
    page.type("#key", "wrong" + Keys.ENTER)
    page.wait_for_text("#key-wrong", "The access key is wrong")
    page.type("#key", KEY + Keys.ENTER)
    page.wait_for_state("done")
    page.driver.execute_async_script("window.releaseModels().then(arguments[0])")
    page.wait_for_state("done")
    assert page.run("return localStorage['pip.key']") == KEY


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


def test_waiting_shows_seconds_and_recent_durations(page: Page, studio: Studio) -> None:
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


def test_slow_picture_appears_when_it_is_drawn(
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
    page.draw("slash/and ü? logo.png")
    asked: dict[str, Any] = {"prompt": "slash/and ü? logo.png", "size": "640x180", **given}
    asked |= {"model": "flux/1-schnell", "seed": -123456789012345678}
    assert studio.backend.seen[0].json.items() >= asked.items()
    facts = "1 × 1 · 640 × 180 requested · flux/1-schnell · Quality: high · Style: a & b"
    assert facts in page.text("#facts")
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
    page.draw("slash/and ü? logo.png")
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
    page.click("#open-preferences")
    page.click("#shortcuts")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.press("n")
    assert page.run(STATE) == "done"
    page.click("#new-seed")
    page.wait(lambda: len(studio.backend.seen) == 3, "a third drawing")


def test_abandoned_drawing_goes_on_and_is_cached(page: Page, studio: Studio) -> None:
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


def test_rewriting_and_fallback_show_stages_and_final_prompt(
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
    assert page.text("#final p") == "Final prompt a gentle apple"
    assert page.text("#final ins") == "gentle"
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
    assert (page.source(), page.text("#final p")) == ("cache", "Final prompt a gentle apple")
    page.click("#take-over")
    assert (page.value("#prompt"), page.focused()) == ("a gentle apple", "prompt")
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


def test_refusal_leads_back_to_the_prompt_and_says_until_when(page: Page, studio: Studio) -> None:
    studio.backend.say(REFUSAL)
    page.open(studio.service)
    for _ in ("drawn", "remembered"):
        page.draw("a forbidden apple", until="failed")
        assert page.at("#error").get_attribute("data-status") == "422"
        assert "Moderation refused" in page.text("#error-text")
        assert "is cached until " in page.text("#error-memory")
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


def test_failures_are_told_apart_in_both_languages(page: Page, serve: Serve) -> None:
    service = serve()
    service.backend.say(Say({"error": {"message": "Incorrect API key provided."}}, 401))
    page.open(service, language="zh")
    page.run("document.querySelector('#prompt').value = 'x'.repeat(4001)")
    page.click("#draw")
    page.wait_for_state("failed")
    assert page.at("#error").get_attribute("data-status") == "400"
    assert page.text("#error-says") == "服务返回： 描述超过 4000 个字符。"
    page.draw("a red apple", until="failed")
    page.wait_for_text("#error-help", "请联系服务管理员")
    assert "生成 失败 (未授权)" in page.text("#error .stages")
    assert page.text("#error-memory") == "", "it is over in two seconds"
    page.click("#language")
    assert "only the operator can fix" in page.text("#error-help")
    assert "draw failed (unauthorised)" in page.text("#error .stages")
    assert not page.shows("#countdown")
    service.close()
    page.click("#retry")
    page.wait_for_text("#error-text", "cannot be reached")
    assert page.text("#retry") == "Try again"


def test_copied_links_are_those_of_sign(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    page.type("#seed", "7")
    page.draw("a [red] apple")
    signed = studio.service.sign({"description": "a [red] apple", "seed": 7}).json
    for kind in ("markdown", "html", "url"):
        assert page.copied(f'[data-copy="{kind}"]') == signed[kind]
    assert fetch(signed["url"]).body == png()
    page.run(
        "navigator.clipboard.write = async ([one]) => "
        "{ window.pasted = (await one.getType('image/png')).size; }"
    )
    page.click("#copy-picture")
    page.wait_until("window.pasted > 0")
    page.choose("#expiry", "86400")
    url = page.copied('[data-copy="url"]')
    left = int(parse_qs(urlsplit(url).query)["exp"][0]) - page.run("return Date.now() / 1000")
    assert left == pytest.approx(86400, abs=60)
    assert fetch(url).body == png()
    page.click("#extension")
    url = page.copied('[data-copy="url"]')
    assert urlsplit(url).path.endswith("apple.png")
    assert fetch(url).body == png()
    # As on plain http in a home network.
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined}); window.copied = '';"
        "document.addEventListener('copy', () => { window.copied = String(getSelection()); });"
    )
    page.click('[data-copy="markdown"]')
    assert page.run("return window.copied").startswith("![a \\[red\\] apple](http://127.0.0.1")


def test_picture_is_downloaded_and_enlarged(page: Page, studio: Studio) -> None:
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
