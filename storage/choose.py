"""Which state and store the settings describe, and whether they can be used.

The checks run in a process of their own (`python -m storage.choose`): workers would inherit what
the master had opened, and not every library survives a fork.
"""

import logging
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from config import Settings
from metrics import OFF, Metrics
from storage import Unavailable
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.state import State
from storage.store import Store
from storage.waiting import Places


def choose_storage(
    settings: Settings,
    clock: Callable[[], float] = time.time,
    metrics: Metrics = OFF,
    places: Places | None = None,
) -> tuple[State, Store, int]:
    """Return the state, the store, and how many bytes the cache may hold; 0 for no limit.

    Nothing is opened yet. Requests that wait for the store take `places`.
    """
    folder, limit = settings.cache_dir, settings.cache_max_bytes
    if not settings.database_url:
        largest = settings.max_image_bytes
        state = SqliteState(folder, clock, spare_bytes=largest, metrics=metrics)
        return state, Folder(folder, picture_bytes=largest, metrics=metrics), limit
    # Imported here, since they need requirements-cluster.txt.
    from storage.cluster.postgres import PostgresState

    shared = PostgresState(settings.database_url, metrics=metrics)
    if not settings.storage:
        from storage.cluster.copies import Nowhere

        return shared, Nowhere(folder), limit
    from storage.cluster.copies import Copies
    from storage.cluster.objects import Objects

    objects = Objects(settings.storage, settings.network)
    # The limit is that of the copies: nothing is deleted from the bucket to make room.
    places = places or Places(settings.threads)
    return shared, Copies(objects, folder, shared.files, places, limit, clock, metrics), 0


# A start reports faults within 10 s. Most checks end earlier, with a better reason.
_SECONDS = 9.0

# The setting to blame for an object store's answer, and the remedy.
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
# The remedy for other stores, whose credentials are not among our settings.
_STORE_ADVICE = {
    "gs": "create the bucket, and set GOOGLE_APPLICATION_CREDENTIALS in the environment (not in"
    " .env)",
    "az": "create the container, and set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
    " in the environment (not in .env)",
}


def connections(settings: Settings) -> dict[str, object]:
    """Return the settings that each connection depends on: those of `state` and `store`."""
    network = settings.network
    reached = (network.ca_bundle, network.proxies, network.no_proxy) if settings.storage else None
    return {
        "state": settings.database_url or settings.cache_dir,
        "store": (settings.storage, settings.cache_dir, reached),
    }


class Unusable(Exception):
    """Parts of the cache cannot be used; `faults` has a sentence for each, setting first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("The cache cannot be used:" + "".join(f"\n  {fault}" for fault in faults))


def check_parts(settings: Settings, parts: Collection[str]) -> None:
    """Open these parts in another process. Raises Unusable."""
    if parts:
        command = [sys.executable, "-m", "storage.choose", *parts]
        given = pickle.dumps(settings)
        child = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=False)
        faults = child.stdout.decode().splitlines()
        if child.returncode:
            faults.append(f"the check of the cache ended with status {child.returncode}")
        if faults:
            raise Unusable(faults)


def _check(settings: Settings, parts: Iterable[str]) -> Iterator[str]:
    """Do the work of `check_parts` in this process, in which calls that hang go on."""
    state, store, _ = choose_storage(settings)
    opened = {
        "state": ("DATABASE_URL" if settings.database_url else "CACHE_DIR", state.check),
        "store": ("STORAGE_URL" if settings.storage else "CACHE_DIR", store.check),
    }
    pool = ThreadPoolExecutor()
    checks = [(opened[part][0], pool.submit(opened[part][1])) for part in parts]
    wait([check for _, check in checks], _SECONDS)
    for setting, check in checks:
        try:
            check.result(0)
        except TimeoutError:
            yield f"{setting}: no answer within {_SECONDS:g} s"
        except Unavailable as error:
            yield f"{setting}: {error}"
        except OSError as error:
            yield _fault_of_store(setting, str(error.strerror), settings)


def _fault_of_store(setting: str, reason: str, settings: Settings) -> str:
    scheme = settings.storage.url.partition(":")[0] if settings.storage else ""
    advice = _STORE_ADVICE.get(scheme, "write another one")
    if scheme == "s3":
        setting, advice = next(
            (blamed, remedy)
            for pattern, blamed, remedy in _STORE_FAULTS
            if re.search(pattern, reason)
        )
    return f"{setting}: {reason}; {advice}"


if __name__ == "__main__":
    logging.disable()  # what is wrong is said below
    for fault in _check(pickle.load(sys.stdin.buffer), sys.argv[1:]):
        print(fault, flush=True)
    os._exit(0)  # without waiting for calls that hang
