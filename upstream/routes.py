"""Where connections lead: to checked addresses, directly or through a proxy."""

from __future__ import annotations

import functools
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from metrics import Metrics
from settings.proxies import Proxy
from upstream import connections
from upstream.addresses import Address, IpNetwork, Resolver, is_in, is_public, resolved
from upstream.deadline import Deadline
from upstream.failure import UpstreamError, Why
from upstream.sockets import Opener, TimedSocket, TimedTLSSocket, first_open, opener_to
from upstream.tunnels import reach, tunnel


@dataclass(frozen=True, slots=True)
class Route:
    """Which server to reach, and how. `public_only` admits public addresses only."""

    scheme: str
    host: str
    port: int
    public_only: bool = False
    proxy: Proxy | None = None

    @property
    def base(self) -> str:
        """The beginning of its URLs, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def is_forwarded(self) -> bool:
        """Say whether the proxy takes the request itself, instead of opening a tunnel.

        A checked address always gets a tunnel: a proxy that forwards would make the Host header
        of the address.
        """
        takes_it = self.proxy is not None and self.proxy.forwards and self.scheme == "http"
        return takes_it and not self.public_only


class Dialer:
    """Opens connections over routes, and makes the pools that keep them."""

    def __init__(
        self,
        resolve: Resolver,
        ca_bundle: Path | None,
        networks: tuple[IpNetwork, ...],
        metrics: Metrics,
    ) -> None:
        self.resolve = resolve
        self.ca_bundle = ca_bundle
        self.networks = networks
        self.metrics = metrics
        self._mutex = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def pool(self, route: Route) -> urllib3.HTTPConnectionPool:
        """Return a new pool of connections over a route."""
        dial = functools.partial(self.dial, route)
        return connections.pool(route.scheme, route.host, route.port, dial, self.metrics)

    def dial(self, route: Route, deadline: Deadline) -> TimedSocket:
        """Connect over a route, TLS included. Raises UpstreamError or OSError."""
        sock = first_open(self._openers(route, deadline), deadline)
        if route.scheme == "http":
            return sock
        try:
            sock.arm()
            secured = self.context.wrap_socket(sock, server_hostname=route.host.rstrip("."))
        except BaseException:
            sock.close()
            raise
        assert isinstance(secured, TimedTLSSocket)
        return secured

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context of the process, made once: parsing the certificates costs 20 ms."""
        with self._mutex:
            if self._context is None:
                self._context = _tls_context(self.ca_bundle)
            return self._context

    def _openers(self, route: Route, deadline: Deadline) -> list[Opener]:
        if not route.proxy:
            return [opener_to(address) for address in self._addresses(route, deadline)]
        if route.is_forwarded:
            return [functools.partial(reach, route.proxy, self.resolve)]
        return [
            functools.partial(tunnel, route.proxy, self.resolve, host, route.port)
            for host in self._tunnel_hosts(route, route.proxy, deadline)
        ]

    def _tunnel_hosts(self, route: Route, proxy: Proxy, deadline: Deadline) -> list[str]:
        """Return what a tunnel may lead to: the host's name, or one of its addresses."""
        if proxy.resolves and not route.public_only:
            return [route.host]
        hosts = [address[4][0] for address in self._addresses(route, deadline)]
        if route.public_only and not all(is_public(host) for host in hosts):
            # A fake address, made up by the proxy's own DNS: only the proxy knows the real one.
            return [route.host]
        return hosts

    def _addresses(self, route: Route, deadline: Deadline) -> list[Address]:
        """Return the host's addresses, each of them checked if only public ones are admitted."""
        addresses = resolved(self.resolve, route.host, route.port, deadline)
        if route.public_only and not all(self._is_admitted(a[4][0]) for a in addresses):
            raise UpstreamError("it named an address that is not public", Why.FORBIDDEN)
        return addresses

    def _is_admitted(self, address: str) -> bool:
        return is_public(address) or is_in(address, self.networks)


def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_bundle or DEFAULT_CA_BUNDLE_PATH)
    context.sslsocket_class = TimedTLSSocket
    if ca_bundle:
        # Python 3.13 refuses authorities that RFC 5280 calls incomplete, as many private ones
        # are; older Pythons, curl and browsers accept them.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
