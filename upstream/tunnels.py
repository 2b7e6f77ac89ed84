"""Connections through a forward proxy."""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from settings.proxies import Proxy
from upstream.addresses import Address, Resolver, resolved
from upstream.deadline import Deadline
from upstream.failure import ProxyFailure
from upstream.sockets import TimedSocket, first_open, opener_to


def reach(proxy: Proxy, resolve: Resolver, deadline: Deadline) -> TimedSocket:
    """Connect to the proxy itself. Raises OSError."""
    with _blaming_the_proxy():
        addresses = resolved(resolve, proxy.host, proxy.port, deadline)
        return first_open([opener_to(address) for address in addresses], deadline)


def tunnel(
    proxy: Proxy, resolve: Resolver, host: str, port: int, deadline: Deadline
) -> TimedSocket:
    """Connect to a host through the proxy. Raises OSError."""
    if proxy.scheme == "http":
        return _http_tunnel(proxy, resolve, host, port, deadline)
    with _blaming_the_proxy():
        addresses = resolved(resolve, proxy.host, proxy.port, deadline)
        through = [functools.partial(_socks_tunnel, proxy, a, host, port) for a in addresses]
        return first_open(through, deadline)


@contextlib.contextmanager
def _blaming_the_proxy() -> Iterator[None]:
    try:
        yield
    except (ProxyFailure, TimeoutError):
        raise
    except (OSError, UnicodeError) as error:
        raise ProxyFailure("its proxy could not be reached") from error


def _http_tunnel(
    proxy: Proxy, resolve: Resolver, host: str, port: int, deadline: Deadline
) -> TimedSocket:
    sock = reach(proxy, resolve, deadline)
    try:
        _connect(sock, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", proxy.headers)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: TimedSocket, authority: str, headers: Mapping[str, str]) -> None:
    """Have an http proxy open a tunnel (RFC 9110, 9.3.6). Raises OSError."""
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    with contextlib.closing(http.client.HTTPResponse(sock, method="CONNECT")) as response:
        try:
            response.begin()
        except http.client.HTTPException as error:
            raise ProxyFailure("its proxy gave no HTTP answer") from error
        if sock.has_ended:
            raise ProxyFailure("its proxy gave no HTTP answer")
        if response.status // 100 != 2:
            raise ProxyFailure(f"its proxy answered CONNECT with {response.status}")


def _socks_tunnel(
    proxy: Proxy, address: Address, host: str, port: int, deadline: Deadline
) -> TimedSocket:
    import socks  # type: ignore[import-untyped]  # an extra, and without types

    sock = _socks_socket()(address[0])
    # `host` goes as it is, a name too: whether to resolve it here was decided before.
    sock.set_proxy(socks.SOCKS5, *address[4][:2], True, proxy.user, proxy.password)
    sock.settimeout(max(0.001, deadline.remaining()))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.connect((host, port))
    except socks.ProxyError as error:
        sock.close()
        if error.socket_err and not isinstance(error.socket_err, socks.ProxyError):
            raise error.socket_err from error
        raise ProxyFailure("its proxy did not connect to it") from error
    return TimedSocket(fileno=sock.detach())


@functools.cache
def _socks_socket() -> Any:
    """Return PySocks' socket, with a handshake that ends on time however slowly it trickles."""
    import socks

    class SocksSocket(TimedSocket, socks.socksocket):  # type: ignore[misc]  # without types
        pass

    return SocksSocket
