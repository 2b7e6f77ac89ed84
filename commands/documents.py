"""Our URLs in Markdown and HTML files: find them, and replace them without changing other bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from picture import BadRequest, ImageRequest

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# The characters that cannot be part of a URL in Markdown or in an attribute, and parentheses.
_BOUNDARY = re.compile(r"[\s<>\"'`\\()]")


@dataclass(frozen=True, slots=True)
class Found:
    """One of our URLs as written, the picture it names, and its credentials (`key`, `sig`, `exp`).

    In HTML, `url` has `&amp;` for `&`.
    """

    url: str
    request: ImageRequest
    credentials: dict[str, str]


def find_urls(
    text: str, public_url: str | None = None, max_prompt_length: int = 4000
) -> Iterator[tuple[int, Found]]:
    """Yield the position of each of our URLs in a document, and the URL.

    With `public_url`, ours are those that begin with it. Without, they are those that name a
    picture and carry credentials.
    """
    for start, url in _urls(text):
        is_ours = not public_url or url.startswith(f"{public_url}/prompt/")
        if is_ours and (found := _read(url, max_prompt_length)):
            yield start, found


def replace_urls(
    text: str, replace: Callable[[Found], str | None], public_url: str | None = None
) -> tuple[str, int]:
    """Return `text` with our URLs replaced, and how many were.

    `replace` returns the new URL, or None to leave one as it is.
    """
    parts, position, count = [], 0, 0
    for start, found in find_urls(text, public_url):
        replacement = replace(found)
        if replacement is not None:
            parts += [text[position:start], replacement]
            position, count = start + len(found.url), count + 1
    return "".join([*parts, text[position:]]), count


def signed_in_place(found: Found, credentials: dict[str, str | int]) -> str:
    """Return the URL with `credentials` in place of its `key=…`, and nothing else changed."""
    separator = "&amp;" if "&amp;" in found.url else "&"
    written = separator.join(f"{name}={value}" for name, value in credentials.items())
    return re.sub(r"(?<=[?&;])key=[^&#]*", written, found.url, count=1)


def _urls(text: str) -> Iterator[tuple[int, str]]:
    """Yield every URL and its position. Each character is looked at twice at most."""
    position = 0
    while scheme := _SCHEME.search(text, position):
        position = _end_of_url(text, scheme.end())
        # A sentence's punctuation, emphasis, or the edge of a table's cell.
        yield scheme.start(), text[scheme.start() : position].rstrip(".,;:!?*_~|]")


def _end_of_url(text: str, position: int) -> int:
    """Return where a URL ends. A `)` that it has not opened closes a Markdown link."""
    depth = 0
    for boundary in _BOUNDARY.finditer(text, position):
        if boundary[0] == "(":
            depth += 1
        elif boundary[0] == ")" and depth:
            depth -= 1
        else:
            return boundary.start()
    return len(text)


def _read(url: str, max_prompt_length: int) -> Found | None:
    try:
        parts = urlsplit(url.replace("&amp;", "&"))
        path = parts.path[parts.path.index("/prompt/") :]
        decoded = unquote_to_bytes(path.encode()).decode("latin-1")
        request, credentials = ImageRequest.from_url(decoded, parts.query, max_prompt_length)
    except (BadRequest, ValueError):
        return None
    return Found(url, request, credentials) if credentials else None
