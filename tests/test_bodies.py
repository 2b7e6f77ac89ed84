"""Large answers: a picture is cut out of its JSON in little memory, and nothing else changes."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstream.bodies import STAND_IN, cut_picture
from upstream.client import Deadline, Reply, Upstream, UpstreamError

from .servers import Say
from .wire import MIB, MakeServer

# More than one piece is decoded.
DATA = random.Random(42).randbytes(300_000)
TEXT = base64.b64encode(DATA).decode()

REGULAR = {
    "b64_json": {"created": 1, "data": [{"b64_json": TEXT, "revised_prompt": 'a "red" apple'}]},
    "a prompt before it": {"data": [{"revised_prompt": "long " * 2000, "b64_json": TEXT}]},
    "data URI": {"data": [{"url": f"data:image/png;base64,{TEXT}"}]},
    "bare string": {"images": [TEXT]},
}


@pytest.mark.parametrize("answer", REGULAR)
@pytest.mark.parametrize("escape", ["/", r"\/"])
def test_regular_base64_is_cut_out(answer: str, escape: str) -> None:
    body = json.dumps(REGULAR[answer]).replace("/", escape).encode()
    rest, picture = cut_picture(body)
    assert picture == DATA
    expected = json.dumps(REGULAR[answer]).replace(TEXT, STAND_IN)
    assert json.loads(rest) == json.loads(expected.replace("data:image/png;base64,", ""))


OTHER = {
    "URL-safe": base64.urlsafe_b64encode(DATA).decode(),
    "without padding": base64.b64encode(DATA[:-1]).decode().rstrip("="),
    "in lines": TEXT[:4500] + "\n" + TEXT[4500:],
    "with another escape": TEXT[:4500] + "\u2028" + TEXT[4500:],
    "short": TEXT[:4000],
    "padding inside": "QUI=" * 2000,
}


@pytest.mark.parametrize("text", OTHER)
def test_irregular_base64_stays_in_the_body(text: str) -> None:
    body = json.dumps({"data": [{"b64_json": OTHER[text]}]}).encode()
    assert cut_picture(body) == (body, None)


@pytest.mark.parametrize(
    "body",
    [b"", b"\x89PNG tEXt " + json.dumps({"image": TEXT}).encode(), b'["' + TEXT.encode()],
    ids=["empty", "not JSON", "cut"],
)
def test_any_other_body_stays_as_it_came(body: bytes) -> None:
    assert cut_picture(body) == (body, None)


@given(st.binary(max_size=200), st.integers(0, 6700))
def test_nothing_is_lost_of_any_body(tail: bytes, length: int) -> None:
    body = b'{"a": "' + TEXT[:length].encode() + tail.replace(b"\\", b'"')
    rest, cut = cut_picture(body)
    assert rest.replace(STAND_IN.encode(), base64.b64encode(cut or b"")) == body


def peak_of(work: Callable[[], Any]) -> int:
    """Return the most memory that `work` holds at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_picture_takes_the_memory_of_its_text_and_its_bytes(server: MakeServer) -> None:
    there, data = server(), bytes(8 * MIB)
    answer = {"data": [{"b64_json": base64.b64encode(data).decode()}]}
    there.say(Say(json.dumps(answer).encode()))

    def ask() -> None:
        deadline = Deadline.after(30)
        reply = Upstream().request(
            "POST", there.url, json={}, deadline=deadline, limit=16 * MIB, cut_picture=True
        )
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
