"""A picture request: parse, authorise, look up, and then serve, redirect or draw.

The first three steps and a plain hit run in front of Flask, whose routing and contexts cost more
than all of them (benchmarks/README.md). Every other request goes on to a view, with the result so
far in `environ[VISIT]`: nothing is parsed, authorised or looked up twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import FileIO
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import NotFound
from werkzeug.http import http_date
from werkzeug.wsgi import FileWrapper

from access import Access, Caller, Unauthorised
from cache import Cache, Picture
from config import Settings
from drawing.record import Drawing, Image, Stage
from images.formats import EXTENSIONS
from metrics import Metrics
from picture import BadRequest, ImageRequest, Named
from pipeline import Pipeline
from storage import Row, Unavailable
from web.headers import CONDITIONS, CROSS_ORIGIN, Caching, Headers, cut_url, drop_long_conditions

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

VISIT = "prompt_image_proxy.visit"
ROUTE = "/prompt/{description}"
CACHE_NAME = "PromptImageProxy"
HIT = f"{CACHE_NAME}; hit"
MISS = f"{CACHE_NAME}; fwd=miss"
# The target of a redirect can change: the picture may be deleted and drawn anew.
REDIRECT_CACHE_CONTROL = "public, max-age=3600"
# No script in a backend's file runs, even if the file is opened as a page.
SANDBOX = ("Content-Security-Policy", "default-src 'none'; sandbox")
_CONDITIONS = frozenset(CONDITIONS)
_http_date = lru_cache(1024)(http_date)


class Visit(NamedTuple):
    """A picture request so far: the picture it names and its cache hit, or the error to raise.

    `exp` is that of the URL.
    """

    request: ImageRequest | None = None
    picture: Picture | None = None
    error: Exception | None = None
    caller: Caller | None = None
    exp: str | None = None


class Pictures:
    """Answers requests for pictures; a WSGI application in front of `app`, which is Flask's."""

    def __init__(
        self,
        app: WSGIApplication,
        settings: Settings,
        access: Access,
        cache: Cache,
        pipeline: Pipeline,
        metrics: Metrics,
    ) -> None:
        self.app = app
        self.max_prompt_length = settings.max_prompt_length
        self.answer_within = settings.answer_within
        self.access = access
        self.cache = cache
        self.pipeline = pipeline
        self.metrics = metrics
        nginx_seconds = settings.nginx_cache_seconds
        self._caching = Caching(settings.cache_control, nginx_seconds, access.clock)
        self._redirecting = Caching(REDIRECT_CACHE_CONTROL, nginx_seconds, access.clock)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/prompt/") and environ["REQUEST_METHOD"] in _METHODS:
            visit = environ[VISIT] = self.look_up(environ)
            if visit.picture and visit.picture.file and _is_plain(environ):
                assert visit.request
                caching = self._caching.headers(environ, visit.exp)
                headers = _headers(visit.request.prompt, visit.picture.row, caching)
                self.metrics.answered(ROUTE, "200")
                start_response("200 OK", headers)
                wrap: Callable[[FileIO], Iterable[bytes]]
                wrap = environ.get("wsgi.file_wrapper", FileWrapper)
                return wrap(visit.picture.file)
            if visit.error:
                cut_url(environ)
        else:
            cut_url(environ)
        drop_long_conditions(environ)
        return self.app(environ, start_response)

    def look_up(self, environ: WSGIEnvironment) -> Visit:
        """Parse and authorise a request and look its picture up."""
        try:
            (wanted, credentials, literal), keys = _read_url(
                environ["PATH_INFO"], environ["QUERY_STRING"], self.max_prompt_length
            )
            authorization = environ.get("HTTP_AUTHORIZATION", "")
            caller = self.access.authorise(credentials, authorization, wanted, literal)
            exp = credentials.get("exp")
            for key, one in keys:
                if picture := self.cache.get(key, one):
                    self.metrics.hit()
                    return Visit(one, picture, caller=caller, exp=exp)
            return Visit(wanted, caller=caller, exp=exp)
        except (BadRequest, Unauthorised, Unavailable) as error:
            return Visit(error=error)

    def view(self, description: str) -> Response:
        """GET|HEAD /prompt/{description}: every answer except a plain hit."""
        visit: Visit | None = request.environ.get(VISIT)
        if visit is None:  # Werkzeug routes //prompt/x here too, which names no picture.
            raise NotFound
        if visit.error:
            raise visit.error
        assert visit.request
        if visit.picture:
            return self.serve(visit.request.prompt, visit.picture)
        if request.method == "HEAD":
            if failure := self.pipeline.remembered(visit.request):
                raise failure
            return not_drawn()
        assert visit.caller
        drawn = self.pipeline.draw(visit.request, visit.caller, answer_within=self.answer_within)
        return self._serve_drawn(visit.request, drawn)

    def serve(self, prompt: str, picture: Picture, cache_status: str = HIT) -> Response:
        """Answer with a cached picture, a range of it, or 304 Not Modified."""
        if picture.file is None:
            return self._redirect(str(picture.row.url), cache_status)
        # Werkzeug's own wrapper, since gunicorn's cannot seek to the start of a range.
        body, caching = FileWrapper(picture.file), _caching_headers(self._caching)
        headers = _headers(prompt, picture.row, caching, cache_status)
        response = Response(body, headers=headers, direct_passthrough=True)
        is_sent = False
        try:
            response.make_conditional(request.environ, _has_one_range(), picture.row.bytes)
            is_sent = response.status_code != 304 and request.method == "GET"
        finally:
            if not is_sent:
                picture.close()
        return response

    def _serve_drawn(self, wanted: ImageRequest, drawn: Drawing) -> Response:
        """Answer with a picture just drawn, whether or not it could be cached."""
        cache_status = f"{MISS}{'; stored' if drawn.row else ''}; detail={drawn.source}"
        if drawn.hosted_url:
            response = self._redirect(drawn.hosted_url, cache_status)
        elif drawn.image:
            response = self._serve_bytes(wanted.prompt, drawn.image, drawn.row, cache_status)
        elif picture := self.cache.get(wanted.key, wanted):
            response = self.serve(wanted.prompt, picture, cache_status)
        else:
            raise Unavailable("the picture was drawn by another process and is gone")
        if drawn.stages:
            response.headers["Server-Timing"] = _server_timing(drawn.stages)
        return response

    def _serve_bytes(
        self, prompt: str, image: Image, row: Row | None, cache_status: str
    ) -> Response:
        """Answer with the bytes of a picture just drawn."""
        caching = _caching_headers(self._caching)
        disposition = ("Content-Disposition", _disposition(prompt, image.media_type))
        about = (("Content-Type", image.media_type), disposition)
        uncached = [*CROSS_ORIGIN, SANDBOX, *caching, _RANGES, *about]
        headers = _headers(prompt, row, caching, cache_status) if row else uncached
        response = Response(image.data, headers=headers)
        response.headers["Cache-Status"] = cache_status
        response.make_conditional(request.environ, _has_one_range(), len(image.data))
        return response

    def _redirect(self, url: str, cache_status: str) -> Response:
        own = [("Location", url), ("Cache-Status", cache_status)]
        headers = [*CROSS_ORIGIN, *_caching_headers(self._redirecting), *own]
        return Response(status=302, headers=headers)


_METHODS = ("GET", "HEAD")
_RANGES = ("Accept-Ranges", "bytes")


def _headers(prompt: str, row: Row, caching: Headers, cache_status: str = HIT) -> Headers:
    """Return the headers of a picture that the cache holds as a file."""
    return [
        *CROSS_ORIGIN,
        SANDBOX,
        *caching,
        _RANGES,
        ("Content-Type", row.media_type),
        ("Content-Length", str(row.bytes)),
        ("ETag", f'"{str(row.digest)[:32]}"'),
        ("Last-Modified", _http_date(int(row.created))),
        ("Content-Disposition", _disposition(prompt, row.media_type)),
        ("Cache-Status", cache_status),
    ]


def _caching_headers(caching: Caching) -> Headers:
    visit: Visit | None = request.environ.get(VISIT)
    return caching.headers(request.environ, visit.exp if visit else None)


@lru_cache(256)
def _read_url(
    path: str, query: str, max_prompt_length: int
) -> tuple[Named, list[tuple[str, ImageRequest]]]:
    """Return a URL as read and the keys of its pictures: a hot URL is parsed and hashed once."""
    named = ImageRequest.from_url(path, query, max_prompt_length)
    return named, [(one.key, one) for one in named.pictures]


def _is_plain(environ: WSGIEnvironment) -> bool:
    return environ["REQUEST_METHOD"] == "GET" and _CONDITIONS.isdisjoint(environ)


def _has_one_range() -> bool:
    """Return whether the Range header is one that is served; others are ignored (RFC 9110)."""
    wanted = request.range
    return wanted is not None and wanted.units == "bytes" and len(wanted.ranges) == 1


def not_drawn() -> Response:
    """Answer a HEAD for a picture that is not in the cache: HEAD never draws."""
    headers = [*CROSS_ORIGIN, ("Cache-Control", "no-store"), ("Cache-Status", MISS)]
    response = Response(headers=headers)
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
