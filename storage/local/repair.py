"""A new SQLite database in place of a lost one, with everything that can still be read from it.

Hosted URLs exist nowhere else, and language models were paid for their answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from storage import sql
from storage.local.schema import create
from storage.rows import COLUMNS, decode_text, from_columns, to_columns

log = logging.getLogger("prompt_image_proxy.index")

# Nobody uses the new file before it is complete, and a crash throws it away. The cache holds the
# index over the keys of half a million rows: they come in no order.
_FOR_BUILDING = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;
"""
# So many rows in a row can be unreadable before the search goes on in growing steps.
_PATIENCE = 1000
_NOTE_KINDS = {"kind": str, "key": str, "value": str, "created": float, "expires": float}


def replace(path: Path) -> None:
    """Put a new database at `path`. The caller holds the lock that keeps others from it.

    Whatever is there is moved aside, under a name of its own and with its WAL.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            # Open until the end: closed in its place, it would be checkpointed, damage and all.
            damaged = stack.enter_context(_open_damaged(path)) if _has_content(path) else None
            saved = _build(fresh, damaged)
            aside = _put_aside(path)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    if aside:
        log.warning("The index was damaged: %d of its rows saved, the rest in %s", saved, aside)


def _build(fresh: Path, damaged: sqlite3.Connection | None) -> int:
    """Create a database; return how many rows could be copied into it."""
    with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
        connection.executescript(_FOR_BUILDING)
        connection.execute("BEGIN")
        create(connection)
        saved = _salvage(damaged, connection) if damaged else 0
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    return saved


def _put_aside(path: Path) -> str | None:
    """Move a database and its WAL aside; return its new name, or None if there is nothing."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}-{secrets.token_hex(2)}")
    is_kept = False
    # The database first: once it is moved, no process can pair its WAL with the new one.
    for suffix in ("", "-wal"):
        old = path.with_name(path.name + suffix)
        if _has_content(old):
            old.rename(f"{aside}{suffix}")
            is_kept = True
        elif suffix:
            old.unlink(missing_ok=True)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    return aside.name if is_kept else None


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


@contextlib.contextmanager
def _open_damaged(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(path))}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.text_factory = decode_text
        # No process may write rows that would no longer be copied.
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            connection.execute("BEGIN IMMEDIATE")
        yield connection


def _salvage(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> int:
    saved = 0
    for found in _readable(damaged, "entries"):
        row, used = from_columns(map(found.get, COLUMNS)), found.get("used")
        if row and isinstance(used, float):
            fresh.execute(sql.ADD, to_columns(row) | {"used": used})
            saved += 1
    for found in _readable(damaged, "notes"):
        if all(type(found.get(name)) is kind for name, kind in _NOTE_KINDS.items()):
            fresh.execute(sql.KEEP_NOTE, found)
            saved += 1
    return saved


def _readable(damaged: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in the order of its pages, stepping over those of damaged ones."""
    last, end, failures = 0, _last_row_of(damaged, table), 0
    statement = f"SELECT rowid AS place, * FROM {table} WHERE rowid > :last ORDER BY rowid"
    while last < end:
        try:
            for row in damaged.execute(statement, {"last": last}):
                last, failures = row["place"], 0
                yield dict(row)
            return
        except (sqlite3.Error, UnicodeDecodeError):
            failures += 1
            last += 2 ** max(0, failures - _PATIENCE)


def _last_row_of(damaged: sqlite3.Connection, table: str) -> int:
    try:
        return int(damaged.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0)
    except (sqlite3.Error, UnicodeDecodeError, TypeError, ValueError):
        return 2**40
