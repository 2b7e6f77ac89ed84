"""The contract of a store, which holds the bytes of pictures, and of its upkeep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import FileIO
from typing import NamedTuple, Protocol

HOUR = 3600.0
DAY = 24 * HOUR
# Files of work that may still be under way are younger.
STALE_SECONDS = 600.0


class Task(NamedTuple):
    """Work to be done first after `first` seconds, then every `period` seconds."""

    work: Callable[[], object]
    first: float
    period: float


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

    A name never stands for half of its bytes. All methods raise OSError.
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
        """Raise OSError unless one more picture could be written, while in the block."""

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
