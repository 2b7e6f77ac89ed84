"""The service over HTTP: parse, authorise, look up, draw, answer.

`create_app(settings)` builds everything; importing this module builds nothing.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Flask, Response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException
from werkzeug.http import http_date
from werkzeug.routing import BaseConverter
from werkzeug.wsgi import FileWrapper

import config
from backends import Backend, Backends, Cooldowns, Pollinations
from cache import Cache, Entry
from config import Settings, printable_url
from hosting import image_host
from index import Unavailable
from llm import Llm
from picture import EXTENSIONS, BadRequest, ImageRequest
from pipeline import Busy, Drawn, GaveUp, Pipeline, Stage
from upstream import Upstream

__version__ = "1.0.0"

log = logging.getLogger("prompt_image_proxy.app")

MAX_BODY = 16 * 1024
# A redirect is no picture: where it leads can change when the picture is deleted and drawn anew.
REDIRECT_CACHE_CONTROL = "public, max-age=3600"
CACHE_NAME = "PromptImageProxy"
HIT = f"{CACHE_NAME}; hit"
CROSS_ORIGIN = (
    ("X-Content-Type-Options", "nosniff"),
    ("Access-Control-Allow-Origin", "*"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("Access-Control-Expose-Headers", "Cache-Status, Server-Timing, Content-Disposition, ETag"),
)
# No script runs in what a backend sent, even where it is opened as a page.
SANDBOX = ("Content-Security-Policy", "default-src 'none'; sandbox")
ROBOTS = "# Every new URL under /prompt/ costs money.\nUser-agent: *\nDisallow: /prompt/\n"


class Unauthorised(Exception):
    """No valid credentials. Its text is the sentence for the client."""


class Forbidden(Exception):
    """Not allowed to anybody, whatever the credentials."""


class NothingThere(Exception):
    """What was to be changed does not exist."""


class WholePath(BaseConverter):
    """Everything after the prefix, with slashes, dots and newlines as they came."""

    regex = "(?s:.*)"
    part_isolating = False


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application from `settings`, or from the environment and `.env`.

    Raises config.SettingsError.
    """
    settings = settings or config.load()
    upstream = Upstream()
    cache = Cache(settings.cache_dir, settings.cache_max_bytes)
    backends = _make_backends(settings, upstream, cache)
    pipeline = _make_pipeline(settings, upstream, cache, backends)
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["whole_path"] = WholePath
    app.register_blueprint(Views(settings, cache, backends, pipeline).blueprint())
    app.register_error_handler(Exception, problem)
    cache.start()
    return app


def _make_backends(settings: Settings, upstream: Upstream, cache: Cache) -> Backends:
    backends = [
        Backend(
            backend,
            upstream,
            cache,
            timeout=settings.backend_timeout,
            max_image_bytes=settings.max_image_bytes,
        )
        for backend in settings.backends
    ]
    return Backends(backends, Cooldowns(cache), settings.blocked_retry_attempts)


def _make_pipeline(
    settings: Settings, upstream: Upstream, cache: Cache, backends: Backends
) -> Pipeline:
    llm = fallback = host = None
    if settings.llm:
        llm = Llm(settings.llm, upstream, cache, timeout=settings.llm_timeout)
    if settings.pollinations:
        fallback = Pollinations(
            settings.pollinations,
            upstream,
            timeout=settings.backend_timeout,
            max_image_bytes=settings.max_image_bytes,
        )
    if settings.hosting:
        host = image_host(settings.hosting, upstream)
    return Pipeline(
        cache,
        backends,
        llm=llm,
        fallback=fallback,
        host=host,
        places=settings.threads - config.THREADS_KEPT_FREE,
        generation_deadline=settings.generation_deadline,
        llm_timeout=settings.llm_timeout,
        upload_timeout=settings.upload_timeout,
        blocked_ttl=settings.blocked_ttl,
    )


class Views:
    """The routes, with what they call."""

    def __init__(
        self, settings: Settings, cache: Cache, backends: Backends, pipeline: Pipeline
    ) -> None:
        self.settings = settings
        self.cache = cache
        self.backends = backends
        self.pipeline = pipeline
        self._access_key = settings.access_key.encode()
        self._admin_token = settings.admin_token.encode() if settings.admin_token else None
        self._image_headers = (
            *CROSS_ORIGIN,
            SANDBOX,
            ("Cache-Control", settings.cache_control),
            ("X-Accel-Expires", str(settings.nginx_cache_seconds)),
            ("Accept-Ranges", "bytes"),
        )

    def blueprint(self) -> Blueprint:
        routes = Blueprint("proxy", __name__)
        # Every path under /prompt/ is a description, and an empty one a 400, not a 404.
        path = "/prompt/<whole_path:description>"
        routes.add_url_rule(path, view_func=self.picture, provide_automatic_options=False)
        routes.add_url_rule(path, view_func=self.preflight, methods=["OPTIONS"])
        routes.add_url_rule("/cache/delete", view_func=self.delete, methods=["POST"])
        routes.add_url_rule("/status", view_func=self.status)
        routes.add_url_rule("/robots.txt", view_func=self.robots)
        return routes

    # --- views

    def picture(self, description: str) -> ResponseReturnValue:
        """GET|HEAD /prompt/{description}: the picture, drawn now if it has to be."""
        environ = request.environ
        wanted, credentials = ImageRequest.from_url(
            environ["PATH_INFO"], environ["QUERY_STRING"], self.settings.max_prompt_length
        )
        self.authorise(credentials)
        if entry := self.cache.get(wanted.key):
            return self._send(wanted, entry, HIT)
        if request.method == "HEAD":
            # Drawing for a HEAD would spend money on a picture that nobody looks at.
            headers = [*CROSS_ORIGIN, ("Cache-Control", "no-store"), ("Cache-Status", MISS)]
            return _bare(Response(headers=headers))
        return self._send_drawn(wanted, self.pipeline.draw(wanted))

    def preflight(self, description: str) -> ResponseReturnValue:
        """OPTIONS /prompt/{description}: any page may fetch pictures, with a Bearer too."""
        headers = [
            *CROSS_ORIGIN,
            ("Allow", "GET, HEAD, OPTIONS"),
            ("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS"),
            ("Access-Control-Allow-Headers", "Authorization, Range, If-None-Match"),
            ("Access-Control-Max-Age", "86400"),
        ]
        return _bare(Response(status=204, headers=headers))

    def delete(self) -> ResponseReturnValue:
        """POST /cache/delete: forget one picture, and that it was ever refused."""
        self.authorise_admin()
        wanted = read_body(self.settings.max_prompt_length)
        if not self.cache.delete(wanted.key):
            raise NothingThere("There is no such picture in the cache.")
        return _json({"deleted": True, "key": wanted.key})

    def status(self) -> ResponseReturnValue:
        """GET /status: health and configuration, without a secret."""
        settings, totals = self.settings, self.cache.totals()
        backends = [self._backend_status(backend) for backend in self.backends.all]
        is_ok = totals is not None and any(b["state"] == "ready" for b in backends)
        llm, hosting, fallback = settings.llm, settings.hosting, settings.pollinations
        return _json(
            {
                "status": "ok" if is_ok else "degraded",
                "version": __version__,
                "backends": backends,
                "cache": {
                    "mode": "hosted" if hosting else "file",
                    **(totals or {"entries": None, "bytes": None}),
                    "max_bytes": settings.cache_max_bytes,
                },
                "image_hosting": {
                    "enabled": hosting is not None,
                    "provider": hosting.provider if hosting else None,
                },
                "llm_optimization": {
                    "enabled": bool(llm and llm.optimize_template),
                    "model": llm.model if llm else None,
                },
                "de_nsfw": {
                    "enabled": bool(llm and llm.safety_template),
                    "max_attempts": llm.safety_attempts if llm else 0,
                },
                "fallback": {
                    "enabled": fallback is not None,
                    "url": printable_url(fallback.url) if fallback else None,
                    "model": fallback.model if fallback else None,
                },
            }
        )

    def robots(self) -> ResponseReturnValue:
        """GET /robots.txt: keep crawlers from spending money."""
        return Response(ROBOTS, mimetype="text/plain")

    # --- who may

    def authorise(self, credentials: dict[str, str]) -> None:
        """Let the holder of the access key pass: `?key=` or `Authorization: Bearer`."""
        offered = []
        if "key" in credentials:
            offered.append(credentials["key"].encode())
        scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer":
            offered.append(token.strip().encode("latin-1"))
        # As bytes: compare_digest raises on text that is not ASCII.
        if not any([hmac.compare_digest(value, self._access_key) for value in offered]):
            raise Unauthorised(
                "The access key is wrong." if offered else "An access key is needed."
            )

    def authorise_admin(self) -> None:
        """Let the holder of the admin token pass: `X-Admin-Token`."""
        if self._admin_token is None:
            raise Forbidden("Administration is switched off: no ADMIN_TOKEN is set.")
        offered = request.environ.get("HTTP_X_ADMIN_TOKEN", "").encode("latin-1")
        if not hmac.compare_digest(offered, self._admin_token):
            raise Unauthorised(
                "The admin token is wrong." if offered else "X-Admin-Token is needed."
            )

    # --- answers

    def _send(self, wanted: ImageRequest, entry: Entry, cache_status: str) -> Response:
        """Answer with a picture from the cache: a file for the kernel to send, or a redirect."""
        if entry.url is not None:
            return self._redirect(entry.url, cache_status)
        assert entry.opened
        headers = [
            *self._image_headers,
            ("Content-Type", entry.media_type),
            ("Content-Length", str(entry.bytes)),
            ("ETag", f'"{str(entry.digest)[:32]}"'),
            ("Last-Modified", _http_date(int(entry.created))),
            ("Content-Disposition", _disposition(wanted.prompt, entry.media_type)),
            ("Cache-Status", cache_status),
        ]
        environ = request.environ
        if _CONDITIONS.isdisjoint(environ) and environ["REQUEST_METHOD"] == "GET":
            wrap = environ.get("wsgi.file_wrapper", FileWrapper)
            return Response(wrap(entry.opened), headers=headers, direct_passthrough=True)
        return self._send_conditionally(entry, headers)

    def _send_conditionally(self, entry: Entry, headers: list[tuple[str, str]]) -> Response:
        assert entry.opened
        # Werkzeug's own wrapper, since gunicorn's cannot seek to the start of a range.
        response = Response(FileWrapper(entry.opened), headers=headers, direct_passthrough=True)
        is_sent = False
        try:
            response.make_conditional(request.environ, True, entry.bytes)
            is_sent = response.status_code != 304 and request.method == "GET"
        finally:
            if not is_sent:
                entry.close()
        return response

    def _send_drawn(self, wanted: ImageRequest, drawn: Drawn) -> Response:
        stored = "; stored" if drawn.is_kept else ""
        cache_status = f"{MISS}{stored}; detail={drawn.source}"
        if entry := self.cache.get(wanted.key):
            response = self._send(wanted, entry, cache_status)
        elif drawn.hosted_url:
            response = self._redirect(drawn.hosted_url, cache_status)
        elif drawn.image:
            image = drawn.image
            response = Response(image.data, headers=[*self._image_headers, ("Cache-Status", MISS)])
            response.headers["Content-Type"] = image.media_type
            response.headers["Content-Disposition"] = _disposition(wanted.prompt, image.media_type)
            response.headers["Cache-Status"] = cache_status
            # Not kept here, so it must not be kept for a year elsewhere under no ETag of ours.
            del response.headers["Accept-Ranges"]
        else:
            raise Unavailable("the picture was drawn, and lost before it could be sent")
        if drawn.stages:
            response.headers["Server-Timing"] = _server_timing(drawn.stages)
        return response

    def _redirect(self, url: str, cache_status: str) -> Response:
        headers = [
            *CROSS_ORIGIN,
            ("Location", url),
            ("Cache-Control", REDIRECT_CACHE_CONTROL),
            ("X-Accel-Expires", str(self.settings.nginx_cache_seconds)),
            ("Cache-Status", cache_status),
        ]
        return Response(status=302, headers=headers)

    def _backend_status(self, backend: Backend) -> dict[str, Any]:
        wait = self.backends.cooldowns.remaining(backend)
        state = "drained" if not backend.weight else "cooling" if wait else "ready"
        found: dict[str, Any] = {"url": backend.name, "weight": backend.weight, "state": state}
        return found | ({"ready_in": round(wait, 1)} if wait else {})


MISS = f"{CACHE_NAME}; fwd=miss"
_CONDITIONS = frozenset(
    ("HTTP_RANGE", "HTTP_IF_RANGE", "HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_MATCH")
)
_http_date = lru_cache(1024)(http_date)


@lru_cache(1024)
def _disposition(prompt: str, media_type: str) -> str:
    """Return an inline file name made from the prompt, with the right extension."""
    extension = EXTENSIONS[media_type]
    words = re.findall(r"\w+", prompt[:80])
    plain = "-".join(re.findall(r"[A-Za-z0-9]+", prompt[:80])) or "picture"
    found = f'inline; filename="{plain}.{extension}"'
    name = "-".join(words)
    return found if name.isascii() else f"{found}; filename*=UTF-8''{quote(name)}.{extension}"


def _server_timing(stages: list[Stage]) -> str:
    return ", ".join(
        f'{stage.stage};dur={stage.seconds * 1000:.0f};desc="{stage.outcome}"' for stage in stages
    )


def read_body(max_prompt_length: int) -> ImageRequest:
    """Read `{"description", "width", "height", "model", "seed"}` from the request's body.

    Raises BadRequest; a body over 16 KB is a 413.
    """
    request.max_content_length = MAX_BODY
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict) or not isinstance(body.get("description"), str):
        raise BadRequest("The body must be a JSON object with a text as its description.")
    names = ("width", "height", "model", "seed")
    own = {name: _as_text(name, body.get(name)) for name in names}
    return ImageRequest.from_text(body["description"], max_prompt_length=max_prompt_length, **own)


def _as_text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    raise BadRequest(f"The parameter {name} must be a number or a text.")


def _json(value: Any) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=headers)


def _bare(response: Response) -> Response:
    """Take off the length and type that an empty body would get."""
    response.automatically_set_content_length = False
    response.headers.pop("Content-Type", None)
    return response


# --- errors -------------------------------------------------------------------------------------

_STATUSES: dict[type[Exception], int] = {
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


def problem(error: Exception) -> Response:
    """Answer any error with its status and a neutral sentence, as RFC 9457 has it."""
    headers = {"Cache-Control": "no-store", **dict(CROSS_ORIGIN)}
    found: dict[str, Any] = {}
    if isinstance(error, GaveUp):
        status, detail = error.status, error.detail
        found["stages"] = [
            {"stage": s.stage, "outcome": s.outcome, "seconds": s.seconds} for s in error.stages
        ]
        if error.retry_after:
            headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, Busy):
        status, detail = 503, "Too many pictures are being drawn just now."
        headers["Retry-After"] = "5"
    elif isinstance(error, Unavailable):
        status, detail = 503, "The cache cannot be used just now."
        headers["Retry-After"] = "5"
    elif type(error) in _STATUSES:
        status, detail = _STATUSES[type(error)], str(error)
    elif isinstance(error, HTTPException):
        status, detail = error.code or 500, _http_detail(error)
        headers |= {k: v for k, v in error.get_headers() if k in ("Allow", "Content-Range")}
    else:
        log.error("A request failed for a reason nobody foresaw", exc_info=error)
        status, detail = 500, "Something went wrong here. The log says what."
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Prompt Image Proxy"'
    body = {
        "type": "about:blank",
        "title": _TITLES.get(status, "Request failed"),
        "status": status,
        "detail": detail,
        **found,
    }
    return Response(
        json.dumps(body) + "\n", status, headers, content_type="application/problem+json"
    )


def _http_detail(error: HTTPException) -> str:
    # Werkzeug's own sentences are for pages; some repeat what was sent.
    return {
        404: "There is nothing here. Pictures are at /prompt/{description}.",
        405: "This method is not allowed here.",
        413: f"The body is larger than {MAX_BODY} bytes.",
        416: "The range cannot be satisfied.",
    }.get(error.code or 500, "The request cannot be understood.")
