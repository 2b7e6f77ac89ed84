"""Slots: how many drawings a backend has under way at once, over all workers and machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from storage import LockTimeout, State
from upstream.client import Deadline

# Seconds between two looks at the slots; each look costs a round trip to a shared database.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


class Slots:
    """The slots of one backend, each a lock of the state; without keys there is no limit.

    A killed process loses its locks, and so frees its slots. A lost session of PostgreSQL loses
    them, too, while its drawings go on: for a while there may be more than the limit.
    """

    def __init__(self, state: State, keys: Sequence[str] = ()) -> None:
        self.state = state
        self.keys = keys

    def take(self) -> ExitStack | None:
        """Return a slot, which is freed by closing it, or None if all are taken.

        Raises Unavailable.
        """
        slot = ExitStack()
        if not self.keys:
            return slot
        for key in self.keys:
            with suppress(LockTimeout):
                slot.enter_context(self.state.hold(key, 0))
                return slot
        return None


def first_free(
    wanted: Sequence[Slots], deadline: Deadline, sleep: Callable[[float], None] = time.sleep
) -> tuple[int, ExitStack, bool]:
    """Take a slot of the first that has one free, and wait for one if none has.

    Return its index, the slot, and whether that took waiting. Raises LockTimeout at the deadline,
    and Unavailable.
    """
    pause, has_waited = FIRST_PAUSE, False
    while not deadline.is_over:
        for index, slots in enumerate(wanted):
            if slot := slots.take():
                return index, slot, has_waited
        sleep(min(pause, deadline.remaining()))
        pause, has_waited = min(2 * pause, LONGEST_PAUSE), True
    raise LockTimeout
