"""The README's pictures: `python -m demo.film` makes film.webp, page.png and gallery.png in docs/.

In the page with the demo backend, a prompt becomes a picture and its Markdown is copied; page.png
is a still of this film, and gallery.png shows some more pictures. This needs requirements-dev.txt
and Debian's chromium and chromium-driver.
"""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from demo.demo_backend import DemoServer
from demo.start import DEMO_KEY, GUNICORN, ROOT, demo_environment, is_configured, stop, wait_for
from tests.browser import Page, chromium
from tests.scripted import free_port

FILM, STILL, GALLERY = (ROOT / "docs" / name for name in ("film.webp", "page.png", "gallery.png"))
MAX_BYTES = 1_000_000  # of each
WIDTH, HEIGHT = 1280, 890  # pixels of the page, and of both stills
FILM_SIZE = (960, 667)
PROMPT = "a red apple"
GALLERY_PROMPTS = (  # the newest is shown first
    "moon over the sea",
    "a forbidden green apple",
    "a quiet harbour at dawn",
    "a tree on a hill",
    "a heart of stone",
    "a lighthouse in the mist",
    "the sun above dunes",
)
DRAWING_SECONDS = 1.0
PROMPT_FIELD, DRAW, COPY = "#prompt", "#draw", '[data-copy="markdown"]'
_POINTER = """
const pointer = document.createElement('div');
pointer.id = 'pointer';
Object.assign(pointer.style, {position: 'fixed', zIndex: 99, width: '22px', height: '32px',
  pointerEvents: 'none', background: '#111',
  clipPath: 'polygon(0 0, 0 75%, 26% 58%, 46% 100%, 62% 93%, 43% 53%, 76% 51%)'});
document.body.append(pointer);
"""
_MOVE = "Object.assign(pointer.style, {left: `${arguments[0]}px`, top: `${arguments[1]}px`})"
_FADING = """
return document.getAnimations().some((one) => one.playState === 'running'
  && one.effect.getComputedTiming().endTime !== Infinity)
"""
_DRAW_ALL = """
const [prompts, key, done] = arguments, headers = {Authorization: `Bearer ${key}`};
const draw = (prompt) => fetch(`prompt/${prompt}?width=1024&height=768`, {headers});
prompts.reduce((before, prompt) => before.then(() => draw(prompt)), Promise.resolve()).then(done);
"""
_OPEN_GALLERY = """
localStorage['pip.theme'] = 'dark';
sessionStorage['pip.token'] = arguments[0];
location = '/#view=gallery';
"""
_LOADED = """
const images = [...document.querySelectorAll('#gallery img')];
return images.length > 0 && images.every((one) => one.complete && one.naturalWidth > 0)
"""


class Camera:
    """Records what a browser shows."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []
        self.pointer = (WIDTH * 0.6, HEIGHT * 0.5)

    def see(self) -> Image.Image:
        """Return what is displayed."""
        return Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")

    def see_without_pointer(self) -> Image.Image:
        """Return what is displayed, but for the pointer."""
        self.driver.execute_script("pointer.hidden = true")
        picture = self.see()
        self.driver.execute_script("pointer.hidden = false")
        return picture

    def shoot(self, milliseconds: int) -> None:
        """Add what is displayed to the film, for so long."""
        self.frames.append(self.see().resize(FILM_SIZE, Image.Resampling.LANCZOS))
        self.milliseconds.append(milliseconds)

    def click(self, selector: str) -> None:
        """Move the pointer to an element, and click it."""
        target = self.driver.find_element(By.CSS_SELECTOR, selector)
        box = target.rect
        end = (box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6)
        start, steps = self.pointer, 8
        for step in range(1, steps + 1):
            part = (step / steps) ** 2 * (3 - 2 * step / steps)  # slow at both ends
            x, y = (a + (b - a) * part for a, b in zip(start, end, strict=True))
            self.driver.execute_script(_MOVE, x, y)
            self.shoot(50)
        self.pointer = end
        target.click()

    def write(self, file: Path) -> None:
        """Write the film; it begins again when it has ended."""
        first, *others = self.frames
        first.save(
            file,
            save_all=True,
            append_images=others,
            duration=self.milliseconds,
            loop=0,
            quality=80,
            method=6,
        )


def is_drawn(driver: webdriver.Chrome) -> bool:
    """Return whether the picture has appeared, and with it the button that copies its Markdown."""
    is_there = any(one.is_displayed() for one in driver.find_elements(By.CSS_SELECTOR, COPY))
    return is_there and not driver.execute_script(_FADING)


def record(camera: Camera, url: str) -> Image.Image:
    """Play the scene; return the still."""
    driver = camera.driver
    driver.get(f"{url}/robots.txt")
    driver.execute_script("localStorage['pip.key'] = arguments[0]", DEMO_KEY)
    driver.get(url)
    WebDriverWait(driver, 10).until(lambda _: driver.find_element(By.CSS_SELECTOR, DRAW))
    driver.execute_script(_POINTER)
    driver.execute_script(_MOVE, *camera.pointer)
    for landscape in driver.find_elements(By.CSS_SELECTOR, '[value="1024x768"]'):
        driver.execute_script("arguments[0].click()", landscape)
    camera.shoot(700)
    camera.click(PROMPT_FIELD)
    for letter in PROMPT:
        driver.find_element(By.CSS_SELECTOR, PROMPT_FIELD).send_keys(letter)
        camera.shoot(70)
    camera.click(DRAW)
    since = time.monotonic()
    while not is_drawn(driver):
        camera.shoot(0)
        camera.milliseconds[-1] = round((time.monotonic() - since) * 1000)
        since = time.monotonic()
    camera.shoot(1200)
    still = camera.see_without_pointer()
    camera.click(COPY)
    camera.shoot(300)
    camera.shoot(2500)
    return still


def show_gallery(camera: Camera, url: str) -> Image.Image:
    """Fill the gallery; return how it looks with two pictures selected."""
    driver = camera.driver
    driver.get(f"{url}/robots.txt")
    driver.execute_async_script(_DRAW_ALL, GALLERY_PROMPTS, DEMO_KEY)
    driver.execute_script(_OPEN_GALLERY, DEMO_KEY)
    WebDriverWait(driver, 10).until(lambda _: driver.execute_script(_LOADED))
    for prompt in ("a lighthouse in the mist", "a quiet harbour at dawn"):
        driver.find_element(By.CSS_SELECTOR, f'[aria-label="Select: {prompt}"]').click()
    WebDriverWait(driver, 10).until(lambda _: not driver.execute_script(_FADING))
    return camera.see()


@contextmanager
def service(cache: str) -> Iterator[str]:
    """Run the proxy with a demo backend that takes its time; its URL."""
    with DemoServer(0, DRAWING_SECONDS) as backend:
        port = free_port()
        threading.Thread(target=backend.serve).start()
        own = {"CACHE_DIR": cache, "HOST": "127.0.0.1", "PORT": str(port), "WORKERS": "1"}
        environment = demo_environment(backend.url) | own
        proxy = subprocess.Popen(GUNICORN, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        try:
            if not wait_for(f"http://127.0.0.1:{port}/status", proxy):
                raise SystemExit("The service does not start: see `make run`.")
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(proxy)
            backend.is_stopping = True


def main() -> int:
    """Make the three files; return the exit status."""
    if is_configured():
        print("It records the demo: unset BACKEND_API_URLS and move .env away.", file=sys.stderr)
        return 1
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as home,
        service(f"{home}/cache") as url,
        chromium() as driver,
    ):
        Page(driver).resize(WIDTH, HEIGHT)
        camera = Camera(driver)
        still = record(camera, url)
        gallery = show_gallery(camera, url)
    camera.write(FILM)
    still.save(STILL, optimize=True)
    gallery.save(GALLERY, optimize=True)
    print(f"{sum(camera.milliseconds) / 1000:.1f} s, {len(camera.frames)} frames")
    sizes = {file.name: file.stat().st_size for file in (FILM, STILL, GALLERY)}
    for name, size in sizes.items():
        print(f"{name}: {size:,} bytes")
    return 0 if max(sizes.values()) < MAX_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
