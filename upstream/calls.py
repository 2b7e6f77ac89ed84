"""Outbound calls in threads of their own, which their callers leave behind at the deadline."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TypeVar

from urllib3.connection import HTTPConnection

from metrics import Metrics
from upstream.deadline import Deadline
from upstream.failure import UpstreamError, Why, causes

T = TypeVar("T")

# Nothing but its own time-outs ends a thread that resolves a name or connects.
MOST_CONNECTING = 32
# An address that does not answer leaves time for the next one.
CONNECT_SECONDS = 10.0
# A kept connection that fails within this time of sending had been closed before.
STALE_SECONDS = 1.0


class Call:
    """One outbound call, as its caller, its thread and its connection share it."""

    def __init__(self, calls: Calls, deadline: Deadline) -> None:
        self.calls = calls
        self.deadline = deadline
        self.was_left = False
        # The socket of a request that has gone out: http.client itself forgets it if the answer
        # ends with the connection.
        self.socket: socket.socket | None = None
        self._connection: HTTPConnection | None = None
        self._stale_until = 0.0

    @property
    def seconds(self) -> float:
        """What is left of its time, as a time-out of sockets, for which 0 means something else."""
        return max(0.001, self.deadline.remaining())

    def leave(self) -> None:
        """End the thread: whatever it waits for, the shut socket ends it."""
        self.was_left = True
        connected = self._connection and self._connection.sock
        for sock in (connected, self.socket):
            if sock:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def connecting(self, connection: HTTPConnection | None = None) -> Iterator[None]:
        """Resolve a name or connect in this block. Raises TimeoutError if nobody waits for it."""
        self._check()
        self._connection = connection
        with self.calls.place(self):
            yield
        self._check()

    def sends(self, connection: HTTPConnection, *, is_kept: bool) -> None:
        """Note that the request goes out now. Raises TimeoutError if nobody waits for it."""
        self._connection = connection
        self._stale_until = time.monotonic() + STALE_SECONDS if is_kept else 0.0
        self._check()

    def was_stale(self, error: BaseException) -> bool:
        """Return whether a request failed because the other side had closed a kept connection.

        http.client tells an end before the first byte of an answer from one after it, but not a
        reset: one that comes within the second, after a byte, is taken for an earlier one.
        """
        is_end = any(isinstance(link, ConnectionError) for link in causes(error))
        return is_end and time.monotonic() < self._stale_until and not self.was_left

    def _check(self) -> None:
        if self.was_left:
            raise TimeoutError("nobody waits for this call any more")


current_call: ContextVar[Call] = ContextVar("current_call")


class Calls:
    """Runs calls, so that none outlives its deadline for its caller."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._connecting: set[Call] = set()
        self._changed = threading.Condition()

    def run(self, work: Callable[[], T], deadline: Deadline) -> T:
        """Return what `work` returns. Raises what it raises, and TimeoutError at the deadline."""
        call, answer = Call(self, deadline), Future[T]()
        threading.Thread(
            target=_work, name="upstream call", args=(call, work, answer), daemon=True
        ).start()
        try:
            return answer.result(deadline.remaining())
        finally:
            if not answer.done():
                call.leave()
            # Or an exception keeps its frames, with the bodies that they hold, through the answer.
            del answer

    @contextlib.contextmanager
    def place(self, call: Call) -> Iterator[None]:
        """Hold one of the places for calls that connect, or wait for one until the deadline.

        Raises UpstreamError at once if all are held by calls that were left behind.
        """
        with self._changed:
            while len(self._connecting) >= MOST_CONNECTING:
                if all(other.was_left for other in self._connecting):
                    raise UpstreamError("too many earlier calls still hang", Why.UNREACHABLE)
                if not self._changed.wait(call.deadline.remaining()):
                    raise TimeoutError
            self._connecting.add(call)
        try:
            yield
        finally:
            with self._changed:
                self._connecting.remove(call)
                self._changed.notify()


def _work(call: Call, work: Callable[[], T], answer: Future[T]) -> None:
    current_call.set(call)
    try:
        answer.set_result(work())
    except BaseException as error:  # raised again in the caller's thread
        answer.set_exception(error)
        del answer
