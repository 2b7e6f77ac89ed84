"""The stages of a drawing: optimise, generate, rewrite and try again, fall back, give up.

However many requests ask for a picture, it is drawn once. This module knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from access import COMMAND_LINE, Access, Caller
from backends import MAX_WAIT, Backends
from cache import Cache
from config import Settings
from drawing.backend import NotDrawn
from drawing.fallback import Pollinations
from drawing.pool import Pool, StillRunning
from drawing.record import Drawing, GaveUp, Round, Stage
from drawing.reservation import OverLimit, Reservation
from drawing.storing import Drawn, Storing
from drawing.verdict import Blocked, Failure, is_blocked, verdict
from hosting import ImageHost
from llm import Llm, RewriteFailed
from metrics import OFF, Metrics
from picture import ImageRequest
from upstream.client import Deadline, Upstream, Why

if TYPE_CHECKING:
    from images.convert import Converter  # needs Pillow

log = logging.getLogger("prompt_image_proxy.pipeline")


_VERDICT_SECONDS = 1.0


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
        """`fingerprint` identifies the settings under which failures are remembered."""
        self.cache = cache
        self.backends = backends
        self.pool = pool
        self.llm = llm
        self.fallback = fallback
        self.storing = Storing(cache, host, upload_timeout, converter, metrics)
        self.generation_deadline = generation_deadline
        self.blocked_ttl = blocked_ttl
        self.fingerprint = fingerprint
        self.metrics = metrics

    def draw(
        self,
        request: ImageRequest,
        caller: Caller = COMMAND_LINE,
        *,
        reserved: Reservation | None = None,
        answer_within: float | None = None,
    ) -> Drawn:
        """Draw a picture that is not in the cache, or wait while another thread draws it.

        The drawing counts for `caller`, or takes a place of those `reserved`. Raises GaveUp,
        OverLimit, Unavailable, Busy at once if no place is free, and StillRunning after
        `answer_within` seconds: the drawing then goes on, and the picture is stored.
        """
        reservation = reserved or self.reserve(caller)
        began, deadline = time.monotonic(), Deadline.after(self.generation_deadline)
        # A drawing that the deadline ends still says why, a moment later.
        until = Deadline.after(self.generation_deadline + _VERDICT_SECONDS)
        if answer_within is not None:
            until = until.within(answer_within)
        if failure := Failure.recall(self.cache.state, request.key, self.fingerprint):
            raise failure

        def work() -> Drawn:
            with self.metrics.drawing():
                return self._draw(Drawing(request, deadline, reservation.caller), reservation)

        while True:
            try:
                return self.pool.run(request.key, until, work)
            except OverLimit as error:
                # This caller may have waited for the drawing of another, who is over the limit.
                if error.caller == reservation.caller:
                    raise
            except StillRunning:
                if deadline.is_over:
                    late = Stage.since(began, "queue", "failed", Why.TIMED_OUT)
                    raise GaveUp("deadline_passed", [late]) from None
                if until.is_over:
                    raise

    def reserve(self, caller: Caller, drawings: int = 0) -> Reservation:
        """Reserve places for several drawings at once, or for none. Raises OverLimit, Unavailable.

        Closing the reservation gives back those that no drawing needed.
        """
        return Reservation(self.cache.state, caller, drawings)

    def close(self) -> None:
        """Finish the drawings under way, which have been paid for, and drop those in the queue."""
        self.pool.close()

    def remembered(self, request: ImageRequest) -> GaveUp | None:
        """Return the failure or refusal that `draw` would answer with, without drawing.

        Raises Unavailable.
        """
        if failure := Failure.recall(self.cache.state, request.key, self.fingerprint):
            return failure
        refusal = Blocked.recall(self.cache.state, request.key, self.fingerprint)
        if refusal is None or self.fallback:
            return None
        return GaveUp("moderation_refused", remembered_for=refusal.left, is_repeated=True)

    def _draw(self, drawing: Drawing, reservation: Reservation) -> Drawn:
        """Draw, unless another process has drawn, or failed to, while this one waited for it."""
        self.cache.settle()
        if picture := self.cache.get(drawing.key):
            picture.close()
            self.metrics.waited()
            return Drawn("cache", (), picture.row)
        if failure := Failure.recall(self.cache.state, drawing.key, self.fingerprint):
            raise failure
        # Before anything is paid for, there is room for the picture, and the state takes a write.
        with self.storing.reserve():
            reservation.take()
            return self._draw_anew(drawing, reservation)

    def _draw_anew(self, drawing: Drawing, reservation: Reservation) -> Drawn:
        began = time.monotonic()
        drawing = self._find_image(drawing)
        if not drawing.may_have_been_billed:
            reservation.give_back()
        if not drawing.made_a_call:
            reservation.give_back_attempt()
        caller = drawing.caller.name
        if drawing.image is None:
            gave_up = self._give_up(drawing)
            log.info("Gave up on %s, for %s: %s", drawing, caller, gave_up)
            if not gave_up.is_repeated:
                is_refused = gave_up.code == "moderation_refused"
                self._count("refused" if is_refused else "failed", gave_up.stages, began)
            raise gave_up
        drawn_by = drawing.image.drawn_by
        log.info("Drew %s, for %s: %s, by %s", drawing, caller, drawing.source, drawn_by)
        drawn = self.storing.store(drawing, drawing.image)
        self.metrics.drawn(drawn.source)
        self._count("drawn", drawn.stages, began)
        return drawn

    def _count(self, outcome: str, stages: Iterable[Stage], began: float) -> None:
        self.metrics.drawing_ended(outcome, time.monotonic() - began)
        for stage in stages:
            self.metrics.stage(stage.stage, stage.outcome, stage.seconds)

    # --- the stages

    def _find_image(self, drawing: Drawing) -> Drawing:
        drawing = self._recall_refusal(drawing)
        if not drawing.blocked_for:
            drawing = self._generate(self._optimise(drawing))
            if is_blocked(drawing):
                note = Blocked(drawing.optimized, drawing.rewritten, self.fingerprint)
                self.cache.state.try_remember(note, drawing.key, self.blocked_ttl)
                drawing = replace(drawing, blocked_for=self.blocked_ttl)
        return drawing if drawing.image else self._fall_back(drawing)

    def _recall_refusal(self, drawing: Drawing) -> Drawing:
        """Return the drawing with the prompts of a remembered refusal, if there is one."""
        found = Blocked.recall(self.cache.state, drawing.key, self.fingerprint)
        if found is None:
            return drawing
        optimized, rewritten = found.note.optimized, found.note.rewritten
        return replace(drawing, blocked_for=found.left, optimized=optimized, rewritten=rewritten)

    def _optimise(self, drawing: Drawing) -> Drawing:
        if not self.llm or not self.llm.template("optimise") or not self._is_ready(drawing):
            return drawing
        drawing, optimized = _ask(self.llm, "optimise", drawing)
        return replace(drawing, optimized=optimized)

    def _generate(self, drawing: Drawing) -> Drawing:
        """Ask the backends, rewriting the prompt between rounds, as often as the settings allow."""
        drawing = self._ask_backends(drawing)
        if not self.llm:
            return drawing
        for _ in range(self.llm.safety_attempts):
            if drawing.image or not drawing.can_rewriting_help:
                break
            if not self._is_ready(drawing):
                return drawing.after_round(Round(None, (), is_cut=True), time.monotonic())
            refused = drawing.best_prompt
            drawing, rewritten = _ask(self.llm, "rewrite", drawing)
            if rewritten is None:
                break
            self.metrics.rewritten()
            drawing = replace(drawing, rewritten=rewritten)
            if rewritten == refused:
                break
            drawing = self._ask_backends(drawing)
        return drawing

    def _is_ready(self, drawing: Drawing) -> bool:
        """Return whether a backend would be asked now; if not, neither is the LLM."""
        wait = self.backends.ready_in(drawing.request)
        return wait <= min(MAX_WAIT, drawing.deadline.remaining())

    def _ask_backends(self, drawing: Drawing) -> Drawing:
        """Ask for the best prompt; if the LLM made it too long, for the user's own as well."""
        drawing = self._ask_once(drawing)
        if drawing.is_made_too_long:
            drawing = self._ask_once(replace(drawing, optimized=None, rewritten=None))
        return drawing

    def _ask_once(self, drawing: Drawing) -> Drawing:
        began = time.monotonic()
        found = self.backends.draw(drawing.best_prompt, drawing.request, drawing.deadline)
        return drawing.after_round(found, began)

    def _fall_back(self, drawing: Drawing) -> Drawing:
        if not self.fallback or drawing.deadline.is_over:
            return drawing
        began = time.monotonic()
        try:
            image = self.fallback.draw(drawing.best_prompt, drawing.request, drawing.deadline)
        except NotDrawn as error:
            outcome, why = error.fault.outcome, error.fault.why
            return drawing.after(Stage.since(began, "fallback", outcome, why))
        return replace(drawing.after(Stage.since(began, "fallback", "ok")), image=image)

    def _give_up(self, drawing: Drawing) -> GaveUp:
        """Return the final failure, remembered if the same request would cost another call."""
        gave_up = verdict(drawing, self._ready_in(drawing), has_fallback=self.fallback is not None)
        if not gave_up.is_worth_remembering:
            return gave_up
        return Failure.remember(self.cache.state, drawing.key, gave_up, self.fingerprint)

    def _ready_in(self, drawing: Drawing) -> float:
        """Return the seconds until the first server that is cooling down is ready, 0 without one.

        A blocked prompt can only be drawn by the fallback.
        """
        waits = [] if drawing.blocked_for else [self.backends.ready_in(drawing.request)]
        if self.fallback:
            waits.append(self.fallback.ready_in())
        return min(filter(None, waits), default=0.0)


def _ask(llm: Llm, task: str, drawing: Drawing) -> tuple[Drawing, str | None]:
    """Return the drawing after the stage `task`, and the rewritten prompt unless that failed."""
    began = time.monotonic()
    try:
        prompt = llm.rewrite(task, drawing.best_prompt, drawing.deadline)
    except RewriteFailed as error:
        return drawing.after(Stage.since(began, task, "failed", error.why)), None
    return drawing.after(Stage.since(began, task, "ok")), prompt


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that requests and commands work with."""

    settings: Settings
    access: Access
    cache: Cache
    upstream: Upstream
    backends: Backends
    llm: Llm | None
    pipeline: Pipeline

    def close(self) -> None:
        """Finish the drawings under way, and close every connection and file."""
        self.pipeline.close()
        self.upstream.close()
        self.cache.close()
