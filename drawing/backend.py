"""One OpenAI-compatible image backend: what it is asked, and the picture in its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dialect.answers import NoPicture, find_picture
from dialect.endpoint import Answer, Endpoint
from dialect.judging import Fault, Outcome, judge_without_picture
from dialect.learning import SIZE_FIELDS
from drawing.cooldowns import Outages
from drawing.record import Image
from images.formats import media_type_of
from metrics import OFF, Metrics
from picture import ImageRequest
from settings.parsers import printable_url
from settings.servers import BackendSettings
from storage import State
from upstream.client import JSON_LIMIT, Deadline, Upstream, UpstreamError, Why, joined

# Gateways and LocalAI return picture URLs on their own network, but can send the bytes instead.
_UNFETCHABLE = (Why.FORBIDDEN, Why.UNREACHABLE)


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
    ) -> None:
        self.settings = settings
        self.name = printable_url(settings.url)
        self.weight = settings.weight
        self.timeout = timeout
        self.max_image_bytes = max_image_bytes
        self.upstream = upstream
        self.endpoint = Endpoint(
            upstream, state, settings.url, "images/generations", settings.token
        )
        self.metrics = metrics
        metrics.backend_listed(self.name)

    def model(self, request: ImageRequest) -> str | None:
        """Return the name of the model as this backend knows it, or None for its default."""
        name = self._mapped_model(request)
        model: str | None = self.settings.extra(name).get("model", name)
        return model

    def _mapped_model(self, request: ImageRequest) -> str | None:
        return self.settings.models.get(request.model, request.model) if request.model else None

    def outages(self, request: ImageRequest) -> tuple[Outages, Outages]:
        """Return the outages of this backend, and those of its model alone."""
        endpoint, model, name = self.endpoint, self.model(request), f"Backend {self.name}"
        key = endpoint.note_key()
        of_model = f"{name}, model {model}" if model else f"{name}, default model"
        return (
            Outages(endpoint.state, key, name, model=model),
            Outages(endpoint.state, endpoint.note_key(model), of_model, model=model, server=key),
        )

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        """Draw `prompt` at the size, seed and model of `request`. Raises NotDrawn, Unavailable."""
        with counted(self.metrics, self.name):
            return self._draw(prompt, request, deadline)

    def _draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        bounded = deadline.within(self.timeout)
        try:
            return self._image(prompt, request, bounded)
        except UpstreamError as error:
            detail = str(error)
            if error.why is Why.TIMED_OUT:
                detail = f"no answer within {self.timeout:g} s (BACKEND_TIMEOUT)"
                if bounded.at == deadline.at:
                    detail = "no answer by the deadline (GENERATION_DEADLINE)"
            raise NotDrawn.failed(error.why, detail) from error
        except NoPicture as error:
            raise NotDrawn.failed("not a picture", str(error)) from error

    def _image(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        data, revised_prompt = self._ask(prompt, request, deadline)
        media_type = media_type_of(data)
        if media_type is None:
            raise NoPicture("its answer is not a complete picture")
        if len(data) > self.max_image_bytes:
            raise NotDrawn.failed(Why.TOO_LARGE, "its picture is larger than MAX_IMAGE_BYTES")
        return Image(data, media_type, self.name, revised_prompt)

    def _ask(
        self, prompt: str, request: ImageRequest, deadline: Deadline
    ) -> tuple[bytes, str | None]:
        """Return the bytes of the picture and the prompt as the backend revised it."""
        for base64 in (False, True):
            answer = self._answer(prompt, request, deadline, base64=base64)
            if answer.fault is not None:
                raise NotDrawn(answer.fault, f"{answer.fault.why} (HTTP {answer.reply.status})")
            if answer.json is None:
                return answer.reply.body, None
            found = find_picture(answer.json, answer.reply.picture)
            if found is None:
                fault = judge_without_picture(answer.json)
                raise NotDrawn(fault, f"{fault.why} (no picture in its answer)")
            if found.data is not None:
                return found.data, found.revised_prompt
            try:
                return self._download(str(found.url), deadline), found.revised_prompt
            except UpstreamError as error:
                if base64 or error.why not in _UNFETCHABLE:
                    raise
        raise AssertionError("the second answer returns or raises")

    def _answer(
        self,
        prompt: str,
        request: ImageRequest,
        deadline: Deadline,
        *,
        base64: bool,
    ) -> Answer:
        extra = self.settings.extra(self._mapped_model(request))
        fields = {"n": 1, "seed": request.seed, "model": self.model(request), **request.options}
        sent = {name: value for name, value in (fields | extra).items() if value is not None}
        return self.endpoint.ask(
            {"prompt": prompt, **sent},
            deadline=deadline,
            # Base64 makes a picture a third larger, and JSON surrounds it.
            limit=self.max_image_bytes * 4 // 3 + JSON_LIMIT,
            size=None if extra.keys() & SIZE_FIELDS else request.pixels,
            base64=base64,
        )

    def _download(self, url: str, deadline: Deadline) -> bytes:
        reply = self.upstream.download(
            joined(self.endpoint.url, url),
            home=self.settings.url,
            deadline=deadline,
            limit=self.max_image_bytes,
            headers=self.endpoint.headers,
        )
        if reply.status != 200:
            raise NoPicture(f"the URL of its picture answered {reply.status}")
        return reply.body
