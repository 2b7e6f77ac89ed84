"""The command line: sign, warm and cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import click.testing
import pytest

import config
from app import create_app
from cache import Cache, Provenance
from picture import ImageRequest

from .conftest import KEY, REFUSAL, ROOT, InProcess, drawing
from .servers import GIF, Say, ScriptedServer, Seen, png, wait_until

Run = Callable[..., click.testing.Result]
BASE = "https://pics.example.org"

# Run in a folder of the test's own: the one of the program may have a .env.
FLASK = [sys.executable, "-m", "flask", "--app", str(ROOT / "app.py")]


@pytest.fixture
def run(environment: dict[str, str], backend: ScriptedServer) -> Run:
    """Run `flask --app app …` in this process."""

    def invoke(*arguments: str, answer: str | None = None, **settings: str) -> click.testing.Result:
        values = {**environment, "BACKEND_API_URLS": backend.url, **settings}
        app = create_app(config.parse(values))
        try:
            return app.test_cli_runner().invoke(args=list(arguments), input=answer)
        finally:
            app.extensions["prompt_image_proxy"].cache.close()

    return invoke


@pytest.fixture
def cache(environment: dict[str, str], opened: list[Cache]) -> Cache:
    opened.append(made := Cache(Path(environment["CACHE_DIR"])))
    made.totals()
    return made


def put(cache: Cache, prompt: str, created: float | None = None) -> str:
    request = ImageRequest(prompt)
    provenance = Provenance(prompt, seed=42)
    cache.put(request.key, png(), "image/png", provenance, created=created)
    return request.key


# --- sign


def test_sign_prints_what_the_server_accepts(
    run: Run, serve: Callable[..., InProcess], backend: ScriptedServer
) -> None:
    result = run("sign", "a red apple", "--width", "64", "--seed", "7", PUBLIC_URL=BASE)
    assert result.exit_code == 0
    url = result.output.strip()
    assert url.startswith(f"{BASE}/prompt/a%20red%20apple?width=64&seed=7&sig=")
    assert serve(backend).get(url.removeprefix(BASE)).status == 200
    expiring = run("sign", "x", "--expires-in", "60", PUBLIC_URL=BASE).output
    assert "exp=" in expiring


@pytest.mark.parametrize(
    ("form", "begins"), [("url", BASE), ("markdown", f"![x]({BASE}"), ("html", f'<img src="{BASE}')]
)
def test_sign_has_three_formats(run: Run, form: str, begins: str) -> None:
    assert run("sign", "x", "--format", form, PUBLIC_URL=BASE).output.startswith(begins)
    links = json.loads(run("sign", "x", "--json", PUBLIC_URL=BASE).output)
    assert links[form].startswith(begins)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sign",),
        ("sign", "a", "b"),
        ("sign", " "),
        ("sign", "x", "--width", "0"),
        ("sign", "x", "--expires-in", "0"),
        ("sign", "x", "--format", "gif"),
    ],
)
def test_bad_arguments_end_with_a_sentence(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert "Error:" in result.output
    assert "Traceback" not in result.output


def test_sign_in_place_replaces_the_key_and_nothing_else(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before = (
        f"# One\r\n![x]({BASE}/prompt/a?width=9&key={KEY})\r\n"
        f'<img src="{BASE}/prompt/b?key={KEY}&amp;seed=1"> {BASE}/prompt/c?key=wrong\n'
    ).encode() + b"\xff"
    page.write_bytes(before)
    result = run("sign", "--in-place", str(page))
    assert (result.exit_code, result.output) == (0, f"{page}: 2 signed\n")
    after = page.read_bytes()
    assert KEY.encode() not in after
    assert after.count(b"sig=") == 2
    head, tail = before.split(f"key={KEY})".encode())
    assert after.startswith(head)
    assert after.endswith(tail.partition(b"&amp;")[2])
    assert json.loads(run("sign", "--in-place", "--json", str(page)).output) == {str(page): 0}
    assert page.read_bytes() == after


# --- warm


def test_warm_draws_what_is_missing_and_tells_what_failed(
    run: Run, backend: ScriptedServer, cache: Cache, tmp_path: Path
) -> None:
    put(cache, "there")
    backend.say(lambda seen: REFUSAL if seen.json["prompt"] == "rude" else drawing())
    page = tmp_path / "page.md"
    page.write_text(
        "\n".join(f"![]({BASE}/prompt/{p}?key={KEY})" for p in ("a", "b", "there", "rude", "a"))
        + f"![]({BASE}/prompt/foreign?key=another)"
    )
    result = run("warm", str(page), "--jobs", "2")
    assert result.exit_code == 1
    assert "2 drawn, 1 there, 1 failed" in result.output
    assert "Moderation refused the prompt everywhere." in result.output
    assert sorted(seen.json["prompt"] for seen in backend.seen) == ["a", "b", "rude"]
    again = run("warm", str(page), "--json")
    counts = json.loads(again.stdout)
    assert (counts["drawn"], counts["there"], list(counts["failed"])) == (0, 3, ["rude"])


def test_warm_takes_signed_urls_and_not_expired_ones(
    run: Run, backend: ScriptedServer, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    signed = run("sign", "signed", PUBLIC_URL=BASE).output.strip()
    page.write_text(f"![]({signed}) ![]({BASE}/prompt/x?sig={'0' * 32})")
    assert run("warm", str(page)).exit_code == 0
    assert [seen.json["prompt"] for seen in backend.seen] == ["signed"]


def test_warm_shares_the_drawings_of_a_running_server(
    environment: dict[str, str],
    serve: Callable[..., InProcess],
    backend: ScriptedServer,
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"![]({BASE}/prompt/x?key={KEY})")
    held: list[Seen] = []

    def slowly(seen: Seen) -> Say:
        held.append(seen)
        wait_until(lambda: warm.poll() is not None or waits_for_lock(warm))
        return drawing()

    backend.say(slowly)
    service = serve(backend)
    variables = {**environment, "BACKEND_API_URLS": backend.url}
    with subprocess.Popen(
        [*FLASK, "warm", str(page)],
        cwd=tmp_path,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as warm:
        assert service.picture("x").status == 200
        assert warm.wait(20) == 0
    assert len(held) == 1


def waits_for_lock(process: subprocess.Popen[bytes]) -> bool:
    """Say whether the process has come so far that it has the file of locks open."""
    try:
        links = [os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return False
    return any(link.endswith("/locks") for link in links)


def test_interrupted_warm_can_be_run_again(
    environment: dict[str, str], run: Run, backend: ScriptedServer, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(f"![]({BASE}/prompt/{n}?key={KEY})" for n in range(4)))
    released: list[bool] = []

    def slowly(seen: Seen) -> Say:
        wait_until(lambda: released)
        return drawing()

    backend.say(slowly)
    with subprocess.Popen(
        [*FLASK, "warm", str(page), "--jobs", "1"],
        cwd=tmp_path,
        env={**environment, "BACKEND_API_URLS": backend.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as warm:
        wait_until(lambda: backend.seen)
        warm.send_signal(signal.SIGINT)
        released.append(True)
        assert warm.wait(20) != 0
        assert warm.stderr
        assert b"Traceback" not in warm.stderr.read()
    drawn = len(backend.seen)
    assert drawn < 4
    result = run("warm", str(page))
    assert f"{4 - drawn} drawn, {drawn} there, 0 failed" in result.output


# --- cache


def test_list_shows_the_newest_first(run: Run, cache: Cache) -> None:
    for number, prompt in enumerate(("one", "two", "three")):
        put(cache, prompt, created=1_700_000_000.0 + number)
    lines = run("cache", "list").output.splitlines()
    assert [line.split()[-1] for line in lines] == ["three", "two", "one"]
    assert lines[0].startswith("2023-11-14 22:13")
    rows = [
        json.loads(x)
        for x in run("cache", "list", "--json", "--match", "T").output.split("\n")
        if x
    ]
    assert [row["prompt"] for row in rows] == ["three", "two"]
    assert len(run("cache", "list", "--limit", "1").output.splitlines()) == 1


def test_stats_count(run: Run, cache: Cache) -> None:
    put(cache, "one")
    assert run("cache", "stats").output == f"1 pictures, {len(png())} B of 10.0 GiB\n"
    found = json.loads(run("cache", "stats", "--json").output)
    assert found == {"entries": 1, "bytes": len(png()), "max_bytes": 10 * 2**30}


def test_delete_one_asks_first(run: Run, cache: Cache) -> None:
    key = put(cache, "one")
    declined = run("cache", "delete", "ONE", answer="n\n")
    assert declined.exit_code != 0
    entry = cache.get(key)
    assert entry
    entry.close()
    assert run("cache", "delete", "ONE", answer="y\n").exit_code == 0
    assert cache.get(key) is None
    assert run("cache", "delete", "ONE", "--yes").exit_code == 1


def test_delete_by_age_and_by_text(run: Run, cache: Cache) -> None:
    now = time.time()
    put(cache, "old cat", created=now - 31 * 86400)
    put(cache, "young cat", created=now - 29 * 86400)
    put(cache, "young 100% dog", created=now)
    old = run("cache", "delete", "--older-than", "30d", "--yes", "--json")
    assert json.loads(old.output) == {"deleted": 1}
    assert run("cache", "delete", "--match", "0%", "--yes").output == "1 deleted\n"
    assert [r.request.prompt for r in cache.records()[0] if r.request] == ["young cat"]
    for wrong in (("--older-than", "soon"), (), ("x", "--match", "y")):
        assert run("cache", "delete", *wrong, "--yes").exit_code == 2


def test_import_takes_over_the_typescript_cache(
    run: Run, cache: Cache, serve: Callable[..., InProcess], backend: ScriptedServer, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()

    def write(prompt: str, data: bytes | None, **about: object) -> str:
        key = sha256(f"{prompt}|def|def|def|42".encode()).hexdigest()
        (old / f"{key}.meta.json").write_text(json.dumps(about))
        if data is not None:
            (old / f"{key}.data").write_bytes(data)
        return key

    write("a cat", GIF, contentType="image/png", optimizedPrompt="a fine cat", createdAt=1.7e12)
    write("html", b"<html>", contentType="image/png")
    write("gone", None, contentType="image/png")
    now_iso = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    write("rude", None, blocked=True, rewrittenPrompt="nice", createdAt=now_iso)
    (old / "no-hash.meta.json").write_text("{}")
    (old / f"{'f' * 64}.meta.json").write_text("{")
    result = run("cache", "import", str(old), "--json")
    assert result.exit_code == 1
    counts = {"imported": 1, "there": 0, "blocked": 1, "unusable": 4}
    assert json.loads(result.stdout) == counts
    service = serve(backend)
    got = service.picture("A%20Cat")
    assert (got.body, got.headers["Content-Type"]) == (GIF, "image/gif")
    assert got.headers["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert service.picture("rude").status == 422
    assert backend.seen == []
    again = json.loads(run("cache", "import", str(old), "--json").stdout)
    assert (again["imported"], again["there"]) == (0, 1)


# --- the real command


def flask(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FLASK, *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_faulty_settings_are_sentences_for_commands_too(tmp_path: Path) -> None:
    result = flask(tmp_path, "cache", "stats", PORT="x", PROXY_ACCESS_KEY="k")
    assert result.returncode != 0
    assert "PORT: 'x' is not usable" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_every_command_has_help(environment: dict[str, str], tmp_path: Path) -> None:
    variables = {**environment, "BACKEND_API_URLS": "http://127.0.0.1:9"}
    assert {"sign", "warm", "cache"} <= set(flask(tmp_path, "--help", **variables).stdout.split())
    result = flask(tmp_path, "cache", "--help", **variables)
    assert {"list", "stats", "delete", "import"} <= set(result.stdout.split())
