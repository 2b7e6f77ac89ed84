"""The parsers that config.py is made of: text in, value out, or what is wrong with it.

A parser raises ValueError with a sentence in two halves: what is wrong; what to write. The
variable's name is put in front of it. No sentence quotes what may be a secret.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAX_WEIGHT = 1_000_000
# A model's name, as requests write it.
MODEL = r"[A-Za-z0-9._:/@+-]{1,100}"

_DATABASE = "write postgresql://user:password@host/database"

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() alone would accept '１２', '1_000' and ' 5 '.
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not usable; write an integer from {low} to {high}")
        return int(text)

    return parse


def seconds(low: float, high: int = 86400) -> Callable[[str], float]:
    # At most a day for a time-out: above 24 days a socket raises OverflowError.
    def parse(text: str) -> float:
        is_number = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text)
        if not is_number or not low <= float(text) <= high:
            raise ValueError(f"{text!r} is not usable; write seconds, from {low:g} to {high}")
        return float(text)

    return parse


def boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false; write true or false")


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"{text!r} is unknown; write one of {', '.join(choices)}")

    return parse


def host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:%-]+", text):
        raise ValueError(f"{text!r} is not an address; write one such as 127.0.0.1, 0.0.0.0 or ::")
    return text


def header_value(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError("contains characters that HTTP headers cannot; write printable ASCII only")
    return text


def base_url(text: str) -> str:
    """Return the URL without fragment and trailing slash. A query stays: Azure needs one."""
    if problem := _url_problem(text):
        raise ValueError(f"{_printable_start(text) + '…'!r} {problem}; write https://host/path")
    parts = urlsplit(text)
    return parts._replace(path=parts.path.rstrip("/"), fragment="").geturl()


def url_without_query(text: str) -> str:
    url = base_url(text)
    if "?" in url:
        raise ValueError("has a query, to which no path can be appended; write https://host/path")
    return url


def _url_problem(text: str) -> str | None:
    if not re.match(r"https?://", text, re.IGNORECASE):
        return "does not begin with http:// or https://"
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        return "contains white space"
    try:
        parts = urlsplit(text)
        is_valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    return None if is_valid else "is not a valid URL"


def _printable_start(text: str) -> str:
    """Return scheme and host of an invalid URL: a password may be anywhere else in it."""
    scheme, separator, rest = text.rpartition("://")
    return scheme + separator + re.split(r"[/:?#\s]", rest.rpartition("@")[2], maxsplit=1)[0]


def printable_url(url: str) -> str:
    """Return the URL without what may be secret in it: user, password, query and fragment."""
    return re.sub(r"//[^/?#]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])


def database_url(text: str) -> str:
    """Return the URL of a PostgreSQL database, as libpq reads it."""
    if not re.match(r"postgres(ql)?://", text):
        raise ValueError(f"does not begin with postgresql://; {_DATABASE}")
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError(f"contains white space, which is written as %20; {_DATABASE}")
    return text


def base_urls(text: str) -> tuple[str, ...]:
    """Return comma-separated URLs, each once."""
    if re.search(r";\s*https?://", text):
        raise ValueError("separates URLs by semicolons; write commas between them")
    urls = tuple(dict.fromkeys(base_url(part.strip()) for part in text.split(",") if part.strip()))
    if not urls:
        raise ValueError("names no backend; write one or more URLs, separated by commas")
    return urls


def keys(text: str) -> tuple[str, ...]:
    """Return comma-separated keys."""
    found = tuple(key.strip() for key in text.split(","))
    if not all(found):
        raise ValueError("contains an empty key; write one or more keys, separated by commas")
    return found


def certificates(text: str) -> Path:
    """Return the absolute path of a file with certificates of authorities."""
    path = Path(text).absolute()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError("contains no certificate; write the path of a PEM file") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); write a file's path") from None
    return path


def networks(text: str) -> tuple[IpNetwork, ...]:
    """Return comma-separated networks, each as address/bits."""
    return tuple(_network(part.strip()) for part in text.split(","))


def _network(text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a network; write one such as 192.168.1.0/24") from None


def writable_folder(text: str) -> Path:
    """Return an absolute path, where the folder exists or can be created."""
    path = Path(text).absolute()
    try:
        nearest = next(place for place in (path, *path.parents) if place.exists())
        is_folder = nearest.is_dir()
        is_writable = os.access(nearest, os.W_OK | os.X_OK, effective_ids=True)
    except OSError as error:
        raise ValueError(f"cannot be used ({error.strerror}); write a folder's path") from None
    if not is_folder:
        raise ValueError(f"{str(nearest)!r} is not a folder; write a folder's path")
    if not is_writable:
        raise ValueError(f"{str(nearest)!r} is not writable; write the path of a writable folder")
    return path


def json_object(text: str, example: str = '{"https://backend/v1": …}') -> dict[str, Any]:
    # The text may hold tokens: the sentence says where it is wrong, and quotes nothing.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"is not JSON{where}; write {example}") from None
    if not isinstance(value, dict):
        raise ValueError(f"is JSON but not an object; write {example}")
    return value


def weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is not a number; write a number from 0 to {MAX_WEIGHT}")
    if not 0 <= value <= MAX_WEIGHT:  # NaN fails too
        raise ValueError(f"{value} is not usable; write a number from 0 to {MAX_WEIGHT}")
    return float(value)


def token(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is not a token; write it in quotes")
    return header_value(value.strip())


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


def models(text: str) -> tuple[str, ...]:
    """Return comma-separated names of models, each once."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if not re.fullmatch(MODEL, name):
            advice = "write names such as gpt-image-1, separated by commas"
            raise ValueError(f"{name!r} is not a model that a URL can name; {advice}")
    return names


def model_names(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise ValueError('does not map model names; write {"model": "name at this backend"}')
    return value
