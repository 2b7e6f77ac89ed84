"""Cards: small SVG pictures that show the reason for an error in place of the picture.

An SVG that is shown as a picture loads no font and runs no script, and SVG 1.1 wraps no text:
lines are broken here, by widths that no usual font exceeds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from unicodedata import east_asian_width

from flask import request

from web.limits import beginning, qualities
from web.sentences import Language

WIDTH, LEAST_HEIGHT = 480, 200
# The request headers that decide between a card and JSON, and between the languages.
VARY = "Accept, Accept-Language, Sec-Fetch-Dest, User-Agent, Via"
_PICTURES = ("image/svg+xml", "image/png")
_READABLE = ("text/html", "text/plain", "application/json", "application/problem+json")
_LEFT, _RIGHT = 96, 20
_TITLE_SIZE, _SIZE, _LINE = 21, 16, 22
_FIRST_LINE, _BELOW = 98, 26

# Widths in em, rounded up from those of DejaVu Sans and Verdana, the widest of the usual fonts.
_NARROW = frozenset("ijlfrtI .,:;!'|/\\()[]-’")
_WIDE = frozenset("mwMWOQ@%&…—+=<>")
_PIECE = re.compile(
    # A Chinese character with the punctuation that may not begin a line, or a word.
    r"\s*(?:[\u2e80-\u9fff\uff00-\uffef][\u3001\u3002\uff0c\uff1a\uff1b\uff01\uff1f\uff09]*"
    r"|[^\s\u2e80-\u9fff\uff00-\uffef]+)"
)


def wants_picture() -> bool:
    """Return whether the client shows the answer as a picture: an <img>, or GitHub's camo."""
    destination = request.headers.get("Sec-Fetch-Dest")
    if destination is not None:
        return destination == "image"
    # Some versions of camo accept */*, and show nothing at all in place of an error.
    senders = (beginning(request.headers, name) for name in ("User-Agent", "Via"))
    if any("camo" in sender.lower() for sender in senders):
        return True
    accepted = qualities(beginning(request.headers, "Accept"))
    as_picture, as_text = (
        max(_quality(accepted, one) for one in types) for types in (_PICTURES, _READABLE)
    )
    return as_picture > as_text


def _quality(accepted: Mapping[str, float], media_type: str) -> float:
    """Return the quality of the most specific range that a media type is in; 0 if there is none."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((accepted[one] for one in ranges if one in accepted), 0.0)


def preferred_language() -> Language:
    """Return the language of the two that the client prefers."""
    best = {"en": 0.0, "zh": 0.0}
    for tag, quality in qualities(beginning(request.headers, "Accept-Language")).items():
        language = tag.partition("-")[0]
        if language in best:
            best[language] = max(best[language], quality)
    return "zh" if best["zh"] > best["en"] else "en"


def card(title: str, sentence: str) -> str:
    """Return an SVG 480 pixels wide and as high as its text, legible on light and dark."""
    lines = list(wrap(sentence))
    height = max(LEAST_HEIGHT, _FIRST_LINE + _LINE * (len(lines) - 1) + _BELOW)
    attributes = f'font-family="system-ui, sans-serif" x="{_LEFT}"'
    texts = "".join(
        f'<text {attributes} y="{_FIRST_LINE + _LINE * number}" font-size="{_SIZE}"'
        f' fill="#d7dde8">{html.escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    label = html.escape(f"{title}: {sentence}")
    # Attributes only: the Content-Security-Policy of a card forbids a <style>.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
        f'<rect width="{WIDTH}" height="{height}" rx="14" fill="#273043"/>'
        '<circle cx="54" cy="64" r="20" fill="none" stroke="#f2b872" stroke-width="4"/>'
        '<path d="M54 53v13m0 7v2" stroke="#f2b872" stroke-width="4" stroke-linecap="round"/>'
        f'<text {attributes} y="70" font-size="{_TITLE_SIZE}" font-weight="600" fill="#fff">'
        f"{html.escape(title)}</text>{texts}</svg>\n"
    )


def wrap(text: str) -> Iterator[str]:
    """Yield the lines of a text as they fit into a card."""
    line, most = "", (WIDTH - _LEFT - _RIGHT) / _SIZE
    for piece in _PIECE.findall(text):
        if line and _width(line + piece) > most:
            yield line
            line = ""
        line += piece if line else piece.lstrip()
        while _width(line) > most:  # one word alone
            end = next(n for n in range(len(line), 0, -1) if _width(line[:n]) <= most)
            yield line[:end]
            line = line[end:]
    yield line


def _width(text: str) -> float:
    return sum(map(_width_of, text))


def _width_of(character: str) -> float:
    if character in _NARROW:
        return 0.42
    if character in _WIDE or east_asian_width(character) in "WF":
        return 1.0
    return 0.79 if character.isupper() else 0.65
