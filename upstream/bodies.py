"""Bodies of answers: read within a limit, and a picture in base64 cut out of its JSON."""

from __future__ import annotations

import binascii
import json
import re
import threading
import time
import zlib
from io import BytesIO
from itertools import islice

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
# Within a text, such as the Markdown of a chat; these end it there.
_PICTURE_IN_TEXT = re.compile(_URI_PREFIX + _LONG)
_TEXT_ENDS = (b'"', rb"\"", rb"\n", b")", b" ", b">", b"'")
_JSON = re.compile(rb"[\xef\xbb\xbf\s]*[{\[]")

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_BLANK = b" \t\r\n"
_PERCENT = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b"", b"%20": b""}
_GZIP = b"\x1f\x8b"


def read_body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """Return the body of at most `limit` bytes, unpacked; of an error the first 64 KB.

    Raises UpstreamError for a larger one.
    """
    if response.status >= 400:
        return _unpacked(response, _beginning(response, ERROR_LIMIT), ERROR_LIMIT)
    if (response.length_remaining or 0) > limit:
        raise _too_large(limit)
    # All at once, into a buffer of the announced length, if there is one.
    body = response.read() if response.length_remaining else _beginning(response, limit + 1)
    if len(body) <= limit:
        body = _unpacked(response, body, limit + 1)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def cut_picture(body: bytes) -> tuple[bytes, bytes | None]:
    """Cut a long picture in base64 out of a body: the first of JSON, the last of an event stream.

    Returns the body, with STAND_IN for the base64 and its data-URI prefix, and the decoded bytes.
    If there is none, or it cannot be decoded, returns the body as it came, and None.
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
    end = len(text) if end is None else end
    with _DECODING:
        try:
            if text.find(b"\\", start, end) >= 0 or text.find(b"%", start, end) >= 0:
                return _decoded(memoryview(_unescaped(text[start:end])))
            return _decoded(memoryview(text)[start:end])
        except ValueError:
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
    end = len(body)
    for sign in _TEXT_ENDS:
        at = body.find(sign, found.end(), end)
        end = end if at < 0 else at
    return found.start(), found.end(), end


def _unescaped(text: bytes) -> bytes:
    """Return base64 without the escapes of JSON and URLs. Raises ValueError."""
    if b"\\" in text:
        text = json.loads(b'"%b"' % text, strict=False).encode("ascii")
    if b"%" in text:
        for escape, plain in _PERCENT.items():
            text = text.replace(escape, plain).replace(escape.lower(), plain)
    return text


def _decoded(text: memoryview) -> bytes:
    """Return base64 of either alphabet as bytes. Raises binascii.Error."""
    picture, rest = BytesIO(), b""
    for at in range(0, len(text), _PIECE):
        if at:
            # Otherwise other threads wait 5 ms for the interpreter whenever they have released it.
            time.sleep(0.0001)
        piece = rest + bytes(text[at : at + _PIECE]).translate(_TO_STANDARD, _BLANK)
        whole = len(piece) // 4 * 4
        if at + _PIECE >= len(text):
            piece = piece.rstrip(b"=")
            whole = len(piece) + -len(piece) % 4
            piece = piece.ljust(whole, b"=")
        picture.write(binascii.a2b_base64(piece[:whole], strict_mode=True))
        rest = piece[whole:]
    return picture.getvalue()


def _unpacked(response: urllib3.BaseHTTPResponse, body: bytes, most: int) -> bytes:
    """Return the first `most` bytes of what a server has compressed, although asked not to.

    `Content-Encoding` is wrong at times, and the bytes decide.
    """
    layers = response.headers.get("Content-Encoding", "").lower()
    for _ in range(2):
        if body.startswith(_GZIP):
            body = _inflated(body, zlib.MAX_WBITS + 16, most)
        elif "deflate" in layers and not _JSON.match(body) and not announced_type(body):
            has_header = body[:1] == b"\x78"
            body = _inflated(body, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS, most)
    return body


def _inflated(body: bytes, window: int, most: int) -> bytes:
    try:
        return zlib.decompressobj(window).decompress(body, most)
    except zlib.error:
        return body


def _beginning(response: urllib3.BaseHTTPResponse, size: int) -> bytes:
    """Return the first `size` bytes of an answer, or all if it has no more."""
    body = BytesIO()
    while body.tell() < size and (piece := response.read1(min(2**16, size - body.tell()))):
        body.write(piece)
    return body.getvalue()


def _too_large(limit: int) -> UpstreamError:
    return UpstreamError(f"its answer is larger than {limit} bytes", Why.TOO_LARGE)
