"""Faults on purpose, seen from outside: by a client, in the cache's folder, /status and the log.

What a module does with its own faults is in that module's tests.
"""

import base64
import contextlib
import gzip
import json
import os
import shutil
import socket
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .conftest import ADMIN, KEY, Gunicorn, InProcess, Serve, Service, Start, drawing
from .disks import disk, full, read_only
from .proxy import HttpProxy
from .scripted import Got, Say, ScriptedServer, fetch, png, wait_until
from .wire import OK, MakeRawServer, MakeServer, Talk, pouring, saying

HIT = "PromptImageProxy; hit"
STORED = "PromptImageProxy; fwd=miss; stored; detail=backend"
MIB = 2**20


def picture_of(prompt: str, size: int = 3000) -> bytes:
    """Return the one picture of a prompt."""
    check = zlib.crc32(prompt.encode())
    return png(1 + check % 64, 1 + (check >> 8) % 64, (check >> 16) % 256, size + check % 500)


@pytest.fixture
def known(server: MakeServer) -> ScriptedServer:
    """A backend that draws `picture_of` the prompt."""
    made = server()
    made.say(lambda seen: drawing(picture_of(seen.json["prompt"])))
    return made


@pytest.fixture
def folder(environment: dict[str, str]) -> Path:
    """The service's cache folder."""
    return Path(environment["CACHE_DIR"])


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".png")


def assert_nothing_stored(service: InProcess, folder: Path) -> None:
    assert service.get("/status").json["cache"]["entries"] == 0
    assert {path.name.partition(".")[0] for path in folder.iterdir()} <= {"index", "locks"}


# --- broken backends ----------------------------------------------------------------------------


PICTURE = json.dumps({"data": [{"b64_json": base64.b64encode(png(size=5000)).decode()}]}).encode()
LENGTH = b"Content-Length: %d\r\n\r\n" % len(PICTURE)
BOMB = gzip.compress(b" " * 50 * MIB)
FAULTS: dict[str, Talk] = {
    "endless body": saying(OK + b"\r\n", pouring(b" " * 65536)),
    "gzip bomb": saying(OK + b"Content-Encoding: gzip\r\n\r\n" + BOMB),
    # http.client takes it for the answer.
    "interim answer": saying(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + LENGTH + PICTURE),
    "cut": saying(OK + LENGTH + PICTURE[:4000]),
    "deep JSON": saying(OK + b"\r\n" + b'{"data":' * 100_000),
    "half a picture": saying(OK + b"\r\n" + png()[:20]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_backend_is_a_502_and_leaves_nothing(
    serve: Serve, raw_server: MakeRawServer, folder: Path, fault: str
) -> None:
    service = serve(raw_server(FAULTS[fault]), MAX_IMAGE_BYTES=str(MIB), BACKEND_TIMEOUT="10")
    got = service.picture("x")
    assert (got.status, got.headers["Content-Type"]) == (502, "application/problem+json")
    assert_nothing_stored(service, folder)


# --- the clock ----------------------------------------------------------------------------------


@pytest.mark.parametrize("corrected", ["AUTH_TOKEN", "BACKEND_HEADERS", "BACKEND_PROXIES"])
def test_corrected_setting_is_tried_at_once(
    serve: Serve, backend: ScriptedServer, opened: list[Any], corrected: str
) -> None:
    """A token, a header or a proxy: what failed without it counts no more, for the picture too."""
    opened.append(proxy := HttpProxy())
    values = {
        "AUTH_TOKEN": "right",
        "BACKEND_HEADERS": json.dumps({backend.url: {"X-Token": "right"}}),
        "BACKEND_PROXIES": json.dumps({backend.url: f"http://{proxy.address}"}),
    }
    backend.say(Say({"error": {"message": "Incorrect API key provided"}}, 401), drawing())
    assert serve(backend).picture("a").status == 502
    assert serve(backend).picture("b").status == 503
    assert serve(backend, **{corrected: values[corrected]}).picture("a").status == 200


@pytest.mark.parametrize("days", [-1, 1])
def test_clock_that_jumps_a_day_loses_and_blocks_nothing(
    serve: Serve, backend: ScriptedServer, days: int
) -> None:
    service = serve(backend)
    service.picture("kept")
    backend.say(Say("", 429, {"Retry-After": "300"}), drawing())
    assert service.picture("failed").status == 502
    service.ahead = days * 86400
    assert service.picture("kept").headers["Cache-Status"] == HIT
    assert service.picture("failed").headers["Cache-Status"] == STORED


# --- the disk -----------------------------------------------------------------------------------


def assert_refused(service: Service, prompt: str, reason: str) -> None:
    """Assert that a picture is not drawn, and that client and operator learn why."""
    got = service.picture(prompt)
    assert (got.status, got.headers["Retry-After"]) == (503, "5")
    assert "stored" in got.json["detail"]
    status = service.get("/status").json
    assert (status["status"], reason in status["cache"]["fault"]) == ("degraded", True)


def test_full_disk_stops_drawing_and_nothing_else(
    gunicorn: Start, known: ScriptedServer, tmp_path: Path, opened: list[Any]
) -> None:
    opened.append(small := contextlib.ExitStack())  # before the service, which is closed first
    small.enter_context(disk(tmp_path / "disk", "24m"))
    folder = tmp_path / "disk" / "cache"
    service = gunicorn(known, CACHE_DIR=str(folder), MAX_IMAGE_BYTES=str(MIB), LOG_LEVEL="WARNING")
    kept = [f"kept{n}" for n in range(5)]
    assert [service.picture(prompt).headers["Cache-Status"] for prompt in kept] == [STORED] * 5
    with full(folder.parent, spare=MIB // 2):
        for n in range(12):
            assert_refused(service, f"new{n % 4}", "0.5 MiB free, 1.0 MiB needed")
            old = service.picture(kept[n % 5])
            assert (old.headers["Cache-Status"], old.body) == (HIT, picture_of(kept[n % 5]))
        assert service.delete({"description": "kept0"}).status == 200
        assert len(pictures(folder)) == 4
        assert len(known.seen) == 5, "nothing is paid for"
    assert service.picture("new0").headers["Cache-Status"] == STORED
    wait_until(lambda: service.get("/status").json["status"] == "ok", 6)
    assert service.said().count("New pictures cannot be stored") <= len(service.workers())
    assert "Traceback" not in service.said()


def test_read_only_folder_stops_drawing_and_nothing_else(
    gunicorn: Start, known: ScriptedServer, folder: Path
) -> None:
    service = gunicorn(known, LOG_LEVEL="WARNING")
    assert service.picture("kept").headers["Cache-Status"] == STORED
    with read_only(folder):
        for n in range(12):
            assert_refused(service, f"new{n % 2}", "Read-only file system")
            assert service.picture("kept").headers["Cache-Status"] == HIT
            assert service.delete({"description": "nothing"}).status in (404, 503)
    assert len(known.seen) == 1
    for n in range(6):
        assert service.picture(f"later{n}").headers["Cache-Status"] == STORED
        assert service.picture(f"later{n}").headers["Cache-Status"] == HIT
    assert service.picture("kept").body == picture_of("kept")
    assert "Traceback" not in service.said()


def test_service_starts_without_room_and_says_so(
    serve: Serve,
    known: ScriptedServer,
    tmp_path: Path,
    opened: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened.append(small := contextlib.ExitStack())
    small.enter_context(disk(tmp_path / "disk", "2m"))
    service = serve(known, CACHE_DIR=str(tmp_path / "disk" / "cache"))
    assert_refused(service, "x", "32.0 MiB needed")
    assert "New pictures cannot be stored" in caplog.text


# --- files and index ----------------------------------------------------------------------------


def overwrite(path: Path, data: bytes) -> None:
    """Write over the start of a file, which stays the same file."""
    with path.open("r+b") as file:
        file.write(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"<script>alert(1)</script>"),
        lambda path: path.write_bytes(picture_of("another")),
        lambda path: path.unlink(),
        replace_by_folder,
    ],
)
def test_damaged_picture_is_drawn_again(
    serve: Serve,
    known: ScriptedServer,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    service = serve(known)
    service.picture("x")
    [picture] = pictures(folder)
    damage(picture)
    for cache_status in (STORED, HIT):
        got = service.picture("x")
        assert (got.status, got.body) == (200, picture_of("x"))
        assert got.headers["Cache-Status"] == cache_status
    assert len(known.seen) == 2
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_unreadable_picture_is_a_503_and_not_drawn_again(
    serve: Serve, known: ScriptedServer, folder: Path
) -> None:
    service = serve(known)
    service.picture("x")
    [picture] = pictures(folder)
    elsewhere = picture.rename(folder.parent / "elsewhere")
    picture.symlink_to(picture)  # "Too many levels of symbolic links", for root as well
    got = service.picture("x")
    assert (got.status, got.headers["Retry-After"]) == (503, "5")
    elsewhere.replace(picture)
    assert service.picture("x").headers["Cache-Status"] == HIT
    assert len(known.seen) == 1


def test_administrator_is_told_why_the_index_cannot_be_used(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cache" / "index.sqlite3").mkdir(parents=True)
    got = serve().as_admin("/status")
    assert (got.status, got.json["cache"]["fault"]) == (503, "unable to open database file")


def test_status_says_that_the_index_was_damaged(
    serve: Serve, known: ScriptedServer, folder: Path
) -> None:
    folder.mkdir()
    (folder / "index.sqlite3").write_text("garbage")
    service = serve(known)
    assert service.picture("x").headers["Cache-Status"] == STORED
    status = service.get("/status").json
    [damaged] = folder.glob("index.sqlite3.damaged-*")
    assert (status["status"], damaged.name in status["cache"]["fault"]) == ("degraded", True)
    damaged.unlink()
    assert service.get("/status").json["status"] == "ok"


INDEX_DAMAGES: list[Callable[[Path], object]] = [
    lambda path: os.truncate(path, 5000),
    lambda path: overwrite(path, os.urandom(path.stat().st_size)),
    lambda path: overwrite(path.with_name(f"{path.name}-wal"), os.urandom(9000)),
    lambda path: path.unlink(),
]


def test_index_damaged_under_load_costs_no_answer(
    gunicorn: Start, known: ScriptedServer, folder: Path
) -> None:
    service = gunicorn(known, LOG_LEVEL="WARNING")
    index, stop = folder / "index.sqlite3", threading.Event()
    prompts = [f"picture{n}" for n in range(12)]
    for prompt in prompts:
        service.picture(prompt)

    def ask() -> list[str]:
        """Ask for one after another; return the wrong answers."""
        wrong = []
        while not stop.is_set():
            for prompt in prompts:
                got = service.picture(prompt)
                if (got.status, got.body) != (200, picture_of(prompt)):
                    wrong.append(f"{got.status} for {prompt}")
            if (status := service.get("/status").status) != 200:
                wrong.append(f"{status} for /status")
        return wrong

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for number, damage in enumerate(INDEX_DAMAGES):
                damage(index)
                wait_until(partial(is_cached_for_both, service, f"after{number}"))
                wait_until(index.is_file)
        finally:
            stop.set()
        assert [fault for one in asking for fault in one.result()] == []
    assert "Traceback" not in service.said()
    assert "The index was damaged" in service.said()
    # Each picture was adopted, and not drawn again.
    assert len(known.seen) == len(prompts) + len(INDEX_DAMAGES)


def is_cached_for_both(service: Gunicorn, prompt: str) -> bool:
    """Return whether a picture is a hit many times in a row, so in both workers."""
    return all(service.picture(prompt).headers.get("Cache-Status") == HIT for _ in range(12))


# --- the limit ----------------------------------------------------------------------------------


def test_limit_holds_while_two_workers_store(
    gunicorn: Start, known: ScriptedServer, folder: Path
) -> None:
    limit = 2 * MIB
    known.say(lambda seen: drawing(picture_of(seen.json["prompt"], 20_000)))
    service = gunicorn(known, CACHE_MAX_BYTES=str(limit), MAX_IMAGE_BYTES="50000")
    sizes: list[int] = []

    def ask(number: int) -> None:
        for n in range(40):
            prompt = f"x{number}-{n}"
            assert service.picture(prompt).body == picture_of(prompt, 20_000)
            assert service.picture("favourite").status == 200
            sizes.append(stored_bytes(folder))

    with ThreadPoolExecutor(4) as pool:
        for running in [pool.submit(ask, number) for number in range(4)]:
            running.result()
    # 160 pictures of 20 KB are half as much again as what there is place for.
    assert max(sizes) <= limit * 1.05
    wait_until(lambda: 0.9 * limit <= stored_bytes(folder) <= limit)
    wait_until(lambda: service.get("/status").json["cache"]["bytes"] == stored_bytes(folder))
    # Every use was seen: what both workers were asked for all the time has never gone.
    assert sum(seen.json["prompt"] == "favourite" for seen in known.seen) == 1


def stored_bytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.suffix == ".png" else 0
    return total


# --- the front door -----------------------------------------------------------------------------

JSON_BODY = ("POST", "/cache/delete", {"X-Admin-Token": ADMIN})
CHUNKED = {"X-Admin-Token": ADMIN, "Transfer-Encoding": "chunked"}
REQUESTS: dict[str, tuple[str, str, dict[str, str], bytes, set[int]]] = {
    "raw bytes": ("GET", f"/prompt/\xe7?key={KEY}", {}, b"", {400}),
    "long model": ("GET", f"/prompt/x?key={KEY}&model={'m' * 60_000}", {}, b"", {400}),
    "many parameters": ("GET", f"/prompt/x?key={KEY}{'&a=1' * 6000}", {}, b"", {400}),
    "megabyte header": ("GET", "/status", {"X-A": "x" * MIB}, b"", {400, 431}),
    "non-ASCII bearer": ("GET", "/prompt/x", {"Authorization": "Bearer \xff"}, b"", {401}),
    "two slashes": ("GET", f"//prompt/x?key={KEY}", {}, b"", {404}),
    "parent folder": ("GET", "/../../etc/passwd", {}, b"", {404}),
    "encoded parent": ("GET", "/..%2f..%2fetc%2fpasswd", {}, b"", {404}),
    "parent of a page": ("GET", "/page/../../app.py", {}, b"", {404}),
    "parent in a prompt": ("GET", "/prompt/../../etc/passwd", {}, b"", {401}),
    "no path": ("GET", "x", {}, b"", {400, 404}),
    "chunks": (
        "POST",
        "/cache/delete",
        CHUNKED,
        b"8000\r\n%s\r\n0\r\n\r\n" % (b" " * 2**15),
        {413},
    ),
    "nested body": (*JSON_BODY, b"[" * 16_000, {400}),
    "huge number": (*JSON_BODY, b'{"description": "x", "seed": %s}' % (b"9" * 10_000), {400}),
}


def send(service: Gunicorn, name: str) -> tuple[int, bytes]:
    """Send one of REQUESTS exactly as it is written; return the status and the body."""
    method, target, headers, body, _ = REQUESTS[name]
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{header}: {value}" for header, value in headers.items()]
    if "Transfer-Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode("latin-1")
    head, _, content = exchange(service, head + b"\r\n\r\n" + body).partition(b"\r\n\r\n")
    return int(head.split()[1]), content


def exchange(service: Gunicorn, data: bytes) -> bytes:
    """Send bytes, well-formed or not, and return what comes back."""
    answer = b""
    with socket.create_connection(("127.0.0.1", urlsplit(service.url).port or 0), 10) as client:
        with contextlib.suppress(OSError):  # it may answer and hang up before the end
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                answer += part
    return answer


def test_malformed_request_is_rejected_with_one_sentence(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    service = gunicorn(backend, LOG_LEVEL="DEBUG")
    for name, (*_, expected) in REQUESTS.items():
        status, content = send(service, name)
        assert status in expected, name
        assert len(content) < 500, name
        for secret in (ADMIN, "root:", "Traceback", "import "):
            assert secret.encode() not in content, name
        if content.startswith(b"{"):  # gunicorn's own page repeats the request line to its sender
            assert KEY.encode() not in content, name
            detail = json.loads(content)["detail"]
            assert (len(detail) < 120, detail.count("\n")) == (True, 0), name
    assert backend.seen == []
    assert service.picture("x").status == 200
    assert len(service.workers()) == 2
    assert "Traceback" not in service.said()
    assert KEY not in service.said()


# --- secrets ------------------------------------------------------------------------------------

SAYS_TOO_MUCH = "text-of-the-upstream with token-of-the-backend"
ERROR = {"error": {"message": SAYS_TOO_MUCH, "code": "content_policy_violation"}}
BACKEND_SAYS = [
    *(Say(ERROR, status, {"X-Text": SAYS_TOO_MUCH}) for status in (400, 401, 403, 429, 500)),
    Say({"data": [{"url": "http://user-of-url:password-of-url@127.0.0.1:1/a.png"}]}),
    Say({"data": [{"url": "http://169.254.169.254/password-of-url"}]}),
    Say({"data": [{"url": f"file:///{SAYS_TOO_MUCH}"}]}),
    Say(SAYS_TOO_MUCH),
]


def test_storm_of_faults_leaves_no_secret_anywhere(
    gunicorn: Start, server: MakeServer, raw_server: MakeRawServer, folder: Path
) -> None:
    backend, llm, fallback = server(), server(), server()
    backend.say(lambda seen: BACKEND_SAYS[int(seen.path[1])])
    llm.say(Say(ERROR, 500), Say(SAYS_TOO_MUCH, 401), Say({"choices": SAYS_TOO_MUCH}))
    fallback.say(Say(SAYS_TOO_MUCH, 500), Say(SAYS_TOO_MUCH), Say(ERROR, 451))
    broken = raw_server(lambda c: c.sendall(SAYS_TOO_MUCH.encode() + b"\r\n\r\n"))

    def with_password(url: str) -> str:
        return url.replace("//", "//user-of-url:password-of-url@")

    urls = [f"{with_password(backend.url)}/{n}?code=query-of-url" for n in range(len(BACKEND_SAYS))]
    service = gunicorn(
        LOG_LEVEL="DEBUG",
        BACKEND_API_URLS=",".join([*urls, broken.url]),
        AUTH_TOKEN="token-of-the-backend",
        BLOCKED_RETRY_ATTEMPTS="20",  # no refusal keeps the other backends from being asked
        GENERATION_DEADLINE="4",  # less than a cooldown, which no drawing then waits for
        POLLINATIONS_ENABLED="true",
        POLLINATIONS_URL=with_password(fallback.url),
        POLLINATIONS_TOKEN="token-of-pollinations",
        LLM_OPTIMIZATION_ENABLED="true",
        DE_NSFW_ENABLED="true",
        LLM_OPTIMIZATION_API_URL=with_password(llm.url),
        LLM_OPTIMIZATION_TOKEN="token-of-the-llm",
    )
    answers: list[Got] = []
    # A picture that cannot be fetched is asked for again until the deadline.
    while len({seen.path for seen in backend.seen}) < len(BACKEND_SAYS) and len(answers) < 20:
        answers.append(service.picture(f"x{len(answers)}"))
    assert len({seen.path for seen in backend.seen}) == len(BACKEND_SAYS)
    assert {got.status for got in answers} <= {422, 502, 503, 504}
    answers += [
        service.get("/status"),
        service.picture("x", key="a-wrong-key"),
        fetch(f"{service.url}/prompt/%ff?key={KEY}"),
        service.get(f"/nothing?key={KEY}"),
        service.delete(b"{", "a-wrong-token"),
        service.delete(b"\xff"),
    ]
    for line in (
        f"GET /prompt/x?key={KEY} HTTP/9.9",
        f"GET /prompt/x?key={KEY}",
        f"G\xe9T /prompt/x?key={KEY} HTTP/1.1",
        f"GET /prompt/x?key={KEY} HTTP/1.1\r\nBad Header {ADMIN}: x",
        f"GET /prompt/x?key={KEY} HTTP/1.1\r\nX-Admin-Token: {ADMIN}\r\nContent-Length: {ADMIN}",
    ):
        exchange(service, line.encode("latin-1") + b"\r\n\r\n")
    shutil.rmtree(folder)
    service.picture("again")
    said = service.said() + "".join(f"{got.headers}{got.body!r}" for got in answers)
    secrets = ("token-of", "password-of", "user-of", "query-of", "text-of-the-upstream")
    for secret in (*secrets, KEY, ADMIN, "a-wrong", "Traceback"):
        assert secret not in said, secret
    assert said.count("Backend http://127.0.0.1") >= 2
