"""Work over a State and a Store together: adoption, sweeping, eviction.

Rows and files part after crashes, restored backups and lost databases. Every picture was paid
for: a file without a row gets one, and is deleted only if its key has another file. All of it
raises OSError and Unavailable.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice

from images.formats import EXTENSIONS
from picture import ImageRequest
from storage import Row, State, Unavailable
from storage.store import Store, Stored, Task

log = logging.getLogger("prompt_image_proxy.cache")

# What State.add and State.files take at once: few enough that no request waits for it.
BATCH = 500

_MEDIA_TYPES = {extension: media_type for media_type, extension in EXTENSIONS.items()}


def repeat(tasks: Sequence[Task], stop: threading.Event) -> None:
    """Do each task in its time until `stop` is set. One that is Unavailable waits for the next."""
    due = [time.monotonic() + task.first for task in tasks]
    while True:
        for number, task in enumerate(tasks):
            if time.monotonic() >= due[number]:
                due[number] = time.monotonic() + task.period
                try:
                    task.work()
                except Unavailable:
                    pass  # logged where it was raised
                except Exception:  # The thread's last handler: the other tasks go on.
                    log.exception("The upkeep of the cache failed")
        if stop.wait(1.0):
            return


def repeat_both(quick: Sequence[Task], slow: Sequence[Task], stop: threading.Event) -> None:
    """Repeat quick tasks, and slow ones in another thread."""
    aside = threading.Thread(target=repeat, args=(slow, stop), daemon=True)
    aside.start()
    repeat(quick, stop)
    aside.join()


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn an OSError of the store into Unavailable."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the pictures cannot be reached: {error.strerror}") from error


def adopt(state: State, store: Store) -> int:
    """Give each picture in the store that has no row one; return how many got one."""
    return sum(_adopt(state, store, batch) for batch in _batches(store))


def sweep(state: State, store: Store, before: float) -> None:
    """Delete pictures last changed before a Unix time whose key has another one.

    The last change counts, not the creation: a file restored just now has an old one.
    """
    for batch in _batches(store):
        stale = [stored for stored in batch if stored.changed < before]
        for stored, kept in _rivals(stale, state.files([s.key for s in stale])):
            if _exists(store, kept):
                log.info("Swept up %s", stored.name)
                store.delete(stored.name)


def strays(state: State, store: Store, before: float) -> Iterator[Stored]:
    """Yield files last changed before a Unix time that no row names."""
    for batch in _batches(store):
        stale = [stored for stored in batch if stored.changed < before]
        kept = state.files([stored.key for stored in stale])
        yield from (stored for stored in stale if kept.get(stored.key) != stored.name)


def evict(
    state: State,
    store: Store,
    limit: int,
    prepare: Callable[[], None],
    evicted: Callable[[int], None],
) -> int:
    """Hold `limit` bytes, the least recently used pictures first; return what is then stored.

    Calls `prepare` before it chooses: the time to write down when pictures were used. Calls
    `evicted` with the number of pictures that are gone.
    """
    # A little more goes than has to, so that not every picture evicts one.
    target = limit * 0.99
    while (total := state.totals().bytes) > limit:
        prepare()
        victims = []
        for row in state.oldest(BATCH):
            if total <= limit and total - row.bytes < target:
                break
            victims.append(row)
            total -= row.bytes
        removed = discard(state, store, victims)
        evicted(removed)
        if not removed:
            break
    return total


def discard(state: State, store: Store, rows: Sequence[Row]) -> int:
    """Remove rows, then their files: a state that cannot be written costs no picture."""
    removed = state.remove(rows)
    for row in rows:
        if row.file:
            with suppress(OSError):
                store.delete(row.file)
    return removed


def learn(state: State, row: Row, request: ImageRequest) -> Row:
    """Note the request that an adopted or imported picture answers; return the row with it.

    Worth one try between two flushes: a locked state must not slow every hit.
    """
    known = replace(row, **asdict(request))
    with suppress(Unavailable):
        state.amend(row, known)
    return known


def _batches(store: Store) -> Iterator[list[Stored]]:
    names = store.names()
    while batch := list(islice(names, BATCH)):
        yield batch


def _adopt(state: State, store: Store, batch: list[Stored]) -> int:
    known = state.files([stored.key for stored in batch])
    # The newest file of a key comes last and stays.
    batch.sort(key=lambda stored: stored.created)
    fresh = {stored.key: _row_of(stored) for stored in batch if stored.key not in known}
    count = state.add(list(fresh.values()))
    return count + sum(_prefer(state, store, stored) for stored, _ in _rivals(batch, known))


def _prefer(state: State, store: Store, stored: Stored) -> bool:
    """Put a file into its key's row if the one there is missing, or was adopted and is older."""
    row = state.find(stored.key)
    if row is None or row.file is None:
        return False
    is_better = row.digest is None and row.created < stored.created
    return (is_better or not _exists(store, row.file)) and state.amend(row, _row_of(stored))


def _rivals(batch: list[Stored], known: dict[str, str | None]) -> Iterator[tuple[Stored, str]]:
    """Yield the files whose key has another file, with that one's name."""
    for stored in batch:
        kept = known.get(stored.key)
        if kept is not None and kept != stored.name:
            yield stored, kept


def _exists(store: Store, name: str) -> bool:
    try:
        store.open(name).close()
    except FileNotFoundError:
        return False
    return True


def _row_of(stored: Stored) -> Row:
    """Return the row of a file without any record; its first hit reads the file."""
    return Row(
        key=stored.key,
        file=stored.name,
        media_type=_MEDIA_TYPES[stored.name.rpartition(".")[2]],
        bytes=stored.bytes,
        digest=None,
        created=stored.created,
    )
