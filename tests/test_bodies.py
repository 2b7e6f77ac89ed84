"""Large answers: a picture is cut out of its JSON in little memory, and nothing else changes."""

import base64
import random
import textwrap
import tracemalloc
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstream.bodies import STAND_IN, cut_picture, decode_base64
from upstream.client import Deadline, Reply, Upstream, UpstreamError

from .scripted import Say, png
from .wire import MIB, MakeServer

# More than one piece is decoded.
DATA = png(1)[:16] + random.Random(42).randbytes(300_000)
TEXT = base64.b64encode(DATA).decode()
OTHER = base64.b64encode(DATA[9:]).decode()

CUT: dict[str, tuple[str, str]] = {
    "b64_json": ('{"data": [{"b64_json": "@"}]}', TEXT),
    "bare string": ('["@"]', TEXT),
    "a prompt before it": (f'["{"long " * 2000}", "@"]', TEXT),
    "another's base64 before it": (f'["{OTHER}", "@"]', TEXT),
    "data URI": ('["data:image/png;base64,@"]', TEXT),
    "data URI, twice": ('["data:image/png;base64,data:image/png;base64,@"]', TEXT),
    "URL-safe": ('["@"]', TEXT.translate(str.maketrans("+/", "-_"))),
    "without padding": ('["@"]', TEXT.rstrip("=")),
    "slashes escaped": ('["@"]', TEXT.replace("/", r"\/")),
    "Markdown": ('{"content": "![a](data:image/png;base64,@)!"}', TEXT),
    "prose": (r'["It is data:image/png;base64,@\n\nEnjoy"]', TEXT),
    "HTML": (r'["<img src=\"data:image/png;base64,@\">"]', TEXT),
    "the first": (f'["@", "{TEXT}"]', TEXT),
    "the last of a stream": (f'data: ["{TEXT}"]\n\ndata: ["@"]', TEXT),
    "broken JSON": ('{"a": "@"', TEXT),
}


@pytest.mark.parametrize("shape", CUT)
def test_long_picture_is_cut_out(shape: str) -> None:
    """A body has @ where its picture is, in the spelling beside it."""
    body, text = CUT[shape]
    expected = body.replace("@", STAND_IN).encode()
    assert cut_picture(body.replace("@", text).encode()) == (expected, DATA)


UNCUT: dict[str, bytes] = {
    "empty": b"",
    "a picture": b"\x89PNG\r\n\x1a\n" + f'"{TEXT}"'.encode(),
    "cut": f'["{TEXT}'.encode(),
    "short": f'["{TEXT[:4000]}"]'.encode(),
    "of no known format": f'["{TEXT[8:]}"]'.encode(),
    "in lines": b'["%b"]' % r"\r\n".join(textwrap.wrap(TEXT, 76)).encode(),
    "percent-encoded": f'["{quote(TEXT, safe="")}"]'.encode(),
    "with another escape": f'["{TEXT[:4500]}\\u002b{TEXT[4500:]}"]'.encode(),
    "not base64": f'["{TEXT[:4500]}!{TEXT[4500:]}"]'.encode(),
    "padding inside": f'["{TEXT[:4500]}=={TEXT[4500:]}"]'.encode(),
    "quotes": b'"' * 2**20,
}


@pytest.mark.parametrize("shape", UNCUT)
def test_any_other_body_stays_as_it_came(shape: str) -> None:
    assert cut_picture(UNCUT[shape]) == (UNCUT[shape], None)


@given(st.binary(max_size=200), st.integers(1, 80))
def test_base64_survives_lines_and_lost_padding(data: bytes, width: int) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = "\n ".join(textwrap.wrap(encode(data).decode().rstrip("="), width))
        assert decode_base64(text.encode()) == data


@given(st.binary(max_size=60) | st.text("AZaz09+/-_= \n%\\").map(str.encode))
def test_any_bytes_are_base64_or_not(text: bytes) -> None:
    assert isinstance(decode_base64(text), bytes | None)


def peak_of(work: Callable[[], Any]) -> int:
    """Return the most memory that `work` holds at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_picture_takes_the_memory_of_its_text_and_its_bytes(server: MakeServer) -> None:
    there, data = server(), DATA[:8] + bytes(8 * MIB)
    there.say(Say(b'{"data": [{"b64_json": "%b"}]}' % base64.b64encode(data)))

    def ask() -> None:
        deadline = Deadline.after(30)
        reply = Upstream().request("POST", there.url, json={}, deadline=deadline, limit=16 * MIB)
        assert reply.picture == data
        assert len(reply.body) < 100

    assert peak_of(ask) < (8 * 4 // 3 + 8 + 2) * MIB


@pytest.mark.parametrize("part", [b"[],", b"1,", b'{"a":[', b"[["])
def test_megabytes_of_values_are_never_parsed(part: bytes) -> None:
    reply = Reply(200, {}, b"[" + part * (8 * MIB // len(part)))

    def parse() -> None:
        with pytest.raises(UpstreamError, match="too many values"):
            reply.json()

    assert peak_of(parse) < MIB
