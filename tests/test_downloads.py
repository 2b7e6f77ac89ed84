"""Pictures that an answer names by URL: fetched with patience, and never paid for twice."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from dialect.judging import Outcome
from upstream.client import Reply, Upstream, UpstreamError, Why

from .conftest import drawing
from .one_backend import PNG, Draw, not_drawn
from .servers import Answer, Say, ScriptedServer, Seen, free_port
from .wire import PUBLIC, MakeServer, Net, guarded_net

net = pytest.fixture(autouse=True)(guarded_net)

NAMED = Say({"data": [{"url": "/a.png"}]})


def hang_up(seen: Seen) -> NoReturn:
    raise ConnectionError


HICCUPS: dict[str, Answer] = {
    **{str(status): Say("", status) for status in (204, 404, 408, 425, 429, 500, 503)},
    "empty": Say(b""),
    "lost": hang_up,
}


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["own host", "elsewhere"])
@pytest.mark.parametrize("hiccup", HICCUPS)
def test_picture_whose_url_hiccups_is_paid_once(
    server: MakeServer, draw: Draw, net: Net, hiccup: str, is_elsewhere: bool
) -> None:
    backend = server()
    storage = server() if is_elsewhere else backend
    net.name("pics.example", [PUBLIC])
    net.routes[PUBLIC] = "127.0.0.1"
    url = f"http://pics.example:{storage.port}/a.png" if is_elsewhere else "/a.png"
    hiccups = [HICCUPS[hiccup]] * 3
    answer = Say({"data": [{"url": url}]})
    if is_elsewhere:
        backend.say(answer)
        storage.say(*hiccups, Say(PNG))
    else:
        backend.say(answer, *hiccups, Say(PNG))
    assert draw(backend.url).data == PNG
    assert [seen.method for seen in backend.seen].count("POST") == 1
    # A connection that is lost at once is first made anew without a pause.
    assert draw.pauses == [1, 2, 4] or (hiccup == "lost" and draw.pauses[:1] == [1])


@pytest.mark.parametrize(
    ("status", "seconds", "pauses"),
    [(404, 10, [1, 2, 4]), (500, 2.5, [1, 2]), (403, 10, []), (451, 10, [])],
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


# --- URLs that lead nowhere ---------------------------------------------------------------------


PRIVATE = (
    *("http://127.0.0.1:{other}/a.png", "//127.0.0.1:{other}/a.png"),
    *("http://127.0.0.1:{other}\\@127.0.0.1:{own}/a.png", "https://127.0.0.1:{own}/a.png"),
    *("http://169.254.169.254/latest/meta-data/", "http://user:password@127.0.0.1:{other}/a"),
    *("http://localai:8080/a.png", "http://[::1", "http://:80/a.png"),
)


@pytest.mark.parametrize("pattern", PRIVATE)
def test_private_picture_is_requested_as_base64_from_then_on(
    server: MakeServer, draw: Draw, pattern: str
) -> None:
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


def test_unreachable_picture_is_requested_as_base64_after_patience(
    server: MakeServer, draw: Draw, net: Net
) -> None:
    backend = server()
    net.name("pics.example", [PUBLIC])
    net.routes[PUBLIC] = "127.0.0.1"
    backend.say(Say({"data": [{"url": f"http://pics.example:{free_port()}/a"}]}), drawing())
    assert draw(backend.url).data == PNG
    assert draw.pauses == [1, 2, 4]


def test_private_picture_without_bytes_is_a_failure(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(Say({"data": [{"url": "http://192.168.1.9/a.png"}]}))
    assert not_drawn(lambda: draw(backend.url)).fault.why == "forbidden URL"
    assert len(backend.seen) == 2
