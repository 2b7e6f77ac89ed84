"""One backend, asked to draw without a service around it."""

import base64
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from drawing.backend import Backend, NotDrawn
from drawing.record import Drawing, Image
from picture import ImageRequest
from settings.servers import BackendSettings
from storage.state import State
from upstream.client import Deadline, Upstream

from .scripted import png

REQUEST = ImageRequest("a red apple", 640, 480, "any", 7)
LIMIT = 2**20
PNG = png()


def backend_at(state: State, url: str, **of_backend: Any) -> Backend:
    settings = BackendSettings(url, **of_backend)
    return Backend(settings, Upstream(), state, timeout=30, max_image_bytes=LIMIT)


def taken(backend: Backend) -> ExitStack:
    """Return a slot of a backend that has one free."""
    slot = backend.take_slot()
    assert slot
    return slot


class Draw:
    """Draws with the backend at a URL; `pauses` are those it made, which take no time here."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.pauses: list[float] = []

    def __call__(
        self,
        url: str,
        request: ImageRequest = REQUEST,
        *,
        prompt: str | None = None,
        timeout: float = 10,
        seconds: float = 10,
        upstream: Upstream | None = None,
        limit: int = LIMIT,
        **of_backend: Any,
    ) -> Image:
        there = backend_at(self.state, url, **of_backend)
        there.timeout, there.max_image_bytes, there.sleep = timeout, limit, self.pauses.append
        there.upstream = upstream or there.upstream
        return there.draw(Drawing(request, Deadline.after(seconds), rewritten=prompt))


@pytest.fixture
def draw(state: State) -> Draw:
    return Draw(state)


def not_drawn(call: Callable[[], Any]) -> NotDrawn:
    with pytest.raises(NotDrawn) as caught:
        call()
    return caught.value


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
