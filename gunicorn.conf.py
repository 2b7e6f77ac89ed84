"""gunicorn's settings; `gunicorn`, started in this folder, reads them.

The master imports the program and reads its settings, at the start and anew at each reload
(SIGHUP); workers are forked from it and build the app from exactly these. If a reload fails,
whether by an invalid setting, a syntax error or a missing requirement, the master keeps the code
and the settings it has, for workers that respawn later too. An upgraded requirement takes effect
at a restart only.

gunicorn takes every name here that it knows as a setting: hence the underscores.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gunicorn.http.message

# Set at the end of this file, with the settings that depend on them.
_app: Any = None
_config: Any = None
_settings: Any = None

_log = logging.getLogger("prompt_image_proxy")
_MAX_CONNECTIONS = 1000
# gunicorn executes this file as a new module each time: the last one that loaded the program
# successfully is kept in sys.modules under this name.
_LAST_GOOD = "prompt_image_proxy_last_good"

wsgi_app = f"{__name__}:_create_app()"
worker_class = "gthread"
worker_connections = _MAX_CONNECTIONS  # lowered in _load where a worker may open few files
backlog = 2048
keepalive = 75
# Under gthread it bounds no request; drawings have a deadline of their own.
timeout = 0
# 4,000 characters of four bytes each are 48 KB of request line. gunicorn lowers what is above
# this private constant to it, and with 0 (unlimited) an endless line keeps a core busy.
gunicorn.http.message.MAX_REQUEST_LINE = limit_request_line = 65536
# On by default, under HOME, and a second instance would take it over.
control_socket_disable = True
# The path alone: a query holds the key.
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s %(b)s %(M)sms'
proc_name = "prompt-image-proxy"


# --- in a worker


def _create_app() -> Any:
    return _app.create_app(_settings)


_at_exit = contextlib.ExitStack()


def post_worker_init(worker: Any) -> None:
    """Start the cache's upkeep, which needs a process that will not fork."""
    services = worker.wsgi.extensions.get("prompt_image_proxy")
    if services is None:  # another application, as benchmarks/hello.py
        return
    stop = threading.Event()
    upkeep = threading.Thread(target=services.cache.maintain, args=(stop,), daemon=True)
    upkeep.start()
    _at_exit.callback(services.close)
    _at_exit.callback(upkeep.join)
    _at_exit.callback(stop.set)


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the upkeep and close the cache; a worker that failed earlier has neither."""
    _at_exit.close()


# --- in the master


def on_starting(server: Any) -> None:
    """Redact gunicorn's log, send the program's own lines there too, and log what looks wrong."""
    log = server.log
    formatter = _config.RedactingFormatter(_settings, log.error_fmt, log.datefmt)
    for handler in (*log.error_log.handlers, *log.access_log.handlers):
        handler.setFormatter(formatter)
    _log.handlers = list(log.error_log.handlers)
    _log.setLevel(_settings.log_level)
    _log.propagate = False
    for warning in _settings.warnings:
        _log.warning("%s", warning)
    if worker_connections < _MAX_CONNECTIONS:
        _log.warning(
            "A worker may open too few files for more than %d connections: set LimitNOFILE "
            "(systemd), --ulimit nofile (Docker) or ulimit -n to %d",
            worker_connections,
            _files_for(_MAX_CONNECTIONS, _settings),
        )


# gunicorn sets up its log anew at each reload, without the formatter.
on_reload = on_starting


class _CannotServe(Exception):
    """The program cannot serve with these settings; the text is written for users."""


def _check_cache(app: Any, settings: Any) -> None:
    """Raise _CannotServe if the cache cannot be used at the start, or was written by a newer
    version; a service that runs degrades and recovers, and a reload may revoke a key."""
    storage = importlib.import_module("storage")
    cache, is_first = app.make_cache(settings), _LAST_GOOD not in sys.modules
    try:
        cache.state.check()
    except storage.Unavailable as error:
        if is_first or isinstance(error, storage.IncompatibleSchema):
            sentence = f"The cache in {settings.cache_dir} cannot be used: {error}."
            raise _CannotServe(sentence) from None
    finally:
        # Nothing may stay open here: the workers are forked from this process.
        cache.state.close()


def _files_for(connections: int, settings: Any) -> int:
    """Return how many files a worker may have open with so many connections.

    Each has a socket and the picture that is sent; a drawing has a connection and its file, and
    both read the index.
    """
    files: int = 64 + 3 * settings.drawings + 2 * connections
    return files


def _connections(settings: Any) -> int:
    """Return how many connections a worker may have, having raised the soft limit of open files.

    Where `accept` finds no descriptor it raises, and gunicorn ends the worker.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    wanted = _files_for(_MAX_CONNECTIONS, settings)
    limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(hard, wanted))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return min(_MAX_CONNECTIONS, max(16, (limit - _files_for(0, settings)) // 2))


def _load() -> dict[str, Any]:
    """Import the program, read its settings, and return the names in this file that follow."""
    app, config = importlib.import_module("app"), importlib.import_module("config")
    try:
        settings = config.load()
    except config.SettingsError as error:
        raise _CannotServe(str(error)) from None
    _check_cache(app, settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {
        "_app": app,
        "_config": config,
        "_settings": settings,
        "bind": f"{host}:{settings.port}",
        "workers": settings.workers,
        "threads": settings.threads,
        "worker_connections": _connections(settings),
        # A stop or a reload lets drawings finish, so that what was paid for is stored.
        "graceful_timeout": int(settings.generation_deadline) + 15,
        "loglevel": settings.log_level.lower(),
        # nginx writes an access log anyway.
        "accesslog": "-" if settings.log_level == "DEBUG" else None,
    }


def _remove_our_modules() -> dict[str, ModuleType]:
    """Remove the program's modules from sys.modules and return them."""
    root, this = Path(__file__).resolve().parent, Path(__file__).resolve()
    ours = {}
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "/").resolve()
        # A virtual environment may lie in our folder, under any name.
        if path.is_relative_to(root) and path != this and "site-packages" not in path.parts:
            ours[name] = sys.modules.pop(name)
    return ours


@contextlib.contextmanager
def _fresh_modules() -> Iterator[None]:
    """Import our modules anew inside the block; if it fails, put the old ones back."""
    old = _remove_our_modules()
    importlib.invalidate_caches()
    try:
        yield
    except BaseException:
        _remove_our_modules()
        sys.modules.update(old)
        raise


def _load_or_keep() -> dict[str, Any]:
    """Return what `_load` returns or, if a reload fails, all names of the last good one.

    All of them, since this file may belong to the version that failed.
    """
    last_good = sys.modules.get(_LAST_GOOD)
    try:
        with _fresh_modules():
            loaded = _load()
    except _CannotServe as error:
        if last_good is None:
            sys.exit(f"Prompt Image Proxy cannot start. {error}")
        _log.error("Reload failed; the service keeps its code and settings. %s", error)
    except Exception:
        if last_good is None:
            raise
        _log.exception("Reload failed; the service keeps its code and settings.")
    else:
        sys.modules[_LAST_GOOD] = sys.modules[__name__]
        gc.collect()  # modules that were replaced refer to each other, and are a megabyte
        return loaded
    return vars(last_good)


globals().update(_load_or_keep())
