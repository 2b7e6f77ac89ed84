"""Bodies of answers: read within a limit, and a picture in base64 cut out of its JSON."""

import binascii
import re
import threading
import time
import zlib
from io import BytesIO
from urllib.parse import unquote_to_bytes

import urllib3

from images.formats import announced_type
from upstream.calls import UpstreamError, Why

# An error is read for its reason, and no reason is longer.
ERROR_LIMIT = 2**16
# This takes the place of a picture that was cut out of the JSON.
STAND_IN = "(picture)"
# No picture's answer, and no LLM's, has so many values. Megabytes of brackets would take gigabytes.
MAX_VALUES = 250_000
# Decoding holds the interpreter: for 0.6 ms a piece.
_PIECE = 2**18
# One thread at a time: otherwise a hit waits for a piece of each, and all hold text and bytes.
_DECODING = threading.Lock()

# A long PNG, JPEG, GIF or WebP in base64 without breaks, in a text of its own or a data URI.
# Shorter ones, and other spellings, are found after the JSON has been parsed.
_PICTURE = re.compile(
    rb'[",](?=(?:iVBORw0KGg|(?:\\?/|_)9j(?:\\?/|_)|R0lGOD|UklGR)'
    rb"(?:[A-Za-z0-9+/_-]{4000}|(?:[A-Za-z0-9+/_-]|\\/){4000}))"  # the second form is slow
)
# What follows a data URI in JSON, Markdown, HTML and prose.
_END = re.compile(rb"""["') ]|\\["n]""")
_JSON = re.compile(rb"[\xef\xbb\xbf\s]*[{\[]")

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_BLANK = b" \t\r\n"
# How gzip and zlib's "deflate" begin.
_COMPRESSED = (b"\x1f\x8b", b"x\x01", b"x^", b"x\x9c", b"x\xda")


def read_body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """Return the body of at most `limit` bytes; of an error the first 64 KB.

    Raises UpstreamError for a larger one.
    """
    is_error = response.status >= 400
    size = ERROR_LIMIT if is_error else limit + 1
    if not is_error and (response.length_remaining or 0) > limit:
        raise _too_large(limit)
    read = BytesIO()
    while (left := size - read.tell()) > 0 and (piece := response.read1(min(_PIECE, left))):
        read.write(piece)
    body = read.getvalue()
    # Some servers compress although we ask for identity, even twice, and others only say so.
    for _ in range(2):
        if body.startswith(_COMPRESSED):
            body = _unpacked(body, size)
    if len(body) > limit and not is_error:
        raise _too_large(limit)
    return body


def _unpacked(body: bytes, size: int) -> bytes:
    """Return the first `size` bytes of a decompressed body."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS + 32).decompress(body, size)
    except zlib.error as error:
        raise urllib3.exceptions.DecodeError from error


def _too_large(limit: int) -> UpstreamError:
    return UpstreamError(f"its answer is larger than {limit} bytes", Why.TOO_LARGE)


def has_too_many_values(body: bytes) -> bool:
    """Return whether JSON has more than MAX_VALUES, at a low estimate and without parsing it."""
    count = 0
    # In pieces: counting can stop early, and other threads wait meanwhile.
    for start in range(0, len(body), _PIECE):
        count += sum(body.count(sign, start, start + _PIECE) for sign in (b",", b"[", b"\n"))
        if count > MAX_VALUES:
            return True
    return False


def cut_picture(body: bytes) -> tuple[bytes, bytes | None]:
    """Cut a long picture in base64 out of a body: the first of JSON, the last of an event stream.

    Returns the body, with STAND_IN for the base64, and the decoded bytes. Without a picture that
    can be decoded, returns the body unchanged, and None.
    """
    if announced_type(body):
        return body, None
    begin, end = _place(body)
    picture = decode_base64(memoryview(body)[begin:end]) if end > 0 else None
    if picture is None:
        return body, None
    return b"".join((body[:begin], STAND_IN.encode(), body[end:])), picture


def _place(body: bytes) -> tuple[int, int]:
    """Return the start and end of a picture's base64; the end is -1 if the body has no picture."""
    begin, end, at = 0, -1, 0
    # It begins within a MiB of the start, or of the picture before: a search holds the interpreter.
    while found := _PICTURE.search(body, at, at + 2**20):
        begin, end = found.end(), body.find(b'"', found.end())
        for sign in (b"'", b")", b" ", b"\\"):
            place = body.find(sign, begin, end)
            if place > 0 and _END.match(body, place):
                end = place
        if end < 0 or _JSON.match(body):
            break
        at = end
    return begin, end


def decode_base64(text: bytes | memoryview) -> bytes | None:
    """Return base64 as bytes, or None if it is invalid.

    It may have the URL-safe alphabet, white space, no padding, or the escapes of URLs.
    """
    with _DECODING:
        try:
            return _decoded(memoryview(text))
        except binascii.Error:
            plain = unquote_to_bytes(bytes(text).replace(rb"\/", b"/"))
            plain = plain.translate(_TO_STANDARD, _BLANK).rstrip(b"=")
        try:
            return _decoded(memoryview(plain + b"=" * (-len(plain) % 4)))
        except binascii.Error:
            return None


def _decoded(text: memoryview) -> bytes:
    """Return standard base64 as bytes. Raises binascii.Error."""
    picture = BytesIO()
    for at in range(0, len(text), _PIECE):
        if at:
            # Otherwise other threads wait 5 ms for the interpreter whenever they have released it.
            time.sleep(0.0001)
        picture.write(binascii.a2b_base64(text[at : at + _PIECE], strict_mode=True))
    return picture.getvalue()
