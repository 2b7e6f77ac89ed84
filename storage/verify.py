"""Opening a picture's file and making sure that it is the one that was stored."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import FileIO

from images.formats import media_type_of
from storage import Row, Unavailable
from storage.store import Store

# How long to wait for a picture that another machine has yet to upload before it is drawn again.
PATIENCE_SECONDS = 86400.0


class Lost(Exception):
    """The file is missing or damaged; the text says which."""


def open_verified(
    store: Store, row: Row, clock: Callable[[], float] = time.time
) -> tuple[Row, FileIO]:
    """Return the open file of a row, and the row with what the file says of itself.

    A file that is as it was written is not read. Raises Lost, and Unavailable for a file that
    may well be there: a new drawing would cost money.
    """
    file = _open(store, row, clock)
    try:
        return _verified(row, file), file
    except Lost:
        if not store.drop_copy(str(row.file)):
            raise
    file = _open(store, row, clock)
    return _verified(row, file), file


def _open(store: Store, row: Row, clock: Callable[[], float]) -> FileIO:
    try:
        return store.open(str(row.file))
    except (FileNotFoundError, IsADirectoryError) as error:
        is_elsewhere = row.machine not in (None, store.machine)
        if is_elsewhere and clock() < row.created + PATIENCE_SECONDS:
            raise Unavailable("the machine that has the picture has yet to upload it") from error
        raise Lost("is missing") from error
    except OSError as error:
        raise Unavailable(f"a picture cannot be opened: {error.strerror}") from error


def _verified(row: Row, file: FileIO) -> Row:
    """Return the row of an open file, which is closed if this raises."""
    try:
        found = os.fstat(file.fileno())
        is_untouched = found.st_mtime_ns == int(row.created) * 10**9
        if is_untouched and found.st_size == row.bytes and row.digest:
            return row
        return _read(row, file)
    except OSError as error:
        file.close()
        raise Unavailable(f"a picture cannot be read: {error.strerror}") from error
    except BaseException:
        file.close()
        raise


def _read(row: Row, file: FileIO) -> Row:
    """Read a file that was fetched, adopted, restored from a backup, or damaged."""
    data = file.readall()
    file.seek(0)
    digest, media_type = hashlib.sha256(data).hexdigest(), media_type_of(data)
    if media_type is None or row.digest not in (None, digest):
        raise Lost("is damaged")
    with suppress(OSError):  # Spares the next hit the reading.
        os.utime(file.fileno(), (int(row.created), int(row.created)))
    known = replace(row, media_type=media_type, bytes=len(data), digest=digest)
    return row if known == row else known
