"""OpenAI's forms: the paths, the orders, the answers and the errors of its API.

Statuses and codes are those of https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json
import re
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from flask import Response

from drawing.pool import Busy
from drawing.record import GaveUp
from picture import MAX_SIDE, OPTIONS, BadRequest, ImageRequest, read_size
from storage import Unavailable
from web.api import read_integer
from web.headers import OPEN
from web.problems import report_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PREFIX = "/v1/"
_PATH = re.compile(r"/+(?:v1/+)*(images|models)(?:/+(.*?))?/*", re.DOTALL)


def with_openai_paths(app: WSGIApplication) -> WSGIApplication:
    """Return `app` with its /v1/images and /v1/models at all their spellings."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["PATH_INFO"] = canonical(environ["PATH_INFO"])
        return app(environ, start_response)

    return call


def canonical(path: str) -> str:
    """Return a path with one /v1 and single slashes if it is one of the OpenAI API's."""
    match = _PATH.fullmatch(path)
    return PREFIX + "/".join(filter(None, match.groups())) if match else path


MAX_PICTURES = 10
# Random seeds stay below: JavaScript's numbers hold nine digits exactly.
_SEEDS = 10**9 - MAX_PICTURES
Form = Literal["b64_json", "url"]
_TEXTS = ("prompt", "model", "size", "response_format", "user", *OPTIONS)


@dataclass(frozen=True, slots=True)
class Order:
    """Pictures that differ in their seeds, which are consecutive.

    `has_seed`: the client chose the first seed; otherwise it is random. `form`: whether to answer
    with URLs or with bytes; None means both.
    """

    first: ImageRequest
    count: int
    has_seed: bool
    form: Form | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any], max_prompt_length: int) -> Order:
        """Read the body of a request. Raises BadRequest.

        Null means not given, and unknown fields are ignored.
        """
        _reject_streaming(body)
        texts = {name: _read_text(body, name) for name in _TEXTS}
        if texts["prompt"] is None:
            raise BadRequest("parameter_missing", name="prompt")
        width, height = _read_size(texts["size"])
        first = ImageRequest.from_text(
            texts["prompt"],
            width=width,
            height=height,
            model=texts["model"],
            max_prompt_length=max_prompt_length,
            **{name: texts[name] for name in OPTIONS},
        )
        count = read_integer(body, "n", 1, MAX_PICTURES) or 1
        limit = 10**18 - 1
        seed = read_integer(body, "seed", -limit, limit - count + 1)
        form = _read_form(texts["response_format"], texts["model"] or "")
        order = cls(first, count, seed is not None, form)
        return order.starting_at(secrets.randbelow(_SEEDS) if seed is None else seed)

    def starting_at(self, seed: int) -> Order:
        """Return the same order with other seeds, of which `seed` is the first."""
        return replace(self, first=replace(self.first, seed=seed))

    @property
    def pictures(self) -> tuple[ImageRequest, ...]:
        seeds = range(self.first.seed, self.first.seed + self.count)
        return tuple(replace(self.first, seed=seed) for seed in seeds)


def _reject_streaming(body: Mapping[str, Any]) -> None:
    if body.get("stream") not in (None, False):
        raise BadRequest("no_streaming", name="stream")
    if body.get("partial_images") not in (None, 0):
        raise BadRequest("no_partial_images", name="partial_images")


def _read_form(text: str | None, model: str) -> Form | None:
    if text is None:
        # OpenAI's models of this name return only bytes, and clients expect nothing else of them.
        return "b64_json" if model.startswith("gpt-image") else None
    if text not in ("b64_json", "url"):
        raise BadRequest("not_a_choice", name="response_format", one="b64_json", other="url")
    return "url" if text == "url" else "b64_json"


def _read_text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest("not_a_string", name=name)
    return value


def _read_size(text: str | None) -> tuple[str | None, str | None]:
    """Return width and height; None leaves them to the backend."""
    if text is None or text == "auto":
        return None, None
    if (sides := read_size(text)) is None:
        raise BadRequest("not_a_size", name="size", high=MAX_SIDE)
    return sides


# 64 KiB of base64. It is a multiple of 3, so that the base64 of the pieces is that of the whole.
_PIECE = 3 * 2**14


@dataclass(frozen=True, slots=True)
class Encoded:
    """The base64 of a file from its beginning, which has `size` bytes."""

    file: BinaryIO
    size: int

    def __len__(self) -> int:
        return -(-self.size // 3) * 4

    def __iter__(self) -> Iterator[bytes]:
        """Raises OSError for a file that is shorter: the answer ends early, and is not JSON."""
        for start in range(0, self.size, _PIECE):
            piece = self.file.read(_PIECE)
            if len(piece) != min(_PIECE, self.size - start):
                raise OSError("a picture is shorter than its row says")
            yield b64encode(piece)


Part = bytes | Encoded


def with_base64(picture: Encoded, fields: Mapping[str, Any]) -> list[Part]:
    """Return a JSON object that holds a picture as `b64_json`, and at least one of `fields`."""
    return [b'{"b64_json": "', picture, b'", ' + json.dumps(fields).encode()[1:]]


def joined(items: Sequence[Sequence[Part]], before: bytes, after: bytes) -> list[Part]:
    """Return the items with commas between them."""
    parts: list[Part] = [before]
    for number, item in enumerate(items):
        parts += [b", ", *item] if number else item
    return [*parts, after]


def pieces(parts: Sequence[Part]) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            yield from part


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
_OF_MODEL = ("no_such_model", "unknown_model")
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
    is_of_model = report.error.code in _OF_MODEL
    status = 404 if is_of_model else report.status
    detail = report.detail("en")
    message = detail if is_of_model else _MESSAGES.get(status, detail)
    message = f"{message} {report.advise('en')}".strip()
    about = {
        "message": message,
        "type": _type(status),
        "param": "model" if is_of_model else _parameter(error),
        "code": "model_not_found" if is_of_model else _CODES.get(status),
    }
    response = open_json({"error": about})
    # Some clients, Open WebUI among them, show nothing but the reason in the status line.
    response.status = f"{400 if status == 422 else status} {re.sub('[^ -~]+', '?', message)}"
    response.headers.update(report.headers)
    if status >= 429 and not may_retry(error):
        # The SDKs would send the request twice more, for the same failure or another paid call.
        response.headers["x-should-retry"] = "false"
    return response


def open_json(value: Any) -> Response:
    """Answer with uncacheable JSON that any page may read."""
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=OPEN_HEADERS)


def _parameter(error: Exception) -> str | None:
    name = error.parameters.get("name") if isinstance(error, BadRequest) else None
    return "prompt" if name == "description" else name


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def may_retry(error: Exception) -> bool:
    """Return whether a client may repeat the request by itself: no call has been paid for."""
    if isinstance(error, GaveUp):
        has_fallen_back = any(stage.stage == "fallback" for stage in error.stages)
        return error.code == "all_cooling_down" and not has_fallen_back
    return isinstance(error, Busy | Unavailable)
