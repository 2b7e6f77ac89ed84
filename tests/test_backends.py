"""What a backend's answer means, who is asked next, and how long a failing one is left alone."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import ipaddress
import itertools
import json
import logging
import random
import socket
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import config
from backends import (
    Backend,
    Backends,
    Cooldowns,
    Failed,
    Image,
    Pollinations,
    Refused,
    decode_base64,
    first_picture,
    retry_after,
)
from config import BackendSettings, PollinationsSettings
from picture import ImageRequest
from upstream.client import Deadline, Upstream

from .conftest import REFUSAL, drawing
from .servers import (
    GIF,
    JPEG,
    WEBP,
    RawServer,
    Say,
    ScriptedServer,
    Seen,
    closing_all,
    png,
    read_request,
)

MakeServer = Callable[[], ScriptedServer]
MakeRawServer = Callable[[Callable[[socket.socket], None]], RawServer]

REQUEST = ImageRequest("a red apple", 640, 480, "any", 7)
LIMIT = 2**20
# A busy machine is no finding: an example may take as long as it likes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
PNG = png()


class Notes:
    """What the workers know together, in a dict; values go through JSON, as in the cache."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def recall(self, kind: str, key: str) -> Any:
        return json.loads(self.kept.get((kind, key), "null"))

    def remember(self, kind: str, key: str, value: Any, ttl: float) -> None:
        self.kept[kind, key] = json.dumps(value)

    def forget(self, kind: str, key: str) -> bool:
        return self.kept.pop((kind, key), None) is not None


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def idle() -> Iterator[list[ScriptedServer]]:
    """Servers that no test uses just now: closing one takes longer than most tests."""
    servers: list[ScriptedServer] = []
    with closing_all(servers):
        yield servers


@pytest.fixture
def server(idle: list[ScriptedServer]) -> Iterator[MakeServer]:
    """Make scripted servers, or use idle ones again."""
    taken: list[ScriptedServer] = []

    def make() -> ScriptedServer:
        taken.append(there := idle.pop() if idle else ScriptedServer())
        there.script, there.seen = [], []
        return there

    yield make
    idle += taken


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Note where every connection goes; let none of them leave this machine."""
    made: list[tuple[str, int]] = []
    connect = socket.socket.connect

    def guarded(sock: socket.socket, address: Any) -> None:
        made.append(address[:2])
        assert ipaddress.ip_address(address[0]).is_loopback, f"a packet would go to {address}"
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield made
    assert all(ipaddress.ip_address(host).is_loopback for host, _ in made)


def no_names(host: str, *_: Any) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, f"{host} would have been looked up")


def backend_at(url: str, notes: Notes | None = None, **settings: Any) -> Backend:
    return Backend(
        BackendSettings(url, **settings),
        Upstream(no_names),
        notes if notes is not None else Notes(),
        timeout=10,
        max_image_bytes=LIMIT,
    )


def draw(url: str, request: ImageRequest = REQUEST, **settings: Any) -> Image:
    return backend_at(url, **settings).draw(request.prompt, request, Deadline.after(10))


def failure_of(call: Callable[[], Any]) -> Failed:
    with pytest.raises(Failed) as caught:
        call()
    return caught.value


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- a picture, however it comes ----------------------------------------------------------------

LATE = "it did not answer in time"


def hang(connection: socket.socket) -> None:
    """Wait until the other side closes."""
    while connection.recv(65536):
        pass


RESPONSES: dict[str, Any] = {
    "b64_json": {"data": [{"b64_json": b64(PNG)}]},
    "b64_json beside a null url": {"data": [{"url": None, "b64_json": b64(PNG)}]},
    "b64_json beside an empty url": {"data": [{"url": "", "b64_json": b64(PNG)}]},
    "url beside a null b64_json": {"data": [{"url": "/a.png", "b64_json": None}]},
    "url beside an empty b64_json": {"data": [{"url": "/a.png", "b64_json": ""}]},
    "url of the own origin": {"data": [{"url": "{origin}/a.png"}]},
    "url in capitals": {"data": [{"url": "HTTP://{host}/a.png"}]},
    "url without an origin": {"data": [{"url": "/a.png"}]},
    "url without a scheme": {"data": [{"url": "//{host}/a.png"}]},
    "data URI as url": {"data": [{"url": "data:image/png;base64," + b64(PNG)}]},
    "images, url": {"images": [{"url": "{origin}/a.png"}]},
    "images, b64_json": {"images": [{"b64_json": b64(PNG)}]},
    "images, a text that is a URL": {"images": ["{origin}/a.png"]},
    "images, a text that is base64": {"images": [b64(PNG)]},
    "images, a text that is a data URI": {"images": ["data:image/png;base64," + b64(PNG)]},
    "images beside empty data": {"data": [], "images": [b64(PNG)]},
    "images beside null data": {"data": None, "images": [b64(PNG)]},
    "data, a text": {"data": [b64(PNG)]},
    "the first of several": {"data": [{"b64_json": b64(PNG)}, {"b64_json": b64(GIF)}]},
    "data-URI prefix": {"data": [{"b64_json": "data:image/jpeg;base64," + b64(PNG)}]},
    "data-URI prefix in capitals": {"data": [{"b64_json": "DATA:IMAGE/PNG;BASE64," + b64(PNG)}]},
    "lines of base64": {"data": [{"b64_json": "\r\n".join(textwrap.wrap(b64(PNG), 76)) + "\n"}]},
    "spaces around base64": {"data": [{"b64_json": f" \t{b64(PNG)} \n"}]},
    "no padding": {"data": [{"b64_json": b64(PNG).rstrip("=")}]},
    "too much padding": {"data": [{"b64_json": b64(PNG).rstrip("=") + "===="}]},
    "b64_json beside a url": {"data": [{"url": "http://10.0.0.1/a", "b64_json": b64(PNG)}]},
    "an empty error": {"error": None, "data": [{"b64_json": b64(PNG)}]},
    "a good base_resp": {"base_resp": {"status_code": 0}, "data": [{"b64_json": b64(PNG)}]},
    "the raw picture": PNG,
}


@pytest.mark.parametrize("dialect", RESPONSES)
@pytest.mark.parametrize("content_type", ["application/json", "text/html; charset=utf-8"])
def test_picture_is_found_in_every_dialect(
    server: MakeServer, dialect: str, content_type: str
) -> None:
    backend = server()
    said = RESPONSES[dialect]
    if not isinstance(said, bytes):
        host = backend.url.partition("//")[2]
        text = json.dumps(said)
        said = json.loads(text.replace("{origin}", backend.url).replace("{host}", host))

    def answer(seen: Seen) -> Say:
        lie = {"Content-Type": content_type}
        return Say(PNG, headers=lie) if seen.path == "/a.png" else Say(said, headers=lie)

    backend.say(answer)
    assert draw(backend.url) == Image(PNG, "image/png", backend.url, None)


# The length decides about padding: each of three lengths comes by.
@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (png(3, 5, size=1000), "image/png"),
        (png(3, 5, size=1001), "image/png"),
        (png(3, 5, size=1002), "image/png"),
        (JPEG, "image/jpeg"),
        (GIF, "image/gif"),
        (GIF.replace(b"GIF89a", b"GIF87a"), "image/gif"),
        (WEBP, "image/webp"),
    ],
)
def test_every_kind_of_picture_is_known_by_its_magic_bytes(
    server: MakeServer, data: bytes, media_type: str
) -> None:
    backend = server()
    lie = {"Content-Type": "image/avif"}
    for say in (
        drawing(data),
        Say({"images": [b64(data).rstrip("=")]}),
        Say({"images": [f"data:image/tiff;base64,{b64(data)}"]}),
        Say(data, headers=lie),
    ):
        backend.say(say)
        image = draw(backend.url)
        assert (image.data, image.media_type) == (data, media_type)
    backend.say(Say({"data": [{"url": "/any.bmp"}]}), Say(data, headers=lie))
    assert draw(backend.url).media_type == media_type


def test_jpeg_in_base64_is_no_path(server: MakeServer) -> None:
    assert b64(JPEG).startswith("/9j/")
    backend = server()
    backend.say(drawing(JPEG))
    assert draw(backend.url).data == JPEG
    assert len(backend.seen) == 1


def test_prompt_of_the_vendor_is_handed_on(server: MakeServer) -> None:
    backend = server()
    backend.say(
        drawing(revised_prompt=" a ripe\0 apple\ud800 "),
        drawing(revised_prompt=5),
        drawing(revised_prompt=""),
    )
    assert [draw(backend.url).revised_prompt for _ in range(3)] == ["a ripe apple?", None, None]


# --- refusals -----------------------------------------------------------------------------------


def error(message: str = "No.", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


MODERATED: dict[str, Say] = {
    "dall-e": Say(error(code="content_policy_violation", param=None, type="x"), 400),
    "GPT-image": REFUSAL,
    "GPT-image, by its code alone": Say(error(code="moderation_blocked"), 400),
    "Azure": Say(error(code="x", inner_error={"code": "ResponsibleAIPolicyViolation"}), 400),
    "Azure, other spelling": Say(
        error(innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}), 400
    ),
    "Azure, contentFilter": Say(error(code="contentFilter"), 400),
    "Azure, content_filter": Say(error(code="content_filter", status=400), 400),
    "new-api": Say(error(code="sensitive_words_detected", type="new_api_error"), 400),
    "Ark": Say(error(code="InputTextSensitiveContentDetected", param="", type="x"), 400),
    "Ark, inside a 200": Say(error(code="OutputImageSensitiveContentDetected.Policy")),
    "LiteLLM": Say(
        error("litellm.ContentPolicyViolationError: OpenAIException", code="400", type=None), 400
    ),
    "MiniMax": Say({"base_resp": {"status_code": 1026, "status_msg": "x"}, "data": None}),
    "Gemini, IMAGE_SAFETY": Say(error("x", status="IMAGE_SAFETY"), 400),
    "Gemini, in a list": Say([error("IMAGE_PROHIBITED_CONTENT")], 400),
    "safety system": Say(error("Your request was rejected by our safety system."), 400),
    "safety checks": Say(error("It did not pass the safety checks"), 422),
    "safety check": Say({"detail": "failed a Safety Check"}, 400),
    "content policy": Say({"message": "against our content policy"}, 400),
    "content management policy": Say(error("triggering Azure's content management policy"), 400),
    "nsfw": Say({"detail": "NSFW content"}, 422),
    "sensitive": Say("The prompt has sensitive words.", 400),
    "451": Say("", 451),
    "451 with a text": Say(error("Unavailable for legal reasons"), 451),
    "beside the name of a parameter": Say(error("Invalid 'size': nsfw", param="seed"), 400),
}
WITHOUT_A_PICTURE: dict[str, Any] = {
    "xAI": {"data": [{"url": "", "respect_moderation": False}]},
    "xAI, without data": {"respect_moderation": False},
    "Gemini": {"candidates": [{"finishReason": "IMAGE_PROHIBITED_CONTENT"}]},
    "Ark": {"data": [{"error": {"code": "OutputImageSensitiveContentDetected"}}]},
    "no picture": {"created": 1, "data": []},
    "no data": {"created": 1},
    "null data": {"data": None},
    "nothing in data": {"data": [{}]},
    "null in data": {"data": [None]},
    "nulls": {"data": [{"url": None, "b64_json": None}]},
    "empty images": {"images": [""]},
}
UNKNOWN: dict[str, Say] = {
    "a text": Say(error("It cannot be drawn."), 400),
    "nothing": Say("", 400),
    "a detail": Say({"detail": "no"}, 422),
    "an error inside a 200": Say(error("It cannot be drawn.")),
    # Not moderation's word, in whose sense it would end the asking again.
    "case-sensitive": Say(error("Names are case-sensitive."), 400),
}
REFUSALS = [
    *[(say, "its moderation refused the prompt") for say in MODERATED.values()],
    *[(Say(body), "it answered without a picture") for body in WITHOUT_A_PICTURE.values()],
    *[(say, f"it answered {max(say.status, 400)} to the prompt") for say in UNKNOWN.values()],
]


@pytest.mark.parametrize(
    ("say", "reason"), REFUSALS, ids=[*MODERATED, *WITHOUT_A_PICTURE, *UNKNOWN]
)
def test_refusal_is_known(server: MakeServer, say: Say, reason: str) -> None:
    backend, notes = server(), Notes()
    backend.say(say)
    with pytest.raises(Refused) as caught:
        draw(backend.url, notes=notes)
    assert str(caught.value) == reason
    assert caught.value.everywhere
    assert len(backend.seen) == 1
    assert notes.kept == {}


# --- failures -----------------------------------------------------------------------------------

LOCKED_OUT = error(
    "Your resource has been temporarily blocked because we detected behavior that may violate our"
    " content policy.",
    code="ResponsibleAIPolicyViolation",
)
# What is answered, how long it cools down (None: growing), whether somebody has to look at it.
FAULTS: dict[str, tuple[Say, float | None, bool]] = {
    "401": (Say(error("Incorrect API key", code="invalid_api_key"), 401), 60, True),
    "402": (Say("", 402), 60, True),
    "403": (Say(error("nsfw"), 403), 60, True),
    "Azure's lock-out": (Say(LOCKED_OUT, 403), 60, True),
    "404": (Say(error("The model is gone", code="model_not_found"), 404), 60, True),
    "401 with a Retry-After": (Say("", 401, {"Retry-After": "7"}), 60, True),
    "408": (Say("", 408), None, False),
    "409": (Say("", 409), None, False),
    "429": (Say(error("Rate limited", code="rate_limit_exceeded"), 429), None, False),
    "429 with a sign of moderation": (Say(REFUSAL.body, 429), None, False),
    "500": (Say(error("Internal error in the safety system"), 500), None, False),
    "502": (Say("<html>Bad gateway</html>", 502), None, False),
    "503": (Say("", 503), None, False),
    "504": (Say("", 504), None, False),
    "530": (Say("", 530), None, False),
    "599": (Say("", 599), None, False),
    "301": (Say("", 301, {"Location": "/"}), None, False),
    "405": (Say("", 405), None, False),
    "413": (Say("", 413), None, False),
    "401 inside a 200": (Say(error(code=401)), 60, True),
    "429 inside a 200": (Say(error(code="429")), None, False),
    "500 inside a 200": (Say(error("nsfw", code=500)), None, False),
    "429, seconds": (Say("", 429, {"Retry-After": "17"}), 17, False),
    "429, a fraction": (Say("", 429, {"Retry-After": "1.5"}), 1.5, False),
    "503, seconds": (Say("", 503, {"retry-after": " 90 "}), 90, False),
    "429, milliseconds": (Say("", 429, {"Retry-After-Ms": "2500"}), 2.5, False),
    "503, both": (Say("", 503, {"retry-after": "9", "retry-after-ms": "2500"}), 2.5, False),
    "503, garbage and seconds": (
        Say("", 503, {"retry-after": "9", "retry-after-ms": "soon"}),
        9,
        False,
    ),
    "429, at once": (Say("", 429, {"Retry-After": "0"}), 0, False),
    "429, garbage": (Say("", 429, {"Retry-After": "soon"}), None, False),
    "429, negative": (Say("", 429, {"Retry-After": "-5"}), None, False),
    "429, empty": (Say("", 429, {"Retry-After": ""}), None, False),
    "429, not a number": (Say("", 429, {"Retry-After": "nan"}), None, False),
    "429, endless": (Say("", 429, {"Retry-After": "9" * 5000}), None, False),
    "billing limit": (
        Say(error("Billing hard limit has been reached", code="billing_hard_limit_reached"), 400),
        60,
        True,
    ),
    "unknown model": (Say(error("Bad.", param="model", code="invalid_value"), 400), 0, False),
    "MiniMax's own failure": (Say({"base_resp": {"status_code": 1008}}), None, False),
    "MiniMax's strange failure": (Say({"base_resp": {"status_code": [1026]}}), None, False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_the_backend_is_a_failure(server: MakeServer, fault: str) -> None:
    say, cooldown, needs_attention = FAULTS[fault]
    backend = server()
    backend.say(say)
    failed = failure_of(lambda: draw(backend.url))
    assert (failed.cooldown, failed.needs_attention) == (cooldown, needs_attention)
    assert len(backend.seen) == 1


def test_retry_after_may_be_a_date() -> None:
    clock = Clock()
    for seconds, expected in ((0, 0), (30, 30), (86400, 86400), (-60, 0)):
        date = email.utils.formatdate(clock.now + seconds, usegmt=True)
        assert retry_after({"retry-after": date}, clock) == expected
    assert retry_after({"retry-after": "Fri, 15 Jan 2027 08:00:10 GMT"}, clock) == 10
    assert retry_after({"retry-after": "Fri, 15 Jan 2027 09:00:10 +0100"}, clock) == 10
    assert retry_after({"retry-after": "Fri, 99 Jan 2027 08:00:10 GMT"}, clock) is None
    assert retry_after({}, clock) is None


def test_date_in_an_answer_is_read(server: MakeServer) -> None:
    backend = server()
    backend.say(Say("", 503, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}))
    cooldown = failure_of(lambda: draw(backend.url)).cooldown
    assert cooldown is not None
    assert cooldown > 10**9


@unhurried
@given(st.text(max_size=40) | st.text("0123456789:.,+- MonJanGT", max_size=40))
def test_retry_after_of_any_text_is_seconds_or_none(text: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        seconds = retry_after({name: text})
        assert seconds is None or seconds >= 0


NOT_PICTURES: dict[str, Any] = {
    "HTML": "<!doctype html><html><img src=data:image/png></html>",
    "SVG": '<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>',
    "SVG in base64": {"images": [b64(b"<svg/>")]},
    "a PDF": b"%PDF-1.7\n",
    "an AVIF": b"\0\0\0\x1cftypavif" + bytes(40),
    "a BMP": b"BM" + bytes(60),
    "nothing": b"",
    "white space": b" \n",
    "a JSON text": '"text"',
    "a JSON number": "12",
    "a JSON list": [],
    "a list of pictures": [{"b64_json": b64(PNG)}],
    "cut JSON": '{"data": [{"b64_json": "' + b64(PNG),
    "deep JSON": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "a number with many digits": b'{"data": [' + b"9" * 5000 + b"]}",
    "magic bytes alone": PNG[:8],
    "a cut PNG header": PNG[:20],
    "a PNG without width": png(0, 1),
    "a PNG without height": png(1, 0),
    "a PNG without its header": PNG[:8] + PNG[33:],
    "a cut JPEG": JPEG[:24],
    "a JPEG without height": JPEG.replace(b"\x08\0\x01\0\x01", b"\x08\0\0\0\x01"),
    "a JPEG of fill bytes": b"\xff" * 1000,
    "a JPEG of empty segments": b"\xff\xd8" + b"\xff\xe0\0\0" * 1000,
    "a cut GIF": GIF[:8],
    "a GIF without width": GIF[:6] + bytes(20),
    "a cut WebP": WEBP[:16],
    "a RIFF that is a WAVE": b"RIFF\x24\0\0\0WAVEfmt " + bytes(20),
    "base64 that is none": {"data": [{"b64_json": "this is no base64!"}]},
    "base64 of a wrong length": {"data": [{"b64_json": "A"}]},
    "base64 beyond ASCII": {"data": [{"b64_json": "ÀÀÀÀ"}]},
    "base64 of half a character": {"data": [{"b64_json": "\ud800AAA"}]},
    "base64 with a hole": {"data": [{"b64_json": "iVBO=Rw0K"}]},
    "an empty data URI": {"images": ["data:image/png;base64,"]},
    "a data URI without a comma": {"images": ["data:image/png;base64"]},
    "a data URI in percent": {"images": ["data:image/svg+xml,%3Csvg/%3E"]},
    "a number for a picture": {"data": [{"b64_json": 5}]},
    "true for a picture": {"images": [True]},
    "a list for a picture": {"images": [["a"]]},
    "an object for a URL": {"data": [{"url": {"href": "/a.png"}}]},
    "a URL that is none": {"data": [{"url": "http://[::1"}]},
    "a URL without a host": {"data": [{"url": "http://:80/a.png"}]},
    "a file": {"data": [{"url": "file:///etc/passwd"}]},
    "an FTP URL": {"images": ["ftp://127.0.0.1/a.png"]},
    "a gopher URL": {"images": ["gopher://127.0.0.1/_a"]},
    "a relative path": {"images": ["a.png"]},
    "a picture above the limit": png(size=LIMIT + 1),
    "a picture in base64 above the limit": {"images": [b64(png(size=LIMIT + 1))]},
    "an answer far above the limit": {"images": [b64(png(size=3 * LIMIT))]},
}


@pytest.mark.parametrize("thing", NOT_PICTURES)
def test_what_is_not_a_picture_is_a_failure(server: MakeServer, thing: str) -> None:
    backend = server()
    backend.say(Say(NOT_PICTURES[thing], headers={"Content-Type": "image/png"}))
    failed = failure_of(lambda: draw(backend.url))
    assert failed.cooldown is None
    assert len(backend.seen) == 1


def test_picture_of_just_the_limit_is_taken(server: MakeServer) -> None:
    backend = server()
    exact = png(size=LIMIT)
    assert len(exact) == LIMIT
    for say in (drawing(exact), Say(exact)):
        backend.say(say)
        assert draw(backend.url).data == exact


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\nContent-Ty",
        b"HTTP/1.1 400 No\r\nContent-Length: 9\r\n\r\nno",
    ],
)
def test_cut_answer_is_a_failure_whatever_its_status(
    raw_server: MakeRawServer, data: bytes
) -> None:
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(data)

    failed = failure_of(lambda: draw(raw_server(talk).url))
    assert str(failed) == "its answer was cut short or is not HTTP"
    assert failed.cooldown is None


def test_time_out_of_a_backend_is_a_failure(raw_server: MakeRawServer) -> None:
    url = raw_server(hang).url
    deadline = Deadline.after(10)
    hurried = Backend(BackendSettings(url), Upstream(), Notes(), timeout=0.2, max_image_bytes=9)
    assert str(failure_of(lambda: hurried.draw("a", REQUEST, deadline))) == LATE
    patient = backend_at(url)
    assert str(failure_of(lambda: patient.draw("a", REQUEST, Deadline.after(0.2)))) == LATE
    assert deadline.remaining() > 9


def test_time_out_covers_the_picture_that_is_named(raw_server: MakeRawServer) -> None:
    asked = []

    def talk(connection: socket.socket) -> None:
        asked.append(read_request(connection).split()[1])
        if len(asked) == 2:
            hang(connection)
        content = b'{"data": [{"url": "/a.png"}]}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n" + content)

    patient = backend_at(raw_server(talk).url)
    assert str(failure_of(lambda: patient.draw("a", REQUEST, Deadline.after(0.5)))) == LATE
    assert asked == [b"/v1/images/generations", b"/a.png"]


# --- what is sent -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (ImageRequest('é\n"☃"\u2028'), {"prompt": 'é\n"☃"\u2028', "n": 1, "seed": 42}),
        (ImageRequest("a", seed=-1), {"prompt": "a", "n": 1, "seed": -1}),
        (
            ImageRequest("a", 640, 480, "flux", 10**17),
            {"prompt": "a", "n": 1, "model": "flux-1", "size": "640x480", "seed": 10**17},
        ),
        (
            ImageRequest("a", model="sdxl"),
            {"prompt": "a", "n": 1, "model": "sdxl", "seed": 42},
        ),
    ],
)
def test_request_body_is_this(
    server: MakeServer, request_: ImageRequest, body: dict[str, Any]
) -> None:
    backend = server()
    backend.say(drawing())
    draw(backend.url + "/openai/v1?api-version=2", request_, models={"flux": "flux-1"})
    seen = backend.seen[0]
    assert seen.json == body
    assert (seen.method, seen.target) == ("POST", "/openai/v1/images/generations?api-version=2")
    assert seen.headers["Content-Type"] == "application/json"


def test_prompt_that_is_drawn_is_the_one_handed_in(server: MakeServer) -> None:
    backend = server()
    backend.say(drawing())
    backend_at(backend.url).draw("a rewritten apple", REQUEST, Deadline.after(10))
    assert backend.seen[0].json["prompt"] == "a rewritten apple"


def test_token_of_the_backend_goes_before_the_token_of_all(server: MakeServer) -> None:
    first, second = server(), server()
    settings = config.parse(
        {
            "PROXY_ACCESS_KEY": "key",
            "BACKEND_API_URLS": f"{first.url},{second.url}",
            "AUTH_TOKEN": "of-all",
            "TOKEN_MAP": json.dumps({first.url: "of-the-first"}),
        }
    )
    for backend, there in zip((first, second), settings.backends, strict=True):
        backend.say(drawing())
        draw(there.url, token=there.token)
    assert first.seen[0].headers["Authorization"] == "Bearer of-the-first"
    assert second.seen[0].headers["Authorization"] == "Bearer of-all"


def test_name_of_a_backend_holds_no_secret(server: MakeServer) -> None:
    backend = server()
    backend.say(drawing())
    url = backend.url.replace("//", "//user:password@") + "/v1?key=secret"
    assert draw(url).drawn_by == backend.url + "/v1"


@pytest.mark.parametrize(
    ("message", "spelling"),
    [
        ("Unknown parameter: 'size'.", {}),
        ("image_size is required", {"image_size": "640x480"}),
        ("Use 'width' and 'height' instead of 'size'.", {"width": 640, "height": 480}),
    ],
)
def test_size_is_spelled_as_the_backend_wants_it(
    server: MakeServer, message: str, spelling: dict[str, Any]
) -> None:
    backend, notes = server(), Notes()
    backend.say(Say(error(message, code="x"), 400), drawing())
    draw(backend.url, notes=notes)
    rest = {"prompt": "a red apple", "n": 1, "model": "any", "seed": 7}
    assert [seen.json for seen in backend.seen] == [rest | {"size": "640x480"}, rest | spelling]
    draw(backend.url, notes=notes)
    assert len(backend.seen) == 3


# --- the picture that an answer names -----------------------------------------------------------


def test_picture_of_the_own_origin_is_fetched_with_the_token(server: MakeServer) -> None:
    backend = server()
    backend.say(
        Say({"data": [{"url": backend.url + "/a/b.png?sig=c%2Fd"}]}),
        Say("", 302, {"Location": "/moved.png"}),
        Say(PNG),
    )
    assert draw(backend.url + "/v1", token="t").data == PNG
    assert [seen.target for seen in backend.seen[1:]] == ["/a/b.png?sig=c%2Fd", "/moved.png"]
    assert [seen.headers["Authorization"] for seen in backend.seen] == ["Bearer t"] * 3


@pytest.mark.parametrize(
    "pattern",
    [
        "http://127.0.0.1:{other}/a.png",
        "//127.0.0.1:{other}/a.png",
        "http://127.0.0.1:{other}\\@127.0.0.1:{own}/a.png",
        "https://127.0.0.1:{own}/a.png",
        "http://127.0.0.2:{own}/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://user:password@127.0.0.1:{other}/a.png",
        "http://lan-host.example/a.png",
    ],
)
def test_picture_of_another_private_place_is_not_fetched(
    server: MakeServer, connections: list[tuple[str, int]], pattern: str
) -> None:
    backend, other = server(), server()
    url = pattern.format(own=backend.port, other=other.port)
    backend.say(Say({"data": [{"url": url}]}))
    failed = failure_of(lambda: draw(backend.url, token="t"))
    assert failed.cooldown is None
    assert connections == [("127.0.0.1", backend.port)]
    assert other.seen == []


@pytest.mark.parametrize("status", [204, 400, 401, 404, 451, 500])
def test_picture_that_cannot_be_fetched_is_a_failure(server: MakeServer, status: int) -> None:
    backend = server()
    backend.say(Say({"data": [{"url": "/a.png"}]}), Say("nsfw", status))
    failed = failure_of(lambda: draw(backend.url))
    assert str(failed) == f"the picture it named answered {status}"
    assert failed.cooldown is None


# --- who is left alone, and for how long --------------------------------------------------------


def fail(cooldowns: Cooldowns, backend: Backend, **more: Any) -> float:
    """Let a call that begins and ends now fail; return for how long the backend is left alone."""
    cooldowns.failed(backend, Failed("x", **more), cooldowns.clock())
    return cooldowns.remaining(backend)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cooldowns(clock: Clock) -> Cooldowns:
    return Cooldowns(Notes(), clock)


ONE, TWO, THREE = (backend_at(f"http://127.0.0.1:{port}") for port in (1, 2, 3))


def test_cooldown_grows_with_failures_in_a_row(cooldowns: Cooldowns, clock: Clock) -> None:
    waits = []
    for _ in range(2000):
        waits.append(fail(cooldowns, ONE))
        clock.now += waits[-1]
        assert cooldowns.remaining(ONE) == 0
    assert waits[:8] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert set(waits[8:]) == {300}


@pytest.mark.parametrize(("asked", "left"), [(0.5, 0.5), (17, 17), (300, 300), (1e9, 300)])
def test_wish_of_the_backend_is_honoured_up_to_five_minutes(
    cooldowns: Cooldowns, asked: float, left: float
) -> None:
    assert fail(cooldowns, ONE, cooldown=asked) == left
    assert fail(cooldowns, ONE, cooldown=asked) == left
    assert fail(cooldowns, ONE) == 20


def test_fault_of_the_request_cools_nobody_down(cooldowns: Cooldowns) -> None:
    assert fail(cooldowns, ONE, cooldown=0) == 0
    assert fail(cooldowns, ONE) == 5


def test_success_clears_what_was_counted(
    cooldowns: Cooldowns, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        fail(cooldowns, ONE)
        fail(cooldowns, TWO)
    caplog.clear()
    cooldowns.succeeded(ONE)
    cooldowns.succeeded(ONE)
    assert caplog.messages == ["Backend http://127.0.0.1:1 draws again"]
    assert cooldowns.remaining(ONE) == 0
    assert cooldowns.remaining(TWO) == 20
    assert fail(cooldowns, ONE) == 5


def test_one_outage_counts_once(cooldowns: Cooldowns, clock: Clock) -> None:
    began = clock.now
    clock.now += 3
    for _ in range(10):
        cooldowns.failed(ONE, Failed("x"), began)
    assert cooldowns.remaining(ONE) == 5
    clock.now += 1
    cooldowns.failed(ONE, Failed("x"), began + 2)
    assert cooldowns.remaining(ONE) == 4
    cooldowns.failed(ONE, Failed("x"), began + 3.5)
    assert cooldowns.remaining(ONE) == 10


def test_concurrent_failures_count_once(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    all_are_in = threading.Barrier(8)

    def break_down(seen: Seen) -> Say:
        all_are_in.wait(10)
        return Say("", 500)

    backend.say(break_down)
    everything = Backends([backend_at(backend.url)], Cooldowns(notes), 2)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(everything.draw, "a", REQUEST, Deadline.after(10)) for _ in range(8)]
        assert {type(call.exception()) for call in calls} == {Failed}
    assert len(backend.seen) == 8
    assert notes.recall("backend", backend.url)["failures"] == 1


@pytest.mark.parametrize("day", [-86400.0, 86400.0])
def test_clock_set_by_a_day_leaves_nobody_alone_for_it(
    cooldowns: Cooldowns, clock: Clock, day: float
) -> None:
    fail(cooldowns, ONE)
    clock.now += day
    assert cooldowns.remaining(ONE) == 0
    assert fail(cooldowns, ONE) == 10
    clock.now += 11
    assert cooldowns.remaining(ONE) == 0
    assert fail(cooldowns, ONE) == 20


def test_cooldowns_are_shared_through_the_notes(clock: Clock) -> None:
    notes = Notes()
    here, there = Cooldowns(notes, clock), Cooldowns(notes, clock)
    same = backend_at(ONE.url)
    assert fail(here, ONE) == 5
    assert there.remaining(same) == 5
    assert fail(there, same) == 10
    assert here.remaining(ONE) == 10
    here.succeeded(ONE)
    assert there.remaining(same) == 0


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_fault_of_the_account_is_one_warning_and_a_minute(
    server: MakeServer, clock: Clock, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.INFO)
    backend, cooldowns = server(), Cooldowns(Notes(), clock)
    backend.say(Say(error("Wrong key sk-secret"), status))
    there = backend_at(backend.url.replace("//", "//u:p@") + "?key=secret", token="token-secret")
    with pytest.raises(Failed):
        Backends([there], cooldowns, 2).draw("a secret", REQUEST, Deadline.after(10))
    assert cooldowns.remaining(there) == 60
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"Backend {backend.url}: it answered {status}; left alone for 60 s"]
    assert "secret" not in caplog.text


def test_outage_is_one_warning_however_long_it_lasts(
    cooldowns: Cooldowns, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(5):
        fail(cooldowns, ONE)
    assert [record.levelname for record in caplog.records] == ["WARNING"] + ["INFO"] * 4


def test_fault_of_the_account_is_a_warning_in_the_middle_of_an_outage(
    cooldowns: Cooldowns, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fail(cooldowns, ONE)
    fail(cooldowns, ONE)
    assert fail(cooldowns, ONE, cooldown=60, needs_attention=True) == 60
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


# --- who is next --------------------------------------------------------------------------------


def weighted(*weights: float) -> list[Backend]:
    return [
        backend_at(f"http://127.0.0.1:{port}", weight=weight)
        for port, weight in enumerate(weights, 1)
    ]


def orders(backends: list[Backend], count: int) -> list[list[int]]:
    """Return `count` orders, as indices."""
    everything = Backends(backends, Cooldowns(Notes()), 2, random.Random(1))
    return [[backends.index(backend) for backend in everything.order()] for _ in range(count)]


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (0.5, 1.5), (1, 2, 7), (0.001, 0.002, 0.007)])
def test_first_is_chosen_by_weight_and_the_next_from_the_rest(weights: tuple[float, ...]) -> None:
    count = 8000
    drawn = orders(weighted(*weights), count)
    assert all(sorted(order) == list(range(len(weights))) for order in drawn)
    pairs = Counter((order[0], order[1]) for order in drawn)
    for one, other in itertools.permutations(range(len(weights)), 2):
        rest = sum(weights) - weights[one]
        share = weights[one] / sum(weights) * weights[other] / rest
        assert pairs[one, other] / count == pytest.approx(share, abs=0.02)


def test_weight_of_nothing_drains(clock: Clock) -> None:
    backends = weighted(0, 1, 0.25)
    assert {tuple(sorted(order)) for order in orders(backends, 100)} == {(1, 2)}
    cooldowns = Cooldowns(Notes(), clock)
    for backend in backends[1:]:
        fail(cooldowns, backend, cooldown=100)
    everything = Backends(backends, cooldowns, 2)
    assert backends[0] not in everything.order()
    assert everything.ready_in() == 100


def test_extreme_weights_still_make_an_order() -> None:
    assert {len(order) for order in orders(weighted(5e-324, 1e308, 1), 100)} == {3}


def test_cooling_backend_is_passed_over_until_all_are(cooldowns: Cooldowns, clock: Clock) -> None:
    everything = Backends([ONE, TWO, THREE], cooldowns, 2)
    fail(cooldowns, ONE, cooldown=90)
    assert set(everything.order()) == {TWO, THREE}
    assert everything.ready_in() == 0
    fail(cooldowns, TWO, cooldown=30)
    fail(cooldowns, THREE, cooldown=60)
    assert everything.order() == [TWO]
    assert everything.ready_in() == 30
    clock.now += 30
    assert everything.order() == [TWO]
    assert everything.ready_in() == 0
    clock.now += 30
    assert set(everything.order()) == {TWO, THREE}


# --- all of them --------------------------------------------------------------------------------

BROKEN = Say("", 500)


def several(
    server: MakeServer, *says: Say, attempts: int = 2, cooldowns: Cooldowns | None = None
) -> tuple[Backends, list[ScriptedServer]]:
    servers = [server() for _ in says]
    for there, say in zip(servers, says, strict=True):
        there.say(say)
    backends = [backend_at(there.url) for there in servers]
    return Backends(backends, cooldowns or Cooldowns(Notes()), attempts), servers


def asked(servers: list[ScriptedServer]) -> list[int]:
    return [len(there.seen) for there in servers]


def test_failure_moves_on_until_one_draws(server: MakeServer) -> None:
    everything, servers = several(server, *[BROKEN] * 5, drawing(), attempts=0)
    for _ in range(2):
        image = everything.draw("a", REQUEST, Deadline.after(10))
        assert (image.data, image.drawn_by) == (PNG, servers[-1].url)
    assert max(asked(servers)[:-1]) <= 1
    assert asked(servers)[-1] == 2


def test_failure_moves_on_until_all_are_tried(server: MakeServer) -> None:
    everything, servers = several(server, *[BROKEN] * 5, attempts=0)
    failed = failure_of(lambda: everything.draw("a", REQUEST, Deadline.after(10)))
    assert str(failed) == "it answered 500"
    assert asked(servers) == [1] * 5
    assert everything.ready_in() > 4


@pytest.mark.parametrize(("attempts", "requests"), [(0, 1), (1, 2), (2, 3), (4, 5), (9, 5)])
def test_refusal_moves_on_so_many_times(server: MakeServer, attempts: int, requests: int) -> None:
    notes = Notes()
    everything, servers = several(
        server, *[REFUSAL] * 5, attempts=attempts, cooldowns=Cooldowns(notes)
    )
    with pytest.raises(Refused) as caught:
        everything.draw("a", REQUEST, Deadline.after(10))
    assert caught.value.everywhere
    assert sum(asked(servers)) == requests
    assert max(asked(servers)) == 1
    assert notes.kept == {}


def test_refused_prompt_is_drawn_by_the_backend_that_will(server: MakeServer) -> None:
    everything, servers = several(server, REFUSAL, REFUSAL, drawing())
    for _ in range(5):
        image = everything.draw("a", REQUEST, Deadline.after(10))
        assert image.drawn_by == servers[2].url


def test_refusal_beside_a_failure_is_not_everywhere(server: MakeServer) -> None:
    everything, servers = several(server, BROKEN, REFUSAL, BROKEN, REFUSAL)
    with pytest.raises(Refused) as caught:
        everything.draw("a", REQUEST, Deadline.after(10))
    assert not caught.value.everywhere
    assert asked(servers) == [1] * 4


def test_refusal_beside_a_deadline_is_not_everywhere(server: MakeServer) -> None:
    now = [0.0]

    def refuse_late(seen: Seen) -> Say:
        now[0] = 100.0
        return REFUSAL

    everything, servers = several(server, REFUSAL, REFUSAL)
    for there in servers:
        there.say(refuse_late)
    with pytest.raises(Refused) as caught:
        everything.draw("a", REQUEST, Deadline(10, lambda: now[0]))
    assert not caught.value.everywhere
    assert sum(asked(servers)) == 1


def test_nobody_is_asked_after_the_deadline(server: MakeServer) -> None:
    everything, servers = several(server, drawing(), drawing())
    failed = failure_of(lambda: everything.draw("a", REQUEST, Deadline.after(0)))
    assert str(failed) == "the deadline passed"
    assert asked(servers) == [0, 0]
    assert everything.ready_in() == 0


def test_only_the_soonest_is_tried_where_all_are_cooling(server: MakeServer) -> None:
    cooldowns = Cooldowns(Notes())
    everything, servers = several(server, drawing(), drawing(), cooldowns=cooldowns)
    fail(cooldowns, everything.all[0], cooldown=200)
    fail(cooldowns, everything.all[1], cooldown=100)
    assert everything.draw("a", REQUEST, Deadline.after(10)).drawn_by == servers[1].url
    assert asked(servers) == [0, 1]
    assert everything.ready_in() == 0


# --- the last resort ----------------------------------------------------------------------------


def fall_back(
    url: str, prompt: str = "an apple", request: ImageRequest = REQUEST, **settings: Any
) -> Image:
    there = Pollinations(
        PollinationsSettings(url, settings.get("token"), settings.get("model")),
        Upstream(no_names),
        timeout=settings.get("timeout", 10),
        max_image_bytes=LIMIT,
    )
    return there.draw(prompt, request, Deadline.after(10))


FIXED = "nofeed=true&private=true"


@pytest.mark.parametrize(
    ("base", "prompt", "request_", "model", "target"),
    [
        (
            "/prompt",
            "a red/green apple? #1 & 100%",
            ImageRequest("x", 640, 480, "dall-e-3", 7),
            None,
            "/prompt/a%20red%2Fgreen%20apple%3F%20%231%20%26%20100%25?"
            f"width=640&height=480&seed=7&{FIXED}",
        ),
        (
            "/image",
            "é\n☃+",
            ImageRequest("x"),
            "flux pro",
            f"/image/%C3%A9%0A%E2%98%83%2B?model=flux+pro&seed=42&{FIXED}",
        ),
        (
            "/p?referrer=me&x=%2F",
            "a/../b",
            ImageRequest("x", seed=-3),
            None,
            f"/p/a%2F..%2Fb?referrer=me&x=%2F&seed=-3&{FIXED}",
        ),
    ],
)
def test_fallback_is_asked_for_just_this(
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
    assert (there.seen[0].method, there.seen[0].target) == ("GET", target)


@pytest.mark.parametrize("token", ["t", None])
def test_token_of_the_fallback_goes_as_bearer(server: MakeServer, token: str | None) -> None:
    there = server()
    there.say(Say("", 302, {"Location": "/moved"}), Say(PNG))
    fall_back(there.url, token=token)
    expected = f"Bearer {token}" if token else None
    assert [seen.headers["Authorization"] for seen in there.seen] == [expected] * 2
    assert there.seen[1].target == "/moved"


FALLBACK_FAULTS: dict[str, tuple[Say, str]] = {
    "placeholder": (
        Say(PNG, headers={"X-Error-Type": "rate_limit"}),
        "it sent a placeholder for a picture",
    ),
    "HTML": (Say("<html>"), "what it sent is not a picture"),
    "JSON": (Say({"success": False}), "what it sent is not a picture"),
    "nothing": (Say(""), "what it sent is not a picture"),
    "204": (Say("", 204), "it answered 502"),
    "206": (Say(PNG, 206), "it answered 502"),
    "too large": (Say(bytes(LIMIT + 1)), f"its answer is larger than {LIMIT} bytes"),
    **{
        str(code): (Say("", code), f"it answered {code}") for code in (401, 402, 403, 429, 500, 530)
    },
    "402, a full queue": (Say({"success": False, "error": "Queue full"}, 402), "it answered 402"),
}


@pytest.mark.parametrize("fault", FALLBACK_FAULTS)
def test_fault_of_the_fallback_is_a_failure(server: MakeServer, fault: str) -> None:
    say, reason = FALLBACK_FAULTS[fault]
    there = server()
    there.say(say)
    assert str(failure_of(lambda: fall_back(there.url))) == reason


@pytest.mark.parametrize("status", [400, 422])
def test_fallback_may_refuse(server: MakeServer, status: int) -> None:
    there = server()
    refusal = {"code": "content_policy_violation", "message": "No."}
    there.say(Say({"status": status, "success": False, "error": refusal}, status))
    with pytest.raises(Refused):
        fall_back(there.url)


def test_fallback_is_not_followed_to_another_private_place(server: MakeServer) -> None:
    there, other = server(), server()
    there.say(Say("", 302, {"Location": other.url + "/a.png"}))
    failed = failure_of(lambda: fall_back(there.url, token="t"))
    assert str(failed) == "it named an address that is not public"
    assert other.seen == []


def test_time_out_of_the_fallback_is_a_failure(raw_server: MakeRawServer) -> None:
    url = raw_server(hang).url
    assert str(failure_of(lambda: fall_back(url, timeout=0.2))) == LATE


# --- whatever else may come ---------------------------------------------------------------------

FIELDS = ("data", "images", "b64_json", "url", "error", "code", "message", "param", "base_resp")
TEXTS = (
    *("size", "status_code", "revised_prompt", "nsfw", "Unknown parameter: 'seed'", "429"),
    *("http://[::1", "http://127.0.0.1:9/a.png", "http://pics.example/a", "file:///etc/passwd"),
    *("/a.png", "//[", "/9j/", "data:image/png;base64,", "\ud800", "\0", b64(PNG)),
)
WORDS = st.sampled_from((*FIELDS, *TEXTS))
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 400, 451, 500, 1026])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=9) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)
# Shaped like the real thing, so that what lies deeper is reached as well.
PICTURE = st.dictionaries(st.sampled_from(["b64_json", "url", "revised_prompt"]), JSON)
SHAPED = st.dictionaries(
    st.sampled_from(["data", "images"]), st.lists(PICTURE | JSON, min_size=1, max_size=2)
) | st.fixed_dictionaries({"base_resp": st.fixed_dictionaries({"status_code": JSON})})
BODIES = (
    st.binary(max_size=60)
    | (JSON | SHAPED).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=30).map(PNG[:24].__add__)
)
STATUS = st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 404, 422, 429, 451, 500, 599])


def test_whatever_a_backend_answers_is_a_picture_a_refusal_or_a_failure(
    server: MakeServer,
) -> None:
    there = server()

    @unhurried
    @given(BODIES, STATUS)
    def check(body: bytes, status: int) -> None:
        there.say(Say(body, status))
        with contextlib.suppress(Refused, Failed):
            assert draw(there.url).media_type.startswith("image/")
        with contextlib.suppress(Refused, Failed):
            assert fall_back(there.url).media_type.startswith("image/")

    check()
    assert len(there.seen) > 100


@unhurried
@given(JSON | SHAPED)
def test_first_picture_of_any_json_is_one_or_a_refusal_or_a_failure(answer: Any) -> None:
    with contextlib.suppress(Refused, Failed):
        _, revised_prompt = first_picture(answer)
        assert isinstance(revised_prompt, str | None)


@unhurried
@given(st.text(max_size=60) | st.text("AZaz09+/-_= \n", max_size=60))
def test_base64_of_any_text_is_bytes_or_a_failure(text: str) -> None:
    with contextlib.suppress(Failed):
        assert isinstance(decode_base64(text), bytes)


@unhurried
@given(st.binary(max_size=200), st.integers(1, 80), st.sampled_from(["", "data:image/x;base64,"]))
def test_base64_survives_lines_and_lost_padding(data: bytes, width: int, prefix: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode().rstrip("=")
        assert decode_base64(prefix + "\n ".join(textwrap.wrap(text, width))) == data


def test_base64_of_the_url_safe_alphabet_is_read() -> None:
    assert decode_base64("-_-_") == decode_base64("+/+/") == b"\xfb\xff\xbf"
