"""`sign --in-place`, `links` and `warm` over documents: signed anew, and what does not open."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from access import Access, Caller
from picture import ImageRequest
from settings.maps import KeySettings

from .conftest import KEY, ROOT, InProcess, Run
from .servers import ScriptedServer

BASE = "https://pics.example.org"
NAMED = json.dumps({"blog": {"key": "blog-key"}, "old": {"key": "o-key", "expires": "2020-01-01"}})


def url(prompt: str, credentials: dict[str, str | int]) -> str:
    return BASE + ImageRequest(prompt).to_url(**credentials)


def signed(access: Access, prompt: str, name: str = "", expires_in: int | None = None) -> str:
    """Return the URL of a picture that the key with this name has signed."""
    caller = Caller(name) if name else access.shared
    return url(prompt, access.sign(ImageRequest(prompt), caller, expires_in))


def write(page: Path, *urls: str) -> Path:
    page.write_text("\n".join(f"![]({one})" for one in urls))
    return page


def test_resigning_replaces_whatever_was_ever_accepted(run: Run, tmp_path: Path) -> None:
    first = Access(KEY, signing_keys=["first"], clock=lambda: 1e9)
    named = KeySettings("blog", "blog-key")
    page = write(
        tmp_path / "page.md",
        signed(Access(KEY), "derived"),
        signed(first, "listed"),
        signed(first, "expired", expires_in=1),
        signed(first, "removed", "phone"),
        signed(Access(KEY, named_keys=[named], signing_keys=["first"]), "named", "blog"),
        url("live", {"key": KEY}),
        url("expired key", {"key": "o-key"}),
        url("old access key", {"key": "former"}),
        signed(Access("former"), "derived from it"),
        signed(Access(KEY, signing_keys=["former"]), "signed with it"),
        url("wrong", {"sig": "0" * 32}),
    )
    settings = {"PUBLIC_URL": BASE, "SIGNING_KEY": "second,first", "ACCESS_KEYS": NAMED}
    arguments = ("sign", "--in-place", "--resign", "--old-key", "former", str(page))
    result = run(*arguments, **settings)
    assert result.stdout == f"{page}: 10 signed, 1 broken\n"
    assert result.stderr.endswith(
        f"{page}:11: The signature is wrong: it belongs to another picture or key.\n"
    )
    after = page.read_text()
    assert run(*arguments, **settings).stdout == f"{page}: 0 signed, 1 broken\n"
    only = Access(None, named_keys=[named], signing_keys=["second"])
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
    page = write(tmp_path / "page.md", signed(Access(KEY), "x", expires_in=5000))
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
    expected = f"{page}: 1 to sign, 1 broken\n{page}:1: {signed(Access(KEY), 'a')}\n"
    assert (result.exit_code, result.stdout) == (1, expected)
    assert result.stderr.endswith(f"{page}:2: The access key is wrong.\n")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("/prompt/a", "This URL has neither a key nor a signature."),
        ("/prompt/a?key=wrong", "The access key is wrong."),
        ("/prompt/a?sig=1", "The signature is incomplete."),
        ("/prompt/a?width=0&sig=1", "The parameter width must be"),
        ("/prompt/a b?sig=1", "the URL ends at ' ', which must be percent-encoded"),
        ("/prompt/a%20b，c?sig=1", "the URL ends at '，', which must be percent-encoded"),
        ("/prompt/", "The description is empty."),
    ],
)
def test_url_that_does_not_open_is_named_with_its_reason(
    run: Run, tmp_path: Path, written: str, reason: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f"{BASE}/about https://other.example/prompt/a?key=x\nSee {BASE}{written} there."
    )
    for command in (("sign", "--in-place"), ("warm",)):
        result = run(*command, str(page), PUBLIC_URL=BASE)
        assert (result.exit_code, "1 broken" in result.stdout) == (1, True)
        assert f"{page}:2: {reason}" in result.stderr
    assert f"{page}:2: {reason}" in run("links", str(page), PUBLIC_URL=BASE).stdout


def test_links_say_what_they_show_and_since_when(
    run: Run, serve: Callable[..., InProcess], backend: ScriptedServer, tmp_path: Path
) -> None:
    assert serve(backend).picture("a%20cat").status == 200
    page = write(
        tmp_path / "page.md",
        url("a cat", {"key": KEY}),
        BASE + ImageRequest("a dog", 64, 32).to_url(key=KEY),
        url("expired", Access(KEY, clock=lambda: 1e9).sign(ImageRequest("expired"), Caller(""), 1)),
    )
    result = run("links", str(page))
    today = time.strftime("%Y-%m-%d", time.gmtime())
    first, *rest = result.stdout.splitlines()
    assert first.startswith(f"{page}:1: a cat, drawn {today} ")
    assert rest[0] == f"{page}:2: a dog, 64x32, not drawn yet"
    assert result.exit_code == 1
    assert len(backend.seen) == 1


# --- docs/signing.md ----------------------------------------------------------------------------


def documented(heading: str) -> list[str]:
    """Return the commands below a heading of the document."""
    text = (ROOT / "docs/signing.md").read_text("utf-8").partition(f"\n## {heading}\n")[2]
    return re.findall(r"(?m)^\$ (.+)", text.partition("\n## ")[0])


def shell(command: str, folder: Path) -> str:
    """Run a documented command in a folder that stands for the service's; return its output."""
    command = command.replace(".venv/bin/python", sys.executable)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_keys_are_changed_as_documented(tmp_path: Path) -> None:
    (notes := tmp_path / "notes").mkdir()
    write(tmp_path / "README.md", signed(Access(KEY), "a"))
    write(notes / "b.md", signed(Access("unrelated", signing_keys=["old"]), "b"))
    (dotenv := tmp_path / ".env").write_text(
        f"BACKEND_API_URLS=http://127.0.0.1:9\nPROXY_ACCESS_KEY={KEY}\nSIGNING_KEY=old\n"
    )
    add, preview, resign, links, remove, leaked = documented("Change the signing key")
    shell(add, tmp_path)
    assert re.search(r"(?m)^SIGNING_KEY=[0-9a-f]{64},old$", dotenv.read_text())
    assert shell(preview, tmp_path).count("1 to sign") == 2
    assert shell(resign, tmp_path).count("1 signed") == 2
    shell(remove, tmp_path)
    assert re.search(r"(?m)^SIGNING_KEY=[0-9a-f]{64}$", dotenv.read_text())
    assert shell(links, tmp_path).count("not drawn yet") == 2
    # A link that was signed before there was a SIGNING_KEY, and the key itself.
    write(notes / "c.md", signed(Access(KEY), "c"), url("d", {"key": KEY}))
    dotenv.write_text(dotenv.read_text().replace(KEY, "another-access-key"))
    shell(leaked.replace("former-access-key", KEY), tmp_path)
    assert shell(links, tmp_path).count("not drawn yet") == 4
