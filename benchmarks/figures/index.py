"""How long a look-up takes when a million pictures are cached."""

import contextlib
import hashlib
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures.plan import Figure, Plan, median
from cache import Cache
from demo.canvas import pad_png
from demo.painting import draw
from picture import ImageRequest
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState

MEASURED = 500  # entries with files, the only ones that are looked up

# Written past the cache: a million rows through it would take longer than everything else here.
_FILLER = """
INSERT INTO entries (key, file, media_type, bytes, digest, created, used,
                     prompt, width, height, seed, drawn_by)
VALUES (:key, :file, 'image/png', 100000, :digest, :number, :number,
        'a picture of the number ' || :number, 1024, 1024, :number, 'https://backend.example/v1')
"""


def filler_rows(count: int) -> Iterator[dict[str, str | int]]:
    for number in range(count):
        key = hashlib.sha256(f"filler {number}".encode()).hexdigest()
        file = f"{key}-{key[:16]}.png"
        yield {"key": key, "file": file, "digest": key[::-1], "number": number}


def filled_cache(folder: Path, entries: int) -> tuple[Cache, list[str]]:
    """Return a cache with `entries` rows, and the keys of the measured ones."""
    cache = Cache(SqliteState(folder), Folder(folder))
    png = pad_png(draw("a red apple", 16, 16, 42), 2000)
    requests = [ImageRequest(f"measured {number}") for number in range(MEASURED)]
    for request in requests:
        cache.put(request.key, png, "image/png", request=request)
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
        with connection:
            connection.executemany(_FILLER, filler_rows(entries - MEASURED))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return cache, [request.key for request in requests]


def microseconds_per_look_up(cache: Cache, keys: list[str]) -> float:
    random.shuffle(keys)
    began = time.perf_counter()
    for key in keys:
        entry = cache.get(key)
        assert entry
        entry.close()
    return (time.perf_counter() - began) / len(keys) * 1e6


def look_up(plan: Plan) -> Iterator[Figure]:
    few, some_keys = filled_cache(plan.folder / "few", 1000)
    many, keys = filled_cache(plan.folder / "many", plan.entries)
    small, large = [], []
    for _ in range(20 * plan.rounds):
        small.append(microseconds_per_look_up(few, some_keys))
        large.append(microseconds_per_look_up(many, keys))
    details = {
        "µs among many": median(large),
        "µs among 1,000": median(small),
        "index of many, bytes": (plan.folder / "many" / "index.sqlite3").stat().st_size,
    }
    few.close()
    many.close()
    ratio = median([one / other for one, other in zip(large, small, strict=True)])
    yield Figure("index", f"look-up among {plan.entries:,} ÷ 1,000", ratio, 1.3, details=details)
