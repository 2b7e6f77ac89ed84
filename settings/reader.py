"""Reads the table from variables, and collects every fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settings.parsers import base_url, check_extra, json_object, printable_url
from settings.setting import Setting
from settings.table import ROWS


class Reader:
    """Parses variables; a blank one is not set.

    After a fault the default stands for the value, so that all faults are found; `faults` holds a
    sentence for each, variable first.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.faults: list[str] = []
        self.values: dict[str, Any] = {}
        self._texts = {name: text.strip() for name, text in variables.items() if text.strip()}

    def read(self) -> dict[str, Any]:
        """Return the values of the table's fields."""
        for row in ROWS:
            self.values[row.field] = self._value(row)
        return self.values

    def fault(self, name: str, sentence: str | Exception) -> None:
        self.faults.append(f"{name}: {sentence}")

    def has_fault(self, name: str) -> bool:
        """Return whether a variable, or the file that it is read from, is faulty."""
        return any(fault.startswith((f"{name}:", f"{name}_FILE:")) for fault in self.faults)

    def require(self, name: str, advice: str) -> None:
        """Report a variable that is not set."""
        if name not in self._texts:
            self.fault(name, f"is not set; {advice}")

    def text(self, name: str) -> str | None:
        """Return a variable as it is written, or None if it is not set."""
        return self._texts.get(name)

    def file(self, name: str) -> str | None:
        """Return the contents of the file that a variable names, or None after a fault."""
        try:
            # -sig: a byte order mark, which Windows editors write, is no part of a secret.
            return Path(self._texts[name]).read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            self.fault(name, f"cannot be read ({reason}); write the path of a text file")
            return None

    def _value(self, row: Setting) -> Any:
        if row.is_secret:
            self._read_secret_file(row.name)
        name = next((name for name in row.names if name in self._texts), row.name)
        text = self._texts.get(name)
        if not text:
            return row.default_value
        try:
            value = self._by_backend(row, text) if row.is_by_backend else row.parse(text)
            if row.extra and value != row.default_value:
                check_extra(row.extra)
        except ValueError as error:
            for sentence in error.args:
                self.fault(name, sentence)
            return row.default_value
        return value

    def _by_backend(self, row: Setting, text: str) -> dict[str, Any]:
        found, backends = {}, self.values["backend_api_urls"]
        for key, value in json_object(text).items():
            try:
                url = base_url(key.strip())
            except ValueError:
                # Not quoted: if key and value were swapped, it is a token.
                self.fault(row.name, 'has a key that is not a URL; write {"https://backend/v1": …}')
                continue
            try:
                if backends and url not in backends:
                    raise ValueError("is not a backend; write a URL from BACKEND_API_URLS")
                found[url] = row.parse(value)
            except ValueError as error:
                for sentence in error.args:
                    self.fault(row.name, f"{printable_url(url)!r}: {sentence}")
        return found

    def _read_secret_file(self, name: str) -> None:
        """Give a variable the contents of the file that `NAME_FILE` names, if that is set."""
        file = f"{name}_FILE"
        if file in self._texts and name in self._texts:
            self.fault(file, f"{name} is set too; write only one of the two")
        elif file in self._texts:
            text = self.file(file)
            if text is not None and not text.strip():
                self.fault(file, "names an empty file; put the secret into it")
            self._texts[name] = (text or "").strip()
