"""Attacks on a running service: nothing is lost, nothing is paid twice, nobody is kept waiting."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cache import Cache
from llm import Rewritten
from storage import Row, Unavailable
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.unwritten import MAX_NOTES, Unwritten

from .conftest import (
    BROKEN,
    REFUSAL,
    Gunicorn,
    InProcess,
    drawing,
    hosting_settings,
    pollinations_settings,
)
from .servers import Gate, Say, ScriptedServer, png, wait_until
from .states import Clock

Start = Callable[..., Gunicorn]
Serve = Callable[..., InProcess]
MakeServer = Callable[[], ScriptedServer]

HIT = "PromptImageProxy; hit"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Hold the index's write lock, as a backup does."""
    with closing(sqlite3.connect(folder / "index.sqlite3", isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        yield


# --- places


def test_strangers_url_leaves_room_for_honest_drawings(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    gate = Gate(drawing())
    backend.say(lambda seen: gate(seen) if seen.json["prompt"] == "stranger" else drawing())
    service = gunicorn(backend, THREADS="48", DRAWINGS="8")
    with ThreadPoolExecutor(230) as pool:
        strangers = [pool.submit(service.picture, "stranger") for _ in range(230)]
        wait_until(lambda: sum(stranger.done() for stranger in strangers) >= 230 - 32)
        honest = [service.picture(f"honest{n}").status for n in range(10)]
        gate.opened.set()
        answers = {stranger.result().status for stranger in strangers}
    assert honest == [200] * 10
    assert answers == {200, 503}
    assert len(backend.seen) == 11


def test_hundreds_of_misses_are_all_drawn_in_turn(gunicorn: Start, backend: ScriptedServer) -> None:
    service = gunicorn(backend, DRAWINGS="4")
    with ThreadPoolExecutor(300) as pool:
        got = list(pool.map(lambda n: service.picture(f"x{n}").status, range(300)))
    assert set(got) == {200}
    assert len(backend.seen) == 300


# --- money


def test_locked_index_costs_neither_a_drawing_nor_an_upload(
    gunicorn: Start, backend: ScriptedServer, server: MakeServer, folder: Path
) -> None:
    host = server()
    host.say(Say({"status_code": 200, "image": {"url": "https://img.example/a.png"}}))
    service = gunicorn(backend, **hosting_settings(host))
    assert service.picture("first").status == 302
    prompts = [f"x{n}" for n in range(5)]
    with ThreadPoolExecutor(5) as pool:
        with write_lock(folder):
            statuses = list(pool.map(lambda prompt: service.picture(prompt).status, prompts))
        assert statuses == [302] * 5
        wait_until(lambda: service.get("/status").json["cache"]["entries"] == 6, 2.5)
        again = list(pool.map(lambda prompt: service.picture(prompt).status, prompts))
    assert again == [302] * 5
    assert (len(backend.seen), len(host.seen)) == (6, 6)
    wait_until(lambda: not list(folder.glob("*.png")))  # what they lay in meanwhile


def test_failure_is_remembered_although_it_cannot_be_written(
    serve: Serve, backend: ScriptedServer, folder: Path
) -> None:
    backend.say(Say({"data": []}))
    service = serve(backend)
    service.picture("first")
    calls = len(backend.seen)
    with make_unwritable(folder):
        for _ in range(50):
            assert service.picture("x").status == 502
    assert len(backend.seen) == calls + 1


@contextmanager
def make_unwritable(folder: Path) -> Iterator[None]:
    """Make every writing of a note fail at once."""
    index = folder / "index.sqlite3"
    with closing(sqlite3.connect(index)) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON notes BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        yield
        connection.execute("DROP TRIGGER full")


def test_newer_note_of_another_process_counts_before_an_unwritten_one(folder: Path) -> None:
    seconds = Clock()
    with (
        closing(SqliteState(folder, seconds)) as mine,
        closing(SqliteState(folder, seconds)) as other,
    ):
        mine.check()
        with make_unwritable(folder), pytest.raises(Unavailable):
            mine.remember(Rewritten("unwritten"), "a", 60)
        assert recalled(mine) == "unwritten"
        assert recalled(other) is None
        seconds.now += 1
        other.remember(Rewritten("newer"), "a", 60)
        assert recalled(mine) == "newer"
        assert mine.forget(Rewritten, "a")
        assert recalled(mine) is None


def recalled(state: SqliteState) -> str | None:
    found = state.recall([(Rewritten, "a")]).get(Rewritten, "a")
    return found.note.prompt if found else None


def test_unwritten_notes_are_bounded_and_expire() -> None:
    notes = Unwritten(seconds := Clock())
    names = [(Rewritten.kind, str(n)) for n in range(MAX_NOTES + 1)]
    for _, key in names:
        notes.keep(Rewritten("x"), key, 60)
    assert set(notes.recall(names)) == set(names[1:])
    seconds.now += 60
    assert not notes.recall(names)


def test_blocked_picture_whose_fallback_fails_is_one_call_for_many_views(
    serve: Serve, backend: ScriptedServer, server: MakeServer
) -> None:
    backend.say(REFUSAL)
    fallback = server()
    fallback.say(BROKEN)
    service = serve(backend, **pollinations_settings(fallback))
    with ThreadPoolExecutor(10) as pool:
        statuses = set(pool.map(lambda _: service.picture("x").status, range(50)))
    assert statuses == {502}
    assert (len(backend.seen), len(fallback.seen)) == (1, 1)


def test_older_index_put_back_under_the_workers_costs_no_drawing(
    gunicorn: Start, backend: ScriptedServer, folder: Path
) -> None:
    service = gunicorn(backend)
    service.picture("old")
    index, backup = folder / "index.sqlite3", folder.parent / "backup"
    with closing(sqlite3.connect(index)) as live, closing(sqlite3.connect(backup)) as copy:
        live.backup(copy)
    for n in range(5):
        service.picture(f"new{n}")
    for suffix in ("-wal", "-shm"):
        index.with_name(f"{index.name}{suffix}").unlink()
    backup.replace(index)
    wait_until(lambda: service.get("/status").json["cache"]["entries"] == 6)
    for n in range(5):
        assert service.picture(f"new{n}").headers["Cache-Status"] == HIT
    assert service.picture("old").headers["Cache-Status"] == HIT
    assert len(backend.seen) == 6


# --- what was deleted


@pytest.fixture
def cache(folder: Path) -> Iterator[Cache]:
    made = Cache(SqliteState(folder), Folder(folder))
    yield made
    made.close()


@pytest.mark.parametrize("url", [None, "https://img.example/a.png"])
def test_picture_deleted_while_its_row_is_being_written_is_gone(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch, url: str | None
) -> None:
    key, store = "a" * 64, cache.state.store

    def refuse(row: Row) -> None:
        raise Unavailable("database is locked")

    def delete_and_store(row: Row) -> str | None:
        assert cache.delete(key)
        return store(row)

    monkeypatch.setattr(cache.state, "store", refuse)
    cache.put(key, png(), "image/png", url=url)
    monkeypatch.setattr(cache.state, "store", delete_and_store)
    cache.close()
    assert cache.get(key) is None
    assert not list(folder.glob("*.png"))
