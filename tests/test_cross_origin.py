"""Pages of other origins that fetch pictures and call the OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .conftest import BROKEN, KEY, REFUSAL, InProcess, drawing
from .servers import Got, Say, ScriptedServer, Seen

if TYPE_CHECKING:
    from .browser import Page

Serve = Callable[..., InProcess]

NAMES = "authorization,content-type," + ",".join(f"x-stainless-{n}" for n in ("arch", "os", "lang"))


def preflight(service: InProcess, path: str, names: str = NAMES) -> Got:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Headers": names}
    headers |= {"Access-Control-Request-Method": "POST"}
    return service.get(path, method="OPTIONS", headers=headers)


def test_preflight_allows_the_headers_that_are_asked_for(service: InProcess) -> None:
    reading, posting = "GET, HEAD, OPTIONS", "OPTIONS, POST"
    for path, methods in [
        ("/prompt/x", reading),
        ("/v1/images/generations", posting),
        ("/v1/images/edits", posting),
        ("/images//generations", posting),
        ("/v1/models", reading),
        ("/v1/models/vendor/flux", reading),
        ("/v1/chat/completions", posting),
        ("/chat/completions", posting),
    ]:
        got = preflight(service, path)
        assert (got.status, got.body, got.headers["Content-Type"]) == (204, b"", None)
        assert got.headers["Access-Control-Allow-Origin"] == "*"
        assert got.headers["Access-Control-Allow-Methods"] == got.headers["Allow"] == methods
        assert got.headers["Access-Control-Allow-Headers"] == NAMES


def test_preflight_echoes_at_most_1000_characters(service: InProcess) -> None:
    got = [preflight(service, "/v1/models", "x" * count) for count in (0, 1000, 1001)]
    echoed = [one.headers["Access-Control-Allow-Headers"] for one in got]
    assert echoed == [None, "x" * 1000, None]


def test_administration_is_closed_to_other_origins(service: InProcess) -> None:
    for path in ("/cache", "/cache/delete", "/sign", "/status", "/"):
        assert preflight(service, path).headers["Access-Control-Allow-Origin"] is None, path


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
    serve: Serve,
    backend: ScriptedServer,
    server: Callable[[], ScriptedServer],
    browser: Page,
    node_modules: Path,
) -> None:
    answers = {"a cat": drawing(), "a rude cat": REFUSAL, "a broken cat": BROKEN}
    backend.say(lambda seen: answers[seen.json["prompt"]])
    service, site = serve(backend, MODELS="gpt-image-1"), server()

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
