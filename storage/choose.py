"""Which state and which store the settings describe."""

from __future__ import annotations

import time
from collections.abc import Callable

from config import Settings
from metrics import OFF, Metrics
from storage import State
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.places import Places
from storage.store import Store


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

        return shared, Nowhere(), limit
    from storage.cluster.copies import Copies
    from storage.cluster.objects import Objects

    objects = Objects(settings.storage, settings.network)
    # The limit is that of the copies: nothing is deleted from the bucket to make room.
    places = places or Places(settings.threads)
    return shared, Copies(objects, folder, shared.files, places, limit, clock, metrics), 0
