"""`--server`: documents here, signed and drawn by a service elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from access import Access
from picture import ImageRequest

from .conftest import KEY, InProcess, Run
from .servers import Say, ScriptedServer

HERE = {"BACKEND_API_URLS": "", "PUBLIC_URL": ""}


@pytest.fixture
def service(serve: Callable[..., InProcess], backend: ScriptedServer) -> InProcess:
    return serve(backend, SIGNING_KEY="new,old")


def write(page: Path, server: InProcess, *credentials: dict[str, str | int]) -> Path:
    """Write a document with a picture for each of these credentials."""
    targets = [ImageRequest(f"picture {n}").to_url(**own) for n, own in enumerate(credentials)]
    page.write_text("".join(f"![]({server.url}{target})\n" for target in targets))
    return page


def test_documents_are_signed_and_drawn_elsewhere(
    run: Run, service: InProcess, backend: ScriptedServer, tmp_path: Path
) -> None:
    page = write(tmp_path / "page.md", service, {"key": KEY}, {"key": KEY}, {"key": "wrong"})
    server = ("--server", service.url)
    result = run("sign", "--in-place", *server, str(page), **HERE)
    assert (result.exit_code, result.stdout) == (1, f"{page}: 2 signed, 1 broken\n")
    assert result.stderr == f"{page}:3: The access key is wrong.\n"
    assert page.read_text().count("sig=") == 2
    assert KEY not in page.read_text()
    result = run("links", *server, str(page), **HERE)
    assert re.findall(r":(\d): picture \d, (.+)", result.stdout) == [
        ("1", "not drawn yet"),
        ("2", "not drawn yet"),
    ]
    assert (
        run("warm", *server, str(page), **HERE).stdout == "2 drawn, 0 there, 0 failed, 1 broken\n"
    )
    assert len(backend.seen) == 2
    again = run("warm", *server, "--json", str(page), **HERE)
    assert json.loads(again.stdout)["there"] == 2
    assert ", drawn 20" in run("links", *server, str(page), **HERE).stdout


def test_resigning_elsewhere_replaces_what_the_server_knows(
    run: Run, service: InProcess, tmp_path: Path
) -> None:
    def old(number: int, clock: float, expires_in: int | None = None) -> dict[str, str | int]:
        access = Access(KEY, signing_keys=["old"], clock=lambda: clock)
        return access.sign(ImageRequest(f"picture {number}"), access.shared, expires_in)

    page = write(
        tmp_path / "page.md",
        service,
        old(0, 1e9),
        old(1, 1e9, 1),
        {"key": "former"},
        {"sig": "0" * 32},
    )
    arguments = ("--in-place", "--resign", "--old-key", "former", "--server", service.url)
    result = run("sign", *arguments, str(page), **HERE)
    assert result.stdout == f"{page}: 3 signed, 1 broken\n"
    urls = re.findall(r"\((.+)\)", page.read_text())
    assert run("sign", *arguments, str(page), **HERE).stdout == f"{page}: 0 signed, 1 broken\n"
    only = Access(None, signing_keys=["new"])
    for number, url in enumerate(urls[:3]):
        credentials = dict(re.findall(r"(sig)=(\w+)", url))
        assert only.authorise(credentials, pictures=[ImageRequest(f"picture {number}")])


def test_key_is_asked_for_where_it_is_not_set(run: Run, service: InProcess) -> None:
    arguments = ("sign", "x", "--width", "9", "--server", service.url)
    without = {**HERE, "PROXY_ACCESS_KEY": ""}
    result = run(*arguments, answer=f"{KEY}\n", **without)
    assert result.stdout.strip() == run(*arguments, **HERE).stdout.strip()
    assert result.stdout.startswith(f"{service.url}/prompt/x?width=9&sig=")
    assert KEY not in result.output
    result = run(*arguments, answer="wrong\n", **without)
    assert (result.exit_code, result.stderr[-29:]) == (1, "Error: The access key is wrong.\n"[-29:])


def test_busy_server_is_asked_again_and_other_errors_are_reported(
    run: Run, server: Callable[[], ScriptedServer], tmp_path: Path
) -> None:
    elsewhere = server()
    page = tmp_path / "page.md"
    page.write_text(f"{elsewhere.url}/prompt/a?key=k {elsewhere.url}/prompt/b?key=k")
    busy = Say(b"", 503, headers={"Retry-After": "0"})
    failed = Say({"detail": "No backend could draw the picture."}, 502)
    elsewhere.say(Say(b""), Say(b""), busy, Say(b"x"), failed)
    result = run("warm", "--server", elsewhere.url, "--jobs", "1", str(page), **HERE)
    assert result.stdout.splitlines()[0] == "1 drawn, 0 there, 1 failed"
    assert "No backend could draw the picture." in result.stdout
    assert [seen.method for seen in elsewhere.seen] == ["HEAD", "HEAD", "GET", "GET", "GET"]
    elsewhere.close()
    result = run("warm", "--server", elsewhere.url, str(page), **HERE)
    assert f"Error: {elsewhere.url}: it refused the connection." in result.stderr
