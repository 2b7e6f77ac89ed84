"""The page's history and gallery, with the mouse and with the keyboard alone."""

from io import BytesIO
from zipfile import ZipFile

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from .browser import Page
from .conftest import ADMIN, drawing
from .scripted import png
from .studio import Studio, picture_by_seed

# Instead of a file, what would be in it.
SAVING = """
const blobs = {}, real = URL.createObjectURL;
URL.createObjectURL = (blob) => { const url = real(blob); blobs[url] = blob; return url; };
HTMLAnchorElement.prototype.click = function () {
  window.saved = [this.download, blobs[this.href]];
};
"""


def test_history_draws_an_entry_again_and_can_be_emptied(page: Page, studio: Studio) -> None:
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


def test_gallery_asks_for_the_token_lists_sorts_and_filters(page: Page, studio: Studio) -> None:
    sizes = {"one": 300, "two": 500, "three": 400}
    models = {"one": "flux/1-schnell", "two": "gpt-image-1"}
    studio.backend.say(*(drawing(png(64, 48, size=size)) for size in sizes.values()))
    for prompt in sizes:
        model = {"model": models[prompt]} if prompt in models else {}
        studio.service.picture(prompt, width=64, **model)
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
    assert facts.startswith("64 × 48 64 × 64 requested 1 kB localhost ")
    fit = "return getComputedStyle(document.querySelector('#gallery img')).objectFit"
    assert page.run(fit) == "contain", "portraits are shown whole"
    page.choose("#order", "largest")
    page.wait_for_prompts("two", "three", "one")
    page.type("#by-model", "gpt-image-1")
    page.wait_for_prompts("two")
    page.type("#by-model", "")
    page.wait_for_prompts("two", "three", "one")
    set_day = (
        "const day = document.querySelector('#since');"
        "day.value = arguments[0]; day.dispatchEvent(new Event('change'))"
    )
    page.run(set_day, "2999-01-01")
    page.wait_for_text("#gallery-note", "No picture matches these filters")
    page.run(set_day, "2001-01-01")
    page.wait_for_prompts("two", "three", "one")
    page.run(set_day, "")
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


def test_gallery_of_a_thousand_pictures_loads_while_scrolling(page: Page, studio: Studio) -> None:
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


def test_range_is_selected_saved_and_drawn_again(page: Page, studio: Studio) -> None:
    studio.backend.say(picture_by_seed)
    for name in ("one", "two", "three", "four"):
        studio.service.picture(name)
    page.open(studio.service)
    page.open_gallery()
    page.wait_for_prompts("four", "three", "two", "one")
    page.click('[aria-label="Select: four"]')
    page.run(
        "document.querySelector('[aria-label=\"Select: two\"]')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, shiftKey: true}))"
    )
    assert page.text("#selected") == "3 selected"
    page.run(SAVING)
    page.click("#save")
    page.wait_until("window.saved")
    name, data = page.driver.execute_async_script(
        "const done = arguments[0], [name, blob] = window.saved;"
        "blob.arrayBuffer().then((it) => done([name, [...new Uint8Array(it)]]))"
    )
    assert name == "pictures.zip"
    with ZipFile(BytesIO(bytes(data))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["four-42.png", "three-42.png", "two-42.png"]
        assert archive.read("four-42.png") == png(64, 48, shade=42)
    page.click("#select-all")
    assert page.text("#selected") == "4 selected"
    page.click("#redraw")
    assert "as many drawings: 4?" in page.text("#confirm-title")
    page.click("#confirm-yes")
    page.wait_until("document.querySelectorAll('#variant-tiles [data-state=done]').length === 4")
    assert len(studio.backend.seen) == 8
    assert len(studio.entries()) == 4


STOP = (
    "const here = document.activeElement;"
    "const outlined = [here, here.closest('label')].filter(Boolean)"
    ".some((one) => getComputedStyle(one).outlineStyle !== 'none');"
    "const several = here.closest('ol, [role=group]');"
    "return [here.id || here.className || here.name || several?.id || here.tagName, outlined]"
)


class Keyboard:
    """Someone who never touches the mouse, and sees where the focus is."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def press(self, *keys: str) -> None:
        for key in keys:
            actions = ActionChains(self.page.driver)
            if key[0] == Keys.SHIFT:
                actions.key_down(Keys.SHIFT).send_keys(key[1:]).key_up(Keys.SHIFT)
            else:
                actions.send_keys(key)
            actions.perform()

    def go(self, name: str, key: str = Keys.TAB) -> None:
        """Press Tab until something of this id, class or name has the focus."""
        for _ in range(40):
            self.press(key)
            found, is_outlined = self.page.run(STOP)
            assert is_outlined, f"{found} does not show that it has the focus"
            if found == name:
                return
        pytest.fail(f"the keyboard does not reach {name}")

    def use(self, name: str, *keys: str) -> None:
        """Go there and press these keys, or Enter."""
        self.go(name)
        self.press(*keys or (Keys.ENTER,))

    def open_gallery(self) -> None:
        self.go("gallery-tab", Keys.SHIFT + Keys.TAB)
        self.press(Keys.ENTER)
        self.page.wait_until("document.activeElement.id === given[0]", "admin-token")
        self.press(ADMIN, Keys.ENTER)
        self.page.wait_for("#gallery .card")


def test_keyboard_alone_draws_enlarges_and_deletes(page: Page, studio: Studio) -> None:
    page.open(studio.service)
    keyboard = Keyboard(page)
    keyboard.use("skip")
    assert page.focused() == "main"
    keyboard.use("prompt", "a red apple")
    keyboard.use("size", Keys.ARROW_RIGHT)
    keyboard.use("draw")
    page.wait_for_state("done")
    assert studio.backend.seen[0].json["size"] == "1024x1024"
    keyboard.use("enlarge")
    page.wait_for("#full-size")
    keyboard.press(Keys.ESCAPE)
    page.wait_until("document.activeElement.id === given[0]", "enlarge")
    keyboard.open_gallery()
    keyboard.go("open")
    keyboard.use("INPUT", Keys.SPACE)
    keyboard.use("delete")
    page.wait_for("#confirm")
    keyboard.press(Keys.ESCAPE)
    page.wait_until("document.activeElement.id === given[0]", "delete")
    keyboard.press(Keys.ENTER)
    keyboard.use("confirm-yes")
    page.wait_until("document.activeElement.id === given[0]", "main")
    assert studio.entries() == []


def test_keyboard_alone_picks_a_variant_and_saves_a_range(page: Page, studio: Studio) -> None:
    studio.backend.say(picture_by_seed)
    page.open(studio.service)
    keyboard = Keyboard(page)
    keyboard.use("prompt", "a red apple")
    keyboard.use("variants")
    page.wait_until("document.querySelectorAll('#variant-tiles [data-state=done]').length === 4")
    keyboard.use("variant-tiles")
    page.wait_for_state("done")
    keyboard.use("siblings")
    page.wait_for_state("group")
    keyboard.use("strip")
    page.wait_for_state("done")
    keyboard.open_gallery()
    keyboard.use("INPUT", Keys.SPACE)
    for _ in range(2):
        keyboard.go("INPUT")
    keyboard.press(Keys.SHIFT + Keys.SPACE)
    assert page.text("#selected") == "3 selected"
    page.run(SAVING)
    keyboard.use("save")
    page.wait_until("window.saved")
    assert page.run("return window.saved[0]") == "pictures.zip"
