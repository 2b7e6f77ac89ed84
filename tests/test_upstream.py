"""Every call ends at its deadline, within its byte limit, and only where it may go."""

from __future__ import annotations

import base64
import contextlib
import gzip
import ipaddress
import socket
import ssl
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why, is_public, origin

from .servers import RawServer, Say, ScriptedServer, free_port, png, read_request

Talk = Callable[[socket.socket], None]
AnyServer = ScriptedServer | RawServer
MakeServer = Callable[[], ScriptedServer]
MakeRawServer = Callable[[Talk], RawServer]

MIB = 2**20
SHORT = 0.3
PUBLIC = "93.184.216.34"
TOKEN = {"Authorization": "Bearer of-the-backend"}
CUT = "its answer was cut short or is not HTTP"
# A busy machine is no finding: an example may take as long as it likes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Net:
    """What stands in for the internet: `routes` lead public addresses back to loopback."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.routes: dict[str, str] = {}

    def route(self, address: str) -> str:
        self.asked.append(address)
        there = self.routes.get(address, address)
        assert ipaddress.ip_address(there).is_loopback, f"a packet would have gone to {address}"
        return there


@pytest.fixture(autouse=True)
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """Note every connection that is tried; let none of them leave this machine."""
    made = Net()
    connect = socket.socket.connect

    def guarded(sock: socket.socket, address: Any) -> None:
        connect(sock, (made.route(address[0]), *address[1:]))

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield made
    leads_out = [a for a in made.asked if not ipaddress.ip_address(a).is_loopback]
    assert set(leads_out) <= made.routes.keys()


class Names:
    """A resolver that gives the answers it is handed in turn, the last one again and again."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: Any) -> list[Any]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [_address(address, port) for address in answer]


def _address(address: str, port: int) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, port))


def ask(
    url: str,
    seconds: float = 10.0,
    resolve: Any = socket.getaddrinfo,
    trust: Path | None = None,
    **more: Any,
) -> Reply:
    upstream = Upstream(resolve, ca_bundle=trust)
    return upstream.request("GET", url, deadline=Deadline.after(seconds), **more)


def download(
    url: str,
    home: str,
    resolve: Any = socket.getaddrinfo,
    seconds: float = 10.0,
    limit: int = MIB,
) -> Reply:
    return Upstream(resolve).download(
        url, home=home, deadline=Deadline.after(seconds), limit=limit, headers=TOKEN
    )


def reason_of(call: Callable[[], Reply]) -> str:
    with pytest.raises(UpstreamError) as caught:
        call()
    assert caught.value.why is not Why.TIMED_OUT
    return str(caught.value)


def assert_ends_at_deadline(call: Callable[[], Reply]) -> None:
    """Assert that a call with SHORT seconds takes just these, and says why it ended."""
    began = time.monotonic()
    with pytest.raises(UpstreamError) as caught:
        call()
    assert SHORT - 0.02 <= time.monotonic() - began <= SHORT + 0.3
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


OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: 100000\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

# --- the deadline -------------------------------------------------------------------------------

STALLS: dict[str, Talk] = {
    "before the answer": saying(b"", hang),
    "before the request is read": hang,
    "in the status line": saying(b"HTTP/1.1 200 O", dripping(b"K")),
    "between interim answers": saying(b"", dripping(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "in a header": saying(OK + b"X-Long: ", dripping(b"a")),
    "in the body": saying(SIZED, hang),
    "in a dripping body": saying(SIZED, dripping(b"x")),
    "in a body of no announced length": saying(OK + b"\r\n", dripping(b"x")),
    "in a chunk": saying(CHUNKED + b"fff\r\n", dripping(b"x")),
    "between chunks": saying(CHUNKED, dripping(b"1\r\nx\r\n")),
    "in the size of a chunk": saying(CHUNKED, dripping(b"0")),
    "after the last chunk": saying(CHUNKED + b"0\r\n", dripping(b"X-Trailer: y\r\n")),
    "in what is compressed": saying(
        OK + b"Content-Encoding: gzip\r\n\r\n", dripping(gzip.compress(b""))
    ),
}


@pytest.mark.parametrize("stall", STALLS)
def test_stalling_answer_ends_at_the_deadline(raw_server: MakeRawServer, stall: str) -> None:
    url = raw_server(STALLS[stall]).url
    assert_ends_at_deadline(lambda: ask(url, SHORT))


def test_upload_that_nobody_reads_ends_at_the_deadline(raw_server: MakeRawServer) -> None:
    done = threading.Event()

    def never_read(connection: socket.socket) -> None:
        done.wait(10)

    url = raw_server(never_read).url
    files = {"file": ("a.png", bytes(32 * MIB), "image/png")}
    assert_ends_at_deadline(lambda: ask(url, SHORT, files=files))
    done.set()


@pytest.fixture
def full_port(opened: list[Any]) -> int:
    """A port where nobody accepts and no room is left to wait: connecting takes for ever."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    opened.append(listener)
    for _ in range(4):
        waiting = socket.socket()
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
        opened.append(waiting)
    return int(listener.getsockname()[1])


def test_connection_that_nobody_accepts_ends_at_the_deadline(full_port: int) -> None:
    assert_ends_at_deadline(lambda: ask(f"http://127.0.0.1:{full_port}/", SHORT))


def test_resolver_that_hangs_ends_at_the_deadline() -> None:
    released = threading.Event()

    def resolve(*_: Any) -> list[Any]:
        released.wait(10)
        return []

    assert_ends_at_deadline(lambda: ask("http://slow.example/", SHORT, resolve))
    released.set()


def test_dead_address_leaves_time_for_the_next_one(full_port: int, server: MakeServer) -> None:
    alive = server()
    alive.say(Say("drawn"))
    both = [_address("127.0.0.1", full_port), _address("127.0.0.1", alive.port)]
    began = time.monotonic()
    assert ask("http://two.example/", 0.8, lambda *_: both).body == b"drawn"
    assert 0.38 <= time.monotonic() - began < 0.8


def test_address_family_without_a_socket_is_passed_over(server: MakeServer) -> None:
    alive = server()
    alive.say(Say("drawn"))
    unknown = (9999, socket.SOCK_STREAM, 6, "", ("127.0.0.1", alive.port))
    both = [unknown, _address("127.0.0.1", alive.port)]
    assert ask("http://two.example/", resolve=lambda *_: both).body == b"drawn"


def test_redirects_share_one_deadline(server: MakeServer, raw_server: MakeRawServer) -> None:
    slow = threading.Event()

    def redirect(connection: socket.socket) -> None:
        read_request(connection)
        slow.wait(0.2)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")

    url = raw_server(redirect).url
    assert_ends_at_deadline(lambda: download(url, url, seconds=SHORT))


def test_deadline_in_the_past_ends_at_once(server: MakeServer) -> None:
    silent = server()
    began = time.monotonic()
    with pytest.raises(UpstreamError):
        ask(silent.url, 0.0)
    assert time.monotonic() - began < 0.3


def test_sooner_deadline_wins_whichever_it_is() -> None:
    deadline = Deadline.after(10, clock=lambda: 100.0)
    assert deadline.remaining() == 10
    assert deadline.within(3).remaining() == 3
    assert deadline.within(30).remaining() == 10
    assert not deadline.is_over
    assert Deadline.after(0, clock=lambda: 100.0).is_over
    assert Deadline(99.0, clock=lambda: 100.0).remaining() == 0


# --- the byte limit -----------------------------------------------------------------------------


def bomb(layers: int) -> bytes:
    """Return what unpacks to a gigabyte of zeros."""
    ten_mib = gzip.compress(bytes(10 * MIB), 9)
    data = ten_mib * 100
    return data if layers == 1 else gzip.compress(data, 9)


def compressed(coding: bytes, data: bytes) -> Talk:
    length = str(len(data)).encode()
    head = OK + b"Content-Encoding: " + coding + b"\r\nContent-Length: " + length + b"\r\n\r\n"
    return saying(head + data)


FLOODS: dict[str, Callable[[], Talk]] = {
    "endless": lambda: saying(OK + b"\r\n", pouring(bytes(65536))),
    "announced as 10 GB": lambda: saying(OK + b"Content-Length: 10000000000\r\n\r\n", hang),
    "endless chunks": lambda: saying(CHUNKED, pouring(b"10000\r\n" + bytes(65536) + b"\r\n")),
    "chunk of a negative size": lambda: saying(CHUNKED + b"-1\r\n", pouring(bytes(65536))),
    "one endless chunk": lambda: saying(CHUNKED + b"f" * 60 + b"\r\n", pouring(bytes(65536))),
    "gzip bomb": lambda: compressed(b"gzip", bomb(1)),
    "gzip bomb in gzip": lambda: compressed(b"gzip, gzip", bomb(2)),
    "deflate bomb": lambda: compressed(b"deflate", zlib.compress(bytes(64 * MIB))),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_flood_ends_at_the_limit_without_filling_memory(
    raw_server: MakeRawServer, flood: str
) -> None:
    url = raw_server(FLOODS[flood]()).url
    peak, reason = peak_and_reason(url, limit=MIB)
    assert reason == f"its answer is larger than {MIB} bytes"
    assert peak < 8 * MIB


@pytest.mark.parametrize(
    ("head", "part"),
    [
        pytest.param(OK, b"X-More: " + b"a" * 8000 + b"\r\n", id="endless headers"),
        pytest.param(OK + b"X-Long: ", b"a" * 65536, id="endless header"),
        pytest.param(b"", b"a" * 65536, id="endless status line"),
        pytest.param(CHUNKED + b"1;", b"a" * 65536, id="endless chunk extension"),
    ],
)
def test_endless_protocol_ends_without_filling_memory(
    raw_server: MakeRawServer, head: bytes, part: bytes
) -> None:
    peak, reason = peak_and_reason(raw_server(saying(head, pouring(part))).url, limit=MIB)
    assert reason == CUT
    assert peak < 8 * MIB


def peak_and_reason(url: str, limit: int) -> tuple[int, str]:
    """Return the bytes that Python held at most during a call that fails, and its reason."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        reason = reason_of(lambda: ask(url, 10, limit=limit))
        return tracemalloc.get_traced_memory()[1] - before, reason
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("head", [OK + b"\r\n", OK + b"Content-Length: %d\r\n\r\n"])
def test_answer_of_just_the_limit_is_read(raw_server: MakeRawServer, head: bytes) -> None:
    for size in (1000, 1001):
        announced = head % size if b"%d" in head else head
        url = raw_server(saying(announced + bytes(size))).url
        assert len(ask(url, limit=1001).body) == size
    assert reason_of(lambda: ask(url, limit=1000)) == "its answer is larger than 1000 bytes"


def test_identity_is_asked_for_and_gzip_read_all_the_same(server: MakeServer) -> None:
    zipping = server()
    zipping.say(Say(gzip.compress(b"drawn"), headers={"Content-Encoding": "gzip"}))
    assert ask(zipping.url).body == b"drawn"
    assert zipping.seen[0].headers["Accept-Encoding"] == "identity"


# --- answers that are none ----------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN: dict[str, tuple[Talk, str]] = {
    "closed without an answer": (saying(b""), CUT),
    "cut status line": (saying(b"HTTP/1.1 40"), CUT),
    "cut after the status line": (saying(b"HTTP/1.1 400 Bad Request\r\n"), CUT),
    "cut header": (saying(b"HTTP/1.1 400 Bad Request\r\nContent-Ty"), CUT),
    "cut headers": (saying(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n"), CUT),
    "cut body": (saying(OK + b"Content-Length: 10\r\n\r\n123456789"), CUT),
    "missing body": (saying(OK + b"Content-Length: 10\r\n\r\n"), CUT),
    "cut chunk": (saying(CHUNKED + b"a\r\n123456789"), CUT),
    "cut between chunks": (saying(CHUNKED + b"1\r\nx\r\n"), CUT),
    "chunk of no size": (saying(CHUNKED + b"x\r\n"), CUT),
    "chunk of a negative size": (saying(CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n"), CUT),
    "gzip that is none": (compressed(b"gzip", b"no gzip"), CUT),
    "garbage": (saying(b"SSH-2.0-OpenSSH_9.9\r\n"), CUT),
    "no status": (saying(b"HTTP/1.1 many things\r\n\r\n"), CUT),
    "HTTP/2": (saying(b"HTTP/2.0 200 OK\r\n\r\n"), CUT),
    "reset": (saying(b"", reset), "it reset the connection"),
    "reset in the body": (saying(SIZED + b"x", reset), "it reset the connection"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_answer_is_an_upstream_error(raw_server: MakeRawServer, fault: str) -> None:
    talk, reason = BROKEN[fault]
    url = raw_server(talk).url
    assert reason_of(lambda: ask(url)) == reason


def test_refused_connection_says_so() -> None:
    url = f"http://127.0.0.1:{free_port()}/secret"
    assert reason_of(lambda: ask(url)) == "it refused the connection"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(-2, "secret"), "its name could not be resolved"),
        (UnicodeError("label too long"), "it could not be reached"),
    ],
)
def test_name_that_resolves_to_nothing_is_an_upstream_error(error: Exception, reason: str) -> None:
    def resolve(*_: Any) -> list[Any]:
        raise error

    assert reason_of(lambda: ask("http://no.example/", resolve=resolve)) == reason


@pytest.mark.parametrize("answer", [[], [(9999, 1, 6, "", ("127.0.0.1", 80))]])
def test_host_without_a_usable_address_says_so(answer: list[Any]) -> None:
    reason = reason_of(lambda: ask("http://no.example/", resolve=lambda *_: answer))
    assert reason == "it could not be reached"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"a":', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff{}"]
)
def test_body_that_is_not_json_is_an_upstream_error(body: bytes) -> None:
    with pytest.raises(UpstreamError, match=r"^its answer is not JSON$"):
        Reply(200, {}, body).json()


def test_body_deeper_than_any_stack_is_an_upstream_error(server: MakeServer) -> None:
    deep = server()
    deep.say(Say(b"[" * 100_000 + b"]" * 100_000))
    reply = ask(deep.url)
    assert len(reply.body) == 200_000
    with pytest.raises(UpstreamError, match="not JSON"):
        reply.json()


@unhurried
@given(st.binary(max_size=200))
def test_json_of_any_bytes_is_a_value_or_an_upstream_error(body: bytes) -> None:
    with contextlib.suppress(UpstreamError):
        Reply(200, {}, body).json()


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and pics.example, and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=pics.example -addext subjectAltName=DNS:pics.example,IP:127.0.0.1"
        f" -keyout {path} -out {path}.crt".split(),
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def tls_server(raw_server: MakeRawServer, certificate: Path) -> Callable[[Talk], int]:
    """Make servers that talk TLS; returns the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def make(talk: Talk) -> int:
        def talk_tls(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as wrapped:
                talk(wrapped)

        return raw_server(talk_tls).port

    return make


DRAWN = OK + b"Content-Length: 5\r\n\r\ndrawn"


def test_self_signed_certificate_is_refused(tls_server: Callable[[Talk], int]) -> None:
    port = tls_server(saying(DRAWN))
    reason = reason_of(lambda: ask(f"https://127.0.0.1:{port}/"))
    assert reason == "its certificate or TLS failed"


def test_server_without_tls_is_refused(raw_server: MakeRawServer) -> None:
    port = raw_server(lambda connection: connection.sendall(DRAWN)).port
    reason = reason_of(lambda: ask(f"https://127.0.0.1:{port}/"))
    assert reason == "its certificate or TLS failed"


def test_certificate_is_checked_against_the_name_that_was_asked(
    tls_server: Callable[[Talk], int], certificate: Path
) -> None:
    port = tls_server(saying(DRAWN))
    names = Names(["127.0.0.1"])
    assert ask(f"https://pics.example:{port}/", 10, names, certificate).body == b"drawn"
    reason = reason_of(lambda: ask(f"https://other.example:{port}/", 10, names, certificate))
    assert reason == "its certificate or TLS failed"


@pytest.mark.parametrize("stall", ["before the answer", "in a header", "in a dripping body"])
def test_stalling_tls_answer_ends_at_the_deadline(
    tls_server: Callable[[Talk], int], certificate: Path, stall: str
) -> None:
    port = tls_server(STALLS[stall])
    assert_ends_at_deadline(lambda: ask(f"https://127.0.0.1:{port}/", SHORT, trust=certificate))


HANDSHAKE = b"\x16\x03\x03\x40\x00"  # a record of 16 KiB, of which only a drip will come


@pytest.mark.parametrize(
    "talk", [hang, lambda c: (c.sendall(HANDSHAKE), dripping(b"\0")(c))], ids=["hang", "drip"]
)
def test_stalling_handshake_ends_at_the_deadline(
    raw_server: MakeRawServer, certificate: Path, talk: Talk
) -> None:
    port = raw_server(talk).port
    assert_ends_at_deadline(lambda: ask(f"https://127.0.0.1:{port}/", SHORT, trust=certificate))


# --- what is sent -------------------------------------------------------------------------------


def test_environment_is_never_consulted(
    server: MakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy, target = server(), server()
    target.say(Say("drawn", headers={"Set-Cookie": "a=b"}))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv(name.lower(), proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    shared = Upstream()
    for _ in range(2):
        reply = shared.request("GET", target.url + "/a?b=c", deadline=Deadline.after(10))
        assert reply.body == b"drawn"
    assert proxy.seen == []
    assert [seen.target for seen in target.seen] == ["/a?b=c"] * 2
    for seen in target.seen:
        assert "Authorization" not in seen.headers
        assert "Cookie" not in seen.headers
        assert seen.headers["User-Agent"] == "prompt-image-proxy"


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        (None, "Basic " + base64.b64encode(b"user:pa@ss").decode()),
        ({"X-API-Key": "k"}, "Basic " + base64.b64encode(b"user:pa@ss").decode()),
        (TOKEN, TOKEN["Authorization"]),
    ],
)
def test_credentials_in_the_url_never_replace_a_token(
    server: MakeServer, headers: dict[str, str] | None, sent: str
) -> None:
    target = server()
    target.say(Say("drawn"))
    url = target.url.replace("//", "//us%65r:pa%40ss@") + "/x"
    assert ask(url, headers=headers).body == b"drawn"
    assert target.seen[0].headers["Authorization"] == sent
    assert target.seen[0].headers["Host"] == f"127.0.0.1:{target.port}"


def test_json_and_files_arrive_whole(server: MakeServer) -> None:
    target = server()
    target.say(Say("{}"))
    deadline = Deadline.after(10)
    Upstream().request("POST", target.url, deadline=deadline, json={"prompt": "é\n☃"})
    files = {"smfile": ("a.png", png(), "image/png")}
    Upstream().request("POST", target.url, deadline=deadline, files=files)
    first, second = target.seen
    assert first.json == {"prompt": "é\n☃"}
    assert first.headers["Content-Type"] == "application/json"
    assert second.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b'name="smfile"; filename="a.png"\r\nContent-Type: image/png\r\n' in second.body
    assert png() in second.body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_request_takes_a_redirect_for_an_answer(
    server: MakeServer, method: str, status: int
) -> None:
    target, other = server(), server()
    target.say(Say("moved", status, {"Location": other.url}))
    reply = Upstream().request(method, target.url, deadline=Deadline.after(10), json={})
    assert (reply.status, reply.body, reply.headers["location"]) == (status, b"moved", other.url)
    assert len(target.seen) == 1
    assert other.seen == []


# --- downloads ----------------------------------------------------------------------------------


def redirect(location: str, status: int = 302) -> Say:
    return Say("moved", status, {"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_download_follows_three_redirects_of_its_home(server: MakeServer, status: int) -> None:
    home = server()
    home.say(
        redirect("/b/c?d=e", status), redirect("../f", status), redirect("g", status), Say(png())
    )
    assert download(home.url + "/a", home.url).body == png()
    assert [seen.target for seen in home.seen] == ["/a", "/b/c?d=e", "/f", "/g"]
    assert {seen.method for seen in home.seen} == {"GET"}
    assert {seen.headers["Authorization"] for seen in home.seen} == {TOKEN["Authorization"]}


def test_download_ends_a_loop_of_redirects(server: MakeServer) -> None:
    home = server()
    home.say(redirect("/a"))
    reason = reason_of(lambda: download(home.url + "/a", home.url))
    assert reason == "it redirected more than 3 times"
    assert len(home.seen) == 4


def test_redirect_without_a_place_is_an_answer(server: MakeServer) -> None:
    home = server()
    home.say(Say("where to?", 302))
    assert download(home.url, home.url).status == 302


@pytest.mark.parametrize("place", ["http://[::1", "//[", "file:///etc/passwd", "httpx://a/"])
def test_redirect_to_what_is_no_place_is_an_upstream_error(server: MakeServer, place: str) -> None:
    home = server()
    home.say(redirect(place))
    assert reason_of(lambda: download(home.url, home.url)) in (NO_URL, NOT_HTTP)
    assert len(home.seen) == 1


def test_token_goes_home_only(server: MakeServer, net: Net) -> None:
    home, other = server(), server()
    net.routes[PUBLIC] = "127.0.0.1"
    elsewhere = f"http://pics.example:{other.port}"
    home.say(redirect(elsewhere + "/there"), Say(png()))
    other.say(redirect(home.url + "/back"), Say(png(2, 2)))
    names = Names([PUBLIC])
    assert download(home.url + "/a", home.url, names).body == png()
    assert download(elsewhere + "/straight", home.url, names).body == png(2, 2)
    assert [seen.target for seen in other.seen] == ["/there", "/straight"]
    assert ["Authorization" in seen.headers for seen in other.seen] == [False, False]
    assert [seen.target for seen in home.seen] == ["/a", "/back"]
    assert [seen.headers["Authorization"] for seen in home.seen] == [TOKEN["Authorization"]] * 2


def test_download_keeps_to_its_limit(server: MakeServer) -> None:
    home = server()
    home.say(Say(bytes(1001)))
    reason = reason_of(lambda: download(home.url, home.url, limit=1000))
    assert reason == "its answer is larger than 1000 bytes"


NOT_PUBLIC = "it named an address that is not public"
NO_URL = "it named something that is not a URL"
NOT_HTTP = "it named a URL that is not http or https"
CREDENTIALS = "it named a URL with credentials"
# `{port}` is that of a server that must not be asked, `{home}` the host and port of the home.
FORBIDDEN = [
    ("http://127.0.0.1{port}/", NOT_PUBLIC),
    ("https://127.0.0.1{port}/", NOT_PUBLIC),
    ("HTTP://127.0.0.1{port}/", NOT_PUBLIC),
    (" http://127.0.0.1{port}/", NOT_PUBLIC),
    ("http://127.0.0.2{port}/", NOT_PUBLIC),
    ("http://127.1{port}/", NOT_PUBLIC),
    ("http://2130706433{port}/", NOT_PUBLIC),
    ("http://0x7f000001{port}/", NOT_PUBLIC),
    ("http://0x7f.0x0.0x0.0x1{port}/", NOT_PUBLIC),
    ("http://0177.0.0.1{port}/", NOT_PUBLIC),
    ("http://017700000001{port}/", NOT_PUBLIC),
    ("http://0{port}/", NOT_PUBLIC),
    ("http://0.0.0.0{port}/", NOT_PUBLIC),
    ("http://%31%32%37.0.0.1{port}/", NOT_PUBLIC),
    ("http://localhost{port}/", NOT_PUBLIC),
    ("http://LocalHost{port}/", NOT_PUBLIC),
    ("http://[::1]{port}/", NOT_PUBLIC),
    ("http://[::]{port}/", NOT_PUBLIC),
    ("http://[::127.0.0.1]{port}/", NOT_PUBLIC),
    ("http://[::ffff:127.0.0.1]{port}/", NOT_PUBLIC),
    ("http://[::ffff:7f00:1]{port}/", NOT_PUBLIC),
    ("http://[64:ff9b::127.0.0.1]{port}/", NOT_PUBLIC),
    ("http://[2002:7f00:1::]{port}/", NOT_PUBLIC),
    ("http://169.254.169.254/latest/meta-data/", NOT_PUBLIC),
    ("https://{home}/", NOT_PUBLIC),
    ("http://127.0.0.1/", NOT_PUBLIC),
    # Here two parsers of URLs see different hosts: urlsplit the home, requests the other one.
    ("http://127.0.0.1{port}\\@{home}/", NOT_PUBLIC),
    ("http://127.0.0.1{port}\\\\@{home}/", NOT_PUBLIC),
    ("http://169.254.169.254\\@{home}/latest/meta-data/", NOT_PUBLIC),
    ("http://127.0.0.1{port}#@{home}/", NOT_PUBLIC),
    ("http://127.0.0.1{port}?@{home}/", NOT_PUBLIC),
    ("http://{home}@127.0.0.1{port}/", CREDENTIALS),
    ("http://user:password@127.0.0.1{port}/", CREDENTIALS),
    ("http://user@pics.example{port}/", CREDENTIALS),
    ("http://:password@pics.example{port}/", CREDENTIALS),
    ("file:///etc/passwd", NOT_HTTP),
    ("file://127.0.0.1{port}/etc/passwd", NOT_HTTP),
    ("gopher://127.0.0.1{port}/_GET%20/", NOT_HTTP),
    ("ftp://127.0.0.1{port}/a.png", NOT_HTTP),
    ("httpx://127.0.0.1{port}/a.png", NOT_HTTP),
    ("data:image/png;base64,AAAA", NOT_HTTP),
    ("javascript:alert(1)", NOT_HTTP),
    ("http://", NO_URL),
    ("http:///a.png", NO_URL),
    ("http:127.0.0.1{port}/", NO_URL),
    ("http://[::1", NO_URL),
    ("http://127.0.0.1:99999/", NO_URL),
    ("http://127.0.0.1{port}\0/", NO_URL),
    ("http://\ud800/", NO_URL),
    ("//127.0.0.1{port}/", NOT_HTTP),
    ("", NO_URL),
]


def local_names(host: str, port: int, *_: Any) -> list[Any]:
    """Resolve what needs no name server, and nothing else."""
    flags = 0 if host == "localhost" else socket.AI_NUMERICHOST
    return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags)


def placed(pattern: str, forbidden: AnyServer, home: AnyServer) -> str:
    return pattern.format(port=f":{forbidden.port}", home=f"127.0.0.1:{home.port}")


@pytest.mark.parametrize(("pattern", "reason"), FORBIDDEN)
def test_forbidden_place_is_refused_before_any_connection(
    raw_server: MakeRawServer, net: Net, pattern: str, reason: str
) -> None:
    forbidden, home = raw_server(hang), raw_server(hang)
    url = placed(pattern, forbidden, home)
    assert reason_of(lambda: download(url, home.url, local_names)) == reason
    assert net.asked == []
    assert forbidden.connections == home.connections == 0


@pytest.mark.parametrize(
    ("pattern", "reason"), [row for row in FORBIDDEN if row[0][:2] != "//" and row[1] != NO_URL]
)
def test_forbidden_place_is_refused_after_a_redirect(
    server: MakeServer, raw_server: MakeRawServer, net: Net, pattern: str, reason: str
) -> None:
    forbidden, home = raw_server(hang), server()
    home.say(redirect(placed(pattern, forbidden, home)))
    assert reason_of(lambda: download(home.url, home.url, local_names)) == reason
    assert net.asked == ["127.0.0.1"]
    assert len(home.seen) == 1
    assert forbidden.connections == 0


def test_home_may_be_private_however_it_is_spelled(server: MakeServer) -> None:
    home = server()
    home.say(Say(png()))
    for pattern in (
        "http://{home}/",
        "HTTP://{home}/",
        "http://{home}\\@a{port}/",
        " http://{home}",
    ):
        url = placed(pattern, home, home)
        assert download(url, home.url + "/v1", local_names).body == png()
    named = home.url.replace("127.0.0.1", "localhost")
    assert download(named + "/a", named.upper().replace("HTTP", "http")).body == png()
    assert all("Authorization" in seen.headers for seen in home.seen)


def test_home_may_have_credentials_in_its_own_url(server: MakeServer) -> None:
    home = server()
    home.say(Say(png()))
    with_password = home.url.replace("//", "//user:password@")
    assert download(with_password + "/a", home.url).body == png()
    assert download(home.url + "/a", with_password).body == png()


PRIVATE_ANSWERS = [
    ["127.0.0.1"],
    ["::1"],
    ["169.254.169.254"],
    ["10.0.0.1"],
    ["172.16.0.1"],
    ["192.168.0.1"],
    ["100.64.0.1"],
    ["0.0.0.0"],
    ["224.0.0.1"],
    ["255.255.255.255"],
    ["::ffff:10.0.0.1"],
    ["::ffff:169.254.169.254"],
    ["64:ff9b::7f00:1"],
    ["2002:7f00:1::"],
    ["fec0::1"],
    ["fe80::1%lo"],
    ["fc00::1"],
    ["ff02::1"],
    [PUBLIC, "10.0.0.1"],
    ["10.0.0.1", PUBLIC],
    [PUBLIC, "::ffff:127.0.0.1", PUBLIC],
]


@pytest.mark.parametrize("addresses", PRIVATE_ANSWERS, ids=" ".join)
def test_name_of_a_private_address_is_refused_before_any_connection(
    net: Net, addresses: list[str]
) -> None:
    names = Names(addresses)
    call = lambda: download("http://pics.example/a.png", "http://127.0.0.1:1/", names)  # noqa: E731
    assert reason_of(call) == NOT_PUBLIC
    assert names.asked == ["pics.example"]
    assert net.asked == []


def test_connection_goes_where_the_check_looked(server: MakeServer, net: Net) -> None:
    other = server()
    other.say(Say(png()))
    net.routes[PUBLIC] = "127.0.0.1"
    names = Names([PUBLIC], ["127.0.0.1"])
    url = f"http://pics.example:{other.port}/a.png"
    assert download(url, "http://127.0.0.1:1/", names).body == png()
    assert (names.asked, net.asked) == (["pics.example"], [PUBLIC])
    assert other.seen[0].headers["Host"] == f"pics.example:{other.port}"
    assert reason_of(lambda: download(url, "http://127.0.0.1:1/", names)) == NOT_PUBLIC
    assert (len(names.asked), net.asked) == (2, [PUBLIC])


def test_every_new_connection_is_resolved_and_checked(server: MakeServer, net: Net) -> None:
    first, second = server(), server()
    first.say(redirect("/next"), redirect(f"http://pics.example:{second.port}/"))
    net.routes[PUBLIC] = "127.0.0.1"
    names = Names([PUBLIC], ["127.0.0.1"])
    url = f"http://pics.example:{first.port}/a.png"
    assert reason_of(lambda: download(url, "http://127.0.0.1:1/", names)) == NOT_PUBLIC
    assert names.asked == ["pics.example"] * 2
    assert net.asked == [PUBLIC]
    assert [seen.target for seen in first.seen] == ["/a.png", "/next"]
    assert second.seen == []


PUBLIC_ADDRESSES = ["8.8.8.8", PUBLIC, "1.1.1.1", "192.0.0.9", "::ffff:8.8.8.8", "2606:4700::1111"]
OTHER_ADDRESSES = [
    *("0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.9.9.9"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1"),
    *("192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.2.3"),
    *("240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::8.8.8.8", "::ffff:127.0.0.1"),
    *("::ffff:10.0.0.1", "::ffff:224.0.0.1", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "100::1"),
    *("64:ff9b::808:808", "64:ff9b:1::7f00:1", "2001::1", "2001:0:7f00:1::", "2001:db8::1"),
    *("2002:7f00:1::", "2002:808:808::", "fc00::1", "fd00::1", "fe80::1", "fe80::1%eth0"),
    *("fec0::1", "feff::1", "ff02::1", "ff0e::1"),
]


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", OTHER_ADDRESSES)
def test_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://a.example/b?c", ("http", "a.example", 80)),
        ("HTTPS://A.example", ("https", "a.example", 443)),
        ("http://a.example:443/", ("http", "a.example", 443)),
        ("http://a.example:/", ("http", "a.example", 80)),
        ("https://u:p@[::1]:8443/", ("https", "::1", 8443)),
        ("http://bücher.example/", ("http", "xn--bcher-kva.example", 80)),
        ("http://a.example\\@b.example/", ("http", "a.example", 80)),
    ],
)
def test_origin_is_what_a_request_would_ask(url: str, parts: tuple[str, str, int]) -> None:
    assert origin(url) == parts


@unhurried
@given(st.text(max_size=40) | st.text("htps:/\\@[]%.#?1a \t\n", max_size=40).map("http:".__add__))
def test_origin_of_any_text_is_one_or_an_upstream_error(url: str) -> None:
    try:
        scheme, host, port = origin(url)
    except UpstreamError:
        return
    assert scheme in ("http", "https")
    assert host
    assert 0 < port < 65536
