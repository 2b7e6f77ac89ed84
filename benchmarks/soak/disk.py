"""A file system that becomes full on demand."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_BYTES = 4 * 2**30  # a tmpfs takes only what its files take
# Files that are written meanwhile must not make the disk too small for its contents.
SPARE_BYTES = 64 * 2**10


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Make a new folder a file system of its own; yield whether this user may do so."""
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave almost no room on the disk while in the block."""
    while not _is_resized(folder, _used(folder) + SPARE_BYTES):
        pass  # more than the spare bytes were written meanwhile
    try:
        yield
    finally:
        assert _is_resized(folder, DISK_BYTES)


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _is_resized(folder: Path, size: int) -> bool:
    """Resize a disk; return False if it holds more than `size` bytes."""
    try:
        _mount("-o", f"remount,size={size}", str(folder))
    except subprocess.CalledProcessError:
        return False
    return True


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
