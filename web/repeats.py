"""Orders that are repeated, because they failed or because their answer never arrived.

An order without a seed would be drawn and paid for again. So it leaves a note of its seeds until
its answer has been delivered, and an order that repeats it gets the same pictures.
"""

import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

from storage import Note, Recalled, Unavailable
from storage.state import State

# How long seeds are remembered, from the beginning of an order and again from its end.
ORDER_TTL = 600.0
# As many identical orders may be under way at once; any others leave no note.
_SLOTS = 32


@dataclass(frozen=True, slots=True)
class Placed(Note):
    """An order whose answer has not been delivered, by its first seed.

    `retry`: the number of the repetition, as its client counts. `turn`: how many orders have had
    these seeds. It changes with each, so that one that has lost them changes nothing any more.
    """

    kind: ClassVar[str] = "order"

    seed: int
    retry: int = 0
    turn: int = 1
    has_ended: bool = False


@dataclass
class Claim:
    """The claim of an order to its seeds, until its end or until another order takes them over.

    `seed` is the first of them. `placed` is the note as it is stored under `key`; None for an order
    without one. `joins`: the order that had the seeds before may still be under way.
    """

    state: State
    seed: int
    key: str = ""
    placed: Placed | None = None
    _: KW_ONLY
    is_new: bool = False
    joins: bool = False

    def end(self, ttl: float = ORDER_TTL) -> None:
        """Note that the order has ended: for so long, the next identical order gets its seeds.

        0 forgets it: nobody will repeat an order that was delivered.
        """
        placed, self.placed = self.placed, None
        if placed:
            # Unlike State.forget, this leaves alone what another order has taken over.
            before, after = Recalled(placed, 0.0, 0.0), replace(placed, has_ended=True)
            with suppress(Unavailable):
                self.state.exchange(before, after, self.key, ttl)


def claim(
    state: State, order_key: str, retry: int, new_seed: int, is_failing: Callable[[int], bool]
) -> Claim:
    """Return a claim to the seeds of the order that this one repeats, or to new ones.

    `is_failing` returns whether the failure of such an order is remembered: it is answered to all
    that repeat it, at once, too. Raises Unavailable: what cannot be noted is not drawn.
    """
    keys = [f"{order_key}-{number}" for number in range(_SLOTS)]
    while True:
        known = state.recall_all(Placed, keys)
        if key := _repeated(known, retry):
            before = known[key].note
            if before.has_ended and is_failing(before.seed):
                return Claim(state, before.seed, key, before)
            after = replace(before, retry=retry, turn=before.turn + 1, has_ended=False)
            if state.exchange(known[key], after, key, ORDER_TTL):
                return Claim(state, after.seed, key, after, joins=not before.has_ended)
        elif free := [key for key in keys if key not in known]:
            key, after = secrets.choice(free), Placed(new_seed, retry)
            if state.exchange(None, after, key, ORDER_TTL):
                return Claim(state, new_seed, key, after, is_new=True)
        else:
            return Claim(state, new_seed)


def _repeated(known: Mapping[str, Recalled[Placed]], retry: int) -> str | None:
    """Return the key of the order that this one repeats, or None.

    A client that counts its repetitions means the order before this one, which may still be under
    way. Any other order is a new one unless the last one like it has ended.
    """

    def rank(key: str) -> tuple[bool, int, bool, float]:
        note = known[key].note
        return note.retry < retry, note.retry, note.has_ended, known[key].age

    return max((key for key in known if retry or known[key].note.has_ended), key=rank, default=None)


def send(
    pieces: Iterable[bytes], connection: socket.socket | None, claim: Claim
) -> Iterator[bytes]:
    """Pass an answer on to the server, which asks for a piece when it has written the one before.

    Whether the client is still there is looked at before each piece, the last one included:
    afterwards it may have closed the connection because it has everything. `connection` is None if
    it is not known.
    """
    is_there = True
    for piece in pieces:
        is_there = connection is None or not _is_closed(connection)
        yield piece
    if is_there:
        claim.end(0.0)


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed a connection."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
