"""The SQLite database: opening it, its tables, how older versions become the present one."""

import sqlite3
from functools import partial
from pathlib import Path
from urllib.parse import quote

from storage import IncompatibleSchema
from storage.sql import ADD_DRAWN_SIZE, SCHEMA_VERSION, TABLES

# Counting a million rows for /status would take a second.
_TOTALS = (
    "CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    """
    CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
        UPDATE totals
        SET entries = entries + 1, bytes = bytes + iif(new.file IS NULL, 0, new.bytes);
    END
    """,
    """
    CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
        UPDATE totals
        SET entries = entries - 1, bytes = bytes - iif(old.file IS NULL, 0, old.bytes);
    END
    """,
    """
    CREATE TRIGGER entry_changed AFTER UPDATE OF file, bytes ON entries BEGIN
        UPDATE totals SET bytes = bytes + iif(new.file IS NULL, 0, new.bytes)
                                        - iif(old.file IS NULL, 0, old.bytes);
    END
    """,
)

# What makes each version of the one before. Version 1 is that of release 1.
_MIGRATIONS: dict[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE entries DROP COLUMN mtime_ns",
        "DROP INDEX entries_by_age",
        "CREATE INDEX entries_by_age ON entries (created, key)",
        "DROP INDEX entries_by_use",
        "CREATE INDEX entries_by_use ON entries (used) WHERE file IS NOT NULL",
        "CREATE INDEX entries_by_origin ON entries (drawn_by, created)",
        *(
            f"ALTER TABLE entries ADD COLUMN {name} TEXT"
            for name in ("quality", "style", "background", "negative_prompt", "machine")
        ),
        "CREATE INDEX entries_by_size ON entries (bytes, key)",
    ),
    3: ("ALTER TABLE entries DROP COLUMN machine",),
    4: ADD_DRAWN_SIZE,
}


# A text that is not UTF-8 must not hide the rows beside its own.
_decode = partial(str, encoding="utf-8", errors="replace")

# Which file a database is in: its device and inode.
Identity = tuple[int, int]


class Connection(sqlite3.Connection):
    """A connection to the database in a file of this identity, if that is known."""

    identity: Identity = (0, 0)
    is_prepared = False


def connect(path: Path, timeout: float = 5.0) -> Connection:
    """Open an existing database, in autocommit mode, for any thread."""
    connection = sqlite3.connect(
        # mode=rw: the default would quietly make an empty database without tables.
        f"file:{quote(bytes(path))}?mode=rw",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    connection.text_factory = _decode
    return connection


def create(connection: sqlite3.Connection) -> None:
    """Create all tables in an empty database."""
    version = f"PRAGMA user_version = {SCHEMA_VERSION}"
    for statement in ("BEGIN", *TABLES, *_TOTALS, version, "COMMIT"):
        connection.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to the present version: all the way, or not at all.

    Raises IncompatibleSchema for a newer version, sqlite3.DatabaseError for none.
    """
    if _version_of(connection) == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have been first.
    for version in range(_version_of(connection) + 1, SCHEMA_VERSION + 1):
        for statement in (*_MIGRATIONS[version], f"PRAGMA user_version = {version}"):
            connection.execute(statement)
    connection.execute("COMMIT")


def _version_of(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise IncompatibleSchema(
            "the index in CACHE_DIR was written by a newer version of Prompt Image Proxy:"
            " install that version, or move index.sqlite3 and the folder backup away"
        )
    if version < 1:
        raise sqlite3.DatabaseError("no such schema")
    return version
