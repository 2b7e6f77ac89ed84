"""The page as a person uses it, in a real headless Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from . import missing
from .conftest import ADMIN, KEY, Service

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --lang=en-US"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --disable-dev-shm-usage --hide-scrollbars"
)
STATE = "return document.querySelector('#stage').dataset.state"
_CLICK = (
    "const found = document.querySelector(arguments[0]);"
    "found?.scrollIntoView({block: 'nearest', behavior: 'instant'});"
    "const box = found?.getBoundingClientRect();"
    "const hit = box && document.elementFromPoint((box.left + box.right) / 2,"
    " (box.top + box.bottom) / 2);"
    "if (!found?.contains(hit)) return false;"
    "found.focus(); found.click(); return true"
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Run a browser whose files are all in one temporary folder, HOME included."""
    if not (CHROMIUM and CHROMEDRIVER):
        missing.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        for flag in (*FLAGS.split(), f"--user-data-dir={home}/profile"):
            options.add_argument(flag)
        environment = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home}
        driver = webdriver.Chrome(options=options, service=Driver(CHROMEDRIVER, env=environment))
        try:
            driver.set_script_timeout(30)
            yield driver
        finally:
            driver.quit()


class Page:
    """What is displayed, typed, pressed and clicked."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.url = ""

    # --- where it is

    def open(
        self, service: Service, fragment: str = "", key: str | None = KEY, **stored: str
    ) -> None:
        """Open the page with nothing stored but the access key and `stored`."""
        # First away: a page that is left keeps its queue.
        self.driver.get(f"{service.url}/robots.txt")
        self.url = service.url
        given = {f"pip.{name}": value for name, value in {"key": key, **stored}.items() if value}
        clear = "localStorage.clear(); sessionStorage.clear();"
        self.run(f"{clear} Object.assign(localStorage, arguments[0])", given)
        self.driver.get(f"{service.url}/{fragment}")

    def open_history(self) -> None:
        self.click("#history-tab")
        self.wait_for("#history-view")

    def open_gallery(self) -> None:
        self.click("#gallery-tab")
        self.wait_for("#admin-token")
        self.type("#admin-token", ADMIN + Keys.ENTER)
        self.wait_for_text("#totals", "B")

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone})

    def prefer(self, **media: str) -> None:
        """Set what the system prefers: `color_scheme="dark"`, `reduced_motion="reduce"`."""
        features = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in media.items()
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    # --- what is displayed

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def at(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text that is displayed there."""
        script = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((one) => one.checkVisibility()).map((one) => one.innerText).join(' ')"
        )
        return " ".join(str(self.run(script, selector)).split())

    def shows(self, selector: str) -> bool:
        script = "return document.querySelector(arguments[0])?.checkVisibility() ?? false"
        return bool(self.run(script, selector))

    def value(self, selector: str) -> str:
        return str(self.at(selector).get_property("value"))

    def source(self) -> str | None:
        return self.at("#how").get_attribute("data-source")

    def picture_width(self) -> int:
        return int(self.run("return document.querySelector('#picture').naturalWidth"))

    def prompts(self, selector: str = "#gallery") -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        found: list[str] = self.run(script, f"{selector} .prompt")
        return found

    def focused(self) -> str:
        return str(self.run("return document.activeElement.id"))

    # --- waiting

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        waiting = WebDriverWait(self.driver, 10, 0.05)
        return waiting.until(lambda _: condition(), f"waited in vain for {what}")

    def wait_until(self, condition: str, *arguments: Any) -> None:
        """Wait within the page for a condition in JavaScript, with `given` as its arguments."""
        script = (
            "const [given, done] = arguments, end = Date.now() + 10000;"
            f"(function look() {{ if ({condition}) done(true);"
            " else if (Date.now() > end) done(false); else setTimeout(look, 20); })()"
        )
        is_met = self.driver.execute_async_script(script, arguments)
        what = f"{condition} with {arguments}"
        assert is_met, f"waited in vain for {what}, and saw: {self.text('#stage')}"

    def wait_for_state(self, state: str) -> None:
        self.wait_until("document.querySelector('#stage').dataset.state === given[0]", state)

    def wait_for_text(self, selector: str, text: str) -> None:
        is_shown = (
            "[...document.querySelectorAll(given[0])].some((one) => one.checkVisibility()"
            " && one.innerText.includes(given[1]))"
        )
        self.wait_until(is_shown, selector, text)

    def wait_for(self, selector: str) -> None:
        self.wait_until("document.querySelector(given[0])?.checkVisibility()", selector)

    def wait_for_prompts(self, *prompts: str) -> None:
        self.wait(lambda: self.prompts() == [*prompts], f"a gallery of {prompts}")

    # --- what a person does

    def type(self, selector: str, text: str) -> None:
        """Replace what a field holds, at once as if it were pasted; a last Enter is a key."""
        field = self.at(selector)
        script = (
            "arguments[0].focus(); arguments[0].select();"
            "document.execCommand('insertText', false, arguments[1])"
        )
        self.run(script, field, text.removesuffix(Keys.ENTER))
        if text.endswith(Keys.ENTER):
            field.send_keys(Keys.ENTER)

    def press(self, key: str) -> None:
        """Press a key where no field has the focus."""
        self.run("document.activeElement.blur()")
        self.at("body").send_keys(key)

    def draw(self, prompt: str, until: str = "done") -> None:
        self.type("#prompt", prompt + Keys.ENTER)
        self.wait_for_state(until)

    def click(self, selector: str) -> None:
        """Click what is seen at the middle of an element, which must be the element itself.

        In one command: WebDriver's own click takes ten times as long.
        """
        is_hit = self.run(_CLICK, selector)
        assert is_hit, f"{selector} is covered or absent"

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select, or a radio button of a group, by its value."""
        script = (
            "const one = document.querySelector(arguments[0]);"
            "if (!one.matches('select')) return false;"
            "one.value = arguments[1];"
            "return one.dispatchEvent(new Event('change', {bubbles: true}))"
        )
        if not self.run(script, selector, value):
            self.click(f'{selector} [value="{value}"]')

    def copied(self, selector: str) -> str:
        """Press a button that copies; return what it copied."""
        catch = "navigator.clipboard.writeText = async (text) => { window.copied = text; }"
        self.run(f"{catch}; window.copied = ''")
        self.click(selector)
        self.wait_until("window.copied")
        return str(self.run("return window.copied"))
