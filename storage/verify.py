"""Opening a picture's file and making sure that it is the one that was stored."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from typing import Any

from images.formats import media_type_of, pixels_of
from storage import Row, Unavailable
from storage.store import Store


class FileLost(Exception):
    """The file is missing or damaged."""


def open_verified(store: Store, row: Row) -> tuple[Row, FileIO]:
    """Open a row's file, which has the size that the row says; return the row and the file.

    A file that was adopted, or stored before sizes were, is read once, and its row returned with
    digest and size. Raises FileLost, and Unavailable for a file that may well exist: a new drawing
    would cost money.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(store.open(str(row.file), row.bytes))
            row = row if row.digest and row.pixels else _examined(row, file)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise FileLost("is missing or damaged") from error
        except OSError as error:
            raise Unavailable(f"a picture cannot be read: {error.strerror}") from error
        stack.pop_all()
    return row, file


def _examined(row: Row, file: FileIO) -> Row:
    data = file.readall()
    file.seek(0)
    media_type = media_type_of(data)
    if media_type is None:
        raise FileLost("is missing or damaged")
    digest = row.digest or hashlib.sha256(data).hexdigest()
    return replace(row, media_type=media_type, digest=digest, **drawn_size(data))


def drawn_size(data: bytes) -> dict[str, Any]:
    """Return the fields of a row that say how large its picture is."""
    width, height = pixels_of(data) or (None, None)
    return {"drawn_width": width, "drawn_height": height}
