"""Doors: where a configured URL leads, and what is sent there."""

from typing import Any

import pytest

from dialect.doors import CHAT, IMAGES, door_of
from picture import ImageRequest

from .conftest import MakeServer, Serve
from .one_backend import PNG, Draw, b64
from .scripted import Answer, Say, ScriptedServer, Seen, png

REQUEST = ImageRequest("a red apple", 1600, 900, "any", 7)
B64 = b64(PNG)
DRAWN = Say({"data": [{"b64_json": B64}]})
OF_MINIMAX = Say({"data": {"image_base64": [B64]}, "base_resp": {"status_code": 0}})
IMAGES_OF_CHAT = [{"image_url": {"url": f"data:image/png;base64,{B64}"}}]
OF_CHAT = Say({"choices": [{"message": {"content": "Here it is.", "images": IMAGES_OF_CHAT}}]})


# --- where a URL leads --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "where"),
    [
        ("https://a.example", "https://a.example/v1/*"),
        ("https://a.example/sd///", "https://a.example/sd/v1/*"),
        ("https://a.example/vision", "https://a.example/vision/v1/*"),
        ("https://v1.example", "https://v1.example/v1/*"),
        ("https://a.example?v=/v1", "https://a.example/v1/*?v=/v1"),
        ("https://a.example/v1/", "https://a.example/v1/*"),
        ("https://a.example/V2", "https://a.example/V2/*"),
        ("https://a.example/api/v3", "https://a.example/api/v3/*"),
        ("https://a.example/v1beta/openai/", "https://a.example/v1beta/openai/*"),
        ("https://a.example/inference/v1", "https://a.example/inference/v1/*"),
        ("https://a/openai/v1?api-version=p", "https://a/openai/v1/*?api-version=p"),
        ("https://a.example/*", "https://a.example/*"),
        ("https://a.example/v1/*/", "https://a.example/v1/*"),
        ("https://a.example/d/*?api-version=1&a=b", "https://a.example/d/*?api-version=1&a=b"),
        ("https://u:p@a.example/v1", "https://u:p@a.example/v1/*"),
        ("https://a/openai/deployments/N?a=1", "https://a/openai/deployments/N/*?a=1"),
        ("https://a/openai/deployments/v1/*?b=1", "https://a/openai/deployments/v1/*?b=1"),
    ],
)
def test_url_leads_to_the_operation(base: str, where: str) -> None:
    for operation in (IMAGES, CHAT):
        expected = where.replace("*", operation)
        door = door_of(base.replace("*", operation), operation)
        assert door.url == expected
        assert door.beside("/tasks/1") == expected.replace(operation, "tasks/1")
        assert door.is_deployment == ("/deployments/" in base)


@pytest.mark.parametrize(
    ("url", "base", "kind"),
    [
        ("https://openrouter.ai/api/v1/images", "https://openrouter.ai/api/v1", "images"),
        ("https://a.example/images?b=1", "https://a.example?b=1", "images"),
        ("https://api.minimax.io/v1/image_generation", "https://api.minimax.io/v1", "minimax"),
        ("https://openrouter.ai/api/v1/chat/completions", "https://openrouter.ai/api/v1", "chat"),
        ("http://a/openai/deployments/N/chat/completions", "http://a/openai/deployments/N", "chat"),
    ],
)
def test_other_endings_are_asked_as_they_are(url: str, base: str, kind: str) -> None:
    door = door_of(url, IMAGES)
    assert (door.url, door.base, door.kind) == (url, base, kind)


# --- what is sent -------------------------------------------------------------------------------

SHAPE = {"aspect_ratio": "16:9"}
CHAT_BODY = {
    "model": "any",
    "messages": [{"role": "user", "content": "a red apple"}],
    "modalities": ["image", "text"],
    "image_config": SHAPE,
    "seed": 7,
    "stream": False,
}
DEPLOYMENT_BODY = {"prompt": "a red apple", "n": 1, "seed": 7, "size": "1600x900"}
IMAGES_BODY = {"model": "any", **DEPLOYMENT_BODY}
MINIMAX_BODY = {"model": "any", "prompt": "a red apple", "n": 1, "seed": 7}
MINIMAX_BODY |= {"width": 1600, "height": 904, "response_format": "base64"}
DEPLOYMENT = "/openai/deployments/N"


@pytest.mark.parametrize(
    ("path", "say", "where", "sent"),
    [
        ("?a=1", DRAWN, "/v1/images/generations?a=1", IMAGES_BODY),
        ("/api/v1/images", DRAWN, "/api/v1/images", IMAGES_BODY),
        (f"{DEPLOYMENT}?a=1", DRAWN, f"{DEPLOYMENT}/images/generations?a=1", DEPLOYMENT_BODY),
        ("/v1/image_generation", OF_MINIMAX, "/v1/image_generation", MINIMAX_BODY),
        ("/v1/chat/completions?a=1", OF_CHAT, "/v1/chat/completions?a=1", CHAT_BODY),
    ],
)
def test_request_suits_the_door(
    backend: ScriptedServer, draw: Draw, path: str, say: Say, where: str, sent: dict[str, Any]
) -> None:
    backend.say(say)
    assert draw(backend.url + path, REQUEST, token="t", headers={"X-A": "1"}).data == png()
    [seen] = backend.seen
    assert (seen.target, seen.json, seen.headers["X-A"]) == (where, sent, "1")
    assert seen.headers["Accept"] == "application/json, image/*"
    is_deployment = path.startswith(DEPLOYMENT)
    assert seen.headers["api-key"] == ("t" if is_deployment else None)
    assert seen.headers["Authorization"] == (None if is_deployment else "Bearer t")


def test_configured_headers_take_precedence(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(DRAWN)
    draw(backend.url)
    assert backend.seen.pop().headers["Authorization"] is None
    draw(backend.url, token="t", headers={"authorization": "Basic x", "User-Agent": "curl"})
    sent = [backend.seen[0].headers.get_all(name) for name in ("Authorization", "User-Agent")]
    assert sent == [["Basic x"], ["curl"]]


def test_headers_go_to_the_own_origin_alone(server: MakeServer, draw: Draw) -> None:
    backend, other = server(), server()
    other.say(Say(png()))

    def answer(seen: Seen) -> Say:
        if seen.method == "GET":
            return Say("", 302, {"Location": f"{other.url}/a.png"})
        if "response_format" in seen.json:
            return DRAWN
        return Say({"data": [{"url": "/a.png"}]})

    backend.say(answer)
    draw(backend.url, headers={"X-A": "1"})
    assert [seen.headers["X-A"] for seen in backend.seen] == ["1"] * 3
    assert other.seen == []  # a private address


def test_parameters_join_those_of_chat(backend: ScriptedServer, draw: Draw) -> None:
    backend.say(OF_CHAT)
    config = {"image_size": "2K"}
    extra = {"image_config": config, "modalities": ["image"], "seed": None, "model": "x"}
    draw(f"{backend.url}/chat/completions", ImageRequest("a", 64, 64), params={"*": extra})
    sent = backend.seen[0].json
    assert sent["image_config"] == {"aspect_ratio": "1:1", "image_size": "2K"}
    assert (sent["modalities"], sent["model"], "seed" in sent) == (["image"], "x", False)


def test_missing_model_says_where_to_write_it(backend: ScriptedServer, serve: Serve) -> None:
    service = serve(BACKEND_API_URLS=f"{backend.url}/chat/completions")
    answer = service.picture("x")
    assert (answer.status, answer.json["stages"][-1]["why"]) == (502, "no model")
    assert "BACKEND_PARAMS" in str(service.as_admin("/status").json)
    assert service.picture("y", model="any").status == 200
    assert len(backend.seen) == 1


# --- what is rejected ---------------------------------------------------------------------------

NO_TEXT = "No endpoints found that support the requested output modalities: image, text"


def openrouter(seen: Seen) -> Say:
    """Sell a model that speaks no text and knows no seed."""
    if seen.json.get("modalities") != ["image"]:
        return Say({"error": {"message": NO_TEXT, "code": 404}}, 404)
    if "seed" in seen.json:
        return Say({"error": {"message": "Unsupported parameter: 'seed'"}}, 400)
    return OF_CHAT


def strict(seen: Seen) -> Say:
    """Take nothing but what every chat API takes."""
    for name in ("modalities", "image_config", "seed"):
        if name in seen.json:
            return Say({"error": {"message": f"Unrecognized request argument: {name}"}}, 400)
    return OF_CHAT


@pytest.mark.parametrize(
    ("answer", "rejections", "left"),
    [(openrouter, 2, {"modalities": ["image"], "image_config": SHAPE}), (strict, 4, {})],
)
def test_what_chat_rejects_is_dropped_and_learned(
    backend: ScriptedServer, draw: Draw, answer: Answer, rejections: int, left: dict[str, Any]
) -> None:
    backend.say(answer)
    for _ in range(2):
        draw(f"{backend.url}/v1/chat/completions", REQUEST)
    kept = {name: CHAT_BODY[name] for name in ("model", "messages", "stream")}
    assert [seen.json for seen in backend.seen][rejections:] == [kept | left] * 2


def test_unknown_size_of_minimax_is_a_shape(backend: ScriptedServer, draw: Draw) -> None:
    complaint = {"status_code": 2013, "status_msg": "invalid params, unknown parameter width"}

    def answer(seen: Seen) -> Say:
        return Say({"base_resp": complaint}) if "width" in seen.json else OF_MINIMAX

    backend.say(answer)
    draw(f"{backend.url}/v1/image_generation", REQUEST)
    assert backend.seen[-1].json["aspect_ratio"] == "16:9"
