"""What has to work when the service first starts: the index or database, and the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from app import make_cache
from config import Settings
from storage import IncompatibleSchema, Unavailable

# Each check ends by itself a little earlier, with a better reason.
_SECONDS = 9.0

# What the answers of an object store mean for the settings.
_STORE_FAULTS = (
    ("NoSuchBucket", "STORAGE_URL", "create the bucket, or write the URL of another one"),
    (
        "HTTP 40[13]",
        "S3_ACCESS_KEY_ID",
        "write it and S3_SECRET_ACCESS_KEY so that they may read, write, list and delete objects",
    ),
    ("HTTP 30|HTTP 400", "S3_REGION", "write the region in which the bucket is"),
    ("certificate", "CA_BUNDLE", "write the path of a file with the authority's certificate"),
    ("", "S3_ENDPOINT_URL", "write the URL of an S3 server that answers"),
)


class Problem(NamedTuple):
    """Why the cache cannot be used; `is_final` if waiting will not help."""

    sentence: str
    is_final: bool = False


def check_cache(settings: Settings) -> Problem | None:
    """Use the cache and leave nothing open; return what is wrong with it, if anything."""
    cache = make_cache(settings)
    pool = ThreadPoolExecutor(2)
    state, store = pool.submit(cache.state.check), pool.submit(cache.store.check)
    wait((state, store), _SECONDS)
    pool.shutdown(wait=False)
    cache.state.close()
    problems = [*_of_state(state, settings), *_of_store(store, settings)]
    if not problems:
        return None
    sentences = "".join(f"\n  {problem.sentence}" for problem in problems)
    is_final = any(problem.is_final for problem in problems)
    return Problem(f"The cache cannot be used:{sentences}", is_final)


def _of_state(check: Future[None], settings: Settings) -> Iterator[Problem]:
    setting = "DATABASE_URL" if settings.database_url else "CACHE_DIR"
    try:
        check.result(0)
    except TimeoutError:
        yield Problem(f"{setting}: no answer within {_SECONDS:g} s")
    except Unavailable as error:
        yield Problem(f"{setting}: {error}", isinstance(error, IncompatibleSchema))


def _of_store(check: Future[None], settings: Settings) -> Iterator[Problem]:
    setting = "STORAGE_URL" if settings.storage else "CACHE_DIR"
    try:
        check.result(0)
    except TimeoutError:
        yield Problem(f"{setting}: no answer within {_SECONDS:g} s")
    except OSError as error:
        advice = "write another one"
        if settings.storage and settings.storage.url.startswith("s3://"):
            setting, advice = _blamed(str(error.strerror))
        yield Problem(f"{setting}: {error.strerror}; {advice}")


def _blamed(reason: str) -> tuple[str, str]:
    """Return the setting that is wrong, and what to write."""
    found = ((setting, do) for pattern, setting, do in _STORE_FAULTS if re.search(pattern, reason))
    return next(found)
