"""What a call that failed says: a sentence of ours, and a fixed word for the reason."""

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
_REASONS: tuple[tuple[_Kinds, str, Why], ...] = (
    (
        (TimeoutError, urllib3.exceptions.TimeoutError),
        "it did not answer in time",
        Why.TIMED_OUT,
    ),
    ((socket.gaierror,), "its name could not be resolved", Why.UNREACHABLE),
    ((ConnectionRefusedError,), "it refused the connection", Why.UNREACHABLE),
    # A server that closes without an answer: http.client calls that a reset, too.
    (
        (http.client.RemoteDisconnected,),
        "its answer was cut short or is not HTTP",
        Why.UNREADABLE,
    ),
    ((ConnectionResetError, BrokenPipeError), "it reset the connection", Why.UNREACHABLE),
    ((ssl.SSLError,), "its certificate or TLS failed", Why.UNTRUSTED),
    (
        (
            http.client.HTTPException,
            urllib3.exceptions.ProtocolError,
            urllib3.exceptions.DecodeError,
        ),
        "its answer was cut short or is not HTTP",
        Why.UNREADABLE,
    ),
)


def _upstream_error(error: BaseException) -> UpstreamError:
    chain = list(_causes(error))
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
