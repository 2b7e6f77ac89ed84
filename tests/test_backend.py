"""Backends: finding the picture in an answer, and judging failures."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialect.answers import NoPicture, decode_base64, find_picture
from dialect.judging import Outcome
from drawing.backend import Backend, NotDrawn
from drawing.record import Image
from picture import ImageRequest
from settings.servers import BackendSettings
from storage import State
from upstream.client import Deadline, Upstream

from .conftest import REFUSAL, InProcess, drawing
from .servers import GIF, JPEG, WEBP, Say, ScriptedServer, Seen, png, read_request
from .wire import MakeRawServer, MakeServer, Net, guarded_net, hang, unhurried

REQUEST = ImageRequest("a red apple", 640, 480, "any", 7)
LIMIT = 2**20
PNG = png()
net = pytest.fixture(autouse=True)(guarded_net)


Draw = Callable[..., Image]


@pytest.fixture
def draw(state: State) -> Draw:
    """Draw with the backend at a URL: `draw(url, request, timeout=…, seconds=…, token=…)`."""

    def call(
        url: str,
        request: ImageRequest = REQUEST,
        *,
        prompt: str | None = None,
        timeout: float = 10,
        seconds: float = 10,
        **of_backend: Any,
    ) -> Image:
        there = Backend(
            BackendSettings(url, **of_backend),
            Upstream(),
            state,
            timeout=timeout,
            max_image_bytes=LIMIT,
        )
        return there.draw(prompt or request.prompt, request, Deadline.after(seconds))

    return call


def not_drawn(call: Callable[[], Any]) -> NotDrawn:
    with pytest.raises(NotDrawn) as caught:
        call()
    return caught.value


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- a picture, however it comes ----------------------------------------------------------------

ANSWERS: dict[str, Any] = {
    "b64_json": {"data": [{"b64_json": b64(PNG)}]},
    "b64_json beside a null url": {"data": [{"url": None, "b64_json": b64(PNG)}]},
    "b64_json beside an empty url": {"data": [{"url": "", "b64_json": b64(PNG)}]},
    "url beside a null b64_json": {"data": [{"url": "/a.png", "b64_json": None}]},
    "url of the own origin": {"data": [{"url": "{origin}/a.png"}]},
    "url in capitals": {"data": [{"url": "HTTP://{host}/a.png"}]},
    "url without a scheme": {"data": [{"url": "//{host}/a.png"}]},
    "data URI as url": {"data": [{"url": "data:image/png;base64," + b64(PNG)}]},
    "images, url": {"images": [{"url": "{origin}/a.png"}]},
    "images, a text that is a URL": {"images": ["{origin}/a.png"]},
    "images, a text that is base64": {"images": [b64(PNG)]},
    "images, a JPEG in base64": {"images": [b64(JPEG)]},
    "images beside empty data": {"data": [], "images": [b64(PNG)]},
    "data, a text": {"data": [b64(PNG)]},
    "the first of several": {"data": [{"b64_json": b64(PNG)}, {"b64_json": b64(GIF)}]},
    "data-URI prefix in capitals": {"data": [{"b64_json": "DATA:IMAGE/PNG;BASE64," + b64(PNG)}]},
    "lines of base64": {"data": [{"b64_json": "\r\n".join(textwrap.wrap(b64(PNG), 76)) + "\n"}]},
    "no padding": {"data": [{"b64_json": b64(PNG).rstrip("=")}]},
    "b64_json beside a url": {"data": [{"url": "http://10.0.0.1/a", "b64_json": b64(PNG)}]},
    "a null error": {"error": None, "data": [{"b64_json": b64(PNG)}]},
    "a message": {"message": "success", "data": [{"b64_json": b64(PNG)}]},
    "a good base_resp": {"base_resp": {"status_code": 0}, "data": [{"b64_json": b64(PNG)}]},
    "the raw picture": PNG,
    "a raw WebP": WEBP,
}


@pytest.mark.parametrize("dialect", ANSWERS)
def test_picture_is_found_in_every_dialect(server: MakeServer, draw: Draw, dialect: str) -> None:
    backend, said = server(), ANSWERS[dialect]
    if not isinstance(said, bytes):
        host = backend.url.partition("//")[2]
        text = json.dumps(said).replace("{origin}", backend.url).replace("{host}", host)
        said = json.loads(text)
    lie = {"Content-Type": "text/html; charset=utf-8"}
    backend.say(lambda seen: Say(PNG if seen.path == "/a.png" else said, headers=lie))
    image = draw(backend.url)
    assert image.drawn_by == backend.url
    assert image.data in (PNG, JPEG, WEBP)
    assert image.media_type.partition("/")[2].upper().encode() in (b"PNG", b"JPEG", b"WEBP")


def test_revised_prompt_is_returned(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(drawing(revised_prompt=" a ripe\0 apple\ud800 "), drawing(revised_prompt=5))
    assert [draw(backend.url).revised_prompt for _ in range(2)] == ["a ripe apple?", None]


def test_picture_of_just_the_limit_is_accepted(server: MakeServer, draw: Draw) -> None:
    backend, exact = server(), png(size=LIMIT)
    for say in (drawing(exact), Say(exact)):
        backend.say(say)
        assert draw(backend.url).data == exact


# --- no picture ---------------------------------------------------------------------------------

NO_PICTURES: dict[str, tuple[Any, str]] = {
    "HTML": ("<!doctype html><html><img src=data:image/png></html>", "not a picture"),
    "SVG in base64": ({"images": [b64(b"<svg/>")]}, "not a picture"),
    "an AVIF": (b"\0\0\0\x1cftypavif" + bytes(40), "not a picture"),
    "nothing": (b"", "not a picture"),
    "cut JSON": ('{"data": [{"b64_json": "' + b64(PNG), "not a picture"),
    "deep JSON": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not a picture"),
    "a number with many digits": (b'{"data": [' + b"9" * 5000 + b"]}", "not a picture"),
    "a cut picture": (PNG[:-1], "not a picture"),
    "a cut picture in base64": ({"images": [b64(PNG[:-12])]}, "not a picture"),
    "base64 that is none": ({"data": [{"b64_json": "this is no base64!"}]}, "not a picture"),
    "half a character": ({"data": [{"b64_json": "\ud800AAA"}]}, "not a picture"),
    "a number for a picture": ({"data": [{"b64_json": 5}]}, "not a picture"),
    "an object for a URL": ({"data": [{"url": {"href": "/a.png"}}]}, "not a picture"),
    "a file": ({"data": [{"url": "file:///etc/passwd"}]}, "not a picture"),
    "a relative path": ({"images": ["a.png"]}, "not a picture"),
    "a picture above the limit": ({"images": [b64(png(size=LIMIT + 1))]}, "answer too large"),
    "an answer far above the limit": ({"images": [b64(png(size=3 * LIMIT))]}, "answer too large"),
    "500": (Say("", 500), "down"),
}


@pytest.mark.parametrize("thing", NO_PICTURES)
def test_anything_but_a_picture_is_a_failure(server: MakeServer, draw: Draw, thing: str) -> None:
    backend, (said, why) = server(), NO_PICTURES[thing]
    lie = {"Content-Type": "image/png"}
    backend.say(said if isinstance(said, Say) else Say(said, headers=lie))
    fault = not_drawn(lambda: draw(backend.url)).fault
    assert (fault.outcome, fault.why) == (Outcome.FAILED, why)
    assert len(backend.seen) == 1


@pytest.mark.parametrize(
    ("say", "outcome"),
    [
        (REFUSAL, Outcome.REFUSED),
        (Say({"data": [{"url": "", "respect_moderation": False}]}), Outcome.REFUSED),
        (Say({"data": []}), Outcome.REJECTED),
        (Say({"task_id": "1"}), Outcome.REJECTED),
        (Say("", 400), Outcome.REJECTED),
        (Say("", 599), Outcome.FAILED),
    ],
)
def test_answer_is_judged(backend: ScriptedServer, draw: Draw, say: Say, outcome: Outcome) -> None:
    backend.say(say)
    assert not_drawn(lambda: draw(backend.url)).fault.outcome is outcome


def test_time_out_names_the_setting_that_ended_it(raw_server: MakeRawServer, draw: Draw) -> None:
    url = raw_server(hang).url
    late = [not_drawn(lambda: draw(url, timeout=0.2)), not_drawn(lambda: draw(url, seconds=0.2))]
    assert [error.fault.why for error in late] == ["timed out"] * 2
    assert "0.2 s (BACKEND_TIMEOUT)" in str(late[0])
    assert "GENERATION_DEADLINE" in str(late[1])


def test_time_out_covers_the_picture_that_is_named(raw_server: MakeRawServer, draw: Draw) -> None:
    asked = []

    def talk(connection: socket.socket) -> None:
        asked.append(read_request(connection).split()[1])
        if len(asked) == 2:
            hang(connection)
        content = b'{"data": [{"url": "/a.png"}]}'
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 29\r\n\r\n"
        connection.sendall(head + content)

    assert not_drawn(lambda: draw(raw_server(talk).url, timeout=0.5)).fault.why == "timed out"
    assert asked == [b"/v1/images/generations", b"/a.png"]


def test_cut_answer_is_a_failure_whatever_its_status(raw_server: MakeRawServer, draw: Draw) -> None:
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 400 No\r\nContent-Length: 9\r\n\r\nno")

    assert not_drawn(lambda: draw(raw_server(talk).url)).fault.outcome is Outcome.FAILED


# --- what is sent -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (ImageRequest('é\n"☃"\u2028'), {"prompt": 'é\n"☃"\u2028', "n": 1, "seed": 42}),
        (
            ImageRequest("a", 640, 480, "flux", 10**17, style="oil"),
            {"prompt": "a", "n": 1, "model": "flux-1", "size": "640x480", "seed": 10**17}
            | {"style": "oil"},
        ),
        (ImageRequest("a", model="sdxl", seed=-1), {"prompt": "a", "n": 1, "model": "sdxl"}
         | {"seed": -1}),
    ],
)  # fmt: skip
def test_request_body_is_this(
    backend: ScriptedServer, draw: Draw, request_: ImageRequest, body: dict[str, Any]
) -> None:
    draw(backend.url + "/openai/v1?api-version=2", request_, models={"flux": "flux-1"})
    seen = backend.seen[0]
    assert seen.json == body
    assert (seen.method, seen.target) == ("POST", "/openai/v1/images/generations?api-version=2")


PARAMS: dict[str, Any] = {
    "*": {"moderation": "low", "seed": None},
    "flux-1": {"steps": 4, "moderation": None, "style": "ink"},
    "small": {"size": "512x512"},
    "shaped": {"aspect_ratio": "4:3"},
    "unsized": {"size": None},
}


@pytest.mark.parametrize(
    ("model", "added"),
    [
        ("flux", {"model": "flux-1", "steps": 4, "style": "ink", "size": "640x480"}),
        ("sdxl", {"model": "sdxl", "moderation": "low", "style": "oil", "size": "640x480"}),
        (None, {"moderation": "low", "style": "oil", "size": "640x480"}),
        ("small", {"model": "small", "moderation": "low", "style": "oil", "size": "512x512"}),
        ("shaped", {"model": "shaped", "moderation": "low", "style": "oil", "aspect_ratio": "4:3"}),
        ("unsized", {"model": "unsized", "moderation": "low", "style": "oil"}),
    ],
)
def test_configured_parameters_replace_those_of_the_request(
    backend: ScriptedServer, draw: Draw, model: str | None, added: dict[str, Any]
) -> None:
    request = ImageRequest("a", 640, 480, model, style="oil")
    draw(backend.url, request, models={"flux": "flux-1"}, params=PARAMS)
    assert backend.seen[0].json == {"prompt": "a", "n": 1, **added}


def test_parameters_are_configured_by_backend(
    server: MakeServer, serve: Callable[..., InProcess]
) -> None:
    ours, theirs = server(), server()
    ours.say(Say("", 500))
    theirs.say(Say("", 500))
    params = json.dumps({f"{ours.url}/": {"*": {"size": "auto"}}})
    serve(ours, theirs, BACKEND_PARAMS=params).picture("x", width="64")
    assert (ours.seen[0].json["size"], theirs.seen[0].json["size"]) == ("auto", "64x64")


def test_configured_model_is_sent_with_its_own_parameters(
    backend: ScriptedServer, draw: Draw
) -> None:
    params = {"*": {"model": "flux"}, "flux": {"steps": 4}}
    draw(backend.url, ImageRequest("a"), params=params)
    assert backend.seen[0].json == {"prompt": "a", "n": 1, "seed": 42, "model": "flux", "steps": 4}


@pytest.mark.parametrize("name", ["steps", "size", "image_size"])
def test_configured_parameter_that_is_rejected_is_dropped(
    backend: ScriptedServer, draw: Draw, name: str
) -> None:
    backend.say(Say({"error": {"message": f"Unknown parameter: '{name}'."}}, 400), drawing())
    for _ in range(2):
        draw(backend.url, params={"*": {name: "8x8"}})
    assert [name in seen.json for seen in backend.seen] == [True, False, False]


def test_prompt_that_was_rewritten_is_the_one_that_is_drawn(
    backend: ScriptedServer, draw: Draw
) -> None:
    draw(backend.url, prompt="a green apple")
    assert backend.seen[0].json["prompt"] == "a green apple"


def test_backend_name_contains_no_secret(backend: ScriptedServer, draw: Draw) -> None:
    url = backend.url.replace("//", "//user:password@") + "/v1?key=secret"
    assert draw(url).drawn_by == backend.url + "/v1"


# --- the picture that an answer names -----------------------------------------------------------


def test_picture_of_the_same_origin_is_fetched_with_the_token(
    backend: ScriptedServer, draw: Draw
) -> None:
    backend.say(
        Say({"data": [{"url": backend.url + "/a/b.png?sig=c%2Fd"}]}),
        Say("", 302, {"Location": "/moved.png"}),
        Say(PNG),
    )
    assert draw(backend.url + "/v1", token="t").data == PNG
    assert [seen.target for seen in backend.seen[1:]] == ["/a/b.png?sig=c%2Fd", "/moved.png"]
    assert [seen.headers["Authorization"] for seen in backend.seen] == ["Bearer t"] * 3


PRIVATE = (
    *("http://127.0.0.1:{other}/a.png", "//127.0.0.1:{other}/a.png"),
    *("http://127.0.0.1:{other}\\@127.0.0.1:{own}/a.png", "https://127.0.0.1:{own}/a.png"),
    *("http://169.254.169.254/latest/meta-data/", "http://user:password@127.0.0.1:{other}/a"),
    *("http://localai:8080/a.png", "http://[::1", "http://:80/a.png"),
)


@pytest.mark.parametrize("pattern", PRIVATE)
def test_private_picture_is_requested_as_base64_from_then_on(
    server: MakeServer, draw: Draw, net: Net, pattern: str
) -> None:
    backend, other = server(), server()
    url = pattern.format(own=backend.port, other=other.port)

    def gateway(seen: Seen) -> Say:
        wants_bytes = seen.json.get("response_format") == "b64_json"
        return drawing() if wants_bytes else Say({"data": [{"url": url}]})

    backend.say(gateway)
    assert draw(backend.url, token="t").data == PNG
    assert len(backend.seen) == 2
    assert draw(backend.url, token="t").data == PNG
    assert len(backend.seen) == 3
    assert other.seen == []


def test_private_picture_without_bytes_is_a_failure(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(Say({"data": [{"url": "http://192.168.1.9/a.png"}]}))
    assert not_drawn(lambda: draw(backend.url)).fault.why == "forbidden URL"
    assert len(backend.seen) == 2


@pytest.mark.parametrize("status", [204, 404, 451, 500])
def test_picture_that_cannot_be_fetched_is_a_failure(
    backend: ScriptedServer, draw: Draw, status: int
) -> None:
    backend.say(Say({"data": [{"url": "/a.png"}]}), Say("nsfw", status))
    error = not_drawn(lambda: draw(backend.url))
    assert (error.fault.outcome, error.fault.why) == (Outcome.FAILED, "not a picture")
    assert str(status) in str(error)


# --- any answer ---------------------------------------------------------------------------------

WORDS = st.sampled_from(
    (
        *("data", "images", "b64_json", "url", "error", "code", "message", "param", "base_resp"),
        *("size", "status_code", "revised_prompt", "nsfw", "Unknown parameter: 'seed'", "429"),
        *("http://[::1", "http://127.0.0.1:9/a.png", "http://pics.example/a", "file:///x"),
        *("/a.png", "//[", "/9j/", "data:image/png;base64,", "\ud800", "\0", b64(PNG)),
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)
# Shaped like the real thing, so that deeper values are reached as well.
PICTURE = st.dictionaries(st.sampled_from(["b64_json", "url", "revised_prompt"]), JSON)
SHAPED = st.dictionaries(
    st.sampled_from(["data", "images"]), st.lists(PICTURE | JSON, min_size=1, max_size=2)
)
BODIES = st.binary(max_size=60) | (JSON | SHAPED).map(lambda value: json.dumps(value).encode())
STATUS = st.sampled_from([200, 200, 200, 201, 204, 302, 400, 404, 422, 429, 451, 500, 599])


def test_any_answer_is_a_picture_or_not_drawn(server: MakeServer, draw: Draw) -> None:
    there = server()

    @settings(unhurried, max_examples=60)
    @given(BODIES, STATUS)
    def check(body: bytes, status: int) -> None:
        there.say(Say(body, status))
        with contextlib.suppress(NotDrawn):
            assert draw(there.url).media_type.startswith("image/")

    check()
    assert len(there.seen) > 50


@unhurried
@given(JSON | SHAPED)
def test_any_json_holds_a_picture_or_none(answer: Any) -> None:
    with contextlib.suppress(NoPicture):
        found = find_picture(answer)
        assert found is None or (found.data is None) != (found.url is None)


@unhurried
@given(st.text(max_size=60) | st.text("AZaz09+/-_= \n", max_size=60))
def test_any_text_is_base64_or_no_picture(text: str) -> None:
    with contextlib.suppress(NoPicture):
        assert isinstance(decode_base64(text), bytes)


@unhurried
@given(st.binary(max_size=200), st.integers(1, 80), st.sampled_from(["", "data:image/x;base64,"]))
def test_base64_survives_lines_and_lost_padding(data: bytes, width: int, prefix: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode().rstrip("=")
        assert decode_base64(prefix + "\n ".join(textwrap.wrap(text, width))) == data
