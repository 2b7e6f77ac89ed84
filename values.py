"""The parsers that config.py is made of: text in, value out, or what is wrong with it.

A parser raises ValueError with a sentence in two halves: what is wrong; what to write. The
variable's name is put in front of it. No sentence quotes what may be a secret.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

MAX_WEIGHT = 1_000_000


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


def base_urls(text: str) -> tuple[str, ...]:
    """Return comma-separated URLs, each once."""
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


def json_object(text: str) -> dict[str, Any]:
    # The text may hold tokens: the sentence says where it is wrong, and quotes nothing.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f'is not JSON{where}; write {{"https://backend/v1": …}}') from None
    if not isinstance(value, dict):
        raise ValueError('is JSON but not an object; write {"https://backend/v1": …}')
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


def model_names(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise ValueError('does not map model names; write {"model": "name at this backend"}')
    return value


class Reader:
    """Reads variables one by one and collects a fault for each that is invalid.

    A blank value means not set. After a fault the default is returned, so that reading goes on.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = dict(values)
        self.faults: list[str] = []
        self._read_from_file: set[str] = set()

    def fault(self, name: str, sentence: str | Exception) -> None:
        self.faults.append(f"{name}: {sentence}")

    def is_set(self, name: str) -> bool:
        return bool(self.values.get(name, "").strip())

    def set_default(self, name: str, text: str) -> None:
        """Have a default checked like a value that someone wrote."""
        if not self.is_set(name):
            self.values[name] = text

    def get(self, name: str, parse: Callable[[str], T], default: T) -> T:
        if not self.is_set(name):
            return default
        try:
            return parse(self.values[name].strip())
        except ValueError as error:
            self.fault(name, error)
            return default

    def require(self, name: str, advice: str) -> None:
        """Report a variable that is not set."""
        # If a secret's file could not be read, that is the fault.
        if not self.is_set(name) and name not in self._read_from_file:
            self.fault(name, f"is not set; {advice}")

    def per_backend(
        self, name: str, urls: tuple[str, ...], parse: Callable[[Any], T]
    ) -> dict[str, T]:
        """Read a JSON object whose keys are backends' URLs, with or without a trailing slash."""
        found: dict[str, T] = {}
        written: dict[str, Any] = {}
        for key, value in self.get(name, json_object, written).items():
            try:
                url = base_url(key.strip())
            except ValueError:
                # Not quoted: if key and value were swapped, it is a token.
                self.fault(name, 'has a key that is not a URL; write {"https://backend/v1": …}')
                continue
            try:
                if urls and url not in urls:
                    raise ValueError("is not a backend; write a URL from BACKEND_API_URLS")
                found[url] = parse(value)
            except ValueError as error:
                self.fault(name, f"{printable_url(url)!r}: {error}")
        return found

    def read_secret_files(self, names: Iterable[str]) -> None:
        """Give each of these variables the contents of the file that `NAME_FILE` names."""
        for name in names:
            if not self.is_set(f"{name}_FILE"):
                continue
            self._read_from_file.add(name)
            if self.is_set(name):
                self.fault(f"{name}_FILE", f"{name} is set too; write only one of the two")
                continue
            text = self.text_file(f"{name}_FILE")
            if text is not None and not text.strip():
                self.fault(f"{name}_FILE", "names an empty file; put the secret into it")
            self.values[name] = text or ""

    def text_file(self, name: str) -> str | None:
        """Return the contents of the file that a variable names, or None after a fault."""
        try:
            # -sig: a byte order mark, which Windows editors write, is no part of a secret.
            return Path(self.values[name].strip()).read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            self.fault(name, f"cannot be read ({reason}); write the path of a text file")
            return None

    def template(self, name: str, default: Path, placeholder: str) -> str:
        """Return a prompt template: from `NAME_FILE`, else from `NAME`, else the default file."""
        text: str | None
        if self.is_set(f"{name}_FILE"):
            name = f"{name}_FILE"
            text = self.text_file(name)
            if text is None:
                return placeholder
        elif self.is_set(name):
            text = self.values[name].replace("\\n", "\n")
        else:
            text = default.read_text("utf-8")
        if placeholder not in text:
            self.fault(name, f"does not contain {placeholder}; write it where the prompt belongs")
        return text
