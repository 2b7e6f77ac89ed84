"""Long inputs: what they cost, counted in lines of Python rather than in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import BytesIO
from types import FrameType
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

import config
from app import create_app

from .conftest import KEY, InProcess

Serve = Callable[..., InProcess]

# As much as passes nginx; gunicorn joins headers of one name.
SIZE = 64 * 1024
PICTURE = "/prompt/x"


@pytest.fixture
def count_lines(environment: dict[str, str]) -> Callable[[str, dict[str, str]], int]:
    """Return a function that counts the lines that run for a request to a new app."""
    app = create_app(config.parse(environment | {"BACKEND_API_URLS": "http://127.0.0.1:9"}))

    def count(target: str, headers: dict[str, str]) -> int:
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


@pytest.mark.parametrize(
    ("target", "name", "piece"),
    [
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
    ],
)
def test_long_header_costs_little_more_than_a_short_one(
    count_lines: Callable[[str, dict[str, str]], int], target: str, name: str, piece: str
) -> None:
    count_lines(target, {name: piece})
    short = count_lines(target, {name: piece})
    assert count_lines(target, {name: piece * (SIZE // len(piece))}) < short + 6000


@pytest.mark.parametrize("route", ["/prompt/", "/page/", "/v1/models/", "/"])
def test_long_path_costs_little_more_than_a_short_one(
    count_lines: Callable[[str, dict[str, str]], int], route: str
) -> None:
    count_lines(f"{route}x", {})
    assert count_lines(route + "a/" * (SIZE // 2), {}) < count_lines(f"{route}x", {}) + 6000


@pytest.mark.parametrize("target", ["/prompt/x?negative_prompt=", "/prompt/x?a", "/sign?a="])
def test_long_query_costs_little_more_than_a_short_one(
    count_lines: Callable[[str, dict[str, str]], int], target: str
) -> None:
    count_lines(target, {})
    for piece in ("%41", "%C3%A9", "&a=b", "&amp;", ";", "?", "?a", ";?", "%26"):
        # Escapes that belong to the prompt are decoded, as gunicorn does those of a path.
        end = "" if "%" in piece else "?"
        lines = count_lines(target + piece * (SIZE // len(piece)) + end, {})
        assert lines < count_lines(target, {}) + 12_000, piece


def test_conditions_too_long_are_ignored(service: InProcess) -> None:
    etag = service.picture("x").headers["ETag"]
    target = f"{PICTURE}?key={KEY}"
    for name, value, status in (("If-None-Match", etag, 304), ("Range", "bytes=0-1", 206)):
        assert service.get(target, headers={name: value}).status == status
        padded = value + "," + "0-1," * 200
        assert service.get(target, headers={name: padded}).status == 200
