"""The other side, for tests: real HTTP servers on loopback that say what a test scripts."""

import base64
import contextlib
import http.client
import http.server
import itertools
import json
import os
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def png(width: int = 1, height: int = 1, shade: int = 128, size: int = 0) -> bytes:
    """Return a grey PNG, padded with a private chunk to `size` bytes if that is more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    )
    rows = zlib.compress((b"\0" + bytes([shade]) * width) * height)
    tail = chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    padding = size - len(head) - len(tail) - 12
    return head + (chunk(b"teSt", b"\0" * padding) if padding >= 0 else b"") + tail


# Complete pictures of one pixel.
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAkQBADs=")
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0"
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAFA3PEY8MlBGQUZaVVBfeMiCeG5uePWvuZHI//////////////////////"
    "//////////////////////////////wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAAAAAA"
    "AAAAAAAAAAAAAAD/2gAIAQEAAD8AP//Z"
)


@dataclass
class Seen:
    """A request as a scripted server saw it."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def last_segment(self) -> str:
        return unquote(self.path.rpartition("/")[2])

    @property
    def query(self) -> dict[str, str]:
        found = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {name: values[0] for name, values in found.items()}

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Say:
    """An answer to give: `body` is bytes, a text, or anything that JSON can hold."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        if isinstance(self.body, str):
            return self.body.encode()
        return json.dumps(self.body).encode()


Answer = Say | Callable[[Seen], Say]


class Gate:
    """An answer that is held back until a test opens the gate."""

    def __init__(self, answer: Say) -> None:
        self.answer = answer
        self.opened = threading.Event()

    def __call__(self, seen: Seen) -> Say:
        assert self.opened.wait(30), "the gate was never opened"
        return self.answer


class ScriptedServer:
    """A server that gives the answers of `script` in turn, the last one again and again.

    An answer may be a function of the request. Without a script it answers 599, and every
    request is in `seen`, so that a test can say that nobody asked.
    """

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.seen: list[Seen] = []
        self._mutex = threading.Lock()
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                request = Seen(self.command, self.path, self.headers, self.rfile.read(length))
                answer = scripted.next_answer(request)
                say = answer(request) if callable(answer) else answer
                content = say.content()
                self.send_response(say.status)
                for name, value in {"Content-Length": str(len(content)), **say.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def next_answer(self, request: Seen) -> Answer:
        with self._mutex:
            self.seen.append(request)
            if not self.script:
                return Say("nobody was expected to ask", 599)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def say(self, *answers: Answer) -> None:
        self.script = list(answers)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class RawServer:
    """A server at the level of the socket, for what no HTTP library would send."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self.talk = talk
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.talk(connection)

    def close(self) -> None:
        # shutdown() first: close() alone leaves accept() waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def read_request(connection: socket.socket) -> bytes:
    """Read a whole request, so that closing afterwards sends no reset.

    Raises ConnectionError if the client leaves early.
    """
    data = _read_until(connection, b"", lambda data: b"\r\n\r\n" in data)
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", data)
    whole = data.index(b"\r\n\r\n") + 4 + int(found[1] if found else 0)
    return _read_until(connection, data, lambda data: len(data) >= whole)


def _read_until(
    connection: socket.socket, data: bytes, is_enough: Callable[[bytes], bool]
) -> bytes:
    while not is_enough(data):
        if not (received := connection.recv(65536)):
            raise ConnectionError
        data += received
    return data


@dataclass
class Got:
    """What a client got."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    reason: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


def fetch(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 30.0,
) -> Got:
    """Send the URL's path exactly as it is written: no library tidies it up."""
    scheme, _, rest = url.partition("://")
    assert scheme == "http"
    address, slash, target = rest.partition("/")
    connection = http.client.HTTPConnection(address, timeout=timeout)
    with contextlib.closing(connection):
        has_host = "Host" in (headers or {})
        connection.putrequest(method, slash + target, has_host, True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return Got(response.status, response.headers, response.read(), response.reason)


def send_and_leave(url: str, target: str) -> None:
    """Send a request and hang up before the answer."""
    parts = urlsplit(url)
    with socket.create_connection((str(parts.hostname), parts.port or 0)) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def wait_until(condition: Callable[[], Any], seconds: float = 15.0, what: str = "it") -> Any:
    """Return the first true value of `condition`; fail after `seconds`."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        pause.wait(0.02)
    return found


# Below the ports that the kernel gives to outgoing connections: one of those could take a port
# between our looking and the server's binding. Each process of a parallel run begins elsewhere.
_ports = itertools.count(12_000 + os.getpid() * 89 % 18_000)


def free_port() -> int:
    """Return a port of loopback that nobody listens on, and that no later call returns."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("count() never ends")
