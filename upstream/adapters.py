"""requests' adapters: kept connections, one TLS context, and checked addresses for pictures."""

import contextlib
import functools
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection

from settings.parsers import IpNetwork
from settings.proxies import NetworkSettings
from upstream.calls import STALE_SECONDS, UpstreamError, Why, current_call

# `is_global` is true of these, but they can lead to private addresses.
_DISGUISES = tuple(
    ipaddress.ip_network(network)
    for network in (
        "::/8",  # IPv4-compatible, IPv4-translated, NAT64
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local
        "192.88.99.0/24",  # 6to4 relays
    )
)


def is_public(address: str, networks: Iterable[IpNetwork] = ()) -> bool:
    """Return whether an address belongs to the public internet, undisguised, or to `networks`."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip
    is_disguised = any(ip in network for network in _DISGUISES)
    is_admitted = any(ip in network for network in networks)
    return is_admitted or (ip.is_global and not ip.is_multicast and not is_disguised)


# Servers to which connections are kept, and connections to each: as many as drawings at once.
KEPT = 64
# For each address of a host, so that a dead one leaves time for the next.
CONNECT_SECONDS = 10.0
# Routers forget silent connections: these are probed after 30 s, and dead after 60.
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class Adapter(HTTPAdapter):
    """Connections that are kept for later calls."""

    def __init__(self, network: NetworkSettings) -> None:
        super().__init__(pool_connections=KEPT, pool_maxsize=KEPT)
        self.network = network

    def send(self, request: requests.PreparedRequest, *args: Any, **more: Any) -> requests.Response:
        """Send a request; once more, on a new connection, if the server had closed the kept one."""
        try:
            return super().send(request, *args, **more)
        except requests.ConnectionError as error:
            if not current_call.get().was_stale(error):
                raise
        # Other kept connections may have been closed, too.
        self.close()
        return super().send(request, *args, **more)

    def send_checked(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        """Send a request to public addresses, or PICTURE_NETWORKS, only: an upstream named its URL.

        The name is resolved and checked for each request. The address replaces the host in the URL,
        also for a proxy, which would resolve the name itself; the Host header keeps the name. The
        addresses are tried in turn: asking for a picture again costs nothing.
        """
        *others, last = self._hosts(request, more["proxies"])
        for host in others:
            with contextlib.suppress(requests.ConnectionError):
                return self.send(_addressed(request, host), **more)
        return self.send(_addressed(request, last), **more)

    def get_connection_with_tls_context(self, *args: Any, **more: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **more)
        if not issubclass(pool.ConnectionCls, ObservedConnection):
            pool.ConnectionCls = _observed(pool.ConnectionCls)
        return pool

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, *args: Any, **more: Any
    ) -> Any:
        known: Any = super().build_connection_pool_key_attributes(request, *args, **more)
        place, options = known
        is_tls = place["scheme"] == "https"
        options["ssl_context"] = _tls_context(self.network.ca_bundle) if is_tls else None
        options["socket_options"] = _SOCKET_OPTIONS
        if host := request.headers.get("Host"):
            # TLS checks the certificate against this name. For `assert_hostname` urllib3 would
            # switch that check off in the context, which all connections share, and do it itself.
            options["server_hostname"] = urlsplit(f"//{host}").hostname
        return place, options

    def cert_verify(self, *args: Any, **more: Any) -> None:
        """Do nothing: requests would load the authorities into the shared TLS context again."""

    def _hosts(self, request: requests.PreparedRequest, proxies: Mapping[str, str]) -> list[str]:
        """Return the host's addresses. Raises UpstreamError unless all of them are admitted."""
        parts = urlsplit(str(request.url))
        call = current_call.get()
        with call.calls.connecting(call):
            found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
        addresses = [str(place[0]) for *_, place in found]
        admitted = self.network.picture_networks
        if not all(is_public(address, admitted) for address in addresses):
            raise UpstreamError("it named an address that is not public", Why.FORBIDDEN)
        if proxies and not all(map(is_public, addresses)):
            # A fake address, made up by the proxy's own DNS: only the proxy knows the real one.
            return [str(parts.hostname)]
        return addresses


class ObservedConnection(HTTPConnection):
    """A connection that reports to the call of its thread, and is counted."""

    is_kept = False

    def connect(self) -> None:
        call = current_call.get()
        call.connection, self.is_kept = self, False
        self.timeout = min(CONNECT_SECONDS, call.seconds)
        with call.calls.connecting(call):
            try:
                super().connect()
            except http.client.HTTPException as error:
                # Before the connection is open, only a proxy speaks HTTP.
                raise UpstreamError("its proxy gave no HTTP answer", Why.UNREACHABLE) from error
        call.calls.metrics.connected(is_new=True)
        self.timeout = call.seconds
        self.sock.settimeout(self.timeout)

    def request(self, *args: Any, **more: Any) -> None:
        call = current_call.get()
        call.check()
        call.connection = self
        if self.is_kept and not self.is_closed:
            call.calls.metrics.connected(is_new=False)
            call.stale_until = time.monotonic() + STALE_SECONDS
        super().request(*args, **more)
        call.sock, self.is_kept = self.sock, True


@functools.cache
def _observed(kind: type[HTTPConnection]) -> type[HTTPConnection]:
    """Return an observed subclass of one of urllib3's connections: plain, TLS, SOCKS or both."""
    return type(f"Observed{kind.__name__}", (ObservedConnection, kind), {})


@functools.cache
def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Return the TLS context of the process: parsing the certificates costs 20 ms."""
    context = ssl.create_default_context(cafile=ca_bundle or DEFAULT_CA_BUNDLE_PATH)
    if ca_bundle:
        # Python 3.13 refuses authorities that RFC 5280 calls incomplete, as many private ones
        # are; older Pythons, curl and browsers accept them.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _addressed(request: requests.PreparedRequest, host: str) -> requests.PreparedRequest:
    """Return a request with another host in its URL."""
    parts = urlsplit(str(request.url))
    place = f"[{host}]" if ":" in host else host
    moved = request.copy()
    moved.headers["Host"] = parts.netloc
    moved.url = parts._replace(netloc=f"{place}:{parts.port}" if parts.port else place).geturl()
    return moved
