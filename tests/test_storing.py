"""Storing a drawn picture, and the check of room before it is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache import Cache
from drawing.record import Drawing, Image
from drawing.storing import Storing
from hosting import ImageHost, UploadFailed
from picture import ImageRequest
from storage import NoRoom
from storage.cluster.copies import Nowhere
from storage.state import State
from upstream.client import Deadline

from .servers import png
from .states import Clock

IMAGE = Image(png(), "image/png", "b")


class Host(ImageHost):
    """An image host that takes pictures while `is_up`."""

    is_up = True

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        if not self.is_up:
            raise UploadFailed("HTTP 500")
        return f"https://img.example/{name}"


def test_cache_needs_room_only_while_uploads_fail(state: State, clock: Clock) -> None:
    host = Host()
    storing = Storing(Cache(state, Nowhere(Path())), host, upload_timeout=10)
    drawings = [Drawing(ImageRequest("x"), Deadline.after(10)) for _ in range(2)]
    with storing.reserve():
        storing.store(drawings[0], IMAGE)
    host.is_up = False
    storing.store(drawings[1], IMAGE)
    assert [bool(drawing.hosted_url and drawing.row) for drawing in drawings] == [True, False]
    with pytest.raises(NoRoom), storing.reserve():
        pass
    clock.now += 5
    with storing.reserve():
        pass
