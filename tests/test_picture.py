"""A picture's URL, value and key, and what counts as a picture's bytes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import image_type
from picture import BadRequest, ImageRequest

from .servers import GIF, JPEG, WEBP, png

BOUNDED = settings(max_examples=80, deadline=None)


def from_url(url: str, **more: int) -> tuple[ImageRequest, dict[str, str]]:
    """Read a URL as a WSGI server hands it on: the path decoded, one character a byte."""
    path, _, query = url.partition("?")
    return ImageRequest.from_url(unquote_to_bytes(path).decode("latin-1"), query, **more)


def refusal_of(url: str, **more: int) -> str:
    with pytest.raises(BadRequest) as caught:
        from_url(url, **more)
    return str(caught.value)


# --- URL and value ------------------------------------------------------------------------------

BOTH_WAYS = [
    ("/prompt/a%20red%20apple", ImageRequest("a red apple")),
    ("/prompt/a?width=1024&height=768", ImageRequest("a", 1024, 768)),
    ("/prompt/a?width=1&height=4096", ImageRequest("a", 1, 4096)),
    ("/prompt/a?model=flux", ImageRequest("a", model="flux")),
    ("/prompt/a?model=org%2Fm.1%3Ax%40y%2Bz_-", ImageRequest("a", model="org/m.1:x@y+z_-")),
    ("/prompt/a?seed=7", ImageRequest("a", seed=7)),
    ("/prompt/a?seed=0", ImageRequest("a", seed=0)),
    ("/prompt/a?seed=-5", ImageRequest("a", seed=-5)),
    ("/prompt/a?seed=999999999999999999", ImageRequest("a", seed=10**18 - 1)),
    ("/prompt/a?width=2&height=3&model=m&seed=4", ImageRequest("a", 2, 3, "m", 4)),
    ("/prompt/%E7%BA%A2%E8%8B%B9%E6%9E%9C%20%F0%9F%8D%8E", ImageRequest("红苹果 🍎")),
    ("/prompt/e%CC%81%20%C3%A9", ImageRequest("e\u0301 é")),
    ("/prompt/%2Fa%2F%2Fb%2F", ImageRequest("/a//b/")),
    ("/prompt/%2Fprompt%2Fa", ImageRequest("/prompt/a")),
    ("/prompt/a%2F..%2F.%2Fb", ImageRequest("a/.././b")),
    ("/prompt/a%0Ab%0D%0Ac%09d", ImageRequest("a\nb\r\nc\td")),
    ("/prompt/100%25%20%2525%20a%3Fb%23c%26d%3De%2Bf", ImageRequest("100% %25 a?b#c&d=e+f")),
    ("/prompt/%5Ba%5D%28b%29%21%22%27%3C%3E%5C%60%7C%2A", ImageRequest("[a](b)!\"'<>\\`|*")),
    ("/prompt/A-b_c.d~e", ImageRequest("A-b_c.d~e")),
]


@pytest.mark.parametrize(("url", "value"), BOTH_WAYS)
def test_url_is_read_into_its_value(url: str, value: ImageRequest) -> None:
    assert from_url(url) == (value, {})


@pytest.mark.parametrize(("url", "value"), BOTH_WAYS)
def test_value_makes_its_url(url: str, value: ImageRequest) -> None:
    assert value.to_url() == url


@pytest.mark.parametrize(
    ("url", "value"),
    [
        ("/prompt/a/../b//c/", ImageRequest("a/../b//c/")),
        ("/prompt//a", ImageRequest("/a")),
        ("/prompt//prompt/a", ImageRequest("/prompt/a")),
        ("/prompt/..", ImageRequest("..")),
        ("/prompt/%20%09a%20b%0A%E3%80%80", ImageRequest("a b")),
        ("/prompt/a+b", ImageRequest("a+b")),
        ("/prompt/a(b)", ImageRequest("a(b)")),
        ("/prompt/a%252Fb", ImageRequest("a%2Fb")),
        ("/prompt/a?width=0512", ImageRequest("a", 512, 512)),
        ("/prompt/a?seed=42&unknown=%41", ImageRequest("a")),
        ("/prompt/a?seed=-0", ImageRequest("a", seed=0)),
        ("/prompt/a?", ImageRequest("a")),
        ("/prompt/a?&&other&other=1&other=2", ImageRequest("a")),
        ("/prompt/a?Width=x&WIDTH=y", ImageRequest("a")),
        ("/prompt/a?%77idth=5", ImageRequest("a", 5, 5)),
    ],
)
def test_url_is_read_as_others_write_it(url: str, value: ImageRequest) -> None:
    assert from_url(url) == (value, {})


def test_lone_width_or_height_means_a_square() -> None:
    square = ImageRequest("a", 512, 512)
    for query in ("width=512", "height=512", "width=512&height=512"):
        assert from_url(f"/prompt/a?{query}")[0] == square
    assert (square.size, ImageRequest("a").size) == ("512x512", None)
    assert ImageRequest("a", 16, 9).size == "16x9"


def test_credentials_are_handed_back() -> None:
    url = "/prompt/a?key=k%26%20%E2%82%AC&width=5"
    assert from_url(url) == (ImageRequest("a", 5, 5), {"key": "k& €"})


def test_credentials_are_put_into_the_url() -> None:
    url = ImageRequest("a", 5, 5).to_url(key="k& (€)", exp=12)
    assert url == "/prompt/a?width=5&height=5&key=k%26%20%28%E2%82%AC%29&exp=12"


# Not st.text(): its table of all of Unicode takes seconds to make.
CHARACTERS = st.sampled_from(" /.%?#&=+()[]|\\\"'\n\t\x7fAa0é\u0301红🍎") | st.one_of(
    st.integers(1, 0xD7FF), st.integers(0xE000, 0x10FFFF)
).map(chr)
TEXTS = st.lists(CHARACTERS, max_size=40).map("".join)
PROMPTS = TEXTS.map(str.strip).filter(bool)
SIDES = st.none() | st.tuples(st.integers(1, 4096), st.integers(1, 4096))
MODELS = st.none() | st.lists(st.sampled_from("AZaz09._:/@+-"), min_size=1, max_size=100).map(
    "".join
)
SEEDS = st.integers(-(10**18) + 1, 10**18 - 1)


@BOUNDED
@given(PROMPTS, SIDES, MODELS, SEEDS, TEXTS)
def test_reading_undoes_making(
    prompt: str, sides: tuple[int, int] | None, model: str | None, seed: int, key: str
) -> None:
    width, height = sides or (None, None)
    value = ImageRequest(prompt, width, height, model, seed)
    url = value.to_url(key=key)
    assert from_url(url) == (value, {"key": key})
    # Fit for a Markdown link, and for a header.
    assert re.fullmatch(r"/prompt/[\w.~%-]+\?[\w.~%=&-]+", url, re.ASCII)


# --- bad requests -------------------------------------------------------------------------------

NOT_INTEGERS = [
    "",
    "abc",
    "1e9",
    "1.5",
    "0x10",
    "1_000",
    "%205",
    "5%20",
    "+5",
    "%2B5",
    "5%0A",
    "%D9%A3",
    "%EF%BC%91%EF%BC%92",
    "%C2%B2",
    "--5",
    "None",
]


@pytest.mark.parametrize("name", ["width", "height"])
@pytest.mark.parametrize("text", [*NOT_INTEGERS, "0", "-5", "4097", "9999999999", "9" * 400])
def test_bad_side_is_refused_by_name(name: str, text: str) -> None:
    sentence = f"The parameter {name} must be an integer from 1 to 4096."
    assert refusal_of(f"/prompt/a?{name}={text}") == sentence


@pytest.mark.parametrize("text", [*NOT_INTEGERS, "1" * 19, "-" + "1" * 19, "9" * 400])
def test_bad_seed_is_refused_by_name(text: str) -> None:
    sentence = "The parameter seed must be an integer of at most 18 digits."
    assert refusal_of(f"/prompt/a?seed={text}") == sentence


@pytest.mark.parametrize(
    "text", ["", "a%20b", "a+b", "%E6%A8%A1", "a%0A", "a|b", "m" * 101, "a%00"]
)
def test_bad_model_is_refused_by_name(text: str) -> None:
    sentence = "The parameter model must be 1 to 100 of A-Z a-z 0-9 . _ : / @ + -"
    assert refusal_of(f"/prompt/a?model={text}") == sentence


def test_longest_model_is_taken() -> None:
    assert from_url(f"/prompt/a?model={'m' * 100}")[0].model == "m" * 100


@pytest.mark.parametrize("name", ["key", "width", "height", "model", "seed"])
def test_repeated_parameter_is_refused_by_name(name: str) -> None:
    sentence = f"The parameter {name} is given twice."
    assert refusal_of(f"/prompt/a?{name}=5&x=1&{name}=5") == sentence


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("/prompt/", "The description is empty."),
        ("/prompt/%20%0A%E3%80%80%20", "The description is empty."),
        ("/prompt/a%00b", "The description holds a NUL character."),
        ("/prompt/%00", "The description holds a NUL character."),
        ("/prompt/%FF", "The description is not valid UTF-8."),
        ("/prompt/a%C3", "The description is not valid UTF-8."),
        ("/prompt/%C0%AF", "The description is not valid UTF-8."),
        ("/prompt/%ED%A0%80", "The description is not valid UTF-8."),
        ("/prompt/a?key=%FF", "A parameter is not valid UTF-8."),
        ("/prompt/a?width=%C3", "A parameter is not valid UTF-8."),
        ("/prompt/a?%FF=1", "A parameter is not valid UTF-8."),
        ("/prompt/a?" + "x=1&" * 100, "There are more than 100 parameters."),
    ],
)
def test_what_cannot_be_read_is_refused(url: str, sentence: str) -> None:
    assert refusal_of(url) == sentence


def test_path_beyond_latin_1_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"^The description is not valid UTF-8\.$"):
        ImageRequest.from_url("/prompt/€", "")


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"^The description is not valid Unicode\.$"):
        ImageRequest.from_text("a \ud83c")


def test_length_counts_characters_after_stripping() -> None:
    assert len(from_url(f"/prompt/%20{'%E7%BA%A2' * 4000}%20")[0].prompt) == 4000
    sentence = "The description is longer than 4000 characters."
    assert refusal_of(f"/prompt/{'a' * 4001}") == sentence
    assert refusal_of("/prompt/abcd", max_prompt_length=3) == sentence.replace("4000", "3")
    assert from_url("/prompt/abc", max_prompt_length=3)[0].prompt == "abc"


@BOUNDED
@given(st.binary(max_size=40), st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_any_url_is_read_or_refused(path: bytes, query: str) -> None:
    with contextlib.suppress(BadRequest):
        value, _ = ImageRequest.from_url("/prompt/" + path.decode("latin-1"), query)
        assert from_url(value.to_url())[0] == value


@BOUNDED
@given(*[TEXTS | st.lists(st.sampled_from("0123456789+-_.eE ٣１x")).map("".join)] * 3)
def test_any_parameter_is_read_or_refused(width: str, seed: str, model: str) -> None:
    with contextlib.suppress(BadRequest):
        value = ImageRequest.from_text("a", width=width, seed=seed, model=model)
        assert (value.width, value.seed, value.model) == (int(width), int(seed), model)


# --- the key ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("/prompt/a%20red%20apple", "a red apple|def|def|def|42"),
        ("/prompt/%20A%20Red%20APPLE%0A", "a red apple|def|def|def|42"),
        ("/prompt/a?seed=42", "a|def|def|def|42"),
        ("/prompt/a?width=1024&height=768", "a|1024|768|def|42"),
        ("/prompt/a?width=0512", "a|512|512|def|42"),
        ("/prompt/a?height=512", "a|512|512|def|42"),
        ("/prompt/a?model=Org/Flux&seed=-7", "a|def|def|Org/Flux|-7"),
        ("/prompt/%C3%84%C3%96%20%E7%BA%A2%20%F0%9F%8D%8E", "äö 红 🍎|def|def|def|42"),
        ("/prompt/a%7C1?width=2", "a|1|2|2|def|42"),
        ("/prompt/a?key=secret&unknown=1", "a|def|def|def|42"),
    ],
)
def test_key_is_the_digest_of_the_normalised_request(url: str, text: str) -> None:
    assert from_url(url)[0].key == hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_key_never_changes() -> None:
    # As `printf 'a red apple|1024|768|def|42' | sha256sum` prints it: caches live on this.
    known = "3c0ff4d44d90c2f96193b6f3d6be34e3f7aaadab1d29e8e3d8c0a8aa299c7360"
    assert from_url("/prompt/a%20red%20apple?width=1024&height=768")[0].key == known


# --- bytes --------------------------------------------------------------------------------------


def webp(kind: bytes, rest: bytes) -> bytes:
    return b"RIFF\x40\0\0\0WEBP" + kind + b"\x30\0\0\0" + rest


VP8 = webp(b"VP8 ", b"\x30\1\0\x9d\1\x2a\5\0\7\0" + b"\0" * 20)
VP8L = webp(b"VP8L", b"\x2f\0\0\0\0" + b"\0" * 20)
VP8X = webp(b"VP8X", b"\0" * 10 + b"\0" * 20)
SOF = b"\xff\xc0\0\x0b\x08\0\5\0\7\1\1\x11\0"
SEGMENTS = b"\xff\xe1\0\6Exif\xff\xdb\0\x04ab\xff\xc4\0\x03h\xff\xff\xff\xcc\0\2"
# Bytes, their type, and how many of them make the header whole.
PICTURES = {
    "png": (png(3, 5), "image/png", 24),
    "jpeg": (JPEG, "image/jpeg", 29),
    "jpeg, segments first": (
        b"\xff\xd8" + SEGMENTS + SOF + b"\xff\xd9",
        "image/jpeg",
        2 + len(SEGMENTS) + 9,
    ),
    "jpeg, progressive": (
        b"\xff\xd8" + SOF.replace(b"\xc0", b"\xc2", 1) + b"\xff\xd9",
        "image/jpeg",
        11,
    ),
    "gif87a": (GIF.replace(b"89", b"87"), "image/gif", 10),
    "gif89a": (GIF, "image/gif", 10),
    "webp, lossless": (WEBP, "image/webp", 25),
    "webp, lossy": (VP8, "image/webp", 30),
    "webp, extended": (VP8X, "image/webp", 30),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_one_as_soon_as_its_header_is_whole(name: str) -> None:
    data, media_type, header = PICTURES[name]
    assert header < len(data)
    for length in range(len(data) + 1):
        expected = media_type if length >= header else None
        assert image_type(data[:length]) == expected, length


@pytest.mark.parametrize(
    "data",
    [
        png(0, 5),
        png(5, 0),
        b"GIF89a\0\0\1\0\0\0\0;",
        b"GIF89a\1\0\0\0\0\0\0;",
        JPEG.replace(b"\x08\0\1\0\1", b"\x08\0\0\0\1"),
        JPEG.replace(b"\x08\0\1\0\1", b"\x08\0\1\0\0"),
        VP8.replace(b"\x2a\5\0\7\0", b"\x2a\0\0\7\0"),
        VP8.replace(b"\x2a\5\0\7\0", b"\x2a\5\0\0\xc0"),
    ],
)
def test_picture_without_width_or_height_is_none(data: bytes) -> None:
    assert image_type(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='5' height='5'/>",
        b'<?xml version="1.0"?><svg/>',
        b'{"data": [{"b64_json": ""}]}',
        b"data:image/png;base64," + b"A" * 40,
        b" " + png(),
        b"\n" + GIF,
        b"%PDF-1.7" + b"\0" * 40,
        b"BM" + b"\x40\0\0\0" * 20,
        b"\0\0\0\x1cftypavif" + b"\0" * 40,
        b"GIF88a\1\0\1\0\0\0\0;",
        b"RIFF\x40\0\0\0WAVEfmt " + b"\1" * 40,
        b"RIFF\x40\0\0\0WEBPABCD" + b"\1" * 40,
        VP8L.replace(b"\x2f", b"\x2e"),
        VP8.replace(b"\x9d\1\x2a", b"\x9d\1\x2b"),
        png().replace(b"IHDR", b"IDAT", 1),
        png().replace(b"\r\n", b"\n", 1),
        b"\xff\xd8\xff\xd9" + b"\0" * 40,
        b"\xff\xd8\xff\xda\0\x08" + SOF,
        b"\xff\xd8\xff\xe0\0\0" + SOF,
        b"\xff\xd8\xff" + b"\xff" * 1000,
    ],
)
def test_anything_else_is_no_picture(data: bytes) -> None:
    assert image_type(data) is None


MAGIC = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xe0\0\4ab\xff",
    b"\xff\xd8\xff\xc0",
    b"GIF87a",
    b"GIF89a",
    b"RIFF",
    b"RIFF\0\0\0\0WEBP",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"RIFF\0\0\0\0WEBPVP8L",
    b"RIFF\0\0\0\0WEBPVP8X",
]


@BOUNDED
@given(st.sampled_from(MAGIC), st.binary(max_size=60))
def test_any_bytes_have_a_type_or_none(magic: bytes, rest: bytes) -> None:
    found = image_type(magic + rest)
    assert found in (None, "image/png", "image/jpeg", "image/gif", "image/webp")
    assert magic or found is None or rest[:3] in (b"\x89PN", b"\xff\xd8\xff", b"GIF", b"RIF")


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\xe0\0\2"])
def test_endless_segments_cost_no_time(filler: bytes) -> None:
    data = b"\xff\xd8" + filler * (2**24 // len(filler)) + SOF
    start = time.monotonic()
    assert image_type(data) is None
    assert time.monotonic() - start < 0.5
