"""Another SQLite database in place of one that is damaged or missing: the last backup, or none."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from storage import Note, sql
from storage.local.schema import create, is_current, migrate
from storage.rows import decode_text

log = logging.getLogger("prompt_image_proxy.index")

_FOR_YEARS = 1e9
_MOMENT = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True, slots=True)
class Damage(Note):
    """The index was damaged at the Unix time `moment`, and lies in the folder as `aside`."""

    kind: ClassVar[str] = "damage"
    key: ClassVar[str] = "index"
    aside: str
    moment: float

    def __str__(self) -> str:
        when = time.strftime(_MOMENT, time.gmtime(self.moment))
        return f"the index was damaged on {when}; delete {self.aside} when nothing is missing"


def replace(path: Path, backup: Path) -> None:
    """Put the backup at `path`, or an empty database. The caller holds the lock that it takes.

    Whatever is there is moved aside, under a name of its own and with its WAL. Raises
    IncompatibleSchema if a newer version wrote the backup, and sqlite3.Error and OSError.
    """
    was_damaged = path.exists()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    damage = Damage(f"{path.name}.damaged-{stamp}-{secrets.token_hex(2)}", time.time())
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        made = _restore(backup, fresh)
        if made is None:
            _make_empty(fresh)
        with _opened(fresh) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            if was_damaged:
                _remember(connection, damage)
        _put_aside(path, damage.aside)
        put_in_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    source = f"the backup of {made}" if made else "an empty one: prompts are lost"
    if was_damaged:
        log.error("The index was damaged, and is now %s; in its place is %s", damage.aside, source)
    elif made:
        log.error("The index was missing; in its place is %s", source)


def put_in_place(fresh: Path, path: Path) -> None:
    """Put a whole database in the place of another one, whose WAL would spoil it."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    fresh.replace(path)


def remove_rows_without_files(connection: sqlite3.Connection, folder: Path) -> None:
    """Remove the rows whose file is not in the folder."""
    there = set(os.listdir(folder))
    files = connection.execute("SELECT key, file FROM entries WHERE file IS NOT NULL").fetchall()
    connection.execute("BEGIN")
    connection.executemany(sql.DELETE, [{"key": key} for key, file in files if file not in there])
    connection.execute("COMMIT")


def _put_aside(path: Path, name: str) -> None:
    # The database first: once it is moved, no process can pair its WAL with the new one.
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(path.with_name(name + suffix))


def _restore(backup: Path, fresh: Path) -> str | None:
    """Copy the backup, migrate it and remove rows without files; return when it was made."""
    try:
        made = backup.stat().st_mtime
        shutil.copyfile(backup, fresh)
        with _opened(fresh) as connection:
            [(verdict,)] = connection.execute("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            if not is_current(connection):
                migrate(connection)
            remove_rows_without_files(connection, fresh.parent)
    except FileNotFoundError:
        return None
    except sqlite3.DatabaseError as error:
        log.error("The backup of the index is damaged, too: %s", error)
        fresh.unlink(missing_ok=True)
        return None
    return time.strftime(_MOMENT, time.gmtime(made))


def _make_empty(fresh: Path) -> None:
    with _opened(fresh) as connection:
        connection.execute("BEGIN")
        create(connection)
        connection.execute("COMMIT")


def _remember(connection: sqlite3.Connection, damage: Damage) -> None:
    values = {"kind": damage.kind, "key": damage.key, "value": json.dumps(damage.to_json())}
    connection.execute(sql.REMEMBER, values | {"now": damage.moment, "ttl": _FOR_YEARS})


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.text_factory = decode_text
        yield connection
