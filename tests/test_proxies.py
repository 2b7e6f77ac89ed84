"""Calls go through the configured proxy, and its tunnels lead to checked addresses only."""

import base64
import ipaddress
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from settings.proxies import NetworkSettings, Proxy
from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why

from . import wire
from .proxy import HttpProxy, SocksProxy
from .scripted import RawServer, Say, ScriptedServer, free_port, png
from .wire import (
    PUBLIC,
    SHORT,
    Certificates,
    MakeRawServer,
    Net,
    Talk,
    download,
    dripping,
    reason_of,
    saying,
)

HOME = "https://home.example/v1"
NOT_PUBLIC = "it named an address that is not public"
FAKE = "198.18.0.7"
net = pytest.fixture(autouse=True)(wire.guarded_net)
Through = Callable[..., Upstream]


@pytest.fixture
def proxy(opened: list[Any]) -> HttpProxy:
    opened.append(made := HttpProxy())
    return made


@pytest.fixture
def socks(opened: list[Any]) -> SocksProxy:
    opened.append(made := SocksProxy())
    return made


@pytest.fixture
def tls(raw_server: MakeRawServer, certificates: Certificates) -> RawServer:
    """A server for pics.example that answers two requests on a connection."""
    return raw_server(wire.over_tls(certificates[1], saying(wire.DRAWN, saying(wire.DRAWN))))


@pytest.fixture
def through(certificates: Certificates) -> Through:
    """Make what calls through a proxy, and trusts the authority of `tls`."""

    def make(proxy: str, **more: Any) -> Upstream:
        proxies = {"all": Proxy.parse(proxy)}
        return Upstream(NetworkSettings(proxies=proxies, ca_bundle=certificates[0], **more))

    return make


def ask(upstream: Upstream, url: str, seconds: float = 10.0, **more: Any) -> Reply:
    return upstream.request("POST", url, deadline=Deadline.after(seconds), **more)


# --- what a proxy is asked for ------------------------------------------------------------------


def test_https_keeps_a_tunnel(proxy: HttpProxy, tls: RawServer, through: Through, net: Net) -> None:
    upstream = through(f"http://us%65r:pa%3Ass@{proxy.address}")
    url = f"https://pics.example:{tls.port}/v1"
    assert [ask(upstream, url, headers=wire.TOKEN).body for _ in range(2)] == [b"drawn"] * 2
    credentials = base64.b64encode(b"user:pa:ss").decode()
    assert proxy.targets == [f"CONNECT pics.example:{tls.port}"]
    assert f"\r\nProxy-Authorization: Basic {credentials}\r\n" in proxy.heads[0]
    assert "of-the-backend" not in proxy.heads[0]
    assert net.resolved == []
    wrong = url.replace("pics.", "other.")
    assert reason_of(lambda: ask(upstream, wrong)) == "its certificate or TLS failed"


def test_http_request_is_handed_to_the_proxy(
    proxy: HttpProxy, backend: ScriptedServer, through: Through, net: Net
) -> None:
    url = f"http://backend.example:{backend.port}/v1/images?a=b"
    upstream = through(f"user:password@{proxy.address}")
    ask(upstream, url.replace("//", "//name:secret@"), json={"prompt": "a cat"})
    assert proxy.targets == [f"POST {url}"]
    assert f"Host: backend.example:{backend.port}\r\n" in proxy.heads[0]
    assert "Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA==\r\n" in proxy.heads[0]
    assert backend.seen[0].json == {"prompt": "a cat"}
    assert net.resolved == []


def test_picture_is_fetched_from_its_checked_address(
    proxy: HttpProxy, backend: ScriptedServer, tls: RawServer, through: Through, net: Net
) -> None:
    backend.say(Say(png()))
    net.name("pics.example", [PUBLIC, "8.8.8.8"])
    upstream, port = through(proxy.address), backend.port
    assert download(f"http://pics.example:{port}/a.png", upstream=upstream).body == png()
    proxy.refusals = 1
    assert download(f"https://pics.example:{tls.port}/a", upstream=upstream).body == b"drawn"
    tunnels = [f"CONNECT {address}:{tls.port}" for address in (PUBLIC, "8.8.8.8")]
    assert proxy.targets == [f"GET http://{PUBLIC}:{port}/a.png", *tunnels]
    assert backend.seen[0].headers["Host"] == f"pics.example:{port}"


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], [FAKE]], ids=" ".join)
def test_private_picture_is_refused_before_the_proxy_is_asked(
    proxy: HttpProxy, addresses: list[str], through: Through, net: Net
) -> None:
    net.name("pics.example", addresses)
    call = partial(download, "https://pics.example/a.png", upstream=through(proxy.address))
    assert reason_of(call) == NOT_PUBLIC
    assert proxy.heads == []


def test_proxy_gets_the_name_for_a_fake_address(
    proxy: HttpProxy, tls: RawServer, through: Through, net: Net
) -> None:
    net.name("pics.example", [FAKE])
    networks = [ipaddress.ip_network("198.18.0.0/15")]
    upstream = through(proxy.address, picture_networks=networks)
    assert download(f"https://pics.example:{tls.port}/", upstream=upstream).body == b"drawn"
    assert proxy.targets == [f"CONNECT pics.example:{tls.port}"]


# --- SOCKS --------------------------------------------------------------------------------------


def test_socks5h_gets_a_name(socks: SocksProxy, tls: RawServer, through: Through, net: Net) -> None:
    upstream = through(f"socks5h://user:pa%3Ass@{socks.address}")
    url = f"https://pics.example:{tls.port}/"
    assert [ask(upstream, url).body for _ in range(2)] == [b"drawn"] * 2
    assert socks.asked == [("pics.example", tls.port)]
    assert socks.users == ["user:pa:ss"]
    assert net.resolved == []


def test_socks_proxy_gets_the_checked_address_of_a_picture(
    socks: SocksProxy, backend: ScriptedServer, through: Through, net: Net
) -> None:
    net.name("a.example", [PUBLIC])
    net.name("b.example", ["10.0.0.1"])
    upstream = through(f"socks5h://{socks.address}")
    assert download(f"http://a.example:{backend.port}/", upstream=upstream).status == 200
    assert reason_of(lambda: download("http://b.example/", upstream=upstream)) == NOT_PUBLIC
    ask(through(f"socks5://{socks.address}"), f"http://a.example:{backend.port}/")  # resolved here
    assert socks.asked == [(PUBLIC, backend.port)] * 2


# --- a proxy that fails -------------------------------------------------------------------------


def drip_socks(connection: socket.socket) -> None:
    """Let anyone in, and name the bound address so slowly that it takes five seconds."""
    connection.sendall(b"\x05\x00\x05\x00\x00\x03\xff")
    dripping(b"a")(connection)


@pytest.mark.parametrize(
    ("scheme", "talk"), [("http", saying(b"H", dripping(b"H"))), ("socks5h", drip_socks)]
)
def test_stalling_proxy_ends_at_the_deadline(
    raw_server: MakeRawServer, scheme: str, talk: Talk, through: Through
) -> None:
    upstream = through(f"{scheme}://127.0.0.1:{raw_server(talk).port}")
    wire.assert_ends_at_deadline(lambda: ask(upstream, HOME, SHORT))


def refuse_socks(connection: socket.socket) -> None:
    connection.recv(9)
    connection.sendall(b"\x05\xff")


NO_HTTP = "its proxy gave no HTTP answer"
FAILURES: list[tuple[str, Talk, str]] = [
    ("http", saying(b"HTTP/1.1 407 Login\r\n\r\n"), "its proxy answered CONNECT with 407"),
    ("http", saying(b"HTTP/1.1 502 Bad\r\n\r\n"), "its proxy answered CONNECT with 502"),
    ("http", saying(b"SSH-2.0-OpenSSH_9.9\r\n"), NO_HTTP),
    ("http", saying(b""), NO_HTTP),
    ("socks5h", refuse_socks, "its proxy did not connect to it"),
]


@pytest.mark.parametrize(("scheme", "talk", "reason"), FAILURES)
def test_refused_tunnel_says_so(
    raw_server: MakeRawServer, scheme: str, talk: Talk, reason: str, through: Through
) -> None:
    upstream = through(f"{scheme}://user:secret@127.0.0.1:{raw_server(talk).port}")
    with pytest.raises(UpstreamError) as caught:
        ask(upstream, HOME)
    assert (str(caught.value), caught.value.why) == (reason, Why.UNREACHABLE)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_unreachable_proxy_says_so(scheme: str, through: Through) -> None:
    upstream = through(f"{scheme}://127.0.0.1:{free_port()}")
    for url in (HOME, "http://home.example/v1"):
        assert reason_of(partial(ask, upstream, url)) == "its proxy could not be reached"


# --- which proxy --------------------------------------------------------------------------------

PLAIN, SECURE, OTHER = (Proxy("http", host, 80) for host in ("plain", "secure", "other"))
PLACE = ("https", "api.example.org", 443)


def test_proxy_is_chosen_by_scheme_unless_a_backend_has_one() -> None:
    plain, direct = ("http", "a.example", 80), ("http", "lan.example", 80)
    network = NetworkSettings(proxies={"http": PLAIN, "https": SECURE, "all": OTHER})
    assert (network.proxy_to(PLACE), network.proxy_to(plain)) == (SECURE, PLAIN)
    assert NetworkSettings(proxies={"http": PLAIN, "all": OTHER}).proxy_to(PLACE) == OTHER
    assert NetworkSettings(proxies={"http": PLAIN}).proxy_to(PLACE) is None
    own = {PLACE: SECURE, direct: None}
    network = NetworkSettings(proxies={"all": OTHER}, no_proxy="example.org", own_proxies=own)
    elsewhere = ("https", "pics.example", 443)
    found = [network.proxy_to(place) for place in (PLACE, direct, elsewhere)]
    assert found == [SECURE, None, OTHER]
    assert network.proxy_to(elsewhere, named_by=PLACE) == SECURE


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("", "api.example.org", False),
        ("*", "api.example.org", True),
        ("example.org", "api.example.org", True),
        (".example.org, localhost", "api.example.org", True),
        ("*.example.org", "api.example.org", True),
        ("API.Example.ORG", "api.example.org", True),
        ("localhost example.org", "localhost", True),
        ("ample.org", "api.example.org", False),
        ("example.org:443", "example.org", True),
        ("example.org:8443", "example.org", False),
        ("10.0.0.0/8,fd00::/8", "10.1.2.3", True),
        ("10.0.0.0/8,fd00::/8", "fd00::1", True),
        ("10.0.0.0/8,fd00::/8", "11.0.0.1", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1:443", "127.0.0.1", True),
        ("::1", "::1", True),
        ("10.0.0.0/99", "10.0.0.1", False),
    ],
)
def test_exceptions_are_reached_directly(no_proxy: str, host: str, is_direct: bool) -> None:
    network = NetworkSettings(proxies={"all": OTHER}, no_proxy=no_proxy)
    proxy = network.proxy_to(("https", host, 443))
    assert proxy == (None if is_direct else OTHER)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.example:3128", Proxy("http", "proxy.example", 3128)),
        ("proxy.example:3128", Proxy("http", "proxy.example", 3128)),
        ("HTTP://Proxy.example/", Proxy("http", "proxy.example", 80)),
        ("http://us%40er:pa%3Ass@[::1]:8080", Proxy("http", "::1", 8080, "us@er", "pa:ss")),
        ("socks5://proxy.example", Proxy("socks5", "proxy.example", 1080)),
        ("socks5h://u:p@proxy.example:9", Proxy("socks5h", "proxy.example", 9, "u", "p")),
    ],
)
def test_proxy_url_is_read(url: str, expected: Proxy) -> None:
    assert Proxy.parse(url) == expected
    assert "pa:ss" not in repr(expected)


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://", "https://secret@a.example", "ftp://a/", "http://secret@a:99999"),
        "http://[secret",
    ],
)
def test_invalid_proxy_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="proxy") as caught:
        Proxy.parse(url)
    assert "secret" not in str(caught.value)
