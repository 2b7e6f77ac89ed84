"""Every outbound call: one deadline, a byte limit, checked addresses, our own errors.

This folder is the only place that imports requests and urllib3. requests reads the URLs,
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

import urllib3

from metrics import Metrics
from settings.proxies import Proxies
from upstream.addresses import IpNetwork, Resolver, is_public
from upstream.bodies import has_more_values, read_body, read_picture
from upstream.deadline import Deadline
from upstream.failure import UpstreamError, Why, translated
from upstream.routes import Dialer, Route
from upstream.targets import Target, joined, origin

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
# No picture's answer, and no LLM's, has so many values. Megabytes of brackets would take gigabytes.
MAX_VALUES = 250_000
# Servers to which connections are kept; the one that was asked least recently is forgotten.
SERVERS = 64
USER_AGENT = "prompt-image-proxy"

Files = Mapping[str, tuple[str, bytes, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, of any status; of an error the first 64 KB.

    Header names are case-insensitive. `picture` was in the body as base64 if the request had it cut
    out (upstream/bodies.py).
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    picture: bytes | None = None

    def json(self) -> Any:
        """Return the body as JSON. Raises UpstreamError, for bottomless nesting too."""
        if has_more_values(self.body, MAX_VALUES):
            raise UpstreamError("its answer has too many values", Why.UNREADABLE)
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UpstreamError("its answer is not JSON", Why.UNREADABLE) from error


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
        metrics: Metrics | None = None,
    ) -> None:
        dialer = Dialer(resolve, ca_bundle, tuple(picture_networks), metrics or Metrics())
        self.pool = functools.lru_cache(SERVERS)(dialer.pool)
        # The settings' own URLs, each read once.
        self.target = functools.lru_cache(SERVERS)(Target.of)
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
        cut_picture: bool = False,
    ) -> Reply:
        """Send one request and read its whole answer, of at most `limit` bytes.

        `files` maps a form field to (file name, bytes, media type). `cut_picture` is for an answer
        whose JSON may hold a picture. Redirects are answers like any other. Raises UpstreamError,
        and never outlives `deadline`.
        """
        with translated():
            target = self.target(url)
            route = Route(*target.origin, proxy=self.proxies.to(target.origin))
            call = _Call(method, target, headers or {}, *_content(json, files))
            return self._exchange(route, call, deadline, limit, cut_picture=cut_picture)

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
                target = Target.of(url)
                route = self._route_to_picture(target, self.target(home))
                sent = headers if headers and not route.public_only else {}
                reply = self._exchange(route, _Call("GET", target, sent), deadline, limit)
            if reply.status not in (301, 302, 303, 307, 308) or "Location" not in reply.headers:
                return reply
            url = joined(url, reply.headers["Location"])
        raise UpstreamError(f"it redirected more than {MAX_REDIRECTS} times", Why.FORBIDDEN)

    def _route_to_picture(self, target: Target, home: Target) -> Route:
        is_foreign = target.origin != home.origin
        if is_foreign and target.has_credentials:
            raise UpstreamError("it named a URL with credentials", Why.FORBIDDEN)
        proxy = self.proxies.to(target.origin, named_by=home.origin)
        return Route(*target.origin, public_only=is_foreign, proxy=proxy)

    def _exchange(
        self,
        route: Route,
        call: _Call,
        deadline: Deadline,
        limit: int,
        *,
        cut_picture: bool = False,
    ) -> Reply:
        if deadline.is_over:
            raise TimeoutError
        path, headers = call.target.path, call.all_headers()
        if route.proxy and route.is_forwarded:
            path = f"{route.base}{path}"
            headers |= route.proxy.headers
        response = self.pool(route).urlopen(
            call.method,
            path,
            call.body,
            headers,
            retries=False,
            redirect=False,
            timeout=urllib3.Timeout(total=max(0.001, deadline.remaining())),
            preload_content=False,
        )
        try:
            if cut_picture:
                return Reply(response.status, response.headers, *read_picture(response, limit))
            return Reply(response.status, response.headers, read_body(response, limit))
        finally:
            # A connection whose answer was not read to its end is closed, not kept.
            response.close()


@dataclass(frozen=True, slots=True)
class _Call:
    """One request as it is sent."""

    method: str
    target: Target
    headers: Mapping[str, str]
    body: bytes | None = None
    media_type: str | None = None

    def all_headers(self) -> dict[str, str]:
        """Return the headers to send; those of the call replace the others."""
        found = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if self.media_type:
            found["Content-Type"] = self.media_type
        if self.target.authorization:
            found["Authorization"] = self.target.authorization
        return found | dict(self.headers)


def _content(value: Any, files: Files | None) -> tuple[bytes | None, str | None]:
    """Return a body and its media type: JSON, a form with files, or none."""
    if files:
        return urllib3.encode_multipart_formdata(files)
    if value is None:
        return None, None
    return json.dumps(value, allow_nan=False).encode(), "application/json"
