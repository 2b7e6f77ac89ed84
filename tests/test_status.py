"""What /status says of a cache that cannot store new pictures, and of errors."""

from datetime import datetime
from pathlib import Path

import pytest

import config
from backends import Backends
from cache import Cache
from dialect.judging import Fault, Outcome
from drawing.backend import Backend
from drawing.cooldowns import Outages
from drawing.storing import HOST_KEY
from picture import ImageRequest
from settings.servers import BackendSettings
from storage.cluster.copies import Nowhere
from storage.local.sqlite import SqliteState
from storage.state import State
from upstream.client import Upstream
from web.status import Status

from .conftest import Serve, saying
from .scripted import ScriptedServer
from .states import Clock

URL, TOKEN = "http://127.0.0.1:9", "token-of-the-backend"
HOSTED = {"IMAGE_HOSTING_ENABLED": "true", "IMAGE_HOSTING_PROVIDER": "picgo"}
HOSTED |= {"IMAGE_HOSTING_KEY": "k", "IMAGE_HOSTING_URL": URL}


def make_status(environment: dict[str, str], state: State) -> Status:
    settings = config.parse({**environment, "BACKEND_API_URLS": URL, "AUTH_TOKEN": TOKEN})
    backends = Backends([make_backend(state)], state)
    return Status("1.0", settings, Cache(state, Nowhere(Path())), backends, None, None)


def make_backend(state: State) -> Backend:
    return Backend(BackendSettings(URL), Upstream(), state, timeout=1, max_image_bytes=1)


def test_store_counts_only_while_nothing_can_be_uploaded(
    environment: dict[str, str], state: State, clock: Clock
) -> None:
    """It has room for nothing."""
    outages = Outages(state, HOST_KEY, "The image host")
    outages.count(outages.recall(), Fault(Outcome.FAILED, "upload failed"), "HTTP 500", "picture")
    alone, hosted = (make_status(environment | more, state) for more in ({}, HOSTED))
    assert [bool(one.describe()["cache"]["fault"]) for one in (alone, hosted)] == [True, True]
    assert alone.describe()["status"] == "degraded"
    clock.now += 5
    assert [bool(one.describe()["cache"]["fault"]) for one in (alone, hosted)] == [True, False]
    assert hosted.describe()["status"] == "ok"


@pytest.mark.parametrize("settings", [{}, HOSTED])
def test_state_that_cannot_be_read_is_a_fault(
    environment: dict[str, str], tmp_path: Path, settings: dict[str, str]
) -> None:
    (tmp_path / "file").touch()
    found = make_status(environment | settings, SqliteState(tmp_path / "file")).describe()
    cache = found["cache"]
    assert (found["status"], cache["entries"], cache["bytes"]) == ("degraded", None, None)
    assert cache["fault"]
    assert str(tmp_path) not in cache["fault"]


def test_admin_sees_the_last_error(environment: dict[str, str], state: State, clock: Clock) -> None:
    """It is found with the backend although its model alone is avoided."""
    words = f"The model \x1b[31mdall-e-4\r\ndoes not exist, {TOKEN}" + "." * 300
    fault = Fault(Outcome.FAILED, "unknown model", is_of_model=True, detail=words)
    outages = make_backend(state).outages(ImageRequest("x", model="dall-e-4"))
    outages.count(outages.recall(), fault, "unknown model (HTTP 404)", "picture")
    status = make_status(environment, state)
    assert "last_error" not in status.describe()["backends"][0]
    found = status.describe(for_admin=True)["backends"][0]["last_error"]
    assert (found["why"], found["model"]) == ("unknown model", "dall-e-4")
    assert datetime.fromisoformat(found["at"]).timestamp() == clock.now
    assert found["text"].startswith("The model  [31mdall-e-4  does not exist, ***...")
    assert len(found["text"]) == 300


def test_error_without_words_has_ours(environment: dict[str, str], state: State) -> None:
    outages = make_backend(state).outages(ImageRequest("x"))
    refused = Fault(Outcome.REFUSED, "refused")
    outages.count(outages.recall(), refused, "refused (HTTP 400)", "picture")
    found = make_status(environment, state).describe(for_admin=True)["backends"][0]["last_error"]
    assert (found["text"], found["model"]) == ("refused (HTTP 400)", None)


def test_admin_token_alone_opens_what_a_vendor_said(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(saying("I can't draw\nthat."))
    service = serve(BACKEND_API_URLS=f"{backend.url}/v1/chat/completions")
    assert service.picture("x", model="painter").status == 502
    assert "last_error" not in service.get("/status").body.decode()
    found = service.as_admin("/status").json["backends"][0]["last_error"]
    del found["at"]
    assert found == {"why": "rejected", "model": "painter", "text": "I can't draw that."}
