"""Disks for tests: small, full and read-only ones. Where nothing may be mounted, tests skip."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """Make a new folder a file system of `size`, such as 8m. 0 is an unknown size."""
    folder.mkdir()
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        yield


@contextlib.contextmanager
def full(folder: Path, spare: int = 0) -> Iterator[None]:
    """Leave `spare` bytes of a small disk free."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
            file.truncate(max(0, file.tell() - spare))
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make an existing folder read-only."""
    with _mounted(folder, "--bind", str(folder), str(folder)):
        _mount("-o", "remount,bind,ro", str(folder))
        yield


@contextlib.contextmanager
def file_sizes_limited(pid: int, size: int) -> Iterator[None]:
    """Let a process, and those that it starts, write no file beyond `size`."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[None]:
    try:
        _mount(*arguments)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount file systems")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
