"""Weighted choice among the backends that are not cooling down."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

from dialect.judging import UNKNOWN_MODEL, Fault, Outcome
from drawing.backend import Backend, NotDrawn, counted, first_free
from drawing.cooldowns import Cooldown, Known
from drawing.record import Drawing, Round
from metrics import OFF, Metrics
from picture import ImageRequest
from storage import LockTimeout, Unavailable
from storage.state import State

# A page of twenty pictures survives one hiccup of the only backend.
MAX_WAIT = 15.0
# The lock of the drawing that asks first after every backend was cooling down.
_PROBE_KEY = "0" * 64


@dataclass(eq=False)
class Backends:
    """All backends, asked in random order by weight, but for those that are cooling down."""

    all: Sequence[Backend]
    state: State
    _: KW_ONLY
    blocked_retry_attempts: int = 2
    rng: random.Random = field(default_factory=random.Random)
    sleep: Callable[[float], None] = time.sleep
    metrics: Metrics = OFF

    def __post_init__(self) -> None:
        self.in_use = [backend for backend in self.all if backend.weight > 0]
        for backend in self.all:
            self.metrics.backend_listed(backend.name)

    def ready_in(self, request: ImageRequest, known: Known | None = None) -> float:
        """Return the seconds until a backend may be asked for `request`, 0 if one may now.

        `known` are the cooldowns, if they have been recalled already. Raises Unavailable.
        """
        known = known or self.recall(request)
        return min(backend.outages(request).wait(known) for backend in self.in_use)

    def recall(self, request: ImageRequest) -> Known:
        """Return the cooldowns of all backends in use. Raises Unavailable."""
        keys = [key for backend in self.in_use for key in backend.outages(request).names]
        return Cooldown.recall_all(self.state, keys)

    def order(self, request: ImageRequest, known: Known) -> list[Backend]:
        """Return the ready backends in the order to ask them."""
        ready = [one for one in self.in_use if not one.outages(request).wait(known)]
        # Exponential races: the first is chosen by weight, the second by weight from the rest.
        return sorted(ready, key=lambda backend: self.rng.expovariate(backend.weight))

    def draw(self, drawing: Drawing) -> Round:
        """Draw the best prompt with the first backend that can. Raises Unavailable.

        A failure or a rejection moves on until every backend was asked; refusals end the round
        when `blocked_retry_attempts` backends have refused the prompt. While every backend is
        cooling down, the drawing waits for the first of them if it is ready within MAX_WAIT.
        """
        request = drawing.request
        while True:
            known = self.recall(request)
            wait = self.ready_in(request, known)
            if wait > min(MAX_WAIT, drawing.deadline.remaining()):
                models = [known[backend.outages(request).model_key] for backend in self.in_use]
                has_model = any(one.why != UNKNOWN_MODEL or not one.seconds for one in models)
                return Round(None, is_cut=True, has_model=has_model)
            if wait:
                self.sleep(wait)
            found = self._probe(drawing) if wait else self._ask(drawing, known)
            if found is not None:
                return found

    def _probe(self, drawing: Drawing) -> Round | None:
        """Ask after a cooldown of all backends; return None if another drawing has done so.

        Over all workers, one drawing at a time tests whether backends draw again.
        """
        try:
            with self.state.hold(_PROBE_KEY, drawing.deadline.remaining()):
                known = self.recall(drawing.request)
                has_failures = any(cooldown.failures for cooldown in known.values())
                if self.ready_in(drawing.request, known) or not has_failures:
                    return None
                return self._ask(drawing, known)
        except LockTimeout:
            return Round(None, is_cut=True)

    def _ask(self, drawing: Drawing, known: Known) -> Round | None:
        """Ask the ready backends. Return None if all began to cool down before one had room."""
        faults: list[Fault] = []
        try:
            return self._ask_each(drawing, known, faults)
        except Unavailable:
            if not faults:
                raise
            return Round(None, tuple(faults), is_cut=True)

    def _ask_each(self, drawing: Drawing, known: Known, faults: list[Fault]) -> Round | None:
        """Ask the ready backends one after another, and add the faults of those that fail."""
        request, refusals = drawing.request, 0
        waiting = self.order(request, known)
        while waiting and refusals < max(1, self.blocked_retry_attempts):
            try:
                # One without room is passed over: it takes no other backend's time.
                backend, slot = first_free(waiting, drawing.deadline, self.sleep)
            except LockTimeout:
                return Round(None, tuple(faults), is_cut=True)
            outages = backend.outages(request)
            with slot:
                # While it waited, another drawing may have begun a cooldown.
                known = self.recall(request)
                waiting = [one for one in waiting if not one.outages(request).wait(known)]
                if backend not in waiting:
                    continue
                waiting.remove(backend)
                if faults:
                    self.metrics.retried()
                try:
                    with counted(self.metrics, backend.name, outages, known, request.key):
                        return Round(backend.draw(drawing, slot), tuple(faults))
                except NotDrawn as error:
                    faults.append(error.fault)
                    refusals += error.fault.outcome is Outcome.REFUSED
        has_model = any(fault.why != UNKNOWN_MODEL for fault in faults)
        return Round(None, tuple(faults), has_model=has_model) if faults else None
