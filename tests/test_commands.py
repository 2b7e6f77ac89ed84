"""The command line: sign, warm and cache."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from cache import Cache
from picture import ImageRequest
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState

from .conftest import KEY, REFUSAL, ROOT, InProcess, Run, Serve, access_of, drawing
from .scripted import GIF, Gate, Say, ScriptedServer, png, wait_until
from .states import held_elsewhere

BASE = "https://pics.example.org"

COMMANDS = [sys.executable, "-m", "commands"]


@pytest.fixture
def cache(tmp_path: Path, opened: list[Cache]) -> Cache:
    folder = tmp_path / "cache"
    opened.append(made := Cache(SqliteState(folder), Folder(folder)))
    made.state.totals()
    return made


def put(cache: Cache, prompt: str, created: float | None = None) -> str:
    request = ImageRequest(prompt)
    cache.put(request.key, png(), "image/png", request=request, created=created)
    return request.key


def test_keys_are_listed_with_their_drawings(run: Run, serve: Serve) -> None:
    blog = {"key": "blog-key", "per_day": 2, "expires": "2999-12-31"}
    keys = json.dumps({"blog": blog, "手机": {"key": "phone-key"}})
    service = serve(ACCESS_KEYS=keys)
    assert service.picture("x", key="blog-key").status == 200
    lines = run("keys", ACCESS_KEYS=keys).stdout.splitlines()
    assert lines[1] == "blog              1 drawn today of 2, valid until 2999-12-31"
    assert lines[2].endswith("  0 drawn today, no limit")
    found = json.loads(run("keys", "--json", ACCESS_KEYS=keys).stdout)
    assert [(key["name"], key["drawings"]) for key in found[1:]] == [("blog", 1), ("手机", 0)]
    assert "blog-key" not in str(found)


def test_signing_without_a_key_is_a_sentence(run: Run) -> None:
    keys = '{"blog": {"key": "blog-key"}}'
    result = run("sign", "x", PROXY_ACCESS_KEY="", ACCESS_KEYS=keys)
    assert (result.exit_code, "Signing is off" in result.output) == (1, True)


def test_signed_url_is_accepted_by_the_server(run: Run, service: InProcess) -> None:
    options = ("--width", "64", "--seed", "7")
    url = run("sign", "a red apple", *options, PUBLIC_URL=BASE).stdout.strip()
    assert url.startswith(f"{BASE}/prompt/a%20red%20apple?width=64&seed=7&sig=")
    assert service.get(url.removeprefix(BASE)).status == 200
    more = ("--style", "vivid", "--negative-prompt", "no text", "--extension", "webp")
    url = run("sign", "x", *more, "--expires-in", "60", PUBLIC_URL=BASE).stdout.strip()
    assert url.startswith(f"{BASE}/prompt/x.webp?style=vivid&negative_prompt=no%20text&exp=")
    assert service.get(url.removeprefix(BASE)).status == 200


def test_link_is_printed_in_three_formats(run: Run) -> None:
    links = json.loads(run("sign", "x", "--json", PUBLIC_URL=BASE).stdout)
    starts = {"url": BASE, "markdown": f"![x]({BASE}", "html": f'<img src="{BASE}'}
    for form, start in starts.items():
        assert run("sign", "x", "--format", form, PUBLIC_URL=BASE).stdout.strip() == links[form]
        assert links[form].startswith(start)


def test_bad_arguments_end_with_a_sentence(run: Run) -> None:
    for line in (
        "sign a b",
        "sign ' '",
        "sign x --width 0",
        "sign --in-place no-such-file",
        "sign --in-place .",
        "sign x --resign",
        "sign x --server pics.example.org",
        "cache delete --older-than soon",
        "cache delete",
        "cache delete x --match y",
        "cache delete --match \udcff --yes",
        "cache list --match \udcff",
    ):
        result = run(*shlex.split(line))
        assert result.exit_code in (1, 2), line
        assert "Error:" in result.output
        assert "Traceback" not in result.output


def test_signing_in_place_replaces_the_key_and_nothing_else(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before = (
        f"\ufeff# One\r\n![x]({BASE}/prompt/a?width=9&key={KEY})\t \r"
        f'<img src="{BASE}/prompt/b?key={KEY}&amp;seed=1"> {BASE}/prompt/c\n'
    ).encode() + b"\xff"
    page.write_bytes(before)
    result = run("sign", "--in-place", str(page))
    assert (result.exit_code, result.stdout) == (0, f"{page}: 2 signed\n")
    after = page.read_bytes()
    assert after.count(b"sig=") == 2
    assert re.sub(rb"sig=[0-9a-f]{32}", b"key=" + KEY.encode(), after) == before
    written = page.stat()
    assert json.loads(run("sign", "--in-place", "--json", str(page)).stdout) == {str(page): 0}
    assert (page.stat().st_ino, page.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_lines_in_which_the_key_is_left_are_named(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f"![]({BASE}/prompt/a?key={KEY})\n\n![]({BASE}/prompt/b?width=5000&key={KEY})\n"
        f"![]({BASE}/prompt/two words?key={KEY}) ![](https://other.example/prompt/c?key={KEY})\n"
    )
    result = run("sign", "--in-place", str(page), PUBLIC_URL=BASE)
    assert result.exit_code == 1
    assert result.stdout == f"{page}: 1 signed, 2 left, 1 left on other hosts\n"
    assert re.findall(rf"(?m)^{page}:(\d+):", result.stderr) == ["3", "4", "4"]
    again = run("sign", "--in-place", "--json", str(page), PUBLIC_URL=BASE)
    assert (again.exit_code, json.loads(again.stdout)) == (1, {str(page): 0})


def test_longer_descriptions_are_signed_where_they_are_allowed(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"![]({BASE}/prompt/{'x' * 4001}?key={KEY})")
    assert run("sign", "--in-place", str(page)).exit_code == 1
    assert run("sign", "--in-place", str(page), MAX_PROMPT_LENGTH="4001").exit_code == 0


def write_page(folder: Path, *prompts: str) -> Path:
    page = folder / "page.md"
    page.write_text("\n".join(f"![]({BASE}/prompt/{prompt}?key={KEY})" for prompt in prompts))
    return page


def test_warm_draws_missing_pictures_and_reports_failures(
    run: Run, backend: ScriptedServer, cache: Cache, tmp_path: Path
) -> None:
    put(cache, "there.png")  # drawn when an extension was part of the prompt
    backend.say(lambda seen: REFUSAL if seen.json["prompt"] == "rude" else drawing())
    page = write_page(tmp_path, "a", "b", "there.png", "rude", "a", "foreign")
    page.write_text(page.read_text().replace(f"foreign?key={KEY}", "foreign?key=another"))
    result = run("warm", str(page), "--jobs", "2", THREADS="17")
    assert result.exit_code == 1
    assert "2 drawn, 1 there, 1 failed" in result.output
    refused = "Every backend's moderation refused this prompt. This result is cached until"
    assert refused in result.output
    assert sorted(seen.json["prompt"] for seen in backend.seen) == ["a", "b", "rude"]
    counts = json.loads(run("warm", str(page), "--json").stdout)
    assert (counts["drawn"], counts["there"], list(counts["failed"])) == (0, 3, ["rude"])


def test_interrupted_warm_can_be_run_again(
    environment: dict[str, str], run: Run, backend: ScriptedServer, tmp_path: Path
) -> None:
    page = write_page(tmp_path, *"1234")
    backend.say(gate := Gate(drawing()))
    with subprocess.Popen(
        [*COMMANDS, "warm", str(page), "--jobs", "1"],
        env={**environment, "BACKEND_API_URLS": backend.url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # `nohup make test &` ignores SIGINT, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as warm:
        wait_until(lambda: backend.seen)
        warm.send_signal(signal.SIGINT)
        gate.opened.set()
        assert warm.wait(20) != 0
        assert warm.stderr
        assert b"Traceback" not in warm.stderr.read()
    drawn = len(backend.seen)
    assert drawn < 4
    result = run("warm", str(page))
    assert f"{4 - drawn} drawn, {drawn} there, 0 failed" in result.output


def test_list_shows_the_newest_first(run: Run, cache: Cache) -> None:
    for number, prompt in enumerate(("one", "two", "three")):
        put(cache, prompt, created=1_700_000_000.0 + number)
    lines = run("cache", "list").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["three", "two", "one"]
    assert re.match("2023-11-14 22:13.* 1x1 +three$", lines[0])
    found = run("cache", "list", "--json", "--match", "T").stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in found] == ["three", "two"]
    assert len(run("cache", "list", "--limit", "1").stdout.splitlines()) == 1


def test_no_stranger_commands_the_terminal(
    run: Run, cache: Cache, backend: ScriptedServer, environment: dict[str, str], tmp_path: Path
) -> None:
    prompt, escaped = "a\x1b]0;x\a\x9b\u202e\x7fb", r"a\x1b]0;x\x07\x9b\u202e\x7fb"
    put(cache, prompt)
    listed = run("cache", "list").stdout
    assert listed.endswith(f"  {escaped}\n")
    [row] = run("cache", "list", "--json").stdout.splitlines()
    assert (row.isascii(), "\x7f" in row, json.loads(row)["prompt"]) == (True, False, prompt)
    # What a backend says is not printed at all, and what the program itself logs is escaped.
    backend.say(Say({"error": {"message": "\x1b[2J"}}, 500))
    page = str(write_page(tmp_path, "%1b]0;y%07%c2%9b"))
    assert r"\x1b]0;y\x07\x9b, " in run("links", page).stdout
    real = {**environment, "BACKEND_API_URLS": backend.url, "PYTHONPATH": str(ROOT)}
    command = [*COMMANDS, "warm", page]
    said = subprocess.run(command, cwd=tmp_path, env=real, capture_output=True, text=True)
    assert r"\x1b]0;y\x07\x9b " in said.stdout
    assert re.search("HTTP 500", said.stderr)
    assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", said.stdout + said.stderr)


def test_stats_count_pictures_and_bytes(run: Run, cache: Cache) -> None:
    put(cache, "one")
    assert run("cache", "stats").stdout == f"1 picture, {len(png())} B of 10.0 GiB\n"
    found = json.loads(run("cache", "stats", "--json").stdout)
    assert found == {"entries": 1, "bytes": len(png()), "max_bytes": 10 * 2**30}


def test_deleting_asks_first(run: Run, cache: Cache) -> None:
    key = put(cache, "one")
    assert run("cache", "delete", "ONE", answer="n\n").exit_code != 0
    assert [row.key for row in cache.state.newest("", 9, None)] == [key]
    assert run("cache", "delete", "ONE", answer="y\n").exit_code == 0
    assert cache.state.newest("", 9, None) == []
    assert run("cache", "delete", "ONE", "--yes").exit_code == 1


def test_picture_under_way_is_not_deleted(run: Run, cache: Cache, tmp_path: Path) -> None:
    key = put(cache, "one")
    with held_elsewhere(str(tmp_path / "cache"), key):
        refused = run("cache", "delete", "one", "--yes")
    assert (refused.exit_code, "being drawn" in refused.output) == (1, True)
    assert [row.key for row in cache.state.newest("", 9, None)] == [key]


def test_pictures_are_deleted_by_age_and_by_text(run: Run, cache: Cache) -> None:
    now = time.time()
    put(cache, "old cat", created=now - 31 * 86400)
    put(cache, "young cat", created=now - 29 * 86400)
    put(cache, "young 100% dog", created=now)
    old = run("cache", "delete", "--older-than", "30d", "--yes", "--json")
    assert json.loads(old.stdout) == {"deleted": 1}
    assert run("cache", "delete", "--match", "0%", "--yes").stdout == "1 deleted\n"
    assert [row.prompt for row in cache.state.newest("", 9, None)] == ["young cat"]


def test_command_says_which_cache_it_works_on(run: Run, cache: Cache, tmp_path: Path) -> None:
    put(cache, "there")
    folder = str(tmp_path / "cache")
    page = str(write_page(tmp_path, "there"))
    for arguments in (
        ("cache", "list", "--json"),
        ("cache", "import", folder, "--json"),
        ("warm", page, "--json"),
    ):
        result = run(*arguments)
        assert result.stderr.endswith(f"\nCache: {folder} (1 picture)\n")
        json.loads(result.stdout)


def test_deleting_takes_what_a_url_with_these_parameters_may_show(run: Run, cache: Cache) -> None:
    for prompt in ("logo", "logo.png"):
        request = ImageRequest(prompt, style="vivid")
        cache.put(request.key, png(), "image/png", request=request)
    assert run("cache", "delete", "Logo.png", "--yes").exit_code == 1
    options = ("--style", "vivid", "--yes")
    assert run("cache", "delete", "Logo.png", *options).stdout == "2 deleted\n"


def test_import_takes_over_the_typescript_cache(
    run: Run, cache: Cache, service: InProcess, backend: ScriptedServer, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()

    def write(prompt: str, data: bytes | None, **about: object) -> str:
        key = sha256(f"{prompt}|def|def|def|42".encode()).hexdigest()
        (old / f"{key}.meta.json").write_text(json.dumps(about))
        if data is not None:
            (old / f"{key}.data").write_bytes(data)
        return key

    write(
        "a cat", GIF, contentType="image/png", optimizedPrompt="a fine \ud83d cat", createdAt=1.7e12
    )
    unusable = [write("html", b"<html>"), write("gone", None), "no-hash", "f" * 64]
    now_iso = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    write("rude", None, blocked=True, rewrittenPrompt="nice", createdAt=now_iso)
    write("doomed", None, blocked=True, fallbackFailed=True)
    for prompt, created in {"late": 1e300, "later": 10**400, "never": float("nan")}.items():
        write(prompt, png(), createdAt=created)
    (old / "no-hash.meta.json").write_text("{}")
    (old / f"{'f' * 64}.meta.json").write_text("{")
    result = run("cache", "import", str(old), "--json")
    assert result.exit_code == 1
    counts = {"imported": 4, "there": 0, "blocked": 1, "fallback_failed": 1, "unusable": 4}
    assert json.loads(result.stdout) == counts
    named = [line.rpartition(": ") for line in result.stderr.splitlines() if str(old) in line]
    assert {Path(file).name for file, _, _ in named} >= {"no-hash.meta.json"}
    assert {why for _, _, why in named if why} == {
        "its name is not a cache key",
        "not a JSON object",
        "No such file or directory",
        "not a complete PNG, JPEG, WebP or GIF",
    }
    got = service.picture("A%20Cat")
    assert (got.body, got.headers["Content-Type"]) == (GIF, "image/gif")
    assert got.headers["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert service.picture("rude").status == 422
    assert backend.seen == []
    for key in unusable:
        (old / f"{key}.meta.json").unlink()
    again = run("cache", "import", str(old))
    assert again.exit_code == 0
    assert again.stdout == "0 imported, 4 there, 1 blocked, 1 fallback failed, 0 unusable\n"
    assert len(run("cache", "list").stdout.splitlines()) == 4


def test_imported_picture_learns_its_prompt_from_the_first_url(
    run: Run, service: InProcess, tmp_path: Path
) -> None:
    key = ImageRequest("a cat", style="vivid").key
    (tmp_path / f"{key}.meta.json").write_text("{}")
    (tmp_path / f"{key}.data").write_bytes(GIF)
    run("cache", "import", str(tmp_path))
    assert json.loads(run("cache", "list", "--json").stdout)["prompt"] is None
    assert service.picture("A%20cat", style="vivid").body == GIF
    service.services.cache.flush()
    row = json.loads(run("cache", "list", "--json").stdout)
    assert (row["prompt"], row["style"]) == ("A cat", "vivid")


def test_unusable_cache_ends_a_command_with_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / f"{'f' * 64}.meta.json").write_text("{}")
    (tmp_path / "cache" / "index.sqlite3").mkdir(parents=True)
    for arguments in (
        ("cache", "list"),
        ("cache", "import", str(tmp_path)),
        ("warm", str(write_page(tmp_path, "x"))),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, arguments
        assert "cannot be used" in result.output or "1 failed" in result.output


def test_dotenv_is_read_as_the_service_reads_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("SIGNING_KEY=of-the-folder-above\n")
    (folder := tmp_path / "folder").mkdir()
    monkeypatch.chdir(folder)
    key = "a$b-${HOME}"
    (folder / ".env").write_text(f"PROXY_ACCESS_KEY={key}\n")
    access = access_of(key)
    signature = access.sign(ImageRequest("x"), access.shared)["sig"]
    assert f"sig={signature}" in run("sign", "x", PROXY_ACCESS_KEY=None, HOME="/home").stdout


def test_faults_and_warnings_of_settings_are_sentences(run: Run) -> None:
    result = run("cache", "stats", PORT="x", BACKEND_API_URLS="")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Invalid settings:\n")
    assert "PORT: 'x' is not usable" in result.stderr
    assert "BACKEND_API_URLS: is not set" in result.stderr
    result = run("sign", "x", PROXY_ACCESS_KEY="k")
    assert result.stdout.startswith("http://127.0.0.1:8080/prompt/x?sig=")
    assert result.stderr.startswith("Warning: PROXY_ACCESS_KEY: under 16 characters;")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_command_of_another_user_leaves_the_cache_alone(run: Run, tmp_path: Path) -> None:
    (folder := tmp_path / "cache").mkdir()
    os.chown(folder, 12345, -1)
    for arguments in (("cache", "list"), ("check",), ("warm", __file__), ("links", __file__)):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "belongs to user 12345, and files of this process would" in result.stderr
    assert list(folder.iterdir()) == []
    assert run("sign", "x").exit_code == 0


def test_every_command_has_help(run: Run) -> None:
    commands = {"sign", "warm", "links", "keys", "check", "cache"}
    assert commands <= set(run("--help").output.split())
    of_cache = {"list", "stats", "delete", "import", "export", "adopt", "backup"}
    assert of_cache <= set(run("cache", "--help").output.split())
    for group in (["--help"], ["cache", "--help"]):
        assert "..." not in run(*group).output.partition("Commands:")[2]
    for name in (*commands, *(f"cache {name}" for name in of_cache)):
        assert run(*name.split(), "--help").exit_code == 0
