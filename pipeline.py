"""The stages of a drawing: optimise, generate, rewrite and try again, fall back, give up.

However many requests ask for a picture, it is drawn once. This module knows nothing of HTTP.
"""

import logging
import time
from dataclasses import dataclass

from access import Access
from backends import MAX_WAIT, Backends
from cache import Cache
from config import Settings
from drawing.backend import NotDrawn
from drawing.fallback import Pollinations
from drawing.pool import Pool, StillRunning
from drawing.record import Drawing, GaveUp, Round, Stage
from drawing.reservation import OverLimit, Reservation
from drawing.storing import Storing
from drawing.verdict import Blocked, Failure, is_blocked, verdict
from llm import Llm, RewriteFailed
from metrics import OFF, Metrics
from picture import ImageRequest
from upstream.client import Deadline, Upstream, Why

log = logging.getLogger("prompt_image_proxy.pipeline")
# A drawing that the deadline ends still says why, a moment later.
_VERDICT_SECONDS = 1.0


@dataclass(eq=False)
class Pipeline:
    """Draws pictures in the threads of a pool, while requests wait."""

    settings: Settings
    cache: Cache
    backends: Backends
    pool: Pool[Drawing]
    storing: Storing
    llm: Llm | None = None
    fallback: Pollinations | None = None
    metrics: Metrics = OFF

    def __post_init__(self) -> None:
        # Of the settings under which failures are remembered.
        self.fingerprint = self.settings.fingerprint

    def draw(
        self,
        request: ImageRequest,
        reservation: Reservation,
        answer_within: float | None = None,
    ) -> Drawing:
        """Draw a picture that is not in the cache, or wait while another thread draws it.

        The drawing takes a place of the reservation. Raises GaveUp, OverLimit, Unavailable, Busy
        at once if too many requests wait, and StillRunning after `answer_within` seconds:
        the drawing then goes on, and the picture is stored.
        """
        seconds = self.settings.generation_deadline
        own = Drawing(request, Deadline.after(seconds))
        until = Deadline.after(seconds + _VERDICT_SECONDS)
        if answer_within is not None:
            until = until.within(answer_within)
        if failure := self.remembered(request):
            raise failure
        while True:
            try:
                drawn = self.pool.run(request.key, until, lambda: self._draw(own, reservation))
            except OverLimit as error:
                # This caller may have waited for the drawing of another, who is over the limit.
                if error.caller == reservation.caller:
                    raise
            except StillRunning:
                if own.deadline.is_over:
                    late = Stage("queue", "failed", seconds, Why.TIMED_OUT)
                    raise GaveUp("deadline_passed", [late]) from None
                if until.is_over:
                    raise
            else:
                if drawn is not own:
                    self.metrics.waited()
                return drawn

    def remembered(self, request: ImageRequest) -> GaveUp | None:
        """Return the failure or refusal that `draw` would answer with. Raises Unavailable."""
        if failure := Failure.recall(self.cache.state, request.key, self.fingerprint):
            return failure
        if self.fallback:
            return None  # which draws what backends refuse
        refusal = Blocked.recall(self.cache.state, request.key, self.fingerprint)
        if refusal is None:
            return None
        return GaveUp("moderation_refused", remembered_for=refusal.left, is_repeated=True)

    def _draw(self, drawing: Drawing, reservation: Reservation) -> Drawing:
        """Draw, unless another process has drawn, or failed to, while this one waited for it."""
        with self.metrics.drawing():
            self.cache.settle()
            if picture := self.cache.get(drawing.request.key):
                picture.close()
                self.metrics.waited()
                drawing.row = picture.row
                return drawing
            if failure := self.remembered(drawing.request):
                raise failure
            # Nothing is paid for without room for the picture and a state that takes a write.
            with self.storing.reserve():
                reservation.take()
                self._draw_anew(drawing, reservation)
            return drawing

    def _draw_anew(self, drawing: Drawing, reservation: Reservation) -> None:
        began = time.monotonic()
        try:
            self._find_image(drawing)
        finally:
            if not drawing.may_have_been_billed:
                reservation.give_back(was_tried=drawing.made_a_call)
        caller, gave_up, outcome = reservation.caller.name, None, "drawn"
        if image := drawing.image:
            log.info("Drew %s, for %s: %s, by %s", drawing, caller, drawing.source, image.drawn_by)
            self.storing.store(drawing, image)
            self.metrics.drawn(drawing.source)
        else:
            gave_up = self._give_up(drawing)
            log.info("Gave up on %s, for %s: %s", drawing, caller, gave_up)
            outcome = "refused" if gave_up.code == "moderation_refused" else "failed"
        self.metrics.drawing_ended(outcome, time.monotonic() - began)
        for stage in drawing.stages:
            self.metrics.stage(stage.stage, stage.outcome, stage.seconds)
        if gave_up:
            raise gave_up

    # --- the stages

    def _find_image(self, drawing: Drawing) -> None:
        state, key, blocked_ttl = self.cache.state, drawing.request.key, self.settings.blocked_ttl
        # Without a fallback, a remembered refusal has ended the drawing before.
        if self.fallback and (found := Blocked.recall(state, key, self.fingerprint)):
            drawing.blocked_for = found.left
            drawing.optimized, drawing.rewritten = found.note.optimized, found.note.rewritten
        else:
            self._generate(drawing)
            if is_blocked(drawing):
                drawing.blocked_for = blocked_ttl
                note = Blocked(drawing.optimized, drawing.rewritten, self.fingerprint)
                state.try_remember(note, key, blocked_ttl)
        if drawing.image is None and self.fallback and not drawing.deadline.is_over:
            began = time.monotonic()
            try:
                drawing.image = self.fallback.draw(drawing)
            except NotDrawn as error:
                drawing.add("fallback", began, error.fault.outcome, error.fault.why)
            else:
                drawing.add("fallback", began)

    def _generate(self, drawing: Drawing) -> None:
        """Ask the backends, rewriting the prompt between rounds, as often as the settings allow."""
        llm = self.llm
        if llm and llm.template("optimise") and self._is_ready(drawing):
            drawing.optimized = _ask(llm, "optimise", drawing)
        self._ask_backends(drawing)
        if not llm:
            return
        for _ in range(llm.safety_attempts):
            if drawing.image or not drawing.can_rewriting_help:
                return
            if not self._is_ready(drawing):
                drawing.add_round(Round(None, is_cut=True), time.monotonic())
                return
            refused = drawing.best_prompt
            rewritten = _ask(llm, "rewrite", drawing)
            if rewritten is None:
                return
            self.metrics.rewritten()
            drawing.rewritten = rewritten
            if rewritten == refused:
                return
            self._ask_backends(drawing)

    def _is_ready(self, drawing: Drawing) -> bool:
        """Return whether a backend would be asked now; if not, neither is the LLM."""
        wait = self.backends.ready_in(drawing.request)
        return not drawing.deadline.is_over and wait <= min(MAX_WAIT, drawing.deadline.remaining())

    def _ask_backends(self, drawing: Drawing) -> None:
        """Ask for the best prompt; if the LLM made it too long, for the user's own as well."""
        began = time.monotonic()
        drawing.add_round(self.backends.draw(drawing), began)
        if drawing.is_made_too_long:
            drawing.optimized = drawing.rewritten = None
            self._ask_backends(drawing)

    def _give_up(self, drawing: Drawing) -> GaveUp:
        """Return the final failure, remembered if the same request would cost another call."""
        # A blocked prompt can only be drawn by the fallback.
        waits = [] if drawing.blocked_for else [self.backends.ready_in(drawing.request)]
        if self.fallback:
            waits.append(self.fallback.outages.wait())
        # Of the first server that is cooling down.
        ready_in = min(filter(None, waits), default=0.0)
        gave_up = verdict(drawing, ready_in, has_fallback=self.fallback is not None)
        is_known = drawing.blocked_for and not self.fallback
        if is_known or not drawing.made_a_call:
            return gave_up
        return Failure.remember(self.cache.state, drawing.request.key, gave_up, self.fingerprint)


def _ask(llm: Llm, task: str, drawing: Drawing) -> str | None:
    """Return the rewritten prompt, or None if that failed; add the stage `task`."""
    began = time.monotonic()
    try:
        prompt = llm.rewrite(task, drawing.best_prompt, drawing.deadline)
    except RewriteFailed as error:
        drawing.add(task, began, "failed", error.fault.why)
        return None
    drawing.add(task, began)
    return prompt


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that requests and commands work with."""

    settings: Settings
    access: Access
    cache: Cache
    upstream: Upstream
    pipeline: Pipeline

    def close(self) -> None:
        """Finish the drawings under way, drop the queue, and close every connection and file."""
        self.pipeline.pool.close()
        self.upstream.close()
        self.cache.close()
