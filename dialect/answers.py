"""The pictures in an answer: found by what they are, wherever they stand in it."""

import html
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from dialect.endpoint import clean_text
from dialect.envelope import read_json
from images.formats import announced_type, foreign_type
from upstream.bodies import STAND_IN, decode_base64

# URLs are shorter, and so is what a person writes around a picture.
_MAX_URL = 8000
_MAX_TEXT = 2**20
_MAX_REVISED = 4000

# Keys are matched together with the one above them, as `images.url`.
_PICTURE_KEYS = re.compile(
    r"(?i)image|img|pic|photo|artifact|output|result|ur[li]|link|href|src|file|media|b64|base64"
    r"|(?:^|\.)data$"
)
_TEXT_KEYS = re.compile(r"(?i)(?:content|text|message|answer|markdown|response)$")
# Shown only where there is no other picture.
_LAST_KEYS = re.compile(r"(?i)thumb|preview|partial|input|logo|icon|avatar|watermark")
_OTHER_KEYS = re.compile(
    r"(?i)logo|icon|avatar|docs?[._]|documentation|help|support|hook|callback|cancel|status|error"
    r"|reason|thought|thinking|policy|terms|billing|pricing|website|input|prompt"
)
_REVISED_KEYS = ("revised_prompt", "revisedPrompt", "actual_prompt")

# The beginning, in base64, of PNG, JPEG, GIF and WebP, and of SVG and AVIF, for the reason.
_BASE64 = re.compile(
    r"iVBORw0KGg|(?:\\?/|_|%2F)9j(?:\\?/|_|%2F)|R0lGOD|UklGR|PHN2Z|PD94b|PCFE|AAAA..Z0eXBhdm", re.I
)
_URI_PREFIX = re.compile(r"(?i)\s*(?:data:[^,]{0,100},\s*)*")
# "/9j/" begins every JPEG in base64.
_URL = re.compile(r"https?://\S+|/(?!9j/)\S+", re.IGNORECASE)
_EXTENSION = re.compile(r"\.(?:png|jpe?g|webp|gif)(?:[?#]|$)", re.IGNORECASE)
_MARKDOWN = re.compile(
    r"!\[(?:[^\[\]]++|\[[^\[\]]*+\])*+\]\(\s*<?((?:[^\s()<>]++|\([^\s()<>]*+\))++)"
)
_IMG_TAG = re.compile(r"""<img\b[^<>]{0,500}?\bsrc\s?=\s?["']?([^\s"'<>]+)""", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/[^\s,\"'<>()]{0,80},[\w+/=%-]+", re.IGNORECASE | re.ASCII)
_LINK = re.compile(r"https?://[^\s<>\"'`\]，。）】」]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """What may be the picture of an answer: its bytes or its URL; and the revised prompt."""

    data: bytes | None = None
    url: str | None = None
    revised_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A text in an answer, its key with the one above it, and the revised prompt beside it."""

    place: str
    text: str
    revised: str | None


def find_pictures(
    answer: Any, cut: bytes | None = None, sent: Collection[str] = ()
) -> Iterator[Found]:
    """Yield what may be the picture of a JSON answer, the most likely first.

    `cut` is the picture, decoded, that was cut out of the JSON; `sent` the texts of the request.
    What stands in one of those is not the picture: refusals quote it. Bytes are of a known
    format, but may be incomplete.
    """
    texts = list(_texts(answer if isinstance(answer, dict) else {"images": answer}))
    last = [text for text in texts if _LAST_KEYS.search(text.place)]
    others = [text for text in texts if not _LAST_KEYS.search(text.place)]
    folded = [_folded(text) for text in sent]
    found = False
    for candidate in _found_in(others, cut, folded):
        found = True
        yield candidate
    if not found:
        yield from _found_in(last, cut, folded)


def _found_in(texts: list[_Text], cut: bytes | None, sent: list[str]) -> Iterator[Found]:
    """Yield bytes, then URLs."""
    for item in texts:
        data = cut if cut and STAND_IN in item.text else _bytes_in(item.text, sent)
        if data:
            yield Found(data=data, revised_prompt=item.revised)
    tried = set()
    for item, candidate in _named(texts):
        if candidate in tried or _is_in(candidate, sent):
            continue
        tried.add(candidate)
        if _URL.match(candidate):
            yield Found(url=candidate, revised_prompt=item.revised)
        elif data := _bytes_in(candidate, sent):
            yield Found(data=data, revised_prompt=item.revised)


def _texts(answer: dict[str, Any]) -> Iterator[_Text]:
    """Yield the texts in an answer, in the order of the document, but for prompts."""
    waiting: list[tuple[str, Any, str | None]] = [("", answer, None)]
    while waiting:
        place, value, revised = waiting.pop()
        if isinstance(value, dict):
            above = place.rpartition(".")[2]
            said = filter(None, (clean_text(value.get(name)) for name in _REVISED_KEYS))
            revised = next(said, "")[:_MAX_REVISED] or revised
            waiting += [
                (f"{above}.{name[:100]}", inner, revised)
                for name, inner in reversed(value.items())
                if not name.lower().endswith("prompt")
            ]
        elif isinstance(value, list):
            waiting += [(place, inner, revised) for inner in reversed(value)]
        elif isinstance(value, str) and value:
            if (
                value[0] in "{[" and value[-1] in "]}"
            ):  # JSON that a gateway, or a model, has written
                waiting.append((place, read_json(value.encode("utf-8", "replace")), revised))
            yield _Text(place, value, revised)


def _named(texts: list[_Text]) -> Iterator[tuple[_Text, str]]:
    """Yield URLs as a whole, under keys of pictures; then those in what a chat has written."""
    named = [item for item in texts if not _OTHER_KEYS.search(item.place)]
    pictures = [item for item in named if _PICTURE_KEYS.search(item.place)]
    for item in pictures:
        url = item.text.strip() if len(item.text) <= _MAX_URL else ""
        if _URL.fullmatch(url):
            yield item, url
    for item in named:
        if _PICTURE_KEYS.search(item.place) or _TEXT_KEYS.search(item.place):
            yield from ((item, candidate) for candidate in _candidates(item.text[:_MAX_TEXT]))


def _candidates(text: str) -> Iterator[str]:
    """Yield the pictures that a chat names: progress is written before the result."""
    yield from reversed(_MARKDOWN.findall(text))
    yield from map(html.unescape, reversed(_IMG_TAG.findall(text)))
    yield from reversed(_DATA_URI.findall(text))
    links = [_without_punctuation(link) for link in _LINK.findall(text)]
    if links == [text.strip()]:
        yield links[0]
    yield from (link for link in reversed(links) if _EXTENSION.search(link))


def _without_punctuation(link: str) -> str:
    """Return a link without the sentence's, or Markdown's, punctuation after it."""
    link = link.rstrip(".,;:!?*_")
    return link.partition(")")[0] if link.count(")") > link.count("(") else link


def _bytes_in(text: str, sent: list[str]) -> bytes | None:
    """Return the bytes of base64 or a data URI, if they begin as those of a known format."""
    if text[:9].lower() == "data%3aim":
        text = unquote(text)
    prefix = _URI_PREFIX.match(text)
    begin = prefix.end() if prefix else 0
    if _BASE64.match(text, begin):
        data = decode_base64(text[begin:].encode("ascii", "replace"))
    elif text[:5].lower() == "data:":
        data = unquote_to_bytes(text[begin:])
    else:
        return None
    is_known = data and (announced_type(data) or foreign_type(data))
    return data if is_known and not _is_in(text, sent) else None


def _is_in(text: str, sent: list[str]) -> bool:
    return len(text) <= _MAX_URL and any(_folded(text) in one for one in sent)


def _folded(text: str) -> str:
    return unquote(text).casefold()
