"""A picture is downloaded only from the backend that named it, or from public addresses."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings.proxies import NetworkSettings
from upstream.adapters import is_public
from upstream.client import Upstream, UpstreamError, origin

from .scripted import RawServer, Say, ScriptedServer, png
from .wire import (
    PUBLIC,
    TOKEN,
    MakeRawServer,
    MakeServer,
    Net,
    download,
    guarded_net,
    hang,
    reason_of,
    unhurried,
)

AnyServer = ScriptedServer | RawServer

net = pytest.fixture(autouse=True)(guarded_net)


@pytest.fixture
def home(server: MakeServer) -> ScriptedServer:
    return server()


def redirect(location: str, status: int = 302) -> Say:
    return Say("moved", status, {"Location": location})


def test_download_follows_three_redirects_of_its_home(home: ScriptedServer) -> None:
    for statuses in ((301, 302, 303), (307, 308, 301)):
        home.seen.clear()
        home.say(*map(redirect, ("/b/c?d=e", "../f", "g"), statuses), Say(png()))
        assert download(home.url + "/a", home.url).body == png()
        assert [seen.target for seen in home.seen] == ["/a", "/b/c?d=e", "/f", "/g"]
        assert {seen.method for seen in home.seen} == {"GET"}
        assert {seen.headers["Authorization"] for seen in home.seen} == {TOKEN["Authorization"]}


def test_download_ends_a_loop_of_redirects(home: ScriptedServer) -> None:
    home.say(redirect("/a"))
    reason = reason_of(lambda: download(home.url + "/a", home.url))
    assert reason == "it redirected more than 3 times"
    assert len(home.seen) == 4


def test_token_is_sent_to_home_only(server: MakeServer, net: Net) -> None:
    home, other = server(), server()
    net.routes[PUBLIC] = "127.0.0.1"
    other_url = f"http://pics.example:{other.port}"
    home.say(redirect(other_url + "/a"), Say(png()))
    other.say(redirect(home.url + "/back"), Say(png(2, 2)))
    net.name("pics.example", [PUBLIC])
    assert download(home.url + "/a", home.url).body == png()
    assert download(other_url + "/b", home.url).body == png(2, 2)
    asked = [(seen.target, seen.headers["Authorization"]) for seen in other.seen + home.seen]
    token = TOKEN["Authorization"]
    assert asked == [("/a", None), ("/b", None), ("/a", token), ("/back", token)]


def test_download_ends_without_a_location_or_beyond_its_limit(home: ScriptedServer) -> None:
    home.say(Say("where to?", 302), Say(bytes(1001)))
    assert download(home.url, home.url).status == 302
    reason = reason_of(lambda: download(home.url, home.url, limit=1000))
    assert reason == "its answer is larger than 1000 bytes"


NOT_PUBLIC = "it named an address that is not public"
NO_URL = "it named something that is not a URL"
NOT_HTTP = "it named a URL that is not http or https"
CREDENTIALS = "it named a URL with credentials"
LOCAL_HOSTS = (
    *("127.0.0.1", "127.0.0.2", "127.1", "2130706433", "0x7f000001", "0x7f.0x0.0x0.0x1", "0"),
    *("0177.0.0.1", "017700000001", "0.0.0.0", "%31%32%37.0.0.1", "localhost", "LocalHost"),
    *("[::1]", "[::]", "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *("[64:ff9b::127.0.0.1]", "[2002:7f00:1::]"),
)
CREDENTIALED = (
    *("{home}@127.0.0.1", "user:password@127.0.0.1"),
    *("user@pics.example", ":password@pics.example"),
)
OTHER_SCHEMES = (
    *("file:///etc/passwd", "file://127.0.0.1{port}/etc/passwd", "javascript:alert(1)"),
    *("ftp://127.0.0.1{port}/a.png", "httpx://127.0.0.1{port}/a.png", "data:image/png;base64,AAAA"),
    "gopher://127.0.0.1{port}/_GET%20/",
)
NO_URLS = (
    *("http://[::1", "https://", "https:///a.png", "https:127.0.0.1{port}/"),
    *("http://127.0.0.1:99999/", "http://127.0.0.1{port}\0/", "http://\ud800/"),
)
# `{port}` is that of a server that must not be asked, `{home}` the host and port of the home.
FORBIDDEN = [
    *((f"http://{host}{{port}}/", NOT_PUBLIC) for host in LOCAL_HOSTS),
    *((f"{scheme}://127.0.0.1{{port}}/", NOT_PUBLIC) for scheme in ("https", "HTTP", " http")),
    ("http://169.254.169.254/latest/meta-data/", NOT_PUBLIC),
    ("https://{home}/", NOT_PUBLIC),
    ("//127.0.0.1{port}/", NOT_PUBLIC),
    ("http://127.0.0.1/", NOT_PUBLIC),
    # Here two parsers of URLs see different hosts: urlsplit the home, requests the other one.
    ("http://127.0.0.1{port}\\@{home}/", NOT_PUBLIC),
    ("http://127.0.0.1{port}\\\\@{home}/", NOT_PUBLIC),
    ("http://169.254.169.254\\@{home}/latest/meta-data/", NOT_PUBLIC),
    ("http://127.0.0.1{port}#@{home}/", NOT_PUBLIC),
    ("http://127.0.0.1{port}?@{home}/", NOT_PUBLIC),
    *((f"http://{host}{{port}}/", CREDENTIALS) for host in CREDENTIALED),
    *((url, NOT_HTTP) for url in OTHER_SCHEMES),
    *((url, NO_URL) for url in NO_URLS),
]


def placed(pattern: str, forbidden: AnyServer, home: AnyServer) -> str:
    return pattern.format(port=f":{forbidden.port}", home=f"127.0.0.1:{home.port}")


@pytest.mark.parametrize(("pattern", "reason"), FORBIDDEN)
def test_forbidden_url_is_refused_before_any_connection(
    raw_server: MakeRawServer, net: Net, pattern: str, reason: str
) -> None:
    forbidden, home = raw_server(hang), raw_server(hang)
    url = placed(pattern, forbidden, home)
    assert reason_of(lambda: download(url, home.url)) == reason
    assert net.asked == []
    assert forbidden.connections == home.connections == 0


def test_forbidden_redirect_fails(server: MakeServer, raw_server: MakeRawServer, net: Net) -> None:
    forbidden, home = raw_server(hang), server()
    for pattern, reason in (
        ("http://localhost{port}/", NOT_PUBLIC),
        ("http://127.0.0.1{port}\\@{home}/", NOT_PUBLIC),
        ("http://user:password@127.0.0.1{port}/", CREDENTIALS),
        ("file:///etc/passwd", NOT_HTTP),
        ("http://[::1", NO_URL),
    ):
        home.say(redirect(placed(pattern, forbidden, home)))
        assert reason_of(lambda: download(home.url, home.url)) == reason
    assert set(net.asked) == {"127.0.0.1"}
    assert len(home.seen) == 5
    assert forbidden.connections == 0


def test_home_may_be_private_however_it_is_spelled(home: ScriptedServer) -> None:
    home.say(Say(png()))
    patterns = ("http://{home}/", "HTTP://{home}/", "http://{home}\\@a{port}/", " http://{home}")
    for pattern in patterns:
        url = placed(pattern, home, home)
        assert download(url, home.url + "/v1").body == png()
    with_password = home.url.replace("//", "//user:password@")
    assert download(with_password + "/a", home.url).body == png()
    assert download(home.url + "/a", with_password).body == png()
    named = home.url.replace("127.0.0.1", "localhost")
    assert download(named + "/a", named.upper().replace("HTTP", "http")).body == png()
    assert all("Authorization" in seen.headers for seen in home.seen)


PRIVATE_ANSWERS = [["10.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%lo"], [PUBLIC, "127.0.0.1", PUBLIC]]


@pytest.mark.parametrize("addresses", PRIVATE_ANSWERS, ids=" ".join)
def test_name_with_a_private_address_is_not_connected(net: Net, addresses: list[str]) -> None:
    net.name("pics.example", addresses)
    assert reason_of(lambda: download("http://pics.example/a.png")) == NOT_PUBLIC
    assert net.resolved == ["pics.example"]
    assert net.asked == []


def test_connection_goes_to_the_checked_address(server: MakeServer, net: Net) -> None:
    other = server()
    other.say(Say(png()))
    net.routes[PUBLIC] = "127.0.0.1"
    net.name("pics.example", [PUBLIC], ["127.0.0.1"])
    url = f"http://pics.example:{other.port}/a.png"
    assert download(url).body == png()
    assert (net.resolved, net.asked) == (["pics.example"], [PUBLIC])
    assert other.seen[0].headers["Host"] == f"pics.example:{other.port}"
    assert reason_of(lambda: download(url)) == NOT_PUBLIC
    assert (len(net.resolved), net.asked) == (2, [PUBLIC])


def test_every_redirect_is_resolved_and_checked(server: MakeServer, net: Net) -> None:
    other = server()
    other.say(redirect("/next"), Say(png()))
    net.routes[PUBLIC] = "127.0.0.1"
    net.name("pics.example", [PUBLIC], ["127.0.0.1"])
    assert reason_of(lambda: download(f"http://pics.example:{other.port}/a.png")) == NOT_PUBLIC
    assert net.resolved == ["pics.example"] * 2
    assert [seen.target for seen in other.seen] == ["/a.png"]


def test_unchecked_connection_is_not_used_for_a_download(home: ScriptedServer, net: Net) -> None:
    home.say(Say(png()))
    net.name("pics.example", ["127.0.0.1"])
    upstream = Upstream()
    url = f"http://pics.example:{home.port}/"
    assert download(url, url, upstream=upstream).body == png()
    assert reason_of(lambda: download(url, upstream=upstream)) == NOT_PUBLIC


def test_picture_networks_are_admitted_for_downloads(server: MakeServer, net: Net) -> None:
    other = server()
    other.say(Say(png()))
    net.routes["198.18.0.7"] = "127.0.0.1"
    net.name("a.example", ["198.18.0.7"])
    net.name("b.example", ["198.18.0.7", "10.0.0.1"])
    upstream = Upstream(NetworkSettings(picture_networks=[ipaddress.ip_network("198.18.0.0/15")]))
    assert download(f"http://a.example:{other.port}/", upstream=upstream).body == png()
    private = f"http://b.example:{other.port}/"
    assert reason_of(lambda: download(private, upstream=upstream)) == NOT_PUBLIC


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


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES + OTHER_ADDRESSES)
def test_address_is_public_or_not(address: str) -> None:
    assert is_public(address) == (address in PUBLIC_ADDRESSES)


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
def test_origin_is_where_a_request_would_go(url: str, parts: tuple[str, str, int]) -> None:
    assert origin(url) == parts


@unhurried
@given(st.text(max_size=40) | st.text("htps:/\\@[]%.#?1a \t\n", max_size=40).map("http:".__add__))
def test_origin_of_any_text_is_one_or_an_upstream_error(url: str) -> None:
    try:
        scheme, host, port = origin(url)
    except UpstreamError:
        return
    assert scheme in ("http", "https")
    assert host.isprintable()
    assert " " not in host
    assert 0 < port < 65536
