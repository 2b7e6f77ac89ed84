"""Connections that end on time: to a checked address, kept for the next call.

urllib3 keeps and lends the connections. What is added here is that everything on a connection
ends at one moment, however slowly the other side trickles its bytes, and that a kept connection
which the other side has closed is replaced.
"""

from __future__ import annotations

import functools
import http.client
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection, HTTPSConnection

from upstream.addresses import Address, Resolver, is_public, resolved
from upstream.deadline import Deadline
from upstream.failure import UpstreamError, Why, translated

# Idle connections kept to one server: as many as there are drawings at once.
KEPT = 64
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

    def arm(self) -> float:
        """Bound the next operation by what is left, and return it. Raises TimeoutError."""
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this exchange is over")
        super().settimeout(left)
        return left

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


class Trust:
    """The TLS context of the process, made once: parsing the certificates costs 20 ms."""

    def __init__(self, ca_bundle: Path | None) -> None:
        self.ca_bundle = ca_bundle
        self._mutex = threading.Lock()
        self._context: ssl.SSLContext | None = None

    @property
    def context(self) -> ssl.SSLContext:
        with self._mutex:
            if self._context is None:
                self._context = ssl.create_default_context(
                    cafile=self.ca_bundle or DEFAULT_CA_BUNDLE_PATH
                )
                self._context.sslsocket_class = TimedTLSSocket
            return self._context


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a server."""

    scheme: str
    host: str
    port: int
    public_only: bool
    resolve: Resolver
    trust: Trust

    def open(self, deadline: Deadline) -> TimedSocket:
        """Connect to the first of the host's addresses that answers, each checked before any."""
        addresses = resolved(self.resolve, self.host, self.port, deadline)
        if self.public_only and not all(is_public(address[4][0]) for address in addresses):
            raise UpstreamError("it named an address that is not public", Why.FORBIDDEN)
        return first_connected(addresses, deadline)

    def secure(self, sock: TimedSocket) -> TimedSocket:
        """Speak TLS, and check that the certificate is for the host."""
        sock.arm()
        secured = self.trust.context.wrap_socket(sock, server_hostname=self.host.rstrip("."))
        assert isinstance(secured, TimedTLSSocket)
        return secured


def first_connected(addresses: list[Address], deadline: Deadline) -> TimedSocket:
    """Connect to the first address that answers. Raises the last one's OSError."""
    failure: OSError = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        # Each address gets its share of the time, or a dead first one would take all.
        share = deadline.remaining() / (len(addresses) - number)
        try:
            sock = _connected(TimedSocket(family, kind, protocol), address, share)
        except OSError as error:  # of the socket too: a kernel without IPv6 makes none
            failure = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.begin_exchange()
        sock.settimeout(deadline.remaining())
        return sock
    raise failure


def _connected(sock: TimedSocket, address: tuple[Any, ...], seconds: float) -> TimedSocket:
    """Connect within `seconds`, and close the socket if that fails. Raises OSError."""
    try:
        sock.settimeout(max(0.001, seconds))
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


class TimedConnection(HTTPConnection):
    """A connection over a route. Its `timeout` bounds a whole exchange, connecting included.

    A kept connection that the other side has closed is replaced once, and the request sent
    again. A failure that comes later is not asked again: it may have been billed.
    """

    sock: TimedSocket | None
    timeout: float

    def __init__(self, *args: Any, route: Route, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.route = route
        self.has_answered = False
        self.kept: TimedSocket | None = None
        self.ask: Callable[[], None] = lambda: None

    def connect(self) -> None:
        # Translated here, since urllib3 would call a failure to connect a broken answer.
        with translated():
            self.sock = self.route.open(Deadline.after(self.timeout))
        self.has_answered = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        self.ask = functools.partial(super().request, *args, **kwargs)
        self.kept = self.sock if self.has_answered else None
        if self.kept:
            self.kept.begin_exchange()
        try:
            self.ask()
        except OSError:
            if not (self.kept and self.kept.seems_stale):
                raise
            self._ask_again(self.kept.arm())

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 does
        try:
            return self._response()
        except (OSError, http.client.HTTPException):
            if not (self.kept and self.kept.seems_stale):
                raise
            self._ask_again(self.kept.arm())
        return self._response()

    def _ask_again(self, seconds: float) -> None:
        self.kept = None
        self.close()
        self.timeout = seconds
        self.connect()
        self.ask()

    def _response(self) -> urllib3.HTTPResponse:
        sock = self.sock
        response = super().getresponse()
        if sock and sock.has_ended:
            # http.client takes a head that was cut for a whole one.
            response.close()
            raise http.client.IncompleteRead(b"")
        self.has_answered = True
        return response


class TimedTLSConnection(TimedConnection, HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        super().connect()
        with translated():
            assert self.sock
            self.sock = self.route.secure(self.sock)
        self.is_verified = True


# urllib3 declares a connection's constructor; ours takes a route besides.
class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = TimedConnection  # type: ignore[assignment]


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = TimedTLSConnection  # type: ignore[assignment]


def pool_over(route: Route) -> urllib3.HTTPConnectionPool:
    """Return an empty pool of connections over a route."""
    kind = _TLSPool if route.scheme == "https" else _Pool
    return kind(route.host, route.port, maxsize=KEPT, route=route)
