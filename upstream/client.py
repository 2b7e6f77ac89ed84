"""Every outbound call: one deadline, a byte limit, checked addresses, our own errors.

This folder is the only place that imports requests. Without a Session, requests consults no
environment, no cookies and no `.netrc`, and follows no redirect.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from metrics import OFF, Metrics
from settings.proxies import DIRECT, NetworkSettings, Origin, Proxy
from upstream.adapters import Adapter
from upstream.bodies import cut_picture, has_too_many_values, read_body
from upstream.calls import Calls, Deadline, UpstreamError, Why, current_call, translated

__all__ = ["JSON_LIMIT", "Deadline", "Reply", "Upstream", "UpstreamError", "Why", "origin"]

MAX_REDIRECTS = 3
JSON_LIMIT = 2**20
# Pictures are compressed already.
HEADERS = {"User-Agent": "prompt-image-proxy", "Accept-Encoding": "identity"}

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, of any status; of an error the first 64 KB.

    Header names are case-insensitive. `picture` was cut out of the body, where it was in base64
    (upstream/bodies.py).
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    picture: bytes | None = None

    def json(self) -> Any:
        """Return the body as JSON. Raises UpstreamError, for bottomless nesting too."""
        if has_too_many_values(self.body):
            raise UpstreamError("its answer has too many values", Why.UNREADABLE)
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UpstreamError("its answer is not JSON", Why.UNREADABLE) from error


@dataclass
class Upstream:
    """Makes calls over connections that it keeps."""

    network: NetworkSettings = DIRECT
    metrics: Metrics = OFF

    def __post_init__(self) -> None:
        self.adapter = Adapter(self.network)
        self.calls = Calls(self.metrics)

    def close(self) -> None:
        """Close the connections that are kept, and those in use as soon as they are free."""
        self.adapter.close()

    def access(self, url: str, headers: Mapping[str, str]) -> str:
        """Return a digest of how a server is reached: its URL, its headers and the proxy there.

        It reveals none of them: they may hold passwords.
        """
        proxy = self.network.proxy_to(origin(url))
        parts = (url, sorted(headers.items()), proxy and proxy.url)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def request(
        self,
        method: str,
        url: str,
        *,
        deadline: Deadline,
        limit: int = JSON_LIMIT,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
    ) -> Reply:
        """Send one request and read its whole answer, of at most `limit` bytes.

        `files` maps a form field to (file name, bytes, media type). Redirects are answers like any
        other. Raises UpstreamError, and never outlives `deadline`.
        """
        request, place = _prepared(method, url, headers, json=json, files=files)
        proxy = self.network.proxy_to(place)
        reply = self._exchange(self.adapter.send, request, proxy, deadline, limit)
        if reply.status >= 400:
            return reply
        body, picture = cut_picture(reply.body)
        return replace(reply, body=body, picture=picture)

    def download(
        self,
        url: str,
        *,
        home: str,
        deadline: Deadline,
        limit: int,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """GET a URL, maybe a relative one, that the server at `home` named; follow 3 redirects.

        What has the origin (scheme, host, port) of `home` is fetched from wherever that is, with
        `headers`; everything else from public addresses only, without them. Raises UpstreamError.
        """
        home_origin, base = origin(home), home
        for _ in range(MAX_REDIRECTS + 1):
            request, place = _prepared("GET", url, base=base)
            send = self.adapter.send_checked
            if place == home_origin:
                request.headers.update(headers or {})
                send = self.adapter.send
            elif "@" in urlsplit(str(request.url)).netloc:
                raise UpstreamError("it named a URL with credentials", Why.FORBIDDEN)
            proxy = self.network.proxy_to(place, named_by=home_origin)
            reply = self._exchange(send, request, proxy, deadline, limit)
            if reply.status not in (301, 302, 303, 307, 308) or "Location" not in reply.headers:
                return reply
            base, url = str(request.url), _as_utf8(reply.headers["Location"])
        raise UpstreamError(f"it redirected more than {MAX_REDIRECTS} times", Why.FORBIDDEN)

    def _exchange(
        self,
        send: Callable[..., requests.Response],
        request: requests.PreparedRequest,
        proxy: Proxy | None,
        deadline: Deadline,
        limit: int,
    ) -> Reply:
        proxies = {"all": proxy.url} if proxy else {}

        def exchange() -> Reply:
            seconds = current_call.get().seconds
            answer = send(request, stream=True, timeout=seconds, proxies=proxies)
            # Closes a connection whose answer was not read to its end.
            with contextlib.closing(answer.raw):
                if answer.status_code < 200:
                    # The real answer would be taken for that to the connection's next request.
                    raise UpstreamError("it sent an interim answer", Why.INTERIM)
                return Reply(answer.status_code, answer.headers, read_body(answer.raw, limit))

        with translated():
            if deadline.is_over:
                raise TimeoutError
            return self.calls.run(exchange, deadline)


def _as_utf8(header: str) -> str:
    """Return a header, which http.client reads as Latin-1, as the UTF-8 that it may be."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def origin(url: str) -> Origin:
    """Return scheme, host and port of a URL. Raises UpstreamError unless it is http(s)."""
    return _prepared("GET", url)[1]


def _prepared(
    method: str,
    url: str,
    headers: Mapping[str, str] | None = None,
    base: str = "",
    **content: Any,
) -> tuple[requests.PreparedRequest, Origin]:
    """Return a request and where it goes; `headers` replace the credentials of the URL.

    A relative URL is joined to `base`. urlsplit alone takes `http://a\\@b/` for a URL of b. Raises
    UpstreamError.
    """
    try:
        request = requests.Request(method, urljoin(base, url), **content).prepare()
        parts = urlsplit(str(request.url))
        port = parts.port
    except (ValueError, requests.RequestException) as error:
        raise UpstreamError("it named something that is not a URL", Why.FORBIDDEN) from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UpstreamError("it named a URL that is not http or https", Why.FORBIDDEN)
    request.headers.update({**HEADERS, **(headers or {})})
    return request, (parts.scheme, parts.hostname, port or _PORTS[parts.scheme])
