"""How other servers are reached: a forward proxy as a value, and which one leads where."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from settings.parsers import IpNetwork, check_extra, url_host

_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080}

# Scheme, host, port.
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

        Raises ValueError. Its sentence never shows the URL, which may hold a password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            default_port, host, port = _PORTS[parts.scheme], parts.hostname, parts.port
        except (KeyError, ValueError):
            host = None
        if not host:
            advice = "write http://host:3128, socks5://host:1080 or socks5h://host:1080"
            raise ValueError(f"is not the URL of a proxy; {advice}")
        if parts.scheme != "http":
            check_extra("socks")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(parts.scheme, host, port or default_port, user, password)

    @property
    def url(self) -> str:
        """The URL that `parse` reads."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        return f"{self.scheme}://{login}{url_host(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How other servers are reached.

    `ca_bundle` is a file of certificates to trust instead of certifi's. `proxies` maps `http`,
    `https` and `all` to a proxy, with the exceptions that `no_proxy` lists: host names (with all
    below them), host:port, addresses, networks, or `*`. `own_proxies` maps an origin to a proxy of
    its own, or to None for a direct connection, and goes first. Pictures may be fetched from
    `picture_networks` although those are not public.
    """

    ca_bundle: Path | None = None
    proxies: Mapping[str, Proxy] = field(default_factory=dict)
    no_proxy: str = ""
    own_proxies: Mapping[Origin, Proxy | None] = field(default_factory=dict)
    picture_networks: Sequence[IpNetwork] = ()

    def proxy_to(self, place: Origin, *, named_by: Origin | None = None) -> Proxy | None:
        """Return the proxy to a place, which another may have named: its own then leads there."""
        for origin in (place, named_by or place):
            if origin in self.own_proxies:
                return self.own_proxies[origin]
        scheme, host, port = place
        # requests.utils.should_bypass_proxies sets an environment variable while it looks, which
        # threads restore wrongly for each other, and knows no IPv6 networks.
        entries = self.no_proxy.lower().replace(",", " ").split()
        if "*" in entries or any(_covers(entry, host, port) for entry in entries):
            return None
        return self.proxies.get(scheme) or self.proxies.get("all")


DIRECT = NetworkSettings()


def _covers(entry: str, host: str, port: int) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    name, _, only_port = entry.partition(":")
    name = name.removeprefix("*").removeprefix(".")
    is_covered = host == name or host.endswith(f".{name}")
    return is_covered and only_port in ("", str(port))
