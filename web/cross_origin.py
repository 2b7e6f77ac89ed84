"""CORS: the answers that any page may read, and the preflights of its requests."""

from __future__ import annotations

from flask import Response, request
from werkzeug.exceptions import NotFound

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
