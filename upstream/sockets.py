"""Sockets on which everything ends at one moment."""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from upstream.addresses import Address
from upstream.deadline import Deadline

# A kept connection that fails within this time of sending had been closed before.
STALE_SECONDS = 1.0


class TimedSocket(socket.socket):
    """A socket on which everything ends at one moment.

    A time-out of a plain socket bounds a single read: a server that sends a byte a second would
    hold the call for hours. Here `settimeout` bounds all that follows in an exchange (a request
    and its answer), and can only shorten it.
    """

    # Class attributes: SSLContext.wrap_socket() never calls __init__.
    began_at = 0.0
    ends_at = math.inf
    received = 0
    has_ended = False

    def begin_exchange(self) -> None:
        """Forget the time-out and the bytes of the last exchange."""
        self.began_at = time.monotonic()
        self.ends_at = math.inf
        self.received = 0

    @property
    def seems_stale(self) -> bool:
        """Say whether a failure now means that the other side had closed this kept connection."""
        now = time.monotonic()
        return not self.received and now < min(self.began_at + STALE_SECONDS, self.ends_at)

    def settimeout(self, value: float | None) -> None:
        if value is not None:
            self.ends_at = min(self.ends_at, time.monotonic() + value)
        super().settimeout(value)

    def remaining(self) -> float:
        """Return what is left of the time. Raises TimeoutError if nothing is."""
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this exchange is over")
        return left

    def arm(self) -> None:
        """Bound the next operation by what is left of the time."""
        super().settimeout(self.remaining())

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.arm()
        count = super().recv_into(*args, **kwargs)
        self.received += count
        self.has_ended = not count
        return count

    def send(self, *args: Any, **kwargs: Any) -> int:
        self.arm()
        return super().send(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.arm()
        super().sendall(*args, **kwargs)


class TimedTLSSocket(TimedSocket, ssl.SSLSocket):
    """The same over TLS."""


Opener = Callable[[Deadline], TimedSocket]


def first_open(openers: Sequence[Opener], deadline: Deadline) -> TimedSocket:
    """Return the first socket that opens, bounded by `deadline`. Raises the last OSError."""
    failure: OSError = OSError("no address")
    for number, opener in enumerate(openers):
        # Each address gets its share of the time, or a dead first one would take all.
        share = deadline.remaining() / (len(openers) - number)
        try:
            sock = opener(deadline.within(share))
        except OSError as error:
            failure = error
            continue
        sock.begin_exchange()
        sock.settimeout(deadline.remaining())
        return sock
    raise failure


def opener_to(address: Address) -> Opener:
    """Return what connects to an address. It raises OSError, also for an unknown family."""
    family, kind, protocol, _, place = address

    def connect(deadline: Deadline) -> TimedSocket:
        sock = TimedSocket(family, kind, protocol)
        try:
            sock.settimeout(max(0.001, deadline.remaining()))
            sock.connect(place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            sock.close()
            raise
        return sock

    return connect
