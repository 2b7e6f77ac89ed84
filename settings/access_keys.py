"""Named access keys and their limits, as ACCESS_KEYS lists them."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from typing import Any

from settings.parsers import json_object

# The name under which PROXY_ACCESS_KEY and the URLs signed with it are logged and counted.
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


def named_keys(text: str) -> tuple[KeySettings, ...]:
    """Parse a JSON object of named keys."""
    keys, faults = [], []
    for name, value in json_object(text, _EXAMPLE).items():
        try:
            keys.append(_named_key(name, value))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(*faults)
    return tuple(keys)


def clashes(access_key: str | None, named: tuple[KeySettings, ...]) -> list[str]:
    """Return a sentence for each key that has several names."""
    names = {access_key: SHARED_NAME} if access_key else {}
    firsts = [names.setdefault(own.key, own.name) for own in named]
    return [
        f"{own.name!r} has the same key as {first!r}; give each its own"
        for own, first in zip(named, firsts, strict=True)
        if first != own.name
    ]


def _named_key(name: str, value: Any) -> KeySettings:
    # Nothing is quoted that could be a key in the wrong place.
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
