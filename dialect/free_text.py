"""What a client wrote, struck out of errors that quote it: it is no evidence of anything."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

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
_NUMBERS = re.compile(r"\W*\d+(?:\s?[x×*:.,-]\s?\d+)*\W*", re.IGNORECASE)
# JSON in JSON in JSON doubles backslashes.
_ESCAPE = re.compile(
    r"""(?<!\\)\\{1,16}"""
    r"""(?:U(000[0-9a-f]{5}|0010[0-9a-f]{4})|u([0-9a-f]{4})|x([0-9a-f]{2})|[abfnrtv0]|(["'/]))""",
    re.IGNORECASE,
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
        kept = [form for form in forms if form and not _is_number(form)]
        longest = sorted(kept, key=len, reverse=True)
        self._patterns = [(forms[form], _pattern(form)) for form in longest]
        self._quoting = [form.casefold() for form in kept if '"' in form]
        echoes = (_letters(form)[:_MAX_ECHO] for form in kept)
        self._echoes = [echo for echo in echoes if len(echo) >= _MIN_ECHO]

    def strike(self, message: str) -> tuple[str, set[str]]:
        """Return a message with an ellipsis in place of each value, and the values it quoted."""
        quoted = set()
        for value, pattern in self._patterns:
            message, count = pattern.subn("…", message)
            if count:
                quoted.add(value)
        return message, quoted

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


def _is_number(text: str) -> bool:
    return bool(_NUMBERS.fullmatch(text))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
