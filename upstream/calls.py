"""Outbound calls in their own threads, so that a caller can leave at its deadline; their errors."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPException, RemoteDisconnected
from typing import TypeVar

from urllib3.connection import HTTPConnection
from urllib3.exceptions import DecodeError, HTTPError, ProtocolError, ProxyError, SSLError

from metrics import Metrics


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, in seconds. Nothing that is given one outlives it."""

    at: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return cls(clock() + seconds, clock)

    def within(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)

    def remaining(self) -> float:
        return max(0.0, self.at - self.clock())

    @property
    def is_over(self) -> bool:
        return self.clock() >= self.at


class Why(StrEnum):
    """The reason for a failed call, as /status, errors and the log show it."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    UNTRUSTED = "bad certificate"
    UNREADABLE = "unreadable answer"
    INTERIM = "interim answer"
    TOO_LARGE = "answer too large"
    FORBIDDEN = "forbidden URL"
    NOT_A_PICTURE = "not a picture"
    SVG = "not a picture: SVG"
    AVIF = "not a picture: AVIF"


class UpstreamError(Exception):
    """A call gave no usable answer. The text is ours: never the other side's, never a URL."""

    def __init__(self, reason: str, why: Why) -> None:
        super().__init__(reason)
        self.why = why


T = TypeVar("T")

# Threads that may resolve names or connect at once: nothing but their own time-outs ends them.
MOST_CONNECTING = 32
# A kept connection that fails this soon after sending had already been closed.
STALE_SECONDS = 1.0


@dataclass(eq=False)
class Call:
    """One outbound call, shared by its caller, its thread and its connection."""

    calls: Calls
    deadline: Deadline
    was_left: bool = False
    connection: HTTPConnection | None = None
    # Kept here because http.client drops it if the connection closes after the answer.
    sock: socket.socket | None = None
    stale_until: float = 0.0

    @property
    def seconds(self) -> float:
        """The time left, as a time-out of a socket: never 0, which would mean not to block."""
        return max(0.001, self.deadline.remaining())

    def leave(self) -> None:
        """Note that the caller has left, and end the thread by shutting its socket down."""
        self.was_left = True
        for sock in (self.connection and self.connection.sock, self.sock):
            if sock:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise TimeoutError if the caller has left: nothing is sent for it."""
        if self.was_left:
            raise TimeoutError("the caller has left")

    def was_stale(self, error: BaseException) -> bool:
        """Return whether a request failed because the server had already closed its connection.

        http.client tells a close before the first byte of an answer from a later one, but not a
        reset: within the second, a reset counts as early even if it follows a byte.
        """
        is_end = any(isinstance(link, ConnectionError) for link in causes(error))
        return is_end and time.monotonic() < self.stale_until and not self.was_left


current_call: ContextVar[Call] = ContextVar("current_call")


class Calls:
    """Runs calls, none of which outlives its deadline for its caller."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._connecting: set[Call] = set()
        self._changed = threading.Condition()

    def run(self, work: Callable[[], T], deadline: Deadline) -> T:
        """Return what `work` returns. Raises what it raises, and TimeoutError at the deadline."""
        call, answer = Call(self, deadline), Future[T]()
        try:
            threading.Thread(
                target=_work, name="upstream call", args=(call, work, answer), daemon=True
            ).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no more threads can be started") from error
        try:
            return answer.result(deadline.remaining())
        finally:
            if not answer.done():
                call.leave()
            # Breaks a cycle: exception, frames (with the body that was read), answer.
            del answer

    @contextlib.contextmanager
    def connecting(self, call: Call) -> Iterator[None]:
        """Resolve a name or connect in this block; wait for a place until the deadline.

        Raises UpstreamError at once if all places are held by calls that were left behind, and
        TimeoutError if the caller has left.
        """
        with self._changed:
            while len(self._connecting) >= MOST_CONNECTING:
                if all(other.was_left for other in self._connecting):
                    raise UpstreamError("too many earlier calls still hang", Why.UNREACHABLE)
                self._changed.wait(call.seconds)
                call.check()
            self._connecting.add(call)
        try:
            yield
        finally:
            with self._changed:
                self._connecting.remove(call)
                self._changed.notify_all()  # one alone may be leaving
        call.check()


def _work(call: Call, work: Callable[[], T], answer: Future[T]) -> None:
    current_call.set(call)
    try:
        answer.set_result(work())
    except BaseException as error:  # raised again in the caller's thread
        answer.set_exception(error)
        del answer


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the libraries' exceptions into UpstreamError, without their texts, which hold URLs."""
    try:
        yield
    except (HTTPError, HTTPException, OSError, ValueError) as error:  # requests' are OSErrors
        raise _upstream_error(error) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised for."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


_Kinds = tuple[type[BaseException], ...]

try:
    import socks  # type: ignore[import-untyped]  # without types
except ImportError:  # an extra
    _SOCKS_UNREACHED: _Kinds = ()
    _SOCKS_FAILED: _Kinds = ()
else:
    _SOCKS_UNREACHED = (socks.ProxyConnectionError,)
    _SOCKS_FAILED = (socks.ProxyError,)

_CUT = "its answer was cut short or is not HTTP"
# The first match counts, so specific kinds precede general ones.
_REASONS: tuple[tuple[_Kinds, str, Why], ...] = (
    ((TimeoutError,), "it did not answer in time", Why.TIMED_OUT),
    ((*_SOCKS_UNREACHED, ProxyError), "its proxy could not be reached", Why.UNREACHABLE),
    (_SOCKS_FAILED, "its proxy did not connect to it", Why.UNREACHABLE),
    ((socket.gaierror,), "its name could not be resolved", Why.UNREACHABLE),
    ((ConnectionRefusedError,), "it refused the connection", Why.UNREACHABLE),
    # This is a ConnectionResetError too, but the connection was closed in an orderly way.
    ((RemoteDisconnected,), _CUT, Why.UNREADABLE),
    ((ConnectionError,), "it reset the connection", Why.UNREACHABLE),
    ((ssl.SSLError, SSLError), "its certificate or TLS failed", Why.UNTRUSTED),
    ((HTTPException, ProtocolError, DecodeError), _CUT, Why.UNREADABLE),
)


def _upstream_error(error: BaseException) -> UpstreamError:
    chain = list(causes(error))
    for link in chain:
        # http.client says so in words only.
        if found := re.match("Tunnel connection failed: ([0-9]{3})", str(link)):
            return UpstreamError(f"its proxy answered CONNECT with {found[1]}", Why.UNREACHABLE)
    for kinds, reason, why in _REASONS:
        if any(isinstance(link, kinds) for link in chain):
            return UpstreamError(reason, why)
    return UpstreamError("it could not be reached", Why.UNREACHABLE)
