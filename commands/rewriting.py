"""Rewriting a user's file: it is the old one or the new one, whole, whatever happens."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import click


def rewrite(file: Path, data: bytes) -> None:
    """Replace the contents of a file; its mode, its owner and symbolic links to it stay.

    The new file is written beside it and takes its place when it is on disk. If that fails, the
    command ends with a sentence, and the file is unchanged.
    """
    try:
        target = file.resolve(strict=True)
        if target.stat().st_nlink > 1:
            raise click.ClickException(f"{file} is unchanged: its other hard links would stay.")
        with target.open("r+b"):  # a file that may not be written is not replaced either
            pass
        _replace(target, data)
    except OSError as error:
        raise click.ClickException(f"{file} is unchanged: {error.strerror}.") from error


def _replace(target: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(".tmp", ".signing-", target.parent)
    try:
        with open(descriptor, "wb") as new:
            new.write(data)
            about = target.stat()
            os.chown(name, about.st_uid, about.st_gid)
            shutil.copystat(target, name)  # the mode, and an access-control list
            os.utime(name)
            new.flush()
            os.fsync(descriptor)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
