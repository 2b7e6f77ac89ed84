"""Settings of access: named keys with their limits."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from settings import parsers as v
from settings.reader import Reader

# What PROXY_ACCESS_KEY and signed URLs are called where named keys have their names.
SHARED_NAME = "PROXY_ACCESS_KEY"
MAX_PER_DAY = 1_000_000_000
_EXAMPLE = '{"name": {"key": "…", "per_day": 50, "expires": "2027-01-31"}}'
_FIELDS = frozenset(("key", "per_day", "expires"))


@dataclass(frozen=True, slots=True)
class KeySettings:
    """A named access key: its drawings per UTC day, and the last day on which it is accepted."""

    name: str
    key: str = field(repr=False)
    per_day: int | None = None
    expires: datetime.date | None = None


def read_access_keys(reader: Reader, access_key: str | None) -> tuple[KeySettings, ...]:
    """Read ACCESS_KEYS; `access_key` is PROXY_ACCESS_KEY, which one of the two has to be."""
    none: dict[str, Any] = {}
    written = reader.get("ACCESS_KEYS", lambda text: v.json_object(text, _EXAMPLE), none)
    keys = []
    for name, value in written.items():
        try:
            keys.append(_read_key(name, value))
        except ValueError as error:
            reader.fault("ACCESS_KEYS", error)
    for sentence in _clashes(keys, access_key):
        reader.fault("ACCESS_KEYS", sentence)
    if not (written or reader.has_fault("ACCESS_KEYS")):
        advice = "write a long random string, which clients send as ?key="
        reader.require("PROXY_ACCESS_KEY", advice)
    return tuple(keys)


def _read_key(name: str, value: Any) -> KeySettings:
    # Whatever could be a key that was put in the wrong place is not quoted.
    if not isinstance(value, dict):
        raise ValueError(f"has an entry that is not an object; write {_EXAMPLE}")
    if not value.keys() <= _FIELDS:
        raise ValueError("has a field besides key, per_day and expires; remove it")
    if not re.fullmatch(r"[\w.@ -]{1,40}", name) or name == SHARED_NAME or name != name.strip():
        raise ValueError("has an unusable name; write up to 40 letters, digits and . _ @ -")
    try:
        key, expires = _key(value.get("key")), _day(value.get("expires"))
        return KeySettings(name, key, _per_day(value.get("per_day")), expires)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None


def _key(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("has no key; write a long random string in quotes")
    return value.strip()


def _per_day(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_PER_DAY:
        return value
    raise ValueError(f"per_day is not usable; write an integer from 0 to {MAX_PER_DAY}")


def _day(value: Any) -> datetime.date | None:
    if value is None:
        return None
    try:
        # fromisoformat alone would accept 2027-W04-7 and 20270131.
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError('expires is not a day; write one as "2027-01-31"') from None


def _clashes(keys: list[KeySettings], access_key: str | None) -> Iterator[str]:
    names = {access_key: SHARED_NAME} if access_key else {}
    for own in keys:
        first = names.setdefault(own.key, own.name)
        if first != own.name:
            yield f"{own.name!r} has the same key as {first!r}; give each its own"
