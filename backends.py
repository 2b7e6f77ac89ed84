"""Weighted choice among the backends that are not cooling down."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from dialect.judging import UNKNOWN_MODEL, Outcome
from drawing.backend import Backend, NotDrawn
from drawing.cooldowns import Cooldown
from drawing.pool import first_free
from drawing.record import Attempt, Round
from metrics import OFF, Metrics
from picture import ImageRequest
from storage import LockTimeout
from storage.state import State
from upstream.client import Deadline

# A page of twenty pictures survives one hiccup of the only backend.
MAX_WAIT = 15.0
# The lock of the drawing that asks first after every backend was cooling down.
_PROBE_KEY = "0" * 64

# The cooldowns of backends and models, by the keys of their notes.
Known = Mapping[str, Cooldown]


class Backends:
    """All backends, asked in random order by weight, but for those that are cooling down."""

    def __init__(
        self,
        backends: Sequence[Backend],
        state: State,
        *,
        blocked_retry_attempts: int = 2,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
        metrics: Metrics = OFF,
    ) -> None:
        self.all = tuple(backends)
        self.in_use = tuple(backend for backend in backends if backend.weight > 0)
        self.state = state
        self.max_refusals = max(1, blocked_retry_attempts)
        self.rng = rng or random.Random()
        self.sleep = sleep
        self.metrics = metrics

    def ready_in(self, request: ImageRequest) -> float:
        """Return the seconds until a backend may be asked for `request`, 0 if one may now.

        Raises Unavailable.
        """
        return self._ready_in(request, self.recall(request))

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Round:
        """Draw with the first backend that can. Raises Unavailable.

        A failure or a rejection moves on until every backend was asked; refusals end the round
        when `blocked_retry_attempts` backends have refused the prompt. While every backend is
        cooling down, the drawing waits for the first of them if it is ready within MAX_WAIT.
        """
        while True:
            known = self.recall(request)
            wait = self._ready_in(request, known)
            if wait > min(MAX_WAIT, deadline.remaining()):
                return Round(None, (), is_cut=True, has_model=self._has_model(request, known))
            if wait:
                self.sleep(wait)
                found = self._probe(prompt, request, deadline)
            else:
                found = self._ask(prompt, request, deadline, known)
            if found is not None:
                return found

    def _probe(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Round | None:
        """Ask after a cooldown of all backends; return None if another drawing has done so.

        Over all workers, one drawing at a time tests whether backends draw again.
        """
        try:
            with self.state.hold(_PROBE_KEY, deadline.remaining()):
                known = self.recall(request)
                if self._has_been_probed(request, known):
                    return None
                return self._ask(prompt, request, deadline, known)
        except LockTimeout:
            return Round(None, (), is_cut=True)

    def recall(self, request: ImageRequest) -> Known:
        """Return the cooldowns of all backends in use. Raises Unavailable."""
        counted = [one for backend in self.in_use for one in backend.outages(request)]
        return Cooldown.recall_all(self.state, [one.key for one in counted])

    def order(self, request: ImageRequest, known: Known) -> list[Backend]:
        """Return the ready backends in the order to ask them."""
        ready = [b for b in self.in_use if not _wait_for(b, request, known)]
        # Exponential races: the first is chosen by weight, the second by weight from the rest.
        return sorted(ready, key=lambda backend: self.rng.expovariate(backend.weight))

    def _ready_in(self, request: ImageRequest, known: Known) -> float:
        return min(_wait_for(backend, request, known) for backend in self.in_use)

    def _has_been_probed(self, request: ImageRequest, known: Known) -> bool:
        """Return whether another drawing has asked: a backend draws again, or all still fail."""
        has_failures = any(cooldown.failures for cooldown in known.values())
        return self._ready_in(request, known) > 0 or not has_failures

    def _ask(
        self, prompt: str, request: ImageRequest, deadline: Deadline, known: Known
    ) -> Round | None:
        """Ask the ready backends. Return None if all began to cool down before one had room."""
        attempts: list[Attempt] = []
        waiting = self.order(request, known)
        while waiting and not self._is_over(attempts):
            try:
                # One without room is passed over: it takes no other backend's time.
                found = first_free([one.slots for one in waiting], deadline, self.sleep)
            except LockTimeout:
                return Round(None, tuple(attempts), is_cut=True)
            index, slot, has_waited = found
            backend = waiting[index]
            with slot:
                if has_waited:
                    known = self.recall(request)
                    waiting = [one for one in waiting if not _wait_for(one, request, known)]
                if backend not in waiting:
                    continue
                waiting.remove(backend)
                if attempts:
                    self.metrics.retried()
                try:
                    image = backend.draw(prompt, request, deadline, slot)
                except NotDrawn as error:
                    attempts.append(Attempt(backend.name, error.fault.outcome, error.fault.why))
                    _count(backend, request, error, known)
                else:
                    _end_outages(backend, request, known)
                    return Round(image, tuple(attempts))
        has_model = any(attempt.why != UNKNOWN_MODEL for attempt in attempts)
        return Round(None, tuple(attempts), has_model=has_model) if attempts else None

    def _has_model(self, request: ImageRequest, known: Known) -> bool:
        """Return whether a backend is cooling down for any other reason than an unknown model."""
        of_models = (known[backend.outages(request)[1].key] for backend in self.in_use)
        return any(one.why != UNKNOWN_MODEL or not one.seconds for one in of_models)

    def _is_over(self, attempts: Sequence[Attempt]) -> bool:
        """Return whether enough backends have refused the prompt."""
        refusals = sum(attempt.outcome is Outcome.REFUSED for attempt in attempts)
        return refusals >= self.max_refusals


def _wait_for(backend: Backend, request: ImageRequest, known: Known) -> float:
    return max(known[one.key].seconds for one in backend.outages(request))


def _count(backend: Backend, request: ImageRequest, error: NotDrawn, known: Known) -> None:
    """Count a failure or a rejection; a refusal is the prompt's, not the backend's."""
    whole, of_model = backend.outages(request)
    if error.fault.outcome is Outcome.REFUSED:
        whole.note(error.fault, str(error))
        _end_outages(backend, request, known)
        return
    one = of_model if error.fault.is_of_model else whole
    one.count(known[one.key], error.fault, str(error), request.key)


def _end_outages(backend: Backend, request: ImageRequest, known: Known) -> None:
    for one in backend.outages(request):
        one.end(known[one.key])
