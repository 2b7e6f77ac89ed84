"""Rows as a database returns them, checked before they are used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import cache, partial
from typing import Any

from images.formats import EXTENSIONS
from storage import Row

# A text that is not UTF-8 must not hide the rows beside its own.
decode_text = partial(str, encoding="utf-8", errors="replace")

COLUMNS = tuple(field.name for field in fields(Row))
# The year 9999 begins then: no HTTP date is later.
MAX_CREATED = 253_370_764_800.0

_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(COLUMNS, (str, type(None))),
    **dict.fromkeys(("width", "height", "seed", "drawn_width", "drawn_height"), (int, type(None))),
    **dict.fromkeys(("key", "media_type"), (str,)),
    "bytes": (int,),
    "created": (float,),
}


def to_columns(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in COLUMNS}


def from_columns(values: Iterable[Any]) -> Row | None:
    """Return the row whose fields are `values` in the order of COLUMNS, or None if damaged."""
    columns = dict(zip(COLUMNS, values, strict=True))
    if not _are_kinds(tuple(map(type, columns.values()))):
        return None
    row = Row(**columns)
    return row if _is_sound(row) else None


@cache
def _are_kinds(kinds: tuple[type, ...]) -> bool:
    return all(kind in _KINDS[name] for name, kind in zip(COLUMNS, kinds, strict=True))


def _is_sound(row: Row) -> bool:
    """Whether a picture can be served from a row: never the picture of another key."""
    return (
        row.media_type in EXTENSIONS
        and row.bytes >= 0
        and 0 <= row.created < MAX_CREATED
        and (row.url is not None if row.file is None else row.file.startswith(row.key))
    )
