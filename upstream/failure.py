"""Errors of outbound calls: a sentence of our own, and a fixed word for the reason."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from enum import StrEnum

import requests
import urllib3


class Why(StrEnum):
    """The reason for a failed call, as /status, errors and the log show it."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    UNTRUSTED = "bad certificate"
    UNREADABLE = "unreadable answer"
    TOO_LARGE = "answer too large"
    FORBIDDEN = "forbidden URL"


class UpstreamError(Exception):
    """A call gave no usable answer. The text is ours: never the other side's, never a URL."""

    def __init__(self, reason: str, why: Why) -> None:
        super().__init__(reason)
        self.why = why


class ProxyFailure(OSError):
    """A proxy was not reached, or did not let the connection through. The text is ours."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the libraries' exceptions into UpstreamError, without their texts: those hold URLs."""
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


_Kinds = tuple[type[BaseException], ...]
_CUT = "its answer was cut short or is not HTTP"
# The first that fits, so that a particular kind stands before a general one.
_REASONS: tuple[tuple[_Kinds, str, Why], ...] = (
    (
        (TimeoutError, urllib3.exceptions.TimeoutError),
        "it did not answer in time",
        Why.TIMED_OUT,
    ),
    ((socket.gaierror,), "its name could not be resolved", Why.UNREACHABLE),
    ((ConnectionRefusedError,), "it refused the connection", Why.UNREACHABLE),
    # This is a ConnectionResetError too, but the connection was closed in an orderly way.
    ((http.client.RemoteDisconnected,), _CUT, Why.UNREADABLE),
    ((ConnectionResetError, BrokenPipeError), "it reset the connection", Why.UNREACHABLE),
    ((ssl.SSLError,), "its certificate or TLS failed", Why.UNTRUSTED),
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
    chain = list(_causes(error))
    for link in chain:
        if isinstance(link, ProxyFailure):
            return UpstreamError(str(link), Why.UNREACHABLE)
    for kinds, reason, why in _REASONS:
        if any(isinstance(link, kinds) for link in chain):
            return UpstreamError(reason, why)
    return UpstreamError("it could not be reached", Why.UNREACHABLE)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
