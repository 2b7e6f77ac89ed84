"""What is sent back: pictures, redirects, JSON, and errors as problem+json or as a picture."""

from __future__ import annotations

import html
import json
import logging
import re
import textwrap
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import http_date
from werkzeug.wsgi import FileWrapper

from cache import Entry
from formats import EXTENSIONS
from picture import BadRequest
from pipeline import Busy, Drawn, GaveUp, Stage
from storage.sqlite import Unavailable

log = logging.getLogger("prompt_image_proxy.answers")

Headers = list[tuple[str, str]]

CACHE_NAME = "PromptImageProxy"
HIT = f"{CACHE_NAME}; hit"
MISS = f"{CACHE_NAME}; fwd=miss"
# A redirect is no picture: where it leads can change when the picture is deleted and drawn anew.
REDIRECT_CACHE_CONTROL = "public, max-age=3600"
NOSNIFF = ("X-Content-Type-Options", "nosniff")
CROSS_ORIGIN = (
    NOSNIFF,
    ("Access-Control-Allow-Origin", "*"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("Access-Control-Expose-Headers", "Cache-Status, Server-Timing, Content-Disposition, ETag"),
)
# No script runs in what a backend sent, even where it is opened as a page.
SANDBOX = ("Content-Security-Policy", "default-src 'none'; sandbox")


class Unauthorised(Exception):
    """No valid credentials. Its text is the sentence for the client."""


class Forbidden(Exception):
    """Not allowed to anybody, whatever the credentials."""


class NothingThere(Exception):
    """What was to be changed does not exist."""


# --- pictures -----------------------------------------------------------------------------------

_http_date = lru_cache(1024)(http_date)


class Pictures:
    """Answers with pictures, under one Cache-Control for all of them."""

    def __init__(self, cache_control: str, nginx_seconds: int) -> None:
        for_nginx = ("X-Accel-Expires", str(nginx_seconds))
        caching = ("Cache-Control", cache_control)
        self._headers = (*CROSS_ORIGIN, SANDBOX, caching, for_nginx, ("Accept-Ranges", "bytes"))
        self._redirect_headers = (
            *CROSS_ORIGIN,
            ("Cache-Control", REDIRECT_CACHE_CONTROL),
            for_nginx,
        )

    def kept(self, prompt: str, entry: Entry, cache_status: str = HIT) -> Response:
        """Answer with a picture of the cache, or with part of it, or that it is unchanged."""
        if entry.url is not None:
            return self.elsewhere(entry.url, cache_status)
        assert entry.opened
        # Werkzeug's own wrapper, since gunicorn's cannot seek to the start of a range.
        body, headers = FileWrapper(entry.opened), self.headers(prompt, entry, cache_status)
        response = Response(body, headers=headers, direct_passthrough=True)
        is_sent = False
        try:
            response.make_conditional(request.environ, True, entry.bytes)
            is_sent = response.status_code != 304 and request.method == "GET"
        finally:
            if not is_sent:
                entry.close()
        return response

    def headers(self, prompt: str, entry: Entry, cache_status: str = HIT) -> Headers:
        """Return the headers of a picture that is kept as a file."""
        return [
            *self._headers,
            ("Content-Type", entry.media_type),
            ("Content-Length", str(entry.bytes)),
            ("ETag", f'"{str(entry.digest)[:32]}"'),
            ("Last-Modified", _http_date(int(entry.created))),
            ("Content-Disposition", _disposition(prompt, entry.media_type)),
            ("Cache-Status", cache_status),
        ]

    def drawn(self, prompt: str, entry: Entry | None, drawn: Drawn) -> Response:
        """Answer with a picture just drawn, whether the cache could keep it or not."""
        stored = "; stored" if drawn.is_kept else ""
        cache_status = f"{MISS}{stored}; detail={drawn.source}"
        if entry:
            response = self.kept(prompt, entry, cache_status)
        elif drawn.hosted_url:
            response = self.elsewhere(drawn.hosted_url, cache_status)
        elif drawn.image:
            data, media_type = drawn.image.data, drawn.image.media_type
            disposition = ("Content-Disposition", _disposition(prompt, media_type))
            headers = [*self._headers, disposition, ("Cache-Status", cache_status)]
            response = Response(data, headers=headers, content_type=media_type)
        else:
            raise Unavailable("the picture was drawn, and lost before it could be sent")
        if drawn.stages:
            response.headers["Server-Timing"] = _server_timing(drawn.stages)
        return response

    def elsewhere(self, url: str, cache_status: str) -> Response:
        """Redirect to where an image host keeps a picture."""
        headers = [*self._redirect_headers, ("Location", url), ("Cache-Status", cache_status)]
        return Response(status=302, headers=headers)


def not_drawn() -> Response:
    """Answer a HEAD for a picture that is not there: drawing it would cost, and show nobody."""
    headers = [*CROSS_ORIGIN, ("Cache-Control", "no-store"), ("Cache-Status", MISS)]
    return _bare(Response(headers=headers))


def preflight() -> Response:
    """Answer OPTIONS: any page may fetch pictures, with a Bearer too."""
    headers = [
        *CROSS_ORIGIN,
        ("Allow", "GET, HEAD, OPTIONS"),
        ("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS"),
        ("Access-Control-Allow-Headers", "Authorization, Range, If-None-Match"),
        ("Access-Control-Max-Age", "86400"),
    ]
    return _bare(Response(status=204, headers=headers))


def _bare(response: Response) -> Response:
    """Take off the length and type that an empty body would get."""
    response.automatically_set_content_length = False
    response.headers.pop("Content-Type", None)
    return response


@lru_cache(1024)
def _disposition(prompt: str, media_type: str) -> str:
    """Return an inline file name made from the prompt, with the right extension."""
    extension = EXTENSIONS[media_type]
    plain = "-".join(re.findall(r"[A-Za-z0-9]+", prompt[:80])) or "picture"
    found = f'inline; filename="{plain}.{extension}"'
    name = "-".join(re.findall(r"\w+", prompt[:80]))
    return found if name.isascii() else f"{found}; filename*=UTF-8''{quote(name)}.{extension}"


def _server_timing(stages: list[Stage]) -> str:
    return ", ".join(
        f'{stage.stage};dur={stage.seconds * 1000:.0f};desc="{stage.outcome}"' for stage in stages
    )


def as_json(value: Any) -> Response:
    """Answer with JSON that nobody keeps."""
    headers = [NOSNIFF, ("Cache-Control", "no-store")]
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=headers)


# --- errors -------------------------------------------------------------------------------------

MAX_BODY = 16 * 1024
_STATUSES: Mapping[type[Exception], int] = {
    BadRequest: 400,
    Unauthorised: 401,
    Forbidden: 403,
    NothingThere: 404,
}
_TITLES = {
    400: "Bad request",
    401: "Unauthorised",
    403: "Forbidden",
    404: "Not found",
    422: "Refused by moderation",
    500: "Internal error",
    502: "Drawing failed",
    503: "Try again later",
    504: "Deadline passed",
}
# Werkzeug's own sentences are for pages; some repeat what was sent.
_HTTP_DETAILS = {
    404: "There is nothing here. Pictures are at /prompt/{description}.",
    405: "This method is not allowed here.",
    413: f"The body is larger than {MAX_BODY} bytes.",
    416: "The range cannot be satisfied.",
}


def problem(error: Exception, as_picture: bool = False) -> Response:
    """Answer any error with its status and a neutral sentence.

    As RFC 9457 has it, or, where a picture is wanted, on a small card: a broken icon says nothing.
    """
    status, detail, headers, more = _describe(error)
    title = _TITLES.get(status, "Request failed")
    if as_picture:
        body, content_type = card(title, detail, headers.get("Retry-After")), "image/svg+xml"
        headers |= dict([SANDBOX])
    else:
        fields = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        body, content_type = json.dumps(fields | more) + "\n", "application/problem+json"
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Prompt Image Proxy"'
    always = {**dict(CROSS_ORIGIN), "Cache-Control": "no-store", "Vary": "Accept, Sec-Fetch-Dest"}
    return Response(body, status, always | headers, content_type=content_type)


def _describe(error: Exception) -> tuple[int, str, dict[str, str], dict[str, Any]]:
    """Return an error's status, sentence, headers and further fields."""
    if isinstance(error, GaveUp):
        stages = [
            {"stage": stage.stage, "outcome": stage.outcome, "seconds": stage.seconds}
            for stage in error.stages
        ]
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
        return error.status, error.detail, headers, {"stages": stages}
    if isinstance(error, Busy):
        return 503, "Too many pictures are being drawn just now.", {"Retry-After": "5"}, {}
    if isinstance(error, Unavailable):
        return 503, "The cache cannot be used just now.", {"Retry-After": "5"}, {}
    if type(error) in _STATUSES:
        return _STATUSES[type(error)], str(error), {}, {}
    if isinstance(error, HTTPException):
        code = error.code or 500
        headers = {k: v for k, v in error.get_headers() if k in ("Allow", "Content-Range")}
        return code, _HTTP_DETAILS.get(code, "The request cannot be understood."), headers, {}
    log.error("A request failed for a reason nobody foresaw", exc_info=error)
    return 500, "Something went wrong here. The log says what.", {}, {}


def wants_picture() -> bool:
    """Say whether the request comes from what shows pictures, like an <img> or GitHub's camo."""
    destination = request.headers.get("Sec-Fetch-Dest")
    if destination is not None:
        return destination == "image"
    accepted = request.accept_mimetypes
    readable = ("text/html", "text/plain", "application/json", "application/problem+json")
    pictures = ("image/svg+xml", "image/png")
    return max(map(accepted.quality, pictures)) > max(map(accepted.quality, readable))


def card(title: str, sentence: str, retry_after: str | None = None) -> str:
    """Return an SVG of 480×200 pixels that shows one sentence, legible on light and dark."""
    lines = textwrap.wrap(sentence, 46)[:4]
    if retry_after:
        lines.append(f"Try again in {retry_after} s.")
    attributes = 'font-family="system-ui, sans-serif" x="96"'
    texts = "".join(
        f'<text {attributes} y="{102 + 24 * number}" font-size="17" fill="#d7dde8">'
        f"{html.escape(line)}</text>"
        for number, line in enumerate(lines)
    )
    label = html.escape(f"{title}: {' '.join(lines)}")
    # Attributes only: a <style> would fall to the Content-Security-Policy it is sent with.
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="480" height="200" viewBox="0 0 480 200"'
        f' role="img" aria-label="{label}"><rect width="480" height="200" rx="14" fill="#273043"/>'
        '<circle cx="54" cy="64" r="20" fill="none" stroke="#f2b872" stroke-width="4"/>'
        '<path d="M54 53v13m0 7v2" stroke="#f2b872" stroke-width="4" stroke-linecap="round"/>'
        f'<text {attributes} y="70" font-size="21" font-weight="600" fill="#fff">'
        f"{html.escape(title)}</text>{texts}</svg>\n"
    )
