"""Copying a cache: from one to another, which may both be in use.

What the target has already is skipped, so that an interrupted copy can be continued.
"""

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

from cache import Cache
from storage import NoRoom, Row, Unavailable
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.state import State
from storage.store import FileLost, open_verified
from storage.upkeep import has_file, store_errors

_PAGE = 200
# An object store answers in tens of milliseconds; each copy holds one picture in memory.
_THREADS = 8


@contextmanager
def opened(directory: Path) -> Iterator[Cache]:
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
        yield stack.enter_context(closing(Cache(SqliteState(index), Folder(directory))))


def transfer(source: Cache, target: Cache) -> Iterator[Row | str | None]:
    """Copy every picture whose key `target` does not have.

    Yields for each row what became of it: the row as `target` has it now, the problem, or None if
    the key was there before. Files are compared with their digests and written before their rows.
    Raises Unavailable if a state or the target fails.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in pages(source.state):
            known = target.state.files([row.key for row in rows])
            fresh = [row for row in rows if row.key not in known]
            copied = [found for found in pool.map(partial(_copy, source, target), fresh) if found]
            target.state.add([row for row in copied if isinstance(row, Row)])
            yield from (None,) * (len(rows) - len(fresh))
            yield from copied


def prune(source: Cache, target: Cache) -> int:
    """Delete from `target` what `source` does not have any more; return how many pictures.

    What has changed or lost its file since is deleted, too, and copied by the next transfer.
    Raises Unavailable.
    """
    count = 0
    for rows in pages(target.state):
        for row in rows:
            with store_errors():
                if _is_current(source, target, row):
                    continue
                if row.file:
                    target.store.delete(row.file)
            count += target.state.remove([row])
    return count


def _is_current(source: Cache, target: Cache, row: Row) -> bool:
    """Return whether the row of a copy is that of its source, and has its file."""
    now = source.state.find(row.key)
    # The copy has a digest and a size, and the source may have neither until its next hit.
    found = {name: getattr(row, name) for name in ("digest", "drawn_width", "drawn_height")}
    is_same = now is not None and replace(now, **found) == row
    return is_same and (row.file is None or has_file(target.store, row))


def pages(state: State, match: str = "") -> Iterator[list[Row]]:
    """Yield all rows whose prompt contains `match`, the newest first, a page at a time."""
    before = None
    while rows := state.newest(match, _PAGE, before):
        yield rows
        before = rows[-1].created, rows[-1].key


def _copy(source: Cache, target: Cache, row: Row) -> Row | str | None:
    """Return the row of the copy, or the problem, or None if the picture was deleted meanwhile."""
    if row.file is None:
        return row
    try:
        row, file = open_verified(source.store, row)
        with file:
            data = file.readall()
        if hashlib.sha256(data).hexdigest() != row.digest:
            raise FileLost
    except (FileLost, Unavailable, OSError) as why:
        is_gone = source.state.files([row.key]).get(row.key) != row.file
        return None if is_gone else f"{row.file}: {why}"
    try:
        with store_errors():
            target.store.write(str(row.file), data, row.created)
    except NoRoom as why:  # the target takes no files at all
        return f"{row.file}: {why.reason}"
    return row
