"""Cards: small PNGs that say what the reader can do, in place of a picture that failed.

`demo/render_cards.py` makes them. Firefox shows no SVG that has an error's status.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flask import request

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
    "operator": "failed",
    401: "unauthorised",
    422: "refused",
    429: "limit",
}
# Read at once, in gunicorn's master: an upgrade on disk must not mix two versions.
_FILES = {path.name: path.read_bytes() for path in Path(__file__).with_suffix("").glob("*.png")}


def wants_picture() -> bool:
    """Return whether the client shows the answer as a picture: an <img>, or GitHub's camo."""
    destination = request.headers.get("Sec-Fetch-Dest")
    if destination is not None:
        return destination == "image"
    # Some versions of camo accept */*, and show nothing at all in place of an error.
    if "camo" in f"{request.user_agent.string} {request.headers.get('Via', '')}".lower():
        return True
    accepted = request.accept_mimetypes
    readable = ("text/html", "text/plain", "application/json", "application/problem+json")
    return accepted.quality("image/png") > max(map(accepted.quality, readable))


def preferred_language() -> Language:
    """Return the language of the two that the client prefers."""
    return "zh" if request.accept_languages.best_match(("en", "zh")) == "zh" else "en"


def card(code: str, remedy: str | None, status: int, language: Language) -> bytes:
    """Return the PNG for an error."""
    known = (_CARDS[sign] for sign in (code, remedy, status) if sign in _CARDS)
    name = next(known, "later" if status >= 500 else "invalid")
    return _FILES[f"{name}.{language}.png"]
