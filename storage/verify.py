"""Opening a picture's file and making sure that it is the one that was stored."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO

from images.formats import media_type_of
from storage import Row, Unavailable
from storage.store import Store


class FileLost(Exception):
    """The file is missing or damaged."""


def open_verified(store: Store, row: Row) -> tuple[Row, FileIO]:
    """Open a row's file, which has the size that the row says; return the row and the file.

    An adopted file is read once, and its row returned with the digest. Raises FileLost, and
    Unavailable for a file that may well exist: a new drawing would cost money.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(store.open(str(row.file), row.bytes))
            row = row if row.digest else _with_digest(row, file)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise FileLost("is missing or damaged") from error
        except OSError as error:
            raise Unavailable(f"a picture cannot be read: {error.strerror}") from error
        stack.pop_all()
    return row, file


def _with_digest(row: Row, file: FileIO) -> Row:
    data = file.readall()
    file.seek(0)
    media_type = media_type_of(data)
    if media_type is None:
        raise FileLost("is missing or damaged")
    return replace(row, media_type=media_type, digest=hashlib.sha256(data).hexdigest())
