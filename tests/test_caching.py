"""How long an answer may be kept, and by whom."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from web.headers import caching_headers

from .conftest import KEY, InProcess, hosting_settings
from .servers import Got, Say, ScriptedServer

Serve = Callable[..., InProcess]

BEARER = {"Authorization": f"Bearer {KEY}"}
PRIVATE = "private, max-age=31536000, immutable"


def lifetimes(got: Got) -> tuple[int, int]:
    """Return the seconds for which clients and nginx may keep an answer."""
    found = re.search(r"max-age=([0-9]+)", got.headers["Cache-Control"])
    assert found
    return int(found[1]), int(got.headers["X-Accel-Expires"])


def made(cache_control: str, left: int | None = None, *, is_private: bool = False) -> str:
    return dict(caching_headers(cache_control, 10, left, is_private=is_private))["Cache-Control"]


# --- the Authorization header


def test_answer_to_any_authorization_is_private(service: InProcess) -> None:
    target = f"/prompt/x?key={KEY}"
    for value in (f"Bearer {KEY}", "Bearer wrong", "Basic eDp5", ""):
        headers = {"Authorization": value}
        cold, hot = (service.get(target, headers=headers) for _ in range(2))
        etag = {"If-None-Match": hot.headers["ETag"]}
        unchanged = service.get(target, headers=headers | etag)
        part = service.get(target, headers=headers | {"Range": "bytes=0-3"})
        head = service.get(target, method="HEAD", headers=headers)
        answers = (cold, hot, unchanged, part, head)
        assert [got.status for got in answers] == [200, 200, 304, 206, 200]
        assert {got.headers["Cache-Control"] for got in answers} == {PRIVATE}
        assert {got.headers["X-Accel-Expires"] for got in answers} == {"10"}, "nginx keeps them"
    assert service.get(target).headers["Cache-Control"].startswith("public")


@pytest.fixture
def hosted(
    serve: Serve, backend: ScriptedServer, server: Callable[[], ScriptedServer]
) -> InProcess:
    """A service whose pictures are at an image host."""
    host = server()
    host.say(Say({"status_code": 200, "image": {"url": "https://img.example/a.png"}}))
    return serve(backend, **hosting_settings(host))


def test_redirect_for_an_authorization_is_private(hosted: InProcess) -> None:
    for _ in range(2):
        got = hosted.get("/prompt/x", headers=BEARER)
        assert (got.status, got.headers["Cache-Control"]) == (302, "private, max-age=3600")


@pytest.mark.parametrize(
    ("cache_control", "private"),
    [
        ("max-age=600", "private, max-age=600"),
        ("Public, s-maxage=5, must-revalidate", "private, must-revalidate"),
        ('private="Set-Cookie", public', "private"),
        ("no-store", "private, no-store"),
    ],
)
def test_no_directive_lets_shared_caches_keep_private_answers(
    cache_control: str, private: str
) -> None:
    assert made(cache_control, is_private=True) == private
    assert made(cache_control) == cache_control


# --- exp


def test_no_answer_outlasts_the_exp_of_its_url(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend, NGINX_CACHE_SECONDS="600")
    target = service.sign_target({"description": "x", "expires_in": 100})
    cold, hot = (service.get(target) for _ in range(2))
    unchanged = service.get(target, headers={"If-None-Match": hot.headers["ETag"]})
    for got in (cold, hot, unchanged, service.get(target, headers=BEARER)):
        by_clients, by_nginx = lifetimes(got)
        assert 0 < by_nginx < 100
        assert 90 < by_clients + by_nginx <= 100, "nginx repeats max-age as long as it keeps it"
    assert lifetimes(service.get(f"{target}&key={KEY}".replace("exp=", "exp=9"))) == (31536000, 600)


@pytest.mark.parametrize("left", [1, 2, 3, 19, 600])
def test_exp_allows_for_the_second_that_nginx_adds(left: int) -> None:
    headers = dict(caching_headers("public", 10, left, is_private=False))
    max_age = int(headers["Cache-Control"].partition("max-age=")[2])
    in_nginx = int(headers["X-Accel-Expires"])
    assert 0 <= max_age <= left - (in_nginx + 1 if in_nginx else 0)


def test_redirect_does_not_outlast_the_exp_of_its_url(hosted: InProcess) -> None:
    target = hosted.sign_target({"description": "x", "expires_in": 60})
    assert max(map(sum, (lifetimes(hosted.get(target)) for _ in range(2)))) <= 60


@pytest.mark.parametrize(
    ("cache_control", "bounded"),
    [
        ("public", "public, max-age=44"),
        ("public, max-age=30", "public, max-age=30"),
        ("max-age=x, s-maxage=99, stale-if-error=9", "max-age=44, s-maxage=44"),
        ("public, stale-while-revalidate=86400", "public, max-age=44"),
    ],
)
def test_no_directive_lets_an_answer_outlast_its_exp(cache_control: str, bounded: str) -> None:
    assert made(cache_control, 55) == bounded
    assert made(cache_control, 0).count("=0") == bounded.count("=")
