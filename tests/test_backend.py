"""What a backend is sent, its time-outs and slots, and pictures that it names by URL."""

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dialect.judging import Outcome
from drawing.record import Drawing
from picture import ImageRequest
from storage.state import State
from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why

from .conftest import drawing
from .one_backend import PNG, Draw, backend_at, not_drawn, taken
from .scripted import Answer, Say, ScriptedServer, Seen, read_request, wait_until
from .states import REQUEST, held_elsewhere
from .wire import PUBLIC, MakeRawServer, MakeServer, Net, guarded_net, hang

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


def test_configured_model_has_its_own_parameters(backend: ScriptedServer, draw: Draw) -> None:
    params = {"*": {"model": "flux"}, "flux": {"steps": 4}}
    draw(backend.url, ImageRequest("a"), params=params)
    assert backend.seen[0].json == {"prompt": "a", "n": 1, "seed": 42, "model": "flux", "steps": 4}


@pytest.mark.parametrize("name", ["steps", "size", "image_size"])
def test_rejected_parameter_is_dropped(backend: ScriptedServer, draw: Draw, name: str) -> None:
    backend.say(Say({"error": {"message": f"Unknown parameter: '{name}'."}}, 400), drawing())
    for _ in range(2):
        draw(backend.url, params={"*": {name: "8x8"}})
    assert [name in seen.json for seen in backend.seen] == [True, False, False]


def test_backend_name_contains_no_secret(backend: ScriptedServer, draw: Draw) -> None:
    url = backend.url.replace("//", "//user:password@") + "/v1?key=secret"
    assert draw(url).drawn_by == backend.url + "/v1"


# --- slots --------------------------------------------------------------------------------------


def test_slot_is_free_again_once_it_is_closed(state: State) -> None:
    there = backend_at(state, "http://127.0.0.1:1", concurrency=2)
    with taken(there):
        one = taken(there)
        assert there.take_slot() is None
        one.close()
        assert there.take_slot()


def test_slot_of_a_killed_process_is_free(state: State, tmp_path: Path) -> None:
    there = backend_at(state, "http://127.0.0.1:1", concurrency=1)
    with held_elsewhere(tmp_path, there.endpoint.note_key("slot 0")) as child:
        assert there.take_slot() is None
        child.kill()
        child.wait()
        wait_until(there.take_slot)


# --- pictures that an answer names: fetched with patience, and never paid for twice -------------

NAMED = Say({"data": [{"url": "/a.png"}]})


def hang_up(seen: Seen) -> NoReturn:
    raise ConnectionError


HICCUPS: dict[str, Answer] = {
    **{str(status): Say("", status) for status in (204, 404, 408, 425, 429, 500, 503)},
    "empty": Say(b""),
    "lost": hang_up,
}


@pytest.mark.parametrize("hiccup", HICCUPS)
def test_url_hiccup_is_paid_once(server: MakeServer, draw: Draw, net: Net, hiccup: str) -> None:
    backend, storage = server(), server()
    net.name("pics.example", [PUBLIC])
    net.routes[PUBLIC] = "127.0.0.1"
    backend.say(Say({"data": [{"url": f"http://pics.example:{storage.port}/a.png"}]}))
    storage.say(*[HICCUPS[hiccup]] * 3, Say(PNG))
    assert draw(backend.url).data == PNG
    assert len(backend.seen) == 1
    # A connection that is lost at once is first made anew without a pause.
    assert draw.pauses == [1, 2, 4] or (hiccup == "lost" and draw.pauses[:1] == [1])


@pytest.mark.parametrize(
    ("status", "seconds", "pauses"),
    [(404, 10, [1, 2, 4]), (500, 3.5, [1, 2]), (403, 10, []), (451, 10, [])],
)
def test_picture_that_cannot_be_fetched_is_a_failure(
    backend: ScriptedServer, draw: Draw, status: int, seconds: float, pauses: list[float]
) -> None:
    backend.say(NAMED, Say("nsfw", status))
    error = not_drawn(lambda: draw(backend.url, seconds=seconds))
    assert (error.fault.outcome, error.fault.why) == (Outcome.FAILED, "not a picture")
    assert str(status) in str(error)
    assert draw.pauses == pauses
    assert len(backend.seen) == len(pauses) + 2


class SlowToConnect(Upstream):
    """Times out once, as a connection does long before the deadline."""

    def download(self, *args: Any, **more: Any) -> Reply:
        if not self.has_timed_out:
            self.has_timed_out = True
            raise UpstreamError("it did not answer in time", Why.TIMED_OUT)
        return super().download(*args, **more)

    has_timed_out = False


def test_connection_that_times_out_is_tried_again(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(NAMED, Say(PNG))
    assert draw(backend.url, upstream=SlowToConnect()).data == PNG
    assert draw.pauses == [1]


def test_picture_of_the_same_origin_gets_the_token(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(
        Say({"data": [{"url": backend.url + "/a/b.png?sig=c%2Fd"}]}),
        Say("", 302, {"Location": "/图.png".encode().decode("latin-1")}),
        Say("", 302, {"Location": "/moved.png"}),
        Say(PNG),
    )
    assert draw(backend.url + "/v1", token="t").data == PNG
    targets = ["/a/b.png?sig=c%2Fd", "/%E5%9B%BE.png", "/moved.png"]
    assert [seen.target for seen in backend.seen[1:]] == targets
    assert [seen.headers["Authorization"] for seen in backend.seen] == ["Bearer t"] * 4


# --- URLs that lead nowhere ---------------------------------------------------------------------


PRIVATE = (
    *("http://127.0.0.1:{other}/a.png", "//127.0.0.1:{other}/a.png"),
    *("http://127.0.0.1:{other}\\@127.0.0.1:{own}/a.png", "https://127.0.0.1:{own}/a.png"),
    *("http://169.254.169.254/latest/meta-data/", "http://user:password@127.0.0.1:{other}/a"),
    *("http://[::1", "http://:80/a.png"),
)


@pytest.mark.parametrize("pattern", PRIVATE)
def test_private_picture_is_fetched_as_base64(server: MakeServer, draw: Draw, pattern: str) -> None:
    backend, other = server(), server()
    url = pattern.format(own=backend.port, other=other.port)

    def answer(seen: Seen) -> Say:
        wants_bytes = seen.json.get("response_format") == "b64_json"
        return drawing() if wants_bytes else Say({"data": [{"url": url}]})

    backend.say(answer)
    assert draw(backend.url, token="t").data == PNG
    assert len(backend.seen) == 2
    assert draw(backend.url, token="t").data == PNG
    assert len(backend.seen) == 3
    assert (other.seen, draw.pauses) == ([], [])


def test_unreachable_picture_is_requested_as_base64(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(Say({"data": [{"url": "http://localai:8080/a.png"}]}), drawing())
    assert draw(backend.url).data == PNG
    assert draw.pauses == [1, 2, 4]


def test_drawn_picture_that_cannot_be_fetched_has_been_billed(
    backend: ScriptedServer, state: State
) -> None:
    backend.say(Say({"data": [{"url": "http://localai:8080/a.png"}]}))
    there, record = backend_at(state, backend.url), Drawing(REQUEST, Deadline.after(10))
    there.sleep = lambda seconds: None
    assert not_drawn(lambda: there.draw(record)).fault.why == Why.UNREACHABLE
    assert record.may_have_been_billed


def test_private_picture_without_bytes_is_a_failure(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(Say({"data": [{"url": "http://192.168.1.9/a.png"}]}))
    for calls in (2, 3):  # once it was asked for bytes in vain, asking again would only cost
        assert not_drawn(lambda: draw(backend.url)).fault.why == "forbidden URL"
        assert len(backend.seen) == calls
