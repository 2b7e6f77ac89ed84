"""What a backend is sent, and its time-outs."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from dialect.judging import Outcome
from picture import ImageRequest

from .conftest import InProcess, drawing
from .one_backend import Draw, not_drawn
from .servers import Say, ScriptedServer, read_request
from .wire import MakeRawServer, MakeServer, guarded_net, hang

net = pytest.fixture(autouse=True)(guarded_net)


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
