"""Copying a cache: from one State and Store to another.

What the target has already is skipped, so that an interrupted copy can be continued.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from storage import Row, State, Unavailable
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.store import Store
from storage.upkeep import store_errors
from storage.verify import FileLost, open_verified

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
            copied = list(pool.map(partial(_copy, source.store, target.store), fresh))
            target.state.add([done.row for done in copied if done.row])
            yield from (Copied(),) * (len(rows) - len(fresh))
            yield from copied


def _pages(state: State) -> Iterator[list[Row]]:
    before = None
    while rows := state.newest("", _PAGE, before):
        yield rows
        before = rows[-1].created, rows[-1].key


def _copy(source: Store, target: Store, row: Row) -> Copied:
    if row.file is None:
        return Copied(row)
    try:
        row, data = _read(source, row)
    except (FileLost, Unavailable, OSError) as why:
        return Copied(problem=f"{row.file}: {why}")
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
