"""A soak: `python -m benchmarks.soak [--seconds 120]`, against a real gunicorn.

Two workers, three backends of which two fail in every way and one cannot be reached, and clients
that mix hits, misses, deletions and bad requests. In the first part, the faults of faults.py are
committed one after the other. Every prompt has one known picture. Exits with 1 if a picture was
lost or wrong, if a request got no answer or an unexpected one, or if memory or open files grew
beyond the margins below.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.backends import FailingBackend
from benchmarks.soak.clients import ADMIN, Tally, load, verify
from benchmarks.soak.faults import Saboteur, is_ready
from benchmarks.stack import App, Unmeasurable, free_port, gunicorn, wait_until

SECONDS_BETWEEN_FAULTS = 8.0
# From the moment when caches, pools and arenas have filled to the end.
MEMORY_MARGIN = 16 * 2**20
DESCRIPTOR_MARGIN = 16

SETTINGS = {
    "ADMIN_TOKEN": ADMIN,
    "WORKERS": "2",
    "THREADS": "32",
    "BACKEND_TIMEOUT": "0.5",
    "GENERATION_DEADLINE": "5",
}


@dataclass(frozen=True)
class Usage:
    """What all processes of the service hold: bytes of memory and open files."""

    memory: int
    descriptors: int

    @classmethod
    def of(cls, app: App) -> Usage:
        """Measure at rest: when nothing has been opened or closed for a quarter of a second."""
        counts = [-1]

        def is_at_rest() -> bool:
            counts.append(app.descriptors())
            return counts[-1] == counts[-2]

        wait_until(is_at_rest, "the service to come to rest", pause=0.25)
        return cls(app.memory(), counts[-1])


def soak(seconds: float, seed: int, folder: Path) -> tuple[list[str], list[str]]:
    """Run; return the lines to print, and the faults that were found."""
    rng, tally = random.Random(seed), Tally()
    with ExitStack() as stack:
        backends = [
            stack.enter_context(FailingBackend(random.Random(rng.random()))) for _ in range(2)
        ]
        urls = [backend.url for backend in backends] + [f"http://127.0.0.1:{free_port()}"]
        app = stack.enter_context(gunicorn(folder, ",".join(urls), **SETTINGS))
        wait_until(lambda: is_ready(app), "both workers")
        saboteur = Saboteur(app, min(SECONDS_BETWEEN_FAULTS, seconds / 10))
        usages = [Usage.of(app)]
        with saboteur.at_work():
            load(app, tally, seconds * 0.4, rng, "early")
        # Growth is measured over workers that live from here to the end.
        load(app, tally, seconds * 0.1, rng, "settling")
        usages.append(Usage.of(app))
        load(app, tally, seconds * 0.5, rng, "late")
        verify(app, tally)
        usages.append(Usage.of(app))
    failures = sum((backend.failures for backend in backends), Counter[str]())
    faults = [*tally.faults, *([saboteur.failure] if saboteur.failure else []), *growth(usages)]
    return report(tally, failures, saboteur.committed, usages), faults


def growth(usages: list[Usage]) -> list[str]:
    """Return what has grown beyond its margin."""
    _, settled, end = usages
    found = []
    if end.memory > settled.memory + MEMORY_MARGIN:
        found.append("memory grew beyond its margin")
    if end.descriptors > settled.descriptors + DESCRIPTOR_MARGIN:
        found.append("open files grew beyond their margin")
    return found


def report(
    tally: Tally, failures: Counter[str], committed: Counter[str], usages: list[Usage]
) -> list[str]:
    memory = [f"{usage.memory / 2**20:.1f}" for usage in usages]
    files = [str(usage.descriptors) for usage in usages]
    lines = {
        "requests": f"{tally.outcomes.total()} ({listed(tally.outcomes)})",
        "failed": listed(tally.failures),
        "upstream": listed(failures),
        "faults": listed(committed),
        "pictures": f"{len(tally.stored)} stored, all requested again at the end",
        "memory": "start {}, settled {}, end {} MiB".format(*memory)
        + f" (may grow by {MEMORY_MARGIN // 2**20} once settled)",
        "open files": "start {}, settled {}, end {}".format(*files)
        + f" (may grow by {DESCRIPTOR_MARGIN} once settled)",
    }
    return [f"{name:12} {text}" for name, text in lines.items()]


def listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counter.most_common()) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Soak the service and report what happened."
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="of load; 120 by default")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random")
    arguments = parser.parse_args()
    # Terminated, it ends the processes it has started, as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        try:
            lines, faults = soak(arguments.seconds, arguments.seed, Path(folder))
        except Unmeasurable as reason:
            lines, faults = [], [str(reason)]
    print("\n".join(lines))
    print("\n".join(f"FAILED       {fault}" for fault in faults) or "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
