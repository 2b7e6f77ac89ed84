"""The two sources of settings: the environment, and `.env` in the current folder."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Collection, Iterator
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values

# Flask sets it when its command starts, and reads `.env` into the environment after that.
_FLASK_STARTS = "FLASK_RUN_FROM_CLI"


class Dotenv:
    """The variables in `.env`. Nothing is expanded: a key may contain a dollar sign."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        found = dotenv_values(stream=StringIO(text), interpolate=False)
        self.values = {name: value or "" for name, value in found.items()}

    @classmethod
    def read(cls) -> Dotenv:
        """Read `.env` in the current folder, if there is one. Raises OSError and ValueError."""
        try:
            # -sig: Windows editors write a byte order mark.
            return cls(Path(".env").read_text("utf-8-sig"))
        except FileNotFoundError:
            return cls()

    def warnings(self, names: Collection[str], secrets: Collection[str]) -> Iterator[str]:
        """Yield a sentence for each probable mistake; `names` are those of all settings."""
        for name in self.values.keys() - names:
            for similar in difflib.get_close_matches(name.upper(), names, 1, 0.85):
                yield f"{name}: is in .env but is not a setting; did you mean {similar}?"
        line = r"(?m)^[^\S\n]*(?:export[^\S\n]+)?(%s)[^\S\n]*=[^\S\n]*[^\s'\"].*?[^\S\n]#"
        for name in re.findall(line % "|".join(secrets), self.text):
            yield f"{name}: ends before the # in .env; if the # is part of it, use single quotes"


def process_environment(*, is_flask_command: bool) -> dict[str, str]:
    """Return the variables of this process without those that Flask's command read from `.env`.

    Flask expands `${…}` and looks into parent folders too. The service does neither, and a
    command must sign with the same key and use the same cache.
    """
    if not is_flask_command:
        return dict(os.environ)
    # os.environ keeps the order of insertion.
    before = itertools.takewhile(lambda name: name != _FLASK_STARTS, os.environ)
    return {name: os.environ[name] for name in before}
