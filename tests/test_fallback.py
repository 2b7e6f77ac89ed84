"""The last resort: what Pollinations is asked, and what its answers mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialect.judging import Outcome
from drawing.backend import NotDrawn
from drawing.fallback import Pollinations
from drawing.record import Image
from picture import ImageRequest
from settings.servers import PollinationsSettings
from upstream.client import Deadline, Upstream

from .servers import JPEG, Say, png
from .wire import MakeRawServer, MakeServer, guarded_net, hang, unhurried

REQUEST = ImageRequest("a red apple", 640, 480, "any", 7)
LIMIT = 2**20
PNG = png()
net = pytest.fixture(autouse=True)(guarded_net)


def not_drawn(call: Callable[[], Any]) -> NotDrawn:
    with pytest.raises(NotDrawn) as caught:
        call()
    return caught.value


def fall_back(
    url: str, prompt: str = "an apple", request: ImageRequest = REQUEST, **settings: Any
) -> Image:
    there = Pollinations(
        PollinationsSettings(url, settings.get("token"), settings.get("model")),
        Upstream(),
        timeout=settings.get("timeout", 10),
        max_image_bytes=LIMIT,
    )
    return there.draw(prompt, request, Deadline.after(10))


@pytest.mark.parametrize(
    ("base", "prompt", "request_", "model", "target"),
    [
        ("/prompt", "a red/green apple? #1 & 100%", ImageRequest("x", 640, 480, "dall-e-3", 7),
         None, "/prompt/a%20red%2Fgreen%20apple%3F%20%231%20%26%20100%25?width=640&height=480"
         "&seed=7"),
        ("/image", "é\n☃+", ImageRequest("x"), "flux pro",
         "/image/%C3%A9%0A%E2%98%83%2B?model=flux+pro&seed=42"),
        ("/p?referrer=me&x=%2F", "a/../b", ImageRequest("x", seed=-3), None,
         "/p/a%2F..%2Fb?referrer=me&x=%2F&seed=-3"),
    ],
)  # fmt: skip
def test_fallback_request_is_as_documented(
    server: MakeServer,
    base: str,
    prompt: str,
    request_: ImageRequest,
    model: str | None,
    target: str,
) -> None:
    there = server()
    there.say(Say(JPEG, headers={"Content-Type": "text/plain"}))
    image = fall_back(there.url + base, prompt, request_, model=model)
    assert image == Image(JPEG, "image/jpeg", "pollinations", None)
    assert there.seen[0].method == "GET"
    assert there.seen[0].target == f"{target}&nofeed=true&private=true"


@pytest.mark.parametrize("token", ["t", None])
def test_fallback_token_is_sent_as_bearer(server: MakeServer, token: str | None) -> None:
    there = server()
    there.say(Say("", 302, {"Location": "/moved"}), Say(PNG))
    fall_back(there.url, token=token)
    expected = f"Bearer {token}" if token else None
    assert [seen.headers["Authorization"] for seen in there.seen] == [expected] * 2


POLICY = {"status": 422, "success": False, "error": {"code": "content_policy_violation"}}
FALLBACK_FAULTS: dict[str, tuple[Say, Outcome, str]] = {
    "a placeholder": (Say(PNG, headers={"X-Error-Type": "rate_limit"}), Outcome.FAILED,
                      "rate limited"),
    "HTML": (Say("<html>"), Outcome.FAILED, "not a picture"),
    "204": (Say("", 204), Outcome.FAILED, "down"),
    "206": (Say(PNG, 206), Outcome.FAILED, "down"),
    "too large": (Say(bytes(LIMIT + 1)), Outcome.FAILED, "answer too large"),
    "401": (Say("", 401), Outcome.FAILED, "unauthorised"),
    "402, a full queue": (Say({"success": False, "error": "Queue full"}, 402), Outcome.FAILED,
                          "out of credit"),
    "429": (Say("", 429), Outcome.FAILED, "rate limited"),
    "530": (Say("", 530), Outcome.FAILED, "down"),
    "400": (Say({"success": False, "error": {"message": "Bad width"}}, 400), Outcome.REJECTED,
            "rejected"),
    "422": (Say(POLICY, 422), Outcome.REFUSED, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FALLBACK_FAULTS)
def test_fault_of_the_fallback_is_judged(server: MakeServer, fault: str) -> None:
    say, outcome, why = FALLBACK_FAULTS[fault]
    there = server()
    there.say(say)
    found = not_drawn(lambda: fall_back(there.url)).fault
    assert (found.outcome, found.why) == (outcome, why)


def test_fallback_redirect_to_another_private_host_is_refused(server: MakeServer) -> None:
    there, other = server(), server()
    there.say(Say("", 302, {"Location": other.url + "/a.png"}))
    assert not_drawn(lambda: fall_back(there.url, token="t")).fault.why == "forbidden URL"
    assert other.seen == []


def test_time_out_of_the_fallback_is_a_failure(raw_server: MakeRawServer) -> None:
    error = not_drawn(lambda: fall_back(raw_server(hang).url, timeout=0.2))
    assert error.fault.why == "timed out"


def test_any_answer_of_the_fallback_is_a_picture_or_not_drawn(server: MakeServer) -> None:
    there = server()

    @settings(unhurried, max_examples=30)
    @given(st.binary(max_size=60), st.sampled_from([200, 204, 302, 400, 404, 422, 429, 451, 500]))
    def check(body: bytes, status: int) -> None:
        there.say(Say(body, status))
        with contextlib.suppress(NotDrawn):
            assert fall_back(there.url).media_type.startswith("image/")

    check()
