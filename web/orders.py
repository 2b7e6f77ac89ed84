"""An order: the pictures that a POST /v1/images/generations asks for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from picture import MAX_SIDE, OPTIONS, BadRequest, ImageRequest, read_size
from web.api import read_integer

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
