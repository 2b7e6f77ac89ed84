"""Picture formats: the bytes decide which one it is, its size, and whether it is complete."""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}

# Width and height.
Pixels = tuple[int, int]

# Enough for a GIF of 60 MiB, whose blocks are the smallest. 32 MiB of empty blocks would take
# seconds to walk.
_MAX_BLOCKS = 250_000


class Inconvertible(Exception):
    """A picture cannot be converted. The text says why: "is animated"."""


def media_type_of(data: bytes) -> str | None:
    """Return the media type of a complete PNG, JPEG, WebP or GIF, or None for anything else.

    Only the bytes count, since file names and Content-Types are often wrong. Width and height
    must be above 0 and the format's end marker must be present. Bytes after it are allowed:
    cameras append previews and videos. Pixels are not decoded.
    """
    return announced_type(data) if pixels_of(data) else None


def announced_type(head: bytes) -> str | None:
    """Return the media type of a picture by its first bytes, which need not be complete."""
    return next((name for magic, name, _ in _FORMATS if head.startswith(magic)), None)


def pixels_of(data: bytes) -> Pixels | None:
    """Return width and height of a complete picture, or None for anything else."""
    with suppress(struct.error, IndexError):  # reading past the end: the picture is cut
        for magic, _, read in _FORMATS:
            if data.startswith(magic) and (pixels := read(data)) and all(pixels):
                return pixels
    return None


def foreign_type(data: bytes) -> str | None:
    """Return the name of a format that backends send and no picture here has: SVG or AVIF."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!")) and b"<svg" in head:
        return "SVG"
    return "AVIF" if data[4:12] in (b"ftypavif", b"ftypavis") else None


# Each of these returns the size of a complete picture, and None for another.


def _read_png(data: bytes) -> Pixels | None:
    """Walk the chunks to IEND (https://www.w3.org/TR/png-3/#5Chunk-layout)."""
    pixels: Pixels = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        return None
    position = 8
    for _ in range(_MAX_BLOCKS):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND":
            return pixels if position <= len(data) else None
    return None


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9


def _read_jpeg(data: bytes) -> Pixels | None:
    """Walk the segments to the pixels (ITU-T T.81, annex B), then look for the end marker.

    A thumbnail's end marker lies inside a segment. Among the pixels FF is escaped, so there
    FF D9 can only be the end.
    """
    position, pixels = 2, None
    for _ in range(_MAX_BLOCKS):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (_JPEG_SCAN, _JPEG_END):
            return pixels if data.rfind(b"\xff\xd9", position) >= 0 else None
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            pixels = width, height
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + length
    return None


_GIF_IMAGE, _GIF_EXTENSION, _GIF_TRAILER = b",!;"


def _read_gif(data: bytes) -> Pixels | None:
    """Walk the blocks to the trailer (https://www.w3.org/Graphics/GIF/spec-gif89a.txt)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    blocks = islice(_gif_blocks(data, 13 + _gif_colours(flags)), _MAX_BLOCKS)
    return (width, height) if _GIF_TRAILER in blocks else None


def _gif_blocks(data: bytes, position: int) -> Iterator[int]:
    """Yield the kind of each block up to the trailer, and 0 for each of its sub-blocks."""
    while (kind := data[position]) in (_GIF_IMAGE, _GIF_EXTENSION):
        is_image = kind == _GIF_IMAGE
        position += 11 + _gif_colours(data[position + 9]) if is_image else 2
        while length := data[position]:
            position += 1 + length
            yield 0
        position += 1
        yield kind
    yield kind


def _gif_colours(flags: int) -> int:
    """Return the length in bytes of the colour table that a descriptor's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_webp(data: bytes) -> Pixels | None:
    """Check the first chunk, and that no bytes are missing that the RIFF header announces.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    riff_length, name, kind, length = struct.unpack_from("<I4s4sI", data, 4)
    is_whole = name == b"WEBP" and 20 + length <= 8 + riff_length <= len(data)
    return _webp_pixels(data, kind) if is_whole else None


def _webp_pixels(data: bytes, kind: bytes) -> Pixels | None:
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    # The other two hold the size less one.
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        sides = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        return next(sides), next(sides)
    return None


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], Pixels | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png", _read_png),
    (b"\xff\xd8\xff", "image/jpeg", _read_jpeg),
    (b"GIF87a", "image/gif", _read_gif),
    (b"GIF89a", "image/gif", _read_gif),
    (b"RIFF", "image/webp", _read_webp),
)
