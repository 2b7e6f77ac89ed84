"""Which of the fields sent an error blames, and whether it means the field or its value."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dialect.error_text import FREE_TEXT, ErrorText

SIZE_FIELDS = ("size", "image_size", "width", "height", "aspect_ratio", "image_config")
# Never dropped: a request without them is pointless.
ESSENTIAL = frozenset(("prompt", "messages", "model"))

# Words of a rejection; the mere name of a parameter proves nothing.
_REJECTION = re.compile(
    r"(?i)unknown|unsupported|not.{0,3}support|unrecogni[sz]ed|unexpected|invalid|cannot find"
    r"|extra |not.{0,3}accept|not permitted|not allowed|prohibited|not one of|not (?:a )?valid"
    r"|only (?:support|accept)|must|should|cannot (?:both )?be|have to be|need"
    r"|too (?:large|small|big|high|low)|required|missing|instead|divisible|multiples? of|less than"
    r"|greater than|at (?:least|most)|minimum|maximum|exceed|longest|out of range|incorrect"
    r"|no endpoints found"
    r"|不被?支持|无效|非法|不合法|不正确|错误|必须|应[为该]|未知|不能|不允许|超[出过]|范围|需|至少|最[大小]|不[小大]于"
)
# The parameter as such is unknown, whatever its value.
_FIELD = r"(?:parameter|argument|field|propert|option|key\b|keys\b|key\(|name\b|input)"
_UNKNOWN_FIELD = re.compile(
    rf"(?i)(?:unknown|unrecogni[sz]ed|unexpected|unsupported|extra|additional)[ _](?:\w+ |){_FIELD}"
    rf"|{_FIELD}.{{0,20}}(?:not.{{0,3}}(?:supported|permitted|allowed|accepted)|prohibited)"
    rf"|not.{{0,3}}(?:support|accept).{{0,20}}{_FIELD}|cannot find|should not exist"
    rf"|not a (?:valid|recogni[sz]ed|known|supported) {_FIELD}|invalid {_FIELD} name"
    r"|unsupported_?params?|未知的?(?:参数|字段)|不支持的?(?:参数|字段)|参数.{0,20}不被?支持|不支持.{0,20}参数|多余"
)
# The name after these words is the unknown one: Rust and Java list the known ones, too.
_BEFORE_UNKNOWN_NAME = (
    r"(?:unknown|unrecogni[sz]ed|unexpected|unsupported|extraneous)[ _]"
    r"(?:\w+ ){0,2}\w+(?:\(s\))?:? [\"'`“‘\[]*"
)
# These words also mean an unknown parameter, unless the message quotes the value.
_UNKNOWN = re.compile(r"(?i)unknown|unrecogni[sz]ed|unexpected|not permitted")
_UNKNOWN_NAME = re.compile(
    r"(?i)(?:unknown|unrecogni[sz]ed|unsupported|unexpected)[ _](?:request |keyword |)"
    r"(?:parameter|argument|field|name|key)\b(?!.?values?\b)"
)
_OF_VALUE = re.compile(
    r"(?i)(?:\b|_)values?(?:\b|_)|\benum|one of|\b(?:must|should) be\b|choose|取值|的值"
)
_SIZE_WORDS = re.compile(
    r"(?ai)\b(?:(?:image_)?size|image_config|resolution|width|height|longest edge|dimensions?"
    r"|(?:mega)?pixels?|aspect.?ratio)\b|ensure this value|input should be"
    r"|尺寸|分辨率|像素|大小|长宽|宽高|宽度|高度|比例"
)
_ADVICE = re.compile(r"(?i)instead|\buse\b|required|missing|provide|specify|请使用|缺少|必填")


def strength(error: ErrorText, name: str) -> int:
    """Return how explicitly an error blames a field: 3 as the one, 2 quoted, 1 named, 0 not."""
    if name in error.params or re.search(
        rf"{_BEFORE_UNKNOWN_NAME}{re.escape(name)}(?![\w-])", error.text, re.IGNORECASE | re.ASCII
    ):
        return 3
    if not _REJECTION.search(error.text):
        return 0
    if re.search(rf"[\"'`“‘「\[]{re.escape(name)}\\?[\"'`”’」\]]", error.text):
        return 2
    # A single letter ("n") is a word of many sentences; it is a field only in quotes.
    return int(len(name) > 1 and mentions(error, name))


def size_strength(error: ErrorText, sent: Mapping[str, Any]) -> int:
    """Return how explicitly an error blames the size, on the scale of `strength`."""
    fields = [name for name in SIZE_FIELDS if name in sent]
    found = max((strength(error, name) for name in fields), default=0)
    if found or not _REJECTION.search(error.text):
        return found
    if not fields:
        return int(bool(_SIZE_WORDS.search(error.text) and _ADVICE.search(error.text)))
    return int(bool(_SIZE_WORDS.search(error.text)) or mentions(error, str(sent[fields[0]])))


def is_unknown(error: ErrorText, name: str, value: str) -> bool:
    """Return whether the field itself is rejected, rather than its value.

    Where a client chooses the value, one client's odd value must not take the field from others.
    """
    is_quoted = bool(value) and (value in error.quoted or mentions(error, value))
    is_chosen, is_of_value = name in FREE_TEXT, bool(_OF_VALUE.search(error.text))
    if is_chosen and is_quoted:
        return False
    if _UNKNOWN_NAME.search(error.text):
        return True
    if is_chosen and is_of_value:
        return False
    is_banned = not (is_chosen or name in SIZE_FIELDS) and re.search(
        rf"(?<![\w-]){re.escape(name)}[\"'`”’」]? is (?:not (?:allowed|permitted|accepted)|banned)",
        error.text,
    )
    if is_banned or _UNKNOWN_FIELD.search(error.text):
        return True
    return not (is_chosen or is_quoted or is_of_value) and bool(_UNKNOWN.search(error.text))


def wanted_field(error: ErrorText, sent: Mapping[str, Any]) -> str | None:
    """Return the size field that the error asks for instead of the one sent, if any."""
    unsent = [name for name in SIZE_FIELDS if name not in sent and mentions(error, name)]
    blames_sent = any(name in sent and mentions(error, name) for name in SIZE_FIELDS)
    is_advice = _ADVICE.search(error.text) or is_unknown(error, "size", "")
    if not unsent or (blames_sent and not is_advice):
        return None
    return "width" if unsent[0] == "height" else unsent[0]


def mentions(error: ErrorText, name: str) -> bool:
    # ASCII: a Chinese sentence has no spaces around a name.
    return bool(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", error.text, re.ASCII))


# --- what a server demands ----------------------------------------------------------------------

# A word is a value if it is quoted, or if nothing goes on about it: not "set to a number".
_DEMAND = re.compile(
    r"(?i)(?<![\w.])(?:param(?:eter)?s?\.|body\.)?[\"'`“]?([A-Za-z]\w{0,40})[\"'`”]?"
    r"(?:\s(?:parameter|field|option))?\s(?:must|should|needs? to|has to)(?: always)? be set to\s"
    r"(?:[\"'`“]([\w.-]{1,40})[\"'`”]|([\w-]{1,40}(?:\.\d{1,6})?)"
    r"(?=\s*(?:$|[.,;:!?)\n\"'`}]|\s(?:for|when|if|in|with|while|on|as|by|unless|to)\b)))"
)
_HEADER = re.compile(
    r"(?ai)header\s[\"'`]?(X-[A-Za-z0-9-]{1,60})[\"'`]?\s*(?:[=:]|to)\s*[\"'`]?([\w.-]{1,60})"
)


def demanded_fields(error: ErrorText) -> dict[str, Any]:
    """Return the fields that "must be set to" a value, with that value as JSON has it."""
    found = {}
    for name, quoted, bare in _DEMAND.findall(error.text):
        # "Stream must be set to true" begins a sentence; a camelCase name does not.
        name = name if re.search(r"[a-z][A-Z]", name) else name.lower()
        if name not in ESSENTIAL and name not in SIZE_FIELDS:
            found[name] = quoted or bare
            with suppress(ValueError):  # Python writes True and None
                value = json.loads(found[name].lower().replace("none", "null"))
                if value not in (math.inf, -math.inf):  # JSON has no such numbers
                    found[name] = value
    return found


def demanded_headers(error: ErrorText) -> dict[str, str]:
    """Return the headers that a server wants; only those of its own, `X-…`, are taken from it."""
    return {name: value.rstrip(".") for name, value in _HEADER.findall(error.text)}
