"""The picture in an answer, whatever its shape: a row for each that vendors send."""

import base64
import contextlib
import gzip
import json
import textwrap
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialect.answers import find_pictures
from dialect.envelope import read_json
from drawing.backend import NotDrawn

from .conftest import drawing
from .one_backend import LIMIT, PNG, Draw, b64, not_drawn
from .scripted import GIF, JPEG, WEBP, Say, ScriptedServer, Seen, png
from .wire import any_json, guarded_net, unhurried

net = pytest.fixture(autouse=True)(guarded_net)

TEXT = b64(PNG)
URI = f"data:image/png;base64,{TEXT}"
# Its base64 has every sign of the alphabet that is written in several ways.
ODD = next(data for width in range(1, 999) if {*"+/="} <= {*b64(data := png(width))})
LARGE = png(size=60_000)

# --- base64, in every alphabet ------------------------------------------------------------------

SPELLINGS: dict[str, Callable[[bytes], str]] = {
    "plain": b64,
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "without padding": lambda data: b64(data).rstrip("="),
    "in lines": lambda data: "\r\n".join(textwrap.wrap(b64(data), 76)) + "\n",
    "spaces around it": lambda data: f" \n{b64(data)} ",
    "percent-encoded": lambda data: quote(b64(data), safe=""),
    "in small letters": lambda data: quote(b64(data), safe="").replace("%2F", "%2f"),
    "data URI": lambda data: f"data:image/png;base64,{b64(data)}",
    "data URI in capitals": lambda data: f"DATA:IMAGE/PNG;BASE64,{b64(data)}",
    "data URI, twice": lambda data: 2 * "data:image/png;base64," + b64(data),
    "data URI with parameters": lambda data: f"data:image/png;charset=utf-8;base64,{b64(data)}",
    "data URI of a lying type": lambda data: f"data:text/plain;base64,{b64(data)}",
    "data URI, not said to be base64": lambda data: f"data:image/png,{b64(data)}",
    "data URI of percent-encoded bytes": lambda data: f"data:image/png,{quote(data)}",
    "data URI, percent-encoded": lambda data: quote(f"data:image/png;base64,{b64(data)}", safe=""),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_base64_is_read_in_any_spelling(backend: ScriptedServer, draw: Draw, spelling: str) -> None:
    for data in (ODD, JPEG, GIF, WEBP, LARGE):
        body = json.dumps({"data": [{"b64_json": SPELLINGS[spelling](data)}]})
        # As json.dumps, PHP and .NET escape it.
        for escaped in (body, body.replace("/", r"\/"), body.replace("+", r"\u002B")):
            backend.say(Say(escaped))
            assert draw(backend.url).data == data


def chat(message: Any) -> Any:
    return {"choices": [{"message": message}]}


def delta(message: Any) -> Any:
    return {"choices": [{"index": 0, "delta": message}]}


def stream(*events: Any) -> str:
    """Return the events as a stream, whose last is `[DONE]`."""
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


# --- where the picture stands -------------------------------------------------------------------

PARTIAL = {"type": "image_generation.partial_image", "b64_json": b64(GIF)}
COMPLETED = {"type": "image_generation.completed", "b64_json": TEXT}
PROGRESS = "> 生成中 20%...\n[100]({origin}/1_img_1.webp?se=9)\n![]({origin}/old.png)\n> 完成 ✅\n"

SHAPES: dict[str, Any] = {
    "b64_json": {"created": 1, "data": [{"b64_json": TEXT}]},
    "b64_json beside a null url": {"data": [{"url": None, "b64_json": TEXT}]},
    "b64_json beside an empty url": {"data": [{"url": "", "b64_json": TEXT}]},
    "b64_json beside a url": {"data": [{"url": "http://10.0.0.1/a", "b64_json": TEXT}]},
    "url beside a null b64_json": {"data": [{"url": "/a.png", "b64_json": None}]},
    "url": {"data": [{"url": "{origin}/a.png"}]},
    "url in capitals": {"data": [{"url": "HTTP://{host}/a.png"}]},
    "url without a scheme": {"data": [{"url": "//{host}/a.png"}]},
    "url with white space": {"data": [{"url": " {origin}/a.png\n"}]},
    "url in Markdown": {"data": [{"url": "![image]({origin}/a.png)"}]},
    "url in a Markdown link": {"data": [{"url": "[a.png]({origin}/a.png)"}]},
    "url in angle brackets": {"data": [{"url": "<{origin}/a.png>"}]},
    "url as a list": {"data": [{"url": ["{origin}/a.png"]}]},
    "url as an object": {"data": [{"url": {"href": "{origin}/a"}}]},
    "data URI as url": {"data": [{"url": URI}]},
    "data as an object": {"data": {"b64_json": TEXT}},
    "data as an object with a url": {"data": {"url": "{origin}/a.png"}},
    "data, a text": {"data": [TEXT]},
    "data, a URL": {"data": ["{origin}/a"]},
    "images, url": {"images": [{"url": "{origin}/a.png"}]},
    "images, a URL": {"images": ["{origin}/a.png"]},
    "images, base64": {"images": [TEXT]},
    "images beside empty data": {"data": [], "images": [TEXT]},
    "the first of several": {"data": [{"b64_json": TEXT}, {"b64_json": b64(GIF)}]},
    "an empty one first": {"data": [{}, {"b64_json": TEXT}]},
    "a broken one first": {"data": [{"b64_json": b64(PNG[:-9])}, {"b64_json": TEXT}]},
    "an SVG first": {"data": [{"b64_json": b64(b"<svg/>")}, {"b64_json": TEXT}]},
    "a URL that is gone first": {"data": [{"url": "/gone"}, {"url": "/a.png"}]},
    "a page first": {"data": [{"url": "/page"}, {"url": "/a.png"}]},
    "a preview first": {"thumbnail": b64(GIF), "image": TEXT},
    "a preview before a URL": {"preview_url": "/old.png", "image_url": "{origin}/a.png"},
    "the input first": {"input": {"image": b64(GIF)}, "output": {"image": TEXT}},
    "a preview alone": {"thumbnail": TEXT},
    "media_type (OpenRouter)": {"data": [{"media_type": "image/webp", "b64_json": TEXT}]},
    "image_urls (MiniMax)": {"data": {"image_urls": ["{origin}/a"]},
        "base_resp": {"status_code": 0}},
    "image_base64 (MiniMax)": {"data": {"image_base64": [TEXT]}},
    "a task's result (APIMart)": {"code": 200, "data": {"id": "t", "status": "completed",
        "result": {"images": [{"url": ["{origin}/a.png"], "expires_at": 1}]}}},
    "a task's result (ModelScope)": {"task_status": "SUCCEED", "output_images": ["{origin}/a"]},
    "output (Replicate)": {"urls": {"cancel": "/gone"}, "output": "{origin}/a"},
    "result.image (Cloudflare)": {"result": {"image": TEXT}, "success": True, "errors": []},
    "inlineData (Gemini)": {"candidates": [{"content": {"parts": [
        {"text": "Here it is"}, {"inlineData": {"mimeType": "image/png", "data": TEXT}}]}}]},
    "output of a response": {"output": [{"type": "image_generation_call", "result": TEXT}]},
    "a list": [{"url": "{origin}/a.png"}],
    "JSON in a text": {"result": json.dumps({"data": [{"url": "{origin}/a"}]})},
    "deep in new fields": {"a": [{"b": {"c": [[{"new_field": TEXT}]]}}]},
    "a null error": {"error": None, "data": [{"b64_json": TEXT}]},
    "beside an error": {"error": {"message": "server_error"}, "data": [{"b64_json": TEXT}]},
    "beside a message": {"message": "success", "code": 0, "result": {"url": "{origin}/a"}},
    "beside anything": {"x": [1e400, -0.5, True, "\0\ud800", {}], "data": [{"b64_json": TEXT}]},
    "half a character beside it": b'{"x": "\xff", "images": ["' + TEXT.encode() + b'"]}',
    "line breaks in a string": f'{{"b64_json": "{TEXT[:40]}\n{TEXT[40:]}"}}',
    "chat, images": chat({"content": "", "images": [{"image_url": {"url": URI}}]}),
    "chat, parts": chat({"content": [{"type": "text", "text": "Here"},
                                     {"type": "image_url", "image_url": {"url": URI}}]}),
    "chat, Markdown": chat({"content": "Done!\n![a [red] apple]({origin}/a)\nEnjoy."}),
    "chat, Markdown with a title": chat({"content": '![x]({origin}/a.png "An apple")'}),
    "chat, Markdown with a data URI": chat({"content": f"![image]({URI})"}),
    "chat, a large one in Markdown": chat({"content":
        f"![i](data:image/png;base64,{b64(LARGE)})!"}),
    "chat, a bare URL": chat({"content": " {origin}/a\n"}),
    "chat, a bare data URI": chat({"content": URI}),
    "chat, a data URI in prose": chat({"content": f"Here it is: {URI}\n\nEnjoy"}),
    "chat, HTML": chat({"content": '<img alt="x" src="{origin}/a?x=1&amp;y=2" />'}),
    "chat, the last picture": chat({"content":
        PROGRESS + "![]({origin}/a.png)\n[点击下载]({origin}/d)"}),
    "chat, the last link": chat({"content":
        "[1]({origin}/gone.webp) and [2]({origin}/a.png?x=(1))."}),
    "chat, a quoted URL": chat({"content": "You wrote http://10.0.0.1/x.png: {origin}/a.png。"}),
    "the raw picture": PNG,
    "a raw WebP": WEBP,
    "a raw picture after blank lines": b"\r\n\r\n" + PNG,
    "a body of base64": TEXT,
    "a body that is a data URI": URI,
    "a body that is a text in JSON": json.dumps("{origin}/a.png"),
    "a body that is a URL": "{origin}/a.png\n",
    "JSON without its end": json.dumps({"data": [{"b64_json": b64(LARGE)}]})[:-3],
    "deep nesting beside a large one": f'{{"image": "{b64(LARGE)}", "x": {"[" * 20_000}'
        + "]" * 20_000 + "}",
    "progress, a value a line": '{"done": 1}\n{"done": 2}\n' + json.dumps({"image": TEXT}),
    "a stream": stream({"data": [{"b64_json": TEXT}]}),
    "a stream of named events": "event: image_generation.partial_image\n"
        f"data: {json.dumps(PARTIAL)}\n\nevent: image_generation.completed\n"
        f"data: {json.dumps(COMPLETED)}\n\n",
    "a stream with partial pictures": stream(PARTIAL, COMPLETED),
    "a stream of large pictures": stream(
        PARTIAL | {"b64_json": b64(png(size=9000))}, COMPLETED | {"b64_json": b64(LARGE)}),
    "a stream of a chat": stream(delta({"content": "![i]("}), delta({"content": "{origin}/a)"})),
    "a stream of a chat with images": ": ping\n\n" + stream(
        delta({"content": None}), delta({"images": [{"image_url": {"url": URI}}]}), {"usage": {}}),
    "a stream with progress": stream({"results": [{"url": "/gone"}]}, {"results": [{"url": "/a"}]}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_picture_is_found_wherever_it_is(backend: ScriptedServer, draw: Draw, shape: str) -> None:
    said = SHAPES[shape]

    def answer(seen: Seen) -> Say:
        if seen.method == "GET":
            pages = {"/page": Say("<html>"), "/gone": Say("", 410), "/gone.webp": Say("", 404)}
            return pages.get(seen.path, Say(GIF if "old" in seen.path else PNG))
        body = said.decode("latin-1") if isinstance(said, bytes) else said
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        text = text.replace("{origin}", backend.url).replace("{host}", backend.url[7:])
        lie = {"Content-Type": "text/html; charset=utf-8"}
        code = "latin-1" if isinstance(said, bytes) else "utf-8"
        return Say(text.encode(code, "surrogatepass"), headers=lie)

    backend.say(answer)
    image = draw(backend.url, prompt="a red apple like http://10.0.0.1/x.png")
    assert image.drawn_by == backend.url
    assert image.data in (PNG, LARGE, WEBP)
    assert [seen.method for seen in backend.seen].count("POST") == 1


JSON_BODY = json.dumps({"data": [{"b64_json": TEXT}]}).encode()
INDENTED = json.dumps(json.loads(JSON_BODY), indent=1).encode().splitlines()
# What stands around the JSON, or the coding that is announced, with what is sent.
AROUND: dict[str, tuple[str, bytes]] = {
    "BOM": ("identity", b"\xef\xbb\xbf" + JSON_BODY),
    "blank lines": ("identity", b"\n" * 5000 + JSON_BODY),
    "blank lines and a BOM": ("identity", b" \r\n\xef\xbb\xbf\r\n" + JSON_BODY),
    "[DONE]": ("identity", JSON_BODY + b"\n\ndata: [DONE]\n\n"),
    "comments": ("identity", b": ping\n\n: OPENROUTER PROCESSING\n\n" + JSON_BODY),
    "another value": ("identity", JSON_BODY + b'\n{"usage": {"images": 1}}'),
    "a page's end": ("identity", JSON_BODY + b"\n<!-- nginx -->"),
    "an event of several lines": ("identity", b"event: message\r\n"
        + b"".join(b"data: %b\r\n" % line for line in INDENTED) + b"\r\ndata: [DONE]\r\n\r\n"),
    "an event": ("identity", b"id: 1\nretry: 5\nevent: message\ndata:" + JSON_BODY + b"\n\n"),
    "br on plain bytes": ("br", JSON_BODY),
    "gzip on plain bytes": ("gzip", JSON_BODY),
    "deflate on plain bytes": ("deflate", JSON_BODY),
    "deflate on a picture": ("deflate", WEBP),
    "nonsense": ("utf-8", PNG),
    "gzip": ("gzip", gzip.compress(JSON_BODY)),
    "gzip, twice": ("gzip, gzip", gzip.compress(gzip.compress(JSON_BODY))),
    "gzip, not announced": ("identity", gzip.compress(PNG)),
    "deflate": ("deflate", zlib.compress(JSON_BODY)),
}  # fmt: skip


@pytest.mark.parametrize("thing", AROUND)
def test_picture_is_found_amid_anything(backend: ScriptedServer, draw: Draw, thing: str) -> None:
    coding, body = AROUND[thing]
    backend.say(Say(body, headers={"Content-Encoding": coding}))
    assert draw(backend.url).data in (PNG, WEBP)


@pytest.mark.parametrize(
    ("answer", "revised"),
    [
        ({"data": [{"b64_json": TEXT, "revised_prompt": " a ripe\0 fig\ud800 "}]}, "a ripe fig?"),
        ({"data": [{"b64_json": TEXT, "revised_prompt": 5}]}, None),
        ({"data": [{"b64_json": TEXT}], "revised_prompt": "a ripe apple"}, "a ripe apple"),
        ({"data": [{"revised_prompt": "x"}, {"b64_json": TEXT, "revised_prompt": "y"}]}, "y"),
        ({"data": [{"b64_json": TEXT, "revised_prompt": "x" * 5000}]}, "x" * 4000),
        ({"data": [{"revised_prompt": URI, "b64_json": b64(JPEG)}]}, URI),
    ],
)
def test_revised_prompt_is_the_one_beside_it(
    backend: ScriptedServer, draw: Draw, answer: Any, revised: str | None
) -> None:
    backend.say(Say(answer))
    assert draw(backend.url).revised_prompt == revised


def test_picture_of_just_the_limit_is_accepted(backend: ScriptedServer, draw: Draw) -> None:
    exact = png(size=LIMIT)
    for say in (drawing(exact), Say(exact)):
        backend.say(say)
        assert draw(backend.url).data == exact


# --- no picture ---------------------------------------------------------------------------------

OURS = "http://127.0.0.1:9/in-the-prompt.png"
NO_PICTURES: dict[str, tuple[Any, str]] = {
    "HTML": ("<!doctype html><html><img src=/a.png></html>", "not a picture"),
    "an SVG": ("<?xml version='1.0'?>\n<svg xmlns='x'/>", "not a picture: SVG"),
    "an SVG in base64": ({"images": [b64(b"<svg/>")]}, "not a picture: SVG"),
    "an SVG as a data URI": ({"url": "data:image/svg+xml,%3Csvg/%3E"}, "not a picture: SVG"),
    "an AVIF": (b"\0\0\0\x1cftypavif" + bytes(40), "not a picture: AVIF"),
    "nothing": (b"", "not a picture"),
    "cut JSON": ('{"data": [{"b64_json": "' + TEXT, "not a picture"),
    "deep JSON": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not a picture"),
    "a cut picture": (PNG[:-1], "not a picture"),
    "a cut picture in base64": ({"images": [b64(PNG[:-12])]}, "not a picture"),
    "a picture above the limit": ({"images": [b64(png(size=LIMIT + 1))]}, "answer too large"),
    "an answer far above the limit": ({"images": [b64(png(size=3 * LIMIT))]}, "answer too large"),
    "only a partial picture": (f"data: {json.dumps(PARTIAL)}\n\n", "rejected"),
    "base64 that is none": ({"data": [{"b64_json": "this is no base64!"}]}, "rejected"),
    "half a character": ({"data": [{"b64_json": "\ud800AAA"}]}, "rejected"),
    "a number for a picture": ({"data": [{"b64_json": 5}]}, "rejected"),
    "a file": ({"data": [{"url": "file:///etc/passwd"}]}, "rejected"),
    "a relative path": ({"images": ["a.png"]}, "rejected"),
    "a URL under another key": ({"docs_url": "/a.png", "id": "http://x.example/"}, "rejected"),
    "an apology": (chat({"content": "I'm sorry, I can't draw /a.png."}), "rejected"),
    "an apology that quotes a URL": (chat({"content": f"I can't draw ![x]({OURS})"}), "rejected"),
    "an apology that quotes a data URI": (chat({"content": f"Not {URI}"}), "rejected"),
    "a task": ({"task_status": "weird", "id": "1"}, "rejected"),
    "an error beside no picture": ({"error": {"message": "server_error"}, "data": []}, "down"),
    "an error in a stream": ('event: error\ndata: {"code": "moderation_blocked"}\n\n', "refused"),
    "beside a refusal": ({"error": {"code": "content_filter"}, "data": [{"url": "/a"}]}, "refused"),
    "500": (Say("", 500), "down"),
}


@pytest.mark.parametrize("thing", NO_PICTURES)
def test_anything_but_a_picture_is_none(backend: ScriptedServer, draw: Draw, thing: str) -> None:
    said, why = NO_PICTURES[thing]
    backend.say(said if isinstance(said, Say) else Say(said, headers={"Content-Type": "image/png"}))
    prompt = f"a red apple, {OURS}, {URI}"
    assert not_drawn(lambda: draw(backend.url, prompt=prompt)).fault.why == why
    assert len(backend.seen) == 1


# --- any answer ---------------------------------------------------------------------------------

JSON = any_json(
    st.sampled_from((
        "data", "images", "b64_json", "url", "error", "code", "message", "param", "base_resp",
        "size", "status_code", "revised_prompt", "nsfw", "Unknown parameter: 'seed'", "429",
        "choices", "delta", "content", "type", "image_generation.completed", "preview", "![](",
        "http://[::1", "http://127.0.0.1:9/a.png", "http://pics.example/a", "file:///x", "/a.png",
        "//[", "/9j/", "UklGR", "data:image/png;base64,", "\ud800", "\0", TEXT, "loc", "errors",
        "status", "state", "contentFilter", "level", "must be", "2^99", '{"error":',
    ))
)  # fmt: skip
# Shaped like the real thing, so that deeper values are reached as well.
PARTS = st.dictionaries(st.sampled_from(["b64_json", "url", "delta", "message"]), JSON)
LISTS = st.lists(PARTS | JSON, min_size=1, max_size=2)
SHAPED = st.dictionaries(st.sampled_from(["data", "images", "choices"]), LISTS)
LINES = st.sampled_from((b"", b"\n\n", b"data: ", b"event: error\n", b": ping\n", b"[DONE]"))
VALUES = (JSON | SHAPED).map(lambda value: json.dumps(value).encode())
BODIES = st.binary(max_size=60) | st.lists(LINES | VALUES, max_size=5).map(b"".join)
STATUS = st.sampled_from([200, 200, 200, 201, 204, 302, 400, 404, 422, 429, 451, 500, 599])
CODINGS = st.sampled_from([None, None, "gzip", "br", "deflate"])


def test_any_answer_is_a_picture_or_not_drawn(backend: ScriptedServer, draw: Draw) -> None:
    @settings(unhurried, max_examples=100)
    @given(BODIES, STATUS, CODINGS)
    def check(body: bytes, status: int, coding: str | None) -> None:
        backend.say(Say(body, status, {"Content-Encoding": coding} if coding else {}))
        with contextlib.suppress(NotDrawn):
            assert draw(backend.url).media_type.startswith("image/")

    check()
    assert len(backend.seen) >= 100


# What may stand around a picture and holds no other.
BESIDE = any_json(st.nothing(), 8)
KEYS = st.text(max_size=9).filter(lambda key: not key.lower().endswith("prompt"))
URL = "https://pics.example/a?b=c#d"
NAMES = st.sampled_from(["url", "image_url", "image", "images", "output", "link", "b64_json"])
WRITTEN = st.sampled_from([URL, f" {URL}\n", [URL], {"url": URL}, f"![an apple]({URL})"])
URLS = st.builds(lambda name, written: {name: written}, NAMES, WRITTEN)


@unhurried
@given(st.data())
def test_picture_is_found_whatever_is_around_it(data: st.DataObject) -> None:
    picture = data.draw(st.sampled_from([PNG, ODD, JPEG, GIF, WEBP, LARGE]))
    spelling = data.draw(st.sampled_from(list(SPELLINGS.values())))
    answer: Any = data.draw(URLS | st.just(spelling(picture)))
    for key in data.draw(st.lists(KEYS, min_size=1, max_size=5)):
        beside = data.draw(st.dictionaries(KEYS, BESIDE, max_size=3))
        answer = data.draw(st.sampled_from([{**beside, key: answer}, [*beside.values(), answer]]))
    before = data.draw(st.sampled_from(["", "\ufeff", "\n" * 99, ": ping\n\n", "data: ", " \r\n"]))
    after = data.draw(st.sampled_from(["", "\n\ndata: [DONE]", "\n\n", "\n<!-- x -->", "]"]))
    read = read_json(f"{before}{json.dumps(answer)}{after}".encode())
    assert any(one.url == URL or one.data == picture for one in find_pictures(read))


@pytest.mark.parametrize(
    "body",
    [
        *("{}" * 2**20, '["' * 2**20, "data: [1,\n" * 2**17, 'data: {"a":\n' * 2**17),
        *("data: {}\n" * 2**17, ":\n" * 2**20),
        json.dumps(chat({"content": "![" * 2**19})),
        json.dumps(chat({"content": "<img src" * 2**17})),
        json.dumps(chat({"content": "http://a.png)" * 2**16})),
    ],
    ids=lambda body: body[:9],
)
def test_megabytes_of_anything_cost_little_time(body: str) -> None:
    began = time.thread_time()
    assert [one for one in find_pictures(read_json(body.encode())) if one.data] == []
    assert time.thread_time() - began < 3


def test_text_of_the_request_is_never_the_picture() -> None:
    said = f"I can't draw {OURS} or {OURS.upper()} or {quote(OURS)}."
    assert list(find_pictures(chat({"content": said}), sent=[f"{OURS} please"])) == []
