"""Faults in documents: access keys, however they are spelt, and our URLs that do not open."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

from commands.documents import FoundUrl, split
from config import MIN_SECRET_LENGTH
from picture import BadRequest
from web.sentences import explain

LEFT, ELSEWHERE, BROKEN = "left", "left on other hosts", "broken"
_CREDENTIAL = re.compile(r"[?&;](?:key|sig)=")
_NO_URL = "the key is not part of a URL"
# How renderers, scripts and the server decode a text.
_DECODERS: tuple[Callable[[str], str], ...] = (
    html.unescape,
    unquote,
    unquote_plus,
    # Backslashes before punctuation in Markdown, and escapes by number in JSON and scripts.
    partial(re.compile(r"\\([!-/:-@[-`{-~])").sub, r"\1"),
    partial(
        re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2}))").sub,
        lambda match: chr(int(match[1] or match[2], 16)),
    ),
)


class DocumentFault(NamedTuple):
    """What is wrong with a URL or a line of a document.

    `kind` is LEFT or ELSEWHERE for an access key, BROKEN for a URL of ours that does not open.
    """

    reason: str
    kind: str = LEFT


@dataclass(frozen=True)
class Examiner:
    """Reads documents: which URLs of ours open, and what is wrong with the others.

    `why_closed` returns why a URL does not open. With `public_url`, ours are the URLs that begin
    with it; without, those that name a picture and carry credentials. `keys` must be left nowhere.
    """

    why_closed: Callable[[FoundUrl], str | None]
    public_url: str | None = None
    keys: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        return f"{self.public_url}/prompt/" if self.public_url else ""

    def examine(self, text: str) -> Iterator[tuple[int, FoundUrl | DocumentFault]]:
        """Yield each URL of ours that opens, and each fault, with its line, counted from 1."""
        # Without its NULs, UTF-16 can be read where it is ASCII.
        for number, line in enumerate(text.replace("\0", "").split("\n"), 1):
            found = [one for part in split(line) if (one := self._examine(*part))]
            if not any(isinstance(one, DocumentFault) for one in found) and self.has_key(line):
                found.append(DocumentFault(_NO_URL))  # at most partly
            yield from ((number, one) for one in found)

    def has_key(self, text: str) -> bool:
        """Return whether a text contains one of the keys.

        A short key may be an ordinary word: it counts only where it is used as a key.
        """
        long = [re.escape(key) for key in self.keys if len(key) >= MIN_SECRET_LENGTH]
        any_key = "|".join(map(re.escape, self.keys))
        used = rf"(?:\bkey=|\b(?i:bearer)\s+)(?:{any_key})(?![A-Za-z0-9-])"
        pattern = re.compile("|".join([*long, used]))
        return bool(self.keys) and any(map(pattern.search, _spellings(text)))

    def _examine(self, url: str, rest: str) -> FoundUrl | DocumentFault | None:
        """Judge a URL and the text that follows it."""
        has_key, is_ours = self.has_key(url), url.startswith(self.base)
        is_cut = is_ours and "/prompt/" in url and "?" not in url and _CREDENTIAL.search(rest)
        if is_cut or self.has_key(rest):
            cut = f"the URL ends at {rest[:1]!r}, which must be percent-encoded"
            reason = cut if "/prompt/" in url else _NO_URL
            return DocumentFault(reason, LEFT if self.has_key(rest) else BROKEN)
        if is_ours:
            return self._open(url, has_key=has_key)
        reason = f"the URL does not begin with {self.base}"
        return DocumentFault(reason, ELSEWHERE) if has_key else None

    def _open(self, url: str, *, has_key: bool) -> FoundUrl | DocumentFault | None:
        """Return a URL of ours if it opens and no key is left in it."""
        seems_ours = "/prompt/" in url and _CREDENTIAL.search(unquote(html.unescape(url)))
        if not (self.base or has_key or seems_ours):
            return None
        found = None
        try:
            found = FoundUrl.read(url)
            reason = self.why_closed(found)
        except BadRequest as error:
            reason = explain(error)
        except ValueError:
            reason = "the URL does not name a picture"
        if found and has_key and not reason:
            reason = "the key is not a parameter of its own"
            if "key" in found.credentials:
                reason = "its key was not replaced"
        return DocumentFault(reason, LEFT if has_key else BROKEN) if reason else found


def _spellings(text: str) -> set[str]:
    """Return a text as it is, and decoded up to three times."""
    found = new = {text}
    for _ in range(3):
        new = {decode(one) for one in new for decode in _DECODERS} - found
        found = found | new
    return found
