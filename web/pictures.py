"""A picture request: parse, authorise, look up, and then serve, redirect or draw.

The first three steps and a plain hit run in front of Flask, whose routing and contexts cost more
than all of them (benchmarks/README.md). Every other request goes on to a view, with the result so
far in `environ[VISIT]`: nothing is parsed, authorised or looked up twice.
"""

import hashlib
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Response, request
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.http import http_date
from werkzeug.wsgi import FileWrapper

from access import Access, Caller, Unauthorised
from cache import Cache, Picture
from config import Settings
from drawing.record import Drawing, Stage
from drawing.reservation import Reservation
from images.formats import EXTENSIONS
from metrics import Metrics
from picture import BadRequest, ImageRequest, Problem
from pipeline import Pipeline
from storage import Row, Unavailable
from web.headers import CONDITIONS, CROSS_ORIGIN, Headers, caching_headers, prepare

VISIT = "prompt_image_proxy.visit"
ROUTE = "/prompt/{description}"
HIT = "PromptImageProxy; hit"
MISS = "PromptImageProxy; fwd=miss"
# The target of a redirect can change: the picture may be deleted and drawn anew.
REDIRECT_CACHE_CONTROL = "public, max-age=3600"
# No script in a backend's file runs, even if the file is opened as a page.
SANDBOX = ("Content-Security-Policy", "default-src 'none'; sandbox")
_CONDITIONS = frozenset(CONDITIONS)
_BLOCK = 2**16
_http_date = lru_cache(1024)(http_date)
# A hot URL is parsed and hashed once.
_read_url = lru_cache(256)(ImageRequest.from_url)


class Visit(NamedTuple):
    """A picture request so far: the picture it names, for whom, its `exp`, and its cache hit."""

    request: ImageRequest
    caller: Caller
    exp: str | None = None
    picture: Picture | None = None


@dataclass
class Pictures:
    """Answers requests for pictures; a WSGI application in front of `app`, which is Flask's."""

    app: WSGIApplication
    settings: Settings
    access: Access
    cache: Cache
    pipeline: Pipeline
    metrics: Metrics

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/prompt/") and environ["REQUEST_METHOD"] in (
            "GET",
            "HEAD",
        ):
            visit = environ[VISIT] = self.look_up(environ)
            is_plain = environ["REQUEST_METHOD"] == "GET" and _CONDITIONS.isdisjoint(environ)
            if is_plain and isinstance(visit, Visit) and visit.picture and visit.picture.file:
                caching = self._caching(environ, self.settings.cache_control)
                headers = _headers(visit.request.prompt, visit.picture.row, caching)
                self.metrics.answered(ROUTE, "200")
                start_response("200 OK", headers)
                wrap: type[FileWrapper] = environ.get("wsgi.file_wrapper", FileWrapper)
                return wrap(visit.picture.file)
        prepare(environ)
        return self.app(environ, start_response)

    def look_up(self, environ: WSGIEnvironment) -> Visit | Problem:
        """Parse and authorise a request and look its picture up; return the error if that fails."""
        try:
            path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
            named = _read_url(path, query, self.settings.max_prompt_length)
            authorization = environ.get("HTTP_AUTHORIZATION", "")
            caller = self.access.authorise(named.credentials, authorization, named.pictures)
            exp = named.credentials.get("exp")
            for key, one in zip(named.keys, named.pictures, strict=True):
                if picture := self.cache.get(key, one):
                    self.metrics.hit()
                    return Visit(one, caller, exp, picture)
            return Visit(named.request, caller, exp)
        except (BadRequest, Unauthorised, Unavailable) as error:
            return error

    def view(self, description: str) -> Response:
        """GET|HEAD /prompt/{description}: every answer except a plain hit."""
        visit: Visit | Problem | None = request.environ.get(VISIT)
        if visit is None:  # Werkzeug routes //prompt/x here too, which names no picture.
            raise NotFound
        if isinstance(visit, Problem):
            raise visit
        if visit.picture:
            return self.serve(visit.request.prompt, visit.picture)
        if request.method == "HEAD":
            if failure := self.pipeline.remembered(visit.request):
                raise failure
            return _not_drawn()
        within = self.settings.answer_within
        reservation = Reservation(self.cache.state, visit.caller)
        drawn = self.pipeline.draw(visit.request, reservation, within)
        picture = open_drawn(drawn, self.cache)
        status = f"{MISS}{'; stored' if picture.is_kept else ''}; detail={drawn.source}"
        response = self.serve(visit.request.prompt, picture, status)
        if drawn.stages:
            response.headers["Server-Timing"] = _server_timing(drawn.stages)
        return response

    def serve(self, prompt: str, picture: Picture, cache_status: str = HIT) -> Response:
        """Answer with a picture, a range of it, 304 Not Modified, or a redirect to its host."""
        if picture.row.url or picture.file is None:
            own = [("Location", str(picture.row.url)), ("Cache-Status", cache_status)]
            caching = self._caching(request.environ, REDIRECT_CACHE_CONTROL)
            return Response(status=302, headers=[*CROSS_ORIGIN, *caching, *own])
        caching = self._caching(request.environ, self.settings.cache_control)
        headers = _headers(prompt, picture.row, caching, cache_status)
        # Werkzeug's own wrapper, since gunicorn's cannot seek to the start of a range.
        body = FileWrapper(picture.file, _BLOCK)
        response = Response(body, headers=headers, direct_passthrough=True)
        try:
            response.make_conditional(request.environ, True, picture.row.bytes)
        except HTTPException:  # 416
            picture.close()
            raise
        return response

    def count(self, response: Response) -> Response:
        """After a request: count an answer of Flask's by its route, as docs/api.md writes that."""
        rule = request.url_rule
        route = re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", rule.rule) if rule else "other"
        self.metrics.answered(route, str(response.status_code))
        return response

    def _caching(self, environ: WSGIEnvironment, cache_control: str) -> Headers:
        """Return the caching headers of an answer.

        An answer to a request with an Authorization header is for this client alone, whatever
        the header holds (RFC 9111, 3.5). nginx may keep it: the key of its cache has the header.
        """
        visit: Visit | None = environ.get(VISIT)
        exp, left = visit.exp if visit else None, None
        if exp is not None and re.fullmatch(r"[0-9]{1,12}", exp):
            left = max(0, int(int(exp) - self.access.clock()))
        seconds, is_private = self.settings.nginx_cache_seconds, "HTTP_AUTHORIZATION" in environ
        return caching_headers(cache_control, seconds, left, is_private=is_private)


def open_drawn(drawn: Drawing, cache: Cache) -> Picture:
    """Return a picture just drawn: from its file if it has one, which takes no memory.

    Raises Unavailable if another process drew it and it is gone.
    """
    image, wanted = drawn.image, drawn.request
    if image is None:
        if picture := cache.get(wanted.key, wanted):
            return picture
        raise Unavailable("the picture was drawn by another process and is gone")
    if drawn.row and drawn.row.file:
        with suppress(Unavailable):
            if picture := cache.get(wanted.key, wanted):
                return picture
    row = drawn.row or Row(
        key=wanted.key,
        url=drawn.hosted_url,
        media_type=image.media_type,
        bytes=len(image.data),
        digest=hashlib.sha256(image.data).hexdigest(),
        created=time.time(),
        revised=image.revised_prompt,
    )
    return Picture(row, BytesIO(image.data), is_kept=drawn.row is not None)


def _headers(prompt: str, row: Row, caching: Headers, cache_status: str = HIT) -> Headers:
    """Return the headers of a picture that the cache holds as a file."""
    return [
        *CROSS_ORIGIN,
        SANDBOX,
        *caching,
        ("Accept-Ranges", "bytes"),
        ("Content-Type", row.media_type),
        ("Content-Length", str(row.bytes)),
        ("ETag", f'"{str(row.digest)[:32]}"'),
        ("Last-Modified", _http_date(int(row.created))),
        ("Content-Disposition", _disposition(prompt, row.media_type)),
        ("Cache-Status", cache_status),
    ]


def _not_drawn() -> Response:
    """Answer a HEAD for a picture that is not in the cache: HEAD never draws."""
    own = [("Cache-Control", "no-store"), ("Cache-Status", MISS)]
    response = Response(headers=[*CROSS_ORIGIN, *own])
    response.automatically_set_content_length = False
    del response.headers["Content-Type"]
    return response


@lru_cache(1024)
def _disposition(prompt: str, media_type: str) -> str:
    """Return an inline file name made of the prompt, with the right extension."""
    extension = EXTENSIONS[media_type]
    plain = "-".join(re.findall(r"[A-Za-z0-9]+", prompt[:80])) or "picture"
    found = f'inline; filename="{plain}.{extension}"'
    name = "-".join(re.findall(r"\w+", prompt[:80]))
    return found if name.isascii() else f"{found}; filename*=UTF-8''{quote(name)}.{extension}"


def _server_timing(stages: Iterable[Stage]) -> str:
    return ", ".join(
        f'{stage.stage};dur={stage.seconds * 1000:.0f};desc="{stage.outcome}"' for stage in stages
    )
