"""Documents that `sign --in-place` rewrites: whole or unchanged, and otherwise as they were."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest

from commands.documents import rewrite

from .conftest import KEY, ROOT, Run
from .disks import disk, full, read_only
from .servers import wait_until

URL = "https://pics.example.org/prompt/a?key="


def test_mode_owner_and_symbolic_links_stay(tmp_path: Path) -> None:
    page, link = tmp_path / "page.md", tmp_path / "link.md"
    page.write_bytes(b"old")
    page.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(page, 12345, 54321)
    link.symlink_to("page.md")
    before = page.stat()
    rewrite(link, "new")
    after = page.stat()
    assert (page.read_bytes(), link.readlink()) == (b"new", Path("page.md"))
    assert stat.filemode(after.st_mode) == stat.filemode(before.st_mode)
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert sorted(tmp_path.iterdir()) == [link, page]


def test_hard_linked_file_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_bytes(b"old")
    (tmp_path / "other.md").hardlink_to(page)
    with pytest.raises(click.ClickException, match="hard links"):
        rewrite(page, "new")
    assert page.read_bytes() == b"old"


def test_unchanged_file_is_not_written(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no URL")
    before = page.stat()
    assert run("sign", "--in-place", str(page)).exit_code == 0
    after = page.stat()  # its time of access may differ
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_file_that_cannot_be_written_stays_with_a_sentence(
    run: Run, tmp_path: Path, state: str
) -> None:
    folder = tmp_path / "disk"
    with disk(folder, "1m"):
        page = folder / "page.md"
        text = f"{URL}{KEY}\n" * 3000
        page.write_text(text)
        with full(folder) if state == "full" else read_only(folder):
            result = run("sign", "--in-place", str(page))
            assert page.read_text() == text
        assert (result.exit_code, type(result.exception)) == (1, SystemExit)
        assert f"Error: {page} is unchanged: " in result.output
        assert list(folder.iterdir()) == [page]
        assert run("sign", "--in-place", str(page)).exit_code == 0


_REWRITE_FOR_EVER = """
import pathlib, sys
from commands.documents import rewrite
while True:
    for letter in "ab":
        rewrite(pathlib.Path(sys.argv[1]), letter * 2**25)
"""


def test_killed_command_leaves_the_file_whole(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_bytes(b"b" * 2**25)
    child = subprocess.Popen([sys.executable, "-c", _REWRITE_FOR_EVER, str(page)], cwd=ROOT)
    wait_until(lambda: any(tmp_path.glob(".signing-*/page.md")))
    child.kill()
    child.wait()
    assert set(page.read_bytes()) in ({ord("a")}, {ord("b")})
    assert page.stat().st_size == 2**25
