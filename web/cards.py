"""Cards: small PNGs that say what the reader can do, in place of a picture that failed.

`demo/render_cards.py` makes them. Firefox shows no SVG that has an error's status.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flask import request

from web.limits import beginning, qualities
from web.sentences import Language

# The request headers that decide between a card and JSON, and between the languages.
VARY = "Accept, Accept-Language, Sec-Fetch-Dest, User-Agent, Via"
# By an error's code, remedy or status, the first that is listed; nginx shows two more.
_CARDS: Mapping[str | int | None, str] = {
    "credentials_missing": "incomplete",
    "key_expired": "expired",
    "signature_expired": "expired",
    "signer_removed": "expired",
    "still_drawing": "drawing",
    "unknown_model": "model",
    "may_not_draw": "undrawn",
    "operator": "failed",
    401: "unauthorised",
    422: "refused",
    429: "limit",
}
# Read at once, in gunicorn's master: an upgrade on disk must not mix two versions.
_FILES = {path.name: path.read_bytes() for path in Path(__file__).with_suffix("").glob("*.png")}
_READABLE = ("text/html", "text/plain", "application/json", "application/problem+json")


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
    return _quality(accepted, "image/png") > max(_quality(accepted, one) for one in _READABLE)


def _quality(accepted: Mapping[str, float], media_type: str) -> float:
    """Return the quality of the most specific range that covers a media type, 0 without one."""
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


def card(code: str, remedy: str | None, status: int, language: Language) -> bytes:
    """Return the PNG for an error."""
    known = (_CARDS[sign] for sign in (code, remedy, status) if sign in _CARDS)
    name = next(known, "later" if status >= 500 else "invalid")
    return _FILES[f"{name}.{language}.png"]
