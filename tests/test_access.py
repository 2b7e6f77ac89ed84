"""Access keys and signatures: a signature opens one picture and does not reveal the key."""

import hashlib
import hmac
import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from markdown_it import MarkdownIt

from access import MAX_EXPIRES_IN, Access, Caller, Unauthorised
from picture import BadRequest, ImageRequest
from settings.maps import KeySettings

from .conftest import KEY, InProcess, Serve, access_of
from .scripted import png

CAT = ImageRequest("a (big) cat [1] *& <b>", 64, 32, "m/1", 7)


def access(*signing_keys: str, key: str = KEY, now: float = 1000.5) -> Access:
    return access_of(key, signing_keys=signing_keys, clock=lambda: now)


def signed_by(of: Access) -> dict[str, str | int]:
    return of.sign(CAT, of.shared)


def opens(of: Access, credentials: dict[str, str | int], request: ImageRequest = CAT) -> Caller:
    """Return for whom a URL with these credentials opens a picture."""
    given = {name: str(value) for name, value in credentials.items()}
    return of.authorise(given, pictures=[request])


def test_signature_is_the_documented_hmac() -> None:
    key = hashlib.sha256(b"a cat|64|64|def|42").hexdigest()
    signing = access("signing-key", "older")
    for expires_in, exp in ((None, ""), (60, "1060")):
        expected = hmac.new(b"signing-key", f"{key}|{exp}".encode(), "sha256").hexdigest()[:32]
        signed = signing.sign(ImageRequest("A Cat", 64, 64), signing.shared, expires_in)
        assert signed == ({"exp": int(exp)} if exp else {}) | {"sig": expected}
    by = hmac.new(b"signing-key", f"{key}|1060|Zoë".encode(), "sha256").hexdigest()[:32]
    signed = signing.sign(ImageRequest("A Cat", 64, 64), Caller("Zoë"), 60)
    assert signed == {"exp": 1060, "by": "Zoë", "sig": by}


def test_signature_opens_no_other_picture() -> None:
    assert opens(access(), signed_by(access())) == access().shared
    others: dict[str, Any] = {"prompt": "dog", "width": 9, "seed": 1, "model": "m", "style": "s"}
    for name, value in others.items():
        with pytest.raises(Unauthorised, match="wrong"):
            opens(access(), signed_by(access()), replace(CAT, **{name: value}))


def test_bad_signature_is_unauthorised() -> None:
    sig = str(signed_by(access())["sig"])
    changed = sig[:-1] + ("0" if sig[-1] != "0" else "1")
    for bad, reason in [
        *((sig[:-1], "incomplete"), ("", "incomplete")),
        *((changed, "wrong"), (sig + "0", "wrong"), ("é" * 32, "wrong")),
    ]:
        with pytest.raises(Unauthorised, match=reason):
            opens(access(), {"sig": bad})


def test_expiry_is_part_of_the_signature() -> None:
    signed = access().sign(CAT, access().shared, 60)
    assert opens(access(now=1059), signed)
    for now, exp, reason in [(1060, "1060", "expired"), (0, "99999999999", "wrong")]:
        with pytest.raises(Unauthorised, match=reason):
            opens(access(now=now), signed | {"exp": exp})
    with pytest.raises(Unauthorised, match="wrong"):
        opens(access(), {"sig": signed["sig"]})
    for exp in ("", "soon", "-1", "1060.0", "１０６０", "9" * 13):
        with pytest.raises(BadRequest, match="exp"):
            opens(access(), signed | {"exp": exp})


def test_signing_keys_can_be_rotated() -> None:
    old, derived = signed_by(access("old")), signed_by(access())
    assert opens(access("new", "old"), old)
    # The key derived from the access key signs until there is another, and ends with it.
    assert opens(access("new"), derived)
    another = access("new", key="another")
    for other, signed in [(access("new"), old), (access(), old), (another, derived)]:
        with pytest.raises(Unauthorised, match="signature_wrong"):
            opens(other, signed)


BLOG = KeySettings("blog", "blog-key", 5, date(2026, 12, 31))
LAST_SECOND = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


def with_keys(*named: KeySettings, now: float = LAST_SECOND) -> Access:
    return access_of("k", access_keys=named, clock=lambda: now)


def test_key_is_known_by_its_name_and_limit() -> None:
    keys = access_of("k", access_keys=[BLOG, KeySettings("手机", "钥匙")], drawings_per_day=3)
    shared = Caller("PROXY_ACCESS_KEY", 3)
    assert keys.authorise({"key": "k"}) == shared
    assert keys.authorise({"key": "钥匙"}) == Caller("手机")
    assert keys.authorise({"key": "wrong"}, "Bearer blog-key") == Caller("blog", 5)
    assert opens(keys, signed_by(keys) | {"key": "wrong"}) == shared
    for wrong in ("", "blog", "blog-key2", "手机"):
        with pytest.raises(Unauthorised, match="wrong"):
            keys.authorise({"key": wrong})


def test_key_is_accepted_until_the_end_of_its_last_day() -> None:
    assert with_keys(BLOG).authorise({"key": "blog-key"}).name == "blog"
    later = with_keys(BLOG, now=LAST_SECOND + 1)
    with pytest.raises(Unauthorised, match="2026-12-31"):
        later.authorise({"key": "blog-key"})
    assert later.authorise({"key": "blog-key"}, "Bearer k")


def test_named_signature_counts_for_its_key_and_ends_with_it() -> None:
    signed = with_keys(BLOG).sign(CAT, Caller("blog", 5))
    assert opens(with_keys(BLOG), signed) == Caller("blog", 5)
    # Another value of the key, and another limit.
    assert opens(with_keys(KeySettings("blog", "new-key", 0)), signed) == Caller("blog", 0)
    with pytest.raises(Unauthorised, match="key_expired"):
        opens(with_keys(BLOG, now=LAST_SECOND + 1), signed)
    with pytest.raises(Unauthorised, match="signer_removed"):
        opens(with_keys(), signed)
    others = ({"sig": signed["sig"]}, *(signed | {"by": by} for by in ("", "phone", "blog ")))
    for other in (*others, signed_by(with_keys()) | {"by": "blog"}):
        with pytest.raises(Unauthorised, match="signature_wrong"):
            opens(with_keys(BLOG, KeySettings("phone", "p")), other)


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def recorded(offered: bytes, own: bytes) -> bool:
        compared.append(own)
        return compare(offered, own)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    for key in ("k", "blog-key"):
        with_keys(BLOG).authorise({"key": key})
    assert compared == [b"k", b"blog-key"] * 2


def test_signing_is_off_without_a_key_to_sign_with(serve: Serve) -> None:
    named = json.dumps({"blog": {"key": "blog-key"}})
    service = serve(PROXY_ACCESS_KEY="", ACCESS_KEYS=named)
    assert service.picture("x", key="blog-key").status == 200
    got = service.sign({"description": "x"}, "blog-key")
    assert (got.status, "SIGNING_KEY" in got.detail) == (403, True)
    assert service.get(f"/prompt/x?sig={'0' * 32}").status == 401
    assert service.as_admin("/cache").json["entries"][0]["url"] is None
    service = serve(PROXY_ACCESS_KEY="", ACCESS_KEYS=named, SIGNING_KEY="k")
    assert service.get(service.sign_target({"description": "x"}, "blog-key")).status == 200


def test_signed_url_shows_its_picture_without_the_key(service: InProcess) -> None:
    body = {"description": CAT.prompt, "width": 64, "height": "32", "model": "m/1", "seed": 7}
    got = service.sign(body | {"expires_in": 60})
    assert (got.status, got.headers["Cache-Control"]) == (200, "no-store")
    url = got.json["url"].removeprefix(service.url)
    assert url.startswith("/prompt/a%20%28big%29%20cat")
    assert KEY not in got.body.decode()
    answer = service.get(url)
    assert (answer.status, answer.body) == (200, png())
    assert service.backend.seen[0].json["prompt"] == CAT.prompt
    assert service.get(url.replace("width=64", "width=65")).status == 401
    assert service.get(re.sub(r"exp=\d+", "exp=soon", url)).status == 400
    service.ahead = 61
    assert "expired" in service.get(url).detail
    assert len(service.backend.seen) == 1


def test_signature_of_either_picture_opens_a_url_with_an_extension(service: InProcess) -> None:
    for prompt, status in [("logo", 200), ("logo.png", 200), ("logo.jpg", 401)]:
        query = service.sign_target({"description": prompt}).partition("?")[2]
        assert service.get(f"/prompt/Logo.png?{query}").status == status
    assert [seen.json["prompt"] for seen in service.backend.seen] == ["Logo"]


def test_signed_url_is_absolute_as_the_client_sees_it(service: InProcess, serve: Serve) -> None:
    public = serve(PUBLIC_URL="https://pics.example.org/sub/")
    nginx = {"Host": "app", "X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "https"}
    for asked, headers, base in [
        (service, {"Host": "pics.example.org"}, "http://pics.example.org/"),
        (service, nginx, "https://a.example/"),
        (public, {"Host": "evil.example"}, "https://pics.example.org/sub/"),
    ]:
        url = asked.sign({"description": "x"}, **headers).json["url"]
        assert url.startswith(f"{base}prompt/x?sig=")


def test_bad_expiry_is_a_400(service: InProcess) -> None:
    for seconds in (0, "60", True, 1.5, MAX_EXPIRES_IN + 1):
        got = service.sign({"description": "x", "expires_in": seconds})
        assert (got.status, "expires_in" in got.detail) == (400, True)


def test_signed_url_may_end_in_an_extension(service: InProcess) -> None:
    url = service.sign_target({"description": "x", "extension": "gif"})
    assert url.startswith("/prompt/x.gif?sig=")
    assert service.get(url).status == 200
    for wrong in ("svg", ".png", "", 1, ["png"]):
        got = service.sign({"description": "x", "extension": wrong})
        assert (got.status, "extension" in got.detail) == (400, True)


def test_signing_needs_the_access_key(service: InProcess) -> None:
    # A signature opens a picture, and signs nothing.
    signature = f"?sig={signed_by(access())['sig']}"
    for query, status in [(f"?key={KEY}", 200), ("", 401), ("?key=wrong", 401), (signature, 401)]:
        got = service.get(f"/sign{query}", method="POST", body=b'{"description": "x"}')
        assert got.status == status
    assert service.sign({"description": "x"}, Host='x"><script>').status == 400


def test_markdown_and_html_show_one_image_with_its_prompt(service: InProcess) -> None:
    odd = ("a_b_c ![x](y) `code`", "quo\"ted' \\ back", "line\nbreak")
    for prompt in (CAT.prompt, *odd, "红苹果 🍎", ")(", "a|b"):
        links = service.sign({"description": prompt, "width": 9}).json
        [paragraph] = [t for t in MarkdownIt().parse(links["markdown"]) if t.type == "inline"]
        [image] = paragraph.children or []
        assert (image.type, image.attrs["src"]) == ("image", links["url"])
        assert image.content.replace("\\", "") == " ".join(prompt.split()).replace("\\", "")
        assert f'src="{links["url"]}"'.replace("&", "&amp;") in links["html"]
        assert links["html"].endswith('width="9" height="9" loading="lazy">')
    assert service.picture(")(", width=9).status == 200
    links = service.sign({"description": ")(", "width": 9}).json
    assert links["html"].endswith('width="1" height="1" loading="lazy">'), "as it was drawn"
