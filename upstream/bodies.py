"""Bodies of answers: read within a limit, and a picture in base64 decoded as it arrives."""

from __future__ import annotations

import binascii
import codecs
import re
import threading
from collections.abc import Iterator
from io import BytesIO
from itertools import chain

import urllib3

from upstream.failure import UpstreamError, Why

# An error is read for its reason, and no reason is longer.
ERROR_LIMIT = 2**16
# Few calls for a picture, yet no other thread waits longer than a piece takes to decode: 0.6 ms.
PIECE = 2**18
# This takes the place of a picture that was cut out of the JSON.
STAND_IN = "(picture)"
_SHORTEST = 4096
# Decoding holds the interpreter. One thread at a time, or a hit waits for a piece of each.
_DECODING = threading.Lock()
# A URL has a colon and a prompt has spaces. PHP escapes the slashes of base64.
_PICTURE = re.compile(rb'"(?:data:[^",]{0,100},)?(?=[A-Za-z0-9+/\\]{%d})' % _SHORTEST)


def read_body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """Return the body of at most `limit` bytes; of an error the first 64 KB.

    Raises UpstreamError for a larger one.
    """
    if response.status >= 400:
        return _beginning(response, ERROR_LIMIT)
    if (response.length_remaining or 0) > limit:
        raise _too_large(limit)
    if response.length_remaining and "Content-Encoding" not in response.headers:
        # All at once, into a buffer of the announced length.
        return response.read(response.length_remaining)
    body = _beginning(response, limit + 1)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def read_picture(response: urllib3.BaseHTTPResponse, limit: int) -> tuple[bytes, bytes | None]:
    """Return the body as `read_body` does, and the picture that its JSON held in base64.

    The text of the picture is never held as a whole, and is gone from the body.
    """
    is_image = response.headers.get("Content-Type", "").lower().startswith("image/")
    if response.status >= 400 or is_image:
        return read_body(response, limit), None
    return cut_picture(_pieces(response, limit))


def cut_picture(pieces: Iterator[bytes]) -> tuple[bytes, bytes | None]:
    """Cut the first long base64 string out of a JSON body that comes in pieces.

    Returns the body, with STAND_IN for the string, and the decoded bytes. If there is no such
    string, or its base64 is irregular, returns the body as it came, and None.
    """
    body = bytearray()
    for piece in pieces:
        seen = max(0, len(body) - 2 * _SHORTEST)
        body += piece
        if is_json(body) and (found := _PICTURE.search(body, seen)):
            break
    else:
        return bytes(body), None
    before, begun = body[: found.start() + 1], body[: found.end()]
    decoder = _Decoder()
    try:
        is_whole = any(map(decoder.feed, chain((bytes(body[found.end() :]),), pieces)))
    except binascii.Error:
        is_whole = False
    picture = decoder.picture.getvalue()
    after = (decoder.undecoded, *pieces)
    if is_whole:
        return b"".join((before, STAND_IN.encode(), b'"', *after)), picture
    return b"".join((begun, binascii.b2a_base64(picture, newline=False), *after)), None


def has_more_values(body: bytes, most: int) -> bool:
    """Say whether JSON has more than `most` values, at a low estimate and without parsing it."""
    count = 0
    # Piece by piece, since it need not be counted to the end, and other threads wait.
    for start in range(0, len(body), PIECE):
        count += sum(body.count(sign, start, start + PIECE) for sign in (b",", b"["))
        if count > most:
            return True
    return False


def is_json(body: bytes | bytearray) -> bool:
    """Say whether a body begins as a JSON object or array does."""
    return body[:64].removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")


class _Decoder:
    """Decodes a JSON string of base64 that comes in pieces."""

    def __init__(self) -> None:
        self.picture = BytesIO()
        self.undecoded = b""

    def feed(self, piece: bytes) -> bool:
        """Take a piece; return whether the string has ended. Raises binascii.Error.

        `undecoded` is then what follows the closing quote, or the rest from the fault on.
        """
        self.undecoded += piece
        text, quote, after = self.undecoded.partition(b'"')
        text = text.replace(rb"\/", b"/")
        # Only the last four characters may be padded, and an escape may be cut in two.
        end = len(text) if quote else max(0, len(text) // 4 - 1) * 4
        with _DECODING:
            self.picture.write(binascii.a2b_base64(text[:end], strict_mode=True))
        self.undecoded = after if quote else text[end:]
        return bool(quote)


def _pieces(response: urllib3.BaseHTTPResponse, limit: int) -> Iterator[bytes]:
    """Yield a body of at most `limit` bytes. Raises UpstreamError for a larger one."""
    if (response.length_remaining or 0) > limit:
        raise _too_large(limit)
    read = 0
    while piece := response.read(min(PIECE, response.length_remaining or PIECE)):
        read += len(piece)
        if read > limit:
            raise _too_large(limit)
        yield piece


def _beginning(response: urllib3.BaseHTTPResponse, size: int) -> bytes:
    """Return the first `size` bytes of an answer, or all if it has no more.

    Decoded although identity was asked for, since some servers compress all the same.
    """
    body = bytearray()
    while len(body) < size and (
        piece := response.read1(min(2**16, size - len(body)), decode_content=True)
    ):
        body += piece
    return bytes(body)


def _too_large(limit: int) -> UpstreamError:
    return UpstreamError(f"its answer is larger than {limit} bytes", Why.TOO_LARGE)
