"""The cache: what is stored is found again, whatever happens to disk, index and clock."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import MAX_NOTES, STALE_SECONDS, Cache, Entry, NotKept, Provenance
from picture import ImageRequest
from storage.locks import LockTimeout
from storage.sqlite import Unavailable
from upkeep import Upkeep
from upstream.client import Deadline

from .conftest import ROOT
from .servers import GIF, png, wait_until

Make = Callable[..., Cache]
REQUEST = ImageRequest("a red apple")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, opened: list[Cache], clock: Clock) -> Make:
    """Open the cache of this test, again and again if wanted: like another process would."""

    def open_cache(max_bytes: int = 0) -> Cache:
        opened.append(made := Cache(tmp_path / "cache", max_bytes, clock))
        made.totals()  # as start() does: an index made later would find files to wonder about
        return made

    return open_cache


@pytest.fixture
def cache(make: Make) -> Cache:
    return make()


def put(cache: Cache, request: ImageRequest = REQUEST, data: bytes | None = None) -> bytes:
    data = data if data is not None else png()
    media_type = "image/gif" if data.startswith(b"GIF") else "image/png"
    cache.put(request.key, data, media_type, Provenance(drawn_by="test"))
    return data


def read(cache: Cache, request: ImageRequest = REQUEST) -> bytes | None:
    entry = cache.get(request.key)
    if entry is None:
        return None
    assert entry.opened
    with entry.opened:
        return entry.opened.readall()


def pictures(cache: Cache) -> list[Path]:
    return sorted(p for p in cache.directory.iterdir() if p.suffix in (".png", ".gif"))


def index_of(cache: Cache) -> Path:
    return cache.directory / "index.sqlite3"


# --- the contract


def test_what_is_put_is_got(cache: Cache) -> None:
    assert cache.get(REQUEST.key) is None
    data = put(cache)
    entry = cache.get(REQUEST.key)
    assert isinstance(entry, Entry)
    entry.close()
    assert (entry.media_type, entry.bytes, entry.url) == ("image/png", len(data), None)
    assert read(cache) == data


def test_file_is_named_after_the_key(cache: Cache) -> None:
    put(cache)
    [picture] = pictures(cache)
    key, _, rest = picture.name.partition("-")
    assert key == REQUEST.key
    assert len(rest) == len("0123456789abcdef.png")


def test_second_put_replaces_the_first_and_its_file(cache: Cache) -> None:
    put(cache)
    put(cache, data=GIF)
    assert read(cache) == GIF
    assert [p.suffix for p in pictures(cache)] == [".gif"]
    assert cache.totals() == {"entries": 1, "bytes": len(GIF)}


def test_delete_forgets_picture_file_and_block(cache: Cache) -> None:
    put(cache)
    cache.remember("blocked", REQUEST.key, {}, 100)
    assert cache.delete(REQUEST.key) is True
    assert (cache.get(REQUEST.key), pictures(cache)) == (None, [])
    assert cache.recall("blocked", REQUEST.key) is None
    assert cache.delete(REQUEST.key) is False
    assert cache.totals() == {"entries": 0, "bytes": 0}


def test_hosted_picture_has_no_file(cache: Cache) -> None:
    cache.put(REQUEST.key, png(), "image/png", Provenance(), url="https://img.example/a.png")
    entry = cache.get(REQUEST.key)
    assert entry
    assert (entry.url, entry.opened, pictures(cache)) == ("https://img.example/a.png", None, [])
    assert cache.totals() == {"entries": 1, "bytes": 0}


def test_everything_survives_a_new_process(cache: Cache, make: Make) -> None:
    data = put(cache)
    cache.remember("answer", "k", "text", 100)
    cache.close()
    again = make()
    assert read(again) == data
    assert again.recall("answer", "k") == "text"


def test_provenance_is_kept(cache: Cache) -> None:
    provenance = Provenance("P", 1, 2, "m", 3, "optimised", "rewritten", "revised", "backend")
    cache.put(REQUEST.key, png(), "image/png", provenance)
    with sqlite3.connect(index_of(cache)) as connection:
        row = connection.execute(
            "SELECT prompt, width, height, model, seed, optimized, rewritten, revised, drawn_by"
            " FROM entries"
        ).fetchone()
    connection.close()
    assert row == ("P", 1, 2, "m", 3, "optimised", "rewritten", "revised", "backend")


# --- notes


def test_note_expires(cache: Cache, clock: Clock) -> None:
    cache.remember("blocked", "k", {"a": [1, None]}, 100)
    clock.now += 99
    assert cache.recall("blocked", "k") == {"a": [1, None]}
    clock.now += 1
    assert cache.recall("blocked", "k") is None


def test_note_from_the_future_is_none(cache: Cache, clock: Clock) -> None:
    cache.remember("blocked", "k", 1, 10 * 86400)
    clock.now -= 86400
    assert cache.recall("blocked", "k") is None


def test_notes_of_a_kind_are_apart_and_can_be_forgotten(cache: Cache) -> None:
    cache.remember("a", "k", 1, 100)
    cache.remember("b", "k", 2, 100)
    assert (cache.recall("a", "k"), cache.recall("b", "k")) == (1, 2)
    assert (cache.forget("a", "k"), cache.forget("a", "k")) == (True, False)
    assert cache.recall("b", "k") == 2


def test_expired_notes_are_dropped_and_their_number_is_bounded(cache: Cache, clock: Clock) -> None:
    cache.remember("a", "old", 1, 10)
    rows = [("a", str(n), "1", clock.now + n / 1e6, clock.now + 1000) for n in range(MAX_NOTES + 5)]
    cache.index.run(
        lambda c: (
            c.execute("BEGIN")
            and c.executemany("INSERT INTO notes VALUES (?, ?, ?, ?, ?)", rows)
            and c.execute("COMMIT")
        )
    )
    clock.now += 11
    cache.expire()
    [count] = cache.index.run(lambda c: c.execute("SELECT COUNT(*) FROM notes").fetchone())
    assert count == MAX_NOTES
    assert cache.recall("a", "0") is None
    assert cache.recall("a", str(MAX_NOTES + 4)) == 1


# --- the limit


def test_least_recently_used_goes_first(make: Make, clock: Clock) -> None:
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
    assert len(pictures(cache)) == 3


def test_limit_holds_after_every_put(make: Make, clock: Clock) -> None:
    cache = make(max_bytes=10_000)
    for n in range(50):
        clock.now += 1
        put(cache, ImageRequest(str(n)), png(size=900 + n))
        assert sum(p.stat().st_size for p in pictures(cache)) <= 10_000
    totals = cache.totals()
    assert totals
    assert totals["bytes"] == sum(p.stat().st_size for p in pictures(cache)) > 8_000


def test_picture_larger_than_the_limit_is_not_kept(make: Make) -> None:
    cache = make(max_bytes=100)
    put(cache, data=png(size=1000))
    assert (cache.get(REQUEST.key), pictures(cache)) == (None, [])


def test_hit_writes_nothing_until_it_is_flushed(cache: Cache, clock: Clock) -> None:
    put(cache)
    clock.now += 500
    before = cache.index.run(lambda c: c.execute("SELECT used FROM entries").fetchone())
    changes = cache.index.run(lambda c: c.total_changes)
    read(cache)
    assert cache.index.run(lambda c: c.total_changes) == changes
    cache.flush()
    after = cache.index.run(lambda c: c.execute("SELECT used FROM entries").fetchone())
    assert after[0] - before[0] == 500


# --- damaged files


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"x" * p.stat().st_size),
        lambda p: p.write_bytes(png(shade=1, size=p.stat().st_size)),
        lambda p: p.write_bytes(b"<html>hello</html>"),
        lambda p: p.unlink(),
        lambda p: (p.unlink(), p.mkdir()),
        lambda p: (p.unlink(), make_fifo(p)),
        lambda p: (p.unlink(), p.symlink_to("/etc/hostname")),
    ],
    ids=["cut", "emptied", "garbage", "other-picture", "html", "gone", "folder", "fifo", "link"],
)
def test_damaged_file_is_a_miss_and_heals(
    cache: Cache, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    data = put(cache, data=png(size=500))
    [picture] = pictures(cache)
    damage(picture)
    assert read(cache) is None
    assert len(caplog.records) == 1
    assert put(cache, data=data) == data
    assert read(cache) == data


def make_fifo(path: Path) -> bool:
    os.mkfifo(path)
    return True


def test_file_restored_from_a_backup_is_still_a_hit(cache: Cache) -> None:
    data = put(cache)
    [picture] = pictures(cache)
    os.utime(picture, (1, 1))
    assert read(cache) == data
    entry = cache.get(REQUEST.key)
    assert entry
    entry.close()
    assert entry.mtime_ns == 1_000_000_000


def test_row_of_another_key_never_serves_its_picture(cache: Cache) -> None:
    put(cache)
    other = ImageRequest("another")
    put(cache, other, png(shade=3))
    name = next(p.name for p in pictures(cache) if p.name.startswith(other.key))
    sql = "UPDATE entries SET file = ? WHERE key = ?"
    cache.index.run(lambda c: c.execute(sql, (name, REQUEST.key)))
    assert read(cache) is None
    assert read(cache, other) == png(shade=3)


# --- a damaged index


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: os.truncate(p, 0),
        lambda p: os.truncate(p, 4096),
        lambda p: os.truncate(p, 5000),
        lambda p: overwrite(p, b"garbage " * 512, 0),
        lambda p: overwrite(p, b"garbage " * (p.stat().st_size // 8), 0),
        lambda p: overwrite(p, b"\0" * (p.stat().st_size - 4096), 4096),
        lambda p: p.unlink(),
        lambda p: [q.unlink() for q in p.parent.glob("index.sqlite3*")],
        lambda p: p.replace(p.with_suffix(".elsewhere")),
    ],
    ids=["emptied", "cut", "cut-odd", "header", "garbage", "zeroes", "gone", "all-gone", "moved"],
)
@pytest.mark.parametrize("while_open", [True, False])
def test_lost_index_heals_and_no_picture_is_lost(
    cache: Cache, make: Make, damage: Callable[[Path], object], while_open: bool
) -> None:
    requests = [ImageRequest(str(n)) for n in range(30)]
    for n, request in enumerate(requests):
        put(cache, request, png(shade=n))
    if not while_open:
        cache.close()
        cache = make()
    damage(index_of(cache))
    cache.index._checked = 0.0  # a second has passed: time to look whether it is still the one
    for n, request in enumerate(requests):
        assert read(cache, request) in (png(shade=n), None)
    new = ImageRequest("new")
    put(cache, new)
    assert read(cache, new) == png()
    assert [read(cache, request) for request in requests] == [png(shade=n) for n in range(30)]
    assert cache.totals() == {"entries": 31, "bytes": 31 * len(png())}


def overwrite(path: Path, data: bytes, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_two_processes_agree_after_the_index_was_deleted(cache: Cache, make: Make) -> None:
    other = make()
    put(cache)
    assert read(other) == png()
    index_of(cache).unlink()
    for one in (cache, other):
        one.index._checked = 0.0
    put(cache, ImageRequest("by one"))
    put(other, ImageRequest("by the other"))
    assert read(other, ImageRequest("by one")) == png()
    assert read(cache, ImageRequest("by the other")) == png()


def test_newest_file_of_a_key_is_found_again(cache: Cache) -> None:
    put(cache)
    [picture] = pictures(cache)
    older = picture.with_name(f"{REQUEST.key}-{'0' * 16}.gif")
    older.write_bytes(GIF)
    os.utime(older, (1, 1))
    index_of(cache).unlink()
    cache.index._checked = 0.0
    assert read(cache) == png()


def test_index_of_another_version_is_replaced(cache: Cache, make: Make) -> None:
    put(cache)
    cache.index.run(lambda c: c.execute("PRAGMA user_version = 99"))
    cache.close()
    assert read(make()) == png()


# --- the disk


def test_folder_that_is_a_file_loses_nothing_but_the_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    cache = Cache(tmp_path / "cache")
    assert cache.get(REQUEST.key) is None
    assert cache.recall("a", "b") is None
    cache.remember("a", "b", 1, 1)
    with pytest.raises(NotKept):
        put(cache)
    with pytest.raises(Unavailable):
        cache.delete(REQUEST.key)
    (tmp_path / "cache").unlink()
    put(cache)
    assert read(cache) == png()


def test_deleted_folder_is_made_again(cache: Cache) -> None:
    put(cache)
    for path in cache.directory.iterdir():
        path.unlink()
    cache.directory.rmdir()
    cache.index._checked = 0.0
    assert read(cache) is None
    put(cache)
    assert read(cache) == png()


KILL_AT_RANDOM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cache import Cache, Provenance
from picture import ImageRequest
from tests.servers import png
cache = Cache(Path(sys.argv[2]))
print("ready", flush=True)
for n in range(10**6):
    data = png(shade=n % 256, size=20_000)
    cache.put(ImageRequest(str(n % 7)).key, data, "image/png", Provenance())
"""


def test_kill_9_at_any_moment_leaves_no_wrong_picture(make: Make, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    pause = threading.Event()
    for round_number in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", KILL_AT_RANDOM, str(ROOT), str(directory)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert child.stdout
        child.stdout.readline()
        pause.wait(0.005 * (round_number + 1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        cache = make()
        for n in range(7):
            data = read(cache, ImageRequest(str(n)))
            assert data is None or (len(data) == 20_000 and data.startswith(b"\x89PNG"))
        totals = cache.totals()
        assert totals
        assert totals["bytes"] == 20_000 * totals["entries"]
        cache.close()


def test_sweep_unlinks_what_a_crash_left_and_nothing_else(cache: Cache, clock: Clock) -> None:
    put(cache)
    [picture] = pictures(cache)
    old = clock.now - STALE_SECONDS - 1
    names = {
        f"{'a' * 64}-{'0' * 16}.png": True,
        f"{'a' * 64}-{'0' * 16}.png.tmp": True,
        "index.sqlite3-0a1b2c3d.tmp": True,
        "holiday.png": False,
        "notes.tmp": False,
        f"{'b' * 64}.data": False,
    }
    for name in names:
        (cache.directory / name).write_bytes(b"x")
        os.utime(cache.directory / name, (old, old))
    young = cache.directory / f"{'c' * 64}-{'0' * 16}.png"
    young.write_bytes(b"x")
    os.utime(young, (clock.now, clock.now))
    assert picture.exists()
    cache.sweep()
    left = {path.name for path in cache.directory.iterdir()}
    assert {name for name in names if name not in left} == {n for n, goes in names.items() if goes}
    assert young.name in left
    assert read(cache) == png()


def test_upkeep_runs_by_itself(cache: Cache) -> None:
    orphan = cache.directory / f"{'a' * 64}-{'0' * 16}.png"
    put(cache)
    orphan.write_bytes(b"x")
    os.utime(orphan, (1, 1))
    upkeep = Upkeep(cache)
    upkeep.start()
    wait_until(lambda: not orphan.exists(), what="the sweep at the start")
    upkeep.close()


# --- the lock

HOLD_LOCK = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cache import Cache
from upstream.client import Deadline
with Cache(Path(sys.argv[2])).locks.hold(sys.argv[3], Deadline.after(5)):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_lock(cache: Cache, key: str) -> subprocess.Popen[bytes]:
    cache.directory.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(ROOT), str(cache.directory), key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout
    assert child.stdout.readline() == b"held\n"
    return child


def test_lock_keeps_other_processes_out_until_its_holder_is_killed(cache: Cache) -> None:
    key, other = REQUEST.key, ImageRequest("other").key
    with hold_lock(cache, key) as child:
        with pytest.raises(LockTimeout), cache.locks.hold(key, Deadline.after(0.1)):
            pass
        with cache.locks.hold(other, Deadline.after(0.1)):
            pass
        child.kill()
        with cache.locks.hold(key, Deadline.after(5)):
            pass


def test_two_processes_that_wait_for_each_other_are_no_deadlock(cache: Cache) -> None:
    first, second = REQUEST.key, ImageRequest("other").key
    with hold_lock(cache, first) as child, cache.locks.hold(second, Deadline.after(1)):
        with pytest.raises(LockTimeout), cache.locks.hold(first, Deadline.after(0.1)):
            pass
        child.kill()


def test_lock_file_that_was_deleted_is_made_again(cache: Cache) -> None:
    put(cache)
    with cache.locks.hold(REQUEST.key, Deadline.after(1)):
        pass
    (cache.directory / "locks").unlink()
    with hold_lock(cache, REQUEST.key) as child:
        with pytest.raises(LockTimeout), cache.locks.hold(REQUEST.key, Deadline.after(0.1)):
            pass
        child.kill()


def test_notes_are_json(cache: Cache) -> None:
    cache.remember("a", "k", {"text": "红\ud83c\udf4e"}, 10)
    stored = cache.index.run(lambda c: c.execute("SELECT value FROM notes").fetchone())
    assert json.loads(stored[0])["text"].startswith("红")
