"""Large answers: a picture is cut out of its JSON as it arrives, and nothing else changes."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect.answers import find_picture
from upstream.bodies import PIECE, STAND_IN, cut_picture
from upstream.client import Deadline, Reply, Upstream, UpstreamError

from .servers import Say, ScriptedServer

MIB = 2**20
DATA = random.Random(42).randbytes(5000)
TEXT = base64.b64encode(DATA).decode()
MakeServer = Callable[[], ScriptedServer]


def in_pieces(body: bytes, *sizes: int) -> Iterator[bytes]:
    """Cut `body` into pieces of these sizes, the last of which is repeated."""
    start = 0
    for number in count():
        size = sizes[min(number, len(sizes) - 1)]
        if start >= len(body):
            return
        yield body[start : start + size]
        start += size


def found_in(body: bytes, *sizes: int) -> tuple[bytes | None, bool]:
    """Return the picture that is found in a body, and whether it was cut out of it."""
    rest, cut = cut_picture(in_pieces(body, *(sizes or (PIECE,))))
    found = find_picture(json.loads(rest), cut)
    return found.data if found else None, cut is not None


REGULAR = {
    "b64_json": {"created": 1, "data": [{"b64_json": TEXT, "revised_prompt": 'a "red" apple'}]},
    "a prompt before it": {"data": [{"revised_prompt": "long " * 2000, "b64_json": TEXT}]},
    "data URI": {"data": [{"url": f"data:image/png;base64,{TEXT}"}]},
    "bare string": {"images": [TEXT]},
}


@pytest.mark.parametrize("answer", REGULAR)
@pytest.mark.parametrize("sizes", [(PIECE,), (1,), (4096, 7), (100, 3000)])
def test_regular_base64_is_cut_out(answer: str, sizes: tuple[int, ...]) -> None:
    body = json.dumps(REGULAR[answer]).encode()
    assert found_in(body, *sizes) == (DATA, True)
    rest, _ = cut_picture(in_pieces(body, *sizes))
    assert rest.decode().count(STAND_IN) == 1
    assert TEXT[:100] not in rest.decode()


@pytest.mark.parametrize("size", [1, 4097, PIECE])
def test_escaped_slashes_are_base64(size: int) -> None:
    body = json.dumps({"data": [{"b64_json": TEXT, "url": None}]}).replace("/", r"\/").encode()
    assert found_in(body, size) == (DATA, True)


IRREGULAR = {
    "URL-safe": base64.urlsafe_b64encode(DATA).decode(),
    "without padding": TEXT.rstrip("="),
    "in lines": TEXT[:4500] + "\n" + TEXT[4500:],
    "with another escape": TEXT[:4500] + "\u2028" + TEXT[4500:],
}


@pytest.mark.parametrize("text", IRREGULAR)
@pytest.mark.parametrize("size", [1, 5000, PIECE])
def test_irregular_base64_stays_in_the_body(text: str, size: int) -> None:
    body = json.dumps({"data": [{"b64_json": IRREGULAR[text]}]}).encode()
    assert cut_picture(in_pieces(body, size)) == (body, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x89PNG tEXt " + json.dumps({"image": TEXT}).encode(),
        json.dumps({"data": [{"b64_json": TEXT[:4000]}]}).encode(),
        json.dumps({"data": [{"b64_json": TEXT}]}).encode()[:-100],
        b'{"data": [{"b64_json": "' + b"QUI=" * 2000 + b'"}]}',
    ],
    ids=["empty", "not JSON", "short", "cut", "padding inside"],
)
def test_any_other_body_stays_as_it_came(body: bytes) -> None:
    for size in (1, 4099, PIECE):
        assert cut_picture(in_pieces(body, size)) == (body, None)


@given(st.binary(max_size=200), st.integers(0, 6700), st.integers(1, 7000))
def test_nothing_is_lost_of_any_body(tail: bytes, length: int, size: int) -> None:
    body = b'{"a": "' + TEXT[:length].encode() + tail.replace(b"\\", b'"')
    rest, cut = cut_picture(in_pieces(body, size))
    assert rest.replace(STAND_IN.encode(), base64.b64encode(cut or b"")) == body


def test_stand_in_that_a_backend_sent_is_no_picture() -> None:
    answer = {"data": [{"b64_json": TEXT}], "note": STAND_IN}
    assert found_in(json.dumps(answer).encode()) == (DATA, True)


def peak_of(work: Callable[[], Any]) -> int:
    """Return the most memory that `work` holds at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_picture_takes_little_more_memory_than_its_bytes(server: MakeServer) -> None:
    there, data = server(), bytes(8 * MIB)
    answer = {"data": [{"b64_json": base64.b64encode(data).decode()}]}
    there.say(Say(json.dumps(answer).encode()))

    def ask() -> None:
        deadline = Deadline.after(30)
        reply = Upstream().request(
            "POST", there.url, json={}, deadline=deadline, limit=16 * MIB, cut_picture=True
        )
        assert reply.picture == data

    assert peak_of(ask) < 12 * MIB


@pytest.mark.parametrize("part", [b"[],", b"1,", b'{"a":[', b"[["])
def test_megabytes_of_values_are_never_parsed(part: bytes) -> None:
    reply = Reply(200, {}, b"[" + part * (8 * MIB // len(part)))

    def parse() -> None:
        with pytest.raises(UpstreamError, match="too many values"):
            reply.json()

    assert peak_of(parse) < MIB
