"""Our URLs in Markdown and HTML files: found, judged, and replaced; every other byte stays."""

from __future__ import annotations

import html
import os
import re
import shutil
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_plus, unquote_to_bytes, urlencode, urlsplit

import click

from config import MIN_SECRET_LENGTH
from picture import CREDENTIALS, BadRequest, ImageRequest
from web.sentences import explain


def documents(paths: Iterable[Path]) -> list[Path]:
    """Return the files, and each folder's Markdown files; hidden ones are left out."""
    found: list[Path] = []
    for path in paths:
        inside = _markdown_files(path) if path.is_dir() else [path]
        if not inside:
            raise click.ClickException(f"{path} contains no .md file.")
        found += inside
    return found


def _markdown_files(folder: Path) -> list[Path]:
    found = (path.relative_to(folder) for path in folder.rglob("*.[mM][dD]") if path.is_file())
    return sorted(
        folder / path for path in found if not any(part.startswith(".") for part in path.parts)
    )


def read(file: Path) -> str:
    """Return a file's text; bytes that are not UTF-8 survive writing it back. Raises OSError."""
    return file.read_bytes().decode("utf-8", "surrogateescape")


def rewrite(file: Path, text: str) -> None:
    """Replace the text of a file; its mode, its owner and symbolic links to it stay.

    The new file is written beside it and takes its place when it is on disk. If that fails, the
    command ends with a sentence, and the file is unchanged.
    """
    try:
        target = file.resolve(strict=True)
        about = target.stat()
        if about.st_nlink > 1:
            raise click.ClickException(f"{file} is unchanged: its other hard links would stay.")
        with target.open("r+b"):  # a file that may not be written is not replaced either
            pass
        with TemporaryDirectory(prefix=".signing-", dir=target.parent) as folder:
            new = Path(folder, target.name)
            with new.open("wb") as written:
                written.write(text.encode("utf-8", "surrogateescape"))
                os.chown(new, about.st_uid, about.st_gid)
                shutil.copystat(target, new)  # the mode, and an access-control list
                os.utime(new)
                written.flush()
                os.fsync(written.fileno())
            new.replace(target)
    except OSError as error:
        raise click.ClickException(f"{file} is unchanged: {error.strerror}.") from error


_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# What ends a URL depends on what stands before it: the delimiter that opened it closes it.
# A backslash would be part of a URL in HTML, and none in Markdown: it ends every one.
_IN_ANGLE_BRACKETS = re.compile(r"[^<>\n\\]*(?=>)")
_BOUNDARIES = {
    '"': re.compile(r"[\s<>\"`\\]"),
    "'": re.compile(r"[\s<>\"'`\\]"),
    "](": re.compile(r"[\s<>\\()]"),
    # In prose, and in org-mode, AsciiDoc and LaTeX. Chinese has no spaces.
    "": re.compile(r"[\s<>\"`\\()\[\]{}。，、；：！？（）【】《》〈〉「」『』“”‘’…]"),
}
# Character references, which Markdown and HTML decode in URLs.
_REFERENCE = re.compile(r"&#?\w+;")
_AND = r"&(?:amp|AMP|#0*38|#[xX]0*26);(?:amp;)*"
# A parameter of a URL as it is written, with what separates it from the one before, and what of the
# prompt stands between the two.
_PARAMETER = re.compile(rf"((?:{_AND}|&)?(?:[^&#=]*\?)?)((?:[^&#]|(?!{_AND})&#?\w+;)+)")


@dataclass(frozen=True, slots=True)
class FoundUrl:
    """One of our URLs as written, as a browser requests it, and as read.

    `pictures` are those that it may show.
    """

    url: str
    address: str
    request: ImageRequest
    credentials: dict[str, str]
    pictures: tuple[ImageRequest, ...]

    @classmethod
    def read(cls, url: str) -> FoundUrl:
        """Read a URL as a document has it. Raises BadRequest, or ValueError if it names no picture.

        Markdown and HTML differ on references without a semicolon, which name none.
        """
        parts = urlsplit(decoded := _dereferenced(url))
        if "&#" in decoded or "/prompt/" not in parts.path:
            raise ValueError(url)
        path = parts.path[parts.path.index("/prompt/") :]
        latin = unquote_to_bytes(path.encode()).decode("latin-1")
        query = quote(parts.query, safe=string.printable, errors="surrogateescape")
        named = ImageRequest.from_url(latin, query, max_prompt_length=sys.maxsize)
        return cls(url, decoded, named.request, named.credentials, named.pictures)

    def signed(self, credentials: Mapping[str, str | int]) -> str:
        """Return the URL with `credentials` in place of its own, and nothing else changed."""
        separator = match[0] if (match := re.search(_AND, self.url)) else "&"
        written = [urlencode(credentials, quote_via=quote, safe="").replace("&", separator)]

        def replaced(parameter: re.Match[str]) -> str:
            if unquote_plus(_dereferenced(parameter[2]).partition("=")[0]) not in CREDENTIALS:
                return parameter[0]
            # The first gives its place to the new ones; the others go with their separators.
            return parameter[1] + written.pop() if written else ""

        path, _, rest = self.url.partition("?")
        # After & it is part of a reference.
        query, *fragment = re.split("(?<!&)(?=#)", rest, maxsplit=1)
        return "".join([path, "?", _PARAMETER.sub(replaced, query), *fragment])


def split(text: str) -> Iterator[tuple[str, str]]:
    """Yield each URL and the text from there to the next; first "" and the text before all.

    Together they are the whole text. Each character is read three times at most.
    """
    url, end, position = "", 0, 0
    while scheme := _SCHEME.search(text, position):
        start = scheme.start()
        yield url, text[end:start]
        if text.endswith("<", 0, start) and (inside := _IN_ANGLE_BRACKETS.match(text, start)):
            url, position = inside[0], inside.end()
        else:
            position = _end_of_url(text, start, scheme.end())
            # A sentence's punctuation, emphasis, or the edge of a table's cell.
            url = text[start:position].rstrip(".,;:!?*_~|'")
        end = start + len(url)
    yield url, text[end:]


def _end_of_url(text: str, start: int, position: int) -> int:
    """Return where a URL ends. A `)` that it has not opened closes a Markdown link."""
    opener = next(opener for opener in _BOUNDARIES if text.endswith(opener, 0, start))
    depth = 0
    for boundary in _BOUNDARIES[opener].finditer(text, position):
        if boundary[0] == "(":
            depth += 1
        elif boundary[0] == ")" and depth:
            depth -= 1
        else:
            return boundary.start()
    return len(text)


def _dereferenced(text: str) -> str:
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), text)


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
        try:
            found = FoundUrl.read(url)
            reason = self.why_closed(found) or ("its key was not replaced" if has_key else None)
            if reason is None:
                return found
        except BadRequest as error:
            reason = explain(error)
        except ValueError:
            reason = "the URL does not name a picture"
        return DocumentFault(reason, LEFT if has_key else BROKEN)


def _spellings(text: str) -> set[str]:
    """Return a text as it is, and decoded up to three times."""
    found = new = {text}
    for _ in range(3):
        new = {decode(one) for one in new for decode in _DECODERS} - found
        found = found | new
    return found
