"""Which bytes are a complete picture, and in which format."""

import base64
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from images.formats import EXTENSIONS, foreign_type, media_type_of, pixels_of

from .scripted import GIF, JPEG, WEBP, png
from .test_convert import encode

GREY = Image.linear_gradient("L").resize((3, 2))
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.new("L", (3, 2), 9)]}
LOSSY_WEBP = encode(GREY, "webp")
ALPHA_WEBP = encode(Image.merge("LA", (GREY, GREY)), "webp")


def segment(payload: bytes) -> bytes:
    """Return a JPEG segment for applications, as Exif uses it."""
    return b"\xff\xe1" + (2 + len(payload)).to_bytes(2, "big") + payload


# By name: the media type, the size in pixels, the bytes.
PICTURES = {
    "progressive JPEG": ("image/jpeg", (3, 2), encode(GREY, "jpeg", progressive=True)),
    "animated GIF": ("image/gif", (3, 2), encode(GREY, "gif", **FRAMES)),
    "lossy WebP": ("image/webp", (3, 2), LOSSY_WEBP),
    "WebP with alpha": ("image/webp", (3, 2), ALPHA_WEBP),
    "animated WebP": ("image/webp", (3, 2), encode(GREY, "webp", **FRAMES)),
    "animated PNG": ("image/png", (3, 2), encode(GREY, "png", **FRAMES)),
    "PNG of 16 bits": ("image/png", (3, 2), encode(GREY.convert("I;16"), "png")),
    "PNG": ("image/png", (3, 5), png(3, 5)),
    "JPEG": ("image/jpeg", (1, 1), JPEG),
    "thumbnail": ("image/jpeg", (1, 1), JPEG[:2] + segment(b"Exif\0\0" + JPEG) + JPEG[2:]),
    "fill bytes": ("image/jpeg", (1, 1), JPEG[:2] + b"\xff" * 3 + JPEG[2:]),
    "GIF": ("image/gif", (1, 1), GIF),
    "GIF of 1987": ("image/gif", (1, 1), GIF.replace(b"89a", b"87a")),
    "lossless WebP": ("image/webp", (1, 1), WEBP),
}


@pytest.mark.parametrize("name", PICTURES)
def test_only_a_complete_picture_is_one(name: str) -> None:
    media_type, pixels, data = PICTURES[name]
    assert (media_type_of(data), pixels_of(data)) == (media_type, pixels)
    assert media_type_of(data + b"\0\r\nanything") == media_type
    assert [length for length in range(len(data)) if media_type_of(data[:length])] == []


def test_size_of_large_webp_is_read_whole() -> None:
    """Of the two forms with a size in bits and in three bytes."""
    bits = (0x2ABC - 1 | (0x1234 - 1) << 14).to_bytes(4, "little")
    assert pixels_of(WEBP[:21] + bits + WEBP[25:]) == (0x2ABC, 0x1234)
    sides = (0x123456 - 1).to_bytes(3, "little") + (0x654321 - 1).to_bytes(3, "little")
    assert pixels_of(ALPHA_WEBP[:24] + sides + ALPHA_WEBP[30:]) == (0x123456, 0x654321)


JPEG_SIZE = b"\x08\0\1\0\1"
VP8_SIZE = b"\x2a\3\0\2\0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='5' height='5'/>",
        b"data:image/png;base64," + base64.b64encode(png()),
        b"\n" + GIF,
        b"\0\0\0\x1cftypavif" + b"\0" * 40,
        GIF.replace(b"89a", b"88a"),
        GIF[:-1] + b"x;",  # no block begins with x
        WEBP.replace(b"WEBP", b"WAVE"),
        WEBP.replace(b"VP8L", b"ABCD"),
        WEBP.replace(b"\x2f", b"\x2e", 1),
        WEBP.replace(b"RIFF\x1a", b"RIFF\x10"),  # its first chunk would end after its last
        LOSSY_WEBP.replace(b"\x9d\1\x2a", b"\x9d\1\x2b"),
        png().replace(b"IHDR", b"IDAT", 1),
        png().replace(b"\r\n", b"\n", 1),
        b"\xff\xd8\xff\xd9" + b"\0" * 40,
        JPEG.replace(b"\xff\xe0", b"\xff\xda", 1),  # pixels before the size
        JPEG.replace(b"\xff\xe0\0\x10", b"\xff\xe0\0\0"),
        # A width or a height of 0.
        png(0, 5),
        png(5, 0),
        GIF.replace(b"a\1\0\1\0", b"a\0\0\1\0"),
        GIF.replace(b"a\1\0\1\0", b"a\1\0\0\0"),
        JPEG.replace(JPEG_SIZE, b"\x08\0\0\0\1"),
        JPEG.replace(JPEG_SIZE, b"\x08\0\1\0\0"),
        LOSSY_WEBP.replace(VP8_SIZE, b"\x2a\0\0\2\0"),
        LOSSY_WEBP.replace(VP8_SIZE, b"\x2a\3\0\0\xc0"),
    ],
)
def test_anything_else_is_no_picture(data: bytes) -> None:
    assert media_type_of(data) is None


def test_foreign_formats_have_a_name() -> None:
    for data, name in {
        b"<svg/>": "SVG",
        b"\xef\xbb\xbf\n<?xml version='1.0'?><!-- x -->\n<SVG xmlns='x'>": "SVG",
        b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' ''><svg>": "SVG",
        b"\0\0\0\x1cftypavif": "AVIF",
        b"<!doctype html><p>svg</p>": None,
        b"": None,
    }.items():
        assert foreign_type(data) == name, data


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*PICTURES]), st.integers(1, 40), st.binary(max_size=60))
def test_any_bytes_have_a_type_or_none(name: str, kept: int, rest: bytes) -> None:
    assert media_type_of(PICTURES[name][2][:kept] + rest) in (None, *EXTENSIONS)


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        (b"\xff\xd8", b"\xff"),
        (b"\xff\xd8", b"\xff\xe0\0\2"),
        (JPEG[:-2], b"\xff\0"),
        (GIF[:19], b"!\0\0"),
        (GIF[:19] + b"!\0", b"\1\1"),
        (png()[:33], b"\0\0\0\0teSt\0\0\0\0"),
    ],
)
def test_endless_blocks_cost_no_time(head: bytes, unit: bytes) -> None:
    data = head + unit * (2**25 // len(unit))
    start = time.process_time()
    assert media_type_of(data) is None
    assert time.process_time() - start < 0.5
