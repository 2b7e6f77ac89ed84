"""Which addresses are of the public internet."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# `is_global` is true of these, but they can lead to private addresses.
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
    """Return whether an IP address belongs to the public internet, seen through every disguise."""
    ip = _ip(address)
    return not is_in(address, _DISGUISES) and ip.is_global and not ip.is_multicast


def is_in(address: str, networks: Iterable[IpNetwork]) -> bool:
    """Return whether an IP address belongs to one of the networks."""
    ip = _ip(address)
    return any(ip in network for network in networks)


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip
