"""The picture in an image backend's answer: base64, a URL, or the answer's body itself."""

from __future__ import annotations

import binascii
import contextlib
import re
from dataclasses import dataclass
from typing import Any

from dialect.endpoint import clean_text
from upstream.bodies import STAND_IN

_FROM_URL_SAFE = str.maketrans("-_", "+/")


class NoPicture(Exception):
    """The answer holds something other than a picture, as the text explains."""


@dataclass(frozen=True, slots=True)
class Found:
    """The picture of an answer: either its bytes or its URL, and the revised prompt."""

    data: bytes | None = None
    url: str | None = None
    revised_prompt: str | None = None


def find_picture(answer: Any, cut: bytes | None = None) -> Found | None:
    """Return the first picture of a JSON answer, or None without one.

    Vendors put it under `data` or `images`, as an object or a bare string. `cut` is the
    picture, decoded, that was cut out of the JSON. Raises NoPicture for a value that is neither
    base64 nor an http(s) URL.
    """
    for name in ("data", "images"):
        items = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(items, list) or not items:
            continue
        item = items[0] if isinstance(items[0], dict) else {"url": items[0]}
        value = item.get("b64_json") or item.get("url")
        if value:
            revised = clean_text(item.get("revised_prompt"))
            if cut is not None and value == STAND_IN:
                return Found(data=cut, revised_prompt=revised)
            return _classified(value, revised)
    return None


def _classified(value: Any, revised: str | None) -> Found:
    if not isinstance(value, str):
        raise NoPicture("its picture is neither base64 nor a URL")
    if re.match(r"(?i)https?://|/(?!9j/)", value):  # "/9j/" begins every JPEG in base64
        return Found(url=value, revised_prompt=revised)
    if re.match(r"(?i)(?!data:)[a-z][a-z0-9+.-]*:", value):
        raise NoPicture("its picture has a URL that is not http or https")
    return Found(data=decode_base64(value), revised_prompt=revised)


def decode_base64(text: str) -> bytes:
    """Decode base64 with a data-URI prefix, white space, the URL-safe alphabet, or no padding.

    Raises NoPicture.
    """
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    # The usual case first: looking for white space in megabytes costs more than decoding them.
    with contextlib.suppress(ValueError):
        # bytes: decoding a str takes twice as long.
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    text = re.sub(r"\s", "", text).rstrip("=").translate(_FROM_URL_SAFE)
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise NoPicture("its picture is not valid base64") from error
