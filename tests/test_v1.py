"""The OpenAI-compatible API, as OpenAI's own clients for Python and JavaScript see it."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import openai
import pytest

from cache import Picture
from storage.local.folder import Folder
from web.openai_forms import PLACE, length_with_base64, with_base64

from .conftest import (
    BROKEN,
    HOSTED_URL,
    KEY,
    REFUSAL,
    Gunicorn,
    InProcess,
    MakeServer,
    Serve,
    Start,
    drawing,
    seeds,
)
from .scripted import Gate, Say, ScriptedServer, Seen, fetch, png, wait_until
from .states import row_of
from .studio import Studio

if TYPE_CHECKING:
    from .browser import Page

Connect = Callable[..., openai.OpenAI]

HIT = "PromptImageProxy; hit"


@pytest.fixture
def connect(opened: list[Any]) -> Connect:
    """Make clients of OpenAI's SDK as it is by default: it repeats what fails twice."""

    def make(service: InProcess | Gunicorn) -> openai.OpenAI:
        # Without a proxy that this shell may have.
        http = openai.DefaultHttpxClient(trust_env=False)
        url = f"{service.url}/v1"
        opened.append(made := openai.OpenAI(api_key=KEY, base_url=url, http_client=http))
        return made

    return make


@pytest.fixture
def client(service: InProcess, connect: Connect) -> openai.OpenAI:
    return connect(service)


# --- the Python SDK


def test_sdk_gets_a_new_picture(client: openai.OpenAI, backend: ScriptedServer) -> None:
    backend.say(drawing(revised_prompt="a shiny red apple"))
    wanted: dict[str, Any] = {"prompt": "a red apple", "model": "gpt-image-1"}
    wanted |= {"size": "1536x1024", "quality": "high", "background": "opaque"}
    unused: dict[str, Any] = {"output_format": "webp", "moderation": "low", "user": "someone"}
    answer = client.images.generate(**wanted, **unused)
    assert answer.created > 1_700_000_000
    [picture] = answer.data or []
    assert base64.b64decode(picture.b64_json or "") == png()
    assert (picture.url, picture.revised_prompt) == (None, "a shiny red apple")
    [seen] = backend.seen
    assert seen.json == {**wanted, "n": 1, "seed": (picture.model_extra or {})["seed"]}


def test_sdk_gets_three_drawn_at_once(client: openai.OpenAI, backend: ScriptedServer) -> None:
    together = threading.Barrier(3, timeout=10)

    def draw(seen: Seen) -> Say:
        together.wait()
        return drawing(png(shade=seen.json["seed"] % 256))

    backend.say(draw)
    answer = client.images.generate(prompt="a cat", n=3)
    assert len({picture.b64_json for picture in answer.data or []}) == 3


def test_sdk_raises_its_exceptions_once(client: openai.OpenAI, backend: ScriptedServer) -> None:
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    typo = Say({"error": {"message": "The model `typo` does not exist"}}, 404)
    for asking, say, kind, code, message in [
        # LiteLLM looks for these words.
        (stranger, BROKEN, openai.AuthenticationError, "invalid_api_key", "Incorrect API key prov"),
        (client, REFUSAL, openai.BadRequestError, "content_policy_violation", "Change the descrip"),
        (client, typo, openai.NotFoundError, "model_not_found", "unknown here"),
        (client, BROKEN, openai.InternalServerError, None, "No backend could draw"),
    ]:
        backend.say(say)
        with pytest.raises(kind, match=message) as caught:
            asking.images.generate(prompt=message, model="typo" if say is typo else "m")
        assert caught.value.code == code
        assert caught.value.param == ("model" if say is typo else None)
    assert [seen.json["prompt"][:6] for seen in backend.seen] == ["Change", "unknow", "No bac"]


def test_sdk_does_not_repeat_a_request_past_the_daily_limit(
    serve: Serve, backend: ScriptedServer, connect: Connect
) -> None:
    client = connect(serve(backend, DRAWINGS_PER_DAY="2"))
    with pytest.raises(openai.RateLimitError) as three:  # all of them, or none
        client.images.generate(prompt="a red apple", n=3)
    assert three.value.code == "rate_limit_exceeded"
    assert backend.seen == []
    assert len(client.images.generate(prompt="a red apple", n=2).data or []) == 2
    with pytest.raises(openai.RateLimitError):
        client.images.generate(prompt="a red apple")
    assert len(backend.seen) == 2


def test_sdk_lists_models(serve: Serve, backend: ScriptedServer, connect: Connect) -> None:
    client = connect(serve(backend, MODELS="gpt-image-1, vendor/flux:free"))
    names = [model.id for model in client.models.list()]
    assert names == ["gpt-image-1", "vendor/flux:free"]
    assert client.models.retrieve("vendor/flux:free").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-2")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_picture_comes_as_bytes_and_url_unless_one_is_wanted(service: InProcess) -> None:
    for body, fields in [
        ({}, "b64_json url"),
        ({"model": "dall-e-3"}, "b64_json url"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "gpt-image-1", "response_format": "url"}, "url"),
        ({"response_format": "b64_json"}, "b64_json"),
    ]:
        got = service.order({"prompt": "a cat", **body})
        assert got.headers["Content-Length"] == str(len(got.body))
        [picture] = got.json["data"]
        assert picture.keys() == {*fields.split(), "revised_prompt", "seed"}, body
        if "b64_json" in fields:
            assert base64.b64decode(picture["b64_json"]) == png()
        if "url" in fields:
            # Open WebUI sends its key to any URL of ours.
            for headers in ({}, {"Authorization": f"Bearer {KEY}"}):
                shown = fetch(picture["url"], headers=headers)
                assert (shown.body, shown.headers["Cache-Status"]) == (png(), HIT)


# --- seeds and the cache


def test_requests_without_a_seed_draw_anew(service: InProcess, backend: ScriptedServer) -> None:
    drawn = [seed for _ in range(2) for seed in seeds(service.order({"prompt": "a cat", "n": 2}))]
    assert sorted(drawn) == sorted({seen.json["seed"] for seen in backend.seen})
    assert len(drawn) == 4
    assert all(0 <= seed < 10**9 for seed in drawn)


def test_seed_gives_the_pictures_of_the_url(service: InProcess, backend: ScriptedServer) -> None:
    body = {"prompt": " a cat", "size": "64x32", "style": "vivid", "negative_prompt": "dog"}
    first = service.order({**body, "seed": -1, "n": 3})
    assert seeds(first) == [-1, 0, 1]
    query: dict[str, Any] = {"width": 64, "height": 32, "style": "vivid", "negative_prompt": "dog"}
    found = service.picture("a%20cat", seed=0, **query)
    assert found.headers["Cache-Status"] == HIT
    again = service.order({**body, "seed": 0, "n": 3})
    assert (seeds(again), len(backend.seen)) == ([0, 1, 2], 4)
    assert again.json["data"][0] == first.json["data"][1]


def test_without_a_size_the_backend_chooses(service: InProcess, backend: ScriptedServer) -> None:
    for size in ({}, {"size": "auto"}, {"size": None}):
        assert service.order({"prompt": "a cat", **size}).status == 200
    assert not any("size" in seen.json for seen in backend.seen)


def test_hosted_picture_has_its_own_url_and_at_first_bytes(hosted: InProcess) -> None:
    body = {"prompt": "a cat", "seed": 1}
    [drawn], [cached] = (hosted.order(body).json["data"] for _ in range(2))
    assert base64.b64decode(drawn["b64_json"]) == png()
    assert drawn["url"] == cached["url"] == HOSTED_URL
    assert "b64_json" not in cached
    [signed] = hosted.order({**body, "response_format": "url"}).json["data"]
    assert signed["url"].startswith(f"{hosted.url}/prompt/")


def test_unstored_picture_is_bytes(service: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Folder, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write", fail)
    for form in ({}, {"response_format": "url"}):
        [picture] = service.order({"prompt": "a cat", **form}).json["data"]
        assert base64.b64decode(picture["b64_json"]) == png()
        assert "url" not in picture


# --- some of several


def test_failed_one_of_several_is_left_out(service: InProcess, backend: ScriptedServer) -> None:
    backend.say(lambda seen: REFUSAL if seen.json["seed"] == 8 else drawing())
    got = service.order({"prompt": "a cat", "seed": 7, "n": 3})
    assert (got.status, seeds(got)) == (200, [7, 9])


def test_pictures_share_the_places_of_the_pipeline(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(gate := Gate(drawing()))
    service = serve(backend, THREADS="18")  # 16 are kept free
    with ThreadPoolExecutor(1) as pool:
        several = pool.submit(service.order, {"prompt": "a cat", "n": 10})
        wait_until(lambda: len(backend.seen) == 2)
        busy = service.order({"prompt": "a dog"})
        gate.opened.set()
        assert len(seeds(several.result())) == 2
    assert (busy.status, busy.headers["Retry-After"]) == (503, "5")
    assert busy.headers["x-should-retry"] is None, "nothing was paid for: SDKs may repeat it"
    assert busy.json["error"]["type"] == "server_error"


def test_paid_failure_is_reported_before_unpaid_ones(serve: Serve, backend: ScriptedServer) -> None:
    backend.say(BROKEN)
    got = serve(backend, THREADS="17").order({"prompt": "a cat", "n": 5})
    assert (got.status, got.headers["x-should-retry"]) == (502, "false")
    assert len(backend.seen) == 1


def test_sdks_repeat_no_remembered_failure(service: InProcess, backend: ScriptedServer) -> None:
    backend.say(BROKEN)
    got = [service.order({"prompt": "a cat", "seed": 1}) for _ in range(2)]
    assert [(one.status, one.headers["x-should-retry"]) for one in got] == [(502, "false")] * 2
    assert len(backend.seen) == 1


def test_sdks_may_repeat_while_all_are_avoided(service: InProcess, backend: ScriptedServer) -> None:
    backend.say(Say("", 401))
    service.order({"prompt": "a cat"})
    cooling = service.order({"prompt": "a dog"})
    assert (cooling.status, cooling.headers["x-should-retry"]) == (503, None)
    assert int(cooling.headers["Retry-After"]) > 50


# --- errors

DEEP = b'{"prompt": ' + b"[" * 60_000
TEXTS = ("quality", "style", "background", "negative_prompt")
BAD_BODIES: list[Any] = [b"", b"{", b"\xff{}", b"[]", b'"x"', b'{"prompt": "caf\xe9"}', DEEP]
BAD_VALUES: dict[str, list[Any]] = {
    "prompt": ["", " ", None, 1, ["x"], "\0", "\ud800", "x" * 4001],
    "n": [0, 11, -1, 1.0, "1", True, [1]],
    "seed": [10**18, -(10**18), 1.5, "7", True, {}],
    "size": ["", "512", "0x512", "4097x1", "-1x1", "1024X1024", "٣x٣", "1x1 ", 512],
    "model": ["", "a b", "x" * 101, 1],
    **{name: ["", "x" * 201, "a\nb", 1, ["high"]] for name in TEXTS},
    "response_format": ["png", "", 1],
    "user": [1],
    "stream": [True, "true", "false", []],
    "partial_images": [1, "1"],
}


def test_bad_input_is_a_400_with_its_parameter(service: InProcess, backend: ScriptedServer) -> None:
    fields = [(name, value) for name, values in BAD_VALUES.items() for value in values]
    for body, parameter in [
        *((body, None) for body in BAD_BODIES),
        ({}, "prompt"),
        *(({"prompt": "a cat", name: value}, name) for name, value in fields),
        ({"prompt": "a cat", "seed": 10**18 - 1, "n": 2}, "seed"),
    ]:
        got = service.order(body)
        assert (got.status, got.headers["Cache-Control"]) == (400, "no-store"), body
        message = got.json["error"].pop("message")
        assert message
        about = {"type": "invalid_request_error", "param": parameter, "code": None}
        assert got.json == {"error": {"message": message, **about}}, body
    assert not backend.seen


def test_null_and_unknown_fields_are_ignored(service: InProcess, backend: ScriptedServer) -> None:
    names = ("model", "n", "seed", "quality", "response_format", "user", "stream", "partial_images")
    body = dict.fromkeys(names) | {"prompt": "a cat", "moderation": "auto", "extra": [{}]}
    assert service.order(body).status == 200
    assert backend.seen[0].json.keys() == {"prompt", "n", "seed"}


def test_url_is_a_400_where_signing_is_off(serve: Serve, backend: ScriptedServer) -> None:
    keys = json.dumps({"blog": {"key": "blog-key"}})
    service = serve(backend, PROXY_ACCESS_KEY="", ACCESS_KEYS=keys)
    got = service.order({"prompt": "a cat", "response_format": "url"}, "blog-key")
    assert (got.status, got.json["error"]["param"]) == (400, "response_format")
    assert not backend.seen, "nothing is spent"
    [picture] = service.order({"prompt": "a cat"}, "blog-key").json["data"]
    assert picture.keys() == {"b64_json", "revised_prompt", "seed"}


def test_body_may_have_64_kib(service: InProcess) -> None:
    body = json.dumps({"prompt": "a cat"}).encode()
    assert [service.order(body.ljust(size)).status for size in (65_536, 65_537)] == [200, 413]


def test_wrong_key_is_a_401_before_the_body_is_read(service: InProcess) -> None:
    got = service.order(b"{", "wrong")
    challenge = got.headers["WWW-Authenticate"]
    assert (got.status, challenge) == (401, 'Bearer realm="Prompt Image Proxy"')
    # Keys in URLs end up in logs; no OpenAI client puts them there.
    assert service.get(f"/v1/models?key={KEY}").status == 401


def test_other_routes_and_methods_fail_in_the_same_form(service: InProcess) -> None:
    missing, wrong = service.get("/v1/chat/completions"), service.get("/v1/images/generations")
    codes = [(got.status, got.json["error"]["code"]) for got in (missing, wrong)]
    assert codes == [(404, "unknown_url"), (405, "method_not_supported")]
    assert set(wrong.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}


def test_error_is_in_the_status_line_too(service: InProcess, backend: ScriptedServer) -> None:
    backend.say(REFUSAL)
    got = service.order({"prompt": "a rude cat"})
    assert got.reason == got.json["error"]["message"]
    assert "moderation refused this prompt" in got.reason


# --- base URLs


def test_base_url_is_understood_as_people_write_it(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend, MODELS="vendor/flux")
    headers = {"Authorization": f"Bearer {KEY}"}
    for base in ("", "/", "//v1", "/v1/", "/v1//", "/v1/v1"):
        drawn = service.post(f"{base}/images/generations", {"prompt": "a cat"})
        assert (drawn.status, len(drawn.json["data"])) == (200, 1)
        models = [service.get(f"{base}/models{end}", headers=headers).json for end in ("", "/")]
        assert models[0] == models[1]
        shown = service.get(f"{base}/models/vendor/flux", headers=headers)
        assert models[0]["data"] == [shown.json]


def test_post_to_no_route_is_told_the_base_url(service: InProcess) -> None:
    for path in ("/chat/completions", "/api/v1/images/generations", "/v1//x"):
        got = service.post(path, {})
        assert (got.status, got.json["error"]["code"]) == (404, "unknown_url")
        assert got.reason.endswith("the base URL of a client ends in /v1.")
    # Other missing things are described as elsewhere.
    for got in (service.get("/chat/completions"), service.delete({"description": "x"})):
        assert (got.status, got.headers["Content-Type"]) == (404, "application/problem+json")


def test_edit_is_a_400_before_the_upload_is_read(studio: Studio, connect: Connect) -> None:
    announced = {"Content-Length": str(2**30)}
    got = studio.service.get("/v1/images/edits", method="POST", headers=announced)
    assert (got.status, got.json["error"]["type"]) == (400, "invalid_request_error")
    client = connect(studio.service)
    with pytest.raises(openai.BadRequestError, match="cannot be edited here"):
        client.images.edit(image=png(size=5_000_000), prompt="a hat")
    assert client.images.generate(prompt="a cat").data, "on the same connection"


# --- a page

BROWSER_PROGRAM = """
const [origin, apiKey, done] = arguments;
const { default: OpenAI } = await import("/openai/index.mjs");
const make = (path, key = apiKey) =>
  new OpenAI({ baseURL: origin + path, apiKey: key, dangerouslyAllowBrowser: true });
const fail = (error) => ({ status: error.status, code: error.code, message: error.message });
const draw = (prompt, client) => client.images.generate({ prompt }).catch(fail);
const show = (url, options) => fetch(url, options).then(async (answer) => answer.status);
const models = [];
for await (const model of make("/v1").models.list()) models.push(model.id);
const [picture] = (await draw("a cat", make("/v1"))).data;
done({
  models,
  shown: [
    await show(picture.url),
    await show(picture.url, { headers: { Authorization: `Bearer ${apiKey}`, "X-Own": "1" } }),
  ],
  stranger: await draw("a cat", make("/v1", "wrong")),
  refused: await draw("a rude cat", make("/v1")),
  broken: await draw("a broken cat", make("")),
  lost: await draw("a cat", make("/api/v1")),
});
"""


def test_sdk_in_a_browser_draws_shows_and_reads_errors(
    serve: Serve, server: MakeServer, browser: Page, node_modules: Path
) -> None:
    answers = {"a cat": drawing(), "a rude cat": REFUSAL, "a broken cat": BROKEN}
    backend, site = server(), server()
    backend.say(lambda seen: answers[seen.json["prompt"]])
    service = serve(backend, MODELS="gpt-image-1")

    def show(seen: Seen) -> Say:
        file = node_modules / "node_modules" / seen.path.lstrip("/")
        if seen.path.endswith(".mjs") and file.is_file():
            return Say(file.read_bytes(), headers={"Content-Type": "text/javascript"})
        return Say("<!doctype html>", headers={"Content-Type": "text/html"})

    site.say(show)
    browser.driver.get(site.url)
    program = f"(async (...arguments) => {{ {BROWSER_PROGRAM} }})(...arguments)"
    got = browser.driver.execute_async_script(program, service.url, KEY)
    assert (got["models"], got["shown"]) == (["gpt-image-1"], [200, 200])
    assert (got["stranger"]["status"], got["stranger"]["code"]) == (401, "invalid_api_key")
    assert (got["refused"]["status"], got["refused"]["code"]) == (400, "content_policy_violation")
    assert (got["broken"]["status"], got["lost"]["status"]) == (502, 404)
    assert "the base URL of a client ends in /v1" in got["lost"]["message"]
    asked = [seen.json["prompt"] for seen in backend.seen]
    assert asked == ["a cat", "a rude cat", "a broken cat"], "nothing is paid for twice"


# --- base64 in pieces


def picture_of(data: bytes, size: int) -> Picture:
    return Picture(row_of("a cat", bytes=size), BytesIO(data))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 49_151, 49_152, 49_153, 200_000])
def test_pieces_are_the_json_of_the_whole(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    text = json.dumps([{"b64_json": PLACE, "seed": seed} for seed in (1, 2)])
    pictures = [picture_of(data, size) for _ in range(2)]
    found = list(with_base64(text, pictures))
    whole = b"".join(found)
    encoded = base64.b64encode(data).decode()
    assert json.loads(whole) == [{"b64_json": encoded, "seed": seed} for seed in (1, 2)]
    assert length_with_base64(text, pictures) == len(whole)
    assert max(map(len, found)) <= 65_536


def test_file_that_is_too_short_ends_the_answer() -> None:
    with pytest.raises(OSError, match="shorter"):
        list(with_base64(PLACE, [picture_of(b"x" * 50_000, 50_001)]))


def test_ten_large_pictures_take_no_memory(gunicorn: Start, backend: ScriptedServer) -> None:
    backend.say(lambda seen: drawing(png(shade=seen.json["seed"], size=3_000_000)))
    service = gunicorn(backend, WORKERS="1")
    body = json.dumps({"prompt": "a cat", "n": 10, "seed": 0}).encode()
    drawn = service.order(body)
    shown = [base64.b64decode(picture["b64_json"]) for picture in drawn.json["data"]]
    assert shown == [png(shade=shade, size=3_000_000) for shade in range(10)]
    [worker] = service.workers()
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before = peak(worker)
    with ThreadPoolExecutor(6) as pool:
        received = [*pool.map(lambda _: length_of_answer(service, body), range(6))]
    assert received == [len(drawn.body)] * 6
    assert peak(worker) - before < 20_000, "kilobytes, where an answer has 40,000"


def peak(pid: int) -> int:
    """Return the most memory that a process has had since the reset, in kilobytes."""
    found = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def length_of_answer(service: Gunicorn, body: bytes) -> int:
    """Receive an answer, and return how many bytes its body had: this process keeps none."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with closing(http.client.HTTPConnection(urlsplit(service.url).netloc)) as connection:
        connection.request("POST", "/v1/images/generations", body, headers)
        answer = connection.getresponse()
        return sum(map(len, iter(lambda: answer.read(1_000_000), b"")))
