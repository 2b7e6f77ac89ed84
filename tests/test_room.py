"""The check before a drawing: whether the folder has room for its picture."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from storage import NoRoom
from storage.local.folder import DRAWING_BYTES, Folder, Room

from .disks import disk, full, read_only

PICTURE_BYTES = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def small(folder: Path) -> Iterator[Path]:
    """A disk with room for one picture and a bit."""
    with disk(folder, "4m"):
        yield folder


@pytest.fixture
def room(folder: Path) -> Room:
    return Room(folder, PICTURE_BYTES)


def has_room(room: Room) -> bool:
    with suppress(NoRoom), room.reserve():
        return True
    return False


def test_full_disk_has_no_room(small: Path, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    assert has_room(room)
    with full(small, spare=PICTURE_BYTES // 2):
        for _ in range(3):
            assert not has_room(room)
        assert room.fault == "0.5 MiB free, 1.0 MiB needed"
    assert has_room(room)
    assert room.fault is None
    assert [record.getMessage() for record in caplog.records] == [
        "New pictures cannot be stored: 0.5 MiB free, 1.0 MiB needed",
        "New pictures can be stored again",
    ]


def test_only_one_of_64_drawings_gets_the_last_room(small: Path, room: Room) -> None:
    assert PICTURE_BYTES + DRAWING_BYTES > 4 * PICTURE_BYTES
    with ExitStack() as drawings:
        drawings.enter_context(room.reserve())
        for _ in range(63):
            with pytest.raises(NoRoom, match="needed"):
                drawings.enter_context(room.reserve())
    assert has_room(room)


def test_read_only_disk_has_no_room(tmp_path: Path) -> None:
    room = Room(tmp_path, PICTURE_BYTES)
    with read_only(tmp_path):
        assert not has_room(room)
    assert has_room(room)


def test_disk_of_unknown_size_has_room(folder: Path, room: Room) -> None:
    with disk(folder, "0"):
        assert os.statvfs(folder).f_blocks == 0
        assert has_room(room)


def test_failed_write_is_followed_by_trials(small: Path, room: Room) -> None:
    room.has_failed(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not has_room(room)
    assert room.fault == "Disk quota exceeded"
    with full(small), pytest.raises(NoRoom):
        room.try_again()
    assert not has_room(room)
    room.try_again()
    assert has_room(room)
    assert list(small.iterdir()) == []


def test_accident_of_one_write_is_not_followed_by_trials(room: Room) -> None:
    room.has_failed(OSError(errno.EMFILE, "Too many open files"))
    assert has_room(room)


def test_write_that_fails_is_noted_and_leaves_nothing(small: Path) -> None:
    folder = Folder(small, picture_bytes=PICTURE_BYTES)
    with full(small), pytest.raises(OSError, match="No space"):
        folder.write("a.png", b"x" * 5000, 0)
    assert folder.fault == "No space left on device"
    assert list(small.iterdir()) == []
