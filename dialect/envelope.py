"""The JSON of an answer's body, whatever gateways put around it, and the error in it.

An event stream is read as one value.
"""

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
_LINE = re.compile(r'[ \t\ufeff]*(?:event:[ \t]*(?P<name>[^\r\n]{0,100})|(?P<value>(?=[{\["])))')
# Not strict: some servers leave line breaks in strings as they are.
_DECODER = json.JSONDecoder(strict=False)
# Each may have been read to the end of the body, as `[DONE]` is not.
_MAX_FAULTY = 20
# Streamed chats have one for each token.
_MAX_EVENTS = 20_000

# A message beside one of these is no complaint.
_CONTENT = ("data", "images", "choices", "output", "output_images", "task_id", "task_status")
# What becomes of a task may stand in a field of one of these names.
_STATUS_NAMES = ("task_status", "status", "state")
FAILED = frozenset((
    "failed", "failure", "fail", "error", "cancelled", "canceled", "expired", "rejected", "blocked",
))  # fmt: skip
# MiniMax's codes as HTTP has them; others are about the request.
_MINIMAX = {"1001": 504, "1002": 429, "1004": 401, "1008": 402, "1039": 429, "2049": 401}
_MINIMAX |= dict.fromkeys(("1000", "1013", "1024", "1033"), 500)


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
    # So that a value may be spread over several lines of data.
    text = text.removeprefix("data:").replace("\ndata:", "\n")
    position, name, faulty = 0, "", 0
    while faulty < _MAX_FAULTY:
        line = _LINE.match(text, position)
        if line and line["value"] is not None:
            try:
                value, position = _DECODER.raw_decode(text, line.end())
            except (ValueError, RecursionError):
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


def _type(value: Any) -> str:
    return str(_object(value).get("type") or "")


def _combined(events: list[tuple[str, Any]]) -> Any:
    """Return the named events of a stream as one value."""
    values = [value for name, value in events if "partial" not in name]
    if completed := [value for name, value in events if name.endswith("completed")]:
        return completed[-1]
    if any(map(_delta, values)):
        return _chat(values)
    errors = [
        _object(value).get("error") or value
        for name, value in events
        if name.rpartition(".")[2] in ("error", "failed") or _object(value).get("error")
    ]
    return {"error": errors[0], "data": values[::-1]} if errors else values[::-1]


def first_choice(answer: Any) -> dict[str, Any]:
    """Return the first choice of a chat completion or one of its events, {} if it has none."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return _object(choices[0]) if isinstance(choices, list) and choices else {}


def message_of(answer: Any) -> dict[str, Any]:
    """Return the message of a chat completion's first choice, {} if it has none."""
    return _object(first_choice(answer).get("message"))


def _delta(value: Any) -> dict[str, Any]:
    return _object(first_choice(value).get("delta"))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _chat(values: list[Any]) -> dict[str, Any]:
    """Return the events of a streamed chat completion as the completion they make up."""
    text: list[str] = []
    images: list[Any] = []
    answer: dict[str, Any] = {}
    finished = None
    for value in values:
        choice, delta = first_choice(value), _delta(value)
        for part in _parts(delta.get("content")) + _parts(delta.get("images")):
            said = _object(part).get("text") or part
            (text if isinstance(said, str) else images).append(said)
        finished = choice.get("finish_reason") or finished
        if error := _object(value).get("error") or choice.get("error"):
            answer = {"error": error}
    message = {"content": "".join(text)} | ({"images": images} if images else {})
    return answer | {"choices": [{"message": message, "finish_reason": finished}]}


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def complaint(answer: Any) -> Any:
    """Return the error in an answer of any status, or None if it reports none."""
    if not isinstance(answer, dict):
        return None
    if error := answer.get("error"):
        return error
    if choice := first_choice(answer):
        return choice.get("error") or None
    if _minimax_code(answer):
        return answer
    if task_status(answer) in FAILED:
        errors = (part.get(name) for part in task_parts(answer) for name in ("error", "errors"))
        return next(filter(None, errors), answer)
    has_content = any(answer.get(name) for name in _CONTENT)
    complains = any(answer.get(name) for name in ("errors", "message", "msg", "detail"))
    return answer if complains and not has_content else None


def claimed_status(error: Any) -> int:
    """Return the status that an error inside a 200 claims, or 400 if it claims none."""
    error = _object(error)
    code = str(error.get("code") or error.get("status") or _MINIMAX.get(_minimax_code(error), ""))
    return int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 400


def _minimax_code(answer: dict[str, Any]) -> str:
    """Return the code in an answer of MiniMax's; 0 is success."""
    return str(_object(answer.get("base_resp")).get("status_code") or "")


def task_parts(answer: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of an answer that may be about a task, the innermost first."""
    answer = _object(answer)
    for name in ("data", "output"):
        yield from map(_object, _parts(answer.get(name))[:1])
    yield answer


def task_status(answer: Any) -> str | None:
    """Return the status of a task in lower case, or None if the answer does not say it."""
    found = (part.get(name) for part in task_parts(answer) for name in _STATUS_NAMES)
    return next((value.lower() for value in found if isinstance(value, str)), None)
