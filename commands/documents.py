"""Our URLs in Markdown and HTML files: found, and replaced without touching another byte."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from picture import BadRequest, ImageRequest

# Up to what cannot be part of a URL in Markdown or in an attribute. Spaces end it there too.
_URL = re.compile(r"https?://[^\s<>\"'`\\]*?/prompt/[^\s<>\"'`\\]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """One URL of ours: the picture it names, and its credentials (`key`, `sig`, `exp`)."""

    url: str
    request: ImageRequest
    credentials: dict[str, str]


def find_urls(
    text: str, public_url: str | None = None, max_prompt_length: int = 4000
) -> Iterator[tuple[int, Found]]:
    """Yield (position, URL) for every picture of ours that a document shows.

    With `public_url` only what begins with it is ours; without, whatever names a picture with
    credentials.
    """
    for match in _URL.finditer(text):
        url = _without_what_follows(match[0])
        if public_url and not url.startswith(f"{public_url}/prompt/"):
            continue
        if found := _read(url, max_prompt_length):
            yield match.start(), found


def replace_urls(
    text: str, replace: Callable[[Found], str | None], public_url: str | None = None
) -> tuple[str, int]:
    """Return `text` with each of our URLs replaced for which `replace` has another; and a count."""
    parts, position, count = [], 0, 0
    for start, found in find_urls(text, public_url):
        replacement = replace(found)
        if replacement is not None:
            parts += [text[position:start], replacement]
            position, count = start + len(found.url), count + 1
    return "".join([*parts, text[position:]]), count


def signed_in_place(found: Found, credentials: dict[str, str | int]) -> str:
    """Return a URL with its `key=…` replaced by other credentials, and all else as it was."""
    separator = "&amp;" if "&amp;" in found.url else "&"
    written = separator.join(f"{name}={value}" for name, value in credentials.items())
    return re.sub(r"(?<=[?&;])key=[^&#]*", written, found.url, count=1)


def _without_what_follows(url: str) -> str:
    """Cut off what ends a sentence or a Markdown link, and is no part of the URL."""
    depth = 0
    for position, character in enumerate(url):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            url = url[:position]
            break
    return url.rstrip(".,;:!?*_~|]")


def _read(url: str, max_prompt_length: int) -> Found | None:
    try:
        parts = urlsplit(url.replace("&amp;", "&"))
        path = parts.path[parts.path.index("/prompt/") :]
        decoded = unquote_to_bytes(path.encode()).decode("latin-1")
        request, credentials = ImageRequest.from_url(decoded, parts.query, max_prompt_length)
    except (BadRequest, ValueError):
        return None
    return Found(url, request, credentials) if credentials else None
