"""Moving a cache: `cache import`, `export`, `adopt` and `backup`."""

import json
from contextlib import closing
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from cache import Cache
from commands import transfer
from picture import ImageRequest
from storage import Row, Unavailable
from storage.cluster.copies import Nowhere
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState

from .conftest import Run, Serve
from .disks import read_only
from .scripted import GIF, ScriptedServer, png

HOSTED = "https://images.example.org/hosted.png"


def open_cache(folder: Path) -> Cache:
    return Cache(SqliteState(folder), Folder(folder))


def rows_in(folder: Path) -> list[Row]:
    """Return all rows of a cache, the newest first."""
    with closing(SqliteState(folder)) as state:
        return state.newest("", 9, None)


def put(cache: Cache, prompt: str, *what: Any, **more: Any) -> None:
    request = ImageRequest(prompt)
    cache.put(request.key, *what, request=request, **more)


@pytest.fixture
def other(tmp_path: Path, opened: list[Any]) -> Cache:
    """A single machine's cache in a folder of its own: two files and a hosted picture."""
    opened.append(made := open_cache(tmp_path / "other"))
    put(made, "a cat", GIF, "image/gif", created=1_700_000_000.0, drawn_by="https://backend")
    put(made, "a dog", png(), "image/png")
    put(made, "hosted", png(), "image/png", url=HOSTED)
    return made


@pytest.fixture
def new(tmp_path: Path, opened: list[Any]) -> Cache:
    opened.append(made := open_cache(tmp_path / "new"))
    return made


def counts(run: Run, command: str, directory: Path, **settings: str) -> dict[str, int]:
    result = run("cache", command, str(directory), "--json", **settings)
    assert result.exit_code == 0, result.output
    found: dict[str, int] = json.loads(result.stdout)
    return found


@pytest.fixture
def cache(environment: dict[str, str], other: Cache, tmp_path: Path) -> Cache:
    """The cache that commands work on: that of `other`."""
    environment["CACHE_DIR"] = str(tmp_path / "other")
    return other


def test_import_copies_rows_files_and_hosted_pictures(
    run: Run, other: Cache, serve: Serve, backend: ScriptedServer, tmp_path: Path
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


def test_exported_folder_is_a_cache_of_its_own(run: Run, cache: Cache, tmp_path: Path) -> None:
    rows, new = cache.state.newest("", 9, None), tmp_path / "new" / "folder"
    assert counts(run, "export", new) == {"exported": 3, "there": 0, "unusable": 0}
    assert rows_in(new) == rows
    assert {stored.name for stored in Folder(new).names()} == {row.file for row in rows if row.file}


def test_export_into_its_own_cache_is_refused(run: Run, environment: dict[str, str]) -> None:
    result = run("cache", "export", environment["CACHE_DIR"])
    assert (result.exit_code, "DIRECTORY is CACHE_DIR" in result.output) == (2, True)


def test_damaged_file_is_named_and_the_rest_copied(run: Run, other: Cache, tmp_path: Path) -> None:
    cat, dog, _ = sorted(other.state.newest("", 9, None), key=lambda row: str(row.prompt))
    path = tmp_path / "other" / str(cat.file)
    path.write_bytes(GIF[:-1] + b"!")
    result = run("cache", "import", str(tmp_path / "other"))
    assert result.exit_code == 1
    assert result.stdout == "2 imported, 0 there, 1 unusable\n"
    assert f"{cat.file}: is missing or damaged" in result.stderr
    path.unlink()
    assert "is missing" in run("cache", "import", str(tmp_path / "other")).stderr
    # What cannot be copied stays as it is.
    assert (tmp_path / "other" / str(dog.file)).exists()
    assert len(other.state.newest("", 9, None)) == 3


def test_unfinished_copy_goes_on(other: Cache, new: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAGE", 1)
    assert next(transfer.transfer(other, new))
    assert new.state.totals().entries == 1
    assert [bool(row) for row in transfer.transfer(other, new)] == [False, True, True]


def test_unwritable_target_ends_the_copy(other: Cache, new: Cache, tmp_path: Path) -> None:
    new.state.check()
    with read_only(tmp_path / "new"), pytest.raises(Unavailable):
        list(transfer.transfer(other, new))


def test_stored_pictures_without_a_row_are_adopted(run: Run, cache: Cache) -> None:
    assert cache.state.remove([row for row in cache.state.newest("", 9, None) if row.file]) == 2
    assert run("cache", "adopt").stdout == "2 pictures adopted\n"
    assert json.loads(run("cache", "adopt", "--json").stdout) == {"adopted": 0}
    assert len(cache.state.newest("", 9, None)) == 3


def test_import_from_a_read_only_folder_works(run: Run, other: Cache, tmp_path: Path) -> None:
    other.close()
    with read_only(tmp_path / "other"):
        assert counts(run, "import", tmp_path / "other")["imported"] == 3


# --- the backup


def test_backup_copies_and_deletes_what_changed(run: Run, cache: Cache, tmp_path: Path) -> None:
    target = tmp_path / "back\udcffup"  # a byte that is not UTF-8
    assert counts(run, "backup", target) == {"copied": 3, "there": 0, "deleted": 0}
    put(cache, "a bird", png(shade=3), "image/png")
    cache.delete(ImageRequest("a cat").key)
    put(cache, "a cat", png(), "image/png")
    cache.delete(ImageRequest("hosted").key)
    assert run("cache", "backup", str(target)).stdout == "2 copied, 1 there, 2 deleted\n"
    cat, bird, dog = cache.state.newest("", 9, None)
    assert cache.state.amend(dog, replace(dog, revised="a poodle"))
    assert cache.state.amend(cat, replace(cat, digest=None))
    (target / str(bird.file)).unlink()
    assert counts(run, "backup", target) == {"copied": 2, "there": 1, "deleted": 2}
    assert {row.final_prompt for row in rows_in(target)} == {"a bird", "a cat", "a poodle"}
    assert len(list(Folder(target).names())) == 3


def test_import_restores_a_backup(run: Run, cache: Cache, tmp_path: Path) -> None:
    rows = cache.state.newest("", 9, None)
    counts(run, "backup", tmp_path / "backup")
    new = {"CACHE_DIR": str(tmp_path / "new")}
    assert counts(run, "import", tmp_path / "backup", **new)["imported"] == 3
    assert rows_in(tmp_path / "new") == rows


def test_picture_deleted_amid_the_copy_is_skipped(cache: Cache, new: Cache, tmp_path: Path) -> None:
    class Evicting(Folder):
        def open(self, name: str, size: int | None = None) -> FileIO:
            cache.delete(name.partition("-")[0])
            return super().open(name, size)

    source = Cache(cache.state, Evicting(tmp_path / "other"))
    [row] = transfer.transfer(source, new)
    assert isinstance(row, Row)
    assert (row.url, new.state.totals().entries) == (HOSTED, 1)


def test_cache_without_files_takes_urls_over(cache: Cache, new: Cache) -> None:
    target = Cache(new.state, Nowhere(Path()))
    found = list(transfer.transfer(cache, target))
    assert [row.url for row in found if isinstance(row, Row)] == [HOSTED]
    assert sum("STORAGE_URL is not set" in str(one) for one in found) == 2
    assert new.state.totals().entries == 1


def test_backup_refuses_folders_that_are_none(run: Run, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.png").touch()
    counts(run, "backup", tmp_path / "backup")
    (tmp_path / "else\udcffwhere").mkdir()
    for target, directory, reason in [
        ("other/backup", "other", "would lie in CACHE_DIR"),
        ("holiday", "other", "neither empty nor a backup"),
        ("backup", "else\udcffwhere", "is the backup of"),
    ]:
        moved = {"CACHE_DIR": str(tmp_path / directory)}
        assert reason in run("cache", "backup", str(tmp_path / target), **moved).stderr


def test_empty_cache_leaves_the_backup_as_it_is(run: Run, cache: Cache, tmp_path: Path) -> None:
    counts(run, "backup", tmp_path / "backup")
    for prompt in ("a cat", "a dog", "hosted"):
        cache.delete(ImageRequest(prompt).key)
    result = run("cache", "backup", str(tmp_path / "backup"))
    assert (result.exit_code, "left as it is" in result.stderr) == (1, True)
    assert len(list(Folder(tmp_path / "backup").names())) == 2


def test_backup_of_several_machines_is_another_tool(run: Run, tmp_path: Path) -> None:
    names = ("S3_REGION", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY")
    settings = dict.fromkeys(names, "x") | {"S3_ENDPOINT_URL": "http://127.0.0.1:1"}
    settings |= {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "STORAGE_URL": "s3://bucket"}
    result = run("cache", "backup", str(tmp_path / "backup"), **settings)
    assert (result.exit_code, "pg_dump" in result.stderr) == (1, True)
