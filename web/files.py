"""The page's files, compressed for every client that accepts it."""

import gzip
from functools import cache
from pathlib import Path

from flask import Response, request
from werkzeug.exceptions import NotFound

from web.headers import NOSNIFF

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# `data:` is for the history's thumbnails, which the browser itself stores as text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' blob: data: https: http:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
# Read at once, in gunicorn's master: an upgrade on disk must not mix two versions.
_FOLDER = Path(__file__).with_name("page")
_FILES = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}
_HEADERS = (
    NOSNIFF,
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("Vary", "Accept-Encoding"),
)


def page_file(name: str = "page.html") -> Response:
    """GET / and /page/{name}: the page and its files."""
    if name not in _FILES:
        raise NotFound
    response = Response(_FILES[name], headers=_HEADERS, mimetype=_TYPES[Path(name).suffix])
    if request.accept_encodings["gzip"]:
        response.set_data(_compressed(name))
        response.content_encoding = "gzip"
    response.add_etag()
    response.make_conditional(request)
    return response


@cache
def _compressed(name: str) -> bytes:
    return gzip.compress(_FILES[name], mtime=0)
