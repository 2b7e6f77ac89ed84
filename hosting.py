"""Image hosts: one short class each, all with `upload(data, name, media_type, deadline) -> url`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from dialect.endpoint import clean_text
from settings.servers import HostingSettings, NetworkSettings
from upstream.client import Deadline, Upstream, UpstreamError

if TYPE_CHECKING:
    from storage.cluster.objects import Objects

Files = dict[str, tuple[str, bytes, str]]


class UploadFailed(Exception):
    """The host did not accept the picture. The text says why, without any secret."""


class ImageHost(Protocol):
    """A server that stores pictures. `name` is a file name with the media type's extension."""

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        """Upload a picture and return its http(s) URL. Raises UploadFailed."""
        ...


class SmMs:
    """SM.MS at its successor S.EE, and the older API with its `image_repeated`."""

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        self.upstream = upstream
        self.url = _with_path(settings.url, "/api/v1/file/upload")
        self.headers = {"Authorization": settings.key or ""}

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        files = {"smfile": (name, data, media_type)}
        answer = _post(self.upstream, self.url, self.headers, files, deadline)
        url = _at(answer, "data", "url")
        if not url and _at(answer, "code") == "image_repeated":
            url = _at(answer, "images")
        return _checked(url)


class Chevereto:
    """picgo.net and any other server with Chevereto's API, version 4.

    "Duplicated upload" (a 400 with code 101) succeeds where the answer names the picture's URL.
    """

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        self.upstream = upstream
        self.url = _with_path(settings.url, "/api/1/upload")
        self.headers = {"X-API-Key": settings.key or ""}

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        files = {"source": (name, data, media_type)}
        answer = _post(self.upstream, self.url, self.headers, files, deadline)
        return _checked(_at(answer, "image", "url"))


class CloudflareImgBed:
    """CloudFlare-ImgBed, whose answer may name a path on the host itself."""

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        self.upstream = upstream
        base = _with_path(settings.url, "/upload")
        parts = urlsplit(base)
        # Clients see URLs that are joined to this, so it holds neither a password nor the code.
        self.home = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        query = "returnFormat=full"
        if settings.auth_code:
            query = f"authCode={quote(settings.auth_code, safe='')}&{query}"
        self.url = f"{base}{'&' if '?' in base else '?'}{query}"

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        answer = _post(self.upstream, self.url, {}, {"file": (name, data, media_type)}, deadline)
        url = clean_text(_at(answer, 0, "publicUrl")) or clean_text(_at(answer, 0, "src"))
        try:
            return _checked(url and urljoin(self.home, url))
        except ValueError as error:
            raise UploadFailed("no usable URL in the answer") from error


class S3:
    """A bucket that the public can read, directly or through a CDN.

    Names contain part of the picture's digest, so that the content at a URL never changes.
    """

    CACHE_CONTROL = "public, max-age=31536000, immutable"

    def __init__(self, settings: HostingSettings, objects: Objects) -> None:
        self.public_url = settings.public_url
        self.objects = objects

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        if deadline.is_over:
            raise UploadFailed("no time was left for it")
        stem, _, extension = name.rpartition(".")
        name = f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}.{extension}"
        try:
            self.objects.put(name, data, media_type, self.CACHE_CONTROL)
        except OSError as error:
            raise UploadFailed(str(error.strerror)) from error
        return f"{self.public_url}/{quote(name)}"


_PROVIDERS: dict[str, Callable[[HostingSettings, Upstream], ImageHost]] = {
    "smms": SmMs,
    "picgo": Chevereto,
    "cloudflare_imgbed": CloudflareImgBed,
}


def image_host(
    settings: HostingSettings,
    upstream: Upstream,
    network: NetworkSettings | None = None,
    upload_timeout: float = 30.0,
) -> ImageHost:
    """Return the configured image host.

    S3 is reached over `network`, within `upload_timeout` seconds, the others through `upstream`.
    """
    if settings.objects:
        from storage.cluster.objects import Objects  # needs requirements-cluster.txt

        return S3(settings, Objects(settings.objects, network, upload_timeout))
    return _PROVIDERS[settings.provider](settings, upstream)


def _with_path(url: str, path: str) -> str:
    """Return `url`, with `path` if it has none of its own."""
    return url if urlsplit(url).path else urlsplit(url)._replace(path=path).geturl()


def _post(
    upstream: Upstream, url: str, headers: dict[str, str], files: Files, deadline: Deadline
) -> Any:
    """Return the JSON of the host's answer. A 4xx can still name the URL of a duplicate."""
    try:
        reply = upstream.request("POST", url, deadline=deadline, headers=headers, files=files)
        if reply.status >= 500:
            raise UploadFailed(f"HTTP {reply.status}")
        return reply.json()
    except UpstreamError as error:
        raise UploadFailed(str(error)) from error


def _at(answer: Any, *path: str | int) -> Any:
    """Return the value at `path` in a JSON value, or None if the path does not exist."""
    for step in path:
        try:
            answer = answer[step]
        except (TypeError, KeyError, IndexError):
            return None
    return answer


def _checked(url: Any) -> str:
    """Return `url`, encoded for a Location header. Raises UploadFailed unless it is http(s)."""
    text = clean_text(url)
    try:
        parts = urlsplit(text or "")
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if text is None or not is_usable or any(c.isspace() or not c.isprintable() for c in text):
        raise UploadFailed("no usable URL in the answer")
    return quote(text, safe=":/?#[]@!$&'()*+,;=%~-._")
