"""A TCP proxy on loopback that a test cuts, or freezes so that every packet is lost."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

from .servers import RawServer


class Link:
    """Leads to a port of loopback. `requests` are the HTTP requests that began: "GET /path"."""

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self._target = port
        self._passes = threading.Event()
        self._passes.set()
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._server = RawServer(self._talk)
        self.url = self._server.url
        self.port = self._server.port

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
        if self._is_cut:
            return
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open |= {client, server}
            back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            back.start()
            self._copy(client, server)
            back.join(10)
            self._open -= {client, server}

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if begun := re.match(rb"([A-Z]+ \S+) HTTP/1", data):
                    self.requests.append(begun[1].decode())
                self._passes.wait()
                target.sendall(data)
        _shut(source)
        _shut(target)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
