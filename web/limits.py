"""What clients can make long: how much of it is read.

gunicorn joins headers of one name, and Werkzeug parses them one character at a time. So Accept and
its like are read here, and Werkzeug gets nothing that is longer than in any real request.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from werkzeug.datastructures import Headers

# What is read of a header, browsers send a third of it at most; and of a path.
READ_LENGTH = 1000
# The longest query that means something has a search in it.
QUERY_LENGTH = 8192
# A longer condition is ignored, as RFC 9110 allows: the whole picture is the answer.
CONDITION_LENGTH = 400
CONDITIONS = (
    "HTTP_RANGE",
    "HTTP_IF_RANGE",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_MATCH",
    "HTTP_IF_UNMODIFIED_SINCE",
)
_QUALITY = re.compile(r"[\s;]q=([01](?:\.[0-9]{0,3})?)\s*$", re.I)


def drop_long_conditions(environ: MutableMapping[str, Any]) -> None:
    """Remove the conditions that would cost more to parse than the answer does."""
    for name in CONDITIONS:
        if len(environ.get(name, "")) > CONDITION_LENGTH:
            del environ[name]


def cut_url(environ: MutableMapping[str, Any]) -> None:
    """Cut the path and the query of a request for which nothing so long exists."""
    environ["PATH_INFO"] = environ["PATH_INFO"][:READ_LENGTH]
    environ["QUERY_STRING"] = environ["QUERY_STRING"][:QUERY_LENGTH]


def beginning(headers: Headers, name: str) -> str:
    """Return as much of a header as is read; "" if it is missing."""
    return headers.get(name, "")[:READ_LENGTH]


def qualities(text: str) -> dict[str, float]:
    """Return the quality, 0 to 1, of each choice in Accept, Accept-Language or Accept-Encoding.

    In lower case and without parameters; an invalid quality counts as 1.
    """
    found = {}
    for item in text.split(","):
        choice, separator, parameters = item.strip().lower().partition(";")
        given = _QUALITY.search(separator + parameters)
        found[choice.strip()] = min(1.0, float(given[1])) if given else 1.0
    return found
