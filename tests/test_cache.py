"""The cache: what was stored is found again, whatever happens to disk, index and clock."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import pytest

from cache import Cache, NotKept, Picture
from picture import ImageRequest
from storage import Row, Totals, Unavailable
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.store import STALE_SECONDS, Task
from storage.upkeep import repeat

from .servers import GIF, png, wait_until
from .states import ROOT, Clock, CountingState, SqlitePlace, Word, held_elsewhere

Make = Callable[..., Cache]
REQUEST = ImageRequest("a red apple")


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())  # the changes of files are dated by the real one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make(folder: Path, clock: Clock) -> Iterator[Make]:
    """Open the cache of this test, as often as wanted: each like another process."""
    with ExitStack() as stack:

        def open_cache(max_bytes: int = 0) -> Cache:
            state = SqliteState(folder, clock, lambda: clock.now)
            cache = Cache(state, Folder(folder, clock), max_bytes, clock)
            stack.callback(cache.close)
            return cache

        yield open_cache


@pytest.fixture
def cache(make: Make) -> Cache:
    return make()


def put(cache: Cache, request: ImageRequest = REQUEST, data: bytes | None = None) -> Row:
    data = data if data is not None else png()
    media_type = "image/gif" if data.startswith(b"GIF") else "image/png"
    return cache.put(request.key, data, media_type, request=request, drawn_by="test")


def read(cache: Cache, request: ImageRequest = REQUEST) -> bytes | None:
    picture = cache.get(request.key)
    if picture is None:
        return None
    assert picture.file
    with picture.file as file:
        return file.readall()


def row_of(cache: Cache, request: ImageRequest = REQUEST) -> Row:
    picture = cache.get(request.key)
    assert picture
    picture.close()
    return picture.row


def read_settled(cache: Cache, request: ImageRequest = REQUEST) -> bytes | None:
    """Read as a drawing does: a miss counts only once everything is adopted."""
    data = read(cache, request)
    if data is None:
        cache.settle()
        data = read(cache, request)
    return data


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".png", ".gif"))


def lose_index(folder: Path, clock: Clock) -> None:
    for path in folder.glob("index.sqlite3*"):
        path.unlink()
    clock.now += 2  # the time to notice it


def add_file(folder: Path, request: ImageRequest, data: bytes, created: float = 1e9) -> Path:
    """Put a picture into the folder behind the cache's back, as a backup is restored."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{request.key}-{'0' * 16}.{'gif' if data.startswith(b'GIF') else 'png'}"
    path.write_bytes(data)
    os.utime(path, (created, created))
    return path


# --- the contract


def test_what_is_put_is_got(cache: Cache, make: Make) -> None:
    assert cache.get(REQUEST.key) is None
    row = put(cache)
    for one in (cache, make()):
        assert (row_of(one), read(one)) == (row, png())
    assert (row.media_type, row.bytes, row.request) == ("image/png", len(png()), REQUEST)


def test_file_is_named_after_the_key(cache: Cache, folder: Path) -> None:
    put(cache)
    [picture] = pictures(folder)
    key, _, rest = picture.name.partition("-")
    assert key == REQUEST.key
    assert len(rest) == len("0123456789abcdef.png")


def test_second_put_replaces_the_first_and_its_file(cache: Cache, folder: Path) -> None:
    put(cache)
    put(cache, data=GIF)
    assert read(cache) == GIF
    assert [path.suffix for path in pictures(folder)] == [".gif"]
    assert cache.totals() == Totals(1, len(GIF))


def test_deleted_picture_leaves_neither_row_nor_file(cache: Cache, folder: Path) -> None:
    put(cache)
    assert cache.delete(REQUEST.key) is True
    assert (read(cache), pictures(folder)) == (None, [])
    assert cache.delete(REQUEST.key) is False
    assert cache.totals() == Totals(0, 0)


def test_deleted_picture_stays_away_after_an_older_index_was_put_back(
    make: Make, folder: Path, clock: Clock
) -> None:
    """Its newest file is unknown to that index, and would be adopted later."""
    first = make()
    put(first)
    first.close()
    backup = (folder / "index.sqlite3").read_bytes()
    put(second := make())
    second.close()
    lose_index(folder, clock)
    (folder / "index.sqlite3").write_bytes(backup)
    assert make().delete(REQUEST.key)
    assert (read_settled(make()), pictures(folder)) == (None, [])


def test_crash_while_deleting_brings_nothing_back(
    cache: Cache, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache)
    monkeypatch.setattr(cache.state, "remove", None)
    with pytest.raises(TypeError):
        cache.delete(REQUEST.key)
    again = make()
    assert read_settled(again) is None
    assert again.totals() == Totals(0, 0)


def test_picture_that_another_process_has_yet_to_save_is_not_said_to_be_missing(
    cache: Cache, folder: Path, clock: Clock
) -> None:
    with held_elsewhere(SqlitePlace(folder, clock), REQUEST.key), pytest.raises(Unavailable):
        cache.delete(REQUEST.key)
    assert not cache.delete(REQUEST.key)


def test_deletion_counts_although_a_request_removes_the_row_meanwhile(
    cache: Cache, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache)
    other = make()
    monkeypatch.setattr(cache.state, "remember", lambda *_: read(other))
    assert cache.delete(REQUEST.key)
    assert not cache.delete(REQUEST.key)


def test_hosted_picture_has_no_file(cache: Cache, folder: Path) -> None:
    put(cache)
    row = cache.put(REQUEST.key, png(), "image/png", url="https://img.example/a.png")
    assert cache.get(REQUEST.key) == Picture(row, None)
    assert (row.url, pictures(folder)) == ("https://img.example/a.png", [])
    assert cache.totals() == Totals(1, 0)
    assert cache.delete(REQUEST.key) is True


def test_hit_is_one_call_and_so_is_a_put(cache: Cache, folder: Path) -> None:
    put(cache)
    counting = CountingState(cache.state)
    counted = Cache(counting.counted, Folder(folder), 10**9)
    counted.settle()
    counting.calls.clear()
    assert read(counted) == png()
    assert counting.calls == {"find": 1}
    put(counted)
    assert counting.calls == {"find": 1, "store": 1}
    counted.settle()
    assert counting.calls == {"find": 1, "store": 1}


def test_unavailable_state_forgets_nothing_and_hides_nothing(folder: Path, cache: Cache) -> None:
    cache.state.remember(Word("x"), "k", 100)
    assert cache.forget(Word, "k") is True
    cache.close()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")
    assert cache.forget(Word, "k") is False
    assert cache.totals() is None
    with pytest.raises(NotKept):
        put(cache)
    with pytest.raises(Unavailable):  # not a miss: it might be there
        cache.get("0" * 64)


# --- the limit


def test_least_recently_used_goes_first(make: Make, clock: Clock, folder: Path) -> None:
    cache = make(max_bytes=3 * 1000)
    requests = [ImageRequest(str(n)) for n in range(4)]
    for request in requests[:3]:
        clock.now += 1
        put(cache, request, png(size=1000))
    clock.now += 1
    assert read(cache, requests[0])
    clock.now += 1
    put(cache, requests[3], png(size=1000))
    assert [read(cache, request) is not None for request in requests] == [True, False, True, True]
    assert len(pictures(folder)) == 3


def test_limit_holds_after_every_put(make: Make, clock: Clock, folder: Path) -> None:
    caches = [make(max_bytes=10_000), make(max_bytes=10_000)]
    for n in range(60):
        clock.now += 1
        put(caches[n % 2], ImageRequest(str(n)), png(size=900 + n))
        assert sum(path.stat().st_size for path in pictures(folder)) <= 10_000
    totals = caches[0].totals()
    assert totals
    assert totals.bytes == sum(path.stat().st_size for path in pictures(folder)) > 8_000


def test_picture_larger_than_the_limit_costs_no_other(make: Make, folder: Path) -> None:
    cache = make(max_bytes=1000)
    put(cache, ImageRequest("small"))
    with pytest.raises(NotKept, match="CACHE_MAX_BYTES"):
        put(cache, data=png(size=1001))
    assert read(cache, ImageRequest("small")) == png()
    assert len(pictures(folder)) == 1


def test_nothing_is_evicted_that_the_state_cannot_remove(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(make())
    cache = make(max_bytes=1)
    monkeypatch.setattr(cache.state, "remove", refuse)
    with pytest.raises(Unavailable):
        cache.evict()
    assert len(pictures(folder)) == 1


def refuse(*_: object) -> int:
    raise Unavailable("attempt to write a readonly database")


def refuse_to_write(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def is_locked_elsewhere(folder: Path, key: str) -> bool:
    """Return whether another process cannot have the lock of a key."""
    program = (
        "import sys; from pathlib import Path; from storage.local.locks import Locks\n"
        "with Locks(Path(sys.argv[1])).hold(sys.argv[2], 0): pass"
    )
    command = [sys.executable, "-c", program, str(folder / "locks"), key]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode != 0


def test_hit_writes_nothing_until_it_is_flushed(cache: Cache, clock: Clock) -> None:
    requests = [ImageRequest("a"), ImageRequest("b")]
    for request in requests:
        put(cache, request)
        clock.now += 10
    counting = CountingState(cache.state)
    cache.state = counting.counted
    read(cache, requests[0])
    assert counting.calls == {"find": 1}
    assert [row.prompt for row in cache.state.oldest(2)] == ["a", "b"]
    cache.flush()
    cache.flush()
    assert [row.prompt for row in cache.state.oldest(2)] == ["b", "a"]
    assert counting.calls["touch"] == 1


# --- damaged and unreadable files


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_file_that_cannot_be_opened_now_is_not_drawn_again(
    cache: Cache, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "open", lambda *_: raise_os_error(code))
        with pytest.raises(Unavailable, match=os.strerror(code)):
            cache.get(REQUEST.key)
    assert read(cache) == png()


def raise_os_error(code: int) -> FileIO:
    raise OSError(code, os.strerror(code))


def test_row_of_another_key_never_serves_its_picture(cache: Cache) -> None:
    put(cache)
    other = put(cache, ImageRequest("another"), png(shade=3))
    assert isinstance(cache.state, SqliteState)
    changes = {"file": other.file, "key": REQUEST.key}
    cache.state._write("amend", "UPDATE entries SET file = :file WHERE key = :key", [changes])
    assert read(cache) is None
    assert read(cache, ImageRequest("another")) == png(shade=3)


# --- adoption


def test_pictures_without_a_row_are_adopted_and_learn_from_their_first_hit(
    cache: Cache, folder: Path
) -> None:
    requests = [ImageRequest(str(n)) for n in range(1100)]
    for number, request in enumerate(requests):
        add_file(folder, request, png(shade=number % 256), created=1e9 + number)
    (folder / f"{requests[0].key}-{'0' * 16}.png").write_bytes(GIF)
    cache.settle()
    assert cache.totals() == Totals(1100, 1099 * len(png()) + len(GIF))
    assert read(cache, requests[7]) == png(shade=7)
    row = row_of(cache, requests[0])
    assert (row.media_type, row.bytes, row.request) == ("image/gif", len(GIF), None)
    assert row.digest is not None
    assert row == cache.state.find(requests[0].key)
    assert [newest.key for newest in cache.state.newest("", 1, None)] == [row.key]


def test_restored_pictures_survive_the_start(make: Make, folder: Path, clock: Clock) -> None:
    """Their old times, and an index that does not know them, must not look like leftovers."""
    put(make(), ImageRequest("known"))
    paths = [add_file(folder, ImageRequest(str(n)), png(shade=n)) for n in range(40)]
    clock.now += STALE_SECONDS + 1
    cache, stop = make(), threading.Event()
    upkeep = threading.Thread(target=cache.maintain, args=(stop,))
    upkeep.start()
    wait_until(lambda: cache.totals() == Totals(41, 41 * len(png())), what="adoption")
    stop.set()
    upkeep.join()
    cache.sweep()
    assert all(path.exists() for path in paths)
    found = [read(cache, ImageRequest(str(n))) for n in range(40)]
    assert found == [png(shade=n) for n in range(40)]


def test_lost_index_loses_no_picture(cache: Cache, make: Make, folder: Path, clock: Clock) -> None:
    other = make()
    for one in (cache, other):
        one.settle()
    for n in range(30):
        put(cache, ImageRequest(str(n)), png(shade=n))
    lose_index(folder, clock)
    put(other, ImageRequest("new"))
    for one in (cache, other):
        found = [read_settled(one, ImageRequest(str(n))) for n in range(30)]
        assert found == [png(shade=n) for n in range(30)]
    assert cache.totals() == Totals(31, 31 * len(png()))


def test_newest_file_of_a_key_is_adopted(cache: Cache, folder: Path, clock: Clock) -> None:
    put(cache)
    add_file(folder, REQUEST, GIF)
    lose_index(folder, clock)
    assert read_settled(cache) == png()
    assert cache.totals() == Totals(1, len(png()))


def test_file_in_place_of_a_missing_one_is_adopted(make: Make, cache: Cache, folder: Path) -> None:
    """As when an older index is put back beside newer pictures."""
    put(cache, data=GIF)
    [older] = pictures(folder)
    older.unlink()
    add_file(folder, REQUEST, png())
    again = make()
    again.settle()
    assert read(again) == png()


def test_threads_wait_for_the_one_that_adopts(cache: Cache, folder: Path) -> None:
    add_file(folder, REQUEST, png())
    counting = CountingState(cache.state)
    cache.state = counting.counted
    found: list[bytes | None] = []

    def settle() -> None:
        cache.settle()
        found.append(read(cache))

    threads = [threading.Thread(target=settle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [png()] * 8
    assert counting.calls["add"] == 1


def test_nothing_counts_as_settled_that_could_not_be_adopted(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_file(folder, REQUEST, png())
    with monkeypatch.context() as patch:
        patch.setattr(cache.state, "add", refuse)
        for _ in range(2):
            with pytest.raises(Unavailable):
                cache.settle()
    cache.settle()
    assert read(cache) == png()


# --- the sweep


def test_sweep_deletes_leftovers_of_crashes_and_nothing_else(
    cache: Cache, folder: Path, clock: Clock
) -> None:
    put(cache)
    hosted, young = ImageRequest("hosted"), ImageRequest("young")
    cache.put(hosted.key, png(), "image/png", url="https://img.example/a.png")
    goes = {add_file(folder, REQUEST, GIF).name, f"{'a' * 64}-{'0' * 16}.png.tmp"}
    stays = {
        add_file(folder, hosted, png()).name,
        add_file(folder, young, png()).name,
        *(path.name for path in pictures(folder) if path.suffix == ".png"),
        "holiday.png",
        "notes.tmp",
        f"{'b' * 64}.data",
    }
    for name in goes | stays:
        if not (folder / name).exists():
            (folder / name).write_bytes(b"x")
    cache.sweep()
    assert goes <= set(os.listdir(folder)), "nothing goes before it is ten minutes old"
    clock.now += STALE_SECONDS + 60
    cache.sweep()
    left = set(os.listdir(folder))
    assert (goes & left, stays - left) == (set(), set())
    assert read(cache) == png()


def test_sweep_spares_the_file_whose_rival_is_missing(
    cache: Cache, folder: Path, clock: Clock
) -> None:
    put(cache)
    [picture] = pictures(folder)
    picture.unlink()
    spared = add_file(folder, REQUEST, GIF)
    clock.now += STALE_SECONDS + 60
    cache.sweep()
    assert spared.exists()


def test_nothing_is_swept_while_the_state_cannot_be_written(
    cache: Cache, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache)
    leftover = add_file(folder, REQUEST, GIF)
    clock.now += STALE_SECONDS + 60
    with monkeypatch.context() as patch:
        patch.setattr(cache.state, "expire", refuse)
        with pytest.raises(Unavailable):
            cache.sweep()
    assert leftover.exists()


def test_upkeep_survives_an_unavailable_state_and_flushes_at_its_end(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache)
    counting = CountingState(cache.state)
    monkeypatch.setattr(cache.state, "expire", refuse)
    cache.state, stop = counting.counted, threading.Event()
    upkeep = threading.Thread(target=cache.maintain, args=(stop,))
    upkeep.start()
    wait_until(lambda: counting.calls["expire"] >= 2, what="tasks that fail")
    assert read(cache) == png()
    stop.set()
    upkeep.join()
    assert counting.calls["touch"] == 1


# --- the disk


def test_deleted_folder_is_made_again(cache: Cache, folder: Path, clock: Clock) -> None:
    put(cache)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    clock.now += 2
    assert read_settled(cache) is None
    put(cache)
    assert read(cache) == png()


def test_upkeep_goes_on_although_a_task_fails(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    def fail() -> None:
        raise RuntimeError("can't start new thread")

    repeat([Task(fail, first=0, period=1), Task(stop.set, first=0, period=1)], stop)
    assert "can't start new thread" in caplog.text


KILL_AT_RANDOM = """
import sys
from pathlib import Path
from cache import Cache
from picture import ImageRequest
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from tests.servers import png
folder = Path(sys.argv[1])
cache = Cache(SqliteState(folder), Folder(folder))
cache.totals()
print("ready", flush=True)
for n in range(10**6):
    cache.put(ImageRequest(str(n % 7)).key, png(shade=n % 256, size=20_000), "image/png")
"""


def test_kill_9_at_any_moment_leaves_no_wrong_picture(make: Make, folder: Path) -> None:
    pause = threading.Event()
    for round_number in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", KILL_AT_RANDOM, str(folder)], stdout=subprocess.PIPE, cwd=ROOT
        ) as child:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            pause.wait(0.005 * (round_number + 1))
            child.send_signal(signal.SIGKILL)
        cache = make()
        cache.settle()
        for n in range(7):
            data = read(cache, ImageRequest(str(n)))
            assert data is None or (len(data) == 20_000 and data.startswith(b"\x89PNG"))
        totals = cache.totals()
        assert totals
        assert totals.bytes == 20_000 * totals.entries
        cache.close()
