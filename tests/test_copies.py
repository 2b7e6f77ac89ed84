"""Machines with one database and one bucket, and what becomes of their copies."""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cache import Cache, NotKept
from picture import ImageRequest
from settings.servers import ObjectSettings
from storage import Row, Totals, Unavailable
from storage.cluster.copies import Copies
from storage.cluster.objects import Objects
from storage.local.sqlite import SqliteState
from storage.store import STALE_SECONDS
from storage.waiting import Places

from .disks import disk
from .proxy import Link
from .scripted import png, wait_until
from .states import REQUEST, Clock, read, refusing

OTHER = ImageRequest("a green pear")
PNG = png(size=500)


class Machine:
    """A cache with its copies in a folder, and its own way to the bucket."""

    def __init__(self, folder: Path, bucket: ObjectSettings, clock: Clock, max_bytes: int) -> None:
        self.folder = folder
        self.link = Link(int(str(bucket.endpoint_url).rpartition(":")[2]))
        self.objects = Objects(replace(bucket, endpoint_url=self.link.url))
        self.state = SqliteState(folder.parent / "database", clock)
        files = self.state.files
        self.store = Copies(self.objects, self.folder, files, Places(64), max_bytes, clock)
        self.cache = Cache(self.state, self.store, clock=clock)

    def put(self, request: ImageRequest = REQUEST) -> Row:
        return self.cache.put(request.key, PNG, "image/png", request=request)

    def read(self, request: ImageRequest = REQUEST) -> bytes | None:
        return read(self.cache, request)

    def reserve(self) -> bool:
        with self.store.reserve():
            return True

    def reserve_later(self) -> bool:
        self.keep_up()
        return self.reserve()

    def copies(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*-*"))

    def keep_up(self) -> None:
        """Do what the store needs done from time to time."""
        for task in self.store.tasks():
            task.work()

    def close(self) -> None:
        self.cache.close()
        self.link.close()


def works(call: Callable[[], object]) -> bool:
    with suppress(Unavailable):
        return bool(call())
    return False


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())  # the changes of files are dated by the real one


Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path, bucket: ObjectSettings, clock: Clock) -> Iterator[Make]:
    with ExitStack() as stack:

        def start(name: str, max_bytes: int = 0) -> Machine:
            made = Machine(tmp_path / name, bucket, clock, max_bytes)
            stack.callback(made.close)
            return made

        yield start


@pytest.fixture
def here(make: Make) -> Machine:
    return make("here")


@pytest.fixture
def there(make: Make) -> Machine:
    return make("there")


# --- fetching


def test_many_openings_are_one_fetch(here: Machine, there: Machine) -> None:
    here.put()
    with ThreadPoolExecutor(30) as pool:
        assert set(pool.map(lambda _: there.read(), range(200))) == {PNG}
    assert len(there.link.requests) == 1


def test_missing_or_damaged_object_is_lost(here: Machine, there: Machine) -> None:
    """A rule of the bucket may have removed it."""
    here.objects.delete(str(here.put().file))
    assert there.read() is None
    here.objects.put(str(here.put(OTHER).file), PNG[:-1], "image/png")
    assert there.read(OTHER) is None
    assert here.cache.state.totals() == Totals(0, 0)


def test_damaged_copy_is_fetched_again(here: Machine) -> None:
    name = str(here.put().file)
    (here.folder / name).write_bytes(PNG[:-1])
    assert here.read() == PNG
    assert (here.folder / name).read_bytes() == PNG


def test_picture_is_served_where_no_copy_can_be_kept(here: Machine, there: Machine) -> None:
    here.put()
    there.folder.write_bytes(b"in the way")
    assert there.read() == PNG
    there.put(OTHER)
    assert here.read(OTHER) == PNG


# --- the room for copies


def test_least_recently_used_copies_go_first(make: Make, clock: Clock) -> None:
    """Whichever process of the machine used them."""
    one, other = make("limited", 1999), make("limited", 1999)
    requests = [ImageRequest(str(number)) for number in range(4)]
    rows = []
    for request in requests:
        clock.now += 100
        if request is requests[3]:
            one.read(requests[0])
            clock.now += 100
        rows.append(other.put(request))
    assert one.copies() == sorted(str(rows[number].file) for number in (0, 2, 3))
    assert one.read(requests[1]) == PNG, "the picture itself is still there"


# --- the bucket fails


def test_nothing_is_drawn_or_deleted_while_a_bucket_is_down(here: Machine, there: Machine) -> None:
    here.put()
    there.put(OTHER)
    assert there.reserve()
    there.link.cut()
    assert not works(there.read)
    assert not works(there.reserve)
    with pytest.raises(NotKept):
        there.put()
    assert len(there.copies()) == 1, "the failed one leaves none"
    with pytest.raises(Unavailable):
        there.cache.delete(OTHER.key)
    assert there.read(OTHER) == PNG
    there.keep_up()
    assert not works(there.reserve)
    there.link.mend()
    wait_until(lambda: works(there.reserve_later), 3)
    assert there.store.fault is None
    assert there.cache.delete(OTHER.key)
    assert there.read(OTHER) is None
    assert [stored.key for stored in here.store.names()] == [REQUEST.key], "no trial is left"


def test_full_disk_serves_no_half_of_a_picture(
    here: Machine, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png(size=200_000)
    row = here.cache.put(REQUEST.key, data, "image/png")
    small = tmp_path / "small"
    with disk(small, "64k"):
        store = Copies(here.objects, small, here.state.files, Places(64), clock=clock)
        # A missing file would count as a picture that the bucket has lost.
        for folder, reason in ((small, "No space"), (tmp_path / "gone", "no temporary folder")):
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            with pytest.raises(OSError, match=reason):
                store.open(str(row.file), row.bytes)


# --- deleted


def test_copies_of_deleted_pictures_are_swept(here: Machine, there: Machine, clock: Clock) -> None:
    here.put()
    kept = here.put(OTHER)
    assert there.read() == there.read(OTHER) == PNG
    assert here.cache.delete(REQUEST.key)
    assert there.read() is None
    there.store.sweep()
    assert len(there.copies()) == 2, "the row of a young one may not be written yet"
    clock.now = time.time() + STALE_SECONDS + 1
    there.store.sweep()
    assert there.copies() == [kept.file]


def test_deletion_whose_row_stays_says_so(here: Machine, there: Machine, tmp_path: Path) -> None:
    here.put()
    assert there.read() == PNG
    with refusing(tmp_path / "database", "DELETE ON entries"), pytest.raises(Unavailable):
        here.cache.delete(REQUEST.key)
    assert there.read() == PNG, "its copy: this is why"
    assert here.cache.delete(REQUEST.key)
    assert there.read() is None


def test_bucket_is_adopted_by_command_only(here: Machine, there: Machine) -> None:
    row = here.put()
    here.objects.put("holiday.png", PNG, "image/png")
    assert here.state.remove([row])
    there.cache.settle()
    there.store.sweep()
    assert there.link.requests == []
    assert there.read() is None
    assert there.cache.adopt() == 1
    assert there.read() == PNG
