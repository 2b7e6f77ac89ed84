"""URLs as values: the server and the request target."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import requests

from settings.proxies import Origin
from upstream.failure import UpstreamError, Why

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """The server and target of a URL. `authorization` is the header made of its credentials."""

    origin: Origin
    path: str
    authorization: str | None = field(default=None, repr=False)
    has_credentials: bool = False

    @classmethod
    def of(cls, url: str) -> Target:
        """Read a URL as requests does. Raises UpstreamError unless it is http(s).

        urlsplit alone takes `http://a\\@b/` for a URL of b, and the request would go to a.
        """
        try:
            prepared = requests.Request("GET", url).prepare()
            parts = urlsplit(prepared.url or "")
            port = parts.port
        except ValueError as error:
            raise UpstreamError("it named something that is not a URL", Why.FORBIDDEN) from error
        if parts.scheme not in _PORTS or not parts.hostname:
            raise UpstreamError("it named a URL that is not http or https", Why.FORBIDDEN)
        place = parts.scheme, parts.hostname, port or _PORTS[parts.scheme]
        authorization = prepared.headers.get("Authorization")
        return cls(place, prepared.path_url, authorization, "@" in parts.netloc)


def origin(url: str) -> Origin:
    """Return scheme, host and port of a URL. Raises UpstreamError unless it is http(s)."""
    return Target.of(url).origin


def joined(base: str, url: str) -> str:
    """Return `url` made absolute by `base`. Raises UpstreamError if that makes no URL."""
    try:
        return urljoin(base, url)
    except ValueError as error:
        raise UpstreamError("it named something that is not a URL", Why.FORBIDDEN) from error
