"""Our URLs in Markdown and HTML files: found, and replaced without changing any other byte."""

from __future__ import annotations

import html
import os
import re
import shutil
import string
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_plus, unquote_to_bytes, urldefrag, urlencode, urlsplit

import click

from picture import CREDENTIALS, BadRequest, ImageRequest, Named


def rewrite(file: Path, data: bytes) -> None:
    """Replace the contents of a file; its mode, its owner and symbolic links to it stay.

    The new file is written beside it and takes its place when it is on disk. If that fails, the
    command ends with a sentence, and the file is unchanged.
    """
    try:
        target = file.resolve(strict=True)
        if target.stat().st_nlink > 1:
            raise click.ClickException(f"{file} is unchanged: its other hard links would stay.")
        with target.open("r+b"):  # a file that may not be written is not replaced either
            pass
        _replace(target, data)
    except OSError as error:
        raise click.ClickException(f"{file} is unchanged: {error.strerror}.") from error


def _replace(target: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(".tmp", ".signing-", target.parent)
    try:
        with open(descriptor, "wb") as new:
            new.write(data)
            about = target.stat()
            os.chown(name, about.st_uid, about.st_gid)
            shutil.copystat(target, name)  # the mode, and an access-control list
            os.utime(name)
            new.flush()
            os.fsync(descriptor)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


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
_FRAGMENT = re.compile(r"(?<!&)#")
_AND = r"&(?:amp|AMP|#0*38|#[xX]0*26);(?:amp;)*"
# A parameter of a URL as it is written, after what separates it from the one before.
_PARAMETER = re.compile(rf"(?:{_AND}|&)?(?:[^&#=]*\?)?((?:[^&#]|(?!{_AND})&#?\w+;)+)")


@dataclass(frozen=True, slots=True)
class FoundUrl:
    """One of our URLs as written, and as read."""

    url: str
    named: Named

    @property
    def request(self) -> ImageRequest:
        return self.named.request

    @property
    def credentials(self) -> dict[str, str]:
        return self.named.credentials

    @classmethod
    def read(cls, url: str, max_prompt_length: int) -> FoundUrl:
        """Read a URL as a document has it. Raises BadRequest, or ValueError if it names no picture.

        Markdown and HTML differ on references without a semicolon, which name none.
        """
        parts = urlsplit(decoded := _dereferenced(url))
        if "&#" in decoded or "/prompt/" not in parts.path:
            raise ValueError(url)
        path = parts.path[parts.path.index("/prompt/") :]
        latin = unquote_to_bytes(path.encode()).decode("latin-1")
        query = quote(parts.query, safe=string.printable, errors="surrogateescape")
        return cls(url, ImageRequest.from_url(latin, query, max_prompt_length))

    @property
    def address(self) -> str:
        """The URL that a browser requests."""
        return urldefrag(_dereferenced(self.url)).url

    def signed(self, credentials: Mapping[str, str | int]) -> str:
        """Return the URL with `credentials` in place of its own, and nothing else changed."""
        separator = match[0] if (match := re.search(_AND, self.url)) else "&"
        written = [urlencode([pair], quote_via=quote, safe="") for pair in credentials.items()]
        end_of_query = match.start() if (match := _FRAGMENT.search(self.url)) else len(self.url)
        parts: list[str] = []
        position = 0
        for pair in _PARAMETER.finditer(self.url, self.url.find("?") + 1, end_of_query):
            if unquote_plus(_dereferenced(pair[1]).partition("=")[0]) in CREDENTIALS:
                # The first gives its place to the new ones; the others go with their separators.
                end = pair.start() if parts else pair.start(1)
                parts += [self.url[position:end], separator.join(written)]
                position, written = pair.end(), []
        return "".join([*parts, self.url[position:]])


def documents(paths: Iterable[Path]) -> list[Path]:
    """Return the files, and each folder's Markdown files; hidden ones are left out."""
    found: list[Path] = []
    for path in paths:
        inside = list(_markdown_files(path)) if path.is_dir() else [path]
        if not inside:
            raise click.ClickException(f"{path} contains no .md file.")
        found += inside
    return found


def _markdown_files(path: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(".md") and not name.startswith("."):
                yield Path(folder, name)


def find_urls(
    text: str, public_url: str | None = None, max_prompt_length: int = 4000
) -> Iterator[tuple[int, FoundUrl]]:
    """Yield the position of each of our URLs in a document, and the URL.

    With `public_url`, ours are those that begin with it. Without, they are those that name a
    picture and carry credentials.
    """
    for start, url in all_urls(text):
        if is_ours(url, public_url):
            with suppress(BadRequest, ValueError):
                found = FoundUrl.read(url, max_prompt_length)
                if found.credentials:
                    yield start, found


def replace_urls(
    text: str,
    replace: Callable[[FoundUrl], str | None],
    public_url: str | None = None,
    max_prompt_length: int = 4000,
) -> tuple[str, int]:
    """Return `text` with our URLs replaced, and how many changed.

    `replace` returns the new URL, or None to leave one as it is.
    """
    parts, position, count = [], 0, 0
    for start, found in find_urls(text, public_url, max_prompt_length):
        replacement = replace(found)
        if replacement not in (None, found.url):
            parts += [text[position:start], str(replacement)]
            position, count = start + len(found.url), count + 1
    return "".join([*parts, text[position:]]), count


def all_urls(text: str) -> Iterator[tuple[int, str]]:
    """Yield every URL and its position. Each character is read three times at most."""
    position = 0
    while scheme := _SCHEME.search(text, position):
        start = scheme.start()
        if text.endswith("<", 0, start) and (inside := _IN_ANGLE_BRACKETS.match(text, start)):
            position = inside.end()
            yield start, inside[0]
            continue
        position = _end_of_url(text, start, scheme.end())
        # A sentence's punctuation, emphasis, or the edge of a table's cell.
        yield start, text[start:position].rstrip(".,;:!?*_~|'")


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


def is_ours(url: str, public_url: str | None) -> bool:
    return not public_url or url.startswith(f"{public_url}/prompt/")


def _dereferenced(text: str) -> str:
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), text)
