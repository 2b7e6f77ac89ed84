"""The last resort: what Pollinations is asked, and what its answers mean."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Cache
from dialect.judging import Fault
from drawing.backend import NotDrawn
from drawing.fallback import Pollinations
from drawing.record import Drawing, Image
from picture import ImageRequest
from settings.servers import PollinationsSettings
from storage.cluster.copies import Nowhere
from storage.local.folder import Folder
from storage.state import State
from upstream.client import Deadline, Upstream

from .one_backend import LIMIT, REQUEST, not_drawn
from .scripted import JPEG, Say, ScriptedServer, png
from .states import Clock
from .wire import MakeServer, guarded_net, unhurried

PNG = png()
OTHER = png(2)
net = pytest.fixture(autouse=True)(guarded_net)


class FallBack:
    """Draws with Pollinations, which is played by the server `there`."""

    def __init__(self, there: ScriptedServer, state: State) -> None:
        self.there = there
        self.cache = Cache(state, Nowhere(Path()))

    def __call__(
        self, prompt: str = "an apple", request: ImageRequest = REQUEST, path: str = "", **more: Any
    ) -> Image:
        own = PollinationsSettings(self.there.url + path, more.get("token"), more.get("model"))
        pollinations = Pollinations(own, Upstream(), self.cache, timeout=10, max_image_bytes=LIMIT)
        return pollinations.draw(Drawing(request, Deadline.after(10), rewritten=prompt))

    def fault(self, *args: Any, **more: Any) -> Fault:
        return not_drawn(lambda: self(*args, **more)).fault


@pytest.fixture
def fall_back(backend: ScriptedServer, state: State) -> FallBack:
    return FallBack(backend, state)


# --- what it is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "prompt", "request_", "model", "target"),
    [
        ("/prompt", "a red/green apple? #1 & 100%", ImageRequest("x", 640, 480, "dall-e-3", 7),
         "", "/prompt/a%20red%2Fgreen%20apple%3F%20%231%20%26%20100%25?width=640&height=480"
         "&seed=7"),
        ("/image", "é\n☃+", ImageRequest("x"), "flux pro",
         "/image/%C3%A9%0A%E2%98%83%2B?model=flux+pro&seed=42"),
        ("/p?referrer=me&x=%2F", "a/../b", ImageRequest("x", seed=-3), "",
         "/p/a%2F..%2Fb?referrer=me&x=%2F&seed=2147483645"),
        ("/p", "a", ImageRequest("x", seed=2**31 + 7), "", "/p/a?seed=7"),
    ],
)  # fmt: skip
def test_fallback_request_is_as_documented(
    fall_back: FallBack, path: str, prompt: str, request_: ImageRequest, model: str, target: str
) -> None:
    fall_back.there.say(Say(JPEG, headers={"Content-Type": "text/plain"}))
    image = fall_back(prompt, request_, path, model=model or None)
    assert image == Image(JPEG, "image/jpeg", "pollinations", None)
    [seen] = fall_back.there.seen
    assert (seen.method, seen.target) == ("GET", f"{target}&nofeed=true&private=true")


@pytest.mark.parametrize("token", ["t", None])
def test_fallback_token_is_sent_as_bearer(fall_back: FallBack, token: str | None) -> None:
    fall_back.there.say(Say("", 302, {"Location": "/moved"}), Say(PNG))
    fall_back(token=token)
    expected = f"Bearer {token}" if token else None
    assert [seen.headers["Authorization"] for seen in fall_back.there.seen] == [expected] * 2


@pytest.mark.parametrize(("token", "late", "calls"), [("t", 1, 2), ("t", 2, 2), (None, 1, 1)])
def test_request_that_timed_out_is_repeated_once_with_a_token(
    fall_back: FallBack, token: str | None, late: int, calls: int
) -> None:
    fall_back.there.say(*[Say("", 524)] * late, Say(PNG))
    if late < calls:
        assert fall_back(token=token).data == PNG
    else:
        assert fall_back.fault(token=token).why == "timed out"
    assert len(fall_back.there.seen) == calls
    assert len({seen.target for seen in fall_back.there.seen}) == 1


# --- what its answers mean ----------------------------------------------------------------------

POLICY = {"status": 422, "success": False, "error": {"code": "content_policy_violation"}}
LOCK_OUT = "Your resource has been temporarily blocked because of repeated violations."
LOCKED = {"error": {"code": "content_policy_violation", "message": LOCK_OUT}}
QUEUE = {"success": False, "error": {"code": "X", "message": "Queue full for IP 192.0.2.1"}}
LIMITED = {"error": {"code": 429, "message": "rate limit"}}
FAULTS: dict[str, tuple[Say, str]] = {
    "a placeholder": (Say(PNG, headers={"X-Error-Type": "rate_limit"}), "failed: rate limited"),
    "HTML": (Say("<html>"), "failed: not a picture"),
    "an error in a 200": (Say(LIMITED), "failed: rate limited"),
    "204": (Say("", 204), "failed: down"),
    "206": (Say(PNG, 206), "failed: down"),
    "too large": (Say(bytes(LIMIT + 1)), "failed: answer too large"),
    "401": (Say("", 401), "failed: unauthorised"),
    "402": (Say({"error": "Insufficient balance"}, 402), "failed: out of credit"),
    "402, a full queue": (Say(QUEUE, 402), "failed: rate limited"),
    "429": (Say("", 429), "failed: rate limited"),
    "530": (Say("", 530), "failed: down"),
    "400": (Say({"success": False, "error": {"message": "Bad width"}}, 400), "rejected: rejected"),
    "422": (Say(POLICY, 422), "refused: refused"),
    "422, a provider's lock-out": (Say(LOCKED, 422), "failed: unauthorised"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_of_the_fallback_is_judged(fall_back: FallBack, case: str) -> None:
    say, expected = FAULTS[case]
    fall_back.there.say(say)
    found = fall_back.fault()
    assert f"{found.outcome}: {found.why}" == expected


def test_redirect_to_another_private_host_fails(fall_back: FallBack, server: MakeServer) -> None:
    other = server()
    fall_back.there.say(Say("", 302, {"Location": other.url + "/a.png"}))
    assert fall_back.fault(token="t").why == "forbidden URL"
    assert other.seen == []


def test_placeholder_that_is_stored_late_is_deleted_by_the_next(
    fall_back: FallBack, tmp_path: Path, clock: Clock
) -> None:
    cache = fall_back.cache = Cache(fall_back.cache.state, Folder(tmp_path))
    fall_back.there.say(Say(PNG))
    image = fall_back("an apple")
    assert fall_back.fault("a pear", ImageRequest("a pear")).why == "rate limited"
    clock.now += 10
    cache.put(REQUEST.key, image.data, image.media_type, request=REQUEST, drawn_by=image.drawn_by)
    assert fall_back.fault("a plum", ImageRequest("a plum")).why == "rate limited"
    assert cache.get(REQUEST.key) is None


def test_same_bytes_for_two_prompts_are_a_placeholder(fall_back: FallBack, clock: Clock) -> None:
    fall_back.there.say(Say(PNG))
    assert fall_back("a").data == PNG
    assert fall_back("A ", ImageRequest("a", 64)).data == PNG, "the same prompt"
    for prompt in "bab":
        assert fall_back.fault(prompt).why == "rate limited"
        clock.now += 60
    fall_back.there.say(Say(OTHER, headers={"X-Cache-Semantic": "HIT"}))
    for prompt in "ab":
        assert fall_back(prompt).data == OTHER, "it says that they share a picture"


def test_any_answer_is_a_picture_or_not_drawn(fall_back: FallBack, clock: Clock) -> None:
    @settings(unhurried, max_examples=30)
    @given(st.binary(max_size=60), st.sampled_from([200, 204, 302, 400, 404, 422, 429, 451, 500]))
    def check(body: bytes, status: int) -> None:
        fall_back.there.say(Say(body, status))
        clock.now += 300
        with suppress(NotDrawn):
            assert fall_back().media_type.startswith("image/")

    check()
    assert len(fall_back.there.seen) >= 30
