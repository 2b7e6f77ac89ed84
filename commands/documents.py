"""Our URLs in Markdown and HTML files: found, and replaced without changing any other byte."""

from __future__ import annotations

import html
import os
import re
import shutil
import string
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote_plus, unquote_to_bytes, urlencode, urlsplit

import click

from picture import CREDENTIALS, ImageRequest


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
    """One of our URLs as written, and as read: `pictures` are those that it may show."""

    url: str
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
        return cls(url, named.request, named.credentials, named.pictures)

    @property
    def address(self) -> str:
        """The URL that a browser requests."""
        return _dereferenced(self.url)

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
