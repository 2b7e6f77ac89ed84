"""Moving a cache: `cache import`, `cache export` and `cache adopt`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cache import Cache
from picture import ImageRequest
from storage import Unavailable, transfer
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.transfer import Place

from .conftest import InProcess, Run
from .disks import read_only
from .servers import GIF, ScriptedServer, png

HOSTED = "https://images.example.org/hosted.png"


def put(cache: Cache, prompt: str, *what: Any, **more: Any) -> None:
    request = ImageRequest(prompt)
    cache.put(request.key, *what, request=request, **more)


@pytest.fixture
def other(tmp_path: Path, opened: list[Any]) -> Cache:
    """A single machine's cache in a folder of its own: two files and a hosted picture."""
    opened.append(made := Cache(SqliteState(tmp_path / "other"), Folder(tmp_path / "other")))
    put(made, "a cat", GIF, "image/gif", created=1_700_000_000.0, drawn_by="https://backend")
    put(made, "a dog", png(), "image/png")
    put(made, "hosted", png(), "image/png", url=HOSTED)
    return made


def counts(run: Run, command: str, directory: Path, status: int = 0) -> dict[str, int]:
    result = run("cache", command, str(directory), "--json")
    assert result.exit_code == status, result.output
    found: dict[str, int] = json.loads(result.stdout)
    return found


def test_import_copies_rows_files_and_hosted_pictures(
    run: Run,
    other: Cache,
    serve: Callable[..., InProcess],
    backend: ScriptedServer,
    tmp_path: Path,
) -> None:
    orphan = f"{ImageRequest('orphan').key}-0123456789abcdef.png"
    Folder(tmp_path / "other").write(orphan, png(), 1_600_000_000.0)
    imported = {"imported": 4, "there": 0, "unusable": 0}
    assert counts(run, "import", tmp_path / "other") == imported
    service = serve(backend)
    got = service.picture("a%20cat")
    assert (got.body, got.headers["Last-Modified"]) == (GIF, "Tue, 14 Nov 2023 22:13:20 GMT")
    assert service.picture("orphan").body == png()
    assert service.picture("hosted").headers["Location"] == HOSTED
    assert backend.seen == []
    text = run("cache", "import", str(tmp_path / "other")).stdout
    assert text == "0 imported, 4 there, 0 unusable\n"


def test_exported_folder_is_a_cache_of_its_own(
    run: Run,
    other: Cache,
    serve: Callable[..., InProcess],
    backend: ScriptedServer,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    rows = other.state.newest("", 9, None)
    environment["CACHE_DIR"] = str(tmp_path / "other")
    exported = {"exported": 3, "there": 0, "unusable": 0}
    assert counts(run, "export", tmp_path / "new" / "folder") == exported
    environment["CACHE_DIR"] = str(tmp_path / "new" / "folder")
    service = serve(backend)
    assert service.picture("a%20cat").body == GIF
    assert service.picture("hosted").headers["Location"] == HOSTED
    assert backend.seen == []
    with ExitStack() as stack:
        stack.callback((state := SqliteState(tmp_path / "new" / "folder")).close)
        assert state.newest("", 9, None) == rows


def test_export_into_its_own_cache_is_refused(run: Run, environment: dict[str, str]) -> None:
    result = run("cache", "export", environment["CACHE_DIR"])
    assert (result.exit_code, "DIRECTORY is CACHE_DIR" in result.output) == (2, True)


def test_damaged_file_is_named_and_the_rest_is_copied(
    run: Run, other: Cache, tmp_path: Path
) -> None:
    cat, dog, _ = sorted(other.state.newest("", 9, None), key=lambda row: str(row.prompt))
    path = tmp_path / "other" / str(cat.file)
    path.write_bytes(GIF[:-1] + b"!")
    result = run("cache", "import", str(tmp_path / "other"))
    assert result.exit_code == 1
    assert result.stdout == "2 imported, 0 there, 1 unusable\n"
    assert f"{cat.file}: is damaged" in result.stderr
    path.unlink()
    assert "is missing" in run("cache", "import", str(tmp_path / "other")).stderr
    # What cannot be copied stays as it is.
    assert (tmp_path / "other" / str(dog.file)).exists()
    assert len(other.state.newest("", 9, None)) == 3


def test_interrupted_copy_is_continued(
    other: Cache, tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_PAGE", 1)
    opened.append(state := SqliteState(tmp_path / "new"))
    places = Place(other.state, other.store), Place(state, Folder(tmp_path / "new"))
    assert next(transfer.transfer(*places)).row
    assert state.totals().entries == 1
    assert [bool(copied.row) for copied in transfer.transfer(*places)] == [False, True, True]


def test_target_that_cannot_be_written_ends_the_copy(
    other: Cache, tmp_path: Path, opened: list[Any]
) -> None:
    opened.append(state := SqliteState(tmp_path / "new"))
    state.check()
    target = Place(state, Folder(tmp_path / "new"))
    with read_only(tmp_path / "new"), pytest.raises(Unavailable):
        list(transfer.transfer(Place(other.state, other.store), target))


def test_stored_pictures_without_a_row_are_adopted(
    run: Run, other: Cache, environment: dict[str, str], tmp_path: Path
) -> None:
    environment["CACHE_DIR"] = str(tmp_path / "other")
    assert other.state.remove([row for row in other.state.newest("", 9, None) if row.file]) == 2
    assert run("cache", "adopt").stdout == "2 pictures adopted\n"
    assert json.loads(run("cache", "adopt", "--json").stdout) == {"adopted": 0}
    assert len(other.state.newest("", 9, None)) == 3
