"""Errors of outbound calls: a sentence of our own, and a fixed word for the reason."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from enum import StrEnum

import requests
import urllib3

_Kinds = tuple[type[BaseException], ...]

try:
    import socks  # type: ignore[import-untyped]  # without types
except ImportError:  # an extra
    _SOCKS_UNREACHED: _Kinds = ()
    _SOCKS_FAILED: _Kinds = ()
else:
    _SOCKS_UNREACHED = (socks.ProxyConnectionError,)
    _SOCKS_FAILED = (socks.ProxyError,)


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


class ProxyFailure(OSError):
    """A proxy was reached and did not speak HTTP."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the libraries' exceptions into UpstreamError, without their texts, which hold URLs."""
    try:
        yield
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
        ValueError,
    ) as error:
        raise _upstream_error(error) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised for."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


_CUT = "its answer was cut short or is not HTTP"
# The first match counts, so specific kinds precede general ones.
_REASONS: tuple[tuple[_Kinds, str, Why], ...] = (
    # Not urllib3's TimeoutError: a refused connection is one, too.
    (
        (TimeoutError, urllib3.exceptions.ReadTimeoutError),
        "it did not answer in time",
        Why.TIMED_OUT,
    ),
    ((ProxyFailure,), "its proxy gave no HTTP answer", Why.UNREACHABLE),
    (
        (*_SOCKS_UNREACHED, urllib3.exceptions.ProxyError),
        "its proxy could not be reached",
        Why.UNREACHABLE,
    ),
    (_SOCKS_FAILED, "its proxy did not connect to it", Why.UNREACHABLE),
    ((socket.gaierror,), "its name could not be resolved", Why.UNREACHABLE),
    ((ConnectionRefusedError,), "it refused the connection", Why.UNREACHABLE),
    # This is a ConnectionResetError too, but the connection was closed in an orderly way.
    ((http.client.RemoteDisconnected,), _CUT, Why.UNREADABLE),
    ((ConnectionResetError, BrokenPipeError), "it reset the connection", Why.UNREACHABLE),
    (
        (ssl.SSLError, urllib3.exceptions.SSLError),
        "its certificate or TLS failed",
        Why.UNTRUSTED,
    ),
    (
        (
            http.client.HTTPException,
            urllib3.exceptions.ProtocolError,
            urllib3.exceptions.DecodeError,
        ),
        _CUT,
        Why.UNREADABLE,
    ),
)


def _upstream_error(error: BaseException) -> UpstreamError:
    chain = list(causes(error))
    for link in chain:
        # http.client says so in words only.
        if type(link) is OSError and (found := re.match("Tunnel.+failed: ([0-9]{3})", str(link))):
            return UpstreamError(f"its proxy answered CONNECT with {found[1]}", Why.UNREACHABLE)
    for kinds, reason, why in _REASONS:
        if any(isinstance(link, kinds) for link in chain):
            return UpstreamError(reason, why)
    return UpstreamError("it could not be reached", Why.UNREACHABLE)
