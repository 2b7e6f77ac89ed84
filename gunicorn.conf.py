"""gunicorn's settings and hooks; `gunicorn`, started in this folder, reads them.

gunicorn executes this file at the start and at each reload (SIGHUP), in its master process. The
program is imported once, at the start: a reload reads the settings anew and forks new workers,
and new code takes a restart.

gunicorn takes every name here that it knows as a setting: hence the underscores.
"""

import contextlib
import threading
from typing import Any

import gunicorn.http.message

from app import create_app as _create_app
from web import serving as _serving

wsgi_app = "web.serving:make_app()"
worker_class = _serving.RefusingWorker
backlog = 2048
keepalive = 75
# Under gthread it bounds no request; drawings have a deadline of their own.
timeout = 0
# 4,000 characters of four bytes each are 48 KB of request line. gunicorn caps the setting at this
# private constant, and with 0 (no limit) an endless line could occupy a core.
gunicorn.http.message.MAX_REQUEST_LINE = limit_request_line = 65536
# On by default, under HOME, and a second instance would take it over.
control_socket_disable = True
# The path alone: a query holds the key.
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s %(b)s %(M)sms'
proc_name = "prompt-image-proxy"


def on_starting(server: Any) -> None:
    """Set up the log, in the master."""
    _serving.master.log_to(server.log)


# gunicorn sets up its log anew at each reload.
on_reload = on_starting

_at_exit = contextlib.ExitStack()


def post_worker_init(worker: Any) -> None:
    """Start the cache's upkeep, which needs a process that will not fork."""
    _serving.return_large_blocks()
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


# Last, since at a reload the names of the start replace those above.
globals().update(_serving.master.read(dict(globals()), _create_app))
