"""Bodies of answers: read within a limit, and a picture in base64 cut out of its JSON."""

from __future__ import annotations

import binascii
import codecs
import re
import threading
import time
from io import BytesIO

import urllib3

from upstream.failure import UpstreamError, Why

# An error is read for its reason, and no reason is longer.
ERROR_LIMIT = 2**16
# This takes the place of a picture that was cut out of the JSON.
STAND_IN = "(picture)"
# Decoding holds the interpreter: for 0.6 ms a piece, of whole groups of four characters.
_PIECE = 2**18
# One thread at a time: otherwise a hit waits for a piece of each, and all hold text and bytes.
_DECODING = threading.Lock()
# A URL has a colon and a prompt has spaces. PHP escapes the slashes of base64.
_PICTURE = re.compile(rb'"(?:data:[^",]{0,100},)?(?=[A-Za-z0-9+/\\]{4096})')


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
        return response.read()
    body = _beginning(response, limit + 1)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def cut_picture(body: bytes) -> tuple[bytes, bytes | None]:
    """Cut the first long base64 string out of a JSON body.

    Returns the body, with STAND_IN for the string, and the decoded bytes. If there is no such
    string, or its base64 is irregular, returns the body as it came, and None.
    """
    found = _PICTURE.search(body) if is_json(body) else None
    end = body.find(b'"', found.end()) if found else -1
    if not found or end < 0:
        return body, None
    try:
        picture = _decoded(body, found.end(), end)
    except binascii.Error:
        return body, None
    return b"".join((body[: found.start() + 1], STAND_IN.encode(), body[end:])), picture


def has_more_values(body: bytes, most: int) -> bool:
    """Return whether JSON has more than `most` values, at a low estimate and without parsing it."""
    count = 0
    # In pieces: counting can stop early, and other threads wait meanwhile.
    for start in range(0, len(body), _PIECE):
        count += sum(body.count(sign, start, start + _PIECE) for sign in (b",", b"[", b"\n"))
        if count > most:
            return True
    return False


def is_json(body: bytes) -> bool:
    """Return whether a body begins as a JSON object or array does."""
    return body[:64].removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")


def _decoded(body: bytes, start: int, end: int) -> bytes:
    """Return the base64 at a place of a body as bytes. Raises binascii.Error unless regular."""
    text = memoryview(body)[start:end]
    picture = BytesIO()
    with _DECODING:
        if body.find(b"\\", start, end) >= 0:
            text = memoryview(body[start:end].replace(rb"\/", b"/"))
        for at in range(0, len(text), _PIECE):
            picture.write(binascii.a2b_base64(text[at : at + _PIECE], strict_mode=True))
            # Otherwise other threads wait 5 ms for the interpreter whenever they have released it.
            time.sleep(0.0001)
    return picture.getvalue()


def _beginning(response: urllib3.BaseHTTPResponse, size: int) -> bytes:
    """Return the first `size` bytes of an answer, or all if it has no more.

    Decoded, since some servers compress although we ask for identity.
    """
    body = BytesIO()
    while body.tell() < size and (
        piece := response.read1(min(2**16, size - body.tell()), decode_content=True)
    ):
        body.write(piece)
    return body.getvalue()


def _too_large(limit: int) -> UpstreamError:
    return UpstreamError(f"its answer is larger than {limit} bytes", Why.TOO_LARGE)
