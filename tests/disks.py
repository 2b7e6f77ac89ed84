"""Disks for tests: one that can be filled up, and one that cannot be written."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

# Less than a picture, and than a page of the index.
LARGEST_FILE = 2000


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Make a new folder a file system of 2 MiB; yield False where only root may."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        is_small = False
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder))
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            is_small = True
        yield is_small


@contextlib.contextmanager
def full(folder: Path, is_small: bool, pids: Iterable[int]) -> Iterator[None]:
    """Leave no room for what these processes write: on a small disk, or by limiting its size."""
    with contextlib.ExitStack() as stack:
        if is_small:
            ballast = folder / "ballast"
            stack.callback(ballast.unlink)
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
        else:
            for pid in pids:
                before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                limits = (LARGEST_FILE, before[1])
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
                stack.callback(resource.prlimit, pid, resource.RLIMIT_FSIZE, before)
        yield


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only: by a mount where root may, else by its mode."""
    with contextlib.ExitStack() as stack:
        try:
            _mount("--bind", str(folder), str(folder))
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            _mount("-o", "remount,bind,ro", str(folder))
        except (OSError, subprocess.CalledProcessError):
            stack.callback(folder.chmod, folder.stat().st_mode)
            folder.chmod(0o555)
            if os.access(folder, os.W_OK):
                pytest.skip("needs the right to mount, or another user than root")
        yield
