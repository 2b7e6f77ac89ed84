"""A picture's URL, value and cache key."""

import contextlib
import hashlib
import re
from dataclasses import replace
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picture import CREDENTIALS, EXTENSIONS, OPTIONS, PARAMETERS, BadRequest, ImageRequest, Named
from web.sentences import explain

BOUNDED = settings(max_examples=80, deadline=None)


def from_url(url: str, **more: int) -> tuple[ImageRequest, dict[str, str]]:
    """Parse a URL as a WSGI server passes it on: the path percent-decoded, as Latin-1."""
    named = named_by(url, **more)
    return named.request, named.credentials


def named_by(url: str, **more: int) -> Named:
    path, _, query = url.partition("?")
    return ImageRequest.from_url(unquote_to_bytes(path).decode("latin-1"), query, **more)


def error_of(url: str, **more: int) -> str:
    with pytest.raises(BadRequest) as caught:
        from_url(url, **more)
    return explain(caught.value)


BOTH_WAYS = [
    ("/prompt/a%20red%20apple", ImageRequest("a red apple")),
    ("/prompt/a?width=1024&height=768", ImageRequest("a", 1024, 768)),
    ("/prompt/a?height=1", ImageRequest("a", height=1)),
    ("/prompt/a?model=org%2Fm.1%3Ax%40y%2Bz_-", ImageRequest("a", model="org/m.1:x@y+z_-")),
    ("/prompt/a?seed=-5", ImageRequest("a", seed=-5)),
    ("/prompt/a?seed=999999999999999999", ImageRequest("a", seed=10**18 - 1)),
    ("/prompt/a?style=oil%20%26%20ink", ImageRequest("a", style="oil & ink")),
    ("/prompt/a?negative_prompt=%E4%BA%BA%2C", ImageRequest("a", negative_prompt="人,")),
    (
        "/prompt/a?width=2&height=3&model=m&seed=4&quality=5&style=6&background=7&negative_prompt=8",
        ImageRequest("a", 2, 3, "m", 4, "5", "6", "7", "8"),
    ),
    ("/prompt/%E7%BA%A2%E8%8B%B9%E6%9E%9C%20%F0%9F%8D%8E", ImageRequest("红苹果 🍎")),
    ("/prompt/e%CC%81%20%C3%A9", ImageRequest("e\u0301 é")),
    ("/prompt/%2Fa%2F%2Fb%2F", ImageRequest("/a//b/")),
    ("/prompt/a%2F..%2F.%2Fb", ImageRequest("a/.././b")),
    ("/prompt/100%25%20%2525%20a%3Fb%23c%26d%3De%2Bf", ImageRequest("100% %25 a?b#c&d=e+f")),
    ("/prompt/%5Ba%5D%28b%29%21%22%27%3C%3E%5C%60%7C%2A", ImageRequest("[a](b)!\"'<>\\`|*")),
    ("/prompt/A-b_c.d~e", ImageRequest("A-b_c.d~e")),
    ("/prompt/logo.png.png", ImageRequest("logo.png")),
    ("/prompt/Logo.JPEG.png?width=5", ImageRequest("Logo.JPEG", 5)),
    ("/prompt/.png", ImageRequest(".png")),
]


@pytest.mark.parametrize(("url", "value"), BOTH_WAYS)
def test_url_and_value_are_inverse(url: str, value: ImageRequest) -> None:
    assert from_url(url) == (value, {})
    assert value.to_url() == url


def test_other_spellings_of_a_url_are_accepted() -> None:
    for url, value in [
        ("/prompt/a/../b//c/", ImageRequest("a/../b//c/")),
        ("/prompt//prompt/a", ImageRequest("/prompt/a")),
        ("/prompt/%20%09a%20b%0A%E3%80%80", ImageRequest("a b")),
        ("/prompt/a?width=0512", ImageRequest("a", 512)),
        ("/prompt/a?seed=42&unknown=%41", ImageRequest("a")),
        ("/prompt/a?seed=-0", ImageRequest("a", seed=0)),
        ("/prompt/a?style=oil+paint", ImageRequest("a", style="oil paint")),
        ("/prompt/a?", ImageRequest("a")),
        ("/prompt/a?&&other&other=1&other=2", ImageRequest("a")),
        ("/prompt/a?%77idth=5", ImageRequest("a", 5)),
        ("/prompt/a?x&amp;width=5&AMP;amp;height=6", ImageRequest("a", 5, 6)),
        ("/prompt/a?style=b%26amp%3Bc", ImageRequest("a", style="b&amp;c")),
        ("/prompt/a.png?width=5", ImageRequest("a", 5)),
        ("/prompt/%20a%0A.WebP%20", ImageRequest("a")),
        ("/prompt/a.jpg.gif", ImageRequest("a.jpg")),
        ("/prompt/a.png/b.svg", ImageRequest("a.png/b.svg")),
        ("/prompt/apng", ImageRequest("apng")),
        ("/prompt/..", ImageRequest("..")),
        ("/prompt/a+b(c)", ImageRequest("a+b(c)")),
        ("/prompt/a?Width=x&WIDTH=y", ImageRequest("a")),
        ("/prompt/a?size=16x9", ImageRequest("a", 16, 9)),
        ("/prompt/a?size=16x9&height=8", ImageRequest("a", height=8)),
        ("/prompt/a?size=auto", ImageRequest("a")),
        ("/prompt/a?size=4097x1", ImageRequest("a")),
        ("/prompt/who%20is%20it??width=5", ImageRequest("who is it?", 5)),
        ("/prompt/what?%20Why+%E4%BA%BA???width=5", ImageRequest("what? Why+人??", 5)),
        ("/prompt/what?x=1&y?width=5", ImageRequest("what?x=1&y", 5)),
        ("/prompt/what??.jpg?width=5", ImageRequest("what??", 5)),
        ("/prompt/what??", ImageRequest("what?")),
        ("/prompt/a?style=5?&width=5", ImageRequest("a", 5, style="5?")),
    ]:
        assert from_url(url) == (value, {}), url


def test_credentials_are_returned_separately() -> None:
    value = ImageRequest("a", 5)
    url = "/prompt/a?width=5&key=k%26%20%28%E2%82%AC%29&exp=12"
    assert value.to_url(key="k& (€)", exp=12) == url
    assert from_url(url) == (value, {"key": "k& (€)", "exp": "12"})


# Pieces of queries, and ways to begin a parameter after them.
PARTS = ["?", "&", "&amp;", "=", "%26", "%3D", "%3F", ";", "+", "a", "width", "KEY", "."]
QUERIES = st.lists(st.sampled_from(PARTS)).map("".join)
BEGINNINGS = st.sampled_from(["?", "??", "&", "&amp;", "&AMP;", "?&amp;", "?+", "?a%26", "?a;"])


@BOUNDED
@given(QUERIES, BEGINNINGS, st.sampled_from(CREDENTIALS), st.booleans(), QUERIES)
def test_no_credential_becomes_part_of_a_prompt(
    before: str, beginning: str, name: str, is_escaped: bool, after: str
) -> None:
    written = "".join(f"%{ord(letter):x}" for letter in name) if is_escaped else name
    url = f"/prompt/a?{before}{beginning}{written}=SECRET{after}"
    with contextlib.suppress(BadRequest):
        request = from_url(url)[0]
        assert "SECRET" not in request.prompt
        assert "SECRET" not in request.options.values()


def test_lone_side_draws_a_square() -> None:
    assert (ImageRequest("a").pixels, ImageRequest("a").size) == (None, None)
    assert (ImageRequest("a", 16, 9).pixels, ImageRequest("a", 16, 9).size) == ((16, 9), "16x9")
    assert ImageRequest("a", width=640).pixels == (640, 640)
    assert ImageRequest("a", height=300).pixels == (300, 300)


# Not st.text(): building its table of all of Unicode takes seconds.
CHARACTERS = st.sampled_from(" /.%?#&=+()[]|\\\"'\n\t\x7fAa0é\u0301红🍎") | st.one_of(
    st.integers(1, 0xD7FF), st.integers(0xE000, 0x10FFFF)
).map(chr)
TEXTS = st.lists(CHARACTERS, max_size=40).map("".join)
SIDES = st.none() | st.integers(1, 4096)
MODELS = st.none() | st.text(st.sampled_from("AZaz09._:/@+-"), min_size=1, max_size=100)
LABELS = st.none() | TEXTS.filter(str.isprintable).filter(bool)
REQUESTS = st.builds(
    ImageRequest,
    TEXTS.map(str.strip).filter(bool),
    SIDES,
    SIDES,
    MODELS,
    st.integers(-(10**18) + 1, 10**18 - 1),
    *[LABELS] * len(OPTIONS),
)


@BOUNDED
@given(REQUESTS, TEXTS, st.sampled_from([None, *EXTENSIONS]), st.sampled_from(["", ".png", ".gIf"]))
def test_every_value_survives_its_url(
    value: ImageRequest, key: str, extension: str | None, end: str
) -> None:
    value = replace(value, prompt=value.prompt + end)
    url = value.to_url(extension, key=key)
    assert from_url(url) == (value, {"key": key})
    assert re.fullmatch(r"/prompt/[\w.~%-]+\?[\w.~%=&-]+", url, re.ASCII)


NOT_INTEGERS = ["", "abc", "1e9", "1.5", "0x10", "1_000", "%205", "5%0A", "%2B5", "--5", "None"]
NOT_INTEGERS += ["%D9%A3", "%EF%BC%91", "%C2%B2", "9" * 400]
BAD = {
    "width": [*NOT_INTEGERS, "0", "-5", "4097"],
    "height": ["0", "4097"],
    "seed": [*NOT_INTEGERS, "1" * 19, "-" + "1" * 19],
    "model": ["", "a%20b", "a+b", "%E6%A8%A1", "a%0A", "a|b", "m" * 101, "a%00", "def", "%64ef"],
    "quality": ["", "a%0A", "%00", "%7F", "%E2%80%A8", "q" * 201],
    "style": ["", "s" * 201],
    "background": ["", "b" * 201],
    "negative_prompt": ["", "n" * 201],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in BAD for text in BAD[name]])
def test_bad_parameter_is_rejected_by_name(name: str, text: str) -> None:
    assert error_of(f"/prompt/a?{name}={text}").startswith(f"The parameter {name} must be ")


def test_longest_text_is_accepted() -> None:
    for name, length in [("model", 100), *((name, 200) for name in OPTIONS)]:
        assert getattr(from_url(f"/prompt/a?{name}={'m' * length}")[0], name) == "m" * length


@pytest.mark.parametrize("name", ["key", *PARAMETERS])
def test_repeated_parameter_is_rejected_by_name(name: str) -> None:
    assert error_of(f"/prompt/a?{name}=5&x=1&{name}=5") == f"The parameter {name} is given twice."


def test_unreadable_url_is_rejected() -> None:
    for url, sentence in {
        "/prompt/": "The description is empty.",
        "/prompt/%20%0A%E3%80%80%20": "The description is empty.",
        "/prompt/a%00b": "The description contains a NUL character.",
        "/prompt/a%C3": "The description is not valid UTF-8.",
        "/prompt/%C0%AF": "The description is not valid UTF-8.",
        "/prompt/%ED%A0%80": "The description is not valid UTF-8.",
        "/prompt/a?key=%FF": "A parameter is not valid UTF-8.",
        "/prompt/a?%FF=1": "A parameter is not valid UTF-8.",
        "/prompt/a?" + "x=1&" * 100: "There are more than 100 parameters.",
    }.items():
        assert error_of(url) == sentence, url
    # Of which a URL has none, but a body in JSON may.
    with pytest.raises(BadRequest, match="prompt_not_utf8"):
        ImageRequest.from_text("a \ud83c")
    with pytest.raises(BadRequest, match="style"):
        ImageRequest.from_text("a", style="\ud83c")


def test_length_counts_characters_after_stripping() -> None:
    assert len(from_url(f"/prompt/%20{'%E7%BA%A2' * 4000}%20")[0].prompt) == 4000
    assert error_of(f"/prompt/{'a' * 4001}") == "The description is longer than 4000 characters."
    for url in ("/prompt/abc", "/prompt/abc.png"):
        assert from_url(url, max_prompt_length=3)[0].prompt == "abc"
    assert "longer than 3" in error_of("/prompt/abcd", max_prompt_length=3)


@BOUNDED
@given(st.binary(max_size=40), TEXTS)
def test_any_url_is_a_value_or_a_bad_request(path: bytes, query: str) -> None:
    with contextlib.suppress(BadRequest):
        value = ImageRequest.from_url("/prompt/" + path.decode("latin-1"), query).request
        assert from_url(value.to_url())[0] == value


def test_url_with_an_extension_may_show_two_pictures() -> None:
    [literal, plain] = named_by("/prompt/%20Logo.PNG%20?seed=7").pictures
    assert (literal, plain) == (ImageRequest("Logo.PNG", seed=7), ImageRequest("Logo", seed=7))
    assert named_by("/prompt/Logo").pictures == (ImageRequest("Logo"),)
    assert literal.keys_to_delete == [plain.key, literal.key]
    assert plain.keys_to_delete == [plain.key]


def test_key_is_the_digest_of_what_was_given() -> None:
    for url, text in [
        ("/prompt/%20A%20Red%20APPLE%0A", "a red apple|def|def|def|42"),
        ("/prompt/a?width=1024&height=768", "a|1024|768|def|42"),
        ("/prompt/a?width=0640", "a|640|def|def|42"),
        ("/prompt/a?height=300", "a|def|300|def|42"),
        ("/prompt/a?model=Org/Flux&seed=-7", "a|def|def|Org/Flux|-7"),
        ("/prompt/%C3%84%C3%96%20%E7%BA%A2%20%F0%9F%8D%8E", "äö 红 🍎|def|def|def|42"),
        ("/prompt/a%7C1?width=2", "a|1|2|def|def|42"),
        ("/prompt/a?style=Vivid&quality=hd", "a|def|def|def|42|quality=hd|style=Vivid"),
        (
            "/prompt/a?negative_prompt=%E4%BA%BA|a%20%2F-._~&background=white&width=5",
            "a|5|def|def|42|background=white|negative_prompt=%E4%BA%BA%7Ca%20%2F-._~",
        ),
    ]:
        assert from_url(url)[0].key == hashlib.sha256(text.encode("utf-8")).hexdigest(), url


# Pieces of what is hashed, so that texts are alike wherever they can be.
PIECES = st.lists(
    st.sampled_from(["|", "=", "%7C", "def", "42", "1", "a", "A", "style=", "quality=a"]),
    min_size=1,
    max_size=6,
).map("".join)
ALIKE = st.fixed_dictionaries(
    {"description": PIECES},
    optional={
        "width": st.sampled_from(["1", "01", "42"]),
        "height": st.sampled_from(["1", "42", "042"]),
        "model": st.sampled_from(["def", "DEF", "1", "42", "a"]),
        "seed": st.sampled_from(["42", "1", "-1", "0", "-0"]),
        **dict.fromkeys(OPTIONS, PIECES),
    },
)


@BOUNDED
@given(st.lists(ALIKE, min_size=1, max_size=20))
def test_different_pictures_have_different_keys(bodies: list[dict[str, str]]) -> None:
    fewer = [
        {name: text for name, text in body.items() if name != left_out}
        for body in bodies
        for left_out in body.keys() - {"description"}
    ]
    pictures: dict[str, ImageRequest] = {}
    for body in (*bodies, *fewer):
        with contextlib.suppress(BadRequest):
            value = ImageRequest.from_text(**body)  # type: ignore[arg-type]
            any_case = replace(value, prompt=value.prompt.lower())
            assert pictures.setdefault(value.key, any_case) == any_case
