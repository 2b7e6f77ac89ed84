"""Finding our URLs in documents, and replacing them without touching another byte."""

from __future__ import annotations

import pytest

from commands.documents import find_urls, replace_urls, signed_in_place
from picture import ImageRequest

BASE = "https://pics.example.org"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"![x]({BASE}/prompt/a%20cat?key=k)", ImageRequest("a cat")),
        (f"![x](<{BASE}/prompt/a%20cat?key=k> 'title')", ImageRequest("a cat")),
        (f"![x]({BASE}/prompt/a_(b)?key=k&seed=3)", ImageRequest("a_(b)", seed=3)),
        (f"[![x]({BASE}/prompt/a?key=k)](https://other)", ImageRequest("a")),
        (f'<img src="{BASE}/prompt/a?width=9&amp;key=k">', ImageRequest("a", 9, 9)),
        (f"<img src='{BASE}/prompt/a?key=k' alt=x>", ImageRequest("a")),
        (f"See {BASE}/prompt/a?key=k.", ImageRequest("a")),
        (f"[ref]: {BASE}/prompt/a?key=k\n", ImageRequest("a")),
        (f"| {BASE}/prompt/a?key=k|", ImageRequest("a")),
        (f"{BASE}/sub/path/prompt/a/b?key=k#top", ImageRequest("a/b")),
        (f"![x]({BASE}/prompt/红苹果?key=k)", ImageRequest("红苹果")),
        (f"![x]({BASE}/prompt/a?sig={'0' * 32}&exp=5)", ImageRequest("a")),
    ],
)
def test_our_url_is_found_wherever_it_stands(text: str, expected: ImageRequest) -> None:
    [(position, found)] = find_urls(text)
    assert found.request == expected
    assert text[position:].startswith(found.url)


@pytest.mark.parametrize(
    "text",
    [
        f"![x]({BASE}/prompt/a)",
        f"![x]({BASE}/prompt/?key=k)",
        f"![x]({BASE}/prompt/a?key=k&width=0)",
        f"![x]({BASE}/other/a?key=k)",
        "![x](/prompt/a?key=k)",
        f"![x]({BASE}/prompt/%FF?key=k)",
    ],
)
def test_what_is_no_picture_of_ours_is_not_found(text: str) -> None:
    assert list(find_urls(text)) == []


def test_public_url_keeps_other_hosts_out() -> None:
    text = f"{BASE}/prompt/a?key=k https://other.example/prompt/b?key=k"
    assert [f.request.prompt for _, f in find_urls(text, BASE)] == ["a"]


def test_every_other_byte_stays() -> None:
    raw = (
        f"\ufeff# Title\r\n\r\n![a]({BASE}/prompt/a?width=9&key=k&seed=1)\t \r"
        f'<img src="{BASE}/prompt/b?key=k&amp;width=9"> {BASE}/prompt/c?key=other\n'
    ).encode() + b"\xff\xfe end"
    text = raw.decode("utf-8", "surrogateescape")
    signed, count = replace_urls(
        text,
        lambda f: (
            signed_in_place(f, {"exp": 5, "sig": "S"}) if f.credentials["key"] == "k" else None
        ),
    )
    assert count == 2
    assert signed.encode("utf-8", "surrogateescape") == (
        raw.replace(b"width=9&key=k&seed=1", b"width=9&exp=5&sig=S&seed=1").replace(
            b"key=k&amp;width=9", b"exp=5&amp;sig=S&amp;width=9"
        )
    )
