"""Parsers of settings that are JSON: access keys, the values by backend, the LLM's parameters."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from settings.parsers import header_value, json_object
from settings.proxies import Proxy

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


_MAX_WEIGHT = 1_000_000
_MAX_CONCURRENCY = 1000
# RFC 9110, section 5.1.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Where a request goes, and where it ends, is for us to say.
_OWN_HEADERS = frozenset(("host", "content-length", "transfer-encoding"))


def weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is not a number; write a number from 0 to {_MAX_WEIGHT}")
    if not 0 <= value <= _MAX_WEIGHT:  # NaN fails too
        raise ValueError(f"{value} is not usable; write a number from 0 to {_MAX_WEIGHT}")
    return float(value)


def token(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is not a token; write it in quotes")
    return header_value(value.strip())


def model_names(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise ValueError('does not map model names; write {"model": "name at this backend"}')
    return value


def parameters(value: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the fields to add to requests: by model, or for every model under `*`."""
    advice = 'write {"*": {"parameter": value}}'
    if not isinstance(value, dict) or not all(isinstance(of, dict) for of in value.values()):
        raise ValueError(f"is not an object of objects; {advice}")
    for fields in value.values():
        _check_fields(fields, {"prompt", "messages", "n"}, advice)
    return value


def llm_parameters(text: str) -> Mapping[str, Any]:
    """Return the fields to add to requests to the LLM; None removes one."""
    example = '{"enable_thinking": false}'
    fields = json_object(text, example)
    _check_fields(fields, {"messages"}, f"write {example}")
    return fields


def _check_fields(fields: Mapping[str, Any], fixed: set[str], advice: str) -> None:
    if wrong := fixed & fields.keys():
        raise ValueError(f"has the field {min(wrong)!r}, which no setting replaces; remove it")
    if not isinstance(fields.get("model"), str | None):
        raise ValueError("has a model that is not a name; write it in quotes")
    try:
        json.dumps(fields, allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError(f"has a value that JSON cannot hold; {advice}") from None


def headers(value: Any) -> Mapping[str, str]:
    """Return header fields to send. No sentence quotes a value: all are secrets."""
    if not isinstance(value, dict) or not value:
        raise ValueError('is not an object of headers; write {"X-Name": "value"}')
    faults = [fault for name, text in value.items() if (fault := _header_fault(name, text))]
    if faults:
        raise ValueError(*faults)
    return value


def _header_fault(name: str, value: Any) -> str | None:
    if not _HEADER_NAME.fullmatch(name):
        # Not quoted: name and value may have been swapped.
        return "has a name that no header can have; write letters, digits and -"
    if name.lower() in _OWN_HEADERS:
        return f"has the header {name!r}, which no setting replaces; remove it"
    if not isinstance(value, str) or not value.strip():
        return "has a header without a value; write it in quotes"
    try:
        header_value(value)
    except ValueError as error:
        return f"has a header whose value {error}"
    return None


def concurrency(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"is not an integer; write one from 1 to {_MAX_CONCURRENCY}")
    if not 1 <= value <= _MAX_CONCURRENCY:
        raise ValueError(f"{value} is not usable; write an integer from 1 to {_MAX_CONCURRENCY}")
    return value


def proxy_or_none(value: Any) -> Proxy | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError('is not a proxy; write "http://host:3128", or null for none')
    return Proxy.parse(value.strip())
