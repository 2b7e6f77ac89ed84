"""What has to work when the service first starts: the index or database, and the store."""

from __future__ import annotations

import logging
import os
import pickle
import re
import select
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import NamedTuple, NoReturn

from app import make_cache
from config import Settings
from storage import IncompatibleSchema, Unavailable

log = logging.getLogger("prompt_image_proxy")

# A first start says within 10 s what is wrong. Most checks end earlier, with a better reason.
_SECONDS = 9.0
_CHILD_SECONDS = 9.5

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
# What to do where the store is not S3, and its credentials are no settings of ours.
_STORE_ADVICE = {
    "gs": "create the bucket, and set GOOGLE_APPLICATION_CREDENTIALS in the environment (not in"
    " .env)",
    "az": "create the container, and set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
    " in the environment (not in .env)",
}


class Problem(NamedTuple):
    """Why the cache cannot be used; `is_final` if waiting will not help."""

    sentence: str
    is_final: bool = False


def check_in_child(settings: Settings) -> Problem | None:
    """Do `check_cache` in a process of its own.

    What it opens would stay open in the workers, which are forked from this one, and some
    libraries do not survive that.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        _report(settings, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        try:
            if not select.select([pipe], [], [], _CHILD_SECONDS)[0]:
                return Problem(f"The cache did not answer within {_CHILD_SECONDS:g} s.")
            problem: Problem | None = pickle.load(pipe)
            return problem
        finally:
            os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):  # gunicorn may reap it first
                os.waitpid(pid, 0)


def _report(settings: Settings, writer: int) -> NoReturn:
    log.setLevel(logging.CRITICAL)  # What goes wrong is returned.
    try:
        os.write(writer, pickle.dumps(check_cache(settings)))
    except Exception:
        log.critical("The cache could not be checked", exc_info=True)
    finally:
        os._exit(0)


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
    scheme = settings.storage.url.partition(":")[0] if settings.storage else ""
    setting = "STORAGE_URL" if scheme else "CACHE_DIR"
    try:
        check.result(0)
    except TimeoutError:
        yield Problem(f"{setting}: no answer within {_SECONDS:g} s")
    except OSError as error:
        advice = _STORE_ADVICE.get(scheme, "write another one")
        if scheme == "s3":
            setting, advice = _blamed(str(error.strerror))
        yield Problem(f"{setting}: {error.strerror}; {advice}")


def _blamed(reason: str) -> tuple[str, str]:
    """Return the setting that is wrong, and what to write."""
    found = ((setting, do) for pattern, setting, do in _STORE_FAULTS if re.search(pattern, reason))
    return next(found)
