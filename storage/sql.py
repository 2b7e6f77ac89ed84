"""Tables and statements, in the SQL that SQLite and PostgreSQL share.

That means: no rowid, `lower()` on both sides of LIKE, ON CONFLICT rather than OR REPLACE (which
fires no trigger in SQLite), no percent sign, and types of eight bytes. Parameters are named;
`:now` is the time on the state's own clock.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, get_type_hints

from images.formats import EXTENSIONS
from storage import Row

_KINDS = get_type_hints(Row)
COLUMNS = tuple(_KINDS)
# The year 9999 begins then: no HTTP date is later.
MAX_CREATED = 253_370_764_800.0


def from_columns(values: Iterable[Any]) -> Row | None:
    """Return the row whose fields are `values` in the order of COLUMNS, or None if damaged."""
    columns = dict(zip(COLUMNS, values, strict=True))
    if not all(map(isinstance, columns.values(), _KINDS.values())):
        return None
    row = Row(**columns)
    return row if _is_sound(row) else None


def to_columns(row: Row) -> dict[str, Any]:
    """Return the fields of a row by the names of COLUMNS."""
    return {name: getattr(row, name) for name in COLUMNS}


def _is_sound(row: Row) -> bool:
    """Whether a picture can be served from a row: never the picture of another key."""
    return (
        row.media_type in EXTENSIONS
        and row.bytes >= 0
        and 0 <= row.created < MAX_CREATED
        and (row.url is not None if row.file is None else row.file.startswith(row.key))
    )


SCHEMA_VERSION = 4
MAX_NOTES = 100_000
MAX_INTEGER = 2**63 - 1

TABLES = (
    """
    CREATE TABLE entries (
        key TEXT NOT NULL PRIMARY KEY,
        file TEXT,                          -- the picture's name in the store, or
        url TEXT,                           -- its address at an image host
        media_type TEXT NOT NULL,
        bytes BIGINT NOT NULL,
        digest TEXT,                        -- SHA-256 in hex; NULL until an adopted file is read
        created DOUBLE PRECISION NOT NULL,  -- seconds since the epoch, as is `used`
        used DOUBLE PRECISION NOT NULL,
        prompt TEXT, width BIGINT, height BIGINT, model TEXT, seed BIGINT,
        quality TEXT, style TEXT, background TEXT, negative_prompt TEXT,
        optimized TEXT, rewritten TEXT, revised TEXT, drawn_by TEXT,
        drawn_width BIGINT, drawn_height BIGINT
    )
    """,
    "CREATE INDEX entries_by_age ON entries (created, key)",
    "CREATE INDEX entries_by_size ON entries (bytes, key)",
    "CREATE INDEX entries_by_use ON entries (used) WHERE file IS NOT NULL",
    "CREATE INDEX entries_by_origin ON entries (drawn_by, created)",
    """
    CREATE TABLE notes (
        kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
        created DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (kind, key)
    )
    """,
    "CREATE INDEX notes_by_expiry ON notes (expires)",
    "CREATE INDEX notes_by_age ON notes (created)",
)

# What makes version 4 of version 3.
ADD_DRAWN_SIZE = tuple(
    f"ALTER TABLE entries ADD COLUMN {name} BIGINT" for name in ("drawn_width", "drawn_height")
)

_COLUMNS = ", ".join(COLUMNS)
_VALUES = ", ".join(f":{name}" for name in COLUMNS)
_UPDATES = ", ".join(f"{name} = excluded.{name}" for name in (*COLUMNS[1:], "used"))
_INSERT = f"INSERT INTO entries ({_COLUMNS}, used) VALUES ({_VALUES}, :used)"
# A file's name is unique. A host may give a picture the same URL again, but never as old.
_IS_UNCHANGED = "key = :key AND created = :created AND coalesce(file, '') = coalesce(:file, '')"

FIND = f"SELECT {_COLUMNS} FROM entries WHERE key = :key"
FIND_FILE = "SELECT file FROM entries WHERE key = :key"
STORE = (
    f"INSERT INTO entries ({_COLUMNS}, used) VALUES ({_VALUES}, :now)"
    f" ON CONFLICT (key) DO UPDATE SET {_UPDATES}"
)
ADD = f"{_INSERT} ON CONFLICT (key) DO NOTHING"
AMEND = (
    f"UPDATE entries SET {', '.join(f'{name} = :new_{name}' for name in COLUMNS[1:])}"
    f" WHERE {_IS_UNCHANGED}"
)
REMOVE = f"DELETE FROM entries WHERE {_IS_UNCHANGED}"
DELETE = "DELETE FROM entries WHERE key = :key"
FILES = "SELECT key, file FROM entries WHERE key IN ({keys})"
# One seek in the index: for several names, GROUP BY would read every row.
LAST_DRAWN = "SELECT max(created) AS created FROM entries WHERE drawn_by = :name"
_LISTED = (
    f"SELECT {_COLUMNS} FROM entries WHERE ({{0}}, key) < (:before, :key)"
    " AND (:search = '' OR lower(prompt) LIKE lower(:pattern) ESCAPE '!')"
    " AND (:model = '' OR model = :model) AND {1} >= :since AND {1} < :until"
    " ORDER BY {0} DESC, key DESC LIMIT :limit"
)
NEWEST = _LISTED.format("created", "created")
# With the plus, SQLite does not prefer the index of `created`, and sort what it finds.
LARGEST = _LISTED.format("bytes", "+created")
OLDEST = f"SELECT {_COLUMNS} FROM entries WHERE file IS NOT NULL ORDER BY used LIMIT :limit"
TOUCH = "UPDATE entries SET used = :now - :age WHERE key = :key"

REMEMBER = """
INSERT INTO notes (kind, key, value, created, expires)
VALUES (:kind, :key, :value, :now, :now + :ttl)
ON CONFLICT (kind, key) DO UPDATE SET
    value = excluded.value, created = excluded.created, expires = excluded.expires
"""
# A note that is further in the future was written while the clock was wrong.
_MAX_AHEAD = 43_200
_IS_OVER = f"(notes.expires <= :now OR notes.created > :now + {_MAX_AHEAD})"
REMEMBER_NEW = f"{REMEMBER} WHERE {_IS_OVER}"
EXCHANGE = f"""
UPDATE notes SET value = :value, created = :now, expires = :now + :ttl
WHERE kind = :kind AND key = :key AND value = :before AND NOT {_IS_OVER}
"""
# After the clock was set back, the time of notes from its future begins anew.
RESTART = f"""
UPDATE notes SET expires = expires - created + :now, created = :now
WHERE created > :now AND NOT {_IS_OVER}
"""
RECALL = (
    "SELECT key, value, :now - created AS age, expires - :now AS remaining FROM notes"
    f" WHERE NOT {_IS_OVER} AND kind = :kind AND key IN ({{keys}})"
)
NOW = "SELECT :now AS now"
FORGET = "DELETE FROM notes WHERE kind = :kind AND key = :key"
# A count is a note whose value is a number: it expires and is trimmed like one.
_COUNT = "CASE WHEN notes.expires > :now THEN CAST(notes.value AS BIGINT) ELSE 0 END"
COUNT = f"""
INSERT INTO notes (kind, key, value, created, expires)
SELECT 'count', :key, CAST(:amount AS TEXT), :now, :now + :ttl WHERE :amount <= :limit
ON CONFLICT (kind, key) DO UPDATE SET
    value = CAST({_COUNT} + :amount AS TEXT),
    created = excluded.created, expires = excluded.expires
WHERE {_COUNT} + :amount <= :limit
"""
TAKE_BACK = f"""
UPDATE notes SET value = CAST({_COUNT} - :amount AS TEXT)
WHERE kind = 'count' AND key = :key AND {_COUNT} >= :amount
"""
COUNTS = (
    "SELECT key, CAST(value AS BIGINT) AS count FROM notes"
    " WHERE kind = 'count' AND expires > :now AND key IN ({keys})"
)
EXPIRE = f"DELETE FROM notes WHERE {_IS_OVER}"
TRIM = f"""
DELETE FROM notes WHERE created <=
    (SELECT created FROM notes ORDER BY created DESC LIMIT 1 OFFSET {MAX_NOTES})
"""


@cache
def with_keys(statement: str, count: int) -> str:
    """Return a statement with the parameters `key0`, `key1` … in place of its `{keys}`."""
    return statement.format(keys=", ".join(f":key{number}" for number in range(count)))
