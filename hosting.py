"""Image hosts: one short class each, all with `upload(data, name, media_type, deadline) -> url`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, urljoin, urlsplit

from dialect.endpoint import clean_text
from settings.proxies import NetworkSettings
from settings.servers import HostingSettings
from upstream.client import Deadline, Upstream, UpstreamError

if TYPE_CHECKING:
    from storage.cluster.objects import Objects


class UploadFailed(Exception):
    """The host did not accept the picture. The text says why, without any secret."""


class ImageHost(ABC):
    """A server that stores pictures. `name` is a file name with the media type's extension."""

    @abstractmethod
    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        """Upload a picture and return its http(s) URL. Raises UploadFailed."""


class FormHost(ImageHost):
    """A host that takes a picture in a `field` of a form, and answers with JSON.

    `path` counts where the settings' URL has none; `header` is the one of the settings' key.
    """

    path: ClassVar[str]
    field: ClassVar[str]
    header: ClassVar[str | None] = None

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        self.upstream = upstream
        parts = urlsplit(settings.url)
        self.url = settings.url if parts.path else parts._replace(path=self.path).geturl()
        self.headers = {self.header: settings.key or ""} if self.header else {}

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        files = {self.field: (name, data, media_type)}
        try:
            reply = self.upstream.request(
                "POST", self.url, deadline=deadline, headers=self.headers, files=files
            )
            if reply.status >= 500:
                raise UploadFailed(f"HTTP {reply.status}")
            # A 4xx can still name the URL of a duplicate.
            return _encoded(self.url_in(reply.json()))
        except UpstreamError as error:
            raise UploadFailed(str(error)) from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UploadFailed("no usable URL in the answer") from error

    @abstractmethod
    def url_in(self, answer: Any) -> Any:
        """Return what a JSON answer names as the URL, or raise what comes of another shape."""


class SmMs(FormHost):
    """SM.MS at its successor S.EE, and the older API with its `image_repeated`."""

    path, field, header = "/api/v1/file/upload", "smfile", "Authorization"

    def url_in(self, answer: Any) -> Any:
        is_old = answer.get("code") == "image_repeated"
        return answer["images"] if is_old else answer["data"]["url"]


class Chevereto(FormHost):
    """picgo.net and any other server with Chevereto's API, version 4.

    "Duplicated upload" (a 400 with code 101) succeeds where the answer names the picture's URL.
    """

    path, field, header = "/api/1/upload", "source", "X-API-Key"

    def url_in(self, answer: Any) -> Any:
        return answer["image"]["url"]


class CloudflareImgBed(FormHost):
    """CloudFlare-ImgBed, whose answer may name a path on the host itself."""

    path, field = "/upload", "file"

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        super().__init__(settings, upstream)
        parts = urlsplit(self.url)
        # Clients see URLs that are joined to this, so it holds neither a password nor the code.
        self.home = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        code = f"authCode={quote(settings.auth_code, safe='')}&" if settings.auth_code else ""
        self.url += f"{'&' if parts.query else '?'}{code}returnFormat=full"

    def url_in(self, answer: Any) -> Any:
        url = clean_text(answer[0].get("publicUrl")) or clean_text(answer[0]["src"])
        return url and urljoin(self.home, url)


@dataclass
class S3(ImageHost):
    """A bucket that the public can read, directly or through a CDN.

    Names contain part of the picture's digest, so that the content at a URL never changes.
    """

    public_url: str | None
    objects: Objects

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        if deadline.is_over:
            raise UploadFailed("no time was left for it")
        stem, _, extension = name.rpartition(".")
        name = f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}.{extension}"
        try:
            self.objects.put(name, data, media_type, "public, max-age=31536000, immutable")
        except OSError as error:
            raise UploadFailed(str(error.strerror)) from error
        return f"{self.public_url}/{quote(name)}"


_PROVIDERS: dict[str, type[FormHost]] = {
    "smms": SmMs,
    "picgo": Chevereto,
    "cloudflare_imgbed": CloudflareImgBed,
}


def image_host(
    settings: HostingSettings,
    upstream: Upstream,
    network: NetworkSettings,
    upload_timeout: float,
) -> ImageHost:
    """Return the configured image host.

    S3 is reached over `network`, within `upload_timeout` seconds, the others through `upstream`.
    """
    if settings.objects:
        from storage.cluster.objects import Objects  # needs requirements-cluster.txt

        objects = Objects(settings.objects, network, upload_timeout)
        return S3(settings.public_url, objects)
    return _PROVIDERS[settings.provider](settings, upstream)


def _encoded(url: Any) -> str:
    """Return `url`, encoded for a Location header. Raises ValueError unless it is http(s)."""
    text = clean_text(url) or ""
    parts = urlsplit(text)
    is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    if not is_usable or any(c.isspace() or not c.isprintable() for c in text):
        raise ValueError
    return quote(text, safe=":/?#[]@!$&'()*+,;=%~-._")
