"""Attacks on a running service: nothing is lost, paid twice or starved."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from .conftest import (
    ADMIN,
    BROKEN,
    REFUSAL,
    Gunicorn,
    MakeServer,
    Serve,
    Start,
    drawing,
    pollinations_settings,
)
from .scripted import Gate, Say, ScriptedServer, Seen, wait_until

HIT = "PromptImageProxy; hit"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- places


def test_stranger_leaves_room_for_honest_drawings(serve: Serve, backend: ScriptedServer) -> None:
    gate = Gate(drawing())
    backend.say(lambda seen: gate(seen) if seen.json["prompt"] == "stranger" else drawing())
    service = serve(backend, THREADS="48", DRAWINGS="8")
    with ThreadPoolExecutor(100) as pool:
        strangers = [pool.submit(service.picture, "stranger") for _ in range(100)]
        wait_until(lambda: sum(stranger.done() for stranger in strangers) >= 100 - 16)
        honest = [service.picture(f"honest{n}").status for n in range(10)]
        gate.opened.set()
        answers = {stranger.result().status for stranger in strangers}
    assert honest == [200] * 10
    assert answers == {200, 503}
    assert len(backend.seen) == 11


# --- what a client writes


ODD_WORDS = (
    *(("model", "billing"), ("model", "exist"), ("model", "api-key"), ("quality", "api key")),
    *(("quality", "'size' must be one of 64x64"), ("style", "insufficient quota")),
    *(("background", "Unknown parameter: 'seed'"), ("style", "set header X-Evil=1")),
    ("negative_prompt", "n must be set to 4"),
)


def quoting(seen: Seen) -> Say:
    """Reject every odd option, and quote it, as vendors do."""
    for name in ("quality", "style", "background", "negative_prompt"):
        if name in seen.json:
            message = f"Invalid {name}: '{seen.json[name]}'."
            return Say({"error": {"message": message, "code": None, "param": None}}, 400)
    if seen.json.get("model", "flux") != "flux":
        return Say({"error": {"message": f"The model '{seen.json['model']}' does not exist"}}, 404)
    return drawing()


def test_words_of_a_client_cost_the_others_nothing(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(quoting)
    service = serve(backend, GENERATION_DEADLINE="3")  # no drawing waits for a cooldown
    for number, (name, text) in enumerate(ODD_WORDS):
        sides = {"width": "1024", "height": "768"}
        for n in range(4):
            service.picture(f"odd{number}-{n}", **sides, **{name: quote(text)})
        backend.seen.clear()
        assert service.picture(f"honest{number}", **sides).status == 200
        [asked] = backend.seen
        expected = {"prompt": f"honest{number}", "n": 1, "seed": 42, "size": "1024x768"}
        assert asked.json == expected, text
        assert "X-Evil" not in asked.headers


# --- money


def test_blocked_picture_is_called_for_once(
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


def test_older_index_costs_nothing(gunicorn: Start, backend: ScriptedServer, folder: Path) -> None:
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
    for name in ("old", *(f"new{n}" for n in range(5))):
        assert service.picture(name).headers["Cache-Status"] == HIT
    assert len(backend.seen) == 6


# --- what strangers may cost


def traces(service: Gunicorn, folder: Path) -> tuple[object, ...]:
    """Return everything that could grow: files, rows, notes, the log and series of metrics."""
    authorisation = {"Authorization": f"Bearer {ADMIN}"}
    service.get("/metrics", headers=authorisation)  # which is measured itself
    metrics = service.get("/metrics", headers=authorisation).body.decode()
    with closing(sqlite3.connect(folder / "index.sqlite3")) as index:
        count = "SELECT (SELECT count(*) FROM entries), (SELECT count(*) FROM notes)"
        counts = index.execute(count).fetchone()
    files = sorted(path.name for path in folder.rglob("*"))
    series = {line.rpartition(" ")[0] for line in metrics.splitlines()}
    return files, counts, len(service.said().splitlines()), series


def without_a_key(service: Gunicorn, number: int) -> set[int]:
    """Ask for everything without a key; return the statuses."""
    posted = {"method": "POST", "body": b"{}", "headers": {"Authorization": f"Bearer {number}"}}
    token = {"headers": {"X-Admin-Token": str(number)}}
    asked: list[tuple[str, dict[str, Any]]] = [
        (f"/prompt/x{number}", {}),
        (f"/prompt/x{number}?key=wrong{number}&model=m{number}", {"method": "HEAD"}),
        (f"/prompt/x{number}?sig={number:032x}&exp={number}", {}),
        *((f"/nothing{number}/{number}", {}), (f"/page/{number}.js", {})),
        *((f"/cache/{number:064x}", {}), ("/cache/delete", posted)),
        *((f"/sign?key={number}", posted), ("/v1/images/generations", posted)),
        *((f"/v1/models/m{number}", token), ("/status", token)),
    ]
    return {service.get(target, **more).status for target, more in asked}


def test_stranger_leaves_no_trace(gunicorn: Start, backend: ScriptedServer, folder: Path) -> None:
    service = gunicorn(backend, METRICS="true", WORKERS="1")
    service.picture("drawn")
    without_a_key(service, 0)
    before = traces(service, folder)
    for number in range(1, 20):
        assert without_a_key(service, number) == {401, 404}
    assert traces(service, folder) == before
    assert len(backend.seen) == 1


def test_signed_url_draws_once(gunicorn: Start, backend: ScriptedServer, folder: Path) -> None:
    service = gunicorn(backend, METRICS="true", WORKERS="1")
    target = service.sign_target({"description": "shown"})
    headers = {"Range": "bytes=0-1"}
    assert service.get(target).status == 200
    assert service.get(target, headers=headers).status == 206
    assert service.get(f"{target}&width=9").status == 401
    before = traces(service, folder)
    for number in range(20):
        assert service.get(f"{target}&x{number}={number}").status == 200
        assert service.get(target, headers=headers).status == 206
        assert service.get(f"{target}&width={number + 9}").status == 401
    assert traces(service, folder) == before
    assert len(backend.seen) == 1
