"""SQLite alone: migration, healing, read-only and full disks, and what a statement costs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage import IncompatibleSchema, Row, Totals, Unavailable
from storage.local import schema
from storage.local.database import BUSY_SECONDS
from storage.local.sqlite import SqliteState
from storage.rows import to_columns
from storage.sql import MAX_NOTES, SCHEMA_VERSION

from .disks import full, read_only, small_disk
from .states import ROOT, Clock, Word

Open = Callable[[], SqliteState]
Fill = Callable[[], contextlib.AbstractContextManager[None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def index(folder: Path) -> Path:
    return folder / "index.sqlite3"


@pytest.fixture
def seconds() -> Clock:
    """The monotonic clock: once a second a process looks whether its database is in place."""
    return Clock(1000.0)


@pytest.fixture
def open_state(folder: Path, seconds: Clock) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_one() -> SqliteState:
            state = SqliteState(folder, Clock(), seconds)
            stack.callback(state.close)
            return state

        yield open_one


@pytest.fixture
def state(open_state: Open) -> SqliteState:
    return open_state()


def hosted(number: int) -> Row:
    key = hashlib.sha256(str(number).encode()).hexdigest()
    return Row(
        key=key,
        url=f"https://img.example/{number}",
        media_type="image/png",
        bytes=100,
        digest="0" * 64,
        created=1_700_000_000.0 + number,
        prompt=f"picture {number} " + "x" * 200,
    )


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
        for row in (file, hosted(2)):
            connection.execute(
                "INSERT INTO entries (key, file, url, media_type, bytes, mtime_ns, digest, created,"
                " used, prompt, seed) VALUES (:key, :file, :url, :media_type, :bytes, 1, :digest,"
                " :created, :created, :prompt, :seed)",
                to_columns(row),
            )
        note = ("word", "k", '{"text": "kept"}', 1.8e9 - 10, 1.8e9 + 10)
        connection.execute("INSERT INTO notes VALUES (?, ?, ?, ?, ?)", note)
    return file, hosted(2)


def schema_of(index: Path) -> set[tuple[str, str]]:
    """Return each column, and each index and trigger with its statement."""
    columns = execute(
        index, "SELECT m.name, p.name FROM sqlite_master m, pragma_table_info(m.name) p"
    )
    others = execute(
        index, "SELECT name, coalesce(sql, '') FROM sqlite_master WHERE type != 'table'"
    )
    return {(name, " ".join(text.split())) for name, text in columns + others}


def test_version_1_is_migrated_in_place(index: Path, open_state: Open) -> None:
    file, url = make_version_1(index)
    inode = index.stat().st_ino
    state = open_state()
    assert state.newest("", 10, None) == [url, file]
    assert (state.totals(), word(state)) == (Totals(2, 100), "kept")
    assert state.oldest(10) == [file]
    state.store(hosted(3))
    assert (index.stat().st_ino, copies(index), state.epoch) == (inode, [], 0)
    state.close()
    assert execute(index, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_migrated_schema_is_that_of_a_new_database(index: Path, open_state: Open) -> None:
    make_version_1(index)
    open_state().check()
    migrated = schema_of(index)
    for path in index.parent.glob("index.sqlite3*"):
        path.unlink()
    open_state().check()
    assert schema_of(index) == migrated


CHECK = """
import sys
from pathlib import Path
from storage.local.sqlite import SqliteState
state = SqliteState(Path(sys.argv[1]))
print(state.totals().entries)
state.close()
"""


@pytest.mark.parametrize("prepare", [make_version_1, lambda index: None], ids=["old", "none"])
def test_processes_that_start_together_agree(index: Path, prepare: Callable[[Path], Any]) -> None:
    rows = prepare(index) or ()
    command = [sys.executable, "-c", CHECK, str(index.parent)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(4)
    ]
    assert [process.communicate()[0] for process in started] == [b"%d\n" % len(rows)] * 4
    assert copies(index) == []


def test_failed_migration_changes_nothing(
    index: Path, open_state: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = make_version_1(index)
    with monkeypatch.context() as patch:
        broken = ("ALTER TABLE entries DROP COLUMN mtime_ns", "INSERT INTO totals VALUES (1)")
        patch.setitem(schema._MIGRATIONS, 2, broken)
        with pytest.raises(Unavailable):
            open_state().check()
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
        with pytest.raises(IncompatibleSchema, match=r"newer version .* move index\.sqlite3 away"):
            call()
    newer.close()
    assert index.read_bytes() == before
    assert copies(index) == []
    assert len(caplog.records) == 1


# --- healing


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def delete_with_its_wal(index: Path) -> None:
    for path in index.parent.glob("index.sqlite3*"):
        path.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
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
    open_state: Open, index: Path, seconds: Clock, damage: Callable[[Path], object], is_open: bool
) -> None:
    states = [open_state(), open_state()]
    for number in range(30):
        states[0].store(hosted(number))
    states[1].check()
    if not is_open:
        for state in states:
            state.close()
    damage(index)
    seconds.now += 2
    for number in range(30):  # what can still be read is right
        assert states[0].find(hosted(number).key) in (hosted(number), None)
    for number, state in enumerate(states):
        state.store(hosted(100 + number))
    for state in states:
        assert [state.find(hosted(100 + n).key) for n in (0, 1)] == [hosted(100), hosted(101)]
        assert state.totals().entries == len(state.newest("", 100, None))


@pytest.mark.parametrize("seed", range(20))
def test_garbage_anywhere_is_survived(open_state: Open, index: Path, seed: int) -> None:
    """What still looks like a database may say anything: of its schema, a row, or a note."""
    rng = random.Random(seed)
    state = open_state()
    for number in range(40):
        state.store(hosted(number))
        state.remember(Word(f"word {number}"), hosted(number).key, 100)
    state.close()
    for _ in range(rng.choice([1, 5, 40])):
        place = rng.randrange(100, index.stat().st_size - 60)
        overwrite(index, place, rng.randbytes(rng.choice([1, 60])))
    again = open_state()
    for number in range(40):
        row = again.find(hosted(number).key)
        assert row is None or row.key == hosted(number).key
        word(again, hosted(number).key)
        again.store(hosted(number))
        assert again.find(hosted(number).key) == hosted(number)
    again.newest("", 100, None)


def test_epoch_changes_with_the_database(open_state: Open, index: Path, seconds: Clock) -> None:
    states = [open_state(), open_state()]
    for state in states:
        state.check()
    index.unlink()
    seconds.now += 2
    for state in states * 2:
        state.check()
    assert [state.epoch for state in states] == [1, 1]
    states[0].close()
    states[0].check()
    assert states[0].epoch == 1


def test_connection_to_a_replaced_database_is_not_used_again(
    open_state: Open, index: Path, state: SqliteState
) -> None:
    """Before the second is over after which a replacement is looked for."""
    state.check()
    index.unlink()
    open_state().store(hosted(1))
    found = state._database.run(lambda _: state.find(hosted(1).key))  # over a second connection
    assert found == hosted(1)
    assert state.find(hosted(1).key) == hosted(1)
    index.unlink()
    assert state.epoch == 2


def test_rows_of_a_damaged_database_are_saved_but_those_of_the_damaged_page(
    state: SqliteState, index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [hosted(number) for number in range(300)]
    state.add(rows)
    state.remember(Word("kept"), "k", 100)
    state.close()
    page = index.read_bytes().index(b"picture 150 ") // 4096
    overwrite(index, page * 4096, b"\xff" * 4096)
    broken = index.read_bytes()
    for row in rows:
        state.find(row.key)
    assert word(state) == "kept"
    found = [row for row in rows if state.find(row.key) == row]
    assert len(rows) - 12 <= len(found) < len(rows)
    [copy] = copies(index)
    assert (index.parent / copy).read_bytes() == broken
    [record] = caplog.records
    assert f"{len(found) + 1} of its rows saved" in record.getMessage()


def test_every_copy_keeps_its_wal(open_state: Open, index: Path, seconds: Clock) -> None:
    state = open_state()
    for number in range(3):
        state.store(hosted(number))
        wal = index.with_name("index.sqlite3-wal").read_bytes()
        assert wal
        overwrite(index, 0, b"garbage " * 512)
        other = open_state()
        other.store(hosted(100 + number))
        seconds.now += 2
    names = copies(index)
    assert len([name for name in names if not name.endswith("-wal")]) == 3
    assert all(f"{name}-wal" in names for name in names if not name.endswith("-wal"))


def test_damaged_row_hides_no_other(state: SqliteState, index: Path) -> None:
    for number in range(3):
        state.store(hosted(number))
    bad = hosted(1).key
    execute(
        index,
        f"UPDATE entries SET prompt = CAST(x'ff70696374757265' AS TEXT) WHERE key = '{bad}'",
        f"UPDATE entries SET media_type = 'text/html' WHERE key = '{hosted(2).key}'",
    )
    assert [row.prompt for row in state.newest("", 9, None)] == ["\ufffdpicture", hosted(0).prompt]
    assert state.find(hosted(2).key) is None
    assert (state.epoch, copies(index)) == (0, [])


def test_database_without_its_totals_is_healed(state: SqliteState, index: Path) -> None:
    state.store(hosted(1))
    execute(index, "DELETE FROM totals")
    assert state.totals() == Totals(1, 0)
    assert state.find(hosted(1).key) == hosted(1)


def test_note_that_is_not_json_is_none(state: SqliteState, index: Path) -> None:
    state.remember(Word("x"), "k", 100)
    for value in ("'{'", "'5'", "x'00'", "'[[[]]]'"):
        execute(index, f"UPDATE notes SET value = {value}")
        assert word(state) is None


# --- connections


def test_connection_of_a_failed_call_is_closed(state: SqliteState) -> None:
    seen: list[sqlite3.Connection] = []

    def fail(connection: sqlite3.Connection) -> None:
        seen.append(connection)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state._database.run(fail)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        seen[0].execute("SELECT 1")


def test_connection_in_use_while_the_state_closes_is_closed(state: SqliteState) -> None:
    began, closed = threading.Event(), threading.Event()
    seen: list[sqlite3.Connection] = []

    def work(connection: sqlite3.Connection) -> None:
        seen.append(connection)
        began.set()
        closed.wait(10)

    thread = threading.Thread(target=state._database.run, args=(work,))
    thread.start()
    assert began.wait(10)
    state.close()
    closed.set()
    thread.join()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        seen[0].execute("SELECT 1")


def test_no_statement_reads_a_whole_table(state: SqliteState) -> None:
    """So a million pictures cost a request no more than a thousand do."""
    said: list[str] = []
    state._database.run(lambda connection: connection.set_trace_callback(said.append))
    row = hosted(1)
    file = replace(row, url=None, file=f"{row.key}-{'0' * 16}.png")
    state.store(row)
    state.amend(row, file)
    state.add([hosted(2), hosted(3)])
    state.find(row.key)
    state.files([row.key, hosted(2).key])
    state.touch({row.key: 1.0})
    state.newest("", 10, None)
    state.newest("a", 10, (1.8e9, row.key))
    state.oldest(10)
    state.remember(Word("x"), "k", 10)
    state.recall_all([(Word, "k"), (Word, "l")])
    state.forget(Word, "k")
    state.expire()
    state.totals()
    state.remove([file])
    state._database.run(lambda connection: connection.set_trace_callback(None))
    # A trigger's statements are said as comments; BEGIN and COMMIT have no plan.
    said = [sql for sql in said if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", sql)]
    assert len(said) >= 16
    for sql in said:
        # SQLite writes infinity as a word that it cannot read.
        plan = f"EXPLAIN QUERY PLAN {sql.replace('(Inf,', '(9e999,')}"
        steps = " ".join(str(row["detail"]) for row in state._select("plan", plan, {}))
        # In the order of an index it ends at the LIMIT; and `totals` has one row.
        assert not re.search(r"SCAN (?!\w+ USING (COVERING )?INDEX|totals)|TEMP B-TREE", steps), sql


def test_number_of_notes_is_bounded(state: SqliteState, index: Path) -> None:
    state.remember(Word("x"), "expired", 10)
    execute(
        index,
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 100004)"
        " INSERT INTO notes SELECT 'word', i, '{\"text\": \"x\"}', 1.8e9 + i / 1e6, 2e9 FROM n",
    )
    state.expire()
    assert execute(index, "SELECT COUNT(*) FROM notes") == [(MAX_NOTES,)]
    assert (word(state, "4"), word(state, "expired")) == (None, None)
    assert word(state, str(MAX_NOTES + 4)) == "x"


# --- locks


def test_lock_file_that_was_deleted_is_made_again(state: SqliteState, folder: Path) -> None:
    for _ in range(2):
        with state.hold("a" * 64, 1):
            (folder / "locks").unlink()


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


# --- disks that cannot be written


@pytest.fixture
def full_disk(folder: Path) -> Iterator[Fill]:
    """Return a context in which nothing more can be written to the folder."""
    with small_disk(folder) as is_small:
        yield lambda: full(folder, is_small, [os.getpid()])


KILLED = """
import os, sys
from pathlib import Path
from tests.test_sqlite import hosted
from storage.local.sqlite import SqliteState
state = SqliteState(Path(sys.argv[1]))
state.store(hosted(1))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("is_killed", [False, True], ids=["closed", "killed"])
def test_rows_are_found_after_a_restart_on_a_full_disk(
    open_state: Open, folder: Path, full_disk: Fill, is_killed: bool
) -> None:
    if is_killed and not folder.is_mount():
        pytest.skip("needs the right to mount: a limit on file sizes keeps the WAL from being read")
    if is_killed:
        subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, check=False)
    else:
        open_state().store(hosted(1))
        open_state().close()
    state = open_state()
    with full_disk():
        assert state.find(hosted(1).key) == hosted(1)
        with contextlib.suppress(Unavailable):  # the WAL of a killed process may have room left
            state.remember(Word("x"), "k", 100)
        assert state.find(hosted(1).key) == hosted(1)
    state.remember(Word("y"), "k", 100)
    assert (word(state), state.epoch) == ("y", 0)


def test_wal_that_cannot_be_read_is_not_ignored(
    open_state: Open, folder: Path, index: Path, full_disk: Fill
) -> None:
    """Without it the row is missing, and its picture would be swept and paid for again."""
    open_state().check()
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, check=False)
    index.with_name("index.sqlite3-shm").unlink()  # a restored backup has none
    state = open_state()
    with full_disk(), contextlib.suppress(Unavailable):
        assert state.find(hosted(1).key) == hosted(1)
    assert state.find(hosted(1).key) == hosted(1)
    assert copies(index) == []


@pytest.mark.parametrize("is_killed", [False, True], ids=["closed", "killed"])
def test_rows_are_found_in_a_read_only_folder(
    open_state: Open, folder: Path, index: Path, is_killed: bool
) -> None:
    state = open_state()
    state.store(hosted(1))
    state.close()
    if is_killed:
        subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, check=False)
    with read_only(folder):
        assert state.find(hosted(1).key) == hosted(1)
        with pytest.raises(Unavailable):
            state.store(hosted(2))
        with pytest.raises(Unavailable):
            state.remove([hosted(1)])
        assert state.find(hosted(1).key) == hosted(1)
    state.store(hosted(2))
    assert (state.totals().entries, state.epoch, copies(index)) == (2, 0, [])


def test_folder_that_is_a_file_is_unavailable_until_it_is_gone(
    folder: Path, state: SqliteState
) -> None:
    folder.write_text("")
    for call in (state.check, lambda: state.find("k"), lambda: state.store(hosted(1))):
        with pytest.raises(Unavailable):
            call()
    with state.hold("a" * 64, 1):
        pass
    folder.unlink()
    state.store(hosted(1))
    assert state.find(hosted(1).key) == hosted(1)


def test_held_write_lock_is_unavailable_and_harms_nothing(
    state: SqliteState, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.store(hosted(1))
    state._database.run(lambda connection: connection.execute("PRAGMA busy_timeout = 50"))
    with contextlib.closing(sqlite3.connect(index, isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            state.store(hosted(2))
        began = time.monotonic()
        with pytest.raises(Unavailable, match="locked"):  # on a new connection, yet soon
            state.store(hosted(2))
        assert time.monotonic() - began < BUSY_SECONDS / 2
        assert state.find(hosted(1).key) == hosted(1)
        backup.execute("ROLLBACK")
    state.store(hosted(2))
    assert copies(index) == []
