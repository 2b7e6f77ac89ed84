"""The application: builds every part from the settings, wires them, and starts nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from flask import Blueprint, Flask, Response, request
from werkzeug.routing import BaseConverter
from werkzeug.wrappers import Response as BaseResponse

import commands
import config
from access import Access
from backends import Backends
from cache import Cache
from config import Settings
from drawing.backend import Backend, Pollinations
from drawing.pool import Pool
from hosting import image_host
from limits import Limits
from llm import Llm
from metrics import Metrics
from pipeline import Pipeline
from settings.network import NetworkSettings
from settings.proxies import Proxies
from storage import State
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState
from storage.store import Store, Task
from upstream.client import Upstream, origin
from web.api import Api
from web.files import page_file
from web.openai import OpenAi
from web.openai_errors import PREFIX, openai_error
from web.pictures import Pictures, preflight
from web.problems import problem
from web.status import Status
from web.thumbnails import Thumbnails

if TYPE_CHECKING:
    from images.convert import Converter

__version__ = "1.0.0"

View = Callable[[], BaseResponse]


class WholePath(BaseConverter):
    """The rest of a path with its slashes, dots and newlines as they came."""

    regex = "(?s:.*)"
    part_isolating = False


@dataclass(frozen=True, slots=True)
class Services:
    """The parts with a lifetime of their own; gunicorn.conf.py starts and stops them."""

    cache: Cache
    upstream: Upstream
    pipeline: Pipeline

    def maintain(self, stop: threading.Event) -> None:
        """Keep the cache in order and write down counts until `stop` is set."""
        self.cache.maintain(stop, Task(self.pipeline.limits.flush, first=5, period=5))

    def close(self) -> None:
        """Finish the drawings under way, and close every connection and file."""
        self.pipeline.close()
        self.upstream.close()
        self.cache.close()


def create_app(settings: Settings | None = None, clock: Callable[[], float] = time.time) -> Flask:
    """Build the application from `settings`, or from the environment and `.env`.

    `clock` returns Unix time. Raises config.SettingsError. Starts no thread, opens no file.
    """
    command = click.get_current_context(silent=True)
    try:
        settings = settings or config.load(is_flask_command=bool(command))
    except config.SettingsError as faults:
        if command:
            sys.exit(str(faults))  # a command's user reads sentences, not a traceback
        raise
    is_measured = settings.metrics and not command
    metrics = _make_metrics() if is_measured else Metrics()
    cache = make_cache(settings, clock, metrics)
    upstream = _make_upstream(settings.network, metrics)
    llm = Llm(settings.llm, upstream, timeout=settings.llm_timeout) if settings.llm else None
    backends = _make_backends(settings, upstream, metrics)
    pipeline = _make_pipeline(settings, upstream, cache, backends, llm, metrics)
    access = _make_access(settings, clock)
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["whole_path"] = WholePath
    watched = metrics.watch("look-ups", cache)
    pictures = Pictures(app.wsgi_app, settings, access, watched, pipeline)
    app.wsgi_app = metrics.watch_requests(pictures)  # type: ignore[assignment,method-assign]
    status = Status(__version__, settings, cache, backends, llm)
    thumbnails = Thumbnails(Folder(settings.cache_dir))
    api = Api(settings, access, cache, status, pictures, pipeline.limits, thumbnails)
    openai = OpenAi(settings, access, watched, pipeline, api.link)
    show = _show_metrics(metrics, access, status, pipeline.limits) if is_measured else None
    app.register_blueprint(_routes(pictures, api, openai, show))
    app.register_error_handler(Exception, _error_handler(has_cards=settings.error_images))
    services = app.extensions["prompt_image_proxy"] = Services(cache, upstream, pipeline)
    if command:
        for warning in settings.warnings:
            click.echo(f"Warning: {warning}", err=True)
        command.call_on_close(services.close)
    commands.register(app.cli, settings, access, cache, pipeline)
    return app


def make_cache(
    settings: Settings, clock: Callable[[], float] = time.time, metrics: Metrics | None = None
) -> Cache:
    """Return the cache that the settings describe, not yet opened."""
    metrics = metrics or Metrics()
    state, store, limit = _make_storage(settings, clock)
    state, store = metrics.watch("state", state), metrics.watch("store", store)
    return Cache(state, store, limit, clock, metrics)


def _make_storage(settings: Settings, clock: Callable[[], float]) -> tuple[State, Store, int]:
    """Return where rows and bytes live, and how many bytes the cache may hold; 0 for no limit."""
    folder, limit = settings.cache_dir, settings.cache_max_bytes
    if not settings.database_url:
        state = SqliteState(folder, clock, settings.max_image_bytes)
        return state, Folder(folder, picture_bytes=settings.max_image_bytes), limit
    # Imported here, since they need requirements-cluster.txt.
    from storage.cluster.postgres import PostgresState

    shared = PostgresState(settings.database_url)
    if not settings.storage:
        from storage.cluster.copies import Nowhere

        return shared, Nowhere(), limit
    from storage.cluster.copies import Copies
    from storage.cluster.objects import Objects

    objects = Objects(settings.storage, settings.network)
    # The limit is that of the copies: nothing is deleted from the bucket to make room.
    return shared, Copies(objects, folder, limit), 0


def _make_metrics() -> Metrics:
    from metrics.prometheus import Prometheus  # needs requirements-metrics.txt

    return Prometheus()


def _show_metrics(metrics: Metrics, access: Access, status: Status, limits: Limits) -> View:
    from metrics.prometheus import Prometheus
    from web.metrics import MetricsPage

    assert isinstance(metrics, Prometheus)
    return MetricsPage(metrics, access, status, limits).show


def _make_access(settings: Settings, clock: Callable[[], float]) -> Access:
    return Access(
        settings.access_key,
        named_keys=settings.access_keys,
        drawings_per_day=settings.drawings_per_day,
        admin_token=settings.admin_token,
        signing_keys=settings.signing_keys,
        clock=clock,
    )


def _make_upstream(network: NetworkSettings, metrics: Metrics) -> Upstream:
    own = {origin(url): proxy for url, proxy in network.backend_proxies.items()}
    return Upstream(
        ca_bundle=network.ca_bundle,
        proxies=Proxies(network.proxies, network.no_proxy, own),
        picture_networks=network.picture_networks,
        metrics=metrics,
    )


def _error_handler(*, has_cards: bool) -> Callable[[Exception], Response]:
    def answer(error: Exception) -> Response:
        if request.path.startswith(PREFIX):
            return openai_error(error)
        return problem(error, has_cards=has_cards)

    return answer


def _routes(pictures: Pictures, api: Api, openai: OpenAi, show_metrics: View | None) -> Blueprint:
    routes = Blueprint("proxy", __name__)
    # Every path under /prompt/ is a description, and an empty one is a 400, not a 404.
    path = "/prompt/<whole_path:description>"
    routes.add_url_rule(path, view_func=pictures.view, provide_automatic_options=False)
    routes.add_url_rule(path, view_func=preflight, methods=["OPTIONS"])
    routes.add_url_rule("/v1/images/generations", view_func=openai.generate, methods=["POST"])
    routes.add_url_rule("/v1/models", view_func=openai.list_models)
    # The names of models may contain slashes.
    routes.add_url_rule("/v1/models/<whole_path:id>", view_func=openai.show_model)
    routes.add_url_rule("/sign", view_func=api.sign, methods=["POST"])
    routes.add_url_rule("/cache", view_func=api.list_pictures)
    routes.add_url_rule("/cache/<string(length=64):key>", view_func=api.show_picture)
    routes.add_url_rule("/cache/delete", view_func=api.delete_picture, methods=["POST"])
    routes.add_url_rule("/status", view_func=api.show_status)
    if show_metrics:
        routes.add_url_rule("/metrics", view_func=show_metrics)
    routes.add_url_rule("/robots.txt", view_func=api.robots)
    routes.add_url_rule("/", view_func=page_file)
    routes.add_url_rule("/page/<name>", view_func=page_file)
    return routes


def _make_backends(settings: Settings, upstream: Upstream, metrics: Metrics) -> Backends:
    backends = [
        Backend(
            backend,
            upstream,
            timeout=settings.backend_timeout,
            max_image_bytes=settings.max_image_bytes,
        )
        for backend in settings.backends
    ]
    watched = [metrics.watch("backend", backend) for backend in backends]
    return Backends(watched, blocked_retry_attempts=settings.blocked_retry_attempts)


def _make_fallback(settings: Settings, upstream: Upstream, metrics: Metrics) -> Pollinations | None:
    if not settings.pollinations:
        return None
    fallback = Pollinations(
        settings.pollinations,
        upstream,
        timeout=settings.backend_timeout,
        max_image_bytes=settings.max_image_bytes,
    )
    return metrics.watch("backend", fallback)


def _make_converter(settings: Settings) -> Converter | None:
    if settings.picture_format == "original" and settings.picture_max_bytes is None:
        return None
    from images.convert import Converter  # needs Pillow, which only these settings require

    return Converter(settings.picture_format, settings.picture_quality, settings.picture_max_bytes)


def _make_pipeline(
    settings: Settings,
    upstream: Upstream,
    cache: Cache,
    backends: Backends,
    llm: Llm | None,
    metrics: Metrics,
) -> Pipeline:
    host = None
    if settings.hosting:
        host = image_host(settings.hosting, upstream, settings.network, settings.upload_timeout)
    places = settings.threads - config.THREADS_KEPT_FREE
    return Pipeline(
        cache,
        metrics.watch("backends", backends),
        metrics.watch_pool(Pool(cache.state, settings.drawings, places)),
        llm=metrics.watch("llm", llm) if llm else None,
        fallback=_make_fallback(settings, upstream, metrics),
        host=metrics.watch("image host", host) if host else None,
        converter=_make_converter(settings),
        generation_deadline=settings.generation_deadline,
        upload_timeout=settings.upload_timeout,
        blocked_ttl=settings.blocked_ttl,
        fingerprint=settings.fingerprint,
    )
