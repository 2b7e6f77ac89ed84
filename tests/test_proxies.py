"""Calls go through the configured proxy, and its tunnels lead to checked addresses only."""

from __future__ import annotations

import base64
import ipaddress
import socket
from pathlib import Path
from typing import Any

import pytest

from settings.proxies import Proxies, Proxy
from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why

from .proxy import HttpProxy, SocksProxy
from .servers import RawServer, Say, ScriptedServer, free_port, png
from .wire import (
    DRAWN,
    PUBLIC,
    SHORT,
    MakeRawServer,
    MakeServer,
    Net,
    Talk,
    assert_ends_at_deadline,
    download,
    dripping,
    guarded_net,
    over_tls,
    reason_of,
    saying,
)

HOME = "https://home.example/v1"
NOT_PUBLIC = "it named an address that is not public"
FAKE = "198.18.0.7"
net = pytest.fixture(autouse=True)(guarded_net)


@pytest.fixture
def proxy(opened: list[Any]) -> HttpProxy:
    opened.append(made := HttpProxy())
    return made


@pytest.fixture
def socks(opened: list[Any]) -> SocksProxy:
    opened.append(made := SocksProxy())
    return made


@pytest.fixture
def tls(raw_server: MakeRawServer, certificates: tuple[Path, Path]) -> RawServer:
    """A server for pics.example that answers two requests on a connection."""
    return raw_server(over_tls(certificates[1], saying(DRAWN, saying(DRAWN))))


def through(proxy: str, **more: Any) -> Upstream:
    return Upstream(proxies=Proxies({"all": Proxy.parse(proxy)}), **more)


def ask(upstream: Upstream, url: str, seconds: float = 10.0, **more: Any) -> Reply:
    return upstream.request("POST", url, deadline=Deadline.after(seconds), **more)


# --- what a proxy is asked for ------------------------------------------------------------------


def test_https_goes_through_a_tunnel_that_is_kept(
    proxy: HttpProxy, tls: RawServer, certificates: tuple[Path, Path], net: Net
) -> None:
    upstream = through(f"http://us%65r:pa%3Ass@{proxy.address}", ca_bundle=certificates[0])
    url = f"https://pics.example:{tls.port}/v1"
    sent = {"Authorization": "Bearer of-the-backend"}
    assert [ask(upstream, url, headers=sent).body for _ in range(2)] == [b"drawn"] * 2
    credentials = base64.b64encode(b"user:pa:ss").decode()
    assert proxy.targets == [f"CONNECT pics.example:{tls.port}"]
    assert f"\r\nProxy-Authorization: Basic {credentials}\r\n" in proxy.heads[0]
    assert "of-the-backend" not in proxy.heads[0]
    assert net.resolved == []


def test_certificate_is_checked_through_a_tunnel(
    proxy: HttpProxy, tls: RawServer, certificates: tuple[Path, Path]
) -> None:
    upstream = through(proxy.address, ca_bundle=certificates[0])
    with pytest.raises(UpstreamError, match="certificate") as caught:
        ask(upstream, f"https://other.example:{tls.port}/")
    assert caught.value.why is Why.UNTRUSTED


def test_http_request_is_handed_to_the_proxy(
    proxy: HttpProxy, backend: ScriptedServer, net: Net
) -> None:
    backend.say(Say("drawn"))
    upstream = through(f"user:password@{proxy.address}")
    url = f"http://backend.example:{backend.port}/v1/images?a=b"
    reply = ask(upstream, url.replace("//", "//name:secret@"), json={"prompt": "a cat"})
    assert reply.body == b"drawn"
    assert proxy.targets == [f"POST {url}"]
    assert f"Host: backend.example:{backend.port}\r\n" in proxy.heads[0]
    assert "Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA==\r\n" in proxy.heads[0]
    assert backend.seen[0].json == {"prompt": "a cat"}
    assert net.resolved == []


def test_picture_is_fetched_from_its_checked_address(
    proxy: HttpProxy, server: MakeServer, tls: RawServer, certificates: tuple[Path, Path], net: Net
) -> None:
    plain = server()
    plain.say(Say(png()))
    net.name("pics.example", [PUBLIC])
    upstream = through(proxy.address, ca_bundle=certificates[0])
    for url, body in (
        (f"http://pics.example:{plain.port}/a.png", png()),
        (f"https://pics.example:{tls.port}/a.png", b"drawn"),
    ):
        assert download(url, upstream=upstream).body == body
    assert proxy.targets == [
        f"GET http://{PUBLIC}:{plain.port}/a.png",
        f"CONNECT {PUBLIC}:{tls.port}",
    ]
    assert plain.seen[0].headers["Host"] == f"pics.example:{plain.port}"


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], [FAKE]], ids=" ".join)
def test_private_picture_is_refused_before_the_proxy_is_asked(
    proxy: HttpProxy, addresses: list[str], net: Net
) -> None:
    net.name("pics.example", addresses)
    upstream = through(proxy.address)
    reason = reason_of(lambda: download("https://pics.example/a.png", upstream=upstream))
    assert reason == NOT_PUBLIC
    assert proxy.heads == []


def test_proxy_gets_the_name_for_a_fake_address(
    proxy: HttpProxy, tls: RawServer, certificates: tuple[Path, Path], net: Net
) -> None:
    net.name("pics.example", [FAKE])
    networks = [ipaddress.ip_network("198.18.0.0/15")]
    upstream = through(proxy.address, picture_networks=networks, ca_bundle=certificates[0])
    assert download(f"https://pics.example:{tls.port}/", upstream=upstream).body == b"drawn"
    assert proxy.targets == [f"CONNECT pics.example:{tls.port}"]


def test_next_address_is_tried_when_a_tunnel_fails(
    proxy: HttpProxy, tls: RawServer, certificates: tuple[Path, Path], net: Net
) -> None:
    net.name("pics.example", [PUBLIC, "8.8.8.8"])
    proxy.refusals = 1
    upstream = through(proxy.address, ca_bundle=certificates[0])
    assert download(f"https://pics.example:{tls.port}/", upstream=upstream).body == b"drawn"
    assert proxy.targets == [f"CONNECT {PUBLIC}:{tls.port}", f"CONNECT 8.8.8.8:{tls.port}"]


# --- SOCKS --------------------------------------------------------------------------------------


def test_socks5h_gets_the_name(
    socks: SocksProxy, tls: RawServer, certificates: tuple[Path, Path], net: Net
) -> None:
    upstream = through(f"socks5h://user:pa%3Ass@{socks.address}", ca_bundle=certificates[0])
    url = f"https://pics.example:{tls.port}/"
    assert [ask(upstream, url).body for _ in range(2)] == [b"drawn"] * 2
    assert socks.asked == [("pics.example", tls.port)]
    assert socks.users == ["user:pa:ss"]
    assert net.resolved == []


def test_socks5_gets_the_address(socks: SocksProxy, backend: ScriptedServer, net: Net) -> None:
    backend.say(Say("drawn"))
    net.name("backend.example", [PUBLIC])
    upstream = through(f"socks5://{socks.address}")
    assert ask(upstream, f"http://backend.example:{backend.port}/").body == b"drawn"
    assert socks.asked == [(PUBLIC, backend.port)]


def test_socks_proxy_gets_the_checked_address_of_a_picture(
    socks: SocksProxy, server: MakeServer, net: Net
) -> None:
    other = server()
    other.say(Say(png()))
    net.name("a.example", [PUBLIC])
    net.name("b.example", ["10.0.0.1"])
    upstream = through(f"socks5h://{socks.address}")
    assert download(f"http://a.example:{other.port}/", upstream=upstream).body == png()
    assert reason_of(lambda: download("http://b.example/", upstream=upstream)) == NOT_PUBLIC
    assert socks.asked == [(PUBLIC, other.port)]


def test_socks_without_pysocks_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-socks.txt"):
        Proxy.parse("socks5://127.0.0.1:1080")


# --- a proxy that fails -------------------------------------------------------------------------


def drip_socks(connection: socket.socket) -> None:
    """Let anyone in, and name the bound address so slowly that it takes five seconds."""
    connection.sendall(b"\x05\x00\x05\x00\x00\x03\xff")
    dripping(b"a")(connection)


@pytest.mark.parametrize(
    ("scheme", "talk"), [("http", saying(b"H", dripping(b"H"))), ("socks5h", drip_socks)]
)
def test_stalling_proxy_ends_at_the_deadline(
    raw_server: MakeRawServer, scheme: str, talk: Talk
) -> None:
    upstream = through(f"{scheme}://127.0.0.1:{raw_server(talk).port}")
    assert_ends_at_deadline(lambda: ask(upstream, HOME, SHORT))


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
    raw_server: MakeRawServer, scheme: str, talk: Talk, reason: str
) -> None:
    upstream = through(f"{scheme}://user:secret@127.0.0.1:{raw_server(talk).port}")
    with pytest.raises(UpstreamError) as caught:
        ask(upstream, HOME)
    assert (str(caught.value), caught.value.why) == (reason, Why.UNREACHABLE)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
@pytest.mark.parametrize("url", [HOME, "http://home.example/v1"])
def test_unreachable_proxy_says_so(scheme: str, url: str) -> None:
    upstream = through(f"{scheme}://127.0.0.1:{free_port()}")
    assert reason_of(lambda: ask(upstream, url)) == "its proxy could not be reached"


# --- which proxy --------------------------------------------------------------------------------

PLAIN, SECURE, OTHER = (Proxy("http", host, 80) for host in ("plain", "secure", "other"))
PLACE = ("https", "api.example.org", 443)


@pytest.mark.parametrize(
    ("schemes", "place", "expected"),
    [
        ({}, PLACE, None),
        ({"http": PLAIN, "https": SECURE, "all": OTHER}, PLACE, SECURE),
        ({"http": PLAIN, "https": SECURE, "all": OTHER}, ("http", "a.example", 80), PLAIN),
        ({"http": PLAIN, "all": OTHER}, PLACE, OTHER),
        ({"http": PLAIN}, PLACE, None),
    ],
)
def test_proxy_is_chosen_by_scheme(
    schemes: dict[str, Proxy], place: tuple[str, str, int], expected: Proxy | None
) -> None:
    assert Proxies(schemes).to(place) == expected


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
    assert Proxies({"all": OTHER}, no_proxy).to(("https", host, 443)) == (
        None if is_direct else OTHER
    )


def test_own_proxy_of_a_backend_goes_first() -> None:
    direct = ("http", "lan.example", 80)
    proxies = Proxies({"all": OTHER}, "example.org", own={PLACE: SECURE, direct: None})
    elsewhere = ("https", "pics.example", 443)
    assert proxies.to(PLACE) == SECURE
    assert proxies.to(direct) is None
    assert proxies.to(elsewhere) == OTHER
    assert proxies.to(elsewhere, named_by=PLACE) == SECURE


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
        *("", "http://", "https://secret@proxy.example", "ftp://a/", "http://secret@a:99999"),
        "http://[secret",
    ],
)
def test_invalid_proxy_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="proxy") as caught:
        Proxy.parse(url)
    assert "secret" not in str(caught.value)
