"""The figures: each a function from `Plan` to `Figure`s, with nothing of the others needed."""

from __future__ import annotations

import hashlib
import random
import selectors
import socket
import sqlite3
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.backend import Backend
from benchmarks.stack import (
    WORKERS,
    App,
    Unmeasurable,
    ask,
    backend,
    gunicorn,
    nginx,
    wrk,
)
from cache import Cache, Provenance
from demo.canvas import pad_png
from demo.picture import draw
from picture import ImageRequest

KB, MIB = 1024, 2**20
CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done for each figure, and where its files go."""

    folder: Path
    rounds: int = 10
    cold_requests: int = 80
    loaded_rounds: int = 5
    entries: int = 1_000_000
    starts: int = 7
    pictures: int = 200


def quick_plan(folder: Path) -> Plan:
    return Plan(folder, 2, 10, 1, 50_000, 2, 32)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; the target is what it may be at most, or at least. `of` is in ALL."""

    of: str
    name: str
    value: float
    target: float
    unit: str = ""
    at_least: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def by_status(statuses: Counter[int]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(statuses.items())}


def alternate(plan: Plan, first: str, second: str) -> tuple[float, dict[str, Any]]:
    """Return the median ratio of the throughputs of two URLs, loaded by turns, and the facts."""
    rates: dict[str, list[float]] = {first: [], second: []}
    for number in range(plan.rounds):
        for url in (first, second) if number % 2 else (second, first):
            rates[url].append(wrk(url, 1, CONNECTIONS).rate)
    ratios = [one / other for one, other in zip(rates[first], rates[second], strict=True)]
    facts = {
        "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
        "requests a second": [round(statistics.median(rates[url])) for url in (first, second)],
    }
    return median(ratios), facts


# --- hits ---------------------------------------------------------------------------------------


def hits_through_nginx(plan: Plan) -> Iterator[Figure]:
    for name, size, target in (("50 KB", 50 * KB, 0.90), ("1 MiB", MIB, 0.85)):
        folder = plan.folder / f"nginx-{size}"
        with (
            backend(size) as backend_url,
            gunicorn(folder, backend_url) as app,
            nginx(folder / "nginx", app) as front,
        ):
            kept = app.picture("apple").replace(app.url, front.url)
            picture = ask(kept).body
            if len(picture) != size:
                raise Unmeasurable(f"the picture has {len(picture)} bytes instead of {size}")
            ratio, facts = alternate(plan, kept, front.publish("apple.png", picture))
        title = f"hits through nginx ÷ static file, {name}"
        yield Figure("nginx", title, ratio, target, at_least=True, facts=facts)


def hits_from_gunicorn(plan: Plan) -> Iterator[Figure]:
    folder = plan.folder / "gunicorn"
    with (
        backend(50 * KB) as backend_url,
        gunicorn(folder, backend_url) as app,
        gunicorn(folder / "hello", wsgi_app="benchmarks.hello:app", ready="/") as hello,
    ):
        ask(app.picture("apple"))
        ratio, facts = alternate(plan, app.picture("apple"), f"{hello.url}/")
    title = f"hits from gunicorn ÷ Flask hello world, 50 KB, {WORKERS} workers"
    yield Figure("gunicorn", title, ratio, 0.90, at_least=True, facts=facts)


# --- drawing ------------------------------------------------------------------------------------


def added_time(plan: Plan) -> Iterator[Figure]:
    cold: list[float] = []
    direct: list[float] = []
    with backend(MIB) as backend_url, gunicorn(plan.folder / "cold", backend_url) as app:
        for seed in range(plan.cold_requests + 5):
            body = {"prompt": "apple", "n": 1, "size": "64x64", "seed": seed}
            direct.append(ask(f"{backend_url}/v1/images/generations", body).seconds * 1000)
            answer = ask(app.picture("apple", seed))
            if (answer.status, len(answer.body)) != (200, MIB):
                raise Unmeasurable(f"a cold request was answered with {answer.status}")
            cold.append(answer.seconds * 1000)
    # The first ones warm up.
    cold, direct = cold[5:], direct[5:]
    facts = {
        "cold ms": median(cold),
        "backend alone ms": median(direct),
        "added ms, by quartile": [
            round(cut, 2)
            for cut in statistics.quantiles([c - d for c, d in zip(cold, direct, strict=True)])
        ],
    }
    added = statistics.median(cold) - statistics.median(direct)
    yield Figure(
        "cold", "added by a cold request, 1 MiB as base64", round(added, 2), 5.0, "ms", facts=facts
    )


def identical_requests(plan: Plan) -> Iterator[Figure]:
    server = Backend(0, delay=1.0, min_bytes=50 * KB)
    serving = threading.Thread(target=server.serve, daemon=True)
    with server, gunicorn(plan.folder / "identical", server.url) as app:
        serving.start()
        try:
            with ThreadPoolExecutor(200) as pool:
                asked = [pool.submit(ask, app.picture("apple")) for _ in range(200)]
            statuses = Counter(future.result().status for future in asked)
        finally:
            server.is_stopping = True
            serving.join()
    facts = {"answers by status": by_status(statuses)}
    yield Figure(
        "identical", "upstream calls for 200 identical requests", server.calls, 1, facts=facts
    )
    yield Figure("identical", "… of them answered with 200", statuses[200], 200, at_least=True)


class Misses:
    """Requests for different new pictures, all at once; their answers, by status.

    One thread holds them all: a thread each would be in the way of what is measured.
    """

    def __init__(self, app: App, count: int, prefix: str) -> None:
        self.statuses: Counter[int] = Counter()
        self.count = count
        self._waiting = selectors.DefaultSelector()
        parts = urlsplit(app.url)
        for number in range(count):
            url = app.picture(f"{prefix}-{number}").removeprefix(app.url)
            client = socket.create_connection((parts.hostname or "", parts.port or 0), 10)
            client.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            self._waiting.register(client, selectors.EVENT_READ, [])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while self._waiting.get_map() and (ready := self._waiting.select(20.0)):
            for key, _ in ready:
                client = key.fileobj
                assert isinstance(client, socket.socket)
                data = client.recv(65536)
                if data and not key.data:
                    key.data.append(int(data[9:12]))
                if not data:
                    self._waiting.unregister(client)
                    client.close()
                    self.statuses[key.data[0] if key.data else 0] += 1

    def settle(self) -> int:
        """Wait until who found no place has been told so; return how many are in flight."""
        told = 0
        for _ in range(5):
            time.sleep(0.25)
            if told and told == self.statuses.total():
                break
            told = self.statuses.total()
        return self.count - told

    def finish(self) -> Counter[int]:
        self._reader.join()
        self._waiting.close()
        return self.statuses


def hits_beside_misses(plan: Plan) -> Iterator[Figure]:
    idle, loaded, in_flight, answers = [], [], [], Counter[int]()
    folder = plan.folder / "busy"
    with backend(50 * KB, 3.0) as backend_url, gunicorn(folder, backend_url) as app:
        hit = app.picture("apple")
        ask(hit)
        wrk(hit, 1, 8)
        for number in range(plan.loaded_rounds):
            idle.append(wrk(hit, 1, 8))
            misses = Misses(app, 300, f"miss-{number}")
            in_flight.append(misses.settle())
            loaded.append(wrk(hit, 1, 8))
            answers += misses.finish()
    ratio = median([busy.p99 / free.p99 for busy, free in zip(loaded, idle, strict=True)])
    facts = {
        "idle p99 ms": [load.p99 for load in idle],
        "loaded p99 ms": [load.p99 for load in loaded],
        "hits a second, idle and loaded": [
            round(statistics.median(load.rate for load in loads)) for loads in (idle, loaded)
        ],
        "misses in flight": in_flight,
        "misses by status": by_status(answers),
    }
    yield Figure("busy", "p99 of hits, 300 misses in flight ÷ idle", ratio, 3.0, facts=facts)
    longest = max(load.longest for load in loaded)
    yield Figure("busy", "… the longest of these hits", round(longest, 1), 1000.0, "ms")


# --- the index ----------------------------------------------------------------------------------

_FILLER = (
    "INSERT INTO entries (key, file, media_type, bytes, mtime_ns, digest, created, used,"
    " prompt, width, height, seed, drawn_by) VALUES (?, ?, 'image/png', 100000, 1, ?, ?, ?,"
    " ?, 1024, 1024, ?, 'https://backend.example/v1')"
)


def filler_rows(count: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        key = hashlib.sha256(f"filler {number}".encode()).hexdigest()
        name, digest = f"{key}-{key[:16]}.png", key[::-1]
        yield key, name, digest, number, number, f"a picture of the number {number}", number


def filled_cache(folder: Path, entries: int, measured: int) -> tuple[Cache, list[str]]:
    """Return a cache of `entries` rows, and the keys of the `measured` ones that have files."""
    cache = Cache(folder)

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        connection.executemany(_FILLER, filler_rows(entries - measured))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    cache.index.run(fill)
    png = pad_png(draw("a red apple", 16, 16, 42), 2000)
    requests = [ImageRequest(f"measured {number}") for number in range(measured)]
    for request in requests:
        cache.put(request.key, png, "image/png", Provenance(request.prompt))
    return cache, [request.key for request in requests]


def microseconds_a_look_up(cache: Cache, keys: list[str]) -> float:
    random.shuffle(keys)
    began = time.perf_counter()
    for key in keys:
        entry = cache.get(key)
        assert entry
        entry.close()
    return (time.perf_counter() - began) / len(keys) * 1e6


def look_up(plan: Plan) -> Iterator[Figure]:
    few, some_keys = filled_cache(plan.folder / "few", 1000, 500)
    many, keys = filled_cache(plan.folder / "many", plan.entries, 500)
    small, large = [], []
    for _ in range(20 * plan.rounds):
        small.append(microseconds_a_look_up(few, some_keys))
        large.append(microseconds_a_look_up(many, keys))
    ratios = [one / other for one, other in zip(large, small, strict=True)]
    facts = {
        "µs among many": median(large),
        "µs among 1,000": median(small),
        "index of many, bytes": (plan.folder / "many" / "index.sqlite3").stat().st_size,
    }
    few.close()
    many.close()
    yield Figure(
        "index", f"look-up among {plan.entries:,} ÷ 1,000", median(ratios), 1.3, facts=facts
    )


# --- processes ----------------------------------------------------------------------------------


def start(plan: Plan) -> Iterator[Figure]:
    folder = plan.folder / "start"
    with backend(50 * KB) as backend_url, gunicorn(folder, backend_url) as app:
        ask(app.picture("apple"))
        hit = app.picture("apple").removeprefix(app.url)
    seconds = []
    for _ in range(plan.starts):
        began = time.perf_counter()
        with gunicorn(folder, ready=hit):
            seconds.append(time.perf_counter() - began)
    facts = {"seconds": [round(value, 3) for value in seconds]}
    yield Figure("start", "start to first answer, a hit", median(seconds), 0.7, "s", facts=facts)


def memory(plan: Plan) -> Iterator[Figure]:
    with backend(MIB) as backend_url, gunicorn(plan.folder / "memory", backend_url) as app:
        fresh = resident(app)
        with ThreadPoolExecutor(16) as pool:
            urls = [app.picture("apple", seed) for seed in range(plan.pictures)]
            statuses = Counter(answer.status for answer in pool.map(ask, urls))
        if statuses != {200: plan.pictures}:
            raise Unmeasurable(f"cold requests were answered with {statuses}")
        after = resident(app)
    facts = {"Pss and Rss, MB, at the start": fresh, "Pss and Rss, MB": after}
    title = f"memory after {plan.pictures} cold pictures of 1 MiB"
    yield Figure("memory", title, after["Pss"], 250.0, "MB", facts=facts)


def resident(app: App) -> dict[str, float]:
    """Return the memory of all processes in MB; Pss counts once what they share."""
    sums = dict.fromkeys(("Pss", "Rss"), 0)
    for pid in app.pids():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0])
    return {name: round(kilobytes * KB / 1e6, 1) for name, kilobytes in sums.items()}


ALL: dict[str, Callable[[Plan], Iterator[Figure]]] = {
    "nginx": hits_through_nginx,
    "gunicorn": hits_from_gunicorn,
    "cold": added_time,
    "identical": identical_requests,
    "busy": hits_beside_misses,
    "index": look_up,
    "start": start,
    "memory": memory,
}
