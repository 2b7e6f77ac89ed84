"""Parsers of settings by backend: JSON objects whose keys are backends' URLs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from settings.parsers import InvalidEntries, base_url, header_value, json_object, printable_url
from settings.proxies import Proxy

T = TypeVar("T")

_MAX_WEIGHT = 1_000_000


def by_backend(parse: Callable[[Any], T]) -> Callable[[str], dict[str, T]]:
    """Return a parser of a JSON object: backends' URLs, and values that `parse` takes."""

    def parse_object(text: str) -> dict[str, T]:
        found, faults = {}, []
        for key, value in json_object(text).items():
            try:
                url = base_url(key.strip())
            except ValueError:
                # Not quoted: if key and value were swapped, it is a token.
                faults.append('has a key that is not a URL; write {"https://backend/v1": …}')
                continue
            try:
                found[url] = parse(value)
            except ValueError as error:
                faults.append(f"{printable_url(url)!r}: {error}")
        if faults:
            raise InvalidEntries(faults, found)
        return found

    return parse_object


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
        if wrong := {"prompt", "n"} & fields.keys():
            raise ValueError(f"has the field {min(wrong)!r}, which no setting replaces; remove it")
        if not isinstance(fields.get("model"), str | None):
            raise ValueError("has a model that is not a name; write it in quotes")
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError(f"has a value that JSON cannot hold; {advice}") from None
    return value


def proxy_or_none(value: Any) -> Proxy | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError('is not a proxy; write "http://host:3128", or null for none')
    return Proxy.parse(value.strip())
