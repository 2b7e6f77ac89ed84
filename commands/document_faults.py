"""Access keys that documents still contain, however they are spelt."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, unquote_plus

from commands.documents import FoundUrl, all_urls, is_ours
from config import MIN_SECRET_LENGTH
from picture import BadRequest
from web.sentences import explain


@dataclass(frozen=True, slots=True)
class LeftKey:
    """An access key that a document contains: its line, counted from 1, and why it was left."""

    line: int
    reason: str
    is_elsewhere: bool = False


def find_keys(
    text: str, keys: Sequence[str], public_url: str | None = None, max_prompt_length: int = 4000
) -> Iterator[LeftKey]:
    """Yield where a document contains an access key, in any spelling: each URL and each line."""
    has_key = _matcher(keys)
    # Without its NULs, UTF-16 can be read where it is ASCII.
    for number, line in enumerate(text.replace("\0", "").split("\n"), 1):
        if not has_key(line):
            continue
        found = []
        before, position = "", 0
        for start, url in [*all_urls(line), (len(line), "")]:
            if has_key(between := line[position:start]):
                found.append(LeftKey(number, _why_outside(before, between)))
            if has_key(url) and not is_ours(url, public_url):
                reason = f"the URL does not begin with {public_url}/prompt/"
                found.append(LeftKey(number, reason, is_elsewhere=True))
            elif has_key(url):
                found.append(LeftKey(number, _why_not_signed(url, max_prompt_length)))
            before, position = url, start + len(url)
        # Where nothing is found, the key is partly in a URL.
        yield from found or [LeftKey(number, _why_outside("", line))]


def _matcher(keys: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a text contains one of `keys`, as a function.

    A short key may be an ordinary word: it counts only where it is used as a key.
    """
    long = [re.escape(key) for key in keys if len(key) >= MIN_SECRET_LENGTH]
    any_key = "|".join(re.escape(key) for key in keys)
    used = rf"(?:\bkey=|\b(?i:bearer)\s+)(?:{any_key})(?![A-Za-z0-9-])"
    pattern = re.compile("|".join([*long, used]))
    return lambda text: any(pattern.search(one) for one in _spellings(text))


def _spellings(text: str) -> set[str]:
    """Return a text as it is and as renderers and the server decode it, up to three times."""
    found = new = {text}
    for _ in range(3):
        new = {decode(one) for one in new for decode in _DECODERS} - found
        found = found | new
    return found


def _unescaped(text: str) -> str:
    """Return Markdown without the backslashes before punctuation."""
    return re.sub(r"\\([!-/:-@[-`{-~])", r"\1", text)


_DECODERS = (html.unescape, unquote, unquote_plus, _unescaped)


def _why_outside(url: str, rest: str) -> str:
    """Return why a key is not part of the URL before it; `rest` follows that."""
    if "/prompt/" in url:
        return f"the URL ends at {rest[0]!r}, which must be percent-encoded"
    return "the key is not part of a URL"


def _why_not_signed(url: str, max_prompt_length: int) -> str:
    try:
        found = FoundUrl.read(url, max_prompt_length)
    except BadRequest as error:
        return explain(error)
    except ValueError:
        return "the URL does not name a picture"
    if "key" in found.credentials:
        return "its key is not accepted, or it has a signature as well"
    return "the key is not a parameter of its own"
