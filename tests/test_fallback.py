"""The last resort: what Pollinations is asked, and what its answers mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Cache
from dialect.judging import Fault, Outcome
from drawing.backend import NotDrawn
from drawing.fallback import Pollinations
from drawing.record import Drawing, Image
from picture import ImageRequest
from settings.servers import PollinationsSettings
from storage.cluster.copies import Nowhere
from storage.state import State
from upstream.client import Deadline, Upstream

from .servers import JPEG, Gate, Say, png
from .states import Clock
from .wire import MakeServer, guarded_net, unhurried

REQUEST = ImageRequest("a red apple", 640, 480, "any", 7)
LIMIT = 2**20
PNG = png()
OTHER = png(2)
net = pytest.fixture(autouse=True)(guarded_net)

FallBack = Callable[..., Image]


@pytest.fixture
def fall_back(state: State) -> FallBack:
    """Draw with Pollinations at a URL: `fall_back(url, prompt, request, token=…, timeout=…)`."""

    def call(
        url: str,
        prompt: str = "an apple",
        request: ImageRequest = REQUEST,
        *,
        token: str | None = None,
        model: str | None = None,
        timeout: float = 10,
    ) -> Image:
        there = Pollinations(
            PollinationsSettings(url, token, model),
            Upstream(),
            Cache(state, Nowhere(Path())),
            timeout=timeout,
            max_image_bytes=LIMIT,
        )
        return there.draw(Drawing(request, Deadline.after(10), rewritten=prompt))

    return call


def fault(call: Callable[[], Any]) -> Fault:
    with pytest.raises(NotDrawn) as caught:
        call()
    return caught.value.fault


# --- what it is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "prompt", "request_", "model", "target"),
    [
        ("/prompt", "a red/green apple? #1 & 100%", ImageRequest("x", 640, 480, "dall-e-3", 7),
         None, "/prompt/a%20red%2Fgreen%20apple%3F%20%231%20%26%20100%25?width=640&height=480"
         "&seed=7"),
        ("/image", "é\n☃+", ImageRequest("x"), "flux pro",
         "/image/%C3%A9%0A%E2%98%83%2B?model=flux+pro&seed=42"),
        ("/p?referrer=me&x=%2F", "a/../b", ImageRequest("x", seed=-3), None,
         "/p/a%2F..%2Fb?referrer=me&x=%2F&seed=2147483645"),
        ("/p", "a", ImageRequest("x", seed=2**31 + 7), None, "/p/a?seed=7"),
    ],
)  # fmt: skip
def test_fallback_request_is_as_documented(
    server: MakeServer,
    fall_back: FallBack,
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
def test_fallback_token_is_sent_as_bearer(
    server: MakeServer, fall_back: FallBack, token: str | None
) -> None:
    there = server()
    there.say(Say("", 302, {"Location": "/moved"}), Say(PNG))
    fall_back(there.url, token=token)
    expected = f"Bearer {token}" if token else None
    assert [seen.headers["Authorization"] for seen in there.seen] == [expected] * 2


@pytest.mark.parametrize(("token", "calls"), [("t", 2), (None, 1)])
def test_timed_out_request_is_repeated_once_with_a_token(
    server: MakeServer, fall_back: FallBack, token: str | None, calls: int
) -> None:
    there = server()
    there.say(gate := Gate(Say(PNG)))
    found = fault(lambda: fall_back(there.url, token=token, timeout=0.2))
    gate.opened.set()
    assert found.why == "timed out"
    assert len(there.seen) == calls
    assert len({seen.target for seen in there.seen}) == 1


def test_repeated_request_may_draw(server: MakeServer, fall_back: FallBack) -> None:
    there = server()
    there.say(Say("", 524), Say(PNG))
    assert fall_back(there.url, token="t").data == PNG


# --- what its answers mean ----------------------------------------------------------------------

POLICY = {"status": 422, "success": False, "error": {"code": "content_policy_violation"}}
LOCKED = {
    "error": {
        "code": "content_policy_violation",
        "message": "Your resource has been temporarily blocked because of repeated violations.",
    }
}
QUEUE = {"success": False, "error": {"code": "X", "message": "Queue full for IP 192.0.2.1"}}
FAULTS: dict[str, tuple[Say, Outcome, str]] = {
    "a placeholder": (Say(PNG, headers={"X-Error-Type": "rate_limit"}), Outcome.FAILED,
                      "rate limited"),
    "HTML": (Say("<html>"), Outcome.FAILED, "not a picture"),
    "an error in a 200": (Say({"error": {"code": 429, "message": "rate limit"}}), Outcome.FAILED,
                          "rate limited"),
    "204": (Say("", 204), Outcome.FAILED, "down"),
    "206": (Say(PNG, 206), Outcome.FAILED, "down"),
    "too large": (Say(bytes(LIMIT + 1)), Outcome.FAILED, "answer too large"),
    "401": (Say("", 401), Outcome.FAILED, "unauthorised"),
    "402": (Say({"error": "Insufficient balance"}, 402), Outcome.FAILED, "out of credit"),
    "402, a full queue": (Say(QUEUE, 402), Outcome.FAILED, "rate limited"),
    "429": (Say("", 429), Outcome.FAILED, "rate limited"),
    "530": (Say("", 530), Outcome.FAILED, "down"),
    "400": (Say({"success": False, "error": {"message": "Bad width"}}, 400), Outcome.REJECTED,
            "rejected"),
    "422": (Say(POLICY, 422), Outcome.REFUSED, "refused"),
    "422, a provider's lock-out": (Say(LOCKED, 422), Outcome.FAILED, "unauthorised"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_fault_of_the_fallback_is_judged(
    server: MakeServer, fall_back: FallBack, case: str
) -> None:
    say, outcome, why = FAULTS[case]
    there = server()
    there.say(say)
    found = fault(lambda: fall_back(there.url))
    assert (found.outcome, found.why) == (outcome, why)


def test_fallback_redirect_to_another_private_host_is_refused(
    server: MakeServer, fall_back: FallBack
) -> None:
    there, other = server(), server()
    there.say(Say("", 302, {"Location": other.url + "/a.png"}))
    assert fault(lambda: fall_back(there.url, token="t")).why == "forbidden URL"
    assert other.seen == []


def test_same_bytes_for_two_prompts_are_a_placeholder(
    server: MakeServer, fall_back: FallBack, clock: Clock
) -> None:
    there = server()
    there.say(Say(PNG))
    assert fall_back(there.url, "a").data == PNG
    assert fall_back(there.url, "A ", ImageRequest("a", 64)).data == PNG, "the same prompt"
    for prompt in "bab":
        assert fault(partial(fall_back, there.url, prompt)).why == "rate limited"
        clock.now += 60
    there.say(Say(OTHER, headers={"X-Cache-Semantic": "HIT"}))
    for prompt in "ab":
        assert fall_back(there.url, prompt).data == OTHER, "it says that they share a picture"


def test_any_answer_of_the_fallback_is_a_picture_or_not_drawn(
    server: MakeServer, fall_back: FallBack, clock: Clock
) -> None:
    there = server()

    @settings(unhurried, max_examples=30)
    @given(st.binary(max_size=60), st.sampled_from([200, 204, 302, 400, 404, 422, 429, 451, 500]))
    def check(body: bytes, status: int) -> None:
        there.say(Say(body, status))
        clock.now += 300
        with contextlib.suppress(NotDrawn):
            assert fall_back(there.url).media_type.startswith("image/")

    check()
    assert len(there.seen) >= 30
