"""Every outbound call: one deadline, a byte limit, checked addresses, our own errors.

This folder is the only place that imports requests and urllib3. requests prepares a call,
urllib3's pools keep the connections. Cookies and `.netrc` are never consulted.
"""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3

from upstream.addresses import IpNetwork, Resolver, is_public
from upstream.deadline import Deadline
from upstream.failure import UpstreamError, Why, translated
from upstream.proxies import Proxies
from upstream.routes import Dialer, Route

__all__ = [
    "JSON_LIMIT",
    "Deadline",
    "Files",
    "Reply",
    "Upstream",
    "UpstreamError",
    "Why",
    "is_public",
    "joined",
    "origin",
]

MAX_REDIRECTS = 3
JSON_LIMIT = 2**20
# An error is read for its reason, and no reason is longer.
ERROR_LIMIT = 2**16
# Servers to which connections are kept; the one that was asked least recently is forgotten.
SERVERS = 64
USER_AGENT = "prompt-image-proxy"

Files = Mapping[str, tuple[str, bytes, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, of any status; of an error the first 64 KB.

    Header names are case-insensitive.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON. Raises UpstreamError, for bottomless nesting too."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UpstreamError("its answer is not JSON", Why.UNREADABLE) from error


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL. Raises UpstreamError unless it is http(s)."""
    return _origin(_split(url))


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return parts.scheme, parts.hostname or "", port


def _split(url: str) -> SplitResult:
    """Split a URL as requests reads it. Raises UpstreamError unless it is http(s).

    urlsplit alone takes `http://a\\@b/` for a URL of b, and the request would go to a.
    """
    try:
        return _parts(requests.Request("GET", url).prepare())
    except ValueError as error:
        raise UpstreamError("it named something that is not a URL", Why.FORBIDDEN) from error


def _parts(prepared: requests.PreparedRequest) -> SplitResult:
    parts = urlsplit(prepared.url or "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpstreamError("it named a URL that is not http or https", Why.FORBIDDEN)
    return parts


def joined(base: str, url: str) -> str:
    """Return `url` made absolute by `base`. Raises UpstreamError if that makes no URL."""
    try:
        return urljoin(base, url)
    except ValueError as error:
        raise UpstreamError("it named something that is not a URL", Why.FORBIDDEN) from error


class Upstream:
    """Makes calls over connections that it keeps.

    `resolve` has the shape of socket.getaddrinfo. `ca_bundle` is a file of certificates to
    trust instead of certifi's. Downloads may lead to `picture_networks` although those are not
    public; if a proxy leads there, it gets the name instead of the address.
    """

    def __init__(
        self,
        resolve: Resolver = socket.getaddrinfo,
        *,
        ca_bundle: Path | None = None,
        proxies: Proxies | None = None,
        picture_networks: Sequence[IpNetwork] = (),
    ) -> None:
        dialer = Dialer(resolve, ca_bundle, tuple(picture_networks))
        self.pool = functools.lru_cache(SERVERS)(dialer.pool)
        self.proxies = proxies or Proxies()

    def close(self) -> None:
        """Close the connections that are kept, and those in use as soon as they are free."""
        self.pool.cache_clear()

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
    ) -> Reply:
        """Send one request and read its whole answer, of at most `limit` bytes.

        `files` maps a form field to (file name, bytes, media type). Redirects are answers like
        any other. Raises UpstreamError, and never outlives `deadline`.
        """
        with translated():
            prepared = _prepared(method, url, headers or {}, json, files)
            place = _origin(_parts(prepared))
            route = Route(*place, proxy=self.proxies.to(place))
            return self._exchange(route, prepared, deadline, limit)

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

        What has the origin (scheme, host, port) of `home` is fetched from wherever that is, with
        `headers`; everything else from public addresses only, without them. Raises UpstreamError.
        """
        for _ in range(MAX_REDIRECTS + 1):
            with translated():
                route = self._route_to_picture(url, home)
                sent = headers if headers and not route.public_only else {}
                reply = self._exchange(route, _prepared("GET", url, sent), deadline, limit)
            if reply.status not in (301, 302, 303, 307, 308) or "Location" not in reply.headers:
                return reply
            url = joined(url, reply.headers["Location"])
        raise UpstreamError(f"it redirected more than {MAX_REDIRECTS} times", Why.FORBIDDEN)

    def _route_to_picture(self, url: str, home: str) -> Route:
        place, named_by = origin(url), origin(home)
        if place != named_by and "@" in _split(url).netloc:
            raise UpstreamError("it named a URL with credentials", Why.FORBIDDEN)
        proxy = self.proxies.to(place, named_by=named_by)
        return Route(*place, public_only=place != named_by, proxy=proxy)

    def _exchange(
        self, route: Route, prepared: requests.PreparedRequest, deadline: Deadline, limit: int
    ) -> Reply:
        if deadline.is_over:
            raise TimeoutError
        target = prepared.path_url
        if route.proxy and route.is_forwarded:
            target = f"{route.base}{target}"
            prepared.headers.update(route.proxy.headers)
        response = self.pool(route).urlopen(
            str(prepared.method),
            target,
            prepared.body,
            prepared.headers,
            retries=False,
            redirect=False,
            timeout=urllib3.Timeout(total=max(0.001, deadline.remaining())),
            preload_content=False,
        )
        try:
            return Reply(response.status, response.headers, _body(response, limit))
        finally:
            # A connection whose answer was not read to its end is closed, not kept.
            response.close()


def _prepared(
    method: str,
    url: str,
    headers: Mapping[str, str],
    json: Any = None,
    files: Files | None = None,
) -> requests.PreparedRequest:
    sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
    prepared = requests.Request(method, url, headers=sent, json=json, files=files).prepare()
    if "Authorization" in headers:
        # requests lets a user and password in the URL replace the header.
        prepared.headers["Authorization"] = headers["Authorization"]
    return prepared


def _body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    if response.status >= 400:
        return _beginning(response, ERROR_LIMIT)
    announced = response.length_remaining or 0
    if announced <= limit:
        if announced and "Content-Encoding" not in response.headers:
            # All at once, into a buffer of the announced length.
            return response.read(announced)
        body = _beginning(response, limit + 1)
        if len(body) <= limit:
            return body
    raise UpstreamError(f"its answer is larger than {limit} bytes", Why.TOO_LARGE)


def _beginning(response: urllib3.BaseHTTPResponse, size: int) -> bytes:
    """Return the first `size` bytes of an answer, or all if it has no more.

    Decoded although identity was asked for, since some servers compress all the same.
    """
    body = bytearray()
    while len(body) < size and (
        piece := response.read1(min(2**16, size - len(body)), decode_content=True)
    ):
        body += piece
    return bytes(body)
