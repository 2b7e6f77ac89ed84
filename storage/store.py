"""The contract of a store, which holds the bytes of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from typing import NamedTuple, Protocol

from storage import State

DAY = 86400.0
# Files of work that may still be under way are younger.
STALE_SECONDS = 600.0


class Task(NamedTuple):
    """Work to be done first after `first` seconds, then every `period` seconds."""

    work: Callable[[], object]
    first: float
    period: float


class Stored(NamedTuple):
    """One object of a store: its name, its bytes, and Unix times of creation and last change.

    `machine` is as in its row.
    """

    name: str
    bytes: int
    created: float
    changed: float
    machine: str | None = None

    @property
    def key(self) -> str:
        return self.name.partition("-")[0]


class Store(Protocol):
    """Bytes under immutable names, `{key}-{16 hex digits}.{extension}`. Thread-safe.

    A name never stands for half of its bytes. All methods raise OSError.
    """

    @property
    def machine(self) -> str | None:
        """The name of this machine where others share the state, else None.

        Where they do, a file without a row is not adopted: its picture may have been deleted.
        """
        ...

    @property
    def has_pending(self) -> bool:
        """Whether pictures wait until other machines can read them."""
        ...

    def check(self) -> None:
        """Raise OSError unless pictures can be stored."""
        ...

    def write(self, name: str, data: bytes, created: float) -> str | None:
        """Store new bytes durably, as created at the Unix time `created` (whole seconds).

        Return the name of this machine if for now only it can read them.
        """
        ...

    def open(self, name: str) -> FileIO:
        """Open for reading: a regular local file, so that the kernel can send it.

        Its modification time is `created` in whole seconds if it is unchanged and has been
        verified. Raises FileNotFoundError if it does not exist.
        """
        ...

    def drop_copy(self, name: str) -> bool:
        """Drop a damaged copy of bytes that are kept elsewhere; return whether there was one."""
        ...

    def delete(self, name: str) -> None:
        """Delete; a name that does not exist is deleted already."""
        ...

    def names(self) -> Iterator[Stored]:
        """Yield every picture in the store, in any order."""
        ...

    def sweep(self) -> None:
        """Delete what interrupted writes left behind more than ten minutes ago."""
        ...

    def tasks(self, state: State) -> Sequence[Task]:
        """Return what this store needs done from time to time. They raise Unavailable."""
        ...
