"""The demo backend, and what `make run` starts."""

import base64
import contextlib
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from images.formats import media_type_of

from .conftest import ROOT
from .scripted import Got, ScriptedServer, fetch, free_port, wait_until


@pytest.fixture(scope="module")
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


def test_picture_depends_on_prompt_seed_and_size_alone(demo: str) -> None:
    pictures = set()
    for prompt, width, height, seed in (
        ("a red apple", 65, 33, 1),
        ("a red apple", 65, 33, 2),
        ("a green apple", 65, 33, 1),
        ("a red apple", 33, 65, 1),
        ("a red apple", 65, 33, 1),
    ):
        body = {"prompt": prompt, "size": f"{width}x{height}", "seed": seed}
        data = base64.b64decode(draw(demo, json.dumps(body)).json["data"][0]["b64_json"])
        assert media_type_of(data) == "image/png"
        assert struct.unpack(">II", data[16:24]) == (width, height)
        pictures.add(data)
    assert len(pictures) == 4


def test_demo_refuses_like_openai(demo: str) -> None:
    for body, code in {
        '{"prompt": "a Forbidden fruit"}': "moderation_blocked",
        '{"prompt": ""}': None,
        '{"prompt": "x", "size": "5000x1"}': None,
        "{": None,
    }.items():
        got = draw(demo, body)
        assert got.status == 400, body
        assert got.json["error"]["message"]
        assert code in (None, got.json["error"]["code"])


def test_picture_can_come_as_a_url(demo: str) -> None:
    body = '{"prompt": "x", "size": "8x8", "response_format": "url"}'
    url = draw(demo, body).json["data"][0]["url"]
    assert media_type_of(fetch(url).body) == "image/png"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files in git, as in a fresh clone."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def checkout(clone: Path) -> Path:
    """The clone, without pictures of an earlier demo."""
    shutil.rmtree(clone / ".demo", ignore_errors=True)
    return clone


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


@pytest.mark.parametrize(
    ("ending", "host"), [(signal.SIGINT, "127.0.0.1"), (signal.SIGTERM, "::1")]
)
def test_make_run_serves_a_picture_and_stops_both_processes(
    checkout: Path, ending: int, host: str
) -> None:
    before = {path.name for path in checkout.iterdir()}
    proxy = f"http://127.0.0.1:{free_port()}"  # a company's, which leads nowhere
    address = {"HOST": host, "PORT": str(free_port())}
    with start(checkout, **address, http_proxy=proxy, ALL_PROXY=proxy) as process:
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
    assert not any(map(is_listening, (backend, links["Open"])))
    assert {path.name for path in checkout.iterdir()} - before <= {".demo", "__pycache__"}


def why_not_started(checkout: Path, **variables: str) -> str:
    """Return the one line with which `make run` ends."""
    with start(checkout, **variables) as process:
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("more", [{}, {"BACKEND_API_URLS": "http://127.0.0.1:1"}])
def test_make_run_says_that_its_port_is_taken(checkout: Path, more: dict[str, str]) -> None:
    """By another demo, too, whose answers must not be taken for its own."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = why_not_started(checkout, PORT=str(port), PROXY_ACCESS_KEY="own-access-key", **more)
    assert f"HOST, PORT: Address already in use: 127.0.0.1:{port}; stop what listens" in said
    assert more or said.endswith("another PORT, as in: PORT=8081 make run\n")


def test_make_run_rejects_an_address_in_one_line(checkout: Path) -> None:
    for host, port, sentence in [
        ("127.0.0.1", "80a", "PORT: '80a' is not usable; write an integer from 1 to 65535"),
        ("192.0.2.1", str(free_port()), "; write an address of this machine as HOST"),
    ]:
        said = why_not_started(checkout, HOST=host, PORT=port)
        assert sentence in said
        assert "PORT=8081" not in said


def is_listening(url: str) -> bool:
    parts = urlsplit(url)
    with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port)):
        return True
    return False


def test_make_run_with_configured_backends_is_gunicorn(
    checkout: Path, backend: ScriptedServer
) -> None:
    port = free_port()
    own = {"BACKEND_API_URLS": backend.url, "PROXY_ACCESS_KEY": "own-access-key"}
    url = f"http://127.0.0.1:{port}/prompt/x?key=own-access-key"
    with start(checkout, **own, PORT=str(port)) as process:
        wait_until(lambda: is_listening(url), what="gunicorn")
        assert fetch(url).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        assert "demo backend" not in process.stdout.read()
    assert len(backend.seen) == 1
