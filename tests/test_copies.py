"""Several machines with one database and one bucket, and what becomes of their copies."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from cache import Cache
from picture import ImageRequest
from settings.buckets import ObjectSettings
from storage import Row, Totals, Unavailable
from storage.cluster.copies import Copies
from storage.cluster.objects import Objects
from storage.cluster.recent import Recent
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.transfer import Place, transfer

from .link import Link
from .servers import GIF, png, wait_until
from .states import ROOT, Clock

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
        self.store = Copies(objects, self.folder, max_bytes, clock)
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
        self.store.tasks()[number].work()

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


def test_missing_object_is_lost(here: Machine, there: Machine) -> None:
    """A rule of the bucket may have removed it."""
    there.store._objects.delete(str(here.put().file))
    assert there.read() is None
    assert here.cache.totals() == Totals(0, 0)


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


# --- the object store fails


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


def test_nothing_is_deleted_while_the_store_fails(here: Machine) -> None:
    row = here.put()
    here.link.cut()
    with pytest.raises(Unavailable):
        here.cache.delete(row.key)
    assert here.read() == PNG
    here.link.mend()
    assert here.cache.delete(row.key)
    assert (here.read(), stored(here)) == (None, [])


def refuse(*_: object) -> None:
    raise Unavailable("attempt to write a readonly database")


# --- what is in the bucket


def test_bucket_is_adopted_by_command_only(here: Machine, there: Machine) -> None:
    row = here.put()
    here.store._objects.put("holiday.png", PNG, "image/png")
    assert here.state.remove([row])
    there.cache.settle()
    there.store.sweep()
    assert there.link.requests == []
    assert there.read() is None
    assert there.cache.adopt() == 1
    assert there.read() == PNG


# --- hosted pictures: each machine has the files that could not be uploaded to the host
