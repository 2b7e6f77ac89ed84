"""Small proxies on loopback: every name and address leads to 127.0.0.1."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from .scripted import RawServer, read_request

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
        head = read_request(client).decode()
        self.heads.append(head)
        line, _, rest = head.partition("\r\n")
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
            sent = f"{method} {url.path} {version}\r\nConnection: close\r\n{rest}".encode()
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
        read = client.makefile("rb").read
        methods = read(read(2)[1])
        if 2 in methods:
            client.sendall(b"\x05\x02")
            user = read(read(2)[1])
            password = read(read(1)[0])
            self.users.append(f"{user.decode()}:{password.decode()}")
            client.sendall(b"\x01\x00")
        else:
            client.sendall(b"\x05\x00")
        kind = read(4)[3]
        host = socket.inet_ntoa(read(4)) if kind == 1 else read(read(1)[0]).decode()
        (port,) = struct.unpack(">H", read(2))
        self.asked.append((host, port))
        with socket.create_connection(("127.0.0.1", port)) as server:
            client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
            relay(client, server)


class Link:
    """A connection to a port of loopback that a test cuts, or freezes: every packet is lost.

    `requests` are the HTTP requests that began: "GET /path".
    """

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self._target = port
        self._passes = threading.Event()
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._server = RawServer(self._talk)
        self.url, self.port = self._server.url, self._server.port
        self.mend()

    def cut(self) -> None:
        """End all connections, and new ones at once."""
        self._is_cut = True
        for sock in self._open.copy():
            _shut(sock)

    def freeze(self) -> None:
        """Accept connections and requests, and pass nothing on until `mend`."""
        self._passes.clear()

    def mend(self) -> None:
        self._is_cut = False
        self._passes.set()

    def close(self) -> None:
        self._server.close()
        self.mend()
        self.cut()

    def _talk(self, client: socket.socket) -> None:
        if not self._is_cut:
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._open |= {client, server}
                relay(client, server, self._pass)
                self._open -= {client, server}

    def _pass(self, data: bytes) -> None:
        if begun := re.match(rb"([A-Z]+ \S+) HTTP/1", data):
            self.requests.append(begun[1].decode())
        self._passes.wait()


def relay(
    one: socket.socket, other: socket.socket, see: Callable[[bytes], None] = lambda data: None
) -> None:
    """Copy both ways until one side ends. `see` is shown what is about to be passed on."""
    back = threading.Thread(target=_copy, args=(other, one, see), daemon=True)
    back.start()
    _copy(one, other, see)
    back.join(10)


def _copy(source: socket.socket, target: socket.socket, see: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            see(data)
            target.sendall(data)
    for sock in (source, target):
        _shut(sock)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
