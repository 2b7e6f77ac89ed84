"""SQLite alone: migration, damage and backups, disks that cannot be written, and costs."""

import contextlib
import errno
import fcntl
import os
import random
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from storage import IncompatibleSchema, Row, Totals, Unavailable, sql
from storage.local.backup import DAY
from storage.local.database import PATIENCE_SECONDS
from storage.local.sqlite import SqliteState
from storage.sql import MAX_NOTES, SCHEMA_VERSION
from storage.store import HOUR

from .disks import disk, file_sizes_limited, full, read_only
from .states import ROOT, Clock, Word, row_of

Open = Callable[[], SqliteState]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def index(folder: Path) -> Path:
    return folder / "index.sqlite3"


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())  # the backup's age is that of a file


@pytest.fixture
def open_state(folder: Path, clock: Clock, opened: list[Any]) -> Open:
    def open_one() -> SqliteState:
        opened.append(state := SqliteState(folder, clock))
        return state

    return open_one


@pytest.fixture
def state(open_state: Open) -> SqliteState:
    return open_state()


@pytest.fixture
def small(folder: Path, clock: Clock) -> Iterator[SqliteState]:
    """A state on a disk of 2 MiB, half of which a backup spares."""
    with disk(folder, "2m"), contextlib.closing(SqliteState(folder, clock, 2**20)) as made:
        yield made


def hosted(number: int) -> Row:
    created, prompt = 1_700_000_000.0 + number, f"picture {number} " + "x" * 200
    url = f"https://img.example/{number}"
    return row_of(str(number), file=None, url=url, created=created, prompt=prompt, seed=None)


def word(state: SqliteState, key: str = "k") -> str | None:
    found = state.recall(Word, key)
    return found.note.text if found else None


def execute(index: Path, *statements: str) -> list[Any]:
    """Run statements on a connection of their own; return the rows of the last."""
    with contextlib.closing(sqlite3.connect(index, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def copies(index: Path) -> list[str]:
    return sorted(path.name for path in index.parent.glob("index.sqlite3.damaged-*"))


# --- migration

VERSION_1 = """
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE entries (
    key TEXT NOT NULL UNIQUE,
    file TEXT,              -- the name of the picture's file, or
    url TEXT,               -- where an image host keeps it
    media_type TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    mtime_ns INTEGER,
    digest TEXT,            -- SHA-256 in hex; NULL until a found file is looked into
    created REAL NOT NULL,  -- seconds since the epoch, as is `used`
    used REAL NOT NULL,
    prompt TEXT, width INTEGER, height INTEGER, model TEXT, seed INTEGER,
    optimized TEXT, rewritten TEXT, revised TEXT, drawn_by TEXT
);
CREATE INDEX entries_by_use ON entries (used);
CREATE INDEX entries_by_age ON entries (created);
CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + iif(new.file IS NULL, 0, new.bytes);
END;
CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - iif(old.file IS NULL, 0, old.bytes);
END;
CREATE TRIGGER entry_changed AFTER UPDATE OF file, bytes ON entries BEGIN
    UPDATE totals SET bytes = bytes + iif(new.file IS NULL, 0, new.bytes)
                                    - iif(old.file IS NULL, 0, old.bytes);
END;
CREATE TABLE notes (
    kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    created REAL NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (kind, key)
);
CREATE INDEX notes_by_expiry ON notes (expires);
CREATE INDEX notes_by_age ON notes (created);
PRAGMA user_version = 1;
COMMIT;
"""


def make_version_1(index: Path) -> tuple[Row, Row]:
    """Write an index as release 1 did: a file, a hosted picture and a note."""
    index.parent.mkdir()
    file = replace(hosted(1), url=None, file=f"{hosted(1).key}-{'0' * 16}.png", seed=42)
    with contextlib.closing(sqlite3.connect(index, isolation_level=None)) as connection:
        connection.executescript(VERSION_1)
        names = "key, file, url, media_type, bytes, digest, created, prompt, seed"
        values = ", ".join(f":{name}" for name in names.split(", "))
        insert = f"INSERT INTO entries ({names}, mtime_ns, used) VALUES ({values}, 1, :created)"
        connection.executemany(insert, [asdict(file), asdict(hosted(2))])
        note = ("word", "k", '{"text": "kept"}', time.time() - 10, time.time() + 1000)
        connection.execute("INSERT INTO notes VALUES (?, ?, ?, ?, ?)", note)
    return file, hosted(2)


def schema_of(index: Path) -> set[tuple[str, str]]:
    """Return each column, and each index and trigger with its statement."""
    columns = "SELECT m.name, p.name FROM sqlite_master m, pragma_table_info(m.name) p"
    others = "SELECT name, coalesce(sql, '') FROM sqlite_master WHERE type != 'table'"
    found = execute(index, columns) + execute(index, others)
    return {(name, " ".join(text.split())) for name, text in found}


def test_version_1_is_migrated_in_place(index: Path, open_state: Open) -> None:
    file, url = make_version_1(index)
    inode = index.stat().st_ino
    state = open_state()
    assert state.newest("", 10, None) == [url, file]
    assert (state.totals(), word(state)) == (Totals(2, 100), "kept")
    assert state.oldest(10) == [file]
    state.store(hosted(3))
    assert (index.stat().st_ino, copies(index)) == (inode, [])
    state.close()
    assert execute(index, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    migrated = schema_of(index)
    delete_with_its_wal(index)
    open_state().check()
    assert schema_of(index) == migrated, "that of a new database"


OPEN = """
import sys, pathlib, storage.local.sqlite
print(storage.local.sqlite.SqliteState(pathlib.Path(sys.argv[1])).totals().entries)
"""


@pytest.mark.parametrize("prepare", [make_version_1, lambda index: None], ids=["old", "none"])
def test_processes_that_start_together_agree(index: Path, prepare: Callable[[Path], Any]) -> None:
    rows = prepare(index) or ()
    command = [sys.executable, "-c", OPEN, str(index.parent)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: subprocess.check_output(command, cwd=ROOT), range(4)))
    assert found == [b"%d\n" % len(rows)] * 4
    assert copies(index) == []


def test_failed_migration_changes_nothing(index: Path, open_state: Open) -> None:
    file, _ = make_version_1(index)
    execute(index, "CREATE TABLE entries_by_size (in_the_way_of_an_index)")
    with pytest.raises(Unavailable, match="entries_by_size"):
        open_state().check()
    execute(index, "DROP TABLE entries_by_size")
    assert open_state().find(file.key) == file


def test_index_of_a_newer_version_is_refused_and_left_alone(
    index: Path, state: SqliteState, open_state: Open, caplog: pytest.LogCaptureFixture
) -> None:
    state.store(hosted(1))
    state.close()
    execute(index, f"PRAGMA user_version = {SCHEMA_VERSION + 1}", "CREATE TABLE future (a)")
    before = index.read_bytes()
    newer = open_state()
    for call in (newer.check, lambda: newer.store(hosted(2)), lambda: newer.find(hosted(1).key)):
        with pytest.raises(IncompatibleSchema, match=r"newer version .* move index\.sqlite3 and"):
            call()
    newer.close()
    assert index.read_bytes() == before
    assert copies(index) == []
    assert len(caplog.records) == 1


# --- damage


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def delete_with_its_wal(index: Path) -> None:
    for path in index.parent.glob("index.sqlite3*"):
        path.unlink()


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "emptied": lambda p: os.truncate(p, 0),
    "cut": lambda p: os.truncate(p, 4096),
    "cut in a page": lambda p: os.truncate(p, 5000),
    "header": lambda p: overwrite(p, 0, b"garbage " * 512),
    "garbage": lambda p: overwrite(p, 0, b"garbage " * (p.stat().st_size // 8)),
    "zeroes": lambda p: overwrite(p, 4096, b"\0" * (p.stat().st_size - 4096)),
    "text": lambda p: p.write_text("hello"),
    "gone": lambda p: p.unlink(),
    "gone with its WAL": delete_with_its_wal,
    "moved": lambda p: p.replace(p.with_suffix(".elsewhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_lost_database_is_replaced_under_every_process(
    open_state: Open, index: Path, damage: Damage, is_open: bool
) -> None:
    states = [open_state(), open_state()]
    rows = [hosted(number) for number in range(30)]
    states[0].add(rows)
    states[1].check()
    if not is_open:
        for state in states:
            state.close()
    damage(index)
    for row in rows:  # what can still be read is right
        assert states[0].find(row.key) in (row, None)
    for number, state in enumerate(states):
        state.store(hosted(100 + number))
    for state in states:
        assert [state.find(hosted(100 + n).key) for n in (0, 1)] == [hosted(100), hosted(101)]
        assert state.totals().entries == len(state.newest("", 100, None))


@pytest.mark.parametrize("seed", range(20))
def test_garbage_anywhere_is_survived(open_state: Open, index: Path, seed: int) -> None:
    """What still looks like a database may say anything: of its schema, a row, or a note."""
    rng = random.Random(seed)
    state, rows = open_state(), [hosted(number) for number in range(40)]
    state.add(rows)
    for row in rows:
        state.remember(Word(f"word of {row.prompt}"), row.key, 100)
    state.close()
    for _ in range(rng.choice([1, 5, 40])):
        place = rng.randrange(100, index.stat().st_size - 60)
        overwrite(index, place, rng.randbytes(rng.choice([1, 60])))
    again = open_state()
    for row in rows:
        found = again.find(row.key)
        assert found is None or found.key == row.key
        word(again, row.key)
    for row in rows[::4]:
        again.store(row)
        assert again.find(row.key) == row
    again.newest("", 100, None)


def test_damaged_row_hides_no_other(state: SqliteState, index: Path) -> None:
    state.add([hosted(number) for number in range(3)])
    for number, change in [
        (1, "prompt = CAST(x'ff70696374757265' AS TEXT)"),
        (2, "media_type = 'text/html'"),
    ]:
        execute(index, f"UPDATE entries SET {change} WHERE key = '{hosted(number).key}'")
    assert [row.prompt for row in state.newest("", 9, None)] == ["\ufffdpicture", hosted(0).prompt]
    assert state.find(hosted(2).key) is None
    assert copies(index) == []


# --- the backup


def back_up(state: SqliteState) -> Path:
    """Make the backup, as the upkeep does an hour after the start; return its path."""
    [task] = [task for task in state.tasks() if task.first == HOUR]
    task.work()
    return state.directory / "backup" / "index.sqlite3"


def with_file(number: int) -> Row:
    row = hosted(number)
    return replace(row, url=None, file=f"{row.key}-{'0' * 16}.png")


def damage_all_but_the_wal(state: SqliteState, index: Path) -> None:
    """Leave a row in the WAL alone, and damage what is not in the WAL."""
    state.add([hosted(number) for number in range(100, 500)])
    execute(index, "PRAGMA wal_checkpoint(TRUNCATE)")
    state.store(hosted(4))
    overwrite(index, 4096, b"garbage " * (index.stat().st_size // 8 - 512))


def test_backup_takes_the_place_of_a_damaged_index(
    state: SqliteState, index: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, lost = with_file(2), with_file(3)
    state.add([hosted(1), kept, lost])
    (folder / str(kept.file)).touch()
    back_up(state)
    damage_all_but_the_wal(state, index)
    damaged, wal = index.read_bytes(), index.with_name("index.sqlite3-wal").read_bytes()
    with contextlib.closing(SqliteState(folder)) as other:
        assert other.newest("", 9, None) == [kept, hosted(1)]
    [aside, aside_wal] = copies(index)
    assert (folder / aside).read_bytes() == damaged
    assert (folder / aside_wal).read_bytes() == wal != b""
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert all(words in record.getMessage() for words in (aside, "the backup of"))
    assert aside in str(state.fault)
    (folder / aside).unlink()
    assert state.fault is None


@pytest.mark.parametrize(("at", "garbage"), [(4096, b"garbage " * 512), (36, b"\0\0\0\7")])
def test_damaged_backup_of_a_damaged_index_is_left_out(
    state: SqliteState, index: Path, at: int, garbage: bytes
) -> None:
    """At 36 is the number of free pages, which no statement looks at."""
    state.store(hosted(1))
    overwrite(back_up(state), at, garbage)
    damage_all_but_the_wal(state, index)
    with contextlib.closing(SqliteState(index.parent)) as other:
        assert other.find(hosted(1).key) is None
        other.store(hosted(2))
    assert state.totals() == Totals(1, 0)


def test_backup_of_an_older_version_is_migrated(index: Path, open_state: Open) -> None:
    make_version_1(index)
    (index.parent / "backup").mkdir()
    index.rename(index.parent / "backup" / index.name)
    index.write_text("damaged")
    state = open_state()
    assert state.newest("", 9, None) == [hosted(2)], "the file of the other is missing"
    assert word(state) == "kept"


def test_backup_that_is_put_back_lets_hits_read_on(state: SqliteState, index: Path) -> None:
    """Outside WAL mode, readers would wait for writers."""
    state.store(hosted(1))
    backup = back_up(state)
    state.close()
    index.write_bytes(backup.read_bytes())
    assert execute(index, "PRAGMA journal_mode") == [("delete",)]
    with contextlib.closing(SqliteState(index.parent)) as other:
        assert other.find(hosted(1).key) == hosted(1)
        assert execute(index, "PRAGMA journal_mode") == [("wal",)]


def test_backup_is_private_and_daily(open_state: Open, state: SqliteState, clock: Clock) -> None:
    state.store(hosted(1))
    backup = back_up(state)
    made = backup.stat()
    assert stat.S_IMODE(made.st_mode) == 0o600
    assert stat.S_IMODE(backup.parent.stat().st_mode) == 0o700
    back_up(open_state())
    assert backup.stat().st_mtime_ns == made.st_mtime_ns
    clock.now += DAY + 1
    back_up(open_state())
    assert backup.stat().st_mtime_ns > made.st_mtime_ns


def test_backup_is_made_only_where_there_is_room(small: SqliteState, folder: Path) -> None:
    small.store(hosted(1))
    with full(folder, spare=2**20):
        assert not back_up(small).exists()
    assert back_up(small).exists()


def test_deleted_row_leaves_the_backup(state: SqliteState) -> None:
    state.add([hosted(1), hosted(2)])
    backup = back_up(state)
    os.utime(backup, (1e9, 1e9))
    assert state.delete(hosted(1).key)
    assert not state.delete(hosted(1).key)
    assert execute(backup, "SELECT key FROM entries") == [(hosted(2).key,)]
    assert backup.stat().st_mtime == 1e9
    backup.write_text("damaged")
    assert state.delete(hosted(2).key)
    assert not backup.exists(), "the row could not be deleted from it"


# --- costs


def test_no_statement_reads_a_whole_table(state: SqliteState, index: Path) -> None:
    """So a million pictures cost a request no more than a thousand do."""
    state.check()
    constants = [text for name, text in vars(sql).items() if name.isupper() and name[0] != "_"]
    statements = [sql.with_keys(text, 2) for text in constants if isinstance(text, str)]
    # In the order of an index it ends at the LIMIT; and `totals` has one row.
    whole = r"SCAN (?!\w+ USING (COVERING )?INDEX|totals|CONSTANT)|TEMP B-TREE"
    for statement in [*statements, "SELECT entries, bytes FROM totals"]:
        plan = re.sub(r":\w+", "1", f"EXPLAIN QUERY PLAN {statement}")
        steps = " ".join(str(step[3]) for step in execute(index, plan))
        assert not re.search(whole, steps), statement


def test_number_of_notes_is_bounded(state: SqliteState, index: Path, clock: Clock) -> None:
    state.remember(Word("x"), "expired", 10)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 100004)"
    values = f"'word', i, '{{\"text\": \"x\"}}', {clock.now} + i / 1e6, 9e9"
    execute(index, f"{numbers} INSERT INTO notes SELECT {values} FROM n")
    state.expire()
    assert execute(index, "SELECT COUNT(*) FROM notes") == [(MAX_NOTES,)]
    assert (word(state, "4"), word(state, "expired")) == (None, None)
    assert word(state, str(MAX_NOTES + 4)) == "x"


# --- locks


def test_file_system_without_locks_is_worked_on_without(
    state: SqliteState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    for _ in range(2):
        with state.hold("a" * 64, 1):
            pass
    assert len(caplog.records) == 1


# --- what keeps the index from being written


def leave_in_the_wal(folder: Path) -> None:
    """Leave an index whose row is in the WAL alone, as a process does that is killed."""
    with contextlib.closing(SqliteState(folder.with_name("killed"))) as state:
        state.store(hosted(1))
        folder.mkdir(exist_ok=True)
        for path in state.directory.glob("index.sqlite3*"):
            shutil.copy(path, folder)


def test_full_disk_is_read_after_a_restart(small: SqliteState, folder: Path) -> None:
    small.store(hosted(1))
    small.close()
    with full(folder):
        for _ in range(2):
            with contextlib.closing(SqliteState(folder)) as state:
                state.check()
                assert state.find(hosted(1).key) == hosted(1)


def test_rows_are_found_on_a_full_disk(small: SqliteState, folder: Path) -> None:
    leave_in_the_wal(folder)
    with full(folder):
        assert small.find(hosted(1).key) == hosted(1)
        with contextlib.suppress(Unavailable):
            for number in range(2000):
                small.store(hosted(number))
        assert small.fault == "the index cannot be used: database or disk is full"
        assert small.find(hosted(1).key) == hosted(1)
    small.store(hosted(2))
    assert small.fault is None


def test_rows_are_found_where_no_file_may_grow(state: SqliteState) -> None:
    state.store(hosted(1))
    with file_sizes_limited(os.getpid(), 4096):
        with pytest.raises(Unavailable, match="disk I/O error"):
            state.store(hosted(2))
        assert state.find(hosted(1).key) == hosted(1)
    state.store(hosted(2))


def test_unreadable_wal_is_not_ignored(small: SqliteState, folder: Path, index: Path) -> None:
    """Without it the row is missing, and its picture would be paid for again."""
    leave_in_the_wal(folder)
    index.with_name("index.sqlite3-shm").unlink()  # a restored backup has none
    with full(folder), contextlib.suppress(Unavailable):
        assert small.find(hosted(1).key) == hosted(1)
    assert small.find(hosted(1).key) == hosted(1)
    assert copies(index) == []


def test_rows_are_found_in_a_read_only_folder(open_state: Open, folder: Path, index: Path) -> None:
    leave_in_the_wal(folder)
    state = open_state()
    with read_only(folder):
        assert state.find(hosted(1).key) == hosted(1)
        for write in (lambda: state.store(hosted(2)), lambda: state.remove([hosted(1)])):
            with pytest.raises(Unavailable, match="readonly"):
                write()
        assert state.find(hosted(1).key) == hosted(1)
    state.store(hosted(2))
    assert (state.totals().entries, copies(index)) == (2, [])


def test_folder_of_another_user_is_refused_and_left_alone(folder: Path, state: SqliteState) -> None:
    if os.geteuid():
        pytest.skip("needs root, to give a folder away")
    folder.mkdir()
    os.chown(folder, 12345, -1)
    with pytest.raises(Unavailable, match=r"belongs to user 12345, .* run it as user 12345"):
        state.check()
    assert list(folder.iterdir()) == []


def test_writes_wait_for_the_lock_and_hits_do_not(state: SqliteState, index: Path) -> None:
    state.store(hosted(1))
    backup = sqlite3.connect(index, isolation_level=None)
    with contextlib.closing(backup), ThreadPoolExecutor() as pool:
        backup.execute("BEGIN IMMEDIATE")
        writing = pool.submit(state.store, hosted(2))
        for _ in range(1000):
            assert state.find(hosted(1).key) == hosted(1)
        assert not writing.done()
        backup.execute("ROLLBACK")
        assert writing.result(PATIENCE_SECONDS) is None
    assert (state.fault, copies(index)) == (None, [])
