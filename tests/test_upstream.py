"""Every call ends at its deadline and within its byte limit, and connections are kept."""

import base64
import contextlib
import gc
import gzip
import shutil
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from settings.proxies import NetworkSettings
from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why

from .scripted import Say, ScriptedServer, free_port, read_request, wait_until
from .wire import (
    CHUNKED,
    CUT,
    DRAWN,
    MIB,
    OK,
    PUBLIC,
    SHORT,
    SIZED,
    TOKEN,
    Certificates,
    MakeRawServer,
    MakeServer,
    Net,
    Talk,
    ask,
    assert_ends_at_deadline,
    download,
    dripping,
    guarded_net,
    hang,
    over_tls,
    pouring,
    reason_of,
    saying,
)

net = pytest.fixture(autouse=True)(guarded_net)


def send(data: bytes) -> Talk:
    return lambda connection: connection.sendall(data)


def wait(seconds: float) -> Talk:
    return lambda _: threading.Event().wait(seconds)


def then(*talks: Talk) -> Talk:
    def talk(connection: socket.socket) -> None:
        for part in talks:
            part(connection)

    return talk


# --- the deadline -------------------------------------------------------------------------------

HANDSHAKE = b"\x16\x03\x03\x40\x00"  # a record of 16 KiB, of which only a drip will come


def drip_handshake(connection: socket.socket) -> None:
    connection.sendall(HANDSHAKE)
    dripping(b"\0")(connection)


STALLS: dict[str, Talk] = {
    "before the answer": saying(b"", hang),
    "in the status line": saying(b"HTTP/1.1 200 O", dripping(b"K")),
    "between interim answers": saying(b"", dripping(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "in a header": saying(OK + b"X-Long: ", dripping(b"a")),
    "in the body": saying(SIZED, hang),
    "in a dripping body": saying(SIZED, dripping(b"x")),
    "in a body of no announced length": saying(OK + b"\r\n", dripping(b"x")),
    "in a chunk": saying(CHUNKED + b"fff\r\n", dripping(b"x")),
    "between chunks": saying(CHUNKED, dripping(b"1\r\nx\r\n")),
    "after the last chunk": saying(CHUNKED + b"0\r\n", dripping(b"X-Trailer: y\r\n")),
}
OVER_TLS = ("before the answer", "in a header", "in a dripping body")
HANDSHAKES: dict[str, Talk] = {"before a handshake": hang, "in a handshake": drip_handshake}


def why_of(call: Callable[[], Reply]) -> Why | None:
    """Return the reason for which a call fails, or None if it does not."""
    try:
        call()
    except UpstreamError as error:
        return error.why
    return None


def calls_under_way() -> int:
    return sum(thread.name == "upstream call" for thread in threading.enumerate())


def all_calls_end() -> None:
    wait_until(lambda: not calls_under_way(), what="the calls' threads")


@pytest.mark.parametrize(
    ("scheme", "stall"),
    [*(("http", s) for s in STALLS), *(("https", s) for s in (*OVER_TLS, *HANDSHAKES))],
)
def test_stalling_answer_ends_at_the_deadline(
    raw_server: MakeRawServer, certificates: Certificates, scheme: str, stall: str
) -> None:
    talk = HANDSHAKES.get(stall) or STALLS[stall]
    if scheme == "https" and stall in STALLS:
        talk = over_tls(certificates[1], talk)
    url = f"{scheme}://127.0.0.1:{raw_server(talk).port}/"
    assert_ends_at_deadline(lambda: ask(url, SHORT, certificates[0]))
    all_calls_end()


def test_upload_that_is_never_read_ends_at_the_deadline(raw_server: MakeRawServer) -> None:
    done = threading.Event()
    url = raw_server(lambda _: done.wait(10)).url
    files = {"file": ("a.png", bytes(32 * MIB), "image/png")}
    assert_ends_at_deadline(lambda: ask(url, SHORT, files=files))
    all_calls_end()
    done.set()


def test_dead_address_leaves_time_for_the_next_one(
    backend: ScriptedServer, opened: list[Any], net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A full backlog: connecting to it takes for ever.
    dead, port = "127.0.0.2", backend.port
    opened.append(socket.create_server((dead, port), backlog=0))
    for _ in range(4):
        opened.append(waiting := socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex((dead, port))
    assert_ends_at_deadline(lambda: ask(f"http://{dead}:{port}/", SHORT))
    monkeypatch.setattr("upstream.adapters.CONNECT_SECONDS", 0.2)
    net.name("two.example", [dead, "127.0.0.1"])
    net.routes |= {"8.8.8.8": dead, PUBLIC: "127.0.0.1"}
    net.name("pics.example", ["8.8.8.8", PUBLIC])
    assert ask(f"http://two.example:{port}/").status == 200
    assert download(f"http://pics.example:{port}/").status == 200


def test_thread_that_cannot_be_started_fails_the_call(
    server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    (alive := server()).say(Say("drawn"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert why_of(lambda: ask(alive.url)) is Why.UNREACHABLE
    assert ask(alive.url).body == b"drawn"


def test_hung_names_leave_32_threads(server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, upstream, released = server(), Upstream(), threading.Event()
    alive.say(Say("drawn"))
    look_up = socket.getaddrinfo

    def hanging(*args: Any, **more: Any) -> Any:
        released.wait(30)
        return look_up(*args, **more)

    def call(seconds: float) -> Reply:
        return upstream.request("GET", alive.url, deadline=Deadline.after(seconds))

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    with ThreadPoolExecutor(100) as callers:
        # A caller that comes once 32 hang is turned away at once.
        found = set(callers.map(lambda _: why_of(lambda: call(SHORT)), range(100)))
        assert found - {Why.UNREACHABLE} == {Why.TIMED_OUT}
    wait_until(lambda: calls_under_way() == 32, what="the others to end")
    began = time.monotonic()
    assert reason_of(lambda: call(10)) == "too many earlier calls still hang"
    assert time.monotonic() - began < 1
    released.set()
    all_calls_end()
    assert call(10).body == b"drawn"
    # What was left behind has sent nothing.
    assert len(alive.seen) == 1


def test_redirects_share_one_deadline(raw_server: MakeRawServer) -> None:
    moved = send(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")
    url = raw_server(then(read_request, wait(0.2), moved)).url
    assert_ends_at_deadline(lambda: download(url, url, seconds=SHORT))


def test_deadline_in_the_past_sends_nothing(server: MakeServer) -> None:
    silent = server()
    assert why_of(lambda: ask(silent.url, 0.0)) is Why.TIMED_OUT
    assert silent.seen == []


def test_earlier_deadline_wins() -> None:
    deadline = Deadline.after(10, clock=lambda: 100.0)
    assert deadline.remaining() == deadline.within(30).remaining() == 10
    assert deadline.within(3).remaining() == 3
    assert not deadline.is_over
    assert Deadline.after(0, clock=lambda: 100.0).is_over
    assert Deadline(99.0, clock=lambda: 100.0).remaining() == 0


# --- the byte limit -----------------------------------------------------------------------------


def bomb() -> bytes:
    """Return an answer that unpacks, twice, to a gigabyte of zeros."""
    data = gzip.compress(gzip.compress(bytes(10 * MIB), 9) * 100, 9)
    return OK + b"Content-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data


LARGER = f"its answer is larger than {MIB} bytes"
FLOODS: dict[str, tuple[Callable[[], Talk], str]] = {
    "endless": (lambda: saying(OK + b"\r\n", pouring(bytes(65536))), LARGER),
    "of 10 GB": (lambda: saying(OK + b"Content-Length: 10000000000\r\n\r\n", hang), LARGER),
    "chunks": (lambda: saying(CHUNKED, pouring(b"10000\r\n" + bytes(65536) + b"\r\n")), LARGER),
    "negative chunk": (lambda: saying(CHUNKED + b"-1\r\n", pouring(bytes(65536))), LARGER),
    "one chunk": (lambda: saying(CHUNKED + b"f" * 60 + b"\r\n", pouring(bytes(65536))), LARGER),
    "gzip bomb in gzip": (lambda: saying(bomb()), LARGER),
    "headers": (lambda: saying(OK, pouring(b"X-More: " + b"a" * 8000 + b"\r\n")), CUT),
    "status line": (lambda: saying(b"", pouring(b"a" * 65536)), CUT),
    "chunk extension": (lambda: saying(CHUNKED + b"1;", pouring(b"a" * 65536)), CUT),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_flood_ends_at_the_limit_and_fills_no_memory(raw_server: MakeRawServer, flood: str) -> None:
    talk, reason = FLOODS[flood]
    url = raw_server(talk()).url
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert reason_of(lambda: ask(url, 10, limit=MIB)) == reason
        assert tracemalloc.get_traced_memory()[1] - before < 8 * MIB
    finally:
        tracemalloc.stop()


def test_answer_of_exactly_the_limit_is_read(raw_server: MakeRawServer) -> None:
    for head in (OK + b"\r\n", OK + b"Content-Length: 1001\r\n\r\n"):
        url = raw_server(saying(head + bytes(1001))).url
        assert len(ask(url, limit=1001).body) == 1001
        reason = reason_of(partial(ask, url, limit=1000))
        assert reason == "its answer is larger than 1000 bytes"


OOPS = b"HTTP/1.1 500 Internal Server Error\r\n"


def test_error_is_cut_off_at_64_kb(raw_server: MakeRawServer) -> None:
    endless = saying(OOPS + b"Content-Length: 10000000000\r\n\r\n", pouring(bytes(65536)))
    zipped = saying(OOPS + b"\r\n" + gzip.compress(bytes(MIB)))
    for talk in (endless, zipped):
        reply = ask(raw_server(talk).url, limit=1000)
        assert (reply.status, reply.body) == (500, bytes(65536))


def test_failed_call_leaves_no_body_in_memory(raw_server: MakeRawServer) -> None:
    url = raw_server(saying(OK + b"\r\n" + bytes(8 * MIB))).url
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        with contextlib.suppress(UpstreamError):
            ask(url, limit=4 * MIB)
        all_calls_end()
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()
        gc.enable()


# --- broken answers -----------------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN: dict[str, tuple[Talk, str]] = {
    "closed without an answer": (saying(b""), CUT),
    "cut status line": (saying(b"HTTP/1.1 40"), CUT),
    "cut body": (saying(OK + b"Content-Length: 10\r\n\r\n123456789"), CUT),
    "missing body": (saying(OK + b"Content-Length: 10\r\n\r\n"), CUT),
    "cut chunk": (saying(CHUNKED + b"a\r\n123456789"), CUT),
    "cut between chunks": (saying(CHUNKED + b"1\r\nx\r\n"), CUT),
    "chunk of no size": (saying(CHUNKED + b"x\r\n"), CUT),
    "chunk of a negative size": (saying(CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n"), CUT),
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


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{port}/secret", "it refused the connection"),
        ("http://no.example/secret", "its name could not be resolved"),
        ("http://" + "a" * 64 + ".example/", "it could not be reached"),
    ],
)
def test_server_that_cannot_be_reached_says_why(url: str, reason: str) -> None:
    assert reason_of(lambda: ask(url.format(port=free_port()))) == reason


NO_JSON = [
    *(b"", b"<html>", b'{"a":', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff{}"),
    b"[" * 100_000 + b"]" * 100_000,  # deeper than any stack
]


@pytest.mark.parametrize("body", NO_JSON)
def test_body_that_is_not_json_is_an_upstream_error(body: bytes) -> None:
    with pytest.raises(UpstreamError, match=r"^its answer is not JSON$"):
        Reply(200, {}, body).json()


# --- TLS ----------------------------------------------------------------------------------------

UNTRUSTED = "its certificate or TLS failed"


def test_authority_must_be_known(raw_server: MakeRawServer, certificates: Certificates) -> None:
    for talk in (over_tls(certificates[1], saying(DRAWN)), send(DRAWN)):
        url = f"https://127.0.0.1:{raw_server(talk).port}/"
        assert reason_of(partial(ask, url)) == UNTRUSTED


def test_certificate_is_checked_against_the_name_in_the_url(
    raw_server: MakeRawServer, certificates: Certificates, net: Net
) -> None:
    trust, server = certificates
    port = raw_server(over_tls(server, saying(DRAWN))).port
    net.routes[PUBLIC] = "127.0.0.1"
    upstream = Upstream(NetworkSettings(ca_bundle=trust))
    for address, call in (
        ("127.0.0.1", partial(ask, seconds=10, trust=trust)),
        (PUBLIC, partial(download, upstream=upstream)),
    ):
        for host in ("pics.example", "other.example"):
            net.name(host, [address])
        assert call(f"https://pics.example:{port}/").body == b"drawn"
        assert reason_of(partial(call, f"https://other.example:{port}/")) == UNTRUSTED


def test_certificates_are_parsed_once(
    raw_server: MakeRawServer, certificates: Certificates, tmp_path: Path
) -> None:
    bundle = Path(shutil.copy(certificates[0], tmp_path))
    talk = over_tls(certificates[1], saying(DRAWN))
    for server in (raw_server(talk), raw_server(talk)):
        assert ask(f"https://127.0.0.1:{server.port}/", 10, bundle).body == b"drawn"
        bundle.unlink(missing_ok=True)


# --- kept connections ---------------------------------------------------------------------------


class PersistentServer:
    """A server that keeps its connections: `talks` answer the requests in turn, whoever asks."""

    def __init__(self, raw_server: MakeRawServer, *talks: Talk) -> None:
        self.talks = list(talks)
        self.requests: list[bytes] = []
        self.was_left = threading.Event()
        self.server = raw_server(self._talk)
        self.upstream = Upstream()

    def _talk(self, connection: socket.socket) -> None:
        try:
            while connection.recv(1, socket.MSG_PEEK):
                self.requests.append(read_request(connection))
                self.talks.pop(0)(connection)
        finally:
            self.was_left.set()

    def ask(self, seconds: float = 10.0, **more: Any) -> Reply:
        deadline = Deadline.after(seconds)
        return self.upstream.request("POST", self.server.url, deadline=deadline, **more)


def close(connection: socket.socket) -> None:
    raise OSError("the server closes the connection, although nothing said so")


def abort(connection: socket.socket) -> None:
    reset(connection)
    close(connection)


ENDS = pytest.mark.parametrize("end", [close, abort], ids=["closed", "reset"])


def test_connection_is_kept(raw_server: MakeRawServer, certificates: Certificates) -> None:
    server = PersistentServer(raw_server, *[send(DRAWN)] * 3)
    assert [server.ask(json={"n": n}).body for n in range(3)] == [b"drawn"] * 3
    assert server.server.connections == 1
    tls = raw_server(over_tls(certificates[1], saying(DRAWN, saying(DRAWN))))
    upstream = Upstream(NetworkSettings(ca_bundle=certificates[0]))
    for _ in range(2):
        upstream.request("GET", f"https://127.0.0.1:{tls.port}/", deadline=Deadline.after(10))
    assert tls.connections == 1


def test_kept_connection_takes_the_deadline_of_each_call(raw_server: MakeRawServer) -> None:
    late = then(wait(2 * SHORT), send(DRAWN))
    server = PersistentServer(raw_server, send(DRAWN), late, hang)
    assert server.ask(SHORT).body == b"drawn"
    assert server.ask(10).body == b"drawn"
    assert_ends_at_deadline(lambda: server.ask(SHORT))
    assert server.server.connections == 1


@ENDS
def test_kept_connection_that_was_closed_is_replaced(raw_server: MakeRawServer, end: Talk) -> None:
    server = PersistentServer(raw_server, send(DRAWN), end, send(DRAWN))
    assert [server.ask(json={"n": n}).body for n in range(2)] == [b"drawn"] * 2
    assert server.server.connections == 2
    assert server.requests[1] == server.requests[2] != server.requests[0]


@ENDS
def test_new_connection_that_fails_is_not_replaced(raw_server: MakeRawServer, end: Talk) -> None:
    server = PersistentServer(raw_server, end, send(DRAWN))
    assert why_of(server.ask)
    assert len(server.requests) == 1
    assert server.ask().body == b"drawn"


def test_connection_is_replaced_only_once(raw_server: MakeRawServer) -> None:
    server = PersistentServer(raw_server, send(DRAWN), close, close, send(DRAWN))
    server.ask()
    assert reason_of(server.ask) == CUT
    assert len(server.requests) == 3


def test_replacement_ends_at_the_same_deadline(raw_server: MakeRawServer) -> None:
    server = PersistentServer(raw_server, send(DRAWN), then(wait(SHORT / 2), close), hang)
    server.ask()
    assert_ends_at_deadline(lambda: server.ask(SHORT))
    assert len(server.requests) == 3


def test_later_failure_of_a_kept_connection_is_final(raw_server: MakeRawServer) -> None:
    # After a second, after the first byte, and in the body.
    for failure in (wait(1.05), send(b"H"), send(SIZED)):
        server = PersistentServer(raw_server, send(DRAWN), then(failure, close), send(DRAWN))
        server.ask()
        assert reason_of(partial(server.ask, limit=MIB)) == CUT
        assert len(server.requests) == 2


UNREAD = {
    "too large": (send(OK + b"Content-Length: 2000000\r\n\r\n"), Why.TOO_LARGE),
    "long error": (send(OOPS + b"Content-Length: 65537\r\n\r\n" + bytes(65537)), None),
    "late": (send(SIZED), Why.TIMED_OUT),
    "invalid": (send(CHUNKED + b"x\r\n"), Why.UNREADABLE),
    "interim": (send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + DRAWN), Why.INTERIM),
}


@pytest.mark.parametrize("answer", UNREAD)
def test_connection_with_an_unread_answer_is_closed(raw_server: MakeRawServer, answer: str) -> None:
    talk, why = UNREAD[answer]
    server = PersistentServer(raw_server, talk, send(OK + b"Content-Length: 4\r\n\r\nnext"))
    assert why_of(lambda: server.ask(SHORT)) == why
    assert server.was_left.wait(10)
    assert server.ask().body == b"next"


def test_upstream_closes_the_connections_it_keeps(raw_server: MakeRawServer) -> None:
    server = PersistentServer(raw_server, send(DRAWN))
    server.ask()
    server.upstream.close()
    assert server.was_left.wait(10)


# --- what is sent -------------------------------------------------------------------------------


def test_environment_and_netrc_are_never_consulted(
    server: MakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy, target = server(), server()
    target.say(Say("drawn", headers={"Set-Cookie": "a=b"}))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv(name.lower(), proxy.url)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    upstream = Upstream()
    for _ in range(2):
        reply = upstream.request("GET", target.url + "/a?b=c", deadline=Deadline.after(10))
        assert reply.body == b"drawn"
    assert [seen.target for seen in proxy.seen + target.seen] == ["/a?b=c"] * 2
    names = ("Authorization", "Cookie", "User-Agent", "Accept-Encoding")
    for seen in target.seen:
        sent = [seen.headers[name] for name in names]
        assert sent == [None, None, "prompt-image-proxy", "identity"]


def test_credentials_in_the_url_never_replace_a_token(server: MakeServer) -> None:
    target = server()
    target.say(Say("drawn"))
    url = target.url.replace("//", "//us%65r:pa%40ss@") + "/x"
    for headers in ({"X-API-Key": "k"}, TOKEN):
        assert ask(url, headers=headers).body == b"drawn"
    basic = "Basic " + base64.b64encode(b"user:pa@ss").decode()
    sent = [seen.headers["Authorization"] for seen in target.seen]
    assert sent == [basic, TOKEN["Authorization"]]
    assert target.seen[0].headers["Host"] == f"127.0.0.1:{target.port}"


def test_request_does_not_follow_redirects(server: MakeServer) -> None:
    target, other = server(), server()
    target.say(Say("moved", 307, {"Location": other.url}))
    reply = ask(target.url)
    assert (reply.status, reply.body, reply.headers["location"]) == (307, b"moved", other.url)
    assert (len(target.seen), other.seen) == (1, [])
