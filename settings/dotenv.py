"""The two sources of settings: the environment, and `.env` in the current folder."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values

from settings.parsers import text_file

_LINE = r"(?m)^[^\S\n]*(?:export[^\S\n]+)?%s[^\S\n]*=([^#\n]*)"


class Dotenv:
    """The variables in `.env`. Nothing is expanded: a key may contain a dollar sign."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        found = dotenv_values(stream=StringIO(text), interpolate=False)
        self.values = {name: value or "" for name, value in found.items()}

    @classmethod
    def read(cls) -> Dotenv:
        """Read `.env` in the current folder, if there is one. Raises ValueError."""
        return cls(text_file(".env") if Path(".env").exists() else "")

    def under_environment(self, secrets: Collection[str]) -> dict[str, str]:
        """Return the process's variables, and those in `.env` that they do not override.

        A secret in the environment, in either form, overrides both forms in the file.
        """
        forms = [{name, f"{name}_FILE"} for name in secrets]
        overridden = {name for both in forms if both & os.environ.keys() for name in both}
        mine = {name: text for name, text in self.values.items() if name not in overridden}
        return mine | os.environ

    def warnings(self, names: Collection[str], secrets: Collection[str]) -> Iterator[str]:
        """Yield a sentence for each probable mistake; `names` are those of all settings."""
        for name in self.values.keys() - names:
            for similar in difflib.get_close_matches(name.upper(), names, 1, 0.85):
                yield f"{name}: is in .env but is not a setting; did you mean {similar}?"
        for name in names:
            written = re.findall(_LINE % name, self.text)
            if not self.values.get(name) and any(text.strip("'\" ") for text in written):
                yield f"{name}: an empty line further down in .env counts; delete that one"
        line = r"(?m)^[^\S\n]*(?:export[^\S\n]+)?(%s)[^\S\n]*=[^\S\n]*[^\s'\"].*?[^\S\n]#"
        for name in re.findall(line % "|".join(secrets), self.text):
            yield f"{name}: ends before the # in .env; if the # is part of it, use single quotes"
