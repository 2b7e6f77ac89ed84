"""What is done to the service while clients use it."""

import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPException
from itertools import cycle
from math import log2
from urllib.parse import urlsplit

from benchmarks.soak.clients import Tally
from benchmarks.soak.disk import full
from benchmarks.soak.index_faults import damage_index, hold_write_lock, put_back_older_index
from benchmarks.soak.scene import (
    RECOVERY_SECONDS,
    Scene,
    draw,
    is_ready,
    pause,
    reload,
    wait_until_well,
)
from benchmarks.soak.vendors import UNUSABLE, picture_of
from benchmarks.stack import KEY, Unmeasurable, ask, target_of, wait_until
from picture import ImageRequest

FULL_SECONDS = 3.0
# From the last check before a drawing to its last call of a backend: one that hangs, and another.
DRAWING_SECONDS = 4.0
CROWD_SECONDS = 3.0
CROWD = 800
REPETITIONS = 200
BACKENDS = 8
# From when a backend answers to when the picture is in the index, at most: BACKEND_TIMEOUT and the
# writing, on a busy machine. A kill in between loses it.
IN_FLIGHT_SECONDS = 2.5


def kill_worker(scene: Scene) -> None:
    with scene.ledger.danger():
        pause(IN_FLIGHT_SECONDS)
        victim = scene.app.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: victim not in scene.app.workers() and is_ready(scene.app), "a new worker", 60
        )
        pause(IN_FLIGHT_SECONDS)


def restore_pictures(scene: Scene) -> None:
    """Put pictures with old times beside an index that does not know them, and start anew."""
    number = time.monotonic_ns()
    prompts = [f"restored {number} {count}" for count in range(5)]
    for prompt in prompts:
        path = scene.folder / f"{ImageRequest(prompt, 64, 64).key}-{number:016x}.png"
        path.write_bytes(picture_of(prompt))
        os.utime(path, (1e9, 1e9))
    reload(scene)
    for prompt in prompts:
        if ask(scene.app.picture(prompt.replace(" ", "%20"))).body != picture_of(prompt):
            raise Unmeasurable("a restored picture was not served")
        if scene.ledger.calls[prompt]:
            raise Unmeasurable("a restored picture was paid again")


def fill_disk(scene: Scene) -> None:
    """Check that nothing is drawn without room for a picture, and that drawing goes on with it."""
    with full(scene.folder):
        pause(DRAWING_SECONDS)
        calls = scene.ledger.calls.total()
        answer = draw(scene, "unwritten")
        if answer.status != 503 or "Retry-After" not in answer.headers:
            raise Unmeasurable(f"without room a new picture was answered with {answer.status}")
        wait_until(lambda: scene.fault() is not None, "/status to tell of the full disk")
        pause(FULL_SECONDS)
        if paid := scene.ledger.calls.total() - calls:
            raise Unmeasurable(f"{paid} calls while no picture could be stored")
    wait_until_well(scene)
    wait_until(lambda: draw(scene, "written").status == 200, "drawings", RECOVERY_SECONDS)


def crowd(scene: Scene) -> None:
    """Open more connections than there are descriptors, and keep them."""
    before = scene.app.workers()
    parts = urlsplit(scene.app.url)
    with ExitStack() as stack:
        for _ in range(CROWD):
            client = stack.enter_context(closing(socket.socket()))
            client.setblocking(False)
            client.connect_ex((str(parts.hostname), parts.port))
            with contextlib.suppress(OSError):
                client.send(b"GET /robots.txt HTTP/1.1\r\nHost: crowd\r\n\r\n")
        pause(CROWD_SECONDS)
    if scene.app.workers() != before:
        raise Unmeasurable("a worker died of too many connections")


def repeat_url(scene: Scene) -> None:
    """Send one signed URL again and again whose drawing ends without a picture."""
    prompt, began = f"{UNUSABLE} {time.monotonic_ns()}", time.monotonic()
    body = {"description": prompt, "width": 64, "height": 64}
    bearer = {"Authorization": f"Bearer {KEY}"}
    signed = ask(f"{scene.app.url}/sign", body, headers=bearer).json["url"]
    url = scene.app.url + target_of(signed)
    with ThreadPoolExecutor(20) as pool:
        statuses = Counter(pool.map(lambda _: ask(url).status, range(REPETITIONS)))
    if not set(statuses) <= {502, 503, 504}:
        raise Unmeasurable(f"an unusable picture was answered with {dict(statuses)}")
    # Remembered for 2, 4, 8 … seconds; each round asks every backend once.
    rounds = 1 + int(log2((time.monotonic() - began) / 2 + 1))
    if (calls := scene.ledger.calls[prompt]) > rounds * BACKENDS:
        raise Unmeasurable(f"{REPETITIONS} requests for one URL were {calls} calls")


# To add a fault: a function that does it, and returns when the service should be well again.
FAULTS: list[Callable[[Scene], None]] = [
    reload,
    repeat_url,
    kill_worker,
    crowd,
    fill_disk,
    damage_index,
    put_back_older_index,
    restore_pictures,
    hold_write_lock,
]


class Saboteur:
    """Commits one fault after the other, in a thread; `committed` counts them by name."""

    def __init__(self, scene: Scene, tally: Tally, pause: float) -> None:
        self.scene = scene
        self.tally = tally
        self.pause = pause  # seconds before each fault
        self.committed: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        faults = cycle(FAULTS if self.scene.is_disk else [f for f in FAULTS if f != fill_disk])
        while not self._stop.wait(self.pause):
            fault = next(faults)
            name = self.tally.meanwhile = fault.__name__.replace("_", " ")
            try:
                fault(self.scene)
            except (Unmeasurable, OSError, HTTPException, sqlite3.Error) as reason:
                self.failures.append(f"not recovered from {name}: {reason}")
            self.tally.meanwhile = "no fault"
            self.committed[name] += 1
