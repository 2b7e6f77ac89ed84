"""Work on a State and a Store beside the requests: adoption, and tasks that come again.

Crashes, restored backups and lost databases leave rows and files out of step. Every picture was
paid for: a file without a row gets one.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice

from images.formats import EXTENSIONS, announced_type
from storage import LockTimeout, Row, Unavailable
from storage.state import State
from storage.store import Store, Stored, Task

log = logging.getLogger("prompt_image_proxy.cache")

# Rows to be read or deleted at once.
BATCH = 500
# What State.add takes at once: each transaction rewrites most pages of a large index.
_ROWS = 10_000

_MEDIA_TYPES = {extension: media_type for media_type, extension in EXTENSIONS.items()}


def repeat(tasks: Sequence[Task], stop: threading.Event) -> None:
    """Do each task in its time until `stop` is set. One that fails is done again in its time."""
    due = [time.monotonic() + task.first for task in tasks]
    while True:
        for number, task in enumerate(tasks):
            if time.monotonic() >= due[number]:
                due[number] = time.monotonic() + task.period
                try:
                    task.work()
                except Unavailable:
                    pass  # logged where it was raised
                except OSError as error:
                    log.warning("The upkeep of the cache failed: %s", error.strerror)
                except Exception:  # The thread's last handler: the other tasks go on.
                    log.exception("The upkeep of the cache failed")
        if stop.wait(1.0):
            return


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn an OSError of the store into Unavailable."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the pictures cannot be reached: {error.strerror}") from error


def adopt(state: State, store: Store) -> int:
    """Give each picture in the store that has no row one; return how many got one.

    Of several files of a key the newest counts, and the others are deleted. Raises OSError and
    Unavailable.
    """
    names, count = store.names(), 0
    while batch := list(islice(names, _ROWS)):
        batch.sort(key=lambda stored: stored.created, reverse=True)
        keys = [stored.key for stored in batch]
        known = state.files(keys)
        found = (_row_of(store, stored) for stored in batch if stored.key not in known)
        count += state.add([row for row in found if row])
        known = state.files(keys)
        for stored in batch:
            if known.get(stored.key) not in (None, stored.name):
                count += _prefer(state, store, stored)
    return count


def _prefer(state: State, store: Store, rival: Stored) -> bool:
    """Of the file in a key's row and another one keep the newer; return whether that changed.

    Neither is touched while the picture is being drawn: one of them may be its file.
    """
    with suppress(LockTimeout), state.hold(rival.key, 0.0):
        row = state.find(rival.key)
        if row is None or row.file in (None, rival.name):
            return False
        loser, is_newer = rival.name, rival.created > int(row.created)
        if is_newer or not has_file(store, row):
            found = _row_of(store, rival)
            if found is None:
                return False
            request = asdict(row.request) if row.request else {}
            loser = state.store(replace(found, **request)) or loser
        log.info("Deleted %s, an older file of a picture", loser)
        with suppress(OSError):
            store.delete(loser)
        return loser != rival.name
    return False


def has_file(store: Store, row: Row) -> bool:
    """Return whether the store has a row's file, in its size. Raises OSError."""
    try:
        store.open(str(row.file), row.bytes).close()
    except FileNotFoundError:
        return False
    return True


def _row_of(store: Store, stored: Stored) -> Row | None:
    """Return the row of a file without any record, None if it is no picture.

    Its first hit reads it. One in a bucket, where each look is a download, is taken at its name.
    """
    media_type: str | None = _MEDIA_TYPES[stored.name.rpartition(".")[2]]
    if not store.is_shared:
        try:
            with store.open(stored.name) as file:
                media_type = announced_type(file.read(16))
        except FileNotFoundError:
            return None
    if media_type is None:
        return None
    return Row(
        key=stored.key,
        file=stored.name,
        media_type=media_type,
        bytes=stored.bytes,
        digest=None,
        created=stored.created,
    )
