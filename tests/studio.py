"""Fixtures that are started once a process: a proxy with its backend, and a browser.

Selenium is imported where a browser is started, since other tests do without it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storage import Row
from storage.local.sqlite import SqliteState

from .conftest import Gunicorn, drawing, with_backend
from .scripted import Say, ScriptedServer, Seen, png

if TYPE_CHECKING:
    from .browser import Page


def picture_by_seed(seen: Seen) -> Say:
    return drawing(png(64, 48, shade=seen.json["seed"] % 256))


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    from .browser import Page, chromium

    with chromium() as driver:
        yield Page(driver)


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    browser.resize(1000, 640)
    browser.prefer()
    yield browser
    log = browser.driver.get_log("browser")  # type: ignore[no-untyped-call]
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
            self.service.delete({"key": entry["key"]})

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.service.as_admin("/cache?limit=200").json["entries"]
        return found


@pytest.fixture(scope="session")
def opened_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    settings = {"MODELS": "flux/1-schnell, gpt-image-1", "NGINX_CACHE_SECONDS": "600"}
    with with_backend(folder, **settings) as (service, backend):
        yield Studio(service, backend, folder / "cache")


@pytest.fixture
def studio(opened_studio: Studio) -> Studio:
    opened_studio.clear()
    return opened_studio
