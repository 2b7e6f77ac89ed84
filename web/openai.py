"""The OpenAI-compatible API: POST /v1/images/generations and GET /v1/models.

For ordinary OpenAI clients. Access, pipeline and cache are the same as for /prompt/. Requests,
answers and errors are those of https://platform.openai.com/docs/api-reference.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

from flask import Response, request

from access import Access, Caller, Forbidden
from cache import Cache, Picture
from config import Settings
from drawing.pool import Busy
from drawing.record import GaveUp
from drawing.reservation import OverLimit, Reservation
from metrics import Metrics
from picture import BadRequest, ImageRequest, Problem
from pipeline import Pipeline
from storage import Unavailable
from web.api import read_body
from web.openai_forms import (
    MAX_BODY,
    MAX_PICTURES,
    OPEN_HEADERS,
    PLACE,
    SEEDS,
    Order,
    length_with_base64,
    may_retry,
    with_base64,
)
from web.pictures import open_drawn
from web.problems import NotFound, as_json
from web.repeats import ORDER_TTL, Claim, claim, send


@dataclass
class OpenAi:
    """The views under /v1/. `sign_url` returns the signed URL of a picture."""

    settings: Settings
    access: Access
    cache: Cache
    pipeline: Pipeline
    sign_url: Callable[[ImageRequest, Caller], str]
    metrics: Metrics

    def generate(self) -> Response:
        """POST /v1/images/generations: draw pictures, or find those of a given seed."""
        caller = self._authorise()
        order = Order.from_json(read_body(MAX_BODY), self.settings.max_prompt_length)
        claimed = self._claim(order, caller)
        try:
            return self._answer(order, caller, claimed)
        except Problem as error:
            if isinstance(error, GaveUp) and not may_retry(error):
                claimed.end(max(ORDER_TTL, error.remembered_for or 0.0))
            else:  # it cost nothing
                claimed.end(0.0 if claimed.is_new else ORDER_TTL)
            raise

    def list_models(self) -> Response:
        """GET /v1/models: the models that are offered."""
        self._authorise()
        data = [_describe_model(model) for model in self.settings.models]
        return as_json({"object": "list", "data": data}, OPEN_HEADERS)

    def show_model(self, id: str) -> Response:
        """GET /v1/models/{id}: one of the models that are offered."""
        self._authorise()
        if id not in self.settings.models:
            raise NotFound("no_such_model")
        return as_json(_describe_model(id), OPEN_HEADERS)

    def _authorise(self) -> Caller:
        return self.access.authorise({}, request.headers.get("Authorization", ""))

    # --- an order

    def _claim(self, order: Order, caller: Caller) -> Claim:
        """Claim the seeds of an order, unless it has its own. Raises Unavailable."""
        if order.seed is not None:
            return Claim(self.cache.state, order.seed)

        def is_failing(seed: int) -> bool:
            return all(map(self.pipeline.remembered, order.pictures(seed)))

        key = hashlib.sha256(caller.name.encode() + b"\0" + request.get_data()).hexdigest()
        # OpenAI's SDKs count their repetitions.
        retry = min(9999, max(0, request.headers.get("x-stainless-retry-count", 0, int)))
        return claim(self.cache.state, key, retry, secrets.randbelow(SEEDS), is_failing)

    def _answer(self, order: Order, caller: Caller, claimed: Claim) -> Response:
        pictures, places = order.pictures(claimed.seed), 0
        urls = self._sign(pictures, order.form, caller)
        if order.count > 1 and not claimed.joins:
            # If several drawings would exceed the day's limit, none begins.
            places = order.count - len(self.cache.state.files([one.key for one in pictures]))
        with Reservation(self.cache.state, caller, places if places > 1 else 0) as reserved:
            found = self._draw_all(pictures, reserved)
        items = [
            _describe_picture(wanted, picture, order.form, urls.get(wanted))
            for wanted, picture in found.items()
        ]
        response = _respond(items, found.values(), claimed)
        for close in (claimed.end, *(picture.close for picture in found.values())):
            response.call_on_close(close)
        return response

    def _sign(
        self, pictures: Sequence[ImageRequest], form: str | None, caller: Caller
    ) -> dict[ImageRequest, str]:
        """Return the pictures' URLs if they are wanted. Comes first: a failure costs nothing."""
        if form == "b64_json":
            return {}
        try:
            return {picture: self.sign_url(picture, caller) for picture in pictures}
        except (BadRequest, Forbidden) as error:
            if form == "url":
                raise BadRequest(error.code, name="response_format") from error
            return {}

    def _draw_all(
        self, pictures: Sequence[ImageRequest], reserved: Reservation
    ) -> dict[ImageRequest, Picture]:
        """Return the pictures that could be drawn. Raises an error only if all drawings failed."""
        # Each waits in a thread of its own and takes one of the pipeline's waiting places.
        with ThreadPoolExecutor(MAX_PICTURES, thread_name_prefix="openai") as threads:
            outcomes = list(threads.map(lambda wanted: self._draw(wanted, reserved), pictures))
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if len(errors) == len(outcomes):
            raise next((error for error in errors if not may_retry(error)), errors[0])
        found = zip(pictures, outcomes, strict=True)
        return {wanted: outcome for wanted, outcome in found if isinstance(outcome, Picture)}

    def _draw(self, wanted: ImageRequest, reserved: Reservation) -> Picture | Exception:
        """Return a picture from the cache or draw it; return the error if that fails."""
        try:
            if picture := self.cache.get(wanted.key, wanted):
                self.metrics.hit()
                return picture
            return open_drawn(self.pipeline.draw(wanted, reserved), self.cache)
        except (Busy, GaveUp, OverLimit, Unavailable) as error:
            return error


def edit() -> NoReturn:
    """POST /v1/images/edits: not supported. The body, an upload, is not read."""
    raise BadRequest("no_edits")


def _respond(items: list[dict[str, Any]], pictures: Iterable[Picture], claimed: Claim) -> Response:
    """Answer with uncacheable JSON, written piece by piece."""
    text = json.dumps({"created": int(time.time()), "data": items}) + "\n"
    shown = [one for one, item in zip(pictures, items, strict=True) if "b64_json" in item]
    body = send(with_base64(text, shown), request.environ.get("gunicorn.socket"), claimed)
    response = Response(body, mimetype="application/json", headers=OPEN_HEADERS)
    response.content_length = length_with_base64(text, shown)
    return response


def _describe_picture(
    wanted: ImageRequest, picture: Picture, form: str | None, signed: str | None
) -> dict[str, Any]:
    row, found = picture.row, dict[str, Any]()
    # At its URL, a picture that could not be stored would be drawn and paid for again.
    own = signed if picture.is_kept else None
    url = (own or row.url) if form == "url" else (row.url or own)
    if picture.file and not (form == "url" and url):
        found["b64_json"] = PLACE
    if url and (form != "b64_json" or not found):
        found["url"] = url
    return found | {"revised_prompt": row.final_prompt, "seed": wanted.seed}


def _describe_model(model: str) -> Mapping[str, Any]:
    # OpenAI's form has `created` and `owned_by`, and its SDKs require them.
    return {"id": model, "object": "model", "created": 0, "owned_by": "prompt-image-proxy"}
