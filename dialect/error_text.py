"""The text of an error answer, in whatever fields, nesting and escapes a vendor sends it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

# Errors state their reason early; reading further is not worth the time.
_MAX_FACTS = 400
_MAX_TEXT = 2**16
_MAX_NESTED = 8
# A shorter prompt could be a word of the vendor's own.
_MIN_ECHO = 16

_CODE_NAMES = frozenset(
    (
        *("code", "type", "status", "status_code", "name", "reason"),
        *("finishReason", "finish_reason", "blockReason", "block_reason"),
    )
)
_PARAM_NAMES = frozenset(("param", "parameter", "loc", "field", "property", "instancePath"))
# Fields that repeat our own request are no evidence.
_ECHOES = frozenset(("input", "prompt", "revised_prompt", "b64_json"))


@dataclass(frozen=True, slots=True)
class ErrorText:
    """The text of an error answer, for matching only: it is never shown or logged.

    `status` is the HTTP status, or the one that an error inside a 200 claims (else 400).
    `codes` are the values of fields such as `code` and `type`, `params` those that name a
    parameter, `text` is everything together.
    """

    status: int
    codes: frozenset[str]
    params: frozenset[str]
    text: str

    @classmethod
    def read(cls, status: int, answer: Any, prompt: str = "") -> ErrorText:
        """Read any vendor's error; `prompt` is ours, which it may repeat. Raises nothing."""
        facts = list(islice(_facts(answer), _MAX_FACTS))
        params = {
            part
            for name, value in facts
            if name in _PARAM_NAMES
            for part in re.split(r"[./]", value)
        }
        codes = {value for name, value in facts if name in _CODE_NAMES}
        # A number alone is a code; as text it would look like a limit.
        text = "\n".join(value for _, value in facts if not value.isdecimal())[:_MAX_TEXT]
        if len(prompt) >= _MIN_ECHO:
            text = text.replace(prompt, "…")
        return cls(status, frozenset(codes), frozenset(params), text)


def _facts(answer: Any) -> Iterator[tuple[str, str]]:
    """Yield (field, text) for every string and number in a JSON value, breadth first."""
    waiting: list[tuple[str, Any, int]] = [("", answer, 0)]
    position = 0
    while position < min(len(waiting), _MAX_FACTS):
        name, value, nested = waiting[position]
        position += 1
        if name in _ECHOES:
            continue
        if isinstance(value, dict):
            inner = list(islice(value.items(), _MAX_FACTS))
            waiting += [(field, item, nested) for field, item in inner]
            if name == "errors":  # as Laravel and Rails write them: {"errors": {"size": […]}}
                yield from (("param", field) for field, _ in inner)
        elif isinstance(value, list):
            waiting += [(name, item, nested) for item in value[:_MAX_FACTS]]
        elif isinstance(value, str):
            yield name, html.unescape(value[:4000])
            if nested < _MAX_NESTED and (inside := _json_inside(value)) is not None:
                waiting.append((name, inside, nested + 1))
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12:
            yield name, str(value)


def _json_inside(text: str) -> Any:
    """Return the JSON object that a gateway has quoted in its own message, if any."""
    text = text[:_MAX_TEXT]
    start = text.find("{")
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None
