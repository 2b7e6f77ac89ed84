"""`sign --in-place`, `links` and `warm` over documents: signed anew, and what does not open."""

import json
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from access import Access, Caller
from picture import ImageRequest
from settings.maps import KeySettings

from .conftest import KEY, ROOT, InProcess, MakeServer, Run, Serve, access_of
from .scripted import Say, ScriptedServer

BASE = "https://pics.example.org"
NAMED = json.dumps({"blog": {"key": "blog-key"}, "old": {"key": "o-key", "expires": "2020-01-01"}})


def url(prompt: str, credentials: dict[str, str | int], base: str = BASE) -> str:
    return base + ImageRequest(prompt).to_url(**credentials)


def signed(
    access: Access, prompt: str, name: str = "", expires_in: int | None = None, base: str = BASE
) -> str:
    """Return the URL of a picture that the key with this name has signed."""
    caller = Caller(name) if name else access.shared
    return url(prompt, access.sign(ImageRequest(prompt), caller, expires_in), base)


def write(page: Path, *urls: str) -> Path:
    page.write_text("\n".join(f"![]({one})" for one in urls))
    return page


def test_resigning_replaces_whatever_was_ever_accepted(run: Run, tmp_path: Path) -> None:
    first = access_of(KEY, signing_keys=["first"], clock=lambda: 1e9)
    named = KeySettings("blog", "blog-key")
    page = write(
        tmp_path / "page.md",
        signed(access_of(KEY), "derived"),
        signed(first, "listed"),
        signed(first, "expired", expires_in=1),
        signed(first, "removed", "phone"),
        signed(access_of(KEY, access_keys=[named], signing_keys=["first"]), "named", "blog"),
        url("live", {"key": KEY}),
        url("expired key", {"key": "o-key"}),
        url("old access key", {"key": "former"}),
        signed(access_of("former"), "derived from it"),
        signed(access_of(KEY, signing_keys=["former"]), "signed with it"),
        url("wrong", {"sig": "0" * 32}),
    )
    settings = {"PUBLIC_URL": BASE, "SIGNING_KEY": "second,first", "ACCESS_KEYS": NAMED}
    arguments = ("sign", "--in-place", "--resign", "--old-key", "former", str(page))
    result = run(*arguments, **settings)
    assert result.stdout == f"{page}: 10 signed, 1 broken\n"
    wrong = "The signature is wrong: it belongs to another picture or key."
    assert result.stderr.endswith(f"{page}:11: {wrong}\n")
    after = page.read_text()
    assert run(*arguments, **settings).stdout == f"{page}: 0 signed, 1 broken\n"
    only = access_of(None, access_keys=[named], signing_keys=["second"])
    credentials = [dict(re.findall(r"(by|sig)=(\w+)", line)) for line in after.splitlines()]
    prompts = [line.split("/prompt/")[1].split("?")[0] for line in after.splitlines()]
    for prompt, own in zip(prompts[:-1], credentials, strict=False):
        assert only.authorise(own, pictures=[ImageRequest(prompt.replace("%20", " "))])
    assert [own.get("by") for own in credentials].index("blog") == prompts.index("named")
    assert after.count("by=") == 1
    assert "exp=" not in after


def test_valid_signatures_stay_without_resign_and_keep_their_expiry(
    run: Run, tmp_path: Path
) -> None:
    page = write(tmp_path / "page.md", signed(access_of(KEY), "x", expires_in=5000))
    before = page.read_text()
    keys = {"SIGNING_KEY": "new"}
    assert run("sign", "--in-place", str(page), **keys).exit_code == 0
    assert page.read_text() == before
    assert run("sign", "--in-place", "--resign", str(page), **keys).exit_code == 0
    [exp] = re.findall(r"exp=(\d+)", page.read_text())
    assert abs(int(exp) - time.time() - 5000) < 60
    assert run("sign", "--in-place", "--resign", "--expires-in", "9", str(page), **keys)
    assert abs(int(re.findall(r"exp=(\d+)", page.read_text())[0]) - time.time() - 9) < 60


def test_folders_are_signed_without_what_is_hidden(run: Run, tmp_path: Path) -> None:
    pages = ["a.md", "deep/er/B.MD", ".hidden.md", ".git/c.md", "deep/.obsidian/d.md", "e.txt"]
    for name in pages:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, url("x", {"key": KEY}))
    (tmp_path / "none.md").write_text("no URL")
    result = run("sign", "--in-place", str(tmp_path))
    assert result.stdout == f"{tmp_path}/a.md: 1 signed\n{tmp_path}/deep/er/B.MD: 1 signed\n"
    assert [name for name in pages if "sig=" in (tmp_path / name).read_text()] == pages[:2]


def test_dry_run_prints_what_would_change(run: Run, tmp_path: Path) -> None:
    page = write(tmp_path / "page.md", url("a", {"key": KEY}), url("b", {"key": "wrong"}))
    before = page.read_text()
    result = run("sign", "--in-place", "--dry-run", str(page))
    assert page.read_text() == before
    expected = f"{page}: 1 to sign, 1 broken\n{page}:1: {signed(access_of(KEY), 'a')}\n"
    assert (result.exit_code, result.stdout) == (1, expected)
    assert result.stderr.endswith(f"{page}:2: The access key is wrong.\n")


def test_urls_that_do_not_open_are_named_with_their_reasons(run: Run, tmp_path: Path) -> None:
    reasons = {
        "/prompt/a": "This URL has neither a key nor a signature.",
        "/prompt/a?key=wrong": "The access key is wrong.",
        "/prompt/a?sig=1": "The signature is incomplete.",
        "/prompt/a?width=0&sig=1": "The parameter width must be",
        "/prompt/a b?sig=1": "the URL ends at ' ', which must be percent-encoded",
        "/prompt/a%20b，c?sig=1": "the URL ends at '，', which must be percent-encoded",
        "/prompt/": "The description is empty.",
    }
    page = tmp_path / "page.md"
    others = f"{BASE}/about https://other.example/prompt/a?key=x\n"
    page.write_text(others + "".join(f"See {BASE}{written} there.\n" for written in reasons))
    signed = run("sign", "--in-place", str(page), PUBLIC_URL=BASE)
    warmed = run("warm", str(page), PUBLIC_URL=BASE)
    listed = run("links", str(page), PUBLIC_URL=BASE)
    assert {signed.exit_code, warmed.exit_code, listed.exit_code} == {1}
    assert all("7 broken" in one.stdout for one in (signed, warmed))
    for said in (signed.stderr, warmed.stderr, listed.stdout):
        for number, reason in enumerate(reasons.values(), 2):
            assert f"{page}:{number}: {reason}" in said


def test_links_say_what_they_show_and_since_when(
    run: Run, service: InProcess, backend: ScriptedServer, tmp_path: Path
) -> None:
    assert service.picture("a%20cat").status == 200
    page = write(
        tmp_path / "page.md",
        url("a cat", {"key": KEY}),
        BASE + ImageRequest("a dog", 64, 32).to_url(key=KEY),
        signed(access_of(KEY, clock=lambda: 1e9), "expired", expires_in=1),
    )
    result = run("links", str(page))
    today = time.strftime("%Y-%m-%d", time.gmtime())
    cat, dog, *_ = result.stdout.splitlines()
    assert cat.startswith(f"{page}:1: a cat, drawn {today} ")
    assert dog == f"{page}:2: a dog, 64x32, not drawn yet"
    assert result.exit_code == 1
    assert len(backend.seen) == 1


@pytest.mark.parametrize("command", ["links", "warm"])
def test_documents_without_our_urls_are_named_as_such(
    run: Run, command: str, tmp_path: Path
) -> None:
    page = write(tmp_path / "page.md", url("a cat", {"key": KEY}))
    mistyped = run(command, str(page), PUBLIC_URL="https://pics.exmaple.org")
    assert "No URL in these files begins with https://pics.exmaple.org/prompt/." in mistyped.stderr
    page.write_text("No picture.")
    empty = run(command, str(page), PUBLIC_URL=None)
    assert "No URL in these files names a picture of this service." in empty.stderr
    assert (mistyped.exit_code, empty.exit_code) == (0, 0)


def test_keys_are_changed_as_documented(run: Run, tmp_path: Path) -> None:
    def perform(line: str) -> str:
        """Run a documented line in a folder that stands for the service's; return its output."""
        if arguments := line.partition(".venv/bin/python -m commands ")[2]:
            return run(*shlex.split(arguments), PROXY_ACCESS_KEY=None, CACHE_DIR=None).stdout
        subprocess.run(line, shell=True, cwd=tmp_path, check=True)
        return ""

    (notes := tmp_path / "notes").mkdir()
    write(tmp_path / "README.md", signed(access_of(KEY), "a"))
    write(notes / "b.md", signed(access_of("unrelated", signing_keys=["old"]), "b"))
    (dotenv := tmp_path / ".env").write_text(f"PROXY_ACCESS_KEY={KEY}\nSIGNING_KEY=old\n")
    guide = (ROOT / "docs/signing.md").read_text("utf-8")
    section = guide.split("\n## Change the signing key\n")[1]
    add, preview, resign, links, remove, leaked = re.findall(r"(?m)^\$ (.+)", section)
    perform(add)
    assert re.search(r"(?m)^SIGNING_KEY=[0-9a-f]{64},old$", dotenv.read_text())
    assert perform(preview).count("1 to sign") == 2
    assert perform(resign).count("1 signed") == 2
    perform(remove)
    assert re.search(r"(?m)^SIGNING_KEY=[0-9a-f]{64}$", dotenv.read_text())
    assert perform(links).count("not drawn yet") == 2
    # A link that was signed before there was a SIGNING_KEY, and the key itself.
    write(notes / "c.md", signed(access_of(KEY), "c"), url("d", {"key": KEY}))
    dotenv.write_text(dotenv.read_text().replace(KEY, "another-access-key"))
    perform(leaked.replace("former-access-key", KEY))
    assert perform(links).count("not drawn yet") == 4


# Faults, which do not concern a client.
HERE = {"BACKEND_API_URLS": "", "PUBLIC_URL": "", "LLM_OPTIMIZATION_ENABLED": "true"}


@pytest.fixture
def service(serve: Serve) -> InProcess:
    return serve(SIGNING_KEY="new,old")


def test_documents_are_signed_and_drawn_elsewhere(
    run: Run, service: InProcess, backend: ScriptedServer, tmp_path: Path
) -> None:
    keys = {"picture 0": KEY, "picture 1": KEY, "picture 2": "wrong"}
    urls = (url(prompt, {"key": key}, service.url) for prompt, key in keys.items())
    page = write(tmp_path / "page.md", *urls)
    server = ("--server", service.url)
    result = run("sign", "--in-place", *server, str(page), **HERE)
    assert (result.exit_code, result.stdout) == (1, f"{page}: 2 signed, 1 broken\n")
    assert result.stderr == f"{page}:3: The access key is wrong.\n"
    assert page.read_text().count("sig=") == 2
    assert KEY not in page.read_text()
    result = run("links", *server, str(page), **HERE)
    lines = [(n, "not drawn yet") for n in ("1", "2")]
    assert re.findall(r":(\d): picture \d, (.+)", result.stdout) == lines
    warmed = run("warm", *server, str(page), **HERE).stdout
    assert warmed == "2 drawn, 0 there, 0 failed, 1 broken\n"
    assert len(backend.seen) == 2
    again = run("warm", *server, "--json", str(page), **HERE)
    assert json.loads(again.stdout)["there"] == 2
    assert ", drawn 20" in run("links", *server, str(page), **HERE).stdout


def test_resigning_elsewhere_replaces_what_the_server_knows(
    run: Run, service: InProcess, tmp_path: Path
) -> None:
    old = access_of(KEY, signing_keys=["old"], clock=lambda: 1e9)
    page = write(
        tmp_path / "page.md",
        signed(old, "0", base=service.url),
        signed(old, "1", expires_in=1, base=service.url),
        url("2", {"key": "former"}, service.url),
        url("3", {"sig": "0" * 32}, service.url),
        url("4" * 4001, {"key": "former"}, service.url),
    )
    arguments = ("--in-place", "--resign", "--old-key", "former", "--server", service.url)
    result = run("sign", *arguments, str(page), **HERE)
    assert result.stdout == f"{page}: 3 signed, 1 broken, 1 left\n"
    signatures = re.findall(r"sig=(\w+)", page.read_text())
    again = run("sign", *arguments, str(page), **HERE)
    assert again.stdout == f"{page}: 0 signed, 1 broken, 1 left\n"
    only = access_of(None, signing_keys=["new"])
    for number in range(3):
        assert only.authorise({"sig": signatures[number]}, pictures=[ImageRequest(str(number))])


def test_key_is_asked_for_where_it_is_not_set(run: Run, service: InProcess) -> None:
    arguments = ("sign", "x", "--width", "9", "--server", service.url)
    without = {**HERE, "PROXY_ACCESS_KEY": ""}
    result = run(*arguments, answer=f"{KEY}\n", **without)
    assert result.stdout.strip() == run(*arguments, **HERE).stdout.strip()
    assert result.stdout.startswith(f"{service.url}/prompt/x?width=9&sig=")
    assert KEY not in result.output
    result = run(*arguments, answer="wrong\n", **without)
    assert (result.exit_code, result.stderr[-29:]) == (1, "Error: The access key is wrong.\n"[-29:])


@pytest.mark.parametrize("body", [b"<html>", {}, [], {"url": 1}])
def test_server_that_signs_nothing_is_named(run: Run, server: MakeServer, body: object) -> None:
    elsewhere = server()
    elsewhere.say(Say(body))
    result = run("sign", "x", "--server", elsewhere.url, **HERE)
    assert (result.exit_code, result.stderr) == (1, "Error: The service answers HTTP 200.\n")


def test_busy_server_is_asked_again_and_other_errors_are_reported(
    run: Run, server: MakeServer, tmp_path: Path
) -> None:
    elsewhere = server()
    page = tmp_path / "page.md"
    page.write_text(f"{elsewhere.url}/prompt/a?key=k {elsewhere.url}/prompt/b?key=k")
    busy = Say(b"", 503, headers={"Retry-After": "0"})
    failed = Say({"detail": "No backend could draw the picture."}, 502)
    # The drawing went on meanwhile.
    hit = Say(b"x", headers={"Cache-Status": "PromptImageProxy; hit"})
    elsewhere.say(Say(b""), Say(b""), Say(b""), busy, hit, Say(b""), failed)
    result = run("warm", "--server", elsewhere.url, "--jobs", "1", str(page), **HERE)
    assert result.stdout.splitlines()[0] == "1 drawn, 0 there, 1 failed"
    assert "No backend could draw the picture." in result.stdout
    asked = ["HEAD", "HEAD", "HEAD", "GET", "GET", "HEAD", "GET"]
    assert [seen.method for seen in elsewhere.seen] == asked
    elsewhere.close()
    result = run("warm", "--server", elsewhere.url, str(page), **HERE)
    assert f"Error: {elsewhere.url}: it refused the connection." in result.stderr
