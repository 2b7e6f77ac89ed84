"""Settings of the network: proxies, trusted certificates, and where pictures may be fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from settings import parsers as v
from settings.proxies import Proxy
from settings.reader import Reader


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How other servers are reached.

    `proxies` maps `http`, `https` and `all` to a proxy, with the exceptions in `no_proxy`;
    `backend_proxies` maps a backend's URL to its own, or to None for a direct connection.
    """

    ca_bundle: Path | None
    proxies: Mapping[str, Proxy]
    no_proxy: str
    backend_proxies: Mapping[str, Proxy | None]
    picture_networks: tuple[v.IpNetwork, ...]

    def secrets(self) -> Iterator[str]:
        """Yield the proxies' passwords, or the users of those without one."""
        for proxy in (*self.proxies.values(), *self.backend_proxies.values()):
            if proxy:
                yield proxy.password or proxy.user


def read_network(reader: Reader, backends: tuple[str, ...]) -> NetworkSettings:
    """Read the settings; `backends` are the backends' URLs."""
    # As for curl and requests: the name in small letters first, and REQUESTS_CA_BUNDLE or
    # SSL_CERT_FILE where a company's machines trust its own authority.
    named = {
        scheme: reader.first_set(f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
        for scheme in ("http", "https", "all")
    }
    found = {scheme: reader.get(name, Proxy.parse, None) for scheme, name in named.items()}
    bundle = reader.first_set("CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return NetworkSettings(
        ca_bundle=reader.get(bundle, v.certificates, None),
        proxies={scheme: proxy for scheme, proxy in found.items() if proxy},
        no_proxy=reader.get(reader.first_set("no_proxy", "NO_PROXY"), str, ""),
        backend_proxies=_read_backend_proxies(reader, backends),
        picture_networks=reader.get("PICTURE_NETWORKS", v.networks, ()),
    )


def _read_backend_proxies(reader: Reader, backends: tuple[str, ...]) -> Mapping[str, Proxy | None]:
    found = reader.per_backend("BACKEND_PROXIES", backends, _proxy_or_none)
    by_server: dict[str, Proxy | None] = {}
    for url, proxy in found.items():
        server = urlsplit(v.printable_url(url))._replace(path="").geturl()
        if by_server.setdefault(server, proxy) != proxy:
            reader.fault("BACKEND_PROXIES", f"{server!r} has two proxies; write the same for both")
    return found


def _proxy_or_none(value: Any) -> Proxy | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError('is not a proxy; write "http://host:3128", or null for none')
    return Proxy.parse(value.strip())
