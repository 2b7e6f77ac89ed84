"""Our URLs in documents: found, judged, and signed without changing another byte of the file."""

import json
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from commands.documents import BROKEN, DocumentFault, Examiner, FoundUrl, rewrite, split
from picture import BadRequest, ImageRequest

from .conftest import KEY, ROOT, Run
from .disks import disk, full, read_only
from .scripted import wait_until

BASE = "https://pics.example.org"
URL = f"{BASE}/prompt/a?key=k"
SECRET = "a-long+secret of_钥匙&co"


def find_urls(text: str) -> list[FoundUrl]:
    """Return our URLs in a document, all of which open."""
    examined = Examiner(lambda found: None).examine(text)
    return [one for _, one in examined if isinstance(one, FoundUrl)]


def test_our_url_is_found_in_any_markup() -> None:
    for text, expected in [
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
        (f"![x](<{BASE}/prompt/a (it's red)，?key=k> 'x')", ImageRequest("a (it's red)，")),
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
    ]:
        found = find_urls(text)
        assert found[0].request == expected, text
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
            rendered = FoundUrl.read(str(image.attrs["src"]))
            if rendered.credentials:
                read = [(found.pictures, found.credentials) for found in find_urls(text)]
                assert (rendered.pictures, rendered.credentials) in read


def test_urls_side_by_side_are_all_found() -> None:
    text = f"![a]({BASE}/prompt/a?key=k)![b]({BASE}/prompt/b?key=k)"
    assert [found.request.prompt for found in find_urls(text)] == ["a", "b"]


def test_other_links_are_not_found() -> None:
    for url in (
        f"{BASE}/prompt/a",
        f"{BASE}/prompt/?key=k",
        f"{BASE}/prompt/a?key=k&width=0",
        f"{BASE}/other/a?key=k",
        "/prompt/a?key=k",
        f"{BASE}/prompt/%FF?key=k",
        "https://[::1/prompt/a?key=k",
    ):
        assert find_urls(f"![x]({url}) {url}") == []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([URL, "http://", "/prompt/", "(", ")", " ", "?key=", "é", "]"])))
def test_parts_of_a_text_are_the_whole_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert "".join(url + rest for url, rest in split(text)) == text


@pytest.mark.parametrize(
    "unit",
    ["http://", "<http://", "http://(", "http://)", "http:// ", "http://x/prompt/", "(", URL],
)
def test_long_lines_take_linear_time(unit: str) -> None:
    # Quadratic time would be minutes.
    text = unit * (100_000 // len(unit))
    list(Examiner(lambda found: None, BASE, ("k", "x" * 16)).examine(text))


def test_only_the_key_is_replaced_however_it_is_spelt() -> None:
    for written, signed in [
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
    ]:
        found = FoundUrl.read(f"{BASE}/prompt/a{written}")
        assert found.credentials["key"] == "k"
        again = FoundUrl.read(found.signed({"sig": "S", "by": "a b"}))
        assert again.url == f"{BASE}/prompt/a{signed}"
        assert (again.request, again.credentials) == (found.request, {"sig": "S", "by": "a b"})


def find_faults(text: str, keys: tuple[str, ...]) -> list[tuple[int, DocumentFault]]:
    """Return what is wrong with a document whose URLs open if they have credentials."""

    def why_closed(found: FoundUrl) -> str | None:
        return None if found.credentials else "closed"

    examined = Examiner(why_closed, BASE, keys).examine(text)
    return [(line, one) for line, one in examined if isinstance(one, DocumentFault)]


def test_key_that_is_left_has_a_reason() -> None:
    for text, reason in [
        (f"{BASE}/prompt/a?key=k&width=5000", "The parameter width must be"),
        (f"{BASE}/prompt/a?key=k&key=x", "The parameter key is given twice."),
        (f"{BASE}/prompt/a b?key=k", "the URL ends at ' ', which must be percent-encoded"),
        (f"{BASE}/other?key=k.", "the URL does not begin with"),
        ("https://other.example/prompt/a?key=k", "the URL does not begin with"),
        (f"{BASE}/prompt/a?q=a-key=k", "closed"),
        (f"{BASE}/prompt/a?sig=s&q=a-key=k", "its key was not replaced"),
        (f"{BASE}/prompt/a?key=k", "its key was not replaced"),
        (f"{BASE}/prompt/a?key=k&#38width=9", "the URL does not name a picture"),
        ("![](/prompt/a?key=k)", "the key is not part of a URL"),
        (f"{BASE}/prompt/a?sig=s\nkey=k", "the key is not part of a URL"),
        ('curl -H "Authorization: bearer  k"', "the key is not part of a URL"),
    ]:
        [(line, left)] = find_faults(f"{BASE}/prompt/a?key=kx k\n{text}", ("k",))
        assert line == 2 + text.count("\n")
        assert left.reason.startswith(reason), text


@settings(max_examples=80, deadline=None)
@given(st.randoms(use_true_random=False))
def test_key_is_found_in_any_spelling(random: Random) -> None:
    def percent_encoded(letter: str) -> str:
        if letter not in " +&" and random.random() < 0.5:
            return letter
        return "".join(random.choice(("%{:02x}", "%{:02X}")).format(b) for b in letter.encode())

    def referenced(letter: str) -> str:
        forms = ("{0}", "{0}", "&#{1};", "&#0{1};", "&#x{1:x};", "&#X{1:X};")
        return random.choice(forms).format(letter, ord(letter))

    encoded = "".join(map(percent_encoded, f"key={SECRET}"))
    written = "".join(map(referenced, encoded))
    text = f"\n{BASE}/prompt/a?width=9&amp;{written}\n"
    assert [line for line, _ in find_faults(text, ("k", SECRET))] == [2]


def test_key_is_found_wherever_it_stands() -> None:
    for text in (
        f'OPENAI_API_KEY="{SECRET}"',
        f"{BASE}/prompt/a?key=a-long%2Bsecret%20of\\_钥匙%26co",
        "https://proxy.example/?u=https%3A%2F%2Fx%2Fprompt%2Fa%3Fkey%3Dk",
        f"{BASE}/prompt/a?key=a-long%2Bsecret+of_%E9%92%A5%E5%8C%99%26co",
        "".join(f"{letter}\0" for letter in "?key=k"),
        json.dumps(f"OPENAI_API_KEY={SECRET}"),
        r'<script>u = "/prompt/a?width=9\x26key\u003dk"</script>',
    ):
        assert len(find_faults(text, ("k", SECRET))) == 1, text


def test_short_key_is_an_ordinary_word_elsewhere() -> None:
    text = f"k is a letter; {BASE}/prompt/k?style=k&turkey=k key=k2 Bearer k-2"
    assert find_faults(text, ("k",)) == [(1, DocumentFault("closed", BROKEN))]


def test_mode_owner_and_symbolic_links_stay(tmp_path: Path) -> None:
    page, link = tmp_path / "page.md", tmp_path / "link.md"
    page.write_bytes(b"old")
    page.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(page, 12345, 54321)
    link.symlink_to("page.md")
    before = page.stat()
    rewrite(link, "new")
    after = page.stat()
    assert (page.read_bytes(), link.readlink()) == (b"new", Path("page.md"))
    assert stat.filemode(after.st_mode) == stat.filemode(before.st_mode)
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert sorted(tmp_path.iterdir()) == [link, page]


def test_hard_linked_file_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_bytes(b"old")
    (tmp_path / "other.md").hardlink_to(page)
    with pytest.raises(click.ClickException, match="hard links"):
        rewrite(page, "new")
    assert page.read_bytes() == b"old"


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_file_that_cannot_be_written_stays_with_a_sentence(
    run: Run, tmp_path: Path, state: str
) -> None:
    folder = tmp_path / "disk"
    with disk(folder, "1m"):
        page = folder / "page.md"
        text = f"{BASE}/prompt/a?key={KEY}\n" * 3000
        page.write_text(text)
        with full(folder) if state == "full" else read_only(folder):
            result = run("sign", "--in-place", str(page))
            assert page.read_text() == text
        assert (result.exit_code, type(result.exception)) == (1, SystemExit)
        assert f"Error: {page} is unchanged: " in result.output
        assert list(folder.iterdir()) == [page]
        assert run("sign", "--in-place", str(page)).exit_code == 0


_REWRITE_FOR_EVER = """
import pathlib, sys
from commands.documents import rewrite
while True:
    for letter in "ab":
        rewrite(pathlib.Path(sys.argv[1]), letter * 2**25)
"""


def test_killed_command_leaves_the_file_whole(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_bytes(b"b" * 2**25)
    child = subprocess.Popen([sys.executable, "-c", _REWRITE_FOR_EVER, str(page)], cwd=ROOT)
    wait_until(lambda: any(tmp_path.glob(".signing-*/page.md")))
    child.kill()
    child.wait()
    assert set(page.read_bytes()) in ({ord("a")}, {ord("b")})
    assert page.stat().st_size == 2**25
