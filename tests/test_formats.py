"""Which bytes are a complete picture, and in which format."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.formats import EXTENSIONS, foreign_type, media_type_of

from .servers import GIF, JPEG, WEBP, png

# Written by Pillow 13, but for the interlaced one.
ENCODED = {
    "progressive JPEG": (
        "image/jpeg",
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAFA3PEY8MlBGQUZaVVBfeMiCeG5uePWvuZHI////////////////////"
        "////////////////////////////////wgALCAACAAIBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAf/aAAgBAQAA"
        "AAF//8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABBQJ//8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQAG"
        "PwJ//8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABPyF//9oACAEBAAAAEH//xAAXEAEAAwAAAAAAAAAAAAAA"
        "AAABABEh/9oACAEBAAE/EAKMn//Z",
    ),
    "animated GIF": (
        "image/gif",
        "R0lGODlhAwACAIEAAKenp5KSkouLi1FRUSH/C05FVFNDQVBFMi4wAwEAAAAh+QQABQAAACwAAAAAAwACAAAICAAD"
        "DAAgUEBAACH5BAEFAAQALAAAAAADAAIAgY+Pj2NjY15eXiEhIQgIAAMIHABAQEAAOw==",
    ),
    "lossy WebP": (
        "image/webp",
        "UklGRi4AAABXRUJQVlA4ICIAAABwAQCdASoDAAIADMDOJQBdgA/eQADhGB9GKzdgSDQdgAAA",
    ),
    "WebP with alpha": (
        "image/webp",
        "UklGRlAAAABXRUJQVlA4WAoAAAAQAAAAAgAAAQAAQUxQSAcAAAAAEJsD6NZ4AFZQOCAiAAAAkAEAnQEqAwACAAzA"
        "ziWoAnQA8wIAAJ6DhOK2GEwcbvrYAA==",
    ),
    "animated WebP": (
        "image/webp",
        "UklGRsAAAABXRUJQVlA4WAoAAAACAAAAAgAAAQAAQU5JTQYAAAAAAAAAAABBTk1GTAAAAAAAAAAAAAIAAAEAADIA"
        "AAJWUDggNAAAAFABAJ0BKgMAAgAMwM4lqAAGBoAA/sOo4yqw8/ls68JCOtvmrRit/GeTcZ37/160tm8SAABBTk1G"
        "QAAAAAAAAAAAAAIAAAEAADIAAABWUDggKAAAAFQBAJ0BKgMAAgAAAM4llAAFjAAA/tAZbpKttuecTLI+fmbdvDpH"
        "AAA=",
    ),
    "animated PNG": (
        "image/png",
        "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAAAAAC4HznGAAAACGFjVEwAAAACAAAAAPONk3AAAAAaZmNUTAAAAAAA"
        "AAADAAAAAgAAAAAAAAAAAAEAFAAAKQ7SIgAAABBJREFUeJxj2ODxibHScDcADc4DUUDpIeUAAAAaZmNUTAAAAAEA"
        "AAADAAAAAgAAAAAAAAAAAAEAFAAAsn049gAAABRmZEFUAAAAAnicY9D6MZNhcfYdAA2WA6YzsAS9AAAAAElFTkSu"
        "QmCC",
    ),
    "interlaced PNG of 16 bits": (
        "image/png",
        "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACEAAAAAGfiNUTAAAAGElEQVR4nGPoU2OIt2ZoW8TgsvOCmsU9ACVuBYCy"
        "yXf9AAAAAElFTkSuQmCC",
    ),
}
REAL = {name: (kind, base64.b64decode(text)) for name, (kind, text) in ENCODED.items()}
LOSSY_WEBP = REAL["lossy WebP"][1]


def segment(payload: bytes) -> bytes:
    """Return a JPEG segment for applications, as Exif uses it."""
    return b"\xff\xe1" + (2 + len(payload)).to_bytes(2, "big") + payload


PICTURES = REAL | {
    "PNG": ("image/png", png(3, 5)),
    "JPEG": ("image/jpeg", JPEG),
    "JPEG with a thumbnail": ("image/jpeg", JPEG[:2] + segment(b"Exif\0\0" + JPEG) + JPEG[2:]),
    "JPEG with fill bytes": ("image/jpeg", JPEG[:2] + b"\xff" * 3 + JPEG[2:]),
    "GIF": ("image/gif", GIF),
    "GIF of 1987": ("image/gif", GIF.replace(b"89a", b"87a")),
    "lossless WebP": ("image/webp", WEBP),
}


@pytest.mark.parametrize("name", PICTURES)
def test_only_a_complete_picture_is_one(name: str) -> None:
    media_type, data = PICTURES[name]
    assert media_type_of(data) == media_type
    assert [length for length in range(len(data)) if media_type_of(data[:length])] == []


@pytest.mark.parametrize("name", PICTURES)
def test_bytes_after_the_end_are_allowed(name: str) -> None:
    media_type, data = PICTURES[name]
    assert media_type_of(data + b"\0\r\nanything") == media_type


JPEG_SIZE = b"\x08\0\1\0\1"
VP8_SIZE = b"\x2a\3\0\2\0"


@pytest.mark.parametrize(
    "data",
    [
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
def test_width_and_height_are_above_0(data: bytes) -> None:
    assert media_type_of(data) is None


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
    ],
)
def test_anything_else_is_no_picture(data: bytes) -> None:
    assert media_type_of(data) is None


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg/>", "SVG"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?><!-- x -->\n<SVG xmlns='x'>", "SVG"),
        (b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' ''><svg>", "SVG"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"<!doctype html><p>svg</p>", None),
        (b"", None),
    ],
)
def test_foreign_formats_have_a_name(data: bytes, name: str | None) -> None:
    assert foreign_type(data) == name


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(PICTURES)), st.integers(1, 40), st.binary(max_size=60))
def test_any_bytes_have_a_type_or_none(name: str, kept: int, rest: bytes) -> None:
    _, data = PICTURES[name]
    assert media_type_of(data[:kept] + rest) in (None, *EXTENSIONS)


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
