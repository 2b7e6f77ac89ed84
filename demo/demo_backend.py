"""An OpenAI-compatible backend that draws without any account: `python -m demo.demo_backend`.

It prints one line, `demo backend on http://127.0.0.1:PORT`, and serves until SIGINT or SIGTERM.
"""

import argparse
import base64
import json
import os
import re
import signal
import socketserver
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from demo.canvas import pad_png
from demo.painting import draw

MAX_BODY = 1 << 20  # bytes
MAX_DRAINED = 16 << 20  # bytes
MAX_SIDE = 4096  # pixels
KEPT_PICTURES = 32
FORBIDDEN = re.compile(r"\bforbidden\b", re.IGNORECASE)
STYLE = ", soft morning light, balanced composition, watercolour"


class ApiError(Exception):
    """An answer other than 200: its status, and the fields of OpenAI's error object."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class ImageRequest:
    """A request for a picture, as parsed from its JSON."""

    prompt: str
    width: int
    height: int
    seed: int
    wants_url: bool


def invalid(param: str, wanted: str) -> ApiError:
    """Return the error for an invalid field."""
    return ApiError(f"Invalid '{param}': expected {wanted}.", param=param, code="invalid_value")


def parse_size(text: object) -> tuple[int, int]:
    """Parse "WxH", in pixels."""
    found = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text) if isinstance(text, str) else None
    width, height = map(int, found.groups()) if found else (0, 0)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise invalid("size", f"'WIDTHxHEIGHT', each side from 1 to {MAX_SIDE}")
    return width, height


def parse_image_request(body: dict[str, Any]) -> ImageRequest:
    """Read the body of an image generation; an optional field may be null. Raise ApiError."""
    given = {name: value for name, value in body.items() if value is not None}
    prompt, count, seed = given.get("prompt"), given.get("n", 1), given.get("seed", 0)
    answer_format = given.get("response_format", "b64_json")
    if not isinstance(prompt, str) or not prompt.strip():
        raise invalid("prompt", "a non-empty string")
    if not isinstance(given.get("model", ""), str):
        raise invalid("model", "a string")
    if type(count) is not int or count != 1:  # True is an int, and equal to 1
        raise invalid("n", "1")
    if type(seed) is not int:
        raise invalid("seed", "an integer")
    if answer_format not in ("b64_json", "url"):
        raise invalid("response_format", "'b64_json' or 'url'")
    width, height = parse_size(given.get("size", "1024x1024"))
    return ImageRequest(prompt, width, height, seed, answer_format == "url")


def last_message_text(body: dict[str, Any]) -> str:
    """Return the text of the last message, given as a string or as a list of parts."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str) or not content.strip():
        raise invalid("messages", "a list whose last message has a text")
    return content


def rewrite_prompt(text: str) -> str:
    """Return a better prompt for the one between <original> tags, or for the whole text.

    Only instructions that speak of a refusal take the marked word out, so that one can watch the
    proxy optimise a prompt, have it refused, and recover. The last pair that holds anything
    counts: a template may speak of its tags before it uses them.
    """
    tagged = re.findall(r"<original>(.*?)</original>", text, re.DOTALL)
    original = next((inner.strip() for inner in reversed(tagged) if inner.strip()), text.strip())
    if "refused" in text.replace(original, ""):
        return FORBIDDEN.sub("gentle", original)
    return original + STYLE


class DemoServer(ThreadingHTTPServer):
    """The server and the state its requests share."""

    daemon_threads = True
    request_queue_size = 512
    timeout = 0.1  # seconds in which `serve` notices that it has to stop

    def __init__(self, port: int, delay: float = 0.0, min_bytes: int = 0) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one. OSError where the port is taken."""
        self.delay = delay
        self.min_bytes = min_bytes
        self.is_stopping = False
        self._stopped = threading.Event()
        self.pictures: dict[str, bytes] = {}  # by path, the oldest first
        self._lock = threading.Lock()
        # Drawing holds the interpreter: more at once would end no sooner, and need more memory.
        self._drawing = threading.BoundedSemaphore(2)
        super().__init__(("127.0.0.1", port), DemoHandler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's name look-up, which can hang where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a fault, but not a client that hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The server's own address."""
        return f"http://{self.server_name}:{self.server_port}"

    def serve(self) -> None:
        """Serve until `is_stopping`: a flag, because a signal handler must not take a lock."""
        while not self.is_stopping:
            self.handle_request()
        self._stopped.set()

    def picture_of(self, wanted: ImageRequest) -> bytes:
        """Return the PNG, after the delay."""
        self._stopped.wait(self.delay)
        with self._drawing:
            png = draw(wanted.prompt, wanted.width, wanted.height, wanted.seed)
        return pad_png(png, self.min_bytes)

    def keep_picture(self, png: bytes) -> str:
        """Keep a picture, for as long as it is among the newest, and return its path."""
        path = f"/pictures/{uuid.uuid4().hex}.png"
        with self._lock:
            self.pictures[path] = png
            if len(self.pictures) > KEPT_PICTURES:
                del self.pictures[next(iter(self.pictures))]
        return path


def answer_image(server: DemoServer, body: dict[str, Any]) -> dict[str, Any]:
    """Answer POST /v1/images/generations."""
    wanted = parse_image_request(body)
    if FORBIDDEN.search(wanted.prompt):
        raise ApiError(
            "Your request was rejected by the safety system.",
            kind="image_generation_user_error",
            code="moderation_blocked",
        )
    png = server.picture_of(wanted)
    if wanted.wants_url:
        image = {"url": server.url + server.keep_picture(png)}
    else:
        image = {"b64_json": base64.b64encode(png).decode()}
    return {"created": int(time.time()), "data": [image | {"revised_prompt": wanted.prompt}]}


def answer_chat(server: DemoServer, body: dict[str, Any]) -> dict[str, Any]:
    """Answer POST /v1/chat/completions."""
    content = f"<prompt>{rewrite_prompt(last_message_text(body))}</prompt>"
    message = {"role": "assistant", "content": content}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": "demo",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


Answer = Callable[[DemoServer, dict[str, Any]], dict[str, Any]]
POSTS: dict[str, Answer] = {
    "/v1/images/generations": answer_image,
    "/v1/chat/completions": answer_chat,
}
MODEL = {"id": "demo", "object": "model", "created": 0, "owned_by": "demo"}


class DemoHandler(BaseHTTPRequestHandler):
    """One connection of a client."""

    server: DemoServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits for the header's acknowledgement
    timeout = 60  # seconds without a byte, after which the connection ends

    def do_GET(self) -> None:
        """Answer with a kept picture or with the list of models."""
        path = self.path.partition("?")[0]
        picture = self.server.pictures.get(path)
        if picture is not None:
            self._send(200, picture, "image/png")
        elif path == "/v1/models":
            self._send_json(200, {"object": "list", "data": [MODEL]})
        else:
            self._send_json(404, ApiError(f"Unknown path: GET {path}").body)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer as the path says; every fault becomes an OpenAI error."""
        try:
            # Read even for an unknown path: what is left would pass for the next request.
            raw = self._read_body()
            path = self.path.partition("?")[0]
            if path not in POSTS:
                raise ApiError(f"Unknown path: POST {path}", status=404)
            self._send_json(200, POSTS[path](self.server, self._parse_body(raw)))
        except ApiError as error:
            self._send_json(error.status, error.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server itself refuses, also as an OpenAI error."""
        self.close_connection = True
        self._send_json(code, ApiError(message or "The request could not be read.").body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def _read_body(self) -> bytes:
        length_text = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,18}", length_text):
            self.close_connection = True
            raise ApiError("A Content-Length header is required.")
        length = int(length_text)
        if length <= MAX_BODY:
            return self.rfile.read(length)
        # A close on unread bytes is a reset, and the client would never see the answer.
        left = min(length, MAX_DRAINED)
        while left > 0 and (data := self.rfile.read(min(left, 1 << 16))):
            left -= len(data)
        self.close_connection = True
        raise ApiError(f"The body is longer than {MAX_BODY} bytes.", status=413)

    def _parse_body(self, raw: bytes) -> dict[str, Any]:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ApiError("The body is not valid JSON.") from error
        if not isinstance(body, dict):
            raise ApiError("The body has to be a JSON object.")
        return body

    def _send_json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.demo_backend", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0, the default: a free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each picture")
    parser.add_argument("--bytes", type=int, default=0, help="pad pictures to this size")
    parser.add_argument("--until-eof", action="store_true", help="stop when stdin ends")
    options = parser.parse_args(arguments)
    limits = (("port", 65535), ("delay", 86400), ("bytes", (1 << 31) - 1))  # the last is PNG's
    for name, most in limits:
        if not 0 <= getattr(options, name) <= most:
            parser.error(f"--{name}: expected 0 to {most}")
    return options


def stop_at_eof(server: DemoServer) -> None:
    """Stop the server when stdin ends.

    `sys.stdin` would hold a lock that the interpreter, when it ends, waits for and dies on.
    """
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # closed from the start: there is no one to outlive
    server.is_stopping = True


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; return the exit status."""
    options = parse_arguments(arguments)
    try:
        server = DemoServer(options.port, options.delay, options.bytes)
    except OSError as error:
        print(f"demo backend: port {options.port}: {error.strerror}", file=sys.stderr)
        return 1

    def stop(_signal: int, _frame: object) -> None:
        server.is_stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if options.until_eof:
        threading.Thread(target=stop_at_eof, args=[server], daemon=True).start()
    with server:
        print(f"demo backend on {server.url}", flush=True)
        server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
