"""Forward proxies as values: what one is, and which one a URL goes through."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from settings.parsers import check_extra

_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080}

Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A forward proxy: `http`, or SOCKS 5 (`socks5` resolves names here, `socks5h` there)."""

    scheme: str
    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read `http://user:password@host:port`; without a scheme, http is meant.

        Raises ValueError with the reason. It never shows the URL, which may hold a password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("the host or the port of a proxy is invalid") from None
        if parts.scheme not in _PORTS:
            raise ValueError("a proxy is http://, socks5:// or socks5h://")
        if not host:
            raise ValueError("a proxy needs a host, as in http://proxy.example.org:3128")
        if parts.scheme != "http":
            check_extra("socks")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], user, password)

    @property
    def url(self) -> str:
        """The URL that `parse` reads."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{login}{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """Which proxy leads to an origin (scheme, host, port).

    `schemes` maps `http`, `https` and `all` to a proxy, with the exceptions that `no_proxy`
    lists: host names (with all below them), host:port, addresses, networks, or `*`. `own` maps
    an origin to a proxy of its own, or to None for a direct connection, and goes first.
    """

    schemes: Mapping[str, Proxy] = field(default_factory=dict)
    no_proxy: str = ""
    own: Mapping[Origin, Proxy | None] = field(default_factory=dict)

    def to(self, place: Origin, *, named_by: Origin | None = None) -> Proxy | None:
        """Return the proxy to a place, which another may have named: its own then leads there."""
        for origin in (place, named_by or place):
            if origin in self.own:
                return self.own[origin]
        scheme, host, port = place
        # requests.utils.should_bypass_proxies sets an environment variable while it looks, which
        # threads restore wrongly for each other, and knows no IPv6 networks.
        entries = self.no_proxy.lower().replace(",", " ").split()
        if "*" in entries or any(_covers(entry, host, port) for entry in entries):
            return None
        return self.schemes.get(scheme) or self.schemes.get("all")


def _covers(entry: str, host: str, port: int) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    name, _, only_port = entry.partition(":")
    name = name.removeprefix("*").removeprefix(".")
    is_covered = host == name or host.endswith(f".{name}")
    return is_covered and only_port in ("", str(port))
