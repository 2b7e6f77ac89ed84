"""Text of strangers in a terminal or a log: prompts, names of models, errors of backends."""

from __future__ import annotations

import re

# C0 and C1 controls, which command a terminal; Unicode's line separators, which forge lines; the
# controls that reorder text; and half surrogates, which cannot be printed.
_UNPRINTABLE = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return a text as one line that commands no terminal: an escape character becomes `\x1b`."""
    return _UNPRINTABLE.sub(_escaped, text)


def printable_lines(text: str) -> str:
    r"""Return a text whose lines, ended by `\n`, are printable."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
