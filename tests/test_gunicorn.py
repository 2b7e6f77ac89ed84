"""The shipped gunicorn.conf.py, in real processes with two workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from .conftest import ADMIN, KEY, ROOT, Gunicorn, drawing
from .servers import Say, ScriptedServer, Seen, fetch, png, wait_until

Start = Callable[..., Gunicorn]


class Gate:
    """An answer that waits until a test lets it go, and knows who waits."""

    def __init__(self, answer: Say | None = None) -> None:
        self.answer = answer or drawing()
        self.opened = threading.Event()

    def __call__(self, seen: Seen) -> Say:
        assert self.opened.wait(30), "nobody opened the gate"
        return self.answer


def hang_up_after_asking(service: Gunicorn, description: str) -> None:
    """Ask for a picture and leave before it comes."""
    port = urlsplit(service.url).port
    with socket.create_connection(("127.0.0.1", port or 0)) as client:
        client.sendall(f"GET /prompt/{description}?key={KEY} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def drawing_worker(service: Gunicorn, backend: ScriptedServer) -> int:
    """Return the worker that has a connection to the backend: the one that draws."""
    for pid in service.workers():
        found = subprocess.run(
            ["cat", f"/proc/{pid}/net/tcp"], capture_output=True, text=True, check=True
        ).stdout
        inodes = {
            row.split()[9]
            for row in found.splitlines()[1:]
            if row.split()[2].endswith(f":{backend.port:04X}") and row.split()[3] == "01"
        }
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.removeprefix("socket:[").removesuffix("]") in inodes:
                return pid
    return 0


# --- one drawing for many requests


def test_200_identical_requests_over_two_workers_are_one_drawing(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    gate = Gate(drawing(png(shade=9)))
    backend.say(gate)
    service = gunicorn(backend)
    with ThreadPoolExecutor(200) as pool:
        answers = [pool.submit(service.picture, "x") for _ in range(200)]
        wait_until(lambda: backend.seen)
        gate.opened.set()
        got = [answer.result() for answer in answers]
    assert {(one.status, one.body) for one in got} == {(200, png(shade=9))}
    assert len(backend.seen) == 1


def test_failure_is_shared_by_followers_in_both_workers(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    gate = Gate(Say("", 500))
    backend.say(gate)
    service = gunicorn(backend)
    with ThreadPoolExecutor(60) as pool:
        answers = [pool.submit(service.picture, "x") for _ in range(60)]
        wait_until(lambda: sum(map(service.threads_of, service.workers())) >= 60)
        gate.opened.set()
        statuses = {answer.result().status for answer in answers}
    # Whoever arrives just after the failure rightly tries again: a few, never one by one.
    assert statuses <= {502, 503}
    assert len(backend.seen) <= 6


def test_killed_drawing_worker_is_replaced_at_once(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    gate = Gate()
    backend.say(gate)
    service = gunicorn(backend)
    hang_up_after_asking(service, "x")
    wait_until(lambda: backend.seen)
    pid = wait_until(lambda: drawing_worker(service, backend))
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(ask_until_answered, service)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(backend.seen) == 2)
        gate.opened.set()
        assert second.result() == 200


def ask_until_answered(service: Gunicorn) -> int:
    """Ask until a worker that lives answers: a killed one takes its connections with it."""
    for _ in range(10):
        try:
            return service.picture("x").status
        except OSError:
            continue
    return 0


def test_drawing_goes_on_when_its_client_has_gone(gunicorn: Start, backend: ScriptedServer) -> None:
    gate = Gate()
    backend.say(gate)
    service = gunicorn(backend)
    hang_up_after_asking(service, "x")
    wait_until(lambda: backend.seen)
    gate.opened.set()
    wait_until(lambda: service.get("/status").json["cache"]["entries"] == 1)
    assert service.picture("x").headers["Cache-Status"] == "PromptImageProxy; hit"


def test_rejected_parameter_and_cooldown_are_known_to_all_workers(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    backend.say(Say("", 401))
    service = gunicorn(backend)
    assert service.picture("x").status == 502
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.get("/status").json, range(20)))
    states = [answer["backends"][0]["state"] for answer in answers]
    assert states == ["cooling"] * 20
    assert {answer["status"] for answer in answers} == {"degraded"}


# --- places for hits


def test_hits_go_on_while_more_misses_than_places_are_in_flight(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    service = gunicorn(backend, THREADS="24")
    service.picture("kept")
    gate = Gate()
    backend.say(gate)
    with ThreadPoolExecutor(40) as pool:
        misses = [pool.submit(service.picture, f"miss-{n}") for n in range(40)]
        # Two workers with 24 - 16 places each: all the others are turned away at once.
        wait_until(lambda: sum(miss.done() for miss in misses) >= 24)
        for _ in range(20):
            assert service.picture("kept").headers["Cache-Status"] == "PromptImageProxy; hit"
        gate.opened.set()
        answers = [miss.result() for miss in misses]
    turned_away = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {200, 503}
    assert len(turned_away) >= 24
    assert all(answer.headers["Retry-After"] for answer in turned_away)
    assert all(answer.headers["Cache-Control"] == "no-store" for answer in turned_away)


# --- request lines


def test_2000_chinese_characters_pass(gunicorn: Start, backend: ScriptedServer) -> None:
    prompt = "红" * 2000
    assert gunicorn(backend).picture(quote(prompt)).status == 200
    assert backend.seen[0].json["prompt"] == prompt


@pytest.mark.parametrize("length", [32_800, 1_000_000])
def test_longer_request_line_is_a_quick_414(
    gunicorn: Start, backend: ScriptedServer, length: int
) -> None:
    service = gunicorn(backend)
    port = urlsplit(service.url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=10) as client:
        with contextlib.suppress(OSError):  # it may hang up before the end, having said why
            client.sendall(b"GET /prompt/" + b"x" * length)
        assert client.recv(100).startswith(b"HTTP/1.1 414")
    assert service.get("/robots.txt").status == 200


# --- reload and stop


def reload(service: Gunicorn) -> None:
    before = set(service.workers())
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(service.workers()), 30)


def test_three_reloads_under_load_lose_no_request(gunicorn: Start, backend: ScriptedServer) -> None:
    service = gunicorn(backend)
    service.picture("kept")
    stop = threading.Event()

    def ask() -> list[int]:
        found = []
        while not stop.is_set():
            found.append(service.picture("kept").status)
        return found

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        for _ in range(3):
            reload(service)
        stop.set()
        statuses = [status for one in asking for status in one.result()]
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_reload_takes_over_new_settings_and_survives_faulty_ones(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    service = gunicorn(backend)
    dotenv = service.log.parent / ".env"
    dotenv.write_text("NGINX_CACHE_SECONDS=77\n")
    reload(service)
    assert service.picture("x").headers["X-Accel-Expires"] == "77"
    dotenv.write_text("NGINX_CACHE_SECONDS=many\n")
    reload(service)
    assert "NGINX_CACHE_SECONDS: 'many' is not usable" in service.said()
    assert "The service goes on with the settings it has." in service.said()
    assert service.picture("x").headers["X-Accel-Expires"] == "77"


def test_stop_lets_a_drawing_finish_and_keeps_it(gunicorn: Start, backend: ScriptedServer) -> None:
    gate = Gate()
    backend.say(gate)
    service = gunicorn(backend)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(service.picture, "x")
        wait_until(lambda: backend.seen)
        service.process.terminate()
        wait_until(lambda: "Handling signal: term" in service.said())
        gate.opened.set()
        assert answer.result().status == 200
    assert service.process.wait(15) == 0
    again = gunicorn(backend)
    assert again.picture("x").headers["Cache-Status"] == "PromptImageProxy; hit"


def test_picture_survives_kill_9_of_everything(gunicorn: Start, backend: ScriptedServer) -> None:
    service = gunicorn(backend)
    service.picture("x")
    for pid in [service.process.pid, *service.workers()]:
        os.kill(pid, signal.SIGKILL)
    service.process.wait()
    again = gunicorn(backend)
    assert again.picture("x").headers["Cache-Status"] == "PromptImageProxy; hit"


# --- what it says


def test_no_secret_is_ever_in_the_log(gunicorn: Start, backend: ScriptedServer) -> None:
    backend.say(Say("", 401), drawing())
    service = gunicorn(backend, LOG_LEVEL="DEBUG", AUTH_TOKEN="token-of-the-backend")
    service.picture("x")
    service.picture("y")
    service.picture("x", key="a-wrong-key")
    service.delete(b'{"description": "y"}')
    fetch(f"{service.url}/prompt/%ff?key={KEY}")
    wait_until(lambda: service.said().count("/prompt/") >= 3)
    said = service.said()
    for secret in (KEY, ADMIN, "token-of-the-backend", "a-wrong-key", "Traceback"):
        assert secret not in said


def test_nothing_is_logged_for_a_hit(gunicorn: Start, backend: ScriptedServer) -> None:
    service = gunicorn(backend)
    service.picture("x")
    before = wait_until(lambda: service.said() if "Drew" in service.said() else "")
    for _ in range(5):
        service.picture("x")
    assert service.said() == before


def test_no_control_socket_is_left_anywhere(
    gunicorn: Start, backend: ScriptedServer, tmp_path: Path
) -> None:
    gunicorn(backend, HOME=str(tmp_path / "home"))
    assert not (tmp_path / "home").exists()
    assert not list(ROOT.glob("*.ctl"))
