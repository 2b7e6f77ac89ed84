"""The stages of a drawing: optimise, generate, rewrite and try again, fall back, give up.

However many requests ask for a picture, it is drawn once. This module knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from backends import Backends
from cache import Cache
from drawing.backend import NotDrawn, Pollinations
from drawing.pool import Pool, StillRunning
from drawing.record import Blocked, Failure, GaveUp, Journey, Stage, is_blocked, verdict
from drawing.storing import Drawn, Keeper
from hosting import ImageHost
from limits import Caller, Limits, OverLimit, Reservation
from llm import ANSWER_TTL, Llm, RewriteFailed, Rewritten
from metrics import OFF, Metrics
from picture import ImageRequest
from storage import LockTimeout, Note, Unavailable
from storage.memory import Memory
from storage.single_flight import SingleFlight
from upstream.client import Deadline

if TYPE_CHECKING:
    from images.convert import Converter  # needs Pillow

log = logging.getLogger("prompt_image_proxy.pipeline")

# A drawing that was queued for longer reads its notes again: backends may have failed since.
MAX_MEMORY_AGE = 1.0


class Pipeline:
    """Draws pictures in the threads of a pool, while requests wait."""

    def __init__(
        self,
        cache: Cache,
        backends: Backends,
        pool: Pool[Drawn],
        *,
        llm: Llm | None = None,
        fallback: Pollinations | None = None,
        host: ImageHost | None = None,
        converter: Converter | None = None,
        generation_deadline: float,
        upload_timeout: float,
        blocked_ttl: float,
        fingerprint: str = "",
        metrics: Metrics = OFF,
    ) -> None:
        """`fingerprint` stands for the settings under which failures are remembered."""
        self.cache = cache
        self.backends = backends
        self.llm = llm
        self.fallback = fallback
        self.keeper = Keeper(cache, host, upload_timeout, converter, metrics)
        self.generation_deadline = generation_deadline
        self.blocked_ttl = blocked_ttl
        self.fingerprint = fingerprint
        self.metrics = metrics
        self.limits = Limits(cache.state, cache.clock)
        self._drawings = pool
        self._answers: SingleFlight[str] = SingleFlight(cache.state)

    def draw(
        self,
        request: ImageRequest,
        caller: Caller | None = None,
        *,
        reserved: Reservation | None = None,
        answer_within: float | None = None,
    ) -> Drawn:
        """Draw a picture that is not in the cache, or wait while another thread draws it.

        The drawing counts for `caller`, or takes a place of those `reserved`. Raises GaveUp,
        OverLimit, Unavailable, Busy at once if no place is free, and StillRunning after
        `answer_within` seconds: the drawing then goes on, and the picture is kept.
        """
        reservation = reserved or self.limits.reserve(caller)
        deadline, landings = Deadline.after(self.generation_deadline), self._drawings.landings
        until = deadline if answer_within is None else deadline.within(answer_within)
        memory = Memory(self.cache.state, self._wanted(request))
        if failure := self._recent_failure(request, memory):
            raise failure

        def work(has_waited: bool) -> Drawn:
            # The same picture, or a backend, may have failed since the notes were read.
            has_news = has_waited or self._drawings.landings != landings
            return self._draw(request, deadline, memory, has_news, reservation)

        while True:
            try:
                return self._drawings.run(request.key, until, work)
            except OverLimit as error:
                # The drawing that was waited for may have been another caller's.
                if error.caller == reservation.caller:
                    raise
            except StillRunning:
                if deadline.is_over:
                    raise GaveUp("deadline_passed") from None
                if until.is_over:
                    raise

    def reserve(self, caller: Caller, drawings: int) -> Reservation:
        """Reserve places for several drawings at once, or for none. Raises OverLimit, Unavailable.

        Closing the reservation gives back those that no drawing needed.
        """
        return self.limits.reserve(caller, drawings)

    def close(self) -> None:
        """Finish the drawings under way, which have been paid for, and drop those in the queue."""
        self._drawings.close()
        with suppress(Unavailable):
            self.limits.flush()

    def remembered(self, request: ImageRequest) -> GaveUp | None:
        """Return the failure or refusal that `draw` would answer with, without drawing."""
        memory = Memory(self.cache.state, [(Failure, request.key), (Blocked, request.key)])
        if failure := self._recent_failure(request, memory):
            return failure
        journey = self._recall_refusal(Journey(request, Deadline.after(1.0)), memory)
        is_final = journey.blocked_for and not self.fallback
        return verdict(journey, 0.0, has_fallback=False) if is_final else None

    def _draw(
        self,
        request: ImageRequest,
        deadline: Deadline,
        memory: Memory,
        has_news: bool,
        reservation: Reservation,
    ) -> Drawn:
        """Draw, unless another process drew or failed while this one waited for it."""
        self.cache.settle()
        if picture := self.cache.get(request.key):
            picture.close()
            self.metrics.waited()
            return Drawn("cache", (), picture.row)
        if has_news or memory.age > MAX_MEMORY_AGE:
            memory.refresh()
            if failure := self._recent_failure(request, memory):
                raise failure
        reservation.take()
        return self._draw_anew(Journey(request, deadline, reservation.caller), memory, reservation)

    def _draw_anew(self, journey: Journey, memory: Memory, reservation: Reservation) -> Drawn:
        began = time.monotonic()
        journey = self._find_image(journey, memory)
        if not journey.made_a_call:
            reservation.give_back()
        whom = f", for {journey.caller.name}" if journey.caller else ""
        if journey.image is None:
            gave_up = self._give_up(journey, memory)
            log.info("Gave up on %s%s: %s", journey.label, whom, gave_up)
            self._count_failure(gave_up, began)
            raise gave_up
        drawn_by = journey.image.drawn_by
        log.info("Drew %s%s: %s, by %s", journey.label, whom, journey.source, drawn_by)
        drawn = self.keeper.keep(journey, journey.image, memory)
        self.metrics.drawn(drawn.source)
        self._count("drawn", drawn.stages, began)
        return drawn

    def _count_failure(self, gave_up: GaveUp, began: float) -> None:
        if not gave_up.is_repeated:
            outcome = "refused" if gave_up.code == "moderation_refused" else "failed"
            self._count(outcome, gave_up.stages, began)

    def _count(self, outcome: str, stages: Iterable[Stage], began: float) -> None:
        self.metrics.drawing_ended(outcome, time.monotonic() - began)
        for stage in stages:
            self.metrics.stage(stage.stage, stage.outcome, stage.seconds)

    def _wanted(self, request: ImageRequest) -> list[tuple[type[Note], str]]:
        wanted: list[tuple[type[Note], str]] = [(Blocked, request.key), (Failure, request.key)]
        wanted += self.backends.wanted(request)
        wanted += self.keeper.wanted()
        return wanted + (self.llm.wanted(request.prompt) if self.llm else [])

    def _recent_failure(self, request: ImageRequest, memory: Memory) -> GaveUp | None:
        recalled = memory.get(Failure, request.key)
        if recalled is None or recalled.note.fingerprint != self.fingerprint:
            return None
        return recalled.note.again(recalled.age)

    # --- the stages

    def _find_image(self, journey: Journey, memory: Memory) -> Journey:
        journey = self._recall_refusal(journey, memory)
        if not journey.blocked_for:
            journey = self._generate(self._optimise(journey, memory), memory)
            if is_blocked(journey):
                note = Blocked(journey.optimized, journey.rewritten, self.fingerprint)
                memory.remember(note, journey.request.key, self.blocked_ttl)
                journey = replace(journey, blocked_for=self.blocked_ttl)
        return journey if journey.image else self._fall_back(journey)

    def _recall_refusal(self, journey: Journey, memory: Memory) -> Journey:
        """Return the journey with the prompts of a remembered refusal, if there is one."""
        found = memory.get(Blocked, journey.request.key)
        if found is None or found.note.fingerprint != self.fingerprint:
            return journey
        optimized, rewritten = found.note.optimized, found.note.rewritten
        return replace(journey, blocked_for=found.left, optimized=optimized, rewritten=rewritten)

    def _optimise(self, journey: Journey, memory: Memory) -> Journey:
        if not self.llm or not self.llm.template("optimise"):
            return journey
        began = time.monotonic()
        try:
            optimized = self._ask_llm(self.llm, "optimise", journey, memory)
        except RewriteFailed as error:
            return journey.after(Stage.since(began, "optimise", "failed", error.why))
        return replace(journey.after(Stage.since(began, "optimise", "ok")), optimized=optimized)

    def _generate(self, journey: Journey, memory: Memory) -> Journey:
        """Ask the backends, and rewrite what they do not draw, for as many rounds as allowed."""
        rounds = self.llm.safety_attempts if self.llm else 0
        for number in range(rounds + 1):
            began = time.monotonic()
            found = self.backends.draw(
                journey.best_prompt, journey.request, journey.deadline, memory
            )
            journey = journey.after_round(found, began)
            if found.image or number == rounds or not journey.may_rewriting_help:
                break
            refused = journey.best_prompt
            journey = self._rewrite(journey, memory)
            if journey.best_prompt == refused:
                break
        return journey

    def _rewrite(self, journey: Journey, memory: Memory) -> Journey:
        assert self.llm
        began = time.monotonic()
        try:
            rewritten = self._ask_llm(self.llm, "rewrite", journey, memory)
        except RewriteFailed as error:
            return journey.after(Stage.since(began, "rewrite", "failed", error.why))
        self.metrics.rewritten()
        return replace(journey.after(Stage.since(began, "rewrite", "ok")), rewritten=rewritten)

    def _ask_llm(self, llm: Llm, task: str, journey: Journey, memory: Memory) -> str:
        """Return the best prompt so far, rewritten now or earlier. Raises RewriteFailed."""
        prompt = journey.best_prompt
        key = llm.answer_key(task, prompt)
        if recalled := memory.get(Rewritten, key):
            return recalled.note.prompt
        deadline = journey.deadline.within(llm.timeout)

        def work() -> str:
            if known := memory.recall(Rewritten, key):
                return known.prompt
            answer = llm.rewrite(task, prompt, deadline, memory)
            memory.remember(Rewritten(answer), key, ANSWER_TTL)
            return answer

        try:
            return self._answers.run(key, deadline.remaining(), work)
        except (TimeoutError, LockTimeout) as error:
            reason = f"no answer within {llm.timeout:g} s (LLM_TIMEOUT)"
            raise RewriteFailed(reason, "timed out") from error

    def _fall_back(self, journey: Journey) -> Journey:
        if not self.fallback or journey.deadline.is_over:
            return journey
        began = time.monotonic()
        try:
            image = self.fallback.draw(journey.best_prompt, journey.request, journey.deadline)
        except NotDrawn as error:
            outcome, why = error.fault.outcome, error.fault.why
            log.info("The fallback did not draw %.12s: %s", journey.request.key, error)
            return journey.after(Stage.since(began, "fallback", outcome, why))
        return replace(journey.after(Stage.since(began, "fallback", "ok")), image=image)

    def _give_up(self, journey: Journey, memory: Memory) -> GaveUp:
        """Return the final failure, remembered if repeating the request would cost another call."""
        request = journey.request
        wait = self.backends.ready_in(request, memory)
        gave_up = verdict(journey, wait, has_fallback=self.fallback is not None)
        if gave_up.is_worth_remembering:
            before = memory.get(Failure, request.key)
            note = Failure.after(before.note if before else None, gave_up, self.fingerprint)
            memory.remember(note, request.key, note.ttl)
            gave_up = note.again(0.0, is_first=True) or gave_up
        return gave_up
