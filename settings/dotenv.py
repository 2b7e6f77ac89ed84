"""The two sources of settings: the environment, and the text of `.env`."""

import difflib
import os
import re
from collections.abc import Iterator
from io import StringIO

from dotenv.parser import parse_stream

from settings.table import NAMES, SECRETS


class Dotenv:
    """The variables in `.env`. Nothing is expanded: a key may contain a dollar sign."""

    def __init__(self, text: str) -> None:
        self.lines = list(parse_stream(StringIO(text)))
        self.values = {line.key: line.value or "" for line in self.lines if line.key}

    def under_environment(self) -> dict[str, str]:
        """Return the process's variables, and those in `.env` that they do not override.

        A secret in the environment, in either form, overrides both forms in the file.
        """
        forms = [{name, f"{name}_FILE"} for name in SECRETS]
        overridden = {name for both in forms if both & os.environ.keys() for name in both}
        mine = {name: text for name, text in self.values.items() if name not in overridden}
        return mine | os.environ

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each probable mistake."""
        for name in self.values.keys() - NAMES:
            for similar in difflib.get_close_matches(name.upper(), NAMES, 1, 0.85):
                yield f"{name}: is in .env but is not a setting; did you mean {similar}?"
        for line in self.lines:
            if line.error:
                yield f".env: line {line.original.line} cannot be read; write NAME=value"
            name = line.key or ""
            if name in NAMES and (line.value or "").strip() and not self.values[name]:
                yield f"{name}: an empty line further down in .env counts; delete that one"
            has_comment = re.match(r"[^=]*=[^\S\n]*[^\s'\"].*?[^\S\n]#", line.original.string)
            if name in SECRETS and has_comment:
                advice = "if the # is part of it, use single quotes"
                yield f"{name}: ends before the # in .env; {advice}"
