"""Several machines with one database and one bucket, and what becomes of their copies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from cache import Cache, NotKept
from picture import ImageRequest
from settings.buckets import ObjectSettings
from storage import Row, Totals, Unavailable
from storage.cluster.copies import Copies
from storage.cluster.objects import Objects
from storage.cluster.recent import Recent
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.store import DAY
from storage.transfer import Place, transfer

from .link import Link
from .servers import GIF, png, wait_until
from .states import ROOT, Clock, SqlitePlace, held_elsewhere

T = TypeVar("T")

REQUEST = ImageRequest("a red apple")
PNG = png(size=500)


class Machine:
    """A cache with its copies in a folder, and its own way to the bucket."""

    def __init__(
        self, folder: Path, bucket: ObjectSettings, name: str, clock: Clock, max_bytes: int = 0
    ) -> None:
        self.folder = folder / name
        self.link = Link(int(str(bucket.endpoint_url).rpartition(":")[2]))
        # Long enough for a test on a busy machine, short enough for one that waits for it.
        objects = Objects(replace(bucket, endpoint_url=self.link.url), seconds=4.0)
        self.store = Copies(objects, self.folder, name, max_bytes, clock)
        self.state = SqliteState(folder / "database", clock)
        self.cache = Cache(self.state, self.store, clock=clock)

    def put(self, request: ImageRequest = REQUEST, data: bytes = PNG) -> Row:
        media_type = "image/gif" if data == GIF else "image/png"
        return self.cache.put(request.key, data, media_type, request=request)

    def read(self, request: ImageRequest = REQUEST) -> bytes | None:
        picture = self.cache.get(request.key)
        if picture is None:
            return None
        assert picture.file
        with picture.file as file:
            return file.readall()

    def files(self, below: str = ".") -> list[str]:
        return sorted(path.name for path in (self.folder / below).glob("*-*"))

    def upkeep(self, number: int = 0) -> None:
        """Do a task of the store: 0 uploads, 1 writes down what was used, 2 tidies up."""
        self.store.tasks(self.state)[number].work()

    def close(self) -> None:
        self.cache.close()
        self.link.close()


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())  # the changes of files are dated by the real one


Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path, bucket: ObjectSettings, clock: Clock) -> Iterator[Make]:
    """Start a machine; once more with the same name is another process of it."""
    with ExitStack() as stack:

        def start(name: str, max_bytes: int = 0) -> Machine:
            stack.callback((made := Machine(tmp_path, bucket, name, clock, max_bytes)).close)
            return made

        yield start


@pytest.fixture
def here(make: Make) -> Machine:
    return make("here")


@pytest.fixture
def there(make: Make) -> Machine:
    return make("there")


def stored(machine: Machine) -> list[str]:
    return [found.name for found in machine.store.names()]


# --- copies


def test_picture_drawn_by_one_machine_is_fetched_once_by_another(
    here: Machine, there: Machine
) -> None:
    row = here.put()
    assert (row.machine, stored(here)) == (None, [row.file])
    for machine, calls in ((here, 0), (there, 1)):
        machine.link.requests.clear()
        assert [machine.read(), machine.read()] == [PNG, PNG]
        assert len(machine.link.requests) == calls
        assert machine.files() == [row.file]
        mtime = (machine.folder / str(row.file)).stat().st_mtime_ns
        assert mtime == int(row.created) * 10**9, "the next hit does not read it"


def test_many_openings_are_one_fetch(here: Machine, there: Machine) -> None:
    here.put()
    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(lambda _: there.read(), range(200))) == {PNG}
    assert len(there.link.requests) == 1


OPEN = """
import sys
from pathlib import Path
from settings.buckets import ObjectSettings
from storage.cluster.copies import Copies
from storage.cluster.objects import Objects
name, folder, *bucket = sys.argv[1:]
store = Copies(Objects(ObjectSettings(*bucket)), Path(folder), "there")
print("ready", flush=True)
print(len(store.open(name).readall()), flush=True)
"""


def test_processes_of_a_machine_fetch_once(
    here: Machine, there: Machine, bucket: ObjectSettings
) -> None:
    row = here.put()
    there.link.freeze()
    settings = [bucket.url, there.link.url, "us-east-1", "id", "secret"]
    command = [sys.executable, "-c", OPEN, str(row.file), str(there.folder), *settings]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(there.read)
        wait_until(lambda: there.link.requests)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            there.link.mend()
            assert child.stdout.readline() == b"500\n"
        assert reading.result() == PNG
    assert len(there.link.requests) == 1


def test_damaged_copy_is_fetched_again(here: Machine) -> None:
    row = here.put()
    (here.folder / str(row.file)).write_bytes(PNG[:-1])
    assert here.read() == PNG
    assert here.state.find(row.key) == row


def test_damaged_object_is_lost(here: Machine, there: Machine) -> None:
    row = here.put()
    there.store._objects.put(str(row.file), png(shade=1, size=500), "image/png")
    assert there.read() is None
    assert (here.read(), stored(here)) == (None, [])


def test_missing_object_is_lost(here: Machine, there: Machine) -> None:
    """A rule of the bucket may have removed it."""
    there.store._objects.delete(str(here.put().file))
    assert there.read() is None
    assert here.cache.totals() == Totals(0, 0)


def test_machine_without_a_usable_folder_serves_what_it_fetches(
    make: Make, here: Machine, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text("a file where the folder should be")
    broken = make("broken")
    row = broken.put()
    assert row.machine is None
    assert [broken.read(), here.read()] == [PNG, PNG]
    assert broken.link.requests[1:] == [broken.link.requests[0].replace("PUT", "GET")]
    assert broken.store.has_pending, "/status says that something is wrong"


# --- the room for copies


def test_least_recently_used_copies_go_first(make: Make, clock: Clock) -> None:
    limited = make("limited", 1999)
    requests = [ImageRequest(str(number)) for number in range(4)]
    rows = []
    for request in requests[:3]:
        clock.now += 10
        rows.append(limited.put(request))
    clock.now += 10
    limited.read(requests[0])
    rows.append(limited.put(requests[3]))
    assert limited.files() == sorted(str(rows[number].file) for number in (0, 2, 3))
    assert limited.read(requests[1]) == PNG, "the picture itself is still there"


def test_use_is_written_down_for_other_processes(tmp_path: Path, clock: Clock) -> None:
    one, other = Recent(tmp_path, 250, clock), Recent(tmp_path, 250, clock)
    names = [f"{number:064x}-{number:016x}.png" for number in range(3)]
    for name in names[:2]:
        clock.now += 10
        one.write(name, b"1" * 100, 1e9)
    clock.now += 10
    one.open(names[0]).close()
    one.flush()
    other.write(names[2], b"1" * 100, 1e9)
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[2]}
    assert {int(path.stat().st_mtime) for path in tmp_path.iterdir()} == {10**9}


def test_pictures_that_are_not_uploaded_yet_take_no_room(make: Make) -> None:
    limited = make("limited", 900)
    limited.link.cut()
    requests = [ImageRequest(str(number)) for number in range(3)]
    for request in requests:
        limited.put(request)
    assert [limited.read(request) for request in requests] == [PNG] * 3


# --- the object store fails


def test_drawing_is_kept_here_until_the_store_is_back(here: Machine, there: Machine) -> None:
    there.link.cut()
    row = cut_during(here, here.put)
    assert (row.machine, here.read(), here.files("pending")) == ("here", PNG, [row.file])
    assert here.store.has_pending
    with pytest.raises(Unavailable):
        there.read()
    with pytest.raises(Unavailable):
        here.upkeep()
    there.link.mend()
    with pytest.raises(Unavailable, match="has yet to upload it"):
        there.read()
    here.link.mend()
    wait_until(lambda: is_uploaded(here), seconds=2)
    assert (there.read(), here.read()) == (PNG, PNG)
    assert here.state.find(row.key) == replace(row, machine=None)
    assert (here.files(), here.store.has_pending) == ([row.file], False)


def cut_during(machine: Machine, call: Callable[[], T]) -> T:
    """Return what a call returns, or raise what it raises, if the store goes away meanwhile."""
    machine.link.freeze()
    machine.link.requests.clear()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        wait_until(lambda: machine.link.requests, what="a request")
        machine.link.cut()
        return future.result()


def is_uploaded(machine: Machine) -> bool:
    try:
        machine.upkeep()
    except Unavailable:
        return False
    return True


def test_upload_is_made_up_after_a_restart(make: Make, here: Machine, there: Machine) -> None:
    here.link.cut()
    here.put()
    stop, again = threading.Event(), make("here")
    upkeep = threading.Thread(target=again.cache.maintain, args=(stop,))
    upkeep.start()
    wait_until(lambda: stored(there), what="the upload")
    stop.set()
    upkeep.join()
    assert there.read() == PNG


def test_rows_are_written_while_an_upload_hangs(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.link.cut()
    here.put()
    stop, other = threading.Event(), ImageRequest("another")
    with ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(here.state, "store", refuse)
            here.put(other)
            here.link.mend()
            here.link.freeze()
            here.link.requests.clear()
            upkeep = threading.Thread(target=here.cache.maintain, args=(stop,))
            upkeep.start()
            for ending in (upkeep.join, here.link.mend, stop.set):
                stack.callback(ending)
            wait_until(lambda: here.link.requests, what="an upload")
        wait_until(lambda: here.state.find(other.key), seconds=2)


def test_hits_go_on_and_copies_wait_while_the_store_fails(here: Machine, there: Machine) -> None:
    here.put()
    here.put(other := ImageRequest("another"))
    assert there.read() == PNG
    hit = there.cache.get(REQUEST.key)
    assert hit
    assert hit.file
    with pytest.raises(Unavailable, match="object store"):
        cut_during(there, lambda: there.read(other))
    with hit.file as file:
        assert (file.readall(), there.read()) == (PNG, PNG)
    there.link.mend()
    wait_until(lambda: read_or_none(there, other) == PNG, seconds=2)


def read_or_none(machine: Machine, request: ImageRequest) -> bytes | None:
    try:
        return machine.read(request)
    except Unavailable:
        return None


def test_picture_goes_to_memory_if_the_folder_fails_too(
    make: Make, there: Machine, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text("a file where the folder should be")
    broken = make("broken")
    broken.link.cut()
    with pytest.raises(NotKept):
        broken.put()
    picture = broken.cache.get(REQUEST.key)
    assert picture
    assert picture.data == PNG
    broken.link.mend()
    wait_until(lambda: is_saved(broken), seconds=2)
    assert there.read() == PNG


def is_saved(machine: Machine) -> bool:
    try:
        machine.cache._backlog.save()
    except Unavailable:
        return False
    return True


def test_machine_that_never_uploads_is_waited_for_a_day(
    here: Machine, there: Machine, clock: Clock
) -> None:
    here.link.cut()
    row = here.put()
    clock.now += DAY - 1
    with pytest.raises(Unavailable):
        there.read()
    assert there.state.find(row.key) == row
    clock.now += 1
    assert there.read() is None
    there.put(data=GIF)
    here.link.mend()
    assert here.read() == GIF
    here.upkeep()
    assert len(stored(there)) == 1


def test_import_ends_while_the_store_fails(here: Machine, tmp_path: Path) -> None:
    """Its pictures can be older than others wait for them."""
    source = Place(SqliteState(tmp_path / "single"), Folder(tmp_path / "single"))
    with closing(Cache(*source)) as single:
        single.put(REQUEST.key, PNG, "image/png", created=1e9)
        here.link.cut()
        with pytest.raises(Unavailable):
            list(transfer(source, Place(here.state, here.store)))
        here.link.mend()
        assert here.cache.totals() == Totals(0, 0)


# --- deleted and replaced


def test_deletion_reaches_every_machine(here: Machine, there: Machine, clock: Clock) -> None:
    here.put()
    assert there.read() == PNG
    assert there.cache.delete(REQUEST.key)
    assert (here.read(), there.files(), stored(there)) == (None, [], [])
    here.upkeep(2)
    assert len(here.files()) == 1, "its row may be about to be written"
    clock.now += 601
    here.upkeep(2)
    assert here.files() == []


def test_stale_copy_is_never_served(here: Machine, there: Machine, clock: Clock) -> None:
    here.put()
    assert there.read() == PNG
    row = here.put(data=GIF)
    assert there.read() == GIF
    clock.now += 601
    there.upkeep(2)
    assert there.files() == [row.file]


def test_nothing_is_deleted_while_the_store_fails(here: Machine) -> None:
    row = here.put()
    here.link.cut()
    with pytest.raises(Unavailable):
        here.cache.delete(row.key)
    assert here.read() == PNG
    here.link.mend()
    assert here.cache.delete(row.key)
    assert (here.read(), stored(here)) == (None, [])


def test_picture_deleted_while_it_is_uploaded_does_not_come_back(
    here: Machine, there: Machine
) -> None:
    here.link.cut()
    here.put()
    here.link.mend()
    here.link.freeze()
    with ThreadPoolExecutor(1) as pool:
        uploading = pool.submit(wait_until, lambda: is_uploaded(here))
        wait_until(lambda: here.link.requests)
        assert there.cache.delete(REQUEST.key)
        here.link.mend()
        uploading.result()
    assert (stored(there), here.files(), here.files("pending")) == ([], [], [])


def test_pending_picture_without_a_row_goes_after_a_day_unless_it_is_held(
    here: Machine, there: Machine, clock: Clock, tmp_path: Path
) -> None:
    here.link.cut()
    row = here.put()
    there.cache.delete(row.key)
    here.link.mend()
    here.upkeep()
    assert stored(there) == [], "a deleted picture is not uploaded"
    clock.now += DAY + 60
    with held_elsewhere(SqlitePlace(tmp_path / "database", clock), row.key):
        here.upkeep(2)
        assert here.files("pending") == [row.file]
    here.upkeep(2)
    assert here.files("pending") == []


def test_nothing_is_tidied_up_while_the_state_cannot_be_written(
    here: Machine, there: Machine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.put()
    there.cache.delete(REQUEST.key)
    clock.now += 601
    monkeypatch.setattr(here.state, "expire", refuse)
    with pytest.raises(Unavailable):
        here.upkeep(2)
    assert len(here.files()) == 1


def refuse(*_: object) -> None:
    raise Unavailable("attempt to write a readonly database")


# --- what is in the bucket


def test_bucket_is_adopted_by_command_only(here: Machine, there: Machine) -> None:
    row = here.put()
    here.store._objects.put("holiday.png", PNG, "image/png")
    assert here.state.remove([row])
    there.cache.settle()
    there.cache.sweep()
    assert there.link.requests == []
    assert there.read() is None
    assert there.cache.adopt() == 1
    assert there.read() == PNG


# --- hosted pictures: each machine has the files that could not be uploaded to the host


@pytest.fixture
def hosted(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Cache]]:
    """Start a machine without a bucket."""
    with ExitStack() as stack:

        def start(name: str, max_bytes: int = 0) -> Cache:
            store = Folder(tmp_path / name, clock, name)
            state = SqliteState(tmp_path / "database", clock)
            stack.callback((made := Cache(state, store, max_bytes, clock)).close)
            return made

        yield start


def test_file_of_another_machine_is_waited_for_a_day(
    hosted: Callable[..., Cache], clock: Clock
) -> None:
    here, there = hosted("here"), hosted("there")
    row = here.put(REQUEST.key, PNG, "image/png")
    assert row.machine == "here"
    with pytest.raises(Unavailable):
        there.get(REQUEST.key)
    clock.now += DAY
    assert there.get(REQUEST.key) is None


def test_machine_evicts_and_adopts_no_picture_of_another(
    hosted: Callable[..., Cache], clock: Clock
) -> None:
    here, there = hosted("here"), hosted("there", max_bytes=1)
    row = here.put(REQUEST.key, PNG, "image/png")
    there.store.write(f"{row.key}-{0:016x}.png", PNG, clock.now + 1)
    there.evict()
    assert there.adopt() == 0
    assert there.state.find(row.key) == row


def test_deleted_picture_does_not_come_back_from_another_machine(
    hosted: Callable[..., Cache],
) -> None:
    here, there = hosted("here"), hosted("there")
    here.put(REQUEST.key, PNG, "image/png")
    assert there.delete(REQUEST.key)
    restarted = hosted("here")
    restarted.settle()
    assert restarted.get(REQUEST.key) is None


def test_picture_is_saved_although_locks_are_unavailable(
    hosted: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = hosted("here")
    url = "https://img.example/a.png"
    with monkeypatch.context() as patch:
        patch.setattr(here.state, "store", refuse)
        patch.setattr(here.state, "hold", refuse)
        here.put(REQUEST.key, PNG, "image/png", url=url)
    assert list(here.store.names()) == [], "nobody would adopt it"
    here.close()
    found = hosted("there").get(REQUEST.key)
    assert found
    assert found.row.url == url
