"""Our URLs in documents: found, and replaced without changing another byte."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from commands.document_faults import Examiner
from commands.documents import FoundUrl, split
from picture import BadRequest, ImageRequest

BASE = "https://pics.example.org"
URL = f"{BASE}/prompt/a?key=k"


def find_urls(text: str, public_url: str | None = None) -> list[FoundUrl]:
    """Return our URLs in a document, all of which open."""
    examined = Examiner(lambda found: None, public_url=public_url).examine(text)
    return [one for _, one in examined if isinstance(one, FoundUrl)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"![x]({BASE}/prompt/a%20cat?key=k)", ImageRequest("a cat")),
        (f"![x](<{BASE}/prompt/a%20cat?key=k> 'title')", ImageRequest("a cat")),
        (f"![x]({BASE}/prompt/a_(b)?key=k&seed=3)", ImageRequest("a_(b)", seed=3)),
        (f"[![x]({URL})](https://other)", ImageRequest("a")),
        (f"[![x](https://other/badge.svg)]({URL})", ImageRequest("a")),
        (f'<img src="{BASE}/prompt/a?width=9&amp;key=k">', ImageRequest("a", 9)),
        (f"<img src='{URL}' alt=x>", ImageRequest("a")),
        (f"See {URL}.", ImageRequest("a")),
        (f"[ref]: {URL}\n", ImageRequest("a")),
        (f"| {URL}|", ImageRequest("a")),
        (f"{BASE}/sub/path/prompt/a/b?key=k#top", ImageRequest("a/b")),
        (f"![x]({BASE}/prompt/红苹果?key=k)", ImageRequest("红苹果")),
        (f"![x]({BASE}/prompt/a?sig={'0' * 32}&exp=5)", ImageRequest("a")),
        (
            f"![x](<{BASE}/prompt/a cat (it's red)，?key=k> 'title')",
            ImageRequest("a cat (it's red)，"),
        ),
        (f"![x]({BASE}/prompt/it's,红苹果，red?key=k)", ImageRequest("it's,红苹果，red")),
        (f'<img src="{BASE}/prompt/it\'s)，?key=k">', ImageRequest("it's)，")),
        (f"<img srcset='{URL}&seed=1 1x, {URL}'>", ImageRequest("a", seed=1)),
        (f"图片在{URL}。它很好看", ImageRequest("a")),
        (f"图片（{URL}）、", ImageRequest("a")),
        (f"见{URL}，", ImageRequest("a")),
        (f"![{URL}]({URL})", ImageRequest("a")),
        (f"[[{URL}][text]] image::{URL}[alt] \\href{{{URL}}}", ImageRequest("a")),
        (f'![x]({BASE}/prompt/a[1]"`?key=k)', ImageRequest('a[1]"`')),
        (f"a < {URL} and <{URL}\n", ImageRequest("a")),
    ],
)
def test_our_url_is_found_in_any_markup(text: str, expected: ImageRequest) -> None:
    found = find_urls(text)
    assert found[0].request == expected
    for one in found:
        assert one.credentials in ({"key": "k"}, {"sig": "0" * 32, "exp": "5"})


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab'\"，。（）() []{}*_~!&;#%?|`.,:$-/=中", max_size=8),
    st.sampled_from(["![x]({})", "![x](<{}>)", "[![x]({})](https://o)", '![x]({} "title")']),
)
def test_url_of_an_image_is_what_markdown_makes_of_it(prompt: str, form: str) -> None:
    text = form.format(f"{BASE}/prompt/{prompt}?key=k")
    [inline] = [token for token in MarkdownIt().parse(text) if token.type == "inline"]
    for image in (token for token in inline.children or [] if token.type == "image"):
        with suppress(BadRequest, ValueError):
            rendered = FoundUrl.read(str(image.attrs["src"])).named
            if rendered.credentials:
                assert rendered in [found.named for found in find_urls(text)]


def test_urls_side_by_side_are_all_found() -> None:
    text = f"![a]({BASE}/prompt/a?key=k)![b]({BASE}/prompt/b?key=k)"
    assert [found.request.prompt for found in find_urls(text)] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        f"![x]({BASE}/prompt/a)",
        f"![x]({BASE}/prompt/?key=k)",
        f"![x]({BASE}/prompt/a?key=k&width=0)",
        f"![x]({BASE}/other/a?key=k)",
        "![x](/prompt/a?key=k)",
        f"![x]({BASE}/prompt/%FF?key=k)",
        "https://[::1/prompt/a?key=k",
    ],
)
def test_other_links_are_not_found(text: str) -> None:
    assert find_urls(text) == []


def test_public_url_excludes_other_hosts() -> None:
    text = f"{URL} https://other.example/prompt/b?key=k"
    assert [found.request.prompt for found in find_urls(text, BASE)] == ["a"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([URL, "http://", "/prompt/", "(", ")", " ", "?key=", "é", "]"])))
def test_parts_of_a_text_are_the_whole_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert "".join(url + rest for url, rest in split(text)) == text


@pytest.mark.parametrize(
    "unit",
    [
        "http://",
        "<http://",
        "http://(",
        "http://)",
        "http:// ",
        "http://x/prompt/",
        "(",
        URL,
        URL + ")",
    ],
)
def test_long_lines_take_linear_time(unit: str) -> None:
    # Quadratic time would be minutes.
    text = unit * (200_000 // len(unit))
    list(Examiner(lambda found: None, ["k", "x" * 16], BASE).examine(text))


@pytest.mark.parametrize(
    ("written", "signed"),
    [
        ("?k%65y=k", "?sig=S&by=a%20b"),
        ("?seed=1&key=%6B&width=9", "?seed=1&sig=S&by=a%20b&width=9"),
        ("?exp=5&key=k&sig=T&width=9&by=x#y", "?sig=S&by=a%20b&width=9#y"),
        ("?width=9&amp;by=x&amp;key=k", "?width=9&amp;sig=S&amp;by=a%20b"),
        ("?key=k&amp;width=9", "?sig=S&amp;by=a%20b&amp;width=9"),
        ("?key=k&#38;width=9", "?sig=S&#38;by=a%20b&#38;width=9"),
        ("?width=9&#038;key=k", "?width=9&#038;sig=S&#038;by=a%20b"),
        ("?width=9&#x26;&#107;ey&#61;k", "?width=9&#x26;sig=S&#x26;by=a%20b"),
        ("?negative_prompt=a;key=b&key=k", "?negative_prompt=a;key=b&sig=S&by=a%20b"),
        ("?style=a&#59;key=b&key=k#key=k", "?style=a&#59;key=b&sig=S&by=a%20b#key=k"),
        ("?style=%26key%3Db&x&&key=k", "?style=%26key%3Db&x&&sig=S&by=a%20b"),
        ("?a?key=k", "?a?sig=S&by=a%20b"),
        ("?这??key=k&width=9", "?这??sig=S&by=a%20b&width=9"),
        ("?style=a?key=b&key=k", "?style=a?key=b&sig=S&by=a%20b"),
        ("?width=9&amp;amp;key=k", "?width=9&amp;amp;sig=S&amp;amp;by=a%20b"),
    ],
)
def test_only_the_key_is_replaced_however_it_is_spelt(written: str, signed: str) -> None:
    found = FoundUrl.read(f"{BASE}/prompt/a{written}")
    assert found.credentials["key"] == "k"
    again = FoundUrl.read(found.signed({"sig": "S", "by": "a b"}))
    assert again.url == f"{BASE}/prompt/a{signed}"
    assert (again.request, again.credentials) == (found.request, {"sig": "S", "by": "a b"})


def test_reference_without_its_semicolon_is_ambiguous() -> None:
    # In HTML it is a width, and in Markdown a fragment.
    with pytest.raises(ValueError, match="width"):
        FoundUrl.read(f"{BASE}/prompt/a?key=k&#38width=9")
