"""The name of a machine."""

from __future__ import annotations

from pathlib import Path

from storage.cluster.machine import machine_name


def test_machine_keeps_its_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one" / "cache", tmp_path / "other"
    assert machine_name(one) == machine_name(one) != machine_name(other)
    assert [path.name for path in one.iterdir()] == ["machine"]


def test_folder_that_cannot_be_used_has_a_name_for_the_moment(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert machine_name(tmp_path / "file") != machine_name(tmp_path / "file")
