"""Image hosts: one short class each, all with `upload(data, name, media_type, deadline) -> url`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from config import HostingSettings
from upstream.client import Deadline, Upstream, UpstreamError
from upstream.openai import clean_text


class UploadFailed(Exception):
    """The host did not take the picture."""


class ImageHost(Protocol):
    """A place for pictures. `name` is the file name, with the extension of its media type."""

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        """Store a picture and return its http(s) URL. Raises UploadFailed."""
        ...


class SmMs:
    """SM.MS at its successor S.EE, and the older API that it left behind."""

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        self.upstream = upstream
        self.url = _with_path(settings.url, "/api/v1/file/upload")
        self.headers = {"Authorization": settings.key or ""}

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        files = {"smfile": (name, data, media_type)}
        answer = _post(self.upstream, self.url, self.headers, files, deadline)
        if url := _at(answer, "data", "url"):
            return _checked(url)
        if _at(answer, "code") == "image_repeated" and (url := _at(answer, "images")):
            return _checked(url)
        raise UploadFailed("it did not name a URL")


class PicGo:
    """PicGo and whatever else speaks Chevereto's API, version 4."""

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        self.upstream = upstream
        self.url = _with_path(settings.url, "/api/1/upload")
        self.headers = {"X-API-Key": settings.key or ""}

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        files = {"source": (name, data, media_type)}
        answer = _post(self.upstream, self.url, self.headers, files, deadline)
        return _checked(_at(answer, "image", "url"))


class CloudflareImgBed:
    """CloudFlare-ImgBed."""

    def __init__(self, settings: HostingSettings, upstream: Upstream) -> None:
        self.upstream = upstream
        base = _with_path(settings.url, "/upload")
        # What is joined to this goes to clients: it holds neither the code nor a password.
        parts = urlsplit(base)
        self.home = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        query = "returnFormat=full"
        if settings.auth_code:
            query = f"authCode={quote(settings.auth_code, safe='')}&{query}"
        self.url = f"{base}{'&' if '?' in base else '?'}{query}"

    def upload(self, data: bytes, name: str, media_type: str, deadline: Deadline) -> str:
        answer = _post(self.upstream, self.url, {}, {"file": (name, data, media_type)}, deadline)
        url = clean_text(_at(answer, 0, "publicUrl")) or clean_text(_at(answer, 0, "src"))
        try:
            return _checked(urljoin(self.home, url) if url else None)
        except ValueError as error:
            raise UploadFailed("it did not name a URL") from error


_PROVIDERS: dict[str, Callable[[HostingSettings, Upstream], ImageHost]] = {
    "smms": SmMs,
    "picgo": PicGo,
    "cloudflare_imgbed": CloudflareImgBed,
}


def image_host(settings: HostingSettings, upstream: Upstream) -> ImageHost:
    """Return the host that the settings name."""
    return _PROVIDERS[settings.provider](settings, upstream)


def _with_path(url: str, path: str) -> str:
    """Return `url`, with the provider's own path where only a host was configured."""
    return url if urlsplit(url).path else urlsplit(url)._replace(path=path).geturl()


def _post(
    upstream: Upstream,
    url: str,
    headers: dict[str, str],
    files: dict[str, tuple[str, bytes, str]],
    deadline: Deadline,
) -> Any:
    """Return the JSON of the host's answer: a 4xx may still name where the picture already is."""
    try:
        reply = upstream.request("POST", url, deadline=deadline, headers=headers, files=files)
        if reply.status >= 500:
            raise UploadFailed(f"it answered {reply.status}")
        return reply.json()
    except UpstreamError as error:
        raise UploadFailed(str(error)) from error


def _at(answer: Any, *path: str | int) -> Any:
    """Return what stands at `path` in a JSON value, or None where the path leads nowhere."""
    for step in path:
        try:
            answer = answer[step]
        except (TypeError, KeyError, IndexError):
            return None
    return answer


def _checked(url: Any) -> str:
    """Return `url` if it can be redirected to. Raises UploadFailed."""
    text = clean_text(url)
    try:
        parts = urlsplit(text or "")
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if text is None or not is_usable or any(c.isspace() or not c.isprintable() for c in text):
        raise UploadFailed("it did not name a URL")
    return quote(text, safe=":/?#[]@!$&'()*+,;=%~-._")
