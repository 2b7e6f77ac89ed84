"""The service over HTTP: parse, authorise, look up, draw, answer.

`create_app(settings)` builds everything; importing this module builds nothing.
"""

from __future__ import annotations

import hmac
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import FileIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
from flask import Blueprint, Flask, Response, request, send_from_directory
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.routing import BaseConverter
from werkzeug.wsgi import FileWrapper

import commands
import config
from access import MAX_EXPIRES_IN, BadSignature, Link, Signer
from backends import Backend, Backends, Cooldowns, Pollinations
from cache import Cache, Record
from config import ROOT, Settings
from hosting import image_host
from llm import Llm
from picture import BadRequest, ImageRequest
from pipeline import Pipeline
from upstream.client import Upstream
from values import printable_url
from web import answers
from web.answers import Forbidden, NothingThere, Pictures, Unauthorised, as_json

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__version__ = "1.0.0"

ROBOTS = "# Every new URL under /prompt/ costs money.\nUser-agent: *\nDisallow: /prompt/\n"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: https: http:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class WholePath(BaseConverter):
    """Everything after the prefix, with slashes, dots and newlines as they came."""

    regex = "(?s:.*)"
    part_isolating = False


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application from `settings`, or from the environment and `.env`.

    Raises config.SettingsError.
    """
    try:
        settings = settings or config.load()
    except config.SettingsError as faults:
        if click.get_current_context(silent=True):
            sys.exit(str(faults))  # a command's user reads sentences, not a traceback
        raise
    cache = Cache(settings.cache_dir, settings.cache_max_bytes)
    upstream = Upstream()
    backends = _make_backends(settings, upstream, cache)
    pipeline = _make_pipeline(settings, upstream, cache, backends)
    signer = Signer.of(settings.signing_keys, settings.access_key)
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["whole_path"] = WholePath
    views = Views(settings, cache, backends, pipeline, signer)
    app.register_blueprint(views.blueprint())
    app.wsgi_app = HitsFirst(app.wsgi_app, views)  # type: ignore[method-assign]
    app.register_error_handler(
        Exception,
        lambda error: answers.problem(error, settings.error_images and answers.wants_picture()),
    )
    commands.register(app.cli, settings, cache, pipeline, signer)
    app.extensions["prompt_image_proxy"] = SimpleNamespace(cache=cache)
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
        self,
        settings: Settings,
        cache: Cache,
        backends: Backends,
        pipeline: Pipeline,
        signer: Signer,
    ) -> None:
        self.settings = settings
        self.cache = cache
        self.backends = backends
        self.pipeline = pipeline
        self.signer = signer
        self.pictures = Pictures(settings.cache_control, settings.nginx_cache_seconds)
        self._access_key = settings.access_key.encode()
        self._admin_token = settings.admin_token.encode() if settings.admin_token else None

    def blueprint(self) -> Blueprint:
        routes = Blueprint("proxy", __name__)
        # Every path under /prompt/ is a description, and an empty one a 400, not a 404.
        path = "/prompt/<whole_path:description>"
        routes.add_url_rule(path, view_func=self.picture, provide_automatic_options=False)
        routes.add_url_rule(path, view_func=self.preflight, methods=["OPTIONS"])
        routes.add_url_rule("/sign", view_func=self.sign, methods=["POST"])
        routes.add_url_rule("/cache", view_func=self.listing)
        routes.add_url_rule("/cache/delete", view_func=self.delete, methods=["POST"])
        routes.add_url_rule("/status", view_func=self.status)
        routes.add_url_rule("/robots.txt", view_func=self.robots)
        routes.add_url_rule("/", view_func=self.page)
        routes.add_url_rule("/<any('page.css', 'page.js'):name>", view_func=self.page)
        return routes

    # --- pictures

    def picture(self, description: str) -> Response:
        """GET|HEAD /prompt/{description}: the picture, drawn now if it has to be."""
        environ = request.environ
        wanted, credentials = ImageRequest.from_url(
            environ["PATH_INFO"], environ["QUERY_STRING"], self.settings.max_prompt_length
        )
        self.authorise(environ, credentials, wanted)
        if entry := self.cache.get(wanted.key):
            return self.pictures.kept(wanted.prompt, entry)
        if environ["REQUEST_METHOD"] == "HEAD":
            return answers.not_drawn()
        drawn = self.pipeline.draw(wanted)
        return self.pictures.drawn(wanted.prompt, self.cache.get(wanted.key), drawn)

    def preflight(self, description: str) -> Response:
        """OPTIONS /prompt/{description}."""
        return answers.preflight()

    def sign(self) -> Response:
        """POST /sign: a URL that shows one picture without the access key."""
        self.authorise(request.environ, request.args.to_dict())
        body = read_body()
        wanted = read_wanted(body, self.settings.max_prompt_length)
        return as_json(self._link(wanted, _expires_in(body.get("expires_in"))).to_json())

    # --- administration

    def listing(self) -> Response:
        """GET /cache?q&limit&before: what is in the cache, the newest first."""
        self.authorise_admin()
        limit = request.args.get("limit", "50")
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= 200:
            raise BadRequest("The parameter limit must be an integer from 1 to 200.")
        search, before = request.args.get("q", "").strip(), request.args.get("before")
        records, following = self.cache.records(search, int(limit), before)
        return as_json({"entries": [self._describe(r) for r in records], "next": following})

    def delete(self) -> Response:
        """POST /cache/delete: forget one picture, and that it was ever refused."""
        self.authorise_admin()
        body = read_body()
        key = body.get("key")
        # A picture that was found again after its index was lost has a key, and no prompt.
        if not (isinstance(key, str) and re.fullmatch(r"[0-9a-f]{64}", key)):
            key = read_wanted(body, self.settings.max_prompt_length).key
        if not self.cache.delete(key):
            raise NothingThere("There is no such picture in the cache.")
        return as_json({"deleted": True, "key": key})

    # --- the rest

    def status(self) -> Response:
        """GET /status: health and configuration, without a secret."""
        settings, totals = self.settings, self.cache.totals()
        backends = [self._backend_status(backend) for backend in self.backends.all]
        is_ok = totals is not None and any(b["state"] == "ready" for b in backends)
        llm, hosting, fallback = settings.llm, settings.hosting, settings.pollinations
        return as_json(
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

    def robots(self) -> Response:
        """GET /robots.txt: keep crawlers from spending money."""
        return Response(ROBOTS, mimetype="text/plain")

    def page(self, name: str = "page.html") -> Response:
        """GET /, /page.css, /page.js: what a person is shown."""
        response = send_from_directory(ROOT / "web" / "page", name, max_age=0)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    # --- who may

    def authorise(
        self,
        environ: dict[str, Any],
        credentials: dict[str, str],
        wanted: ImageRequest | None = None,
    ) -> None:
        """Let pass who has the access key (`?key=`, Bearer), or a signature for this picture."""
        offered = [credentials["key"].encode()] if "key" in credentials else []
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer":
            offered.append(token.strip().encode("latin-1"))
        # As bytes: compare_digest raises on text that is not ASCII.
        if any([hmac.compare_digest(value, self._access_key) for value in offered]):
            return None
        if wanted and "sig" in credentials:
            try:
                return self.signer.verify(wanted, credentials["sig"], credentials.get("exp"))
            except BadSignature as error:
                raise Unauthorised(str(error)) from error
        raise Unauthorised("The access key is wrong." if offered else "An access key is needed.")

    def authorise_admin(self) -> None:
        """Let the holder of the admin token pass: `X-Admin-Token`."""
        if self._admin_token is None:
            raise Forbidden("Administration is switched off: no ADMIN_TOKEN is set.")
        offered = request.environ.get("HTTP_X_ADMIN_TOKEN", "").encode("latin-1")
        if not hmac.compare_digest(offered, self._admin_token):
            raise Unauthorised("The admin token is wrong or missing.")

    # --- parts of answers

    def _link(self, wanted: ImageRequest, expires_in: int | None = None) -> Link:
        base = self.settings.public_url or _forwarded_base()
        return Link(wanted, base + wanted.to_url(**self.signer.sign(wanted, expires_in)))

    def _describe(self, record: Record) -> dict[str, Any]:
        link = self._link(record.request) if record.request else None
        return record.to_json() | {
            "url": link.url if link else None,
            "markdown": link.markdown if link else None,
        }

    def _backend_status(self, backend: Backend) -> dict[str, Any]:
        wait = self.backends.cooldowns.remaining(backend)
        state = "drained" if not backend.weight else "cooling" if wait else "ready"
        found: dict[str, Any] = {"url": backend.name, "weight": backend.weight, "state": state}
        return found | ({"ready_in": round(wait, 1)} if wait else {})


class HitsFirst:
    """Answers plain hits before Flask is asked, and hands everything else on.

    A hit is short: parse, compare, hash, one row, one file for the kernel. Flask's routing and
    contexts, and Werkzeug's headers, cost more than all of that (benchmarks/README.md).
    """

    def __init__(self, app: WSGIApplication, views: Views) -> None:
        self.app = app
        self.views = views

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if (
            path.startswith("/prompt/")
            and environ["REQUEST_METHOD"] == "GET"
            and _CONDITIONS.isdisjoint(environ)
        ):
            views = self.views
            try:
                wanted, credentials, key = _read_url(
                    path, environ["QUERY_STRING"], views.settings.max_prompt_length
                )
                views.authorise(environ, credentials, wanted)
            except (BadRequest, Unauthorised):
                return self.app(environ, start_response)  # which says so in full
            entry = views.cache.get(key)
            if entry and entry.opened:
                start_response("200 OK", views.pictures.headers(wanted.prompt, entry))
                wrap: Callable[[FileIO], Iterable[bytes]] = environ.get(
                    "wsgi.file_wrapper", FileWrapper
                )
                return wrap(entry.opened)
        return self.app(environ, start_response)


@lru_cache(256)
def _read_url(
    path: str, query: str, max_prompt_length: int
) -> tuple[ImageRequest, dict[str, str], str]:
    """Return a URL's picture, credentials and cache key: hot URLs are read once, not each time."""
    wanted, credentials = ImageRequest.from_url(path, query, max_prompt_length)
    return wanted, credentials, wanted.key


_CONDITIONS = frozenset(
    ("HTTP_RANGE", "HTTP_IF_RANGE", "HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_MATCH")
)


def _forwarded_base() -> str:
    """Return scheme and host as the client sees them, which is as nginx forwards them."""
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
    host = request.headers.get("X-Forwarded-Host", request.headers.get("Host", ""))
    if scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", host):
        raise BadRequest("The Host of the request is not a host name; set PUBLIC_URL.")
    return f"{scheme}://{host}"


def read_body() -> dict[str, Any]:
    """Return the request's body, a JSON object. Raises BadRequest; over 16 KB it is a 413."""
    # One byte more than allowed: Werkzeug only cuts off what announces no length.
    data = request.stream.read(answers.MAX_BODY + 1)
    if len(data) > answers.MAX_BODY:
        raise RequestEntityTooLarge
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.")
    return body


def read_wanted(body: dict[str, Any], max_prompt_length: int) -> ImageRequest:
    """Read `{"description", "width", "height", "model", "seed"}`. Raises BadRequest."""
    if not isinstance(body.get("description"), str):
        raise BadRequest("The parameter description must be a text.")
    names = ("width", "height", "model", "seed")
    own = {name: _as_text(name, body.get(name)) for name in names}
    return ImageRequest.from_text(body["description"], max_prompt_length=max_prompt_length, **own)


def _as_text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    raise BadRequest(f"The parameter {name} must be a number or a text.")


def _expires_in(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_EXPIRES_IN:
        raise BadRequest(f"The parameter expires_in must be seconds from 1 to {MAX_EXPIRES_IN}.")
    return value
