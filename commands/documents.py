"""Our URLs in Markdown and HTML files: find them, and replace them without changing other bytes."""

from __future__ import annotations

import html
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from picture import BadRequest, ImageRequest
from web.sentences import explain

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# The characters that cannot be part of a URL in Markdown or in an attribute, and parentheses.
_BOUNDARY = re.compile(r"[\s<>\"'`\\()]")
# A key further along the line is not a parameter of the URL.
_MAX_REST = 4000
_KEY = re.compile(r"(?:\bkey=|\bBearer[ +]+|\bBearer%20)([^\s<>\"'`\\&#]+)")


@dataclass(frozen=True, slots=True)
class FoundUrl:
    """One of our URLs as written, the picture it names, and its credentials (`key`, `sig`, `exp`).

    In HTML, `url` has `&amp;` for `&`.
    """

    url: str
    request: ImageRequest
    credentials: dict[str, str]


@dataclass(frozen=True, slots=True)
class LeftKey:
    """An access key that a document contains: its line, counted from 1, and why it was left."""

    line: int
    reason: str
    is_elsewhere: bool = False


def find_urls(
    text: str, public_url: str | None = None, max_prompt_length: int = 4000
) -> Iterator[tuple[int, FoundUrl]]:
    """Yield the position of each of our URLs in a document, and the URL.

    With `public_url`, ours are those that begin with it. Without, they are those that name a
    picture and carry credentials.
    """
    for start, url in _urls(text):
        if _is_ours(url, public_url):
            with suppress(BadRequest, ValueError):
                found = _read(url, max_prompt_length)
                if found.credentials:
                    yield start, found


def replace_urls(
    text: str,
    replace: Callable[[FoundUrl], str | None],
    public_url: str | None = None,
    max_prompt_length: int = 4000,
) -> tuple[str, int]:
    """Return `text` with our URLs replaced, and how many were.

    `replace` returns the new URL, or None to leave one as it is.
    """
    parts, position, count = [], 0, 0
    for start, found in find_urls(text, public_url, max_prompt_length):
        replacement = replace(found)
        if replacement is not None:
            parts += [text[position:start], replacement]
            position, count = start + len(found.url), count + 1
    return "".join([*parts, text[position:]]), count


def find_keys(
    text: str, keys: Sequence[str], public_url: str | None = None, max_prompt_length: int = 4000
) -> Iterator[LeftKey]:
    """Yield each place of a document that has an access key, in a URL or as a Bearer token."""
    urls = list(_urls(text))
    starts = [start for start, _ in urls]
    line, counted = 1, 0
    for match in _KEY.finditer(text):
        if not any(_begins_with(match[1], key) for key in keys):
            continue
        line, counted = line + text.count("\n", counted, match.start()), match.start()
        place = bisect_right(starts, counted)
        start, url = urls[place - 1] if place else (counted, "")
        if counted >= (end := start + len(url)):
            yield LeftKey(line, _why_outside(url, text[end : min(counted, end + _MAX_REST)]))
        elif not _is_ours(url, public_url):
            yield LeftKey(line, f"the URL does not begin with {public_url}/prompt/", True)
        else:
            yield LeftKey(line, _why_not_read(url, max_prompt_length))


def _begins_with(written: str, key: str) -> bool:
    """Return whether a value is the key, as it is or encoded, perhaps before punctuation."""
    value = unquote(html.unescape(written))
    return value.startswith(key) and not re.match(r"[A-Za-z0-9-]", value[len(key) :])


def _why_outside(url: str, rest: str) -> str:
    """Return why a key is not part of the URL before it; `rest` stands between the two."""
    if "/prompt/" in url and "\n" not in rest and len(rest) < _MAX_REST:
        return f"the URL ends at {rest[0]!r}, which must be percent-encoded"
    return "the key is not part of a URL"


def _why_not_read(url: str, max_prompt_length: int) -> str:
    try:
        _read(url, max_prompt_length)
    except BadRequest as error:
        return explain(error)
    except ValueError:
        return "the URL does not name a picture"
    return "the key is not a parameter of its own"


def signed_in_place(found: FoundUrl, credentials: dict[str, str | int]) -> str:
    """Return the URL with `credentials` in place of its `key=…`, and nothing else changed."""
    separator = "&amp;" if "&amp;" in found.url else "&"
    written = separator.join(f"{name}={value}" for name, value in credentials.items())
    return re.sub(r"(?<=[?&;])key=[^&#]*", written, found.url, count=1)


def _urls(text: str) -> Iterator[tuple[int, str]]:
    """Yield every URL and its position. Each character is read twice at most."""
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


def _is_ours(url: str, public_url: str | None) -> bool:
    return not public_url or url.startswith(f"{public_url}/prompt/")


def _read(url: str, max_prompt_length: int) -> FoundUrl:
    """Read one of our URLs. Raises BadRequest, or ValueError if it does not name a picture."""
    parts = urlsplit(url.replace("&amp;", "&"))
    path = parts.path[parts.path.index("/prompt/") :]
    decoded = unquote_to_bytes(path.encode()).decode("latin-1")
    request, credentials = ImageRequest.from_url(decoded, parts.query, max_prompt_length)
    return FoundUrl(url, request, credentials)
