"""The way to a picture: optimise, generate, rewrite and try again, fall back, give up.

However many ask for the same picture, it is drawn once. Knows nothing of HTTP servers.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from backends import Backends, Failed, Image, Pollinations, Refused
from cache import Cache, NotKept, Provenance
from formats import EXTENSIONS
from hosting import ImageHost, UploadFailed
from llm import Llm, RewriteFailed
from picture import ImageRequest
from storage.locks import Locks, LockTimeout
from upstream.client import Deadline

log = logging.getLogger("prompt_image_proxy.pipeline")

T = TypeVar("T")

ANSWER_TTL = 30 * 86400.0
# Long enough for whoever waits for the lock to see it once the lock is free.
FAILURE_TTL = 60.0


class Busy(Exception):
    """All places for drawing are taken."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of one drawing: what it was, how it ended, and the seconds it took."""

    stage: str
    outcome: str
    seconds: float


class GaveUp(Exception):
    """Every stage was tried. `status` is the HTTP status that says why."""

    def __init__(
        self, status: int, detail: str, stages: list[Stage], retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.stages = stages
        self.retry_after = retry_after

    def to_note(self) -> dict[str, Any]:
        return {
            "id": secrets.token_hex(8),
            "status": self.status,
            "detail": self.detail,
            "stages": [asdict(stage) for stage in self.stages],
            "retry_after": self.retry_after,
        }

    @classmethod
    def from_note(cls, note: dict[str, Any]) -> GaveUp:
        stages = [Stage(**stage) for stage in note["stages"]]
        return cls(note["status"], note["detail"], stages, note["retry_after"])


@dataclass(frozen=True, slots=True)
class Drawn:
    """What came of a drawing. `source` is backend, rewritten, fallback, or cache where another
    process drew it meanwhile; the picture itself is here in case the cache could not keep it."""

    source: str
    stages: list[Stage]
    image: Image | None = None
    hosted_url: str | None = None
    is_kept: bool = True


@dataclass(slots=True)
class _Journey:
    """One drawing on its way: the prompts reached so far and the stages behind it."""

    request: ImageRequest
    deadline: Deadline
    optimized: str | None = None
    rewritten: str | None = None
    stages: list[Stage] = field(default_factory=list)
    # Moderation, and nothing but moderation, has been in the way.
    is_refused: bool = True
    # ... and no rewriting was left undone that might yet help.
    is_exhausted: bool = True
    was_cooling: bool = False

    @property
    def best_prompt(self) -> str:
        """The most promising prompt: the last rewritten, else the optimised, else the original."""
        return self.rewritten or self.optimized or self.request.prompt

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record a stage: `ok`, or what its exception says by its kind."""
        began, outcome = time.monotonic(), "ok"
        try:
            yield
        except Refused:
            outcome = "refused"
            raise
        except (Failed, RewriteFailed, UploadFailed):
            outcome = "failed"
            raise
        finally:
            self.stages.append(Stage(name, outcome, round(time.monotonic() - began, 3)))


class SingleFlight(Generic[T]):
    """Lets one caller work for all that want the same, in this process and in all others."""

    def __init__(self, locks: Locks) -> None:
        self.locks = locks
        self._flights: dict[str, Future[T]] = {}
        self._mutex = threading.Lock()

    def run(self, key: str, deadline: Deadline, work: Callable[[], T]) -> T:
        """Return what `work` returns, here or in the thread that was first; raise what it raises.

        Other processes wait until `work` is done here, then do it themselves: it has to look
        first whether it still needs doing. Raises TimeoutError or LockTimeout at the deadline.
        """
        with self._mutex:
            flight = self._flights.get(key)
            is_first = flight is None
            flight = self._flights.setdefault(key, Future())
        if not is_first:
            return flight.result(deadline.remaining())
        try:
            with self.locks.hold(key, deadline):
                result = work()
        except BaseException as error:
            flight.set_exception(error)
            raise
        else:
            flight.set_result(result)
            return result
        finally:
            with self._mutex:
                del self._flights[key]


class Pipeline:
    """Draws pictures. `places` drawings and waiters at most are in it at any moment."""

    def __init__(
        self,
        cache: Cache,
        backends: Backends,
        *,
        llm: Llm | None = None,
        fallback: Pollinations | None = None,
        host: ImageHost | None = None,
        places: int,
        generation_deadline: float,
        llm_timeout: float,
        upload_timeout: float,
        blocked_ttl: float,
    ) -> None:
        self.cache = cache
        self.backends = backends
        self.llm = llm
        self.fallback = fallback
        self.host = host
        self.generation_deadline = generation_deadline
        self.llm_timeout = llm_timeout
        self.upload_timeout = upload_timeout
        self.blocked_ttl = blocked_ttl
        self._places = threading.Semaphore(places)
        self._drawings: SingleFlight[Drawn] = SingleFlight(cache.locks)
        self._answers: SingleFlight[str] = SingleFlight(cache.locks)

    def draw(self, request: ImageRequest) -> Drawn:
        """Draw a picture that the cache does not have, or wait for who draws it already.

        Raises GaveUp, or Busy at once where no place is free: a thread that waited for one
        would be missing for pictures that are in the cache.
        """
        if not self._places.acquire(blocking=False):
            raise Busy
        try:
            deadline = Deadline.after(self.generation_deadline)
            last_failure = self.cache.recall("failure", request.key)
            return self._drawings.run(
                request.key, deadline, lambda: self._draw_once(request, deadline, last_failure)
            )
        except (TimeoutError, LockTimeout) as error:
            raise GaveUp(504, "The picture was not drawn in time.", []) from error
        finally:
            self._places.release()

    def _draw_once(self, request: ImageRequest, deadline: Deadline, last_failure: Any) -> Drawn:
        """Draw, unless another process did while this one waited for the lock."""
        if entry := self.cache.get(request.key):
            entry.close()
            return Drawn("cache", [])
        failure = self.cache.recall("failure", request.key)
        if failure and failure != last_failure:
            raise GaveUp.from_note(failure)
        journey = _Journey(request, deadline)
        try:
            source, image = self._find_image(journey)
        except GaveUp as gave_up:
            log.info("Gave up on %.12s: %s", request.key, gave_up.detail)
            self.cache.remember("failure", request.key, gave_up.to_note(), FAILURE_TTL)
            raise
        log.info("Drew %.12s: %s, by %s", request.key, source, image.drawn_by)
        return self._keep(journey, source, image)

    # --- the stages

    def _find_image(self, journey: _Journey) -> tuple[str, Image]:
        blocked = self.cache.recall("blocked", journey.request.key)
        if blocked:
            journey.optimized, journey.rewritten = blocked["optimized"], blocked["rewritten"]
        else:
            self._optimise(journey)
            if image := self._generate(journey):
                return "rewritten" if journey.rewritten else "backend", image
        if image := self._fall_back(journey):
            return "fallback", image
        raise self._verdict(journey)

    def _optimise(self, journey: _Journey) -> None:
        if not self.llm or not self.llm.does("optimise"):
            return
        try:
            with journey.stage("optimise"):
                prompt = journey.request.prompt
                journey.optimized = self._ask_llm("optimise", prompt, journey.deadline)
        except RewriteFailed as error:
            log.warning("The LLM did not optimise a prompt, which is drawn as it is: %s", error)

    def _generate(self, journey: _Journey) -> Image | None:
        """Generate, and rewrite what is refused, for as many rounds as there are."""
        rounds = self.llm.safety_attempts if self.llm else 0
        journey.was_cooling = self.backends.ready_in() > 0
        for round_number in range(rounds + 1):
            try:
                with journey.stage("generate"):
                    return self.backends.draw(
                        journey.best_prompt, journey.request, journey.deadline
                    )
            except Failed:
                journey.is_refused = False
                return None
            except Refused as refused:
                journey.is_refused &= refused.everywhere
            if round_number == rounds or not self._rewrite(journey):
                break
        if journey.is_refused and journey.is_exhausted:
            prompts = {"optimized": journey.optimized, "rewritten": journey.rewritten}
            self.cache.remember("blocked", journey.request.key, prompts, self.blocked_ttl)
        return None

    def _rewrite(self, journey: _Journey) -> bool:
        """Rewrite the refused prompt for safety; say whether there is a new one to try."""
        refused = journey.best_prompt
        try:
            with journey.stage("rewrite"):
                journey.rewritten = self._ask_llm("rewrite", refused, journey.deadline)
        except RewriteFailed as error:
            log.warning("The LLM did not rewrite a refused prompt: %s", error)
            # The LLM's outage must not keep the prompt blocked when it is over.
            journey.is_exhausted = False
            return False
        return journey.rewritten != refused

    def _ask_llm(self, task: str, prompt: str, deadline: Deadline) -> str:
        """Return the LLM's answer, or the one it gave before. Raises RewriteFailed."""
        assert self.llm
        llm, key = self.llm, self.llm.answer_key(task, prompt)
        deadline = deadline.within(self.llm_timeout)

        def work() -> str:
            if kept := self.cache.recall("answer", key):
                return str(kept)
            answer = llm.rewrite(task, prompt, deadline)
            self.cache.remember("answer", key, answer, ANSWER_TTL)
            return answer

        try:
            return self._answers.run(key, deadline, work)
        except (TimeoutError, LockTimeout) as error:
            raise RewriteFailed("it did not answer in time") from error

    def _fall_back(self, journey: _Journey) -> Image | None:
        if not self.fallback or journey.deadline.is_over:
            journey.is_refused &= not self.fallback
            return None
        try:
            with journey.stage("fallback"):
                return self.fallback.draw(journey.best_prompt, journey.request, journey.deadline)
        except Refused:
            return None
        except Failed as failed:
            log.warning("The fallback failed: %s", failed)
            journey.is_refused = False
            return None

    def _verdict(self, journey: _Journey) -> GaveUp:
        stages = journey.stages
        if journey.is_refused:
            return GaveUp(422, "Moderation refused the prompt everywhere.", stages)
        if journey.deadline.is_over:
            return GaveUp(504, "The picture was not drawn in time.", stages)
        wait = math.ceil(self.backends.ready_in()) or None
        if journey.was_cooling and wait:
            detail = "All backends have failed lately and are left alone for a while."
            return GaveUp(503, detail, stages, wait)
        return GaveUp(502, "No backend could draw the picture.", stages, wait)

    # --- what becomes of the picture

    def _keep(self, journey: _Journey, source: str, image: Image) -> Drawn:
        hosted_url = self._upload(journey, image)
        request = journey.request
        provenance = Provenance(
            request.prompt,
            request.width,
            request.height,
            request.model,
            request.seed,
            optimized=journey.optimized,
            rewritten=journey.rewritten,
            revised=image.revised_prompt,
            drawn_by=image.drawn_by,
        )
        is_kept = True
        try:
            self.cache.put(request.key, image.data, image.media_type, provenance, url=hosted_url)
        except NotKept:
            is_kept = False
        return Drawn(source, journey.stages, image, hosted_url, is_kept)

    def _upload(self, journey: _Journey, image: Image) -> str | None:
        """Return where the image host keeps it, or None: then it is kept as a file."""
        if not self.host:
            return None
        name = f"{journey.request.key[:32]}.{EXTENSIONS[image.media_type]}"
        deadline = journey.deadline.within(self.upload_timeout)
        try:
            with journey.stage("upload"):
                return self.host.upload(image.data, name, image.media_type, deadline)
        except UploadFailed as error:
            log.warning("The image host did not take a picture, kept as a file: %s", error)
            return None
