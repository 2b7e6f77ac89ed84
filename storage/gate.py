"""Servers and faults that last: asked seldom, logged once."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from storage import Unavailable

PERIOD_SECONDS = 60.0


@dataclass
class LastingFault:
    """What is wrong with something at the moment: logged when it begins, and when it has ended.

    One that comes and goes is logged once a minute. `begun` has one `%s` for the reason.
    """

    log: logging.Logger
    begun: str
    ended: str
    monotonic: Callable[[], float] = time.monotonic
    reason: str | None = field(default=None, init=False)
    _logged_at: float = field(default=-PERIOD_SECONDS, init=False)
    _is_logged: bool = field(default=False, init=False)

    def begin(self, reason: str) -> None:
        now = self.monotonic()
        if self.reason is None and now - self._logged_at >= PERIOD_SECONDS:
            self._logged_at, self._is_logged = now, True
            self.log.error(self.begun, reason)
        self.reason = reason

    def end(self) -> None:
        self.reason = None
        if self._is_logged:
            self._is_logged = False
            self.log.warning(self.ended)


PAUSE_SECONDS = 0.5


class Down(Unavailable):
    """The server cannot be used at the moment. The text says why."""


class Gate:
    """Lets callers ask a server. While it is down, one at a time does, as a probe, after a pause.

    The log says when the server goes down and when it can be used again.
    """

    def __init__(
        self,
        log: logging.Logger,
        server: str,
        purpose: str = "used",
        pause: float = PAUSE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`server` and `purpose` are words for the log: "The bucket", "read"."""
        begun, ended = f"{server} cannot be {purpose}: %s", f"{server} can be {purpose} again"
        self._trouble = LastingFault(log, begun, ended, monotonic)
        self._pause = pause
        self._monotonic = monotonic
        self._mutex = threading.Lock()
        self._answered_at = 0.0
        self._probe_at = 0.0

    @property
    def fault(self) -> str | None:
        """Why the server cannot be used at the moment, None while it can. Asks nobody."""
        return self._trouble.reason

    @contextmanager
    def ask(self) -> Iterator[bool]:
        """Ask the server in the block, which raises Down if the server fails.

        Yields whether this is a probe. While the server is down, raises Down at once otherwise.
        """
        with self._mutex:
            began, is_probe = self._monotonic(), self.fault is not None
            if is_probe and began < self._probe_at:
                raise Down(str(self.fault))
            self._probe_at = math.inf
        fault = None
        try:
            yield is_probe
        except Down as error:
            fault = str(error)
            raise
        finally:
            self.note(fault, began)  # any other error is an answer

    def note(self, fault: str | None, began: float | None = None) -> None:
        """Note that the server has answered, or has failed with `fault` a call that `began` then.

        A failure counts only if the server has not answered since.
        """
        with self._mutex:
            now = self._monotonic()
            if fault is None:
                self._answered_at = now
                self._trouble.end()
                return
            took = now - began if began is not None else 0.0
            if now - took < self._answered_at:
                return
            # A short accident costs other callers nothing. But a request should not wait for a
            # server that hangs in one call after the other.
            self._probe_at = now + (self._pause if self.fault else min(took, self._pause))
            self._trouble.begin(fault)
