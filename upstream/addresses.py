"""Which addresses a host has, and which of them are of the public internet."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from upstream.deadline import Deadline

# One address as socket.getaddrinfo returns it: family, kind, protocol, name, (host, port, …).
Address = tuple[int, int, int, str, tuple[Any, ...]]
Resolver = Callable[..., list[Any]]
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# Addresses that lead, or may lead, somewhere private although `is_global` is true of them.
_DISGUISES: list[IpNetwork] = [
    ipaddress.ip_network(network)
    for network in (
        "::/8",  # IPv4-compatible, IPv4-translated, NAT64
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local
        "192.88.99.0/24",  # 6to4 relays
    )
]


def is_public(address: str) -> bool:
    """Say whether an IP address belongs to the public internet, seen through every disguise."""
    ip = _ip(address)
    return not is_in(address, _DISGUISES) and ip.is_global and not ip.is_multicast


def is_in(address: str, networks: Iterable[IpNetwork]) -> bool:
    """Say whether an IP address belongs to one of the networks."""
    ip = _ip(address)
    return any(ip in network for network in networks)


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip


def resolved(resolve: Resolver, host: str, port: int, deadline: Deadline) -> list[Address]:
    """Return the addresses of a host. Raises OSError or UnicodeError if it has none."""
    # A literal address needs no thread, which would be a quarter of the cost of a local call.
    with contextlib.suppress(ValueError):
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 0, "", (host, port))]
    answer: Future[list[Address]] = Future()

    def look_up() -> None:
        try:
            answer.set_result(resolve(host, port, 0, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.set_exception(error)

    # getaddrinfo takes no time-out, so the caller waits and may leave the thread behind.
    threading.Thread(target=look_up, daemon=True).start()
    return answer.result(deadline.remaining())
