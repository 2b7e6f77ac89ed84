"""The application: builds every part from the settings, wires them, and starts nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import click
from flask import Blueprint, Flask, Response, request
from werkzeug.routing import BaseConverter

import commands
import config
from access import Access
from backends import Backends
from cache import Cache
from config import Settings
from drawing import Backend, Pollinations
from environment.network import NetworkSettings
from environment.proxies import Proxies
from hosting import image_host
from llm import Llm
from pipeline import Pipeline
from storage.folder import Folder
from storage.machine import machine_name
from storage.sqlite import SqliteState
from storage.store import Task
from upstream.client import Upstream, origin
from web.api import Api
from web.errors import problem
from web.openai import OpenAi
from web.openai_errors import PREFIX, openai_error
from web.pictures import Pictures, preflight
from web.status import Status

__version__ = "1.0.0"


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
    cache, upstream = make_cache(settings, clock), _make_upstream(settings.network)
    llm = Llm(settings.llm, upstream, timeout=settings.llm_timeout) if settings.llm else None
    backends = _make_backends(settings, upstream)
    pipeline = _make_pipeline(settings, upstream, cache, backends, llm)
    access = _make_access(settings, clock)
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["whole_path"] = WholePath
    pictures = Pictures(app.wsgi_app, settings, access, cache, pipeline)
    app.wsgi_app = pictures  # type: ignore[method-assign]
    status = Status(__version__, settings, cache, backends, llm)
    api = Api(settings, access, cache, status, pictures, pipeline.limits)
    openai = OpenAi(settings, access, cache, pipeline, api.link)
    app.register_blueprint(_routes(pictures, api, openai))
    app.register_error_handler(Exception, _error_handler(has_cards=settings.error_images))
    services = app.extensions["prompt_image_proxy"] = Services(cache, upstream, pipeline)
    if command:
        for warning in settings.warnings:
            click.echo(f"Warning: {warning}", err=True)
        command.call_on_close(services.close)
    commands.register(app.cli, settings, access, cache, pipeline)
    return app


def make_cache(settings: Settings, clock: Callable[[], float] = time.time) -> Cache:
    """Return the cache that the settings describe, not yet opened."""
    folder, limit = settings.cache_dir, settings.cache_max_bytes
    if not settings.database_url:
        return Cache(SqliteState(folder, clock), Folder(folder), limit, clock)
    # Imported here, since they need packages that few have.
    from storage.postgres import PostgresState

    state, machine = PostgresState(settings.database_url), machine_name(folder)
    if not settings.storage:
        return Cache(state, Folder(folder, machine=machine), limit, clock)
    from storage.copies import Copies
    from storage.objects import Objects

    objects = Objects(settings.storage, settings.network)
    # The limit is that of the copies: nothing is deleted from the bucket to make room.
    return Cache(state, Copies(objects, folder, machine, limit), 0, clock)


def _make_access(settings: Settings, clock: Callable[[], float]) -> Access:
    return Access(
        settings.access_key,
        named_keys=settings.access_keys,
        drawings_per_day=settings.drawings_per_day,
        admin_token=settings.admin_token,
        signing_keys=settings.signing_keys,
        clock=clock,
    )


def _make_upstream(network: NetworkSettings) -> Upstream:
    own = {origin(url): proxy for url, proxy in network.backend_proxies.items()}
    return Upstream(
        ca_bundle=network.ca_bundle,
        proxies=Proxies(network.proxies, network.no_proxy, own),
        picture_networks=network.picture_networks,
    )


def _error_handler(*, has_cards: bool) -> Callable[[Exception], Response]:
    def answer(error: Exception) -> Response:
        if request.path.startswith(PREFIX):
            return openai_error(error)
        return problem(error, has_cards=has_cards)

    return answer


def _routes(pictures: Pictures, api: Api, openai: OpenAi) -> Blueprint:
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
    routes.add_url_rule("/robots.txt", view_func=api.robots)
    routes.add_url_rule("/", view_func=api.page)
    routes.add_url_rule("/<any('page.css', 'page.js'):name>", view_func=api.page)
    return routes


def _make_backends(settings: Settings, upstream: Upstream) -> Backends:
    backends = [
        Backend(
            backend,
            upstream,
            timeout=settings.backend_timeout,
            max_image_bytes=settings.max_image_bytes,
        )
        for backend in settings.backends
    ]
    return Backends(backends, blocked_retry_attempts=settings.blocked_retry_attempts)


def _make_pipeline(
    settings: Settings, upstream: Upstream, cache: Cache, backends: Backends, llm: Llm | None
) -> Pipeline:
    fallback = None
    if settings.pollinations:
        fallback = Pollinations(
            settings.pollinations,
            upstream,
            timeout=settings.backend_timeout,
            max_image_bytes=settings.max_image_bytes,
        )
    host = None
    if settings.hosting:
        host = image_host(settings.hosting, upstream, settings.network, settings.upload_timeout)
    return Pipeline(
        cache,
        backends,
        llm=llm,
        fallback=fallback,
        host=host,
        drawings=settings.drawings,
        places=settings.threads - config.THREADS_KEPT_FREE,
        generation_deadline=settings.generation_deadline,
        upload_timeout=settings.upload_timeout,
        blocked_ttl=settings.blocked_ttl,
        fingerprint=settings.fingerprint,
    )
