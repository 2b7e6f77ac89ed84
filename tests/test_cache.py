"""The cache: what was stored is found again, whatever happens to disk, index and clock."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache import Cache, NotKept, Picture
from metrics import Metrics
from picture import ImageRequest
from storage import BeingDrawn, NoRoom, Row, Totals, Unavailable
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.store import Task
from storage.upkeep import repeat

from .disks import disk, full, read_only
from .scripted import GIF, png, wait_until
from .states import REQUEST, ROOT, Clock, got, held_elsewhere, read, refusing

Make = Callable[..., Cache]
MIB = 2**20


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())  # the changes of files are dated by the real one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Calls(Metrics):
    """Counts the calls of the states."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def state_call(self, call: str) -> AbstractContextManager[None]:
        self.counts[call] += 1
        return super().state_call(call)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def make(folder: Path, clock: Clock, calls: Calls, opened: list[Any]) -> Make:
    """Open the cache of this test, as often as wanted: each like another process."""

    def open_cache(max_bytes: int = 0) -> Cache:
        state, store = SqliteState(folder, clock, metrics=calls), Folder(folder, clock, MIB)
        opened.append(cache := Cache(state, store, max_bytes, clock))
        return cache

    return open_cache


@pytest.fixture
def cache(make: Make) -> Cache:
    return make()


@pytest.fixture
def small(folder: Path, make: Make) -> Iterator[Cache]:
    """A cache on a disk of 4 MiB, on which a picture may have 1 MiB."""
    with disk(folder, "4m"), closing(make()) as made:
        yield made


def put(cache: Cache, request: ImageRequest = REQUEST, data: bytes | None = None) -> Row:
    data = data if data is not None else png()
    media_type = "image/gif" if data.startswith(b"GIF") else "image/png"
    return cache.put(request.key, data, media_type, request=request, drawn_by="test")


def read_settled(cache: Cache, request: ImageRequest = REQUEST) -> bytes | None:
    """Read as a drawing does: a miss counts only once everything is adopted."""
    if read(cache, request) is None:
        cache.settle()
    return read(cache, request)


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".png", ".gif"))


def lose_index(folder: Path) -> None:
    for path in folder.glob("index.sqlite3*"):
        path.unlink()


def add_file(
    folder: Path, request: ImageRequest, data: bytes, created: float = 1e9, number: int = 0
) -> Path:
    """Put a picture into the folder behind the cache's back, as a backup is restored."""
    folder.mkdir(exist_ok=True)
    suffix = "gif" if data.startswith(b"GIF") else "png"
    path = folder / f"{request.key}-{number:016x}.{suffix}"
    path.write_bytes(data)
    os.utime(path, (created, created))
    return path


@contextmanager
def maintained(cache: Cache) -> Iterator[None]:
    stop = threading.Event()
    upkeep = threading.Thread(target=cache.maintain, args=(stop,), daemon=True)
    upkeep.start()
    yield
    stop.set()
    upkeep.join()


# --- the contract


def test_what_is_put_is_got(cache: Cache, make: Make, folder: Path) -> None:
    assert cache.get(REQUEST.key) is None
    row = put(cache)
    assert [got(one) for one in (cache, make())] == [(row, png())] * 2
    assert (row.media_type, row.bytes, row.request) == ("image/png", len(png()), REQUEST)
    put(cache, data=GIF)
    assert read(cache) == GIF
    assert [path.suffix for path in pictures(folder)] == [".gif"], "it replaces the first"
    assert cache.state.totals() == Totals(1, len(GIF))


def test_hosted_picture_has_no_file(cache: Cache, folder: Path) -> None:
    put(cache)
    row = cache.put(REQUEST.key, png(), "image/png", url="https://img.example/a.png")
    assert cache.get(REQUEST.key) == Picture(row, None)
    assert (row.url, pictures(folder)) == ("https://img.example/a.png", [])
    assert cache.state.totals() == Totals(1, 0)
    assert cache.delete(REQUEST.key) is True


def test_hit_is_one_call_and_a_put_two(make: Make, calls: Calls) -> None:
    put(cache := make(max_bytes=10**9))
    calls.counts.clear()
    assert read(cache) == png()
    assert calls.counts == {"find": 1}
    put(cache)
    assert calls.counts == {"find": 1, "store": 1, "totals": 1}


def test_unavailable_state_hides_nothing(folder: Path, cache: Cache) -> None:
    put(cache)
    cache.close()
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.raises(NotKept):
        put(cache)
    with pytest.raises(Unavailable):  # not a miss: it might be there
        cache.get("0" * 64)
    folder.unlink()
    assert read_settled(cache) is None
    put(cache)
    assert read(cache) == png(), "the folder is made again"


# --- deleting


def test_deleted_picture_leaves_neither_row_nor_file(cache: Cache, folder: Path) -> None:
    put(cache)
    assert (cache.delete(REQUEST.key), cache.delete(REQUEST.key)) == (True, False)
    assert (cache.get(REQUEST.key), pictures(folder)) == (None, [])
    assert cache.state.totals() == Totals(0, 0)


def test_deleted_picture_stays_away_from_an_older_index(make: Make, folder: Path) -> None:
    """Its newest file is unknown to that index, and would be adopted later."""
    first = make()
    put(first)
    first.close()
    backup = (folder / "index.sqlite3").read_bytes()
    put(second := make(), data=GIF)
    second.close()
    lose_index(folder)
    (folder / "index.sqlite3").write_bytes(backup)
    assert make().delete(REQUEST.key)
    assert (read_settled(make()), pictures(folder)) == (None, [])


def test_picture_is_deleted_despite_a_damaged_index(cache: Cache, make: Make, folder: Path) -> None:
    put(cache)
    cache.settle()
    put(make(), ImageRequest("other"))  # without it, the connection would not read pages anew
    index = folder / "index.sqlite3"
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with index.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(index.stat().st_size - 4096))
    assert cache.delete(REQUEST.key)
    assert read_settled(cache) is None


def test_deletion_waits_for_no_drawing_and_undoes_none(make: Make, folder: Path) -> None:
    put(cache := make())
    with held_elsewhere(folder, REQUEST.key):
        with pytest.raises(BeingDrawn):
            cache.delete(REQUEST.key)
        assert read(cache) == png()
        put(make())
    assert cache.delete(REQUEST.key)
    assert (read_settled(cache), read_settled(make()), pictures(folder)) == (None, None, [])


def test_deletion_frees_room_on_a_full_disk(small: Cache, folder: Path) -> None:
    put(small, data=png(size=MIB + 2**18))
    put(small, ImageRequest("kept"))
    with full(folder):
        with pytest.raises(NoRoom, match="MiB free"), small.store.reserve():
            pass
        assert read(small, ImageRequest("kept")) == png()
        assert small.delete(REQUEST.key)
        with small.store.reserve():
            put(small, ImageRequest("new"))
        assert read(small, ImageRequest("new")) == png()


def test_deleted_picture_is_a_miss_although_its_row_stays(make: Make, folder: Path) -> None:
    put(first := make())
    first.close()
    with read_only(folder / "index.sqlite3"):
        assert (cache := make()).delete(REQUEST.key)
        assert (read(cache), pictures(folder)) == (None, [])
    assert read_settled(make()) is None


# --- what cannot be written


def test_failed_put_is_logged(small: Cache, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    small.state.check()
    with full(folder), pytest.raises(NotKept, match="No space"):
        put(small, data=png(size=10_000))
    assert f"Picture {REQUEST.key} could not be stored" in caplog.text
    assert (small.get(REQUEST.key), pictures(folder)) == (None, [])


def test_file_whose_row_could_not_be_written_is_adopted(make: Make, folder: Path) -> None:
    (cache := make()).settle()
    with refusing(folder, "INSERT ON entries"), pytest.raises(NotKept, match="refused"):
        put(cache)
    assert cache.get(REQUEST.key) is None
    assert read_settled(make()) == png()
    assert cache.state.totals() == Totals(1, len(png()))


def test_file_that_another_process_adopts_before_its_row_is_kept(make: Make, folder: Path) -> None:
    class Adopted(Folder):
        def write(self, name: str, data: bytes, created: float) -> None:
            super().write(name, data, created)
            make().adopt()

    cache = Cache(make().state, Adopted(folder))
    row = put(cache)
    assert got(cache) == (row, png())


# --- the limit


def test_least_recently_used_goes_first(make: Make, clock: Clock, folder: Path) -> None:
    cache = make(max_bytes=3 * 1000)
    requests = [ImageRequest(str(n)) for n in range(4)]
    for request in requests:
        if request is requests[3]:
            assert read(cache, requests[0])
        clock.now += 1
        put(cache, request, png(size=1000))
    assert [read(cache, request) is not None for request in requests] == [True, False, True, True]
    assert len(pictures(folder)) == 3


def test_picture_larger_than_the_limit_costs_no_other(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(max_bytes=1000)
    put(cache, ImageRequest("small"))
    with pytest.raises(NotKept, match="CACHE_MAX_BYTES"):
        put(cache, data=png(size=1001))
    assert f"Picture {REQUEST.key} could not be stored: the picture is larger" in caplog.text
    assert read(cache, ImageRequest("small")) == png()
    assert len(pictures(folder)) == 1


def test_nothing_is_evicted_that_the_state_cannot_remove(make: Make, folder: Path) -> None:
    put(make())
    with refusing(folder, "DELETE ON entries"), pytest.raises(Unavailable):
        make(max_bytes=1).evict()
    assert len(pictures(folder)) == 1


def test_hit_writes_nothing_until_it_is_flushed(cache: Cache, clock: Clock, calls: Calls) -> None:
    for prompt in "ab":
        put(cache, ImageRequest(prompt))
        clock.now += 10
    read(cache, ImageRequest("a"))
    assert [row.prompt for row in cache.state.oldest(2)] == ["a", "b"]
    cache.flush()
    cache.flush()
    assert [row.prompt for row in cache.state.oldest(2)] == ["b", "a"]
    assert calls.counts["touch"] == 1


# --- files that are not what the index says


def test_row_of_another_key_never_serves_its_picture(cache: Cache, folder: Path) -> None:
    put(cache)
    other = put(cache, ImageRequest("another"), png(shade=3))
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection, connection:
        values = {"file": other.file, "key": REQUEST.key}
        connection.execute("UPDATE entries SET file = :file WHERE key = :key", values)
    assert read(cache) is None
    assert read(cache, ImageRequest("another")) == png(shade=3)


# --- adoption


def test_adopted_pictures_learn_from_their_first_hit(cache: Cache, folder: Path) -> None:
    requests = [ImageRequest(str(n)) for n in range(1100)]
    for number, request in enumerate(requests):
        add_file(folder, request, png(shade=number % 256), created=1e9 + number)
    (folder / f"{requests[0].key}-{'0' * 16}.png").write_bytes(GIF)
    cache.settle()
    assert cache.state.totals() == Totals(1100, 1099 * len(png()) + len(GIF))
    assert read(cache, requests[7]) == png(shade=7)
    found = got(cache, requests[0])
    assert found
    row = found[0]
    assert (row.media_type, row.bytes, row.request) == ("image/gif", len(GIF), None)
    assert (row.pixels, row.digest is not None) == ((1, 1), True)
    cache.flush()
    assert row == cache.state.find(requests[0].key)
    assert [newest.key for newest in cache.state.newest("", 1, None)] == [row.key]


def test_size_as_drawn_is_kept_or_learned_later(cache: Cache) -> None:
    """Rows of older versions have none, and keep the digest that they have."""
    request = replace(REQUEST, width=1024, height=768)
    row = cache.put(request.key, png(3, 2), "image/png", request=request)
    assert (row.pixels, row.request) == ((3, 2), request)
    cache.state.amend(row, replace(row, drawn_width=None, drawn_height=None, digest="0" * 64))
    read(cache, request)
    cache.flush()
    assert cache.state.find(request.key) == replace(row, digest="0" * 64)


def test_file_that_begins_like_no_picture_is_left_alone(cache: Cache, folder: Path) -> None:
    text = add_file(folder, REQUEST, b"text")
    assert (cache.adopt(), text.exists()) == (0, True)


def test_restored_pictures_survive_the_start(make: Make, folder: Path) -> None:
    """Their old times, and an index that does not know them, must not look like leftovers."""
    add_file(folder, REQUEST, png())
    with maintained(cache := make()):
        wait_until(lambda: cache.state.totals() == Totals(1, len(png())), what="adoption")
    assert read(cache) == png()


def test_lost_index_loses_no_picture(cache: Cache, make: Make, folder: Path) -> None:
    other = make()
    for one in (cache, other):
        one.settle()
    for n in range(30):
        put(cache, ImageRequest(str(n)), png(shade=n))
    lose_index(folder)
    put(other, ImageRequest("new"))
    for one in (cache, other):
        found = [read_settled(one, ImageRequest(str(n))) for n in range(30)]
        assert found == [png(shade=n) for n in range(30)]
    assert cache.state.totals() == Totals(31, 31 * len(png()))


def test_newest_file_of_a_key_counts_and_the_others_go(cache: Cache, folder: Path) -> None:
    add_file(folder, REQUEST, png(shade=1), created=1e9, number=1)
    newest = add_file(folder, REQUEST, png(shade=2), created=1e9 + 2, number=2)
    add_file(folder, REQUEST, GIF, created=1e9 + 1, number=3)
    assert read_settled(cache) == png(shade=2)
    assert pictures(folder) == [newest]
    assert cache.state.totals() == Totals(1, len(png()))


def test_newer_file_takes_over_row_and_prompt(cache: Cache, folder: Path, clock: Clock) -> None:
    """As after a crash between a picture and its row."""
    put(cache)
    newer = add_file(folder, REQUEST, GIF, clock.now + 10)
    assert cache.adopt() == 1
    assert (found := got(cache))
    assert (found[0].request, found[1], pictures(folder)) == (REQUEST, GIF, [newer])


def test_file_in_place_of_a_missing_one_is_adopted(cache: Cache, folder: Path) -> None:
    """As when an older index is put back beside newer pictures."""
    put(cache, data=GIF)
    pictures(folder)[0].unlink()
    add_file(folder, REQUEST, png())
    assert (cache.adopt(), read(cache)) == (1, png())


def test_file_that_may_be_being_drawn_is_not_deleted(cache: Cache, folder: Path) -> None:
    """The clock may have been set back, so that it is older than the one it replaces."""
    put(cache)
    drawn = add_file(folder, REQUEST, GIF)
    with held_elsewhere(folder, REQUEST.key):
        cache.adopt()
        assert drawn.exists()
    cache.adopt()
    assert not drawn.exists()


def test_hosted_picture_is_not_replaced_by_a_file(cache: Cache, folder: Path) -> None:
    row = cache.put(REQUEST.key, png(), "image/png", url="https://img.example/a.png")
    kept = add_file(folder, REQUEST, png(), created=2e9)
    assert (cache.adopt(), kept.exists()) == (0, True)
    assert cache.state.find(REQUEST.key) == row


def test_threads_wait_for_the_one_that_adopts(cache: Cache, folder: Path, calls: Calls) -> None:
    add_file(folder, REQUEST, png())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_settled(cache), range(8)))
    assert found == [png()] * 8
    assert calls.counts["add"] == 1


def test_nothing_counts_as_settled_that_could_not_be_adopted(cache: Cache, folder: Path) -> None:
    cache.settle()
    add_file(folder, REQUEST, png())
    again = Cache(cache.state, cache.store)
    for _ in range(2):
        with refusing(folder, "INSERT ON entries"), pytest.raises(Unavailable):
            again.settle()
    again.settle()
    assert read(cache) == png()


# --- upkeep


def test_upkeep_survives_a_failed_state_and_flushes(make: Make, folder: Path, calls: Calls) -> None:
    put(make())
    cache = make(max_bytes=1)
    with refusing(folder, "DELETE ON entries"), maintained(cache):
        wait_until(lambda: calls.counts["remove"] >= 2, what="evictions that fail")
        cache.max_bytes = 0
        assert read(cache) == png()
    assert calls.counts["touch"] == 1


def test_upkeep_goes_on_although_a_task_fails(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    def fail() -> None:
        raise RuntimeError("can't start new thread")

    repeat([Task(fail, 0), Task(stop.set, 0)], stop)
    assert "can't start new thread" in caplog.text


KILL_AT_RANDOM = """
import sys
from pathlib import Path
from cache import Cache
from picture import ImageRequest
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from tests.scripted import png
folder = Path(sys.argv[1])
cache = Cache(SqliteState(folder), Folder(folder))
cache.state.totals()
print("ready", flush=True)
for n in range(10**6):
    cache.put(ImageRequest(str(n % 7)).key, png(shade=n % 256, size=20_000), "image/png")
"""


def test_kill_9_at_any_moment_leaves_no_wrong_picture(make: Make, folder: Path) -> None:
    for round_number in range(8):
        command = [sys.executable, "-c", KILL_AT_RANDOM, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            time.sleep(0.007 * (round_number + 1))
            child.kill()
        cache = make()
        cache.settle()
        for n in range(7):
            data = read(cache, ImageRequest(str(n)))
            assert data is None or (len(data) == 20_000 and data.startswith(b"\x89PNG"))
        totals = cache.state.totals()
        assert totals.bytes == 20_000 * totals.entries
        cache.close()
