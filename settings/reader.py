"""Reads settings one by one, and collects what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from settings.parsers import base_url, json_object, printable_url

T = TypeVar("T")


class Reader:
    """Reads variables one by one and collects a fault for each that is invalid.

    A blank value means not set. After a fault the default is returned, so that reading goes on.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = dict(values)
        self.faults: list[str] = []
        self.names: set[str] = set()  # of all variables that were asked for
        self._read_from_file: set[str] = set()

    def fault(self, name: str, sentence: str | Exception) -> None:
        """Report a fault, once even if the variable is read for several purposes."""
        fault = f"{name}: {sentence}"
        if fault not in self.faults:
            self.faults.append(fault)

    def has_fault(self, name: str) -> bool:
        """Return whether a variable, or the file that it is read from, is faulty."""
        return any(fault.startswith((f"{name}:", f"{name}_FILE:")) for fault in self.faults)

    def is_set(self, name: str) -> bool:
        self.names.add(name)
        return bool(self.values.get(name, "").strip())

    def first_set(self, *names: str) -> str:
        """Return the first of these variables that is set, or the last one."""
        return next(iter([name for name in names if self.is_set(name)]), names[-1])

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
