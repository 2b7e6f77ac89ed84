"""Headers of requests and answers: CORS, caching, and how much of what clients send is read."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flask import Response, request
from werkzeug.datastructures import Headers as HttpHeaders
from werkzeug.exceptions import NotFound
from werkzeug.http import dump_header, parse_dict_header

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

NOSNIFF = ("X-Content-Type-Options", "nosniff")
OPEN = (
    NOSNIFF,
    ("Access-Control-Allow-Origin", "*"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
)
CROSS_ORIGIN = (
    *OPEN,
    ("Access-Control-Expose-Headers", "Cache-Status, Server-Timing, Content-Disposition, ETag"),
)
_MAX_NAMES = 1000


def answer_preflight() -> Response | None:
    """Before a request: answer it if it is a preflight for pictures or the OpenAI API.

    Also for a path that does not exist: its 404 says what is wrong with a client's base URL.
    """
    is_missing = isinstance(request.routing_exception, NotFound)
    is_open = is_missing or request.path.startswith(("/prompt/", "/v1/"))
    return _allow() if is_open and request.method == "OPTIONS" else None


def _allow() -> Response:
    """Allow the methods of the route, and the headers that are asked for.

    They are echoed: `*` would not include Authorization, and OpenAI's SDKs send a dozen of theirs.
    """
    rule = request.url_rule
    methods = ", ".join(sorted(rule.methods or ())) if rule else "OPTIONS, POST"
    headers = [
        *CROSS_ORIGIN,
        ("Allow", methods),
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Max-Age", "86400"),
    ]
    names = request.headers.get("Access-Control-Request-Headers", "")
    if 0 < len(names) <= _MAX_NAMES:
        headers.append(("Access-Control-Allow-Headers", names))
    response = Response(status=204, headers=headers)
    del response.headers["Content-Type"]
    return response


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


def beginning(headers: HttpHeaders, name: str) -> str:
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


Directives = dict[str, str | None]
Headers = list[tuple[str, str]]


class Caching:
    """Makes Cache-Control and X-Accel-Expires, which is for nginx, from the settings."""

    def __init__(self, cache_control: str, nginx_seconds: int, clock: Callable[[], float]) -> None:
        self.cache_control = cache_control
        self.nginx_seconds = nginx_seconds
        self.clock = clock
        self._shared = _headers(cache_control, nginx_seconds)
        self._private = _headers(_as_private(cache_control), nginx_seconds)

    def headers(self, environ: WSGIEnvironment, exp: str | None) -> Headers:
        """Return the headers of an answer; `exp` is that of the URL.

        An answer to a request with an Authorization header is for this client alone, whatever
        the header holds (RFC 9111, 3.5). nginx may keep it: the key of its cache has the header.
        """
        is_private = "HTTP_AUTHORIZATION" in environ
        if exp is None or not re.fullmatch(r"[0-9]{1,12}", exp):
            return self._private if is_private else self._shared
        left = max(0, int(int(exp) - self.clock()))
        # nginx repeats max-age unchanged for as long as it keeps an answer: up to a second longer
        # than it is told to, since it counts whole ones.
        in_nginx = min(self.nginx_seconds, left // 2)
        bounded = _bounded(self.cache_control, left - in_nginx - (in_nginx > 0))
        return _headers(_as_private(bounded) if is_private else bounded, in_nginx)


def _headers(cache_control: str, nginx_seconds: int) -> Headers:
    return [("Cache-Control", cache_control), ("X-Accel-Expires", str(nginx_seconds))]


def _parse(cache_control: str) -> Directives:
    return {name.lower(): value for name, value in parse_dict_header(cache_control).items()}


@lru_cache(256)
def _as_private(cache_control: str) -> str:
    """Return a Cache-Control that forbids every shared cache to keep the answer."""
    shared = ("public", "private", "s-maxage")
    kept = {name: value for name, value in _parse(cache_control).items() if name not in shared}
    return dump_header({"private": None, **kept})


@lru_cache(256)
def _bounded(cache_control: str, seconds: int) -> str:
    """Return a Cache-Control that lets no cache show the answer after `seconds`."""
    found = {name: value for name, value in _parse(cache_control).items() if "stale" not in name}
    found.setdefault("max-age", str(seconds))
    for name in ("max-age", "s-maxage"):
        value = found.get(name)
        if value is not None and not (value.isdecimal() and int(value) <= seconds):
            found[name] = str(seconds)
    return dump_header(found)
