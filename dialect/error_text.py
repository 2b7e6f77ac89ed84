"""The text of an error answer, in whatever fields, nesting and escapes a vendor sends it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from settings.redaction import redacted

# The fields of a request that hold a client's own words.
FREE_TEXT = ("prompt", "model", "quality", "style", "background", "negative_prompt", "user")

# A shorter value may be part of many words, so it is struck out only between quotes. Bytes, since
# a Chinese word has two letters.
_MIN_LENGTH = 4
_QUOTES = "\"'`“”‘’「」[]"
# A longer one is looked for as it is: ignoring case would take quadratic time.
_MAX_PATTERN = 200
# A value that a vendor changed is recognised by so many of its letters and digits.
_MIN_ECHO = 8
_MAX_ECHO = 24
# Vendors' own sizes, ratios and limits look the same.
_NUMBERS = re.compile(r"(?i)\W*\d+(?:\s?[x×*:.,-]\s?\d+)*\W*")
# JSON in JSON in JSON doubles backslashes.
_ESCAPE = re.compile(
    r"""(?i)(?<!\\)\\{1,16}"""
    r"""(?:U(000[0-9a-f]{5}|0010[0-9a-f]{4})|u([0-9a-f]{4})|x([0-9a-f]{2})|[abfnrtv0]|(["'/]))"""
)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def free_text(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the free text in the fields of a request, for images or for chat."""
    found = [body.get(name) for name in FREE_TEXT]
    found += [message.get("content") for message in body.get("messages") or ()]
    return tuple(value for value in found if isinstance(value, str))


def plain(text: str) -> str:
    """Return a text without HTML's entities, JSON's escapes, backslashes and control characters."""
    text = _CONTROL.sub(" ", _ESCAPE.sub(_unescaped, html.unescape(text))).replace("\\", "")
    # Two escapes can be one character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    return chr(int(code, 16)) if code else match[4] or " "


class FreeText:
    """The free text of one request, to be found in the `plain` messages of an error about it."""

    def __init__(self, values: Collection[str]) -> None:
        forms = {plain(value).strip(): value for value in values}
        kept = [form for form in forms if form and not _NUMBERS.fullmatch(form)]
        longest = sorted(kept, key=len, reverse=True)
        self._patterns = [(forms[form], _pattern(form)) for form in longest]
        self._quoting = [form.casefold() for form in kept if '"' in form]
        echoes = (_letters(form)[:_MAX_ECHO] for form in kept)
        self._echoes = [echo for echo in echoes if len(echo) >= _MIN_ECHO]
        self.quoted = set[str]()

    def strike(self, message: str) -> str:
        """Return a message with an ellipsis in place of each value, which then is `quoted`."""
        for value, pattern in self._patterns:
            message, count = pattern.subn("…", message)
            if count:
                self.quoted.add(value)
        return message

    def could_forge(self, fact: str) -> bool:
        """Return whether a value holds JSON, perhaps, with this text in it."""
        return any(fact.casefold() in form for form in self._quoting)

    def is_in(self, texts: Iterable[str]) -> bool:
        """Return whether a value still occurs, in another case or with other marks."""
        letters = _letters("\n".join(texts)) if self._echoes else ""
        return any(echo in letters for echo in self._echoes)


def _pattern(text: str) -> re.Pattern[str]:
    if len(text) > _MAX_PATTERN:
        return re.compile(re.escape(text))
    inner = r"\s+".join(re.escape(word) for word in text.split())
    if len(text.encode("utf-8", "replace")) < _MIN_LENGTH:
        quotes = re.escape(_QUOTES)
        return re.compile(rf"(?<=[{quotes}])\s*{inner}\s*(?=[{quotes}])", re.IGNORECASE)
    # "high" is not in "higher".
    before = "(?<![A-Za-z])" if re.match("[A-Za-z]", text) else ""
    after = "(?![A-Za-z])" if re.search("[A-Za-z]$", text) else ""
    return re.compile(before + inner + after, re.IGNORECASE)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


# Errors state their reason early; reading further is not worth the time.
_MAX_FACTS = 400
_MAX_TEXT = 2**16
_MAX_NESTED = 8
# More than is shown, so that none is shown in part that is replaced as a whole.
_MAX_WORDS = 1000

_FINISH_NAMES = ("finishReason", "finish_reason", "blockReason", "block_reason")
# Only vendors write these. The others can hold a sentence that quotes the client.
_PLAIN_CODE_NAMES = frozenset(("code", "type", "status_code", *_FINISH_NAMES))
_CODE_NAMES = _PLAIN_CODE_NAMES | {"status", "name", "reason"}
_PARAM_NAMES = frozenset(("param", "parameter", "loc", "field", "property", "instancePath"))
_MESSAGE_NAMES = frozenset(
    ("message", "msg", "error", "detail", "error_msg", "errmsg", "status_msg", "description", "")
)
# Fields that repeat our own request, or hold a model's prose, are no evidence.
_ECHOES = frozenset(("input", "prompt", "revised_prompt", "b64_json", "flagged_input", "parts"))
# Gateways quote their own keys.
_SECRET = re.compile(
    r"(?i:bearer)\s+\S+|\b(?:sk|pk|rk|hf|gsk|xai|r8|pst)[-_][\w*.-]{6,}|\bAIza[\w-]{20,}"
)


@dataclass(frozen=True, slots=True)
class ErrorText:
    """The text of an error answer, without what the client wrote.

    `status` is the HTTP status, or the one that an error inside a 200 claims (else 400).
    `codes` are the values of fields such as `code` and `type`, `params` those that name a
    parameter. `text`, for matching only, is everything together, but codes and params alone if
    the error `is_echo`: it repeats the client's words in a form that cannot be struck out.
    `quoted` are the client's values that were. `raw` is everything with the client's words.
    `words` is the vendor's message as it came, shortened, for the administrator; the settings'
    secrets are still in it.
    """

    status: int
    codes: frozenset[str]
    params: frozenset[str]
    text: str
    raw: str
    words: str
    quoted: frozenset[str]
    is_echo: bool

    @classmethod
    def read(
        cls, status: int, answer: Any, sent: Collection[str] = (), secrets: Collection[str] = ()
    ) -> ErrorText:
        """Read any vendor's error. Raises nothing.

        `sent` is the free text of the request, `secrets` are its credentials.
        """
        client, codes, params = FreeText(sent), set[str](), set[str]()
        own, messages = list[str](), list[str]()
        facts = list(islice(_facts(answer), _MAX_FACTS))
        for name, value, is_inside in facts:
            if is_inside and client.could_forge(value):
                continue
            if name in _PARAM_NAMES:
                params.update(re.split(r"[./]", value))
            if name in _PLAIN_CODE_NAMES | _PARAM_NAMES:
                own.append(value)
            else:
                value = client.strike(value)
                messages.append(value)
            if name in _CODE_NAMES:
                codes.add(value)
        is_echo = client.is_in(messages)
        return cls(
            status,
            frozenset(codes),
            frozenset(params),
            _joined(own if is_echo else own + messages),
            _joined(value for _, value, _ in facts),
            _words(facts, secrets),
            frozenset(client.quoted),
            is_echo,
        )


def nodes(answer: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield (field, value, whether it stood in a text) for what a JSON value holds, breadth first.

    The JSON that a gateway quotes in its own message is read too; it may be a client's. Fields
    that repeat the request are left out, and so is the text that a chat model wrote.
    """
    waiting: list[tuple[str, Any, int]] = [("", answer, 0)]
    for name, value, nested in waiting:  # which grows meanwhile
        is_message = name in ("message", "delta") and isinstance(value, dict)
        if name in _ECHOES or (is_message and ("role" in value or "content" in value)):
            continue
        yield name, value, nested > 0
        if isinstance(value, dict):
            inner = [(field, item, nested) for field, item in islice(value.items(), _MAX_FACTS)]
        elif isinstance(value, list):
            inner = [(name, item, nested) for item in value[:_MAX_FACTS]]
        else:
            found = _json_inside(value) if nested < _MAX_NESTED else None
            inner = [] if found is None else [(name, found, nested + 1)]
        waiting += inner[: _MAX_FACTS - len(waiting)]


def _facts(answer: Any) -> Iterator[tuple[str, str, bool]]:
    """Yield (field, text, whether it stood in a text) for each string and number of a value."""
    for name, value, is_inside in nodes(answer):
        if isinstance(value, dict) and name == "errors":
            # As Laravel and Rails write them: {"errors": {"size": […]}}
            yield from (("param", field, is_inside) for field in islice(value, _MAX_FACTS))
        elif isinstance(value, str):
            yield name, plain(value[:4000]), is_inside
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12:
            yield name, str(value), is_inside


def _joined(texts: Iterable[str]) -> str:
    # A number alone is a code; as text it would look like a limit.
    return "\n".join(text for text in texts if not text.isdecimal())[:_MAX_TEXT]


def _words(facts: list[tuple[str, str, bool]], secrets: Collection[str]) -> str:
    """Return the vendor's message on one line, or its codes if it has none."""
    said = [value for name, value, _ in facts if name in _MESSAGE_NAMES and value.strip()]
    text = said[0] if said else ", ".join(value for _, value, _ in facts)
    return " ".join(_SECRET.sub("***", redacted(text, secrets)).split())[:_MAX_WORDS]


def _json_inside(text: Any) -> Any:
    """Return the JSON object that a gateway has quoted in its own message, if any."""
    if not isinstance(text, str) or "{" not in text[:_MAX_TEXT]:
        return None
    try:
        return json.JSONDecoder().raw_decode(text[:_MAX_TEXT], text.index("{"))[0]
    except (ValueError, RecursionError):
        return None
