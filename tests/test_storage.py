"""The contract of storage/__init__.py, run over every implementation."""

import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import fstat
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest

from storage import Filter, LockTimeout, Note, Row, Totals
from storage.cluster.copies import Copies
from storage.cluster.objects import Objects
from storage.cluster.postgres import PostgresState
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.state import State
from storage.store import Store
from storage.waiting import Places

from .postgresql import Postgres
from .states import Clock, Word, held_elsewhere, key_of, name_of, row_of

Open = Callable[[], State]
OpenStore = Callable[[], Folder | Copies]


@dataclass(frozen=True, slots=True)
class Colour(Note):
    kind: ClassVar[str] = "colour"
    name: str
    shades: list[int | None]


@dataclass(frozen=True, slots=True)
class NewColour(Note):
    """What another version of the program makes of the same kind."""

    kind: ClassVar[str] = "colour"
    hue: float


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a state lives: a folder, or the URL of a database."""
    if request.param == "sqlite":
        return tmp_path / "state"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.schema()


@pytest.fixture
def open_state(address: Path | str, clock: Clock, opened: list[Any]) -> Open:
    """Open the state, each time as another process would."""
    if isinstance(address, str):
        opened.append(set_clock(address, clock))

    def open_one() -> State:
        made: State
        if isinstance(address, str):
            made = PostgresState(f"{address}%2Cpg_catalog")
        else:
            made = SqliteState(address, clock)
        opened.append(made)
        return made

    return open_one


def set_clock(url: str, clock: Clock) -> psycopg.Connection[Any]:
    """Let `statement_timestamp()` tell the time of `clock` where the schema precedes pg_catalog."""
    connection = psycopg.connect(url, autocommit=True)
    connection.execute(f"CREATE TABLE clock AS SELECT {clock.now}::float8 AS now")
    connection.execute(
        "CREATE FUNCTION statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql"
        " AS 'SELECT to_timestamp(now) FROM clock'"
    )
    clock.followers.append(lambda now: connection.execute("UPDATE clock SET now = %s", (now,)))
    return connection


@pytest.fixture
def state(open_state: Open) -> State:
    return open_state()


def store(state: State, *texts: str, **values: Any) -> list[Row]:
    rows = [row_of(text, **values) for text in texts]
    for row in rows:
        state.store(row)
    return rows


# --- rows


def test_stored_row_is_found_whole_by_every_process(state: State, open_state: Open) -> None:
    texts = dict.fromkeys(("model", "optimized", "rewritten", "revised", "drawn_by"), "红 🍎")
    created = 1_700_000_000.123456
    row = row_of("红 🍎", width=640, height=480, seed=-(10**18) + 1, created=created, **texts)
    assert state.store(row) is None
    assert state.find(row.key) == row
    state.close()
    assert open_state().find(row.key) == row
    assert state.find(row.key) == row, "a closed state opens again"
    assert state.find(key_of("another")) is None


def test_hosted_row_has_a_url_and_no_file(state: State) -> None:
    [row] = store(state, "a", file=None, url="https://img.example/a.png")
    assert state.find(row.key) == row
    assert (state.files([row.key]), state.oldest(10)) == ({row.key: None}, [])
    assert (state.delete(row.key), state.delete(row.key)) == (True, False)
    assert state.find(row.key) is None


def test_storing_returns_the_file_of_the_replaced_row(state: State) -> None:
    store(state, "a")
    newer = row_of("a", file=name_of("a", 1), prompt=None)
    assert state.store(newer) == name_of("a")
    assert state.store(row_of("a", file=None, url="https://x")) == name_of("a", 1)
    assert state.store(newer) is None
    assert state.find(newer.key) == newer


def test_each_replaced_file_is_returned_once(state: State, open_state: Open) -> None:
    states = [state, open_state()]
    rows = [row_of("a", file=name_of("a", number)) for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        replaced = list(pool.map(lambda n: states[n % 2].store(rows[n]), range(20)))
    assert (last := state.find(key_of("a"))) is not None
    assert Counter([*replaced, last.file]) == Counter([None, *(row.file for row in rows)])


def test_rows_are_added_only_where_there_is_none(state: State) -> None:
    [known] = store(state, "a")
    rows = [row_of("a", file=name_of("a", 1)), row_of("b"), row_of("c")]
    assert state.add(rows) == 2
    assert state.add([]) == 0
    assert state.find(known.key) == known
    assert state.find(key_of("b")) == row_of("b")


def test_row_that_was_replaced_meanwhile_is_neither_amended_nor_removed(state: State) -> None:
    file, hosted = row_of("a"), row_of("b", file=None, url="https://x")
    for old in (file, hosted):
        new = replace(old, created=old.created + 1, file=old.file and name_of("a", 1))
        state.store(new)
        assert not state.amend(old, replace(old, digest="1" * 64))
        assert state.remove([old]) == 0
        assert state.find(old.key) == new
        assert state.amend(new, changed := replace(new, digest="1" * 64, bytes=7))
        assert state.find(old.key) == changed
        assert state.remove([changed, changed]) == 1
        assert state.find(old.key) is None


def test_files_are_found_by_the_hundred(state: State) -> None:
    rows = [row_of(str(number)) for number in range(500)]
    state.add(rows[::2])
    assert state.files([row.key for row in rows]) == {row.key: row.file for row in rows[::2]}
    assert state.files([]) == {}


def test_totals_count_rows_and_the_bytes_of_files(state: State) -> None:
    assert state.totals() == Totals(0, 0)
    [a, b, _] = store(state, "a", "b", "c")
    assert state.totals() == Totals(3, 300)
    state.store(row_of("a", bytes=7))
    state.store(row_of("b", file=None, url="https://x"))
    assert state.totals() == Totals(3, 107)
    assert state.remove([a, replace(b, file=None, url="https://x")]) == 2
    assert state.add([row_of("d", bytes=1)]) == 1
    assert state.totals() == Totals(2, 101)


def test_newest_picture_of_each_backend_says_when_it_last_drew(state: State) -> None:
    for text, created, name in [("a", 1.0, "x"), ("b", 3.5, "x"), ("c", 2.0, "x"), ("d", 4.0, "y")]:
        store(state, text, created=created, drawn_by=name)
    store(state, "e", created=9.0)
    assert [state.last_drawn(name) for name in ("x", "y", "idle")] == [3.5, 4.0, None]


# --- the gallery


@pytest.mark.parametrize("by", ["created", "bytes"])
def test_rows_are_listed_in_order_page_by_page(state: State, by: str) -> None:
    """Rows of the same moment or size, too: none is skipped or repeated at the edge of a page."""
    page_of: Callable[..., list[Row]] = state.newest if by == "created" else state.largest
    rows = [row_of(str(n), created=1_700_000_000.0 + n // 4, bytes=100 + n // 4) for n in range(10)]
    state.add(rows)
    found: list[Row] = []
    while page := page_of("", 3, (getattr(found[-1], by), found[-1].key) if found else None):
        found += page
    assert found == sorted(rows, key=lambda row: (getattr(row, by), row.key), reverse=True)


def test_search_takes_every_character_as_it_is(state: State) -> None:
    store(state, "a red Apple", "apple_pie", "100% wool!", "红苹果")
    store(state, "adopted", prompt=None)
    for search, expected in [
        *(("APPLE", {"a red Apple", "apple_pie"}), ("_", {"apple_pie"}), ("红", {"红苹果"})),
        *(("%", {"100% wool!"}), ("l!", {"100% wool!"}), ("nothing", set())),
    ]:
        assert {row.prompt for row in state.newest(search, 10, None)} == expected, search


def test_rows_are_filtered_by_model_and_time(state: State) -> None:
    for text, model, created in (("a", "x", 1.0), ("b", "y", 2.0), ("c", "x", 3.0)):
        store(state, text, model=model, created=created)

    def found(only: Filter) -> list[str | None]:
        rows = state.newest("", 9, None, only)
        assert {row.key for row in state.largest("", 9, None, only)} == {row.key for row in rows}
        return [row.prompt for row in rows]

    assert found(Filter(model="x")) == ["c", "a"]
    assert found(Filter(since=2.0)) == ["c", "b"]
    assert found(Filter(model="x", until=3.0)) == ["a"]


# --- what was used when


def test_least_recently_used_comes_first(state: State, clock: Clock) -> None:
    for text in "abcd":
        clock.now += 10
        store(state, text)
    state.add([row_of("adopted", created=clock.now - 35)])
    clock.now += 100
    state.touch({key_of("a"): 95.0, key_of("c"): 0.5, key_of("gone"): 0.0})
    state.touch({})
    [c] = [row for row in state.oldest(10) if row.prompt == "c"]
    state.amend(c, replace(c, digest="1" * 64))
    assert [row.prompt for row in state.oldest(10)] == ["adopted", "b", "d", "a", "c"]
    assert [row.prompt for row in state.oldest(2)] == ["adopted", "b"]


# --- notes

RED = Colour("红🍎 \udc00", [1, None])


def test_notes_are_recalled_together_with_their_age(state: State, clock: Clock) -> None:
    state.remember(RED, "k", 100)
    clock.now += 5
    state.remember(Word("loud"), "k", 10)
    clock.now += 1
    state.remember(Colour("blue", []), "l", 100)
    notes = state.recall_all(Colour, ["k", "l", "other", "k"])
    assert notes.keys() == {"k", "l"}
    red = notes["k"]
    assert (red.note, red.age, red.left) == (RED, 6, 94)
    assert (loud := state.recall(Word, "k")) is not None
    assert (loud.note, loud.age, loud.left) == (Word("loud"), 1, 9)
    assert state.recall_all(Colour, []) == {}
    assert state.recall(Colour, "k") == red


def test_note_ends_when_its_time_is_over(state: State, clock: Clock) -> None:
    state.remember(RED, "k", 100)
    clock.now += 99
    assert state.recall(Colour, "k")
    clock.now += 1
    assert state.recall(Colour, "k") is None
    state.expire()
    clock.now -= 50
    assert state.recall(Colour, "k") is None, "it was dropped"


def test_notes_begin_anew_when_the_clock_is_set_back(state: State, clock: Clock) -> None:
    state.remember(RED, "k", 100)
    clock.now -= 3600
    for age in (0, 60):
        clock.now += age
        assert (red := state.recall(Colour, "k"))
        assert (red.age, red.left) == (age, 100 - age)
    clock.now += 40
    assert state.recall(Colour, "k") is None


def test_note_of_a_clock_that_was_wrong_is_void(state: State, clock: Clock) -> None:
    state.remember(RED, "k", 1e6)
    clock.now -= 86400
    assert state.recall(Colour, "k") is None
    state.remember(RED, "l", 1e6)
    assert state.exchange(None, RED, "k", 10)
    clock.now -= 86400
    state.expire()
    clock.now += 86400
    assert state.recall(Colour, "l") is None, "it was dropped"


def test_note_replaces_one_of_its_kind_and_can_be_forgotten(state: State) -> None:
    state.remember(Colour("old", []), "k", 100)
    state.remember(RED, "k", 100)
    state.remember(Word("loud"), "k", 100)
    assert (red := state.recall(Colour, "k")) is not None
    assert red.note == RED
    assert (state.forget(Colour, "k"), state.forget(Colour, "k")) == (True, False)
    assert state.recall(Colour, "k") is None
    assert state.recall(Word, "k")


def test_note_of_another_version_is_forgotten(state: State) -> None:
    state.remember(RED, "k", 100)
    assert state.recall(NewColour, "k") is None
    assert state.exchange(None, NewColour(0.5), "k", 100)


def test_note_is_exchanged_unless_it_has_changed(state: State, clock: Clock) -> None:
    assert state.exchange(None, RED, "k", 10)
    assert not state.exchange(None, Colour("late", []), "k", 10)
    assert (red := state.recall(Colour, "k"))
    clock.now += 1
    assert state.exchange(red, blue := Colour("blue", [0]), "k", 10)
    assert not state.exchange(red, RED, "k", 10)
    assert (found := state.recall(Colour, "k"))
    assert (found.note, found.age, found.left) == (blue, 0, 10)
    clock.now += 10
    assert not state.exchange(found, RED, "k", 10), "it has expired"
    assert state.exchange(None, RED, "k", 10)


def test_one_of_many_processes_exchanges_a_note(state: State, open_state: Open) -> None:
    states = [state, open_state()]

    def count(number: int) -> None:
        while True:
            before = states[number % 2].recall(Word, "k")
            after = Word(str(int(before.note.text) + 1 if before else 1))
            if states[number % 2].exchange(before, after, "k", 100):
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    assert (found := state.recall(Word, "k"))
    assert found.note == Word("40")


def test_now_is_the_state_s_own_clock(state: State, clock: Clock) -> None:
    clock.now += 5000
    assert state.now() == clock.now


# --- counts


def test_count_stops_at_its_limit_and_can_be_taken_back(state: State) -> None:
    assert not state.count("k", 4, 100, limit=3)
    assert [state.count("k", 1, 100, limit=3) for _ in range(4)] == [True] * 3 + [False]
    assert not state.count("k", 2, 100, limit=4), "all or none"
    assert state.count("k", -2, 100, limit=3)
    assert state.count("k", 2, 100, limit=3)
    assert state.count("k", 10, 100), "without a limit"
    assert not state.count("k", -14, 100), "never below 0"
    assert not state.count("other", -1, 100)
    assert state.counts(["k", "other"]) == {"k": 13}
    assert state.counts([]) == {}


def test_count_begins_anew_when_its_time_is_over(state: State, clock: Clock) -> None:
    state.count("k", 3, 100, limit=3)
    clock.now += 100
    assert state.counts(["k"]) == {}
    assert not state.count("k", -1, 100)
    assert state.count("k", 2, 100, limit=3)
    assert state.counts(["k"]) == {"k": 2}
    clock.now += 100
    state.expire()
    clock.now -= 50
    assert state.counts(["k"]) == {}, "it was dropped"


def test_processes_never_count_beyond_the_limit_together(state: State, open_state: Open) -> None:
    states = [state, open_state()]
    with ThreadPoolExecutor(8) as pool:
        counted = list(pool.map(lambda n: states[n % 2].count("k", 1, 100, 10), range(40)))
    assert (sum(counted), state.counts(["k"])) == (10, {"k": 10})


# --- locks


def test_lock_keeps_others_out_until_its_holder_dies(state: State, address: Path | str) -> None:
    with held_elsewhere(address, key := key_of("a")) as child:
        with pytest.raises(LockTimeout), state.hold(key, 0.1):
            pass
        with state.hold(key_of("b"), 0.1):
            pass
        child.kill()
        with state.hold(key, 1):
            pass


# --- the whole


def test_check_prepares_a_state_that_is_new(state: State) -> None:
    state.check()
    assert (state.totals(), state.fault) == (Totals(0, 0), None)
    assert state.epoch == state.epoch


# --- stores

CREATED = 1_700_000_000


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder of a store, or of a bucket's copies."""
    return tmp_path / "store"


@pytest.fixture(params=["folder", "bucket"])
def open_store(request: pytest.FixtureRequest, shelf: Path, clock: Clock) -> OpenStore:
    """Open the store, each time as another process would."""
    if request.param == "folder":
        return lambda: Folder(shelf, clock)
    objects = Objects(request.getfixturevalue("bucket"))

    def files(keys: Sequence[str]) -> dict[str, str | None]:
        """Every file has a row."""
        return {path.name.partition("-")[0]: path.name for path in shelf.iterdir()}

    return lambda: Copies(objects, shelf, files, Places(16), clock=clock)


@pytest.fixture
def bytes_store(open_store: OpenStore) -> Store:
    return open_store()


def leave_half(shelf: Path, name: str) -> None:
    """Leave what a write leaves behind that was interrupted just now."""
    (shelf / f"{name}.0123abcd.tmp").write_bytes(b"half")


def test_written_file_has_its_age(bytes_store: Store, shelf: Path, open_store: OpenStore) -> None:
    data = bytes(range(256)) * 1000
    bytes_store.write(name_of("a"), data, CREATED + 0.75)
    assert (shelf / name_of("a")).stat().st_mtime_ns == CREATED * 10**9
    for store in (bytes_store, open_store()):
        with store.open(name_of("a")) as file:
            assert file.read() == data
            assert stat.S_ISREG(fstat(file.fileno()).st_mode)


def test_deleted_name_is_gone_and_can_be_deleted_again(bytes_store: Store) -> None:
    bytes_store.write(name_of("a"), b"1", CREATED)
    for _ in range(2):
        bytes_store.delete(name_of("a"))
        with pytest.raises(FileNotFoundError):
            bytes_store.open(name_of("a"))


def test_names_are_those_of_pictures(bytes_store: Store, shelf: Path) -> None:
    bytes_store.check()
    assert list(bytes_store.names()) == []
    bytes_store.write(name_of("a"), b"12", CREATED + 0.5)
    leave_half(shelf, name_of("b"))
    (shelf / "holiday.png").write_bytes(b"x")
    (shelf / name_of("c")).mkdir()
    [found] = bytes_store.names()
    assert (found.name, found.bytes) == (name_of("a"), 2)
    is_upload = abs(found.created - time.time()) < 60  # all that an object store knows
    assert found.created == CREATED or is_upload


def test_sweep_deletes_old_unfinished_writes(bytes_store: Store, shelf: Path, clock: Clock) -> None:
    clock.now = time.time()
    bytes_store.write(name_of("a"), b"12", CREATED)
    leave_half(shelf, name_of("b"))
    (shelf / "notes.tmp").write_bytes(b"x")
    bytes_store.sweep()
    assert len(list(shelf.iterdir())) == 3
    clock.now += 601
    bytes_store.sweep()
    assert {path.name for path in shelf.iterdir()} == {name_of("a"), "notes.tmp"}
