"""How gunicorn serves the app. `gunicorn` alone, in this folder, starts it.

Each line that is not obvious was measured; benchmarks/README.md says how.
"""

import logging
import sys
import time
from typing import Any

import gunicorn.http.message
import gunicorn.util
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

# Underscores: every name here that gunicorn knows is a setting, and `config` is one.
import config as _config

try:
    _settings = _config.in_service = _config.load()
except _config.SettingsError as faults:
    if _config.in_service is None:
        sys.exit(str(faults))
    # A reload with a typo in .env must not end a service that runs.
    _settings = _config.in_service
    print(f"{faults}\nThe service goes on with the settings it has.", file=sys.stderr, flush=True)

wsgi_app = "app:create_app()"
bind = f"{_settings.host if ':' not in _settings.host else f'[{_settings.host}]'}:{_settings.port}"
workers = _settings.workers
threads = _settings.threads
backlog = 2048
keepalive = 75

# A drawing takes as long as its deadline allows; a stop or reload waits for it to be kept.
timeout = 0
graceful_timeout = int(_settings.generation_deadline) + 15

# A 2,000-character Chinese prompt is 18 KB of request line. gunicorn clamps what is above this
# private constant to it, and 0 (unlimited) lets an endless line burn a core.
gunicorn.http.message.MAX_REQUEST_LINE = limit_request_line = 32768
limit_request_fields = 100

# gunicorn's page for what is no HTTP repeats the request line, and with it the key.
# (This file is read again at each reload: the first one's original is the original.)
_write_error = getattr(gunicorn.util.write_error, "original", gunicorn.util.write_error)


def _write_short_error(sock: Any, status: int, reason: str, message: str) -> None:
    _write_error(sock, status, reason, "")


_write_short_error.original = _write_error  # type: ignore[attr-defined]
gunicorn.util.write_error = _write_short_error

# On by default, under HOME, and a second instance would take it over.
control_socket_disable = True

loglevel = _settings.log_level.lower()
# The path alone: a query holds the key. nginx writes an access log anyway.
accesslog = "-" if _settings.log_level == "DEBUG" else None
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s %(b)s %(M)sms'
proc_name = "prompt-image-proxy"


class worker_class(ThreadWorker):  # type: ignore[misc] # gunicorn carries no types
    """gthread, which leaves connections to the other workers while it is the fuller one.

    All workers accept from one socket, and a busy one is as quick at that as an idle one: of 200
    requests that wait for the same picture, one worker would take more than it has places for.
    """

    def accept(self, listener: Any) -> None:
        if self.nr_conns - len(self.keepalived_conns) > threads // 2:
            time.sleep(0.002)
        super().accept(listener)


class logger_class(Logger):  # type: ignore[misc] # gunicorn carries no types
    """gunicorn's logger, which never prints a secret and carries the app's own lines too."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        formatter = _config.RedactingFormatter(_settings, self.error_fmt, self.datefmt)
        for handler in (*self.error_log.handlers, *self.access_log.handlers):
            handler.setFormatter(formatter)
        app_log = logging.getLogger("prompt_image_proxy")
        app_log.handlers = list(self.error_log.handlers)
        app_log.setLevel(_settings.log_level)
        app_log.propagate = False
