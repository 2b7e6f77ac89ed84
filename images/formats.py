"""Picture formats: the bytes decide which one it is, and whether the picture is complete."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}

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
    for magic, media_type, is_complete in _FORMATS:
        if data.startswith(magic):
            try:
                return media_type if is_complete(data) else None
            except (struct.error, IndexError):  # reading past the end: the picture is cut
                return None
    return None


def announced_type(head: bytes) -> str | None:
    """Return the media type of a picture by its first bytes, which need not be complete."""
    found = (media_type for magic, media_type, _ in _FORMATS if head.startswith(magic))
    return next(found, None)


def foreign_type(data: bytes) -> str | None:
    """Return the name of a format that backends send and no picture here has: SVG or AVIF."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!")) and b"<svg" in head:
        return "SVG"
    return "AVIF" if data[4:12] in (b"ftypavif", b"ftypavis") else None


def _is_complete_png(data: bytes) -> bool:
    """Walk the chunks to IEND (https://www.w3.org/TR/png-3/#5Chunk-layout)."""
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR" or not (width and height):
        return False
    position = 8
    for _ in range(_MAX_BLOCKS):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND":
            return bool(position <= len(data))
    return False


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9


def _is_complete_jpeg(data: bytes) -> bool:
    """Walk the segments to the pixels (ITU-T T.81, annex B), then look for the end marker.

    A thumbnail's end marker lies inside a segment. Among the pixels FF is escaped, so there
    FF D9 can only be the end.
    """
    position, has_size = 2, False
    for _ in range(_MAX_BLOCKS):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (_JPEG_SCAN, _JPEG_END):
            return has_size and data.rfind(b"\xff\xd9", position) >= 0
        if marker in _JPEG_FRAMES:
            has_size = all(struct.unpack_from(">HH", data, position + 5))
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + length
    return False


_GIF_IMAGE, _GIF_EXTENSION, _GIF_TRAILER = b",!;"


def _is_complete_gif(data: bytes) -> bool:
    """Walk the blocks to the trailer (https://www.w3.org/Graphics/GIF/spec-gif89a.txt)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    blocks = islice(_gif_blocks(data, 13 + _gif_colours(flags)), _MAX_BLOCKS)
    return bool(width and height) and _GIF_TRAILER in blocks


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


def _is_complete_webp(data: bytes) -> bool:
    """Check the first chunk, and that no bytes are missing that the RIFF header announces.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    riff_length, name, kind, length = struct.unpack_from("<I4s4sI", data, 4)
    is_whole = name == b"WEBP" and 20 + length <= 8 + riff_length <= len(data)
    return is_whole and _has_webp_size(data, kind)


def _has_webp_size(data: bytes, kind: bytes) -> bool:
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return data[23:26] == b"\x9d\x01\x2a" and bool(width & 0x3FFF and height & 0x3FFF)
    # The other two hold the size less one: it is never 0.
    return kind == b"VP8X" or (kind == b"VP8L" and data[20] == 0x2F)


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], bool]], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png", _is_complete_png),
    (b"\xff\xd8\xff", "image/jpeg", _is_complete_jpeg),
    (b"GIF87a", "image/gif", _is_complete_gif),
    (b"GIF89a", "image/gif", _is_complete_gif),
    (b"RIFF", "image/webp", _is_complete_webp),
)
