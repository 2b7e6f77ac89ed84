"""Copying a cache: from one State and Store to another, which may both be in use.

What the target has already is skipped, so that an interrupted copy can be continued.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from storage import Row, Unavailable
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.state import State
from storage.store import FileLost, Store, open_verified
from storage.upkeep import has_file, store_errors

_PAGE = 200
# An object store answers in tens of milliseconds; each copy holds one picture in memory.
_THREADS = 8


class Place(NamedTuple):
    """Where a cache lives."""

    state: State
    store: Store


class Copied(NamedTuple):
    """What became of a row: `row` as the target has it now, or `problem`, or was there before."""

    row: Row | None = None
    problem: str | None = None


@contextmanager
def opened(directory: Path) -> Iterator[Place]:
    """Open the cache in a folder of a single machine, which may be read-only.

    SQLite cannot open an index there that it would have to write: a copy takes its place.
    """
    with ExitStack() as stack:
        index = directory
        if directory.exists() and not os.access(directory, os.W_OK):
            index = Path(stack.enter_context(TemporaryDirectory()))
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    shutil.copy(directory / f"index.sqlite3{suffix}", index)
        state = stack.enter_context(closing(SqliteState(index)))
        yield Place(state, Folder(directory))


def transfer(source: Place, target: Place) -> Iterator[Copied]:
    """Copy every picture whose key `target` does not have; yield an outcome for each row.

    Files are compared with their digests and written before their rows. One that cannot be read
    is a problem of its row alone. Raises Unavailable if a state or the target fails.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in _pages(source.state):
            known = target.state.files([row.key for row in rows])
            fresh = [row for row in rows if row.key not in known]
            copied = list(pool.map(partial(_copy, source, target.store), fresh))
            target.state.add([done.row for done in copied if done and done.row])
            yield from (Copied(),) * (len(rows) - len(fresh))
            yield from filter(None, copied)


def prune(source: Place, target: Place) -> int:
    """Delete from `target` what `source` does not have any more; return how many pictures.

    What has changed or lost its file since is deleted, too, and copied by the next transfer.
    Raises Unavailable.
    """
    count = 0
    for rows in _pages(target.state):
        for row in rows:
            with store_errors():
                if _is_current(source, target, row):
                    continue
                if row.file:
                    target.store.delete(row.file)
            count += target.state.remove([row])
    return count


def _is_current(source: Place, target: Place, row: Row) -> bool:
    """Return whether the row of a copy is that of its source, and has its file."""
    now = source.state.find(row.key)
    # The copy has a digest and a size, and the source may have neither until its next hit.
    is_same = now is not None and _without_findings(now) == _without_findings(row)
    return is_same and (row.file is None or has_file(target.store, row))


def _without_findings(row: Row) -> Row:
    return replace(row, digest=None, drawn_width=None, drawn_height=None)


def _pages(state: State) -> Iterator[list[Row]]:
    before = None
    while rows := state.newest("", _PAGE, before):
        yield rows
        before = rows[-1].created, rows[-1].key


def _copy(source: Place, target: Store, row: Row) -> Copied | None:
    """Return what became of a row, None if its picture has been deleted meanwhile."""
    if row.file is None:
        return Copied(row)
    try:
        row, data = _read(source.store, row)
    except (FileLost, Unavailable, OSError) as why:
        is_gone = source.state.files([row.key]).get(row.key) != row.file
        return None if is_gone else Copied(problem=f"{row.file}: {why}")
    with store_errors():
        target.write(str(row.file), data, row.created)
    return Copied(row)


def _read(store: Store, row: Row) -> tuple[Row, bytes]:
    known, file = open_verified(store, row)
    with file:
        data = file.readall()
    if hashlib.sha256(data).hexdigest() != known.digest:
        raise FileLost("is missing or damaged")
    return known, data
