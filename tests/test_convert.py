"""Conversion: formats, sizes, colours, and files that are not what they seem."""

import io
import re
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from images.convert import MAX_PIXELS, Converter, thumbnail
from images.formats import Inconvertible, media_type_of
from picture import ImageRequest

from .conftest import MakeServer, Serve, drawing, hosting_settings
from .scripted import JPEG, Say, ScriptedServer, png

FORMATS = ("webp", "jpeg", "png")
SIZE = (40, 20)
RED, CLEAR, WHITE = (255, 0, 0), (0, 0, 255, 0), (255, 255, 255)


def encode(image: Image.Image, name: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **more)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def convert(data: bytes, picture_format: str, quality: int = 90, limit: int | None = None) -> bytes:
    """Return the converted picture, whose media type is that of its bytes."""
    media_type = media_type_of(data)
    assert media_type
    converted, name = Converter(picture_format, quality, limit).convert(data, media_type)
    assert media_type_of(converted) == name
    return converted


def is_close(pixel: Any, expected: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 12 for a, b in zip(pixel, expected, strict=True))


def split(left: tuple[int, ...], right: tuple[int, ...]) -> Image.Image:
    """Return a picture of two halves."""
    image = Image.new("RGBA", SIZE, left)
    image.paste(Image.new("RGBA", (SIZE[0] // 2, SIZE[1]), right), (SIZE[0] // 2, 0))
    return image


TRANSPARENT = split(RED, CLEAR)
OPAQUE = split(RED, WHITE).convert("RGB")
NOISE = Image.merge("RGB", [Image.effect_noise((200, 100), 80) for _ in range(3)])


def png_chunk(chunk: bytes) -> bytes:
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def raw_png(width: int, height: int, depth: int, kind: int, pixels: bytes) -> bytes:
    """Return a PNG of given pixels, compressed: Pillow does not write every kind itself."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = (b"IHDR" + head, b"IDAT" + pixels, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(png_chunk, chunks))


def sixteen_bits(kind: int, *pixel: int) -> bytes:
    row = b"\0" + struct.pack(f">{len(pixel)}H", *pixel) * SIZE[0]
    return raw_png(*SIZE, 16, kind, zlib.compress(row * SIZE[1]))


# Name: a picture, the colour of its left half and that of its right half.
GREY = (76, 76, 76)
SOURCES: dict[str, tuple[bytes, tuple[int, ...], tuple[int, ...]]] = {
    "RGB": (encode(OPAQUE, "png"), RED, WHITE),
    "RGBA": (encode(TRANSPARENT, "png"), RED, CLEAR),
    "RGBA that is opaque": (encode(OPAQUE.convert("RGBA"), "png"), RED, WHITE),
    "palette": (encode(OPAQUE.quantize(4), "png"), RED, WHITE),
    "palette with transparency": (encode(TRANSPARENT.quantize(4), "png"), RED, CLEAR),
    "one transparent colour": (encode(OPAQUE, "png", transparency=WHITE), RED, CLEAR),
    "greyscale": (encode(OPAQUE.convert("L"), "png"), GREY, WHITE),
    "greyscale with alpha": (encode(TRANSPARENT.convert("LA"), "png"), GREY, CLEAR),
    "one bit": (encode(OPAQUE.convert("1", dither=Image.Dither.NONE), "png"), (0, 0, 0), WHITE),
    "16 bits, grey": (sixteen_bits(0, 0x8000), (128, 128, 128), (128, 128, 128)),
    "16 bits, grey with alpha": (sixteen_bits(4, 0x8000, 0), CLEAR, CLEAR),
    "16 bits, RGB": (sixteen_bits(2, 0xFFFF, 0x8000, 0), (255, 128, 0), (255, 128, 0)),
    "JPEG": (encode(OPAQUE, "jpeg", quality=95, subsampling=0), RED, WHITE),
    "JPEG, greyscale": (encode(OPAQUE.convert("L"), "jpeg"), GREY, WHITE),
    "JPEG, CMYK": (encode(OPAQUE.convert("CMYK"), "jpeg", quality=95), RED, WHITE),
    "WebP": (encode(OPAQUE, "webp", quality=95), RED, WHITE),
    "WebP, lossless": (encode(TRANSPARENT, "webp", lossless=True), RED, CLEAR),
    "GIF": (encode(TRANSPARENT, "gif"), RED, CLEAR),
}


@pytest.mark.parametrize("name", SOURCES)
def test_any_picture_becomes_any_format(name: str) -> None:
    data, *colours = SOURCES[name]
    for picture_format in FORMATS:
        image = decode(convert(data, picture_format))
        assert (image.format, image.size) == (picture_format.upper(), SIZE)
        for x, colour in zip((5, SIZE[0] - 5), colours, strict=True):
            red, green, blue, alpha = image.convert("RGBA").getpixel((x, 10))  # type: ignore[misc]
            if colour is not CLEAR:
                assert is_close((red, green, blue, alpha), (*colour, 255)), picture_format
            elif picture_format == "jpeg":
                assert is_close((red, green, blue), WHITE)
            else:
                assert alpha == 0, picture_format


def test_orientation_is_applied_and_metadata_dropped() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the top of the pixels belongs to the right
    exif[ExifTags.Base.ImageDescription] = "secret"
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "secret", zip=False)
    for data in (
        encode(OPAQUE, "jpeg", exif=exif, quality=95, comment=b"secret"),
        encode(OPAQUE, "png", exif=exif, pnginfo=text),
        encode(OPAQUE, "webp", exif=exif, quality=95),
    ):
        assert b"secret" in data
        for picture_format in set(FORMATS) - {str(media_type_of(data)).removeprefix("image/")}:
            converted = convert(data, picture_format)
            assert b"secret" not in converted
            image = decode(converted).convert("RGB")
            assert image.size == (SIZE[1], SIZE[0])
            assert is_close(image.getpixel((10, 5)), RED)
            assert is_close(image.getpixel((10, 35)), WHITE)


def swapped_profile() -> bytes:
    """Return a profile in which red and blue have changed places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


@pytest.mark.parametrize("picture_format", FORMATS)
def test_colour_profile_is_applied(picture_format: str) -> None:
    for image, other in ((OPAQUE, WHITE), (TRANSPARENT, CLEAR)):
        name = "webp" if picture_format == "png" else "png"
        data = encode(image, name, icc_profile=swapped_profile())
        converted = decode(convert(data, picture_format)).convert("RGBA")
        assert "icc_profile" not in converted.info
        left: Any = converted.getpixel((5, 10))
        right: Any = converted.getpixel((35, 10))
        assert (left[2] > 240, left[0] < 60) == (True, True), left
        assert right[3] == (0 if other is CLEAR and picture_format != "jpeg" else 255)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damaged_and_unfitting_profiles_are_ignored(mode: str) -> None:
    for profile in (b"no profile", swapped_profile()[:300]):
        data = encode(OPAQUE.convert(mode), "jpeg", icc_profile=profile)
        assert is_close(decode(convert(data, "webp")).getpixel((35, 10)), WHITE)


def test_quality_is_honoured() -> None:
    for picture_format in ("webp", "jpeg"):
        sizes = [len(convert(encode(NOISE, "png"), picture_format, q)) for q in (30, 60, 90)]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("picture_format", FORMATS)
def test_quality_goes_down_before_the_picture_is_scaled(picture_format: str) -> None:
    data = encode(NOISE, "gif" if picture_format == "png" else "png")
    whole = len(convert(data, picture_format))
    lower = convert(data, picture_format, limit=whole - 1)
    assert len(lower) < whole
    assert decode(lower).size == NOISE.size
    smaller = convert(data, picture_format, limit=whole // 8)
    assert whole // 16 < len(smaller) <= whole // 8
    width, height = decode(smaller).size
    assert width < NOISE.width
    assert abs(width - 2 * height) <= 2
    assert len(convert(data, picture_format, limit=1000)) <= 1000


def test_quality_set_below_the_least_is_kept() -> None:
    data = encode(NOISE, "png")
    small = convert(data, "webp", 20, limit=len(convert(data, "webp", 20)) - 1)
    assert decode(small).width < NOISE.width


def test_original_format_is_left_only_by_pictures_too_large() -> None:
    for image, name, becomes in [
        (NOISE, "jpeg", "jpeg"),
        (NOISE, "webp", "webp"),
        (NOISE, "png", "jpeg"),
        (NOISE, "gif", "jpeg"),
        (NOISE.convert("RGBA"), "png", "jpeg"),
        (Image.merge("RGBA", (*NOISE.split(), NOISE.getchannel(0))), "png", "webp"),
    ]:
        data, media_type = encode(image, name), f"image/{name}"
        assert not Converter("original", 90, len(data)).is_needed(data, media_type)
        assert Converter("original", 90, len(data) - 1).is_needed(data, media_type)
        converted = convert(data, "original", limit=len(data) - 1)
        assert media_type_of(converted) == f"image/{becomes}"
        assert Converter(name, 90, None).is_needed(data, media_type) is False
        assert Converter("webp", 90, None).is_needed(data, "image/gif")


def why(data: bytes) -> str:
    """Return why a picture cannot be converted."""
    name = str(media_type_of(data)).removeprefix("image/")
    with pytest.raises(Inconvertible) as caught:
        convert(data, "png" if name == "jpeg" else "jpeg")
    return str(caught.value)


@pytest.mark.parametrize("name", ["gif", "png", "webp"])
def test_animation_is_left_as_it_is(name: str) -> None:
    frames = {"save_all": True, "append_images": [OPAQUE.rotate(180)]}
    assert why(encode(OPAQUE, name, **frames)) == "is animated"


def with_size(data: bytes, at: int, size: bytes) -> bytes:
    return data[:at] + size + data[at + 4 :]


SIDE = 7072  # its square is just above 50 million
HUGE = {
    "PNG": raw_png(SIDE, SIDE, 8, 0, b""),
    "JPEG": with_size(JPEG, JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", SIDE, SIDE)),
    "GIF": with_size(encode(OPAQUE, "gif"), 6, b"\xff" * 4),
    "WebP": with_size(encode(OPAQUE, "webp"), 26, struct.pack("<HH", 16383, 16383)),
}


@pytest.mark.parametrize("name", HUGE)
def test_picture_over_50_megapixels_is_not_decoded(name: str) -> None:
    assert SIDE**2 > MAX_PIXELS > (SIDE - 1) ** 2
    assert why(HUGE[name]) == "has over 50 megapixels"


def test_jpeg_of_over_100_scans_is_not_decoded() -> None:
    data = encode(OPAQUE, "jpeg", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    head, scan, rest = data[:start], data[start:end], data[end:]
    false_end = b"\xff\xfe\0\4\xff\xd9"  # in a comment
    for many in (head + scan * 120 + rest, head + false_end + scan * 120 + rest):
        assert why(many) == "has over 100 scans"
        with pytest.raises(Inconvertible, match="scans"):
            thumbnail(io.BytesIO(many), "image/jpeg")
    assert convert(head + scan * 80 + rest + b"\xff\xda\0\2" * 200, "webp")


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_metadata_that_would_fill_the_memory_is_not_read(name: str) -> None:
    """Each of these entries names the whole of the EXIF data as its value."""
    entries = [struct.pack(">HHII", 0x9000 + n, 7, 12 * 501, 0) for n in range(501)]
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 501) + b"".join(entries)
    assert why(encode(OPAQUE, name, exif=exif)) == "has too much metadata"


def test_compressed_metadata_of_a_png_is_not_unpacked() -> None:
    text, profile = zlib.compress(bytes(10**6)), zlib.compress(bytes(3 * 10**7))
    texts = [b"zTXtk%d\0\0" % number + text for number in range(70)]
    data = encode(OPAQUE, "png")
    pixels = data.index(b"IDAT") - 4
    for chunks in (texts, [b"iCCPk\0\0" + profile]):
        bomb = data[:pixels] + b"".join(map(png_chunk, chunks)) + data[pixels:]
        assert why(bomb) == "cannot be read or written (ValueError)"


def test_jpeg_of_many_segments_is_not_read() -> None:
    data = encode(OPAQUE, "jpeg")
    for segment in (b"\xff\xe1\0\x0aExif\0\0ab" * 3, b"\xff\xfe\0\2" * 2001):
        assert why(data[:2] + segment + data[2:]) == "has too much metadata"


BROKEN = "cannot be read or written (OSError)"
# Pillow would warn of its metadata, and warnings are errors here.
ODD = encode(OPAQUE, "jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\x01\0\x02")


def test_damaged_picture_is_left_as_it_is() -> None:
    pixels = zlib.compress(bytes(1 + 3 * SIZE[0]) * SIZE[1])
    assert why(raw_png(*SIZE, 8, 2, pixels[:-20])) == BROKEN
    assert why(raw_png(*SIZE, 8, 2, b"no pixels")) == BROKEN


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([ODD, *(data for data, *_ in SOURCES.values())]),
    st.lists(st.tuples(st.integers(12, 2000), st.integers(0, 255)), max_size=4),
    st.sampled_from(FORMATS),
)
def test_damage_never_raises_anything_else(
    data: bytes, changes: list[tuple[int, int]], picture_format: str
) -> None:
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    media_type = media_type_of(bytes(damaged))
    if media_type is None:
        return
    with suppress(Inconvertible):
        assert media_type_of(convert(bytes(damaged), picture_format, limit=1000))
    with suppress(Inconvertible):
        assert media_type_of(thumbnail(io.BytesIO(damaged), media_type))


@pytest.mark.parametrize("name", ["png", "jpeg"])
def test_thumbnail_fits_into_320_pixels(name: str) -> None:
    sizes = {(1024, 768): (320, 240), (100, 1000): (32, 320), (9, 5): (9, 5), (1, 900): (1, 320)}
    for size, expected in sizes.items():
        data = encode(Image.new("RGB", size, RED), name)
        image = decode(thumbnail(io.BytesIO(data), f"image/{name}"))
        assert (image.format, image.size) == ("WEBP", expected)
        assert is_close(image.convert("RGB").getpixel((0, 0)), RED)


def test_one_picture_is_converted_at_a_time() -> None:
    is_asked, is_open = threading.Event(), threading.Event()

    class SlowFile(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            is_asked.set()
            assert is_open.wait(10)
            return super().read(size)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(thumbnail, SlowFile(png()), "image/png")
        assert is_asked.wait(10)
        second = pool.submit(convert, png(), "webp")
        with pytest.raises(TimeoutError):
            second.result(0.05)
        is_open.set()
        assert first.result(10)
        assert second.result(10)


STAGES = r'generate;dur=\d+;desc="ok", convert;dur=\d+;desc="(ok|failed)"'


def test_picture_is_converted_once_when_it_is_stored(serve: Serve, tmp_path: Path) -> None:
    service = serve(PICTURE_FORMAT="webp")
    service.backend.say(drawing(encode(NOISE, "png")))
    answers = [service.picture("apple"), service.picture("apple")]
    for got in answers:
        assert media_type_of(got.body) == got.headers["Content-Type"] == "image/webp"
        assert got.body == answers[0].body
        assert got.headers["Content-Disposition"] == 'inline; filename="apple.webp"'
    assert re.fullmatch(STAGES, answers[0].headers["Server-Timing"])
    [stored] = (tmp_path / "cache").glob(f"{ImageRequest('apple').key}*")
    assert (stored.suffix, stored.read_bytes()) == (".webp", answers[0].body)


def test_picture_is_converted_before_it_is_uploaded(serve: Serve, server: MakeServer) -> None:
    host = server()
    host.say(Say({"image": {"url": "https://i.example.com/a.webp"}}))
    service = serve(PICTURE_FORMAT="webp", **hosting_settings(host))
    assert service.picture("apple").status == 302
    [sent] = host.seen
    assert re.search(rb'(?s)\.webp"\r\nContent-Type: image/webp\r\n\r\nRIFF', sent.body)


def test_picture_that_cannot_be_converted_is_kept_as_it_came(
    serve: Serve, backend: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    moving = encode(OPAQUE, "gif", save_all=True, append_images=[OPAQUE.rotate(180)])
    damaged = raw_png(*SIZE, 8, 2, b"no pixels")
    backend.say(*map(drawing, (moving, moving, damaged, damaged)))
    service = serve(backend, PICTURE_FORMAT="webp", PICTURE_MAX_BYTES="1000")
    for seed, data in enumerate((moving, moving, damaged, damaged)):
        got = service.picture("apple", seed=seed)
        assert (got.body, got.headers["Content-Type"]) == (data, media_type_of(data))
        assert re.fullmatch(STAGES, got.headers["Server-Timing"])
    animated, broken = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "is animated" in animated
    assert BROKEN in broken
