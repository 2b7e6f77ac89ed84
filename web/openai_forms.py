"""OpenAI's forms: the orders, the answers and the errors of its API.

Statuses and codes are those of https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import Response

from cache import Picture
from drawing.pool import Busy
from drawing.record import GaveUp
from picture import MAX_SIDE, OPTIONS, BadRequest, ImageRequest, read_size
from storage import Unavailable
from web.api import read_choice, read_integer, read_text
from web.headers import OPEN
from web.problems import as_json, report_of
from web.sentences import explain

MAX_PICTURES = 10
# Random seeds stay below: JavaScript's numbers hold nine digits exactly.
SEEDS = 10**9 - MAX_PICTURES
_TEXTS = ("prompt", "model", "size", "user", *OPTIONS)


@dataclass(frozen=True, slots=True)
class Order:
    """Pictures that differ in their seeds, which are consecutive.

    `seed` is the first, if the client chose it. `form`: whether to answer with URLs (`url`) or with
    bytes (`b64_json`); None means both.
    """

    first: ImageRequest
    count: int
    seed: int | None
    form: str | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any], max_prompt_length: int) -> Order:
        """Read the body of a request. Raises BadRequest.

        Null means not given, and unknown fields are ignored.
        """
        for name in ("stream", "partial_images"):
            if body.get(name) not in (None, False, 0):
                raise BadRequest("no_streaming", name=name)
        texts = {name: read_text(body, name) for name in _TEXTS}
        if texts["prompt"] is None:
            raise BadRequest("parameter_missing", name="prompt")
        width, height = _read_size(texts["size"])
        given = {name: texts[name] for name in ("model", *OPTIONS)}
        first = ImageRequest.from_text(
            texts["prompt"], max_prompt_length, width=width, height=height, **given
        )
        count = read_integer(body, "n", 1, MAX_PICTURES) or 1
        limit = 10**18 - 1
        seed = read_integer(body, "seed", -limit, limit - count + 1)
        form = read_choice(body, "response_format", ("b64_json", "url"))
        # OpenAI's models of this name return only bytes, and clients expect nothing else of them.
        if form is None and (first.model or "").startswith("gpt-image"):
            form = "b64_json"
        return cls(first, count, seed, form)

    def pictures(self, seed: int) -> list[ImageRequest]:
        """Return the pictures if `seed` is the first of their seeds."""
        return [replace(self.first, seed=seed + number) for number in range(self.count)]


def _read_size(text: str | None) -> tuple[str | None, str | None]:
    """Return width and height; None leaves them to the backend."""
    if text is None or text == "auto":
        return None, None
    if (sides := read_size(text)) is None:
        raise BadRequest("not_a_size", name="size", high=MAX_SIDE)
    return sides


# Stands in JSON where the base64 of a picture belongs. No client knows it.
PLACE = secrets.token_hex(16)
# 64 KiB of base64. It is a multiple of 3, so that the base64 of the pieces is that of the whole.
_PIECE = 3 * 2**14


def length_with_base64(text: str, pictures: Sequence[Picture]) -> int:
    """Return how many bytes `with_base64` yields."""
    encoded = sum(-(-picture.row.bytes // 3) * 4 for picture in pictures)
    return len(text) - len(PLACE) * len(pictures) + encoded


def with_base64(text: str, pictures: Sequence[Picture]) -> Iterator[bytes]:
    """Yield JSON with the base64 of each picture in its place, at most 64 KiB at a time."""
    first, *others = text.split(PLACE)
    yield first.encode()
    for picture, part in zip(pictures, others, strict=True):
        yield from _encoded(picture)
        yield part.encode()


def _encoded(picture: Picture) -> Iterator[bytes]:
    """Raises OSError for a file that is shorter than its row says: the answer ends early, too."""
    size = picture.row.bytes
    for start in range(0, size, _PIECE):
        piece = picture.file.read(_PIECE) if picture.file else b""
        if len(piece) != min(_PIECE, size - start):
            raise OSError("a picture is shorter than its row says")
        yield b64encode(piece)


MAX_BODY = 64 * 1024
# SDKs in a browser obey x-should-retry only if they may read it.
OPEN_HEADERS = (
    *OPEN,
    ("Access-Control-Expose-Headers", "Retry-After, x-should-retry"),
    ("Cache-Control", "no-store"),
)

_CODES = {
    401: "invalid_api_key",
    404: "unknown_url",
    405: "method_not_supported",
    422: "content_policy_violation",
    429: "rate_limit_exceeded",
}
_MESSAGES = {
    # LiteLLM recognises a wrong key by the first four words alone.
    401: "Incorrect API key provided: send the access key as a Bearer token.",
    404: (
        "There is no such route. Pictures are drawn by POST /v1/images/generations;"
        " the base URL of a client ends in /v1."
    ),
}


def openai_error(error: Exception) -> Response:
    """Answer any error with its status, but a refusal with 400, as OpenAI does.

    An unknown model is a 404 there, whoever finds that out.
    """
    report = report_of(error)
    detail, name = explain(report.error), report.error.parameters.get("name")
    about: dict[str, Any] = {
        "message": _MESSAGES.get(report.status, detail),
        "type": "invalid_request_error",
        "param": "prompt" if name == "description" else name,
        "code": _CODES.get(report.status),
    }
    status = 400 if report.status == 422 else report.status
    if report.error.code in ("no_such_model", "unknown_model"):
        status = 404
        about |= {"message": detail, "param": "model", "code": "model_not_found"}
    elif status >= 429:
        about["type"] = "rate_limit_error" if status == 429 else "server_error"
    about["message"] = f"{about['message']} {report.advise('en')}".strip()
    response = as_json({"error": about}, OPEN_HEADERS)
    # Some clients, Open WebUI among them, show nothing but the reason in the status line.
    response.status = f"{status} {re.sub('[^ -~]+', '?', about['message'])}"
    response.headers.update(report.headers)
    if status >= 429 and not may_retry(error):
        # The SDKs would send the request twice more, for the same failure or another paid call.
        response.headers["x-should-retry"] = "false"
    return response


def may_retry(error: Exception) -> bool:
    """Return whether a client may repeat the request by itself: no call has been paid for."""
    if isinstance(error, GaveUp):
        has_fallen_back = any(stage.stage == "fallback" for stage in error.stages)
        return error.code == "all_cooling_down" and not has_fallen_back
    return isinstance(error, Busy | Unavailable)
