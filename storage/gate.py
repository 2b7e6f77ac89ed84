"""Servers and faults that last: asked seldom, logged once."""

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

    One that comes and goes is logged once a minute. `subject` and `purpose` are words for the
    log: "The index", "used".
    """

    log: logging.Logger
    subject: str
    purpose: str
    monotonic: Callable[[], float] = time.monotonic
    reason: str | None = field(default=None, init=False)
    _logged_at: float = field(default=-PERIOD_SECONDS, init=False)
    _is_logged: bool = field(default=False, init=False)

    def begin(self, reason: str) -> None:
        now = self.monotonic()
        if self.reason is None and now - self._logged_at >= PERIOD_SECONDS:
            self._logged_at, self._is_logged = now, True
            self.log.error("%s cannot be %s: %s", self.subject, self.purpose, reason)
        self.reason = reason

    def end(self) -> None:
        self.reason = None
        if self._is_logged:
            self._is_logged = False
            self.log.warning("%s can be %s again", self.subject, self.purpose)


PAUSE_SECONDS = 0.5


class Down(Unavailable):
    """The server cannot be used at the moment. The text says why."""


@dataclass
class Gate(LastingFault):
    """Lets callers ask a server. While it is down, one at a time does, as a probe, after a pause.

    `reason` is why it cannot be used at the moment, None while it can.
    """

    _mutex: threading.Lock = field(default_factory=threading.Lock, init=False)
    _answered_at: float = field(default=0.0, init=False)
    _probe_at: float = field(default=0.0, init=False)

    @contextmanager
    def ask(self) -> Iterator[bool]:
        """Ask the server in the block, which raises Down if the server fails.

        Yields whether this is a probe. While the server is down, raises Down at once otherwise.
        """
        with self._mutex:
            began, is_probe = self.monotonic(), self.reason is not None
            if is_probe and began < self._probe_at:
                raise Down(str(self.reason))
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
            now = self.monotonic()
            if fault is None:
                self._answered_at = now
                self.end()
                return
            began = now if began is None else began
            if began < self._answered_at:
                return
            # A short accident costs other callers nothing. But a request should not wait for a
            # server that hangs in one call after the other.
            pause = PAUSE_SECONDS if self.reason else min(now - began, PAUSE_SECONDS)
            self._probe_at = now + pause
            self.begin(fault)
