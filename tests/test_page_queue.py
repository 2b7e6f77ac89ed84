"""The page's queue: several pictures at once, variants, reloads, limits and keys."""

import json
import os
import signal

from selenium.webdriver.common.keys import Keys

from .browser import STATE, Page
from .conftest import KEY, REFUSAL, Serve, Start, drawing
from .scripted import Gate, ScriptedServer, png
from .studio import Studio, picture_by_seed


def test_another_prompt_is_drawn_meanwhile(page: Page, studio: Studio) -> None:
    gates = {name: Gate(drawing()) for name in ("an apple", "a pear")}
    studio.backend.say(lambda seen: gates[seen.json["prompt"]](seen))
    page.open(studio.service)
    page.draw("an apple", until="waiting")
    page.draw("a pear", until="waiting")
    page.draw("a pear", until="waiting")
    page.wait(lambda: len(studio.backend.seen) == 2, "both to be drawn")
    assert len(page.all("#strip button")) == 2
    gates["an apple"].opened.set()
    page.wait_for("#strip li:last-child img")
    assert page.run(STATE) == "waiting", "the stage goes on showing the pear"
    gates["a pear"].opened.set()
    page.wait_for_state("done")
    assert page.text("#title") == "a pear"
    page.click("#strip li:last-child button")
    page.wait_for_text("#title", "an apple")
    assert len(studio.backend.seen) == 2


def test_queue_survives_a_reload_and_draws_nothing_twice(page: Page, studio: Studio) -> None:
    gate = Gate(drawing(png(64, 48)))
    studio.backend.say(gate)
    page.open(studio.service)
    for number in range(5):
        page.draw(f"apple {number}", until="waiting" if number < 4 else "queued")
    page.wait(lambda: len(studio.backend.seen) == 4, "four to be drawn at once")
    page.driver.refresh()
    page.wait_for_state("queued")
    gate.opened.set()
    page.wait_for_state("done")
    page.wait_until("document.querySelectorAll('#strip [data-state=done]').length === 5")
    prompts = sorted(seen.json["prompt"] for seen in studio.backend.seen)
    assert prompts == [f"apple {number}" for number in range(5)]
    assert page.run("return sessionStorage['pip.queue']") is None


def test_four_variants_have_four_seeds_and_one_is_picked(page: Page, studio: Studio) -> None:
    studio.backend.say(picture_by_seed)
    page.open(studio.service)
    page.type("#prompt", "a red apple")
    assert page.text("#variants") == "4 variants = 4 drawings"
    page.click("#variants")
    page.wait_until("document.querySelectorAll('#variant-tiles [data-state=done]').length === 4")
    seeds = {str(seen.json["seed"]) for seen in studio.backend.seen}
    assert len(seeds) == 4
    page.click("#variant-tiles button:nth-child(2)")
    page.wait_for_state("done")
    assert page.value("#seed") in seeds
    page.click("#siblings")
    page.wait_for_state("group")
    assert len(studio.backend.seen) == 4


def test_limit_is_said_before_and_at_its_picture(page: Page, serve: Serve) -> None:
    keys = json.dumps({"blog": {"key": KEY, "per_day": 3}})
    service = serve(PROXY_ACCESS_KEY="", ACCESS_KEYS=keys)
    service.backend.say(picture_by_seed)
    page.open(service)
    page.wait_for_text("#key-line", "Drawings left today: 3 of 3")
    assert page.text("#variants") == "3 variants = 3 drawings"
    service.picture("pear")
    page.type("#prompt", "a red apple")
    page.click("#variants")
    page.wait_until("document.querySelectorAll('#variant-tiles [data-state=done]').length === 2")
    page.wait_for_text('#variant-tiles [data-state="failed"]', "limit for today")
    page.wait_for_text("#key-line", "today: 0 of 3")
    assert not page.shows("#variants")


def test_failure_is_said_at_its_picture_and_tried_again_there(page: Page, studio: Studio) -> None:
    studio.backend.say(lambda seen: REFUSAL if "dog" in seen.json["prompt"] else drawing())
    page.open(studio.service)
    page.draw("a dog", until="failed")
    page.draw("x" * 4001, until="failed")
    page.draw("an apple")
    said = [tile.text for tile in page.all("#strip button")]
    assert said[0] == ""
    assert "invalid" in said[1]
    assert "Moderation" in said[2]
    page.click("#strip li:last-child button")
    assert page.at("#error").get_attribute("data-status") == "422"


def test_queue_goes_on_when_a_new_key_is_saved(page: Page, studio: Studio) -> None:
    page.open(studio.service, key="expired")
    page.wait_for_text("#key-wrong", "not accepted")
    for prompt in ("an apple", "a pear"):
        page.draw(prompt, until="key")
    page.type("#key", KEY + Keys.ENTER)
    page.wait_until("document.querySelectorAll('#strip [data-state=done]').length === 2")
    page.wait_for_text("#key-line", "Key saved in this browser")
    assert len(studio.backend.seen) == 2


def test_seed_of_another_goes_with_its_prompt(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    page.type("#prompt", "a red apple")
    page.click("#new-seed")
    page.wait_for_state("done")
    assert page.value("#seed") != "42"
    page.type("#prompt", "a pear")
    assert page.value("#seed") == "42"
    page.type("#seed", "7")
    page.type("#prompt", "a plum")
    assert page.value("#seed") == "7"


def test_picture_is_asked_for_again_when_the_network_is_back(page: Page, studio: Studio) -> None:
    def be_online(*, is_online: bool) -> None:
        limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        given = {"offline": not is_online, **limits}
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", given)

    page.open(studio.service)
    page.driver.execute_cdp_cmd("Network.enable", {})
    try:
        be_online(is_online=False)
        page.draw("a red apple", until="failed")
        assert "cannot be reached" in page.text("#error-text")
    finally:
        be_online(is_online=True)
    page.wait_for_state("done")
    assert len(studio.backend.seen) == 1


def test_worker_that_ends_is_said_at_its_pictures(
    page: Page, gunicorn: Start, backend: ScriptedServer
) -> None:
    gate = Gate(drawing())
    backend.say(gate)
    service = gunicorn(backend, WORKERS="1")
    page.open(service)
    for number in range(5):
        page.draw(f"apple {number}", until="waiting" if number < 4 else "queued")
    page.wait(lambda: len(backend.seen) == 4, "four to be drawn at once")
    backend.say(drawing())
    os.kill(service.workers()[0], signal.SIGKILL)
    # Chromium sends some of them again by itself.
    page.wait_until(
        "!document.querySelector('#strip [data-state=waiting], #strip [data-state=queued]')"
    )
    while failed := page.all("#strip [data-state=failed]"):
        failed[0].click()
        page.wait_for_text("#error-text", "cannot be reached")
        page.click("#retry")
        page.wait_for_state("done")
    assert len(page.all("#strip [data-state=done]")) == 5
    gate.opened.set()
