"""What an image host is sent, and the URL in what it answers."""

from __future__ import annotations

import contextlib
import email
import email.policy
import socket
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import HOSTING_PROVIDERS, HostingSettings
from hosting import ImageHost, UploadFailed, image_host
from upstream.client import Deadline, Upstream

from .conftest import KEY
from .servers import RawServer, Say, ScriptedServer, Seen, free_port, png, read_request

PICTURE = png(3, 5)
NAME = "0123abcd-9f.png"
HOSTED = "https://i.example.com/2026/a.png"
# A good answer of each, with a place for the URL.
ANSWERS: dict[str, Callable[[Any], Any]] = {
    "smms": lambda url: {"success": True, "code": "success", "data": {"url": url}},
    "picgo": lambda url: {"status_code": 200, "image": {"url": url}},
    "cloudflare_imgbed": lambda url: [{"src": url}],
}


def make_host(provider: str, url: str, auth_code: str | None = None) -> ImageHost:
    key = None if provider == "cloudflare_imgbed" else KEY
    return image_host(HostingSettings(provider, url, key, auth_code), Upstream())


def upload(host: ImageHost, seconds: float = 10.0) -> str:
    return host.upload(PICTURE, NAME, "image/png", Deadline.after(seconds))


def failure_of(host: ImageHost, seconds: float = 10.0) -> str:
    with pytest.raises(UploadFailed) as caught:
        upload(host, seconds)
    return str(caught.value)


def parts_of(request: Seen) -> list[EmailMessage]:
    """Return the parts of a multipart/form-data request."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
    assert message.get_content_type() == "multipart/form-data"
    return [part for part in message.iter_parts() if isinstance(part, EmailMessage)]


@pytest.fixture(scope="module")
def shared() -> Iterator[ScriptedServer]:
    with contextlib.closing(ScriptedServer()) as made:
        yield made


@pytest.fixture
def there(shared: ScriptedServer) -> ScriptedServer:
    """An image host that nobody has asked yet, at the address of the test before."""
    shared.script.clear()
    shared.seen.clear()
    return shared


# --- the request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "target", "field", "header"),
    [
        ("smms", "/api/v1/file/upload", "smfile", ("Authorization", KEY)),
        ("picgo", "/api/1/upload", "source", ("X-API-Key", KEY)),
        ("cloudflare_imgbed", "/upload?returnFormat=full", "file", None),
    ],
)
def test_picture_is_sent_as_the_host_wants_it(
    there: ScriptedServer, provider: str, target: str, field: str, header: tuple[str, str] | None
) -> None:
    there.say(Say(ANSWERS[provider](HOSTED)))
    assert upload(make_host(provider, there.url)) == HOSTED
    [sent] = there.seen
    assert (sent.method, sent.target) == ("POST", target)
    credentials = [
        (n, sent.headers[n]) for n in ("Authorization", "X-API-Key") if n in sent.headers
    ]
    assert credentials == ([header] if header else [])
    [part] = parts_of(sent)
    assert part.get_content_disposition() == "form-data"
    assert part.get_param("name", header="Content-Disposition") == field
    assert part.get_filename() == NAME
    assert part["Content-Type"] == "image/png"
    assert part.get_payload(decode=True) == PICTURE


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
def test_part_has_the_type_of_its_picture(there: ScriptedServer, provider: str) -> None:
    there.say(Say(ANSWERS[provider](HOSTED)))
    make_host(provider, there.url).upload(b"any", "a.webp", "image/webp", Deadline.after(10))
    [part] = parts_of(there.seen[0])
    assert (part.get_filename(), part["Content-Type"]) == ("a.webp", "image/webp")


@pytest.mark.parametrize(
    ("provider", "path", "target"),
    [
        ("smms", "", "/api/v1/file/upload"),
        ("smms", "/api/v2/upload", "/api/v2/upload"),
        ("smms", "?format=json", "/api/v1/file/upload?format=json"),
        ("picgo", "", "/api/1/upload"),
        ("picgo", "/pics/api/1/upload", "/pics/api/1/upload"),
        ("picgo", "?album=1", "/api/1/upload?album=1"),
        ("cloudflare_imgbed", "", "/upload?returnFormat=full"),
        ("cloudflare_imgbed", "/bed/upload", "/bed/upload?returnFormat=full"),
        ("cloudflare_imgbed", "?a=1", "/upload?a=1&returnFormat=full"),
    ],
)
def test_bare_host_gets_the_path_of_the_provider(
    there: ScriptedServer, provider: str, path: str, target: str
) -> None:
    there.say(Say(ANSWERS[provider](HOSTED)))
    upload(make_host(provider, there.url + path))
    assert there.seen[0].target == target


def test_smms_is_asked_at_its_successor_by_default() -> None:
    # What config gives where no URL is set; nothing is sent here.
    assert vars(make_host("smms", "https://s.ee"))["url"] == "https://s.ee/api/v1/file/upload"


@pytest.mark.parametrize(
    ("code", "query"),
    [
        ("abc", "authCode=abc&returnFormat=full"),
        ("a#b%c", "authCode=a%23b%25c&returnFormat=full"),
        ("a&b=c d+e/f?", "authCode=a%26b%3Dc%20d%2Be%2Ff%3F&returnFormat=full"),
        ("密%20码", "authCode=%E5%AF%86%2520%E7%A0%81&returnFormat=full"),
    ],
)
def test_auth_code_is_percent_encoded(there: ScriptedServer, code: str, query: str) -> None:
    there.say(Say([{"src": "/file/a.png"}]))
    upload(make_host("cloudflare_imgbed", there.url, code))
    assert urlsplit(there.seen[0].target).query == query
    assert there.seen[0].query["authCode"] == code


# --- the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        {"code": 200, "data": {"url": HOSTED}},
        {"success": True, "code": "success", "data": {"url": HOSTED, "delete": "https://x/d"}},
        {"code": "anything", "message": "odd", "data": {"url": HOSTED}},
        {"data": {"url": f" {HOSTED}\n"}},
        {"success": False, "code": "image_repeated", "message": "…", "images": HOSTED},
        {"success": False, "code": "image_repeated", "data": None, "images": HOSTED},
        {"success": False, "code": "image_repeated", "data": {"url": ""}, "images": HOSTED},
    ],
)
@pytest.mark.parametrize("status", [200, 201, 400])
def test_smms_names_a_new_or_a_repeated_picture(
    there: ScriptedServer, answer: Any, status: int
) -> None:
    there.say(Say(answer, status))
    assert upload(make_host("smms", there.url)) == HOSTED


@pytest.mark.parametrize(
    "answer",
    [
        {"success": False, "code": "unauthorized", "message": "Unauthorized.", "data": None},
        {"success": False, "code": "flood", "images": HOSTED},
        {"success": False, "code": "image_repeated"},
        {"success": False, "code": "image_repeated", "images": [HOSTED]},
        {"success": True, "data": {}},
        {"success": True, "data": [HOSTED]},
        {"success": True, "data": {"url": [HOSTED]}},
        {"url": HOSTED},
    ],
)
def test_smms_without_a_url_is_a_failure(there: ScriptedServer, answer: Any) -> None:
    there.say(Say(answer))
    assert failure_of(make_host("smms", there.url)) == "it did not name a URL"


def test_picgo_names_the_picture_itself(there: ScriptedServer) -> None:
    image = {"url": HOSTED, "url_viewer": "https://x/v", "thumb": {"url": "https://x/t.png"}}
    there.say(Say({"status_code": 200, "success": {"code": 200}, "image": image}))
    assert upload(make_host("picgo", there.url)) == HOSTED


@pytest.mark.parametrize(
    "answer",
    [
        {"status_code": 400, "error": {"message": "Duplicated upload", "code": 101}},
        {"status_code": 403, "error": {"message": "Invalid API key"}, "status_txt": "Forbidden"},
        {"status_code": 200, "image": {}},
        {"status_code": 200, "image": {"url_viewer": HOSTED}},
        {"status_code": 200, "image": HOSTED},
        {"status_code": 200, "image": [{"url": HOSTED}]},
    ],
)
@pytest.mark.parametrize("status", [200, 400, 403])
def test_picgo_without_a_url_is_a_failure(there: ScriptedServer, answer: Any, status: int) -> None:
    there.say(Say(answer, status))
    assert failure_of(make_host("picgo", there.url)) == "it did not name a URL"


@pytest.mark.parametrize(
    ("answer", "url"),
    [
        ([{"src": "/file/a.png", "publicUrl": HOSTED}], HOSTED),
        ([{"src": "https://other/file/b.png", "publicUrl": HOSTED}], HOSTED),
        ([{"src": HOSTED}], HOSTED),
        ([{"src": HOSTED, "publicUrl": None}], HOSTED),
        ([{"src": HOSTED, "publicUrl": ""}], HOSTED),
        ([{"src": HOSTED, "publicUrl": {"a": 1}}], HOSTED),
        ([{"src": "/file/a.png"}], "{here}/file/a.png"),
        ([{"src": " /file/a.png\n"}], "{here}/file/a.png"),
        ([{"src": "/file/a(1)红.png?x=%20"}], "{here}/file/a(1)%E7%BA%A2.png?x=%20"),
        ([{"src": "file/a.png"}], "{here}/file/a.png"),
        ([{"src": "/file/a.png"}, {"src": "/file/b.png"}], "{here}/file/a.png"),
        ([{"src": "//cdn.example.com/a.png"}], "http://cdn.example.com/a.png"),
    ],
)
def test_imgbed_names_a_public_an_absolute_or_a_relative_url(
    there: ScriptedServer, answer: Any, url: str
) -> None:
    there.say(Say(answer))
    assert upload(make_host("cloudflare_imgbed", there.url)) == url.format(here=there.url)


@pytest.mark.parametrize("src", ["/file/a.png", "a.png", "#a", "?a=1", ";a"])
def test_hosted_url_never_holds_our_credentials(there: ScriptedServer, src: str) -> None:
    there.say(Say([{"src": src}]))
    url = there.url.replace("//", "//user:word@") + "/upload?token=word"
    found = upload(make_host("cloudflare_imgbed", url, "word"))
    assert found.startswith(f"{there.url}/")
    assert "word" not in found


@pytest.mark.parametrize("answer", [[], [[]], [{}], ["/file/a.png"], {"src": HOSTED}, [None]])
def test_imgbed_without_a_url_is_a_failure(there: ScriptedServer, answer: Any) -> None:
    there.say(Say(answer))
    assert failure_of(make_host("cloudflare_imgbed", there.url)) == "it did not name a URL"


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("http://i.example.com/a.png", "http://i.example.com/a.png"),
        ("HTTPS://i.example.com:8443/a?b=c&d=%20#e", "HTTPS://i.example.com:8443/a?b=c&d=%20#e"),
        ("https://i.example.com/红(1).png", "https://i.example.com/%E7%BA%A2(1).png"),
        ('https://i.example.com/"a"\\b', "https://i.example.com/%22a%22%5Cb"),
        ("https://[2001:db8::1]/a.png", "https://[2001:db8::1]/a.png"),
    ],
)
def test_hosted_url_is_fit_for_a_header(
    there: ScriptedServer, provider: str, named: str, url: str
) -> None:
    there.say(Say(ANSWERS[provider](named)))
    assert upload(make_host(provider, there.url)) == url


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
@pytest.mark.parametrize(
    "named",
    [
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "ftp://i.example.com/a.png",
        "file:///etc/passwd",
        "https://",
        "https:///a.png",
        "https://[::1/a.png",
        "https://host:port/a.png",
        "https://host:99999/a.png",
        "https://host:0/a.png",
        "https://i.example.com/a b.png",
        "https://i.example.com/a\r\nSet-Cookie: a=b",
        "https://i.example.com/\u2028a.png",
        "https://i.example.com/\x7fa.png",
        "",
        " ",
        None,
        0,
        5,
        True,
        [],
        [HOSTED],
        {"url": HOSTED},
    ],
)
def test_what_is_no_http_url_is_a_failure(there: ScriptedServer, provider: str, named: Any) -> None:
    there.say(Say(ANSWERS[provider](named)))
    assert failure_of(make_host(provider, there.url)) == "it did not name a URL"


@pytest.mark.parametrize("provider", ["smms", "picgo"])
@pytest.mark.parametrize("named", ["/file/a.png", "//cdn.example.com/a.png", "a.png"])
def test_relative_url_is_a_failure_where_none_is_promised(
    there: ScriptedServer, provider: str, named: str
) -> None:
    there.say(Say(ANSWERS[provider](named)))
    assert failure_of(make_host(provider, there.url)) == "it did not name a URL"


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (Say("<html>welcome</html>"), "its answer is not JSON"),
        (Say("<html>forbidden</html>", 403), "its answer is not JSON"),
        (Say(""), "its answer is not JSON"),
        (Say("", 302, {"Location": "http://127.0.0.1:9/"}), "its answer is not JSON"),
        (Say(b"\xff\xfe"), "its answer is not JSON"),
        (Say("[" * 100_000), "its answer is not JSON"),
        (Say("9" * 5000), "its answer is not JSON"),
        (Say("[1, 2]"), "it did not name a URL"),
        (Say("[]"), "it did not name a URL"),
        (Say("{}"), "it did not name a URL"),
        (Say("5"), "it did not name a URL"),
        (Say("null"), "it did not name a URL"),
        (Say("true"), "it did not name a URL"),
        (Say('"https://i.example.com/a.png"'), "it did not name a URL"),
        (Say({"error": "unauthorised"}, 401), "it did not name a URL"),
        (Say("upstream down", 502), "it answered 502"),
        (Say("", 500), "it answered 500"),
        (Say(b" " * (2**20 + 1)), "its answer is larger than 1048576 bytes"),
    ],
)
def test_unusable_answer_is_a_failure(
    there: ScriptedServer, provider: str, say: Say, reason: str
) -> None:
    there.say(say)
    assert failure_of(make_host(provider, there.url)) == reason
    assert len(there.seen) == 1


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
def test_server_error_is_a_failure_whatever_it_names(there: ScriptedServer, provider: str) -> None:
    there.say(Say(ANSWERS[provider](HOSTED), 503))
    assert failure_of(make_host(provider, there.url)) == "it answered 503"


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
def test_host_that_is_not_there_is_a_failure(provider: str) -> None:
    host = make_host(provider, f"http://127.0.0.1:{free_port()}")
    assert failure_of(host) == "it refused the connection"


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
def test_silent_host_is_a_failure_in_time(
    raw_server: Callable[[Callable[[socket.socket], None]], RawServer], provider: str
) -> None:
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.recv(1)

    start = time.monotonic()
    host = make_host(provider, raw_server(talk).url)
    assert failure_of(host, seconds=0.2) == "it did not answer in time"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("provider", HOSTING_PROVIDERS)
def test_no_secret_is_in_a_failure(there: ScriptedServer, provider: str) -> None:
    host = make_host(provider, there.url, auth_code="secret-code")
    for say in (Say({"error": KEY}, 401), Say(KEY, 500), Say(KEY), Say({"data": {"url": KEY}})):
        there.say(say)
        told = failure_of(host)
        assert KEY not in told
        assert "secret-code" not in told


NAMES = ["data", "url", "code", "images", "image", "src", "publicUrl", "success", "error"]
LEAVES = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1.5, 10**30, "", " ", "image_repeated", "javascript:1", "//"),
        *(HOSTED, "/file/a.png", "https://[", "//[", "http://\ud83c/", "https://a\0b", "\\", "?#"),
        *("http://ⅷ.℀/", "https://%zz/", "http://@/", "https://a:1:2/", "\u202e", "http:a"),
    ]
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(
    max_examples=40,
    deadline=None,
    # One server for all examples: each scripts it anew.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(JSON | JSON.flatmap(lambda url: st.sampled_from([make(url) for make in ANSWERS.values()])))
def test_any_answer_names_a_url_or_is_a_failure(there: ScriptedServer, answer: Any) -> None:
    there.say(Say(answer))
    for provider in HOSTING_PROVIDERS:
        with contextlib.suppress(UploadFailed):
            found = upload(make_host(provider, there.url))
            assert found.isascii()
            assert urlsplit(found).scheme in ("http", "https")
            assert urlsplit(found).hostname
