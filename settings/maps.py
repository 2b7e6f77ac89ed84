"""Parsers of settings that are JSON: the values by backend, and the LLM's parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from settings.parsers import header_value, json_object
from settings.proxies import Proxy

_MAX_WEIGHT = 1_000_000


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
        _check_fields(fields, {"prompt", "n"}, advice)
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


def proxy_or_none(value: Any) -> Proxy | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError('is not a proxy; write "http://host:3128", or null for none')
    return Proxy.parse(value.strip())
