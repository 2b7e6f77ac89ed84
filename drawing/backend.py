"""One OpenAI-compatible image backend: what it is asked, and the picture in its answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice

from dialect.answers import Found, find_pictures
from dialect.doors import IMAGES, has_size
from dialect.endpoint import Answer, Endpoint
from dialect.envelope import BLANK
from dialect.judging import Fault, Outcome
from dialect.tasks import poll
from drawing.cooldowns import Known, Outages
from drawing.record import NO_MODEL, Drawing, Image
from images.formats import foreign_type, media_type_of
from metrics import Metrics
from picture import ImageRequest
from settings.parsers import printable_url
from settings.servers import BackendSettings
from storage import LockTimeout
from storage.state import State
from upstream.client import JSON_LIMIT, Deadline, Upstream, UpstreamError, Why

# Gateways and LocalAI return picture URLs on their own network, but can send the bytes instead.
_UNFETCHABLE = (Why.FORBIDDEN, Why.UNREACHABLE)
# No answer names so many pictures of one prompt; each may take seconds to fetch.
MAX_CANDIDATES = 8
_WRITE_MODEL = (
    "no model; write model=… into the picture's URL, or "
    '{"*": {"model": "…"}} into BACKEND_PARAMS for this backend'
)
# Vendors name pictures that have yet to reach their storage.
DOWNLOAD_PAUSES = (1.0, 2.0, 4.0)
_MAY_PASS = frozenset((404, 408, 425, 429))
_LOST = (Why.UNREACHABLE, Why.UNREADABLE)
# Seconds between two looks at the slots; each look costs a round trip to a shared database.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


class NotDrawn(Exception):
    """A backend returned no picture. `fault` decides between another backend and rewriting."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault

    @classmethod
    def failed(cls, why: str, detail: str) -> NotDrawn:
        return cls(Fault(Outcome.FAILED, why), detail)


@contextmanager
def counted(
    metrics: Metrics, backend: str, outages: Outages, known: Known, picture: str
) -> Iterator[None]:
    """Count and time the call that a backend gets in the block, and its failures as `outages`."""
    began, outcome = time.perf_counter(), Outcome.FAILED
    try:
        yield
        outcome = Outcome.DRAWN
        outages.end(known)
    except NotDrawn as error:
        outcome = error.fault.outcome
        outages.count(known, error.fault, str(error), picture)
        raise
    finally:
        metrics.backend_called(backend, outcome, time.perf_counter() - began)


@dataclass(eq=False)
class Backend:
    """One OpenAI-compatible image backend; each call may take `timeout` seconds.

    How many drawings it has under way is limited by slots, each a lock of the state. A killed
    process loses its locks, and so frees its slots. A lost session of PostgreSQL loses them, too,
    while its drawings go on: for a while there may be more than the limit.
    """

    settings: BackendSettings
    upstream: Upstream
    state: State
    timeout: float
    max_image_bytes: int
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        settings = self.settings
        self.name = printable_url(settings.url)
        self.weight = settings.weight
        self.endpoint = Endpoint(
            self.upstream, self.state, settings.url, IMAGES, settings.token, settings.headers
        )
        places = range(settings.concurrency or 0)
        self._slots = [self.endpoint.note_key(f"slot {place}") for place in places]

    def model(self, request: ImageRequest) -> str | None:
        """Return the name of the model as this backend knows it, or None for its default."""
        if self.endpoint.door.is_deployment:
            return None
        name = self._mapped_model(request)
        model: str | None = self.settings.extra(name).get("model", name)
        return model

    def _mapped_model(self, request: ImageRequest) -> str | None:
        return self.settings.models.get(request.model, request.model) if request.model else None

    def outages(self, request: ImageRequest) -> Outages:
        """Return the outages of this backend and of the model of `request`."""
        model, key = self.model(request), self.endpoint.outage_key
        return Outages(self.state, key(), f"Backend {self.name}", True, model, key(model))

    def take_slot(self) -> ExitStack | None:
        """Return a slot, freed by closing it, or None if all are taken. Raises Unavailable."""
        slot = ExitStack()
        for key in self._slots:
            with suppress(LockTimeout):
                slot.enter_context(self.state.hold(key, 0))
                return slot
        return None if self._slots else slot

    def draw(self, drawing: Drawing, slot: ExitStack | None = None) -> Image:
        """Draw the best prompt of a drawing. Raises NotDrawn and Unavailable.

        `slot` is closed as soon as the backend has drawn, before the picture is downloaded.
        """
        try:
            return self._draw(drawing, slot or ExitStack())
        except LockTimeout:
            raise NotDrawn.failed(Why.TIMED_OUT, "no room by the deadline") from None
        except UpstreamError as error:
            detail = str(error)
            if error.why is Why.TIMED_OUT:
                detail = f"no answer within {self.timeout:g} s (BACKEND_TIMEOUT)"
                if drawing.deadline.is_over:
                    detail = "no answer by the deadline (GENERATION_DEADLINE)"
            raise NotDrawn.failed(error.why, detail) from error

    def _draw(self, drawing: Drawing, slot: ExitStack) -> Image:
        with slot:
            answer = self._answer(drawing, base64=False)
        try:
            return self._first_picture(answer, drawing.deadline)
        except UpstreamError as error:
            drawing.was_lost = True
            # A backend that sends URLs all the same would be paid for the same request again.
            if error.why not in _UNFETCHABLE or answer.asked_base64:
                raise
        with first_free([self], drawing.deadline, self.sleep)[1]:
            answer = self._answer(drawing, base64=True)
        return self._first_picture(answer, drawing.deadline)

    def _answer(self, drawing: Drawing, *, base64: bool) -> Answer:
        """Return the backend's answer, or the one with which the task that it names has ended."""
        request, deadline = drawing.request, drawing.deadline
        extra = self.settings.extra(self._mapped_model(request))
        fields = {"seed": request.seed, "model": self.model(request), **request.options, **extra}
        body = self.endpoint.door.body(drawing.best_prompt, fields)
        if self.endpoint.door.needs_model and "model" not in body:
            raise NotDrawn(Fault(Outcome.FAILED, NO_MODEL, is_of_model=True), _WRITE_MODEL)
        # Base64 makes a picture a third larger, and JSON surrounds it.
        limit = self.max_image_bytes * 4 // 3 + JSON_LIMIT
        answer = self.endpoint.ask(
            body,
            deadline=deadline.within(self.timeout),
            limit=limit,
            size=None if has_size(extra) else request.pixels,
            base64=base64,
            texts=(request.prompt,),
        )
        last = poll(self.endpoint, answer, deadline, self.timeout, limit, self.sleep)
        return replace(last, asked_base64=answer.asked_base64)

    def _first_picture(self, answer: Answer, deadline: Deadline) -> Image:
        """Return the first picture in a success, whatever fault stands beside it but a refusal.

        Raises NotDrawn, and the best candidate's UpstreamError if none is a picture.
        """
        fault, problems = answer.fault, list[UpstreamError]()
        if fault is None or (answer.reply.status < 300 and fault.outcome is not Outcome.REFUSED):
            for found in islice(_candidates(answer), MAX_CANDIDATES):
                try:
                    return self._picture(found, deadline)
                except UpstreamError as error:
                    problems.append(error)
        if fault is not None:
            raise NotDrawn(fault, f"{fault.why} (HTTP {answer.reply.status})")
        if problems:
            raise problems[0]
        fault = answer.without_picture()
        raise NotDrawn(fault, f"{fault.why} (no picture in its answer)")

    def _picture(self, found: Found, deadline: Deadline) -> Image:
        data = found.data if found.data is not None else self._download(str(found.url), deadline)
        if len(data) > self.max_image_bytes:
            raise UpstreamError("its picture is larger than MAX_IMAGE_BYTES", Why.TOO_LARGE)
        media_type = media_type_of(data)
        if media_type is None:
            if name := foreign_type(data):
                why = Why(f"not a picture: {name}")
                raise UpstreamError(f"its answer is a picture in {name}", why)
            raise UpstreamError("its answer is not a complete picture", Why.NOT_A_PICTURE)
        return Image(data, media_type, self.name, found.revised_prompt)

    def _download(self, url: str, deadline: Deadline) -> bytes:
        """Return what a URL names. Raises UpstreamError.

        The picture is paid for: a failure that may pass is tried again after 1, 2 and 4 s.
        """
        pauses = iter(DOWNLOAD_PAUSES)
        while True:
            bounded = deadline.within(self.timeout)
            try:
                reply = self.upstream.download(
                    url,
                    home=self.endpoint.url,
                    deadline=bounded,
                    limit=self.max_image_bytes,
                    headers=self.endpoint.headers,
                )
                if reply.status == 200 and reply.body:
                    return reply.body
                may_pass = not 300 <= reply.status < 500 or reply.status in _MAY_PASS
                reason = f"the URL of its picture answered {reply.status}"
                problem = UpstreamError(reason, Why.NOT_A_PICTURE)
            except UpstreamError as error:
                # Before the deadline only connecting times out.
                has_not_connected = error.why is Why.TIMED_OUT and not bounded.is_over
                may_pass, problem = error.why in _LOST or has_not_connected, error
            pause = next(pauses, math.inf)
            if not may_pass or deadline.remaining() <= pause:
                raise problem
            self.sleep(pause)


def first_free(
    backends: Sequence[Backend], deadline: Deadline, sleep: Callable[[float], None]
) -> tuple[Backend, ExitStack]:
    """Take a slot of the first backend that has one free, and wait for one if none has.

    Return that backend and the slot. Raises LockTimeout at the deadline, and Unavailable.
    """
    pause = FIRST_PAUSE
    while not deadline.is_over:
        for backend in backends:
            if slot := backend.take_slot():
                return backend, slot
        sleep(min(pause, deadline.remaining()))
        pause = min(2 * pause, LONGEST_PAUSE)
    raise LockTimeout


def _candidates(answer: Answer) -> Iterator[Found]:
    """Yield what may be the picture of an answer, whose body may be the picture itself."""
    reply, body = answer.reply, answer.reply.body.lstrip(BLANK)
    if answer.json is not None:
        yield from find_pictures(answer.json, reply.picture, answer.sent)
    elif reply.picture:
        yield Found(data=reply.picture)  # out of JSON that is broken
    else:
        if body.isascii() and not body.startswith(b"<"):
            yield from find_pictures(body.decode("ascii"), sent=answer.sent)
        yield Found(data=body)
