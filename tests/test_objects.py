"""The object store: what its answers mean, and that no caller waits long for one that fails."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from settings.proxies import NetworkSettings, Proxy
from settings.servers import ObjectSettings
from storage.cluster.objects import Objects

from .proxy import HttpProxy
from .scripted import RawServer, Say, ScriptedServer, wait_until
from .wire import OK, over_tls, saying

MISSING = "<Error><Code>NoSuchKey</Code></Error>"
# object_store takes no answer to a PUT without one.
ETAG = {"ETag": '"1"'}


@pytest.fixture
def answering(server: Callable[[], ScriptedServer]) -> ScriptedServer:
    """A server in place of the object store, without any object."""
    made = server()
    made.say(Say(MISSING, 404))
    return made


def at(url: str, **more: Any) -> ObjectSettings:
    settings = ObjectSettings("s3://bucket/prefix", url, "us-east-1", "the-key-id", "the-secret")
    return replace(settings, **more)


def through(**proxies: str) -> NetworkSettings:
    return NetworkSettings(proxies={name: Proxy.parse(url) for name, url in proxies.items()})


def failure_of(call: Callable[[], object]) -> str:
    with pytest.raises(OSError) as caught:  # the text is what is returned
        call()
    assert not isinstance(caught.value, FileNotFoundError)
    return str(caught.value.strerror)


def test_client_that_cannot_be_built_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json")
    objects = Objects(ObjectSettings("gs://bucket"))
    for call in (lambda: objects.put("a", b"", "text/plain"), lambda: objects.get("a")):
        assert "/no/such" not in failure_of(call)


# --- what an answer means


def test_missing_bucket_is_no_missing_object(bucket: ObjectSettings) -> None:
    """Else every picture would count as lost, and be paid for again."""
    objects = Objects(replace(bucket, url="s3://no-such-bucket"))
    for call in (
        lambda: objects.get("a.png"),
        lambda: objects.put("a.png", b"1", "image/png"),
        lambda: objects.delete("a.png"),
        lambda: list(objects.list()),
        objects.check,
    ):
        assert failure_of(call) == "object store: HTTP 404 (NoSuchBucket)"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Say("", 404), "HTTP 404"),
        (Say("<Error><Code>InvalidAccessKeyId</Code>the-key-id</Error>", 403),
         "HTTP 403 (InvalidAccessKeyId)"),
        (Say("<Error><Code>SlowDown</Code></Error>", 503), "HTTP 503 (SlowDown)"),
    ],
    ids=["stranger", "wrong key", "overloaded"],
)  # fmt: skip
def test_other_answers_are_failures_without_secrets(
    answering: ScriptedServer, answer: Say, reason: str
) -> None:
    answering.say(answer)
    objects = Objects(at(answering.url))
    assert failure_of(lambda: objects.get("a.png")) == f"object store: {reason}"


# --- a store that fails


def works(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True


def test_bucket_that_takes_nothing_is_still_read(
    answering: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    objects = Objects(at(answering.url))
    answering.say(Say("<Error><Code>AccessDenied</Code></Error>", 403), Say("bytes", headers=ETAG))
    failure_of(lambda: objects.put("a.png", b"1", "image/png"))
    assert objects.get("a.png") == b"bytes"
    assert objects.fault == "object store: HTTP 403 (AccessDenied)"
    wait_until(lambda: works(lambda: objects.put("a.png", b"1", "image/png")))
    assert objects.fault is None
    begun, ended = "cannot be written to: HTTP 403 (AccessDenied)", "can be written to again"
    assert [one.message for one in caplog.records] == [f"The bucket {begun}", f"The bucket {ended}"]


# --- how it is reached


def test_credentials_are_those_of_the_settings(
    answering: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token of another account")
    with pytest.raises(FileNotFoundError):
        Objects(at(answering.url)).get("a.png")
    headers = answering.seen[0].headers
    assert "Credential=the-key-id/" in headers["Authorization"]
    assert headers["x-amz-security-token"] is None


def test_bucket_in_the_host_is_left_out_of_the_path(
    answering: ScriptedServer, opened: list[Any]
) -> None:
    """And the settings' proxy is used, which leads every name to loopback."""
    opened.append(proxy := HttpProxy())
    settings = at(f"http://bucket.oss.example:{answering.port}")
    with pytest.raises(FileNotFoundError):
        Objects(settings, through(http=f"http://user:pass@{proxy.address}")).get("a.png")
    assert answering.seen[0].path == "/prefix/a.png"
    assert "Basic dXNlcjpwYXNz" in proxy.heads[0]


def test_authority_of_the_settings_is_trusted(
    raw_server: Callable[..., RawServer], certificates: tuple[Path, Path]
) -> None:
    authority, certificate = certificates
    dated = b"Last-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
    tls = raw_server(over_tls(certificate, saying(OK + dated + b"Content-Length: 5\r\n\r\nbytes")))
    settings = at(f"https://127.0.0.1:{tls.port}")
    assert "CA_BUNDLE" in failure_of(lambda: Objects(settings).get("a.png"))
    network = NetworkSettings(ca_bundle=authority)
    assert Objects(settings, network).get("a.png") == b"bytes"
