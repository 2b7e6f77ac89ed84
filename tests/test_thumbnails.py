"""Thumbnails: what the gallery gets, and the files that are kept for it."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from picture import ImageRequest
from storage.local.folder import THUMBNAIL, Folder

from .conftest import HOSTED_URL, InProcess, Serve, drawing
from .scripted import Got, ScriptedServer, png

KEY = ImageRequest("apple").key
PICTURE = png(640, 400)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def service(serve: Serve, backend: ScriptedServer) -> InProcess:
    """A service with one picture in its cache."""
    backend.say(drawing(PICTURE))
    made = serve(backend)
    assert made.picture("apple").status == 200
    return made


def look(service: InProcess, target: str = f"/cache/{KEY}?thumbnail", **headers: str) -> Got:
    return service.as_admin(target, **headers)


def thumbnails(folder: Path) -> list[Path]:
    return list(folder.glob(f"*{THUMBNAIL}"))


def test_thumbnail_is_made_at_the_first_look_and_kept(service: InProcess, folder: Path) -> None:
    assert thumbnails(folder) == []
    first = look(service)
    image = Image.open(io.BytesIO(first.body))
    assert (image.format, image.size) == ("WEBP", (320, 200))
    assert first.headers["Content-Type"] == "image/webp"
    assert first.headers["Cache-Control"] == "private, no-cache"
    [kept] = thumbnails(folder)
    assert kept.read_bytes() == first.body
    before = kept.stat().st_ino
    assert (look(service).body, kept.stat().st_ino) == (first.body, before)
    unchanged = look(service, **{"If-None-Match": first.headers["ETag"]})
    assert (unchanged.status, unchanged.body) == (304, b"")
    # The picture itself is another thing.
    assert look(service, f"/cache/{KEY}").body == PICTURE
    assert look(service, f"/cache/{KEY}").headers["ETag"] != first.headers["ETag"]


def test_thumbnail_is_deleted_with_its_picture(service: InProcess, folder: Path) -> None:
    look(service)
    assert service.delete({"key": KEY}).status == 200
    assert thumbnails(folder) == []
    assert look(service).status == 404


def test_sweep_deletes_thumbnails_without_a_picture(service: InProcess, folder: Path) -> None:
    look(service)
    [kept] = thumbnails(folder)
    orphan = folder / f"{'0' * 64}-{'0' * 16}.png{THUMBNAIL}"
    orphan.write_bytes(b"thumbnail")
    store = Folder(folder)
    assert [f"{stored.name}{THUMBNAIL}" for stored in store.names()] == [kept.name]
    store.sweep()
    assert thumbnails(folder) == [kept]


def test_whole_picture_is_sent_without_pillow(
    service: InProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "images.convert", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    got = look(service)
    assert (got.body, got.headers["Content-Type"]) == (PICTURE, "image/png")
    assert thumbnails(folder) == []


def test_whole_picture_is_sent_if_it_cannot_be_decoded(
    service: InProcess, backend: ScriptedServer
) -> None:
    damaged = png().replace(b"IDATx", b"IDAT\0")  # zlib's first byte is always x
    backend.say(drawing(damaged))
    service.picture("pear")
    assert look(service, f"/cache/{ImageRequest('pear').key}?thumbnail").body == damaged


def test_hosted_picture_is_shown_by_its_host(hosted: InProcess) -> None:
    hosted.picture("apple")
    got = look(hosted)
    assert (got.status, got.headers["Location"]) == (302, HOSTED_URL)
