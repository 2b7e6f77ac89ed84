"""The OpenAI-compatible API: POST /v1/images/generations and GET /v1/models.

For ordinary OpenAI clients. Access, pipeline and cache are the same as for /prompt/. Requests,
answers and errors are those of https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from flask import Response, request

from access import Access, Caller, Forbidden
from cache import Cache, Picture
from config import Settings
from drawing.pool import Busy
from drawing.record import GaveUp
from drawing.reservation import OverLimit, Reservation
from drawing.storing import Drawn
from metrics import Metrics
from picture import MAX_SIDE, OPTIONS, BadRequest, ImageRequest, Link
from pipeline import Pipeline
from storage import Unavailable
from web.api import read_body, read_integer
from web.openai_errors import MAX_BODY, may_retry
from web.problems import NotFound, as_json

MAX_PICTURES = 10
# Random seeds stay below: JavaScript's numbers hold nine digits exactly.
_SEEDS = 10**9 - MAX_PICTURES
_TEXTS = ("prompt", "model", "size", "response_format", "user", *OPTIONS)


@dataclass(frozen=True, slots=True)
class Order:
    """The pictures of a request, which differ in their seeds, and whether as URLs or as bytes."""

    pictures: tuple[ImageRequest, ...]
    wants_urls: bool

    @classmethod
    def from_json(cls, body: Mapping[str, Any], max_prompt_length: int) -> Order:
        """Read the body of POST /v1/images/generations. Raises BadRequest.

        Null means not given, and unknown fields are ignored.
        """
        _reject_streaming(body)
        texts = {name: _read_text(body, name) for name in _TEXTS}
        if texts["prompt"] is None:
            raise BadRequest("parameter_missing", name="prompt")
        if texts["response_format"] not in (None, "b64_json", "url"):
            raise BadRequest("not_a_choice", name="response_format", one="b64_json", other="url")
        width, height = _read_size(texts["size"])
        first = ImageRequest.from_text(
            texts["prompt"],
            width=width,
            height=height,
            model=texts["model"],
            max_prompt_length=max_prompt_length,
            **{name: texts[name] for name in OPTIONS},
        )
        pictures = tuple(replace(first, seed=seed) for seed in _read_seeds(body))
        return cls(pictures, texts["response_format"] == "url")


def _reject_streaming(body: Mapping[str, Any]) -> None:
    if body.get("stream") not in (None, False):
        raise BadRequest("no_streaming", name="stream")
    if body.get("partial_images") not in (None, 0):
        raise BadRequest("no_partial_images", name="partial_images")


def _read_text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest("not_a_string", name=name)
    return value


def _read_size(text: str | None) -> tuple[str | None, str | None]:
    """Return width and height; None leaves them to the backend."""
    if text is None or text == "auto":
        return None, None
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise BadRequest("not_a_size", name="size", high=MAX_SIDE)
    return match[1], match[2]


def _read_seeds(body: Mapping[str, Any]) -> range:
    """Return consecutive seeds, one for each of the `n` pictures, random ones by default."""
    count = read_integer(body, "n", 1, MAX_PICTURES) or 1
    limit = 10**18 - 1
    first = read_integer(body, "seed", -limit, limit - count + 1)
    if first is None:
        first = secrets.randbelow(_SEEDS)
    return range(first, first + count)


@dataclass(frozen=True, slots=True)
class Obtained:
    """A picture from the cache or just drawn; `data` is None where only its image host has it."""

    data: bytes | None
    hosted_url: str | None
    is_stored: bool
    revised_prompt: str | None


class OpenAi:
    """The views under /v1/. `link` returns the signed URL of a picture."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        cache: Cache,
        pipeline: Pipeline,
        link: Callable[[ImageRequest, Caller], Link],
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.access = access
        self.cache = cache
        self.pipeline = pipeline
        self.link = link
        self.metrics = metrics

    def generate(self) -> Response:
        """POST /v1/images/generations: draw pictures, or find those of a given seed."""
        caller = self._authorise()
        order = Order.from_json(read_body(MAX_BODY), self.settings.max_prompt_length)
        urls = self._sign(order, caller)
        # If several drawings would exceed the day's limit, none begins.
        places = len(order.pictures) if len(order.pictures) > 1 else 0
        with self.pipeline.reserve(caller, places) as reserved:
            found = self._draw_all(order, reserved)
        data = [
            _describe_picture(picture, found[picture], urls.get(picture))
            for picture in order.pictures
            if picture in found
        ]
        return as_json({"created": int(time.time()), "data": data})

    def list_models(self) -> Response:
        """GET /v1/models: the models that are offered."""
        self._authorise()
        data = [_describe_model(model) for model in self.settings.models]
        return as_json({"object": "list", "data": data})

    def show_model(self, id: str) -> Response:
        """GET /v1/models/{id}: one of the models that are offered."""
        self._authorise()
        if id not in self.settings.models:
            raise NotFound("no_such_model")
        return as_json(_describe_model(id))

    def _authorise(self) -> Caller:
        return self.access.authorise({}, request.headers.get("Authorization", ""))

    def _sign(self, order: Order, caller: Caller) -> dict[ImageRequest, str]:
        """Return the pictures' URLs if they are wanted. Comes first: a failure costs nothing."""
        if not order.wants_urls:
            return {}
        try:
            return {picture: self.link(picture, caller).url for picture in order.pictures}
        except Forbidden as error:
            raise BadRequest(error.code, name="response_format") from error

    def _draw_all(self, order: Order, reserved: Reservation) -> dict[ImageRequest, Obtained]:
        """Return the pictures that could be drawn. Raises an error only if all drawings failed."""
        first, *others = order.pictures
        # Each waits in a thread of its own and takes one of the pipeline's waiting places.
        with ThreadPoolExecutor(MAX_PICTURES, thread_name_prefix="openai") as threads:
            drawing = threads.map(lambda other: self._draw(other, reserved), others)
            outcomes = [self._draw(first, reserved), *drawing]
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if len(errors) == len(outcomes):
            raise next((error for error in errors if not may_retry(error)), errors[0])
        return {
            picture: outcome
            for picture, outcome in zip(order.pictures, outcomes, strict=True)
            if isinstance(outcome, Obtained)
        }

    def _draw(self, wanted: ImageRequest, reserved: Reservation) -> Obtained | Exception:
        """Return a picture from the cache or draw it; return the error if that fails."""
        try:
            if picture := self.cache.get(wanted.key, wanted):
                self.metrics.hit()
                return _from_cache(picture)
            return self._found(wanted, self.pipeline.draw(wanted, reserved=reserved))
        except (Busy, GaveUp, OverLimit, Unavailable) as error:
            return error

    def _found(self, wanted: ImageRequest, drawn: Drawn) -> Obtained:
        if drawn.image:
            revised = drawn.row.final_prompt if drawn.row else drawn.image.revised_prompt
            return Obtained(drawn.image.data, drawn.hosted_url, drawn.row is not None, revised)
        if picture := self.cache.get(wanted.key, wanted):
            return _from_cache(picture)
        raise Unavailable("the picture was drawn by another process and is gone")


def _from_cache(picture: Picture) -> Obtained:
    data = None
    if picture.file:
        with picture.file as file:
            data = file.read()
    return Obtained(data, picture.row.url, True, picture.row.final_prompt)


def _describe_picture(wanted: ImageRequest, found: Obtained, signed: str | None) -> dict[str, Any]:
    more = {"revised_prompt": found.revised_prompt, "seed": wanted.seed}
    # At its URL, a picture that could not be stored would be drawn and paid for again.
    if found.data is not None and not (signed and found.is_stored):
        return {"b64_json": base64.b64encode(found.data).decode(), **more}
    return {"url": signed or found.hosted_url, **more}


def _describe_model(model: str) -> dict[str, Any]:
    # OpenAI's form has `created` and `owned_by`, and its SDKs require them.
    return {"id": model, "object": "model", "created": 0, "owned_by": "prompt-image-proxy"}
