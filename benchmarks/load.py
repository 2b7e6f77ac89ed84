"""Load: wrk for hits, and many misses at once."""

import json
import selectors
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from benchmarks.stack import PATIENCE, ROOT, App, Unmeasurable, running, target_of, tool

CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk measured: requests per second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float
    longest: float


def wrk(url: str, seconds: int, connections: int) -> Load:
    """Request `url` again and again. Raises Unmeasurable if any request fails."""
    script = str(ROOT / "benchmarks" / "wrk.lua")
    command = [
        tool("wrk"),
        f"-t{min(2, connections)}",
        f"-c{connections}",
        f"-d{seconds}s",
        "-s",
        script,
        url,
    ]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        output, _ = process.communicate(timeout=seconds + PATIENCE)
    _, marker, result = output.partition("RESULT ")
    if not marker:
        raise Unmeasurable(f"wrk said: {output}")
    found = json.loads(result)
    if found["bad"] or not found["requests"]:
        raise Unmeasurable(f"{found['bad']} of {found['requests']} requests failed")
    return Load(
        found["requests"] / (found["microseconds"] / 1e6),
        *(found[name] / 1000 for name in ("p50", "p99", "max")),
    )


def compare(first: str, second: str, rounds: int) -> tuple[float, dict[str, Any]]:
    """Load two URLs in turn; return the median ratio of their throughputs, and the details."""
    rates: dict[str, list[float]] = {first: [], second: []}
    for number in range(rounds):
        for url in (first, second) if number % 2 else (second, first):
            rates[url].append(wrk(url, 1, CONNECTIONS).rate)
    ratios = [one / other for one, other in zip(rates[first], rates[second], strict=True)]
    return round(statistics.median(ratios), 3), {
        "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
        "requests per second": [round(statistics.median(rates[url])) for url in (first, second)],
    }


class Misses:
    """Simultaneous requests for pictures that do not exist yet; counts their answers by status.

    One thread holds all connections: a thread each would slow down what is measured.
    """

    def __init__(self, app: App, count: int, prefix: str) -> None:
        self.statuses: Counter[int] = Counter()
        self.count = count
        self._waiting = selectors.DefaultSelector()
        parts = urlsplit(app.url)
        for number in range(count):
            target = target_of(app.picture(f"{prefix}-{number}"))
            client = socket.create_connection((parts.hostname or "", parts.port or 0), 10)
            client.sendall(
                f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
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
        """Wait until the requests for which there is no place are answered; return the others."""
        answered = 0
        for _ in range(5):
            time.sleep(0.25)
            if answered and answered == self.statuses.total():
                break
            answered = self.statuses.total()
        return self.count - answered

    def finish(self) -> Counter[int]:
        self._reader.join()
        self._waiting.close()
        return self.statuses
