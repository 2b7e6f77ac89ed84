"""The application: builds every part from the settings, wires them, and starts nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter

from access import Access
from backends import Backends
from cache import Cache
from config import Settings
from drawing.backend import Backend
from drawing.fallback import Pollinations
from drawing.pool import Pool
from drawing.record import Drawing
from drawing.storing import Storing
from hosting import image_host
from llm import Llm
from metrics import OFF, Metrics
from pipeline import Pipeline, Services
from settings.table import THREADS_KEPT_FREE
from storage.choose import choose_storage
from storage.local.folder import Folder
from storage.waiting import Places
from upstream.client import Upstream
from web.api import Api
from web.files import page_file
from web.headers import OPENAI_PREFIX, answer_preflight
from web.openai import OpenAi, edit
from web.openai_forms import openai_error
from web.pictures import Pictures
from web.problems import problem
from web.status import Status

if TYPE_CHECKING:
    from images.convert import Converter

__version__ = "1.0.0+dev"


class WholePath(BaseConverter):
    """The rest of a path, with its slashes, dots and newlines unchanged."""

    regex = "(?s:.*)"
    part_isolating = False


def create_app(settings: Settings, clock: Callable[[], float] = time.time) -> Flask:
    """Build the application. `clock` returns Unix time. Starts no thread, opens no file."""
    prometheus = None
    if settings.metrics:
        from metrics.prometheus import Prometheus  # needs requirements-metrics.txt

        prometheus = Prometheus()
    metrics = prometheus or OFF
    services = make_services(settings, clock, metrics)
    access, cache, pipeline = services.access, services.cache, services.pipeline
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["whole_path"] = WholePath
    pictures = Pictures(app.wsgi_app, settings, access, cache, pipeline, metrics)
    app.wsgi_app = pictures  # type: ignore[method-assign]
    app.before_request(answer_preflight)
    app.after_request(pictures.count)
    status = Status(
        __version__, settings, cache, pipeline.backends, pipeline.llm, pipeline.fallback
    )
    api = Api(settings, access, cache, status, pictures, Folder(settings.cache_dir))
    openai = OpenAi(settings, access, cache, pipeline, api.sign_url, metrics)
    routes = _routes(pictures, api, openai)
    if prometheus:
        from web.metrics import MetricsPage

        routes.add_url_rule("/metrics", view_func=MetricsPage(prometheus, access, status).show)
    app.register_blueprint(routes)
    answer_error = partial(_answer_error, has_cards=settings.error_images)
    app.register_error_handler(Exception, answer_error)
    app.extensions["prompt_image_proxy"] = services
    return app


def make_services(
    settings: Settings, clock: Callable[[], float] = time.time, metrics: Metrics = OFF
) -> Services:
    """Build the parts that the settings describe. Starts no thread, opens no file."""
    places = Places(settings.threads - THREADS_KEPT_FREE, metrics)
    state, store, limit = choose_storage(settings, clock, metrics, places)
    cache = Cache(state, store, limit, clock, metrics)
    upstream = Upstream(settings.network, metrics)
    timeout, max_image_bytes = settings.backend_timeout, settings.max_image_bytes
    llm = host = fallback = None
    if settings.llm:
        llm = Llm(settings.llm, upstream, state, timeout=settings.llm_timeout, metrics=metrics)
    if settings.hosting:
        host = image_host(settings.hosting, upstream, settings.network, settings.upload_timeout)
    if settings.pollinations:
        fallback = Pollinations(
            settings.pollinations, upstream, cache, timeout, max_image_bytes, metrics
        )
    backends = Backends(
        [Backend(one, upstream, state, timeout, max_image_bytes) for one in settings.backends],
        state,
        blocked_retry_attempts=settings.blocked_retry_attempts,
        metrics=metrics,
    )
    pool: Pool[Drawing] = Pool(state, settings.drawings, places, metrics)
    storing = Storing(cache, host, settings.upload_timeout, _make_converter(settings), metrics)
    pipeline = Pipeline(settings, cache, backends, pool, storing, llm, fallback, metrics)
    return Services(settings, Access(settings, clock), cache, upstream, pipeline)


def _answer_error(error: Exception, *, has_cards: bool) -> Response:
    # A client whose base URL is wrong posts to any path.
    is_lost = isinstance(error, NotFound) and request.method == "POST"
    if is_lost or request.path.startswith(OPENAI_PREFIX):
        return openai_error(error)
    return problem(error, has_cards=has_cards)


def _routes(pictures: Pictures, api: Api, openai: OpenAi) -> Blueprint:
    routes = Blueprint("proxy", __name__)
    # Every path under /prompt/ is a description, and an empty one is a 400, not a 404.
    path = "/prompt/<whole_path:description>"
    routes.add_url_rule(path, view_func=pictures.view)
    routes.add_url_rule("/v1/images/generations", view_func=openai.generate, methods=["POST"])
    routes.add_url_rule("/v1/images/edits", view_func=edit, methods=["POST"])
    routes.add_url_rule("/v1/models", view_func=openai.list_models)
    # The names of models may contain slashes.
    routes.add_url_rule("/v1/models/<whole_path:id>", view_func=openai.show_model)
    routes.add_url_rule("/sign", view_func=api.sign, methods=["POST"])
    routes.add_url_rule("/cache", view_func=api.list_pictures)
    routes.add_url_rule("/cache/<string(length=64):key>", view_func=api.show_picture)
    routes.add_url_rule("/cache/delete", view_func=api.delete_picture, methods=["POST"])
    routes.add_url_rule("/status", view_func=api.show_status)
    routes.add_url_rule("/robots.txt", view_func=api.robots)
    routes.add_url_rule("/", view_func=page_file)
    routes.add_url_rule("/page/<name>", view_func=page_file)
    return routes


def _make_converter(settings: Settings) -> Converter | None:
    if settings.picture_format == "original" and settings.picture_max_bytes is None:
        return None
    from images.convert import Converter  # needs Pillow, which only these settings require

    return Converter(settings.picture_format, settings.picture_quality, settings.picture_max_bytes)
