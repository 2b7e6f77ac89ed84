"""JSON with pictures in base64, made piece by piece: it takes no memory, however large they are."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

# 64 KiB of base64. It is a multiple of 3, so that the base64 of the pieces is that of the whole.
_PIECE = 3 * 2**14


@dataclass(frozen=True, slots=True)
class Encoded:
    """The base64 of a file from its beginning, which has `size` bytes."""

    file: BinaryIO
    size: int

    def __len__(self) -> int:
        return -(-self.size // 3) * 4

    def __iter__(self) -> Iterator[bytes]:
        """Raises OSError for a file that is shorter: the answer ends early, and is not JSON."""
        for start in range(0, self.size, _PIECE):
            piece = self.file.read(_PIECE)
            if len(piece) != min(_PIECE, self.size - start):
                raise OSError("a picture is shorter than its row says")
            yield b64encode(piece)


Part = bytes | Encoded


def with_base64(picture: Encoded, fields: Mapping[str, Any]) -> list[Part]:
    """Return a JSON object that holds a picture as `b64_json`, and at least one of `fields`."""
    return [b'{"b64_json": "', picture, b'", ' + json.dumps(fields).encode()[1:]]


def joined(items: Sequence[Sequence[Part]], before: bytes, after: bytes) -> list[Part]:
    """Return the items with commas between them."""
    parts: list[Part] = [before]
    for number, item in enumerate(items):
        parts += [b", ", *item] if number else item
    return [*parts, after]


def pieces(parts: Sequence[Part]) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            yield from part
