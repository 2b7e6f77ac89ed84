"""Faults in documents: access keys, however they are spelt, and our URLs that do not open."""

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

LEFT, ELSEWHERE, BROKEN = "left", "left on other hosts", "broken"
_CREDENTIAL = re.compile(r"[?&;](?:key|sig)=")


@dataclass(frozen=True, slots=True)
class DocumentFault:
    """A line of a document, counted from 1, and what is wrong with it.

    `kind` is LEFT or ELSEWHERE for an access key, BROKEN for a URL of ours that does not open.
    """

    line: int
    reason: str
    kind: str = LEFT


@dataclass(frozen=True, slots=True)
class Examiner:
    """Looks for faults in documents. `why_closed` returns why a URL of ours does not open."""

    why_closed: Callable[[FoundUrl], str | None]
    keys: Sequence[str] = ()
    public_url: str | None = None
    max_prompt_length: int = 4000

    def find_faults(self, text: str) -> Iterator[DocumentFault]:
        """Yield each URL with a key or that does not open, and each line with a key elsewhere."""
        has_key = _matcher(self.keys)
        # Without its NULs, UTF-16 can be read where it is ASCII.
        for number, line in enumerate(text.replace("\0", "").split("\n"), 1):
            found = [DocumentFault(number, *fault) for fault in self._faults(line, has_key)]
            if not found and has_key(line):
                found = [DocumentFault(number, "the key is not part of a URL")]  # at most partly
            yield from found

    def _faults(self, line: str, has_key: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        urls = [(0, ""), *all_urls(line)]
        for (start, url), (end, _) in zip(urls, [*urls[1:], (len(line), "")], strict=True):
            rest = line[start + len(url) : end]
            if has_key(rest) or (_looks_cut(url, rest) and is_ours(url, self.public_url)):
                yield _why_outside(url, rest), LEFT if has_key(rest) else BROKEN
            elif not is_ours(url, self.public_url):
                if has_key(url):
                    yield f"the URL does not begin with {self.public_url}/prompt/", ELSEWHERE
            elif reason := self._why_broken(url, has_key(url)):
                yield reason, LEFT if has_key(url) else BROKEN

    def _why_broken(self, url: str, has_key: bool) -> str | None:
        """Return why a URL of ours does not open, or why a key is left in it."""
        seems_ours = "/prompt/" in url and _CREDENTIAL.search(url)
        if not (self.public_url or has_key or seems_ours):
            return None
        try:
            found = FoundUrl.read(url, self.max_prompt_length)
        except BadRequest as error:
            return explain(error)
        except ValueError:
            return "the URL does not name a picture"
        if reason := self.why_closed(found):
            return reason
        if "key" in found.credentials:
            return "its key was not replaced" if has_key else None
        return "the key is not a parameter of its own" if has_key else None


def _matcher(keys: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a text contains one of `keys`, as a function.

    A short key may be an ordinary word: it counts only where it is used as a key.
    """
    if not keys:
        return lambda text: False
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


def _from_script(text: str) -> str:
    """Return JSON or a script without its escapes by number."""
    return re.sub(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2}))", _character, text)


def _character(match: re.Match[str]) -> str:
    return chr(int(match[1] or match[2], 16))


_DECODERS = (html.unescape, unquote, unquote_plus, _unescaped, _from_script)


def _looks_cut(url: str, rest: str) -> bool:
    """Return whether the credentials of a URL are in the text that follows it."""
    return "/prompt/" in url and "?" not in url and bool(_CREDENTIAL.search(rest))


def _why_outside(url: str, rest: str) -> str:
    """Return why a key is not part of the URL before it; `rest` follows that."""
    if "/prompt/" in url:
        return f"the URL ends at {rest[0]!r}, which must be percent-encoded"
    return "the key is not part of a URL"
