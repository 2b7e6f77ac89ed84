"""The shipped gunicorn.conf.py, in real processes with two workers."""

import contextlib
import os
import re
import resource
import select
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from web.serving import INVALID_SETTINGS

from .conftest import KEY, REFUSAL, ROOT, Gunicorn, Serve, Start, drawing
from .image import copy_image
from .proxy import HttpProxy
from .scripted import (
    Gate,
    RawServer,
    Say,
    ScriptedServer,
    free_port,
    png,
    send_and_leave,
    wait_until,
)
from .studio import Studio
from .wire import over_tls, saying

# --- one drawing for many requests


def test_200_identical_requests_over_two_workers_draw_once(studio: Studio) -> None:
    studio.backend.say(gate := Gate(drawing(png(shade=9))))
    with ThreadPoolExecutor(200) as pool:
        answers = [pool.submit(studio.service.picture, "x") for _ in range(200)]
        wait_until(lambda: studio.backend.seen)
        gate.opened.set()
        got = [answer.result() for answer in answers]
    assert {(one.status, one.body) for one in got} == {(200, png(shade=9))}
    assert len(studio.backend.seen) == 1


def test_drawing_continues_after_its_client_disconnects(studio: Studio) -> None:
    studio.backend.say(gate := Gate(drawing()))
    send_and_leave(studio.service.url, f"/prompt/x?key={KEY}")
    wait_until(lambda: studio.backend.seen)
    gate.opened.set()
    wait_until(studio.entries)
    assert studio.service.picture("x").headers["Cache-Status"] == "PromptImageProxy; hit"


def test_hits_and_refusals_are_answered_while_all_places_are_taken(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    service = gunicorn(backend, THREADS="24")
    service.picture("cached")
    backend.say(REFUSAL)
    assert service.picture("refused").status == 422
    backend.say(gate := Gate(drawing()))
    with ThreadPoolExecutor(40) as pool:
        misses = [pool.submit(service.picture, f"miss-{n}") for n in range(40)]
        # Two workers have 24 - 16 places each: the other requests are rejected at once.
        wait_until(lambda: sum(miss.done() for miss in misses) >= 24)
        for _ in range(20):
            assert service.picture("cached").headers["Cache-Status"] == "PromptImageProxy; hit"
            assert service.picture("refused").status == 422
        gate.opened.set()
        answers = [miss.result() for miss in misses]
    rejected = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {200, 503}
    assert len(rejected) >= 24
    assert all(answer.headers["Retry-After"] for answer in rejected)
    assert all(answer.headers["Cache-Control"] == "no-store" for answer in rejected)


# --- the network


def test_backend_is_reached_through_a_proxy_and_its_own_authority(
    gunicorn: Start,
    opened: list[Any],
    raw_server: Callable[..., RawServer],
    certificates: tuple[Path, Path],
) -> None:
    opened.append(proxy := HttpProxy())
    authority, certificate = certificates
    body = drawing().content()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    backend = raw_server(over_tls(certificate, saying(answer)))
    service = gunicorn(
        BACKEND_API_URLS=f"https://pics.example:{backend.port}/v1",
        https_proxy=f"http://user:password-of-the-proxy@{proxy.address}",
        CA_BUNDLE=str(authority),
        LOG_LEVEL="DEBUG",
    )
    assert service.picture("x").body == png()
    assert proxy.targets == [f"CONNECT pics.example:{backend.port}"]
    proxy.refusals = 1
    assert service.picture("y").status == 502
    assert "password-of-the-proxy" not in service.said()


# --- request lines


def test_4000_characters_of_any_script_pass(studio: Studio) -> None:
    prompt = "🍎" * 4000
    assert studio.service.picture(quote(prompt)).status == 200
    assert studio.backend.seen[0].json["prompt"] == prompt


def connect(service: Gunicorn) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(service.url).port or 0), 10)


@pytest.mark.parametrize("length", [65_600, 1_000_000])
def test_longer_request_line_is_a_quick_414(studio: Studio, length: int) -> None:
    with connect(studio.service) as client:
        with contextlib.suppress(OSError):  # it may hang up before the end
            client.sendall(b"GET /prompt/" + b"x" * length)
        assert client.recv(100).startswith(b"HTTP/1.1 414")
    assert studio.service.get("/robots.txt").status == 200


@pytest.mark.parametrize("target", ["/sign", "/v1/images/generations"])
@pytest.mark.parametrize("chunks", ["ZZ\r\n", "-1\r\n", "5\r\nabcdefgh\r\n", "5\r\nab", ""])
def test_body_of_broken_chunks_is_a_400(studio: Studio, target: str, chunks: str) -> None:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    with connect(studio.service) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{chunks}".encode())
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"The body did not arrive whole." in answer
    assert "Traceback" not in studio.service.said()


# --- start, reload, stop


def test_invalid_settings_end_the_start_with_a_sentence_each(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": "http"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (run.returncode, run.stdout) == (INVALID_SETTINGS, "")
    head, *faults = run.stderr.splitlines()
    assert head == "Prompt Image Proxy cannot start. Invalid settings:"
    assert {fault.split(":")[0].strip() for fault in faults} == {
        "BACKEND_API_URLS",
        "PROXY_ACCESS_KEY",
        "PORT",
        ".env",
    }


def test_probable_mistakes_are_logged_once(
    gunicorn: Start, backend: ScriptedServer, environment: dict[str, str], tmp_path: Path
) -> None:
    del environment["ADMIN_TOKEN"]
    (tmp_path / ".env").write_text("POLLINATIONS_ENABLE=false\nADMIN_TOKEN=xyzzy #plugh\n")
    said = gunicorn(backend).said()
    for names in ("POLLINATIONS_ENABLE:", "ADMIN_TOKEN: end", "ADMIN_TOKEN: under", "SIGNING_KEY:"):
        assert said.count(names) == 1
    assert "xyzzy" not in said
    assert "plugh" not in said


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_flood_of_connections_never_exhausts_the_descriptors(
    gunicorn: Start, backend: ScriptedServer, opened: list[Any]
) -> None:
    service = gunicorn(backend, THREADS="64")
    service.picture("cached")
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (100, 256))
    service.reload()
    workers = service.workers()
    assert {resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] for pid in workers} == {256}
    assert "THREADS: 64 may need 896 open files" in service.said()
    clients = [connect(service) for _ in range(600)]
    answers = select.poll()
    for client in clients:
        answers.register(client, select.POLLIN)
        client.sendall(f"GET /prompt/cached?key={KEY} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    # (256 - 128) / 12 in each worker; the others wait to be accepted.
    wait_until(lambda: len(answers.poll(0)) == 20)
    assert max(map(open_files, workers)) < 128
    for client in clients:
        client.close()
    wait_until(lambda: service.picture("cached").status == 200)
    assert service.workers() == workers
    assert "Too many open files" not in service.said()


def test_three_reloads_under_load_lose_no_request(studio: Studio) -> None:
    studio.service.picture("cached")
    stop = threading.Event()

    def ask() -> Iterator[int]:
        while not stop.is_set():
            yield studio.service.picture("cached").status

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(lambda: list(ask())) for _ in range(8)]
        for _ in range(3):
            studio.service.reload()
        stop.set()
        statuses = [status for one in asking for status in one.result()]
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_reload_applies_valid_settings_and_ignores_invalid_ones(
    gunicorn: Start, backend: ScriptedServer, environment: dict[str, str]
) -> None:
    del environment["ADMIN_TOKEN"]
    service = gunicorn(backend)

    def max_age() -> str:
        return service.picture("new-admin-token").headers["X-Accel-Expires"]

    dotenv = service.log.parent / ".env"
    valid = "METRICS=true\nADMIN_TOKEN=new-admin-token\nHOST=192.0.2.1\n"
    dotenv.write_text(f"NGINX_CACHE_SECONDS=77\n{valid}")
    service.reload()
    assert max_age() == "77"
    headers = {"Authorization": "Bearer new-admin-token"}
    assert service.get("/metrics", headers=headers).status == 200
    wait_until(lambda: "(***)" in service.said(), what="the prompt, which is a secret now")
    address = service.url.removeprefix("http://")
    assert f"takes a restart; the service still listens on {address}" in service.said()
    dotenv.write_text("NGINX_CACHE_SECONDS=many\n")
    service.reload()
    assert service.said().count("NGINX_CACHE_SECONDS: 'many' is not usable") == 1
    assert "Reload failed; the service keeps its settings." in service.said()
    service.respawn_workers()
    assert max_age() == "77"
    dotenv.write_text("NGINX_CACHE_SECONDS=78\n")
    service.reload()
    assert max_age() == "78"


def test_reload_checks_the_cache_only_where_it_has_changed(
    gunicorn: Start, backend: ScriptedServer, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = environment.pop("CACHE_DIR")
    del environment["PROXY_ACCESS_KEY"]
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"CACHE_DIR={folder}\nPROXY_ACCESS_KEY=old-{KEY}\n")
    service = gunicorn(backend)
    with closing(sqlite3.connect(f"{folder}/index.sqlite3")) as index:
        [(version,)] = index.execute("PRAGMA user_version")
        index.execute("PRAGMA user_version = 9999")  # a newer one, which cannot be opened
        dotenv.write_text(f"CACHE_DIR={folder}\nPROXY_ACCESS_KEY={KEY}\n")
        service.reload()
        assert service.picture("x", key=f"old-{KEY}").status == 401
        index.execute(f"PRAGMA user_version = {version}")
    (unusable := tmp_path / "other" / "index.sqlite3").mkdir(parents=True)
    dotenv.write_text(f"CACHE_DIR={unusable.parent}\nPROXY_ACCESS_KEY=new-{KEY}\n")
    service.reload()
    assert "The cache cannot be used: CACHE_DIR: the index cannot be opened" in service.said()
    lines = {
        "PROXY_ACCESS_KEY": KEY,
        "CACHE_DIR": f"{folder}-of-machines",
        "DATABASE_URL": f"postgresql://pictures:secret@127.0.0.1:{free_port()}/pictures",
        "STORAGE_URL": "s3://pictures",
        "S3_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "S3_REGION": "us-east-1",
        "S3_ACCESS_KEY_ID": "id",
        "S3_SECRET_ACCESS_KEY": "wrong-secret",
    }
    dotenv.write_text("\n".join(f"{name}={value}" for name, value in lines.items()))
    service.reload()
    failed = [line for line in service.said().splitlines() if "Reload failed" in line]
    assert re.search("keeps its settings. .* DATABASE_URL: .* S3_ENDPOINT_URL: ", failed[1])
    service.respawn_workers()
    assert service.picture("x").status == 200
    assert "secret" not in service.said()


def test_running_service_needs_nothing_on_disk(
    environment: dict[str, str], backend: ScriptedServer, opened: list[Any], tmp_path: Path
) -> None:
    copy_image(program := tmp_path / "program")
    values = {**environment, "BACKEND_API_URLS": backend.url}
    opened.append(service := Gunicorn(values, tmp_path / "gunicorn.log", program))
    conf = program / "gunicorn.conf.py"
    # A newer version, which does not fit the program in memory.
    newer = conf.read_text("utf-8").replace("services.", "services.new.")
    newer = newer.replace("make_app()", "new_app()")
    for file in program.rglob("*.*"):
        file.write_text("def broken(:")
    conf.write_text(newer, "utf-8")
    service.respawn_workers()
    dotenv = tmp_path / ".env"
    dotenv.write_text("NGINX_CACHE_SECONDS=77\n")
    service.reload()
    # The package that this one needs is not imported yet.
    dotenv.write_text("NGINX_CACHE_SECONDS=78\nPICTURE_FORMAT=webp\n")
    service.reload()
    assert "Reload failed; the service keeps its settings.\n  Traceback" in service.said()
    service.respawn_workers()
    assert service.picture("x").headers["X-Accel-Expires"] == "77"
    assert b"<html" in service.get("/").body


def test_stop_stores_the_current_drawing_and_closes_the_cache(
    gunicorn: Start,
    serve: Serve,
    backend: ScriptedServer,
    environment: dict[str, str],
) -> None:
    backend.say(gate := Gate(drawing()))
    service = gunicorn(backend)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(service.picture, "x")
        wait_until(lambda: backend.seen)
        service.process.terminate()
        wait_until(lambda: "Handling signal: term" in service.said())
        gate.opened.set()
        assert answer.result().status == 200
    assert service.process.wait(15) == 0
    # SQLite deletes its write-ahead log when the last connection is closed.
    assert not list(Path(environment["CACHE_DIR"]).glob("*-wal"))
    again = serve(backend).picture("x")
    assert again.headers["Cache-Status"] == "PromptImageProxy; hit"


# --- the log and other files


def test_no_prompt_commands_the_terminal_of_the_log(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    backend.say(Say({"error": {"message": "no model \x1b[2J\u2028", "code": "\x9b"}}, 404))
    service = gunicorn(backend, LOG_LEVEL="DEBUG")
    service.picture("a%1b%5d0;x%07%0aforged%c2%9b%e2%80%ae")
    said = wait_until(lambda: service.said() if "Gave up" in service.said() else "")
    assert r"(a\x1b]0;x\x07 forged\x9b\u202e)" in said
    # gunicorn's access log, on at this level, has the path.
    wait_until(lambda: r"/prompt/a\x1b]0;x\x07\nforged" in service.said())
    assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", service.said())


def test_cache_hits_are_not_logged(studio: Studio) -> None:
    service, said_before = studio.service, studio.service.said()
    assert "Using worker:" in said_before
    service.picture("x")
    drawn = wait_until(
        lambda: "Drew" in (said := service.said()).removeprefix(said_before) and said
    )
    for _ in range(5):
        service.picture("x")
    assert service.said() == drawn


def test_no_control_socket_is_created(studio: Studio) -> None:
    assert not (studio.service.log.parent / "home").exists()
    assert not list(ROOT.glob("*.ctl"))
