"""Parsers of settings that are JSON: the values by backend, and the LLM's parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from settings.parsers import header_value, json_object
from settings.proxies import Proxy

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
