"""The demo backend, and what `make run` starts."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.formats import media_type_of

from .conftest import ROOT, InProcess
from .servers import Got, ScriptedServer, fetch, free_port, wait_until


@pytest.fixture
def demo() -> Iterator[str]:
    """A demo backend in a process of its own; its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "demo.demo_backend", "--until-eof"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().decode().split()[-1]
        process.stdin.close()
        assert process.wait(10) == 0


def draw(url: str, body: str) -> Got:
    headers = {"Content-Type": "application/json"}
    return fetch(f"{url}/v1/images/generations", "POST", headers, body.encode())


def test_picture_depends_on_prompt_seed_and_size(demo: str) -> None:
    pictures = set()
    for body in (
        '{"prompt": "a red apple", "size": "65x33", "seed": 1}',
        '{"prompt": "a red apple", "size": "65x33", "seed": 2}',
        '{"prompt": "a green apple", "size": "65x33", "seed": 1}',
        '{"prompt": "a red apple", "size": "33x65", "seed": 1}',
    ):
        data = base64.b64decode(draw(demo, body).json["data"][0]["b64_json"])
        assert media_type_of(data) == "image/png"
        size = re.search(r"(\d+)x(\d+)", body)
        assert size
        assert struct.unpack(">II", data[16:24]) == (int(size[1]), int(size[2]))
        pictures.add(data)
    assert len(pictures) == 4


def test_same_request_is_the_same_picture(demo: str) -> None:
    body = '{"prompt": "a quiet harbour", "size": "64x64", "seed": 5}'
    assert draw(demo, body).json["data"] == draw(demo, body).json["data"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ('{"prompt": "a Forbidden fruit"}', 400, "moderation_blocked"),
        ('{"prompt": ""}', 400, None),
        ('{"prompt": "x", "size": "5000x1"}', 400, None),
        ("{", 400, None),
    ],
)
def test_demo_refuses_like_openai(demo: str, body: str, status: int, code: str | None) -> None:
    got = draw(demo, body)
    assert got.status == status
    assert got.json["error"]["message"]
    if code:
        assert got.json["error"]["code"] == code


def test_picture_can_come_as_a_url(
    demo: str, serve: Callable[..., InProcess], backend: ScriptedServer
) -> None:
    body = '{"prompt": "x", "size": "8x8", "response_format": "url"}'
    url = draw(demo, body).json["data"][0]["url"]
    assert media_type_of(fetch(url).body) == "image/png"


# --- make run


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files in git, as in a fresh clone."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@contextlib.contextmanager
def start(checkout: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.start"],
        cwd=checkout,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_make_run_serves_a_picture_and_stops_both_processes(checkout: Path, ending: int) -> None:
    before = {path.name for path in checkout.iterdir()}
    proxy = f"http://127.0.0.1:{free_port()}"  # a company's, which leads nowhere
    with start(checkout, PORT=str(free_port()), http_proxy=proxy, ALL_PROXY=proxy) as process:
        assert process.stdout
        said = ""
        while "Ctrl-C stops it." not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        links = dict(re.findall(r"^  (\w+) +(http\S+)", said, re.MULTILINE))
        apple = fetch(links["Open"].replace("1024", "64").replace("768", "48"))
        assert (apple.status, media_type_of(apple.body)) == (200, "image/png")
        refused = fetch(links["Refused"].replace("1024", "64").replace("768", "48"))
        assert refused.headers["Cache-Status"].endswith("detail=rewritten")
        assert f"![a red apple]({links['Open']})" in said
        backend = fetch(links["Status"]).json["backends"][0]["url"]
        process.send_signal(ending)
        rest = process.stdout.read()
        assert process.wait(15) == 0
        assert "Traceback" not in rest
    assert not is_listening(backend)
    assert not is_listening(links["Open"])
    assert {path.name for path in checkout.iterdir()} - before <= {".demo", "__pycache__"}


@pytest.mark.parametrize("more", [{}, {"BACKEND_API_URLS": "http://127.0.0.1:1"}])
def test_make_run_says_that_its_port_is_taken(checkout: Path, more: dict[str, str]) -> None:
    """By another demo, too, whose answers must not be taken for its own."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with start(checkout, PORT=str(port), PROXY_ACCESS_KEY="own-access-key", **more) as process:
            said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"HOST, PORT: Address already in use: 127.0.0.1:{port}; write an address" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ({"PORT": "80a"}, "PORT: '80a' is not usable; write an integer from 1 to 65535"),
        ({"PORT": "99999"}, "PORT: '99999' is not usable"),
        ({"HOST": "192.0.2.1"}, "; write an address of this machine as HOST"),
    ],
)
def test_make_run_rejects_an_address_in_one_line(
    checkout: Path, address: dict[str, str], sentence: str
) -> None:
    with start(checkout, **{"PORT": str(free_port())} | address) as process:
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert sentence in said
    assert "PORT=8081" not in said
    assert len(said.splitlines()) == 1


def test_make_run_prints_ipv6_urls_in_brackets(checkout: Path) -> None:
    port = free_port()
    with start(checkout, HOST="::1", PORT=str(port)) as process:
        assert process.stdout
        said = ""
        while "Ctrl-C stops it." not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert f"http://[::1]:{port}/prompt/" in said


def is_listening(url: str) -> bool:
    port = re.search(r":(\d+)", url.partition("//")[2])
    assert port
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port[1]))) == 0


def test_make_run_with_configured_backends_is_gunicorn(
    checkout: Path, backend: ScriptedServer
) -> None:
    port = free_port()
    variables = {
        "BACKEND_API_URLS": backend.url,
        "PROXY_ACCESS_KEY": "own-access-key",
        "PORT": str(port),
    }
    url = f"http://127.0.0.1:{port}/prompt/x?key=own-access-key"
    with start(checkout, **variables) as process:
        wait_until(lambda: is_listening(url), what="gunicorn")
        assert fetch(url).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        assert "demo backend" not in process.stdout.read()
    assert len(backend.seen) == 1
