"""States for tests: places where one lives, rows, and a clock that a test sets."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from cache import Cache
from picture import ImageRequest
from storage import Note, Row

ROOT = Path(__file__).resolve().parent.parent
REQUEST = ImageRequest("a red apple")


class Clock:
    """A clock that a test sets. Each of `followers` is told the time when it changes."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.followers: list[Callable[[float], object]] = []
        self._now = now

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        for tell in self.followers:
            tell(now)

    def __call__(self) -> float:
        return self.now


def orders(folder: Path) -> list[dict[str, Any]]:
    """Return the notes of orders in the index of a service whose CACHE_DIR is `folder`/cache."""
    with closing(sqlite3.connect(folder / "cache" / "index.sqlite3")) as index:
        sql = "SELECT value FROM notes WHERE kind = 'order' AND expires > ?"
        return [json.loads(value) for (value,) in index.execute(sql, (time.time(),))]


@dataclass(frozen=True, slots=True)
class Word(Note):
    """The least that a note can be."""

    kind: ClassVar[str] = "word"
    text: str


def key_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def name_of(text: str, number: int = 0) -> str:
    return f"{key_of(text)}-{number:016x}.png"


def row_of(text: str, **values: Any) -> Row:
    """Return a row of 100 bytes in a file, with `text` as its prompt."""
    file = {"file": name_of(text), "media_type": "image/png", "bytes": 100, "digest": "0" * 64}
    drawn = {"created": 1_700_000_000.25, "prompt": text, "seed": 42}
    return Row(**{"key": key_of(text), **file, **drawn, **values})


def got(cache: Cache, request: ImageRequest = REQUEST) -> tuple[Row, bytes] | None:
    """Return a cached picture's row and its bytes."""
    picture = cache.get(request.key)
    if picture is None:
        return None
    assert picture.file
    with picture.file as file:
        return picture.row, file.read()


def read(cache: Cache, request: ImageRequest = REQUEST) -> bytes | None:
    found = got(cache, request)
    return found and found[1]


@contextmanager
def refusing(folder: Path, statement: str) -> Iterator[None]:
    """Let the index in a folder refuse a kind of statement, such as `INSERT ON entries`."""
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
        refusal = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        connection.execute(f"CREATE TRIGGER refused BEFORE {statement} {refusal}")
        yield
        connection.execute("DROP TRIGGER refused")


_HOLD = """
import sys
from pathlib import Path
from storage.cluster.postgres import PostgresState
from storage.local.sqlite import SqliteState
address, key = sys.argv[1:]
state = PostgresState(address) if "://" in address else SqliteState(Path(address))
with state.hold(key, 5):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(address: Path | str, key: str) -> Iterator[subprocess.Popen[bytes]]:
    """Hold a lock in another process, which is killed at the end if not before.

    `address` is the folder of a SqliteState or the URL of a PostgresState.
    """
    command, pipe = [sys.executable, "-c", _HOLD, str(address), key], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == b"held\n"
            yield child
        finally:
            child.kill()
