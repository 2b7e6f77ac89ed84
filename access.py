"""Signed URLs: each authorises exactly one picture, and shows nobody the access key.

`sig` is the first 32 hex digits of HMAC-SHA256 over `{cache key in hex}|{exp}`, `exp` being the
Unix time in seconds after which it no longer counts, or nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from picture import BadRequest, ImageRequest

SIGNATURE_LENGTH = 32
MAX_EXPIRES_IN = 10 * 365 * 86400
_DERIVATION_LABEL = b"prompt-image-proxy signing key"


class BadSignature(Exception):
    """The signature authorises nothing. Its text is a sentence that says why."""


class Signer:
    """Signs with the first of its keys and accepts all of them, so that they can be rotated."""

    def __init__(self, keys: Sequence[str], access_key: str, clock: Callable[[], float]) -> None:
        """Take the configured keys, or else one that is derived from the access key."""
        derived = hmac.new(access_key.encode(), _DERIVATION_LABEL, hashlib.sha256).digest()
        self._keys = [key.encode() for key in keys] or [derived]
        self.clock = clock

    @classmethod
    def of(cls, keys: Sequence[str], access_key: str) -> Signer:
        return cls(keys, access_key, time.time)

    def sign(self, request: ImageRequest, expires_in: int | None = None) -> dict[str, str | int]:
        """Return the credentials for a picture's URL: `sig`, and `exp` if it is to expire."""
        if expires_in is None:
            return {"sig": _signature(self._keys[0], request.key, "")}
        exp = int(self.clock()) + expires_in
        return {"exp": exp, "sig": _signature(self._keys[0], request.key, str(exp))}

    def verify(self, request: ImageRequest, sig: str, exp: str | None) -> None:
        """Return if `sig` authorises the picture. Raises BadSignature."""
        if exp is not None and not re.fullmatch(r"[0-9]{1,12}", exp):
            raise BadRequest("The parameter exp must be a Unix time in seconds.")
        if len(sig) < SIGNATURE_LENGTH:
            raise BadSignature("The signature is cut short.")
        offered = sig.encode()
        # Every key is compared, and each in constant time.
        matches = [
            hmac.compare_digest(offered, _signature(key, request.key, exp or "").encode())
            for key in self._keys
        ]
        if not any(matches):
            raise BadSignature("The signature is wrong: it belongs to another picture or key.")
        if exp is not None and int(exp) <= self.clock():
            raise BadSignature("The signature has expired.")


def _signature(key: bytes, cache_key: str, exp: str) -> str:
    message = f"{cache_key}|{exp}".encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:SIGNATURE_LENGTH]


@dataclass(frozen=True, slots=True)
class Link:
    """A picture's URL as it is pasted into documents."""

    request: ImageRequest
    url: str

    @property
    def markdown(self) -> str:
        alt = re.sub(r"([\\`*_\[\]<>&!])", r"\\\1", " ".join(self.request.prompt.split()))
        return f"![{alt}]({self.url})"

    @property
    def html(self) -> str:
        size = ' width="{}" height="{}"'.format(*self.request.pixels) if self.request.pixels else ""
        alt = html.escape(" ".join(self.request.prompt.split()))
        return f'<img src="{html.escape(self.url)}" alt="{alt}"{size} loading="lazy">'

    def to_json(self) -> dict[str, str]:
        return {"url": self.url, "markdown": self.markdown, "html": self.html}
