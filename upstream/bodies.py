"""Bodies of answers: read within a limit, and a picture in base64 cut out of its JSON."""

from __future__ import annotations

import binascii
import re
import threading
import time
import zlib
from contextlib import suppress
from io import BytesIO
from itertools import islice
from typing import Any

import urllib3

from images.formats import announced_type
from upstream.failure import UpstreamError, Why

# An error is read for its reason, and no reason is longer.
ERROR_LIMIT = 2**16
# This takes the place of a picture that was cut out of the JSON.
STAND_IN = "(picture)"
# Decoding holds the interpreter: for 0.6 ms a piece.
_PIECE = 2**18
# One thread at a time: otherwise a hit waits for a piece of each, and all hold text and bytes.
_DECODING = threading.Lock()

# How PNG, JPEG, GIF and WebP begin in base64, of either alphabet, escaped as JSON or URLs do it.
_SLASH = rb"(?:\\?/|_|%2[Ff]|\\u002[Ff])"
_MAGIC = rb"(?:iVBORw0KGg|%b9j%b|R0lGOD|UklGR)" % (_SLASH, _SLASH)
_URI_PREFIX = rb"data:[^\"',]{0,100},"
# Only long ones are worth it. A gateway may have put its own prefix before another's.
_LONG = rb'(?:[ \r\n\t]|\\[nrt]){0,9}(?=%b[^"]{4000})' % _MAGIC
_PICTURE = re.compile(rb'"(?:%b){0,2}%b' % (_URI_PREFIX, _LONG))
# Looking behind each quote of megabytes of them would hold the interpreter.
_MAX_QUOTES = 250_000
# Within a text, such as the Markdown of a chat, and what is base64 there.
_PICTURE_IN_TEXT = re.compile(_URI_PREFIX + _LONG)
_IN_TEXT = re.compile(rb"(?:[A-Za-z0-9+/=_%-]++|\\[/u])*+")
_JSON = re.compile(rb"[\xef\xbb\xbf\s]*[{\[]")

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_BLANK = b" \t\r\n"
_ESCAPES = {
    **{rb"\/": b"/", rb"\n": b"", rb"\r": b"", rb"\t": b""},
    **{rb"\u002b": b"+", rb"\u002B": b"+", rb"\u002f": b"/", rb"\u002F": b"/", rb"\u003d": b"="},
    **{rb"\u003D": b"=", b"%2b": b"+", b"%2B": b"+", b"%2f": b"/", b"%2F": b"/", b"%3d": b"="},
    **{b"%3D": b"=", b"%0a": b"", b"%0A": b"", b"%0d": b"", b"%0D": b"", b"%20": b""},
}
_LONGEST_ESCAPE = 6
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = zlib.MAX_WBITS + 16


def read_body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """Return the body of at most `limit` bytes; of an error the first 64 KB.

    Raises UpstreamError for a larger one.
    """
    if response.status >= 400:
        return _beginning(response, ERROR_LIMIT)
    if (response.length_remaining or 0) > limit:
        raise _too_large(limit)
    is_plain = "Content-Encoding" not in response.headers
    # All at once, into a buffer of the announced length, if there is one.
    at_once = is_plain and response.length_remaining
    body = response.read() if at_once else _beginning(response, limit + 1)
    if body.startswith(_GZIP):  # not announced, or packed twice
        body = _unpacked(zlib.decompressobj(_GZIP_WINDOW), body, limit + 1)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def cut_picture(body: bytes) -> tuple[bytes, bytes | None]:
    """Cut a long picture in base64 out of a body: the first of JSON, the last of an event stream.

    Returns the body, with STAND_IN for the base64 and its data-URI prefix, and the decoded bytes.
    Without a picture that can be decoded, returns the body unchanged, and None.
    """
    place = None if announced_type(body) else _place(body)
    picture = decode_base64(body, *place[1:]) if place else None
    if not place or picture is None:
        return body, None
    return b"".join((body[: place[0]], STAND_IN.encode(), body[place[2] :])), picture


def decode_base64(text: bytes, start: int = 0, end: int | None = None) -> bytes | None:
    """Return the base64 at a place of a text as bytes, or None if that is not base64.

    It may have the URL-safe alphabet, white space, no padding, or the escapes of JSON and URLs.
    """
    with _DECODING:
        try:
            return _decoded(memoryview(text)[start:end])
        except binascii.Error:
            return None


def has_more_values(body: bytes, most: int) -> bool:
    """Return whether JSON has more than `most` values, at a low estimate and without parsing it."""
    return _has_more(body, (b",", b"[", b"\n"), most)


def _has_more(body: bytes, signs: tuple[bytes, ...], most: int) -> bool:
    count = 0
    # In pieces: counting can stop early, and other threads wait meanwhile.
    for start in range(0, len(body), _PIECE):
        count += sum(body.count(sign, start, start + _PIECE) for sign in signs)
        if count > most:
            return True
    return False


def _place(body: bytes) -> tuple[int, int, int] | None:
    """Return the start of a picture and its prefix, and the start and the end of its base64."""
    if _has_more(body, (b'"',), _MAX_QUOTES):
        return None
    most = 1 if _JSON.match(body) else None
    if pictures := list(islice(_PICTURE.finditer(body), most)):
        begin = pictures[-1].end()
        end = body.find(b'"', begin)
        end -= body[end - 1 : end] == b"\\"  # within HTML the quote is escaped
        return (pictures[-1].start() + 1, begin, end) if end > 0 else None
    at = body.find(b";base64,")
    found = _PICTURE_IN_TEXT.search(body, max(0, at - 100), at + 5000) if at > 0 else None
    if not found:
        return None
    begin = found.end()
    at, end = begin - _PIECE, begin
    while end - at >= _PIECE and (more := _IN_TEXT.match(body, end, end + _PIECE + 1)):
        at, end = end, more.end()
    return found.start(), begin, end


def _decoded(text: memoryview) -> bytes:
    """Return base64 as bytes. Raises binascii.Error."""
    picture, rest = BytesIO(), b""
    for at in range(0, len(text), _PIECE):
        if at:
            # Otherwise other threads wait 5 ms for the interpreter whenever they have released it.
            time.sleep(0.0001)
        piece, is_last = rest + bytes(text[at : at + _PIECE]), at + _PIECE >= len(text)
        if (decoded := _regular(piece, is_last=is_last)) is not None:
            rest = b""
        else:
            groups, rest = _groups(piece, is_last=is_last)
            decoded = binascii.a2b_base64(groups, strict_mode=True)
        picture.write(decoded)
    return picture.getvalue()


def _regular(piece: bytes, *, is_last: bool) -> bytes | None:
    """Return a piece of base64 as bytes if it is whole groups as the standard has them."""
    if len(piece) % 4 or (piece.endswith(b"=") and not is_last):
        return None
    with suppress(binascii.Error):
        return binascii.a2b_base64(piece, strict_mode=True)
    return None


def _groups(text: bytes, *, is_last: bool) -> tuple[bytes, bytes]:
    """Return the whole groups of a piece of base64, as the standard has them, and the rest."""
    rest = b""
    if b"\\" in text or b"%" in text:
        at = max(text.rfind(sign, 1 - _LONGEST_ESCAPE) for sign in (b"\\", b"%"))
        if at >= 0 and not is_last:
            text, rest = text[:at], text[at:]
        for escape, plain in _ESCAPES.items():
            text = text.replace(escape, plain)
    text = text.translate(_TO_STANDARD, _BLANK)
    if is_last:
        text = text.rstrip(b"=")
        return text + b"=" * (-len(text) % 4), b""
    whole = len(text) // 4 * 4
    return text[:whole], text[whole:] + rest


def _beginning(response: urllib3.BaseHTTPResponse, size: int) -> bytes:
    """Return the first `size` bytes of an answer, or all if it has no more.

    Unpacked, since some servers compress although we ask for identity.
    """
    body, unpacker = BytesIO(), None
    coding = response.headers.get("Content-Encoding", "").lower()
    # A piece may be larger than asked for.
    while (left := size - body.tell()) > 0:
        piece = response.read1(min(2**16, left))
        if not piece:
            break
        if not body.tell():
            unpacker = unpacker or _unpacker(coding, piece)
        body.write(_unpacked(unpacker, piece, left) if unpacker else piece)
    return body.getvalue()


def _unpacker(coding: str, piece: bytes) -> Any:
    """Return what unpacks an answer that begins with `piece`, or None if it is not packed.

    `coding`, the Content-Encoding, is wrong at times: the bytes decide.
    """
    if _GZIP.startswith(piece[:2]):
        return zlib.decompressobj(_GZIP_WINDOW)
    if "deflate" not in coding or _JSON.match(piece) or announced_type(piece):
        return None
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):  # with its header, or without
        with suppress(zlib.error):
            zlib.decompressobj(window).decompress(piece, 1)
            return zlib.decompressobj(window)
    return None


def _unpacked(unpacker: Any, piece: bytes, most: int) -> bytes:
    try:
        unpacked: bytes = unpacker.decompress(piece, most)
    except zlib.error as error:
        raise urllib3.exceptions.DecodeError from error
    return unpacked


def _too_large(limit: int) -> UpstreamError:
    return UpstreamError(f"its answer is larger than {limit} bytes", Why.TOO_LARGE)
