"""The CPU time of a cold request, beside a plain script's for the same picture.

CPU time and not wall time: it is what a small machine runs out of, and it is far less noisy.
"""

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from benchmarks.figures.plan import KB, MIB, Figure, Plan, median
from benchmarks.nginx import Terminator, terminator
from benchmarks.stack import (
    ROOT,
    App,
    Unmeasurable,
    Upstream,
    backend,
    clean_environment,
    cpu_seconds,
    gunicorn,
    running,
    target_of,
)

DRAWINGS = 20  # per round
TRUST_SETTINGS = ("CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
# Why a request may fail.
HINTS = {"http": "", "https": "; the service has to trust the authority in CA_BUNDLE"}
SIZES: tuple[tuple[str, int, float | None], ...] = (
    ("50 KB", 50 * KB, None),
    ("1 MiB", MIB, 1.15),
)


class Contestant(Protocol):
    """One of the two that draw pictures, with the CPU seconds it has used so far."""

    def draw(self, seeds: range) -> None: ...

    def cpu_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Service:
    """The app, asked over one kept connection, as nginx would."""

    app: App
    hint: str

    def draw(self, seeds: range) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.app.url).netloc, timeout=60)
        with contextlib.closing(connection):
            for seed in seeds:
                connection.request("GET", target_of(self.app.picture("apple", seed)))
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise Unmeasurable(f"a cold request got a {response.status}{self.hint}")

    def cpu_seconds(self) -> float:
        return self.app.cpu_seconds()


@dataclass(frozen=True, slots=True)
class Script:
    """benchmarks/plain.py, which does the unavoidable."""

    process: subprocess.Popen[str]

    def draw(self, seeds: range) -> None:
        assert self.process.stdin
        assert self.process.stdout
        print(len(seeds), file=self.process.stdin, flush=True)
        if not self.process.stdout.readline():
            raise Unmeasurable("the plain script failed")

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)


def of_cold_requests(plan: Plan, scheme: str) -> Iterator[Figure]:
    name, over = ("cost", "") if scheme == "http" else ("tls", ", TLS")
    most = 0
    for label, size, target in SIZES:
        folder = plan.folder / f"{name}-{size}"
        with ExitStack() as stack:
            service, script, connections = _contestants(stack, folder, size, scheme)
            before = connections()
            service.draw(range(DRAWINGS))
            most = max(most, connections() - before)
            script.draw(range(DRAWINGS))
            rounds = [_round(service, script, number) for number in range(plan.cost_rounds)]
        details = {
            "ratios": sorted(round(ours / plain, 2) for ours, plain in rounds),
            "CPU ms": median([ours / DRAWINGS * 1000 for ours, _ in rounds]),
            "CPU ms of the script": median([plain / DRAWINGS * 1000 for _, plain in rounds]),
        }
        ratio = median([ours / plain for ours, plain in rounds])
        title = f"CPU of a cold request ÷ plain script, {label}{over}"
        yield Figure(name, title, ratio, target, details=details)
    yield Figure(name, f"… connections for {DRAWINGS} drawings, one worker{over}", most, 3)


def _contestants(
    stack: ExitStack, folder: Path, size: int, scheme: str
) -> tuple[Service, Script, Callable[[], int]]:
    """Start both sides; return them, and what counts the connections made to their backend."""
    source: Upstream | Terminator = stack.enter_context(backend(size))
    trust: dict[str, str] = {}
    if scheme == "https":
        source = stack.enter_context(terminator(folder / "tls", source.url))
        trust = dict.fromkeys(TRUST_SETTINGS, str(source.bundle))
    app = stack.enter_context(gunicorn(folder / "app", source.url, WORKERS="1", **trust))
    command = [sys.executable, "-m", "benchmarks.plain", source.url, str(folder / "plain")]
    script = stack.enter_context(
        running(
            command,
            cwd=ROOT,
            env=clean_environment() | trust,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    return Service(app, HINTS[scheme]), Script(script), source.connections


def _round(service: Service, script: Script, number: int) -> tuple[float, float]:
    """Let both draw new pictures; return the CPU seconds of each.

    The service's include what it does after its last answer, while the script draws.
    """
    seeds = range((number + 1) * DRAWINGS, (number + 2) * DRAWINGS)
    contestants: tuple[Contestant, Contestant] = (service, script)
    before = [contestant.cpu_seconds() for contestant in contestants]
    for contestant in contestants:
        contestant.draw(seeds)
    after = [contestant.cpu_seconds() for contestant in contestants]
    return after[0] - before[0], after[1] - before[1]
