"""What decoding a picture may cost beside its pixels, counted before Pillow decodes it.

A small file can keep a decoder busy for minutes, or fill the memory, without many pixels: by passes
over the same pixels, or by metadata of which Pillow makes a copy for each of its parts.

Chunks need no limit of their own: 240,000 of them, the most that images/formats.py lets pass, cost
Pillow 1.5 s in a PNG, and less in GIF and WebP.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from images.formats import Inconvertible

# Encoders make about ten. Each is a pass over all pixels.
MAX_SCANS = 100
# Of metadata. A colour profile has 255 at most; joining 40,000 of EXIF takes Pillow 8 s.
MAX_SEGMENTS = 300
MAX_EXIF = 2**16
# Each may name all of the EXIF data as its value, which Pillow copies.
MAX_EXIF_ENTRIES = 500

_SCAN, _END, _APP0, _APP1, _APP2 = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2
_DIRECTORIES = {_APP1: b"Exif\0\0", _APP2: b"MPF\0"}
# Among the pixels FF is escaped by 00; FF D0 to FF D7 are restart markers.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def check_jpeg(data: bytes) -> None:
    """Count the scans and segments of a complete JPEG. Raises Inconvertible."""
    scans = segments = exifs = 0
    for marker, segment in _segments(data):
        scans += marker == _SCAN
        segments += marker >= _APP0
        if scans > MAX_SCANS:
            raise Inconvertible(f"has over {MAX_SCANS} scans")
        magic = _DIRECTORIES.get(marker)
        if magic and segment.startswith(magic):
            exifs += marker == _APP1
            check_exif(segment.removeprefix(magic))
        if segments > MAX_SEGMENTS or exifs > 1:
            raise Inconvertible("has too much metadata")


def check_exif(exif: bytes) -> None:
    """Count the entries of the first directory of EXIF data. Raises Inconvertible."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (offset,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, offset)
    except struct.error:
        return  # Pillow ignores such data
    if len(exif) > MAX_EXIF or entries > MAX_EXIF_ENTRIES:
        raise Inconvertible("has too much metadata")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the contents of each segment, up to the end marker.

    As libjpeg does, it skips what stands between two segments.
    """
    position = 2
    while found := _MARKER.search(data, position):
        marker, position = data[found.end() - 1], found.end()
        if marker == _END:
            return
        if marker not in (0x01, 0xD8):  # these have no contents
            length = int.from_bytes(data[position : position + 2])
            yield marker, data[position + 2 : position + length]
            position += length
