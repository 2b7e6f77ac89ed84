"""The contract of a store, which holds the bytes of pictures, and of its upkeep."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from io import FileIO
from typing import Any, NamedTuple, Protocol

from images.formats import media_type_of, pixels_of
from storage import Row, Unavailable

HOUR = 3600.0
# Files of work that may still be under way are younger.
STALE_SECONDS = 600.0


class Task(NamedTuple):
    """Work to be done every `period` seconds, first after `first` seconds."""

    work: Callable[[], object]
    period: float
    first: float = 0.0


class Stored(NamedTuple):
    """One object of a store: its name, its bytes, and the Unix time of its creation."""

    name: str
    bytes: int
    created: float

    @property
    def key(self) -> str:
        return self.name.partition("-")[0]


class Store(Protocol):
    """Bytes under immutable names, `{key}-{16 hex digits}.{extension}`. Thread-safe.

    A name never stands for half of its bytes. All methods but `reserve` raise OSError; `write` also
    raises NoRoom, where no file is ever kept.
    """

    @property
    def is_shared(self) -> bool:
        """Whether other machines use it, too.

        A file without a row is then not adopted: its picture may just have been deleted.
        """

    @property
    def fault(self) -> str | None:
        """Why new pictures cannot be stored at the moment, None where they can."""

    def check(self) -> None:
        """Raise OSError unless pictures can be stored."""

    def reserve(self) -> AbstractContextManager[None]:
        """Raise NoRoom unless one more picture could be written, while in the block."""

    def write(self, name: str, data: bytes, created: float) -> None:
        """Store new bytes durably, as created at the Unix time `created` (whole seconds)."""

    def open(self, name: str, size: int | None = None) -> FileIO:
        """Open for reading: a regular local file, so that the kernel can send it.

        Raises FileNotFoundError unless a file of this name exists and has `size` bytes, if given.
        """

    def delete(self, name: str) -> None:
        """Delete; a name that does not exist is deleted already."""

    def names(self) -> Iterator[Stored]:
        """Yield every picture in the store, in any order."""

    def sweep(self) -> None:
        """Delete what interrupted writes left behind more than ten minutes ago."""

    def tasks(self) -> tuple[Task, ...]:
        """Return what this store needs done from time to time. They raise OSError."""


class FileLost(Exception):
    """The file is missing or damaged."""

    def __str__(self) -> str:
        return "is missing or damaged"


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
            raise FileLost from error
        except OSError as error:
            raise Unavailable(f"a picture cannot be read: {error.strerror}") from error
        stack.pop_all()
    return row, file


def _examined(row: Row, file: FileIO) -> Row:
    data = file.readall()
    file.seek(0)
    media_type = media_type_of(data)
    if media_type is None:
        raise FileLost
    digest = row.digest or hashlib.sha256(data).hexdigest()
    return replace(row, media_type=media_type, digest=digest, **drawn_size(data))


def drawn_size(data: bytes) -> dict[str, Any]:
    """Return the fields of a row that say how large its picture is."""
    width, height = pixels_of(data) or (None, None)
    return {"drawn_width": width, "drawn_height": height}
