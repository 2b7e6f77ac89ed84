"""Connections that are kept for the next call, in urllib3's pools."""

from __future__ import annotations

import functools
import http.client
import time
from collections.abc import Callable
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from metrics import Metrics
from upstream.deadline import Deadline
from upstream.failure import translated
from upstream.sockets import Opener, TimedSocket

# Idle connections kept to one server: as many as there are drawings at once.
KEPT = 64
# Routers forget idle connections without a word, and a request sent into one waits in vain.
IDLE_SECONDS = 60.0


class TimedConnection(HTTPConnection):
    """A connection that `dial` opens. Its `timeout` bounds a whole exchange, connecting included.

    If the other side has closed a kept connection, the request is sent once more, on a new one.
    A failure that comes later is final: the request may have been billed.
    """

    sock: TimedSocket | None
    timeout: float

    def __init__(self, *args: Any, dial: Opener, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dial = dial
        self.metrics = metrics
        self.answered_at: float | None = None
        # The socket of an earlier exchange that the request went out on, and how to repeat it.
        self.resend: tuple[TimedSocket, Callable[[], None]] | None = None

    def connect(self) -> None:
        # Translated here, since urllib3 would call a failure to connect a broken answer.
        with translated():
            self.sock = self.dial(Deadline.after(self.timeout))
        self.answered_at = None
        self.metrics.connected(is_new=True)

    @property
    def is_connected(self) -> bool:
        """Say whether it can be used again, as the pool asks before it lends it."""
        is_recent = time.monotonic() < (self.answered_at or 0.0) + IDLE_SECONDS
        return is_recent and super().is_connected

    def request(self, *args: Any, **kwargs: Any) -> None:
        send = functools.partial(super().request, *args, **kwargs)
        self.resend = None
        if self.sock and self.answered_at:
            self.sock.begin_exchange()
            self.metrics.connected(is_new=False)
            self.resend = self.sock, send
        try:
            send()
        except OSError:
            if not self._is_stale:
                raise
            self._send_again()

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 does
        try:
            return self._response()
        except (OSError, http.client.HTTPException):
            if not self._is_stale:
                raise
        self._send_again()
        return self._response()

    @property
    def _is_stale(self) -> bool:
        return self.resend is not None and self.resend[0].seems_stale

    def _send_again(self) -> None:
        assert self.resend
        (sock, send), self.resend = self.resend, None
        self.close()
        self.timeout = sock.remaining()
        self.connect()
        send()

    def _response(self) -> urllib3.HTTPResponse:
        sock = self.sock
        response = super().getresponse()
        self.resend = None
        if sock and sock.has_ended:
            # http.client takes a head that was cut for a whole one.
            response.close()
            raise http.client.IncompleteRead(b"")
        self.answered_at = time.monotonic()
        return response


class TimedTLSConnection(TimedConnection, HTTPSConnection):
    """The same over TLS, which `dial` sets up and checks."""

    def connect(self) -> None:
        super().connect()
        self.is_verified = True


# urllib3 declares a connection's constructor; ours takes `dial` and `metrics` besides.
class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = TimedConnection  # type: ignore[assignment]


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = TimedTLSConnection  # type: ignore[assignment]


def pool(
    scheme: str, host: str, port: int, dial: Opener, metrics: Metrics
) -> urllib3.HTTPConnectionPool:
    """Return a new pool of connections that `dial` opens."""
    kind = _TLSPool if scheme == "https" else _Pool
    return kind(host, port, maxsize=KEPT, dial=dial, metrics=metrics)
