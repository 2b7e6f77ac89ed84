"""The JSON of an answer's body, whatever gateways put around it; event streams as one value."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from upstream.bodies import has_too_many_values

# Gateways keep a connection alive with blank lines, for minutes.
BLANK = codecs.BOM_UTF8 + b" \t\r\n"
# JSON, a comment, or a field of an event. HTML, which holds JSON in scripts, is not searched.
_BEGINNING = re.compile(rb'[{\["]|(?:data|event|id|retry)?:')
_LINE = re.compile(
    r'[ \t\ufeff]*(?:event:[ \t]*(?P<name>[^\r\n]{0,100})|(?P<value>(?:data:[ \t]*)?(?=[{\["])))'
)
_DATA_LINES = re.compile(r"(?:data:[^\n]*+\n){2,}+")
# Each may have been read to the end of the body, as `[DONE]` is not.
_MAX_FAULTY = 20
# Streamed chats have one for each token.
_MAX_EVENTS = 20_000


def _integer(digits: str) -> float:
    """Return a number of any length: int() refuses one of more than 4,300 digits."""
    return int(digits) if len(digits) < 100 else float(digits)


# Not strict: some servers leave line breaks in strings as they are.
_DECODER = json.JSONDecoder(strict=False, parse_int=_integer)


def read_json(body: bytes) -> Any | None:
    """Return the JSON value of a body, or None if it has none. Raises nothing.

    Blank lines, comments (`: ping`) and `data: [DONE]` may surround it. Of an event stream the
    value is the completed event; of a chat the whole message; of others the list of events, the
    last first, but for partial pictures. An error among them is the value's `error`.
    """
    body = body.lstrip(BLANK)
    if not _BEGINNING.match(body) or has_too_many_values(body):
        return None
    events = list(islice(_events(body.decode("utf-8", "replace")), _MAX_EVENTS))
    if not events:
        return None
    (name, value), *more = events
    if more or name or _delta(value) or "partial" in _type(value):
        return _combined([(name or _type(value), value) for name, value in events])
    return value


def _events(text: str) -> Iterator[tuple[str, Any]]:
    """Yield each value that begins a line or follows another, and the name of its event."""
    position, name, faulty = 0, "", 0
    while faulty < _MAX_FAULTY:
        line = _LINE.match(text, position)
        if line and line["value"] is not None:
            try:
                value, position = _DECODER.raw_decode(text, line.end())
            except (ValueError, RecursionError):
                # Tried once, since it reads far ahead.
                spread = None if faulty else _spread(text, position)
                if spread:
                    yield name, spread[0]
                    name, position = "", spread[1]
                    continue
                faulty += 1
            else:
                yield name, value
                name = ""
                continue
        elif line:
            name = line["name"]
        position = text.find("\n", position) + 1
        if not position:
            return


def _spread(text: str, position: int) -> tuple[Any, int] | None:
    """Return the value of an event that is spread over several `data:` lines, and its end."""
    lines = _DATA_LINES.match(text, position)
    if lines is None:
        return None
    try:
        return _DECODER.decode(re.sub(r"(?m)^data: ?", "", lines[0])), lines.end()
    except (ValueError, RecursionError):
        return None


def _type(value: Any) -> str:
    return str(value.get("type") or "") if isinstance(value, dict) else ""


def _combined(events: list[tuple[str, Any]]) -> Any:
    """Return the named events of a stream as one value."""
    values = [value for name, value in events if "partial" not in name]
    if completed := [value for name, value in events if name.endswith("completed")]:
        return completed[-1]
    if any(map(_delta, values)):
        return _chat(values)
    errors = [
        (value.get("error") if isinstance(value, dict) else None) or (name and value)
        for name, value in events
        if name.rpartition(".")[2] in ("error", "failed")
        or (isinstance(value, dict) and value.get("error"))
    ]
    return {"error": errors[0], "data": values[::-1]} if errors else values[::-1]


def _choice(value: Any) -> dict[str, Any]:
    """Return the first choice of a chat completion or one of its events, {} if it has none."""
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def _delta(value: Any) -> dict[str, Any]:
    delta = _choice(value).get("delta")
    return delta if isinstance(delta, dict) else {}


def _chat(values: list[Any]) -> dict[str, Any]:
    """Return the events of a streamed chat completion as the completion they make up."""
    text: list[str] = []
    images: list[Any] = []
    answer: dict[str, Any] = {}
    finished = None
    for value in values:
        choice, delta = _choice(value), _delta(value)
        for part in _parts(delta.get("content")) + _parts(delta.get("images")):
            is_text = isinstance(part, dict) and isinstance(part.get("text"), str)
            said = part["text"] if is_text else part
            (text if isinstance(said, str) else images).append(said)
        finished = choice.get("finish_reason") or finished
        error = (isinstance(value, dict) and value.get("error")) or choice.get("error")
        if error:
            answer = {"error": error}
    message = {"content": "".join(text)} | ({"images": images} if images else {})
    return answer | {"choices": [{"message": message, "finish_reason": finished}]}


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []
