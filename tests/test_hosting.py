"""Uploads to image hosts: the request, and the URL in the answer."""

import contextlib
import email
import email.policy
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

import pytest

from hosting import ImageHost, UploadFailed, image_host
from settings.proxies import DIRECT
from settings.servers import HostingSettings, ObjectSettings
from upstream.client import Deadline, Upstream

from .conftest import KEY
from .scripted import WEBP, Say, ScriptedServer, Seen
from .wire import MakeRawServer, hang

NAME = "0123abcd-9f.webp"
HOSTED = "https://i.example.com/2026/a.png"
NO_URL = "no usable URL in the answer"
# A successful answer of each host, by the URL that it names.
ANSWERS: dict[str, Callable[[Any], Any]] = {
    "smms": lambda url: {"success": True, "code": "success", "data": {"url": url}},
    "picgo": lambda url: {"status_code": 200, "image": {"url": url}},
    "cloudflare_imgbed": lambda url: [{"src": url}],
}

# The field of the form, and the header with the key.
FIELDS: dict[str, tuple[str, dict[str, str]]] = {
    "smms": ("smfile", {"Authorization": KEY}),
    "picgo": ("source", {"X-API-Key": KEY}),
    "cloudflare_imgbed": ("file", {}),
}


def make_host(provider: str, url: str, auth_code: str | None = None) -> ImageHost:
    key = None if provider == "cloudflare_imgbed" else KEY
    return image_host(HostingSettings(provider, url, key, auth_code), Upstream(), DIRECT, 30.0)


def upload(host: ImageHost, seconds: float = 10.0) -> str:
    return host.upload(WEBP, NAME, "image/webp", Deadline.after(seconds))


def failure_of(host: ImageHost, seconds: float = 10.0) -> str:
    with pytest.raises(UploadFailed) as caught:
        upload(host, seconds)
    return str(caught.value)


@pytest.fixture(scope="module")
def shared() -> Iterator[ScriptedServer]:
    with contextlib.closing(ScriptedServer()) as made:
        yield made


@pytest.fixture
def there(shared: ScriptedServer) -> ScriptedServer:
    """An image host without requests so far. Tests share its address."""
    shared.script.clear()
    shared.seen.clear()
    return shared


# --- the request --------------------------------------------------------------------------------


def parts_of(request: Seen) -> list[EmailMessage]:
    """Return the parts of a multipart/form-data request."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
    assert message.get_content_type() == "multipart/form-data"
    return [part for part in message.iter_parts() if isinstance(part, EmailMessage)]


CODE = "a#b%20&c=d+e 密"
ENCODED = "authCode=a%23b%2520%26c%3Dd%2Be%20%E5%AF%86&"


@pytest.mark.parametrize(
    ("provider", "path", "target"),
    [
        ("smms", "", "/api/v1/file/upload"),
        ("smms", "/api/v2/upload", "/api/v2/upload"),
        ("smms", "?format=json", "/api/v1/file/upload?format=json"),
        ("picgo", "", "/api/1/upload"),
        ("picgo", "/pics/api/1/upload", "/pics/api/1/upload"),
        ("cloudflare_imgbed", "", "/upload?returnFormat=full"),
        ("cloudflare_imgbed", "", f"/upload?{ENCODED}returnFormat=full"),
        ("cloudflare_imgbed", "/bed/upload", f"/bed/upload?{ENCODED}returnFormat=full"),
        ("cloudflare_imgbed", "?a=1", f"/upload?a=1&{ENCODED}returnFormat=full"),
    ],
)
def test_upload_fits_its_host(there: ScriptedServer, provider: str, path: str, target: str) -> None:
    there.say(Say(ANSWERS[provider](HOSTED)))
    code = CODE if "authCode" in target else None
    assert upload(make_host(provider, there.url + path, code)) == HOSTED
    [sent] = there.seen
    assert (sent.method, sent.target) == ("POST", target)
    names = [name for name in ("Authorization", "X-API-Key") if name in sent.headers]
    field, credentials = FIELDS[provider]
    assert {name: sent.headers[name] for name in names} == credentials
    [part] = parts_of(sent)
    assert part.get_content_disposition() == "form-data"
    assert part.get_param("name", header="Content-Disposition") == field
    assert (part.get_filename(), part["Content-Type"]) == (NAME, "image/webp")
    assert part.get_payload(decode=True) == WEBP


# --- a bucket -----------------------------------------------------------------------------------


def make_s3(url: str) -> ImageHost:
    bucket = ObjectSettings("s3://bucket/pics", url, "auto", "key-id", "secret-key")
    hosting = HostingSettings("s3", "", None, None, "https://img.example/pics", bucket)
    return image_host(hosting, Upstream(), DIRECT, upload_timeout=1.0)


def test_object_name_in_the_bucket_changes_with_the_content(there: ScriptedServer) -> None:
    there.say(Say(headers={"ETag": '"1"'}))
    host = make_s3(there.url)
    url = "https://img.example/pics/0123abcd-9f-86be52bd.webp"
    assert [upload(host), upload(host)] == [url] * 2
    assert host.upload(WEBP + b"more", NAME, "image/webp", Deadline.after(10)) != url
    sent = there.seen[0]
    assert (sent.method, sent.body) == ("PUT", WEBP)
    assert sent.path == "/bucket/pics/0123abcd-9f-86be52bd.webp"
    assert sent.headers["Content-Type"] == "image/webp"
    assert sent.headers["Cache-Control"] == "public, max-age=31536000, immutable"


def test_silent_bucket_fails_within_the_upload_timeout(raw_server: MakeRawServer) -> None:
    start = time.monotonic()
    assert failure_of(make_s3(raw_server(hang).url)) == "object store: no answer in time"
    assert time.monotonic() - start < 1.5
    assert failure_of(make_s3("http://127.0.0.1:1"), seconds=0.0) == "no time was left for it"


# --- the answer ---------------------------------------------------------------------------------

REPEATED = {"success": False, "code": "image_repeated"}
DUPLICATED = {"status_code": 400, "error": {"message": "Duplicated upload", "code": 101}}


@pytest.mark.parametrize(
    ("provider", "status", "answer"),
    [
        ("smms", 200, {"code": "success", "data": {"url": HOSTED, "delete": "https://x/d"}}),
        ("smms", 200, {"code": "anything", "message": "odd", "data": {"url": f" {HOSTED}\n"}}),
        ("smms", 200, REPEATED | {"images": HOSTED}),
        ("smms", 400, REPEATED | {"images": HOSTED, "data": {"url": ""}}),
        ("picgo", 200, {"image": {"url": HOSTED, "thumb": {"url": "https://x/t.png"}}}),
        ("picgo", 400, DUPLICATED | {"image": {"url": HOSTED}}),
        ("cloudflare_imgbed", 200, [{"src": "https://x/b.png", "publicUrl": HOSTED}]),
        ("cloudflare_imgbed", 200, [{"src": HOSTED, "publicUrl": None}]),
        ("cloudflare_imgbed", 200, [{"src": HOSTED, "publicUrl": {"a": 1}}, {"src": "/b.png"}]),
    ],
)
def test_new_or_duplicated_picture_is_at_the_named_url(
    there: ScriptedServer, provider: str, status: int, answer: Any
) -> None:
    there.say(Say(answer, status))
    assert upload(make_host(provider, there.url)) == HOSTED


@pytest.mark.parametrize(
    ("provider", "answer"),
    [
        ("smms", {"success": False, "code": "unauthorized", "message": "No.", "data": None}),
        ("smms", {"success": False, "code": "flood", "images": HOSTED}),
        ("smms", REPEATED),
        ("smms", REPEATED | {"images": [HOSTED]}),
        ("smms", {"url": HOSTED}),
        ("picgo", DUPLICATED),
        ("picgo", {"status_code": 403, "error": {"message": "Invalid API key"}}),
        ("picgo", {"status_code": 200, "image": {"url_viewer": HOSTED}}),
        ("picgo", {"status_code": 200, "image": HOSTED}),
        ("cloudflare_imgbed", []),
        ("cloudflare_imgbed", [{}]),
        ("cloudflare_imgbed", ["/file/a.png"]),
        ("cloudflare_imgbed", {"src": HOSTED}),
        *(
            ("cloudflare_imgbed", [{"src": src}])
            for src in ("https://[::1/a", "http://ⅷ.℀/", "//[")
        ),
    ],
)
def test_answer_without_url_is_a_failure(there: ScriptedServer, provider: str, answer: Any) -> None:
    there.say(Say(answer), Say(answer, 403))
    host = make_host(provider, there.url)
    assert [failure_of(host), failure_of(host)] == [NO_URL] * 2


@pytest.mark.parametrize(
    ("src", "url"),
    [
        ("/file/a(1)红.png?x=%20", "{host}/file/a(1)%E7%BA%A2.png?x=%20"),
        ("a.png", "{host}/a.png"),
        ("#a", "{host}/upload#a"),
        ("?a=1", "{host}/upload?a=1"),
        ("//cdn.example.com/a.png", "http://cdn.example.com/a.png"),
    ],
)
def test_relative_url_is_without_our_credentials(there: ScriptedServer, src: str, url: str) -> None:
    there.say(Say([{"src": src}]))
    configured = there.url.replace("//", "//user:word@") + "/upload?token=word"
    found = upload(make_host("cloudflare_imgbed", configured, "word"))
    assert found == url.format(host=there.url)


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("HTTPS://i.example.com:8443/a?b=c&d=%20#e", "HTTPS://i.example.com:8443/a?b=c&d=%20#e"),
        ("http://i.example.com/红(1).png", "http://i.example.com/%E7%BA%A2(1).png"),
        ('https://i.example.com/"a"\\b', "https://i.example.com/%22a%22%5Cb"),
        ("https://[2001:db8::1]/a.png", "https://[2001:db8::1]/a.png"),
    ],
)
def test_hosted_url_is_fit_for_a_header(there: ScriptedServer, named: str, url: str) -> None:
    there.say(Say(ANSWERS["picgo"](named)))
    assert upload(make_host("picgo", there.url)) == url


@pytest.mark.parametrize(
    "named",
    [
        *("javascript:alert(1)", "ftp://i.example.com/a.png", "/file/a.png", "//i.example.com/a"),
        *("https:///a.png", "https://[::1/a.png", "https://host:port/a.png", "https://host:0/a"),
        *("https://i.example.com/a b.png", "https://i.example.com/a\r\nSet-Cookie: a=b"),
        *("https://i.example.com/\u2028a.png", " ", 5, [HOSTED], {"url": HOSTED}),
    ],
)
def test_unusable_url_is_a_failure(there: ScriptedServer, named: Any) -> None:
    there.say(Say(ANSWERS["picgo"](named)))
    assert failure_of(make_host("picgo", there.url)) == NO_URL


@pytest.mark.parametrize("provider", ANSWERS)
def test_failure_holds_no_secret(there: ScriptedServer, provider: str) -> None:
    host = make_host(provider, there.url, auth_code="secret-code")
    there.say(Say(ANSWERS[provider](HOSTED), 503))
    assert failure_of(host) == "HTTP 503"
    for say in (Say({"error": KEY}, 401), Say(KEY, 500), Say(KEY), Say({"data": {"url": KEY}})):
        there.say(say)
        assert not any(secret in failure_of(host) for secret in (KEY, "secret-code"))
