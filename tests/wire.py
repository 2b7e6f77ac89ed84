"""What the tests of outbound calls share: a guarded network, and servers that misbehave."""

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from settings.proxies import NetworkSettings
from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why

from .scripted import RawServer, ScriptedServer, read_request

Talk = Callable[[socket.socket], object]
MakeServer = Callable[[], ScriptedServer]
MakeRawServer = Callable[[Talk], RawServer]
Certificates = tuple[Path, Path]

MIB = 2**20
SHORT = 0.3
PUBLIC = "93.184.216.34"
TOKEN = {"Authorization": "Bearer of-the-backend"}
CUT = "its answer was cut short or is not HTTP"
OK = b"HTTP/1.1 200 OK\r\n"
DRAWN = OK + b"Content-Length: 5\r\n\r\ndrawn"
SIZED = OK + b"Content-Length: 100000\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

# A slow machine fails no test: an example may take as long as it likes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def any_json(words: st.SearchStrategy[Any], most: int = 20) -> st.SearchStrategy[Any]:
    """Return JSON of any shape, with these words among its values and keys."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | words,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(words | st.text(max_size=5), inner, max_size=4)
        ),
        max_leaves=most,
    )


class Net:
    """What stands in for the internet: names, and `routes` of public addresses to loopback.

    A name has answers that are given in turn, the last one again and again.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.routes: dict[str, str] = {}
        self.resolved: list[str] = []
        self.asked: list[str] = []

    def name(self, host: str, *answers: list[str]) -> None:
        self.names[host] = list(answers)

    def addresses(self, host: str) -> list[str]:
        self.resolved.append(host)
        answers = self.names.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def route(self, address: str) -> str:
        self.asked.append(address)
        there = self.routes.get(address, address)
        assert ipaddress.ip_address(there).is_loopback, f"a packet would have gone to {address}"
        return there


def guarded_net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """Note every connection that is tried; let none of them leave this machine."""
    made = Net()
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded(sock: socket.socket, address: Any) -> None:
        connect(sock, (made.route(address[0]), *address[1:]))

    def named(host: str, port: Any, *args: Any, **more: Any) -> list[Any]:
        with contextlib.suppress(socket.gaierror):
            # The rest is what needs no name server.
            flags = 0 if host == "localhost" else socket.AI_NUMERICHOST
            return look_up(host, port, 0, socket.SOCK_STREAM, 0, flags)
        return [address_of(address, port) for address in made.addresses(host)]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", named)
    yield made
    leads_out = [a for a in made.asked if not ipaddress.ip_address(a).is_loopback]
    assert set(leads_out) <= made.routes.keys()


def address_of(address: str, port: int) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, port))


def ask(url: str, seconds: float = 10.0, trust: Path | None = None, **more: Any) -> Reply:
    upstream = Upstream(NetworkSettings(ca_bundle=trust))
    return upstream.request("GET", url, deadline=Deadline.after(seconds), **more)


def download(
    url: str, home: str = "http://127.0.0.1:1/", upstream: Upstream | None = None, **more: Any
) -> Reply:
    options = {"deadline": Deadline.after(more.pop("seconds", 10)), "limit": MIB, **more}
    return (upstream or Upstream()).download(url, home=home, headers=TOKEN, **options)


def reason_of(call: Callable[[], Reply]) -> str:
    with pytest.raises(UpstreamError) as caught:
        call()
    assert caught.value.why is not Why.TIMED_OUT
    return str(caught.value)


def assert_ends_at_deadline(call: Callable[[], Reply]) -> None:
    """Assert that a call with SHORT seconds ends with them, and says why.

    The slack is for a busy machine; every stall would last far longer.
    """
    began = time.monotonic()
    with pytest.raises(UpstreamError) as caught:
        call()
    assert SHORT - 0.02 <= time.monotonic() - began <= SHORT + 1.0
    assert str(caught.value) == "it did not answer in time"
    assert caught.value.why is Why.TIMED_OUT


def saying(data: bytes, then: Talk = lambda connection: None) -> Talk:
    """Answer any request with `data`, go on with `then`, and close."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(data)
        then(connection)

    return talk


def hang(connection: socket.socket) -> None:
    """Wait until the other side closes."""
    while connection.recv(65536):
        pass


def dripping(part: bytes) -> Talk:
    """Send `part` again and again, slowly, until the other side closes."""

    def talk(connection: socket.socket) -> None:
        pause = threading.Event()
        while not pause.wait(0.02):
            connection.sendall(part)

    return talk


def pouring(part: bytes) -> Talk:
    """Send `part` again and again, as fast as it goes, until the other side closes."""

    def talk(connection: socket.socket) -> None:
        while True:
            connection.sendall(part)

    return talk


def over_tls(server: Path, talk: Talk) -> Talk:
    """Talk TLS to whoever connects."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)

    def talk_tls(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            talk(wrapped)

    return talk_tls
