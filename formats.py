"""Picture formats: which one the bytes are, decided by the bytes themselves."""

from __future__ import annotations

import struct
from collections.abc import Callable

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}


def image_type(data: bytes) -> str | None:
    """Return the media type of a PNG, JPEG, WebP or GIF, or None for anything else.

    The magic bytes decide and the header must be plausible: whole, with dimensions above 0.
    Names and Content-Types of the other side lie.
    """
    for magic, media_type, dimensions in _FORMATS:
        if data.startswith(magic):
            try:
                return media_type if all(dimensions(data)) else None
            except (struct.error, IndexError):
                return None
    return None


def _png_dimensions(data: bytes) -> tuple[int, ...]:
    return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" else (0,)


def _gif_dimensions(data: bytes) -> tuple[int, ...]:
    return struct.unpack_from("<HH", data, 6)


def _webp_dimensions(data: bytes) -> tuple[int, ...]:
    if data[8:12] != b"WEBP":
        return (0,)
    kind = data[12:16]
    if kind == b"VP8X":  # width - 1 and height - 1, 24 bits each: never 0
        return (int(len(data) >= 30),)
    if kind == b"VP8L":  # a signature byte, then 14 bits each, one less than the size
        return (int(len(data) >= 25 and data[20] == 0x2F),)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return (0,)


def _jpeg_dimensions(data: bytes) -> tuple[int, ...]:
    """Walk the segments up to the frame header (SOF), which holds height and width."""
    position = 2
    # Photographs have a few hundred segments; 32 MiB of empty ones would take seconds.
    for _ in range(10_000):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack_from(">HH", data, position + 5)
        elif marker == 0xDA:  # pixels before any frame header
            break
        else:
            position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])
    return (0,)


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], tuple[int, ...]]], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png", _png_dimensions),
    (b"\xff\xd8\xff", "image/jpeg", _jpeg_dimensions),
    (b"GIF87a", "image/gif", _gif_dimensions),
    (b"GIF89a", "image/gif", _gif_dimensions),
    (b"RIFF", "image/webp", _webp_dimensions),
)
