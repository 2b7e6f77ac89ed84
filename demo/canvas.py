"""A canvas that fills smooth outlines and becomes a PNG, with the standard library alone.

Only edge pixels cost Python time. The runs between them are slices, and a translucent run is one
`bytes.translate`, which is why red, green and blue are kept apart.
"""

import math
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

Colour = tuple[int, int, int]
Outline = list[tuple[float, float]]
Steps = defaultdict[int, float]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour `share` (0..1) of the way from the first to the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@lru_cache(maxsize=8192)
def blend_table(value: int, weight: int) -> bytes:
    """Return what each byte becomes when `value` is laid over it with a weight of 0..255."""
    return bytes((old * (255 - weight) + value * weight + 127) // 255 for old in range(256))


def cut_edges(outline: Outline, height: int) -> Iterator[tuple[int, float, float, float]]:
    """Cut the outline's edges at each pixel row: (row, x at its top, x at its bottom, fall).

    The fall is how far the piece goes down, at most one row; negative where the edge goes up.
    """
    for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
        if y0 == y1:
            continue
        sign = 1 if y1 > y0 else -1
        if sign < 0:
            x0, y0, x1, y1 = x1, y1, x0, y0
        slope = (x1 - x0) / (y1 - y0)
        for row in range(max(0, math.floor(y0)), min(height, math.ceil(y1))):
            top = row if row > y0 else y0
            bottom = row + 1 if row + 1 < y1 else y1
            yield row, x0 + (top - y0) * slope, x0 + (bottom - y0) * slope, sign * (bottom - top)


def add_piece(steps: Steps, x0: float, x1: float, fall: float) -> None:
    """Add a piece of edge to its row's steps: column -> how much more is covered than before it.

    Their running sum is the exact covered area of each pixel (the method of font-rs).
    """
    left, right = (x0, x1) if x0 < x1 else (x1, x0)
    column, last = int(left), int(right)
    steepness = 0.0 if column == last else fall / (right - left)
    while column < last:
        share = steepness * (column + 1 - left)
        inner = (left + 1 - column) / 2
        steps[column] += share * (1 - inner)
        steps[column + 1] += share * inner
        fall -= share
        column += 1
        left = column
    inner = (left + right) / 2 - column
    steps[column] += fall * (1 - inner)
    steps[column + 1] += fall * inner


class Canvas:
    """Pixels, black at first, painted over from back to front."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.unit = min(width, height)
        self._planes = [bytearray(width * height) for _ in range(3)]

    def fill(
        self, outline: Outline, top: Colour, bottom: Colour | None = None, alpha: float = 1.0
    ) -> None:
        """Paint the inside of an outline, shading from `top` to `bottom` where that is given."""
        rows: defaultdict[int, Steps] = defaultdict(lambda: defaultdict(float))
        wide = self.width
        for row, x0, x1, fall in cut_edges(outline, self.height):
            if not (0 <= x0 <= wide and 0 <= x1 <= wide):
                x0, x1 = min(max(x0, 0), wide), min(max(x1, 0), wide)
            add_piece(rows[row], x0, x1, fall)
        start = min(y for _, y in outline)
        extent = max(y for _, y in outline) - start
        colour = top
        for row, steps in rows.items():
            if bottom:
                colour = mix(top, bottom, min(max((row + 0.5 - start) / extent, 0.0), 1.0))
            self._fill_row(row, steps, colour, alpha * 255)

    def _fill_row(self, row: int, steps: Steps, colour: Colour, opacity: float) -> None:
        """Paint one row by its steps, with an opacity of 0..255."""
        offset = row * self.width
        covered, weight, start, full = 0.0, 0, 0, int(opacity + 0.5)
        for column in sorted(steps):
            if weight and start < self.width:
                self._fill_run(offset + start, offset + min(column, self.width), colour, weight)
            covered += steps[column]
            weight = min(int(abs(covered) * opacity + 0.5), full)
            start = column

    def _fill_run(self, start: int, end: int, colour: Colour, weight: int) -> None:
        """Blend a colour into the pixels from `start` up to `end`, with a weight of 1..255."""
        for plane, value in zip(self._planes, colour, strict=True):
            if end - start == 1:
                plane[start] += (value - plane[start]) * weight // 255
            elif weight == 255:
                plane[start:end] = bytes((value,)) * (end - start)
            else:
                plane[start:end] = plane[start:end].translate(blend_table(value, weight))

    def png(self) -> bytes:
        """Return the picture as a PNG file."""
        packer = zlib.compressobj(6)
        data = bytearray()
        line = bytearray(1 + 3 * self.width)
        for start in range(0, self.width * self.height, self.width):
            for channel, plane in enumerate(self._planes):
                line[1 + channel :: 3] = plane[start : start + self.width]
            data += packer.compress(line)
        data += packer.flush()
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(data)) + TAIL


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


IEND = chunk(b"IEND", b"")
TAIL = chunk(b"tEXt", b"Software\0Prompt Image Proxy demo") + IEND


def pad_png(png: bytes, size: int) -> bytes:
    """Return a canvas's PNG made `size` bytes long by a private chunk; a longer one as it is.

    A chunk takes at least 12 bytes. The text in the tail gives way to it, so any gap can be filled.
    """
    if len(png) >= size:
        return png
    head = png.removesuffix(TAIL)
    return head + chunk(b"paDd", bytes(size - len(head) - len(IEND) - 12)) + IEND
