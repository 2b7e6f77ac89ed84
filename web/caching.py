"""How long browsers, shared caches and nginx may keep a picture, and which of them may."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from werkzeug.http import dump_header, parse_dict_header

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Directives = dict[str, str | None]
Headers = list[tuple[str, str]]


class Caching:
    """Makes Cache-Control and X-Accel-Expires, which is for nginx, from the settings."""

    def __init__(self, cache_control: str, nginx_seconds: int, clock: Callable[[], float]) -> None:
        self.cache_control = cache_control
        self.nginx_seconds = nginx_seconds
        self.clock = clock
        self._shared = _headers(cache_control, nginx_seconds)
        self._private = _headers(_as_private(cache_control), nginx_seconds)

    def headers(self, environ: WSGIEnvironment, exp: str | None) -> Headers:
        """Return the headers of an answer; `exp` is that of the URL.

        An answer to a request with an Authorization header is for this client alone, whatever
        the header holds (RFC 9111, 3.5). nginx may keep it: the key of its cache has the header.
        """
        is_private = "HTTP_AUTHORIZATION" in environ
        if exp is None or not re.fullmatch(r"[0-9]{1,12}", exp):
            return self._private if is_private else self._shared
        left = max(0, int(int(exp) - self.clock()))
        # nginx repeats max-age unchanged for as long as it keeps an answer: up to a second longer
        # than it is told to, since it counts whole ones.
        in_nginx = min(self.nginx_seconds, left // 2)
        bounded = _bounded(self.cache_control, left - in_nginx - (in_nginx > 0))
        return _headers(_as_private(bounded) if is_private else bounded, in_nginx)


def _headers(cache_control: str, nginx_seconds: int) -> Headers:
    return [("Cache-Control", cache_control), ("X-Accel-Expires", str(nginx_seconds))]


def _parse(cache_control: str) -> Directives:
    return {name.lower(): value for name, value in parse_dict_header(cache_control).items()}


@lru_cache(256)
def _as_private(cache_control: str) -> str:
    """Return a Cache-Control that forbids every shared cache to keep the answer."""
    shared = ("public", "private", "s-maxage")
    kept = {name: value for name, value in _parse(cache_control).items() if name not in shared}
    return dump_header({"private": None, **kept})


@lru_cache(256)
def _bounded(cache_control: str, seconds: int) -> str:
    """Return a Cache-Control that lets no cache show the answer after `seconds`."""
    found = {name: value for name, value in _parse(cache_control).items() if "stale" not in name}
    found.setdefault("max-age", str(seconds))
    for name in ("max-age", "s-maxage"):
        value = found.get(name)
        if value is not None and not (value.isdecimal() and int(value) <= seconds):
            found[name] = str(seconds)
    return dump_header(found)
