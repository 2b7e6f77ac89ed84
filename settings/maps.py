"""Parsers of settings that are JSON: access keys, the values by backend, the LLM's parameters."""

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from settings.parsers import each, header_value, is_text, json_object
from settings.proxies import Proxy

# The name under which PROXY_ACCESS_KEY and the URLs signed with it are logged and counted.
SHARED_NAME = "PROXY_ACCESS_KEY"
MAX_PER_DAY = 1_000_000_000
_EXAMPLE = '{"name": {"key": "…", "per_day": 50, "expires": "2027-01-31"}}'


@dataclass(frozen=True, slots=True)
class KeySettings:
    """A named access key: its drawings per UTC day, and the last day on which it is accepted."""

    name: str
    key: str = field(repr=False)
    per_day: int | None = None
    expires: datetime.date | None = None


def named_keys(text: str) -> tuple[KeySettings, ...]:
    """Parse a JSON object of named keys."""
    return tuple(each(json_object(text, _EXAMPLE), _named_key))


def _named_key(name: str, value: Any) -> KeySettings:
    # Nothing is quoted that could be a key in the wrong place.
    if not isinstance(value, dict):
        raise ValueError(f"has an entry that is not an object; write {_EXAMPLE}")
    if not value.keys() <= {"key", "per_day", "expires"}:
        raise ValueError("has a field besides key, per_day and expires; remove it")
    if not re.fullmatch(r"[\w.@ -]{1,40}", name) or name == SHARED_NAME or name != name.strip():
        raise ValueError("has an unusable name; write up to 40 letters, digits and . _ @ -")
    key, per_day, expires = (value.get(field) for field in ("key", "per_day", "expires"))
    if not is_text(key):
        raise ValueError(f"{name!r}: has no key; write a long random string in quotes")
    try:
        limit = None if per_day is None else number(0, MAX_PER_DAY)(per_day)
    except ValueError as error:
        raise ValueError(f"{name!r}: per_day {error}") from None
    try:
        last = None if expires is None else datetime.date.fromisoformat(expires)
    except (TypeError, ValueError):
        advice = 'write one as "2027-01-31"'
        raise ValueError(f"{name!r}: expires is not a day; {advice}") from None
    return KeySettings(name, key.strip(), limit, last)


# RFC 9110, section 5.1.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Where a request goes, and where it ends, is for us to say.
_OWN_HEADERS = frozenset(("host", "content-length", "transfer-encoding"))


def number(low: int, high: int, kind: type = int) -> Callable[[Any], Any]:
    """Return a parser of JSON's integers in a range, or with `float` of any numbers."""

    def parse(value: Any) -> Any:
        is_one = isinstance(value, int | kind) and not isinstance(value, bool)
        if not is_one or not low <= value <= high:
            noun = "an integer" if kind is int else "a number"
            raise ValueError(f"is not usable; write {noun} from {low} to {high}")
        return value

    return parse


def token(value: Any) -> str:
    if not is_text(value):
        raise ValueError("is not a token; write it in quotes")
    return header_value(value.strip())


def model_names(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise ValueError('does not map model names; write {"model": "name at this backend"}')
    return value


def parameters(value: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the fields to add to requests: by model, or for every model under `*`."""
    if not isinstance(value, dict) or not all(isinstance(of, dict) for of in value.values()):
        raise ValueError('is not an object of objects; write {"*": {"parameter": value}}')
    for fields in value.values():
        _check_fields(fields, {"prompt", "messages", "n"})
    return value


def llm_parameters(text: str) -> Mapping[str, Any]:
    """Return the fields to add to requests to the LLM; None removes one."""
    fields = json_object(text, '{"enable_thinking": false}')
    _check_fields(fields, {"messages"})
    return fields


def _check_fields(fields: Mapping[str, Any], fixed: set[str]) -> None:
    if wrong := fixed & fields.keys():
        raise ValueError(f"has the field {min(wrong)!r}, which no setting replaces; remove it")
    if not isinstance(fields.get("model"), str | None):
        raise ValueError("has a model that is not a name; write it in quotes")


def headers(value: Any) -> Mapping[str, str]:
    """Return header fields to send. No sentence quotes a value: all are secrets."""
    if not isinstance(value, dict) or not value:
        raise ValueError('is not an object of headers; write {"X-Name": "value"}')
    return dict(each(value, _header))


def _header(name: str, value: Any) -> tuple[str, str]:
    if not _HEADER_NAME.fullmatch(name):
        # Not quoted: name and value may have been swapped.
        raise ValueError("has a name that no header can have; write letters, digits and -")
    if name.lower() in _OWN_HEADERS:
        raise ValueError(f"has the header {name!r}, which no setting replaces; remove it")
    if not is_text(value):
        raise ValueError("has a header without a value; write it in quotes")
    return name, header_value(value)


def proxy_or_none(value: Any) -> Proxy | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError('is not a proxy; write "http://host:3128", or null for none')
    return Proxy.parse(value.strip())
