"""PostgreSQL's own side of storage/sql.py: the clock, the totals, and creating the tables."""

import re
from contextlib import suppress
from functools import cache
from typing import Any

import psycopg

from storage import IncompatibleSchema, Unavailable
from storage.sql import ADD_DRAWN_SIZE, SCHEMA_VERSION, TABLES

# The time at which the server received the statement. Unlike clock_timestamp(), which changes
# within one, it can be compared to an index.
_NOW = "(extract(epoch FROM statement_timestamp())::float8)"

# Others may have tables in the same schema, so our names get a prefix there.
_PREFIX = "prompt_image_"
_NAMES = re.compile(
    r"\b(?P<own>entries|notes|totals|schema_version|add_up)(?=\b|_by_)|:(?P<parameter>\w+)"
)
# The locks of pictures are not negative.
_MIGRATION_LOCK = -1

# The sums over all rows are the totals. One row that everybody updates would have all writers
# wait for each other, and those of several pictures deadlock. FOLD_TOTALS keeps the table short.
_TOTALS = (
    "CREATE TABLE totals (pictures BIGINT NOT NULL, bytes BIGINT NOT NULL)",
    """
    CREATE OR REPLACE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        pictures BIGINT := 0;
        bytes BIGINT := 0;
    BEGIN
        IF TG_OP <> 'DELETE' THEN
            pictures := 1;
            bytes := CASE WHEN new.file IS NULL THEN 0 ELSE new.bytes END;
        END IF;
        IF TG_OP <> 'INSERT' THEN
            pictures := pictures - 1;
            bytes := bytes - CASE WHEN old.file IS NULL THEN 0 ELSE old.bytes END;
        END IF;
        INSERT INTO totals VALUES (pictures, bytes);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER add_up AFTER INSERT OR DELETE OR UPDATE OF file, bytes ON entries
    FOR EACH ROW EXECUTE FUNCTION add_up()
    """,
)
_SUMS = "CAST(coalesce(sum(pictures), 0) AS BIGINT), CAST(coalesce(sum(bytes), 0) AS BIGINT)"
TOTALS = f"SELECT {_SUMS} FROM totals"
FOLD_TOTALS = f"""
WITH folded AS (DELETE FROM totals RETURNING pictures, bytes)
INSERT INTO totals SELECT {_SUMS} FROM folded
"""

# What makes each version of the one before. The first in PostgreSQL was 2.
_MIGRATIONS: dict[int, tuple[str, ...]] = {
    3: ("ALTER TABLE entries DROP COLUMN machine",),
    4: ADD_DRAWN_SIZE,
}


@cache
def translate(statement: str) -> str:
    """Return a statement with `:name` as psycopg takes it, and with our names in PostgreSQL."""

    def replace(found: re.Match[str]) -> str:
        if found["own"]:
            return _PREFIX + found["own"]
        return _NOW if found["parameter"] == "now" else f"%({found['parameter']})s"

    return _NAMES.sub(replace, statement)


def ensure_tables(connection: psycopg.Connection[Any]) -> None:
    """Create or migrate the tables, all the way or not at all, unless they are up to date.

    `connection` is in autocommit mode. Raises Unavailable, IncompatibleSchema, psycopg.Error.
    """
    with suppress(psycopg.errors.UndefinedTable):
        if _version_of(connection) == SCHEMA_VERSION:
            return
    with connection.transaction():
        _run(connection, f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        _run(connection, "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        # Another process may have been first.
        version = _version_of(connection)
        if version is None:
            _ensure_unicode(connection)
            _run(connection, *TABLES, *_TOTALS, "INSERT INTO schema_version VALUES (0)")
        else:
            for number in range(version + 1, SCHEMA_VERSION + 1):
                _run(connection, *_MIGRATIONS[number])
        _run(connection, f"UPDATE schema_version SET version = {SCHEMA_VERSION}")


def ensure_writable(connection: psycopg.Connection[Any]) -> None:
    """Raise psycopg.Error unless rows and notes may be written."""
    for table in ("entries", "notes", "totals"):
        _run(connection, f"INSERT INTO {table} SELECT * FROM {table} WHERE false")
        _run(connection, f"DELETE FROM {table} WHERE false")
    _run(connection, "UPDATE entries SET used = used WHERE false")


def _version_of(connection: psycopg.Connection[Any]) -> int | None:
    row = _run(connection, "SELECT version FROM schema_version").fetchone()
    version: int | None = row[0] if row else None
    if version and version > SCHEMA_VERSION:
        raise IncompatibleSchema(
            "the tables in DATABASE_URL were written by a newer version of Prompt Image Proxy:"
            " install that version, or use another database"
        )
    return version


def _ensure_unicode(connection: psycopg.Connection[Any]) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise Unavailable(
            f"the database in DATABASE_URL has the encoding {encoding}, which cannot store every"
            " prompt: create one with ENCODING 'UTF8' TEMPLATE template0"
        )


def _run(connection: psycopg.Connection[Any], *statements: str) -> psycopg.Cursor[Any]:
    """Run statements without parameters; return the cursor of the last."""
    return connection.execute(";".join(map(translate, statements)), prepare=False)
