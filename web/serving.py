"""What gunicorn's master does: it reads the settings at the start and at each reload (SIGHUP).

gunicorn executes gunicorn.conf.py again at each reload. This module is imported once, like the
rest of the program: what outlives a reload is here.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import resource
import sys
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import ThreadWorker

import config
from config import Settings, SettingsError
from storage.checks import connections, find_faults

if TYPE_CHECKING:
    from metrics.multiprocess import CountFiles

log = logging.getLogger("prompt_image_proxy")

# What a worker has open before the first request, and connections kept to backends.
_RESERVED_DESCRIPTORS = 128
# Its connection, a picture's file and two files of the index; four more for its drawing.
_DESCRIPTORS_PER_REQUEST = 8
# Idle ones cost memory, some 5 KB each.
_MAX_CONNECTIONS = 10_000
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


class CannotServe(Exception):
    """The service cannot run with these settings; the text is written for users."""


class Master:
    """The settings in force, and what the master keeps from one reload to the next."""

    settings: Settings
    address: str
    counts: CountFiles | None = None
    _conf: dict[str, Any] | None = None
    _derived: Callable[[], dict[str, Any]]
    _create_app: Callable[[Settings], object]

    def names(
        self,
        conf: dict[str, Any],
        derived: Callable[[], dict[str, Any]],
        create_app: Callable[[Settings], object],
    ) -> dict[str, Any]:
        """Read the settings; return the names of gunicorn.conf.py and those of `derived()`.

        A reload returns the names of the start and ignores its arguments: by then the file may
        belong to a newer version than the program in memory. If the settings are faulty, the
        start ends with a sentence, and a reload logs one and keeps the settings that it has.
        """
        if self._conf is None:
            self._conf, self._derived, self._create_app = dict(conf), derived, create_app
            self._start()
        else:
            self._reload()
        return self._conf | self._derived()

    def _start(self) -> None:
        try:
            settings = config.load()
            self._use(settings, connections(settings))
        except (SettingsError, CannotServe) as error:
            sys.exit(f"Prompt Image Proxy cannot start. {error}")
        self.address = _address(settings)

    def _reload(self) -> None:
        try:
            settings = config.load()
            # A key can be revoked while the database is down: only what has changed is checked.
            old = connections(self.settings)
            changed = [part for part, own in connections(settings).items() if own != old[part]]
            self._use(settings, changed)
        except (SettingsError, CannotServe) as error:
            log.error("Reload failed; the service keeps its settings. %s", error)
        except Exception:
            log.exception("Reload failed; the service keeps its settings.")
        if _address(self.settings) != self.address:
            sentence = "HOST, PORT: a new address takes a restart; the service still listens on %s"
            log.warning(sentence, self.address)

    def _use(self, settings: Settings, parts: Collection[str]) -> None:
        """Begin to use these settings, once these parts of the storage have been checked.

        Raises CannotServe, or whatever else is wrong, and keeps the settings then.
        """
        if faults := find_faults(settings, parts):
            raise CannotServe("\n  ".join(["The cache cannot be used:", *faults]))
        if settings.metrics and not self.counts:
            self.counts = _make_counts()
        # Imports everything that workers need, so that one that respawns depends on nothing on
        # disk. And a worker that could not build the app would end the service.
        self._create_app(settings)
        self.settings = settings

    def log_to(self, gunicorn: Any) -> None:
        """Redact gunicorn's log, and send the program's own lines and warnings there too."""
        formatter = config.RedactingFormatter(self.settings, gunicorn.error_fmt, gunicorn.datefmt)
        for handler in (*gunicorn.error_log.handlers, *gunicorn.access_log.handlers):
            handler.setFormatter(formatter)
        log.handlers = list(gunicorn.error_log.handlers)
        log.setLevel(self.settings.log_level)
        log.propagate = False
        for warning in (*self.settings.warnings, *_descriptor_warnings(self.settings.threads)):
            log.warning("%s", warning)


master = Master()


def _address(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


def _make_counts() -> CountFiles:
    from metrics.multiprocess import CountFiles  # needs requirements-metrics.txt

    try:
        return CountFiles.make()
    except OSError as error:
        why = f"METRICS: no temporary folder can be made ({error.strerror})"
        raise CannotServe(f"{why}; free some space, or set TMPDIR") from None


def max_connections(threads: int) -> int:
    """Return how many connections a worker may accept so that it never runs out of descriptors.

    accept() would raise EMFILE then, which ends the worker. Beyond THREADS they only wait.
    """
    spare = max(0, _descriptor_limit() - _RESERVED_DESCRIPTORS)
    per_request = _DESCRIPTORS_PER_REQUEST
    most = max(spare // per_request, spare - (per_request - 1) * threads)
    return max(1, min(most, _MAX_CONNECTIONS))


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


def _descriptor_warnings(threads: int) -> Iterator[str]:
    if max_connections(threads) < threads:
        needed = _RESERVED_DESCRIPTORS + _DESCRIPTORS_PER_REQUEST * threads
        yield (
            f"THREADS: {threads} may need {needed} open files, and the limit is"
            f" {_descriptor_limit()}; raise it with LimitNOFILE={needed} in the systemd unit or"
            f" `ulimit -Hn {needed}`, or write fewer"
        )


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
