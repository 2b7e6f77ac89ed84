"""Small forward proxies on loopback. Every name and address leads to 127.0.0.1."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from urllib.parse import urlsplit

from .servers import RawServer

TUNNEL = b"HTTP/1.1 200 Connection established\r\n\r\n"
REFUSAL = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


class HttpProxy:
    """An http proxy: CONNECT, and requests for http:// URLs. `heads` are the requests' heads."""

    def __init__(self) -> None:
        self.refusals = 0
        self.heads: list[str] = []
        self.server = RawServer(self._talk)
        self.address = f"127.0.0.1:{self.server.port}"
        self.close = self.server.close

    @property
    def targets(self) -> list[str]:
        """The request lines without the version."""
        return [head.partition(" HTTP/1.")[0] for head in self.heads]

    def _talk(self, client: socket.socket) -> None:
        head = _read_head(client)
        self.heads.append(head)
        line, _, fields = head.partition("\r\n")
        method, target, version = line.split(" ")
        if method == "CONNECT" and self.refusals:
            self.refusals -= 1
            client.sendall(REFUSAL)
            return
        if method == "CONNECT":
            client.sendall(TUNNEL)
            port, sent = int(target.rpartition(":")[2]), b""
        else:
            url = urlsplit(target)
            port = url.port or 80
            sent = f"{method} {url.path} {version}\r\nConnection: close\r\n{fields}".encode()
        with socket.create_connection(("127.0.0.1", port)) as server:
            server.sendall(sent)
            relay(client, server)


class SocksProxy:
    """A SOCKS 5 proxy (RFC 1928, 1929). `asked` holds (host, port), `users` what logged in."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.users: list[str] = []
        self.server = RawServer(self._talk)
        self.address = f"127.0.0.1:{self.server.port}"
        self.close = self.server.close

    def _talk(self, client: socket.socket) -> None:
        methods = _read(client, _read(client, 2)[1])
        if 2 in methods:
            client.sendall(b"\x05\x02")
            user = _read(client, _read(client, 2)[1])
            password = _read(client, _read(client, 1)[0])
            self.users.append(f"{user.decode()}:{password.decode()}")
            client.sendall(b"\x01\x00")
        else:
            client.sendall(b"\x05\x00")
        kind = _read(client, 4)[3]
        if kind == 1:
            host = socket.inet_ntoa(_read(client, 4))
        else:
            host = _read(client, _read(client, 1)[0]).decode()
        (port,) = struct.unpack(">H", _read(client, 2))
        self.asked.append((host, port))
        with socket.create_connection(("127.0.0.1", port)) as server:
            client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
            relay(client, server)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until one side ends."""
    back = threading.Thread(target=_copy, args=(other, one), daemon=True)
    back.start()
    _copy(one, other)
    back.join(10)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise OSError("the client has left")
        data += piece
    return data


def _read_head(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _read(connection, 1)
    return data.decode()
