"""What /status says of a cache that cannot store new pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import config
from backends import Backends
from cache import Cache
from dialect.judging import Fault, Outcome
from drawing.backend import Backend
from drawing.cooldowns import Cooldown, Outages
from drawing.storing import HOST_KEY
from settings.servers import BackendSettings
from storage import State
from storage.cluster.copies import Nowhere
from storage.local.sqlite import SqliteState
from upstream.client import Upstream
from web.status import Status

from .states import Clock

HOSTED = {
    "IMAGE_HOSTING_ENABLED": "true",
    "IMAGE_HOSTING_PROVIDER": "picgo",
    "IMAGE_HOSTING_KEY": "k",
    "IMAGE_HOSTING_URL": "http://127.0.0.1:9",
}


def describe(environment: dict[str, str], state: State) -> tuple[str, dict[str, Any]]:
    """Return the status and what is said of a cache that has room for nothing."""
    url = "http://127.0.0.1:9"
    settings = config.parse({**environment, "BACKEND_API_URLS": url})
    backend = Backend(BackendSettings(url), Upstream(), state, timeout=1, max_image_bytes=1)
    status = Status("1.0", settings, Cache(state, Nowhere()), Backends([backend], state), None)
    found = status.describe()
    return found["status"], found["cache"]


def test_status_says_why_no_picture_can_be_stored(
    environment: dict[str, str], state: State
) -> None:
    status, cache = describe(environment, state)
    assert (status, bool(cache["fault"]), cache["entries"]) == ("degraded", True, 0)


def test_store_counts_only_while_uploads_fail(
    environment: dict[str, str], state: State, clock: Clock
) -> None:
    Outages(state, HOST_KEY, "The image host").count(
        Cooldown(), Fault(Outcome.FAILED, "upload failed"), "HTTP 500", "picture"
    )
    status, cache = describe(environment | HOSTED, state)
    assert (status, bool(cache["fault"])) == ("degraded", True)
    clock.now += 5
    status, cache = describe(environment | HOSTED, state)
    assert (status, cache["fault"]) == ("ok", None)


@pytest.mark.parametrize("settings", [{}, HOSTED])
def test_state_that_cannot_be_read_is_a_fault(
    environment: dict[str, str], tmp_path: Path, settings: dict[str, str]
) -> None:
    (tmp_path / "file").touch()
    status, cache = describe(environment | settings, SqliteState(tmp_path / "file"))
    assert (status, cache["entries"], cache["bytes"]) == ("degraded", None, None)
    assert cache["fault"]
    assert str(tmp_path) not in cache["fault"]
