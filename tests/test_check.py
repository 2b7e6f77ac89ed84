"""`check`: faults of the settings and the cache, and what it asks each server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import InProcess, Run, drawing, llm_settings
from .scripted import Answer, Say, ScriptedServer, Seen

MODELS = {"object": "list", "data": [{"id": "flux"}, {"id": "gpt-image-1"}]}
WRONG_KEY = Say({"error": {"message": "Incorrect API key provided: token-of-the-tests"}}, 401)
NO_PROMPT = Say({"error": {"message": "Missing required parameter: 'prompt'."}}, 400)
NOTHING = Say("nothing here", 404)
REJECTS = "answers, and rejects an empty prompt (HTTP 400): “Missing required parameter: 'prompt'.”"
TOKEN = {"AUTH_TOKEN": "token-of-the-tests"}


def vendor(models: Answer, drawn: Answer = NO_PROMPT) -> Callable[[Seen], Say]:
    """Return a vendor with one answer to GET and one to POST."""

    def answer(seen: Seen) -> Say:
        found = models if seen.method == "GET" else drawn
        return found(seen) if callable(found) else found

    return answer


def listing(seen: Seen) -> Say:
    """List the models for those who have a token."""
    return Say(MODELS) if seen.headers["Authorization"] else WRONG_KEY


def line_of(name: str, run: Run, *options: str, **settings: str) -> tuple[str, str, int]:
    """Return what is printed of a server, what is printed below, and the exit status."""
    result = run("check", *(options or ("--backends",)), **settings)
    lines = [*result.stdout.splitlines(), ""]
    place = next(number for number, line in enumerate(lines) if line.startswith(name))
    remedy = lines[place + 1] if lines[place + 1].startswith("  ") else ""
    return lines[place].partition(": ")[2], remedy.strip(), result.exit_code


def test_check_warns_of_a_unit_of_another_version(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.check.ROOT", tmp_path)
    unit = tmp_path / "etc/systemd/system/prompt-image-proxy.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("# Prompt Image Proxy under systemd\n[Service]")
    result = run("check", "--settings")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"Warning: {unit} is of another version than this code")


def test_check_names_what_is_wrong(run: Run, tmp_path: Path) -> None:
    assert "the cache can be used" in run("check").stdout
    servers = {
        "DATABASE_URL": "postgresql://user@127.0.0.1:1/pictures",
        "STORAGE_URL": "s3://bucket",
        "S3_ENDPOINT_URL": "http://127.0.0.1:1",
        "S3_ACCESS_KEY_ID": "id",
        "S3_SECRET_ACCESS_KEY": "secret",
        "CACHE_DIR": str(tmp_path / "copies"),
    }
    result = run("check", **servers, PORT="x")
    assert (result.exit_code, result.stdout) == (1, "")
    first, _, head, database, objects = result.stderr.splitlines()
    assert (first, head) == ("Error: Invalid settings:", "The cache cannot be used:")
    assert database.startswith("  DATABASE_URL: no server answers")
    assert objects.startswith("  S3_ENDPOINT_URL: object store: cannot be reached; write")
    assert run("check", "--settings", **servers).exit_code == 0
    assert run("check", "--settings", PORT="x").exit_code == 1


def test_check_of_the_cache_that_breaks_is_a_fault(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    result = run("check")
    assert (result.exit_code, "ended with status 1" in result.stderr) == (1, True)


def test_list_of_models_for_the_token_alone_is_enough(run: Run, backend: ScriptedServer) -> None:
    backend.say(vendor(listing))
    assert line_of("Backend", run, **TOKEN) == ("answers, with 2 models", "", 0)
    mapped = json.dumps({backend.url: {"a": "flux", "b": "sdxl"}})
    came = line_of("Backend", run, MODEL_MAP=mapped, **TOKEN)[0]
    assert came == "answers, with 2 models; not in its list: sdxl"
    assert {(seen.method, seen.target) for seen in backend.seen} == {("GET", "/v1/models")}


@pytest.mark.parametrize(
    ("models", "drawn", "came", "remedy"),
    [
        (Say(MODELS), NO_PROMPT, REJECTS, ""),
        (NOTHING, NO_PROMPT, REJECTS, ""),
        (Say("<html>"), NO_PROMPT, REJECTS, ""),
        (NOTHING, WRONG_KEY, "unauthorised (HTTP 401): “Incorrect API key provided: ***”", "AUTH_"),
        (NOTHING, NOTHING, "not found (HTTP 404): “nothing here”", "BACKEND_API_URLS"),
        (NOTHING, Say({"error": "The model does not exist"}, 404), "unknown model", "MODEL_MAP"),
        (NOTHING, Say({"error": "insufficient_quota"}, 429), "out of credit", "Top up"),
        (NOTHING, Say({"error": "boom"}, 500), "down (HTTP 500): “boom”", "Try again later"),
    ],
)
def test_empty_prompt_tells_what_the_list_does_not(
    run: Run, backend: ScriptedServer, models: Say, drawn: Say, came: str, remedy: str
) -> None:
    backend.say(vendor(models, drawn))
    found = line_of("Backend", run, **TOKEN)
    assert came in found[0]
    assert remedy in found[1]
    assert bool(found[1]) == found[2] == bool(remedy)
    assert backend.seen[-1].json["prompt"] == ""


def test_unreachable_server_is_no_end_of_the_check(run: Run, backend: ScriptedServer) -> None:
    backend.say(vendor(listing))
    urls = f"http://127.0.0.1:1,{backend.url}"
    result = run("check", "--backends", BACKEND_API_URLS=urls, **TOKEN)
    assert "127.0.0.1:1: it refused the connection" in result.stdout
    assert f"{backend.url}: answers" in result.stdout
    assert result.exit_code == 1


def test_llm_is_asked_once_too(
    run: Run, backend: ScriptedServer, server: Callable[[], ScriptedServer]
) -> None:
    backend.say(vendor(listing))
    (llm := server()).say(vendor(NOTHING, WRONG_KEY))
    token = {"LLM_OPTIMIZATION_TOKEN": "token-of-the-llm"}
    came, remedy, status = line_of("LLM", run, **llm_settings(llm, optimise=True), **TOKEN, **token)
    assert came.startswith("unauthorised (HTTP 401)")
    assert ("LLM_OPTIMIZATION_TOKEN" in remedy, status) == (True, 1)


def test_only_draw_draws(run: Run, backend: ScriptedServer) -> None:
    backend.say(vendor(listing, drawing()))
    came, _, status = line_of("Backend", run, "--draw", **TOKEN)
    assert (came.startswith("drew 1x1, "), "of image/png" in came, status) == (True, True, 0)
    assert "0 pictures" in run("cache", "stats").stdout
    backend.say(vendor(listing, WRONG_KEY))
    assert line_of("Backend", run, "--draw", **TOKEN)[2] == 1


# --- through PUBLIC_URL -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "came", "remedy"),
    [
        (lambda target: target, "passes prompts on unchanged", ""),
        (lambda target: target.replace("%2F%2F", "/"), "HTTP 401", "AllowEncodedSlashes NoDecode"),
        (lambda target: "/nothing" if "%2F" in target else target, "HTTP 404", "encodedCharacters"),
        (lambda target: "/robots.txt", "HTTP 200", "Start the service"),
    ],
)
def test_server_in_front_that_changes_prompts_is_named(
    run: Run,
    backend: ScriptedServer,
    service: InProcess,
    server: Callable[[], ScriptedServer],
    change: Callable[[str], str],
    came: str,
    remedy: str,
) -> None:
    backend.say(vendor(listing))

    def pass_on(seen: Seen) -> Say:
        got = service.get(change(seen.target), method="HEAD")
        return Say(b"", got.status, {**dict(got.headers.items()), "Server": "Apache"})

    (front := server()).say(pass_on)
    found = line_of("PUBLIC_URL", run, PUBLIC_URL=front.url, **TOKEN)
    assert found[0].startswith(came)
    assert "Apache" in found[0] or not remedy
    assert remedy in found[1]
    assert found[2] == bool(remedy)
    assert {seen.method for seen in backend.seen} == {"GET"}
