"""One OpenAI-compatible image backend: what it is asked, and the picture in its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice

from dialect.answers import Found, find_pictures
from dialect.doors import IMAGES, has_size
from dialect.endpoint import Answer, Endpoint
from dialect.envelope import BLANK
from dialect.judging import Fault, Outcome
from dialect.tasks import poll
from drawing.cooldowns import Outages
from drawing.downloads import fetch
from drawing.pool import Slots, first_free
from drawing.record import NO_MODEL, Image
from images.formats import foreign_type, media_type_of
from metrics import OFF, Metrics
from picture import ImageRequest
from settings.parsers import printable_url
from settings.servers import BackendSettings
from storage import LockTimeout
from storage.state import State
from upstream.client import JSON_LIMIT, Deadline, Upstream, UpstreamError, Why

# Gateways and LocalAI return picture URLs on their own network, but can send the bytes instead.
_UNFETCHABLE = (Why.FORBIDDEN, Why.UNREACHABLE)
_NO_PICTURE = "its answer is not a complete picture"
# No answer names so many pictures of one prompt; each may take seconds to fetch.
MAX_CANDIDATES = 8
_NO_MODEL = Fault(Outcome.FAILED, NO_MODEL, is_of_model=True)
_WRITE_MODEL = (
    "no model; write model=… into the picture's URL, or "
    '{"*": {"model": "…"}} into BACKEND_PARAMS for this backend'
)


class NotDrawn(Exception):
    """A backend returned no picture. `fault` decides between another backend and rewriting."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault

    @classmethod
    def failed(cls, why: str, detail: str) -> NotDrawn:
        return cls(Fault(Outcome.FAILED, why), detail)


@contextmanager
def counted(metrics: Metrics, backend: str) -> Iterator[None]:
    """Count and time a call to a backend by its outcome."""
    began, outcome = time.perf_counter(), Outcome.FAILED
    try:
        yield
        outcome = Outcome.DRAWN
    except NotDrawn as error:
        outcome = error.fault.outcome
        raise
    finally:
        metrics.backend_called(backend, outcome, time.perf_counter() - began)


class Backend:
    """One OpenAI-compatible image backend."""

    def __init__(
        self,
        settings: BackendSettings,
        upstream: Upstream,
        state: State,
        *,
        timeout: float,
        max_image_bytes: int,
        metrics: Metrics = OFF,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.name = printable_url(settings.url)
        self.weight = settings.weight
        self.timeout = timeout
        self.max_image_bytes = max_image_bytes
        self.upstream = upstream
        self.endpoint = Endpoint(
            upstream, state, settings.url, IMAGES, settings.token, settings.headers
        )
        places = range(settings.concurrency or 0)
        self.slots = Slots(state, [self.endpoint.note_key(f"slot {place}") for place in places])
        self.sleep = sleep
        self.metrics = metrics
        metrics.backend_listed(self.name)

    def model(self, request: ImageRequest) -> str | None:
        """Return the name of the model as this backend knows it, or None for its default."""
        if self.endpoint.door.is_deployment:
            return None
        name = self._mapped_model(request)
        model: str | None = self.settings.extra(name).get("model", name)
        return model

    def _mapped_model(self, request: ImageRequest) -> str | None:
        return self.settings.models.get(request.model, request.model) if request.model else None

    def outages(self, request: ImageRequest) -> tuple[Outages, Outages]:
        """Return the outages of this backend, and those of its model alone."""
        endpoint, model, name = self.endpoint, self.model(request), f"Backend {self.name}"
        key = endpoint.outage_key()
        of_model = f"{name}, model {model}" if model else f"{name}, default model"
        return (
            Outages(endpoint.state, key, name, model=model),
            Outages(endpoint.state, endpoint.outage_key(model), of_model, model=model, server=key),
        )

    def draw(
        self,
        prompt: str,
        request: ImageRequest,
        deadline: Deadline,
        slot: AbstractContextManager[object] | None = None,
    ) -> Image:
        """Draw `prompt` at the size, seed and model of `request`. Raises NotDrawn, Unavailable.

        `slot` is closed as soon as the backend has drawn, before the picture is downloaded.
        """
        with counted(self.metrics, self.name):
            return self._draw(prompt, request, deadline, slot or nullcontext())

    def _draw(
        self,
        prompt: str,
        request: ImageRequest,
        deadline: Deadline,
        slot: AbstractContextManager[object],
    ) -> Image:
        try:
            return self._image(prompt, request, deadline, slot)
        except UpstreamError as error:
            detail = str(error)
            if error.why is Why.TIMED_OUT:
                detail = f"no answer within {self.timeout:g} s (BACKEND_TIMEOUT)"
                if deadline.is_over:
                    detail = "no answer by the deadline (GENERATION_DEADLINE)"
            raise NotDrawn.failed(error.why, detail) from error

    def _image(
        self,
        prompt: str,
        request: ImageRequest,
        deadline: Deadline,
        slot: AbstractContextManager[object],
    ) -> Image:
        for base64 in (False, True):
            with slot if not base64 else self._slot(deadline):
                answer = self._answer(prompt, request, deadline, base64=base64)
            if answer.fault is not None and (
                answer.reply.status >= 300 or answer.fault.outcome is Outcome.REFUSED
            ):
                raise _not_drawn(answer.fault, answer)
            try:
                return self._first_picture(answer, deadline)
            except UpstreamError as error:
                if base64 or error.why not in _UNFETCHABLE:
                    raise
        raise AssertionError("the second answer returns or raises")

    def _first_picture(self, answer: Answer, deadline: Deadline) -> Image:
        """Return the first picture in a success, whatever fault stands beside it.

        Raises NotDrawn, and the best candidate's UpstreamError if none is a picture.
        """
        problems: list[UpstreamError] = []
        for found in islice(_candidates(answer), MAX_CANDIDATES):
            try:
                return self._picture(found, deadline)
            except UpstreamError as error:
                problems.append(error)
        if answer.fault is not None:
            raise _not_drawn(answer.fault, answer)
        if not problems:
            fault = answer.without_picture()
            raise NotDrawn(fault, f"{fault.why} (no picture in its answer)")
        raise problems[0]

    def _picture(self, found: Found, deadline: Deadline) -> Image:
        data = found.data if found.data is not None else self._download(str(found.url), deadline)
        if len(data) > self.max_image_bytes:
            raise UpstreamError("its picture is larger than MAX_IMAGE_BYTES", Why.TOO_LARGE)
        media_type = media_type_of(data)
        if media_type is None:
            name = foreign_type(data)
            why = Why(f"not a picture: {name}") if name else Why.NOT_A_PICTURE
            raise UpstreamError(f"its answer is a picture in {name}" if name else _NO_PICTURE, why)
        return Image(data, media_type, self.name, found.revised_prompt)

    def _slot(self, deadline: Deadline) -> AbstractContextManager[object]:
        """Return a slot for a second call. Raises NotDrawn at the deadline."""
        try:
            return first_free([self.slots], deadline, self.sleep)[1]
        except LockTimeout:
            raise NotDrawn.failed(Why.TIMED_OUT, "no room by the deadline") from None

    def _answer(
        self, prompt: str, request: ImageRequest, deadline: Deadline, *, base64: bool
    ) -> Answer:
        """Return the backend's answer, or the one with which the task that it names has ended."""
        extra = self.settings.extra(self._mapped_model(request))
        fields = {"seed": request.seed, "model": self.model(request), **request.options, **extra}
        body = self.endpoint.door.body(prompt, fields)
        if self.endpoint.door.needs_model and "model" not in body:
            raise NotDrawn(_NO_MODEL, _WRITE_MODEL)
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
        return poll(
            self.endpoint,
            answer,
            deadline=deadline,
            timeout=self.timeout,
            limit=limit,
            sleep=self.sleep,
        )

    def _download(self, url: str, deadline: Deadline) -> bytes:
        return fetch(
            self.upstream,
            url,
            base=self.endpoint.url,
            home=self.settings.url,
            headers=self.endpoint.headers,
            deadline=deadline,
            timeout=self.timeout,
            limit=self.max_image_bytes,
            sleep=self.sleep,
        )


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


def _not_drawn(fault: Fault, answer: Answer) -> NotDrawn:
    return NotDrawn(fault, f"{fault.why} (HTTP {answer.reply.status})")
