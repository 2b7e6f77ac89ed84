"""One backend, asked to draw without a service around it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from drawing.backend import Backend, NotDrawn
from drawing.record import Image
from picture import ImageRequest
from settings.servers import BackendSettings
from storage.state import State
from upstream.client import Deadline, Upstream

from .servers import png

REQUEST = ImageRequest("a red apple", 640, 480, "any", 7)
LIMIT = 2**20
PNG = png()


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
        there = Backend(
            BackendSettings(url, **of_backend),
            upstream or Upstream(),
            self.state,
            timeout=timeout,
            max_image_bytes=limit,
            sleep=self.pauses.append,
        )
        return there.draw(prompt or request.prompt, request, Deadline.after(seconds))


@pytest.fixture
def draw(state: State) -> Draw:
    return Draw(state)


def not_drawn(call: Callable[[], Any]) -> NotDrawn:
    with pytest.raises(NotDrawn) as caught:
        call()
    return caught.value


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
