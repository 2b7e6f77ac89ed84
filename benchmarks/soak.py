"""A soak: `python -m benchmarks.soak [--seconds 120]`, against the real gunicorn.

Two workers, three backends of which two fail in every way and one is not there, and clients that
mix hits, misses, deletions and bad requests, with reloads in between. Every prompt has one known
picture. It exits with 1 on a picture that was lost or wrong, on an answer that never came, and
on growth of memory or of open files beyond the margins below.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from tests.conftest import ADMIN, KEY, Gunicorn, drawing
from tests.servers import Got, Say, ScriptedServer, Seen, closing_all, free_port, png, wait_until

CLIENTS = 6
FAULT_RATE = 0.2
RELOAD_SECONDS = 8.0
# From the moment when caches, pools and arenas have filled to the end.
MEMORY_MARGIN = 16 * 2**20
DESCRIPTOR_MARGIN = 16
EXPECTED_FAILURES = (502, 503, 504)


def picture_of(prompt: str) -> bytes:
    """Return the one picture of a prompt, a grey PNG of 1 to 30 KB that no other prompt has."""
    digest = hashlib.sha256(prompt.encode()).digest()
    size = 1000 + int.from_bytes(digest[3:5], "big") % 29_000
    return png(1 + digest[0] % 64, 1 + digest[1] % 64, digest[2], size)


class FailingBackend(ScriptedServer):
    """Draws `picture_of` the prompt, except for one request in five."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.faults: Counter[str] = Counter()
        self._release = threading.Event()
        self.say(self.answer)

    def answer(self, seen: Seen) -> Say:
        picture = drawing(picture_of(seen.json["prompt"]))
        self.seen.clear()  # nobody looks, and two minutes of requests would pile up
        if self.rng.random() > FAULT_RATE:
            return picture
        name, fault = self.rng.choice(self._faults(picture))
        self.faults[name] += 1
        return fault()

    def _faults(self, picture: Say) -> list[tuple[str, Callable[[], Say]]]:
        length = str(len(picture.content()) + 1)
        cut = {"Content-Length": length, "Connection": "close"}
        return [
            ("500", lambda: Say({"error": {"message": "boom"}}, 500)),
            ("429", lambda: Say("", 429, {"Retry-After-Ms": "100"})),
            ("html", lambda: Say("<html>busy</html>")),
            ("garbage", lambda: drawing(b"\x89PNG\r\n\x1a\n and no more")),
            ("no base64", lambda: Say({"data": [{"b64_json": "@@@@"}]})),
            ("deep JSON", lambda: Say("[" * 100_000)),
            ("private URL", lambda: Say({"data": [{"url": f"http://127.0.0.1:{self.port + 1}/"}]})),
            ("cut", lambda: Say(picture.body, headers=cut)),
            ("slow", lambda: self._slow(picture)),
        ]

    def _slow(self, picture: Say) -> Say:
        self._release.wait(1.0)
        return picture

    def close(self) -> None:
        self._release.set()
        super().close()


@dataclass
class Tally:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    # Delivered as `stored` or as a hit, and never deleted: to be there at the end.
    kept: set[str] = field(default_factory=set)

    @property
    def requests(self) -> int:
        return self.outcomes.total()

    def fault(self, text: str) -> None:
        if len(self.faults) < 20:
            self.faults.append(text)


class Client:
    """One client: asks, checks, and writes down."""

    def __init__(self, number: int, service: Gunicorn, tally: Tally, rng: random.Random) -> None:
        self.name = f"client {number}"
        self.service = service
        self.tally = tally
        self.rng = rng
        self.drawn = 0

    def run(self, end: float) -> None:
        actions = [self.popular, self.new, self.delete, self.knock]
        while time.monotonic() < end:
            [action] = self.rng.choices(actions, [60, 20, 8, 12])
            try:
                action()
            except OSError as error:
                self.tally.fault(f"no answer came: {type(error).__name__}")

    def popular(self) -> None:
        self.ask(f"popular {self.rng.randrange(40)}")

    def new(self) -> None:
        self.drawn += 1
        self.ask(f"{self.name} new {self.drawn}")

    def ask(self, prompt: str, *, is_kept: bool = True) -> Got:
        got = self.service.picture(prompt.replace(" ", "%20"))
        status = got.headers.get("Cache-Status", "")
        if got.status == 200:
            self.tally.outcomes["hit" if status.endswith("hit") else "drawn"] += 1
            if got.body != picture_of(prompt):
                self.tally.fault(f"wrong picture: {prompt}")
            if is_kept and ("hit" in status or "stored" in status):
                self.tally.kept.add(prompt)
            elif is_kept and got.status == 200:
                self.tally.fault(f"not stored: {prompt}")
        else:
            self.tally.outcomes["failed"] += 1
            self.tally.failures[str(got.status)] += 1
            if got.status not in EXPECTED_FAILURES:
                self.tally.fault(f"unexpected status {got.status}: {prompt}")
            if prompt in self.tally.kept:
                self.tally.fault(f"lost picture: {prompt}")
        return got

    def delete(self) -> None:
        prompt = f"{self.name} deleted {self.rng.randrange(5)}"
        was_there = self.ask(prompt, is_kept=False).status == 200
        status = self.service.delete(json.dumps({"description": prompt}).encode()).status
        self.tally.outcomes["deleted"] += 1
        if was_there and status != 200:
            self.tally.fault(f"deletion answered {status}")

    def knock(self) -> None:
        """Send what is to be turned away, or what costs nothing."""
        target, status = self.rng.choice(
            [
                ("/prompt/x?key=wrong", 401),
                (f"/prompt/x?key={KEY}&width=5000", 400),
                (f"/prompt/x?key={KEY}&seed=1&seed=2", 400),
                ("/prompt/" + "x" * 70_000, 414),
                ("/../../etc/passwd", 404),
                ("/status", 200),
                ("/robots.txt", 200),
            ]
        )
        got = self.service.get(target)
        self.tally.outcomes["at the door"] += 1
        if got.status != status:
            self.tally.fault(f"{unquote(target)[:30]} answered {got.status}, not {status}")


@dataclass(frozen=True)
class Usage:
    """What all processes of the service hold: bytes of memory and open files."""

    memory: int
    descriptors: int

    @classmethod
    def of(cls, service: Gunicorn) -> Usage:
        """Measure at rest: when nothing has been opened or closed for a quarter of a second."""
        pids = [service.process.pid, *service.workers()]
        before = [-1]
        pause = threading.Event()

        def is_at_rest() -> bool:
            pause.wait(0.25)
            now = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
            before.append(now)
            return now == before[-2]

        wait_until(is_at_rest, what="the service to come to rest")
        memory = sum(_memory_of(pid) for pid in pids)
        return cls(memory, before[-1])


def _memory_of(pid: int) -> int:
    """Return what a process holds alone, with its share of what several hold: see proc(5)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024


def load(service: Gunicorn, tally: Tally, seconds: float, rng: random.Random, first: int) -> None:
    """Let all clients ask for `seconds`."""
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [
            Client(first + n, service, tally, random.Random(rng.random())) for n in range(CLIENTS)
        ]
        for running in [pool.submit(client.run, end) for client in clients]:
            running.result()


def reload(service: Gunicorn, pauses: float, stop: threading.Event) -> int:
    """Reload again and again until `stop`, and return how often."""
    count = 0
    while not stop.wait(pauses):
        before = set(service.workers())
        service.process.send_signal(signal.SIGHUP)
        wait_until(partial(_are_new, service, before), 60, "the new workers")
        count += 1
    return count


def _are_new(service: Gunicorn, before: set[int]) -> bool:
    """Say whether both workers are others, and so far that they would not miss a signal."""
    now = service.workers()
    return (
        len(now) == 2 and not before & set(now) and all(service.threads_of(pid) > 1 for pid in now)
    )


def verify(service: Gunicorn, tally: Tally) -> None:
    """Ask once more for every picture that is to be there."""
    client = Client(-1, service, tally, random.Random(0))
    for prompt in sorted(tally.kept):
        got = client.ask(prompt)
        if not got.headers.get("Cache-Status", "").endswith("hit"):
            tally.fault(f"lost picture: {prompt}")


def soak(seconds: float, seed: int, folder: Path) -> tuple[list[str], list[str]]:
    """Run, and return the lines to print and the faults found."""
    rng, tally = random.Random(seed), Tally()
    things: list[FailingBackend | Gunicorn] = []
    with closing_all(things):
        backends = [FailingBackend(random.Random(rng.random())) for _ in range(2)]
        things += backends
        urls = [backend.url for backend in backends] + [f"http://127.0.0.1:{free_port()}"]
        service = Gunicorn(_environment(urls, folder), folder / "gunicorn.log")
        things.append(service)
        start = Usage.of(service)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            reloading = pool.submit(reload, service, min(RELOAD_SECONDS, seconds / 10), stop)
            try:
                load(service, tally, seconds * 0.4, rng, 0)
            finally:
                stop.set()
            reloads = reloading.result()
        load(service, tally, seconds * 0.1, rng, CLIENTS)  # the last workers fill their pools
        settled = Usage.of(service)
        load(service, tally, seconds * 0.5, rng, 2 * CLIENTS)
        end = Usage.of(service)
        verify(service, tally)
        said = service.said()
    for secret in (KEY, ADMIN, "Traceback"):
        if secret in said:
            tally.fault(f"the log holds {'the access key' if secret == KEY else secret!r}")
    if end.memory > settled.memory + MEMORY_MARGIN:
        tally.fault("memory grew beyond the margin")
    if end.descriptors > settled.descriptors + DESCRIPTOR_MARGIN:
        tally.fault("open files grew beyond the margin")
    upstream = sum((backend.faults for backend in backends), Counter[str]())
    return _report(tally, upstream, reloads, [start, settled, end]), tally.faults


def _environment(urls: list[str], folder: Path) -> dict[str, str]:
    return {
        "PROXY_ACCESS_KEY": KEY,
        "ADMIN_TOKEN": ADMIN,
        "BACKEND_API_URLS": ",".join(urls),
        "CACHE_DIR": str(folder / "cache"),
        "POLLINATIONS_ENABLED": "false",
        "WORKERS": "2",
        "THREADS": "32",
        "BACKEND_TIMEOUT": "0.5",
        "GENERATION_DEADLINE": "5",
        "LOG_LEVEL": "INFO",
    }


def _report(tally: Tally, upstream: Counter[str], reloads: int, usages: list[Usage]) -> list[str]:
    memory = [f"{usage.memory / 2**20:.1f}" for usage in usages]
    files = [str(usage.descriptors) for usage in usages]
    lines = {
        "requests": f"{tally.requests} ({_counted(tally.outcomes)})",
        "failures": _counted(tally.failures),
        "upstream": _counted(upstream),
        "reloads": str(reloads),
        "pictures": f"{len(tally.kept)} kept, each asked for again at the end",
        "memory": "start {}, settled {}, end {} MiB".format(*memory)
        + f" (margin {MEMORY_MARGIN // 2**20} from settled to end)",
        "descriptors": "start {}, settled {}, end {}".format(*files)
        + f" (margin {DESCRIPTOR_MARGIN} from settled to end)",
    }
    return [f"{name:12} {text}" for name, text in lines.items()]


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counter.most_common()) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak the service, and say what came of it.")
    parser.add_argument("--seconds", type=float, default=120.0, help="of load; 120 by default")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines, faults = soak(arguments.seconds, arguments.seed, Path(folder))
    print("\n".join(lines))
    print("\n".join(f"FAILED       {fault}" for fault in faults) or "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
