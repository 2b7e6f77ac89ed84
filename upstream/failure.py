"""Errors of outbound calls: a sentence of our own, and a fixed word for the reason."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from enum import StrEnum
from http.client import HTTPException, RemoteDisconnected

from urllib3.exceptions import DecodeError, HTTPError, ProtocolError, ProxyError, SSLError

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
