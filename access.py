"""Authorisation: access keys and their daily limits, the admin token, and signatures.

A signature grants access to one picture: `sig` is the first 32 hex digits of HMAC-SHA256 over
`{cache key in hex}|{exp}`. `exp` is the Unix time in seconds after which the signature is void,
or empty if it never expires. A signature made with a named key is over `{cache key}|{exp}|{name}`,
and the URL has the name as `by`: its drawings count for that key, and it ends with the name.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from config import MIN_SECRET_LENGTH, Settings
from picture import BadRequest, ImageRequest, Problem
from settings.maps import SHARED_NAME, KeySettings
from storage.state import State

SIGNATURE_LENGTH = 32
MAX_EXPIRES_IN = 10 * 365 * 86400
_DERIVATION_LABEL = b"prompt-image-proxy signing key"


class Unauthorised(Problem):
    """No valid credentials."""


class Forbidden(Problem):
    """The operation is switched off, whatever the credentials."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The name of an access key, and its drawings per UTC day (None: no limit)."""

    name: str
    per_day: int | None = None

    @property
    def attempts_per_day(self) -> int | None:
        """How many drawings may be tried: those that failed and cost nothing are counted here."""
        return None if self.per_day is None else 5 * self.per_day + 20

    def count_key(self, now: float) -> str:
        """Return the key of the state's count of drawings, at a Unix time."""
        return f"{datetime.fromtimestamp(now, UTC).date().isoformat()} {self.name}"


# No access key has a name like this.
COMMAND_LINE = Caller("(command line)")


@dataclass
class Access:
    """Authorises the views, the page's API and the command line.

    Secrets are compared as bytes and in constant time: compare_digest raises on text that is not
    ASCII. The first signing key signs and all of them are accepted, so that keys can be rotated.
    The last is derived from PROXY_ACCESS_KEY: it signs where there is no other, and what it has
    signed stays valid when there is. Without any, signing is off.
    """

    settings: Settings
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        key, limit = self.settings.access_key, self.settings.drawings_per_day
        self.shared = Caller(SHARED_NAME, limit)
        self._keys = list(self.settings.access_keys)
        self._signing_keys = [key.encode() for key in self.settings.signing_keys]
        if key:
            self._keys.insert(0, KeySettings(SHARED_NAME, key, limit))
            derived = hmac.digest(key.encode(), _DERIVATION_LABEL, hashlib.sha256)
            self._signing_keys.append(derived)

    def authorise(
        self,
        credentials: Mapping[str, str],
        authorization: str = "",
        pictures: Sequence[ImageRequest] = (),
    ) -> Caller:
        """Accept an access key or, for a picture, a valid signature; return the caller.

        `credentials` are those of a URL (`key`, `sig`, `exp`, `by`), and a signature may be of any
        of the `pictures` that the URL may name; `authorization` is the header, decoded as Latin-1,
        as WSGI requires. Raises Unauthorised, and BadRequest for a bad `exp` or a key that has also
        become part of a picture's prompt.
        """
        offered = [credentials["key"].encode()] if "key" in credentials else []
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            offered.append(token.strip().encode("latin-1"))
        # Every key is compared, even after a match: timing must reveal nothing about the others.
        matches = [
            own
            for own in self._keys
            for key in offered
            if hmac.compare_digest(key, own.key.encode())
        ]
        for own in matches:
            if not self._has_expired(own):
                _reject_key_in(pictures, own.key)
                return Caller(own.name, own.per_day)
        if pictures and "sig" in credentials:
            return self._signer(pictures, credentials)
        if matches:
            raise Unauthorised("key_expired", day=matches[0].expires)
        if offered:
            raise Unauthorised("key_wrong")
        is_bare_url = pictures and not credentials
        raise Unauthorised("credentials_missing" if is_bare_url else "key_missing")

    def authorise_admin(self, token: str) -> None:
        """Accept the admin token, decoded as Latin-1. Raises Unauthorised and Forbidden."""
        if not (own := self.settings.admin_token):
            raise Forbidden("administration_off")
        if not hmac.compare_digest(token.encode("latin-1"), own.encode()):
            raise Unauthorised("admin_token_wrong")

    @property
    def can_sign(self) -> bool:
        return bool(self._signing_keys)

    def sign(
        self, request: ImageRequest, caller: Caller, expires_in: int | None = None
    ) -> dict[str, str | int]:
        """Return the credentials for a picture's URL: `sig`, `exp` if it is to expire, and `by`.

        What the URL draws counts for `caller`, who is named unless it is `shared`. `expires_in`
        is in seconds. Raises Forbidden if signing is off.
        """
        if not self._signing_keys:
            raise Forbidden("signing_off")
        exp = {} if expires_in is None else {"exp": int(self.clock()) + expires_in}
        by = {} if caller == self.shared else {"by": caller.name}
        sig = _signature(self._signing_keys[0], request, {**exp, **by})
        return {**exp, **by, "sig": sig}

    def _signer(self, pictures: Sequence[ImageRequest], credentials: Mapping[str, str]) -> Caller:
        """Return the caller who signed one of these. Raises Unauthorised and BadRequest."""
        sig, exp = credentials["sig"].encode(), credentials.get("exp")
        if exp is not None and not re.fullmatch(r"[0-9]{1,12}", exp):
            raise BadRequest("not_a_time", name="exp")
        if len(sig) < SIGNATURE_LENGTH:
            raise Unauthorised("signature_incomplete")
        valid = [
            _signature(key, one, credentials) for key in self._signing_keys for one in pictures
        ]
        if not any([hmac.compare_digest(sig, one.encode()) for one in valid]):
            raise Unauthorised("signature_wrong")
        if exp is not None and int(exp) <= self.clock():
            raise Unauthorised("signature_expired")
        if "by" not in credentials:
            return self.shared
        for own in self._keys:
            if own.name == credentials["by"]:
                if self._has_expired(own):
                    raise Unauthorised("key_expired", day=own.expires)
                return Caller(own.name, own.per_day)
        raise Unauthorised("signer_removed")

    def usage(self, state: State) -> list[dict[str, Any]]:
        """Return for each key its name, its drawings today and its limits. Raises Unavailable."""
        shared = [KeySettings(SHARED_NAME, "", self.shared.per_day)] if self.can_sign else []
        keys = {key.name: key for key in (*shared, *self._keys)}.values()
        now = state.now()
        counted = [Caller(key.name).count_key(now) for key in keys]
        counts = state.counts(counted)
        return [
            {
                "name": key.name,
                "drawings": counts.get(name, 0),
                "per_day": key.per_day,
                "expires": key.expires.isoformat() if key.expires else None,
            }
            for key, name in zip(keys, counted, strict=True)
        ]

    def _has_expired(self, key: KeySettings) -> bool:
        if key.expires is None:
            return False
        return datetime.fromtimestamp(self.clock(), UTC).date() > key.expires


def _reject_key_in(pictures: Sequence[ImageRequest], key: str) -> None:
    """Keep a key from backends and the index that a URL also has where it is no parameter.

    As in `/prompt/cat%3Fkey=…`. A short key may be an ordinary word. Raises BadRequest.
    """
    texts = [text for one in pictures for text in (one.prompt, *one.options.values())]
    if len(key) >= MIN_SECRET_LENGTH and any(key in text for text in texts):
        raise BadRequest("prompt_has_key", name="description")


def _signature(key: bytes, request: ImageRequest, credentials: Mapping[str, str | int]) -> str:
    by = f"|{credentials['by']}" if "by" in credentials else ""
    text = f"{request.key}|{credentials.get('exp', '')}{by}"
    return hmac.digest(key, text.encode(), "sha256").hex()[:SIGNATURE_LENGTH]
