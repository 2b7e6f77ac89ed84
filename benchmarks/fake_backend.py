"""An image backend that costs next to nothing: `python -m benchmarks.fake_backend --bytes 51200`.

It answers every prompt with the same picture, encoded once at start, so that the load on the
machine is the service's. It prints its URL and serves until it is terminated. The demo backend
would not do: it draws each picture anew, which takes longer than what is measured here.
"""

import argparse
import base64
import json
import socketserver
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from demo.canvas import pad_png
from demo.painting import draw


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to send; `headers` replace those that are sent by default."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def drawing(picture: bytes) -> Reply:
    """Return the answer of an OpenAI-compatible backend that has drawn `picture`."""
    encoded = base64.b64encode(picture).decode()
    return Reply(json.dumps({"created": 1, "data": [{"b64_json": encoded}]}).encode())


class Backend(ThreadingHTTPServer):
    """Gives `answer` the JSON of each POST and sends what it returns. Connections are kept alive.

    GET answers with the number of `calls` and of `connections` that carried them.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, answer: Callable[[Any], Reply]) -> None:
        self.answer = answer
        self.calls = 0
        self.connections = 0
        self._mutex = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def server_bind(self) -> None:
        """Bind without HTTPServer's name look-up, which can hang where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def count(self, *, is_first: bool) -> None:
        with self._mutex:
            self.calls += 1
            self.connections += is_first

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a fault, but not a client that hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Backend
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    has_called = False

    def do_GET(self) -> None:
        counts = {"calls": self.server.calls, "connections": self.server.connections}
        self._send(Reply(json.dumps(counts).encode()))

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        sent = self.rfile.read(length)
        if len(sent) < length:  # the client was killed
            raise ConnectionAbortedError
        body = json.loads(sent)
        self.server.count(is_first=not self.has_called)
        self.has_called = True
        self._send(self.server.answer(body))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        length = {"Content-Type": "application/json", "Content-Length": str(len(reply.body))}
        for name, value in (length | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fake_backend")
    parser.add_argument("--bytes", type=int, default=0, help="pad the picture to this size")
    parser.add_argument("--picture", type=Path, help="the picture to answer with")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    picture = options.picture.read_bytes() if options.picture else draw("a red apple", 64, 64, 42)
    reply = drawing(pad_png(picture, options.bytes))
    never = threading.Event()

    def answer(_: Any) -> Reply:
        never.wait(options.delay)
        return reply

    with Backend(answer) as server:
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
