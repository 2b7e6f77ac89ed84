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
import ctypes
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

# What a worker has open before the first request, and connections kept to backends.
_RESERVED_DESCRIPTORS = 128
# Its connection, a picture's file and two files of the index; four more for its drawing.
_DESCRIPTORS_PER_REQUEST = 8
# Idle ones cost memory, some 5 KB each.
_MAX_CONNECTIONS = 10_000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>

_log = logging.getLogger("prompt_image_proxy")
# gunicorn executes this file as a new module each time: the last one that loaded the program
# successfully is kept in sys.modules under this name.
_LAST_GOOD = "prompt_image_proxy_last_good"

wsgi_app = f"{__name__}:_create_app()"
worker_class = "gthread"
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


def _return_large_blocks() -> None:
    """Have glibc return the memory of a large picture to the system as soon as it is freed.

    Otherwise it keeps blocks of up to 32 MB for each thread (mallopt(3)): 450 MB after thirty
    pictures of 30 MB, where 60 are needed. Other C libraries have no such function.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
        # Freed memory up to this is kept: mapping it anew costs a cold request of 1 MiB a sixth.
        mallopt(_M_TRIM_THRESHOLD, 8 * 2**20)


def post_worker_init(worker: Any) -> None:
    """Start the cache's upkeep, which needs a process that will not fork."""
    _return_large_blocks()
    services = worker.wsgi.extensions.get("prompt_image_proxy")
    if services is None:  # another application, as benchmarks/hello.py
        return
    stop = threading.Event()
    upkeep = threading.Thread(target=services.maintain, args=(stop,), daemon=True)
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
    for warning in (*_settings.warnings, *_descriptor_warnings()):
        _log.warning("%s", warning)


# gunicorn sets up its log anew at each reload, without the formatter.
on_reload = on_starting


class _CannotServe(Exception):
    """The program cannot serve with these settings; the text is written for users."""


def _check_cache(settings: Any) -> None:
    """Raise _CannotServe if the cache cannot be used at the start, or was written by a newer
    version; a service that runs degrades and recovers, and a reload may revoke a key."""
    problem = importlib.import_module("storage.checks").check_in_child(settings)
    if problem and (problem.is_final or _LAST_GOOD not in sys.modules):
        raise _CannotServe(problem.sentence)


def _descriptor_limit() -> int:
    """Raise the limit of open files as far as it goes, up to 65536, and return it."""
    kind, endless = resource.RLIMIT_NOFILE, resource.RLIM_INFINITY
    for wanted in (65536, 10240):  # macOS refuses more than it really allows a process
        soft, hard = resource.getrlimit(kind)
        limit = wanted if hard == endless else min(wanted, hard)
        if soft == endless or soft >= limit:
            return limit
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, hard))
            return limit
    return soft


def _connections(threads: int, limit: int) -> int:
    """Return how many connections a worker may accept so that it never runs out of descriptors.

    accept() would raise EMFILE then, which ends the worker. Beyond THREADS they only wait.
    """
    spare = max(0, limit - _RESERVED_DESCRIPTORS)
    per_request = _DESCRIPTORS_PER_REQUEST
    most = max(spare // per_request, spare - (per_request - 1) * threads)
    return max(1, min(most, _MAX_CONNECTIONS))


def _descriptor_warnings() -> Iterator[str]:
    limit, threads = _descriptor_limit(), _settings.threads
    if _connections(threads, limit) < threads:
        needed = _RESERVED_DESCRIPTORS + _DESCRIPTORS_PER_REQUEST * threads
        yield (
            f"THREADS: {threads} may need {needed} open files, and the limit is {limit}; raise it"
            f" with LimitNOFILE={needed} in the systemd unit or `ulimit -Hn {needed}`, or write"
            " fewer"
        )


def _metrics_hooks(settings: Any) -> dict[str, Any]:
    """Return hooks for the files that workers count in; reloads keep these files."""
    files = importlib.import_module("metrics.multiprocess")
    before = getattr(sys.modules.get(_LAST_GOOD), "_metrics", None)
    if not (before or settings.metrics):
        return {}
    try:
        kept = files.Files(before.folder) if before else files.Files.make()
    except OSError as error:
        why = f"METRICS: no temporary folder can be made ({error.strerror})"
        raise _CannotServe(f"{why}; free some space, or set TMPDIR") from None
    return {"_metrics": kept, **kept.hooks(is_counting=settings.metrics)}


def _load() -> dict[str, Any]:
    """Import the program, read its settings, and return the names in this file that follow."""
    app, config = importlib.import_module("app"), importlib.import_module("config")
    try:
        settings = config.load()
    except config.SettingsError as error:
        raise _CannotServe(str(error)) from None
    _check_cache(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {
        "_app": app,
        "_config": config,
        "_settings": settings,
        "bind": f"{host}:{settings.port}",
        "workers": settings.workers,
        "threads": settings.threads,
        "worker_connections": _connections(settings.threads, _descriptor_limit()),
        # A stop or a reload lets drawings finish, so that what was paid for is stored.
        "graceful_timeout": int(settings.generation_deadline) + 15,
        "loglevel": settings.log_level.lower(),
        # nginx writes an access log anyway.
        "accesslog": "-" if settings.log_level == "DEBUG" else None,
        **_metrics_hooks(settings),
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
