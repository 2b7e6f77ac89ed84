"""Headers of requests and answers: CORS, caching, and how much of what clients send is read."""

import re
from functools import lru_cache
from wsgiref.types import WSGIEnvironment

from flask import Response, request
from werkzeug.exceptions import NotFound
from werkzeug.http import dump_header, parse_date, parse_dict_header, parse_range_header

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
OPENAI_PREFIX = "/v1/"
_MAX_NAMES = 1000


def answer_preflight() -> Response | None:
    """Before a request: answer it if it is a preflight for pictures or the OpenAI API.

    Also for a path that does not exist: its 404 says what is wrong with a client's base URL. The
    names of headers are echoed: `*` would not include Authorization, and OpenAI's SDKs send a
    dozen of theirs.
    """
    is_missing = isinstance(request.routing_exception, NotFound)
    is_open = is_missing or request.path.startswith(("/prompt/", OPENAI_PREFIX))
    if not is_open or request.method != "OPTIONS":
        return None
    rule = request.url_rule
    methods = ", ".join(sorted(rule.methods or ())) if rule else "OPTIONS, POST"
    response = Response(status=204, headers=CROSS_ORIGIN)
    del response.headers["Content-Type"]
    response.headers["Allow"] = response.headers["Access-Control-Allow-Methods"] = methods
    response.headers["Access-Control-Max-Age"] = "86400"
    names = request.headers.get("Access-Control-Request-Headers", "")
    if 0 < len(names) <= _MAX_NAMES:
        response.headers["Access-Control-Allow-Headers"] = names
    return response


# How much of Accept and the like is read: browsers send two thirds of it at most.
_CHOICES_LENGTH = 200
# A longer condition is ignored, as RFC 9110 allows: the whole picture is the answer.
_CONDITION_LENGTH = 400
# No path but a picture's is so long.
_PATH_LENGTH = 1000
# The longest query that means something has a search in it.
_QUERY_LENGTH = 8192
_CHOICES = ("HTTP_ACCEPT", "HTTP_ACCEPT_LANGUAGE", "HTTP_ACCEPT_ENCODING")
CONDITIONS = (
    *("HTTP_RANGE", "HTTP_IF_RANGE", "HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"),
    *("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE"),
)
_OPENAI_PATH = re.compile(r"/+(?:v1/+)*(images|models)(?:/+(.*?))?/*", re.DOTALL)


def prepare(environ: WSGIEnvironment) -> None:
    """Shorten what would cost Flask and Werkzeug more to parse than the answer does.

    A path of the OpenAI API gets one /v1 and single slashes, however a base URL is written.
    """
    for name in _CHOICES:
        if name in environ:
            environ[name] = environ[name][:_CHOICES_LENGTH]
    for name in CONDITIONS:
        if len(environ.get(name, "")) > _CONDITION_LENGTH or _overflows(environ.get(name)):
            del environ[name]
    # Several ranges, other units and invalid headers are ignored, too: Werkzeug would answer 416.
    wanted = parse_range_header(environ.get("HTTP_RANGE"))
    if not wanted or wanted.units != "bytes" or len(wanted.ranges) > 1:
        environ.pop("HTTP_RANGE", None)
    environ["QUERY_STRING"] = environ["QUERY_STRING"][:_QUERY_LENGTH]
    path = environ["PATH_INFO"][:_PATH_LENGTH]
    if match := _OPENAI_PATH.fullmatch(path):
        path = OPENAI_PREFIX + "/".join(filter(None, match.groups()))
    environ["PATH_INFO"] = path


def _overflows(date: str | None) -> bool:
    """Return whether Werkzeug fails at a header as a date, such as one of the year 99999999999."""
    try:
        parse_date(date)
    except OverflowError:
        return True
    return False


Headers = list[tuple[str, str]]


@lru_cache(256)
def caching_headers(
    cache_control: str, nginx_seconds: int, left: int | None, *, is_private: bool
) -> Headers:
    """Return the Cache-Control of an answer, and X-Accel-Expires, which is for nginx.

    Neither keeps it for longer than `left`, the seconds until its URL expires. A private answer is
    for one client alone.
    """
    found = {name.lower(): value for name, value in parse_dict_header(cache_control).items()}
    if left is not None:
        # nginx repeats max-age unchanged for as long as it keeps an answer: up to a second longer
        # than it is told to, since it counts whole ones.
        nginx_seconds = min(nginx_seconds, left // 2)
        found = _bounded(found, left - nginx_seconds - (nginx_seconds > 0))
    if is_private:
        shared = ("public", "private", "s-maxage")
        kept = {name: value for name, value in found.items() if name not in shared}
        found = {"private": None, **kept}
    is_changed = is_private or left is not None
    value = dump_header(found) if is_changed else cache_control
    return [("Cache-Control", value), ("X-Accel-Expires", str(nginx_seconds))]


def _bounded(directives: dict[str, str | None], seconds: int) -> dict[str, str | None]:
    """Return directives that let no cache show an answer after `seconds`."""
    found = {name: value for name, value in directives.items() if "stale" not in name}
    found.setdefault("max-age", str(seconds))
    for name in ("max-age", "s-maxage"):
        value = found.get(name, "0")
        if not (value and value.isdecimal() and int(value) <= seconds):
            found[name] = str(seconds)
    return found
