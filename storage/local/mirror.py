"""A copy of CACHE_DIR in another folder, which is brought up to date each time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from storage import Unavailable
from storage.local.daily import copy_index
from storage.local.folder import Folder
from storage.local.recovery import put_in_place, remove_rows_without_files

# Says of which CACHE_DIR a folder is the copy.
_MARK = "backup-of"


class NotABackup(Exception):
    """A folder must not become the backup of this cache. The text says why."""


def mirror(source: Path, target: Path) -> Iterator[str]:
    """Make `target` a copy of the cache in `source`, which may be in use.

    Yields for each picture whether it was `copied`, was `there`, or was `deleted` from the copy.
    Raises NotABackup if `target` holds anything but such a copy, Unavailable and OSError.
    """
    _claim(source.resolve(), target)
    index = target / "index.sqlite3"
    fresh = index.with_name(f"{index.name}.new")
    pictures, copies = Folder(source), Folder(target)
    try:
        # First: a picture that is drawn meanwhile lacks its row at worst.
        copy_index(source / index.name, fresh)
        wanted = {stored.name: stored for stored in pictures.names()}
        there = {stored.name: stored.bytes for stored in copies.names()}
        if there and not wanted:
            raise NotABackup("CACHE_DIR has no pictures, but the backup has; it is left as it is")
        for name in there.keys() - wanted.keys():
            copies.delete(name)
            yield "deleted"
        for name, stored in wanted.items():
            if there.get(name) == stored.bytes:
                yield "there"
            elif _copy(pictures, copies, name, stored.created):
                yield "copied"
        with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
            remove_rows_without_files(connection, target)
    except sqlite3.Error as error:
        raise Unavailable(f"the index cannot be copied: {error}") from error
    put_in_place(fresh, index)


def _claim(source: Path, target: Path) -> None:
    if target.resolve().is_relative_to(source):
        raise NotABackup("the backup would lie in CACHE_DIR; give another folder")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = target / _MARK
    if not os.listdir(target):
        mark.write_text(f"{source}\n")
    elif not mark.exists():
        raise NotABackup(f"{target} is neither empty nor a backup; give another folder")
    elif mark.read_text() != f"{source}\n":
        raise NotABackup(f"{target} is the backup of {mark.read_text().strip()}")


def _copy(pictures: Folder, copies: Folder, name: str, created: float) -> bool:
    """Return whether a picture could be copied: it may have been deleted meanwhile."""
    try:
        with pictures.open(name) as file:
            data = file.readall()
    except FileNotFoundError:
        return False
    copies.write(name, data, created)
    return True
