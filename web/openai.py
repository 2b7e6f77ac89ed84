"""The OpenAI-compatible API: POST /v1/images/generations and GET /v1/models.

For ordinary OpenAI clients. Access, pipeline and cache are the same as for /prompt/. Requests,
answers and errors are those of https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NoReturn

from flask import Response, request

from access import Access, Caller, Forbidden
from cache import Cache, Picture
from config import Settings
from drawing.pool import Busy
from drawing.record import Drawing, GaveUp
from drawing.reservation import OverLimit, Reservation
from metrics import Metrics
from picture import BadRequest, ImageRequest, Problem
from pipeline import Pipeline
from storage import Unavailable
from web.api import parse_body, read_bytes
from web.openai_forms import (
    MAX_BODY,
    MAX_PICTURES,
    OPEN_HEADERS,
    Encoded,
    Form,
    Order,
    Part,
    joined,
    may_retry,
    open_json,
    pieces,
    with_base64,
)
from web.picture_link import Link
from web.problems import NotFound
from web.repeats import Claim, claim, send


@dataclass(frozen=True, slots=True)
class Obtained:
    """A picture from the cache or just drawn; `encoded` is None where only its host has it."""

    encoded: Encoded | None
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
        body = read_bytes(MAX_BODY)
        order = Order.from_json(parse_body(body), self.settings.max_prompt_length)
        claimed = self._claim(order, caller, body)
        if claimed.seed is not None:
            order = order.starting_at(claimed.seed)
        try:
            return self._answer(order, caller, claimed)
        except Problem as error:
            if isinstance(error, GaveUp) and not may_retry(error):
                claimed.undelivered(error.remembered_for or 0.0)
            else:
                claimed.unpaid()
            raise

    def list_models(self) -> Response:
        """GET /v1/models: the models that are offered."""
        self._authorise()
        data = [_describe_model(model) for model in self.settings.models]
        return open_json({"object": "list", "data": data})

    def show_model(self, id: str) -> Response:
        """GET /v1/models/{id}: one of the models that are offered."""
        self._authorise()
        if id not in self.settings.models:
            raise NotFound("no_such_model")
        return open_json(_describe_model(id))

    def _authorise(self) -> Caller:
        return self.access.authorise({}, request.headers.get("Authorization", ""))

    # --- an order

    def _claim(self, order: Order, caller: Caller, body: bytes) -> Claim:
        """Claim the seeds of an order, unless it has its own. Raises Unavailable."""
        if order.has_seed:
            return Claim(self.cache.state)

        def is_failing(seed: int) -> bool:
            return all(map(self.pipeline.remembered, order.starting_at(seed).pictures))

        key = hashlib.sha256(caller.name.encode() + b"\0" + body).hexdigest()
        return claim(self.cache.state, key, _retry_count(), order.first.seed, is_failing)

    def _answer(self, order: Order, caller: Caller, claimed: Claim) -> Response:
        urls = self._sign(order, caller)
        places = 0 if claimed.joins else self._missing(order)
        with ExitStack() as stack:
            # If several drawings would exceed the day's limit, none begins.
            with Reservation(self.cache.state, caller, places if places > 1 else 0) as reserved:
                found = self._draw_all(order, reserved)
            for obtained in found.values():
                if obtained.encoded:
                    stack.callback(obtained.encoded.file.close)
            stack.callback(claimed.undelivered)
            items = [
                _describe_picture(picture, found[picture], order.form, urls.get(picture))
                for picture in order.pictures
                if picture in found
            ]
            response = _respond(items, claimed)
            response.call_on_close(stack.pop_all().close)
        return response

    def _sign(self, order: Order, caller: Caller) -> dict[ImageRequest, str]:
        """Return the pictures' URLs if they are wanted. Comes first: a failure costs nothing."""
        if order.form == "b64_json":
            return {}
        try:
            return {picture: self.link(picture, caller).url for picture in order.pictures}
        except (BadRequest, Forbidden) as error:
            if order.form == "url":
                raise BadRequest(error.code, name="response_format") from error
            return {}

    def _missing(self, order: Order) -> int:
        """Return how many pictures of an order are not in the cache."""
        keys = [picture.key for picture in order.pictures]
        return len(keys) - len(self.cache.state.files(keys))

    def _draw_all(self, order: Order, reserved: Reservation) -> dict[ImageRequest, Obtained]:
        """Return the pictures that could be drawn. Raises an error only if all drawings failed."""
        pictures = order.pictures
        first, *others = pictures
        # Each waits in a thread of its own and takes one of the pipeline's waiting places.
        with ThreadPoolExecutor(MAX_PICTURES, thread_name_prefix="openai") as threads:
            drawing = threads.map(lambda other: self._draw(other, reserved), others)
            outcomes = [self._draw(first, reserved), *drawing]
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if len(errors) == len(outcomes):
            raise next((error for error in errors if not may_retry(error)), errors[0])
        return {
            picture: outcome
            for picture, outcome in zip(pictures, outcomes, strict=True)
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

    def _found(self, wanted: ImageRequest, drawn: Drawing) -> Obtained:
        """Return a picture just drawn, from its file if it has one: that takes no memory."""
        image = drawn.image
        if image is None or (drawn.row and drawn.row.file):
            with suppress(Unavailable):
                if picture := self.cache.get(wanted.key, wanted):
                    return _from_cache(picture)
        if image is None:
            raise Unavailable("the picture was drawn by another process and is gone")
        revised = drawn.row.final_prompt if drawn.row else image.revised_prompt
        encoded = Encoded(BytesIO(image.data), len(image.data))
        return Obtained(encoded, drawn.hosted_url, drawn.row is not None, revised)


def edit() -> NoReturn:
    """POST /v1/images/edits: not supported. The body, an upload, is not read."""
    raise BadRequest("no_edits")


def _retry_count() -> int:
    """Return the number of the repetition, which OpenAI's SDKs send; 0 for a first request."""
    text = request.headers.get("x-stainless-retry-count", "")
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0


def _from_cache(picture: Picture) -> Obtained:
    encoded = Encoded(picture.file, picture.row.bytes) if picture.file else None
    return Obtained(encoded, picture.row.url, True, picture.row.final_prompt)


def _describe_picture(
    wanted: ImageRequest, found: Obtained, form: Form | None, signed: str | None
) -> list[Part]:
    more = {"revised_prompt": found.revised_prompt, "seed": wanted.seed}
    # At its URL, a picture that could not be stored would be drawn and paid for again.
    own = signed if found.is_stored else None
    url = (own or found.hosted_url) if form == "url" else (found.hosted_url or own)
    if found.encoded and not (form == "url" and url):
        shown = {"url": url} if url and form is None else {}
        return with_base64(found.encoded, shown | more)
    return [json.dumps({"url": url, **more}).encode()]


def _respond(items: list[list[Part]], claimed: Claim) -> Response:
    """Answer with uncacheable JSON, written piece by piece."""
    before = f'{{"created": {int(time.time())}, "data": ['.encode()
    parts = joined(items, before, b"]}\n")
    length = ("Content-Length", str(sum(map(len, parts))))
    body = send(pieces(parts), request.environ.get("gunicorn.socket"), claimed)
    return Response(body, mimetype="application/json", headers=[*OPEN_HEADERS, length])


def _describe_model(model: str) -> Mapping[str, Any]:
    # OpenAI's form has `created` and `owned_by`, and its SDKs require them.
    return {"id": model, "object": "model", "created": 0, "owned_by": "prompt-image-proxy"}
