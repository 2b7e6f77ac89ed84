"""Repeating a request until a server accepts it, and remembering how."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from dialect.endpoint import MAX_REQUESTS, Answer, Endpoint
from dialect.judging import Outcome
from dialect.learning import LEARNED_TTL, Learned
from dialect.sizes import Size
from storage import Recalled
from storage.state import State
from upstream.client import Deadline, Upstream, UpstreamError, Why

from .scripted import Gate, Say, ScriptedServer, Seen
from .states import Clock
from .wire import MakeServer

BODY = {"prompt": "a red apple", "n": 1, "seed": 42, "model": "m"}
DRAWN = Say({"data": [{"b64_json": "AAAA"}]})


class Asking:
    """Successive requests to one server, each a separate drawing."""

    def __init__(self, server: ScriptedServer, state: State) -> None:
        self.say, self.seen = server.say, server.seen
        self.state = state
        self.endpoint = Endpoint(Upstream(), state, server.url, "images/generations", "t")

    def __call__(self, body: dict[str, Any], size: Size | None = None, **more: Any) -> Answer:
        options: dict[str, Any] = {"deadline": Deadline.after(10), "limit": 2**20, **more}
        return self.endpoint.ask(body, size=size, **options)

    def recalled(self, model: str | None = "m") -> Recalled[Learned] | None:
        return self.state.recall(Learned, self.endpoint.note_key(model))

    def learned(self, model: str | None = "m") -> Learned | None:
        found = self.recalled(model)
        return found.note if found else None


@pytest.fixture
def ask(backend: ScriptedServer, state: State) -> Asking:
    return Asking(backend, state)


# --- whole servers ------------------------------------------------------------------------------


def rejection(message: str, param: str | None = None, code: str | None = None) -> Say:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Say({"error": error}, 400)


def gpt_image(seen: Seen) -> Say:
    body, sizes = seen.json, ("1024x1024", "1024x1536", "1536x1024")
    for name in ("response_format", "seed"):
        if name in body:
            return rejection(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    if body.get("size", "auto") not in (*sizes, "auto"):
        listed = ", ".join(f"'{size}'" for size in sizes)
        message = f"Invalid value: '{body['size']}'. Supported values are: {listed}, and 'auto'."
        return rejection(message, "size", "invalid_value")
    return DRAWN


def gpt_image_2(seen: Seen) -> Say:
    body = seen.json
    if "seed" in body:
        return rejection("Unknown parameter: 'seed'.", "seed", "unknown_parameter")
    size = body.get("size", "1024x1024")
    width, height = map(int, size.split("x"))
    if width % 16 or height % 16:
        message = f"Invalid size '{size}'. Width and height must both be divisible by 16."
        return rejection(message, "size")
    if width * height < 655_360:
        message = "Requested resolution is below the current minimum pixel budget."
        return rejection(f"Invalid size '{size}'. {message}")
    if max(width, height) > 3840:
        return rejection("The longest edge must be less than or equal to 3840", "size")
    return DRAWN


def xai(seen: Seen) -> Say:
    for name in ("size", "seed"):
        if name in seen.json:
            return Say({"code": "400", "error": f"Argument not supported: {name}"}, 400)
    return DRAWN


def together(seen: Seen) -> Say:
    if "size" in seen.json:
        return rejection("Unrecognized key 'size'. Use 'width' and 'height' instead.")
    if seen.json["width"] % 8 or seen.json["height"] % 8:
        return rejection("width and height must be multiples of 8", "height")
    return DRAWN


def fastapi(seen: Seen) -> Say:
    detail: list[dict[str, Any]] = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
        for name in seen.json
        if name not in ("prompt", "model", "width", "height")
    ]
    for name in ("width", "height"):
        if name not in seen.json:
            detail.append({"type": "missing", "loc": ["body", name], "msg": "Field required"})
        elif seen.json[name] > 1000:
            message = "Input should be less than or equal to 1000"
            detail.append({"loc": ["body", name], "msg": message, "ctx": {"le": 1000}})
    return Say({"detail": detail}, 422) if detail else DRAWN


ODD = (1000, 700)
# How many requests the first drawing takes, and what the second sends beside prompt, n and model.
SERVERS: dict[str, tuple[Callable[[Seen], Say], Size, int, dict[str, Any]]] = {
    "gpt-image": (gpt_image, (1024, 768), 3, {"size": "1536x1024"}),
    "gpt-image-2": (gpt_image_2, (1024, 768), 2, {"size": "1024x768"}),
    "gpt-image-2, odd": (gpt_image_2, ODD, 3, {"size": "1008x704"}),
    "gpt-image-2, small": (gpt_image_2, (512, 512), 4, {"size": "1056x1056"}),
    "gpt-image-2, tiny": (gpt_image_2, (64, 64), 5, {}),
    "gpt-image-2, large": (gpt_image_2, (4096, 2048), 3, {"size": "3840x1920"}),
    "xAI": (xai, (1024, 768), 3, {"aspect_ratio": "4:3"}),
    "Together": (together, (1024, 768), 2, {"width": 1024, "height": 768, "seed": 42}),
    "Together, odd": (together, (1000, 700), 3, {"width": 1000, "height": 704, "seed": 42}),
    "FastAPI": (fastapi, (1024, 768), 5, {"width": 1000, "height": 750}),
}


@pytest.mark.parametrize("vendor", SERVERS)
def test_second_request_is_taken_at_once(ask: Asking, vendor: str) -> None:
    answer, size, requests, expected = SERVERS[vendor]
    ask.say(answer)
    assert ask(BODY, size).fault is None
    assert len(ask.seen) == requests
    assert ask(BODY, size).fault is None
    assert len(ask.seen) == requests + 1
    sent = ask.seen[-1].json
    assert {name: sent[name] for name in sent if name not in ("prompt", "n", "model")} == expected


def test_error_that_quotes_the_token_is_kept_without_it(server: MakeServer, state: State) -> None:
    vendor = server()
    vendor.say(lambda seen: Say({"error": {"message": seen.headers["Authorization"][7:]}}, 401))
    endpoint = Endpoint(Upstream(), state, vendor.url, "images/generations", "token-of-ours")
    answer = endpoint.ask(BODY, deadline=Deadline.after(10), limit=2**20)
    assert answer.fault
    assert answer.fault.detail == "***"


def test_every_size_is_fitted_once_the_rules_are_known(ask: Asking) -> None:
    ask.say(gpt_image)
    for size in ((1024, 768), (64, 64), (768, 1024), (4096, 4096)):
        assert ask(BODY, size).fault is None
    sizes = [seen.json["size"] for seen in ask.seen[3:]]
    assert sizes == ["1024x1024", "1024x1536", "1024x1024"]


# --- what is remembered -------------------------------------------------------------------------

SEED_UNKNOWN = rejection("Unknown parameter: 'seed'.", "seed", "unknown_parameter")
REFUSED = rejection("Rejected by the safety system; unknown parameter: 'seed'.", "seed")


def test_lesson_is_of_one_model_of_one_server(server: MakeServer, state: State) -> None:
    picky, easy = server(), server()
    picky.say(SEED_UNKNOWN, DRAWN)
    easy.say(DRAWN)
    ask = Asking(picky, state)
    ask(BODY)
    ask(BODY | {"model": "other"})
    ask({"prompt": "a", "seed": 42})
    Asking(easy, state)(BODY)
    assert ["seed" in seen.json for seen in picky.seen + easy.seen] == [True, False] + [True] * 3
    assert ask.learned() == Learned(dropped=("seed",))
    assert ask.learned("other") is None


def test_lesson_holds_for_a_day(ask: Asking, clock: Clock) -> None:
    ask.say(gpt_image)
    ask(BODY)
    clock.now += LEARNED_TTL - 100
    ask(BODY, (512, 512))
    assert (found := ask.recalled())
    assert found.left == pytest.approx(100, abs=1)
    clock.now += 101
    assert ask.learned() is None


@pytest.mark.parametrize(
    "then", [rejection("Invalid request."), Say("", 500), Say("", 429), Say("", 401), Say("", 302)]
)
def test_lesson_that_did_not_help_is_not_remembered(ask: Asking, then: Say) -> None:
    ask.say(SEED_UNKNOWN, then)
    assert ask(BODY).reply.status == then.status
    assert len(ask.seen) == 2
    assert ask.learned() is None


def test_refusal_teaches_nothing_but_proves_that_a_lesson_helped(ask: Asking) -> None:
    ask.say(REFUSED)
    fault = ask(BODY).fault
    assert fault is not None
    assert fault.outcome is Outcome.REFUSED
    assert (len(ask.seen), ask.learned()) == (1, None)
    ask.say(SEED_UNKNOWN, REFUSED)
    ask(BODY)
    assert ask.learned() == Learned(dropped=("seed",))


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_only_a_rejection_is_asked_again(ask: Asking, status: int) -> None:
    ask.say(Say(SEED_UNKNOWN.body, status))
    ask(BODY)
    assert len(ask.seen) == 1


@pytest.mark.parametrize("model", ["zz-top", "other"])
@pytest.mark.parametrize(
    ("status", "message", "why"),
    [
        (404, "Application zz-top was not found", "unknown model"),
        (403, "Application zz-top is not for you", "unauthorised"),
        (400, "The organization must be verified to use zz-top", "unauthorised"),
    ],
)
def test_denial_that_quotes_the_model_is_of_the_model(
    ask: Asking, model: str, status: int, message: str, why: str
) -> None:
    ask.say(Say({"error": message}, status))
    fault = ask(BODY | {"model": model, "style": "Application"}).fault
    assert fault
    assert (fault.is_of_model, fault.is_of_account) == (model == "zz-top", model != "zz-top")
    assert fault.why == why or model != "zz-top"


def test_error_inside_a_200_is_learned_from(ask: Asking) -> None:
    ask.say(Say(SEED_UNKNOWN.body), Say({"message": "n is not supported", "data": None}), DRAWN)
    assert ask({"prompt": "a", "seed": 1, "style": "x"}).fault is not None
    assert [sorted(seen.json) for seen in ask.seen][1] == ["prompt", "style"]


def test_requests_to_a_contradictory_server_are_limited(ask: Asking) -> None:

    def contradict(seen: Seen) -> Say:
        side = int(re.findall(r"\d+", seen.json.get("size", "5"))[0])
        return rejection(f"size must be at least {side + 64}x{side + 64}", "size")

    ask.say(contradict)
    assert ask(BODY, (512, 512)).fault is not None
    assert len(ask.seen) <= MAX_REQUESTS


def test_bytes_are_asked_for_and_that_is_remembered(ask: Asking) -> None:
    ask.say(DRAWN)
    ask(BODY, base64=True)
    ask(BODY)
    assert [seen.json["response_format"] for seen in ask.seen] == ["b64_json"] * 2
    ask.say(gpt_image)
    ask(BODY)
    ask(BODY, base64=True)
    assert "response_format" not in ask.seen[-1].json


def test_deadline_bounds_all_requests_together(ask: Asking) -> None:
    late = Gate(DRAWN)
    ask.say(SEED_UNKNOWN, rejection("Unknown parameter: 'n'.", "n"), late)
    began = time.monotonic()
    with pytest.raises(UpstreamError) as caught:
        ask(BODY, deadline=Deadline.after(1.0))
    late.opened.set()
    assert (caught.value.why, len(ask.seen)) == (Why.TIMED_OUT, 3)
    assert 0.9 < time.monotonic() - began < 1.4
