"""Every outbound call: one deadline, a byte limit, checked addresses, our own errors.

The only module that imports requests. A call opens its own connection and closes it: drawings
take seconds, so keep-alive would gain nothing, and a connection that the other side has just
closed would look like a failed backend. Proxies, `.netrc` and cookies are never consulted.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

MAX_REDIRECTS = 3
JSON_LIMIT = 2**20
USER_AGENT = "prompt-image-proxy"

Resolver = Callable[..., list[Any]]
Files = Mapping[str, tuple[str, bytes, str]]

# Addresses that `is_global` lets pass although they lead, or may lead, somewhere private.
_DISGUISES = [
    ipaddress.ip_network(network)
    for network in (
        "::/8",  # IPv4-compatible, IPv4-translated, NAT64
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local
        "192.88.99.0/24",  # 6to4 relays
    )
]


class UpstreamError(Exception):
    """A call gave no usable answer. Its text is ours: never the other side's, never a URL."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, in seconds, that nothing below it outlives."""

    at: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return cls(clock() + seconds, clock)

    def sooner(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)

    def remaining(self) -> float:
        return max(0.0, self.at - self.clock())

    @property
    def is_over(self) -> bool:
        return self.clock() >= self.at


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, of any status. Header names are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON. Raises UpstreamError, for bottomless nesting too."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UpstreamError("its answer is not JSON") from error


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL. Raises UpstreamError unless it is http(s)."""
    parts = _split(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return parts.scheme, parts.hostname or "", port


def _split(url: str) -> SplitResult:
    """Split a URL as requests reads it. Raises UpstreamError unless it is http(s).

    urlsplit alone takes `http://a\\@b/` for a URL of b, and the request would go to a.
    """
    try:
        parts = urlsplit(requests.Request("GET", url).prepare().url or "")
    except ValueError as error:
        raise UpstreamError("it named something that is not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpstreamError("it named a URL that is not http or https")
    return parts


def joined(base: str, url: str) -> str:
    """Return `url` made absolute by `base`. Raises UpstreamError where that makes no URL."""
    try:
        return urljoin(base, url)
    except ValueError as error:
        raise UpstreamError("it named something that is not a URL") from error


def is_public(address: str) -> bool:
    """Say whether an IP address is of the public internet, with every disguise looked through."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if any(ip.version == network.version and ip in network for network in _DISGUISES):
        return False
    return ip.is_global and not ip.is_multicast


class Upstream:
    """Makes calls. `resolve` has the shape of socket.getaddrinfo."""

    def __init__(self, resolve: Resolver = socket.getaddrinfo) -> None:
        self.resolve = resolve

    def request(
        self,
        method: str,
        url: str,
        *,
        deadline: Deadline,
        limit: int = JSON_LIMIT,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        files: Files | None = None,
        public_only: bool = False,
    ) -> Reply:
        """Send one request and read its whole answer, of at most `limit` bytes.

        `files` maps a form field to (file name, bytes, media type). Redirects are answers like
        any other. With `public_only` the connection is made only if every address of the host
        is public, and to one of those. Raises UpstreamError, and never outlives `deadline`.
        """
        call = _Call(self.resolve, deadline, public_only)
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close"}
        with _translated(deadline), contextlib.closing(_Adapter(call)) as adapter, call:
            prepared = requests.Request(
                method, url, headers={**sent, **(headers or {})}, json=json, files=files
            ).prepare()
            if headers and "Authorization" in headers:
                # requests lets a user and password in the URL replace the header.
                prepared.headers["Authorization"] = headers["Authorization"]
            response = adapter.send(prepared, stream=True, timeout=deadline.remaining() or 0.001)
            with contextlib.closing(response):
                body = _read(response.raw, limit)
            if call.was_cut:
                # What ends at a shut socket can look whole where no length was announced.
                raise TimeoutError
        return Reply(response.status_code, response.headers, body)

    def download(
        self,
        url: str,
        *,
        home: str,
        deadline: Deadline,
        limit: int,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """GET a URL that the server at `home` named, over at most 3 redirects.

        What has the origin (scheme, host, port) of `home` is fetched from where it is, with
        `headers`; everything else from public addresses only, without them. Raises UpstreamError.
        """
        for _ in range(MAX_REDIRECTS + 1):
            is_home = origin(url) == origin(home)
            if not is_home and "@" in _split(url).netloc:
                raise UpstreamError("it named a URL with credentials")
            reply = self.request(
                "GET",
                url,
                deadline=deadline,
                limit=limit,
                headers=headers if is_home else None,
                public_only=not is_home,
            )
            if reply.status not in (301, 302, 303, 307, 308) or "Location" not in reply.headers:
                return reply
            url = joined(url, reply.headers["Location"])
        raise UpstreamError(f"it redirected more than {MAX_REDIRECTS} times")


class _Call:
    """One call: where it may connect, and the timer that shuts its socket at the deadline.

    A time-out of the socket bounds one read only: a server that sends a byte a second would
    hold the call for hours. Shutting the socket down ends any read, of headers too, at once.
    """

    def __init__(self, resolve: Resolver, deadline: Deadline, public_only: bool) -> None:
        self.resolve = resolve
        self.deadline = deadline
        self.public_only = public_only
        self.was_cut = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()

    def watch(self, sock: socket.socket) -> None:
        def shut() -> None:
            self.was_cut = True
            with contextlib.suppress(OSError):
                # Not SSLSocket's own shutdown: it forgets the TLS state that a reader is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

        self._timer = threading.Timer(self.deadline.remaining(), shut)
        self._timer.daemon = True
        self._timer.start()

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to the first of the host's addresses that answers, each checked before any."""
        addresses = self._addresses(host, port)
        if self.public_only and not all(is_public(address[4][0]) for address in addresses):
            raise UpstreamError("it named an address that is not public")
        failure: OSError = OSError("no address")
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            # Each address gets its share of the time, or a dead first one would take all.
            share = self.deadline.remaining() / (len(addresses) - number)
            try:
                sock = _connected(socket.socket(family, kind, protocol), address, share)
            except OSError as error:  # of socket() too: a kernel without IPv6 makes none
                failure = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(max(0.001, self.deadline.remaining()))
            return sock
        # Here already: urllib3 would call it a broken answer.
        with _translated(self.deadline):
            raise failure

    def _addresses(self, host: str, port: int) -> list[Any]:
        """Resolve in a thread of its own: getaddrinfo knows no time-out."""
        # Nothing to look up: a thread for it would be a quarter of the call's own cost.
        with contextlib.suppress(ValueError):
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
            return [(family, socket.SOCK_STREAM, 0, "", (host, port))]
        answer: Future[list[Any]] = Future()

        def look_up() -> None:
            try:
                answer.set_result(self.resolve(host, port, 0, socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                answer.set_exception(error)

        threading.Thread(target=look_up, daemon=True).start()
        return answer.result(self.deadline.remaining())


def _connected(sock: socket.socket, address: Any, seconds: float) -> socket.socket:
    """Connect within `seconds`, and close the socket where that fails. Raises OSError."""
    try:
        sock.settimeout(max(0.001, seconds))
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


class _Lines:
    """The lines of an answer's head. Raises HTTPException where the connection ends in it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.close = file.close

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self.file.readline(limit)
        if not line:
            raise http.client.IncompleteRead(line)
        return line


class _Response(http.client.HTTPResponse):
    """Stricter than http.client, which takes a cut head for a whole one ...

    ... and, of a chunk of a negative size, reads all that ever comes.
    """

    fp: Any

    def begin(self, *args: Any, **kwargs: Any) -> None:
        self.fp, file = _Lines(self.fp), self.fp
        try:
            super().begin(*args, **kwargs)
        finally:
            if self.fp is not None:  # it is None where there was no status line, and all is closed
                self.fp = file

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]  # private: not in stubs
        if size < 0:
            raise http.client.HTTPException("a chunk of a negative size")
        return size


class _BoundedHTTP(HTTPConnection):
    response_class = _Response

    def __init__(self, *args: Any, call: _Call, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.call = call

    def _new_conn(self) -> socket.socket:
        return self.call.connect(self._dns_host, self.port)

    def connect(self) -> None:
        super().connect()
        self.call.watch(self.sock)


class _BoundedHTTPS(_BoundedHTTP, HTTPSConnection):
    """The same over TLS."""


class _Adapter(HTTPAdapter):
    """Sends through connections that belong to one call."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.call = call

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _BoundedHTTPS if pool.scheme == "https" else _BoundedHTTP
        pool.conn_kw["call"] = self.call
        return pool


def _read(raw: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    declared = raw.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise UpstreamError(f"its answer is larger than {limit} bytes")
    body = bytearray()
    # Decoded although identity was asked for, since some servers compress all the same.
    while chunk := raw.read(2**16, decode_content=True):
        body += chunk
        if len(body) > limit:
            raise UpstreamError(f"its answer is larger than {limit} bytes")
    return bytes(body)


@contextlib.contextmanager
def _translated(deadline: Deadline) -> Iterator[None]:
    """Turn what the libraries raise into UpstreamError, without their texts: those hold URLs."""
    try:
        yield
    except (requests.Timeout, TimeoutError, urllib3.exceptions.TimeoutError) as error:
        raise UpstreamError("it did not answer in time", timed_out=True) from error
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
        ValueError,
    ) as error:
        if deadline.is_over:
            raise UpstreamError("it did not answer in time", timed_out=True) from error
        raise UpstreamError(_reason(error)) from error


_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (socket.gaierror, "its name could not be resolved"),
    (ConnectionRefusedError, "it refused the connection"),
    ((ConnectionResetError, BrokenPipeError), "it reset the connection"),
    ((urllib3.exceptions.SSLError, requests.exceptions.SSLError), "its certificate or TLS failed"),
    (
        (urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError),
        "its answer was cut short or is not HTTP",
    ),
)


def _reason(error: BaseException | None) -> str:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for kind, reason in _REASONS:
        if any(isinstance(link, kind) for link in chain):
            return reason
    return "it could not be reached"
