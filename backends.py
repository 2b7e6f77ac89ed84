"""Which backend is asked next: weighted choice among those that are not cooling down."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dialect.judging import Outcome
from dialect.learning import Learned
from drawing.backend import Backend, Image, NotDrawn
from drawing.cooldowns import Cooldown, Cooldowns
from metrics import OFF, Metrics
from picture import ImageRequest
from storage import LockTimeout, Note
from storage.memory import Memory
from upstream.client import Deadline

# A page of twenty pictures survives one hiccup of the only backend.
MAX_WAIT = 15.0
# The lock of the drawing that asks first when every backend has been avoided.
_PROBE_KEY = "0" * 64


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one backend answered one prompt. `why` is the word of its fault."""

    backend: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Round:
    """The result of asking backends for one prompt: a picture, or the failed attempts.

    `is_cut`: it ended early, because time ran out or no backend was ready.
    """

    image: Image | None
    attempts: tuple[Attempt, ...]
    is_cut: bool = False

    def count(self, outcome: Outcome) -> int:
        return sum(attempt.outcome is outcome for attempt in self.attempts)


class Backends:
    """All backends, and how long each is to be avoided."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        blocked_retry_attempts: int = 2,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        metrics: Metrics = OFF,
    ) -> None:
        self.all = tuple(backends)
        self.in_use = tuple(backend for backend in backends if backend.weight > 0)
        self.max_refusals = max(1, blocked_retry_attempts)
        self.rng = rng or random.Random()
        self.sleep = sleep
        self.metrics = metrics
        self._cooldowns = {
            backend: Cooldowns(f"Backend {backend.name}", clock=clock) for backend in backends
        }
        self._probing = threading.Lock()

    def wanted(self, request: ImageRequest) -> list[tuple[type[Note], str]]:
        """Return the notes that drawing `request` reads."""
        wanted: list[tuple[type[Note], str]] = []
        for backend in self.in_use:
            whole, of_model = backend.note_keys(request)
            wanted += [(Cooldown, whole), (Cooldown, of_model), (Learned, of_model)]
        return wanted

    def ready_in(self, request: ImageRequest, memory: Memory) -> float:
        """Return the seconds until a backend may be asked for `request`, 0 where one may now."""
        return min(self._wait_for(backend, request, memory) for backend in self.in_use)

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline, memory: Memory) -> Round:
        """Draw with the first backend that can.

        A failure or a rejection moves on until every backend was asked; refusals end the round
        when `blocked_retry_attempts` backends have refused the prompt. While every backend is
        avoided the drawing waits for the first of them, if that is ready soon.
        """
        while wait := self.ready_in(request, memory):
            if wait > min(MAX_WAIT, deadline.remaining()):
                return Round(None, (), is_cut=True)
            self.sleep(wait)
            try:
                with self._probe(deadline, memory):
                    if not self._has_drawn_again(request, memory):
                        return self._ask(prompt, request, deadline, memory)
            except LockTimeout:
                return Round(None, (), is_cut=True)
        return self._ask(prompt, request, deadline, memory)

    @contextmanager
    def _probe(self, deadline: Deadline, memory: Memory) -> Iterator[None]:
        """Let one drawing after the other, over all workers, see whether backends draw again."""
        if not self._probing.acquire(timeout=deadline.remaining()):
            raise LockTimeout
        try:
            with memory.state.hold(_PROBE_KEY, deadline.remaining()):
                memory.refresh()
                yield
        finally:
            self._probing.release()

    def _has_drawn_again(self, request: ImageRequest, memory: Memory) -> bool:
        """Return whether the drawing that asked first settled it: the others follow, or wait."""
        series = [
            self._cooldowns[backend].current(memory, key)
            for backend in self.in_use
            for key in backend.note_keys(request)
        ]
        return self.ready_in(request, memory) > 0 or not any(s.failures for s in series)

    def _ask(self, prompt: str, request: ImageRequest, deadline: Deadline, memory: Memory) -> Round:
        attempts: list[Attempt] = []
        for backend in self.order(request, memory):
            if deadline.is_over:
                return Round(None, tuple(attempts), is_cut=True)
            if attempts:
                self.metrics.retried()
            try:
                image = backend.draw(prompt, request, deadline, memory)
            except NotDrawn as error:
                attempts.append(Attempt(backend.name, error.fault.outcome, error.fault.why))
                self._count(backend, request, error, memory)
            else:
                self._end_series(backend, request, memory)
                return Round(image, tuple(attempts))
            if Round(None, tuple(attempts)).count(Outcome.REFUSED) >= self.max_refusals:
                break
        return Round(None, tuple(attempts))

    def _count(
        self, backend: Backend, request: ImageRequest, error: NotDrawn, memory: Memory
    ) -> None:
        """Count a failure or a rejection; a refusal is the prompt's, not the backend's."""
        if error.fault.outcome is Outcome.REFUSED:
            self._end_series(backend, request, memory)
            return
        whole, of_model = backend.note_keys(request)
        key = of_model if error.fault.is_of_model else whole
        self._cooldowns[backend].count(memory, key, error.fault, str(error), request.key)

    def _end_series(self, backend: Backend, request: ImageRequest, memory: Memory) -> None:
        for key in backend.note_keys(request):
            self._cooldowns[backend].answered(memory, key)

    def _wait_for(self, backend: Backend, request: ImageRequest, memory: Memory) -> float:
        return max(Cooldowns.left(memory, key) for key in backend.note_keys(request))

    def order(self, request: ImageRequest, memory: Memory) -> list[Backend]:
        """Return the ready backends in the order to ask them."""
        ready = [b for b in self.in_use if not self._wait_for(b, request, memory)]
        # Exponential races: the first is chosen by weight, the second by weight from the rest.
        return sorted(ready, key=lambda backend: self.rng.expovariate(backend.weight))
