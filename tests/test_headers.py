"""Headers: how long an answer may be kept and by whom, other origins, and what long inputs cost."""

import re
import sys
from collections.abc import Callable
from io import BytesIO
from types import FrameType
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

import config
from app import create_app
from web.headers import caching_headers

from .conftest import KEY, InProcess, Serve
from .scripted import Got

BEARER = {"Authorization": f"Bearer {KEY}"}
PRIVATE = "private, max-age=31536000, immutable"


def lifetimes(got: Got) -> tuple[int, int]:
    """Return the seconds for which clients and nginx may keep an answer."""
    found = re.search(r"max-age=([0-9]+)", got.headers["Cache-Control"])
    assert found
    return int(found[1]), int(got.headers["X-Accel-Expires"])


def made(cache_control: str, left: int | None = None, *, is_private: bool = False) -> str:
    return dict(caching_headers(cache_control, 10, left, is_private=is_private))["Cache-Control"]


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


def test_redirect_for_an_authorization_is_private(hosted: InProcess) -> None:
    for _ in range(2):
        got = hosted.get("/prompt/x", headers=BEARER)
        assert (got.status, got.headers["Cache-Control"]) == (302, "private, max-age=3600")


def test_no_directive_lets_shared_caches_keep_private_answers() -> None:
    for cache_control, private in [
        ("max-age=600", "private, max-age=600"),
        ("Public, s-maxage=5, must-revalidate", "private, must-revalidate"),
        ('private="Set-Cookie", public', "private"),
        ("no-store", "private, no-store"),
    ]:
        assert made(cache_control, is_private=True) == private
        assert made(cache_control) == cache_control


def test_no_answer_outlasts_the_exp_of_its_url(serve: Serve) -> None:
    service = serve(NGINX_CACHE_SECONDS="600")
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


def test_no_directive_lets_an_answer_outlast_its_exp() -> None:
    for cache_control, bounded in [
        ("public", "public, max-age=44"),
        ("public, max-age=30", "public, max-age=30"),
        ("max-age=x, s-maxage=99, stale-if-error=9", "max-age=44, s-maxage=44"),
        ("public, stale-while-revalidate=86400", "public, max-age=44"),
    ]:
        assert made(cache_control, 55) == bounded
        assert made(cache_control, 0).count("=0") == bounded.count("=")


NAMES = "authorization,content-type," + ",".join(f"x-stainless-{n}" for n in ("arch", "os", "lang"))


def preflight(service: InProcess, path: str, names: str = NAMES) -> Got:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Headers": names}
    headers |= {"Access-Control-Request-Method": "POST"}
    return service.get(path, method="OPTIONS", headers=headers)


def test_preflight_allows_the_headers_that_are_asked_for(service: InProcess) -> None:
    reading, posting = "GET, HEAD, OPTIONS", "OPTIONS, POST"
    for path, methods in [
        ("/prompt/x", reading),
        ("/v1/images/edits", posting),
        ("/images//generations", posting),
        ("/v1/models/vendor/flux", reading),
        ("/v1/chat/completions", posting),
        ("/chat/completions", posting),
    ]:
        got = preflight(service, path)
        assert (got.status, got.body, got.headers["Content-Type"]) == (204, b"", None)
        assert got.headers["Access-Control-Allow-Origin"] == "*"
        assert got.headers["Access-Control-Allow-Methods"] == got.headers["Allow"] == methods
        assert got.headers["Access-Control-Allow-Headers"] == NAMES


def test_preflight_echoes_at_most_1000_characters(service: InProcess) -> None:
    got = [preflight(service, "/v1/models", "x" * count) for count in (0, 1000, 1001)]
    echoed = [one.headers["Access-Control-Allow-Headers"] for one in got]
    assert echoed == [None, "x" * 1000, None]


def test_administration_is_closed_to_other_origins(service: InProcess) -> None:
    for path in ("/cache", "/cache/delete", "/sign", "/status", "/"):
        assert preflight(service, path).headers["Access-Control-Allow-Origin"] is None, path


# What long inputs cost is counted in lines of Python rather than in seconds.
# As much as passes nginx; gunicorn joins headers of one name.
SIZE = 64 * 1024
PICTURE = "/prompt/x"
Count = Callable[..., int]


@pytest.fixture
def count_lines(environment: dict[str, str]) -> Count:
    """Return a function that counts the lines that run for a request to a new app."""
    app = create_app(config.parse(environment | {"BACKEND_API_URLS": "http://127.0.0.1:9"}))

    def count(target: str, **headers: str) -> int:
        environ = EnvironBuilder(target, headers=list(headers.items())).get_environ()
        lines = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal lines
            lines += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in app(environ, lambda *_: BytesIO().write):
                pass
        finally:
            sys.settrace(before)
        return lines

    return count


def test_long_header_costs_little_more_than_a_short_one(count_lines: Count) -> None:
    for target, name, piece in [
        (PICTURE, "Accept", "a,"),
        (PICTURE, "Accept", "image/png;a=b;q=0.1,"),
        (PICTURE, "Accept", '",'),
        (PICTURE, "Accept-Language", "zh,"),
        ("/", "Accept-Encoding", "gzip;q=0.1,"),
        ("/", "If-None-Match", '"a",'),
        ("/", "If-Modified-Since", "1 "),
        ("/", "Range", "bytes=0-1,"),
        (PICTURE, "Cookie", "a=b;"),
        (PICTURE, "Forwarded", "for=a,"),
        (PICTURE, "User-Agent", "a"),
        (PICTURE, "Authorization", "Bearer "),
        ("/v1/models", "X-Stainless-Retry-Count", "1"),
    ]:
        count_lines(target, **{name: piece})
        short = count_lines(target, **{name: piece})
        long = count_lines(target, **{name: piece * (SIZE // len(piece))})
        assert long < short + 6000, (name, piece)


def test_long_path_costs_little_more_than_a_short_one(count_lines: Count) -> None:
    for route in ("/prompt/", "/page/", "/v1/models/", "/"):
        count_lines(f"{route}x")
        assert count_lines(route + "a/" * (SIZE // 2)) < count_lines(f"{route}x") + 6000, route


@pytest.mark.parametrize("target", ["/prompt/x?negative_prompt=", "/prompt/x?a", "/sign?a="])
def test_long_query_costs_little_more_than_a_short_one(count_lines: Count, target: str) -> None:
    count_lines(target)
    for piece in ("%41", "%C3%A9", "&a=b", "&amp;", ";", "?", "?a", ";?", "%26"):
        # Escapes that belong to the prompt are decoded, as gunicorn does those of a path.
        end = "" if "%" in piece else "?"
        lines = count_lines(target + piece * (SIZE // len(piece)) + end)
        assert lines < count_lines(target) + 12_000, piece


def test_conditions_too_long_are_ignored(service: InProcess) -> None:
    etag = service.picture("x").headers["ETag"]
    target = f"{PICTURE}?key={KEY}"
    for name, value, status in (("If-None-Match", etag, 304), ("Range", "bytes=0-1", 206)):
        assert service.get(target, headers={name: value}).status == status
        padded = value + "," + "0-1," * 200
        assert service.get(target, headers={name: padded}).status == 200
