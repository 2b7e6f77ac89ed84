"""Settings of the network: proxies, trusted certificates, and where pictures may be fetched."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from settings.parsers import IpNetwork, printable_url
from settings.proxies import Proxy
from settings.reader import Reader
from settings.table import Table

# By which gunicorn or systemd pass on a socket that listens already.
_HANDED_SOCKETS = {"GUNICORN_FD", "LISTEN_FDS"}
_HOST_ADVICE = "write an address of this machine as HOST"
_LISTEN_ADVICE = {
    errno.EADDRINUSE: "stop what listens there, or write another PORT",
    errno.EACCES: "write a PORT above 1023",
}


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
    picture_networks: tuple[IpNetwork, ...]


def make_network(table: Table, reader: Reader) -> NetworkSettings:
    proxies = {"http": table.http_proxy, "https": table.https_proxy, "all": table.all_proxy}
    by_server: dict[str, Proxy | None] = {}
    for url, proxy in table.backend_proxies.items():
        server = urlsplit(printable_url(url))._replace(path="").geturl()
        if by_server.setdefault(server, proxy) != proxy:
            reader.fault("BACKEND_PROXIES", f"{server!r} has two proxies; write the same for both")
    return NetworkSettings(
        ca_bundle=table.ca_bundle,
        proxies={scheme: proxy for scheme, proxy in proxies.items() if proxy},
        no_proxy=table.no_proxy,
        backend_proxies=table.backend_proxies,
        picture_networks=table.picture_networks,
    )


def listen_fault(host: str, port: int) -> str | None:
    """Return why nothing can listen there, such as another server, and what to write; or None."""
    if not _HANDED_SOCKETS.isdisjoint(os.environ):
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            # As gunicorn does: connections of a server that has just ended are no obstacle.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        reason = f"{error.strerror}: {url_host(host)}:{port}"
        return f"HOST, PORT: {reason}; {_LISTEN_ADVICE.get(error.errno or 0, _HOST_ADVICE)}"
    return None


def url_host(host: str) -> str:
    """Return the host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
