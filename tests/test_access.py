"""Signed URLs: each opens one picture and no other, and tells nobody the key."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from markdown_it import MarkdownIt

from access import Signer
from picture import ImageRequest

from .conftest import KEY, ROOT, InProcess
from .servers import Got, ScriptedServer, png

Serve = Callable[..., InProcess]
CAT = ImageRequest("a (big) cat [1] *& <b>", 64, 32, "m/1", 7)


def sign(service: InProcess, body: object, **headers: str) -> Got:
    sent = {"Authorization": f"Bearer {KEY}", **headers}
    return service.get("/sign", method="POST", headers=sent, body=json.dumps(body).encode())


def target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def test_signature_is_the_documented_hmac() -> None:
    key = hashlib.sha256(b"a cat|64|64|def|42").hexdigest()
    expected = hmac.new(b"signing-key", f"{key}|".encode(), hashlib.sha256).hexdigest()[:32]
    signer = Signer(["signing-key", "older"], KEY, time.time)
    assert signer.sign(ImageRequest("A Cat", 64, 64)) == {"sig": expected}
    expiring = Signer(["signing-key"], KEY, lambda: 1000.5).sign(ImageRequest("A Cat", 64, 64), 60)
    text = f"{key}|1060".encode()
    assert expiring == {
        "exp": 1060,
        "sig": hmac.new(b"signing-key", text, hashlib.sha256).hexdigest()[:32],
    }


def test_signed_url_shows_the_picture_without_the_key(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    body = {"description": CAT.prompt, "width": 64, "height": 32, "model": "m/1", "seed": 7}
    got = sign(service, body)
    assert (got.status, got.headers["Cache-Control"]) == (200, "no-store")
    url = got.json["url"]
    assert url.startswith(f"{service.url}/prompt/a%20%28big%29%20cat")
    assert KEY not in got.body.decode()
    answer = service.get(target(url))
    assert (answer.status, answer.body) == (200, png())
    assert backend.seen[0].json["prompt"] == CAT.prompt


def test_signature_opens_no_other_picture(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    signed = target(sign(service, {"description": "cat", "width": 8, "seed": 1}).json["url"])
    for old, new in [("cat", "dog"), ("width=8", "width=9"), ("seed=1", "seed=2")]:
        got = service.get(signed.replace(old, new))
        assert (got.status, "wrong" in got.detail) == (401, True), new
    assert service.get(f"{signed}&model=m").status == 401
    assert backend.seen == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda sig: sig[:-1], "cut short"),
        (lambda sig: "", "cut short"),
        (lambda sig: sig[:-1] + ("0" if sig[-1] != "0" else "1"), "wrong"),
        (lambda sig: sig + "0", "wrong"),
        (lambda sig: "%C3%A9" * 32, "wrong"),
    ],
)
def test_bad_signature_is_a_401_that_says_which(
    serve: Serve, backend: ScriptedServer, change: Callable[[str], str], says: str
) -> None:
    service = serve(backend)
    url = sign(service, {"description": "cat"}).json["url"]
    sig = parse_qs(urlsplit(url).query)["sig"][0]
    got = service.get(f"/prompt/cat?sig={change(sig)}")
    assert (got.status, says in got.detail) == (401, True)
    assert backend.seen == []


def test_expired_signature_says_so(serve: Serve, backend: ScriptedServer) -> None:
    past = Signer([], KEY, lambda: time.time() - 3600).sign(ImageRequest("cat"), 60)
    got = serve(backend).get(ImageRequest("cat").to_url(**past))
    assert (got.status, "expired" in got.detail) == (401, True)


def test_expiry_cannot_be_moved_or_taken_off(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    signed = target(sign(service, {"description": "cat", "expires_in": 60}).json["url"])
    assert service.get(re.sub(r"exp=[0-9]+", "exp=99999999999", signed)).status == 401
    assert service.get(re.sub(r"exp=[0-9]+&", "", signed)).status == 401
    assert service.get(re.sub(r"exp=[0-9]+", "exp=soon", signed)).status == 400
    assert service.get(signed).status == 200


def test_keys_can_be_rotated(serve: Serve, backend: ScriptedServer) -> None:
    signed = target(sign(serve(backend, SIGNING_KEY="old-key"), {"description": "x"}).json["url"])
    assert serve(backend, SIGNING_KEY="new-key, old-key").get(signed).status == 200
    assert serve(backend, SIGNING_KEY="new-key").get(signed).status == 401
    assert serve(backend).get(signed).status == 401


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"Host": "pics.example.org"}, "http://pics.example.org"),
        ({"Host": "app", "X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "https"},
         "https://a.example"),
    ],
)  # fmt: skip
def test_url_is_absolute_as_the_client_sees_it(
    serve: Serve, backend: ScriptedServer, headers: dict[str, str], base: str
) -> None:
    assert sign(serve(backend), {"description": "x"}, **headers).json["url"].startswith(base + "/")


def test_public_url_goes_before_what_the_request_says(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend, PUBLIC_URL="https://pics.example.org/sub/")
    url = sign(service, {"description": "x"}, Host="evil.example").json["url"]
    assert url.startswith("https://pics.example.org/sub/prompt/x?sig=")


@pytest.mark.parametrize(
    "body",
    [
        *({}, [], "x", {"description": "x", "width": 0}),
        {"description": "x", "expires_in": 0},
        {"description": "x", "expires_in": "60"},
        {"description": "x", "expires_in": True},
    ],
)
def test_bad_body_is_a_400(serve: Serve, backend: ScriptedServer, body: object) -> None:
    assert sign(serve(backend), body).status == 400


def test_signing_needs_the_key(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    assert sign(service, {"description": "x"}, Authorization="Bearer wrong").status == 401
    assert service.get("/sign", method="POST", body=b"{}").status == 401
    body = b'{"description": "x"}'
    assert service.get(f"/sign?key={KEY}", method="POST", body=body).status == 200
    assert sign(service, {"description": "x"}, Host='x"><script>').status == 400


@pytest.mark.parametrize(
    "prompt",
    [
        CAT.prompt,
        "a_b_c ![x](y) `code`",
        "quo\"ted' \\ back",
        "line\nbreak",
        "红苹果 🍎",
        ")(",
        "a|b",
    ],
)
def test_markdown_is_one_image_whose_alt_is_the_prompt(
    serve: Serve, backend: ScriptedServer, prompt: str
) -> None:
    links = sign(serve(backend), {"description": prompt, "width": 9}).json
    [paragraph] = [t for t in MarkdownIt().parse(links["markdown"]) if t.type == "inline"]
    [image] = paragraph.children or []
    assert (image.type, image.attrs["src"]) == ("image", links["url"])
    assert image.content.replace("\\", "") == " ".join(prompt.split()).replace("\\", "")
    assert f'src="{links["url"]}"'.replace("&", "&amp;") in links["html"]
    assert links["html"].endswith('width="9" height="9" loading="lazy">')


# --- the ten lines of the README


def snippets() -> dict[str, str]:
    section = (ROOT / "README.md").read_text().split("## Signed URLs")[1].split("\n## ")[0]
    return dict(re.findall(r"```(python|javascript|sh)\n(.*?)```", section, re.DOTALL))


@pytest.mark.parametrize("language", ["python", "javascript", "sh"])
def test_signing_as_the_readme_shows_it_works(
    serve: Serve, backend: ScriptedServer, tmp_path: Path, language: str
) -> None:
    commands = {
        "python": [sys.executable, "-"],
        "javascript": ["node", "--input-type=module", "-"],
        "sh": ["sh", "-s"],
    }
    assert shutil.which(commands[language][0]), f"install {commands[language][0]} for this test"
    run = subprocess.run(
        commands[language],
        input=snippets()[language],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    url = run.stdout.strip()
    assert url.startswith("https://pics.example.org/prompt/a%20red%20apple?width=1024&height=768")
    service = serve(backend, SIGNING_KEY="your-signing-key")
    assert service.get(target(url)).status == 200
