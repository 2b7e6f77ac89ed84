"""The settings in force in gunicorn's master, and what its processes need beside them.

gunicorn executes gunicorn.conf.py again at each reload (SIGHUP). This module is imported once,
like the rest of the program, so it holds the state that outlives a reload.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import ThreadWorker

import config
from config import Settings, SettingsError
from settings.parsers import url_host
from settings.redaction import RedactingFormatter, printable_lines
from storage.choose import Unusable, check_parts, connections

if TYPE_CHECKING:
    from metrics.multiprocess import CountFiles

log = logging.getLogger("prompt_image_proxy")

# A worker's open files: before the first request, and for each request, which may be drawn, or
# have ten pictures open under /v1/.
_RESERVED_DESCRIPTORS, _DESCRIPTORS_PER_REQUEST = 128, 12
# <sysexits.h>: trying again is useless, and deploy/prompt-image-proxy.service does not.
INVALID_SETTINGS = 78
# By which gunicorn or systemd pass on a socket that listens already.
_HANDED_SOCKETS = {"GUNICORN_FD", "LISTEN_FDS"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


class RefusingWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """A worker that refuses connections as soon as it is told to stop.

    gunicorn's own keeps its socket open until its last request is answered: while a service that
    stops finishes its drawings, new connections would wait, and nginx would not serve its cache.
    """

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                listener.close()


class Master:
    """The settings in force, and what the master remembers from one reload to the next."""

    settings: Settings
    counts: CountFiles | None = None
    create_app: Callable[[Settings], object]

    def __init__(self) -> None:
        self._conf: dict[str, Any] = {}
        self._checked: dict[str, object] = {}

    def read(
        self, conf: dict[str, Any], create_app: Callable[[Settings], object]
    ) -> dict[str, Any]:
        """Read the settings; return gunicorn's: those of `conf`, and those derived from ours.

        A reload ignores its arguments: by then gunicorn.conf.py may belong to a newer version
        than the program in memory. If the settings are faulty, the start ends with a sentence,
        and a reload logs one and leaves the settings as they were.
        """
        if self._conf:
            self._reload()
        else:
            self.create_app = create_app
            self._start()
            self._conf = conf | {"bind": self.settings.address}
        return self._conf | self._derived()

    def _start(self) -> None:
        try:
            settings = config.load()
            # gunicorn would try five times, and then say less.
            check_address(settings.host, settings.port)
            self._use(settings)
        except (SettingsError, Unusable, OSError) as error:
            print(printable_lines(f"Prompt Image Proxy cannot start. {error}"), file=sys.stderr)
            sys.exit(INVALID_SETTINGS if isinstance(error, SettingsError) else 1)

    def _reload(self) -> None:
        try:
            self._use(config.load())
        except (SettingsError, Unusable) as error:
            faults = " ".join(str(error).split())
            log.error("Reload failed; the service keeps its settings. %s", faults)
        except Exception:
            log.exception("Reload failed; the service keeps its settings.")
        if self.settings.address != (bind := self._conf["bind"]):
            sentence = "HOST, PORT: a new address takes a restart; the service still listens on %s"
            log.warning(sentence, bind)

    def _use(self, settings: Settings) -> None:
        """Put settings in force, unless something is wrong with them, which is raised."""
        parts = connections(settings)
        # A key can be revoked while the database is down: only what has changed is checked.
        changed = [part for part, own in parts.items() if own != self._checked.get(part)]
        check_parts(settings, changed)
        if settings.metrics and not self.counts:
            from metrics.multiprocess import CountFiles  # needs requirements-metrics.txt

            self.counts = CountFiles.make()
        # Imports everything that workers need, so that one that respawns depends on nothing on
        # disk. And a worker that could not build the app would end the service.
        self.create_app(settings)
        self.settings, self._checked = settings, parts

    def _derived(self) -> dict[str, Any]:
        settings = self.settings
        hooks = self.counts.hooks(is_counting=settings.metrics) if self.counts else {}
        return hooks | {
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_connections": max_connections(),
            # A stop or a reload lets drawings finish, so that what was paid for is stored: even at
            # the deadline, an upload to a bucket has its time.
            "graceful_timeout": int(settings.generation_deadline + settings.upload_timeout) + 10,
            "loglevel": settings.log_level.lower(),
            # nginx writes an access log anyway.
            "accesslog": "-" if settings.log_level == "DEBUG" else None,
        }

    def log_to(self, gunicorn: Any) -> None:
        """Redact gunicorn's log, and send the program's own lines and warnings there too."""
        secrets = self.settings.secrets()
        formatter = RedactingFormatter(secrets, gunicorn.error_fmt, gunicorn.datefmt)
        for handler in (*gunicorn.error_log.handlers, *gunicorn.access_log.handlers):
            handler.setFormatter(formatter)
        log.handlers = list(gunicorn.error_log.handlers)
        log.setLevel(self.settings.log_level)
        log.propagate = False
        for warning in self.settings.warnings:
            log.warning("%s", warning)
        if max_connections() < (threads := self.settings.threads):
            needed = _RESERVED_DESCRIPTORS + _DESCRIPTORS_PER_REQUEST * threads
            advice = "raise it with LimitNOFILE in the systemd unit or `ulimit -Hn`, or write fewer"
            text = "THREADS: %s may need %s open files, more than the limit; %s"
            log.warning(text, threads, needed, advice)


master = Master()


def check_address(host: str, port: int) -> None:
    """Raise OSError, with what to write, if nothing can listen there, as beside another server."""
    if not _HANDED_SOCKETS.isdisjoint(os.environ):
        return
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            # As gunicorn does: connections of a server that has just ended are no obstacle.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        advice = "write an address of this machine as HOST, and a PORT above 1023"
        if error.errno == errno.EADDRINUSE:
            advice = "stop what listens there, or write another PORT"
        reason = f"{error.strerror}: {url_host(host)}:{port}"
        raise OSError(f"HOST, PORT: {reason}; {advice}") from error


def make_app() -> object:
    """Build the application in a worker."""
    return master.create_app(master.settings)


def max_connections() -> int:
    """Return how many connections a worker may accept so that it never runs out of descriptors.

    accept() would raise EMFILE then, which ends the worker. Raises the soft limit to the hard
    one, up to 65536.
    """
    kind = resource.RLIMIT_NOFILE
    limit, hard = resource.getrlimit(kind)
    most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses more than it really allows
        resource.setrlimit(kind, (most, hard))
        limit = most
    return max(1, (limit - _RESERVED_DESCRIPTORS) // _DESCRIPTORS_PER_REQUEST)


def return_large_blocks() -> None:
    """Have glibc return the memory of a large picture to the system as soon as it is freed.

    Otherwise it keeps blocks of up to 32 MB for each thread (mallopt(3)): 450 MB after thirty
    pictures of 30 MB, where 60 are needed. Other C libraries have no such function.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
        # Freed memory up to this is kept: mapping it anew costs a cold request of 1 MiB a sixth.
        mallopt(_M_TRIM_THRESHOLD, 8 * 2**20)
